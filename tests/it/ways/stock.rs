//! A program from crates.io, as it is: compiled for WASI, and it is a task.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::server::Setup;
use crate::support::temp_dir;

/// `jsonxf` makes JSON on stdin readable on stdout.
const PROGRAM: (&str, &str) = ("jsonxf", "1.1.1");

/// The program, installed at the first run and kept for the next.
fn installed() -> PathBuf {
    let (name, version) = PROGRAM;
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{version}"));
    let program = root.join(format!("bin/{name}.wasm"));
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["install", name, "--version", &format!("={version}"), "--locked", "--target", "wasm32-wasip2"]);
        cargo.arg("--root").arg(&root);
        // What is set for the build of the tests is not meant for it.
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            let about_cargo = text.starts_with("CARGO_") && !matches!(&*text, "CARGO_HOME") && !about_registry(&text);
            if about_cargo || text.starts_with("RUSTFLAGS") || text.starts_with("RUSTC") {
                cargo.env_remove(&variable);
            }
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    program
}

fn about_registry(variable: &str) -> bool {
    ["CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"].iter().any(|prefix| variable.starts_with(prefix))
}

#[test]
fn a_stock_program_is_a_task() {
    let directory = temp_dir();
    fs::copy(installed(), directory.path().join("pretty.wasm")).unwrap();
    let server = Setup::new(&[]).with_components(Some(directory.path())).start();
    let read = server.client.get("/task-types/pretty").expect(200).json();
    assert_eq!((&read["state"], &read["kind"]), (&json!("ready"), &json!("command")), "{read:#}");
    let body = r#"{"task_type":"pretty","input":{"a":[1,{"b":null}]}}"#;
    let answer = server.client.post_task_and_wait(body, "wait=60").expect(200);
    assert_eq!(answer.raw("status"), "\"Completed\"", "{}", answer.raw("error"));
    let result = server.client.get(&format!("/task/{}/result", answer.raw("id").trim_matches('"'))).expect(200);
    assert_eq!(
        result.text(),
        "{\n  \"a\": [\n    1,\n    {\n      \"b\": null\n    }\n  ]\n}",
        "as the program writes it"
    );
}
