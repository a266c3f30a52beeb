//! Attempts that are repeated, by the server and by hand.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::time::millis;
use crate::support::{Client, guest, server, shared_server, wait_for};

/// Fails until the attempt with that number, and waits at least so long in between.
fn fails_until(until: u32, after_ms: u32, retry: Value) -> Value {
    let input = json!({"transient": "not yet", "after_ms": after_ms, "until": until});
    json!({"task_type": guest("fail"), "input": input, "retry": retry})
}

fn at_once(max_attempts: u32) -> Value {
    json!({"max_attempts": max_attempts, "initial_backoff_ms": 1, "max_backoff_ms": 1})
}

fn attempts(client: &Client, id: &str) -> Vec<Value> {
    client.get(&format!("/task/{id}/attempts")).expect(200).json()["attempts"].as_array().unwrap().clone()
}

fn id(task: &Value) -> String {
    task["id"].as_str().unwrap().to_owned()
}

/// Waits until the task is between two attempts.
#[track_caller]
fn wait_for_backoff(client: &Client, id: &str) -> Value {
    wait_for("the backoff", || {
        let task = client.task(id);
        assert!(!matches!(task["status"].as_str(), Some("Completed" | "Failed")), "{task:#}");
        (task["waiting_for"]["reason"] == "backoff").then_some(task)
    })
}

#[test]
fn a_task_is_attempted_until_it_succeeds_and_every_attempt_is_listed() {
    let server = shared_server();
    let client = &server.client;
    let task = client.run(&fails_until(3, 0, at_once(5)));
    assert_eq!((&task["status"], &task["output"], &task["attempt"]), (&json!("Completed"), &json!(3), &json!(3)));
    assert!(task["error"].is_null() && task["waiting_for"].is_null(), "{task:#}");
    let attempts = attempts(client, &id(&task));
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
    let outcomes: Vec<_> = attempts.iter().map(|attempt| attempt["outcome"].as_str().unwrap()).collect();
    assert_eq!((numbers, outcomes), (vec![1, 2, 3], vec!["Failed", "Failed", "Completed"]));
    let mut fuel = 0;
    for (at, attempt) in attempts.iter().enumerate() {
        assert!(attempt["started_at"].is_string() && attempt["finished_at"].is_string(), "{attempt}");
        assert_eq!(attempt["error"]["kind"].as_str(), (at < 2).then_some("transient"), "{attempt}");
        fuel += attempt["usage"]["fuel"].as_u64().unwrap();
    }
    assert_eq!(attempts[2]["usage"], task["usage"], "the receipt of the last attempt");
    assert_eq!(task["usage_total"]["fuel"], fuel, "the sum of all");
}

#[test]
fn no_more_attempts_than_max_attempts() {
    let server = shared_server();
    let client = &server.client;
    for most in [1, 2, 4] {
        let task = client.failure(&fails_until(100, 0, at_once(most)));
        assert_eq!((&task["attempt"], &task["error"]["kind"]), (&json!(most), &json!("transient")), "{task:#}");
        assert_eq!(task["error"]["retryable"], true);
        assert_eq!(attempts(client, &id(&task)).len(), most as usize);
    }
    // Who says nothing gets no retry.
    let task = client.failure(&json!({"task_type": guest("fail"), "input": {"transient": "x"}}));
    assert_eq!(task["attempt"], 1, "{task:#}");
}

#[test]
fn only_what_may_succeed_another_time_is_repeated() {
    let server = shared_server();
    let client = &server.client;
    let bodies = [
        (json!({"task_type": guest("fail"), "input": {"permanent": "no"}}), "permanent"),
        (json!({"task_type": guest("trap")}), "trap"),
        (json!({"task_type": guest("spin"), "limits": {"fuel": 1_000_000}}), "fuel_exhausted"),
    ];
    for (mut body, kind) in bodies {
        body["retry"] = at_once(3);
        let task = client.failure(&body);
        assert_eq!((&task["attempt"], &task["error"]["kind"]), (&json!(1), &json!(kind)), "{task:#}");
        assert_eq!(task["error"]["retryable"], false);
    }
    let body = json!({"task_type": guest("sleep-forever"), "limits": {"timeout_ms": 50}, "retry": at_once(2)});
    let task = client.failure(&body);
    assert_eq!((&task["attempt"], &task["error"]["kind"]), (&json!(2), &json!("timeout")), "{task:#}");
}

