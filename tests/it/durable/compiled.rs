//! Compiled code is kept: a restart compiles nothing again, and runs nothing that is damaged.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::guest;
use crate::support::server::Setup;

/// Every file of code, with what would show that it was written again.
fn files(setup: &Setup) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let entries = fs::read_dir(setup.data_dir().join("compiled")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = paths.filter(|path| path.extension().is_some_and(|extension| extension != "json")).map(|path| {
        let about = fs::metadata(&path).unwrap();
        (path, (about.modified().unwrap(), about.ino()))
    });
    files.collect()
}

/// The hash in a file's name is that of its content.
fn is_sound(path: &Path) -> bool {
    let hash: String = Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
    path.file_stem().unwrap().to_str().unwrap().ends_with(&hash)
}

#[test]
fn a_restart_compiles_nothing() {
    let server = Setup::uncompiled(&[]).with_components(None).start();
    let types = server.client.get("/task-types").expect(200).json()["task_types"].as_array().unwrap().len();
    let before = files(server.setup());
    assert_eq!(before.len(), types, "one for each type: {before:?}");
    let setup = server.stop();
    // Of an engine that is gone, and of a start that was cut off.
    for name in ["0123-4567-89ab.cwasm", "0123-4567-89ab.partial"] {
        fs::write(setup.data_dir().join("compiled").join(name), "x").unwrap();
    }
    let server = setup.start();
    assert_eq!(files(server.setup()), before);
    assert_eq!(server.client.output(&json!({"task_type": "echo", "input": 1})), 1);
}

/// A task that waited for a component which cannot be used any more fails, and whoever waits hears of it.
#[test]
fn a_task_whose_component_cannot_be_used_any_more_fails() {
    let none_runs = ["--memory-reserve", "1000000000000000000"];
    let server = Setup::new(&none_runs).with_components(None).start();
    let id = server.client.create(&json!({"task_type": "echo"}));
    assert_eq!(server.client.status(&id), "Pending");
    let setup = server.stop();
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    database.execute("UPDATE component_piece SET bytes = x'00'", []).unwrap();
    drop(database);
    fs::remove_dir_all(setup.data_dir().join("compiled")).unwrap();
    let server = setup.with_flags(&[]).start();
    let task = server.client.wait_for_end(&id);
    assert_eq!((&task["status"], &task["error"]["kind"]), (&json!("Failed"), &json!("host")), "{task:#}");
    server.client.post_task(r#"{"task_type":"echo"}"#).problem(409);
}

/// What fails because of the host is attempted again, and succeeds when all is well.
#[test]
fn what_the_host_failed_is_attempted_again() {
    let none_runs = ["--memory-reserve", "1000000000000000000"];
    let server = Setup::new(&none_runs).with_components(None).start();
    let create = |most: u32, backoff_ms: u32| {
        let retry = json!({"max_attempts": most, "initial_backoff_ms": backoff_ms, "max_backoff_ms": backoff_ms});
        server.client.create(&json!({"task_type": "echo", "input": 1, "retry": retry}))
    };
    let (fails, succeeds) = (create(3, 1), create(50, 5_000));
    let setup = server.stop();
    // What is stored of the component is no component for as long as the server runs this time.
    let database = rusqlite::Connection::open(setup.database()).unwrap();
    database
        .execute_batch(
            "CREATE TEMP TABLE sound AS SELECT * FROM component_piece; UPDATE component_piece SET bytes = x'00'",
        )
        .unwrap();
    fs::remove_dir_all(setup.data_dir().join("compiled")).unwrap();
    let server = setup.with_flags(&[]).start();
    let task = server.client.wait_for_end(&fails);
    assert_eq!((&task["attempt"], &task["error"]["kind"]), (&json!(3), &json!("host")), "{task:#}");
    assert_eq!(task["error"]["retryable"], true, "{task:#}");
    let attempts = server.client.get(&format!("/task/{fails}/attempts")).expect(200).json();
    for attempt in attempts["attempts"].as_array().unwrap() {
        assert_eq!((&attempt["outcome"], &attempt["error"]["kind"]), (&json!("Failed"), &json!("host")), "{attempt}");
    }
    let waiting = crate::support::wait_for("the first attempt of the other", || {
        Some(server.client.task(&succeeds)).filter(|task| task["attempt"] != 0)
    });
    assert_eq!((&waiting["status"], &waiting["error"]["kind"]), (&json!("Pending"), &json!("host")), "{waiting:#}");
    assert_eq!(waiting["waiting_for"]["reason"], "backoff", "{waiting:#}");
    let setup = server.stop();
    let sound = "UPDATE component_piece SET bytes = (SELECT bytes FROM sound
        WHERE (sound.upload, sound.at) = (component_piece.upload, component_piece.at))";
    database.execute_batch(sound).unwrap();
    drop(database);
    let server = setup.start();
    let task = server.client.wait_for_end(&succeeds);
    assert_eq!((&task["status"], &task["output"], &task["error"]), (&json!("Completed"), &json!(1), &json!(null)));
    assert!(task["attempt"].as_u64() > waiting["attempt"].as_u64(), "{task:#}");
}

