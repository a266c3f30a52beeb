//! Sleeps again and again and never returns.

use crate::taskcell::task::timer;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct SleepForever;

impl Guest for SleepForever {
    async fn run(_input: String) -> Result<String, Failure> {
        loop {
            timer::sleep(u32::MAX).await;
        }
    }
}

export!(SleepForever);
