//! stdin and stdout of a command: the task's input, and what becomes its output. Both are in memory and
//! count as what the host holds for the attempt.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::memory::{HeldMemory, HostMemory, MemoryRefused};
use super::wasi::WRITE_BYTES;

/// Where a command reads its input.
pub(super) type Stdin = MemoryInputPipe;

/// Why what a command writes is no output.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum BadStdout {
    /// It is too much.
    #[error("stdout makes an output of more than the limit of {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// It is no text.
    #[error("stdout is not UTF-8 at byte {at}")]
    NotText {
        /// Where that begins.
        at: usize,
    },
}

/// What a command writes to stdout.
#[derive(Clone)]
pub struct Stdout(Arc<Mutex<Written>>);

struct Written {
    bytes: Vec<u8>,
    limit: u64,
    /// The input and `bytes`.
    held: HeldMemory,
}

/// The two for a command with that input, whose stdout takes up to `output_bytes`.
pub(super) fn stdio(
    input: &str,
    output_bytes: u64,
    host_memory: &HostMemory,
) -> Result<(Stdin, Stdout), MemoryRefused> {
    let held = host_memory.take(input.len() as u64)?;
    let stdin = MemoryInputPipe::new(Bytes::copy_from_slice(input.as_bytes()));
    let written = Written { bytes: Vec::new(), limit: output_bytes, held };
    Ok((stdin, Stdout(Arc::new(Mutex::new(written)))))
}

impl Stdout {
    /// Takes what was written out of it.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    fn write(&mut self, bytes: &[u8]) -> wasmtime::Result<()> {
        let length = self.bytes.len() + bytes.len();
        if length as u64 > self.limit {
            return Err(BadStdout::TooLarge { limit: self.limit }.into());
        }
        if length > self.bytes.capacity() {
            // At least twice as much, or each small write would copy all that is there.
            let capacity = usize::try_from(self.limit).unwrap_or(usize::MAX).min(length.max(self.bytes.len() * 2));
            self.held.grow((capacity - self.bytes.capacity()) as u64)?;
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl IsTerminal for Stdout {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stdout {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    // Not the adapter over `async_stream`, see `wasi.rs`.
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Stdout {
    async fn ready(&mut self) {}
}

impl OutputStream for Stdout {
    // What goes over a limit ends the guest: it is not asked what it makes of that.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.lock().write(&bytes).map_err(StreamError::Trap)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

// For WASI 0.3, which no guest can import; the trait above wants it.
impl AsyncWrite for Stdout {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(self.lock().write(bytes).map(|()| bytes.len()).map_err(std::io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let memory = HostMemory::new(100_000, 1024);
        let (stdin, mut stdout) = stdio(&"i".repeat(10_000), 80_000, &memory).unwrap();
        assert_eq!(memory.left(), 90_000);
        for written in 1..=80_000 {
            stdout.write(Bytes::from_static(b"o")).unwrap();
            let capacity = stdout.lock().bytes.capacity() as u64;
            assert_eq!(memory.left(), 90_000 - capacity, "after {written} bytes");
        }
        assert_eq!(memory.left(), 10_000, "no more than the limit");
        let StreamError::Trap(error) = stdout.write(Bytes::from_static(b"o")).unwrap_err() else { panic!() };
        assert!(matches!(error.downcast_ref(), Some(BadStdout::TooLarge { limit: 80_000 })));
        assert_eq!(stdout.take().len(), 80_000);
        drop((stdin, stdout));
        assert_eq!((memory.left(), memory.refused()), (100_000, false));
    }

    #[test]
    fn what_the_host_may_not_hold_is_refused() {
        let memory = HostMemory::new(1000, 1024);
        assert!(stdio(&"i".repeat(1001), 1000, &memory).is_err());
        let (_stdin, mut stdout) = stdio(&"i".repeat(500), 1000, &memory).unwrap();
        let StreamError::Trap(error) = stdout.write(vec![b'o'; 501].into()).unwrap_err() else { panic!() };
        assert!(error.is::<MemoryRefused>());
        assert!(memory.refused());
    }
}
