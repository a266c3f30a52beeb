//! Takes secrets out of the response to a request that had them in it: a peer may say what it was told.
//!
//! Each byte of a value becomes a `*`, so that lengths stay right. What is held back of a body is always as much as
//! the longest value less one byte, whatever has come: if it depended on what has come, a guest that makes a peer
//! say what it guesses would see from the waiting how much of the guess is right.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::HeaderValue;
use wasmtime_wasi_http::Error;

use crate::secrets::Secret;

/// Looks for some secrets in bytes that come piece by piece.
pub(super) struct Mask {
    patterns: Vec<Pattern>,
    /// What is held back.
    keep: usize,
    held: BytesMut,
    /// How many bytes at the end of `held` are masked.
    masked: usize,
}

/// One secret, looked for as Knuth, Morris and Pratt do: in linear time, whatever it is and whatever comes.
struct Pattern {
    secret: Secret,
    /// For each length of a beginning: the longest shorter beginning that it ends with.
    shorter: Vec<u16>,
    /// How much of the secret the bytes so far end with.
    matched: usize,
}

impl Pattern {
    fn new(secret: Secret) -> Pattern {
        let value = secret.bytes();
        let mut shorter = vec![0_u16; value.len()];
        let mut matched = 0;
        for at in 1..value.len() {
            while matched > 0 && value[at] != value[matched] {
                matched = usize::from(shorter[matched - 1]);
            }
            if value[at] == value[matched] {
                matched += 1;
            }
            shorter[at] = u16::try_from(matched).unwrap_or(0);
        }
        Pattern { secret, shorter, matched: 0 }
    }

    /// Whether the secret ends with this byte.
    fn ends_with(&mut self, byte: u8) -> bool {
        let value = self.secret.bytes();
        while self.matched > 0 && value[self.matched] != byte {
            self.matched = usize::from(self.shorter[self.matched - 1]);
        }
        if value[self.matched] == byte {
            self.matched += 1;
        }
        let ends = self.matched == value.len();
        if ends {
            self.matched = usize::from(self.shorter[self.matched - 1]);
        }
        ends
    }
}

impl Mask {
    /// A mask of these; none is empty.
    pub(super) fn new(secrets: impl Iterator<Item = Secret>) -> Mask {
        let patterns: Vec<_> = secrets.filter(|secret| !secret.bytes().is_empty()).map(Pattern::new).collect();
        let longest = patterns.iter().map(|pattern| pattern.secret.bytes().len()).max().unwrap_or(1);
        Mask { patterns, keep: longest - 1, held: BytesMut::new(), masked: 0 }
    }

    /// Masks the values of fields.
    pub(super) fn fields(&mut self, fields: &mut HeaderMap) {
        for value in fields.values_mut() {
            self.add(value.as_bytes());
            let masked = self.end();
            if masked != value.as_bytes() {
                // Visible characters in place of some that were: it is a value again.
                *value = HeaderValue::from_maybe_shared(masked).unwrap_or_else(|_| HeaderValue::from_static("*"));
            }
        }
    }

    /// Takes the next piece of a body, and gives what no secret can begin in any more.
    fn next(&mut self, piece: &[u8]) -> Bytes {
        self.add(piece);
        let done = self.held.len().saturating_sub(self.keep);
        self.held.split_to(done).freeze()
    }

    /// What is left, at the end.
    fn end(&mut self) -> Bytes {
        self.patterns.iter_mut().for_each(|pattern| pattern.matched = 0);
        self.masked = 0;
        self.held.split().freeze()
    }

    fn add(&mut self, piece: &[u8]) {
        self.held.reserve(piece.len());
        for &byte in piece {
            let mut longest = 0;
            for pattern in &mut self.patterns {
                if pattern.ends_with(byte) {
                    longest = longest.max(pattern.secret.bytes().len());
                }
            }
            self.held.extend_from_slice(&[byte]);
            if longest == 0 {
                self.masked = 0;
                continue;
            }
            // All of it is here: one byte less is always held. What is masked already is not masked again, or a
            // value that repeats itself would take long.
            let end = self.held.len();
            self.held[end - longest..end - self.masked.min(longest - 1)].fill(b'*');
            self.held[end - 1] = b'*';
            self.masked = (self.masked + 1).max(longest);
        }
    }
}

