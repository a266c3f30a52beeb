//! `io` waits on the host in every way a task can: it sleeps, sleeps several times at once, writes
//! an object, reads it back and compares. It logs and reports progress as it goes. With the
//! defaults it takes one second.
//!
//! Input: an object, every field optional; nothing, `null` and `{}` mean the defaults.
//!
//! | field | default | |
//! |---|---|---|
//! | `sleep_ms` | 500 | how long each sleep is; at most 60000 |
//! | `parallel` | 5 | how many sleeps at once after the first; at most 1000 |
//! | `object` | `io/` and the task's id | the name of the object it writes |
//! | `bytes` | 4096 | the object's size; at most 16777216 |
//! | `keep` | false | whether the object stays; otherwise the task removes it in the end |
//!
//! Output: `{"attempt", "steps": [{"name", "ms"}, …], "total_ms", "object", "bytes", "kept"}`.
//! An attempt that fails leaves the object as it is; the next one replaces it.

use futures::future::join_all;
use guest_tasks::context::{self, log, progress};
use guest_tasks::types::LogLevel;
use guest_tasks::{Step, Steps, in_range, object_failure, output, parse, pattern, permanent};
use serde::{Deserialize, Serialize};

use crate::taskcell::task::{objects, timer};

wit_bindgen::generate!({
    path: "../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    sleep_ms: u32,
    parallel: u32,
    object: Option<String>,
    bytes: u32,
    keep: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self { sleep_ms: 500, parallel: 5, object: None, bytes: 4096, keep: false }
    }
}

#[derive(Serialize)]
struct Output {
    attempt: u32,
    steps: Vec<Step>,
    total_ms: f64,
    object: String,
    bytes: u32,
    kept: bool,
}

struct Io;

impl Guest for Io {
    async fn run(input: String) -> Result<String, Failure> {
        let input: Input = parse(&input)?;
        let (sleep_ms, parallel, bytes) = (input.sleep_ms, input.parallel, input.bytes);
        in_range("sleep_ms", sleep_ms, 0..=60_000)?;
        in_range("parallel", parallel, 0..=1000)?;
        in_range("bytes", bytes, 0..=16 << 20)?;
        let object = input.object.unwrap_or_else(|| format!("io/{}", context::id()));

        let mut steps = Steps::start();
        progress(0.0, "sleeping");
        timer::sleep(sleep_ms).await;
        steps.done("sleep");

        progress(0.4, "sleeping several times at once");
        log(LogLevel::Info, &format!("{parallel} sleeps of {sleep_ms} ms at once"));
        join_all((0..parallel).map(|_| timer::sleep(sleep_ms))).await;
        steps.done("parallel sleeps");

        progress(0.8, "writing an object and reading it back");
        log(LogLevel::Info, &format!("object {object}: {bytes} bytes"));
        let data = pattern(bytes, &object);
        let failure = |error| object_failure(&object, error);
        objects::write(object.clone(), data.clone()).await.map_err(failure)?;
        steps.done("write");
        if objects::read(object.clone()).await.map_err(failure)? != data {
            return Err(permanent("the object read back differs from what was written"));
        }
        steps.done("read");
        if !input.keep {
            objects::remove(object.clone()).await.map_err(failure)?;
            steps.done("remove");
        }

        progress(1.0, "done");
        let attempt = context::attempt();
        let (steps, total_ms) = steps.finish();
        output(&Output { attempt, steps, total_ms, object, bytes, kept: input.keep })
    }
}

export!(Io);
