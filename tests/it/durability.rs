//! What was acknowledged lasts: through power cuts, on a full disk, on a failing one. The disk is
//! `shim/disk.c`; kill -9 alone would leave what was never synced in the kernel's cache.

mod many_crashes;
mod model;
mod power_cut;
mod schedules;
mod told;

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use power_cut::Random;
use power_cut::{Disk, Fault, Unsynced};
use serde_json::json;
use told::Told;

use crate::support::server::{Server, Setup};
use crate::support::{Answer, Client, guest, guests, wait_for};

/// Clients that use the server at once.
const CLIENTS: u64 = 6;

/// Faults of a disk, one after the other.
const FAULTS: u64 = 12;

/// For how long it is watched that something does not happen.
const A_WHILE: Duration = Duration::from_millis(700);

/// How long a task sleeps that has to run still when something happens to the disk, on a slow machine as well.
const SLEEPS: Duration = Duration::from_millis(4_000);

const JSON: (&str, &str) = ("content-type", "application/json");
const MERGE_PATCH: (&str, &str) = ("content-type", "application/merge-patch+json");

/// Method, path, headers and body.
type Request<'a> = (&'a str, String, Vec<(&'a str, &'a str)>, Option<&'a [u8]>);

fn clients(random: &mut Random) -> Vec<Told> {
    (0..CLIENTS).map(|client| Told::new(client, random.fork())).collect()
}

/// Lets all clients use the server until it is gone; `meanwhile` makes it go.
fn use_until_gone(server: Server, told: &mut [Told], meanwhile: impl FnOnce(&AtomicU64, Server) -> Setup) -> Setup {
    let acknowledged = AtomicU64::new(0);
    let clients: Vec<Client> = told.iter().map(|_| Client::new(&format!("http://{}", server.address))).collect();
    thread::scope(|scope| {
        for (told, client) in told.iter_mut().zip(clients) {
            scope.spawn(|| {
                let client = client;
                told.use_until_gone(&client, &acknowledged);
            });
        }
        meanwhile(&acknowledged, server)
    })
}

fn losses(server: &Server, told: &mut [Told]) -> Vec<String> {
    let (client, database) = (&server.client, &server.setup().database());
    thread::scope(|scope| {
        let checks: Vec<_> = told.iter_mut().map(|told| scope.spawn(move || told.losses(client, database))).collect();
        checks.into_iter().flat_map(|check| check.join().unwrap()).collect()
    })
}

/// A server with few task types on a disk of its own.
fn on_disk(disk: &Disk) -> Server {
    let server = disk.under(Setup::new(model::FLAGS).with_components(Some(guests::few()))).start();
    assert!(disk.syncs() > 0, "the disk does not see the server's calls");
    server
}

/// After any number of power cuts at any moment everything is there that was acknowledged.
#[test]
fn what_was_acknowledged_survives_power_cuts() {
    let mut random = Random::new();
    let disk = Disk::new();
    let mut told = clients(&mut random);
    let mut server = on_disk(&disk);
    for cut in 0..9 {
        let unsynced = [Unsynced::Lost, Unsynced::Torn, Unsynced::Scattered][cut % 3];
        let calls = if cut % 2 == 0 { 100 + random.below(4000) } else { 0 };
        let acknowledgements = 30 + random.below(150);
        let setup = use_until_gone(server, &mut told, |acknowledged, mut server| {
            if calls > 0 {
                // In the middle of whatever the server writes.
                disk.cut_after(calls as u32);
                server.wait_for_exit();
                server.setup().clone()
            } else {
                // Right after it has said something.
                wait_for("acknowledgements", || {
                    (acknowledged.load(Ordering::Relaxed) >= acknowledgements).then_some(())
                });
                server.crash()
            }
        });
        eprintln!("cut {cut}: {}", disk.lose_power(setup.data_dir(), unsynced, &mut random));
        if random.chance(50) {
            let calls = 1 + random.below(20) as u32;
            cut_while_starting(&disk, &setup, calls);
            let happened = disk.lose_power(setup.data_dir(), unsynced, &mut random);
            eprintln!("cut {cut}, again at call {calls} of the next start: {happened}");
        }
        server = setup.start();
        let losses = losses(&server, &mut told);
        assert!(losses.is_empty(), "cut {cut}: {losses:#?}");
    }
    let checked: usize = told.iter().map(Told::count).sum();
    eprintln!("{checked} tasks and objects were acknowledged");
}

