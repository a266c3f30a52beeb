//! Memory of the guest, and what the host holds for it.

use serde_json::{Value, json};

use super::{check_receipt, completes, fails};
use crate::support::{guest, server, shared_server};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 65_536;

fn memory(bytes: u64, limit: u64, on_refusal: &str) -> Value {
    json!({
        "task_type": guest("memory"),
        "input": {"bytes": bytes, "on_refusal": on_refusal},
        "limits": {"memory_bytes": limit},
    })
}

#[test]
fn one_memory() {
    let server = shared_server();
    let client = &server.client;
    let task = fails(client, &memory(12 * MIB, 8 * MIB, "trap"), "memory_exceeded");
    assert!(task["usage"]["peak_memory_bytes"].as_u64().unwrap() > 6 * MIB, "{task:#}");
    completes(client, &memory(12 * MIB, 16 * MIB, "trap"));
    fails(client, &json!({"task_type": guest("memory"), "input": {"bytes": 100 * MIB}}), "memory_exceeded");
    completes(client, &json!({"task_type": guest("memory"), "input": {"bytes": 56 * MIB}}));
}

/// A guest that is refused memory may live with it; and what it says of it is its own word.
#[test]
fn a_refusal_is_no_end_by_itself() {
    let server = shared_server();
    let client = &server.client;
    let task = completes(client, &memory(12 * MIB, 8 * MIB, "ok"));
    let allocated = task["output"]["allocated"].as_u64().unwrap();
    assert!(allocated > 4 * MIB && allocated < 8 * MIB, "{task:#}");
    fails(client, &memory(12 * MIB, 8 * MIB, "fail"), "permanent");
}

/// All memories and tables of a task count together.
#[test]
fn several_memories() {
    let server = shared_server();
    let client = &server.client;
    let run = |limit: u64| json!({"task_type": guest("many-memories"), "limits": {"memory_bytes": limit}});
    // One page in each of four memories and two in the fifth from the start on.
    let at_start = 6 * PAGE;
    for limit in [2 * MIB, 8 * MIB, 64 * MIB] {
        let task = completes(client, &run(limit));
        let granted = task["output"].as_u64().unwrap() * PAGE + at_start;
        assert!(granted <= limit, "{granted} bytes of {limit}: {task:#}");
        assert!(granted + 2 * PAGE > limit, "no more than {granted} bytes of {limit}: {task:#}");
        let peak = task["usage"]["peak_memory_bytes"].as_u64().unwrap();
        assert!(peak >= granted && peak <= limit, "{task:#}");
    }
    // Not even the start fits.
    let body = run(at_start - PAGE);
    let task = client.failure(&body);
    assert_eq!(task["error"]["kind"], "memory_exceeded", "{task:#}");
}

#[test]
fn tables() {
    let server = shared_server();
    let run = |limit: u64| json!({"task_type": guest("tables"), "limits": {"memory_bytes": limit}});
    // Two pages of memory from the start on; an element of a table is a pointer at the least.
    let elements = |limit: u64| completes(&server.client, &run(limit))["output"].as_u64().unwrap();
    let few = elements(2 * PAGE + 40_000);
    assert!(few > 0 && few * 8 <= 40_000, "{few} elements in 40000 bytes");
    let more = elements(2 * PAGE + 80_000);
    assert!(more > few && more * 8 <= 80_000, "{more} elements in 80000 bytes");
    let most = elements(64 * MIB);
    assert!(most > more && most <= 10_000, "{most} elements, however much memory there is");
}

/// Growth that the module's own maximum forbids holds nothing, and is no refusal at the limit.
#[test]
fn growth_past_the_modules_own_maximum() {
    let server = shared_server();
    let body = json!({"task_type": guest("own-maximum"), "limits": {"memory_bytes": 4 * MIB}});
    let task = fails(&server.client, &body, "trap");
    // Two pages of one memory, two that the other may have, and a table of 16.
    let peak = task["usage"]["peak_memory_bytes"].as_u64().unwrap();
    assert_eq!(peak, 4 * PAGE + 16 * 16, "{task:#}");
}

