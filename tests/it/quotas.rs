//! Quotas: each reached, exceeded by many clients at once and never over by one, and free again.

mod at_work;
mod kept;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::guests::GUESTS;
use crate::support::server::Setup;
use crate::support::{Answer, Client, Server, guest, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");
const WASM: (&str, &str) = ("content-type", "application/wasm");
const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

/// Clients at once.
const CLIENTS: usize = 64;

/// A server with two tenants, whose keys may do everything.
struct Two {
    server: Server,
    operator: Client,
    a: Client,
    b: Client,
}

impl Two {
    fn new(flags: &[&str]) -> Two {
        let setup = Setup::new(flags);
        setup.make_tenant("a");
        setup.make_tenant("b");
        let [operator, a, b] = ["operator", "a", "b"].map(|tenant| setup.make_key(tenant, "admin", &[]));
        let server = setup.start();
        let [operator, a, b] = [operator, a, b].map(|key| server.client.with_key(&key));
        Two { server, operator, a, b }
    }

    /// Sets quotas of the tenant a.
    #[track_caller]
    fn set(&self, quotas: &Value) -> Value {
        let patch = json!({ "quotas": quotas }).to_string();
        self.operator.send("PATCH", "/tenants/a", &[MERGE_PATCH], Some(patch.as_bytes())).expect(200).json()
    }
}

/// How much of a quota a tenant may have and how much it uses.
#[track_caller]
fn quota(client: &Client, name: &str) -> (Option<u64>, Option<u64>) {
    let tenant = client.get("/tenant").expect(200).json();
    (tenant["quotas"][name]["limit"].as_u64(), tenant["quotas"][name]["used"].as_u64())
}

/// Sends a request from all clients at once, each with its number; returns how many were done and how many were
/// refused for a quota.
#[track_caller]
fn at_once(of: &str, send: impl Fn(usize) -> Answer + Sync) -> (usize, usize) {
    let answers = all_at_once(&send);
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    for answer in answers {
        match answer.status {
            429 => refusal(&answer, of),
            status => assert!(matches!(status, 200..300), "{answer:?}"),
        }
    }
    (CLIENTS - refused, refused)
}

fn all_at_once<T: Send>(send: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let begin = Barrier::new(CLIENTS);
    let one = |number: usize| {
        begin.wait();
        send(number)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let one = &one;
                scope.spawn(move || one(number))
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// A refusal says of which quota, how much that is, and when to come again.
#[track_caller]
fn refusal(answer: &Answer, of: &str) {
    refused_for(answer, of, 300);
}

/// The same where it can take that many seconds.
#[track_caller]
fn refused_for(answer: &Answer, of: &str, longest: u64) {
    let starts = |name: &str| answer.header(name).is_some_and(|value| value.starts_with(&format!("\"{of}\";")));
    assert!(starts("ratelimit") && starts("ratelimit-policy"), "{answer:?}");
    let after = answer.header("retry-after").and_then(|after| after.parse::<u64>().ok());
    assert!(after.is_some_and(|after| (1..=longest).contains(&after)), "{answer:?}");
    answer.clone().problem(429);
}

fn delayed(client: &Client) -> Answer {
    client.post_task(r#"{"task_type":"echo","delay_ms":3600000}"#)
}

fn ids(client: &Client, status: &str) -> Vec<String> {
    let tasks = client.get(&format!("/tasks?limit=1000&status={status}")).expect(200).json();
    tasks["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pending_tasks() {
    let two = Two::new(&[]);
    two.set(&json!({"pending_tasks": 10}));
    assert_eq!(at_once("pending-tasks", |_| delayed(&two.a)), (10, 54));
    assert_eq!(quota(&two.a, "pending_tasks"), (Some(10), Some(10)));
    assert_eq!(at_once("pending-tasks", |_| delayed(&two.b)), (64, 0), "another tenant has its own");
    assert_eq!(quota(&two.b, "pending_tasks"), (Some(1_000_000), Some(64)));
    for id in &ids(&two.a, "Pending")[..3] {
        two.a.delete(&format!("/task/{id}")).expect(200);
    }
    assert_eq!(quota(&two.a, "pending_tasks"), (Some(10), Some(7)));
    assert_eq!(at_once("pending-tasks", |_| delayed(&two.a)), (3, 61));
    // Lowered, it takes nothing away and lets nothing in until there is less.
    two.set(&json!({"pending_tasks": 5}));
    assert_eq!(quota(&two.a, "pending_tasks"), (Some(5), Some(10)));
    for id in &ids(&two.a, "Pending")[..5] {
        refusal(&delayed(&two.a), "pending-tasks");
        two.a.delete(&format!("/task/{id}")).expect(200);
    }
    refusal(&delayed(&two.a), "pending-tasks");
    assert_eq!(
        two.set(&json!({"pending_tasks": null}))["quotas"]["pending_tasks"],
        json!({"limit": 1_000_000, "used": 5})
    );
    assert_eq!(at_once("pending-tasks", |_| delayed(&two.a)), (64, 0));
}

/// What comes back to the queue counts, and does not fill it without a bound.
#[test]
fn pending_tasks_that_come_back() {
    let two = Two::new(&["--max-pending", "6"]);
    two.set(&json!({"pending_tasks": 3}));
    let fail = json!({
        "task_type": guest("fail"), "input": {"transient": "x", "after_ms": 86_400_000}, "retry": {"max_attempts": 5}
    });
    let ids: Vec<String> = (0..4)
        .map(|_| {
            let id = two.a.create(&fail);
            wait_for("it to wait", || (two.a.task(&id)["waiting_for"]["reason"] == "backoff").then_some(()));
            id
        })
        .collect();
    assert_eq!(quota(&two.a, "pending_tasks"), (Some(3), Some(4)));
    refusal(&two.a.post_task(&fail.to_string()), "pending-tasks");
    refusal(&two.a.post_task(r#"{"task_type":"echo"}"#), "pending-tasks");
    delayed(&two.b).expect(202);
    two.a.delete(&format!("/task/{}", ids[0])).expect(200);
    two.a.output(&json!({"task_type": "echo"}));
    refusal(&delayed(&two.a), "pending-tasks");
}

#[test]
fn tasks_that_are_submitted() {
    let two = Two::new(&[]);
    assert_eq!(delayed(&two.a).expect(202).header("ratelimit"), None, "there is no rate yet");
    assert_eq!(quota(&two.a, "submit_burst"), (None, None));
    // As many as in a second, where that is not set.
    two.set(&json!({"submitted_per_second": 7}));
    assert_eq!(quota(&two.a, "submit_burst"), (Some(7), Some(0)));
    two.set(&json!({"submitted_per_second": 1, "submit_burst": 20}));
    assert_eq!(quota(&two.a, "submit_burst"), (Some(20), Some(0)));
    let began = Instant::now();
    // The server's clock has whole milliseconds.
    let most = || 20 + (began.elapsed() + Duration::from_millis(2)).as_secs() as usize;
    let (mut created, refused) = at_once("submitted-tasks", |_| delayed(&two.a));
    assert!(refused > 0 && created >= 20, "{created}");
    // As many as at once, and one more with each second; whatever the way.
    for round in 0..4 {
        let body = r#"[{"task_type":"echo"},{"task_type":"echo"}]"#;
        let many = two.a.send("POST", "/tasks", &[JSON], Some(body.as_bytes())).expect(200).json();
        let results = many["results"].as_array().unwrap();
        for result in results.iter().filter(|result| result["status"] == 429) {
            assert_eq!(
                (&result["retry_after"], &result["problem"]["type"]),
                (&json!(1), &json!("/problems/too-many-submitted"))
            );
        }
        created += results.iter().filter(|result| result["status"] != 429).count();
        created += usize::from(two.a.post_task_and_wait(r#"{"task_type":"echo"}"#, "wait=1").status != 429);
        assert!(created <= most(), "{created} tasks, and {} are allowed", most());
        // One is free again once that is told.
        let next = wait_for("a task that is allowed", || Some(delayed(&two.a)).filter(|answer| answer.status == 202));
        created += 1;
        let limit = next.header("ratelimit").unwrap();
        assert!(limit.starts_with("\"submitted-tasks\";r="), "{round}: {limit}");
        assert_eq!(next.header("ratelimit-policy"), Some("\"submitted-tasks\";q=20;w=20"));
        assert!((21 + round..=most()).contains(&created), "{created} tasks, and {} are allowed", most());
    }
    assert_eq!(at_once("submitted-tasks", |_| delayed(&two.b)), (64, 0), "another tenant has no rate");
    // What is refused for something else, and what is there already, takes nothing.
    two.set(&json!({"submitted_per_second": null, "submit_burst": null}));
    let keyed = |body: &str| two.a.send("POST", "/task", &[JSON, ("idempotency-key", "k")], Some(body.as_bytes()));
    let unique = r#"{"task_type":"echo","unique_key":"u","delay_ms":3600000}"#;
    keyed(unique).expect(202);
    two.set(&json!({"submitted_per_second": 1, "submit_burst": 1}));
    wait_for("one that is allowed", || (quota(&two.a, "submit_burst").1 == Some(0)).then_some(()));
    keyed(unique).expect(202);
    two.a.post_task(unique).expect(409);
    assert_eq!(quota(&two.a, "submit_burst"), (Some(1), Some(0)));
    delayed(&two.a).expect(202);
}

fn echo() -> Vec<u8> {
    GUESTS.iter().find(|(name, _)| *name == guest("echo-blocking")).unwrap().1.to_vec()
}

/// The same program with other bytes, of the same length.
fn echo_version(number: u8) -> Vec<u8> {
    let mut bytes = echo();
    bytes.extend([0, 3, 1, b'v', number]);
    bytes
}

fn put_type(client: &Client, name: &str, bytes: &[u8]) -> Answer {
    client.send("PUT", &format!("/task-types/{name}"), &[WASM, ("prefer", "wait=60")], Some(bytes))
}

#[test]
fn task_types() {
    let two = Two::new(&[]);
    two.set(&json!({"task_types": 5}));
    let (bytes, names) = (echo(), |number: usize| format!("t{number}"));
    let put = |number: usize| put_type(&two.a, &names(number), &bytes);
    assert_eq!(at_once("task-types", put), (5, 59));
    assert_eq!(quota(&two.a, "task_types"), (Some(5), Some(5)));
    put_type(&two.b, "t1", &bytes).expect(201);
    let there = |number: &usize| two.a.get(&format!("/task-types/{}", names(*number))).status == 200;
    let there: Vec<usize> = (0..CLIENTS).filter(there).collect();
    put(there[0]).expect(200);
    two.a.delete(&format!("/task-types/{}", names(there[0]))).expect(200);
    assert_eq!(at_once("task-types", |number| put(CLIENTS + number)), (1, 63));
    assert_eq!(quota(&two.a, "task_types"), (Some(5), Some(5)));
}

#[test]
fn component_bytes() {
    let two = Two::new(&[]);
    let size = echo_version(0).len() as u64;
    two.set(&json!({"component_bytes": 4 * size - 1}));
    let put = |name: &str, version: u8| put_type(&two.a, name, &echo_version(version));
    assert_eq!(at_once("component-bytes", |number| put(&format!("t{number}"), number as u8)), (3, 61));
    assert_eq!(quota(&two.a, "component_bytes"), (Some(4 * size - 1), Some(3 * size)));
    put_type(&two.b, "t1", &echo()).expect(201);
    let there = |number: &usize| two.a.get(&format!("/task-types/t{number}")).status == 200;
    let there: Vec<usize> = (0..CLIENTS).filter(there).collect();
    // The same bytes again are no more, and another version is.
    put(&format!("t{}", there[0]), there[0] as u8).expect(200);
    refusal(&put(&format!("t{}", there[0]), 100), "component-bytes");
    for number in &there {
        two.a.delete(&format!("/task-types/t{number}")).expect(200);
    }
    assert_eq!(quota(&two.a, "component_bytes").1, Some(0));
    // Of one type ten versions are kept, so that one more makes room for itself.
    two.set(&json!({"component_bytes": 10 * size}));
    for version in 0..14 {
        let answer = put("one", version);
        assert!(matches!(answer.status, 200 | 201), "{version}: {answer:?}");
        let used = quota(&two.a, "component_bytes").1.unwrap();
        assert_eq!(used, u64::from(version + 1).min(10) * size, "{version}");
    }
    refusal(&put("two", 50), "component-bytes");
    // It is counted again after a crash.
    let server = two.server.crash().start();
    let again = Client::new(&format!("http://{}", server.address));
    let key = server.setup().make_key("a", "read", &[]);
    assert_eq!(quota(&again.with_key(&key), "component_bytes"), (Some(10 * size), Some(10 * size)));
}

#[test]
fn objects_and_their_bytes() {
    let two = Two::new(&[]);
    let put = |client: &Client, name: usize, bytes: usize| {
        client.send("PUT", &format!("/objects/{name}"), &[], Some(&vec![1; bytes]))
    };
    let objects = |client: &Client| -> Vec<String> {
        let listed = client.get("/objects?limit=1000").expect(200).json();
        listed["objects"].as_array().unwrap().iter().map(|object| object["name"].as_str().unwrap().to_owned()).collect()
    };
    two.set(&json!({"objects": 10}));
    assert_eq!(at_once("objects", |name| put(&two.a, name, 100)), (10, 54));
    assert_eq!((quota(&two.a, "objects"), quota(&two.a, "object_bytes").1), ((Some(10), Some(10)), Some(1000)));
    assert_eq!(at_once("objects", |name| put(&two.b, name, 100)), (64, 0));
    two.a.delete(&format!("/objects/{}", objects(&two.a)[0])).expect(200);
    assert_eq!(at_once("objects", |name| put(&two.a, CLIENTS + name, 100)), (1, 63));
    two.set(&json!({"objects": null, "object_bytes": 1999}));
    assert_eq!(at_once("object-bytes", |name| put(&two.a, 2 * CLIENTS + name, 100)), (9, 55));
    assert_eq!(quota(&two.a, "object_bytes"), (Some(1999), Some(1900)));
    let refused = put(&two.a, 1000, 100);
    assert_eq!(refused.header("ratelimit"), Some("\"object-bytes\";r=99"));
    put(&two.a, 1000, 99).expect(201);
    // A lowered quota takes nothing away, and what shrinks is taken.
    two.set(&json!({"object_bytes": 100}));
    put(&two.a, 1000, 100).expect(429);
    put(&two.a, 1000, 98).expect(200);
    for name in objects(&two.a) {
        two.a.delete(&format!("/objects/{name}")).expect(200);
    }
    assert_eq!(at_once("object-bytes", |name| put(&two.a, name, 50)), (2, 62));
}

#[test]
fn log_bytes() {
    let two = Two::new(&[]);
    // A line of 36 bytes counts 100.
    let run = |client: &Client| {
        client.run(&json!({"task_type": guest("log"), "input": {"lines": 3, "bytes": 36}}))["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let lines = |client: &Client, id: &str| -> Vec<String> {
        let log = client.get(&format!("/task/{id}/logs")).expect(200).json();
        log["lines"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    };
    let is_marker = |line: &String| line.contains("quota of 1050 bytes");
    two.set(&json!({"log_bytes": 1050}));
    let tasks = all_at_once(|_| run(&two.a));
    assert_eq!(quota(&two.a, "log_bytes"), (Some(1050), Some(1000)));
    let mut kept = 0;
    for id in &tasks {
        let lines = lines(&two.a, id);
        let dropped = lines.iter().filter(|line| is_marker(line)).count();
        kept += lines.len() - dropped;
        assert!(lines.len() == 3 || dropped == 1, "{lines:?}");
        assert!(lines.iter().rev().skip(1).all(|line| !is_marker(line)), "what comes after is dropped: {lines:?}");
    }
    assert_eq!(kept, 10);
    assert_eq!(lines(&two.b, &run(&two.b)).len(), 3);
    // What is removed with its tasks makes room.
    for id in &tasks {
        two.a.delete(&format!("/task/{id}")).expect(200);
    }
    assert_eq!(quota(&two.a, "log_bytes").1, Some(0));
    let id = run(&two.a);
    assert_eq!((lines(&two.a, &id).len(), quota(&two.a, "log_bytes").1), (3, Some(300)));
    // Lowered, it takes nothing away; a task with no place for its lines completes all the same.
    two.set(&json!({"log_bytes": 0}));
    assert_eq!(lines(&two.a, &run(&two.a)).len(), 1);
    two.set(&json!({"log_bytes": null}));
    assert_eq!(lines(&two.a, &run(&two.a)).len(), 3);
    let server = two.server.crash().start();
    let a = server.client.with_key(&server.setup().make_key("a", "admin", &[]));
    assert_eq!(quota(&a, "log_bytes"), (Some(10 << 30), Some(600)));
    a.delete(&format!("/task/{id}")).expect(200);
    assert_eq!(quota(&a, "log_bytes").1, Some(300));
}

#[test]
fn event_streams() {
    let two = Two::new(&[]);
    two.set(&json!({"event_streams": 5}));
    let open = |client: &Client| client.stream("/events", &[]);
    let mut streams: Vec<_> = all_at_once(|_| open(&two.a)).into_iter().collect();
    streams.retain(|(status, ..)| *status == 200);
    assert_eq!(streams.len(), 5);
    assert_eq!(quota(&two.a, "event_streams"), (Some(5), Some(5)));
    refusal(&two.a.get("/events"), "event-streams");
    let _of_b = open(&two.b);
    assert_eq!(quota(&two.b, "event_streams"), (Some(100), Some(1)));
    streams.truncate(3);
    wait_for("two streams to be closed", || (quota(&two.a, "event_streams").1 == Some(3)).then_some(()));
    let mut more: Vec<_> = all_at_once(|_| open(&two.a)).into_iter().collect();
    more.retain(|(status, ..)| *status == 200);
    assert_eq!(more.len(), 2);
    two.set(&json!({"event_streams": 4}));
    assert_eq!(open(&two.a).0, 429);
}

#[test]
fn schedules() {
    let two = Two::new(&[]);
    two.set(&json!({"schedules": 5}));
    let body = json!({"cron": "0 0 1 1 *", "task": {"task_type": "echo"}}).to_string();
    let put = |client: &Client, number: usize| {
        client.send("PUT", &format!("/schedules/s{number}"), &[JSON], Some(body.as_bytes()))
    };
    assert_eq!(at_once("schedules", |number| put(&two.a, number)), (5, 59));
    assert_eq!(at_once("schedules", |number| put(&two.b, number)), (64, 0));
    let listed = two.a.get("/schedules").expect(200).json();
    two.a.delete(&format!("/schedules/{}", listed["schedules"][0]["name"].as_str().unwrap())).expect(200);
    assert_eq!(quota(&two.a, "schedules"), (Some(5), Some(4)));
    assert_eq!(at_once("schedules", |number| put(&two.a, CLIENTS + number)), (1, 63));
}

/// What the audit log tells of is bounded, and the log with it.
#[test]
fn changes_that_are_audited() {
    let two = Two::new(&[]);
    put_type(&two.a, "mine", &echo()).expect(201);
    two.a.post_task(r#"{"task_type":"mine","delay_ms":3600000}"#).expect(202);
    two.set(&json!({"changes_per_hour": 11}));
    let body = json!({"cron": "0 0 1 1 *", "task": {"task_type": "echo"}}).to_string();
    let put = |client: &Client, number: usize| {
        client.send("PUT", &format!("/schedules/s{number}"), &[JSON], Some(body.as_bytes()))
    };
    let answers = all_at_once(|number| put(&two.a, number));
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 10);
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status != 201).collect();
    refused.iter().for_each(|answer| refused_for(answer, "changes-per-hour", 3600));
    let seconds: u64 = refused[0].header("retry-after").unwrap().parse().unwrap();
    assert!(seconds > 3000, "it is the rest of an hour: {seconds}");
    assert_eq!(quota(&two.a, "changes_per_hour"), (Some(11), Some(11)));
    assert_eq!(at_once("changes-per-hour", |number| put(&two.b, number)), (64, 0), "another tenant has its own");
    let lines = two.operator.get("/audit?tenant=a&action=schedule.put&limit=1000").expect(200).json();
    assert_eq!(lines["lines"].as_array().unwrap().len(), 10);

    // Each call that makes or changes something, but tasks and objects one by one; what removes goes on.
    for call in crate::access::calls(&two.a) {
        let (makes, path) = (!["GET", "HEAD", "DELETE"].contains(&&*call.method), &*call.path);
        let is_work =
            path.starts_with("/task/") || path.starts_with("/objects/") || ["/task", "/tasks"].contains(&path);
        if makes && call.is_for("a") {
            let refused = call.send(&two.a, "echo") == 429;
            assert_eq!(refused, !is_work && !path.ends_with("/test"), "{} {path}", call.method);
        }
    }
    delayed(&two.a).expect(202);
    two.a.delete("/task-types/mine").problem(409);
    refused_for(&two.a.delete("/task-types/mine?cancel=true"), "changes-per-hour", 3600);
    let listed = two.a.get("/schedules").expect(200).json();
    two.a.delete(&format!("/schedules/{}", listed["schedules"][0]["name"].as_str().unwrap())).expect(200);
    let keys = two.a.get("/keys").expect(200).json();
    two.a.delete(&format!("/keys/{}", keys["keys"][0]["id"].as_str().unwrap())).expect(200);
    let key = two.server.setup().make_key("a", "admin", &[]);
    let a = two.server.client.with_key(&key);

    // It is free again where it is raised, and not counted for the operator.
    two.set(&json!({"changes_per_hour": 13}));
    let done = all_at_once(|number| put(&a, 100 + number).status == 201);
    assert_eq!(done.iter().filter(|done| **done).count(), 2);
    two.set(&json!({"changes_per_hour": null}));
    assert_eq!(quota(&a, "changes_per_hour"), (Some(3600), Some(13)));
    assert_eq!(at_once("changes-per-hour", |number| put(&a, 200 + number)), (64, 0));
}

/// The operator removes a type that all share: whoever has tasks of it has them canceled.
#[test]
fn a_shared_type_is_removed_with_its_tasks() {
    let two = Two::new(&[]);
    put_type(&two.operator, "all", &echo()).expect(201);
    let of = |client: &Client| {
        let task = client.post_task(r#"{"task_type":"all","delay_ms":3600000}"#).expect(202).json();
        task["id"].as_str().unwrap().to_owned()
    };
    let ids = [of(&two.a), of(&two.b)];
    two.operator.delete("/task-types/all").problem(409);
    two.operator.delete("/task-types/all?cancel=true").expect(200);
    for (client, id) in [&two.a, &two.b].into_iter().zip(&ids) {
        assert_eq!(client.task(id)["error"]["kind"], "canceled");
        client.get("/task-types/all").problem(404);
    }
}

#[test]
fn what_is_set_is_kept_told_and_noted() {
    let flags = [
        "--max-tenant-running",
        "7",
        "--max-tenant-memory-bytes",
        "1000000",
        "--tenant-cpu-ms-per-hour",
        "9",
        "--submit-rate",
        "1000",
        "--submit-burst",
        "2000",
        "--component-quota-bytes",
        "5",
        "--log-quota-bytes",
        "6",
        "--http-requests-per-hour",
        "8",
        "--changes-per-hour",
        "11",
        "--object-quota-count",
        "3",
    ];
    let two = Two::new(&flags);
    let all = two.a.get("/tenant").expect(200).json();
    let limits = |tenant: &Value| -> Vec<(String, Value)> {
        let quotas = tenant["quotas"].as_object().unwrap().iter();
        quotas.map(|(name, quota)| (name.clone(), quota["limit"].clone())).collect()
    };
    let expected = json!({
        "pending_tasks": 1_000_000, "running_tasks": 7, "running_memory_bytes": 1_000_000, "cpu_ms_per_hour": 9,
        "submitted_per_second": 1000, "submit_burst": 2000, "task_types": 1000, "component_bytes": 5, "objects": 3,
        "object_bytes": 1 << 30, "log_bytes": 6, "http_requests_per_hour": 8, "changes_per_hour": 11, "event_streams": 100, "schedules": 1000,
        "secrets": 1000, "keyvalue_keys": 1_000_000, "keyvalue_bytes": 1 << 30,
    });
    let expected: Vec<_> = expected.as_object().unwrap().clone().into_iter().collect();
    assert_eq!(limits(&all), expected);
    assert_eq!((&all["name"], &all["weight"]), (&json!("a"), &json!(100)));
    let set = two.set(&json!({"objects": 4, "schedules": 1}));
    assert_eq!((&set["quotas"]["objects"]["limit"], &set["quotas"]["schedules"]["limit"]), (&json!(4), &json!(1)));
    // Of what is set nothing goes with another change, and what is not set follows the server.
    two.operator.send("PATCH", "/tenants/a", &[MERGE_PATCH], Some(br#"{"weight":5}"#)).expect(200);
    two.set(&json!({"schedules": null}));
    let setup = two.server.crash().with_flags(&["--max-schedules", "2"]);
    let operator = setup.make_key("operator", "admin", &[]);
    let server = setup.start();
    let operator = server.client.with_key(&operator);
    let a = operator.get("/tenants/a").expect(200).json();
    let of = |name: &str| a["quotas"][name]["limit"].clone();
    assert_eq!((of("objects"), of("schedules")), (json!(4), json!(2)));
    assert_eq!(a["weight"], 5);
    let reset =
        operator.send("PATCH", "/tenants/a", &[MERGE_PATCH], Some(br#"{"quotas":null,"weight":6}"#)).expect(200);
    assert_eq!(reset.json()["quotas"]["objects"]["limit"], 100_000);
    let database = rusqlite::Connection::open(server.setup().database()).unwrap();
    let mut lines = database.prepare("SELECT detail FROM audit WHERE action = 'tenant.change' ORDER BY seq").unwrap();
    let lines: Vec<String> = lines.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(lines[..3], [r#"quotas {"objects":4,"schedules":1}"#, "weight 5", r#"quotas {"schedules":null}"#]);
    assert!(lines[3].starts_with("weight 6, quotas {") && lines.len() == 4, "{lines:?}");
}

#[test]
fn quotas_that_cannot_be() {
    let server = Setup::new(&[]).with_components(None).start();
    let patch = |body: &str| server.client.send("PATCH", "/tenants/default", &[MERGE_PATCH], Some(body.as_bytes()));
    for (body, pointer) in [
        (r#"{"quotas":{"submit_burst":0}}"#, "#/quotas/submit_burst"),
        (r#"{"quotas":{"objects":-1}}"#, "#/quotas/objects"),
        (r#"{"quotas":{"objects":"1"}}"#, "#/quotas/objects"),
        (r#"{"quotas":{"objects":9007199254740992}}"#, "#/quotas/objects"),
        (r#"{"quotas":{"object":1}}"#, "#/quotas/object"),
        (r#"{"quotas":[1]}"#, "#/quotas"),
        (r#"{"weight":0,"quotas":{"objects":1}}"#, "#/weight"),
    ] {
        assert_eq!(patch(body).problem(422)["errors"][0]["pointer"], pointer, "{body}");
    }
    let other = server.client.send("PATCH", "/tenants/default", &[("content-type", "application/json")], Some(b"{}"));
    assert_eq!(other.header("accept-patch"), Some("application/merge-patch+json"));
    other.problem(415);
    assert_eq!(quota(&server.client, "objects").0, Some(100_000), "nothing of it was set");
    patch(r#"{"quotas":{"objects":9007199254740991,"task_types":0}}"#).expect(200);
    refusal(&put_type(&server.client, "one", &echo()), "task-types");
}
