//! The way of a task as a client sees it.

mod cancel;
mod list;
mod races;
mod wait;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{guest, server, shared_server};

/// A time as the API writes it: RFC 3339, UTC, to the millisecond.
fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| {
        text.len() == 24 && text.ends_with('Z') && text.as_bytes()[10] == b'T' && text.as_bytes()[19] == b'.'
    })
}

#[test]
fn the_six_calls() {
    let server = shared_server();
    let client = &server.client;

    let created = client.post_task(r#"{"task_type":"io","input":{"sleep_ms":100}}"#).expect(202);
    let task = created.json();
    let id = task["id"].as_str().unwrap().to_owned();
    assert_eq!(created.header("location"), Some(format!("/task/{id}").as_str()));
    assert_eq!(created.header("content-type"), Some("application/json"));
    assert_eq!((id.len(), &id[14..15]), (36, "7"), "a UUIDv7");
    assert_eq!(task["task_type"], "io");
    assert!(task["component"].as_str().unwrap().starts_with("sha256:"), "{task}");
    assert!(is_time(&task["created_at"]), "{task}");
    assert!(matches!(task["status"].as_str(), Some("Pending" | "Running")), "{task}");
    assert_eq!((&task["output"], &task["error"], &task["finished_at"]), (&Value::Null, &Value::Null, &Value::Null));

    let status = client.get(&format!("/task/{id}/status")).expect(200).json();
    assert_eq!((&status["id"], &status["task_type"]), (&json!(id), &json!("io")));
    for member in ["status", "created_at", "started_at", "finished_at", "duration_ms", "attempt", "progress"] {
        assert!(status.get(member).is_some(), "no {member} in {status}");
    }
    assert!(status.get("input").is_none() && status.get("output").is_none(), "{status}");

    let early = client.get(&format!("/task/{id}/result"));
    if early.status == 202 {
        assert!(early.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
        assert_eq!(early.json()["id"], json!(id));
    }

    let task = client.wait_for_end(&id);
    assert_eq!(task["status"], "Completed", "{task:#}");
    assert!(is_time(&task["started_at"]) && is_time(&task["finished_at"]), "{task}");
    assert_eq!((&task["attempt"], &task["priority"]), (&json!(1), &json!(0)));
    assert_eq!(task["input"], json!({"sleep_ms": 100}));
    assert!(task["duration_ms"].as_u64().is_some_and(|ms| ms >= 200), "{task}");
    assert_eq!((&task["usage"], task["error"].is_null()), (&task["usage_total"], true), "{task}");

    let result = client.get(&format!("/task/{id}/result")).expect(200);
    assert_eq!(result.header("content-type"), Some("application/json"));
    assert_eq!(result.json(), task["output"]);
    let status = client.get(&format!("/task/{id}/status")).expect(200).json();
    assert_eq!((&status["status"], &status["attempt"]), (&json!("Completed"), &json!(1)));
    assert_eq!(status["finished_at"], task["finished_at"]);

    let listed = client.get("/tasks?limit=1000").expect(200).json();
    let listed = listed["tasks"].as_array().unwrap().iter().find(|listed| listed["id"] == json!(id)).unwrap().clone();
    assert_eq!(listed["status"], "Completed");
    assert!(listed.get("input").is_none() && listed.get("output").is_none(), "a list leaves out what may be large");

    let deleted = client.delete(&format!("/task/{id}")).expect(200).json();
    assert_eq!(deleted, json!({"id": id, "deleted": true}));
    gone(client, &id);
}

/// After its removal nothing of a task is left.
fn gone(client: &crate::support::Client, id: &str) {
    for path in ["", "/status", "/result", "/logs"] {
        client.get(&format!("/task/{id}{path}")).problem(404);
    }
    client.post(&format!("/task/{id}/cancel")).problem(404);
    client.delete(&format!("/task/{id}")).problem(404);
}

/// `{}`, `null` and nothing all mean the defaults, and take about a second.
#[test]
fn io_does_something_sensible_by_default() {
    let server = shared_server();
    for body in [r#"{"task_type":"io"}"#, r#"{"task_type":"io","input":null}"#, r#"{"task_type":"io","input":{}}"#] {
        for body in [body.to_owned(), body.replace("\"io\"", "\"io-blocking\"")] {
            let start = Instant::now();
            let task = server.client.post_task_and_wait(&body, "wait=60").expect(200).json();
            let took = start.elapsed();
            assert_eq!(task["status"], "Completed", "{task:#}");
            assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(10), "{body}: {took:?}");
            assert!(task["output"]["total_ms"].as_f64().is_some_and(|ms| ms >= 900.0), "{task:#}");
            assert_eq!(task["output"]["bytes"], 4096);
        }
    }
}

#[test]
fn the_other_built_in_tasks_work() {
    let server = shared_server();
    let primes = server.client.output(&json!({"task_type": "primes", "input": {"up_to": 1000}}));
    assert_eq!(primes, json!({"up_to": 1000, "count": 168, "largest": 997}));
    let words = json!({"task_type": "word-count", "input": {"text": "one two\nTwo.", "top": 1}});
    let counted = server.client.output(&words);
    assert_eq!((&counted["words"], &counted["lines"]), (&json!(3), &json!(2)));
    assert_eq!(counted["top"], json!([{"word": "two", "count": 2}]));
}

/// The input reaches the task, and the output the client, byte for byte.
#[test]
fn echo_byte_for_byte() {
    let server = shared_server();
    let large = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let inputs = [
        "null",
        "{}",
        " [1 ,\t2,\n  3 ] ".trim(),
        "{ \"a\" :  1,\"a\":2 , \"\":[ ] }",
        "123456789012345678901234567890.000",
        "1E400",
        "-0.0",
        r#""é \u00e9 \ud83d\ude00 \/ \u0000 ü😀""#,
        r#"{"b":1,"a":{"d":[[[[]]]],"c":"\"\\"}}"#,
        &large,
    ];
    for echo in ["echo", guest("echo-blocking")] {
        for input in inputs {
            let shown: String = input.chars().take(80).collect();
            let body = format!("{{ \"input\" : {input} , \"task_type\":\"{echo}\"}}");
            let answer = server.client.post_task_and_wait(&body, "wait=60").expect(200);
            // Not read as JSON values, which not all of them survive.
            assert_eq!(answer.raw("status"), "\"Completed\"", "{echo}: {shown}: {}", answer.raw("error"));
            assert!(answer.raw("output") == input, "{echo}: {shown}: the task's output");
            let id = answer.raw("id");
            let id = id.trim_matches('"');
            let read = server.client.get(&format!("/task/{id}")).expect(200);
            assert!(read.raw("input") == input, "{echo}: {shown}: the task's input");
            assert!(read.raw("output") == input, "{echo}: {shown}: the task's output, read again");
            let result = server.client.get(&format!("/task/{id}/result")).expect(200);
            assert!(result.body == input.as_bytes(), "{echo}: {shown}: the result");
        }
    }
}

/// What a task learns of its attempt is what the API says of it.
#[test]
fn a_task_knows_its_attempt() {
    let server = shared_server();
    let body = json!({"task_type": guest("context"), "input": {"ms": 100}, "limits": {"timeout_ms": 20_000}});
    let task = server.client.run(&body);
    let output = &task["output"];
    assert_eq!((&output["id"], &output["attempt"]), (&task["id"], &json!(1)), "{task:#}");
    let (before, after) =
        (output["remaining_before_ms"].as_u64().unwrap(), output["remaining_after_ms"].as_u64().unwrap());
    assert!(before <= 20_000 && after <= before - 100, "{output}");
    assert!(task["usage"]["host_calls"].as_u64().is_some_and(|calls| calls >= 5), "{task:#}");
}

#[test]
fn progress_is_seen_while_it_runs_and_clamped() {
    let server = shared_server();
    let client = &server.client;
    let run = |fractions: Value, ms: u32| json!({"task_type": guest("progress"), "input": {"fractions": fractions, "ms": ms}});
    let id = client.create(&run(json!([0.25, 0.5]), 60_000));
    crate::support::wait_for("the progress of a running task", || {
        let status = client.get(&format!("/task/{id}/status")).expect(200).json();
        (status["status"] == "Running" && status["progress"] == json!({"fraction": 0.5, "note": "1"})).then_some(())
    });
    client.delete(&format!("/task/{id}")).expect(200);
    for (told, kept) in [(json!([-3.0]), 0.0), (json!([7.5]), 1.0), (json!([0.5, null]), 0.0)] {
        let task = client.run(&run(told.clone(), 0));
        assert_eq!(task["progress"]["fraction"].as_f64(), Some(kept), "{told}: {task:#}");
    }
}

/// With room for one at a time, the order of what waits is that of its priority, then of its age.
#[test]
fn higher_priority_goes_first() {
    let server = server(&["--max-working", "1"]);
    let client = &server.client;
    let holder = client.create(&json!({"task_type": guest("spin")}));
    client.wait_for_status(&holder, "Running");
    let priorities = [0, -100, 5, 100, 5, 0, -1];
    // Long enough that no two start in the same millisecond.
    let ids = priorities.map(|priority| {
        client.create(&json!({"task_type": guest("compute"), "input": {"work": "fib", "n": 27}, "priority": priority}))
    });
    for id in &ids {
        assert_eq!(client.status(id), "Pending", "the one place is taken");
    }
    client.post(&format!("/task/{holder}/cancel")).expect(202);
    let mut started: Vec<(String, usize)> = ids
        .iter()
        .enumerate()
        .map(|(place, id)| {
            let task = client.wait_for_end(id);
            assert_eq!(task["status"], "Completed", "{task:#}");
            assert_eq!(task["priority"], priorities[place]);
            assert!(task["usage"]["queue_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{task:#}");
            (task["started_at"].as_str().unwrap().to_owned(), place)
        })
        .collect();
    started.sort();
    let order: Vec<usize> = started.into_iter().map(|(_, place)| place).collect();
    assert_eq!(order, [3, 2, 4, 0, 5, 6, 1]);
}

/// A task keeps a weak entity tag as long as nothing changes.
#[test]
fn etags_of_tasks() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 60_000}}));
    client.wait_for_status(&id, "Running");
    let path = format!("/task/{id}");
    let running = client.get(&path).expect(200).header("etag").unwrap().to_owned();
    assert!(running.starts_with("W/\""), "{running}");
    let unchanged = client.get_with(&path, &[("if-none-match", &running)]).expect(304);
    assert!(unchanged.body.is_empty());
    assert_eq!(unchanged.header("etag"), Some(running.as_str()));
    client.post(&format!("{path}/cancel")).expect(202);
    let ended = client.get_with(&path, &[("if-none-match", &running)]).expect(200);
    let ended = ended.header("etag").unwrap().to_owned();
    assert_ne!(running, ended);
    for tags in [ended.clone(), format!("\"other\", {ended}"), "*".to_owned()] {
        client.get_with(&path, &[("if-none-match", &tags)]).expect(304);
    }
    client.get_with(&path, &[("if-none-match", "\"other\"")]).expect(200);
}

