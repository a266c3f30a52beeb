//! What bounds `wasi:keyvalue`.

use serde_json::{Value, json};

use super::{acts, grant, task, value};
use crate::support::{Client, guest, server};

/// What was refused, which is told in words.
#[track_caller]
fn refused(done: &Value, words: &str) {
    assert_eq!(done["error"], "other", "{done}");
    assert!(done["detail"].as_str().unwrap().contains(words), "{words:?} is not in {done}");
}

#[test]
fn keys() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let (longest, wide) = ("x".repeat(512), "é".repeat(256));
    for good in ["a", "a/b", "/", "..", "\n", "e\u{301}", "\u{7f}", " ", "😀", &longest, &wide] {
        let done = acts(client, "a", json!([{"op": "set", "key": good, "value": good}, {"op": "get", "key": good}]));
        assert_eq!(done, json!([{"ok": null}, {"ok": value(good)}]));
    }
    let before = acts(client, "a", json!([{"op": "count"}]));
    let (long, wide) = ("x".repeat(513), "é".repeat(257));
    for (bad, words) in [("", "empty"), ("\0", "NUL"), ("a\0b", "NUL"), (&long, "512 bytes"), (&wide, "512 bytes")] {
        let swap = json!({"op": "swap", "key": bad, "value": "x", "look": true, "meanwhile": [], "again": false});
        let get = json!({"op": "get", "key": bad});
        for (draft, last) in [(1, &get), (2, &swap)] {
            let all = json!([
                {"op": "get", "key": bad}, {"op": "set", "key": bad, "value": "x"}, {"op": "delete", "key": bad},
                {"op": "exists", "key": bad}, {"op": "increment", "key": bad, "delta": 1},
                {"op": "get-many", "keys": ["good", bad]}, {"op": "set-many", "values": [["good", "x"], [bad, "x"]]},
                {"op": "delete-many", "keys": ["a", bad]}, last,
            ]);
            for done in client.output(&task(draft, "a", &all)).as_array().unwrap() {
                refused(done, words);
            }
        }
    }
    assert_eq!(acts(client, "a", json!([{"op": "count"}])), before, "nothing changed");
}

#[test]
fn values() {
    let server = server(&["--max-value-bytes", "1000"]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let large = "x".repeat(1001);
    let swap =
        |value: &str| json!({"op": "swap", "key": "k", "value": value, "look": false, "meanwhile": [], "again": false});
    let done = acts(
        client,
        "a",
        json!([
            {"op": "set-zeros", "key": "k", "bytes": 1000}, {"op": "set-zeros", "key": "k", "bytes": 1001},
            {"op": "set-many", "values": [["l", "x"], ["k", large]]}, swap(&large), swap(&large[1..]), {"op": "count"},
        ]),
    );
    for refusal in [1, 2, 3] {
        refused(&done[refusal], "1000 bytes");
    }
    assert_eq!(
        (&done[0], &done[4], &done[5]["ok"]["keys"]),
        (&json!({"ok": null}), &json!({"ok": {"seen": null}}), &json!(1))
    );
}

/// A value of a mebibyte and no more is what is allowed where nobody says otherwise.
#[test]
fn values_by_default() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let set = |bytes: u32| acts(client, "a", json!([{"op": "set-zeros", "key": "k", "bytes": bytes}]))[0].clone();
    assert_eq!(set(1 << 20), json!({"ok": null}));
    refused(&set((1 << 20) + 1), "1048576 bytes");
    let got = client.run(&task(2, "a", &json!([{"op": "get", "key": "k"}])));
    assert_eq!((&got["output"][0]["ok"]["bytes"], &got["usage"]["io_bytes"]), (&json!(1 << 20), &json!(1 << 20)));
}

