//! What came out of a run, as one of the contract's closed set. Decided from types, never from text.

use std::io::{self, Write};
use std::sync::Arc;

use serde::de::IgnoredAny;
use wasmtime::component::ResourceTableError;
use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::meter::StoppedBy;
use super::typed::BadOutput;
use crate::host::task_world::taskcell::task::types;
use crate::host::{BadStdout, MemoryRefused, NoMemoryLeft, is_out_of_memory};
use crate::limits::Limits;
use crate::task::{AttemptEnd, ErrorKind, Outcome, TaskError};

pub(super) use types::Failure;

/// A message is cut at this many bytes: it is stored with the task.
const MESSAGE_BYTES: usize = 4096;

/// The outcome of a guest that returned.
pub(super) fn of_output(returned: Result<String, Failure>, limits: &Limits) -> Outcome {
    let failed = |kind, message: String| Outcome::Failed(TaskError::new(kind, cut(message)));
    match returned {
        Ok(output) if output.len() as u64 > limits.output_bytes => failed(
            ErrorKind::OutputTooLarge,
            format!("the output has {} bytes, the limit is {}", output.len(), limits.output_bytes),
        ),
        // Checked without recursion: a guest may nest as deep as it likes.
        Ok(output) => match serde_json::from_str::<IgnoredAny>(&output) {
            Ok(_) => Outcome::Completed(Arc::from(output)),
            Err(error) => failed(ErrorKind::InvalidOutput, format!("the output is not JSON: {error}")),
        },
        Err(Failure::Permanent(message)) => failed(ErrorKind::Permanent, message),
        Err(Failure::Transient(retry)) => failed(ErrorKind::Transient, retry.message),
    }
}

/// The output of a command: what it wrote to stdout where that is JSON, without white space at its end;
/// otherwise all of it as a JSON string.
pub(super) fn of_stdout(stdout: Vec<u8>, limits: &Limits) -> Result<String, BadStdout> {
    let mut text =
        String::from_utf8(stdout).map_err(|error| BadStdout::NotText { at: error.utf8_error().valid_up_to() })?;
    if serde_json::from_str::<IgnoredAny>(&text).is_ok() {
        text.truncate(text.trim_end_matches([' ', '\t', '\n', '\r']).len());
        return Ok(text);
    }
    // With what has to be escaped it may be six times as long.
    let mut json = AtMost { bytes: Vec::new(), limit: limits.output_bytes };
    serde_json::to_writer(&mut json, &text)
        .ok()
        .and_then(|()| String::from_utf8(json.bytes).ok())
        .ok_or(BadStdout::TooLarge { limit: limits.output_bytes })
}

/// Takes so many bytes and no more.
struct AtMost {
    bytes: Vec<u8>,
    limit: u64,
}

impl Write for AtMost {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All of its fuel is used up.
pub(super) fn fuel_exhausted(limits: &Limits) -> TaskError {
    TaskError::new(ErrorKind::FuelExhausted, format!("its fuel of {} is used up", limits.fuel))
}

/// The error of a guest that did not live to return; `None` when the attempt is to be given back.
pub(super) fn of_error(error: &wasmtime::Error, refused_memory: bool, limits: &Limits) -> Option<TaskError> {
    if error.is::<PoolConcurrencyLimitError>() || error.is::<NoMemoryLeft>() || is_out_of_memory(error) {
        return None;
    }
    let told = |kind, message: String| Some(TaskError::new(kind, cut(message)));
    if let Some(bad) = error.downcast_ref::<BadOutput>() {
        return told(bad.kind, bad.message.clone());
    }
    if let Some(refused) = error.downcast_ref::<MemoryRefused>() {
        return told(ErrorKind::MemoryExceeded, refused.to_string());
    }
    if error.is::<ResourceTableError>() && refused_handle(error) {
        let message = format!("more handles than its limit of {} bytes allows", limits.host_memory_bytes);
        return told(ErrorKind::MemoryExceeded, message);
    }
    if let Some(bad) = error.downcast_ref::<BadStdout>() {
        let kind = match bad {
            BadStdout::TooLarge { .. } => ErrorKind::OutputTooLarge,
            BadStdout::NotText { .. } => ErrorKind::InvalidOutput,
        };
        return told(kind, bad.to_string());
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::OutOfFuel) {
        return Some(fuel_exhausted(limits));
    }
    let exit = error.downcast_ref::<I32Exit>();
    let clean_exit = exit.is_some_and(|exit| exit.0 == 0);
    if refused_memory && !clean_exit {
        let message = format!("it failed after memory over its limit was refused: {}", reason(error));
        return told(ErrorKind::MemoryExceeded, message);
    }
    match exit {
        Some(I32Exit(0)) => told(ErrorKind::InvalidOutput, "it exited without an output".to_owned()),
        Some(I32Exit(code)) => told(ErrorKind::Permanent, format!("it exited with code {code}")),
        None => told(ErrorKind::Trap, reason(error)),
    }
}

/// The error of an attempt that was stopped from outside.
pub(super) fn of_stop(stopped: StoppedBy, limits: &Limits) -> TaskError {
    match stopped {
        StoppedBy::Cancel | StoppedBy::GiveBack => TaskError::new(ErrorKind::Canceled, "canceled while it ran"),
        StoppedBy::Timeout => {
            TaskError::new(ErrorKind::Timeout, format!("its time of {} ms was over", limits.timeout_ms))
        }
        StoppedBy::Cpu => {
            TaskError::new(ErrorKind::CpuExceeded, format!("its CPU time of {} ms is used up", limits.cpu_ms))
        }
        StoppedBy::Panic(message) => {
            tracing::error!(message, "host code panicked under a task");
            TaskError::new(ErrorKind::Host, "the host failed under it")
        }
    }
}

/// The end of an attempt that could not even begin.
pub(super) fn host_failure(error: &wasmtime::Error) -> AttemptEnd {
    tracing::error!(error = format!("{error:#}"), "cannot prepare an attempt");
    AttemptEnd::host_failure("the host failed to prepare it")
}

fn refused_handle(error: &wasmtime::Error) -> bool {
    matches!(error.downcast_ref::<ResourceTableError>(), Some(ResourceTableError::Full))
}

/// What went wrong, and where in the guest.
fn reason(error: &wasmtime::Error) -> String {
    let mut reason = error.root_cause().to_string();
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        for frame in backtrace.frames() {
            let symbol = frame.symbols().iter().find_map(|symbol| symbol.name());
            let name = symbol.or_else(|| frame.func_name()).unwrap_or("?");
            let name = rustc_demangle(name);
            reason.push_str("\n  at ");
            reason.push_str(&name);
        }
    }
    reason
}

