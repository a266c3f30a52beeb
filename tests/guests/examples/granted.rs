//! Tells what it sees of what types may be granted: environment, `wasi:config`, clocks, random numbers.
//!
//! Input: `{"sleep_ms": n, "fail": false}`. Output, or the message of its failure: all of that as JSON, the
//! clocks before and after it slept, in nanoseconds.

use std::collections::BTreeMap;
use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use config::wasi::config::store;
use guest_tasks::{parse, permanent};
use serde::Deserialize;
use serde_json::json;
use taskcell::task::blocking_timer;
use wasip2::clocks::monotonic_clock;
use wasip2::random::{insecure, insecure_seed, random};

wit_bindgen::generate!({
    path: "../../wit",
    world: "blocking-task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

mod config {
    wit_bindgen::generate!({ path: "wasi-config", world: "wasi:config/imports", generate_all });
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    sleep_ms: u32,
    fail: bool,
}

struct Granted;

impl Guest for Granted {
    fn run(input: String) -> Result<String, Failure> {
        let Input { sleep_ms, fail } = parse(&input)?;
        let monotonic = [monotonic_clock::now()];
        let began = nanoseconds();
        blocking_timer::sleep(sleep_ms);
        let slept = monotonic_clock::now();
        monotonic_clock::subscribe_duration(u64::from(sleep_ms) * 1_000_000).block();
        let polled = monotonic_clock::now();
        monotonic_clock::subscribe_instant(polled + u64::from(sleep_ms) * 1_000_000).block();
        let until = monotonic_clock::now();
        // Nothing but looking at the clock makes this end.
        while monotonic_clock::now() < until + 1_000_000 {}
        let told = json!({
            "environment": env::vars().collect::<BTreeMap<_, _>>(),
            "config": store::get_all().map(|all| all.into_iter().collect::<BTreeMap<_, _>>()).unwrap_or_default(),
            "config_a": store::get("a").unwrap_or_default(),
            "wall": [began.to_string(), nanoseconds().to_string()],
            "monotonic": [monotonic[0], slept, polled, until],
            "random": random::get_random_bytes(16),
            "random_number": random::get_random_u64().to_string(),
            "insecure": insecure::get_insecure_random_bytes(16),
            "seed": format!("{:?}", insecure_seed::insecure_seed()),
        });
        if fail { Err(permanent(told.to_string())) } else { Ok(told.to_string()) }
    }
}

fn nanoseconds() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

export!(Granted);
