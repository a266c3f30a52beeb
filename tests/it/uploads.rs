//! Task types that are uploaded while the server runs.

mod compiling;
mod many;
mod refused;
mod trial;
mod ways;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::guests::GUESTS;
use crate::support::hostile::{self, with_module};
use crate::support::server::Setup;
use crate::support::{Answer, Client, guest, server, temp_dir, wait_for};

const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");
const WASM: (&str, &str) = ("content-type", "application/wasm");

/// A component that completes with its input.
fn echo() -> Vec<u8> {
    GUESTS.iter().find(|(name, _)| *name == guest("echo-blocking")).unwrap().1.to_vec()
}

/// The same program with other bytes: a section that nobody reads is put behind it.
fn echo_version(number: u8) -> Vec<u8> {
    let mut bytes = echo();
    bytes.extend([0, 3, 1, b'v', number]);
    bytes
}

fn put(client: &Client, name: &str, bytes: &[u8]) -> Answer {
    client.send("PUT", &format!("/task-types/{name}"), &[WASM], Some(bytes))
}

fn patch(client: &Client, name: &str, patch: &Value) -> Answer {
    client.send("PATCH", &format!("/task-types/{name}"), &[MERGE_PATCH], Some(patch.to_string().as_bytes()))
}

fn task_type(client: &Client, name: &str) -> Value {
    client.get(&format!("/task-types/{name}")).expect(200).json()
}

/// Waits until a version is current.
fn wait_until_current(client: &Client, name: &str, version: &Value) {
    wait_for(format!("{version} to be current"), || (task_type(client, name)["version"] == *version).then_some(()));
}

/// Uploads a component, waits until it is current, and returns its version.
fn upload(client: &Client, name: &str, bytes: &[u8]) -> Value {
    let answer = put(client, name, bytes);
    assert!(matches!(answer.status, 200 | 201), "{answer:?}");
    let version = answer.json()["versions"][0]["version"].clone();
    wait_until_current(client, name, &version);
    version
}

