//! Computes, for the benchmarks: `{"work": "json" | "sort" | "fib" | "sha256", "n": n}` calls that
//! function of `kernels/` with n. Output: its checksum.

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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    work: Work,
    n: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Work {
    Json,
    Sort,
    Fib,
    Sha256,
}

struct Compute;

impl Guest for Compute {
    async fn run(input: String) -> Result<String, Failure> {
        let Input { work, n } = parse(&input)?;
        let checksum = match work {
            Work::Json => kernels::json(n),
            Work::Sort => kernels::sort(n),
            Work::Fib => kernels::fib(n),
            Work::Sha256 => kernels::sha256(n),
        };
        Ok(checksum.to_string())
    }
}

export!(Compute);
