//! What stops a task, at the very moment at which it ends, is attempted again, or is stopped by others.
//! Whichever comes first, one thing happens, and all that is said of it agrees.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::gone;
use crate::durability::Random;
use crate::events::Stream;
use crate::support::{Answer, Client, guest, server};

/// Rounds of each kind of task with each set of requests.
const ROUNDS: usize = 6;

/// About how long a task takes, in milliseconds.
const TAKES_MS: u64 = 25;

/// What is asked at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Cancel,
    Delete,
    Retry,
}

use Ask::{Cancel, Delete, Retry};

/// What came of it.
#[derive(Debug)]
struct Asked {
    ask: Ask,
    answer: Answer,
}

/// Tasks that end by themselves after a while, and how.
fn bodies() -> Vec<(Value, &'static str)> {
    let at_its_time = json!({"timeout_ms": TAKES_MS});
    vec![
        (json!({"task_type": guest("sleep"), "input": {"ms": TAKES_MS}}), "Completed"),
        (json!({"task_type": guest("compute"), "input": {"work": "fib", "n": 29}}), "Completed"),
        (json!({"task_type": "io-blocking", "input": {"sleep_ms": TAKES_MS / 3}}), "Completed"),
        (json!({"task_type": guest("sleep-forever"), "limits": at_its_time}), "timeout"),
        (json!({"task_type": guest("spin"), "limits": at_its_time}), "timeout"),
        (
            json!({
                "task_type": guest("objects"), "limits": at_its_time,
                "input": {"op": "list", "limit": 1, "at_once": 4, "rounds": 1_000_000},
            }),
            "timeout",
        ),
        (
            json!({
                "task_type": guest("fail"), "input": {"transient": "x", "until": 3, "after_ms": TAKES_MS / 3},
                "retry": {"max_attempts": 3, "initial_backoff_ms": 1},
            }),
            "Completed",
        ),
        (json!({"task_type": "echo", "delay_ms": TAKES_MS}), "Completed"),
    ]
}

/// How a task ended: with a result, or why not.
fn end(task: &Value) -> &str {
    if task["status"] == "Failed" { task["error"]["kind"].as_str().unwrap() } else { task["status"].as_str().unwrap() }
}

/// Creates the task and asks all of it, each after a random time that is about as long as it takes; beside
/// that one waits for its end.
fn round(client: &Client, body: &Value, asks: &[Ask], random: &mut Random) -> (String, Vec<Asked>, Answer) {
    let micros = |random: &mut Random| Duration::from_micros(random.below(2_000 * TAKES_MS));
    let together = random.chance(50).then(|| micros(random));
    let asks: Vec<_> = asks.iter().map(|ask| (*ask, together.unwrap_or_else(|| micros(random)))).collect();
    let id = client.create(body);
    let path = format!("/task/{id}");
    thread::scope(|scope| {
        let waits = scope.spawn(|| client.get_with(&path, &[("prefer", "wait=60")]));
        let threads: Vec<_> = asks
            .into_iter()
            .map(|(ask, after)| {
                let path = &path;
                scope.spawn(move || {
                    thread::sleep(after);
                    let mut answer = match ask {
                        Cancel => client.post(&format!("{path}/cancel")),
                        Retry => client.post(&format!("{path}/retry")),
                        Delete => client.delete(path),
                    };
                    answer.of += &format!(" after {after:?}");
                    Asked { ask, answer }
                })
            })
            .collect();
        let asked = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (id.clone(), asked, waits.join().unwrap())
    })
}

/// How often that was done.
fn times(asked: &[Asked], ask: Ask, status: u16) -> usize {
    asked.iter().filter(|asked| asked.ask == ask && asked.answer.status == status).count()
}

