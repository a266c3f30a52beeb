//! Schedules: what a client says and reads of them, and that each due time makes one task.

mod missed;
mod overlap;

use serde_json::{Value, json};

use crate::support::{Answer, Client, guest, server, shared_server, wait_for};

/// Every second.
const SECONDS: &str = "* * * * * *";

/// Never while a test runs, unless it runs at that very second.
const RARELY: &str = "0 0 29 2 *";

fn put(client: &Client, name: &str, body: &Value) -> Answer {
    put_with(client, name, &[], body)
}

fn put_with(client: &Client, name: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let headers: Vec<_> = [("content-type", "application/json")].iter().chain(headers).copied().collect();
    client.send("PUT", &format!("/schedules/{name}"), &headers, Some(body.to_string().as_bytes()))
}

fn get(client: &Client, name: &str) -> Value {
    client.get(&format!("/schedules/{name}")).expect(200).json()
}

/// A task that says in a label which schedule made it.
fn task(name: &str, task_type: &str) -> Value {
    json!({"task_type": task_type, "labels": {"schedule": name}})
}

/// The tasks of a schedule, newest first; at most 1000.
fn tasks(client: &Client, name: &str) -> Vec<Value> {
    let list = client.get(&format!("/tasks?limit=1000&label=schedule:{name}")).expect(200).json();
    list["tasks"].as_array().unwrap().clone()
}

/// Waits until a schedule that is due every second has made `count` more tasks: so many seconds passed.
fn wait_for_tasks(client: &Client, name: &str, count: usize) {
    let before = tasks(client, name).len();
    wait_for(format!("{count} tasks of {name}"), || (tasks(client, name).len() >= before + count).then_some(()));
}

#[test]
fn written_read_listed_and_removed() {
    let server = shared_server();
    let client = &server.client;
    let body = json!({
        "cron": RARELY,
        "time_zone": "Europe/Berlin",
        "task": {"task_type": "echo", "input": {"b": 1, "a": [1.50]}, "priority": 3, "labels": {"team": "a"},
                 "limits": {"timeout_ms": 1000}, "retry": {"max_attempts": 3}},
        "overlap": "skip",
        "catch_up": "one",
    });
    let created = put(client, "crud-a", &body).expect(201);
    assert_eq!(created.header("location"), Some("/schedules/crud-a"));
    let schedule = created.json();
    for (member, value) in body.as_object().unwrap().iter().filter(|(member, _)| *member != "task") {
        assert_eq!(&schedule[member], value, "{schedule:#}");
    }
    for (member, value) in body["task"].as_object().unwrap() {
        assert_eq!(&schedule["task"][member], value, "{schedule:#}");
    }
    assert_eq!(
        (&schedule["name"], &schedule["paused"], &schedule["queued"]),
        (&json!("crud-a"), &json!(false), &json!(0))
    );
    assert_eq!((&schedule["last_tasks"], &schedule["error"]), (&json!([]), &Value::Null));
    let times: Vec<_> = schedule["next_times"].as_array().unwrap().iter().map(|at| at.as_str().unwrap()).collect();
    assert_eq!(times.len(), 5);
    assert!(times.is_sorted() && times.iter().all(|at| at.ends_with("-02-28T23:00:00.000Z")), "{times:?}");
    assert_eq!(get(client, "crud-a"), schedule);

    // What is not said has its default, and a replacement says all of it anew.
    let least = json!({"cron": "@yearly", "task": {"task_type": "echo"}});
    let replaced = put(client, "crud-a", &least).expect(200).json();
    let said = ["time_zone", "overlap", "catch_up"].map(|member| replaced[member].as_str().unwrap().to_owned());
    assert_eq!(said, ["UTC", "allow", "none"]);
    assert_eq!(replaced["task"]["input"], Value::Null);
    assert_eq!(replaced["created_at"], schedule["created_at"]);

    put(client, "crud-b", &json!({"cron": "* * * * *", "task": {"task_type": "echo"}, "paused": true})).expect(201);
    assert_eq!(get(client, "crud-b")["next_times"], json!([]), "nothing comes while it is paused");
    let page = client.get("/schedules?after=crud&limit=1").expect(200).json();
    assert_eq!((&page["schedules"][0]["name"], &page["next_after"]), (&json!("crud-a"), &json!("crud-a")));
    let page = client.get("/schedules?after=crud-a&limit=1").expect(200).json();
    assert_eq!(page["schedules"][0]["name"], "crud-b");

    for name in ["crud-a", "crud-b"] {
        let path = format!("/schedules/{name}");
        assert_eq!(client.delete(&path).expect(200).json(), json!({"name": name, "deleted": true}));
        client.get(&path).problem(404);
        client.delete(&path).problem(404);
    }
    client.get("/schedules/No-Such").problem(404);
    client.get("/schedules?limit=0").problem(400);
}

