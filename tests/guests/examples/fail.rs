//! Fails as its input says: `{"permanent": "…"}`, or `{"transient": "…", "after_ms": n, "until": k}` where
//! `after_ms` may be missing, and `until`: from the kth attempt on it succeeds. When it does not fail it
//! returns the number of the attempt.

use guest_tasks::types::Retry;
use guest_tasks::{context, parse};
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
    permanent: Option<String>,
    transient: Option<String>,
    after_ms: Option<u32>,
    until: Option<u32>,
}

struct Fail;

impl Guest for Fail {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        if let Some(message) = input.permanent {
            return Err(Failure::Permanent(message));
        }
        if let Some(message) = input.transient
            && input.until.is_none_or(|until| context::attempt() < until)
        {
            let after_ms = input.after_ms;
            return Err(Failure::Transient(Retry { message, after_ms }));
        }
        Ok(context::attempt().to_string())
    }
}

export!(Fail);
