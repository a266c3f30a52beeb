//! `POST /tasks/cancel`, `/tasks/retry` and `/tasks/delete`: all that match a filter.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::durability::Random;
use crate::support::time::{in_millis, millis};
use crate::support::{Answer, Client, guest, server, shared_server, wait_for};

fn post(client: &Client, action: &str, filter: &Value) -> Answer {
    let body = filter.to_string();
    let json = [("content-type", "application/json")];
    client.send("POST", &format!("/tasks/{action}"), &json, Some(body.as_bytes()))
}

/// An operation is about what matched when it was created, however long it takes.
#[test]
fn what_ends_after_an_operation_was_created_is_none_of_it() {
    let server = server(&[]);
    let client = &server.client;
    let many = Value::from(vec![json!({"task_type": "echo", "delay_ms": 600_000}); 10_000]).to_string();
    client.send("POST", "/tasks", &[("content-type", "application/json")], Some(many.as_bytes())).expect(200);
    let canceled = start(client, "cancel", &json!({}));
    assert_eq!(finished(client, &canceled)["done"], 10_000);
    let later = client.create(&json!({"task_type": "echo", "delay_ms": 600_000}));
    let operation = start(client, "delete", &json!({"status": "Failed"}));
    client.post(&format!("/task/{later}/cancel")).expect(202);
    let operation = finished(client, &operation);
    assert_eq!((&operation["matched"], &operation["done"]), (&json!(10_000), &json!(10_000)));
    assert_eq!(client.status(&later), "Failed", "it was Pending when the operation was created");
}

/// Starts an operation; returns its path.
#[track_caller]
fn start(client: &Client, action: &str, filter: &Value) -> String {
    let answer = post(client, action, filter).expect(202);
    let operation = answer.json();
    let path = answer.header("location").unwrap().to_owned();
    assert_eq!(path, format!("/operations/{}", operation["id"].as_str().unwrap()));
    assert_eq!((&operation["action"], &operation["filter"]), (&json!(action), filter));
    assert!(operation["created_at"].is_string() && operation["matched"].is_u64(), "{operation}");
    path
}

/// Waits for an operation's end and returns what it came to.
#[track_caller]
fn finished(client: &Client, path: &str) -> Value {
    wait_for(format!("the end of {path}"), || {
        let operation = client.get(path).expect(200).json();
        let ended = operation["status"] == "Completed";
        assert_eq!(ended, operation["finished_at"].is_string(), "{operation}");
        ended.then_some(operation)
    })
}

/// Runs an operation to its end; returns how many tasks matched, and how many were done and skipped.
#[track_caller]
fn run(client: &Client, action: &str, filter: &Value) -> [u64; 3] {
    let operation = finished(client, &start(client, action, filter));
    ["matched", "done", "skipped"].map(|member| operation[member].as_u64().unwrap())
}

fn later(labels: Value) -> Value {
    json!({"task_type": "echo", "delay_ms": 3_600_000, "labels": labels})
}

/// Creates that many tasks which wait for an hour.
fn create_many(client: &Client, count: usize) {
    let tasks: Value = (0..count).map(|n| later(json!({"n": n.to_string()}))).collect();
    let body = tasks.to_string();
    let answer = client.send("POST", "/tasks", &[("content-type", "application/json")], Some(body.as_bytes()));
    let results = answer.expect(200).json();
    assert!(results["results"].as_array().unwrap().iter().all(|result| result["status"] == 202));
}

fn left(client: &Client) -> usize {
    client.get("/tasks?limit=1000").expect(200).json()["tasks"].as_array().unwrap().len()
}

