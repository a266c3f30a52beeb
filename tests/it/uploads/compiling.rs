//! Compiling, in a process apart.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{echo, echo_version, put, task_type, upload, wait_until_current, with_module};
use crate::support::guests::GUESTS;
use crate::support::hostile;
use crate::support::server::Setup;
use crate::support::{Client, Server, guest, server, wait_for};

/// A component that takes a compiler a while, which grows with `functions`, and that runs like `echo`.
fn slow(functions: usize) -> Vec<u8> {
    hostile::slow(&echo(), functions)
}

fn state_of(client: &Client, name: &str, version: &Value) -> (String, String) {
    let read = task_type(client, name);
    let found = read["versions"].as_array().unwrap().iter().find(|found| found["version"] == *version).cloned();
    let found = found.unwrap_or_else(|| panic!("{version} is no version: {read:#}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&found["state"]), text(&found["reason"]))
}

fn wait_for_state(client: &Client, name: &str, version: &Value, state: &str) -> String {
    wait_for(format!("{name} to be {state}"), || {
        let (found, reason) = state_of(client, name, version);
        (found == state).then_some(reason)
    })
}

/// The version that was put last.
fn newest(client: &Client, name: &str) -> Value {
    task_type(client, name)["versions"][0]["version"].clone()
}

#[test]
fn the_version_before_serves_until_the_next_is_compiled() {
    let server = server(&[]);
    let client = &server.client;
    let first = upload(client, "mine", &echo());
    let slow = slow(12);
    put(client, "mine", &slow).expect(200);
    let second = newest(client, "mine");
    let read = task_type(client, "mine");
    assert_eq!((&read["state"], &read["version"]), (&json!("ready"), &first), "{read:#}");
    assert_eq!(state_of(client, "mine", &second).0, "compiling");
    assert_eq!(client.run(&json!({"task_type": "mine"}))["component"], first);
    // A type that has no other version is not ready, and says when to come again.
    put(client, "fresh", &slow).expect(201);
    assert_eq!(task_type(client, "fresh")["state"], "compiling");
    let refused = client.post_task(r#"{"task_type": "fresh"}"#);
    assert!(refused.header("retry-after").is_some());
    refused.problem(409);
    wait_until_current(client, "mine", &second);
    wait_until_current(client, "fresh", &second);
    assert_eq!(client.output(&json!({"task_type": "fresh", "input": 4})), 4);
}

/// Of a type without a version the first that can serve does, also where another one was uploaded meanwhile.
#[test]
fn a_version_that_was_overtaken_serves_where_there_is_no_other() {
    let server = server(&[]);
    let client = &server.client;
    let first = put(client, "mine", &slow(12)).expect(201).json()["versions"][0]["version"].clone();
    let http = GUESTS.iter().find(|(name, _)| *name == guest("http")).unwrap().1;
    let second = put(client, "mine", http).expect(200).json()["next"].clone();
    assert_ne!(first, second);
    wait_until_current(client, "mine", &first);
    wait_for_state(client, "mine", &second, "held");
    let read = task_type(client, "mine");
    assert_eq!((&read["state"], &read["version"], &read["next"]), (&json!("ready"), &first, &second), "{read:#}");
    assert_eq!(client.run(&json!({"task_type": "mine"}))["component"], first);
}

/// Whoever wants to knows at once what came of it.
#[test]
fn an_upload_can_wait_until_it_is_compiled() {
    let server = server(&[]);
    let client = &server.client;
    let wait = |bytes: &[u8], seconds: &str| {
        let headers: &[(&str, &str)] = &[("content-type", "application/wasm"), ("prefer", seconds)];
        client.send("PUT", "/task-types/mine", headers, Some(bytes))
    };
    let answer = wait(&slow(2), "wait=60").expect(201);
    assert_eq!(answer.header("preference-applied"), Some("wait=60"));
    assert_eq!(answer.json()["state"], "ready");
    let answer = wait(&slow(30), "wait=0").expect(200).json();
    assert_eq!(answer["versions"][0]["state"], "compiling");
}

/// The processes of a server that compile something.
fn compilers(server: u32) -> Vec<i32> {
    processes(server, "compile-component")
}

/// The processes that a server has started for `what`.
fn processes(server: u32, what: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    // Others come and go meanwhile.
    let read = |path: &Path, file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let parent = format!("PPid:\t{server}\n");
    let is_one = |path: &PathBuf| read(path, "status").contains(&parent) && read(path, "cmdline").contains(what);
    let pids = processes.filter(is_one).map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap());
    pids.collect()
}

/// What somebody else ended is no fault of the component: the kernel does where memory is short, and whoever stops
/// the server with all its processes.
#[test]
fn compiling_that_is_killed_is_done_again() {
    let server = server(&[]);
    let client = &server.client;
    let mut killed = Vec::new();
    let mut versions = Vec::new();
    for (name, functions, signal) in [("short-of-memory", 12, Signal::KILL), ("stopped", 13, Signal::TERM)] {
        put(client, name, &slow(functions)).expect(201);
        versions.push((name, newest(client, name)));
        // The one before may take a moment to be gone.
        let next = || compilers(server.pid()).into_iter().find(|process| !killed.contains(process));
        let process = wait_for(format!("{name} to be compiled"), next);
        kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
        killed.push(process);
    }
    for (name, version) in &versions {
        wait_until_current(client, name, version);
    }
    let log = server.log();
    assert_eq!(log.matches("was killed").count(), 2, "{log}");
}

/// Neither is it its fault where the process that looks at it is ended: nothing is stored, and its client may try again.
#[test]
fn a_look_that_is_killed_says_to_come_again() {
    let server = server(&[]);
    let client = &server.client;
    // It is looked at for as long as anything is.
    let long = hostile::long_and_broken(&echo());
    // Where it was over too soon the next is.
    let until_refused = || {
        (0..100).map(|_| put(client, "mine", &long)).find(|answer| match answer.status {
            503 => true,
            _ => {
                client.delete("/task-types/mine").expect(200);
                false
            }
        })
    };
    let refused = std::thread::scope(|scope| {
        let refused = scope.spawn(until_refused);
        wait_for("a look to be killed", || {
            for process in processes(server.pid(), "check-component") {
                // It may be gone by itself.
                let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
            }
            refused.is_finished().then_some(())
        });
        refused.join().unwrap().expect("one was killed")
    });
    assert!(refused.header("retry-after").is_some());
    refused.problem(503);
    client.get("/task-types/mine").problem(404);
    assert!(server.log().contains("cannot look at an upload"));
    upload(client, "mine", &echo());
}

/// What nobody wants any more keeps nobody waiting.
#[test]
fn compiling_ends_with_the_type() {
    let server = server(&["--compile-cpu-ms", "600000", "--compile-memory-bytes", "8000000000"]);
    let client = &server.client;
    let slow = slow(400);
    put(client, "mine", &slow).expect(201);
    let version = newest(client, "mine");
    let compilers = || compilers(server.pid()).len();
    wait_for("it to be compiled", || (compilers() == 1).then_some(()));
    client.delete("/task-types/mine").expect(200);
    wait_for("compiling to end", || (compilers() == 0).then_some(()));
    // The same again is compiled again, and others come in turn.
    put(client, "mine", &slow).expect(201);
    assert_eq!(state_of(client, "mine", &version).0, "compiling");
    wait_for("it to be compiled again", || (compilers() == 1).then_some(()));
    client.delete("/task-types/mine").expect(200);
    upload(client, "other", &echo());
}

#[test]
fn compiling_is_bounded_in_time() {
    let server = server(&["--compile-cpu-ms", "1000"]);
    let client = &server.client;
    let first = upload(client, "mine", &echo());
    put(client, "mine", &slow(400)).expect(200);
    let second = newest(client, "mine");
    // It goes on beside everything else.
    assert_eq!(client.output(&json!({"task_type": "echo", "input": 1})), 1);
    let reason = wait_for_state(client, "mine", &second, "failed");
    assert!(reason.contains("1000 ms of CPU time"), "{reason}");
    assert_eq!(task_type(client, "mine")["version"], first, "the one before stays");
    assert_eq!(client.output(&json!({"task_type": "mine", "input": 2})), 2);
    // The next start does not try it again; whoever sends the bytes again does.
    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(state_of(client, "mine", &second).0, "failed");
    put(client, "mine", &slow(400)).expect(200);
    assert_eq!(state_of(client, "mine", &second).0, "compiling");
}

/// Code that is gone is made again, and where the limits do not allow that any more, by the next start that has
/// others.
#[test]
fn other_limits_compile_what_failed_within_these() {
    let server = Setup::new(&[]).with_components(None).start();
    let version = upload(&server.client, "mine", &slow(12));
    let setup = server.stop();
    std::fs::remove_dir_all(setup.data_dir().join("compiled")).unwrap();
    let server = setup.with_flags(&["--compile-memory-bytes", "100000000"]).start();
    let reason = wait_for_state(&server.client, "mine", &version, "failed");
    assert!(reason.contains("100000000 bytes of memory"), "{reason}");
    let server = server.stop().with_flags(&[]).start();
    wait_for_state(&server.client, "mine", &version, "ready");
    assert_eq!(server.client.output(&json!({"task_type": "mine", "input": 5})), 5);
}

#[test]
fn compiling_is_bounded_in_memory() {
    let server = server(&["--compile-memory-bytes", "100000000"]);
    let client = &server.client;
    put(client, "mine", &slow(400)).expect(201);
    let reason = wait_for_state(client, "mine", &newest(client, "mine"), "failed");
    assert!(reason.contains("100000000 bytes of memory"), "{reason}");
    assert_eq!(task_type(client, "mine")["state"], "failed");
    client.post_task(r#"{"task_type": "mine"}"#).problem(409);
}

/// A crash between the upload and the end of compiling: the version is there, and is compiled after the
/// restart; nothing of it is there by halves.
#[test]
fn a_crash_while_compiling() {
    let server = server(&[]);
    let client = &server.client;
    let first = upload(client, "mine", &echo());
    put(client, "mine", &slow(12)).expect(200);
    let second = newest(client, "mine");
    assert_eq!(state_of(client, "mine", &second).0, "compiling");
    let server = server.crash().start();
    let client = &server.client;
    assert_eq!(client.output(&json!({"task_type": "mine", "input": 1})), 1);
    wait_until_current(client, "mine", &second);
    assert_eq!(client.run(&json!({"task_type": "mine"}))["component"], second);
    assert_ne!(first, second);
    let partial = std::fs::read_dir(server.setup().data_dir().join("compiled")).unwrap();
    let partial = partial.filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|it| it == "partial"));
    assert_eq!(partial.count(), 0);
}

/// What there is of uploads that are no component, and components that are not whole.
fn halves(server: &Server) -> [u64; 2] {
    let database = rusqlite::Connection::open(server.setup().database()).unwrap();
    let count = |sql: &str| database.query_row(sql, [], |row| row.get(0)).unwrap();
    [
        count("SELECT count(*) FROM component_piece WHERE upload NOT IN (SELECT upload FROM component)"),
        count(
            "SELECT count(*) FROM component WHERE size IS NOT
             (SELECT sum(length(bytes)) FROM component_piece WHERE upload = component.upload)",
        ),
    ]
}

/// What arrives and is not wanted in the end leaves nothing.
#[test]
fn an_upload_that_comes_to_nothing_leaves_nothing() {
    let server = server(&["--component-quota-bytes", "8000000"]);
    let client = &server.client;
    let large = hostile::large(&echo(), 5_000_000);
    put(client, "mine", &large).expect(201);
    for number in 0..3_u8 {
        let mut other = large.clone();
        other.extend([0, 3, 1, b'v', number]);
        put(client, "mine", &other).problem(429);
    }
    wait_for("what was refused to go", || (halves(&server) == [0, 0]).then_some(()));
    // The same bytes at the same time are there once.
    let bytes = hostile::large(&echo(), 700_000);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d"] {
            let bytes = &bytes;
            scope.spawn(move || put(client, name, bytes));
        }
    });
    wait_for("all that is not needed to go", || (halves(&server) == [0, 0]).then_some(()));
    let version = newest(client, "a");
    let path = format!("/task-types/a/versions/{}", version.as_str().unwrap());
    assert_eq!(client.get(&path).expect(200).body, bytes);
    wait_until_current(client, "a", &version);
    for name in ["mine", "a", "b", "c", "d"] {
        client.send("DELETE", &format!("/task-types/{name}"), &[], None);
    }
    wait_for("all of it to go", || {
        let database = rusqlite::Connection::open(server.setup().database()).unwrap();
        let used: u64 = database
            .query_row("SELECT coalesce(max(bytes), 0) FROM version_use WHERE tenant = 'default'", [], |row| row.get(0))
            .unwrap();
        (used == 0 && halves(&server) == [0, 0]).then_some(())
    });
}

