//! Many types: a restart compiles none of them again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{echo, echo_version, put, task_type, upload, wait_until_current, with_module};
use crate::support::hostile::{self, wat};
use crate::support::server::{Server, Setup};
use crate::support::{Client, server, wait_for};

/// Every file of compiled code, with what would show that it was written again.
fn code(setup: &Setup) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let files = std::fs::read_dir(setup.data_dir().join("compiled")).unwrap();
    let files = files.map(|file| file.unwrap()).filter(|file| file.path().extension().is_some_and(|of| of != "json"));
    let files = files.map(|file| {
        let about = file.metadata().unwrap();
        (file.path(), (about.modified().unwrap(), about.ino()))
    });
    files.collect()
}

/// A component of 200 KB that completes with its input; each number is another one, also when it is compiled.
fn large(number: u32) -> Vec<u8> {
    let more = format!("(module (func (export \"n\") (result i32) i32.const {number}))");
    with_module(hostile::large(&echo(), 200_000), &wat(&more))
}

#[test]
fn a_restart_with_a_hundred_types_compiles_nothing() {
    const TYPES: u32 = 110;
    const LOADED_AT_START: usize = 100;
    let server = server(&[]);
    let before = code(server.setup()).len();
    let mut digests = Vec::new();
    for number in 0..TYPES {
        let component = large(number);
        assert!(component.len() >= 200_000);
        let answer = put(&server.client, &format!("type-{number}"), &component).expect(201).json();
        digests.push(answer["versions"][0]["version"].clone());
    }
    for (number, digest) in digests.iter().enumerate() {
        wait_until_current(&server.client, &format!("type-{number}"), digest);
    }
    // A task of a version that is current no longer.
    let earlier = server.client.run(&json!({"task_type": "type-0", "input": "earlier"}));
    upload(&server.client, "type-0", &large(TYPES));
    digests[0] = task_type(&server.client, "type-0")["version"].clone();
    let setup = server.crash();
    let compiled = code(&setup);
    assert_eq!(compiled.len(), before + TYPES as usize + 1, "each was compiled by itself");
    let server = setup.start();
    // At its first word everything is there.
    for (number, digest) in digests.iter().enumerate() {
        let read = task_type(&server.client, &format!("type-{number}"));
        assert_eq!((&read["state"], &read["version"]), (&json!("ready"), digest), "{read:#}");
    }
    assert_eq!(code(server.setup()), compiled);
    // Not all of it is in memory, and what is not comes when it is needed.
    assert_eq!(programs(&server), LOADED_AT_START);
    let id = earlier["id"].as_str().unwrap();
    server.client.post(&format!("/task/{id}/retry")).expect(202);
    let again = server.client.wait_for_end(id);
    assert_eq!((&again["output"], &again["component"]), (&json!("earlier"), &earlier["component"]));
    assert_eq!(programs(&server), LOADED_AT_START + 1);
    for number in [0, TYPES / 2, TYPES - 1] {
        let task = json!({"task_type": format!("type-{number}"), "input": number});
        assert_eq!(server.client.output(&task), number);
    }
}

/// How many programs a server has in memory: each has its file open.
fn programs(server: &Server) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
    let files: BTreeSet<&str> = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).collect();
    files.iter().filter(|file| file.ends_with(".cwasm")).count()
}

/// What is not loaded at a start, and whose code is gone by then, is compiled again when it is needed.
#[test]
fn code_that_is_gone_is_made_again() {
    let server = server(&[]);
    let client = &server.client;
    let first = run_version(client, 0);
    run_version(client, 1);
    let server = server.stop().start();
    let id = first["id"].as_str().unwrap();
    code(server.setup()).into_keys().for_each(|path| std::fs::remove_file(path).unwrap());
    server.client.post(&format!("/task/{id}/retry")).expect(202);
    let again = server.client.wait_for_end(id);
    assert_eq!((&again["status"], &again["component"]), (&json!("Completed"), &first["component"]), "{again:#}");
    // The same where somebody waits for it.
    let server = server.stop().start();
    code(server.setup()).into_keys().for_each(|path| std::fs::remove_file(path).unwrap());
    let input = json!({"input": 3, "version": first["component"]}).to_string();
    let headers = [("content-type", "application/json")];
    let tried = server.client.send("POST", "/task-types/type/test", &headers, Some(input.as_bytes()));
    let tried = tried.expect(200).json();
    assert_eq!(tried["output"], 3, "{tried:#}");
}

/// A task of a new version of one type.
fn run_version(client: &Client, number: u8) -> Value {
    upload(client, "type", &echo_version(number));
    client.run(&json!({"task_type": "type", "input": number}))
}

/// Code that is damaged is made again, by the compiler apart.
#[test]
fn damaged_code_is_made_again() {
    let server = server(&[]);
    for number in 0..10 {
        upload(&server.client, &format!("type-{number}"), &echo_version(number));
    }
    let setup = server.stop();
    for path in code(&setup).into_keys() {
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // Another file of the name: the one that is linked belongs to other tests as well.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    let server = setup.start();
    for number in 0..10 {
        let name = format!("type-{number}");
        wait_for(format!("{name} to be ready"), || {
            (task_type(&server.client, &name)["state"] == "ready").then_some(())
        });
        assert_eq!(server.client.output(&json!({"task_type": name, "input": number})), number);
    }
}
