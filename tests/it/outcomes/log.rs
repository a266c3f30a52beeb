//! A task's log and its limit.

use serde_json::{Value, json};

use super::completes;
use crate::support::{Client, guest, shared_server, wait_for};

/// All lines of a task's log so far, read page by page.
fn log(client: &Client, id: &str) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut after = 0;
    loop {
        let page = client.get(&format!("/task/{id}/logs?limit=100&after={after}")).expect(200).json();
        let found = page["lines"].as_array().unwrap_or_else(|| panic!("{page}"));
        if found.is_empty() {
            return lines;
        }
        assert!(found.len() <= 100);
        lines.extend(found.iter().cloned());
        after = page["next_after"].as_u64().unwrap_or_else(|| panic!("{page}"));
    }
}

fn messages(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["message"].as_str().unwrap()).collect()
}

fn id(task: &Value) -> &str {
    task["id"].as_str().unwrap()
}

#[test]
fn lines_have_time_level_and_attempt() {
    let server = shared_server();
    let client = &server.client;
    for level in ["trace", "debug", "info", "warn", "error"] {
        let task = completes(client, &json!({"task_type": guest("log"), "input": {"lines": 2, "level": level}}));
        let lines = log(client, id(&task));
        assert_eq!(messages(&lines), ["0", "1"]);
        for line in lines {
            assert_eq!((&line["level"], &line["attempt"]), (&json!(level), &json!(1)), "{line}");
            assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        }
    }
}

/// In order, whole, and paged.
#[test]
fn many_lines() {
    let server = shared_server();
    let client = &server.client;
    let task = completes(client, &json!({"task_type": guest("log"), "input": {"lines": 1050}}));
    let expected: Vec<String> = (0..1050).map(|number| number.to_string()).collect();
    assert_eq!(messages(&log(client, id(&task))), expected);
    assert_eq!(task["usage"]["host_calls"], 1050);
}

/// Past the limit lines are dropped, and one marker says so.
#[test]
fn the_limit() {
    let server = shared_server();
    let client = &server.client;
    let run = |limit: u64| json!({"task_type": guest("log"), "input": {"lines": 50, "bytes": 1000}, "limits": {"log_bytes": limit}});
    let task = completes(client, &run(5_000));
    let lines = log(client, id(&task));
    let (marker, kept) = lines.split_last().unwrap();
    assert!((2..=5).contains(&kept.len()), "{} lines of 1000 bytes in 5000", kept.len());
    for (number, line) in kept.iter().enumerate() {
        let message = line["message"].as_str().unwrap();
        assert!(message.len() >= 1000 && message.starts_with(&format!("{number}.")), "{message}");
    }
    let marker = marker["message"].as_str().unwrap();
    assert!(marker.contains("dropped") && marker.contains("5000"), "{marker}");
    assert!(task["usage"]["log_bytes"].as_u64().unwrap() >= 2_000, "{task:#}");

    let task = completes(client, &run(100_000));
    assert_eq!(log(client, id(&task)).len(), 50);

    // Lines without text are not free, or there could be any number of them.
    let body =
        json!({"task_type": guest("log"), "input": {"lines": 100_000, "stdio": true}, "limits": {"log_bytes": 10_000}});
    let task = completes(client, &body);
    assert!(log(client, id(&task)).len() < 1000);
}

/// Standard output and standard error are lines of the log.
#[test]
fn standard_output() {
    let server = shared_server();
    let client = &server.client;
    let body = json!({"task_type": guest("log"), "input": {"lines": 3, "level": "debug", "stdio": true}});
    let task = completes(client, &body);
    let lines = log(client, id(&task));
    for (level, text) in [("debug", "through the host"), ("info", "on stdout"), ("warn", "on stderr")] {
        let of_level: Vec<_> = lines.iter().filter(|line| line["level"] == level).cloned().collect();
        assert_eq!(messages(&of_level), ["0", "1", "2"], "{text}");
    }
}

/// What was printed without a line's end is a line, and is in the receipt as every other.
#[test]
fn a_last_line_without_an_end() {
    let server = shared_server();
    let client = &server.client;
    let task = completes(client, &json!({"task_type": guest("log"), "input": {"lines": 0, "rest": "no end"}}));
    assert_eq!(messages(&log(client, id(&task))), ["no end"]);
    assert!(task["usage"]["log_bytes"].as_u64().is_some_and(|bytes| bytes >= 6), "{task:#}");
}

/// A log can be read while its task runs, and is there when the task failed.
#[test]
fn logs_of_running_and_failed_tasks() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": "io", "input": {"sleep_ms": 30_000}}));
    let line = wait_for("a line of a running task", || log(client, &id).first().cloned());
    assert_eq!(client.status(&id), "Running");
    assert_eq!(line["attempt"], 1);
    client.delete(&format!("/task/{id}")).expect(200);
    client.get(&format!("/task/{id}/logs")).problem(404);

    // A Rust guest says on stderr why it panics.
    let task = client.failure(&json!({"task_type": guest("trap")}));
    let lines = log(client, task["id"].as_str().unwrap());
    assert!(messages(&lines).iter().any(|line| line.contains("this task traps")), "{lines:?}");
}

/// A printed line that is too long for one is several, and nothing of it is lost.
#[test]
fn long_printed_lines_are_several() {
    let server = shared_server();
    let text = "0123456789".repeat(3000);
    let task = server.client.run(&json!({"task_type": guest("log"), "input": {"lines": 0, "rest": text}}));
    let id = task["id"].as_str().unwrap();
    let log = server.client.get(&format!("/task/{id}/logs?limit=1000")).expect(200).json();
    let lines: Vec<&str> =
        log["lines"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines.concat(), text);
}
