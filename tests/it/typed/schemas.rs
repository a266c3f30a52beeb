//! JSON Schemas that are set for types which are called by `run`.

use serde_json::{Value, json};

use super::{count, faults, with};
use crate::support::guests::GUESTS;
use crate::support::{Answer, Client, guest, server};

const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

fn patch(client: &Client, name: &str, patch: &Value) -> Answer {
    client.send("PATCH", &format!("/task-types/{name}"), &[MERGE_PATCH], Some(patch.to_string().as_bytes()))
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"width": {"$ref": "#/$defs/size"}, "kind": {"enum": [null, "a"]}, "none": {"const": null}},
        "required": ["width"],
        "$defs": {"size": {"type": "integer", "minimum": 1}},
    })
}

#[test]
fn inputs_have_to_meet_the_schema_of_their_type() {
    let server = server(&[]);
    let client = &server.client;
    let patched = patch(client, "echo", &json!({"input_schema": schema()})).expect(200);
    let read = client.get("/task-types/echo").expect(200);
    assert_eq!((patched.json(), patched.header("etag")), (read.json(), read.header("etag")));
    assert_eq!((&read.json()["input_schema"], &read.json()["output_schema"]), (&schema(), &Value::Null));

    let post = |input: Value| client.post_task(&with("echo", &input).to_string());
    assert_eq!(faults(post(json!({"width": 0}))), ["#/input/width"]);
    assert_eq!(faults(post(json!({"width": 1, "kind": "b"}))), ["#/input/kind"]);
    assert_eq!(faults(post(json!({"width": 1, "none": 0}))), ["#/input/none"]);
    assert_eq!(faults(post(json!({}))), ["#/input/width"]);
    assert_eq!(faults(client.post_task(r#"{"task_type":"echo"}"#)), ["#/input"]);
    assert_eq!(count(client, "echo"), 0);
    let closed =
        json!({"properties": {"a": {"properties": {"b": {}}, "required": ["b"], "additionalProperties": false}}});
    patch(client, "echo", &json!({"input_schema": closed})).expect(200);
    let mut found = faults(post(json!({"a": {"c": 1, "d/e": 2}})));
    found.sort();
    assert_eq!(found, ["#/input/a/b", "#/input/a/c", "#/input/a/d~1e"]);
    patch(client, "echo", &json!({"input_schema": schema()})).expect(200);
    assert_eq!(client.output(&with("echo", &json!({"width": 1, "kind": null}))), json!({"width": 1, "kind": null}));
    assert_eq!(client.run(&json!({"task_type": "primes", "input": {"up_to": 5}}))["status"], "Completed");

    // Other settings leave it, and another schema takes its place as a whole.
    patch(client, "echo", &json!({"limits": {"fuel": 1_000_000}})).expect(200);
    assert_eq!(faults(post(json!({}))), ["#/input/width"]);
    let other = json!({"properties": {"kind": {"const": null}}});
    assert_eq!(patch(client, "echo", &json!({"input_schema": other})).expect(200).json()["input_schema"], other);
    assert_eq!(faults(post(json!({"kind": 1}))), ["#/input/kind"]);
    assert_eq!(client.output(&with("echo", &json!({}))), json!({}));

    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(client.get("/task-types/echo").expect(200).json()["input_schema"], other);
    assert_eq!(faults(client.post_task(&with("echo", &json!({"kind": 1})).to_string())), ["#/input/kind"]);
    let removed = patch(client, "echo", &json!({"input_schema": null})).expect(200).json();
    assert_eq!(removed["input_schema"], Value::Null);
    assert_eq!(client.output(&with("echo", &json!({"kind": 1}))), json!({"kind": 1}));
    let server = server.stop().start();
    assert_eq!(server.client.get("/task-types/echo").expect(200).json()["input_schema"], Value::Null);
}

#[test]
fn schemas_that_are_refused() {
    let server = server(&[]);
    let client = &server.client;
    let before = client.get("/task-types/echo").expect(200).json();
    for (schema, place) in [
        (json!("a"), ""),
        (json!({"type": "number of a kind"}), "/type"),
        (json!({"properties": {"a": {"$ref": "https://example.com/schema.json"}}}), "/properties/a/%24ref"),
        (json!({"items": {"$ref": "file:///etc/hostname"}}), "/items/%24ref"),
        (json!({"$schema": "https://example.com/own-draft"}), "/%24schema"),
        (json!({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}), "/%24defs/a/items/%24ref/items/%24ref"),
    ] {
        let found = faults(patch(client, "echo", &json!({"input_schema": schema})));
        assert!(found.len() == 1 && found[0].starts_with("#/input_schema"), "{schema}: {found:?}");
        assert!(place.contains("items/%24ref/items") || found[0].ends_with(place), "{schema}: {found:?}");
    }
    let deep = format!(r#"{{"input_schema":{}{{}}{}}}"#, r#"{"not":"#.repeat(500), "}".repeat(500));
    let answer = client.send("PATCH", "/task-types/echo", &[MERGE_PATCH], Some(deep.as_bytes()));
    assert_eq!(faults(answer), ["#/input_schema"]);
    patch(client, "echo", &json!({"input_schema": {"enum": ["a".repeat(65 << 10)]}})).problem(413);
    assert_eq!(client.get("/task-types/echo").expect(200).json(), before);

    // What a component says by itself is not said a second time.
    let typed = faults(patch(client, guest("typed-resize"), &json!({"input_schema": {}})));
    assert_eq!(typed, ["#/input_schema"]);
    patch(client, guest("typed-resize"), &json!({"input_schema": null})).expect(200);
    // The version that it is set for is the one that the same change makes current.
    let upload = |name: &'static str| {
        let bytes = GUESTS.iter().find(|(found, _)| *found == guest(name)).unwrap().1;
        let headers = [("content-type", "application/wasm"), ("prefer", "wait=60")];
        let answer = client.send("PUT", "/task-types/mine", &headers, Some(bytes));
        answer.json()["versions"][0]["version"].clone()
    };
    let (plain, typed) = (upload("fail"), upload("typed-resize"));
    let to = |version: &Value| patch(client, "mine", &json!({"version": version, "input_schema": {"type": "null"}}));
    assert_eq!(to(&plain).expect(200).json()["version"], plain);
    assert_eq!(faults(to(&typed)), ["#/input_schema"]);
    assert_eq!(client.get("/task-types/mine").expect(200).json()["version"], plain);
}
