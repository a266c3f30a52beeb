//! `wasi:keyvalue` on the tenant's storage.

mod bounds;

use serde_json::{Value, json};

use crate::support::guests::GUESTS;
use crate::support::{Client, guest, server, wait_for};

fn grant(client: &Client, name: &str, buckets: &[&str]) -> Value {
    let patch = json!({"grants": {"keyvalue": buckets}}).to_string();
    let headers = [("content-type", "application/merge-patch+json")];
    client.send("PATCH", &format!("/task-types/{name}"), &headers, Some(patch.as_bytes())).expect(200).json()
}

/// A task that does this with a bucket.
fn task(draft: u8, bucket: &str, acts: &Value) -> Value {
    json!({"task_type": guest("keyvalue"), "input": {"draft": draft, "bucket": bucket, "do": acts}})
}

/// What came of it, in the newer draft.
#[track_caller]
fn acts(client: &Client, bucket: &str, acts: Value) -> Value {
    client.output(&task(2, bucket, &acts))
}

fn value(text: &str) -> Value {
    json!({"bytes": text.len(), "text": text})
}

#[test]
fn nothing_is_granted_by_itself() {
    let server = server(&[]);
    let of_type = server.client.get("/task-types/keyvalue").expect(200).json();
    assert_eq!((&of_type["state"], &of_type["grants_missing"]), (&json!("held"), &json!(["keyvalue"])));
    // Nor what is granted no more.
    grant(&server.client, guest("keyvalue"), &["a"]);
    grant(&server.client, guest("keyvalue"), &[]);
    for draft in [1, 2] {
        let told = server.client.output(&task(draft, "a", &json!([])));
        assert_eq!(told, json!({"error": "access-denied", "detail": null}));
    }
}

#[test]
fn a_type_opens_the_buckets_that_it_is_granted() {
    let server = server(&[]);
    let client = &server.client;
    let of_type = grant(client, guest("keyvalue"), &["a", "b.c"]);
    assert_eq!((&of_type["grants"]["keyvalue"], &of_type["grants_missing"]), (&json!(["a", "b.c"]), &json!([])));
    for draft in [1, 2] {
        for granted in ["a", "b.c"] {
            assert_eq!(client.output(&task(draft, granted, &json!([]))), json!([]));
        }
        for other in ["", "A", "b", "a ", "default", &"a".repeat(100_000)] {
            assert_eq!(client.output(&task(draft, other, &json!([])))["error"], "access-denied", "{other}");
        }
    }
    // A bucket is the tenant's: another type that is granted it finds the same there, and one that is not, nothing.
    acts(client, "a", json!([{"op": "set", "key": "n", "value": "1"}]));
    grant(client, "counter", &["other"]);
    let counted = client.failure(&json!({"task_type": guest("counter")}));
    assert_eq!(counted["error"]["kind"], "permanent", "{counted:#}");
    grant(client, "keyvalue", &["counters"]);
    acts(client, "counters", json!([{"op": "set", "key": "n", "value": "41"}]));
    grant(client, "counter", &["counters"]);
    assert_eq!(client.output(&json!({"task_type": "counter"})), 42);
    assert_eq!(acts(client, "a", json!([]))["error"], "access-denied", "what is no longer granted");
    let patch = json!({"grants": {"keyvalue": ["a", "a/b"]}}).to_string();
    let headers = [("content-type", "application/merge-patch+json")];
    let problem = client.send("PATCH", "/task-types/keyvalue", &headers, Some(patch.as_bytes())).problem(422);
    assert_eq!(problem["errors"][0]["pointer"], "#/grants/keyvalue/1", "{problem}");
}

#[test]
fn a_version_is_held_until_it_is_granted() {
    let server = server(&[]);
    let client = &server.client;
    for name in ["keyvalue", "counter"] {
        let bytes = GUESTS.iter().find(|(guest, _)| *guest == name).unwrap().1;
        let headers = [("content-type", "application/wasm"), ("prefer", "wait=60")];
        let path = format!("/task-types/mine-{name}");
        let uploaded = client.send("PUT", &path, &headers, Some(bytes)).expect(201).json();
        let told = (&uploaded["state"], &uploaded["grants_missing"]);
        assert_eq!(told, (&json!("held"), &json!(["keyvalue"])), "{uploaded:#}");
        let granted = grant(client, &format!("mine-{name}"), &["counters"]);
        assert_eq!(granted["state"], "ready", "{granted:#}");
    }
    assert_eq!(client.output(&json!({"task_type": "mine-counter"})), 1);
}

