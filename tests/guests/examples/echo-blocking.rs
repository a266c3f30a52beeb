//! Gives back what it gets, in the blocking world.

wit_bindgen::generate!({
    path: "../../wit",
    world: "blocking-task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

struct EchoBlocking;

impl Guest for EchoBlocking {
    fn run(input: String) -> Result<String, Failure> {
        Ok(input)
    }
}

export!(EchoBlocking);
