//! One request and its response, on a connection of their own. Everything here runs on the API's threads,
//! but for [`ResponseBody`], which the guest reads.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Sleep, timeout};
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, WasiBody};

use super::connect::{Outbound, Stream, Target};
use super::mask::Masked;
use super::secrets::PutIn;
use crate::host::memory::HostMemory;

/// Most bytes of a response's head, and of what a connection reads ahead.
const BUFFER_BYTES: usize = 32 << 10;

/// Most fields of a response's head.
const MOST_FIELDS: usize = 100;

/// What a connection costs the host: its buffers in both directions and those of TLS.
const CONNECTION_BYTES: u64 = 192 << 10;

/// What secrets in a request cost beside: themselves, and what of a response is copied and held back for them.
const SECRETS_BYTES: u64 = 96 << 10;

/// How long each step may take.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) first_byte: Duration,
    pub(super) between_bytes: Duration,
}

/// A request that may be sent.
pub(super) struct Exchange {
    /// Whose request it is.
    pub(super) tenant: Arc<str>,
    pub(super) target: Target,
    pub(super) request: Request<WasiBody>,
    pub(super) timeouts: Timeouts,
    /// Bytes that went over the attempt's connections.
    pub(super) bytes: Arc<AtomicU64>,
    /// The attempt's turns for connections, and its host memory.
    pub(super) turns: Arc<Semaphore>,
    pub(super) memory: HostMemory,
    /// The secrets that its headers name.
    pub(super) put_in: Option<PutIn>,
}

/// The response, and the task that drives its connection.
pub(super) type Answer = (Response<WasiBody>, AbortOnDropJoinHandle<()>);

impl Outbound {
    pub(super) async fn exchange(&self, exchange: Exchange) -> Result<Answer, Error> {
        let Exchange { tenant, target, mut request, timeouts, bytes, turns, memory, put_in } = exchange;
        let most = self.limits.body_bytes;
        if request.body().size_hint().lower() > most {
            return Err(Error::HttpRequestBodySize(Some(most)));
        }
        // First the attempt's own turn, so that none holds one of everybody's while it waits.
        let has_turn = AtomicBool::new(false);
        let connect = async {
            let held = (turns.acquire_owned().await, self.connections.take(&tenant).await);
            has_turn.store(true, Ordering::Relaxed);
            let buffers = memory.take(CONNECTION_BYTES + if put_in.is_some() { SECRETS_BYTES } else { 0 });
            let buffers = buffers.map_err(|refused| Error::InternalError(Some(refused.to_string())))?;
            let held = (held, buffers);
            let mask = match put_in {
                Some(put_in) => Some(put_in.put_into(request.headers_mut()).await?),
                None => None,
            };
            let stream = Counted { stream: self.connect(&tenant, &target).await?, bytes };
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(BUFFER_BYTES)
                .max_headers(MOST_FIELDS)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| of_hyper(&error))?;
            Ok::<_, Error>((held, mask, sender, connection))
        };
        let (held, mask, mut sender, connection) = match timeout(timeouts.connect, connect).await {
            Ok(connected) => connected?,
            Err(_) if has_turn.load(Ordering::Relaxed) => return Err(Error::ConnectionTimeout),
            Err(_) => return Err(Error::ConnectionLimitReached),
        };
        let driver = AbortOnDropJoinHandle::from(self.runtime.spawn(async move {
            let _until_closed = held;
            // What goes wrong is told to who waits for the response, or reads it.
            let _ = connection.await;
        }));

        let too_large = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| RequestBody { body, left: most, too_large: too_large.clone() });
        let response = match timeout(timeouts.first_byte, sender.send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) if too_large.load(Ordering::Relaxed) => return Err(Error::HttpRequestBodySize(Some(most))),
            Ok(Err(error)) => return Err(of_hyper(&error)),
            Err(_) => return Err(Error::ConnectionReadTimeout),
        };
        if response.body().size_hint().lower() > most {
            return Err(Error::HttpResponseBodySize(Some(most)));
        }
        let (mut head, body) = response.into_parts();
        let body = ResponseBody {
            body: Some(body),
            most,
            left: most,
            pause: timeouts.between_bytes,
            timer: None,
            runtime: self.runtime.clone(),
        };
        let body = match mask {
            Some(mut mask) => {
                mask.fields(&mut head.headers);
                Masked::new(body, mask).boxed_unsync()
            }
            None => body.boxed_unsync(),
        };
        Ok((Response::from_parts(head, body), driver))
    }
}

fn of_hyper(error: &hyper::Error) -> Error {
    if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(Some(BUFFER_BYTES as u32))
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else if error.is_parse() {
        Error::HttpProtocolError
    } else {
        Error::ConnectionTerminated
    }
}

/// What a guest is told of an error of [`ResponseBody`].
pub(super) fn code_of_body(error: &Error) -> ErrorCode {
    match error {
        Error::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        Error::HttpResponseBodySize(size) => ErrorCode::HttpResponseBodySize(*size),
        _ => ErrorCode::HttpResponseIncomplete,
    }
}

/// A request's body as far as it is allowed.
struct RequestBody {
    body: WasiBody,
    left: u64,
    too_large: Arc<AtomicBool>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let size = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(size) {
            Some(left) => {
                self.left = left;
                Poll::Ready(frame)
            }
            None => {
                self.too_large.store(true, Ordering::Relaxed);
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(None))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body as far as it is allowed, as long as it goes on coming.
struct ResponseBody {
    /// Until it has ended, in whatever way.
    body: Option<Incoming>,
    most: u64,
    left: u64,
    pause: Duration,
    /// Only while the guest waits: it may take its time between two pieces.
    timer: Option<Pin<Box<Sleep>>>,
    runtime: Handle,
}

impl ResponseBody {
    fn end(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.body = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| {
                    let _on = this.runtime.enter();
                    Box::pin(tokio::time::sleep(this.pause))
                });
                ready!(timer.as_mut().poll(cx));
                return this.end(Error::ConnectionReadTimeout);
            }
        };
        this.timer = None;
        match frame {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, Bytes::len) as u64;
                match this.left.checked_sub(size) {
                    Some(left) => this.left = left,
                    None => return this.end(Error::HttpResponseBodySize(Some(this.most))),
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // Whatever it was, there is no more of it.
            Some(Err(_)) => this.end(Error::HttpResponseIncomplete),
            None => {
                this.body = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

/// Counts what goes over a connection.
struct Counted {
    stream: Box<dyn Stream>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    fn count(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        self.count(into.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, from))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
