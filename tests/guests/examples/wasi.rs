//! Tries what a task must not be able to do, and the two things of WASI it may: clocks and random
//! bytes.
//!
//! Input: `{"port": n}`, a TCP port of 127.0.0.1 to connect to; 80 by default.
//!
//! Output: for each attempt, by name, `{"ok": what it got}` or `{"denied": the error}`.

use std::io::{self, Read};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Instant, SystemTime};
use std::{env, fs};

use guest_tasks::parse;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wasip2::random::random::get_random_bytes;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    port: u16,
}

impl Default for Input {
    fn default() -> Self {
        Self { port: 80 }
    }
}

struct Wasi;

impl Guest for Wasi {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { port } = parse(&input)?;
        let outcomes = json!({
            "read_file": outcome(fs::read("/etc/passwd").map(|bytes| bytes.len())),
            "write_file": outcome(fs::write("/tmp/escaped", "escaped")),
            "list_root": outcome(fs::read_dir("/").map(Iterator::count)),
            "list_here": outcome(fs::read_dir(".").map(Iterator::count)),
            "environment": outcome(Ok(env::vars().collect::<Vec<_>>())),
            "arguments": outcome(Ok(env::args().collect::<Vec<_>>())),
            "current_directory": outcome(env::current_dir()),
            "standard_input": outcome(io::stdin().read_to_end(&mut Vec::new())),
            "tcp_connect": outcome(TcpStream::connect(("127.0.0.1", port)).map(drop)),
            "tcp_listen": outcome(TcpListener::bind("127.0.0.1:0").map(drop)),
            "udp_bind": outcome(UdpSocket::bind("127.0.0.1:0").map(drop)),
            "dns_lookup": outcome(("localhost", 80).to_socket_addrs().map(Iterator::count)),
            "random": outcome(Ok(get_random_bytes(16).len())),
            "monotonic_clock": outcome(Ok(Instant::now().elapsed().as_secs())),
            "wall_clock": outcome(Ok(SystemTime::UNIX_EPOCH.elapsed().is_ok())),
        });
        Ok(outcomes.to_string())
    }
}

fn outcome<T: Serialize>(result: io::Result<T>) -> Value {
    match result {
        Ok(value) => json!({ "ok": value }),
        Err(error) => json!({ "denied": error.to_string() }),
    }
}

export!(Wasi);
