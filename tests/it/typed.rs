//! Components that are called by a function of their own.

mod refused;
mod schemas;

use serde_json::{Value, json};

use crate::support::guests::GUESTS;
use crate::support::{Answer, Client, guest, server, shared_server, wait_for};

fn with(name: &str, input: &Value) -> Value {
    json!({"task_type": name, "input": input})
}

/// Every type, as it is written on the way out.
fn everything() -> Value {
    json!({
        "a-bool": true,
        "an-s8": -128, "a-u8": 255, "an-s16": -32768, "a-u16": 65535, "an-s32": i32::MIN, "a-u32": u32::MAX,
        "an-s64": i64::MIN, "a-u64": u64::MAX,
        "an-f32": 0.5, "an-f64": 0.1,
        "a-char": "é", "a-string": "a\n\"€\" 😀",
        "bytes": "AP+A", "strings": ["", "b"], "a-tuple": [7, "seven"],
        "a-shape": {"line": [{"x": 1, "y": 2}, {"x": -1, "y": null}]},
        "shapes": ["nothing", {"at": {"x": 0, "y": null}}, {"maybe": null}, {"maybe": true}],
        "a-color": "dark-blue", "some-rights": ["read", "run"],
        "an-option": "here", "options": [null, {"some": null}, {"some": 1}],
        "results": [{"ok": 1}, {"err": "why"}], "bare": {"ok": null},
    })
}

#[test]
fn every_type_goes_there_and_back() {
    let server = shared_server();
    let client = &server.client;
    let name = guest("typed-echo");
    let echo = |input: Value| client.output(&with(name, &input));
    assert_eq!(echo(json!({"everything": everything(), "note": "a"})), json!([everything(), "a"]));
    // What is not there is nothing, and what can be written in two ways comes back in one.
    let mut other = everything();
    other.as_object_mut().unwrap().remove("an-option");
    (other["a-u64"], other["an-s64"]) = (json!("18446744073709551615"), json!("-9223372036854775808"));
    (other["a-u8"], other["some-rights"]) = (json!(255.0), json!(["run", "read"]));
    other["bare"] = json!({"err": null});
    let mut back = everything();
    (back["an-option"], back["bare"]) = (Value::Null, json!({"err": null}));
    assert_eq!(echo(json!({"everything": other})), json!([back, null]));
    let mut empty = everything();
    for list in ["strings", "shapes", "some-rights", "options", "results"] {
        empty[list] = json!([]);
    }
    (empty["bytes"], empty["a-string"], empty["a-shape"]) = (json!(""), json!("\0"), json!("nothing"));
    assert_eq!(echo(json!({"everything": empty})), json!([empty, null]));
}

/// Numbers come back digit for digit.
#[test]
fn numbers_are_exact() {
    let server = shared_server();
    let client = &server.client;
    let mut input = everything();
    input["an-f64"] = json!(5e-324);
    let task = client.run(&with(guest("typed-echo"), &json!({"everything": input})));
    let result = client.get(&format!("/task/{}/result", task["id"].as_str().unwrap())).expect(200).text();
    for digits in ["\"a-u64\":18446744073709551615", "\"an-s64\":-9223372036854775808", "\"an-f64\":5e-324"] {
        assert!(result.contains(digits), "{digits} is not in {result}");
    }
}

#[test]
fn a_function_of_an_interface() {
    let server = shared_server();
    let client = &server.client;
    let name = guest("typed-resize");
    let read = client.get(&format!("/task-types/{name}")).expect(200).json();
    assert_eq!(read["state"], "ready");
    assert_eq!(
        read["input_schema"],
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "url": {"type": "string"},
                "width": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
            },
            "required": ["url", "width"],
            "additionalProperties": false,
        })
    );
    assert_eq!(
        read["output_schema"],
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "string"})
    );
    assert_eq!(client.output(&with(name, &json!({"url": "a", "width": 3}))), "a?w=3");
    let failed = client.failure(&with(name, &json!({"url": "a", "width": 0})));
    assert_eq!(
        failed["error"],
        json!({"kind": "permanent", "message": "there is nothing left of it", "retryable": false})
    );
    let plain = client.get("/task-types/echo").expect(200).json();
    assert_eq!((&plain["input_schema"], &plain["output_schema"]), (&Value::Null, &Value::Null));
}

#[test]
fn an_error_fails_the_task_as_its_type_says() {
    let server = shared_server();
    let client = &server.client;
    let error = |name, input: Value| client.failure(&with(name, &input))["error"].clone();
    let trouble = error(guest("typed-make"), json!({"what": {"trouble": 5}}));
    assert_eq!(trouble["kind"], "permanent");
    let told: Value = serde_json::from_str(trouble["message"].as_str().unwrap()).unwrap();
    assert_eq!(told, json!({"code": 5, "why": "as it was told to"}));

    let name = guest("typed-async");
    let permanent = error(name, json!({"ms": 1, "permanent": "never"}));
    assert_eq!((&permanent["kind"], &permanent["message"]), (&json!("permanent"), &json!("never")));
    let transient = error(name, json!({"ms": 1, "until": 2}));
    assert_eq!((&transient["kind"], &transient["retryable"]), (&json!("transient"), &json!(true)));
    // And is attempted again.
    let mut again = with(name, &json!({"ms": 1, "until": 3}));
    again["retry"] = json!({"max_attempts": 5, "initial_backoff_ms": 1});
    let task = client.run(&again);
    assert_eq!((&task["status"], &task["output"], &task["attempt"]), (&json!("Completed"), &json!(3), &json!(3)));
    assert_eq!(task["progress"]["note"], "waited");
}

