//! The command line, the environment and the file; and what the process says on stdout.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use crate::support::server::{Setup, refused, taskcell};
use crate::support::{server, temp_dir, wait_for};

/// `serve` with nothing but its data directory.
fn serve_on(data_dir: &Path) -> std::process::Command {
    let mut command = taskcell();
    command.arg("serve").arg("--data-dir").arg(data_dir);
    command
}

/// `serve` on a data directory that is not there yet.
fn serve(directory: &Path) -> std::process::Command {
    serve_on(&directory.join("data"))
}

/// The start must be refused with all of `words` in the message.
#[track_caller]
fn refused_with(command: &mut std::process::Command, words: &[&str]) {
    let message = refused(command);
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

/// Where the server listens, started by that command.
fn address(setup: &Setup, command: std::process::Command) -> String {
    setup.clone().start_command(command).address.clone()
}

/// The file is told, and not a flag that nobody gave.
#[test]
fn a_wrong_value_in_the_file_is_told_with_the_file() {
    let setup = Setup::new(&[]).with_components(None);
    let file = setup.data_dir().join("wrong.toml");
    fs::write(&file, "max-running = \"x\"\n").unwrap();
    refused_with(
        serve_on(setup.data_dir()).arg("--config").arg(&file),
        &["wrong.toml: invalid value 'x'", "max-running"],
    );
}

/// SQLite would take it for a URI.
#[test]
fn a_data_directory_may_be_named_like_a_uri() {
    let directory = temp_dir();
    let mut command = taskcell();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir", "file:data?mode=ro"]).current_dir(directory.path());
    let server = Setup::new(&[]).with_components(None).start_command(command);
    server.client.output(&json!({"task_type": "echo", "input": 1}));
    assert!(directory.path().join("file:data?mode=ro/taskcell.db").exists());
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let setup = Setup::new(&[]).with_components(None);
    let file = setup.data_dir().join("taskcell.toml");
    fs::write(&file, "listen = \"127.0.0.2:0\"\nmax-running = 100\n").unwrap();
    let start = |variable: bool, flag: bool| {
        let mut command = serve_on(setup.data_dir());
        command.arg("--config").arg(&file);
        if variable {
            command.env("TASKCELL_LISTEN", "127.0.0.3:0");
        }
        if flag {
            command.args(["--listen", "127.0.0.4:0"]);
        }
        address(&setup, command)
    };
    assert!(start(false, false).starts_with("127.0.0.2:"));
    assert!(start(true, false).starts_with("127.0.0.3:"));
    assert!(start(true, true).starts_with("127.0.0.4:"));
    assert!(start(false, true).starts_with("127.0.0.4:"));

    // The file itself can be named by a variable.
    let mut command = serve_on(setup.data_dir());
    command.env("TASKCELL_CONFIG", &file);
    assert!(address(&setup, command).starts_with("127.0.0.2:"));
}

/// Settings of the file hold, not only those that can be seen in an address.
#[test]
fn settings_of_the_file_hold() {
    let directory = temp_dir();
    let file = directory.path().join("c.toml");
    fs::write(&file, "default-input-bytes = 10\nmax-running = 3\n").unwrap();
    let server = server(&["--config", file.to_str().unwrap()]);
    server.client.post_task(r#"{"task_type":"echo","input":"123456789"}"#).problem(413);
    server.client.post_task(r#"{"task_type":"echo","input":"12345678"}"#).expect(202);
    assert!(server.client.get("/metrics").expect(200).text().contains("taskcell_task_slots 3\n"));
}

#[test]
fn wrong_files_are_refused() {
    let directory = temp_dir();
    let file = directory.path().join("c.toml");
    for (text, words) in [
        ("max-runing = 5", ["max-runing", "c.toml"]),
        ("max_running = 5", ["max_running", "c.toml"]),
        ("config = \"other.toml\"", ["config", "c.toml"]),
        ("listen = ", ["TOML", "c.toml"]),
        ("max-running = \"many\"", ["many", "max-running"]),
        ("max-running = 0", ["0", "max-running"]),
        ("max-running = [1]", ["max-running", "array"]),
        ("[limits]\nfuel = 1", ["limits", "c.toml"]),
        ("listen = \"nowhere\"", ["nowhere", "listen"]),
    ] {
        fs::write(&file, text).unwrap();
        refused_with(serve(directory.path()).arg("--config").arg(&file), &words);
    }
    refused_with(serve(directory.path()).args(["--config", "/nonexistent.toml"]), &["/nonexistent.toml"]);
    assert!(!directory.path().join("data").exists(), "everything is checked before anything is done");
}

#[test]
fn wrong_flags_and_variables_are_refused() {
    let directory = temp_dir();
    for (flag, value) in [
        ("--max-running", "0"),
        ("--max-running", "x"),
        ("--max-running", "25001"),
        ("--client-timeout", "0"),
        ("--default-fuel", "0"),
        ("--log-format", "xml"),
        ("--listen", "localhost"),
        ("--no-such-flag", "1"),
    ] {
        refused_with(serve(directory.path()).args([flag, value]), &[flag]);
    }
    refused_with(serve(directory.path()).env("TASKCELL_MAX_RUNNING", "-1"), &["-1"]);
    refused_with(&mut taskcell(), &["serve"]);
    assert!(!directory.path().join("data").exists());
}

/// Without keys anybody who reaches the server can run code on it.
#[test]
fn only_loopback_is_served() {
    let directory = temp_dir();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        refused_with(serve(directory.path()).args(["--listen", address]), &["loopback", "taskcell key create"]);
    }
}

#[test]
fn a_default_above_its_ceiling_is_refused() {
    let directory = temp_dir();
    for limit in [
        "fuel",
        "cpu-ms",
        "timeout-ms",
        "memory-bytes",
        "host-memory-bytes",
        "output-bytes",
        "log-bytes",
        "input-bytes",
    ] {
        let (default, max) = (format!("--default-{limit}"), format!("--max-{limit}"));
        refused_with(serve(directory.path()).args([&default, "11", &max, "10"]), &[&default, &max, "11", "10"]);
    }
}

#[test]
fn an_address_in_use_is_refused() {
    let server = server(&[]);
    let directory = temp_dir();
    refused_with(serve(directory.path()).args(["--listen", &server.address]), &[&server.address]);
}

/// One line on stdout, and everything else on stderr.
#[test]
fn stdout_has_one_line() {
    for format in ["text", "json"] {
        let mut server = server(&["--log-format", format, "--max-running", "25000"]);
        server.client.get("/nowhere").problem(404);
        let address = server.address.clone();
        server.signal(Signal::TERM);
        assert_eq!(server.wait_for_exit().code(), Some(0));
        assert_eq!(server.stdout(), format!("taskcell listening on http://{address}\n"));
        let log = server.log();
        assert!(!log.is_empty());
        if format == "json" {
            for line in log.lines() {
                let line: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
            }
        }
    }
}

/// The limits by the names of their flags.
const LIMITS: [&str; 8] =
    ["fuel", "cpu-ms", "timeout-ms", "memory-bytes", "host-memory-bytes", "output-bytes", "log-bytes", "input-bytes"];

/// Each default reaches the limit of its own name.
#[test]
fn every_default_is_the_limit_of_its_name() {
    let mut flags = Vec::new();
    for (value, name) in (1_001..).zip(LIMITS) {
        flags.extend([format!("--default-{name}"), value.to_string()]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Setup::new(&flags).with_components(None).start();
    let limits = server.client.get("/task-types/echo").expect(200).json()["limits"].clone();
    assert_eq!(limits.as_object().unwrap().len(), LIMITS.len(), "{limits}");
    for (value, name) in (1_001..).zip(LIMITS) {
        assert_eq!(limits[name.replace('-', "_")], value, "{limits}");
    }
}

/// Each ceiling bounds the default of its own name.
#[test]
fn no_default_is_above_its_ceiling() {
    let directory = temp_dir();
    for name in LIMITS {
        let (default, most) = (format!("--default-{name}"), format!("--max-{name}"));
        refused_with(serve(directory.path()).args([&*default, "6", &*most, "5"]), &[&*default, &*most, "6", "5"]);
    }
}

/// As many threads run guests as were asked for.
#[test]
fn guest_threads() {
    let server = Setup::new(&["--guest-threads", "3"]).with_components(None).start();
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name == "guest\n").count(), 3);
}

/// The limit of open files is raised to what the connections need, and where the system does not allow that, the
/// log says so.
#[test]
fn open_files() {
    let limit = |ulimit: &str, is_enough: bool| {
        let setup = Setup::new(&["--max-connections", "1000", "--max-http-connections", "100"]).with_components(None);
        let server = setup.command();
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &format!("{ulimit}; exec \"$0\" \"$@\"")])
            .arg(server.get_program())
            .args(server.get_args());
        for (name, value) in server.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let server = setup.start_command(command);
        server.client.get("/healthz").expect(200);
        let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        wait_for("its log", || server.log().contains("sandbox ready").then_some(()));
        assert_eq!(server.log().contains("fewer open files"), !is_enough, "{}", server.log());
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(limit("ulimit -Sn 300", true), 2_356);
    assert_eq!(limit("ulimit -n 400", false), 400);
    assert_eq!(limit("ulimit -Sn 3000", true), 3_000, "it is not lowered");
}

/// Inputs, outputs and components of all tenants are for the server's user alone, also in a directory that others may
/// look into.
#[test]
fn files_are_for_their_user_alone() {
    use std::os::unix::fs::PermissionsExt;
    let setup = Setup::uncompiled(&[]).with_components(None);
    fs::set_permissions(setup.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let server = setup.start();
    server.client.send("PUT", "/objects/name", &[], Some(b"bytes")).expect(201);
    let mut directories = vec![server.setup().data_dir().to_owned()];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            assert_eq!(about.permissions().mode() & 0o077, 0, "{}", entry.path().display());
            files += 1;
            if about.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    assert!(files > 5, "{files}");
}

/// A command may hold the directory for a moment, as may a server that ends.
#[test]
fn a_directory_that_is_held_for_a_moment_is_waited_for() {
    let setup = Setup::new(&[]).with_components(None);
    let lock = fs::File::create(setup.data_dir().join("lock")).unwrap();
    lock.lock().unwrap();
    // Long enough for one that does not wait to be gone, and far shorter than it waits.
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(lock);
    });
    setup.start();
    holder.join().unwrap();
}
