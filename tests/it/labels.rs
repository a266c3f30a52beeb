//! A client's own names for its tasks, and finding them by these.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::{Client, Server, guest, server, shared_server};

fn ids(page: &Value) -> Vec<String> {
    page["tasks"].as_array().unwrap().iter().map(|task| task["id"].as_str().unwrap().to_owned()).collect()
}

/// All pages of a list.
fn pages(client: &Client, query: &str, limit: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut path = format!("/tasks?limit={limit}&{query}");
    loop {
        let answer = client.get(&path).expect(200);
        let page = answer.json();
        all.extend(ids(&page));
        if page["next_cursor"].is_null() {
            return all;
        }
        let link = answer.header("link").expect("a link to the next page");
        path = link.trim_start_matches('<').split_once('>').unwrap().0.to_owned();
    }
}

fn create(client: &Client, labels: &Value) -> String {
    client.create(&json!({"task_type": "echo", "labels": labels}))
}

#[test]
fn labels_are_told_wherever_the_task_is() {
    let server = server(&[]);
    let labels = json!({"team": "a", "": "b"});
    server.client.post_task(&json!({"task_type": "echo", "labels": labels}).to_string()).problem(422);
    let labels = json!({"z": "last", "team": "a b:ü", "empty": ""});
    let id = create(&server.client, &labels);
    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(client.wait_for_end(&id)["labels"], labels);
    assert_eq!(client.get("/tasks").expect(200).json()["tasks"][0]["labels"], labels);
    assert_eq!(client.run(&json!({"task_type": "echo"}))["labels"], json!({}));
    for query in ["label=team:a%20b:%C3%BC", "label=empty:", "label=z:last&label=empty:&label=team:a+b:%C3%BC"] {
        assert_eq!(
            ids(&client.get(&format!("/tasks?{query}")).expect(200).json()),
            std::slice::from_ref(&id),
            "{query}"
        );
    }
}

#[test]
fn labels_that_cannot_be_are_refused() {
    let server = shared_server();
    let client = &server.client;
    let many = |count: usize| Value::Object((0..count).map(|n| (format!("k{n}"), json!("v"))).collect());
    let long = |length: usize| "k".repeat(length);
    let refused = [
        many(33),
        json!({long(64): "v"}),
        json!({"": "v"}),
        json!({"a:b": "v"}),
        json!({"a\n": "v"}),
        json!({"a": long(256)}),
        json!({"a": "\u{0}"}),
        json!({"a": 1}),
        json!(["a"]),
        json!(null),
    ];
    for labels in refused {
        let problem = client.post_task(&json!({"task_type": "echo", "labels": labels}).to_string()).problem(422);
        let pointer = problem["errors"][0]["pointer"].as_str().unwrap();
        assert!(pointer.starts_with("#/labels"), "{labels}: {problem}");
    }
    for labels in [many(32), json!({long(63): long(255)})] {
        assert_eq!(client.run(&json!({"task_type": "echo", "labels": labels}))["labels"], labels);
    }
    for query in ["label=a", "label=:b", "label=", &"label=a:b&".repeat(9)] {
        client.get(&format!("/tasks?{query}")).problem(400);
    }
}

/// A server with tasks of all combinations of labels, and their ids, newest first.
fn with_tasks() -> (Server, Vec<(String, usize)>) {
    let server = server(&[]);
    let mut tasks: Vec<_> = (0..24)
        .map(|n| {
            let labels = json!({"two": (n % 2).to_string(), "three": (n % 3).to_string(), "all": "x"});
            let task_type = if n % 4 == 0 { guest("trap") } else { "echo" };
            let task = server.client.run(&json!({"task_type": task_type, "labels": labels}));
            (task["id"].as_str().unwrap().to_owned(), n)
        })
        .collect();
    tasks.reverse();
    (server, tasks)
}