#[test]
fn what_both_drafts_do() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["1", "2"]);
    for draft in [1, 2] {
        let all = json!([
            {"op": "get", "key": "a"}, {"op": "exists", "key": "a"}, {"op": "delete", "key": "a"},
            {"op": "set", "key": "a", "value": "é"}, {"op": "get", "key": "a"}, {"op": "exists", "key": "a"},
            {"op": "set", "key": "a", "value": ""}, {"op": "get", "key": "a"}, {"op": "exists", "key": "a"},
            {"op": "set-many", "values": [["b", "1"], ["c", "2"], ["b", "3"]]},
            {"op": "get-many", "keys": ["c", "none", "b", "c"]},
            {"op": "list", "cursor": null},
            {"op": "increment", "key": "n", "delta": 5}, {"op": "increment", "key": "n", "delta": 37},
            {"op": "increment", "key": "b", "delta": 0}, {"op": "get", "key": "n"},
            {"op": "delete-many", "keys": ["a", "none", "c"]}, {"op": "list", "cursor": null},
            {"op": "get-many", "keys": []}, {"op": "set-many", "values": []}, {"op": "delete-many", "keys": []},
        ]);
        let null = Value::Null;
        let expected = [
            null.clone(),
            json!(false),
            null.clone(),
            null.clone(),
            value("é"),
            json!(true),
            null.clone(),
            value(""),
            json!(true),
            null.clone(),
            json!([value("2"), null, value("3"), value("2")]),
            json!({"keys": ["a", "b", "c"], "cursor": null}),
            json!(5),
            json!(42),
            json!(3),
            value("42"),
            null.clone(),
            json!({"keys": ["b", "n"], "cursor": null}),
            json!([]),
            null.clone(),
            null,
        ]
        .map(|ok| json!({ "ok": ok }));
        let done = client.run(&task(draft, &draft.to_string(), &all));
        assert_eq!(done["output"], json!(expected), "draft {draft}");
        // Its opening, and one for each; what went in, and what came out.
        let usage = &done["usage"];
        assert_eq!((&usage["host_calls"], &usage["io_bytes"]), (&json!(22), &json!(2 + 2 + 3 + 3 + 2)), "{usage}");
    }
}

#[test]
fn numbers() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let increment = |draft: u8, value: Option<&str>, delta: i128| {
        let before = match value {
            Some(value) => json!({"op": "set", "key": "n", "value": value}),
            None => json!({"op": "delete", "key": "n"}),
        };
        let all = json!([before, {"op": "increment", "key": "n", "delta": delta}, {"op": "get", "key": "n"}]);
        let done = client.output(&task(draft, "a", &all));
        let left = done[2]["ok"]["text"].as_str().map(str::to_owned);
        match &done[1]["ok"] {
            Value::Null => {
                assert_eq!(done[1]["error"], "other", "{done}");
                assert_eq!(left.as_deref(), value, "nothing changed: {done}");
                None
            }
            sum => {
                assert_eq!(left, Some(sum.to_string()), "{done}");
                Some(sum.clone())
            }
        }
    };
    let (most, most_signed) = (u64::MAX.to_string(), i64::MAX.to_string());
    assert_eq!(increment(1, None, u64::MAX.into()), Some(json!(u64::MAX)));
    assert_eq!(increment(1, Some(&most), 0), Some(json!(u64::MAX)));
    assert_eq!(increment(1, Some(&most), 1), None);
    assert_eq!(increment(1, Some("-1"), 0), None);
    assert_eq!(increment(2, None, i64::MIN.into()), Some(json!(i64::MIN)));
    assert_eq!(increment(2, Some("5"), -6), Some(json!(-1)));
    assert_eq!(increment(2, Some(&most_signed), 1), None);
    assert_eq!(increment(2, Some(&i64::MIN.to_string()), -1), None);
    assert_eq!(increment(2, Some(&most), 0), None, "more than the type of this draft has room for");
    let long = "1".repeat(41);
    for none in ["", "a", "1.0", "1 ", "0x1", &"9".repeat(40), &long] {
        assert_eq!((increment(1, Some(none), 1), increment(2, Some(none), 1)), (None, None), "{none:?}");
    }
}

