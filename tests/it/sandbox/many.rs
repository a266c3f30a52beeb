//! Many tasks at once, and more than there is room for.

use std::fs;

use serde_json::json;

use crate::support::server::Setup;
use crate::support::{Client, Server, alone, guest, server, wait_for};

/// Tasks that sleep at once.
const SLEEPERS: usize = 10_000;

/// What the server may take for them.
const MOST_MEMORY_KB: u64 = 1_500_000;
const MOST_THREADS: usize = 64;

/// A figure of `/proc/PID/status`, in KiB.
fn memory_kb(server: &Server, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
    line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse().unwrap()
}

fn threads(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count()
}

fn max_map_count() -> usize {
    fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

fn running(client: &Client) -> usize {
    let metrics = client.get("/metrics").expect(200).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix("taskcell_tasks_running ")).unwrap();
    line.parse().unwrap()
}

/// Creates tasks over several connections at once, so that many share a commit.
fn create_many(server: &Server, count: usize, body: &serde_json::Value) {
    const CLIENTS: usize = 16;
    let body = body.to_string();
    std::thread::scope(|scope| {
        for part in 0..CLIENTS {
            let body = &body;
            scope.spawn(move || {
                let client = Client::new(&format!("http://{}", server.address));
                for _ in (part..count).step_by(CLIENTS) {
                    client.post_task(body).expect(202);
                }
            });
        }
    });
}

#[test]
fn ten_thousand_sleep_on_a_handful_of_threads() {
    let _alone = alone();
    let server = server(&["--max-running", &SLEEPERS.to_string(), "--drain-timeout", "0"]);
    let client = &server.client;
    create_many(
        &server,
        SLEEPERS,
        &json!({"task_type": guest("sleep"), "input": {"ms": 3_000_000}, "limits": {"timeout_ms": 300_000}}),
    );
    wait_for("all of them to sleep", || (running(client) == SLEEPERS).then_some(()));
    let (now, most, threads) = (memory_kb(&server, "VmRSS"), memory_kb(&server, "VmHWM"), threads(&server));
    eprintln!("{SLEEPERS} sleeping tasks: {now} kB resident, {most} kB at most, {threads} threads");
    assert!(most < MOST_MEMORY_KB, "{most} kB");
    assert!(threads < MOST_THREADS, "{threads} threads");

    // One more has to wait until one of them ends, and then runs.
    let id = client.create(&json!({"task_type": "echo", "input": "one more"}));
    let waiting = client.task(&id);
    assert_eq!((&waiting["status"], &waiting["waiting_for"]["reason"]), (&json!("Pending"), &json!("queue")));
    let sleeper = client.get("/tasks?status=Running&limit=1").expect(200).json()["tasks"][0]["id"].clone();
    client.delete(&format!("/task/{}", sleeper.as_str().unwrap())).expect(200);
    assert_eq!(client.wait_for_end(&id)["output"], "one more");

    // And all of them go back into the queue in good order.
    let setup = server.stop();
    let server = setup.with_flags(&["--max-running", "1", "--drain-timeout", "0"]).start();
    let pending: usize = {
        let mut found = 0;
        let mut path = "/tasks?status=Pending&limit=1000".to_owned();
        loop {
            let page = server.client.get(&path).expect(200).json();
            found += page["tasks"].as_array().unwrap().len();
            match page["next_cursor"].as_str() {
                Some(cursor) => path = format!("/tasks?status=Pending&limit=1000&cursor={cursor}"),
                None => break found,
            }
        }
    };
    assert_eq!(pending, SLEEPERS - 2, "one was deleted, one runs");
}

/// Asked for more than the system allows, the server says so, says what would help, and serves.
#[test]
fn fewer_slots_than_asked_for_are_told() {
    const ASKED: usize = 25_000;
    let _alone = alone();
    let server = server(&["--max-running", &ASKED.to_string()]);
    let metrics = server.client.get("/metrics").expect(200).text();
    let slots = metrics.lines().find_map(|line| line.strip_prefix("taskcell_task_slots ")).unwrap();
    let slots: usize = slots.parse().unwrap();
    let log = server.log();
    let told = log.lines().any(|line| line.contains("WARN") && line.contains("max_map_count"));
    if slots < ASKED {
        assert!(told && log.contains("sysctl vm.max_map_count="), "{slots} slots: {log}");
    } else {
        assert!(!told, "{log}");
    }
    if max_map_count() <= 65_530 {
        assert!(slots < ASKED, "{slots} slots with {} maps", max_map_count());
    }
    assert_eq!(server.client.output(&json!({"task_type": "echo", "input": 1})), 1);
}

/// Being short of slots is no failure: what finds none waits.
#[test]
fn tasks_wait_for_slots() {
    let server = server(&["--max-running", "2"]);
    let client = &server.client;
    let holders = [(); 2].map(|()| client.create(&json!({"task_type": guest("sleep-forever")})));
    for holder in &holders {
        client.wait_for_status(holder, "Running");
    }
    let waiting: Vec<String> = (0..20).map(|n| client.create(&json!({"task_type": "echo", "input": n}))).collect();
    for id in &waiting {
        assert_eq!(client.status(id), "Pending");
    }
    let body = json!({"task_type": "echo"}).to_string();
    let late = client.post_task_and_wait(&body, "wait=1").expect(202).json();
    assert_eq!((&late["status"], &late["attempt"]), (&json!("Pending"), &json!(0)));
    client.post(&format!("/task/{}/cancel", holders[0])).expect(202);
    for (n, id) in waiting.iter().enumerate() {
        let task = client.wait_for_end(id);
        assert_eq!((&task["output"], &task["attempt"]), (&json!(n), &json!(1)), "{task:#}");
    }
    assert_eq!(client.status(&holders[1]), "Running");
}

/// The same where the machine has too little memory: the reserve is kept and tasks wait.
#[test]
fn tasks_wait_for_memory() {
    // More than any machine has.
    let server = server(&["--memory-reserve", &(1_u64 << 60).to_string()]);
    let client = &server.client;
    let id = client.create(&json!({"task_type": "echo", "input": 1}));
    let waited = client.get_with(&format!("/task/{id}/result"), &[("prefer", "wait=1")]).expect(202).json();
    assert_eq!((&waited["status"], &waited["attempt"]), (&json!("Pending"), &json!(0)), "{waited}");
    assert!(server.log().contains("--memory-reserve"), "the operator is told: {}", server.log());
    let server = server.stop().with_flags(&[]).start();
    assert_eq!(server.client.wait_for_end(&id)["output"], 1);
}

/// Where the address space for the slots cannot be had, the server says so and runs tasks without.
#[test]
fn without_address_space_for_the_slots() {
    let setup = Setup::new(&["--max-running", "100"]);
    let command = setup.command();
    // 64 GiB: less than a hundred slots take, enough for a few memories.
    let shell = "ulimit -v 67108864; exec \"$0\" \"$@\"";
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", shell]).arg(command.get_program()).args(command.get_args());
    let server = setup.start_command(limited);
    assert!(server.log().contains("cannot reserve the address space"), "{}", server.log());
    assert_eq!(server.client.output(&json!({"task_type": "echo", "input": 1})), 1);
}
