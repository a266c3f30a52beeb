//! Logs `{"lines": n}` lines, each of `"bytes"` bytes or a little more: the line's number, filled up
//! with dots. `"level"` is `trace`, `debug`, `info` (the default), `warn` or `error`. With
//! `"stdio": true` each line also goes to standard output and standard error. `"rest"` goes to
//! standard output at the end, without a line's end. Output: `null`.

use std::io::Write;

use guest_tasks::context::log;
use guest_tasks::parse;
use guest_tasks::types::LogLevel;
use serde::Deserialize;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    lines: u32,
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    level: Level,
    #[serde(default)]
    stdio: bool,
    #[serde(default)]
    rest: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Trace,
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}

struct Log;

impl Guest for Log {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        let level = match input.level {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        for number in 0..input.lines {
            let line = format!("{number:.<width$}", width = input.bytes);
            log(level, &line);
            if input.stdio {
                println!("{line}");
                eprintln!("{line}");
            }
        }
        print!("{}", input.rest);
        std::io::stdout().flush().map_err(|error| Failure::Permanent(error.to_string()))?;
        Ok("null".to_owned())
    }
}

export!(Log);
