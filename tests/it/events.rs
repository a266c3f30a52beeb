//! Events: what is told while it happens, what is told afterwards, and to whom not.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::server::Setup;
use crate::support::time::{in_millis, millis};
use crate::support::{Client, Server, guest, server, shared_server, wait_for};

/// One event as it came.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    id: u64,
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// An open stream.
pub(crate) struct Stream(Box<dyn BufRead>);

impl Stream {
    pub(crate) fn open(client: &Client, path: &str, last: Option<u64>) -> Stream {
        let last = last.map(|last| last.to_string());
        let headers: Vec<(&str, &str)> = last.iter().map(|last| ("last-event-id", last.as_str())).collect();
        let (status, headers, body) = client.stream(path, &headers);
        assert_eq!(status, 200, "{path}");
        assert_eq!(headers.get("content-type").unwrap(), "text/event-stream");
        Stream(Box::new(BufReader::new(body)))
    }

    /// The next event; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let (mut id, mut name, mut data) = (None, String::new(), None);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end_matches('\n');
            if line.is_empty() {
                match (id.take(), data.take()) {
                    (Some(id), Some(data)) => return Some(Event { id, name, data }),
                    _ => continue,
                }
            }
            match line.split_once(": ") {
                Some(("id", value)) => id = Some(value.parse().unwrap()),
                Some(("event", value)) => value.clone_into(&mut name),
                Some(("data", value)) => data = Some(serde_json::from_str(value).unwrap()),
                _ => assert!(line.starts_with(':') || line.starts_with("retry: "), "{line}"),
            }
        }
    }

    pub(crate) fn rest(mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The next event of that task.
    fn next_of(&mut self, id: &str) -> Event {
        loop {
            let event = self.next().expect("the stream ended");
            if event.data["id"] == id {
                return event;
            }
        }
    }
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

/// All of a task's life, whether one listens meanwhile or reads it afterwards; then the stream ends.
#[test]
fn a_task_from_its_creation_to_its_end() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 300}}));
    let path = format!("/task/{id}/events");
    let live = Stream::open(client, &path, None).rest();
    assert_eq!(names(&live), ["task.pending", "task.running", "task.completed"], "{live:?}");
    assert!(live.is_sorted_by(|a, b| a.id < b.id), "{live:?}");
    assert!(live.iter().all(|event| event.data["id"] == id && event.data["task_type"] == "sleep"), "{live:?}");
    assert_eq!(Stream::open(client, &path, None).rest(), live, "and the same afterwards");
    assert_eq!(Stream::open(client, &path, Some(live[0].id)).rest(), live[1..]);
    let after_the_last = live[2].id.to_string();
    client.get_with(&path, &[("last-event-id", &after_the_last)]).expect(204);
    client.get_with(&path, &[("last-event-id", "x")]).problem(400);
}

#[test]
fn failures_say_why() {
    let server = shared_server();
    let task = server.client.failure(&json!({"task_type": guest("fail"), "input": {"permanent": "no"}}));
    let events = Stream::open(&server.client, &format!("/task/{}/events", task["id"].as_str().unwrap()), None).rest();
    let last = events.last().unwrap();
    assert_eq!((last.name.as_str(), &last.data["error"]), ("task.failed", &task["error"]));
}