#[test]
fn between_two_attempts_a_task_says_so_and_keeps_what_the_last_one_left() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&fails_until(2, 600_000, at_once(2)));
    let task = wait_for_backoff(client, &id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("Pending"), &json!(1)), "{task:#}");
    assert_eq!((&task["error"]["kind"], &task["error"]["message"]), (&json!("transient"), &json!("not yet")));
    assert!(task["usage"]["fuel"].as_u64().is_some_and(|fuel| fuel > 0), "{task:#}");
    assert!(task["started_at"].is_null() && task["finished_at"].is_null(), "{task:#}");
    let until = task["waiting_for"]["until"].as_str().unwrap();
    assert!(until > task["created_at"].as_str().unwrap(), "{task:#}");
    let status = client.get(&format!("/task/{id}/status")).expect(200).json();
    assert_eq!(status["waiting_for"], task["waiting_for"]);
    let result = client.get(&format!("/task/{id}/result")).expect(202).json();
    assert_eq!(result["waiting_for"], task["waiting_for"]);
    assert_eq!(attempts(client, &id).len(), 1);

    // It has not ended, so it cannot be retried by hand; it can be canceled.
    client.post(&format!("/task/{id}/retry")).problem(409);
    let duration = task["duration_ms"].clone();
    assert!(duration.is_u64(), "of the last attempt: {task:#}");
    let task = client.post(&format!("/task/{id}/cancel")).expect(202).json();
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("canceled")), "{task:#}");
    assert_eq!((&task["attempt"], &task["waiting_for"]), (&json!(1), &Value::Null), "{task:#}");
    assert_eq!(task["duration_ms"], duration);
    let attempts = attempts(client, &id);
    assert_eq!((attempts.len(), &attempts[0]["error"]["kind"]), (1, &json!("transient")));
}

#[test]
fn an_attempt_is_not_repeated_before_the_guest_wants_it() {
    let server = shared_server();
    let client = &server.client;
    let start = Instant::now();
    let task = client.run(&fails_until(2, 1_500, at_once(2)));
    assert!(start.elapsed() >= Duration::from_millis(1_500), "{:?}", start.elapsed());
    assert_eq!(task["output"], 2, "{task:#}");
}

/// Full jitter up to the bound: of many waits some are in its upper half, and none above it.
#[test]
fn the_backoff_grows_to_its_bounds() {
    let server = shared_server();
    let client = &server.client;
    let hour = 3_600_000;
    let waits = |retry: Value| {
        let ids: Vec<_> = (0..24).map(|_| client.create(&fails_until(9, 0, retry.clone()))).collect();
        let waits: Vec<i64> = ids
            .iter()
            .map(|id| {
                // The shortest of them may be over before they are looked at.
                let task = wait_for("the first attempt's end", || {
                    let task = client.task(id);
                    (task["attempt"] != 0 && task["status"] == "Pending").then_some(task)
                });
                let first = &attempts(client, id)[0];
                let until = task["waiting_for"]["until"].as_str().map_or(0, millis);
                client.delete(&format!("/task/{id}")).expect(200);
                until - millis(first["finished_at"].as_str().unwrap())
            })
            .collect();
        (waits.iter().copied().max().unwrap(), waits)
    };
    let (longest, all) = waits(json!({"max_attempts": 9, "initial_backoff_ms": hour, "max_backoff_ms": 2 * hour}));
    assert!(longest > hour / 2 && longest <= hour, "initial_backoff_ms: {all:?}");
    let (longest, all) = waits(json!({"max_attempts": 9, "initial_backoff_ms": 50 * hour, "max_backoff_ms": hour}));
    assert!(longest > hour / 2 && longest <= hour, "max_backoff_ms: {all:?}");
}