#[test]
fn all_labels_must_match_and_the_other_filters_as_well() {
    let (server, tasks) = with_tasks();
    let client = &server.client;
    let of = |matches: fn(usize) -> bool| -> Vec<String> {
        tasks.iter().filter(|(_, n)| matches(*n)).map(|(id, _)| id.clone()).collect()
    };
    let cases: [(&str, Vec<String>); 9] = [
        ("label=all:x", of(|_| true)),
        ("label=two:1", of(|n| n % 2 == 1)),
        ("label=two:1&label=three:2", of(|n| n % 2 == 1 && n % 3 == 2)),
        ("label=three:2&label=all:x&label=two:1", of(|n| n % 2 == 1 && n % 3 == 2)),
        ("label=two:0&label=two:1", Vec::new()),
        ("label=two:2", Vec::new()),
        ("label=all:x&status=Failed", of(|n| n % 4 == 0)),
        ("label=three:0&status=Completed&task_type=echo", of(|n| n % 3 == 0 && n % 4 != 0)),
        ("label=two:0&error_kind=trap&label=three:1", of(|n| n % 4 == 0 && n % 3 == 1)),
    ];
    for (query, expected) in cases {
        for limit in [1, 2, 5, 100] {
            assert_eq!(pages(client, query, limit), expected, "{query}, {limit}");
        }
    }
    let middle = client.task(&tasks[12].0)["created_at"].as_str().unwrap().to_owned();
    let older = pages(client, &format!("label=all:x&created_before={middle}"), 4);
    assert!(older.len() <= 11 && tasks.iter().rev().map(|task| &task.0).zip(older.iter().rev()).all(|(a, b)| a == b));
}

/// A cursor belongs to the labels it was made for.
#[test]
fn a_cursor_is_bound_to_its_labels() {
    let (server, _) = with_tasks();
    let page = server.client.get("/tasks?limit=2&label=all:x&label=two:0").expect(200).json();
    let cursor = page["next_cursor"].as_str().unwrap();
    server.client.get(&format!("/tasks?limit=2&label=all:x&label=two:0&cursor={cursor}")).expect(200);
    for labels in ["", "label=all:x", "label=all:x&label=two:1", "label=all:x&label=two:0&label=three:0"] {
        server.client.get(&format!("/tasks?limit=2&{labels}&cursor={cursor}")).problem(400);
    }
}

/// What is there from the first page to the last is listed once, whatever comes and goes in between.
#[test]
fn pages_are_right_while_tasks_come_and_go() {
    let server = server(&[]);
    let client = &server.client;
    let labels = json!({"kind": "kept", "all": "x"});
    let kept: BTreeSet<String> = (0..40)
        .map(|n| {
            if n % 2 == 0 {
                create(client, &json!({"kind": "gone", "all": "x"}));
            }
            create(client, &labels)
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // What goes: the older ones, one by one. What comes: newer ones, some of which go again.
            while !stop.load(Ordering::Relaxed) {
                let id = create(client, &json!({"kind": "new", "all": "x"}));
                client.delete(&format!("/task/{id}")).expect(200);
                create(client, &json!({"kind": "new", "all": "x"}));
                if let Some(gone) = ids(&client.get("/tasks?limit=1&label=kind:gone").expect(200).json()).first() {
                    client.delete(&format!("/task/{gone}")).expect(200);
                }
            }
        });
        for round in 0..12 {
            let query = ["label=all:x", "label=kind:kept&label=all:x", "label=kind:kept"][round % 3];
            let listed = pages(client, query, 3);
            let once: BTreeSet<_> = listed.iter().cloned().collect();
            assert_eq!(once.len(), listed.len(), "{query}: listed twice");
            assert!(kept.is_subset(&once), "{query}: {} are missing", kept.difference(&once).count());
            assert!(listed.is_sorted_by(|a, b| a > b), "{query}: newest first");
            assert!(round % 3 == 0 || once == kept, "{query}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A task that is removed is found no more by its labels.
#[test]
fn a_deleted_task_is_not_found() {
    let server = server(&[]);
    let client = &server.client;
    let id = create(client, &json!({"a": "b"}));
    client.wait_for_end(&id);
    assert_eq!(pages(client, "label=a:b", 10), std::slice::from_ref(&id));
    client.delete(&format!("/task/{id}")).expect(200);
    assert_eq!(pages(client, "label=a:b", 10), Vec::<String>::new());
}

#[test]
fn the_reference_names_the_filter() {
    let server = shared_server();
    let document = server.client.get("/openapi.json").expect(200).json();
    let parameters = document["paths"]["/tasks"]["get"]["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|parameter| parameter["name"] == "label" && parameter["in"] == "query"));
}
