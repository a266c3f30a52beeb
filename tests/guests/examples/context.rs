//! Says what the host tells it about the attempt, and sleeps `{"ms": n}` (50 by default) in between.
//! Output: `{"id", "attempt", "remaining_before_ms", "remaining_after_ms"}`.

use guest_tasks::{context, parse};
use serde::Deserialize;
use serde_json::json;

use crate::taskcell::task::timer;

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
    ms: u32,
}

impl Default for Input {
    fn default() -> Self {
        Self { ms: 50 }
    }
}

struct Context;

impl Guest for Context {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { ms } = parse(&input)?;
        let before = context::remaining_ms();
        timer::sleep(ms).await;
        let after = context::remaining_ms();
        let said = json!({
            "id": context::id(),
            "attempt": context::attempt(),
            "remaining_before_ms": before,
            "remaining_after_ms": after,
        });
        Ok(said.to_string())
    }
}

export!(Context);
