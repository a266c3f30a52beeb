//! What is refused before it is compiled, and what that costs the others.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{echo, put, with_module};
use crate::support::guests::GUESTS;
use crate::support::hostile::{self, wat};
use crate::support::{Answer, Server, guest, server, shared_server, wait_for};

fn details(problem: &Value) -> String {
    let errors = problem["errors"].as_array().unwrap().iter();
    errors.map(|error| error["detail"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join("; ")
}

/// The most memory that the server's process has ever had, in bytes.
fn most_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Says at its end that it is over, also where a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Meanwhile tasks are run as ever, and the server's own memory does not grow by what the components would cost.
#[test]
fn what_cannot_be_a_task_is_refused_with_every_reason() {
    let server = server(&[]);
    let client = &server.client;
    let before = most_memory(&server);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let tasks = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                assert_eq!(client.output(&json!({"task_type": "echo", "input": number})), number);
                number += 1;
            }
            number
        });
        let uploads = Over(&over);
        for hostile::Refused { what, bytes, reasons } in hostile::refused(&echo()) {
            let problem = put(client, "hopeless", &bytes).problem(422);
            assert_eq!(problem["type"], "/problems/bad-component", "{what}");
            for error in problem["errors"].as_array().unwrap() {
                let detail = error["detail"].as_str().unwrap();
                let is_line = !detail.contains(|char: char| char.is_control() || char == '\u{2028}');
                assert!(is_line, "{what}: {detail:?}");
            }
            for reason in reasons {
                assert!(details(&problem).contains(reason), "{what}: no {reason:?} in {problem:#}");
            }
            client.get("/task-types/hopeless").problem(404);
        }
        drop(uploads);
        assert!(tasks.join().unwrap() > 0);
    });
    let grown = most_memory(&server) - before;
    // The largest of them has 26 MB.
    assert!(grown < 200 << 20, "{grown} bytes");
}

#[test]
fn no_more_than_a_hundred_faults_are_told() {
    let server = server(&[]);
    let imports: String = (0..150).map(|number| format!("(import \"a{number}\" (func))")).collect();
    let problem = put(&server.client, "hopeless", &wat(&format!("(component {imports})"))).problem(422);
    assert_eq!(problem["errors"].as_array().unwrap().len(), 100);
}

/// What takes too long to be looked at as a whole is stored, and the compiler finds what is wrong with it.
#[test]
fn code_that_there_is_no_time_to_look_at_is_the_compilers() {
    let server = server(&[]);
    let client = &server.client;
    put(client, "long", &hostile::long_and_broken(&echo())).expect(201);
    let reason = wait_for("it to be refused", || {
        let read = super::task_type(client, "long");
        (read["state"] == "failed").then(|| read["reason"].as_str().unwrap().to_owned())
    });
    assert!(reason.contains("no valid WebAssembly"), "{reason}");
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

/// Everything that is imported with other types than are offered is told, beside what is not offered at all.
#[test]
fn a_component_whose_types_do_not_fit() {
    let server = shared_server();
    let wrong = |imports: &str| {
        wat(&format!(
            r#"(component {imports}
                (core module $m (func (export "run")))
                (core instance $i (instantiate $m))
                (func (export "run") (canon lift (core func $i "run"))))"#
        ))
    };
    let faults = |imports: &str| -> Vec<String> {
        let answer = put(&server.client, "wrong-types", &wrong(imports)).problem(422);
        let errors = answer["errors"].as_array().unwrap();
        errors.iter().map(|error| error["detail"].as_str().unwrap().to_owned()).collect()
    };
    let differs = |function: &str, of: &str, from: &str| {
        format!("it imports {function} of {of} with other types than {from} has")
    };
    let context = "taskcell:task/context@0.1.0";
    assert_eq!(
        faults(
            r#"(import "taskcell:task/context@0.1.0" (instance
                 (export "id" (func (result u32)))
                 (export "attempt" (func (result u32)))
                 (export "gone" (func))))
               (import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result s8)))))
               (import "taskcell:task/timer@0.1.0" (instance (export "sleep" (func async (param "ms" string)))))
               (import "other:package/things" (instance (export "f" (func))))"#
        ),
        [
            format!("it imports gone of {context}, which is not offered here"),
            "it imports other:package/things, which is not offered here".to_owned(),
            differs("id", context, context),
            differs("now", "wasi:clocks/monotonic-clock@0.2.0", "wasi:clocks/monotonic-clock@0.2.12"),
            differs("sleep", "taskcell:task/timer@0.1.0", "taskcell:task/timer@0.1.0"),
        ]
    );
    // What is no function: the engine says which it is.
    let names_it = |faults: Vec<String>, name: &str| {
        let [fault] = faults.as_slice() else { panic!("{faults:?}") };
        assert!(fault.starts_with("it imports types that are not those that are offered here: "), "{fault}");
        assert!(fault.contains(name), "{fault}");
    };
    names_it(
        faults(
            r#"(import "wasi:io/poll@0.2.0" (instance (export "pollable" (type (sub resource))) (export "unknown" (type (sub resource)))))"#,
        ),
        "unknown",
    );
    // What is not even an interface.
    assert_eq!(
        faults(r#"(import "c" (component)) (import "m" (core module))"#),
        ["it imports c, which is not offered here", "it imports m, which is not offered here"]
    );
    // One interface under two versions, of which one fits.
    names_it(
        faults(
            r#"(import "wasi:clocks/monotonic-clock@0.2.0" (instance (export "now" (func (result u64)))))
               (import "wasi:clocks/monotonic-clock@0.2.12" (instance (export "now" (func (result s8)))))"#,
        ),
        "now",
    );
}

/// A memory that no task can have is refused before it is stored.
#[test]
fn more_memory_than_any_task_has() {
    let server = server(&["--max-memory-bytes", "67108864"]);
    let with_pages = |pages: u32| with_module(echo(), &wat(&format!("(module (memory {pages}))")));
    let problem = put(&server.client, "mine", &with_pages(1025)).problem(422);
    assert!(details(&problem).contains("at least 67174400 bytes, and no task has more than 67108864"), "{problem:#}");
    put(&server.client, "mine", &with_pages(1024)).expect(201);
}
