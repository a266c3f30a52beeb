//! The ways to be a task that know nothing of taskcell: a WASI 0.2 command, and a WASI 0.1 module, which
//! is made one. Input on stdin, output on stdout.

mod refused;
mod stock;

use serde_json::{Value, json};

use crate::support::{Client, guest, server, shared_server};

/// The same program in both ways.
fn programs() -> [&'static str; 2] {
    [guest("program"), guest("program-module")]
}

#[track_caller]
fn fails(client: &Client, task: &Value, kind: &str) -> String {
    let task = client.failure(task);
    assert_eq!(task["error"]["kind"], kind, "{task:#}");
    assert!(task["output"].is_null(), "{task:#}");
    task["error"]["message"].as_str().unwrap().to_owned()
}

fn lines(client: &Client, task: &Value) -> Vec<(Value, Value)> {
    let logs = client.get(&format!("/task/{}/logs", task["id"].as_str().unwrap())).expect(200).json();
    let lines = logs["lines"].as_array().unwrap();
    lines.iter().map(|line| (line["level"].clone(), line["message"].clone())).collect()
}

#[test]
fn what_makes_a_type_a_task_is_told() {
    let server = shared_server();
    for (name, kind, export) in [
        ("echo", "task", "run"),
        (guest("echo-blocking"), "blocking-task", "run"),
        (guest("cat"), "command", "wasi:cli/run@0.2."),
        (guest("cat-module"), "command", "wasi:cli/run@0.2."),
    ] {
        let read = server.client.get(&format!("/task-types/{name}")).expect(200).json();
        assert_eq!((&read["state"], &read["kind"]), (&json!("ready"), &json!(kind)), "{read:#}");
        let exports = read["exports"].as_array().unwrap();
        assert!(exports.iter().any(|name| name.as_str().unwrap().starts_with(export)), "{read:#}");
    }
    let list = server.client.get("/task-types").expect(200).json();
    // But for those that are held, of which none is current.
    let fits = |listed: &Value| listed["kind"].is_string() != (listed["state"] == "held");
    assert!(list["task_types"].as_array().unwrap().iter().all(fits), "{list:#}");
}

