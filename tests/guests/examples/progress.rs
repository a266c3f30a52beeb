//! Reports each of `{"fractions": [n, …]}`, where `null` is NaN, with its place in the list as the note,
//! `"every_ms"` apart; then sleeps `"ms"`. Output: `null`.

use guest_tasks::context::progress;
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
    fractions: Vec<Option<f64>>,
    #[serde(default)]
    every_ms: u32,
    #[serde(default)]
    ms: u32,
}

struct Progress;

impl Guest for Progress {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        for (place, fraction) in input.fractions.iter().enumerate() {
            if place > 0 && input.every_ms > 0 {
                timer::sleep(input.every_ms).await;
            }
            progress(fraction.unwrap_or(f64::NAN), &place.to_string());
        }
        timer::sleep(input.ms).await;
        Ok("null".to_owned())
    }
}

export!(Progress);