#[test]
fn a_retry_policy_that_cannot_be_is_refused_with_its_place() {
    let server = shared_server();
    for (retry, pointer) in [
        (json!({"max_attempts": 0}), "#/retry/max_attempts"),
        (json!({"max_attempts": 101}), "#/retry/max_attempts"),
        (json!({"initial_backoff_ms": 0}), "#/retry/initial_backoff_ms"),
        (json!({"max_backoff_ms": 604_800_001}), "#/retry/max_backoff_ms"),
        (json!({"max_attempts": "3"}), "#/retry/max_attempts"),
        (json!({"attempts": 3}), "#/retry/attempts"),
    ] {
        let body = json!({"task_type": "echo", "retry": retry});
        let problem = server.client.post_task(&body.to_string()).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    }
}

#[test]
fn an_ended_task_is_retried_by_hand_under_its_id() {
    let server = shared_server();
    let client = &server.client;
    for (body, kind) in [
        (fails_until(3, 0, at_once(2)), Some("transient")),
        (json!({"task_type": "echo", "input": 2}), None),
        (json!({"task_type": guest("trap")}), Some("trap")),
    ] {
        let before = client.run(&body);
        let (id, used) = (id(&before), before["attempt"].as_u64().unwrap());
        assert_eq!(before["error"]["kind"].as_str(), kind, "{before:#}");
        let retried = client.post(&format!("/task/{id}/retry")).expect(202).json();
        assert_eq!((&retried["id"], &retried["output"]), (&before["id"], &Value::Null), "{retried:#}");
        assert!(matches!(retried["status"].as_str(), Some("Pending" | "Running")), "{retried:#}");
        let after = client.wait_for_end(&id);
        assert_eq!(after["attempt"], used + 1, "{after:#}");
        // The task that fails until its third attempt has fresh ones, and now succeeds.
        let now = if kind == Some("trap") { "Failed" } else { "Completed" };
        assert_eq!(after["status"], now, "{after:#}");
        let attempts = attempts(client, &id);
        assert_eq!(attempts.len() as u64, used + 1);
        assert_eq!(attempts[used as usize - 1]["usage"], before["usage"], "what was is kept");
        let fuel = attempts.iter().map(|attempt| attempt["usage"]["fuel"].as_u64().unwrap()).sum::<u64>();
        assert_eq!(after["usage_total"]["fuel"], fuel, "{after:#}");
    }
}

/// Each attempt is told, and the stream of a task that was retried by hand goes on.
#[test]
fn attempts_are_told_as_events() {
    let server = shared_server();
    let client = &server.client;
    let id = id(&client.run(&fails_until(3, 0, at_once(2))));
    let told = || -> Vec<String> {
        let text = client.get(&format!("/task/{id}/events")).expect(200).text();
        text.lines().filter_map(|line| line.strip_prefix("event: task.")).map(str::to_owned).collect()
    };
    let first = ["pending", "running", "pending", "running", "failed"];
    assert_eq!(told(), first);
    client.post(&format!("/task/{id}/retry")).expect(202);
    client.wait_for_end(&id);
    assert_eq!(told(), [&first[..], &["pending", "running", "completed"]].concat());
}

#[test]
fn only_an_ended_task_is_retried_by_hand() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&id, "Running");
    client.post(&format!("/task/{id}/retry")).problem(409);
    client.post(&format!("/task/{id}/cancel")).expect(202);
    client.post(&format!("/task/{id}/retry")).expect(202);
    client.wait_for_status(&id, "Running");
    assert_eq!(client.task(&id)["attempt"], 2);
    client.delete(&format!("/task/{id}")).expect(200);
    client.post(&format!("/task/{id}/retry")).problem(404);
    client.get(&format!("/task/{id}/attempts")).problem(404);
}

