//! Asks WASI for `{"bytes": n}` random bytes in one call. Output: how many it got.

use guest_tasks::parse;
use serde::Deserialize;
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
#[serde(deny_unknown_fields)]
struct Input {
    bytes: u64,
}

struct Random;

impl Guest for Random {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { bytes } = parse(&input)?;
        Ok(get_random_bytes(bytes).len().to_string())
    }
}

export!(Random);
