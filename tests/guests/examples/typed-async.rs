//! An `async` function of its own that uses the host as other tasks do. It sleeps, and fails as the world `task`
//! can: with `transient` until attempt `until`, or with `permanent`.

use crate::taskcell::task::types::Retry;
use crate::taskcell::task::{context, timer};

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package test:typed-async;

        world typed-async {
            use taskcell:task/types@0.1.0.{failure};
            import taskcell:task/context@0.1.0;
            import taskcell:task/timer@0.1.0;
            export %wait: async func(ms: u32, until: option<u32>, permanent: option<string>) -> result<u32, failure>;
        }
    ",
    generate_all,
});

struct Wait;

impl Guest for Wait {
    async fn wait(ms: u32, until: Option<u32>, permanent: Option<String>) -> Result<u32, Failure> {
        futures::future::join(timer::sleep(ms), timer::sleep(ms)).await;
        context::progress(1.0, "waited");
        if let Some(message) = permanent {
            return Err(Failure::Permanent(message));
        }
        let attempt = context::attempt();
        if until.is_some_and(|until| attempt < until) {
            return Err(Failure::Transient(Retry { message: "not yet".to_owned(), after_ms: Some(1) }));
        }
        Ok(attempt)
    }
}

export!(Wait);
