//! `PATCH /task-types/{name}`: settings of a type while the server runs.

use serde_json::{Value, json};

use crate::support::{Answer, Client, guest, server, shared_server, wait_for};

const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

fn patch(client: &Client, name: &str, patch: &Value) -> Answer {
    client.send("PATCH", &format!("/task-types/{name}"), &[MERGE_PATCH], Some(patch.to_string().as_bytes()))
}

fn task_type(client: &Client, name: &str) -> Value {
    client.get(&format!("/task-types/{name}")).expect(200).json()
}

fn primes() -> Value {
    json!({"task_type": "primes", "input": {"up_to": 10_000}})
}

#[test]
fn limits_of_a_type_hold_for_its_tasks() {
    let server = server(&[]);
    let client = &server.client;
    let before = task_type(client, "primes");
    let patched = patch(client, "primes", &json!({"limits": {"fuel": 1000, "cpu_ms": 60_000}})).expect(200);
    let read = client.get("/task-types/primes").expect(200);
    assert_eq!((patched.json(), patched.header("etag")), (read.json(), read.header("etag")));
    let limits = &read.json()["limits"];
    assert_eq!((&limits["fuel"], &limits["cpu_ms"]), (&json!(1000), &json!(60_000)), "one above the default");
    assert_eq!(limits["timeout_ms"], before["limits"]["timeout_ms"]);
    assert_eq!(client.failure(&primes())["error"]["kind"], "fuel_exhausted");
    assert_eq!(client.run(&json!({"task_type": "echo"}))["status"], "Completed", "another type");
    // A task may lower what its type has, and no more.
    let mut raised = primes();
    raised["limits"] = json!({"fuel": 1001});
    assert_eq!(client.post_task(&raised.to_string()).problem(422)["errors"][0]["pointer"], "#/limits/fuel");

    patch(client, "primes", &json!({"limits": {"fuel": null}})).expect(200);
    assert_eq!(client.run(&primes())["status"], "Completed");
    assert_eq!(task_type(client, "primes")["limits"]["cpu_ms"], 60_000, "what is not there stays");
    patch(client, "primes", &json!({"limits": null})).expect(200);
    assert_eq!(task_type(client, "primes"), before);
    assert_eq!(patch(client, "primes", &json!({})).expect(200).json(), before);
}

#[test]
fn limits_hold_for_tasks_that_wait_already() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    let first = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&first, "Running");
    let waits = client.create(&primes());
    patch(client, "primes", &json!({"limits": {"fuel": 1000}})).expect(200);
    assert_eq!(client.status(&waits), "Pending");
    client.post(&format!("/task/{first}/cancel")).expect(202);
    assert_eq!(client.wait_for_end(&waits)["error"]["kind"], "fuel_exhausted");
}

#[test]
fn the_retry_policy_of_a_type_repeats_attempts() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("fail");
    let fails = json!({"task_type": name, "input": {"transient": "not yet"}});
    assert_eq!(client.failure(&fails)["attempt"], 1);
    let patched = patch(client, name, &json!({"retry": {"max_attempts": 3, "initial_backoff_ms": 1}})).expect(200);
    let retry = json!({"max_attempts": 3, "initial_backoff_ms": 1, "max_backoff_ms": 60_000});
    assert_eq!(patched.json()["retry"], retry);
    assert_eq!(client.failure(&fails)["attempt"], 3);
    patch(client, name, &json!({"retry": {"max_attempts": null}})).expect(200);
    assert_eq!(client.failure(&fails)["attempt"], 1);
}

#[test]
fn ended_tasks_are_kept_as_long_as_their_type_says() {
    let server = server(&[]);
    let client = &server.client;
    let goes = client.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned();
    let stays = client.run(&json!({"task_type": "word-count", "input": {"text": "a"}}));
    let waits = client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    assert_eq!(task_type(client, "echo")["retention_ms"], Value::Null);
    assert_eq!(patch(client, "echo", &json!({"retention_ms": 1})).expect(200).json()["retention_ms"], 1);
    wait_for("the task to be removed", || (client.get(&format!("/task/{goes}")).status == 404).then_some(()));
    client.get(&format!("/task/{goes}")).problem(404);
    assert_eq!(client.status(stays["id"].as_str().unwrap()), "Completed");
    assert_eq!(client.status(&waits), "Pending");
    let patched = patch(client, "echo", &json!({"retention_ms": null})).expect(200);
    assert_eq!(patched.json()["retention_ms"], Value::Null);
}