/// Starts the server and lets the power go at that write, truncate or sync.
fn cut_while_starting(disk: &Disk, setup: &Setup, calls: u32) {
    disk.cut_after(calls);
    let mut starting = setup.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // A start that makes fewer calls goes on and is ended here.
    let patience = Instant::now() + Duration::from_secs(5);
    while starting.try_wait().unwrap().is_none() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
    let _ = starting.kill();
    starting.wait().unwrap();
}

/// A database of an earlier schema is brought up to date whole or not at all, wherever the power fails.
#[test]
fn a_migration_that_is_cut_off_is_done_again() {
    let sql = include_str!("../databases/1.sql");
    let mut random = Random::new();
    for calls in [1, 2, 3, 5, 8, 12, 20, 40] {
        let disk = Disk::new();
        let setup = disk.under(Setup::new(&[]).with_components(None));
        rusqlite::Connection::open(setup.database()).unwrap().execute_batch(sql).unwrap();
        cut_while_starting(&disk, &setup, calls);
        disk.lose_power(setup.data_dir(), Unsynced::Scattered, &mut random);
        let server = setup.start();
        let tasks = server.client.get("/tasks").expect(200).json();
        assert_eq!(tasks["tasks"].as_array().unwrap().len(), 5, "cut after {calls} calls: {tasks:#}");
        assert_eq!(server.client.output(&json!({"task_type": "echo", "input": calls})), calls);
    }
}

/// The test of power cuts can fail: where syncs do nothing, as with `synchronous=OFF`, it sees the loss.
#[test]
fn a_sync_that_does_nothing_is_noticed() {
    let mut random = Random::new();
    let disk = Disk::new();
    let mut told = clients(&mut random);
    let server = on_disk(&disk);
    disk.set(Fault::SyncIgnored, 1);
    let setup = use_until_gone(server, &mut told, |acknowledged, server| {
        wait_for("acknowledgements", || (acknowledged.load(Ordering::Relaxed) >= 50).then_some(()));
        server.crash()
    });
    disk.lose_power(setup.data_dir(), Unsynced::Lost, &mut random);
    let losses = losses(&setup.start(), &mut told);
    assert!(losses.len() >= 20, "only {losses:#?}");
}

/// No change is acknowledged, and none is seen, before its commit is on the disk. Reads go on.
#[test]
fn nothing_is_acknowledged_before_its_commit() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    let ended = client.run(&json!({"task_type": "echo", "input": 1}))["id"].as_str().unwrap().to_owned();
    let deleted = client.run(&json!({"task_type": "echo", "input": 2}))["id"].as_str().unwrap().to_owned();
    let sleep = |ms: u32| client.create(&json!({"task_type": guest("sleep"), "input": {"ms": ms}}));
    let canceled = sleep(60_000);
    client.wait_for_status(&canceled, "Running");
    for name in ["kept", "removed"] {
        assert!((200..300).contains(&client.send("PUT", &format!("/objects/{name}"), &[], Some(b"x")).status));
    }
    let ends = sleep(SLEEPS.as_millis() as u32);
    client.wait_for_status(&ends, "Running");

    let wait = ("prefer", "wait=60");
    let task = json!({"task_type": "echo", "input": 3}).to_string();
    let changes: [Request<'_>; 7] = [
        ("POST", "/task".into(), vec![JSON], Some(task.as_bytes())),
        ("POST", "/task".into(), vec![JSON, wait], Some(task.as_bytes())),
        ("POST", format!("/task/{canceled}/cancel"), vec![], Some(b"")),
        ("DELETE", format!("/task/{deleted}"), vec![], None),
        ("PUT", "/objects/new".into(), vec![], Some(b"new")),
        ("PUT", "/objects/kept".into(), vec![], Some(b"replaced")),
        ("DELETE", "/objects/removed".into(), vec![], None),
    ];
    thread::scope(|scope| {
        let held = disk.with(Fault::SyncHeld, 1);
        let held_since = Instant::now();
        let (answered, answers) = mpsc::channel();
        for (method, path, headers, body) in &changes {
            let answered = answered.clone();
            scope.spawn(move || {
                let _ = answered.send(client.send(method, path, headers, *body));
            });
        }
        wait_for("a sync", || (disk.held() > 0).then_some(()));
        // Until long after the task has slept enough.
        while held_since.elapsed() < SLEEPS + A_WHILE {
            for path in ["/healthz", "/tasks", "/objects", "/objects/removed"] {
                client.get(path).expect(200);
            }
            for id in [&ended, &deleted] {
                client.get(&format!("/task/{id}")).expect(200);
                client.get(&format!("/task/{id}/result")).expect(200);
            }
            assert_eq!(client.get("/objects/kept").expect(200).body, b"x");
            client.get("/objects/new").expect(404);
            assert_eq!(client.status(&ends), "Running", "its end is not on the disk");
            assert_eq!(client.status(&canceled), "Running", "its end is not on the disk");
        }
        let early = answers.try_recv();
        drop(held);
        assert!(early.is_err(), "answered before its commit: {early:?}");
        for _ in &changes {
            let answer = answers.recv().unwrap();
            assert!((200..300).contains(&answer.status), "{answer:?}");
        }
    });
    assert_eq!(client.wait_for_end(&ends)["status"], "Completed");
    client.get(&format!("/task/{deleted}")).expect(404);
    assert_eq!(client.get("/objects/kept").expect(200).body, b"replaced");
}