/// The answer to "tell me when it changes" comes when it does.
#[test]
fn a_conditional_read_waits_for_the_change() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 700}}));
    client.wait_for_status(&id, "Running");
    let path = format!("/task/{id}");
    let tag = client.get(&path).expect(200).header("etag").unwrap().to_owned();
    let start = Instant::now();
    let changed = client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=50")]).expect(200);
    assert_eq!(changed.json()["status"], "Completed");
    assert!(start.elapsed() < Duration::from_secs(30));

    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 60_000}}));
    client.wait_for_status(&id, "Running");
    let path = format!("/task/{id}");
    let tag = client.get(&path).expect(200).header("etag").unwrap().to_owned();
    let start = Instant::now();
    client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=1")]).expect(304);
    assert!(start.elapsed() >= Duration::from_millis(900));
    client.delete(&path).expect(200);

    // One that has ended may be attempted afresh, or removed.
    let id = client.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned();
    let path = format!("/task/{id}");
    let tag = client.get(&path).expect(200).header("etag").unwrap().to_owned();
    std::thread::scope(|scope| {
        let held = scope.spawn(|| client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=50")]));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!held.is_finished(), "answered, though nothing changed");
        client.post(&format!("{path}/retry")).expect(202);
        held.join().unwrap().expect(200);
    });
}
