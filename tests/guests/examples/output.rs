//! Returns what it is told to: `{"bytes": n}` a JSON string of n bytes in all, quotes included;
//! `{"raw": "…"}` that text as it is, JSON or not.

use guest_tasks::parse;
use serde::Deserialize;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    bytes: usize,
    raw: Option<String>,
}

struct Output;

impl Guest for Output {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        if let Some(raw) = input.raw {
            return Ok(raw);
        }
        Ok(format!("\"{}\"", "x".repeat(input.bytes.saturating_sub(2))))
    }
}

export!(Output);