#[test]
fn a_type_comes_runs_changes_goes_back_and_goes() {
    let server = server(&[]);
    let client = &server.client;
    let created = put(client, "mine", &echo()).expect(201);
    assert_eq!(created.header("location"), Some("/task-types/mine"));
    let first = created.json()["versions"][0]["version"].clone();
    wait_until_current(client, "mine", &first);
    let read = client.get("/task-types/mine").expect(200);
    assert_eq!(read.json()["state"], "ready", "{:#}", read.json());
    let task = client.run(&json!({"task_type": "mine", "input": 3}));
    assert_eq!((&task["output"], &task["component"]), (&json!(3), &first));
    let bytes = client.get(&format!("/task-types/mine/versions/{}", first.as_str().unwrap())).expect(200);
    assert_eq!((bytes.header("content-type"), &bytes.body), (Some("application/wasm"), &echo()));

    // The same bytes again are no new version.
    let again = put(client, "mine", &echo()).expect(200).json();
    assert_eq!((again["versions"].as_array().unwrap().len(), &again["version"]), (1, &first));

    // What was created before stays with its version, whatever is current when it runs.
    let later = client.create(&json!({"task_type": "mine", "input": 1, "delay_ms": 86_400_000}));
    let second = upload(client, "mine", &echo_version(2));
    assert_ne!(first, second);
    assert_eq!(client.task(&later)["component"], first);
    assert_eq!(client.run(&json!({"task_type": "mine"}))["component"], second);

    // Back, and forward again.
    let back = patch(client, "mine", &json!({"version": first})).expect(200).json();
    assert_eq!((&back["version"], back["versions"].as_array().unwrap().len()), (&first, 2));
    assert_eq!(client.run(&json!({"task_type": "mine"}))["component"], first);
    assert_eq!(patch(client, "mine", &json!({"version": null})).expect(200).json()["version"], second);
    for wrong in [json!("sha256:00"), json!(format!("sha256:{}", "0".repeat(64)))] {
        let problem = patch(client, "mine", &json!({"version": wrong})).problem(422);
        assert_eq!(problem["errors"][0]["pointer"], "#/version");
    }

    // With tasks that have not ended it stays, unless they are to be canceled.
    assert_eq!(client.delete("/task-types/mine").problem(409)["type"], "/problems/task-type-in-use");
    let runs = client.create(&json!({"task_type": "mine", "input": 1, "delay_ms": 86_400_000}));
    assert_eq!(
        client.delete("/task-types/mine?cancel=true").expect(200).json(),
        json!({"name": "mine", "deleted": true})
    );
    for id in [&later, &runs] {
        assert_eq!(client.task(id)["error"]["kind"], "canceled");
    }
    for path in ["/task-types/mine".to_owned(), format!("/task-types/mine/versions/{}", second.as_str().unwrap())] {
        client.get(&path).problem(404);
    }
    client.delete("/task-types/mine").problem(404);
    let refused = client.post_task(r#"{"task_type": "mine"}"#).problem(422);
    assert_eq!(refused["errors"][0]["pointer"], "#/task_type");
    // What is kept of it can still be read, and is attempted again where there is a type of that name: it has limits.
    assert_eq!(client.post(&format!("/task/{later}/retry")).problem(409)["type"], "/problems/task-type-gone");
    upload(client, "mine", &echo_version(7));
    client.post(&format!("/task/{later}/retry")).expect(202);
    assert_eq!(client.wait_for_end(&later)["output"], 1);
}

#[test]
fn the_types_of_all_tenants_can_be_hidden_but_not_removed() {
    let server = server(&[]);
    let client = &server.client;
    let shared = task_type(client, "primes");
    assert_eq!(client.delete("/task-types/primes").problem(409)["type"], "/problems/shared-task-type");
    upload(client, "primes", &echo());
    assert_eq!(client.output(&json!({"task_type": "primes", "input": "mine"})), "mine");
    client.delete("/task-types/primes").expect(200);
    assert_eq!(task_type(client, "primes"), shared);
}

#[test]
fn changes_at_the_same_time_are_guarded() {
    let server = server(&[]);
    let client = &server.client;
    let send = |method: &str, header: (&str, &str), body: Option<&[u8]>| {
        client.send(method, "/task-types/mine", &[WASM, header], body)
    };
    let (one, two) = (echo(), echo_version(2));
    assert_eq!(send("PUT", ("if-match", "*"), Some(&one)).problem(412)["type"], "/problems/precondition-failed");
    send("PUT", ("if-none-match", "*"), Some(&one)).expect(201);
    send("PUT", ("if-none-match", "*"), Some(&two)).problem(412);
    let version = task_type(client, "mine")["versions"][0]["version"].clone();
    wait_until_current(client, "mine", &version);
    let tag = client.get("/task-types/mine").expect(200).header("etag").unwrap().to_owned();
    send("PUT", ("if-match", "\"another\""), Some(&two)).problem(412);
    patch(client, "mine", &json!({"paused": true})).expect(200);
    send("PUT", ("if-match", &tag), Some(&two)).problem(412);
    send("DELETE", ("if-match", &tag), None).problem(412);
    let tag = client.get("/task-types/mine").expect(200).header("etag").unwrap().to_owned();
    send("PUT", ("if-match", &tag), Some(&two)).expect(200);
    assert_eq!(task_type(client, "mine")["paused"], true, "a new version leaves the settings");
    send("DELETE", ("if-match", "*"), None).expect(200);
    send("DELETE", ("if-match", "*"), None).problem(412);
}

#[test]
fn tasks_of_a_paused_type_wait() {
    let server = server(&[]);
    let client = &server.client;
    upload(client, "mine", &echo());
    let paused = patch(client, "mine", &json!({"paused": true})).expect(200).json();
    assert_eq!((&paused["state"], &paused["paused"]), (&json!("paused"), &json!(true)));
    let waits = client.create(&json!({"task_type": "mine", "input": 1}));
    let waited_for = client.post_task_and_wait(r#"{"task_type": "mine", "input": 2}"#, "wait=1").expect(202).json();
    for task in [client.task(&waits), waited_for.clone(), client.task(waited_for["id"].as_str().unwrap())] {
        assert_eq!(
            (&task["status"], &task["waiting_for"]["reason"]),
            (&json!("Pending"), &json!("paused")),
            "{task:#}"
        );
    }
    let canceled = client.create(&json!({"task_type": "mine"}));
    client.post(&format!("/task/{canceled}/cancel")).expect(202);
    // Others go on.
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 3})), 3);
    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(client.task(&waits)["waiting_for"]["reason"], "paused");
    patch(client, "mine", &json!({"paused": null})).expect(200);
    assert_eq!(client.wait_for_end(&waits)["output"], 1);
    assert_eq!(client.wait_for_end(waited_for["id"].as_str().unwrap())["output"], 2);
    assert_eq!(client.task(&canceled)["error"]["kind"], "canceled");
}

