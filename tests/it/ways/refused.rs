//! WASI 0.1 modules that cannot be used, and odd ones that can.

use std::fs;

use serde_json::json;

use crate::support::server::Setup;
use crate::support::temp_dir;

const WRITE: &str = r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))"#;
const MEMORY: &str = r#"(memory (export "memory") 1)"#;
const START: &str = r#"(func (export "_start"))"#;

#[test]
fn modules_that_cannot_be_used_fail_alone() {
    let directory = temp_dir();
    let foreign = r#"(module
        (import "env" "memory" (memory 1))
        (import "env" "emscripten_resize_heap" (func (param i32) (result i32)))
        (import "wasi_unstable" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_teleport" (func))
        (import "wasi_snapshot_preview1" "fd_close" (global i32))
        (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
        (func (export "_start")))"#;
    let foreign_names = [
        "env.memory",
        "env.emscripten_resize_heap",
        "wasi_unstable.fd_write",
        "wasi_snapshot_preview1.fd_teleport",
        "wasi_snapshot_preview1.fd_close",
    ];
    let endless = format!(
        r#"(module {} {START})"#,
        (0..500).map(|n| format!(r#"(import "env" "{n}{}" (func))"#, "x".repeat(1000))).collect::<String>()
    );
    let bad: Vec<(&str, String, &[&str])> = vec![
        ("empty", "(module)".into(), &["_start"]),
        ("reactor", format!(r#"(module {WRITE} {MEMORY} (func (export "_initialize")))"#), &["_start"]),
        ("start-is-no-function", r#"(module (memory (export "_start") (export "memory") 1))"#.into(), &["_start"]),
        ("start-takes-more", format!(r#"(module {MEMORY} (func (export "_start") (param i32)))"#), &["_start"]),
        (
            "start-returns",
            format!(r#"(module {MEMORY} (func (export "_start") (result i32) (i32.const 0)))"#),
            &["_start takes or returns something"],
        ),
        ("foreign", foreign.into(), &foreign_names),
        ("endless", endless, &["env.0x", "env.99x", "and 400 more"]),
        ("no-memory", format!("(module {WRITE} {START})"), &["memory"]),
        (
            "memory-is-a-global",
            format!(r#"(module (global (export "memory") i32 (i32.const 0)) {START})"#),
            &["memory"],
        ),
        (
            "other-signature",
            format!(r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i64))) {MEMORY} {START})"#),
            &["wasi_snapshot_preview1.fd_write (of that type)"],
        ),
        (
            "two-signatures",
            format!(
                r#"(module {WRITE} (import "wasi_snapshot_preview1" "fd_write" (func (param funcref))) {MEMORY} {START})"#
            ),
            &["wasi_snapshot_preview1.fd_write (of that type)"],
        ),
        (
            "other-exit",
            format!(r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i64))) {MEMORY} {START})"#),
            &["wasi_snapshot_preview1.proc_exit (of that type)"],
        ),
        (
            "half-a-component",
            format!(r#"(module {MEMORY} {START} (@custom "component-type:it" "\00"))"#),
            &["component"],
        ),
        ("threads", format!(r#"(module (memory (export "memory") 1 1 shared) {START})"#), &[]),
        ("two-memories", format!(r#"(module {MEMORY} (memory 1) {START})"#), &[]),
        ("wide-memory", format!(r#"(module (memory (export "memory") i64 1) {START})"#), &[]),
        ("garbage-collection", format!("(module {MEMORY} (type (struct)) {START})"), &[]),
        ("own-tag", format!("(module {MEMORY} (tag) {START})"), &[]),
    ];
    let good: &[(&str, String)] = &[
        ("twice", format!("(module {WRITE} {WRITE} {MEMORY} {START})")),
        ("nothing", format!("(module {MEMORY} {START})")),
        (
            "its-own-allocator",
            format!(
                r#"(module {WRITE} {MEMORY} (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)) {START})"#
            ),
        ),
        ("start-section", format!(r#"(module (func $f) (start $f) {MEMORY} {START})"#)),
    ];
    for (name, text) in
        bad.iter().map(|(name, text, _)| (name, text)).chain(good.iter().map(|(name, text)| (name, text)))
    {
        fs::write(directory.path().join(format!("{name}.wasm")), wat::parse_str(text).unwrap()).unwrap();
    }
    let mut half = wat::parse_str(format!("(module {WRITE} {MEMORY} {START})")).unwrap();
    half.truncate(half.len() - 3);
    fs::write(directory.path().join("half.wasm"), half).unwrap();

    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    for (name, _, why) in
        bad.iter().map(|(name, text, why)| (*name, text, *why)).chain([("half", &String::new(), &[][..])])
    {
        let read = server.client.get(&format!("/task-types/{name}")).expect(200).json();
        assert_eq!((&read["state"], &read["kind"]), (&json!("failed"), &json!(null)), "{read:#}");
        let reason = read["reason"].as_str().unwrap();
        assert!(!reason.is_empty() && reason.len() < 20_000, "{name}: {reason}");
        for part in why {
            assert!(reason.contains(part), "{name}: {reason:?} does not name {part:?}");
        }
        assert!(!reason.contains("random_get"), "what is offered is not refused: {reason}");
        server.client.post_task(&json!({"task_type": name}).to_string()).problem(409);
    }
    for (name, _) in good {
        assert_eq!(server.client.output(&json!({"task_type": name})), "", "{name}");
    }
}

/// What a version is known by is what was given to the server, and it stays when that starts again.
#[test]
fn a_modules_digest_is_that_of_the_module() {
    use sha2::Digest as _;
    let directory = temp_dir();
    let module = wat::parse_str(format!("(module {MEMORY} {START})")).unwrap();
    fs::write(directory.path().join("module.wasm"), &module).unwrap();
    let digest: String = sha2::Sha256::digest(&module).iter().map(|byte| format!("{byte:02x}")).collect();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let task = server.client.run(&json!({"task_type": "module"}));
    assert_eq!(task["component"], format!("sha256:{digest}"), "{task:#}");
    let server = server.stop().with_components(None).start();
    let task = server.client.run(&json!({"task_type": "module"}));
    assert_eq!((&task["output"], &task["component"]), (&json!(""), &json!(format!("sha256:{digest}"))), "{task:#}");
}