/// An async function waits as a task of the world does: for the host, and until its time is over.
#[test]
fn an_async_function_waits_and_is_stopped() {
    let server = shared_server();
    let client = &server.client;
    let name = guest("typed-async");
    assert_eq!(client.output(&with(name, &json!({"ms": 200}))), 1);
    let mut late = with(name, &json!({"ms": 600_000}));
    late["limits"] = json!({"timeout_ms": 100});
    assert_eq!(client.failure(&late)["error"]["kind"], "timeout");
    let id = client.create(&with(name, &json!({"ms": 600_000})));
    client.wait_for_status(&id, "Running");
    client.post(&format!("/task/{id}/cancel")).expect(202);
    assert_eq!(client.task(&id)["error"]["kind"], "canceled");
}

#[test]
fn outputs_have_limits() {
    let server = shared_server();
    let client = &server.client;
    let made = |what: Value, limits: Value| {
        let mut body = with(guest("typed-make"), &json!({"what": what}));
        body["limits"] = limits;
        client.run(&body)
    };
    let none = json!({});
    let kind = |task: Value| {
        assert_eq!(task["status"], "Failed", "{task:#}");
        task["error"]["kind"].as_str().unwrap().to_owned()
    };
    for bad in ["nan", "inf", "-inf"] {
        assert_eq!(kind(made(json!({"number": bad}), none.clone())), "invalid_output", "{bad}");
    }
    assert_eq!(made(json!({"number": "0.25"}), none.clone())["output"], json!({"number": 0.25}));
    assert_eq!(made(json!("nothing"), none.clone())["output"], "nothing");
    // {"text":"…"} and {"bytes":"…"}: eleven and twelve bytes more than what is in them.
    assert_eq!(made(json!({"text": 89}), json!({"output_bytes": 100}))["status"], "Completed");
    assert_eq!(kind(made(json!({"text": 90}), json!({"output_bytes": 100}))), "output_too_large");
    assert_eq!(made(json!({"bytes": 66}), json!({"output_bytes": 100}))["output"]["bytes"], "A".repeat(88));
    assert_eq!(kind(made(json!({"bytes": 67}), json!({"output_bytes": 100}))), "output_too_large");
    assert_eq!(kind(made(json!({"text": 2_000_000}), none.clone())), "output_too_large");
    assert_eq!(kind(made(json!({"bytes": 1_000_000}), none)), "output_too_large");
}

/// What was checked when a task was created need not hold any more when it runs.
#[test]
fn an_input_that_fits_no_more_fails_its_task() {
    let server = server(&[]);
    let client = &server.client;
    let name = guest("typed-resize");
    let set = |settings: Value| {
        let headers = [("content-type", "application/merge-patch+json")];
        client
            .send("PATCH", &format!("/task-types/{name}"), &headers, Some(settings.to_string().as_bytes()))
            .expect(200);
    };
    set(json!({"paused": true}));
    let id = client.create(&with(name, &json!({"url": "a".repeat(10_000), "width": 1})));
    set(json!({"paused": false, "limits": {"host_memory_bytes": 10_000}}));
    let error = client.wait_for_end(&id)["error"].clone();
    assert_eq!(error["kind"], "permanent");
    assert!(error["message"].as_str().unwrap().contains("does not fit"), "{error}");

    // A schedule's input is looked at when the schedule is stored. Then comes a version that takes another.
    let bytes = |name: &str| GUESTS.iter().find(|(known, _)| *known == name).unwrap().1;
    let upload = |bytes: &[u8]| {
        let headers = [("content-type", "application/wasm")];
        let version =
            client.send("PUT", "/task-types/changes", &headers, Some(bytes)).json()["versions"][0]["version"].clone();
        wait_for("the version to be current", || {
            (client.get("/task-types/changes").json()["version"] == version).then_some(())
        });
    };
    upload(bytes(name));
    let task = with("changes", &json!({"url": "a", "width": 1}));
    let schedule = json!({"cron": "* * * * * *", "time_zone": "UTC", "task": task}).to_string();
    let headers = [("content-type", "application/json")];
    client.send("PUT", "/schedules/changes", &headers, Some(schedule.as_bytes())).expect(201);
    upload(bytes(guest("typed-make")));
    let failed = wait_for("a task that fails", || {
        client.get("/tasks?task_type=changes&status=Failed").expect(200).json()["tasks"].get(0).cloned()
    });
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(failed["error"]["kind"] == "permanent" && message.contains("#/what: is missing"), "{failed}");
}

#[track_caller]
fn faults(answer: Answer) -> Vec<String> {
    let problem = answer.problem(422);
    assert_eq!(problem["type"], "/problems/unacceptable");
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("{problem}"));
    errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
}

fn count(client: &Client, name: &str) -> usize {
    client.get(&format!("/tasks?task_type={name}")).expect(200).json()["tasks"].as_array().unwrap().len()
}