/// Tasks that were in the queue already when their type was paused.
#[test]
fn a_pause_holds_back_what_is_queued_and_nothing_else() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    upload(client, "mine", &echo());
    let first = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&first, "Running");
    let held: Vec<String> =
        (0..700).map(|number| client.create(&json!({"task_type": "mine", "input": number}))).collect();
    let other = client.create(&json!({"task_type": "echo", "input": "other"}));
    patch(client, "mine", &json!({"paused": true})).expect(200);
    client.post(&format!("/task/{first}/cancel")).expect(202);
    assert_eq!(client.wait_for_end(&other)["output"], "other", "it is behind 700 that are held back");
    assert_eq!(client.task(&held[699])["waiting_for"]["reason"], "paused");
    patch(client, "mine", &json!({"paused": false})).expect(200);
    for (number, id) in held.iter().enumerate() {
        assert_eq!(client.wait_for_end(id)["output"], number);
    }
}

/// The bytes that are there already are needed after all, where their type goes at that moment.
#[test]
fn an_upload_is_stored_while_its_type_is_removed() {
    let server = server(&[]);
    let client = &server.client;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let removed = client.delete("/task-types/mine?cancel=true").status;
                assert!(matches!(removed, 200 | 404), "{removed}");
            }
        });
        let bytes = echo_version(77);
        let all: Vec<u16> = (0..60).map(|_| put(client, "mine", &bytes).status).collect();
        over.store(true, Ordering::Relaxed);
        // It may be gone again before the answer.
        assert!(all.iter().all(|status| matches!(status, 200 | 201 | 404)), "{all:?}");
    });
}

/// What cannot be used takes no place of what can.
#[test]
fn versions_that_fail_drive_none_out() {
    let server = server(&["--compile-cpu-ms", "1000"]);
    let client = &server.client;
    let good = upload(client, "mine", &echo());
    let mut too_slow = hostile::slow(&echo(), 400);
    for number in 0..3 {
        too_slow.extend([0, 3, 1, b'v', number]);
        put(client, "mine", &too_slow).expect(200);
        let answer = wait_for("the compiler to give up", || {
            Some(task_type(client, "mine")).filter(|answer| answer["versions"][0]["state"] != "compiling")
        });
        let states: Vec<_> = answer["versions"].as_array().unwrap().iter().map(|version| &version["state"]).collect();
        assert_eq!(states, ["failed", "ready"], "{answer:#}");
        assert_eq!(answer["version"], good);
    }
}

/// A task of a type that is gone, whose name means another one now, is not granted what that one is.
#[test]
fn a_component_is_not_granted_what_another_type_is() {
    let setup = Setup::new(&[]);
    let operator = setup.make_key("operator", "admin", &[]);
    let key = setup.make_key("default", "admin", &[]);
    let server = setup.start();
    let (operator, client) = (server.client.with_key(&operator), server.client.with_key(&key));
    let name = guest("granted");
    let grants = json!({"grants": {"env": {"A": "operator's"}, "config": {"b": "too"}}});
    patch(&operator, name, &grants).expect(200);
    let task = json!({"task_type": name, "input": {}});
    assert_eq!(client.output(&task)["environment"], json!({"A": "operator's"}), "shared types have their grants");
    // What the values are is the operator's.
    assert_eq!(task_type(&operator, name)["grants"], grants["grants"]);
    assert_eq!(task_type(&client, name)["grants"], json!({"env": {"A": ""}, "config": {"b": ""}}));
    let listed = client.get("/task-types").expect(200).text();
    assert!(listed.contains(name) && !listed.contains("operator's") && !listed.contains("too\""), "{listed}");

    let mut bytes = GUESTS.iter().find(|(known, _)| *known == name).unwrap().1.to_vec();
    bytes.extend([0, 3, 1, b'v', 1]);
    put(&client, name, &bytes).expect(201);
    let own = json!({"grants": {"env": {"A": "own"}, "config": {}}});
    wait_for("it to be granted", || (patch(&client, name, &own).expect(200).json()["state"] == "ready").then_some(()));
    assert_eq!(task_type(&client, name)["grants"]["env"], json!({"A": "own"}));
    let run = client.run(&task);
    assert_eq!(run["output"]["environment"], json!({"A": "own"}));
    let id = run["id"].as_str().unwrap();
    // An earlier version has the grants of its type.
    bytes.extend([0, 3, 1, b'v', 2]);
    upload(&client, name, &bytes);
    client.post(&format!("/task/{id}/retry")).expect(202);
    assert_eq!(client.wait_for_end(id)["output"]["environment"], json!({"A": "own"}));
    client.delete(&format!("/task-types/{name}")).expect(200);
    client.post(&format!("/task/{id}/retry")).expect(202);
    assert_eq!(client.wait_for_end(id)["output"]["environment"], json!({}));
    assert_eq!(client.output(&task)["environment"], json!({"A": "operator's"}));
}