#[test]
fn progress_and_log_lines_are_told_while_the_task_runs() {
    let server = shared_server();
    let client = &server.client;
    let id = client.create(&json!({"task_type": "io", "input": {"sleep_ms": 1000}}));
    let mut stream = Stream::open(client, &format!("/task/{id}/events"), None);
    let mut seen = Vec::new();
    while !seen.iter().any(|event: &Event| event.name == "task.log") {
        seen.push(stream.next().unwrap());
    }
    assert_eq!(client.status(&id), "Running", "{seen:?}");
    seen.extend(stream.rest());
    let progress: Vec<&Event> = seen.iter().filter(|event| event.name == "task.progress").collect();
    assert_eq!(progress.last().unwrap().data["progress"], json!({"fraction": 1.0, "note": "done"}), "{seen:?}");
    // Of an attempt's progress only the newest is kept.
    let kept = Stream::open(client, &format!("/task/{id}/events"), None).rest();
    assert_eq!(names(&kept).iter().filter(|name| **name == "task.progress").count(), 1, "{kept:?}");
    let told: Vec<Value> = seen
        .iter()
        .filter(|event| event.name == "task.log")
        .flat_map(|event| event.data["lines"].as_array().unwrap().clone())
        .map(|line| json!([line["seq"], line["level"], line["message"]]))
        .collect();
    let log = client.get(&format!("/task/{id}/logs?limit=1000")).expect(200).json();
    let stored: Vec<Value> = log["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| json!([line["seq"], line["level"], line["message"]]))
        .collect();
    assert_eq!(told, stored);
}

/// Who was cut off at any event goes on with the next, also on another server over the same data.
#[test]
fn streams_are_resumed_without_a_gap_and_across_a_crash() {
    let server = server(&[]);
    let before = Stream::open(&server.client, "/events", Some(0));
    let ids: Vec<String> = (0..50).map(|n| server.client.create(&json!({"task_type": "echo", "input": n}))).collect();
    for id in &ids {
        server.client.wait_for_end(id);
    }
    let mut stream = before;
    let all: Vec<Event> = (0..150).map(|_| stream.next().unwrap()).collect();
    assert!(all.is_sorted_by(|a, b| a.id < b.id));
    for id in &ids {
        let of_task: Vec<Event> = all.iter().filter(|event| event.data["id"] == *id).cloned().collect();
        assert_eq!(names(&of_task), ["task.pending", "task.running", "task.completed"]);
    }
    drop(stream);
    let server = server.crash().start();
    let mut stream = Stream::open(&server.client, "/events", Some(all[70].id));
    let again: Vec<Event> = (71..150).map(|_| stream.next().unwrap()).collect();
    assert_eq!(again, all[71..]);
    let id = server.client.create(&json!({"task_type": "echo"}));
    let new = stream.next().unwrap();
    assert_eq!((&new.data["id"], new.name.as_str()), (&json!(id), "task.pending"));
    assert!(new.id > all[149].id, "numbers only grow, also over a restart");
}

#[test]
fn all_tasks_from_now_on_and_those_that_go() {
    let server = shared_server();
    let client = &server.client;
    let earlier = client.create(&json!({"task_type": guest("sleep-forever")}));
    let mut all = Stream::open(client, "/events", None);
    let mut one = Stream::open(client, &format!("/task/{earlier}/events"), None);
    let later = client.create(&json!({"task_type": "echo"}));
    assert_eq!(all.next_of(&later).name, "task.pending", "and not what was before");
    client.delete(&format!("/task/{earlier}")).expect(200);
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != "task.deleted") {
        names.push(all.next_of(&earlier).name);
    }
    // It was stopped first, and was over with that.
    let last = std::iter::from_fn(|| one.next()).last().unwrap();
    assert!(matches!(&*last.name, "task.failed" | "task.deleted"), "{last:?}");
    client.get(&format!("/task/{earlier}/events")).problem(404);
}

#[test]
fn attempts_that_are_repeated_are_told() {
    let server = shared_server();
    let body = json!({"task_type": guest("fail"), "input": {"transient": "later"},
        "retry": {"max_attempts": 2, "initial_backoff_ms": 1}});
    let task = server.client.failure(&body);
    let events = Stream::open(&server.client, &format!("/task/{}/events", task["id"].as_str().unwrap()), None).rest();
    let told: Vec<(&str, &Value)> = events.iter().map(|event| (&*event.name, &event.data["attempt"])).collect();
    let expected =
        [("task.pending", 0), ("task.running", 1), ("task.pending", 1), ("task.running", 2), ("task.failed", 2)];
    assert_eq!(
        told,
        expected.map(|(name, attempt)| (name, json!(attempt))).each_ref().map(|(name, attempt)| (*name, attempt))
    );
    assert_eq!(events[2].data["error"]["kind"], "transient");
}

/// There are only so many streams, and each that ends makes room.
#[test]
fn streams_are_bounded() {
    let server = server(&["--max-event-streams", "2"]);
    let client = &server.client;
    let first = Stream::open(client, "/events", None);
    let _second = Stream::open(client, "/events", None);
    let refused = client.get("/events");
    assert!(refused.header("retry-after").is_some() && refused.header("ratelimit-policy").is_some(), "{refused:?}");
    refused.problem(429);
    drop(first);
    wait_for("room for a stream", || {
        let (status, ..) = client.stream("/events", &[]);
        (status == 200).then_some(())
    });
}

