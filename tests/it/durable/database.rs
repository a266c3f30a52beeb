//! The data directory: one server at a time, and no file is touched that cannot be used.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::json;

use crate::events::Stream;
use crate::support::server::{Setup, refused, taskcell};

/// Bytes of the database file's header (see "Database File Format" of SQLite).
const USER_VERSION: u64 = 60;
const APPLICATION_ID: u64 = 68;

/// A directory with a database that has a task in it, and no server.
fn used() -> (Setup, String) {
    let server = Setup::new(&[]).with_components(None).start();
    let task = server.client.run(&json!({"task_type": "echo", "input": "kept"}));
    (server.stop(), task["id"].as_str().unwrap().to_owned())
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// The start must be refused, with all of `words` in the message, and leave the file as it is.
#[track_caller]
fn refused_untouched(setup: &Setup, words: &[&str]) {
    let before = fs::read(setup.database()).unwrap();
    let beside = || {
        let names = fs::read_dir(setup.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let parts = names.filter(|name| name.to_str().unwrap().starts_with("taskcell.db"));
        parts.collect::<std::collections::BTreeSet<_>>()
    };
    let parts = beside();
    let message = setup.refused();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(message.contains("taskcell.db"), "it does not say which file: {message}");
    assert!(before == fs::read(setup.database()).unwrap(), "the database was changed: {message}");
    // Of a log that was there an index may be made.
    if !parts.iter().any(|name| name == "taskcell.db-wal") {
        assert_eq!(beside(), parts, "it left something: {message}");
    }
}

#[test]
fn one_server_at_a_time() {
    let server = Setup::new(&[]).with_components(None).start();
    let message = server.setup().refused();
    assert!(message.contains("another taskcell"), "{message}");
    assert!(message.contains(server.setup().data_dir().to_str().unwrap()), "{message}");
    server.client.get("/healthz").expect(200);
    // A crash leaves no lock behind.
    server.crash().start().client.get("/readyz").expect(200);
}

#[test]
fn garbage_is_refused() {
    let (setup, _) = used();
    overwrite(&setup.database(), 0, b"this is no database, whatever it is called");
    refused_untouched(&setup, &["damaged"]);
    fs::write(setup.database(), "a text file").unwrap();
    refused_untouched(&setup, &["damaged"]);
}

#[test]
fn a_shortened_database_is_refused() {
    let (setup, _) = used();
    let length = fs::metadata(setup.database()).unwrap().len();
    for length in [length - 1, length - 4096, length / 2, length / 2 + 100, 4096, 512] {
        let file = fs::OpenOptions::new().write(true).open(setup.database()).unwrap();
        file.set_len(length).unwrap();
        refused_untouched(&setup, &["damaged"]);
    }
}

/// What a crash leaves has a write-ahead log beside it, in which some of the pages are.
#[test]
fn a_shortened_database_with_a_log_is_refused() {
    let (setup, _) = used();
    let server = setup.start();
    let id = server.client.create(&json!({"task_type": "echo", "input": 1}));
    assert_eq!(server.client.wait_for_end(&id)["output"], 1);
    let setup = server.crash();
    let whole = fs::read(setup.database()).unwrap();
    assert!(fs::metadata(setup.data_dir().join("taskcell.db-wal")).unwrap().len() > 0);
    for length in [whole.len() / 2, whole.len() / 2 + 100] {
        fs::write(setup.database(), &whole[..length]).unwrap();
        refused_untouched(&setup, &["damaged", "shorter"]);
    }
    fs::write(setup.database(), whole).unwrap();
    assert_eq!(setup.start().client.task(&id)["output"], 1);
}

/// SQLite would take what comes before the damage, and leave out without a word what was acknowledged later.
#[test]
fn a_damaged_write_ahead_log_is_refused() {
    let server = Setup::new(&[]).with_components(None).start();
    let tasks: Vec<_> = (0..20).map(|n| server.client.run(&json!({"task_type": "echo", "input": n}))).collect();
    let setup = server.crash();
    let log = setup.data_dir().join("taskcell.db-wal");
    let whole = fs::read(&log).unwrap();
    // Its magic number, a salt, its checksum; a frame at the beginning with its salts, and one in the middle.
    for at in [1, 17, 25, 41, 100, whole.len() / 2] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&log, &damaged).unwrap();
        refused_untouched(&setup, &["write-ahead log", "damaged", "restore a backup"]);
        let backup = setup.data_dir().join("backup");
        let message =
            refused(taskcell().args(["backup", backup.to_str().unwrap(), "--data-dir"]).arg(setup.data_dir()));
        assert!(message.contains("is damaged") && !backup.exists(), "{message}");
        assert!(fs::read(&log).unwrap() == damaged, "byte {at}: the log was changed");
    }
    fs::write(&log, whole).unwrap();
    let server = setup.start();
    for task in tasks {
        assert_eq!(server.client.task(task["id"].as_str().unwrap()), task);
    }
}

#[test]
fn what_is_missing_in_a_database_is_told() {
    let (setup, _) = used();
    let whole = fs::read(setup.database()).unwrap();
    for (lost, named) in [("TABLE secret", "table secret"), ("INDEX task_due", "index task_due")] {
        let database = rusqlite::Connection::open(setup.database()).unwrap();
        database.execute_batch(&format!("PRAGMA journal_mode = DELETE; DROP {lost}")).unwrap();
        drop(database);
        refused_untouched(&setup, &["damaged", named]);
        fs::write(setup.database(), &whole).unwrap();
    }
    for version in [0_i32, -1] {
        overwrite(&setup.database(), USER_VERSION, &version.to_be_bytes());
        refused_untouched(&setup, &["damaged", &format!("schema {version}")]);
    }
    // It has what schema 1 has, and what the later ones add is there already.
    overwrite(&setup.database(), USER_VERSION, &1_i32.to_be_bytes());
    refused_untouched(&setup, &["schema 1"]);
}