#[test]
fn cancel_ends_what_matches_and_nothing_else() {
    let server = server(&[]);
    let client = &server.client;
    let red = json!({"color": "red"});
    let ended = client.run(&json!({"task_type": "echo", "labels": red}));
    let running: Vec<String> = (0..5)
        .map(|_| client.create(&json!({"task_type": guest("sleep-forever"), "labels": {"color": "red", "n": "1"}})))
        .collect();
    let pending = client.create(&later(red.clone()));
    let (blue, other_type) = (client.create(&later(json!({"color": "blue"}))), client.create(&later(json!({}))));
    running.iter().for_each(|id| client.wait_for_status(id, "Running"));
    // Who waits for the end hears of it.
    let waits = std::thread::spawn({
        let (client, id) = (client.clone(), pending.clone());
        move || client.get_with(&format!("/task/{id}"), &[("prefer", "wait=60")]).expect(200).json()
    });

    assert_eq!(run(client, "cancel", &json!({"labels": {"color": "red", "n": "2"}})), [0, 0, 0]);
    assert_eq!(run(client, "cancel", &json!({"status": "Completed"})), [0, 0, 0], "nothing can be canceled of these");
    assert_eq!(run(client, "cancel", &json!({"labels": {"color": "red"}})), [6, 6, 0]);
    assert_eq!(waits.join().unwrap()["error"]["kind"], "canceled");
    for id in running.iter().chain([&pending]) {
        let task = client.task(id);
        assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("canceled")), "{task}");
    }
    assert_eq!(client.task(ended["id"].as_str().unwrap()), ended);
    assert_eq!([client.status(&blue), client.status(&other_type)], ["Pending", "Pending"]);
    assert_eq!(run(client, "cancel", &json!({"task_type": "io"})), [0, 0, 0]);
    assert_eq!(run(client, "cancel", &json!({"status": "Pending", "task_type": "echo"})), [2, 2, 0]);
}

#[test]
fn delete_removes_what_was_there_before() {
    let server = server(&[]);
    let client = &server.client;
    let kept = client.run(&json!({"task_type": guest("fail"), "input": {"permanent": "no"}}));
    let kept = kept["id"].as_str().unwrap();
    let mut gone = vec![client.create(&later(json!({})))];
    gone.extend((0..3).map(|_| client.create(&json!({"task_type": guest("sleep-forever")}))));
    gone[1..].iter().for_each(|id| client.wait_for_status(id, "Running"));
    gone.push(client.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned());
    let last = client.task(&gone[0])["created_at"].clone();

    assert_eq!(run(client, "delete", &json!({"created_before": "2020-01-01T00:00:00.000Z"})), [0, 0, 0]);
    assert_eq!(run(client, "delete", &json!({"error_kind": "trap"})), [0, 0, 0]);
    assert_eq!(run(client, "delete", &json!({"error_kind": "permanent", "created_after": last})), [0, 0, 0]);
    assert_eq!(run(client, "delete", &json!({"status": "Running"})), [3, 3, 0]);
    assert_eq!(run(client, "delete", &json!({"task_type": "echo"})), [2, 2, 0]);
    gone.iter().for_each(|id| drop(client.get(&format!("/task/{id}")).problem(404)));
    assert_eq!(client.status(kept), "Failed");
    let path = start(client, "delete", &json!({}));
    let new = client.create(&later(json!({})));
    assert_eq!(finished(client, &path)["done"], 1);
    client.get(&format!("/task/{kept}")).problem(404);
    assert_eq!(client.status(&new), "Pending", "it was created after the operation");
}

#[test]
fn retry_attempts_afresh_what_has_ended() {
    let server = server(&[]);
    let client = &server.client;
    let fails = json!({"task_type": guest("fail"), "input": {"permanent": "no"}});
    let failed = [client.failure(&fails), client.failure(&fails)];
    let done = client.run(&json!({"task_type": "echo"}));
    let pending = client.create(&later(json!({})));
    assert_eq!(run(client, "retry", &json!({"status": "Failed"})), [2, 2, 0]);
    for task in &failed {
        let again = client.wait_for_end(task["id"].as_str().unwrap());
        assert_eq!((&again["status"], &again["attempt"]), (&json!("Failed"), &json!(2)), "{again}");
    }
    assert_eq!(run(client, "retry", &json!({})), [3, 3, 0]);
    assert_eq!(client.wait_for_end(done["id"].as_str().unwrap())["attempt"], 2);
    assert_eq!(client.task(&pending)["attempt"], 0);
}

