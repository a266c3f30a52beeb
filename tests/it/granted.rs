//! What types are granted beside HTTP: environment, configuration, and clocks and random numbers that repeat.

use serde_json::{Value, json};

use crate::support::{Client, Server, guest, server};

fn grant(client: &Client, grants: &Value) -> Value {
    let patch = json!({ "grants": grants }).to_string();
    let headers = [("content-type", "application/merge-patch+json")];
    let path = format!("/task-types/{}", guest("granted"));
    client.send("PATCH", &path, &headers, Some(patch.as_bytes())).expect(200).json()
}

/// A server whose type has nothing but the configuration that it cannot do without, which is empty.
fn with_nothing() -> Server {
    let server = server(&[]);
    grant(&server.client, &json!({"config": {}}));
    server
}

fn task(input: Value) -> Value {
    json!({"task_type": guest("granted"), "input": input})
}

#[test]
fn without_grants_there_is_nothing() {
    let server = with_nothing();
    // What was granted once and is no more.
    let of_type = grant(&server.client, &json!({"config": null}));
    assert_eq!((&of_type["state"], &of_type["grants_missing"]), (&json!("ready"), &json!(["config"])));
    let saw = server.client.output(&task(json!({})));
    assert_eq!((&saw["environment"], &saw["config"], &saw["config_a"]), (&json!({}), &json!({}), &Value::Null));
}

#[test]
fn environment_and_configuration() {
    let server = server(&[]);
    let client = &server.client;
    let (env, config) = (json!({"LANG": "de", "EMPTY": ""}), json!({"a": "1", "b=": "ü"}));
    let of_type = grant(client, &json!({"env": env, "config": config}));
    assert_eq!(of_type["grants_missing"], json!([]));
    let task = client.run(&task(json!({})));
    let saw = &task["output"];
    assert_eq!((&saw["environment"], &saw["config"], &saw["config_a"]), (&env, &config, &json!("1")), "{task:#}");
    // Two of the configuration and one of the timer.
    assert_eq!(task["usage"]["host_calls"], 3);
    grant(client, &json!({"env": null, "config": {"a": null}}));
    let saw = client.output(&self::task(json!({})));
    assert_eq!((&saw["environment"], &saw["config"]), (&json!({}), &json!({"b=": "ü"})));
}

#[test]
fn clocks_and_randomness_differ_where_nobody_asks() {
    let server = with_nothing();
    let [first, second] = [0, 1].map(|_| server.client.output(&task(json!({}))));
    for name in ["wall", "monotonic", "random", "random_number", "insecure", "seed"] {
        assert_ne!(first[name], second[name], "{name}");
    }
}

#[test]
fn a_deterministic_type_repeats_itself() {
    let server = with_nothing();
    let client = &server.client;
    grant(client, &json!({"deterministic": true}));
    let failed = client.failure(&task(json!({"sleep_ms": 20, "fail": true})));
    let id = failed["id"].as_str().unwrap();
    let first = failed["error"]["message"].as_str().unwrap().to_owned();
    // Its third attempt sees what its first saw, whatever time has gone by.
    for attempt in 2..4 {
        client.post(&format!("/task/{id}/retry")).expect(202);
        let again = client.wait_for_end(id);
        assert_eq!((&again["attempt"], &again["error"]["message"]), (&json!(attempt), &json!(first)));
    }

    let saw: Value = serde_json::from_str(&first).unwrap();
    let created = u128::from_str_radix(&id.replace('-', "")[..12], 16).unwrap() * 1_000_000;
    let wall: u128 = saw["wall"][0].as_str().unwrap().parse().unwrap();
    assert!((created..created + 1_000_000).contains(&wall), "it begins when the task was created: {saw}");
    let times: Vec<u64> = saw["monotonic"].as_array().unwrap().iter().map(|time| time.as_u64().unwrap()).collect();
    for pair in times.windows(2) {
        let passed = pair[1] - pair[0];
        assert!((20_000_000..21_000_000).contains(&passed), "what was slept has passed: {saw}");
    }
    let wall_ms = failed["usage"]["wall_ms"].as_f64().unwrap();
    assert!(wall_ms >= 60.0, "and took its time: {wall_ms}");

    let other = client.output(&task(json!({"sleep_ms": 20})));
    for name in ["wall", "random", "random_number", "insecure", "seed"] {
        assert_ne!(saw[name], other[name], "another task: {name}");
    }
    assert_eq!(saw["monotonic"], other["monotonic"]);
}