#[test]
fn keys_of_one_call() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let names = |count: u32| (0..count).map(|key| key.to_string()).collect::<Vec<_>>();
    for draft in [1, 2] {
        let all = json!([
            {"op": "set-count", "count": 1001, "bytes": 1}, {"op": "count"}, {"op": "set-count", "count": 1000, "bytes": 1},
            {"op": "get-count", "count": 1001}, {"op": "get-count", "count": 1000},
            {"op": "delete-many", "keys": names(1001)}, {"op": "count"}, {"op": "delete-many", "keys": names(1000)},
            {"op": "count"},
        ]);
        let done = client.output(&task(draft, "a", &all));
        for refusal in [0, 3, 5] {
            refused(&done[refusal], "1000 keys");
        }
        assert_eq!((&done[1]["ok"]["keys"], &done[6]["ok"]["keys"]), (&json!(0), &json!(1000)));
        assert_eq!(done[4]["ok"], json!({"count": 1000, "bytes": 1000}));
        assert_eq!(done[8]["ok"]["keys"], 0);
    }
}

#[test]
fn a_quota_of_keys() {
    let server = server(&["--keyvalue-quota-count", "3"]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a", "b"]);
    let set = |key: &str| json!({"op": "set", "key": key, "value": "x"});
    let swap = json!({"op": "swap", "key": "new", "value": "x", "look": false, "meanwhile": [], "again": false});
    let many =
        |keys: &[&str]| json!({"op": "set-many", "values": keys.iter().map(|key| (key, "y")).collect::<Vec<_>>()});
    assert_eq!(acts(client, "b", json!([set("k")])), json!([{"ok": null}]));
    let all = json!([
        set("k"), many(&["l", "m"]), many(&["l", "k"]), set("m"),
        {"op": "increment", "key": "n", "delta": 1}, swap, set("k"), many(&["k", "l"]), {"op": "list", "cursor": null},
    ]);
    let done = acts(client, "a", all);
    for refusal in [1, 3, 4, 5] {
        refused(&done[refusal], "3 keyvalue keys");
    }
    for ok in [0, 2, 6, 7] {
        assert_eq!(done[ok], json!({"ok": null}));
    }
    assert_eq!(done[8]["ok"]["keys"], json!(["k", "l"]), "a refused batch sets nothing: {done}");
    // What is used is known after a crash as well.
    let server = server.crash().start();
    let client = &server.client;
    refused(&acts(client, "a", json!([set("m")]))[0], "3 keyvalue keys");
    let quotas = || client.get("/tenant").expect(200).json()["quotas"].clone();
    assert_eq!(quotas()["keyvalue_keys"], json!({"limit": 3, "used": 3}));
    assert_eq!(quotas()["keyvalue_bytes"]["used"], 6);
    // A tenant's own goes before that of all.
    let patch = |most: u64| {
        let body = json!({"quotas": {"keyvalue_keys": most}}).to_string();
        let headers = [("content-type", "application/merge-patch+json")];
        client.send("PATCH", "/tenants/default", &headers, Some(body.as_bytes())).expect(200);
    };
    patch(4);
    let done = acts(client, "a", json!([set("m"), set("o"), {"op": "delete", "key": "m"}]));
    assert_eq!((&done[0], &done[2]), (&json!({"ok": null}), &json!({"ok": null})));
    refused(&done[1], "4 keyvalue keys");
    patch(3);
    assert_eq!(acts(client, "b", json!([{"op": "delete", "key": "k"}])), json!([{"ok": null}]));
    assert_eq!(acts(client, "a", json!([set("m")])), json!([{"ok": null}]));
}

#[test]
fn a_quota_of_bytes() {
    let server = server(&["--keyvalue-quota-bytes", "100"]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a", "b"]);
    let set = |bytes: usize| json!({"op": "set-zeros", "key": "key-10-byt", "bytes": bytes});
    assert_eq!(acts(client, "b", json!([set(40)])), json!([{"ok": null}]));
    let all = json!([
        set(41), set(40), set(41), {"op": "set", "key": "k", "value": ""}, set(30), {"op": "set", "key": "123456789", "value": "x"},
        {"op": "increment", "key": "n", "delta": 1}, {"op": "delete", "key": "123456789"}, {"op": "increment", "key": "n", "delta": 99999999},
        {"op": "increment", "key": "n", "delta": 1}, {"op": "get", "key": "n"}, set(0), {"op": "increment", "key": "n", "delta": 1},
    ]);
    let done = acts(client, "a", all);
    for refusal in [0, 2, 3, 6] {
        refused(&done[refusal], "100 keyvalue bytes");
    }
    for ok in [1, 4, 5, 7, 11] {
        assert_eq!(done[ok], json!({"ok": null}), "{done}");
    }
    // From eight digits on to nine: the key and nine of them are the ten bytes that are left.
    assert_eq!(
        (&done[8]["ok"], &done[9]["ok"], &done[12]["ok"]),
        (&json!(99_999_999), &json!(100_000_000), &json!(100_000_001))
    );
    assert_eq!(done[10]["ok"], value("100000000"));
    // Over a quota that was lowered, what shrinks is taken.
    let setup = server.stop().with_flags(&["--keyvalue-quota-bytes", "20"]);
    let server = setup.start();
    let done = acts(&server.client, "b", json!([set(39), set(40), set(39), {"op": "get", "key": "key-10-byt"}]));
    assert_eq!((&done[0], &done[2], &done[3]["ok"]["bytes"]), (&json!({"ok": null}), &json!({"ok": null}), &json!(39)));
    refused(&done[1], "20 keyvalue bytes");
}

/// What the host holds for a task is in its limit: values, pages, what is to be written, and handles.
#[test]
fn memory_of_the_host() {
    let server = server(&[]);
    let client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let limited = |acts: Value| {
        let limits = json!({"host_memory_bytes": 200 << 10});
        let mut task = task(2, "a", &acts);
        task["limits"] = limits;
        task
    };
    assert_eq!(
        acts(
            client,
            "a",
            json!([{"op": "set-count", "count": 500, "bytes": 500}, {"op": "set-zeros", "key": "large", "bytes": 300_000}, {"op": "set", "key": "small", "value": "x"}])
        ),
        json!([{"ok": null}, {"ok": null}, {"ok": null}])
    );
    let swap = json!({"op": "swap", "key": "large", "value": "x", "look": true, "meanwhile": [], "again": false});
    let done = client.output(&limited(json!([
        {"op": "get", "key": "large"}, {"op": "get-count", "count": 500}, {"op": "set-zeros", "key": "large", "bytes": 300_000},
        {"op": "set-count", "count": 500, "bytes": 500}, swap, {"op": "get", "key": "small"}, {"op": "exists", "key": "large"},
    ])));
    for refusal in 0..5 {
        refused(&done[refusal], "host_memory_bytes");
    }
    assert_eq!((&done[5]["ok"], &done[6]["ok"]), (&value("x"), &json!(true)), "it goes on: {done}");
    let pages = client.output(&limited(json!([{"op": "count"}])))[0]["ok"].clone();
    assert!(
        pages["keys"] == 502 && pages["pages"][0].as_u64().unwrap() < 320,
        "a page is what there is room for: {pages}"
    );

    let handles = |op: Value| client.failure(&limited(json!([op])))["error"]["kind"].clone();
    assert_eq!(handles(json!({"op": "open", "times": 1000})), "memory_exceeded");
    assert_eq!(handles(json!({"op": "new-cas", "key": "k".repeat(512), "times": 1000})), "memory_exceeded");
    let few = json!([{"op": "open", "times": 90}, {"op": "new-cas", "key": "k", "times": 90}]);
    assert_eq!(client.output(&limited(few)), json!([{"ok": null}, {"ok": null}]));
}

/// Many who write much at once leave the API its turn, and lose nothing.
#[test]
fn many_batches_at_once() {
    let server = server(&[]);
    let client: &Client = &server.client;
    grant(client, guest("keyvalue"), &["a"]);
    let batches = json!([{"op": "set-count", "count": 1000, "bytes": 8}, {"op": "get-count", "count": 1000}]);
    let ids: Vec<String> = (0..30).map(|_| client.create(&task(2, "a", &batches))).collect();
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 1})), 1);
    for id in ids {
        let ended = client.wait_for_end(&id);
        assert_eq!(ended["output"], json!([{"ok": null}, {"ok": {"count": 1000, "bytes": 8000}}]), "{ended:#}");
    }
    assert_eq!(acts(client, "a", json!([{"op": "count"}]))[0]["ok"]["keys"], 1000);
}
