//! What is refused before it is compiled, and what that costs the others.

use serde_json::{Value, json};

use super::{echo, put, with_module};
use crate::support::guests::GUESTS;
use crate::support::{Answer, guest, server};

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// A component with one function that has so many bytes of code and so many locals.
fn heavy(bytes: usize, locals: usize) -> Vec<u8> {
    let names: String = (0..locals).map(|_| " i64").collect();
    let code = "(local.set 0 (i64.mul (local.get 0) (local.get 0)))".repeat(bytes / 7);
    with_module(echo(), &wat(&format!("(module (func (local{names}) {code}))")))
}

/// What cannot be a task, with what the answer has to say of it.
fn hopeless() -> Vec<(&'static str, Vec<u8>, Vec<&'static str>)> {
    let good = echo();
    let mut trailing = good.clone();
    trailing.extend(b"more");
    let many_functions = format!("(module {})", "(func)".repeat(200_001));
    let many_modules = format!("(component {})", "(core module)".repeat(201));
    let deep = format!("{}{}", "(component ".repeat(40), ")".repeat(40));
    let many_imports: String = (0..1001).map(|number| format!("(import \"a{number}\" (func))")).collect();
    vec![
        ("text", b"this is no component".to_vec(), vec!["no valid WebAssembly"]),
        ("nothing", Vec::new(), vec![""]),
        ("half", good[..good.len() / 2].to_vec(), vec![""]),
        ("more behind it", trailing, vec!["no valid WebAssembly"]),
        ("a module that is no program", wat("(module)"), vec![""]),
        ("nothing exported", wat("(component)"), vec!["run"]),
        (
            "several imports that are not offered",
            wat(r#"(component
                (import "nowhere:special/thing@1.0.0" (instance (export "f" (func))))
                (import "wasi:io/poll@0.2.0" (instance (export "fly" (func))))
                (import "wasi:io/poll@0.3.0" (instance))
                (import "lonely" (func)))"#),
            vec!["nowhere:special/thing@1.0.0", "fly of wasi:io/poll@0.2.0", "wasi:io/poll@0.3.0", "lonely", "run"],
        ),
        ("shared memory", with_module(good.clone(), &wat("(module (memory 1 1 shared))")), vec!["threads"]),
        ("64-bit memory", with_module(good.clone(), &wat("(module (memory i64 1))")), vec!["memory64"]),
        ("a built-in", wat("(component (type $s (stream u8)) (core func (canon stream.new $s)))"), vec!["stream.new"]),
        // What would cost a compiler minutes and gigabytes.
        ("a large function", heavy(600 << 10, 10), vec!["bytes of code, more than"]),
        ("many locals", heavy(1 << 10, 2_001), vec!["2001 locals, more than"]),
        ("much of both", heavy(400 << 10, 1_500), vec!["too much of both"]),
        ("many functions", with_module(good.clone(), &wat(&many_functions)), vec!["more than 200000 functions"]),
        ("many modules", wat(&many_modules), vec!["more than 200 core modules"]),
        ("deep", wat(&deep), vec!["more than 16 components inside"]),
        ("many imports", wat(&format!("(component {many_imports})")), vec!["more than 1000"]),
        ("nonsense in a function", with_module(good, &broken_function()), vec!["no valid WebAssembly"]),
    ]
}

/// A module whose function adds what is not there.
fn broken_function() -> Vec<u8> {
    let mut bytes = wat("(module (func (drop (i32.add (i32.const 1) (i32.const 2)))))");
    // One constant becomes two instructions that do nothing.
    let at = bytes.windows(2).rposition(|pair| pair == [0x41, 2]).unwrap();
    bytes[at..at + 2].copy_from_slice(&[1, 1]);
    bytes
}

fn details(problem: &Value) -> String {
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| error["detail"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
}

#[test]
fn what_cannot_be_a_task_is_refused_with_every_reason() {
    let server = server(&[]);
    let client = &server.client;
    for (what, bytes, reasons) in hopeless() {
        let problem = put(client, "hopeless", &bytes).problem(422);
        assert_eq!(problem["type"], "/problems/bad-component", "{what}");
        for reason in reasons {
            assert!(details(&problem).contains(reason), "{what}: no {reason:?} in {problem:#}");
        }
        client.get("/task-types/hopeless").problem(404);
        // It is the component's fault alone.
        assert_eq!(client.output(&json!({"task_type": "echo", "input": what})), what);
    }
}

/// A new version that is refused leaves the one before.
#[test]
fn a_refused_version_changes_nothing() {
    let server = server(&[]);
    let client = &server.client;
    super::upload(client, "mine", &echo());
    let before = super::task_type(client, "mine");
    put(client, "mine", &echo()[1..]).problem(422);
    assert_eq!(super::task_type(client, "mine"), before);
}

#[test]
fn requests_that_are_no_uploads() {
    let server = server(&["--max-component-bytes", "1000000", "--max-task-types", "2"]);
    let client = &server.client;
    let send = |path: &str, content_type: &str, bytes: &[u8]| -> Answer {
        client.send("PUT", path, &[("content-type", content_type)], Some(bytes))
    };
    send("/task-types/mine", "application/json", &echo()).problem(415);
    for name in ["-mine", "Mine", "mi_ne", &"a".repeat(64), "m%C3%A9"] {
        send(&format!("/task-types/{name}"), "application/wasm", &echo()).problem(400);
    }
    let large =
        with_module(echo(), &wat(&format!("(module (memory 100) (data (i32.const 0) \"{}\"))", "a".repeat(1_000_000))));
    send("/task-types/mine", "application/wasm", &large).problem(413);
    let sized = GUESTS.iter().find(|(name, _)| *name == guest("fail")).unwrap().1;
    assert!(sized.len() <= 1_000_000, "a component of usual size is taken");
    for name in ["one", "two"] {
        put(client, name, sized).expect(201);
    }
    let refused = put(client, "three", sized);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.header("ratelimit-policy"), Some("\"task-types\";q=2"));
    assert_eq!(refused.problem(429)["type"], "/problems/too-many-task-types");
    put(client, "two", sized).expect(200);
    client.delete("/task-types/one").expect(200);
    put(client, "three", sized).expect(201);
}