/// Calls that are started and not awaited are memory of the host.
#[test]
fn pending_calls() {
    let server = shared_server();
    let client = &server.client;
    let run = |calls: u32, host_memory: u64| {
        json!({
            "task_type": guest("pending"),
            "input": {"calls": calls},
            "limits": {"host_memory_bytes": host_memory, "timeout_ms": 2000},
        })
    };
    fails(client, &run(200, 64 << 10), "memory_exceeded");
    fails(client, &run(200, 16 * MIB), "timeout");
    fails(client, &json!({"task_type": guest("pending"), "input": {"calls": 1_000_000}}), "memory_exceeded");
}

#[test]
fn handles() {
    let server = shared_server();
    let client = &server.client;
    let run = |count: u32, host_memory: u64| json!({"task_type": guest("handles"), "input": {"count": count}, "limits": {"host_memory_bytes": host_memory}});
    fails(client, &run(5_000, MIB), "memory_exceeded");
    completes(client, &run(5_000, 16 * MIB));
    fails(client, &json!({"task_type": guest("handles"), "input": {"count": 10_000_000}}), "memory_exceeded");
}

/// An object that the host cannot hold for the task is refused to it, and the task lives.
#[test]
fn buffers_of_objects() {
    let server = server(&[]);
    let client = &server.client;
    let run = |input: Value, host_memory: u64| {
        let body = json!({"task_type": guest("objects"), "input": input, "limits": {"host_memory_bytes": host_memory}});
        completes(client, &body)["output"].clone()
    };
    let write = json!({"op": "write", "name": "large", "bytes": MIB});
    assert_eq!(run(write.clone(), 200 << 10)["error"], "too-large");
    assert_eq!(run(write, 4 * MIB), json!({"ok": null}));
    let read = json!({"op": "read", "name": "large"});
    let refused = run(read.clone(), 200 << 10);
    assert_eq!(refused["error"], "too-large");
    assert!(refused["detail"].as_u64().is_some_and(|limit| limit > 0 && limit < 200 << 10), "{refused}");
    assert_eq!(run(read, 4 * MIB)["ok"]["bytes"], MIB);
    // Each by itself would fit; all at once do not.
    let at_once = json!({"op": "read", "name": "large", "at_once": 8});
    let outcomes = run(at_once.clone(), 4 * MIB);
    let count = |outcomes: &Value, member: &str| {
        outcomes.as_array().unwrap().iter().filter(|outcome| outcome.get(member).is_some()).count()
    };
    assert!(count(&outcomes, "error") > 0, "{outcomes}");
    assert_eq!(count(&run(at_once, 16 * MIB), "ok"), 8);
}

/// What a list may bring is held for the task before it is read, and no text that is longer than a name
/// is kept while it waits.
#[test]
fn lists_of_objects() {
    let server = server(&[]);
    let client = &server.client;
    for name in ["a", "b"] {
        client.send("PUT", &format!("/objects/{name}"), &[], Some(b"x")).expect(201);
    }
    let run = |input: Value| {
        let limits = json!({"host_memory_bytes": 200 << 10});
        let body = json!({"task_type": guest("objects"), "input": input, "limits": limits});
        completes(client, &body)["output"].clone()
    };
    assert_eq!(run(json!({"op": "list", "limit": 1000}))["error"], "too-large");
    assert_eq!(run(json!({"op": "list", "limit": 10})), json!({"ok": ["a", "b"]}));
    let long = "a".repeat(500_000);
    assert_eq!(run(json!({"op": "list", "limit": 10, "prefix": long})), json!({"ok": []}));
    assert_eq!(run(json!({"op": "list", "limit": 10, "after": long})), json!({"ok": ["b"]}));
}

/// Random bytes come in bounded pieces, whatever is asked for.
#[test]
fn random_bytes() {
    let server = shared_server();
    let client = &server.client;
    let run = |bytes: u64| json!({"task_type": guest("random"), "input": {"bytes": bytes}});
    assert_eq!(completes(client, &run(1000))["output"], 1000);
    for many in [1 << 32, u64::MAX] {
        let body = run(many);
        let task = client.failure(&body);
        assert!(matches!(task["error"]["kind"].as_str(), Some("trap" | "memory_exceeded")), "{task:#}");
        check_receipt(&body, &task);
        assert!(task["usage"]["wall_ms"].as_f64().unwrap() < 10_000.0, "{task:#}");
    }
}
