//! Clients that do not read what they asked for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::waiting::Connection;

/// What of an answer has to be taken in each `--client-timeout` in which it has to wait, or all the rest.
const LEAST_TAKEN: usize = 16 << 10;

/// A stream whose writes fail when the other side takes too little for too long. Without it a client
/// that does not read its answer, or byte by byte, would hold its connection, and the answer in memory,
/// for ever.
pub(super) struct WriteDeadline<T> {
    inner: T,
    limit: Duration,
    connection: Arc<Connection>,
    /// Since a write had to wait, for one limit, or until all was written. Most writes never wait, so
    /// there is no timer on the usual way.
    waiting: Option<Waiting>,
}

struct Waiting {
    over: Pin<Box<Sleep>>,
    taken: usize,
}

impl<T: AsyncWrite + Unpin> WriteDeadline<T> {
    /// The stream of a connection, whose writes may wait for that long.
    pub(super) fn new(inner: T, limit: Duration, connection: Arc<Connection>) -> WriteDeadline<T> {
        WriteDeadline { inner, limit, connection, waiting: None }
    }

    fn poll_within(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let written = write(Pin::new(&mut self.inner), cx);
        self.connection.reads(written.is_ready());
        if let (Poll::Ready(Ok(bytes)), Some(waiting)) = (&written, &mut self.waiting) {
            waiting.taken = waiting.taken.saturating_add(*bytes);
        }
        if written.is_pending() && self.waiting.is_none() {
            self.waiting = Some(Waiting { over: Box::pin(sleep(self.limit)), taken: 0 });
        }
        if let Some(waiting) = &mut self.waiting
            && waiting.over.as_mut().poll(cx).is_ready()
        {
            if waiting.taken < LEAST_TAKEN {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            *waiting = Waiting { over: Box::pin(sleep(self.limit)), taken: 0 };
            // So that its end wakes this up. It lies ahead.
            let _ = waiting.over.as_mut().poll(cx);
        }
        written
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WriteDeadline<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_within(cx, |inner, cx| inner.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_within(cx, |inner, cx| inner.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    // Neither waits on a TCP stream. hyper flushes once it has written all it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        self.connection.flushed();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(30);

    /// Writes `bytes` to somebody who reads `piece` of them each 10 ms.
    async fn taken(bytes: usize, piece: usize) -> io::Result<()> {
        let (stream, mut other) = tokio::io::duplex(1 << 10);
        tokio::spawn(async move {
            let mut buffer = vec![0; piece];
            while other.read_exact(&mut buffer).await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let mut stream = WriteDeadline::new(stream, SHORT, Arc::new(Connection::alone()));
        stream.write_all(&vec![0; bytes]).await?;
        stream.flush().await
    }

    #[tokio::test]
    async fn who_takes_an_answer_drop_by_drop_loses_the_connection() {
        let started = Instant::now();
        let dripped = timeout(LONG, taken(1 << 20, 16)).await.expect("the connection is held");
        assert_eq!(dripped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= SHORT);
    }

    #[tokio::test]
    async fn who_is_slow_gets_the_answer() {
        let started = Instant::now();
        // Several times the least, on a machine that lets it; and longer than the limit.
        timeout(LONG, taken(512 << 10, 8 << 10)).await.expect("it takes too long").unwrap();
        assert!(started.elapsed() > SHORT);
    }
}
