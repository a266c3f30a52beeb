//! What the example task types share: reading the input, and telling failures apart.
//!
//! A task needs none of this: `wit_bindgen::generate!` with the world it implements is enough, as
//! `examples/echo.rs` shows.

#![warn(missing_docs)]

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::{Failure, ObjectError, Retry};

#[expect(missing_docs, reason = "the WIT package documents what is generated from it")]
mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "
            package taskcell:guest-tasks;
            world shared {
                import taskcell:task/context@0.1.0;
            }
        ",
        generate_all,
    });
}

// What both worlds import, so that the functions below can name its types. The examples take it
// from here (`with:`) instead of generating it once more.
pub use bindings::taskcell::task::{context, types};

/// Reads the input as a JSON object into `T`. No input and `null` mean the same as `{}`.
///
/// What does not fit is a permanent failure that names the field: the same input would fail again.
pub fn parse<T: DeserializeOwned>(input: &str) -> Result<T, Failure> {
    let text = match input.trim_ascii() {
        "" | "null" => "{}",
        text => text,
    };
    // serde would also take an array for a struct, field by field.
    if !text.starts_with('{') {
        return Err(permanent("the input must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| permanent(format!("the input does not fit: {error}")))?;
    json.end().map_err(|error| permanent(format!("the input is not one JSON value: {error}")))?;
    Ok(value)
}

/// A permanent failure unless `value`, the input's field `field`, is in `range`.
pub fn in_range(field: &str, value: u32, range: RangeInclusive<u32>) -> Result<(), Failure> {
    if range.contains(&value) {
        return Ok(());
    }
    let (least, most) = range.into_inner();
    Err(permanent(format!("{field} must be from {least} to {most}, not {value}")))
}

/// A failure that the same input would meet again.
pub fn permanent(message: impl Into<String>) -> Failure {
    Failure::Permanent(message.into())
}

/// A failure that another attempt may not meet.
pub fn transient(message: impl Into<String>) -> Failure {
    Failure::Transient(Retry { message: message.into(), after_ms: None })
}

/// What a task that needs the object makes of an error. Only an unavailable store gets better by
/// itself.
pub fn object_failure(name: &str, error: ObjectError) -> Failure {
    match error {
        ObjectError::Unavailable(why) => transient(format!("object {name}: {why}")),
        ObjectError::NotFound => permanent(format!("object {name} does not exist")),
        ObjectError::TooLarge(limit) => permanent(format!("object {name}: more than {limit} bytes")),
        ObjectError::Denied(why)
        | ObjectError::QuotaExceeded(why)
        | ObjectError::InvalidName(why)
        | ObjectError::Other(why) => permanent(format!("object {name}: {why}")),
    }
}

/// The task's output as JSON text.
pub fn output(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| permanent(format!("output: {error}")))
}

/// One step of a task's work.
#[derive(Serialize)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub ms: f64,
}

/// Times the steps of a task's work, one after the other.
pub struct Steps {
    start: Instant,
    last: Instant,
    steps: Vec<Step>,
}

impl Steps {
    /// Starts the first step.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now, steps: Vec::new() }
    }

    /// Ends the step that is under way and starts the next.
    pub fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push(Step { name, ms: milliseconds(now - self.last) });
        self.last = now;
    }

    /// The steps, and how long they took together.
    pub fn finish(self) -> (Vec<Step>, f64) {
        (self.steps, milliseconds(self.last - self.start))
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// `length` bytes that differ from object to object and from place to place, so that an object
/// read back shows a mix-up.
pub fn pattern(length: u32, seed: &str) -> Vec<u8> {
    let seed = seed.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    // A prime period: no two blocks or pages are alike.
    let period = (0..251).map(|byte| byte ^ seed);
    period.cycle().take(length as usize).collect()
}
