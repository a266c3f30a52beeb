//! What is kept no longer. The server looks for it every ten seconds.

use serde_json::{Value, json};

use crate::support::{guest, server, wait_for};

/// Rows of a table that belong to a task, as the database has them.
fn rows(database: &std::path::Path, table: &str) -> u64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn ended_tasks_are_removed_with_all_that_is_kept_of_them() {
    let server = server(&["--retention", "3000"]);
    let client = &server.client;
    let labels = json!({"a": "b"});
    let mut ended: Vec<Value> = vec![
        client.run(&json!({"task_type": "echo", "labels": labels})),
        client.run(&json!({"task_type": guest("trap"), "labels": labels})),
        client.run(&json!({"task_type": guest("log"), "input": {"lines": 100}})),
    ];
    let fails = json!({
        "task_type": guest("fail"), "input": {"transient": "x"}, "retry": {"max_attempts": 3, "initial_backoff_ms": 1},
    });
    ended.push(client.run(&fails));
    let keyed = json!({"task_type": "echo", "unique_key": "u"}).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", "k")];
    let id = client.send("POST", "/task", &headers, Some(keyed.as_bytes())).json()["id"].as_str().unwrap().to_owned();
    ended.push(client.wait_for_end(&id));

    // What has not ended stays, however long that takes.
    let running = client.create(&json!({"task_type": guest("sleep-forever")}));
    let delayed = client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    let waiting = client.create(&json!({
        "task_type": guest("fail"), "input": {"transient": "x", "after_ms": 3_600_000}, "retry": {"max_attempts": 3},
    }));
    for task in &ended {
        let id = task["id"].as_str().unwrap();
        wait_for("the removal", || (client.get(&format!("/task/{id}")).status == 404).then_some(()));
        for path in ["status", "result", "logs", "attempts"] {
            client.get(&format!("/task/{id}/{path}")).problem(404);
        }
    }
    assert_eq!(client.get("/tasks?label=a:b").expect(200).json()["tasks"], json!([]));
    let listed = client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().len();
    assert_eq!(listed, 3, "what has not ended");
    for (id, status) in [(&running, "Running"), (&delayed, "Pending"), (&waiting, "Pending")] {
        assert_eq!(client.status(id), status);
    }
    client.send("POST", "/task", &headers, Some(keyed.as_bytes())).problem(410);
    let database = server.setup().database();
    assert_eq!((rows(&database, "task"), rows(&database, "label"), rows(&database, "log_lines")), (3, 0, 0));
    assert_eq!(rows(&database, "attempt"), 1, "the one of the task in its backoff");
}

/// With more than one step removes, and not before its time.
#[test]
fn nothing_is_removed_before_its_time_and_then_all() {
    let server = server(&["--retention", "12000"]);
    let client = &server.client;
    let body = Value::from_iter((0..700).map(|n| json!({"task_type": "echo", "input": n}))).to_string();
    client.send("POST", "/tasks", &[("content-type", "application/json")], Some(body.as_bytes())).expect(200);
    let count = || client.get("/tasks?limit=1000").expect(200).json()["tasks"].as_array().unwrap().len();
    let ended = wait_for("the ends", || {
        let completed = client.get("/tasks?limit=1000&status=Completed").expect(200).json();
        (completed["tasks"].as_array().unwrap().len() == 700).then(std::time::Instant::now)
    });
    let left = wait_for("the first removal", || Some(count()).filter(|count| *count < 700));
    // Nothing ends 3 s before the last one did, which was looked for all the time.
    assert!(ended.elapsed() >= std::time::Duration::from_secs(9), "{left} after {:?}", ended.elapsed());
    wait_for("the removal of all", || (count() == 0).then_some(()));
}

/// The default keeps them.
#[test]
fn by_default_ended_tasks_are_kept() {
    let server = server(&[]);
    let id = server.client.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned();
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(server.client.task(&id)["status"], "Completed");
}