/// However many tasks count at once, each is counted.
#[test]
fn nothing_is_lost_between_tasks() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("counter"), &["counters"]);
    grant(client, guest("keyvalue"), &["counters"]);
    let counters = vec![json!({"task_type": "counter"}); 50];
    let swap = json!([{"op": "add-by-swap", "key": "swapped", "times": 10}]);
    let swappers = vec![task(2, "counters", &swap); 8];
    let add = |draft| vec![task(draft, "counters", &json!([{"op": "increment", "key": "n", "delta": 1}])); 25];
    let all = [counters, swappers, add(1), add(2)].concat();
    let body = json!(all).to_string();
    let created = client.send("POST", "/tasks", &[("content-type", "application/json")], Some(body.as_bytes()));
    let created = created.expect(200).json();
    let mut sums = Vec::new();
    for result in created["results"].as_array().unwrap() {
        let ended = client.wait_for_end(result["task"]["id"].as_str().unwrap());
        assert_eq!(ended["status"], "Completed", "{ended:#}");
        sums.extend(ended["output"].as_u64());
    }
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), 50, "no two get the same: {sums:?}");
    let left = acts(client, "counters", json!([{"op": "get", "key": "n"}, {"op": "get", "key": "swapped"}]));
    assert_eq!(left, json!([{"ok": value("100")}, {"ok": value("80")}]));
}

#[test]
fn compare_and_swap() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let swap = |before: Value, look: bool, meanwhile: Value| {
        let swap =
            json!({"op": "swap", "key": "k", "value": "new", "look": look, "meanwhile": meanwhile, "again": true});
        let done = acts(client, "a", json!([before, swap, {"op": "get", "key": "k"}]));
        assert_eq!(done[2]["ok"]["text"], "new", "it is swapped, or is so at last: {done}");
        done[1]["ok"].clone()
    };
    let (set, delete) =
        (|value: &str| json!({"op": "set", "key": "k", "value": value}), json!({"op": "delete", "key": "k"}));
    for look in [false, true] {
        let seen = |text: &str| if look { value(text) } else { Value::Null };
        assert_eq!(swap(delete.clone(), look, json!([])), json!({"seen": null}), "there is none before");
        assert_eq!(swap(set("old"), look, json!([])), json!({"seen": seen("old")}));
        let other = json!([{"op": "set", "key": "l", "value": "x"}, {"op": "get", "key": "k"}]);
        assert_eq!(swap(set("old"), look, other), json!({"seen": seen("old")}), "another key");
        // The same value is no less another write of it.
        for value_meanwhile in ["other", "old"] {
            let failed = swap(set("old"), look, json!([set(value_meanwhile)]));
            assert_eq!(failed, json!({"seen": seen("old"), "failed": value(value_meanwhile), "again": true}));
        }
        let failed = swap(set("old"), look, json!([delete]));
        assert_eq!(failed, json!({"seen": seen("old"), "failed": null, "again": true}));
        let failed = swap(delete.clone(), look, json!([set("first")]));
        assert_eq!(failed, json!({"seen": null, "failed": value("first"), "again": true}));
    }
    // What the guest looked at last is what counts.
    let swap = json!({"op": "swap", "key": "k", "value": "new", "look": true, "meanwhile": [set("later")],
        "look_again": true, "again": false});
    assert_eq!(acts(client, "a", json!([set("old"), swap])), json!([{"ok": null}, {"ok": {"seen": value("old")}}]));
}