#[track_caller]
fn check(client: &Client, id: &str, by_itself: &str, asked: &[Asked], waited: &Answer) {
    let what = format!("{id}: {asked:#?}");
    let deletes = asked.iter().filter(|asked| asked.ask == Delete).count();
    for Asked { ask, answer, .. } in asked {
        let can_be = match ask {
            Cancel => matches!(answer.status, 202 | 409),
            Retry => matches!(answer.status, 202 | 409),
            Delete => answer.status == 200,
        };
        assert!(can_be || (answer.status == 404 && deletes > 0), "{what}");
        if *ask == Cancel && answer.status == 202 {
            assert_eq!(end(&answer.json()), "canceled", "{what}");
        }
    }
    match waited.status {
        200 => assert!(matches!(waited.json()["status"].as_str(), Some("Completed" | "Failed")), "{waited:?}: {what}"),
        status => assert!(status == 404 && deletes > 0, "{waited:?}: {what}"),
    }
    if deletes > 0 {
        assert_eq!(times(asked, Delete, 200), 1, "{what}");
        return gone(client, id);
    }

    let task = client.wait_for_end(id);
    let (canceled, retried) = (times(asked, Cancel, 202), times(asked, Retry, 202));
    if end(&task) == "canceled" {
        assert!(canceled > 0, "{task:#} {what}");
    } else {
        assert!(end(&task) == by_itself && (canceled == 0 || retried > 0), "{task:#} {what}");
    }
    if retried == 0 {
        for Asked { answer, .. } in asked.iter().filter(|asked| asked.answer.status == 202) {
            assert_eq!(answer.json(), task, "{what}");
        }
        assert_eq!(waited.json(), task, "{what}");
    }

    // Each end is told once, and each attempt that began.
    let events = Stream::open(client, &format!("/task/{id}/events"), None).rest();
    let count = |names: &[&str]| events.iter().filter(|event| names.contains(&&*event.name)).count();
    assert_eq!(count(&["task.completed", "task.failed"]), 1 + retried, "{events:#?} {what}");
    let last = events.last().unwrap();
    let expected = if task["status"] == "Completed" { "task.completed" } else { "task.failed" };
    assert_eq!((&*last.name, &last.data["attempt"]), (expected, &task["attempt"]), "{events:#?} {what}");
    let attempts = client.get(&format!("/task/{id}/attempts")).expect(200).json();
    let attempts = attempts["attempts"].as_array().unwrap();
    assert_eq!((count(&["task.running"]), &task["attempt"]), (attempts.len(), &json!(attempts.len())), "{what}");
    assert!(attempts.iter().all(|attempt| attempt["finished_at"].is_string()), "{attempts:#?} {what}");
}

/// On a server with one place: what keeps it after its end is seen at once.
fn race(sets: &[&[Ask]]) {
    let mut random = Random::new();
    let server = server(&["--max-running", "1", "--max-working", "1"]);
    let client = &server.client;
    let mut by_itself = 0;
    for (body, end_by_itself) in bodies() {
        for asks in sets {
            let mut stream = Stream::open(client, "/events", None);
            for _ in 0..ROUNDS {
                let (id, asked, waited) = round(client, &body, asks, &mut random);
                check(client, &id, end_by_itself, &asked, &waited);
                by_itself += usize::from(waited.status == 200 && end(&waited.json()) == end_by_itself);
                let next = client.run(&json!({"task_type": "echo", "input": 1}));
                assert_eq!(next["output"], 1, "the place is free again: {asked:#?}");
                // All that was told of it until then, as whoever listened heard it.
                let next = next["id"].as_str().unwrap();
                let told: Vec<_> = std::iter::from_fn(|| stream.next())
                    .take_while(|event| event.data["id"] != next)
                    .filter(|event| event.data["id"] == *id)
                    .collect();
                let deletions = told.iter().filter(|event| event.name == "task.deleted").count();
                assert_eq!(deletions, usize::from(asks.contains(&Delete)), "{told:#?} {asked:#?}");
                assert!(deletions == 0 || told.last().unwrap().name == "task.deleted", "{told:#?} {asked:#?}");
            }
        }
    }
    let rounds = bodies().len() * sets.len() * ROUNDS;
    eprintln!("{by_itself} of {rounds} ended by themselves before they were stopped");
    assert!(by_itself > 0 && by_itself < rounds, "nothing ever came first: {by_itself} of {rounds}");
}

#[test]
fn cancel_and_the_end() {
    race(&[&[Cancel], &[Cancel, Cancel]]);
}

#[test]
fn delete_and_the_end() {
    race(&[&[Delete], &[Delete, Delete]]);
}

#[test]
fn cancel_and_delete() {
    race(&[&[Cancel, Delete]]);
}

#[test]
fn retry_and_what_stops() {
    race(&[&[Retry, Cancel], &[Retry, Delete], &[Retry, Retry, Cancel, Cancel]]);
}
