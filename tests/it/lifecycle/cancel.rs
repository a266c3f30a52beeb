//! Stopping tasks wherever they are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::gone;
use crate::support::{Client, Server, guest, server, shared_server};

/// How long a stop may take on a machine that others use as well.
const SOON: Duration = Duration::from_secs(5);

/// A task of each kind that runs until it is stopped.
fn endless() -> [Value; 6] {
    [
        json!({"task_type": guest("sleep-forever")}),
        json!({"task_type": guest("spin")}),
        json!({"task_type": guest("spin-blocking")}),
        json!({"task_type": guest("bulk"), "limits": {"cpu_ms": 10_000}}),
        json!({"task_type": guest("pending"), "input": {"calls": 100}}),
        json!({"task_type": "io-blocking", "input": {"sleep_ms": 60_000}}),
    ]
}

fn start(client: &Client, body: &Value) -> String {
    let id = client.create(body);
    client.wait_for_status(&id, "Running");
    id
}

#[test]
fn running_tasks_are_canceled() {
    let server = shared_server();
    let client = &server.client;
    for body in endless() {
        let id = start(client, &body);
        let asked = Instant::now();
        let task = client.post(&format!("/task/{id}/cancel")).expect(202).json();
        assert!(asked.elapsed() < SOON, "{body}: {:?}", asked.elapsed());
        assert_eq!((&task["id"], &task["status"]), (&json!(id), &json!("Failed")), "{task:#}");
        assert_eq!((&task["error"]["kind"], &task["error"]["retryable"]), (&json!("canceled"), &json!(false)));
        assert!(task["usage"]["wall_ms"].as_f64().is_some_and(|wall| wall > 0.0), "its receipt: {task:#}");
        assert_eq!(client.task(&id)["error"]["kind"], "canceled", "the record is kept");
        client.get(&format!("/task/{id}/result")).problem(409);
        client.post(&format!("/task/{id}/cancel")).problem(409);
    }
}

#[test]
fn running_tasks_are_deleted() {
    let server = shared_server();
    let client = &server.client;
    for body in endless() {
        let id = start(client, &body);
        let asked = Instant::now();
        client.delete(&format!("/task/{id}")).expect(200);
        assert!(asked.elapsed() < SOON, "{body}: {:?}", asked.elapsed());
        gone(client, &id);
    }
}

/// A server whose only place is taken, and a task that waits for it.
fn with_pending() -> (Server, String, String) {
    let server = server(&["--max-running", "1"]);
    let holder = start(&server.client, &json!({"task_type": guest("sleep-forever")}));
    let waiting = server.client.create(&json!({"task_type": "echo", "input": "never"}));
    assert_eq!(server.client.status(&waiting), "Pending");
    (server, holder, waiting)
}

#[test]
fn pending_tasks_are_canceled_and_deleted() {
    let (server, holder, canceled) = with_pending();
    let client = &server.client;
    let deleted = client.create(&json!({"task_type": "echo"}));
    let kept = client.create(&json!({"task_type": "echo", "input": 5}));
    let task = client.post(&format!("/task/{canceled}/cancel")).expect(202).json();
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("canceled")));
    assert_eq!((&task["attempt"], &task["started_at"]), (&json!(0), &Value::Null));
    client.delete(&format!("/task/{deleted}")).expect(200);
    gone(client, &deleted);
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    assert_eq!(client.wait_for_end(&kept)["output"], 5);
    let canceled = client.task(&canceled);
    assert_eq!((&canceled["status"], &canceled["attempt"]), (&json!("Failed"), &json!(0)), "it never ran");
}

#[test]
fn ended_tasks_are_deleted_and_not_canceled() {
    let server = shared_server();
    let client = &server.client;
    for body in [json!({"task_type": "echo"}), json!({"task_type": guest("trap")})] {
        let task = client.run(&body);
        let id = task["id"].as_str().unwrap();
        client.post(&format!("/task/{id}/cancel")).problem(409);
        assert_eq!(client.task(id), task, "a refused cancel changes nothing");
        client.delete(&format!("/task/{id}")).expect(200);
        gone(client, id);
    }
}

/// Whoever asks first and whoever asks at the same time all get an answer.
#[test]
fn many_stop_the_same_task() {
    let server = shared_server();
    let client = &server.client;
    for _ in 0..10 {
        let id = start(client, &json!({"task_type": guest("spin")}));
        let path = format!("/task/{id}");
        let (cancels, deletes) = std::thread::scope(|scope| {
            let cancels: Vec<_> =
                (0..3).map(|_| scope.spawn(|| client.post(&format!("{path}/cancel")).status)).collect();
            let deletes: Vec<_> = (0..3).map(|_| scope.spawn(|| client.delete(&path).status)).collect();
            let join = |threads: Vec<std::thread::ScopedJoinHandle<'_, u16>>| {
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            };
            (join(cancels), join(deletes))
        });
        assert_eq!(deletes.iter().filter(|status| **status == 200).count(), 1, "{deletes:?}");
        assert!(deletes.iter().all(|status| matches!(status, 200 | 404)), "{deletes:?}");
        assert!(cancels.iter().all(|status| matches!(status, 202 | 404 | 409)), "{cancels:?}");
        gone(client, &id);
    }
}