#[test]
fn old_versions_go_when_nothing_refers_to_them() {
    let server = Setup::new(&["--retention", "600000"]).start();
    let client = &server.client;
    let first = upload(client, "mine", &echo_version(0));
    let pinned = client.create(&json!({"task_type": "mine", "input": 1}));
    client.wait_for_end(&pinned);
    for number in 1..=11 {
        upload(client, "mine", &echo_version(number));
    }
    let versions = |client: &Client| -> Vec<Value> {
        let read = task_type(client, "mine");
        read["versions"].as_array().unwrap().iter().map(|version| version["version"].clone()).collect()
    };
    let kept = versions(client);
    assert_eq!(kept.len(), 11, "the ten newest, and the one with a task: {kept:?}");
    assert_eq!(kept[10], first);
    assert_eq!(patch(client, "mine", &json!({"version": first})).expect(200).json()["version"], first);
    patch(client, "mine", &json!({"version": null})).expect(200);
    let code = |version: &Value| {
        let name = version.as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let directory = std::fs::read_dir(server.setup().data_dir().join("compiled")).unwrap();
        directory.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with(&name)).count()
    };
    assert_eq!(code(&first), 2, "and what is known of it");
    client.delete(&format!("/task/{pinned}")).expect(200);
    wait_for("the first version to go", || (!versions(client).contains(&first)).then_some(()));
    client.get(&format!("/task-types/mine/versions/{}", first.as_str().unwrap())).problem(404);
    wait_for("its code to go", || (code(&first) == 0).then_some(()));
}

