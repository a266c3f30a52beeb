//! Components that cannot be used.

use std::fs;

use serde_json::json;

use crate::support::guests::{GUESTS, component};
use crate::support::server::Setup;
use crate::support::{Client, guest, temp_dir};

/// What is no component of ours is marked failed, with the reason; the others are served.
#[test]
fn a_component_that_cannot_be_used_fails_alone() {
    let directory = temp_dir();
    let wat = |text: &str| wat::parse_str(text).unwrap();
    let good = GUESTS.iter().find(|(name, _)| *name == guest("echo-blocking")).unwrap().1;
    let bad: [(&str, Vec<u8>, &str); 13] = [
        ("garbage", b"this is no component".to_vec(), ""),
        ("empty", Vec::new(), ""),
        ("half", good[..good.len() / 2].to_vec(), ""),
        ("module", wat("(module)"), ""),
        ("exports-nothing", wat("(component)"), "run"),
        (
            "imports-more",
            wat(r#"(component (import "nowhere:special/thing@1.0.0" (instance (export "f" (func)))))"#),
            "nowhere:special/thing",
        ),
        ("threads", wat("(component (core module (memory 1 1 shared)))"), ""),
        ("streams", wat("(component (type $s (stream u8)) (core func (canon stream.new $s)))"), "stream.new"),
        ("futures", wat("(component (type $f (future)) (core func (canon future.new $f)))"), "future.new"),
        ("error-contexts", wat("(component (core func (canon error-context.drop)))"), "error-context.drop"),
        ("backpressure", wat("(component (core func (canon backpressure.inc)))"), "backpressure.inc"),
        ("yields", wat("(component (core func (canon thread.yield)))"), "thread.yield"),
        (
            "nested",
            wat("(component (component (component (type $f (future)) (core func (canon future.drop-readable $f)))))"),
            "future.drop-readable",
        ),
    ];
    for (name, bytes, _) in &bad {
        fs::write(directory.path().join(format!("{name}.wasm")), bytes).unwrap();
    }
    fs::write(directory.path().join("good.wasm"), good).unwrap();
    fs::write(directory.path().join("README.txt"), "not a component, and not meant as one").unwrap();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let client = &server.client;

    let types = client.get("/task-types").expect(200).json();
    let of = |name: &str| types["task_types"].as_array().unwrap().iter().find(|found| found["name"] == name).cloned();
    for (name, _, why) in &bad {
        let listed = of(name).unwrap_or_else(|| panic!("{name} is not listed"));
        assert_eq!(listed["state"], "failed", "{listed:#}");
        let read = client.get(&format!("/task-types/{name}")).expect(200).json();
        assert_eq!(read["state"], "failed", "{read:#}");
        let reason = read["reason"].as_str().or(read["versions"][0]["reason"].as_str()).unwrap_or_default();
        assert!(!reason.is_empty() && reason.contains(why), "{name}: {reason:?} does not name {why:?}");
        let refused = client.post_task(&json!({"task_type": name}).to_string());
        assert!(refused.header("retry-after").is_some(), "{name}: {refused:?}");
        refused.problem(409);
        assert!(server.log().contains(name), "the log does not name {name}: {}", server.log());
    }
    assert!(of("README").is_none() && of("readme").is_none());
    assert_eq!(of("good").unwrap()["state"], "ready");
    assert_eq!(client.output(&json!({"task_type": "good", "input": 3})), 3);
    assert_eq!(
        client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().len(),
        1,
        "nothing else was created"
    );
    client.get("/task-types/none").problem(404);
}

/// A file whose name cannot be a type's is a mistake of the operator, who is told.
#[test]
fn names_that_no_type_can_have() {
    for name in ["Upper.wasm", "-dash.wasm", "under_score.wasm", ".wasm"] {
        let directory = temp_dir();
        fs::write(directory.path().join(name), b"").unwrap();
        let server = Setup::new(&[]).with_components(Some(directory.path())).start();
        // The last is a hidden file without an extension.
        assert_eq!(server.log().contains(name), name != ".wasm", "{}", server.log());
    }
    let missing = temp_dir().path().join("missing");
    let message = Setup::new(&[]).with_components(Some(&missing)).refused();
    assert!(message.contains("missing"), "{message}");
}

/// One that needs more than its type is granted is held, as one that is uploaded.
#[test]
fn a_component_that_is_not_granted_what_it_needs_is_held() {
    let directory = temp_dir();
    fs::write(directory.path().join("asks.wasm"), component(guest("granted"))).unwrap();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let read = |client: &Client| client.get("/task-types/asks").expect(200).json();
    let held = read(&server.client);
    assert_eq!((&held["state"], &held["grants_missing"]), (&json!("held"), &json!(["config"])), "{held:#}");
    server.client.post_task(r#"{"task_type":"asks"}"#).problem(409);

    let patch = [("content-type", "application/merge-patch+json")];
    server.client.send("PATCH", "/task-types/asks", &patch, Some(br#"{"grants":{"config":{}}}"#)).expect(200);
    assert_eq!(read(&server.client)["state"], "ready");
    server.client.output(&json!({"task_type": "asks", "input": {}}));
    let server = server.stop().start();
    assert_eq!(read(&server.client)["state"], "ready");
    server.client.output(&json!({"task_type": "asks", "input": {}}));

    // What comes next is held beside what serves.
    server.client.send("PATCH", "/task-types/asks", &patch, Some(br#"{"grants":{"config":null}}"#)).expect(200);
    let before = read(&server.client)["version"].clone();
    fs::write(directory.path().join("asks.wasm"), component(guest("http"))).unwrap();
    let server = server.stop().start();
    let next = read(&server.client);
    assert_eq!((&next["version"], &next["versions"][0]["state"]), (&before, &json!("held")), "{next:#}");
}
