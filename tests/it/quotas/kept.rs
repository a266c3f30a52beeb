//! Secrets, and what tasks keep by key.

use serde_json::{Value, json};

use super::{CLIENTS, MERGE_PATCH, Two, all_at_once, at_once, quota};
use crate::secrets::key_file;
use crate::support::{Client, guest, temp_dir};

#[test]
fn secrets() {
    let directory = temp_dir();
    let two = Two::new(&["--secret-key-file", key_file(directory.path(), 1).to_str().unwrap()]);
    two.set(&json!({"secrets": 5}));
    let put =
        |client: &Client, number: usize| client.send("PUT", &format!("/secrets/s{number}"), &[], Some(b"some value"));
    assert_eq!(at_once("secrets", |number| put(&two.a, number)), (5, 59));
    assert_eq!(at_once("secrets", |number| put(&two.b, number)), (64, 0));
    let listed = two.a.get("/secrets").expect(200).json();
    two.a.delete(&format!("/secrets/{}", listed["secrets"][0]["name"].as_str().unwrap())).expect(200);
    assert_eq!(quota(&two.a, "secrets"), (Some(5), Some(4)));
    assert_eq!(at_once("secrets", |number| put(&two.a, CLIENTS + number)), (1, 63));
}

#[test]
fn keys_and_their_bytes() {
    let two = Two::new(&[]);
    let grant = json!({"grants": {"keyvalue": ["b"]}}).to_string();
    let path = format!("/task-types/{}", guest("keyvalue"));
    two.operator.send("PATCH", &path, &[MERGE_PATCH], Some(grant.as_bytes())).expect(200);
    let act = |client: &Client, act: Value| -> bool {
        let input = json!({"draft": 2, "bucket": "b", "do": [act]});
        let done = client.output(&json!({"task_type": guest("keyvalue"), "input": input}));
        done[0].get("ok").is_some()
    };
    // Each has ten bytes with its value.
    let set = |number: usize| json!({"op": "set", "key": format!("k{number:03}"), "value": "123456"});
    let many = |client: &Client, first: usize| {
        all_at_once(|number| act(client, set(first + number))).into_iter().filter(|done| *done).count()
    };
    two.set(&json!({"keyvalue_keys": 7}));
    assert_eq!((many(&two.a, 0), many(&two.b, 0)), (7, CLIENTS));
    assert_eq!((quota(&two.a, "keyvalue_keys"), quota(&two.a, "keyvalue_bytes").1), ((Some(7), Some(7)), Some(70)));
    two.set(&json!({"keyvalue_keys": null, "keyvalue_bytes": 95}));
    assert_eq!(many(&two.a, 100), 2);
    let kept = (0..200).map(|number| format!("k{number:03}"));
    assert!(act(&two.a, json!({"op": "delete-many", "keys": kept.collect::<Vec<_>>()})));
    assert_eq!((quota(&two.a, "keyvalue_keys").1, quota(&two.a, "keyvalue_bytes")), (Some(0), (Some(95), Some(0))));
    assert_eq!(many(&two.a, 200), 9);
}
