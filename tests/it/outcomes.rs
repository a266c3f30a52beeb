//! Each way a task can end, with a guest that provokes it. A limit is tested twice: lowered it ends
//! the task, and the same task with more of it does not end so.

mod log;
mod memory;
mod time;

use serde_json::{Value, json};

use crate::support::{Client, guest, server, shared_server};

/// The default limits, as far as receipts can be compared with them.
const MEMORY: u64 = 64 << 20;

/// A task that must fail in this way, with a receipt that can be true.
#[track_caller]
fn fails(client: &Client, body: &Value, kind: &str) -> Value {
    let task = client.failure(body);
    assert_eq!(task["error"]["kind"], kind, "{body}: {:#}", task["error"]);
    let retryable = matches!(kind, "transient" | "timeout" | "host");
    assert_eq!(task["error"]["retryable"], retryable, "{body}: {:#}", task["error"]);
    assert!(
        task["error"]["message"].as_str().is_some_and(|message| !message.is_empty()),
        "{body}: {:#}",
        task["error"]
    );
    assert!(task["output"].is_null(), "{task:#}");
    check_receipt(body, &task);
    let id = task["id"].as_str().unwrap();
    let problem = client.get(&format!("/task/{id}/result")).problem(409);
    assert_eq!(problem["error"], task["error"]);
    task
}

/// A task that must complete, with a receipt that can be true.
#[track_caller]
fn completes(client: &Client, body: &Value) -> Value {
    let task = client.run(body);
    assert_eq!(task["status"], "Completed", "{body}: {:#}", task["error"]);
    check_receipt(body, &task);
    task
}

#[track_caller]
fn check_receipt(body: &Value, task: &Value) {
    let usage = &task["usage"];
    let number = |name: &str| usage[name].as_f64().unwrap_or_else(|| panic!("{body}: no {name} in {usage}"));
    let limit = |name: &str, default: u64| body["limits"][name].as_u64().unwrap_or(default) as f64;
    assert!(number("fuel") > 0.0 && number("fuel") <= limit("fuel", 100_000_000_000), "{body}: {usage:#}");
    assert!(number("cpu_ms") > 0.0 && number("cpu_ms") <= limit("cpu_ms", 10_000) + 1_000.0, "{body}: {usage:#}");
    assert!(number("wall_ms") > 0.0 && number("wall_ms") + 1.0 >= number("cpu_ms"), "{body}: {usage:#}");
    assert!(number("queue_ms") >= 0.0, "{body}: {usage:#}");
    assert!(number("peak_memory_bytes") <= limit("memory_bytes", MEMORY), "{body}: {usage:#}");
    assert!(number("log_bytes") <= limit("log_bytes", 256 << 10), "{body}: {usage:#}");
    assert!(number("host_calls") >= 0.0 && number("io_bytes") >= 0.0, "{body}: {usage:#}");
    assert_eq!(usage, &task["usage_total"], "{body}: there was one attempt");
}

#[test]
fn what_the_guest_says() {
    let server = shared_server();
    let client = &server.client;
    let task = fails(client, &json!({"task_type": guest("fail"), "input": {"permanent": "no luck ü"}}), "permanent");
    assert_eq!(task["error"]["message"], "no luck ü");
    let body = json!({"task_type": guest("fail"), "input": {"transient": "later", "after_ms": 5}});
    assert_eq!(fails(client, &body, "transient")["error"]["message"], "later");
    assert_eq!(completes(client, &json!({"task_type": guest("fail"), "input": {}}))["output"], 1);
    // A message has a bound, too.
    let body = json!({"task_type": guest("fail"), "input": {"permanent": "é".repeat(100_000)}});
    assert!(fails(client, &body, "permanent")["error"]["message"].as_str().unwrap().len() < 100_000);
}

#[test]
fn exits() {
    let server = shared_server();
    let exit = |code: i32| json!({"task_type": guest("exit"), "input": {"code": code}});
    fails(&server.client, &exit(1), "permanent");
    fails(&server.client, &exit(77), "permanent");
    fails(&server.client, &exit(0), "invalid_output");
}

