//! What outlives the server's process, however that ends.

mod compiled;
mod database;
mod drain;

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::{Client, guest, server, wait_for};

fn setup(flags: &[&str]) -> Setup {
    Setup::new(flags)
}

/// A task's record and result, byte for byte, without what goes on with time.
fn record(client: &Client, id: &str) -> (String, u16, Vec<u8>) {
    let task = client.get(&format!("/task/{id}")).expect(200).text();
    let result = client.get(&format!("/task/{id}/result"));
    (task, result.status, result.body)
}

#[test]
fn what_was_said_survives_a_crash_byte_for_byte() {
    let server = server(&[]);
    let client = &server.client;
    let bodies = [
        r#"{"task_type":"echo","input": {"a" : 1.00,"b":"é\u00e9" ,"c":[ ]} }"#.to_owned(),
        format!(r#"{{"task_type":"echo","input":"{}"}}"#, "x".repeat(500_000)),
        r#"{"task_type":"io","input":{"sleep_ms":1}, "priority": -7}"#.to_owned(),
        json!({"task_type": guest("trap")}).to_string(),
        json!({"task_type": guest("fail"), "input": {"transient": "later"}, "limits": {"fuel": 1_000_000_000}})
            .to_string(),
    ];
    let ids = bodies.map(|body| {
        let task = client.post_task_and_wait(&body, "wait=60").expect(200).json();
        task["id"].as_str().unwrap().to_owned()
    });
    let etag =
        client.send("PUT", "/objects/kept/ü", &[], Some(b"\x00\xff")).expect(201).header("etag").unwrap().to_owned();
    let logged =
        client.run(&json!({"task_type": guest("log"), "input": {"lines": 100}}))["id"].as_str().unwrap().to_owned();
    let log = |client: &Client| client.get(&format!("/task/{logged}/logs?limit=1000")).expect(200).text();
    let (records, log_before) = (ids.each_ref().map(|id| record(client, id)), log(client));
    let list = client.get("/tasks").expect(200).text();

    let mut setup = server.crash();
    for _ in 0..2 {
        let server = setup.start();
        let client = &server.client;
        assert_eq!(ids.each_ref().map(|id| record(client, id)), records);
        assert_eq!(log(client), log_before);
        assert_eq!(client.get("/tasks").expect(200).text(), list);
        let object = client.get("/objects/kept/%C3%BC").expect(200);
        assert_eq!((object.body.as_slice(), object.header("etag")), (b"\x00\xff".as_slice(), Some(etag.as_str())));
        setup = server.crash();
    }
}

/// What was deleted or canceled stays so.
#[test]
fn deletes_and_cancels_survive_a_crash() {
    let server = server(&[]);
    let client = &server.client;
    let forever = json!({"task_type": guest("sleep-forever")});
    let (canceled, deleted) = (client.create(&forever), client.create(&forever));
    client.wait_for_status(&canceled, "Running");
    client.wait_for_status(&deleted, "Running");
    client.send("PUT", "/objects/gone", &[], Some(b"x")).expect(201);
    client.post(&format!("/task/{canceled}/cancel")).expect(202);
    client.delete(&format!("/task/{deleted}")).expect(200);
    client.delete("/objects/gone").expect(200);
    let server = server.crash().start();
    assert_eq!(server.client.task(&canceled)["error"]["kind"], "canceled");
    server.client.get(&format!("/task/{deleted}")).problem(404);
    server.client.get("/objects/gone").problem(404);
}

/// What waited, and what ran, is run after a crash.
#[test]
fn tasks_that_a_crash_cut_off_are_attempted_again() {
    let server = server(&["--max-running", "2"]);
    let client = &server.client;
    let forever = client.create(&json!({"task_type": guest("sleep-forever")}));
    let sleeping = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 1_500}}));
    client.wait_for_status(&forever, "Running");
    client.wait_for_status(&sleeping, "Running");
    let pending: Vec<String> = (0..5).map(|n| client.create(&json!({"task_type": "echo", "input": n}))).collect();

    let server = server.crash().start();
    let client = &server.client;
    wait_for("the log to say so", || server.log().contains("went down").then_some(()));
    let slept = client.wait_for_end(&sleeping);
    assert_eq!((&slept["status"], &slept["attempt"]), (&json!("Completed"), &json!(2)), "{slept:#}");
    assert!(slept["error"].is_null(), "{slept:#}");
    for (n, id) in pending.iter().enumerate() {
        let task = client.wait_for_end(id);
        assert_eq!((&task["output"], &task["attempt"]), (&json!(n), &json!(1)), "{task:#}");
    }
    let again = client.task(&forever);
    assert_eq!((&again["status"], &again["attempt"]), (&json!("Running"), &json!(2)), "{again:#}");
}

/// The guest that brings the server down does so a bounded number of times.
#[test]
fn a_task_that_is_interrupted_too_often_fails() {
    let flags = ["--max-interruptions", "2"];
    let mut server = setup(&flags).start();
    let id = server.client.create(&json!({"task_type": guest("sleep-forever")}));
    for attempt in 1..=3 {
        let task = wait_for("the attempt", || {
            let task = server.client.task(&id);
            (task["status"] == "Running").then_some(task)
        });
        assert_eq!(task["attempt"], attempt, "{task:#}");
        server = server.crash().start();
    }
    let task = server.client.task(&id);
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("interrupted")), "{task:#}");
    assert_eq!((&task["error"]["retryable"], &task["attempt"]), (&json!(true), &json!(3)), "{task:#}");
    assert!(task["finished_at"].is_string(), "{task:#}");
    server.client.get(&format!("/task/{id}/result")).problem(409);
    let listed = server.client.get("/tasks?error_kind=interrupted").expect(200).json();
    assert_eq!(listed["tasks"][0]["id"], Value::from(id));
}

/// Every answer of 202 is a task that is there after a crash, whenever that comes.
#[test]
fn nothing_acknowledged_is_lost_in_a_crash_under_load() {
    let mut server = server(&["--max-running", "50"]);
    for _ in 0..3 {
        let acknowledged: Vec<(String, u64)> = std::thread::scope(|scope| {
            let address = &server.address;
            let creators: Vec<_> = (0..8_u64)
                .map(|creator| {
                    scope.spawn(move || {
                        let client = Client::new(&format!("http://{address}"));
                        let mut acknowledged = Vec::new();
                        for n in 0.. {
                            let number = creator * 1_000_000 + n;
                            let body = json!({"task_type": "echo", "input": number}).to_string();
                            let sent = client.try_send(
                                "POST",
                                "/task",
                                &[("content-type", "application/json")],
                                Some(body.as_bytes()),
                            );
                            // The crash: the client knows nothing of this one.
                            let Ok(answer) = sent else { break };
                            acknowledged.push((answer.expect(202).json()["id"].as_str().unwrap().to_owned(), number));
                        }
                        acknowledged
                    })
                })
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(700));
            server.signal(rustix::process::Signal::KILL);
            creators.into_iter().flat_map(|creator| creator.join().unwrap()).collect()
        });
        assert!(acknowledged.len() > 8, "the load was no load: {}", acknowledged.len());
        server = server.crash().start();
        for (id, number) in acknowledged.iter().rev().take(400).chain(acknowledged.iter().take(100)) {
            let task = server.client.wait_for_end(id);
            assert_eq!(task["output"], *number, "{task:#}");
        }
    }
}
