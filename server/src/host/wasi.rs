//! WASI 0.2 for guests that were built against it. Everything is denied but what is granted: no files, no
//! network, no arguments, an empty stdin, an environment of what the type is given. Clocks and randomness are
//! there. What goes to stdout and stderr becomes log lines; a command has its input and output there instead
//! (`stdio.rs`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::Host;
use super::log::{LogBuffer, LogLevel};
use super::repeatable::{self, Time};
use super::stdio::{Stdin, Stdout};
use crate::grants::Grants;
use crate::task::TaskId;

/// Most random bytes for one call. A guest gets more by calling again, and can be stopped between.
const MAX_RANDOM_BYTES: u64 = 64 * 1024;

/// Most bytes for one write.
pub(super) const WRITE_BYTES: usize = 64 * 1024;

/// A longer line is several lines.
const LINE_BYTES: usize = 8 * 1024;

/// The one argument of a command, the name it was called by: programs expect that there is one.
const COMMAND_NAME: &str = "task";

/// What a guest sees of WASI, and its time where that is not everybody's.
pub(super) fn context(log: &LogBuffer, grants: &Grants, id: TaskId) -> (WasiCtx, Option<Time>) {
    let (mut wasi, time) = granted(log, grants, id);
    (wasi.stdout(LineStream::new(log.clone(), LogLevel::Info)).build(), time)
}

/// The same for a command.
pub(super) fn command(
    log: &LogBuffer,
    grants: &Grants,
    id: TaskId,
    stdin: Stdin,
    stdout: Stdout,
) -> (WasiCtx, Option<Time>) {
    let (mut wasi, time) = granted(log, grants, id);
    (wasi.arg(COMMAND_NAME).stdin(stdin).stdout(stdout).build(), time)
}

fn granted(log: &LogBuffer, grants: &Grants, id: TaskId) -> (WasiCtxBuilder, Option<Time>) {
    let env: Vec<_> = grants.env.iter().collect();
    let mut wasi = WasiCtxBuilder::new();
    let time = grants.deterministic.then(|| repeatable::put_in(&mut wasi, id));
    wasi.envs(&env).stderr(LineStream::new(log.clone(), LogLevel::Warn)).max_random_size(MAX_RANDOM_BYTES);
    (wasi, time)
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Turns bytes into log lines. Never has to wait: what the log does not take is dropped.
#[derive(Clone)]
struct LineStream {
    log: LogBuffer,
    // Shared by all streams of one output; a line may come in several writes.
    line: Arc<Mutex<Line>>,
}

struct Line {
    bytes: Vec<u8>,
    log: LogBuffer,
    level: LogLevel,
}

impl Line {
    fn end(&mut self) {
        let message = String::from_utf8_lossy(&self.bytes).trim_end_matches('\r').to_owned();
        self.bytes.clear();
        self.log.push(self.level, message);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.end();
        }
    }
}

impl LineStream {
    fn new(log: LogBuffer, level: LogLevel) -> LineStream {
        let line = Line { bytes: Vec::new(), log: log.clone(), level };
        LineStream { log, line: Arc::new(Mutex::new(line)) }
    }

    fn take(&self, bytes: &[u8]) {
        if self.log.is_full() {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut part, ended) = match part {
                [part @ .., b'\n'] => (part, true),
                part => (part, false),
            };
            while line.bytes.len() + part.len() > LINE_BYTES {
                let (now, later) = part.split_at(LINE_BYTES - line.bytes.len());
                line.bytes.extend_from_slice(now);
                line.end();
                part = later;
            }
            line.bytes.extend_from_slice(part);
            if ended {
                line.end();
            }
        }
    }
}

impl IsTerminal for LineStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LineStream {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    // Not the adapter over `async_stream`: in 48.0.8 empty writes to it grow without bound
    // (GHSA-5m8g-xhq4-4h93).
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LineStream {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        if bytes.len() > WRITE_BYTES {
            return Err(wasmtime_wasi::p2::StreamError::Trap(wasmtime::format_err!(
                "wrote {} bytes where {WRITE_BYTES} were permitted",
                bytes.len()
            )));
        }
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

impl AsyncWrite for LineStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES)];
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
