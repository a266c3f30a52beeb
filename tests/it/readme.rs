//! What the README tells people to type works, and answers what it shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::server::{Setup, said, taskcell};
use crate::support::{Server, wait_for};

/// A fenced block: its language and its text.
struct Block {
    language: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn blocks() -> Vec<Block> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in readme.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block { language: language.to_owned(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the README has a block that does not end");
    blocks
}

/// Every command is run in its order against a real server, and its answer compared with the block
/// that follows it. What makes the secrets' key is run before the server starts; where keys of clients are made,
/// another server begins. The two commands that build are known by their words: the one is what runs this test, the
/// other is run by the test below.
#[test]
fn every_command_answers_what_the_readme_shows() {
    let here = crate::support::temp_dir();
    let blocks = blocks();
    let shell = Shell::default();
    // What makes the key comes first: the server reads it when it starts.
    let key = blocks.iter().find(|block| block.language == "sh" && block.text.contains("/dev/urandom")).unwrap();
    said(&mut shell.command(&key.text, here.path()));
    let file = here.path().join("taskcell.key");
    let start = || Setup::new(&["--secret-key-file", file.to_str().unwrap()]).with_components(None).start();
    let mut server = Some(start());
    // What its reader has: a component that was built, and a secret.
    std::fs::write(here.path().join("token.txt"), "a reader's own token\n").unwrap();
    let client = server.as_ref().unwrap().client.clone();
    let echo = client.get("/task-types/echo").expect(200).json();
    let path = format!("/task-types/echo/versions/{}", echo["version"].as_str().unwrap());
    std::fs::write(here.path().join("echo.wasm"), client.get(&path).expect(200).body).unwrap();
    let mut shell = Shell::default();
    let mut seen = BTreeMap::<&str, u32>::new();
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "sh") {
        let command = block.text.trim();
        match command {
            "cargo run --release -- serve" => *seen.entry("serve").or_default() += 1,
            command if command == key.text.trim() => *seen.entry("key").or_default() += 1,
            "cargo test --release --workspace" => *seen.entry("test").or_default() += 1,
            _ if command.starts_with("taskcell ") => {
                *seen.entry("keys").or_default() += 1;
                drop(server.take());
                let with_keys = start();
                shell.make_keys(command, with_keys.setup());
                server = Some(with_keys);
            }
            _ => {
                assert!(command.starts_with("curl -s "), "nothing runs this command of the README: {command}");
                *seen.entry("curl").or_default() += 1;
                if command.contains("/result") {
                    client.wait_for_status(&shell.id, "Completed");
                }
                let answer = shell.run(command, server.as_ref().unwrap(), here.path());
                if shell.id.is_empty() {
                    shell.id = answer["id"].as_str().unwrap().to_owned();
                }
                let shown = blocks.get(index + 1).filter(|next| next.language == "json");
                let shown = shown.unwrap_or_else(|| panic!("the README shows no answer to {command}"));
                let shown: Value = serde_json::from_str(&shown.text).unwrap();
                assert_eq!(shape("", &shown), shape("", &answer), "the answer to {command}");
            }
        }
    }
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [("curl", 18), ("key", 1), ("keys", 1), ("serve", 1), ("test", 1)]
    );
}

/// The first command of a newcomer: cargo starts the server, and it serves.
#[test]
fn the_first_command_serves() {
    let data = crate::support::temp_dir();
    let setup = Setup::new(&[]);
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root()).args(["run", "--release", "--", "serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(data.path()).stdin(Stdio::null());
    // What cargo sets for a test is not what a newcomer's shell has.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let of_cargo = name.starts_with("CARGO_") && !matches!(&*name, "CARGO_HOME" | "CARGO_TARGET_DIR");
        // With `OUT_DIR` some build scripts would run again, and all that depends on them.
        if of_cargo || name == "OUT_DIR" || name.starts_with("TASKCELL_") {
            command.env_remove(name);
        }
    }
    let server = setup.start_command(command);
    let id = server.client.create(&serde_json::json!({"task_type": "io"}));
    wait_for("the result of io", || (server.client.status(&id) == "Completed").then_some(()));
}

/// The test command of `.ci/run` is the README's: it takes it from there.
#[test]
fn the_test_command_is_the_one_of_ci() {
    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.contains("README.md"), "`.ci/run` reads its test command from the README");
}

/// The configuration file of the README is one that the server takes.
#[test]
fn the_configuration_file_is_taken() {
    let toml = blocks().into_iter().find(|block| block.language == "toml").unwrap();
    let dir = crate::support::temp_dir();
    let file = dir.path().join("taskcell.toml");
    std::fs::write(&file, toml.text).unwrap();
    // Flags win over the file where the file names what only its reader has.
    let server = Setup::new(&["--config", file.to_str().unwrap()]).start();
    server.client.get("/healthz").expect(200);
}

/// The example of a task type is the file it says it is.
#[test]
fn the_example_is_the_real_one() {
    let rust = blocks().into_iter().find(|block| block.language == "rust").unwrap();
    let file = std::fs::read_to_string(root().join("guest-tasks/examples/echo.rs")).unwrap();
    assert_eq!(rust.text.trim(), file.trim());
}

/// What a reader's shell knows.
#[derive(Default)]
struct Shell {
    id: String,
    operator: String,
    key: String,
}

impl Shell {
    /// Runs a command that asks the server, and returns its answer.
    fn run(&self, command: &str, server: &Server, here: &Path) -> Value {
        let command = command.replace("127.0.0.1:8080", &server.address);
        serde_json::from_str(&said(&mut self.command(&command, here))).unwrap()
    }

    fn command(&self, command: &str, here: &Path) -> Command {
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(command).current_dir(here);
        shell.env("ID", &self.id).env("OPERATOR", &self.operator).env("KEY", &self.key);
        shell
    }

    /// Runs the commands that make keys, and takes these.
    fn make_keys(&mut self, commands: &str, setup: &Setup) {
        let bin = crate::support::temp_dir();
        std::os::unix::fs::symlink(taskcell().get_program(), bin.path().join("taskcell")).unwrap();
        let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell.arg("-ec").arg(format!("{commands}\necho $OPERATOR $KEY"));
        shell.env("PATH", path).env("TASKCELL_DATA_DIR", setup.data_dir());
        let keys = said(&mut shell);
        let (operator, key) = keys.trim().split_once(' ').unwrap();
        (self.operator, self.key) = (operator.to_owned(), key.to_owned());
    }
}

/// A value with what differs from run to run left out: numbers, times and ids.
fn shape(name: &str, value: &Value) -> Value {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), shape(name, value))).collect(),
        // At midnight there may be two.
        Value::Array(days) if name == "days" => days.iter().rev().take(1).map(|day| shape("day", day)).collect(),
        Value::Array(items) => items.iter().map(|item| shape(name, item)).collect(),
        Value::Number(_) if name != "status" => "a number".into(),
        Value::String(_)
            if name.ends_with("_at")
                || matches!(name, "id" | "component" | "object" | "next_times" | "until" | "version")
                || matches!(name, "at" | "from" | "to" | "day") =>
        {
            "a text".into()
        }
        // The create is answered while the task may or may not run already.
        Value::String(status) if name == "status" && matches!(&**status, "Running" | "Pending") => "open".into(),
        other => other.clone(),
    }
}
