//! Calls itself until the stack is used up.

use std::hint::black_box;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct Deep;

impl Guest for Deep {
    async fn run(input: String) -> Result<String, Failure> {
        Ok(deeper(input.len() as u64).to_string())
    }
}

#[inline(never)]
#[expect(unconditional_recursion, reason = "this is what the guest is for")]
fn deeper(depth: u64) -> u64 {
    // The addition after the call keeps it from becoming a loop.
    deeper(black_box(depth) + 1) + black_box(depth)
}

export!(Deep);
