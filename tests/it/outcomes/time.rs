//! Wall-clock time and CPU time.

use serde_json::{Value, json};

use super::{completes, fails};
use crate::support::{guest, server, shared_server};

/// How late a limit may be enforced here, where other tests take the machine's time.
const LATE_MS: f64 = 3_000.0;

fn wall_ms(task: &Value) -> f64 {
    task["usage"]["wall_ms"].as_f64().unwrap()
}

#[test]
fn timeouts_of_guests_that_wait() {
    let server = shared_server();
    let client = &server.client;
    let waiting = [
        (guest("sleep"), json!({"ms": 60_000})),
        (guest("sleep"), json!({"ms": 60_000, "times": 50, "at_once": true})),
        (guest("sleep"), json!({"ms": 5, "times": 100_000})),
        (guest("sleep-forever"), Value::Null),
        (guest("pending"), json!({"calls": 10})),
        ("io-blocking", json!({"sleep_ms": 60_000})),
    ];
    for (task_type, input) in waiting {
        let task =
            fails(client, &json!({"task_type": task_type, "input": input, "limits": {"timeout_ms": 300}}), "timeout");
        let wall = wall_ms(&task);
        assert!((300.0..300.0 + LATE_MS).contains(&wall), "{task_type} {input}: {wall}");
    }
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 400}, "limits": {"timeout_ms": 30_000}});
    completes(client, &body);
}

#[test]
fn timeouts_of_guests_that_spin() {
    let server = shared_server();
    for spin in [guest("spin"), guest("spin-blocking"), guest("bulk")] {
        let task = fails(&server.client, &json!({"task_type": spin, "limits": {"timeout_ms": 300}}), "timeout");
        let wall = wall_ms(&task);
        assert!((300.0..300.0 + LATE_MS).contains(&wall), "{spin}: {wall}");
    }
}

#[test]
fn cpu_time() {
    let server = shared_server();
    let client = &server.client;
    for spin in [guest("spin"), guest("spin-blocking"), guest("bulk")] {
        let task = fails(client, &json!({"task_type": spin, "limits": {"cpu_ms": 200}}), "cpu_exceeded");
        let cpu = task["usage"]["cpu_ms"].as_f64().unwrap();
        // Time on the processor, which others cannot take away.
        assert!((200.0..300.0).contains(&cpu), "{spin}: {cpu}");
    }
    let sort = |cpu_ms: u32| json!({"task_type": guest("compute"), "input": {"work": "sort", "n": 1_000_000}, "limits": {"cpu_ms": cpu_ms}});
    fails(client, &sort(10), "cpu_exceeded");
    completes(client, &sort(10_000));
}

/// Waiting for the host counts for the wall-clock time only.
#[test]
fn waiting_is_no_cpu_time() {
    let server = shared_server();
    let body =
        json!({"task_type": guest("sleep"), "input": {"ms": 800}, "limits": {"cpu_ms": 100, "fuel": 10_000_000}});
    let task = completes(&server.client, &body);
    assert!(wall_ms(&task) >= 800.0, "{task:#}");
    assert!(task["usage"]["cpu_ms"].as_f64().unwrap() < 100.0, "{task:#}");
}

/// The limits hold where they come from the configuration as well.
#[test]
fn configured_times() {
    let server = server(&["--default-cpu-ms", "150", "--default-timeout-ms", "20000"]);
    fails(&server.client, &json!({"task_type": guest("spin")}), "cpu_exceeded");
}
