//! Requests that are made twice, and tasks of which there is one at a time.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::time::{in_millis, millis};
use crate::support::{Answer, Client, guest, server, shared_server};

const JSON: (&str, &str) = ("content-type", "application/json");

/// How many ask at the same time.
const AT_ONCE: usize = 16;

#[track_caller]
fn create(client: &Client, key: &str, body: &str) -> Answer {
    client.send("POST", "/task", &[JSON, ("idempotency-key", key)], Some(body.as_bytes()))
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

/// A key that no other test has, also on a server that is shared.
fn fresh(name: &str) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn the_same_request_twice_is_one_task() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("twice");
    let body = r#"{"task_type":"echo","input":1}"#;
    let first = create(client, &key, body).expect(202);
    assert_eq!(first.header("idempotency-replayed"), None);
    let id = id(&first);
    client.wait_for_end(&id);
    // It has ended, so the answer is that of a create that was waited for.
    let again = create(client, &key, body).expect(200);
    assert_eq!((again.json(), again.header("idempotency-replayed")), (client.task(&id), Some("true")));
    assert_eq!(again.header("content-location"), Some(format!("/task/{id}").as_str()));
    // Quoted it is the same key.
    let quoted = create(client, &format!("\"{key}\""), body).expect(200);
    assert_eq!(
        (quoted.json()["id"].as_str(), quoted.header("idempotency-replayed")),
        (Some(id.as_str()), Some("true"))
    );
    // Without a key, or with another, it is another task.
    assert_ne!(client.post_task(body).expect(202).json()["id"], id);
    assert_ne!(create(client, &fresh("twice"), body).expect(202).json()["id"], id);
}

#[test]
fn the_same_request_while_its_task_runs_is_one_task() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("running");
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 1_000}}).to_string();
    let first = create(client, &key, &body).expect(202);
    let again = create(client, &key, &body).expect(202);
    assert_eq!((id(&again), again.header("idempotency-replayed")), (id(&first), Some("true")));
    assert_eq!(again.header("location"), first.header("location"));
    // And it can be waited for.
    let headers = [JSON, ("idempotency-key", key.as_str()), ("prefer", "wait=60")];
    let waited = client.send("POST", "/task", &headers, Some(body.as_bytes())).expect(200);
    assert_eq!((id(&waited), waited.header("idempotency-replayed")), (id(&first), Some("true")));
    assert_eq!((waited.json()["status"].as_str(), waited.json()["attempt"].as_u64()), (Some("Completed"), Some(1)));
}

#[test]
fn many_of_the_same_request_at_once_are_one_task() {
    let server = shared_server();
    for wait in [None, Some(("prefer", "wait=60"))] {
        let key = fresh("at-once");
        let headers: Vec<_> = [JSON, ("idempotency-key", key.as_str())].into_iter().chain(wait).collect();
        let answers = thread::scope(|scope| {
            let asked: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    scope.spawn(|| server.client.send("POST", "/task", &headers, Some(br#"{"task_type":"echo"}"#)))
                })
                .collect();
            asked.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
        });
        let new = answers.iter().filter(|answer| answer.header("idempotency-replayed").is_none()).count();
        assert_eq!(new, 1, "{answers:?}");
        assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 202)), "{answers:?}");
        assert_eq!(answers.iter().map(id).collect::<BTreeSet<_>>().len(), 1);
    }
}