/// A version that needs more than the type is granted serves once somebody grants it.
#[test]
fn a_version_is_held_until_it_is_granted_what_it_needs() {
    let server = server(&[]);
    let client = &server.client;
    let wait: &[(&str, &str)] = &[WASM, ("prefer", "wait=60")];
    let http = GUESTS.iter().find(|(name, _)| *name == guest("http")).unwrap().1;
    let fresh = client.send("PUT", "/task-types/fresh", wait, Some(http)).expect(201).json();
    assert_eq!((&fresh["state"], &fresh["version"]), (&json!("held"), &json!(null)), "{fresh:#}");
    assert_eq!(fresh["grants_missing"], json!(["http"]));
    assert!(fresh["reason"].as_str().unwrap().contains("http"), "{fresh:#}");
    client.post_task(r#"{"task_type": "fresh"}"#).problem(409);

    let first = upload(client, "mine", &echo());
    let mine = client.send("PUT", "/task-types/mine", wait, Some(http)).expect(200).json();
    let waits = &mine["versions"][0];
    assert_eq!((&mine["state"], &mine["version"], &waits["state"]), (&json!("ready"), &first, &json!("held")));
    assert_eq!(
        (&mine["next"], &waits["kind"], &waits["grants_missing"]),
        (&waits["version"], &json!("blocking-task"), &json!(["http"]))
    );
    let imports = |of: &Value| of["imports"].as_array().unwrap().iter().any(|name| *name == "wasi:http/types@0.2.12");
    assert!(imports(waits) && !imports(&mine) && !imports(&mine["versions"][1]), "{mine:#}");
    // Also where it is no longer the one to come.
    let back = patch(client, "mine", &json!({"version": first})).expect(200).json();
    assert_eq!((&back["next"], &back["versions"][0]["state"]), (&Value::Null, &json!("held")), "{back:#}");
    patch(client, "mine", &json!({"version": waits["version"]})).expect(200);
    // Also after a restart.
    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(task_type(client, "mine")["versions"][0]["state"], "held");
    let grants = json!({"grants": {"http": [{"host": "api.example.com"}]}});
    for name in ["fresh", "mine"] {
        let granted = patch(client, name, &grants).expect(200).json();
        assert_eq!((&granted["state"], &granted["grants_missing"]), (&json!("ready"), &json!([])), "{granted:#}");
        assert_eq!(granted["version"], granted["versions"][0]["version"]);
        // What is current already is not to become it, also where it would be granted no more.
        let revoked = patch(client, name, &json!({"grants": null})).expect(200).json();
        let again = client.send("PUT", &format!("/task-types/{name}"), wait, Some(http)).expect(200).json();
        assert_eq!(again, revoked);
        assert_eq!((&again["version"], &again["next"]), (&granted["version"], &Value::Null), "{again:#}");
    }
}

/// A component that has more of something than a slot of the pool has room for.
#[test]
fn a_component_larger_than_a_slot() {
    let server = server(&[]);
    let client = &server.client;
    let more = "(core instance (instantiate $More))".repeat(20);
    let large = wat::parse_str(format!(
        r#"(component
          (import "taskcell:task/types@0.1.0" (instance $types
            (type $retry' (record (field "message" string) (field "after-ms" (option u32))))
            (export "retry" (type $retry (eq $retry')))
            (type $failure' (variant (case "permanent" string) (case "transient" $retry)))
            (export "failure" (type (eq $failure')))))
          (alias export $types "failure" (type $failure))
          (core module $More (table 20000 funcref))
          {more}
          (core module $Main
            (memory (export "memory") 1)
            (func (export "realloc") (param i32 i32 i32 i32) (result i32) i32.const 64)
            (func (export "run") (param i32 i32) (result i32)
              (i32.store (i32.const 4) (local.get 0)) (i32.store (i32.const 8) (local.get 1)) (i32.const 0)))
          (core instance $main (instantiate $Main))
          (alias core export $main "memory" (core memory $memory))
          (alias core export $main "realloc" (core func $realloc))
          (alias core export $main "run" (core func $run))
          (type $run (func (param "input" string) (result (result string (error $failure)))))
          (func (export "run") (type $run) (canon lift (core func $run) (memory $memory) (realloc $realloc))))"#
    ))
    .unwrap();
    upload(client, "large", &large);
    let task = client.run(&json!({"task_type": "large", "input": "as it was"}));
    assert_eq!(task["output"], "as it was", "{task:#}");
    let peak = task["usage"]["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak >= 20 * 20_000 * 8, "its tables count: {peak}");
    let failed = client.failure(&json!({"task_type": "large", "limits": {"memory_bytes": 1_000_000}}));
    assert_eq!(failed["error"]["kind"], "memory_exceeded");
}

/// Whoever creates tasks all the time keeps nobody from removing their type.
#[test]
fn a_type_is_removed_while_tasks_of_it_come() {
    let server = server(&[]);
    let client = &server.client;
    upload(client, "mine", &echo());
    let task = json!({"task_type": "mine", "delay_ms": 86_400_000}).to_string();
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let answer = client.post_task(&task);
                        match answer.status {
                            202 => created.fetch_add(1, Ordering::Relaxed),
                            // While it is removed, and when it is.
                            409 => continue,
                            _ => break answer,
                        };
                    }
                })
            })
            .collect();
        wait_for("some tasks", || (created.load(Ordering::Relaxed) > 100).then_some(()));
        client.delete("/task-types/mine?cancel=true").expect(200);
        for client in clients {
            assert_eq!(client.join().unwrap().problem(422)["errors"][0]["pointer"], "#/task_type");
        }
    });
    for status in ["Pending", "Running"] {
        assert_eq!(client.get(&format!("/tasks?status={status}")).expect(200).json()["tasks"], json!([]));
    }
}

/// What cannot be a type is told at the start, and keeps nothing else from being served.
#[test]
fn what_is_no_component_is_left_out_at_the_start() {
    let directory = temp_dir();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("good.wasm"), echo()).unwrap();
    std::fs::write(at("Bad_Name.wasm"), echo()).unwrap();
    std::fs::write(at("none.wasm"), "no component").unwrap();
    std::fs::create_dir(at("directory.wasm")).unwrap();
    std::os::unix::fs::symlink(at("nowhere"), at("link.wasm")).unwrap();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let client = &server.client;
    assert_eq!(client.output(&json!({"task_type": "good", "input": 1})), 1);
    assert_eq!(task_type(client, "none")["state"], "failed");
    let log = server.log();
    for left_out in ["Bad_Name.wasm", "directory.wasm", "link.wasm"] {
        assert!(log.contains(left_out), "{left_out} is not in: {log}");
    }
    client.get("/task-types/directory").problem(404);
}
