//! An answer that is cut off when the key is taken back that asked for it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

/// What of a body is handed to the connection at a time. An answer that is no larger is handed over at once.
const PIECE: usize = 64 << 10;

/// The answer, of which nothing more is sent once `end` comes.
pub(super) fn until(response: Response, end: impl Future<Output = ()> + Send + 'static) -> Response {
    // What has no size is a stream of events, which ends with its key by itself.
    if response.body().size_hint().exact().is_none_or(|bytes| bytes <= PIECE as u64) {
        return response;
    }
    response.map(|body| Body::new(Until { body, rest: Bytes::new(), end: Some(Box::pin(end)) }))
}

struct Until {
    body: Body,
    /// What came of the body and was not handed over yet.
    rest: Bytes,
    /// `None`: it came.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl HttpBody for Until {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.end.as_mut().is_none_or(|end| end.as_mut().poll(cx).is_ready()) {
            self.end = None;
            return Poll::Ready(Some(Err(axum::Error::new("its key is good no more"))));
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let piece = PIECE.min(self.rest.len());
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.body.size_hint();
        body.exact().map_or(body, |bytes| SizeHint::with_exact(bytes + self.rest.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::oneshot;

    use super::*;

    const BYTES: usize = 1 << 20;

    fn large(end: impl Future<Output = ()> + Send + 'static) -> Body {
        let body = until(Response::new(vec![7; BYTES].into()), end).into_body();
        assert_eq!(body.size_hint().exact(), Some(BYTES as u64));
        body
    }

    #[tokio::test]
    async fn a_body_comes_whole_where_the_end_does_not_come() {
        let whole = large(std::future::pending()).collect().await.unwrap().to_bytes();
        assert!(whole.len() == BYTES && whole.iter().all(|byte| *byte == 7));
    }

    #[tokio::test]
    async fn nothing_comes_after_the_end() {
        let (end, ended) = oneshot::channel::<()>();
        let mut body = large(async move { drop(ended.await) });
        for _ in 0..3 {
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
        }
        end.send(()).unwrap();
        for _ in 0..2 {
            assert!(body.frame().await.unwrap().is_err());
        }
    }
}