/// An acknowledgement takes as long as its syncs: one for a new task, one more for its result.
#[test]
fn an_acknowledgement_takes_as_long_as_the_disk() {
    let disk = Disk::new();
    let server = on_disk(&disk);
    let one = Duration::from_millis(200);
    let _slow = disk.with(Fault::SyncMillis, 200);
    let timed = |request: &dyn Fn() -> Answer| {
        let start = Instant::now();
        let answer = request();
        assert!((200..300).contains(&answer.status), "{answer:?}");
        start.elapsed()
    };
    let task = r#"{"task_type":"echo"}"#;
    assert!(timed(&|| server.client.post_task(task)) >= one);
    assert!(timed(&|| server.client.send("PUT", "/objects/a", &[], Some(b"a"))) >= one);
    assert!(timed(&|| server.client.delete("/objects/a")) >= one);
    // The attempt is counted on the disk before it starts.
    assert!(timed(&|| server.client.post_task_and_wait(task, "wait=60")) >= 2 * one);
}

/// With room neither for a block nor a byte.
#[test]
fn a_full_disk_that_takes_nothing() {
    survives_refused_writes(Fault::NoSpace, 1);
}

/// As file systems are: what is allocated can be written, and a write may be done in part.
#[test]
fn a_full_disk_that_takes_what_fits() {
    survives_refused_writes(Fault::NoSpace, 2);
}

#[test]
fn a_disk_that_fails_to_write() {
    survives_refused_writes(Fault::WriteFails, 1);
}