#[test]
fn a_retry_by_hand_is_one_attempt_for_each_request() {
    let server = shared_server();
    let client = &server.client;
    let id = id(&client.run(&json!({"task_type": "echo"})));
    let answers = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| client.post(&format!("/task/{id}/retry")).status)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(answers.iter().all(|status| matches!(status, 202 | 409)), "{answers:?}");
    let retried = answers.iter().filter(|status| **status == 202).count();
    assert!(retried >= 1);
    assert_eq!(client.wait_for_end(&id)["attempt"], retried + 1);
    assert_eq!(attempts(client, &id).len(), retried + 1);
}

/// Who waits for a task waits through its attempts.
#[test]
fn a_wait_ends_with_the_last_attempt() {
    let server = shared_server();
    let body = fails_until(3, 50, at_once(3)).to_string();
    let task = server.client.post_task_and_wait(&body, "wait=60").expect(200).json();
    assert_eq!((&task["status"], &task["attempt"]), (&json!("Completed"), &json!(3)), "{task:#}");
}

#[test]
fn attempts_and_their_bound_survive_a_crash() {
    let server = Setup::new(&[]).start();
    let id = server.client.create(&fails_until(9, 3_000, at_once(2)));
    wait_for_backoff(&server.client, &id);
    let before = attempts(&server.client, &id);
    let server = server.crash().start();
    assert_eq!(attempts(&server.client, &id)[0], before[0]);
    let task = server.client.wait_for_end(&id);
    assert_eq!((&task["attempt"], &task["error"]["kind"]), (&json!(2), &json!("transient")), "{task:#}");
    assert_eq!(attempts(&server.client, &id).len(), 2);
}

/// What the server went down under counts apart and has no receipt.
#[test]
fn an_interrupted_attempt_is_listed_without_a_receipt() {
    let server = server(&[]);
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 2_000}, "retry": {"max_attempts": 1}});
    let id = server.client.create(&body);
    server.client.wait_for_status(&id, "Running");
    let running = attempts(&server.client, &id);
    assert_eq!(
        (running.len(), &running[0]["outcome"], &running[0]["finished_at"]),
        (1, &json!("Running"), &Value::Null)
    );
    let server = server.crash().start();
    let task = server.client.wait_for_end(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("Completed"), &json!(2)), "{task:#}");
    let attempts = attempts(&server.client, &id);
    assert_eq!((&attempts[0]["error"]["kind"], &attempts[0]["usage"]), (&json!("interrupted"), &Value::Null));
    assert_eq!((&attempts[0]["number"], &attempts[1]["number"]), (&json!(1), &json!(2)));
    assert_eq!(attempts[1]["usage"], task["usage"]);
}

/// Every setting of the server for it: a task that takes the server down is given up.
#[test]
fn interruptions_are_bounded_and_a_retry_by_hand_begins_afresh() {
    let mut server = Setup::new(&["--max-interruptions", "1"]).start();
    let id = server.client.create(&json!({"task_type": guest("sleep-forever"), "retry": at_once(5)}));
    for _ in 0..2 {
        server.client.wait_for_status(&id, "Running");
        server = server.crash().start();
    }
    let task = server.client.task(&id);
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("interrupted")), "{task:#}");
    server.client.post(&format!("/task/{id}/retry")).expect(202);
    server.client.wait_for_status(&id, "Running");
    let server = server.crash().start();
    server.client.wait_for_status(&id, "Running");
    let attempts = attempts(&server.client, &id);
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3, 4], "{attempts:#?}");
}

/// An attempt that a drain gave back is not counted, and the ones before it stay.
#[test]
fn a_drained_attempt_is_not_counted() {
    let server = server(&["--drain-timeout", "100"]);
    let id = server.client.create(&json!({"task_type": guest("sleep-forever")}));
    server.client.wait_for_status(&id, "Running");
    let server = server.stop().start();
    server.client.wait_for_status(&id, "Running");
    assert_eq!(attempts(&server.client, &id).len(), 1);
    assert_eq!(server.client.task(&id)["attempt"], 1);
}
