//! `GET /tasks`: filters and pages.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Client, guest, server};

fn ids(page: &Value) -> Vec<String> {
    page["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

/// All pages of a list, in order; follows the cursor, or the link, which say the same.
fn pages(client: &Client, query: &str, limit: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut path = format!("/tasks?limit={limit}&{query}");
    loop {
        let answer = client.get(&path).expect(200);
        let page = answer.json();
        let listed = ids(&page);
        assert!(listed.len() <= limit);
        all.extend(listed);
        let link = answer.header("link").map(str::to_owned);
        let Some(cursor) = page["next_cursor"].as_str() else {
            assert!(page["next_cursor"].is_null() && link.is_none(), "{page}");
            return all;
        };
        let link = link.expect("a page that is not the last has a link");
        let (target, rest) = link.trim_start_matches('<').split_once('>').unwrap();
        assert!(rest.contains("rel=\"next\""), "{link}");
        assert!(target.contains(cursor), "{link}");
        path = if all.len() % 2 == 0 {
            target.to_owned()
        } else {
            format!("/tasks?limit={limit}&{query}&cursor={cursor}")
        };
    }
}

#[test]
fn pages_have_no_gaps_and_no_repeats_while_tasks_come_and_go() {
    let server = server(&[]);
    let client = &server.client;
    let kept: Vec<String> = (0..60).map(|n| client.create(&json!({"task_type": "echo", "input": n}))).collect();
    let mut newest_first = kept.clone();
    newest_first.reverse();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let id = client.create(&json!({"task_type": "echo"}));
                client.delete(&format!("/task/{id}")).expect(200);
            }
        });
        for limit in [1, 7, 59, 60, 1000] {
            let listed = pages(client, "", limit);
            let unique: HashSet<&String> = listed.iter().collect();
            assert_eq!(unique.len(), listed.len(), "limit {limit}: something came twice");
            let found: Vec<String> = listed.into_iter().filter(|id| kept.contains(id)).collect();
            assert_eq!(found, newest_first, "limit {limit}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn filters() {
    let server = server(&["--max-running", "2"]);
    let client = &server.client;
    let done = client.run(&json!({"task_type": "echo"}));
    let failed = client.run(&json!({"task_type": guest("fail"), "input": {"permanent": "no"}}));
    let trapped = client.run(&json!({"task_type": guest("trap")}));
    let running = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&running, "Running");
    let other = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&other, "Running");
    let pending = client.create(&json!({"task_type": "echo"}));
    let id = |task: &Value| task["id"].as_str().unwrap().to_owned();
    let (done, failed, trapped) = (id(&done), id(&failed), id(&trapped));
    let listed = |query: &str| ids(&client.get(&format!("/tasks?{query}")).expect(200).json());

    let (done, failed, trapped) = (done.as_str(), failed.as_str(), trapped.as_str());
    let (pending, other, running) = (pending.as_str(), other.as_str(), running.as_str());
    assert_eq!(listed(""), [pending, other, running, trapped, failed, done]);
    assert_eq!(listed("status=Pending"), [pending]);
    assert_eq!(listed("status=Running"), [other, running]);
    assert_eq!(listed("status=Completed"), [done]);
    assert_eq!(listed("status=Failed"), [trapped, failed]);
    assert_eq!(listed("task_type=echo"), [pending, done]);
    assert_eq!(listed("task_type=echo&status=Completed"), [done]);
    assert_eq!(listed("error_kind=trap"), [trapped]);
    assert_eq!(listed("error_kind=timeout"), [""; 0]);
    assert_eq!(listed("task_type=nonesuch"), [""; 0]);

    let at = |id: &str| client.task(id)["created_at"].as_str().unwrap().to_owned();
    // Creation to the millisecond: two tasks may share one.
    let (second, fifth) = (at(failed), at(other));
    let between = listed(&format!("created_after={second}&created_before={fifth}"));
    assert!(![failed, other, pending].iter().any(|id| between.contains(&(*id).to_owned())), "{between:?}");
    assert_eq!(listed("created_before=2020-01-01T00:00:00Z"), [""; 0]);
    assert_eq!(listed("created_after=2020-01-01T00:00:00Z").len(), 6);
    assert_eq!(listed("created_after=2099-01-01T00:00:00Z"), [""; 0]);

    assert_eq!(pages(client, "status=Failed", 1), [trapped, failed]);
    assert_eq!(listed("limit=100000").len(), 6, "a limit above the largest is the largest");
}

/// A cursor belongs to the filters it came from.
#[test]
fn cursors() {
    let server = server(&[]);
    let client = &server.client;
    for n in 0..3 {
        client.run(&json!({"task_type": "echo", "input": n}));
    }
    let page = client.get("/tasks?limit=1&status=Completed").expect(200).json();
    let cursor = page["next_cursor"].as_str().unwrap();
    client.get(&format!("/tasks?limit=1&status=Completed&cursor={cursor}")).expect(200);
    client.get(&format!("/tasks?limit=1&status=Failed&cursor={cursor}")).problem(400);
    client.get(&format!("/tasks?limit=1&cursor={cursor}")).problem(400);
    for bad in ["x", "", "%00", &cursor[..cursor.len() - 1], &format!("{cursor}A")] {
        client.get(&format!("/tasks?limit=1&status=Completed&cursor={bad}")).problem(400);
    }
}