/// A server that stops does not wait for those who listen.
#[test]
fn streams_end_when_the_server_stops() {
    let server = server(&[]);
    let mut stream = Stream::open(&server.client, "/events", None);
    let started = std::time::Instant::now();
    server.stop();
    assert_eq!(stream.next(), None);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

/// For an hour it can be read that a task was removed. The clock cannot be moved, but what it wrote can.
#[test]
fn a_removal_is_forgotten_after_an_hour() {
    const HOUR_MS: i64 = 60 * 60 * 1000;
    /// `kind` of `task.deleted` in the database.
    const DELETED: i64 = 6;
    let server = server(&[]);
    let deleted = [0, 1].map(|_| {
        let id = server.client.create(&json!({"task_type": "echo", "delay_ms": 600_000}));
        server.client.delete(&format!("/task/{id}")).expect(200);
        id
    });
    // What is told of all tasks up to now.
    let told = |client: &Client| {
        let last = client.create(&json!({"task_type": "echo"}));
        let mut stream = Stream::open(client, "/events", Some(0));
        let events = std::iter::from_fn(|| stream.next()).take_while(|event| event.data["id"] != *last);
        let deleted = events.filter(|event| event.name == "task.deleted");
        deleted.map(|event| event.data["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(told(&server.client), deleted);
    let setup = server.crash();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    let now = millis(&in_millis(0));
    for (id, age_ms) in deleted.iter().zip([HOUR_MS - 120_000, HOUR_MS + 1]) {
        let task = id.replace('-', "");
        let sql = format!("UPDATE event SET at = ?1 WHERE kind = {DELETED} AND hex(task) = upper(?2)");
        assert_eq!(database.execute(&sql, (now - age_ms, task)).unwrap(), 1);
    }
    drop(database);
    let server = setup.start();
    // Where the older is gone the younger was looked at as well.
    wait_for("the older to be forgotten", || {
        let told = told(&server.client);
        assert!(told.contains(&deleted[0]), "{told:?}");
        (told.len() == 1).then_some(())
    });
}

/// A client that has seen more than the server has, as it was before a restore, hears what happens from now on.
#[test]
fn an_event_that_is_not_there_yet_hides_nothing() {
    let server = shared_server();
    let client = &server.client;
    let mut all = Stream::open(client, "/events", Some(u64::MAX >> 1));
    let id = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 300}}));
    let one = Stream::open(client, &format!("/task/{id}/events"), Some(9_000_000_000_000_000_000));
    assert_eq!(names(&one.rest()).last(), Some(&"task.completed"));
    all.next_of(&id);
}

/// What a tenant sees of the numbers of its events says nothing of what others do; they go on after a crash, and after
/// all events were removed.
#[test]
fn the_numbers_of_a_tenants_events_are_its_own() {
    let setup = Setup::new(&[]);
    let [a, b] = ["a", "b"].map(|tenant| {
        setup.make_tenant(tenant);
        setup.make_key(tenant, "submit", &[])
    });
    let server = setup.start();
    let run = |server: &Server| {
        let (a, b) = (server.client.with_key(&a), server.client.with_key(&b));
        let mut seen = Vec::new();
        for number in 0..3 {
            (0..=number).for_each(|_| drop(a.run(&json!({"task_type": "echo"}))));
            let id = b.run(&json!({"task_type": "echo"}))["id"].as_str().unwrap().to_owned();
            let events = Stream::open(&b, &format!("/task/{id}/events"), None).rest();
            seen.extend(events.iter().map(|event| event.id));
        }
        seen
    };
    assert_eq!(run(&server), (1..=9).collect::<Vec<_>>());
    let server = server.crash().start();
    assert_eq!(run(&server), (10..=18).collect::<Vec<_>>());
    let b_sees = server.client.with_key(&b);
    let all: Vec<u64> = {
        let mut stream = Stream::open(&b_sees, "/events", Some(0));
        (0..18).map(|_| stream.next().unwrap().id).collect()
    };
    assert_eq!(all, (1..=18).collect::<Vec<_>>());
    let setup = server.stop();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    database.execute("DELETE FROM event", []).unwrap();
    drop(database);
    assert_eq!(run(&setup.start()), (19..=27).collect::<Vec<_>>());
}

/// A task that is deleted while it runs is stopped for that, which is no end of its own: its stream, and that of all,
/// tell that it is gone and nothing else.
#[test]
fn a_running_task_that_is_deleted_is_told_as_deleted() {
    let server = server(&[]);
    let client = &server.client;
    for in_bulk in [false, true] {
        let label = format!("bulk-{in_bulk}");
        let id = client.create(&json!({"task_type": guest("spin"), "labels": {"of": label}}));
        client.wait_for_status(&id, "Running");
        let (mut of_task, mut of_all) =
            (Stream::open(client, &format!("/task/{id}/events"), None), Stream::open(client, "/events", Some(0)));
        while of_task.next().unwrap().name != "task.running" {}
        while of_all.next_of(&id).name != "task.running" {}
        if in_bulk {
            let body = json!({"labels": {"of": label}}).to_string();
            let operation = client
                .send("POST", "/tasks/delete", &[("content-type", "application/json")], Some(body.as_bytes()))
                .expect(202)
                .json();
            let path = format!("/operations/{}", operation["id"].as_str().unwrap());
            let done = wait_for("the operation", || {
                Some(client.get(&path).expect(200).json()).filter(|operation| operation["status"] == "Completed")
            });
            assert_eq!((&done["matched"], &done["done"], &done["skipped"]), (&json!(1), &json!(1), &json!(0)));
        } else {
            client.delete(&format!("/task/{id}")).expect(200);
        }
        assert_eq!(names(&of_task.rest()), ["task.deleted"]);
        assert_eq!(of_all.next_of(&id).name, "task.deleted");
    }
}
