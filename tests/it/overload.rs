//! More tasks than the server takes.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, guest, server};

const JSON: (&str, &str) = ("content-type", "application/json");

/// A server whose only place is taken, and the task that has it.
fn busy(flags: &[&str]) -> (Server, String) {
    let server = server(&[&["--max-running", "1"], flags].concat());
    let holder = server.client.create(&json!({"task_type": guest("sleep-forever")}));
    server.client.wait_for_status(&holder, "Running");
    (server, holder)
}

fn echo() -> Value {
    json!({"task_type": "echo"})
}

/// A refusal that says when to come again.
#[track_caller]
fn refused(answer: Answer, status: u16) -> Value {
    let after = answer.header("retry-after").and_then(|after| after.parse::<u64>().ok());
    assert!(after.is_some_and(|after| (1..=300).contains(&after)), "{answer:?}");
    answer.problem(status)
}

#[track_caller]
fn create(client: &Client) -> Answer {
    client.post_task(&echo().to_string())
}

#[test]
fn a_tenant_has_no_more_pending_tasks_than_it_may() {
    let (server, holder) = busy(&["--max-tenant-pending", "3"]);
    let client = &server.client;
    let mut pending: Vec<_> = (0..3).map(|_| client.create(&echo())).collect();
    let answer = create(client);
    assert_eq!(answer.header("ratelimit"), Some("\"pending-tasks\";r=0"));
    assert_eq!(answer.header("ratelimit-policy"), Some("\"pending-tasks\";q=3"));
    refused(answer, 429);
    refused(client.post_task_and_wait(&echo().to_string(), "wait=5"), 429);
    // One that is delayed waits as well, so it is counted.
    refused(client.post_task(&json!({"task_type": "echo", "delay_ms": 1000}).to_string()), 429);

    // Each way out of the queue makes room for one.
    client.delete(&format!("/task/{}", pending[0])).expect(200);
    pending.push(client.create(&echo()));
    refused(create(client), 429);
    client.post(&format!("/task/{}/cancel", pending[1])).expect(202);
    pending.push(client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000})));
    refused(create(client), 429);
    // One that ended and comes back needs room as well.
    refused(client.post(&format!("/task/{}/retry", pending[1])), 429);
    client.delete(&format!("/task/{}", pending[4])).expect(200);
    client.post(&format!("/task/{}/retry", pending[1])).expect(202);
    refused(create(client), 429);
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    for id in &pending[1..4] {
        client.wait_for_end(id);
    }
    client.run(&echo());
}

#[test]
fn all_together_have_no_more_pending_tasks_than_the_server_takes() {
    let (server, holder) = busy(&["--max-pending", "2"]);
    let client = &server.client;
    let pending: Vec<_> = (0..2).map(|_| client.create(&echo())).collect();
    let problem = refused(create(client), 503);
    assert!(problem["type"].as_str().unwrap().contains("full"), "{problem}");
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    for id in &pending {
        assert_eq!(client.wait_for_end(id)["status"], "Completed", "what was taken is done");
    }
    client.run(&echo());
}

/// What waits is counted again after a crash.
#[test]
fn the_bound_holds_after_a_crash() {
    let (server, _) = busy(&["--max-tenant-pending", "2"]);
    let delayed = server.client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    server.client.create(&json!({"task_type": guest("sleep-forever")}));
    let server = server.crash().start();
    let client = &server.client;
    // One of those without a delay runs, and the other waits: which, is not what this is about.
    crate::support::wait_for("one to run", || {
        let running = client.get("/tasks?status=Running").expect(200).json();
        (running["tasks"].as_array().unwrap().len() == 1).then_some(())
    });
    refused(create(client), 429);
    client.delete(&format!("/task/{delayed}")).expect(200);
    client.create(&echo());
    refused(create(client), 429);
}

/// A task that goes back to the queue by itself is never refused, and one that runs at once needs no room.
#[test]
fn what_is_taken_already_is_not_refused() {
    let server = server(&["--max-tenant-pending", "1"]);
    let client = &server.client;
    let delayed = client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    refused(client.post_task(&json!({"task_type": "echo", "delay_ms": 1000}).to_string()), 429);
    let body = json!({
        "task_type": guest("fail"), "input": {"transient": "x", "until": 3},
        "retry": {"max_attempts": 3, "initial_backoff_ms": 1},
    });
    assert_eq!(client.output(&body), 3);
    client.delete(&format!("/task/{delayed}")).expect(200);
}

