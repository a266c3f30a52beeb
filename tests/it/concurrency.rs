//! How many tasks of a type, and of a concurrency key, run at once.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::{Client, guest, server, wait_for};

const MERGE: (&str, &str) = ("content-type", "application/merge-patch+json");

#[track_caller]
fn set(client: &Client, name: &str, patch: &Value) {
    client.send("PATCH", &format!("/task-types/{name}"), &[MERGE], Some(patch.to_string().as_bytes())).expect(200);
}

fn sleeping(key: Option<&str>) -> Value {
    json!({"task_type": guest("sleep-forever"), "concurrency_key": key})
}

fn running(client: &Client) -> HashSet<String> {
    let list = client.get("/tasks?status=Running&limit=1000").expect(200).json();
    list["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for_running(client: &Client, ids: &[&String]) {
    let wanted: HashSet<String> = ids.iter().map(|id| (*id).clone()).collect();
    wait_for(format!("{wanted:?} to run"), || (running(client) == wanted).then_some(()));
}

#[track_caller]
fn waits_for(client: &Client, id: &str) -> Value {
    client.task(id)["waiting_for"]["reason"].clone()
}

#[test]
fn so_many_of_a_type_run_at_once() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("sleep-forever");
    set(client, name, &json!({"concurrency": {"running": 2}}));
    let ids: Vec<_> = (0..5).map(|_| client.create(&sleeping(None))).collect();
    wait_for_running(client, &[&ids[0], &ids[1]]);
    for id in &ids[2..] {
        assert_eq!(waits_for(client, id), "concurrency");
    }
    // Tasks of other types are not held up by them.
    client.output(&json!({"task_type": "echo", "input": 1}));
    // What ends makes room for the first, and so does what goes away before its turn.
    client.post(&format!("/task/{}/cancel", ids[3])).expect(202);
    client.post(&format!("/task/{}/cancel", ids[0])).expect(202);
    wait_for_running(client, &[&ids[1], &ids[2]]);
    // A higher bound holds at once, and so does none.
    let more: Vec<_> = (0..3).map(|_| client.create(&sleeping(None))).collect();
    set(client, name, &json!({"concurrency": {"running": 3}}));
    wait_for_running(client, &[&ids[1], &ids[2], &ids[4]]);
    set(client, name, &json!({"concurrency": null}));
    wait_for_running(client, &[&ids[1], &ids[2], &ids[4], &more[0], &more[1], &more[2]]);
    // A lower one stops nothing that runs.
    set(client, name, &json!({"concurrency": {"running": 1}}));
    let last = client.create(&sleeping(None));
    for id in [&ids[1], &ids[2], &ids[4], &more[0], &more[1]] {
        assert_eq!(waits_for(client, &last), "concurrency");
        client.delete(&format!("/task/{id}")).expect(200);
    }
    assert_eq!(running(client), HashSet::from([more[2].clone()]));
    client.delete(&format!("/task/{}", more[2])).expect(200);
    wait_for_running(client, &[&last]);
}