/// The input reaches stdin byte for byte, and JSON on stdout is the output byte for byte.
#[test]
fn stdin_to_stdout() {
    let server = shared_server();
    let client = &server.client;
    for cat in [guest("cat"), guest("cat-module")] {
        let big = format!("\"{}\"", "é".repeat(500_000));
        for input in ["null", r#"{"a" : [1.0, 1e999 ],"b":"\u00e9\/"}"#, " 3", "\"\"", &big] {
            let body = format!(r#"{{"task_type":"{cat}","input":{input}}}"#);
            let answer = client.post_task_and_wait(&body, "wait=60").expect(200);
            assert_eq!(answer.raw("status"), "\"Completed\"", "{}", answer.raw("error"));
            assert_eq!(answer.raw("output"), input.trim_start(), "of {cat}");
        }
        // A task that was created without an input gets the same as one of any other kind.
        assert_eq!(client.output(&json!({"task_type": cat})), client.output(&json!({"task_type": "echo"})));
    }
}

#[test]
fn what_is_no_json_is_a_string() {
    let server = shared_server();
    let client = &server.client;
    for program in programs() {
        for (stdout, output) in [
            ("", json!("")),
            ("\n", json!("\n")),
            ("a line\nand \"another\"\n", json!("a line\nand \"another\"\n")),
            ("1\n2\n", json!("1\n2\n")),
            ("{\"a\":", json!("{\"a\":")),
            ("é\u{1f980}\0", json!("é\u{1f980}\0")),
            ("42\n", json!(42)),
            ("{\"a\":1}\r\n\n", json!({"a": 1})),
            ("\"text\"", json!("text")),
        ] {
            let body = json!({"task_type": program, "input": {"stdout": stdout}});
            assert_eq!(client.output(&body), output, "{program}: {stdout:?}");
        }
        let body = json!({"task_type": program, "input": {"stdout": " [1 ,2] \n"}}).to_string();
        let answer = client.post_task_and_wait(&body, "wait=60").expect(200);
        assert_eq!(answer.raw("output"), "[1 ,2]");
        let result = client.get(&format!("/task/{}/result", answer.raw("id").trim_matches('"'))).expect(200);
        assert_eq!(result.text(), " [1 ,2]", "without what is after it");
        let body = json!({"task_type": program, "input": {"stdout": "text", "raw": [10, 255, 10]}});
        let message = fails(client, &body, "invalid_output");
        assert!(message.contains("UTF-8") && message.contains('5'), "{message}");
    }
}

#[test]
fn stderr_is_the_log_and_stdout_is_not() {
    let server = shared_server();
    let client = &server.client;
    for program in programs() {
        let input = json!({"stdout": "out\n", "stderr": "first\nsecond"});
        let task = client.run(&json!({"task_type": program, "input": input}));
        assert_eq!(task["output"], "out\n", "{task:#}");
        let warn = |message: &str| (json!("warn"), json!(message));
        assert_eq!(lines(client, &task), [warn("first"), warn("second")], "{program}");
    }
}

#[test]
fn exit_codes() {
    let server = shared_server();
    let client = &server.client;
    for program in programs() {
        let exit = |code: i32| json!({"task_type": program, "input": {"stdout": "7", "exit": code}});
        assert_eq!(client.output(&exit(0)), 7, "to exit with 0 is to succeed");
        // What compilers call of WASI 0.2 passes on only whether a code is 0; WASI 0.1 has codes.
        let told = if program == guest("program") { 1 } else { 3 };
        assert_eq!(fails(client, &exit(3), "permanent"), format!("it exited with code {told}"));
        assert_eq!(fails(client, &exit(1), "permanent"), "it exited with code 1");
        let body = json!({"task_type": program, "input": {"stdout": "7", "fail": true}});
        let task = client.failure(&body);
        assert_eq!(task["error"]["kind"], "permanent", "{task:#}");
        assert_eq!(task["error"]["message"], "it exited with code 1");
        assert_eq!(lines(client, &task), [(json!("warn"), json!("Error: \"it was told to\""))]);
        let body = json!({"task_type": program, "input": {"stdout": "7", "panic": true}});
        let task = client.failure(&body);
        assert_eq!(task["error"]["kind"], "trap", "{task:#}");
        assert!(lines(client, &task).iter().any(|line| line.1 == "it was told to"), "{task:#}");
    }
    assert_eq!(fails(client, &json!({"task_type": guest("exit-code")}), "permanent"), "it exited with code 42");
    assert_eq!(fails(client, &json!({"task_type": guest("run-err")}), "permanent"), "it exited with code 1");
}

#[test]
fn commands_see_nothing() {
    let server = shared_server();
    for program in programs() {
        let about = server.client.output(&json!({"task_type": program, "input": {"about": true}}));
        assert_eq!(about, json!({"args": ["task"], "variables": 0, "files": false}));
    }
}

#[test]
fn time_passes_for_them() {
    let server = shared_server();
    for program in programs() {
        let task = server.client.run(&json!({"task_type": program, "input": {"sleep_ms": 50, "stdout": "1"}}));
        assert_eq!(task["output"], 1, "{task:#}");
        assert!(task["usage"]["wall_ms"].as_f64().unwrap() >= 50.0, "{task:#}");
    }
}

#[test]
fn limits_hold_for_them() {
    let server = shared_server();
    let client = &server.client;
    for program in programs() {
        let spin = |limits: Value| json!({"task_type": program, "input": {"spin": true}, "limits": limits});
        fails(client, &spin(json!({"fuel": 50_000_000})), "fuel_exhausted");
        fails(client, &spin(json!({"cpu_ms": 50})), "cpu_exceeded");
        fails(client, &spin(json!({"timeout_ms": 200})), "timeout");
        let sleep = json!({"task_type": program, "input": {"sleep_ms": 600_000}, "limits": {"timeout_ms": 50}});
        fails(client, &sleep, "timeout");
        let grow =
            |bytes: u32| json!({"task_type": program, "input": {"grow": 16 << 20}, "limits": {"memory_bytes": bytes}});
        fails(client, &grow(8 << 20), "memory_exceeded");
        assert_eq!(client.output(&grow(32 << 20)), "");
    }
}

#[test]
fn stdout_is_bounded() {
    let server = shared_server();
    let client = &server.client;
    for program in programs() {
        let print = |bytes: u32, piece: u32, limits: Value| json!({"task_type": program, "input": {"bytes": bytes, "piece": piece}, "limits": limits});
        let limit = |bytes: u32| json!({"output_bytes": bytes});
        // As a string it has two quotes more.
        for piece in [1, 1000, 100_000] {
            assert_eq!(client.output(&print(998, piece, limit(1000))).as_str().unwrap().len(), 998);
            let message = fails(client, &print(999, piece, limit(1000)), "output_too_large");
            assert!(message.contains("1000"), "{message}");
            fails(client, &print(1001, piece, limit(1000)), "output_too_large");
        }
        client.output(&print((1 << 20) - 2, 65_536, json!({})));
        fails(client, &print((1 << 20) + 1, 65_536, json!({})), "output_too_large");
        // It is ended where it goes over, and does not write on for ever.
        let body = print(u32::MAX, 65_536, json!({}));
        fails(client, &body, "output_too_large");
        // White space after JSON counts while it is there.
        let json = |spaces: usize| json!({"task_type": program, "input": {"stdout": format!("1{}", " ".repeat(spaces))}, "limits": limit(1000)});
        assert_eq!(client.output(&json(999)), 1);
        fails(client, &json(1000), "output_too_large");
        // What has to be escaped counts as it is stored.
        let zeros =
            |count: usize| json!({"task_type": program, "input": {"raw": vec![0; count]}, "limits": limit(602)});
        client.output(&zeros(100));
        fails(client, &zeros(101), "output_too_large");
    }
}

/// What is on stdin and stdout is held by the host.
#[test]
fn stdin_and_stdout_are_host_memory() {
    let server = server(&["--max-output-bytes", "16777216", "--default-output-bytes", "16777216"]);
    let client = &server.client;
    for program in programs() {
        let print = |bytes: u32, held: u32| json!({"task_type": program, "input": {"bytes": bytes, "piece": 65_536}, "limits": {"host_memory_bytes": held}});
        let message = fails(client, &print(2 << 20, 1 << 20), "memory_exceeded");
        assert!(message.contains("1048576"), "{message}");
        client.output(&print(1 << 20, 8 << 20));
    }
    for cat in [guest("cat"), guest("cat-module")] {
        let read =
            |held: u32| json!({"task_type": cat, "input": "x".repeat(200_000), "limits": {"host_memory_bytes": held}});
        fails(client, &read(200_000), "memory_exceeded");
        assert_eq!(client.output(&read(1_000_000)).as_str().unwrap().len(), 200_000);
    }
}
