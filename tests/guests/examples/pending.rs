//! Starts many host calls before it awaits the first: `{"calls": n}` sleeps of a minute each. Output:
//! `null`, after that minute.

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
    calls: u32,
}

struct Pending;

impl Guest for Pending {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { calls } = parse(&input)?;
        join_all((0..calls).map(|_| timer::sleep(60_000))).await;
        Ok("null".to_owned())
    }
}

export!(Pending);
