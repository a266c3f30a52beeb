//! `Prefer: wait` (RFC 7240).

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{guest, server, shared_server, wait_for};

#[test]
fn finished_in_time() {
    let server = shared_server();
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 100}}).to_string();
    let answer = server.client.post_task_and_wait(&body, "wait=30").expect(200);
    assert_eq!(answer.header("preference-applied"), Some("wait=30"));
    assert!(answer.header("vary").is_some_and(|vary| vary.to_lowercase().contains("prefer")));
    assert_eq!(answer.json()["status"], "Completed");
    let failed = json!({"task_type": guest("fail"), "input": {"permanent": "no"}}).to_string();
    assert_eq!(server.client.post_task_and_wait(&failed, "wait=30").expect(200).json()["status"], "Failed");
}

#[test]
fn not_finished_in_time() {
    let server = shared_server();
    let body = json!({"task_type": guest("sleep-forever")}).to_string();
    let start = Instant::now();
    let answer = server.client.post_task_and_wait(&body, "wait=1").expect(202);
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(answer.header("preference-applied"), Some("wait=1"));
    let task = answer.json();
    let id = task["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), Some(format!("/task/{id}").as_str()));
    assert_eq!(task["status"], "Running");
    server.client.delete(&format!("/task/{id}")).expect(200);
}

/// Also a task that finds no place is there before its end is, and for a client that waits no longer.
#[test]
fn without_a_place() {
    let server = server(&["--max-working", "1"]);
    let client = &server.client;
    let holder = client.create(&json!({"task_type": guest("spin")}));
    client.wait_for_status(&holder, "Running");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.post_task_and_wait(r#"{"task_type":"echo","input":1}"#, "wait=60"));
        let pending = || {
            let page = client.get("/tasks?status=Pending").expect(200).json();
            page["tasks"].as_array().is_some_and(|tasks| tasks.len() == 1).then_some(())
        };
        wait_for("the task of a client that waits", pending);
        for wait in ["wait=0", "wait=1"] {
            let answer = client.post_task_and_wait(r#"{"task_type":"echo"}"#, wait).expect(202);
            assert_eq!(answer.json()["status"], "Pending", "{wait}");
        }
        client.post(&format!("/task/{holder}/cancel")).expect(202);
        assert_eq!(waiting.join().unwrap().expect(200).json()["output"], 1);
    });
}

#[test]
fn more_than_a_minute_is_a_minute() {
    let server = shared_server();
    for asked in ["wait=61", "wait=86400", "wait=99999999999999999999"] {
        let answer = server.client.post_task_and_wait(r#"{"task_type":"echo"}"#, asked).expect(200);
        assert_eq!(answer.header("preference-applied"), Some("wait=60"), "{asked}");
    }
}

#[test]
fn among_other_preferences() {
    let server = shared_server();
    for prefer in ["respond-async, wait=20", "Wait=20", "wait=\"20\"", "wait=20; foo=bar", "handling=lenient,wait = 20"]
    {
        let answer = server.client.post_task_and_wait(r#"{"task_type":"echo"}"#, prefer).expect(200);
        assert_eq!(answer.header("preference-applied"), Some("wait=20"), "{prefer}");
    }
}

#[test]
fn an_unusable_value_is_ignored() {
    let server = shared_server();
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 300}}).to_string();
    for prefer in ["wait=-1", "wait=abc", "wait=1.5", "wait=", "wait=\"\"", "waiting=5", ";;=,,", "respond-async"] {
        let start = Instant::now();
        let answer = server.client.post_task_and_wait(&body, prefer).expect(202);
        assert_eq!(answer.header("preference-applied"), None, "{prefer}");
        assert!(start.elapsed() < Duration::from_secs(5), "{prefer}");
    }
}

/// On a result it only delays the answer.
#[test]
fn a_result_that_is_waited_for() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 600}}));
    let result = client.get_with(&format!("/task/{id}/result"), &[("prefer", "wait=50")]).expect(200);
    assert!(result.json()["elapsed_ms"].as_u64().is_some_and(|ms| ms >= 600));
    assert_eq!(result.header("preference-applied"), Some("wait=50"));

    let id = client.create(&json!({"task_type": guest("sleep-forever")}));
    let start = Instant::now();
    let running = client.get_with(&format!("/task/{id}/result"), &[("prefer", "wait=1")]).expect(202);
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert!(running.header("retry-after").is_some());
    client.post(&format!("/task/{id}/cancel")).expect(202);
    let problem = client.get(&format!("/task/{id}/result")).problem(409);
    assert_eq!(problem["error"]["kind"], "canceled", "{problem}");
}

/// Waits end when the task is removed, and a client that hangs up cancels nothing.
#[test]
fn waits_end_with_the_task_and_not_the_task_with_the_wait() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&id, "Running");
    let path = format!("/task/{id}/result");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.get_with(&path, &[("prefer", "wait=60")]));
        // Whether the wait began before or after the removal, its answer is the same.
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        client.delete(&format!("/task/{id}")).expect(200);
        let answer = waiting.join().unwrap();
        // It was stopped first, and who waited hears of the removal all the same.
        answer.problem(404);
        assert!(start.elapsed() < Duration::from_secs(20));
    });

    use std::io::Write;
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 500}, "priority": 77}).to_string();
    let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
    write!(
        stream,
        "POST /task HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nprefer: wait=50\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let find = || {
        let tasks = client.get("/tasks?limit=1000&task_type=sleep").expect(200).json();
        tasks["tasks"].as_array().unwrap().iter().find(|task| task["priority"] == 77).cloned()
    };
    let id = wait_for("the task to be there", find)["id"].as_str().unwrap().to_owned();
    drop(stream);
    assert_eq!(client.wait_for_end(&id)["status"], "Completed");
}
