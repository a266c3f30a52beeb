//! The listening socket and its connections: how many there may be, how slow a client may be, and
//! how they end.
//!
//! hyper is driven here directly, HTTP/1.1 only, because every one of these bounds is about the
//! connection and not about a request.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Sleep, sleep, timeout};
use tower::Service;

use super::Api;
use super::problem::Problem;

/// How long requests in flight may go on once the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// The largest head of a request: a longer one is answered with 431. Bodies pass through a buffer
/// of this size, too.
const BUFFER_BYTES: usize = 64 << 10;

/// How long to wait after the system refused a connection: it is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the same trouble is logged again.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Serves `router` until `stop` turns true. Returns once every connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    client_timeout: Duration,
    router: Router,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) {
    let places = api.connections.places.clone();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(client_timeout).max_buf_size(BUFFER_BYTES);
    let mut accepting =
        Accepting { listener, places: places.clone(), full: Trouble::default(), refused: Trouble::default() };
    loop {
        let (stream, place) = tokio::select! {
            accepted = accepting.next() => accepted,
            () = stopped(&mut stop) => break,
        };
        let (http, router, api, stop) = (http.clone(), router.clone(), api.clone(), stop.clone());
        let io = WriteDeadline::new(stream, client_timeout);
        tokio::spawn(async move {
            connection(&http, io, router, api, stop).await;
            drop(place);
        });
    }
    drop(accepting);
    // Every connection holds a place, and none goes on for longer than the grace.
    let _ = places.acquire_many(u32::try_from(api.connections.most).unwrap_or(u32::MAX)).await;
}

/// Returns when the server is to stop; also when nobody is left who could say so.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    http: &http1::Builder,
    io: WriteDeadline<TcpStream>,
    router: Router,
    api: Arc<Api>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(router.clone(), api.clone(), request));
    let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            // Who still waits then loses the connection, and nothing else.
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // A client's doing: it went away, was too slow, or does not speak HTTP.
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
    }
}

/// Answers one request. A panic in a handler becomes an answer, too.
async fn answer(mut router: Router, api: Arc<Api>, request: Request<Incoming>) -> Result<Response, Infallible> {
    let answered = AssertUnwindSafe(async { router.call(request.map(Body::new)).await }).catch_unwind().await;
    let response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Problem::internal(&anyhow::anyhow!("a handler panicked: {}", text.unwrap_or("no message"))).into_response()
        }
    };
    api.answered.count(response.status());
    Ok(response)
}

/// Accepts connections while there are places for them.
struct Accepting {
    listener: TcpListener,
    places: Arc<Semaphore>,
    full: Trouble,
    refused: Trouble,
}

impl Accepting {
    /// The next connection and its place. Trouble is logged and waited out, never the end.
    async fn next(&mut self) -> (TcpStream, OwnedSemaphorePermit) {
        loop {
            if self.places.available_permits() == 0 && self.full.is_news() {
                tracing::warn!("as many connections as --max-connections allows; others wait until one ends");
            }
            let Ok(place) = self.places.clone().acquire_owned().await else {
                // Nobody closes the semaphore.
                std::future::pending().await
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // An answer is written at once and whole: waiting for more to send only delays it.
                    let _ = stream.set_nodelay(true);
                    return (stream, place);
                }
                // The client went away before it was accepted.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if self.refused.is_news() {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Trouble that goes on is logged now and then, not every time.
#[derive(Default)]
struct Trouble {
    logged: Option<Instant>,
}

impl Trouble {
    fn is_news(&mut self) -> bool {
        let news = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        if news {
            self.logged = Some(Instant::now());
        }
        news
    }
}

/// A stream whose writes fail when the other side takes nothing for too long. Without it a client
/// that does not read its answer would hold its connection, and the answer in memory, for ever.
struct WriteDeadline<T> {
    inner: T,
    limit: Duration,
    /// Runs while a write waits. Most writes never do, so there is no timer on the usual way.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncWrite + Unpin> WriteDeadline<T> {
    fn new(inner: T, limit: Duration) -> WriteDeadline<T> {
        WriteDeadline { inner, limit, waiting: None }
    }

    fn poll_within(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = write(Pin::new(&mut self.inner), cx) {
            self.waiting = None;
            return Poll::Ready(written);
        }
        let limit = self.limit;
        ready!(self.waiting.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
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

    // Neither waits on a TCP stream.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