#[test]
fn another_request_with_the_same_key_is_refused() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("other");
    let first = create(client, &key, r#"{"task_type":"echo","input":1}"#).expect(202);
    // The bytes count, not what they mean.
    for body in [r#"{"task_type":"echo","input":2}"#, r#"{"task_type":"echo","input": 1}"#, r#"{"task_type":"io"}"#] {
        let problem = create(client, &key, body).problem(422);
        assert!(problem["type"].as_str().unwrap().contains("key"), "{problem}");
    }
    // A request that was refused used no key.
    let key = fresh("refused");
    create(client, &key, r#"{"task_type":"nothing"}"#).problem(422);
    create(client, &key, r#"{"task_type":"echo"}"#).expect(202);
    client.wait_for_end(&id(&first));
}

#[test]
fn after_its_task_was_deleted_a_request_is_not_made_again() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("deleted");
    let body = r#"{"task_type":"echo"}"#;
    let id = id(&create(client, &key, body).expect(202));
    client.wait_for_end(&id);
    client.delete(&format!("/task/{id}")).expect(200);
    create(client, &key, body).problem(410);
    create(client, &key, r#"{"task_type":"echo","input":1}"#).problem(422);
}

#[test]
fn keys_that_are_none_are_refused() {
    let server = shared_server();
    let client = &server.client;
    let long = "k".repeat(256);
    for key in ["", "\"\"", "\"open", &long, "\"a\" b"] {
        create(client, key, r#"{"task_type":"echo"}"#).problem(400);
        let headers = [JSON, ("idempotency-key", key)];
        client.send("POST", "/tasks", &headers, Some(b"[]")).problem(400);
    }
    create(client, &"k".repeat(255), r#"{"task_type":"echo"}"#);
}

#[test]
fn a_key_survives_a_crash() {
    let mut server = server(&[]);
    let body = r#"{"task_type":"echo","input":"once"}"#;
    let first = create(&server.client, "kept", body).expect(202);
    for _ in 0..2 {
        server = server.crash().start();
        let again = create(&server.client, "kept", body);
        assert_eq!((id(&again), again.header("idempotency-replayed")), (id(&first), Some("true")));
        create(&server.client, "kept", r#"{"task_type":"echo"}"#).problem(422);
    }
    server.client.delete(&format!("/task/{}", id(&first))).expect(200);
    let server = server.crash().start();
    create(&server.client, "kept", body).problem(410);
    let all = server.client.get("/tasks").expect(200).json();
    assert_eq!(all["tasks"], json!([]), "nothing was created twice");
}

/// After 24 hours a key means nothing any more. The clock cannot be moved, but what it wrote can.
#[test]
fn a_key_is_forgotten_after_a_day() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let mut server = server(&[]);
    let body = r#"{"task_type":"echo"}"#;
    let first = id(&create(&server.client, "day", body).expect(202));
    for (age_ms, is_same) in [(DAY_MS - 60_000, true), (DAY_MS + 1, false)] {
        server.client.wait_for_end(&first);
        let setup = server.crash();
        let database = rusqlite::Connection::open(setup.database()).unwrap();
        let created = millis(&in_millis(0)) - age_ms;
        assert_eq!(database.execute("UPDATE idempotency SET created_at = ?1", [created]).unwrap(), 1);
        drop(database);
        server = setup.start();
        let again = create(&server.client, "day", body);
        assert_eq!(id(&again) == first, is_same, "{again:?}");
        assert_eq!(again.header("idempotency-replayed").is_some(), is_same);
    }
    create(&server.client, "day", r#"{"task_type":"echo","input":1}"#).problem(422);
}

fn unique(key: &str) -> Value {
    json!({"task_type": guest("sleep-forever"), "unique_key": key})
}

/// The create must be refused, and point to `holder`.
#[track_caller]
fn taken(client: &Client, body: &Value, holder: &str) {
    let refused = client.post_task(&body.to_string());
    assert_eq!(refused.header("location"), Some(format!("/task/{holder}").as_str()), "{refused:?}");
    refused.problem(409);
}

#[test]
fn there_is_one_task_with_a_unique_key_until_it_ends() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("unique");
    let holder = client.create(&unique(&key));
    taken(client, &unique(&key), &holder);
    taken(client, &json!({"task_type": "echo", "unique_key": key}), &holder);
    client.wait_for_status(&holder, "Running");
    taken(client, &unique(&key), &holder);
    let other = client.create(&unique(&fresh("unique")));
    client.delete(&format!("/task/{other}")).expect(200);

    client.post(&format!("/task/{holder}/cancel")).expect(202);
    let next = client.create(&unique(&key));
    // The one before cannot come back while there is another.
    let retried = client.post(&format!("/task/{holder}/retry"));
    assert_eq!(retried.header("location"), Some(format!("/task/{next}").as_str()));
    retried.problem(409);
    client.delete(&format!("/task/{next}")).expect(200);
    client.post(&format!("/task/{holder}/retry")).expect(202);
    taken(client, &unique(&key), &holder);
    client.delete(&format!("/task/{holder}")).expect(200);

    // Every end frees it, success and failure.
    for body in [json!({"task_type": "echo"}), json!({"task_type": guest("trap")})] {
        for _ in 0..2 {
            let mut body = body.clone();
            body["unique_key"] = json!(key);
            client.run(&body);
        }
    }
    for key in [String::new(), "u".repeat(256)] {
        let problem = client.post_task(&unique(&key).to_string()).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], "#/unique_key", "{problem}");
    }
}

#[test]
fn a_unique_key_is_held_between_attempts_and_before_the_first() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("between");
    let body = json!({"task_type": "echo", "unique_key": key, "delay_ms": 3_600_000});
    let delayed = client.create(&body);
    taken(client, &body, &delayed);
    client.delete(&format!("/task/{delayed}")).expect(200);
    let body = json!({
        "task_type": guest("fail"), "unique_key": key, "input": {"transient": "x", "after_ms": 3_600_000},
        "retry": {"max_attempts": 2},
    });
    let waiting = client.create(&body);
    crate::support::wait_for("the backoff", || {
        (client.task(&waiting)["waiting_for"]["reason"] == "backoff").then_some(())
    });
    taken(client, &body, &waiting);
    client.post(&format!("/task/{waiting}/cancel")).expect(202);
    let next = client.create(&body);
    client.delete(&format!("/task/{next}")).expect(200);
}

#[test]
fn of_many_creates_with_a_unique_key_at_once_one_succeeds() {
    let server = shared_server();
    let key = fresh("race");
    let body = unique(&key).to_string();
    let answers = thread::scope(|scope| {
        let asked: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(|| server.client.post_task(&body))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    let created: Vec<_> = answers.iter().filter(|answer| answer.status == 202).collect();
    assert_eq!(created.len(), 1, "{answers:?}");
    let place = format!("/task/{}", id(created[0]));
    for answer in &answers {
        assert!(matches!(answer.status, 202 | 409) && answer.header("location") == Some(place.as_str()), "{answer:?}");
    }
    server.client.delete(&place).expect(200);
}

#[test]
fn a_unique_key_survives_a_crash() {
    let server = Setup::new(&[]).start();
    let holder = server.client.create(&unique("one"));
    let server = server.crash().start();
    taken(&server.client, &unique("one"), &holder);
    server.client.post(&format!("/task/{holder}/cancel")).expect(202);
    let server = server.crash().start();
    let next = server.client.create(&unique("one"));
    taken(&server.client, &unique("one"), &next);
}

/// The same create again is no second task, so its unique key is not in the way.
#[test]
fn a_repeated_create_with_a_unique_key_is_replayed() {
    let server = shared_server();
    let client = &server.client;
    let key = fresh("both");
    let body = unique(&key).to_string();
    let first = create(client, &key, &body).expect(202);
    let again = create(client, &key, &body).expect(202);
    assert_eq!((id(&again), again.header("idempotency-replayed")), (id(&first), Some("true")));
    taken(client, &unique(&key), &id(&first));
    client.delete(&format!("/task/{}", id(&first))).expect(200);
}
