//! Running an input of a type without a task.

use serde_json::{Value, json};

use super::{echo, echo_version, patch, upload};
use crate::support::{Answer, Client, guest, server, shared_server, wait_for};

fn test(client: &Client, name: &str, body: &Value) -> Answer {
    let json: &[(&str, &str)] = &[("content-type", "application/json")];
    client.send("POST", &format!("/task-types/{name}/test"), json, Some(body.to_string().as_bytes()))
}

#[test]
fn an_input_is_run_and_nothing_is_stored() {
    let server = server(&[]);
    let client = &server.client;
    let tried = test(client, "echo", &json!({"input": {"a": [1, 2]}})).expect(200).json();
    assert_eq!(
        (&tried["status"], &tried["output"], &tried["error"]),
        (&json!("Completed"), &json!({"a": [1, 2]}), &json!(null))
    );
    assert!(tried["usage"]["fuel"].as_u64().unwrap() > 0 && tried["usage"]["peak_memory_bytes"].as_u64().unwrap() > 0);
    // Its log and its progress come with it.
    let tried = test(client, "io", &json!({"input": {"sleep_ms": 1, "keep": false}})).expect(200).json();
    assert_eq!(tried["progress"], json!({"fraction": 1.0, "note": "done"}));
    assert_eq!(tried["lines"].as_array().unwrap().len(), 2, "{tried:#}");
    // The same limits, and the same outcomes.
    let tried =
        test(client, "primes", &json!({"input": {"up_to": 100_000_000}, "limits": {"cpu_ms": 50}})).expect(200).json();
    assert_eq!((&tried["status"], &tried["error"]["kind"]), (&json!("Failed"), &json!("cpu_exceeded")));
    assert!(tried["usage"]["cpu_ms"].as_f64().unwrap() >= 50.0);
    assert_eq!(client.get("/tasks").expect(200).json()["tasks"], json!([]));
    let events = rusqlite::Connection::open(server.setup().database()).unwrap();
    let count = |table: &str| -> u64 {
        events.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!((count("event"), count("log_lines"), count("component_use")), (0, 0, 0));
}

/// A flood of lines has nobody to wait for.
#[test]
fn a_long_log_comes_whole() {
    let server = shared_server();
    let tried = test(&server.client, guest("log"), &json!({"input": {"lines": 1000, "bytes": 100}})).expect(200).json();
    assert_eq!(tried["status"], "Completed", "{tried:#}");
    assert_eq!(tried["lines"].as_array().unwrap().len(), 1000);
}

#[test]
fn another_version_can_be_tried() {
    let server = server(&[]);
    let client = &server.client;
    let first = upload(client, "mine", &echo());
    let second = upload(client, "mine", &echo_version(2));
    patch(client, "mine", &json!({"version": first})).expect(200);
    for version in [first, second] {
        assert_eq!(test(client, "mine", &json!({"input": 1, "version": version})).expect(200).json()["output"], 1);
    }
    let none = format!("sha256:{}", "0".repeat(64));
    test(client, "mine", &json!({"version": none})).problem(404);
    assert_eq!(test(client, "mine", &json!({"version": "1"})).problem(422)["errors"][0]["pointer"], "#/version");
    test(client, "none", &json!({})).problem(404);
    test(client, "mine", &json!({"inputs": 1})).problem(422);
    let raised = test(client, "mine", &json!({"limits": {"fuel": u64::MAX / 2}})).problem(422);
    assert_eq!(raised["errors"][0]["pointer"], "#/limits/fuel");
}

/// It takes a place as a task does, and gives it back when its client has gone.
#[test]
fn it_takes_a_place_and_is_stopped_with_its_client() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    let body = json!({"input": null}).to_string();
    let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
    let name = guest("sleep-forever");
    let head = format!("POST /task-types/{name}/test HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n");
    std::io::Write::write_all(&mut stream, format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes())
        .unwrap();
    // Seen from outside: whoever asked for the place might be the one who takes it.
    wait_for("the only place to be taken", || {
        let metrics = client.get("/metrics").expect(200).text();
        metrics.lines().any(|line| line == "taskcell_tasks_running 1").then_some(())
    });
    test(client, "echo", &json!({})).problem(503);
    let waits = client.create(&json!({"task_type": "echo", "input": 5}));
    assert_eq!(client.status(&waits), "Pending");
    drop(stream);
    assert_eq!(client.wait_for_end(&waits)["output"], 5);
}
