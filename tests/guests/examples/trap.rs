//! Traps, at the bottom of a chain of functions whose names the backtrace should show.

use std::hint::black_box;

wit_bindgen::generate!({
    path: "../../wit",
    world: "task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct Trap;

impl Guest for Trap {
    async fn run(input: String) -> Result<String, Failure> {
        outermost_frame(&input);
        Ok("null".to_owned())
    }
}

#[inline(never)]
fn outermost_frame(input: &str) {
    middle_frame(black_box(input));
}

#[inline(never)]
fn middle_frame(input: &str) {
    innermost_frame(black_box(input));
}

#[inline(never)]
fn innermost_frame(input: &str) {
    // Always so, which the compiler need not know.
    if black_box(true) {
        panic!("this task traps: {} bytes of input", input.len());
    }
}

export!(Trap);
