//! Secrets in requests: a guest writes `{{secret:NAME}}` into a header, and what is sent has the value there.
//!
//! The headers are the request's own by then, which the guest has no handle of any more: it keeps what it wrote.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, HeaderValue};
use wasmtime_wasi_http::Error;

use super::FIELD_BYTES;
use super::mask::Mask;
use crate::host::log::{LogBuffer, LogLevel};
use crate::names::is_name;
use crate::secrets::{Secret, Secrets};

/// How a placeholder begins and ends.
const OPEN: &[u8] = b"{{secret:";
const CLOSE: &[u8] = b"}}";

/// What begins as a placeholder and is none. It is not sent: somebody meant a secret.
#[derive(Debug, thiserror::Error)]
#[error("a header has {{{{secret: without a secret's name and }}}} behind it")]
pub(super) struct Malformed;

/// The secrets that the values of these headers name, each once.
pub(super) fn names(headers: &HeaderMap) -> Result<Vec<String>, Malformed> {
    let mut names = Vec::new();
    for value in headers.values() {
        let mut rest = value.as_bytes();
        while let Some(found) = next(rest)? {
            if !names.iter().any(|known| known == found.name) {
                names.push(found.name.to_owned());
            }
            rest = found.after;
        }
    }
    Ok(names)
}

/// A placeholder, and what is around it.
struct Placeholder<'a> {
    before: &'a [u8],
    name: &'a str,
    after: &'a [u8],
}

/// The first placeholder of a value.
fn next(value: &[u8]) -> Result<Option<Placeholder<'_>>, Malformed> {
    let Some(at) = find(value, OPEN) else { return Ok(None) };
    let inside = &value[at + OPEN.len()..];
    let end = find(inside, CLOSE).ok_or(Malformed)?;
    let name = std::str::from_utf8(&inside[..end]).ok().filter(|name| is_name(name)).ok_or(Malformed)?;
    Ok(Some(Placeholder { before: &value[..at], name, after: &inside[end + CLOSE.len()..] }))
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

/// What is to be put into a request, all of which is granted.
pub(super) struct PutIn {
    /// The secrets.
    pub(super) names: Vec<String>,
    /// Where they are, and whose they are.
    pub(super) secrets: Secrets,
    pub(super) tenant: Arc<str>,
    /// Where the task's author is told why not.
    pub(super) log: LogBuffer,
    /// The request, as the log names it.
    pub(super) what: String,
}

impl PutIn {
    /// Puts the values in place of the placeholders. Returns what takes them out of the response.
    pub(super) async fn put_into(self, headers: &mut HeaderMap) -> Result<Mask, Error> {
        let PutIn { names, secrets, tenant, log, what } = self;
        let refuse = |why: &str, error: Error| {
            log.push(LogLevel::Warn, format!("refused {what}: {why}"));
            error
        };
        let opened = secrets.open(&tenant, names).await;
        let opened = opened.map_err(|error| refuse(&error.to_string(), Error::HttpRequestDenied))?;
        if !put(headers, &opened) {
            let why = format!("its fields have more than {FIELD_BYTES} bytes with the secrets in them");
            return Err(refuse(&why, Error::HttpRequestHeaderSectionSize(Some(FIELD_BYTES as u32))));
        }
        // What the peer compresses cannot be looked through. Without this field it might.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(Mask::new(opened.into_iter().map(|(_, secret)| secret)))
    }
}

/// False: the fields would be too large.
fn put(headers: &mut HeaderMap, secrets: &[(String, Secret)]) -> bool {
    let names: usize = headers.keys().map(|name| name.as_str().len() * headers.get_all(name).iter().count()).sum();
    let mut left = FIELD_BYTES.saturating_sub(names);
    for value in headers.values_mut() {
        match filled(value.as_bytes(), secrets, left) {
            Some(None) => left -= value.len(),
            Some(Some(mut filled)) => {
                left -= filled.len();
                // So that nothing prints it.
                filled.set_sensitive(true);
                *value = filled;
            }
            None => return false,
        }
    }
    true
}

/// A value with the secrets in place, of at most that many bytes; `Some(None)`: it has no placeholder.
fn filled(value: &[u8], secrets: &[(String, Secret)], most: usize) -> Option<Option<HeaderValue>> {
    let (mut filled, mut rest, mut found) = (Vec::new(), value, false);
    while let Ok(Some(Placeholder { before, name, after })) = next(rest) {
        let (_, secret) = secrets.iter().find(|(known, _)| known == name)?;
        filled.extend_from_slice(before);
        filled.extend_from_slice(secret.bytes());
        if filled.len() > most {
            return None;
        }
        (rest, found) = (after, true);
    }
    filled.extend_from_slice(rest);
    if filled.len() > most {
        return None;
    }
    if !found {
        return Some(None);
    }
    // A value was looked at when it was stored: it can be in a header.
    HeaderValue::from_bytes(&filled).ok().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn placeholders_are_found() {
        let of = |values: &[&str]| names(&headers(values)).map_err(|_| "malformed");
        assert_eq!(of(&["a", "{{secret}} {secret:a} {{secrets:a}}"]), Ok(vec![]));
        let found = of(&["Bearer {{secret:a}}", "{{secret:b-2}}{{secret:a}}}}", "{{{secret:a}}"]);
        assert_eq!(found, Ok(vec!["a".to_owned(), "b-2".to_owned()]));
        for bad in
            ["{{secret:", "{{secret:}}", "{{secret:A}}", "{{secret:a}", "{{secret:a b}}", "x{{secret:{{secret:a}}"]
        {
            assert_eq!(of(&[bad]), Err("malformed"), "{bad}");
        }
    }

    #[test]
    fn values_are_put_in_up_to_the_limit() {
        let secrets =
            [("a".to_owned(), Secret::new(b"{{secret:b}}".to_vec())), ("b".to_owned(), Secret::new(vec![b'x'; 8000]))];
        let mut one = headers(&["1 {{secret:a}} 2 {{secret:a}}", "none"]);
        assert!(put(&mut one, &secrets));
        let values: Vec<_> = one.values().map(|value| (value.to_str().unwrap(), value.is_sensitive())).collect();
        // What is put in is not looked through again.
        assert_eq!(values, [("1 {{secret:b}} 2 {{secret:b}}", true), ("none", false)]);
        assert!(!format!("{one:?}").contains("{{"));
        // The field's name has 15 bytes.
        let fits = "y".repeat(FIELD_BYTES - 15 - 16_000);
        assert!(put(&mut headers(&[&format!("{{{{secret:b}}}}{{{{secret:b}}}}{fits}")]), &secrets));
        for values in [
            [&*format!("{{{{secret:b}}}}{{{{secret:b}}}}{fits}y")].as_slice(),
            &[&"{{secret:b}}".repeat(3)],
            &["{{secret:b}}", "{{secret:b}}", &"z".repeat(400)],
        ] {
            assert!(!put(&mut headers(values), &secrets));
        }
    }
}