/// Kills in the middle of uploads: each is there whole, or not at all.
#[test]
fn crashes_while_uploading() {
    let mut server = server(&[]);
    for round in 0..5_u8 {
        let client = server.client.clone();
        let bytes = with_module(
            echo_version(round),
            &wat::parse_str(format!("(module (memory 100) (data (i32.const 0) \"{}\"))", "a".repeat(3_000_000)))
                .unwrap(),
        );
        let sent = bytes.clone();
        let upload = std::thread::spawn(move || {
            let headers: &[(&str, &str)] = &[("content-type", "application/wasm")];
            client.try_send("PUT", "/task-types/mine", headers, Some(&sent)).is_ok_and(|answer| answer.status < 300)
        });
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round) * 8));
        server = server.crash().start();
        let acknowledged = upload.join().unwrap();
        assert_eq!(halves(&server), [0, 0]);
        let client = &server.client;
        let found = client.get("/task-types/mine");
        if found.status == 404 {
            assert!(!acknowledged, "an upload that was acknowledged is gone");
            continue;
        }
        let versions = found.expect(200).json()["versions"].as_array().unwrap().clone();
        let mut whole = false;
        for version in versions {
            let version = &version["version"];
            let path = format!("/task-types/mine/versions/{}", version.as_str().unwrap());
            whole |= client.get(&path).expect(200).body == bytes;
            wait_for_state(client, "mine", version, "ready");
        }
        assert!(whole || !acknowledged, "an upload that was acknowledged is gone");
        client.output(&json!({"task_type": "mine"}));
    }
}
