//! `POST /tasks`: many tasks at once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{Shutdown, TcpStream};

use serde_json::{Value, json};

use crate::support::{Answer, Client, Server, guest, server, shared_server, wait_for};

const JSON: (&str, &str) = ("content-type", "application/json");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");

#[track_caller]
fn post(client: &Client, body: &str) -> Answer {
    client.send("POST", "/tasks", &[JSON], Some(body.as_bytes()))
}

#[track_caller]
fn results(answer: Answer) -> Vec<Value> {
    answer.expect(200).json()["results"].as_array().unwrap().clone()
}

fn array(items: impl IntoIterator<Item = Value>) -> String {
    Value::from_iter(items).to_string()
}

fn echo(input: impl Into<Value>) -> Value {
    json!({"task_type": "echo", "input": input.into()})
}

fn id(result: &Value) -> String {
    result["task"]["id"].as_str().unwrap_or_else(|| panic!("no task in {result}")).to_owned()
}

#[test]
fn each_task_is_created_or_refused_by_itself_and_told_in_order() {
    let server = shared_server();
    let client = &server.client;
    let bad = [
        (json!({"task_type": "nothing"}), 422, "#/task_type"),
        (json!({"task_type": "echo", "priority": 101}), 422, "#/priority"),
        (json!({"task_type": "echo", "labels": {"a:b": ""}}), 422, "#/labels"),
        (json!({"task_type": "echo", "retry": {"max_attempts": 0}}), 422, "#/retry/max_attempts"),
        (json!({"task_type": "echo", "limits": {"fuel": 0}}), 422, "#/limits/fuel"),
        (json!({"task_type": "echo", "colour": "red"}), 422, "#/colour"),
        (json!({}), 422, "#/task_type"),
        (json!(["echo"]), 422, "#"),
        (json!(5), 422, "#"),
    ];
    let mut items = Vec::new();
    for (n, (body, ..)) in bad.iter().enumerate() {
        items.extend([echo(n), body.clone()]);
    }
    items.push(echo("last"));
    let lines = items.iter().fold(String::new(), |lines, item| lines + &item.to_string() + "\n");
    for answer in [post(client, &array(items.clone())), client.send("POST", "/tasks", &[LINES], Some(lines.as_bytes()))]
    {
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let results = results(answer);
        assert_eq!(results.len(), 2 * bad.len() + 1);
        for (n, (body, status, pointer)) in bad.iter().enumerate() {
            let (good, refused) = (&results[2 * n], &results[2 * n + 1]);
            assert_eq!((&good["status"], &good["task"]["input"]), (&json!(202), &json!(n)), "{good}");
            assert_eq!(client.wait_for_end(&id(good))["output"], n);
            assert_eq!((&refused["status"], &refused["problem"]["status"]), (&json!(status), &json!(status)), "{body}");
            assert_eq!(refused["problem"]["errors"][0]["pointer"], *pointer, "{body}: {refused}");
            assert!(refused["problem"]["type"].as_str().unwrap().starts_with("/problems/"), "{refused}");
            assert!(refused.get("task").is_none() && good.get("problem").is_none(), "{good} {refused}");
        }
        assert_eq!(client.wait_for_end(&id(&results[2 * bad.len()]))["output"], "last");
    }
}

/// What is no JSON between the commas is refused alone; what is no array ends the request.
#[test]
fn what_is_no_json_is_refused() {
    let server = shared_server();
    let client = &server.client;
    for body in ["", "{}", "null", "x", "[,]", "[{]"] {
        let answer = post(client, body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        answer.problem(400);
    }
    assert_eq!(post(client, " [ ] ").expect(200).json(), json!({"results": []}));
    assert_eq!(client.send("POST", "/tasks", &[LINES], Some(b"\n \n")).expect(200).json(), json!({"results": []}));
    client.send("POST", "/tasks", &[("content-type", "text/plain")], Some(b"[]")).problem(415);
    client.send("POST", "/tasks", &[], Some(b"[]")).problem(415);
    let mixed = format!("[{}, nonsense, {}]", echo(1), echo(2));
    let results = results(post(client, &mixed));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 400, 202]);
}