/// A body without the secrets.
pub(super) struct Masked<B> {
    body: B,
    mask: Mask,
    /// Trailers that come after what was held back.
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl<B> Masked<B> {
    pub(super) fn new(body: B, mask: Mask) -> Masked<B> {
        Masked { body, mask, trailers: None, ended: false }
    }
}

impl<B: Body<Data = Bytes, Error = Error> + Unpin> Body for Masked<B> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        while !this.ended {
            let piece = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.mask.next(&data),
                    Err(frame) => {
                        this.ended = true;
                        let rest = this.mask.end();
                        this.trailers = frame.into_trailers().ok();
                        if let Some(trailers) = &mut this.trailers {
                            this.mask.fields(trailers);
                        }
                        rest
                    }
                },
                // What was held back of a body that breaks off may be a part of a secret.
                Some(Err(error)) => {
                    this.ended = true;
                    this.mask.end();
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.ended = true;
                    this.mask.end()
                }
            };
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.ended || self.body.is_end_stream();
        ended && self.mask.held.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let (body, held) = (self.body.size_hint(), self.mask.held.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + held);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|secret| Secret::new(secret.as_bytes().to_vec())))
    }

    /// What must come out, found in the plainest way.
    fn plainly(secrets: &[&str], text: &[u8]) -> Vec<u8> {
        let mut masked = text.to_vec();
        for secret in secrets {
            for at in 0..text.len() {
                if text[at..].starts_with(secret.as_bytes()) {
                    masked[at..at + secret.len()].fill(b'*');
                }
            }
        }
        masked
    }

    #[test]
    fn whatever_the_pieces_are() {
        let seed = uuid::Uuid::now_v7().as_u128() as u64;
        println!("seed {seed}");
        let mut state = seed | 1;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below as u64) as usize
        };
        for secrets in [&["abaab"][..], &["aaaa"], &["ab", "babb"], &["abab", "bab", "aabaabaa"], &["a", "abbbb", "bb"]]
        {
            for _ in 0..300 {
                let text: Vec<u8> = (0..random(60)).map(|_| b"aab"[random(3)]).collect();
                let (mut mask, mut out, mut rest) = (mask(secrets), Vec::new(), text.as_slice());
                while !rest.is_empty() {
                    let (piece, later) = rest.split_at(1 + random(rest.len()));
                    out.extend_from_slice(&mask.next(piece));
                    rest = later;
                    let kept = text.len() - rest.len() - out.len();
                    assert_eq!(
                        kept,
                        mask.keep.min(text.len() - rest.len()),
                        "what is held back depends on nothing else"
                    );
                }
                out.extend_from_slice(&mask.end());
                let text = String::from_utf8(text).unwrap();
                assert_eq!(String::from_utf8(out), String::from_utf8(plainly(secrets, text.as_bytes())), "{text}");
            }
        }
    }

    #[test]
    fn fields_are_masked_one_by_one() {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        let mut fields: HeaderMap = [("a", "x password"), ("b", "pass"), ("c", "word"), ("d", "passwordpassword")]
            .into_iter()
            .map(|(name, text)| (hyper::header::HeaderName::from_static(name), value(text)))
            .collect();
        mask(&["password"]).fields(&mut fields);
        let values = ["a", "b", "c", "d"].map(|name| fields[name].to_str().unwrap().to_owned());
        assert_eq!(values, ["x ********", "pass", "word", "****************"]);
    }

    /// A body of these pieces, then trailers or an error.
    fn body(
        pieces: &[&'static str],
        end: Option<Result<Frame<Bytes>, Error>>,
    ) -> Masked<impl Body<Data = Bytes, Error = Error> + Unpin> {
        let pieces = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
        let frames: VecDeque<_> = pieces.chain(end).collect();
        Masked::new(StreamBody::new(futures::stream::iter(frames)), mask(&["password"]))
    }

    #[tokio::test]
    async fn a_body_and_its_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("t", HeaderValue::from_static("the password"));
        let whole = body(&["the pass", "wo", "rd, pass"], Some(Ok(Frame::trailers(trailers)))).collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["t"], "the ********");
        assert_eq!(whole.to_bytes(), "the ********, pass");
        let mut broken = body(&["the pass"], Some(Err(Error::HttpResponseIncomplete)));
        assert_eq!(broken.frame().await.unwrap().unwrap().into_data().unwrap(), "t");
        broken.frame().await.unwrap().unwrap_err();
        assert!(broken.frame().await.is_none() && broken.is_end_stream());
    }

    #[tokio::test]
    async fn its_size_and_its_end_are_known() {
        let full =
            http_body_util::Full::new(Bytes::from_static(b"a password")).map_err(|never: Infallible| match never {});
        let mut body = Masked::new(full, mask(&["password"]));
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(10), false));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a *");
        assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(7), false));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "*******");
        assert!(body.is_end_stream());
    }

    /// A value that repeats itself, in a body of nothing else: in time that a guest's thread has.
    #[test]
    fn what_repeats_itself_is_masked_to_the_last_byte() {
        let secret = "a".repeat(8192);
        let mut mask = mask(&[&secret]);
        let mut out = 0;
        for _ in 0..64 {
            let piece = mask.next(&[b'a'; 32 << 10]);
            assert!(piece.iter().all(|byte| *byte == b'*'));
            out += piece.len();
        }
        assert_eq!(out + mask.end().len(), 64 * (32 << 10));
    }
}
