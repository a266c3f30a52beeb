//! A program that does what its input says, in this order: `{"sleep_ms": n}` sleeps, `{"stdout": "…"}` and
//! `{"stderr": "…"}` print that text, `{"bytes": n}` prints so many `x` in pieces of `{"piece": n}`,
//! `{"raw": [n, …]}` prints those bytes, `{"grow": n}` wants so many bytes of memory, `{"spin": true}` computes
//! for ever, `{"panic": true}` panics, `{"fail": true}` returns an error from `main`, and `{"exit": n}` exits
//! with that code. `{"about": true}` prints what it sees of its host instead.

use std::hint::black_box;
use std::io::{Read, Write};
use std::time::Duration;

use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    about: bool,
    sleep_ms: u64,
    stdout: String,
    stderr: String,
    bytes: usize,
    piece: Option<usize>,
    raw: Vec<u8>,
    grow: usize,
    spin: bool,
    panic: bool,
    fail: bool,
    exit: Option<i32>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let input: Input = serde_json::from_str(&text)?;
    if input.about {
        let args: Vec<String> = std::env::args().collect();
        let variables = std::env::vars().count();
        let files = std::fs::read_dir("/").is_ok() || std::fs::read_dir(".").is_ok();
        println!("{}", serde_json::json!({"args": args, "variables": variables, "files": files}));
        return Ok(());
    }
    std::thread::sleep(Duration::from_millis(input.sleep_ms));
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(input.stdout.as_bytes())?;
    eprint!("{}", input.stderr);
    let piece = vec![b'x'; input.piece.unwrap_or(4096).max(1)];
    let mut left = input.bytes;
    while left > 0 {
        left -= stdout.write(&piece[..left.min(piece.len())])?;
    }
    stdout.write_all(&input.raw)?;
    stdout.flush()?;
    if input.grow > 0 {
        black_box(vec![1u8; input.grow]);
    }
    let mut rounds = 0u64;
    while input.spin {
        rounds = black_box(rounds.wrapping_add(1));
    }
    if input.panic {
        panic!("it was told to");
    }
    if input.fail {
        return Err("it was told to".into());
    }
    match input.exit {
        Some(code) => std::process::exit(code),
        None => Ok(()),
    }
}
