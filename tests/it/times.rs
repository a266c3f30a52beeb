//! Tasks that start later, and tasks that start in time or not at all.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::time::in_millis;
use crate::support::{Client, guest, server, shared_server, wait_for};

fn echo(field: &str, value: Value) -> Value {
    let mut body = json!({"task_type": "echo", "input": 7});
    body[field] = value;
    body
}

#[test]
fn a_task_starts_when_its_time_has_come_and_not_before() {
    let server = shared_server();
    let client = &server.client;
    for field in ["delay_ms", "run_at"] {
        let body = echo(field, if field == "run_at" { json!(in_millis(1_200)) } else { json!(1_200) });
        let id = client.create(&body);
        let task = client.task(&id);
        assert_eq!((&task["status"], &task["attempt"]), (&json!("Pending"), &json!(0)), "{task:#}");
        assert_eq!(task["waiting_for"]["reason"], "schedule", "{task:#}");
        let until = task["waiting_for"]["until"].as_str().unwrap().to_owned();
        let task = client.wait_for_end(&id);
        assert_eq!(task["output"], 7, "{task:#}");
        assert!(task["started_at"].as_str().unwrap() >= until.as_str(), "{until}: {task:#}");
        assert!(until.as_str() > task["created_at"].as_str().unwrap(), "{until}: {task:#}");
        // It was not in the queue before that.
        assert!(task["usage"]["queue_ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{task:#}");
    }
}

#[test]
fn a_time_that_is_past_is_now() {
    let server = shared_server();
    for body in [
        echo("delay_ms", json!(0)),
        echo("run_at", json!(in_millis(-60_000))),
        echo("run_at", json!("2026-01-01T00:00:00+02:00")),
        echo("run_at", Value::Null),
        echo("delay_ms", Value::Null),
        echo("expires_at", Value::Null),
    ] {
        assert_eq!(server.client.output(&body), 7, "{body}");
    }
}

#[test]
fn times_that_cannot_be_are_refused() {
    let server = shared_server();
    let both = json!({"task_type": "echo", "delay_ms": 1000, "run_at": in_millis(1000)});
    for (body, pointer) in [
        (echo("delay_ms", json!(-1)), "#/delay_ms"),
        (echo("delay_ms", json!(u64::MAX)), "#/delay_ms"),
        (echo("delay_ms", json!("1s")), "#/delay_ms"),
        (echo("run_at", json!("tomorrow")), "#/run_at"),
        (echo("run_at", json!(5)), "#/run_at"),
        (echo("expires_at", json!("2026-13-01T00:00:00Z")), "#/expires_at"),
        (both, "#/run_at"),
    ] {
        let problem = server.client.post_task(&body.to_string()).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem}");
    }
}

#[test]
fn a_delayed_task_can_be_canceled_and_deleted() {
    let server = shared_server();
    let client = &server.client;
    let later = echo("delay_ms", json!(3_600_000));
    let (canceled, deleted) = (client.create(&later), client.create(&later));
    let task = client.post(&format!("/task/{canceled}/cancel")).expect(202).json();
    assert_eq!((&task["error"]["kind"], &task["waiting_for"]), (&json!("canceled"), &Value::Null), "{task:#}");
    client.delete(&format!("/task/{deleted}")).expect(200);
    client.get(&format!("/task/{deleted}")).problem(404);
}

/// Those whose time has come go in their order: priority, then time.
#[test]
fn delayed_tasks_do_not_overtake() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    let holder = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&holder, "Running");
    let delayed = [(400, 0), (200, 0), (0, 0), (300, 50)].map(|(delay, priority)| {
        client
            .create(&json!({"task_type": guest("sleep"), "input": {"ms": 5}, "delay_ms": delay, "priority": priority}))
    });
    for id in &delayed {
        wait_for("its time", || (client.task(id)["waiting_for"]["reason"] == "queue").then_some(()));
    }
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    let started = delayed.map(|id| client.wait_for_end(&id)["started_at"].as_str().unwrap().to_owned());
    let mut order = [0, 1, 2, 3];
    order.sort_by_key(|at| started[*at].clone());
    assert_eq!(order, [3, 2, 1, 0], "{started:?}");
}