/// Writes are refused and everything else goes on; afterwards all is as if nothing had been.
fn survives_refused_writes(fault: Fault, value: u8) {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    let before = client.run(&json!({"task_type": "echo", "input": [1, 2]}));
    let before_path = format!("/task/{}", before["id"].as_str().unwrap());
    assert!((200..300).contains(&client.send("PUT", "/objects/a", &[], Some(b"a")).status));
    let pending = client.create(&json!({"task_type": "echo", "delay_ms": 3_600_000}));
    let pending_path = format!("/task/{pending}");
    let schedule: &[u8] = br#"{"cron":"0 0 1 1 *","task":{"task_type":"echo"}}"#;
    assert_eq!(client.send("PUT", "/schedules/a", &[JSON], Some(schedule)).status, 201);
    let echo_type = client.get("/task-types/echo").expect(200).json();
    let sleep = json!({"task_type": guest("sleep"), "input": {"ms": SLEEPS.as_millis() as u32}});
    let mut known: Vec<String> = (0..5).map(|_| client.create(&sleep)).collect();

    let waited = thread::scope(|scope| {
        let waited = scope.spawn(|| client.post_task_and_wait(&sleep.to_string(), "wait=60"));
        wait_for("all to run", || {
            let running = client.get("/tasks?status=Running").expect(200).json();
            (running["tasks"].as_array().unwrap().len() == 6).then_some(())
        });
        let full = disk.with(fault, value);
        let full_since = Instant::now();
        let task = r#"{"task_type":"echo"}"#;
        while full_since.elapsed() < SLEEPS + A_WHILE {
            for refused in [
                client.post_task(task),
                client.post_task_and_wait(task, "wait=60"),
                client.send("PUT", "/objects/b", &[], Some(b"b")),
                client.send("PUT", "/objects/a", &[], Some(b"b")),
                client.delete("/objects/a"),
                client.delete(&before_path),
                client.post(&format!("{before_path}/retry")),
                client.post(&format!("{pending_path}/cancel")),
                client.delete(&pending_path),
                client.send("PUT", "/schedules/b", &[JSON], Some(schedule)),
                client.send("PUT", "/schedules/a", &[JSON], Some(schedule)),
                client.delete("/schedules/a"),
                client.send("POST", "/tasks/retry", &[JSON], Some(b"{}")),
                client.send("PATCH", "/task-types/echo", &[MERGE_PATCH], Some(br#"{"retention_ms":1}"#)),
            ] {
                assert!(refused.header("retry-after").is_some(), "{refused:?}");
                refused.problem(503);
            }
            let many = client.send("POST", "/tasks", &[JSON], Some(br#"[{"task_type":"echo"},{"task_type":"?"}]"#));
            let results = many.expect(200).json()["results"].as_array().cloned().unwrap_or_default();
            let statuses: Vec<_> = results.iter().map(|result| result["status"].as_u64()).collect();
            assert_eq!(statuses, [Some(503), Some(422)]);
            assert!(results[0]["retry_after"].is_u64() && results[1]["retry_after"].is_null(), "{results:?}");
            for path in ["/healthz", "/tasks", "/objects", "/task-types"] {
                client.get(path).expect(200);
            }
            assert_eq!(client.get(&before_path).expect(200).json(), before);
            assert_eq!(client.get(&format!("{before_path}/result")).expect(200).body, b"[1,2]");
            assert_eq!(client.get("/objects/a").expect(200).body, b"a");
            for id in &known {
                assert_eq!(client.status(id), "Running", "its end is not on the disk");
            }
        }
        drop(full);
        waited.join().unwrap()
    });
    // By itself, and all that ended meanwhile has its result.
    assert_eq!(waited.expect(200).json()["status"], "Completed");
    for id in &known {
        let task = client.wait_for_end(id);
        assert_eq!((&task["status"], &task["attempt"]), (&json!("Completed"), &json!(1)), "{task:#}");
    }
    known.push(wait_for("a new task", || {
        let answer = client.post_task(r#"{"task_type":"echo"}"#);
        (answer.status == 202).then(|| answer.json()["id"].as_str().unwrap().to_owned())
    }));
    let tasks: Vec<_> = known.iter().map(|id| client.wait_for_end(id)).collect();

    // And it is on the disk.
    let setup = server.crash();
    disk.lose_power(setup.data_dir(), Unsynced::Lost, &mut Random::new());
    let server = setup.start();
    for (id, task) in known.iter().zip(tasks) {
        assert_eq!(server.client.task(id), task);
    }
    assert_eq!(server.client.get(&before_path).expect(200).json(), before);
    assert_eq!(server.client.get("/objects/a").expect(200).body, b"a");
    server.client.get("/objects/b").expect(404);
    server.client.get("/schedules/a").expect(200);
    server.client.get("/schedules/b").expect(404);
    assert_eq!(server.client.status(&pending), "Pending");
    assert_eq!(server.client.get("/task-types/echo").expect(200).json(), echo_type);
    assert_eq!(server.client.get("/operations").expect(200).json()["operations"], json!([]));
    let all = server.client.get("/tasks?limit=1000").expect(200).json();
    assert_eq!(all["tasks"].as_array().unwrap().len(), known.len() + 3, "a refused task exists: {all:#}");
}

/// Clients that go on while the disk fills up, fails to write and is slow, each for a moment, and at last loses
/// what was not synced: what was refused may be done or not, and nothing else is lost or changed.
#[test]
fn what_was_acknowledged_survives_faults_that_come_and_go() {
    let mut random = Random::new();
    let disk = Disk::new();
    let mut told = clients(&mut random);
    let faults = [(Fault::NoSpace, 1), (Fault::NoSpace, 2), (Fault::WriteFails, 1), (Fault::SyncMillis, 30)];
    let setup = use_until_gone(on_disk(&disk), &mut told, |acknowledged, server| {
        for _ in 0..FAULTS {
            let (fault, value) = faults[random.below(faults.len() as u64) as usize];
            let faulty = disk.with(fault, value);
            thread::sleep(Duration::from_millis(random.below(300)));
            drop(faulty);
            let before = acknowledged.load(Ordering::Relaxed);
            wait_for("acknowledgements", || (acknowledged.load(Ordering::Relaxed) >= before + 20).then_some(()));
        }
        server.crash()
    });
    let happened = disk.lose_power(setup.data_dir(), Unsynced::Lost, &mut random);
    let losses = losses(&setup.start(), &mut told);
    assert!(losses.is_empty(), "{happened} {losses:#?}");
}

/// A read goes on also where it would wait, and where results wait to be stored.
#[test]
fn reads_that_would_wait_go_on_where_the_disk_is_full() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    let ended = client.run(&json!({"task_type": "echo", "input": 1}))["id"].as_str().unwrap().to_owned();
    let sleep = |ms: u32| client.create(&json!({"task_type": guest("sleep"), "input": {"ms": ms}}));
    let (runs, ends) = (sleep(60_000), sleep(SLEEPS.as_millis() as u32));
    for id in [&runs, &ends] {
        client.wait_for_status(id, "Running");
    }
    let full = disk.with(Fault::NoSpace, 1);
    let full_since = Instant::now();
    let result = |id: &str| client.get_with(&format!("/task/{id}/result"), &[("prefer", "wait=1")]);
    while full_since.elapsed() < SLEEPS + 2 * A_WHILE {
        result(&ended).expect(200);
        result(&runs).expect(202);
        result(&ends).expect(202);
    }
    drop(full);
    assert_eq!(client.wait_for_end(&ends)["status"], "Completed");
    client.delete(&format!("/task/{runs}")).expect(200);
}

/// Who wants a running task stopped on a full disk is refused as everybody else is, and not left waiting. What was
/// stopped for it is told.
#[test]
fn what_stops_a_running_task_is_answered_where_the_disk_is_full() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    for is_deleted in [false, true] {
        let [stopped, left] = [(); 2].map(|()| client.create(&json!({"task_type": guest("sleep-forever")})));
        for id in [&stopped, &left] {
            client.wait_for_status(id, "Running");
        }
        let full = disk.with(Fault::NoSpace, 1);
        let path = format!("/task/{stopped}");
        let refused = if is_deleted { client.delete(&path) } else { client.post(&format!("{path}/cancel")) };
        let detail = |problem: &serde_json::Value| problem["detail"].as_str().unwrap().to_owned();
        assert!(detail(&refused.problem(503)).contains("was stopped"));
        let nothing = client.delete(&format!("/task/{left}")).problem(503);
        assert!(detail(&nothing).contains("Nothing was changed"), "{nothing:#}");
        drop(full);
        // The first was stopped before the disk was found to be full; of the second nothing was done.
        assert_eq!(client.wait_for_end(&stopped)["error"]["kind"], "canceled");
        assert_eq!(client.status(&left), "Running");
        client.delete(&format!("/task/{left}")).expect(200);
    }
}

/// A create that waits says that nothing was stored only where nothing was: its patience ends on a full
/// disk, and the task is there.
#[test]
fn a_create_that_waits_into_a_full_disk_names_its_task() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    let body = json!({"task_type": guest("sleep"), "input": {"ms": 60_000}, "priority": 77}).to_string();
    let answer = thread::scope(|scope| {
        let waiting = scope.spawn(|| client.post_task_and_wait(&body, "wait=2"));
        wait_for("the task to run", || {
            let running = client.get("/tasks?status=Running").expect(200).json();
            running["tasks"].as_array().unwrap().iter().any(|task| task["priority"] == 77).then_some(())
        });
        let full = disk.with(Fault::NoSpace, 1);
        let answer = waiting.join().unwrap();
        drop(full);
        answer
    });
    let id = answer.expect(202).json()["id"].as_str().unwrap().to_owned();
    client.delete(&format!("/task/{id}")).expect(200);
}

/// After a failed sync nobody knows what is on the disk: the server ends, and acknowledges nothing
/// on the strength of a later sync, which succeeds without having written anything.
#[test]
fn a_failed_sync_ends_the_server() {
    let mut random = Random::new();
    let disk = Disk::new();
    let mut told = clients(&mut random);
    let setup = use_until_gone(on_disk(&disk), &mut told, |acknowledged, mut server| {
        wait_for("acknowledgements", || (acknowledged.load(Ordering::Relaxed) >= 50).then_some(()));
        disk.set(Fault::SyncFails, 2);
        let status = server.wait_for_exit();
        let log = server.log();
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {log}");
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("ERROR") && last.contains("sync") && last.contains("disk"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        server.setup().clone()
    });
    disk.lose_power(setup.data_dir(), Unsynced::Lost, &mut random);
    let server = setup.start();
    let losses = losses(&server, &mut told);
    assert!(losses.is_empty(), "{losses:#?}");
    server.client.run(&json!({"task_type": "echo"}));
}

/// A start on a disk that cannot sync says so and does not serve.
#[test]
fn a_start_on_a_disk_that_fails_is_refused() {
    let disk = Disk::new();
    let setup = on_disk(&disk).stop();
    let failing = disk.with(Fault::SyncFails, 1);
    let said = setup.refused();
    assert!(said.contains("taskcell:"), "{said}");
    drop(failing);
    setup.start().client.run(&json!({"task_type": "echo"}));
}

/// Who begins to wait for a change while it is being stored, and reads what was before it, is told of it.
#[test]
fn a_wait_that_begins_during_the_commit_is_answered() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let client = &server.client;
    let id = client.create(&json!({"task_type": guest("sleep-forever")}));
    client.wait_for_status(&id, "Running");
    let path = format!("/task/{id}");
    let tag = client.get(&path).expect(200).header("etag").unwrap().to_owned();
    thread::scope(|scope| {
        let held = disk.with(Fault::SyncHeld, 1);
        let canceled = scope.spawn(|| client.post(&format!("{path}/cancel")));
        wait_for("the commit of the cancel", || (disk.held() > 0).then_some(()));
        let start = Instant::now();
        let told = scope.spawn(|| client.get_with(&path, &[("if-none-match", &tag), ("prefer", "wait=50")]));
        thread::sleep(A_WHILE);
        assert!(!told.is_finished() && !canceled.is_finished(), "the commit is not on the disk");
        drop(held);
        canceled.join().unwrap().expect(202);
        assert_eq!(told.join().unwrap().expect(200).json()["status"], "Failed");
        assert!(start.elapsed() < Duration::from_secs(40), "it was told, and not only looked at again at the end");
    });
}

/// What a crash left unsynced in the log is on the disk before anything follows it there: a disk that kept only what
/// follows would look damaged.
#[test]
fn what_a_crash_left_is_synced_first() {
    let disk = Disk::new();
    let server = disk.under(Setup::new(&[])).start();
    let log = server.setup().database().with_extension("db-wal");
    let held = disk.with(Fault::SyncHeld, 1);
    let client = server.client.clone();
    let creates = thread::spawn(move || client.create(&json!({"task_type": "echo"})));
    wait_for("the commit of the create", || (disk.held() > 0).then_some(()));
    let setup = server.crash();
    creates.join().unwrap_err();
    // Who was killed in the middle of a sync is still counted.
    let (left, before) = (std::fs::read(&log).unwrap(), disk.held());
    let starts = thread::spawn(|| setup.start());
    wait_for("a sync", || (disk.held() > before).then_some(()));
    assert!(!left.is_empty() && std::fs::read(&log).unwrap() == left, "it is written to before it was synced");
    drop(held);
    let server = starts.join().unwrap();
    assert_eq!(server.client.get("/tasks").expect(200).json()["tasks"].as_array().unwrap().len(), 1);
}