/// The unique key of an ended task may be another's by now.
#[test]
fn what_cannot_be_retried_is_skipped() {
    let server = server(&[]);
    let client = &server.client;
    client.run(&json!({"task_type": "echo", "unique_key": "one"}));
    client.run(&json!({"task_type": "echo"}));
    client.create(&json!({"task_type": "echo", "unique_key": "one", "delay_ms": 3_600_000}));
    assert_eq!(run(client, "retry", &json!({})), [2, 1, 1]);
}

/// More than one part, and labels that many tasks have.
#[test]
fn many_are_done_in_parts() {
    let server = server(&[]);
    let client = &server.client;
    create_many(client, 1001);
    assert_eq!(run(client, "cancel", &json!({"labels": {"n": "7"}})), [1, 1, 0]);
    assert_eq!(run(client, "cancel", &json!({})), [1000, 1000, 0]);
    assert_eq!(run(client, "delete", &json!({"error_kind": "canceled"})), [1001, 1001, 0]);
    assert_eq!(left(client), 0);
}

/// Killed between any two parts, again and again, it goes on where it was.
#[test]
fn an_operation_survives_crashes() {
    let mut server = server(&[]);
    create_many(&server.client, 4000);
    let path = start(&server.client, "delete", &json!({}));
    let later_one = server.client.create(&later(json!({})));
    let mut crashed_within = 0;
    loop {
        let setup = server.crash();
        let database = rusqlite::Connection::open(setup.database()).unwrap();
        let (done, open, tasks): (u64, bool, u64) = database
            .query_row("SELECT done, finished_at IS NULL, (SELECT count(*) FROM task) FROM operation", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .unwrap();
        drop(database);
        assert_eq!(done + tasks, 4001, "what is counted is gone, and nothing else");
        server = setup.start();
        if !open {
            break;
        }
        crashed_within += 1;
        // After the last task there is one more part, which finds none and ends the operation.
        let gone_on = |operation: Value| operation["done"].as_u64() > Some(done) || operation["status"] == "Completed";
        wait_for("the next part", || gone_on(server.client.get(&path).expect(200).json()).then_some(()));
    }
    assert!(crashed_within > 0, "it was finished before the first crash");
    let operation = finished(&server.client, &path);
    assert_eq!((&operation["done"], &operation["matched"]), (&json!(4000), &json!(4000)));
    assert_eq!(server.client.status(&later_one), "Pending");
    assert_eq!(left(&server.client), 1);
}

/// A task that runs is not passed over when the server goes down while it is being stopped.
#[test]
fn what_runs_at_a_crash_is_deleted_after_it() {
    let server = server(&[]);
    let ids: Vec<String> =
        (0..20).map(|_| server.client.create(&json!({"task_type": guest("sleep-forever")}))).collect();
    ids.iter().for_each(|id| server.client.wait_for_status(id, "Running"));
    let path = start(&server.client, "delete", &json!({}));
    let server = server.crash().start();
    finished(&server.client, &path);
    assert_eq!(left(&server.client), 0);
}

/// What ends by itself while an operation goes on was matched, and it was not done with it.
#[test]
fn what_matched_adds_up() {
    let server = server(&["--max-running", "2"]);
    let client = &server.client;
    let pause = |paused: bool| {
        let patch = json!({"paused": paused}).to_string();
        let headers = [("content-type", "application/merge-patch+json")];
        client.send("PATCH", "/task-types/echo", &headers, Some(patch.as_bytes())).expect(200);
    };
    let many = Value::from(vec![json!({"task_type": "echo"}); 8000]).to_string();
    // All of them may have ended by themselves before it begins.
    let done = wait_for("some to be matched", || {
        pause(true);
        client.send("POST", "/tasks", &[("content-type", "application/json")], Some(many.as_bytes())).expect(200);
        pause(false);
        let done = finished(client, &start(client, "cancel", &json!({"task_type": "echo"})));
        done["matched"].as_u64().is_some_and(|matched| matched > 0).then_some(done)
    });
    let of = |member: &str| done[member].as_u64().unwrap();
    assert_eq!(of("done") + of("skipped"), of("matched"), "{done:#}");
}

#[test]
fn so_many_operations_at_once() {
    // A queue without room keeps a retry from going on.
    let server = server(&["--max-tenant-pending", "1"]);
    let client = &server.client;
    client.run(&json!({"task_type": "echo"}));
    let in_the_way = client.create(&later(json!({})));
    let open: Vec<String> = (0..8).map(|_| start(client, "retry", &json!({}))).collect();
    let refused = post(client, "retry", &json!({}));
    assert!(refused.header("retry-after").is_some() && refused.header("ratelimit").is_some(), "{refused:?}");
    assert_eq!(refused.problem(429)["type"], "/problems/too-many-operations");
    let listed = client.get("/operations").expect(200).json();
    let listed: Vec<String> = listed["operations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|operation| {
            assert_eq!(operation["status"], "Running");
            format!("/operations/{}", operation["id"].as_str().unwrap())
        })
        .collect();
    assert!(listed.iter().eq(open.iter().rev()), "newest first");

    // What makes room finds a place all the same.
    let path = start(client, "cancel", &json!({"status": "Pending"}));
    finished(client, &path);
    assert_eq!(client.status(&in_the_way), "Failed");
    open.iter().for_each(|path| drop(finished(client, path)));
    wait_for("room", || (post(client, "delete", &json!({})).status == 202).then_some(()));
}