#[test]
fn of_many_tasks_those_are_refused_that_are_too_many() {
    let (server, holder) = busy(&["--max-tenant-pending", "3"]);
    let client = &server.client;
    let body = Value::from_iter((0..5).map(|_| echo())).to_string();
    let headers = [JSON, ("idempotency-key", "k")];
    let statuses = |answer: Answer| -> Vec<u64> {
        let results = answer.expect(200).json();
        results["results"].as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect()
    };
    let answer = client.send("POST", "/tasks", &headers, Some(body.as_bytes()));
    let results = answer.expect(200).json()["results"].as_array().unwrap().clone();
    assert_eq!(
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect::<Vec<_>>(),
        [202, 202, 202, 429, 429]
    );
    assert!(
        results[3..].iter().all(|refused| (1..=300).contains(&refused["retry_after"].as_u64().unwrap())),
        "{results:#?}"
    );
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    crate::support::wait_for("the first ones' end", || {
        let pending = client.get("/tasks?status=Pending").expect(200).json();
        (pending["tasks"] == json!([])).then_some(())
    });
    // The same request again creates those that were refused.
    let answer = client.send("POST", "/tasks", &headers, Some(body.as_bytes()));
    let again = statuses(answer);
    assert!(again.iter().all(|status| matches!(status, 200 | 202)), "{again:?}");
    assert_eq!(client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().len(), 6);
}

/// A refused create leaves nothing: no task, no use of its key.
#[test]
fn a_refused_create_leaves_nothing() {
    let (server, _) = busy(&["--max-tenant-pending", "1"]);
    let client = &server.client;
    let waiting = client.create(&echo());
    let body = json!({"task_type": "echo", "unique_key": "u"}).to_string();
    let headers = [JSON, ("idempotency-key", "i")];
    refused(client.send("POST", "/task", &headers, Some(body.as_bytes())), 429);
    client.delete(&format!("/task/{waiting}")).expect(200);
    let created = client.send("POST", "/task", &headers, Some(body.as_bytes())).expect(202);
    assert_eq!(created.header("idempotency-replayed"), None);
    // The same request again is answered though there is no room for another.
    let again = client.send("POST", "/task", &headers, Some(body.as_bytes())).expect(202);
    assert_eq!(again.json()["id"], created.json()["id"]);
}

/// A full queue drains at a rate that the test sees for itself, and `Retry-After` is how long it takes at
/// that rate until a tenth of it is free.
#[track_caller]
fn told_as_it_drains(at_once: &str, bound: &str, status: u16) -> u64 {
    const ROOM: u64 = 200;
    const LONG_ENOUGH: Duration = Duration::from_secs(5);
    let server = server(&["--max-running", at_once, bound, &ROOM.to_string()]);
    let client = &server.client;
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 240}});
    let many = Value::from_iter((0..ROOM + 20).map(|_| body.clone())).to_string();
    let started = Instant::now();
    client.send("POST", "/tasks", &[JSON], Some(many.as_bytes())).expect(200);
    // It is full all the time: what is made room for is taken again.
    let mut after = 0;
    while started.elapsed() < LONG_ENOUGH {
        let answer = client.post_task(&body.to_string());
        if answer.status != 202 {
            after = answer.header("retry-after").unwrap().parse().unwrap();
            refused(answer, status);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let took = started.elapsed().as_secs_f64();
    let ended = client.get("/tasks?limit=1000&status=Completed").expect(200).json();
    let ended = ended["tasks"].as_array().unwrap().len();
    let expected = ROOM as f64 / 10.0 / (ended as f64 / took);
    eprintln!("{ended} ended in {took:.1} s: a tenth in {expected:.1} s, told {after} s");
    // The first second of a window counts for little, and what is told is in whole seconds.
    assert!((expected / 2.0..=expected * 2.0 + 1.0).contains(&(after as f64)), "{after} s are told for {expected} s");
    after
}

#[test]
fn when_to_come_again_follows_from_how_the_queue_drains() {
    let slow = told_as_it_drains("1", "--max-tenant-pending", 429);
    let fast = told_as_it_drains("6", "--max-pending", 503);
    assert!(fast < slow, "{fast} s where six run at once, {slow} s where one does");
}
