//! Due times while the server is down.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::Connection;
use serde_json::json;

use super::{SECONDS, get, put, task, tasks, wait_for_tasks};
use crate::support::{server, wait_for};

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

pub(super) fn next_at(database: &Path, name: &str) -> i64 {
    let conn = Connection::open(database).unwrap();
    conn.query_row("SELECT next_at FROM schedule WHERE name = ?1", [name], |row| row.get(0)).unwrap()
}

pub(super) fn set_next_at(database: &Path, name: &str, at: i64) {
    let conn = Connection::open(database).unwrap();
    assert_eq!(conn.execute("UPDATE schedule SET next_at = ?2 WHERE name = ?1", (name, at)).unwrap(), 1);
}

fn made(database: &Path, name: &str) -> i64 {
    let conn = Connection::open(database).unwrap();
    conn.query_row("SELECT count(*) FROM task WHERE schedule = ?1", [name], |row| row.get(0)).unwrap()
}

/// Killed again and again, and every due time has made one task.
#[test]
fn one_task_for_each_due_time_across_crashes() {
    let mut server = server(&[]);
    let body = json!({"cron": SECONDS, "task": task("crash", "echo"), "catch_up": "all"});
    put(&server.client, "crash", &body).expect(201);
    wait_for_tasks(&server.client, "crash", 1);
    let database = server.setup().database();
    let created_at: i64 = Connection::open(&database)
        .unwrap()
        .query_row("SELECT created_at FROM schedule", [], |row| row.get(0))
        .unwrap();
    let first = created_at.div_euclid(1000) * 1000 + 1000;
    for _ in 0..5 {
        server = server.crash().start();
        wait_for_tasks(&server.client, "crash", 1);
    }
    let setup = server.stop();
    let next = next_at(&database, "crash");
    assert_eq!(made(&setup.database(), "crash"), (next - first) / 1000, "one for each second");
}

#[test]
fn what_was_missed_is_caught_up_as_the_schedule_says() {
    let server = server(&[]);
    // Once a day, twelve hours from now: nothing is due by itself while the test runs.
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let hour = (now / 3_600_000 + 12) % 24;
    let last = now - now.rem_euclid(3_600_000) - 12 * 3_600_000;
    let all = [("none", "none", 10, 0), ("one", "one", 10, 1), ("all", "all", 10, 10), ("many", "all", 1100, 1000)];
    for (name, catch_up, ..) in all {
        let body = json!({"cron": format!("0 {hour} * * *"), "task": task(name, "echo"), "catch_up": catch_up});
        put(&server.client, name, &body).expect(201);
    }
    let body =
        json!({"cron": format!("0 {hour} * * *"), "task": task("paused", "echo"), "catch_up": "one", "paused": true});
    put(&server.client, "paused", &body).expect(201);
    let setup = server.stop();
    let next = next_at(&setup.database(), "none");
    assert_eq!(next, last + DAY_MS);
    for (name, _, days, _) in all.into_iter().chain([("paused", "one", 10, 1)]) {
        set_next_at(&setup.database(), name, next - days * DAY_MS);
    }
    let server = setup.start();
    for (name, _, _, tasks_made) in all {
        wait_for(format!("{tasks_made} tasks of {name}"), || {
            (tasks(&server.client, name).len() == tasks_made).then_some(())
        });
        let next_time = get(&server.client, name)["next_times"][0].clone();
        assert!(next_time.as_str().is_some(), "{name}");
    }
    assert_eq!(tasks(&server.client, "paused").len(), 0);
    let body = json!({"cron": format!("0 {hour} * * *"), "task": task("paused", "echo"), "catch_up": "one"});
    put(&server.client, "paused", &body).expect(200);
    wait_for("what was missed in the pause", || (tasks(&server.client, "paused").len() == 1).then_some(()));
    let setup = server.stop();
    for (name, _, _, tasks_made) in all.into_iter().chain([("paused", "one", 10, 1)]) {
        assert_eq!(made(&setup.database(), name), tasks_made as i64, "{name}");
        assert_eq!(next_at(&setup.database(), name), next, "{name}");
    }
}

/// What comes in a pause is given up where nothing is to be caught up, however short the pause was.
#[test]
fn a_pause_gives_up_what_comes_in_it() {
    let server = server(&[]);
    let client = &server.client;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let due = now() + 2;
    let body =
        |paused: bool| json!({"cron": format!("{} * * * * *", due % 60), "task": task("a", "echo"), "paused": paused});
    put(client, "a", &body(true)).expect(201);
    wait_for("the due time", || (now() > due).then_some(()));
    put(client, "a", &body(false)).expect(200);
    // By then the manager has looked at what is due.
    put(client, "b", &json!({"cron": "* * * * * *", "task": task("b", "echo")})).expect(201);
    wait_for_tasks(client, "b", 1);
    assert_eq!(tasks(client, "a").len(), 0);
}