#[test]
fn traps_show_where() {
    let server = shared_server();
    let task = fails(&server.client, &json!({"task_type": guest("trap")}), "trap");
    let message = task["error"]["message"].as_str().unwrap();
    let frames = ["innermost_frame", "middle_frame", "outermost_frame"];
    let places: Vec<_> =
        frames.iter().map(|frame| message.find(frame).unwrap_or_else(|| panic!("{message}"))).collect();
    assert!(places.is_sorted(), "the innermost comes first: {message}");
    let task = fails(&server.client, &json!({"task_type": guest("deep")}), "trap");
    assert!(task["error"]["message"].as_str().unwrap().contains("stack"), "{:#}", task["error"]);
}

#[test]
fn fuel() {
    let server = shared_server();
    let client = &server.client;
    for spin in [guest("spin"), guest("spin-blocking")] {
        let task = fails(client, &json!({"task_type": spin, "limits": {"fuel": 50_000_000}}), "fuel_exhausted");
        assert!(task["usage"]["fuel"].as_u64().unwrap() > 49_000_000, "{task:#}");
    }
    let sort = |fuel: u64| json!({"task_type": guest("compute"), "input": {"work": "sort", "n": 100_000}, "limits": {"fuel": fuel}});
    fails(client, &sort(1_000_000), "fuel_exhausted");
    let task = completes(client, &sort(5_000_000_000));
    assert!(task["usage"]["fuel"].as_u64().unwrap() > 1_000_000, "{task:#}");
    // Also where nothing stops it on the way, as in code without loops. What it used is enough for it.
    let echo = |fuel: u64| json!({"task_type": "echo", "limits": {"fuel": fuel}});
    let needed = completes(client, &echo(1_000_000))["usage"]["fuel"].as_u64().unwrap();
    assert_eq!(completes(client, &echo(needed))["usage"]["fuel"], needed);
    for fuel in [needed - 1, needed - 50] {
        let task = fails(client, &echo(fuel), "fuel_exhausted");
        assert_eq!(task["usage"]["fuel"], fuel, "{task:#}");
    }
    // The same work costs the same.
    assert_eq!(completes(client, &sort(5_000_000_000))["usage"]["fuel"], task["usage"]["fuel"]);
}

#[test]
fn outputs() {
    let server = shared_server();
    let client = &server.client;
    let sized = |bytes: u32, limit: u32| json!({"task_type": guest("output"), "input": {"bytes": bytes}, "limits": {"output_bytes": limit}});
    fails(client, &sized(1001, 1000), "output_too_large");
    completes(client, &sized(1000, 1000));
    completes(client, &sized(1001, 1001));
    fails(client, &json!({"task_type": guest("output"), "input": {"bytes": (1 << 20) + 1}}), "output_too_large");
    completes(client, &json!({"task_type": guest("output"), "input": {"bytes": 1 << 20}}));

    let raw = |raw: &str| json!({"task_type": guest("output"), "input": {"raw": raw}});
    for bad in ["", "nope", "{", "[1,]", "1 2", "'a'", "NaN", "{\"a\":1}}", "\"\u{1}\"", "\u{feff}1"] {
        fails(client, &raw(bad), "invalid_output");
    }
    // JSON, but deeper than anybody reads.
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let answer = client.post_task_and_wait(&raw(&deep).to_string(), "wait=60").expect(200);
    if answer.raw("status") == "\"Completed\"" {
        let result = client.get(&format!("/task/{}/result", answer.raw("id").trim_matches('"'))).expect(200);
        assert!(result.body == deep.as_bytes(), "byte for byte");
    } else {
        assert!(answer.raw("error").contains("invalid_output"), "{}", answer.raw("error"));
    }
    // White space and odd numbers are the task's own business.
    let answer = client.post_task_and_wait(&raw(" [1e999 ,\n1.0] ").to_string(), "wait=60").expect(200);
    let id = answer.raw("id").trim_matches('"').to_owned();
    assert_eq!(client.get(&format!("/task/{id}/result")).expect(200).text(), " [1e999 ,\n1.0] ");
}

