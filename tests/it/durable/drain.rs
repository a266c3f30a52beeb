//! SIGTERM and SIGINT: an end in good order.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::{Server, guest, server, wait_for};

fn wait_for_log(server: &Server, text: &str) {
    wait_for(format!("{text:?} in the log"), || server.log().contains(text).then_some(()));
}

/// What still runs after the grace is put back, and the attempt does not count.
#[test]
fn running_tasks_are_put_back() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = server(&["--drain-timeout", "300"]);
        let client = &server.client;
        let ids = [guest("sleep-forever"), guest("spin"), guest("spin-blocking")].map(|task_type| {
            let id = client.create(&json!({"task_type": task_type}));
            client.wait_for_status(&id, "Running");
            id
        });
        let start = Instant::now();
        server.signal(signal);
        let status = server.wait_for_exit();
        assert_eq!(status.code(), Some(0), "{}", server.log());
        assert!(start.elapsed() >= Duration::from_millis(300), "they had their grace");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let setup = server.setup().clone();

        // One place, held by the first: the others show how they were left.
        let server = setup.with_flags(&["--max-running", "1"]).start();
        let client = &server.client;
        client.wait_for_status(&ids[0], "Running");
        assert_eq!(client.task(&ids[0])["attempt"], 1, "the drained attempt was not counted");
        for id in &ids[1..] {
            let task = client.task(id);
            assert_eq!((&task["status"], &task["attempt"]), (&json!("Pending"), &json!(0)), "{task:#}");
            assert_eq!((&task["started_at"], &task["error"]), (&Value::Null, &Value::Null), "{task:#}");
        }
    }
}

/// What ends within the grace has ended, and its result is kept.
#[test]
fn running_tasks_may_end() {
    let server = server(&["--drain-timeout", "60000"]);
    let id = server.client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 1_500}}));
    server.client.wait_for_status(&id, "Running");
    let start = Instant::now();
    let server = server.stop().start();
    assert!(start.elapsed() < Duration::from_secs(30), "nothing was waited for but the task: {:?}", start.elapsed());
    let task = server.client.task(&id);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("Completed"), &json!(1)), "{task:#}");
}

/// Built-in types are being compiled at that time. Nothing has to be put away yet.
#[test]
fn a_server_that_starts_ends_at_a_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let setup = Setup::uncompiled(&[]);
        let mut child = setup.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = String::new();
        while !lines.contains("sandbox ready") {
            assert!(log.read_line(&mut lines).unwrap() > 0, "{lines}");
        }
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "it did not serve, and has ended well");
        setup.start().client.output(&json!({"task_type": "echo", "input": 1}));
    }
}

/// While it drains, the server answers, takes no work, and says so; a second signal ends it at once.
#[test]
fn no_work_is_taken_meanwhile() {
    let mut server = server(&["--drain-timeout", "600000"]);
    let client = &server.client;
    let running = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&running, "Running");
    client.get("/readyz").expect(200);
    server.signal(Signal::TERM);
    wait_for_log(&server, "stopping");
    let refused = wait_for("creates to be refused", || {
        let answer = client.post_task(r#"{"task_type":"echo"}"#);
        (answer.status != 202).then_some(answer)
    });
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    refused.problem(503);
    client.get("/readyz").problem(503);
    client.get("/healthz").expect(200);
    assert_eq!(client.task(&running)["status"], "Running");

    let start = Instant::now();
    server.signal(Signal::TERM);
    let status = server.wait_for_exit();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(0), "{}", server.log());
    let server = server.setup().clone().start();
    server.client.wait_for_status(&running, "Running");
}

/// A server with nothing to do stops at once, and clients that wait do not hold it up for long.
#[test]
fn an_idle_server_stops_at_once() {
    let server = server(&["--drain-timeout", "600000"]);
    let client = server.client.clone();
    let id = client.create(&json!({"task_type": "echo"}));
    client.wait_for_end(&id);
    let start = Instant::now();
    let setup = server.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let log = std::fs::metadata(setup.data_dir().join("taskcell.db-wal")).map_or(0, |log| log.len());
    assert_eq!(log, 0, "the write-ahead log was folded into the database");
}

/// Nor do those who wait for a task that is not started any more: they are told how it is.
#[test]
fn waits_end_with_the_server() {
    let server = server(&["--drain-timeout", "600000"]);
    let id = server.client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    let path = format!("/task/{id}");
    let tag = server.client.get(&path).expect(200).header("etag").unwrap().to_owned();
    let start = Instant::now();
    let client = server.client.clone();
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=50")]));
        let ended = scope.spawn(|| client.get_with(&path, &[("prefer", "wait=50")]));
        // Only that they have begun is of interest, and nothing tells it.
        std::thread::sleep(Duration::from_millis(500));
        server.stop();
        assert_eq!(changed.join().unwrap().status, 304);
        assert_eq!(ended.join().unwrap().expect(200).json()["status"], "Pending");
    });
    assert!(start.elapsed() < Duration::from_secs(25), "{:?}", start.elapsed());
}

/// The log has nowhere to go: the server serves, stores, and stops in good order all the same.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    let setup = crate::support::server::Setup::new(&["--max-connections", "5"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut server = setup.command().stdout(Stdio::piped()).stderr(full).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("taskcell listening on ").unwrap_or_else(|| panic!("{line:?}"));
    let client = crate::support::Client::new(address);
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 1})), 1);
    rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::TERM).unwrap();
    let status = crate::support::wait_for("the server's end", || server.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A test of a type has its grace as tasks have it, and its client an answer; what it used is in the ledger.
#[test]
fn a_test_of_a_type_is_answered() {
    for (grace, ms, status) in [("300", 60_000, 503), ("60000", 5_000, 200)] {
        let mut server = server(&["--drain-timeout", grace]);
        let test = format!("/task-types/{}/test", guest("sleep"));
        let body = json!({"input": {"ms": ms}}).to_string();
        let json: &[(&str, &str)] = &[("content-type", "application/json")];
        let (start, answer) = std::thread::scope(|scope| {
            let client = &server.client;
            let answer = scope.spawn(|| client.send("POST", &test, json, Some(body.as_bytes())));
            wait_for("it to run", || {
                let metrics = client.get("/metrics").expect(200).text();
                metrics.lines().any(|line| line == "taskcell_tasks_running 1").then_some(())
            });
            server.signal(Signal::TERM);
            (Instant::now(), answer.join().unwrap())
        });
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 503 {
            assert_eq!(answer.problem(503)["type"], "/problems/draining");
        }
        assert_eq!(server.wait_for_exit().code(), Some(0), "{}", server.log());
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        let server = server.setup().clone().start();
        let days = server.client.get("/tenant/usage").expect(200).json();
        assert_eq!(days["days"][0]["tests"]["attempts"], 1, "{days:#}");
    }
}
