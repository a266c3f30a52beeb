//! `taskcell backup` and `taskcell restore`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::support::server::{Setup, refused, taskcell};
use crate::support::{guest, server, temp_dir};

fn run(command: &str, file: &Path, data_dir: &Path) -> std::process::Command {
    let mut taskcell = taskcell();
    taskcell.arg(command).arg(file).arg("--data-dir").arg(data_dir);
    taskcell
}

#[track_caller]
fn succeeds(mut command: std::process::Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

/// A server that begins with nothing where a restore was cut off would look like one that lost everything.
#[test]
fn a_restore_that_was_cut_off_is_not_served() {
    let setup = Setup::new(&[]).with_components(None);
    let server = setup.start();
    let id = server.client.create(&json!({"task_type": "echo"}));
    let directory = temp_dir();
    let file = directory.path().join("backup");
    succeeds(run("backup", &file, server.setup().data_dir()));
    let restored = Setup::new(&[]).with_components(None);
    let partial = restored.data_dir().join("taskcell.db.partial");
    fs::write(&partial, &fs::read(&file).unwrap()[..5000]).unwrap();
    let message = restored.refused();
    assert!(message.contains("was cut off: do it again, or remove"), "{message}");
    succeeds(run("restore", &file, restored.data_dir()));
    assert!(!partial.exists());
    restored.start().client.get(&format!("/task/{id}")).expect(200);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A backup that is made while clients go on has everything that was acknowledged before it, and what
/// is restored from it is a server like the first.
#[test]
fn a_backup_of_a_server_that_is_in_use() {
    let server = server(&[]);
    let client = &server.client;
    let ended: Vec<_> = (0..50).map(|n| client.run(&json!({"task_type": "echo", "input": n}))).collect();
    let running = client.create(&json!({"task_type": guest("sleep"), "input": {"ms": 3000}}));
    client.wait_for_status(&running, "Running");
    client.send("PUT", "/objects/kept", &[], Some(b"bytes")).expect(201);
    let directory = temp_dir();
    let file = directory.path().join("backup");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.create(&json!({"task_type": "echo", "input": "meanwhile"}));
            }
        });
        succeeds(run("backup", &file, server.setup().data_dir()));
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(client.wait_for_end(&running)["status"], "Completed", "the server goes on");

    let restored = Setup::new(&[]);
    succeeds(run("restore", &file, restored.data_dir()));
    let restored = restored.start();
    for task in &ended {
        assert_eq!(restored.client.task(task["id"].as_str().unwrap()), *task);
    }
    assert_eq!(restored.client.get("/objects/kept").expect(200).body, b"bytes");
    let task = restored.client.wait_for_end(&running);
    assert_eq!((&task["status"], &task["attempt"]), (&json!("Completed"), &json!(2)), "as after a crash: {task:#}");
}

#[test]
fn a_backup_of_a_server_that_is_down() {
    let server = server(&[]);
    let id = server.client.run(&json!({"task_type": "echo", "input": 1}))["id"].as_str().unwrap().to_owned();
    let setup = server.crash();
    let directory = temp_dir();
    let file = directory.path().join("backup");
    succeeds(run("backup", &file, setup.data_dir()));
    assert_eq!(mode(&file), 0o600);
    let restored = Setup::new(&[]);
    // What is restored is the server's alone, whoever may read the backup.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    succeeds(run("restore", &file, restored.data_dir()));
    assert_eq!(mode(&restored.database()), 0o600);
    assert_eq!(restored.start().client.task(&id)["output"], 1);
}

/// Nothing is replaced, and nothing is written that would be no backup or no server.
#[test]
fn what_is_refused() {
    let server = server(&[]);
    server.client.run(&json!({"task_type": "echo"}));
    let directory = temp_dir();
    let path = |name: &str| directory.path().join(name);
    let data_dir = server.setup().data_dir();
    succeeds(run("backup", &path("backup"), data_dir));
    let before = fs::read(path("backup")).unwrap();
    assert!(refused(&mut run("backup", &path("backup"), data_dir)).contains("exists already"));
    assert_eq!(fs::read(path("backup")).unwrap(), before);
    assert!(refused(&mut run("backup", &path("other"), &path("nowhere"))).contains("--data-dir"));
    assert!(!path("nowhere").exists() && !path("other").exists());
    assert!(refused(&mut run("backup", &path("no/such/directory"), data_dir)).contains("cannot write"));

    assert!(refused(&mut run("restore", &path("backup"), data_dir)).contains("another taskcell"));
    let setup = server.stop();
    assert!(refused(&mut run("restore", &path("backup"), setup.data_dir())).contains("already"));
    // The log of a database that was moved away would be taken for the restored one's.
    for part in ["taskcell.db-wal", "taskcell.db-shm", "taskcell.db-journal"] {
        let dir = path(&format!("with-{part}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(part), b"old").unwrap();
        assert!(refused(&mut run("restore", &path("backup"), &dir)).contains(part));
        assert!(!dir.join("taskcell.db").exists());
    }
    let mut damaged = before.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 4096].fill(0xff);
    for (name, bytes) in
        [("damaged", &*damaged), ("short", &before[..middle]), ("text", b"no database"), ("empty", b"")]
    {
        fs::write(path(name), bytes).unwrap();
        refused(&mut run("restore", &path(name), &path("new")));
        assert!(!path("new").join("taskcell.db").exists(), "{name}");
    }
    refused(&mut run("restore", &path("missing"), &path("new")));
}