#[test]
fn lists_go_on_where_a_page_ended() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a", "b"]);
    acts(client, "b", json!([{"op": "set", "key": "of-b", "value": ""}]));
    let fill = |keys: std::ops::Range<u32>| {
        let values: Vec<_> = keys.map(|key| json!([key.to_string(), ""])).collect();
        assert_eq!(acts(client, "a", json!([{"op": "set-many", "values": values}])), json!([{"ok": null}]));
    };
    let pages = |draft: u8, op: &str| client.output(&task(draft, "a", &json!([{"op": op}])))[0]["ok"].clone();
    assert_eq!(pages(1, "count"), json!({"pages": [0], "keys": 0}));
    fill(0..1000);
    for draft in [1, 2] {
        assert_eq!(pages(draft, "count"), json!({"pages": [1000], "keys": 1000}), "no more after the last");
    }
    fill(1000..2000);
    fill(2000..2500);
    for draft in [1, 2] {
        assert_eq!(pages(draft, "count"), json!({"pages": [1000, 1000, 500], "keys": 2500}));
    }
    // A key keeps its place when it is set again; what comes, comes behind it. And what goes, moves nothing.
    let first = acts(client, "a", json!([{"op": "list", "cursor": null}]))[0]["ok"].clone();
    fill(0..1000);
    assert_eq!(acts(client, "a", json!([{"op": "list", "cursor": null}]))[0]["ok"], first);
    acts(client, "a", json!([{"op": "delete-many", "keys": ["0", "1", "999", "1000"]}]));
    let cursor = &first["cursor"];
    let second = acts(client, "a", json!([{"op": "list", "cursor": cursor}]))[0]["ok"].clone();
    assert_eq!((&second["keys"][0], second["keys"].as_array().unwrap().len()), (&json!("1001"), 1000));
    let in_draft = client.output(&task(1, "a", &json!([{"op": "list", "cursor": cursor}])));
    assert_eq!(in_draft[0]["ok"], second, "both drafts have the same places");
    assert_eq!(pages(1, "drain"), json!({"pages": [1000, 1000, 496], "keys": 2496}));
    assert_eq!(acts(client, "a", json!([{"op": "list", "cursor": null}]))[0]["ok"]["keys"], json!([]));
    assert_eq!(acts(client, "b", json!([{"op": "list", "cursor": null}]))[0]["ok"]["keys"], json!(["of-b"]));
    for cursor in ["", "x", "-1", "18446744073709551616"] {
        assert_eq!(acts(client, "a", json!([{"op": "list", "cursor": cursor}]))[0]["error"], "other", "{cursor:?}");
    }
    for draft in [1, 2] {
        let past = client.output(&task(draft, "a", &json!([{"op": "list", "cursor": "18446744073709551615"}])));
        assert_eq!(past[0]["ok"], json!({"keys": [], "cursor": null}));
    }
}

/// Keys are neither objects nor do they count as such.
#[test]
fn apart_from_objects() {
    let server = server(&["--object-quota-bytes", "10", "--object-quota-count", "1"]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    client.send("PUT", "/objects/a/k", &[], Some(b"object")).expect(201);
    let set = json!([{"op": "get", "key": "k"}, {"op": "set-zeros", "key": "k", "bytes": 1000}, {"op": "set", "key": "l", "value": ""}]);
    assert_eq!(acts(client, "a", set), json!([{"ok": null}, {"ok": null}, {"ok": null}]));
    let listed = client.get("/objects").expect(200).json();
    assert_eq!(listed["objects"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(client.get("/objects/a/k").expect(200).body, b"object");
    client.delete("/objects/a/k").expect(200);
    assert_eq!(acts(client, "a", json!([{"op": "exists", "key": "k"}])), json!([{"ok": true}]));
}

/// What was set when a task completed is there after a crash, and a backup has it.
#[test]
fn what_is_set_lasts() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    grant(client, guest("counter"), &["counters"]);
    acts(client, "a", json!([{"op": "set", "key": "k", "value": "kept"}, {"op": "set", "key": "gone", "value": "x"}]));
    acts(client, "a", json!([{"op": "delete", "key": "gone"}]));
    assert_eq!(client.output(&json!({"task_type": "counter"})), 1);
    let server = server.crash().start();
    let client = &server.client;
    let read = json!([{"op": "get", "key": "k"}, {"op": "list", "cursor": null}]);
    let kept = json!([{"ok": value("kept")}, {"ok": {"keys": ["k"], "cursor": null}}]);
    assert_eq!(acts(client, "a", read), kept);
    assert_eq!(client.output(&json!({"task_type": "counter"})), 2);
}

/// A batch is written as a whole or not at all, and read as of one moment, whenever its task is stopped.
#[test]
fn a_batch_is_one_change() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let keys: Vec<String> = (0..50).map(|key| format!("key-{key}")).collect();
    let read = json!([{"op": "get-many", "keys": keys}]);
    let round = |client: &Client| {
        let values = acts(client, "a", read.clone())[0]["ok"].clone();
        let values = values.as_array().unwrap();
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        values[0]["text"].as_str().map(|round| round.parse::<u64>().unwrap())
    };
    for _ in 0..10 {
        acts(client, "a", json!([{"op": "delete-many", "keys": keys}]));
        let id = client.create(&task(2, "a", &json!([{"op": "set-rounds", "keys": keys}])));
        wait_for("some rounds", || round(client).filter(|round| *round > 2));
        client.post(&format!("/task/{id}/cancel")).expect(202);
        assert_eq!(round(client), round(client), "after its end nothing of it comes");
    }
    let id = client.create(&task(2, "a", &json!([{"op": "set-rounds", "keys": keys}])));
    wait_for("some rounds", || round(client).filter(|round| *round > 2));
    let server = server.crash().start();
    assert!(round(&server.client).is_some());
    server.client.post(&format!("/task/{id}/cancel")).expect(202);
}
