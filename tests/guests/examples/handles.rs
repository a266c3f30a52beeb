//! Makes the host keep `{"count": n}` resources for it, pollables of the clock, and gives none back.
//! Output: the number made.

use std::mem;

use guest_tasks::parse;
use serde::Deserialize;
use wasip2::clocks::monotonic_clock::subscribe_duration;

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
    count: u32,
}

struct Handles;

impl Guest for Handles {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { count } = parse(&input)?;
        for _ in 0..count {
            mem::forget(subscribe_duration(u64::MAX));
        }
        Ok(count.to_string())
    }
}

export!(Handles);
