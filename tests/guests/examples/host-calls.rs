//! Calls the host for ever: `{"call": "progress"}` with a note of `"bytes"` bytes, `"log"` with such a message, or
//! `"id"`, `"attempt"` or `"random"`, whose answers are small.

use guest_tasks::types::LogLevel;
use guest_tasks::{context, parse};
use serde::Deserialize;
use wasip2::random::random::get_random_u64;

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
    call: Call,
    #[serde(default)]
    bytes: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Call {
    Progress,
    Log,
    Id,
    Attempt,
    Random,
}

struct HostCalls;

impl Guest for HostCalls {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { call, bytes } = parse(&input)?;
        let text = "é".repeat(bytes / 2);
        loop {
            match call {
                Call::Progress => context::progress(0.5, &text),
                Call::Log => context::log(LogLevel::Info, &text),
                Call::Id => drop(context::id()),
                Call::Attempt => _ = context::attempt(),
                Call::Random => _ = get_random_u64(),
            }
        }
    }
}

export!(HostCalls);