#[test]
fn what_is_no_filter_is_refused() {
    let server = crate::support::shared_server();
    let client = &server.client;
    for (body, pointer) in [
        (json!({"stauts": "Failed"}), "#/stauts"),
        (json!({"status": "failed"}), "#/status"),
        (json!({"limit": 3}), "#/limit"),
        (json!({"created_after": "yesterday"}), "#/created_after"),
        (json!({"labels": ["a"]}), "#/labels"),
        (json!({"labels": (0..9).map(|n| (n.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>()}), "#/labels"),
        (json!([]), "#"),
    ] {
        let problem = post(client, "delete", &body).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
    let json = [("content-type", "application/json")];
    // Nobody deletes everything by sending nothing.
    client.send("POST", "/tasks/delete", &json, Some(b"")).problem(400);
    client.send("POST", "/tasks/delete", &[], Some(b"{}")).problem(415);
    client.get("/operations/01a209d3-f2ff-73d2-9b65-ee1a8f4ea2dd").problem(404);
    client.get("/operations/x").problem(404);
}

/// What an operation did can be read for a day. The clock cannot be moved, but what it wrote can.
#[test]
fn an_operation_is_forgotten_a_day_after_its_end() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let server = server(&["--max-tenant-pending", "1"]);
    let client = &server.client;
    let [younger, older] = [0, 1].map(|_| {
        let path = start(client, "delete", &json!({}));
        finished(client, &path);
        path
    });
    // One that goes on is kept however old it is: a queue without room keeps a retry from going on.
    client.run(&json!({"task_type": "echo"}));
    client.create(&later(json!({})));
    let open = start(client, "retry", &json!({}));
    let setup = server.crash();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    let now = millis(&in_millis(0));
    database.execute("UPDATE operation SET created_at = ?1", [now - 3 * DAY_MS]).unwrap();
    // What it is about has ended before that.
    database.execute("UPDATE task SET finished_at = ?1 WHERE finished_at IS NOT NULL", [now - 4 * DAY_MS]).unwrap();
    for (path, age_ms) in [(&younger, DAY_MS - 120_000), (&older, DAY_MS + 1)] {
        let id = path.rsplit('/').next().unwrap().replace('-', "");
        let sql = "UPDATE operation SET finished_at = ?1 WHERE hex(id) = upper(?2)";
        assert_eq!(database.execute(sql, (now - age_ms, id)).unwrap(), 1);
    }
    drop(database);
    let server = setup.start();
    wait_for("the older to be forgotten", || (server.client.get(&older).status == 404).then_some(()));
    server.client.get(&younger).expect(200);
    assert_eq!(server.client.get(&open).expect(200).json()["status"], "Running");
    let listed = server.client.get("/operations").expect(200).json();
    assert_eq!(listed["operations"].as_array().unwrap().len(), 2, "{listed}");
}

/// Of many the oldest are forgotten at once, but none that is open.
#[test]
fn so_many_operations_are_kept() {
    const MOST: i64 = 1000;
    let server = server(&["--max-tenant-pending", "1"]);
    let client = &server.client;
    client.run(&json!({"task_type": "echo"}));
    client.create(&later(json!({})));
    let open = start(client, "retry", &json!({}));
    let first = start(client, "cancel", &json!({"task_type": "io"}));
    finished(client, &first);
    let setup = server.crash();
    // Older ones, of a second after the epoch each.
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    let path =
        |n: i64| format!("/operations/{:08x}-{:04x}-7000-8000-000000000000", (n * 1000) >> 16, (n * 1000) & 0xffff);
    let sql = "INSERT INTO operation
               SELECT unhex(?1), tenant, action, filter, matched, done, skipped, after, created_at, finished_at
               FROM operation WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1";
    for n in 1..=MOST {
        let id = path(n).rsplit('/').next().unwrap().replace('-', "");
        assert_eq!(database.execute(sql, [id]).unwrap(), 1);
    }
    drop(database);
    let server = setup.start();
    let client = &server.client;
    client.get(&path(1)).expect(200);
    finished(client, &start(client, "cancel", &json!({"task_type": "io"})));
    client.get(&path(1)).problem(404);
    for kept in [&path(2), &path(MOST), &first, &open] {
        client.get(kept).expect(200);
    }
}

/// Where counting what matches takes too long, nobody waits for it: the number is not told, and all is done.
/// Here it takes long because the server stands still in the midst of it.
#[test]
fn a_type_that_cannot_be_is_refused() {
    let server = shared_server();
    for name in ["", "A", &"x".repeat(64)] {
        let body = json!({ "task_type": name }).to_string();
        let answer = server
            .client
            .send("POST", "/tasks/cancel", &[("content-type", "application/json")], Some(body.as_bytes()))
            .expect(422);
        assert_eq!(answer.json()["errors"][0]["pointer"], "#/task_type");
    }
}

#[test]
fn what_cannot_be_counted_in_time_is_not_told() {
    /// Longer than a count may take.
    const STANDS_STILL: Duration = Duration::from_millis(2_200);
    let server = server(&[]);
    let client = &server.client;
    // Of all but one label something has to be looked at in every task.
    let labels: serde_json::Map<String, Value> = (0..8).map(|n| (n.to_string(), json!("x"))).collect();
    let others: serde_json::Map<String, Value> = (0..7).map(|n| (n.to_string(), json!("x"))).collect();
    let tasks: Value = (0..10_000).map(|_| later(json!(others))).collect();
    let json = [("content-type", "application/json")];
    client.send("POST", "/tasks", &json, Some(tasks.to_string().as_bytes())).expect(200);
    let cancel = || post(client, "cancel", &json!({"labels": labels}));
    // Most of what it takes until the answer is the count.
    let takes = || {
        let asked = Instant::now();
        let answer = cancel().expect(202);
        let took = asked.elapsed();
        finished(client, answer.header("location").unwrap());
        took
    };
    let takes = (0..5).map(|_| takes()).min().unwrap();
    let mut random = Random::new();
    for _ in 0..30 {
        let id = client.create(&later(json!(labels)));
        let answer = std::thread::scope(|scope| {
            let asked = scope.spawn(cancel);
            std::thread::sleep(Duration::from_micros(random.below(takes.as_micros() as u64)));
            server.signal(Signal::STOP);
            std::thread::sleep(STANDS_STILL);
            server.signal(Signal::CONT);
            asked.join().unwrap()
        });
        let path = answer.header("location").unwrap().to_owned();
        let operation = answer.expect(202).json();
        let end = finished(client, &path);
        assert_eq!((&end["matched"], &end["done"]), (&operation["matched"], &json!(1)), "{end}");
        assert_eq!(client.task(&id)["error"]["kind"], "canceled");
        if operation["matched"].is_null() {
            return;
        }
        assert_eq!(operation["matched"], 1);
        eprintln!("not within the count, which with the rest takes {takes:?}");
    }
    panic!("the server never stood still within the count");
}
