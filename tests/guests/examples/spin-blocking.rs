//! Computes for ever and never calls the host. In the blocking world.

use std::hint::black_box;

wit_bindgen::generate!({
    path: "../../wit",
    world: "blocking-task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct SpinBlocking;

impl Guest for SpinBlocking {
    fn run(_input: String) -> Result<String, Failure> {
        let mut rounds = 0u64;
        loop {
            rounds = black_box(rounds.wrapping_add(1));
        }
    }
}

export!(SpinBlocking);
