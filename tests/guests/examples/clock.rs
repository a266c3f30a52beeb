//! Tells when it began.
//!
//! Input: any. Output: nanoseconds since the Unix epoch.

use std::time::{SystemTime, UNIX_EPOCH};

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct Clock;

impl Guest for Clock {
    async fn run(_: String) -> Result<String, Failure> {
        let began = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(began.map_or(0, |time| time.as_nanos()).to_string())
    }
}

export!(Clock);