#[test]
fn a_damaged_page_is_refused() {
    let (setup, _) = used();
    // The schema's own page, behind the header.
    overwrite(&setup.database(), 100, &[0xa5; 2000]);
    refused_untouched(&setup, &["damaged"]);
}

#[test]
fn a_newer_database_is_refused() {
    let (setup, id) = used();
    let version: u32 = rusqlite::Connection::open(setup.database())
        .and_then(|database| database.query_row("PRAGMA user_version", [], |row| row.get(0)))
        .unwrap();
    overwrite(&setup.database(), USER_VERSION, &1000_u32.to_be_bytes());
    refused_untouched(&setup, &["newer"]);
    // Nothing else was wrong with it.
    overwrite(&setup.database(), USER_VERSION, &version.to_be_bytes());
    assert_eq!(setup.start().client.task(&id)["output"], "kept");
}

#[test]
fn the_database_of_another_program_is_refused() {
    let (setup, id) = used();
    let original = fs::read(setup.database()).unwrap();
    overwrite(&setup.database(), APPLICATION_ID, &0x1234_5678_u32.to_be_bytes());
    refused_untouched(&setup, &["not a taskcell database"]);
    fs::write(setup.database(), original).unwrap();
    assert_eq!(setup.start().client.task(&id)["output"], "kept");
}

/// An empty file is what is left of a start that ended before its first commit.
#[test]
fn an_empty_database_is_a_new_one() {
    let setup = Setup::new(&[]).with_components(None);
    fs::write(setup.database(), "").unwrap();
    let server = setup.start();
    assert_eq!(server.client.output(&json!({"task_type": "echo", "input": 1})), 1);
    assert!(server.log().contains("the database is empty"), "{}", server.log());
}

#[test]
fn a_directory_that_cannot_be_used_is_refused() {
    let setup = Setup::new(&[]).with_components(None);
    let file = setup.data_dir().join("a-file");
    fs::write(&file, "").unwrap();
    let mut command = crate::support::server::taskcell();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&file);
    let message = refused(&mut command);
    assert!(message.contains("a-file"), "{message}");
}

/// A database of every schema that was released is brought up to date, with everything in it.
#[test]
fn older_databases_are_brought_up_to_date() {
    let databases = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/databases"));
    let mut found = 0;
    for version in 1.. {
        let Ok(sql) = fs::read_to_string(databases.join(format!("{version}.sql"))) else { break };
        found += 1;
        let setup = Setup::new(&[]).with_components(None);
        let database = rusqlite::Connection::open(setup.database()).unwrap();
        database.execute_batch(&sql).unwrap();
        // There were none in the first.
        let events: Option<u64> =
            database.query_row("SELECT max(seq) FROM event", [], |row| row.get(0)).unwrap_or(None);
        drop(database);
        let server = setup.start();
        let client = &server.client;
        let tasks = client.get("/tasks?limit=1000").expect(200).json();
        let by_type = |name: &str| -> Vec<String> {
            let tasks = tasks["tasks"].as_array().unwrap().iter().filter(|task| task["task_type"] == name);
            tasks.map(|task| task["id"].as_str().unwrap().to_owned()).collect()
        };
        let (echo, io, primes) = (by_type("echo"), by_type("io"), by_type("primes"));
        assert_eq!((echo.len(), io.len(), primes.len()), (2, 2, 1), "{version}: {tasks:#}");
        assert_eq!(client.get(&format!("/task/{}/result", echo[1])).expect(200).text(), r#"{"a" : 1.00}"#);
        assert_eq!(client.task(&primes[0])["error"]["kind"], "cpu_exceeded");
        assert_eq!(client.task(&io[1])["usage"]["io_bytes"], 8192);
        let log = client.get(&format!("/task/{}/logs", io[1])).expect(200).json();
        assert_eq!(log["lines"].as_array().unwrap().len(), 2, "{log:#}");
        let used = &client.get("/tenant").expect(200).json()["quotas"]["log_bytes"]["used"];
        assert_eq!(*used, client.task(&io[1])["usage"]["log_bytes"], "they are counted from now on");
        let attempts = client.get(&format!("/task/{}/attempts", io[1])).expect(200).json();
        assert_eq!(attempts["attempts"][0]["usage"]["io_bytes"], 8192, "{attempts:#}");
        assert_eq!(client.get("/objects/kept/a").expect(200).body, b"bytes");
        // These waited, for components whose bytes are not in the dump.
        for id in [&echo[0], &io[0]] {
            assert_eq!(client.wait_for_end(id)["error"]["kind"], "host");
        }
        let id = client.create(&json!({"task_type": "echo", "input": 1}));
        assert_eq!(client.wait_for_end(&id)["output"], 1);
        // Whoever read all of them before misses nothing of what happens since.
        let last = events.unwrap_or(0);
        let path = format!("/task/{id}/events");
        assert_eq!(Stream::open(client, &path, Some(last)).rest().len(), 3, "after {last}");
        if version > 1 {
            assert_eq!(Stream::open(client, &format!("/task/{}/events", echo[1]), Some(0)).rest().len(), 3);
        }
    }
    let now: usize = {
        let (setup, _) = used();
        let database = rusqlite::Connection::open(setup.database()).unwrap();
        database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(found, now - 1, "every schema before this one has its database");
}