/// An input over the limit is refused before there is a task.
#[test]
fn inputs() {
    let server = server(&["--default-input-bytes", "2000", "--max-input-bytes", "2000"]);
    let client = &server.client;
    let sized = |bytes: usize, limit: usize| json!({"task_type": "echo", "input": "x".repeat(bytes - 2), "limits": {"input_bytes": limit}});
    client.post_task(&sized(1001, 1000).to_string()).problem(413);
    client.post_task(&json!({"task_type": "echo", "input": "x".repeat(1999)}).to_string()).problem(413);
    assert_eq!(client.get("/tasks").expect(200).json()["tasks"], json!([]), "nothing was created");
    completes(client, &sized(1000, 1000));
    completes(client, &sized(1001, 1001));
    completes(client, &json!({"task_type": "echo", "input": "x".repeat(1998)}));
}

/// A task may lower a limit of its type, and not raise it.
#[test]
fn limits_are_only_lowered() {
    let server = server(&["--default-timeout-ms", "400", "--default-memory-bytes", "8388608"]);
    let client = &server.client;
    fails_at(client, json!({"task_type": guest("sleep"), "input": {"ms": 60_000}}), "timeout");
    fails_at(client, json!({"task_type": guest("memory"), "input": {"bytes": 16 << 20}}), "memory_exceeded");
    let too_much = json!({"task_type": "echo", "limits": {"timeout_ms": 401, "memory_bytes": 8_388_609, "fuel": 0}});
    let problem = client.post_task(&too_much.to_string()).problem(422);
    let pointers: Vec<_> =
        problem["errors"].as_array().unwrap().iter().map(|error| error["pointer"].as_str().unwrap()).collect();
    assert_eq!(pointers, ["#/limits/fuel", "#/limits/timeout_ms", "#/limits/memory_bytes"], "{problem}");
    completes(client, &json!({"task_type": "echo", "limits": {"timeout_ms": 400, "memory_bytes": 8_388_608}}));
}

#[track_caller]
fn fails_at(client: &Client, body: Value, kind: &str) {
    let task = client.failure(&body);
    assert_eq!(task["error"]["kind"], kind, "{:#}", task["error"]);
}

/// A canceled task is billed for what it burned.
#[test]
fn a_canceled_task_is_billed() {
    let server = shared_server();
    let client = &server.client;
    let exhausted =
        fails(client, &json!({"task_type": guest("spin"), "limits": {"fuel": 1_000_000_000}}), "fuel_exhausted");
    let rate = |task: &Value| task["usage"]["fuel"].as_f64().unwrap() / task["usage"]["cpu_ms"].as_f64().unwrap();
    for spin in [guest("spin"), guest("spin-blocking")] {
        // Longer where the machine is busy with something else: it is to be billed for what it used.
        let canceled = [500, 5_000, 30_000].iter().find_map(|wait_ms| {
            let id = client.create(&json!({"task_type": spin}));
            client.wait_for_status(&id, "Running");
            std::thread::sleep(std::time::Duration::from_millis(*wait_ms));
            let canceled = client.post(&format!("/task/{id}/cancel")).expect(202).json();
            assert_eq!(canceled["error"]["kind"], "canceled");
            check_receipt(&json!({"task_type": spin}), &canceled);
            assert!(canceled["usage"]["wall_ms"].as_f64().unwrap() >= *wait_ms as f64, "{canceled:#}");
            (canceled["usage"]["cpu_ms"].as_f64().unwrap() >= 50.0).then_some(canceled)
        });
        let canceled = canceled.expect("a guest that spins gets some CPU time");
        let (billed, expected) = (rate(&canceled), rate(&exhausted));
        assert!(billed > expected / 4.0 && billed < expected * 4.0, "{billed} fuel a millisecond, not {expected}");
    }
}