#[test]
fn a_delayed_task_survives_a_crash_and_runs() {
    let server = server(&[]);
    let soon = server.client.create(&echo("delay_ms", json!(2_500)));
    let later = server.client.create(&echo("delay_ms", json!(3_600_000)));
    let until = server.client.task(&later)["waiting_for"].clone();
    let due = server.client.task(&soon)["waiting_for"]["until"].as_str().unwrap().to_owned();
    let server = server.crash().start();
    assert_eq!(server.client.task(&later)["waiting_for"], until);
    let task = server.client.wait_for_end(&soon);
    assert_eq!((&task["output"], &task["attempt"]), (&json!(7), &json!(1)), "{task:#}");
    assert!(task["started_at"].as_str().unwrap() >= due.as_str(), "{task:#}");
    // One whose time came while nobody served runs as well.
    let missed = server.client.create(&echo("delay_ms", json!(300)));
    let setup = server.crash();
    std::thread::sleep(Duration::from_millis(400));
    let server = setup.start();
    assert_eq!(server.client.wait_for_end(&missed)["output"], 7);
}

/// A task that is still Pending when it expires fails, and whoever waits hears it.
#[test]
fn a_task_that_is_not_started_in_time_expires() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    let holder = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&holder, "Running");
    let start = Instant::now();
    let body = echo("expires_at", json!(in_millis(700)));
    let waited = client.post_task_and_wait(&body.to_string(), "wait=50").expect(200).json();
    assert!(start.elapsed() >= Duration::from_millis(600) && start.elapsed() < Duration::from_secs(40));
    is_expired(&waited);
    // Delayed beyond its end, and expired before it came.
    let delayed = json!({"task_type": "echo", "delay_ms": 600_000, "expires_at": in_millis(300)});
    is_expired(&client.wait_for_end(&client.create(&delayed)));
    let past = echo("expires_at", json!(in_millis(-1_000)));
    is_expired(&client.wait_for_end(&client.create(&past)));
    let listed = client.get("/tasks?error_kind=expired").expect(200).json();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 3, "{listed}");
    // Its attempts: none.
    let id = waited["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/task/{id}/attempts")).expect(200).json(), json!({"attempts": []}));
    // By hand it is attempted after all.
    client.post(&format!("/task/{id}/retry")).expect(202);
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    assert_eq!(client.wait_for_end(id)["output"], 7);
}

#[track_caller]
fn is_expired(task: &Value) {
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("expired")), "{task:#}");
    assert_eq!((&task["attempt"], &task["error"]["retryable"]), (&json!(0), &json!(false)), "{task:#}");
    assert!(task["finished_at"].is_string() && task["waiting_for"].is_null(), "{task:#}");
}

/// With room to run at once, too: it has expired already.
#[test]
fn a_task_that_expired_before_it_came_is_not_started() {
    let server = shared_server();
    let task = server.client.failure(&echo("expires_at", json!(in_millis(-1))));
    is_expired(&task);
}

/// A task that runs does not expire, but one that waits for its next attempt does.
#[test]
fn a_task_expires_between_two_attempts_and_not_while_it_runs() {
    let server = shared_server();
    let client = &server.client;
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 1_200}, "expires_at": in_millis(600)});
    let task = client.run(&body);
    // On a machine that is busy it may not even have started by then.
    assert!(task["status"] == "Completed" || task["attempt"] == 0, "{task:#}");
    let body = json!({
        "task_type": guest("fail"), "input": {"transient": "x", "after_ms": 600_000},
        "retry": {"max_attempts": 3}, "expires_at": in_millis(2_000),
    });
    let task = client.failure(&body);
    assert_eq!(task["error"]["kind"], "expired", "{task:#}");
}

#[test]
fn a_task_that_expired_while_nobody_served_is_not_started() {
    let server = server(&["--max-running", "1"]);
    let holder = server.client.create(&json!({"task_type": guest("sleep-forever")}));
    server.client.wait_for_status(&holder, "Running");
    let id = server.client.create(&echo("expires_at", json!(in_millis(300))));
    let setup = server.crash();
    std::thread::sleep(Duration::from_millis(400));
    let server = setup.start();
    is_expired(&server.client.wait_for_end(&id));
}

/// "Tell me when it changes" is told of the start.
#[test]
fn a_conditional_read_is_answered_when_a_task_starts() {
    let server = server(&["--max-running", "1"]);
    let client: &Client = &server.client;
    let holder = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&holder, "Running");
    let waiting = client.create(&json!({"task_type": guest("sleep-forever")}));
    let path = format!("/task/{waiting}");
    let before = client.get(&path).expect(200);
    assert_eq!(before.json()["waiting_for"]["reason"], "queue");
    let tag = before.header("etag").unwrap().to_owned();
    std::thread::scope(|scope| {
        let start = Instant::now();
        let told = scope.spawn(|| client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=50")]));
        client.post(&format!("/task/{holder}/cancel")).expect(202);
        let told = told.join().unwrap().expect(200);
        assert_eq!(told.json()["status"], "Running");
        assert_ne!(told.header("etag"), Some(tag.as_str()));
        assert!(start.elapsed() < Duration::from_secs(40), "it was told, and not only looked at again at the end");
    });
}