#[test]
fn settings_survive_a_crash() {
    let server = server(&[]);
    let settings = json!({"limits": {"fuel": 1000}, "retry": {"max_attempts": 2}, "retention_ms": 1_000_000_000});
    let patched = patch(&server.client, "primes", &settings).expect(200);
    let server = server.crash().start();
    let read = server.client.get("/task-types/primes").expect(200);
    assert_eq!((read.json(), read.header("etag")), (patched.json(), patched.header("etag")));
    assert_eq!(server.client.failure(&primes())["error"]["kind"], "fuel_exhausted");
}

#[test]
fn a_change_can_depend_on_what_was_read() {
    let server = server(&[]);
    let client = &server.client;
    let tag = client.get("/task-types/echo").expect(200).header("etag").unwrap().to_owned();
    let change = |tag: &str, patch: Value| {
        let headers = [MERGE_PATCH, ("if-match", tag)];
        client.send("PATCH", "/task-types/echo", &headers, Some(patch.to_string().as_bytes()))
    };
    change(&format!("W/{tag}"), json!({"retention_ms": 5_000_000})).problem(412);
    change("\"other\"", json!({"retention_ms": 5_000_000})).problem(412);
    let new = change(&tag, json!({"retention_ms": 5_000_000})).expect(200).header("etag").unwrap().to_owned();
    assert_ne!(new, tag);
    assert_eq!(change(&tag, json!({"retention_ms": 6_000_000})).problem(412)["type"], "/problems/precondition-failed");
    assert_eq!(task_type(client, "echo")["retention_ms"], 5_000_000);
    change("*", json!({"retention_ms": 7_000_000})).expect(200);
    client.get_with("/task-types/echo", &[("if-none-match", &new)]).expect(200);

    // Of many at once with the same tag one is the first, and the others learn it.
    let tag = client.get("/task-types/echo").expect(200).header("etag").unwrap().to_owned();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let (change, tag) = (&change, &tag);
        let changes: Vec<_> =
            (0..8).map(|n| scope.spawn(move || change(tag, json!({"retention_ms": 8_000_000 + n})).status)).collect();
        changes.into_iter().map(|change| change.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 412)), "{statuses:?}");
}

#[test]
fn what_is_no_setting_is_refused() {
    let server = shared_server();
    let client = &server.client;
    let before = task_type(client, "io");
    for (body, pointer) in [
        (json!({"limit": {}}), "#/limit"),
        (json!({"limit": null}), "#/limit"),
        (json!({"limits": {"speed": 1}}), "#/limits/speed"),
        (json!({"limits": {"speed": null}}), "#/limits/speed"),
        (json!({"limits": {"fuel": 0}}), "#/limits/fuel"),
        (json!({"limits": {"fuel": 10_000_000_000_001_u64}}), "#/limits/fuel"),
        (json!({"limits": {"fuel": "1"}}), "#/limits/fuel"),
        (json!({"limits": [1]}), "#/limits"),
        (json!({"limits": 1}), "#/limits"),
        (json!({"retry": {"max_attempts": 0}}), "#/retry/max_attempts"),
        (json!({"retry": {"max_attempts": 101}}), "#/retry/max_attempts"),
        (json!({"retry": {"initial_backoff_ms": 0}}), "#/retry/initial_backoff_ms"),
        (json!({"retry": [3]}), "#/retry"),
        (json!({"retention_ms": 0}), "#/retention_ms"),
        (json!({"retention_ms": 1e30}), "#/retention_ms"),
        (json!({"retention_ms": u64::MAX}), "#/retention_ms"),
        (json!([]), "#"),
        (json!(null), "#"),
    ] {
        let problem = patch(client, "io", &body).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
    patch(client, "nonesuch", &json!({})).problem(404);
    client.send("PATCH", "/task-types/io", &[MERGE_PATCH], Some(b"{")).problem(400);
    for media_type in ["application/json", "application/json-patch+json", "text/plain"] {
        let answer = client.send("PATCH", "/task-types/io", &[("content-type", media_type)], Some(b"{}"));
        assert_eq!(answer.header("accept-patch"), Some("application/merge-patch+json"));
        answer.problem(415);
    }
    assert_eq!(task_type(client, "io"), before);
}
