//! Many types: a restart compiles none of them again.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;

use super::{echo, echo_version, put, task_type, upload, wait_until_current, with_module};
use crate::support::hostile::{self, wat};
use crate::support::server::Setup;
use crate::support::{server, wait_for};

/// Every file of compiled code, with what would show that it was written again.
fn code(setup: &Setup) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let files = std::fs::read_dir(setup.data_dir().join("compiled")).unwrap();
    let files = files.map(|file| file.unwrap()).map(|file| {
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
    const TYPES: u32 = 100;
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
    let setup = server.crash();
    let compiled = code(&setup);
    assert_eq!(compiled.len(), before + TYPES as usize, "each was compiled by itself");
    let server = setup.start();
    // At its first word everything is there.
    for (number, digest) in digests.iter().enumerate() {
        let read = task_type(&server.client, &format!("type-{number}"));
        assert_eq!((&read["state"], &read["version"]), (&json!("ready"), digest), "{read:#}");
    }
    assert_eq!(code(server.setup()), compiled);
    for number in [0, TYPES / 2, TYPES - 1] {
        let task = json!({"task_type": format!("type-{number}"), "input": number});
        assert_eq!(server.client.output(&task), number);
    }
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