#[test]
fn tasks_of_one_key_run_one_after_the_other() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("sleep-forever");
    let a: Vec<_> = (0..3).map(|_| client.create(&sleeping(Some("a")))).collect();
    let b: Vec<_> = (0..2).map(|_| client.create(&sleeping(Some("b")))).collect();
    let none = client.create(&sleeping(None));
    wait_for_running(client, &[&a[0], &b[0], &none]);
    assert_eq!(waits_for(client, &a[1]), "concurrency");
    client.delete(&format!("/task/{}", a[0])).expect(200);
    wait_for_running(client, &[&a[1], &b[0], &none]);
    // The first of those that wait goes, and the next takes its place.
    client.delete(&format!("/task/{}", a[2])).expect(200);
    let again = client.create(&sleeping(Some("a")));
    client.post(&format!("/task/{}/cancel", a[1])).expect(202);
    wait_for_running(client, &[&again, &b[0], &none]);
    set(client, name, &json!({"concurrency": {"per_key": 2}}));
    wait_for_running(client, &[&again, &b[0], &b[1], &none]);
    // Both bounds hold together, and a task that waits for its key holds up no other of its type.
    let server = Setup::new(&[]).start();
    let client = &server.client;
    set(client, name, &json!({"concurrency": {"running": 2}}));
    let a: Vec<_> = (0..3).map(|_| client.create(&sleeping(Some("a")))).collect();
    let b: Vec<_> = (0..2).map(|_| client.create(&sleeping(Some("b")))).collect();
    let c = client.create(&sleeping(Some("c")));
    wait_for_running(client, &[&a[0], &b[0]]);
    client.delete(&format!("/task/{}", b[0])).expect(200);
    wait_for(format!("two to run, {b:?} or {c}"), || {
        let running = running(client);
        (running.len() == 2 && running.contains(&a[0])).then_some(())
    });
    for id in [&a[0], &b[1], &c, &a[1]] {
        client.delete(&format!("/task/{id}")).expect(200);
    }
    wait_for_running(client, &[&a[2]]);
}

/// A crash in the middle leaves nothing behind that waits for ever.
#[test]
fn the_bounds_hold_over_a_crash() {
    let server = server(&[]);
    let name = guest("sleep-forever");
    set(&server.client, name, &json!({"concurrency": {"running": 3}}));
    let ids: Vec<_> = (0..6).map(|number| server.client.create(&sleeping(Some(["a", "b"][number % 2])))).collect();
    wait_for_running(&server.client, &[&ids[0], &ids[1]]);
    let server = server.crash().start();
    let client = &server.client;
    wait_for_running(client, &[&ids[0], &ids[1]]);
    for (gone, left) in [(0, [1, 2]), (1, [2, 3]), (2, [3, 4]), (3, [4, 5])] {
        client.delete(&format!("/task/{}", ids[gone])).expect(200);
        wait_for_running(client, &[&ids[left[0]], &ids[left[1]]]);
    }
}

/// However many clients create them, never one more than may.
#[test]
fn never_one_more_than_may() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("sleep");
    set(client, name, &json!({"concurrency": {"running": 3, "per_key": 2}}));
    let creating: Vec<_> = (0..16)
        .map(|number| {
            let client = client.clone();
            let key = ["a", "b", "c"][number % 3];
            std::thread::spawn(move || {
                let body = json!({"task_type": name, "input": {"ms": 5}, "concurrency_key": key});
                (0..20).map(|_| client.create(&body)).collect::<Vec<_>>()
            })
        })
        .collect();
    let ids: Vec<String> = creating.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let mut spans = Vec::new();
    for id in &ids {
        let task = client.wait_for_end(id);
        assert_eq!(task["status"], "Completed", "{task:#}");
        let at = |name: &str| crate::support::time::millis(task[name].as_str().unwrap());
        spans.push((at("started_at"), at("finished_at")));
    }
    // An end and the start that it made room for may be in one millisecond.
    for (start, _) in &spans {
        let at_once = spans.iter().filter(|(from, to)| from <= start && start < to).count();
        assert!(at_once <= 3, "{at_once} at once");
    }
}

#[test]
fn bad_bounds_are_refused() {
    let server = server(&[]);
    let client = &server.client;
    for (patch, pointer) in [
        (json!({"concurrency": {"running": 0}}), "#/concurrency/running"),
        (json!({"concurrency": {"per_key": 0}}), "#/concurrency/per_key"),
        (json!({"concurrency": {"more": 1}}), "#/concurrency/more"),
    ] {
        let answer = client.send("PATCH", "/task-types/echo", &[MERGE], Some(patch.to_string().as_bytes()));
        assert_eq!(answer.expect(422).json()["errors"][0]["pointer"], pointer);
    }
    for key in ["", &"k".repeat(256)] {
        let answer = client.post_task(&json!({"task_type": "echo", "concurrency_key": key}).to_string()).expect(422);
        assert_eq!(answer.json()["errors"][0]["pointer"], "#/concurrency_key");
    }
}