fn rustc_demangle(name: &str) -> String {
    // `wasmtime` demangles symbols of debug information, but not those of the name section.
    format!("{:#}", rustc_demangle::demangle(name))
}

fn cut(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(error: wasmtime::Error, refused: bool) -> Option<ErrorKind> {
        of_error(&error, refused, &Limits::DEFAULT).map(|error| error.kind)
    }

    #[test]
    fn every_error_has_its_kind() {
        use ErrorKind::{FuelExhausted, InvalidOutput, MemoryExceeded, OutputTooLarge, Permanent, Trap as TrapKind};
        let trap = || wasmtime::Error::from(Trap::UnreachableCodeReached);
        assert_eq!(kind(trap(), false), Some(TrapKind));
        assert_eq!(kind(trap(), true), Some(MemoryExceeded));
        assert_eq!(kind(trap().context("while it ran"), true), Some(MemoryExceeded));
        assert_eq!(kind(Trap::OutOfFuel.into(), true), Some(FuelExhausted));
        assert_eq!(kind(I32Exit(0).into(), true), Some(InvalidOutput));
        assert_eq!(kind(I32Exit(3).into(), false), Some(Permanent));
        assert_eq!(kind(I32Exit(3).into(), true), Some(MemoryExceeded));
        assert_eq!(kind(MemoryRefused { limit: 1 }.into(), false), Some(MemoryExceeded));
        assert_eq!(kind(ResourceTableError::Full.into(), false), Some(MemoryExceeded));
        assert_eq!(kind(BadStdout::TooLarge { limit: 1 }.into(), true), Some(OutputTooLarge));
        assert_eq!(kind(BadStdout::NotText { at: 1 }.into(), true), Some(InvalidOutput));
        assert_eq!(kind(wasmtime::format_err!("fuel, timeout, memory"), false), Some(TrapKind), "text decides nothing");
    }

    #[test]
    fn being_short_of_room_is_no_failure() {
        assert_eq!(kind(NoMemoryLeft.into(), true), None);
        assert_eq!(kind(std::io::Error::from_raw_os_error(12).into(), false), None);
        assert_eq!(kind(rustix::io::Errno::NOMEM.into(), false), None);
        assert_eq!(kind(wasmtime::Error::from(NoMemoryLeft).context("while it grew"), false), None);
    }

    #[test]
    fn outputs() {
        let limits = Limits { output_bytes: 10, ..Limits::DEFAULT };
        let of = |text: &str| match of_output(Ok(text.into()), &limits) {
            Outcome::Completed(output) => Ok(output.to_string()),
            Outcome::Failed(error) => Err(error.kind),
        };
        assert_eq!(of(" [1 ,2]").as_deref(), Ok(" [1 ,2]"), "byte for byte");
        assert_eq!(of("\"12345678\"").as_deref(), Ok("\"12345678\""));
        assert_eq!(of("\"123456789\""), Err(ErrorKind::OutputTooLarge));
        for bad in ["", "nul", "1 2", "{\"a\":}"] {
            assert_eq!(of(bad), Err(ErrorKind::InvalidOutput), "{bad:?}");
        }
        let nested = "[".repeat(200_000);
        let limits = Limits::DEFAULT;
        assert!(matches!(of_output(Ok(nested), &limits), Outcome::Failed(_)), "and no stack overflow");
    }

    #[test]
    fn outputs_of_commands() {
        let limits = Limits { output_bytes: 10, ..Limits::DEFAULT };
        let of = |stdout: &[u8]| of_stdout(stdout.to_vec(), &limits);
        for (stdout, output) in [
            ("42\n", "42"),
            (" [1 ,2]\r\n\t ", " [1 ,2]"),
            ("\"a\"\n\n", "\"a\""),
            ("a\"b\n", r#""a\"b\n""#),
            ("1\n2\n", r#""1\n2\n""#),
            ("", r#""""#),
            ("\n", r#""\n""#),
            ("12345678", "12345678"),
            ("é", "\"é\""),
            ("\0", "\"\\u0000\""),
            ("a2345678", "\"a2345678\""),
        ] {
            assert_eq!(of(stdout.as_bytes()).as_deref().ok(), Some(output), "{stdout:?}");
        }
        for too_large in ["a23456789", "\0\0"] {
            assert!(matches!(of(too_large.as_bytes()), Err(BadStdout::TooLarge { limit: 10 })), "{too_large:?}");
        }
        assert!(matches!(of(b"ab\xff"), Err(BadStdout::NotText { at: 2 })));
    }
}
