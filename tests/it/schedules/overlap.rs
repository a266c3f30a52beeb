//! What happens at a due time while a task of the schedule has not ended.

use serde_json::{Value, json};

use super::missed::{next_at, set_next_at};
use super::{SECONDS, get, put, task, tasks, wait_for_tasks};
use crate::support::{Client, guest, server, shared_server, wait_for};

/// A schedule of tasks that never end, and one beside it that counts the seconds.
fn start(client: &Client, name: &str, overlap: &str) -> String {
    let clock = format!("{name}-clock");
    let body =
        |name: &str, task_type: &str| json!({"cron": SECONDS, "task": task(name, task_type), "overlap": overlap});
    put(client, name, &body(name, guest("sleep-forever"))).expect(201);
    put(client, &clock, &body(&clock, "echo")).expect(201);
    wait_for(format!("the first task of {name}"), || (!tasks(client, name).is_empty()).then_some(()));
    clock
}

fn open(client: &Client, name: &str) -> Vec<Value> {
    let open = |task: &Value| matches!(task["status"].as_str(), Some("Pending" | "Running"));
    tasks(client, name).into_iter().filter(open).collect()
}

fn cancel(client: &Client, task: &Value) {
    client.post(&format!("/task/{}/cancel", task["id"].as_str().unwrap())).expect(202);
}

fn end(client: &Client, names: &[&str]) {
    for name in names {
        client.delete(&format!("/schedules/{name}")).expect(200);
        for task in open(client, name) {
            client.delete(&format!("/task/{}", task["id"].as_str().unwrap())).expect(200);
        }
    }
}

#[test]
fn allow() {
    let server = shared_server();
    let client = &server.client;
    let clock = start(client, "allow", "allow");
    wait_for("two that run at once", || (open(client, "allow").len() >= 2).then_some(()));
    end(client, &["allow", &clock]);
}

#[test]
fn skip() {
    let server = shared_server();
    let client = &server.client;
    let clock = start(client, "skip", "skip");
    wait_for_tasks(client, &clock, 3);
    let made = tasks(client, "skip");
    assert_eq!((made.len(), &get(client, "skip")["queued"]), (1, &json!(0)), "{made:#?}");
    cancel(client, &made[0]);
    wait_for("the next task", || (tasks(client, "skip").len() == 2).then_some(()));
    end(client, &["skip", &clock]);
}

#[test]
fn queue() {
    let server = shared_server();
    let client = &server.client;
    let clock = start(client, "queue", "queue");
    wait_for("two that wait", || (get(client, "queue")["queued"].as_u64() >= Some(2)).then_some(()));
    assert_eq!(tasks(client, "queue").len(), 1);
    // The first is canceled, the second removed: each time the next is made, and one at a time.
    cancel(client, &open(client, "queue")[0]);
    wait_for("the second task", || (tasks(client, "queue").len() == 2).then_some(()));
    let second = open(client, "queue");
    assert_eq!(second.len(), 1, "{second:#?}");
    client.delete(&format!("/task/{}", second[0]["id"].as_str().unwrap())).expect(200);
    wait_for("the third task", || {
        let third = open(client, "queue");
        (third.len() == 1 && third[0]["id"] != second[0]["id"]).then_some(())
    });
    // Paused, what waits goes on waiting.
    let body = json!({"cron": SECONDS, "task": task("queue", "sleep-forever"), "overlap": "queue", "paused": true});
    let paused = put(client, "queue", &body).expect(200).json();
    cancel(client, &open(client, "queue")[0]);
    wait_for_tasks(client, &clock, 2);
    assert_eq!(open(client, "queue").len(), 0, "a paused schedule makes none");
    assert_eq!(get(client, "queue")["queued"], paused["queued"]);
    end(client, &["queue", &clock]);
}

/// Due times that wait are bounded: of those that come when there are so many nothing is kept.
#[test]
fn no_more_than_a_thousand_due_times_wait() {
    const MOST: u64 = 1000;
    let mut server = server(&["--drain-timeout", "0"]);
    let body = |cron: &str| json!({"cron": cron, "task": task("many", guest("sleep-forever")), "overlap": "queue", "catch_up": "all"});
    put(&server.client, "many", &body(SECONDS)).expect(201);
    wait_for("the first task", || (tasks(&server.client, "many").len() == 1).then_some(()));
    // Ten minutes that were missed, and ten more.
    for least in [600, MOST] {
        let setup = server.stop();
        let database = setup.database();
        set_next_at(&database, "many", next_at(&database, "many") - 600_000);
        server = setup.start();
        let queued = || get(&server.client, "many")["queued"].as_u64().unwrap();
        let now = wait_for("what was missed", || Some(queued()).filter(|queued| *queued >= least));
        assert!(now <= MOST, "{now} wait");
    }
    let client = &server.client;
    put(client, "clock", &json!({"cron": SECONDS, "task": task("clock", "echo")})).expect(201);
    wait_for_tasks(client, "clock", 3);
    assert_eq!(get(client, "many")["queued"], MOST);
    assert_eq!(tasks(client, "many").len(), 1, "all of them wait for the first");
    // Those that wait are not lost: one is made when the task before it has ended.
    cancel(client, &open(client, "many")[0]);
    wait_for("the second task", || (tasks(client, "many").len() == 2).then_some(()));
    assert!(get(client, "many")["queued"].as_u64().is_some_and(|queued| (MOST - 1..=MOST).contains(&queued)));
}