/// Damaged or foreign code is not run but compiled anew.
#[test]
fn damaged_code_is_compiled_again() {
    let setup = Setup::uncompiled(&[]).with_components(None).start().stop();
    let before = files(&setup);
    for (number, path) in before.keys().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        match number % 3 {
            0 => bytes[middle] ^= 1,
            1 => bytes.truncate(middle),
            _ => bytes = b"garbage".to_vec(),
        }
        assert!(!bytes.is_empty());
        fs::write(path, bytes).unwrap();
    }
    let server = setup.start();
    assert!(server.log().contains("damaged"), "{}", server.log());
    for path in files(server.setup()).keys() {
        assert!(is_sound(path), "{} is still damaged", path.display());
    }
    assert_eq!(files(server.setup()).len(), before.len());
    assert_eq!(server.client.output(&json!({"task_type": "echo", "input": 1})), 1);
    assert_eq!(server.client.output(&json!({"task_type": "primes", "input": {"up_to": 10}}))["count"], 4);
}

/// A task waits for its own version of the type, whatever the directory holds later.
#[test]
fn a_task_keeps_its_version() {
    let directory = crate::support::temp_dir();
    let put = |name: &str| {
        let component = crate::support::guests::GUESTS.iter().find(|(known, _)| *known == name).unwrap().1;
        fs::write(directory.path().join("changing.wasm"), component).unwrap();
    };
    put(guest("echo-blocking"));
    let server = Setup::new(&["--max-running", "1"]).with_components(Some(directory.path())).start();
    let holder = server.client.create(&json!({"task_type": "io", "input": {"sleep_ms": 60_000}}));
    server.client.wait_for_status(&holder, "Running");
    let waiting = server.client.create(&json!({"task_type": "changing", "input": {"bytes": 5}}));
    let setup = server.crash();

    put(guest("output"));
    let server = setup.start();
    let client = &server.client;
    // It holds the one place again.
    client.delete(&format!("/task/{holder}")).expect(200);
    let old = client.wait_for_end(&waiting);
    assert_eq!(old["output"], json!({"bytes": 5}), "{old:#}");
    let new = client.run(&json!({"task_type": "changing", "input": {"bytes": 5}}));
    assert_eq!(new["output"], "xxx", "{new:#}");
    assert_ne!(old["component"], new["component"]);
    let versions = client.get("/task-types/changing").expect(200).json();
    assert_eq!(versions["versions"].as_array().unwrap().len(), 2, "{versions:#}");

    // Also when no task waits for it any more, and one is attempted afresh.
    let server = server.stop().start();
    let client = &server.client;
    client.post(&format!("/task/{waiting}/retry")).expect(202);
    let again = client.wait_for_end(&waiting);
    assert_eq!((&again["output"], &again["component"]), (&old["output"], &old["component"]), "{again:#}");
}
