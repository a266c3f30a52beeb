//! What guests cannot reach, and what they cannot take from others.

mod busy;
mod many;

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::json;

use crate::support::{guest, server, shared_server};

/// No files, no arguments, no environment, no network, no names; clocks and random bytes.
#[test]
fn wasi_is_denied() {
    let server = shared_server();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = json!({"task_type": guest("wasi"), "input": {"port": port}});
    let tried = server.client.output(&task);
    let of = |name: &str| tried.get(name).unwrap_or_else(|| panic!("{name} was not tried: {tried:#}"));
    for denied in ["read_file", "write_file", "list_root", "tcp_connect", "tcp_listen", "udp_bind", "dns_lookup"] {
        assert!(of(denied).get("denied").is_some(), "{denied}: {tried:#}");
    }
    let here = of("list_here");
    assert!(here.get("denied").is_some() || here["ok"] == 0, "{tried:#}");
    for empty in ["environment", "arguments"] {
        assert_eq!(of(empty), &json!({"ok": []}), "{empty}");
    }
    assert_eq!(of("standard_input"), &json!({"ok": 0}));
    assert_eq!(of("random"), &json!({"ok": 16}));
    assert_eq!(of("monotonic_clock"), &json!({"ok": 0}));
    assert_eq!(of("wall_clock"), &json!({"ok": true}));
    assert!(!Path::new("/tmp/escaped").exists(), "a guest wrote a file");
    assert!(listener.accept().is_err(), "a guest connected");
}

/// Each attempt begins with the memory and the globals that its component says, whatever ran in its place before.
#[test]
fn an_attempt_finds_nothing_of_the_one_before() {
    let server = server(&["--max-running", "1"]);
    let client = &server.client;
    // Adds one to a global, and one to its memory, and says what both come to.
    let counts = wat::parse_str(
        r#"(component
            (core module $m
                (memory 1) (global $g (mut i32) (i32.const 0))
                (func (export "f") (result i32)
                    (global.set $g (i32.add (global.get $g) (i32.const 1)))
                    (i32.store (i32.const 5000) (i32.add (i32.load (i32.const 5000)) (i32.const 10)))
                    (i32.add (global.get $g) (i32.load (i32.const 5000)))))
            (core instance $i (instantiate $m))
            (func (export "count") (result u32) (canon lift (core func $i "f"))))"#,
    )
    .unwrap();
    let headers = [("content-type", "application/wasm"), ("prefer", "wait=60")];
    client.send("PUT", "/task-types/counts", &headers, Some(&counts)).expect(201);
    for _ in 0..20 {
        assert_eq!(client.output(&json!({"task_type": "counts"})), 11);
    }
}

/// A guest that asks for the time gets the machine's, and not one that is rounded.
#[test]
fn the_wall_clock_is_the_machines() {
    let server = shared_server();
    let now = || i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap();
    let before = now();
    let times: Vec<i64> =
        (0..5).map(|_| server.client.output(&json!({"task_type": guest("clock")})).as_i64().unwrap()).collect();
    let after = now();
    assert!(times.is_sorted() && before < times[0] && times[4] < after, "{before}, {times:?}, {after}");
    assert!(times.iter().any(|time| time % 1_000_000 != 0), "whole milliseconds: {times:?}");
}

/// Several sleeps at once take as long as the longest, and one after the other as long as all.
#[test]
fn sleeps_at_once() {
    let server = shared_server();
    let run = |at_once: bool| {
        let input = json!({"ms": 300, "times": 10, "at_once": at_once});
        let task = server.client.run(&json!({"task_type": guest("sleep"), "input": input}));
        assert_eq!(task["status"], "Completed", "{task:#}");
        task["output"]["elapsed_ms"].as_u64().unwrap()
    };
    let together = run(true);
    assert!((300..2_000).contains(&together), "{together} ms");
    let each = run(false);
    assert!((3_000..15_000).contains(&each), "{each} ms");
}

/// In the blocking world the guest waits, and nobody else.
#[test]
fn blocking_guests_hold_up_nobody() {
    let server = server(&["--guest-threads", "1"]);
    let client = &server.client;
    let sleepers: Vec<String> =
        (0..50).map(|_| client.create(&json!({"task_type": "io-blocking", "input": {"sleep_ms": 60_000}}))).collect();
    for id in &sleepers {
        client.wait_for_status(id, "Running");
    }
    let start = Instant::now();
    assert_eq!(client.output(&json!({"task_type": guest("echo-blocking"), "input": 7})), 7);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// A panic of the host would be told as `host`; nothing a guest does here may bring one about.
#[test]
fn no_guest_makes_the_host_fail() {
    let server = server(&["--default-timeout-ms", "1000"]);
    let client = &server.client;
    let bodies = [
        json!({"task_type": guest("trap")}),
        json!({"task_type": guest("deep")}),
        json!({"task_type": guest("spin")}),
        json!({"task_type": guest("bulk")}),
        json!({"task_type": guest("tables")}),
        json!({"task_type": guest("many-memories")}),
        json!({"task_type": guest("memory"), "input": {"bytes": 1 << 30}}),
        json!({"task_type": guest("pending"), "input": {"calls": 100_000}}),
        json!({"task_type": guest("handles"), "input": {"count": 100_000}}),
        json!({"task_type": guest("random"), "input": {"bytes": u64::MAX}}),
        json!({"task_type": guest("output"), "input": {"bytes": 8 << 20}}),
        json!({"task_type": guest("objects"), "input": {"op": "read", "name": "../../etc/passwd"}}),
        json!({"task_type": guest("objects"), "input": {"op": "list", "limit": u32::MAX, "at_once": 1000}}),
        json!({"task_type": guest("progress"), "input": {"fractions": [null, 1e308, -1e308]}}),
    ];
    let ids: Vec<String> = bodies.iter().map(|body| client.create(body)).collect();
    for (id, body) in ids.iter().zip(&bodies) {
        let task = client.wait_for_end(id);
        assert_ne!(task["error"]["kind"], "host", "{body}: {task:#}");
    }
    assert_eq!(client.output(&json!({"task_type": "echo", "input": "alive"})), "alive");
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
}