#[test]
fn inputs_arrive_byte_for_byte() {
    let server = shared_server();
    let inputs = [r#"{"a" : 1.00,"b":"é\u00e9, ]}[\"" ,"c":[ ]}"#, "12345678901234567890123.0", "\"\\\\\""];
    let items: Vec<_> = inputs.iter().map(|input| format!(r#" {{"task_type":"echo","input": {input} }} "#)).collect();
    let results = results(post(&server.client, &format!("[{}]", items.join(","))));
    for (input, result) in inputs.iter().zip(&results) {
        let id = id(result);
        server.client.wait_for_end(&id);
        assert_eq!(server.client.get(&format!("/task/{id}/result")).expect(200).text(), *input);
    }
}

/// 10,000 are taken; what comes after them is told to be too many.
#[test]
fn there_is_a_most() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    let holder = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&holder, "Running");
    let body = |count: usize| {
        let mut body = String::from("[");
        for n in 0..count {
            write!(body, r#"{}{{"task_type":"echo","input":{n}}}"#, if n > 0 { "," } else { "" }).unwrap();
        }
        body + "]"
    };
    let answer = results(post(client, &body(10_000)));
    assert_eq!(answer.len(), 10_000);
    assert!(answer.iter().all(|result| result["status"] == 202));
    assert_eq!(answer.iter().map(id).collect::<BTreeSet<_>>().len(), 10_000);
    let answer = results(post(client, &body(10_001)));
    assert_eq!(answer.len(), 10_001);
    assert_eq!((&answer[9_999]["status"], &answer[10_000]["status"]), (&json!(202), &json!(413)), "{}", answer[10_000]);
    // Those of a request are queued in its order.
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    assert_eq!(client.wait_for_end(&id(&answer[0]))["output"], 0);
}

#[test]
fn a_task_that_is_too_large_ends_the_request_there() {
    let server = shared_server();
    let client = &server.client;
    let large = "x".repeat(30 << 20);
    let results = results(post(client, &array([echo(1), echo(large), echo(3)])));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert!(statuses == [202, 413] || statuses == [202, 413, 202], "{statuses:?}");
    assert_eq!(client.wait_for_end(&id(&results[0]))["output"], 1);
}

/// Sends a request whose body ends before its end, and returns what comes back.
fn send_half(server: &Server, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let start = format!("POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{head}\r\n\r\n{body}");
    stream.write_all(start.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn labeled(label: &str, n: usize) -> Value {
    json!({"task_type": "echo", "input": n, "labels": {"of": label}})
}

fn listed(client: &Client, label: &str) -> Vec<String> {
    let tasks = client.get(&format!("/tasks?label=of:{label}&limit=1000")).expect(200).json();
    tasks["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

/// A client that goes in the middle: what had arrived whole is there, and nothing else.
#[test]
fn of_a_body_that_is_cut_off_what_is_complete_is_created() {
    let server = shared_server();
    let client = &server.client;
    for (label, head, wrap) in
        [("length", "content-length: 100000", false), ("chunked", "transfer-encoding: chunked", true)]
    {
        let mut body = array((0..3).map(|n| labeled(label, n)));
        body.pop();
        body.push_str(r#",{"task_type":"echo","labels":{"of":""#);
        body.push_str(label);
        let body = if wrap { format!("{:x}\r\n{body}\r\n", body.len()) } else { body };
        send_half(&server, head, &body);
        wait_for("what was complete", || (listed(client, label).len() == 3).then_some(()));
    }
    // An array that is cut off though its request is not is told so at the end.
    let body = array((0..2).map(|n| labeled("short", n)));
    let results = results(post(client, &body[..body.len() - 1]));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert!(statuses == [202, 400] || statuses == [202, 202, 400], "{statuses:?}");
}

/// One whose rest does not come is told so, and what became of the tasks before.
#[test]
fn of_a_body_that_stalls_what_is_complete_is_told() {
    let server = server(&["--client-timeout", "1000"]);
    let body = array((0..300).map(|n| labeled("stalled", n)));
    let mut stream = TcpStream::connect(&server.address).unwrap();
    let head = format!("host: x\r\ncontent-type: application/json\r\ncontent-length: {}", body.len() + 100);
    write!(stream, "POST /tasks HTTP/1.1\r\n{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, told) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let told: Value = serde_json::from_str(told).unwrap();
    let results = told["results"].as_array().unwrap();
    let (last, before) = results.split_last().unwrap();
    assert_eq!((before.len(), before.iter().all(|result| result["status"] == 202)), (300, true));
    assert_eq!((&last["status"], &last["problem"]["type"]), (&json!(408), &json!("/problems/request-timeout")));
    assert!(!last["problem"]["detail"].as_str().unwrap().contains("Nothing was done"), "{last:#}");
    assert_eq!(listed(&server.client, "stalled").len(), 300);
}

#[test]
fn a_repeat_with_the_same_key_creates_only_what_is_missing() {
    let server = server(&[]);
    let body = array((0..600).map(|n| labeled("keyed", n)));
    let headers = [JSON, ("idempotency-key", "batch")];
    // The first time the body breaks off behind its 500th task.
    let half = array((0..500).map(|n| labeled("keyed", n)));
    let head = format!("idempotency-key: batch\r\ncontent-length: {}", body.len());
    send_half(&server, &head, &(half[..half.len() - 1].to_owned() + ","));
    let before: BTreeSet<_> = wait_for("the first 500", || {
        let listed = listed(&server.client, "keyed");
        (listed.len() == 500).then(|| listed.into_iter().collect())
    });
    let server = server.crash().start();
    let client = &server.client;
    let first = results(client.send("POST", "/tasks", &headers, Some(body.as_bytes())));
    assert_eq!(first.len(), 600);
    let replayed = |results: &[Value]| results.iter().filter(|result| result["replayed"] == true).count();
    assert_eq!(replayed(&first), 500);
    let ids: Vec<_> = first.iter().map(id).collect();
    assert_eq!(ids[..500].iter().cloned().collect::<BTreeSet<_>>(), before);
    for (n, result) in first.iter().enumerate() {
        assert_eq!(result["task"]["input"], n, "each is told at its place");
    }
    let server = server.crash().start();
    let client = &server.client;
    let again = results(client.send("POST", "/tasks", &headers, Some(body.as_bytes())));
    assert_eq!((again.iter().map(id).collect::<Vec<_>>(), replayed(&again)), (ids.clone(), 600));
    assert_eq!(listed(client, "keyed").len(), 600);

    // Another task at a place that was used, and one that is gone.
    client.wait_for_end(&ids[1]);
    client.delete(&format!("/task/{}", ids[1])).expect(200);
    let other = array([echo("other"), labeled("keyed", 1), labeled("keyed", 2)]);
    let results = results(client.send("POST", "/tasks", &headers, Some(other.as_bytes())));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert!(statuses[..2] == [422, 410] && matches!(statuses[2], 200 | 202), "{statuses:?}");
    assert_eq!(id(&results[2]), ids[2]);
}

/// What a repeat finds that has ended is told without its output, and with the input that was sent.
#[test]
fn a_repeat_tells_no_outputs() {
    let server = shared_server();
    let client = &server.client;
    let body = r#"[{"task_type":"echo","input":{"n" : 1.0}},{"task_type":"echo"},{"task_type":"nothing"}]"#;
    let headers = [JSON, ("idempotency-key", "outputs")];
    let first = results(client.send("POST", "/tasks", &headers, Some(body.as_bytes())));
    let ended: Vec<Value> = first[..2].iter().map(|result| client.wait_for_end(&id(result))).collect();
    let again = client.send("POST", "/tasks", &headers, Some(body.as_bytes())).expect(200);
    assert!(again.text().contains(r#""input":{"n" : 1.0},"output":null}"#), "{}", again.text());
    let again = results(again);
    for (n, whole) in ended.iter().enumerate() {
        assert_eq!((&again[n]["status"], &again[n]["replayed"]), (&json!(200), &json!(true)));
        assert_eq!(whole["status"], "Completed");
        let mut told = whole.clone();
        told["output"] = Value::Null;
        assert_eq!(again[n]["task"], told, "the same but for the output");
    }
    assert_eq!((&ended[0]["output"], &again[2]["status"]), (&json!({"n": 1.0}), &json!(422)));
}

/// Within one request, too, there is one task with a unique key.
#[test]
fn unique_keys_hold_within_a_request() {
    let server = shared_server();
    let item = json!({"task_type": guest("sleep-forever"), "unique_key": "many"});
    let results = results(post(&server.client, &array([item.clone(), item, echo(1)])));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 409, 202]);
    assert_eq!(results[1]["location"], format!("/task/{}", id(&results[0])), "as in the header of a POST /task");
    server.client.delete(&format!("/task/{}", id(&results[0]))).expect(200);
}

/// A task with an input above its own limit is refused alone.
#[test]
fn an_input_above_its_limit_is_refused_alone() {
    let server = shared_server();
    let item = |input: &str| json!({"task_type": "echo", "input": input, "limits": {"input_bytes": 10}});
    let results = results(post(&server.client, &array([item("x"), item("more than ten"), item("y")])));
    let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 413, 202]);
}

/// A body above 64 MiB is refused before it is sent.
#[test]
fn a_body_has_a_most() {
    let server = shared_server();
    let answer = |bytes: u64, start: &str| send_half(&server, &format!("content-length: {bytes}"), start);
    let refused = answer((64 << 20) + 1, "");
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
    let taken = answer(64 << 20, "x");
    assert!(!taken.starts_with("HTTP/1.1 413 "), "{taken}");
}

/// The same request from many at once creates each task once.
#[test]
fn the_same_request_from_many_at_once_creates_each_task_once() {
    let server = shared_server();
    let body = array((0..300).map(|n| labeled("at-once", n)));
    let headers = [JSON, ("idempotency-key", "many-at-once")];
    let send = || results(server.client.send("POST", "/tasks", &headers, Some(body.as_bytes())));
    let all: Vec<Vec<String>> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| send().iter().map(id).collect())).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(all.iter().all(|ids| *ids == all[0]), "the same tasks in the same order");
    let listed: BTreeSet<_> = listed(&server.client, "at-once").into_iter().collect();
    assert_eq!(listed, all[0].iter().cloned().collect());
}