#[test]
fn preconditions() {
    let server = shared_server();
    let client = &server.client;
    let body = json!({"cron": RARELY, "task": {"task_type": "echo"}});
    let path = "/schedules/conditional";
    put_with(client, "conditional", &[("if-match", "*")], &body).problem(412);
    let tag = put_with(client, "conditional", &[("if-none-match", "*")], &body).expect(201);
    let tag = tag.header("etag").unwrap().to_owned();
    put_with(client, "conditional", &[("if-none-match", "*")], &body).problem(412);
    assert_eq!(client.get(path).expect(200).header("etag"), Some(&*tag));
    let other = json!({"cron": RARELY, "task": {"task_type": "echo"}, "paused": true});
    put_with(client, "conditional", &[("if-match", &tag)], &other).expect(200);
    put_with(client, "conditional", &[("if-match", &tag)], &other).problem(412);
    client.send("DELETE", path, &[("if-match", &tag)], None).problem(412);
    let tag = client.get(path).header("etag").unwrap().to_owned();
    client.send("DELETE", path, &[("if-match", &tag)], None).expect(200);
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let server = shared_server();
    let client = &server.client;
    let echo = json!({"task_type": "echo"});
    for (pointer, body) in [
        ("#/cron", json!({"task": echo})),
        ("#/cron", json!({"cron": "61 * * * *", "task": echo})),
        ("#/cron", json!({"cron": "* * * *", "task": echo})),
        ("#/cron", json!({"cron": "0 0 30 2 *", "task": echo})),
        ("#/time_zone", json!({"cron": "* * * * *", "time_zone": "Berlin", "task": echo})),
        ("#/overlap", json!({"cron": "* * * * *", "overlap": "never", "task": echo})),
        ("#/catch_up", json!({"cron": "* * * * *", "catch_up": 1, "task": echo})),
        ("#/extra", json!({"cron": "* * * * *", "task": echo, "extra": 1})),
        ("#/task", json!({"cron": "* * * * *"})),
        ("#/task", json!({"cron": "* * * * *", "task": ["echo"]})),
        ("#/task/task_type", json!({"cron": "* * * * *", "task": {"task_type": "no-such-type"}})),
        ("#/task/limits/fuel", json!({"cron": "* * * * *", "task": {"task_type": "echo", "limits": {"fuel": 0}}})),
        ("#/task/unique_key", json!({"cron": "* * * * *", "task": {"task_type": "echo", "unique_key": ""}})),
        ("#/task/delay_ms", json!({"cron": "* * * * *", "task": {"task_type": "echo", "delay_ms": 5}})),
        (
            "#/task/run_at",
            json!({"cron": "* * * * *", "task": {"task_type": "echo", "run_at": "2026-11-23T10:00:00Z"}}),
        ),
        (
            "#/task/expires_at",
            json!({"cron": "* * * * *", "task": {"task_type": "echo", "expires_at": "2036-11-23T10:00:00Z"}}),
        ),
    ] {
        let problem = put(client, "wrong", &body).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}: {problem:#}");
    }
    let good = json!({"cron": "* * * * *", "task": echo});
    for name in ["Upper", "-a", "a_b", &"a".repeat(64), "%C3%A4", "a%2Fb"] {
        put(client, name, &good).problem(422);
    }
    client.send("PUT", "/schedules/wrong", &[("content-type", "text/plain")], Some(b"{}")).problem(415);
    client.send("PUT", "/schedules/wrong", &[("content-type", "application/json")], Some(b"{")).problem(400);
    let large = json!({"cron": "* * * * *", "task": {"task_type": "echo", "input": "x".repeat(1 << 20)}});
    put(client, "wrong", &large).problem(413);
    client.get("/schedules/wrong").problem(404);
}

