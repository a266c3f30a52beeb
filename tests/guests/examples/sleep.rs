//! Sleeps through the host: `{"ms": n, "times": k, "at_once": bool}`; once, unless `times` says more,
//! and one after the other, unless `at_once` is true. Output: `{"elapsed_ms": n}`.

use std::time::Instant;

use futures::future::join_all;
use guest_tasks::parse;
use serde::Deserialize;

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
#[serde(deny_unknown_fields)]
struct Input {
    ms: u32,
    #[serde(default = "once")]
    times: u32,
    #[serde(default)]
    at_once: bool,
}

fn once() -> u32 {
    1
}

struct Sleep;

impl Guest for Sleep {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { ms, times, at_once } = parse(&input)?;
        let start = Instant::now();
        if at_once {
            join_all((0..times).map(|_| timer::sleep(ms))).await;
        } else {
            for _ in 0..times {
                timer::sleep(ms).await;
            }
        }
        Ok(format!("{{\"elapsed_ms\":{}}}", start.elapsed().as_millis()))
    }
}

export!(Sleep);
