//! `taskcell:task/context`: what a task may know and say about its attempt. Never waits.

use std::time::Instant;

use super::Host;
use super::log::LogLevel;
use super::task_world::taskcell::task::{context, types};
use crate::task::Progress;

/// A note is cut at this many bytes.
const NOTE_BYTES: usize = 1024;

impl types::Host for Host {}

impl context::Host for Host {
    fn id(&mut self) -> wasmtime::Result<String> {
        self.calls += 1;
        Ok(self.id.to_string())
    }

    fn attempt(&mut self) -> wasmtime::Result<u32> {
        self.calls += 1;
        Ok(self.attempt)
    }

    fn remaining_ms(&mut self) -> wasmtime::Result<u32> {
        self.calls += 1;
        let left = self.deadline.saturating_duration_since(Instant::now());
        Ok(u32::try_from(left.as_millis()).unwrap_or(u32::MAX))
    }

    fn log(&mut self, level: types::LogLevel, message: String) -> wasmtime::Result<()> {
        self.calls += 1;
        let level = match level {
            types::LogLevel::Trace => LogLevel::Trace,
            types::LogLevel::Debug => LogLevel::Debug,
            types::LogLevel::Info => LogLevel::Info,
            types::LogLevel::Warn => LogLevel::Warn,
            types::LogLevel::Error => LogLevel::Error,
        };
        self.log.push(level, message);
        Ok(())
    }

    fn progress(&mut self, fraction: f64, mut note: String) -> wasmtime::Result<()> {
        self.calls += 1;
        let fraction = if fraction.is_nan() { 0.0 } else { fraction.clamp(0.0, 1.0) };
        note.truncate(note.floor_char_boundary(NOTE_BYTES));
        note.shrink_to_fit();
        let progress = Progress { fraction, note };
        self.services.live.set(self.id, self.attempt, progress.clone());
        self.log.note_progress(progress.clone());
        self.progress = Some(progress);
        Ok(())
    }
}