#[test]
fn a_tenant_has_no_more_than_it_may() {
    let server = server(&["--max-schedules", "2"]);
    let client = &server.client;
    let body = json!({"cron": RARELY, "task": {"task_type": "echo"}});
    put(client, "a", &body).expect(201);
    put(client, "b", &body).expect(201);
    let refused = put(client, "c", &body);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("ratelimit-policy"), Some("\"schedules\";q=2"));
    refused.problem(429);
    put(client, "b", &body).expect(200);
    client.delete("/schedules/a").expect(200);
    put(client, "c", &body).expect(201);
}

#[test]
fn tasks_are_made_until_it_is_paused_or_removed() {
    let server = shared_server();
    let client = &server.client;
    let body = |name: &str, paused: bool| json!({"cron": SECONDS, "task": task(name, "echo"), "paused": paused});
    put(client, "runs", &body("runs", false)).expect(201);
    put(client, "stops", &body("stops", false)).expect(201);
    wait_for_tasks(client, "runs", 2);
    wait_for_tasks(client, "stops", 1);
    let shown = get(client, "runs");
    assert_eq!(shown["next_times"].as_array().unwrap().len(), 5);
    let last = shown["last_tasks"].as_array().unwrap();
    assert!((2..=5).contains(&last.len()) && last.is_sorted_by_key(|task| std::cmp::Reverse(task["id"].to_string())));
    assert_eq!(client.wait_for_end(last[0]["id"].as_str().unwrap())["status"], "Completed");

    put(client, "stops", &body("stops", true)).expect(200);
    let paused = tasks(client, "stops").len();
    wait_for_tasks(client, "runs", 3);
    assert_eq!(tasks(client, "stops").len(), paused, "a paused schedule makes none");
    // What passed while it was paused is less than a minute ago, so it was not missed.
    put(client, "stops", &body("stops", false)).expect(200);
    wait_for("those that were due meanwhile", || (tasks(client, "stops").len() >= paused + 3).then_some(()));

    client.delete("/schedules/stops").expect(200);
    let removed = tasks(client, "stops").len();
    wait_for_tasks(client, "runs", 2);
    assert_eq!(tasks(client, "stops").len(), removed, "the tasks stay, and there are no more");
    client.delete("/schedules/runs").expect(200);
}

/// Why no task was made is shown until the next is.
#[test]
fn a_task_that_cannot_be_made() {
    let server = shared_server();
    let client = &server.client;
    let mut forever = task("unmade", guest("sleep-forever"));
    forever["unique_key"] = "unmade".into();
    put(client, "unmade", &json!({"cron": SECONDS, "task": forever})).expect(201);
    let error = wait_for("an error", || Some(get(client, "unmade")["error"].clone()).filter(|error| !error.is_null()));
    assert_eq!(error["message"], "another task has this unique key");
    let made = tasks(client, "unmade");
    assert_eq!(made.len(), 1, "{made:#?}");
    client.post(&format!("/task/{}/cancel", made[0]["id"].as_str().unwrap())).expect(202);
    wait_for("the next task", || (tasks(client, "unmade").len() > 1).then_some(()));
    client.delete("/schedules/unmade").expect(200);
    for task in tasks(client, "unmade") {
        client.delete(&format!("/task/{}", task["id"].as_str().unwrap())).expect(200);
    }
}
