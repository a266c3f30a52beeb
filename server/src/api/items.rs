//! Cuts a body that is an array, or one value a line, into its values while it arrives. Pure.

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;

use super::extract::check_encoding;
use super::problem::{Kind, Problem};

/// How the values are separated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON array.
    Array,
    /// A value on each line.
    Lines,
}

impl Format {
    /// What the media type says.
    pub(super) fn of(headers: &HeaderMap) -> Result<Format, Problem> {
        check_encoding(headers)?;
        let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = media_type.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/json") {
            Ok(Format::Array)
        } else if essence.eq_ignore_ascii_case("application/x-ndjson") {
            Ok(Format::Lines)
        } else {
            let text = "the body must be application/json or application/x-ndjson";
            Err(Problem::new(Kind::UnsupportedMediaType, text))
        }
    }
}

/// Where in an array the cutter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before the `[`.
    Before,
    /// Where a value may begin, or, as long as there was none, the `]`.
    First,
    /// Where a value must begin.
    Value,
    /// In a value: so deep, in a string or not, behind a backslash or not.
    In { depth: u32, string: bool, escaped: bool },
    /// Behind the `]`.
    After,
    /// Something was wrong; nothing more comes.
    Broken,
}

/// The values of a body. It only looks for where they begin and end: whether they are JSON is for
/// whoever reads them.
pub(super) struct Items {
    format: Format,
    most: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the value begins that is next, and how far it was looked at.
    start: usize,
    looked: usize,
    place: Place,
    ended: bool,
}

impl Items {
    /// No value has more than `most` bytes.
    pub(super) fn new(format: Format, most: usize) -> Items {
        Items { format, most, buffer: Vec::new(), start: 0, looked: 0, place: Place::Before, ended: false }
    }

    /// More of the body.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        // What was taken is dropped once for each piece, and not for each value.
        self.buffer.drain(..self.start);
        self.looked -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(piece);
    }

    /// That was all of it.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The next value that is there; what is wrong comes once, and then nothing more.
    pub(super) fn next(&mut self) -> Option<Result<Vec<u8>, Problem>> {
        if self.place == Place::Broken {
            return None;
        }
        let found = match self.format {
            Format::Array => self.next_of_array(),
            Format::Lines => self.next_line(),
        };
        match found {
            Some(Err(problem)) => Some(Err(self.broken(problem))),
            Some(Ok(value)) if value.len() <= self.most => Some(Ok(value)),
            None if self.looked - self.start <= self.most => None,
            _ => {
                let problem = Problem::new(Kind::TooLarge, format!("a task is larger than {} bytes", self.most));
                Some(Err(self.broken(problem)))
            }
        }
    }

    fn broken(&mut self, problem: Problem) -> Problem {
        self.place = Place::Broken;
        self.buffer = Vec::new();
        (self.start, self.looked) = (0, 0);
        problem
    }

    fn next_line(&mut self) -> Option<Result<Vec<u8>, Problem>> {
        loop {
            let rest = self.buffer.get(self.looked..).unwrap_or_default();
            let end = match rest.iter().position(|byte| *byte == b'\n') {
                Some(at) => self.looked + at + 1,
                None if self.ended && self.start < self.buffer.len() => self.buffer.len(),
                None => {
                    self.looked = self.buffer.len();
                    return None;
                }
            };
            let line = self.take(end);
            if !line.is_empty() {
                return Some(Ok(line));
            }
        }
    }

    fn next_of_array(&mut self) -> Option<Result<Vec<u8>, Problem>> {
        let wrong = |text: &str| Some(Err(Problem::new(Kind::Malformed, text)));
        while let Some(byte) = self.buffer.get(self.looked).copied() {
            let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            match self.place {
                Place::Before if byte == b'[' => self.skip(Place::First),
                Place::Before | Place::First | Place::Value | Place::After if blank => self.skip(self.place),
                Place::Before => return wrong("the body is no JSON array"),
                Place::First if byte == b']' => self.skip(Place::After),
                Place::Value if byte == b']' => return wrong("a value is missing before the end of the array"),
                Place::First | Place::Value if byte == b',' => return wrong("a value is missing in the array"),
                Place::First | Place::Value => self.place = Place::In { depth: 0, string: false, escaped: false },
                Place::In { depth: 0, string: false, .. } if matches!(byte, b',' | b']') => {
                    let value = self.take(self.looked);
                    self.skip(if byte == b',' { Place::Value } else { Place::After });
                    return Some(Ok(value));
                }
                Place::In { depth, string, escaped } => {
                    self.place = match byte {
                        _ if escaped => Place::In { depth, string, escaped: false },
                        b'\\' if string => Place::In { depth, string, escaped: true },
                        b'"' => Place::In { depth, string: !string, escaped },
                        b'[' | b'{' if !string => Place::In { depth: depth.saturating_add(1), string, escaped },
                        b']' | b'}' if !string => Place::In { depth: depth.saturating_sub(1), string, escaped },
                        _ => self.place,
                    };
                    self.looked += 1;
                }
                Place::After => return wrong("something follows the array"),
                Place::Broken => return None,
            }
        }
        if self.ended && self.place != Place::After { wrong("the body ended early") } else { None }
    }

    /// The value up to `end`, without the blanks around it.
    fn take(&mut self, end: usize) -> Vec<u8> {
        let value = self.buffer.get(self.start..end).unwrap_or_default().trim_ascii().to_vec();
        (self.start, self.looked) = (end, end);
        value
    }

    /// Leaves a byte behind that belongs to no value.
    fn skip(&mut self, place: Place) {
        self.place = place;
        self.looked += 1;
        self.start = self.looked;
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::CONTENT_ENCODING;

    use super::*;

    #[test]
    fn media_types() {
        let of = |media_type: &'static str, encoding: &'static str| {
            let headers = [(CONTENT_TYPE, media_type), (CONTENT_ENCODING, encoding)];
            Format::of(&headers.into_iter().map(|(name, value)| (name, value.parse().unwrap())).collect()).ok()
        };
        assert_eq!(of("application/json; charset=utf-8", "identity"), Some(Format::Array));
        assert_eq!(of("Application/X-NDJSON", "identity"), Some(Format::Lines));
        assert_eq!((of("text/plain", "identity"), of("application/x-ndjson", "gzip")), (None, None));
    }

    /// The values, and whether something was wrong at the end; the body comes in pieces of that size.
    fn cut(format: Format, body: &str, size: usize) -> (Vec<String>, bool) {
        let mut items = Items::new(format, 30);
        let mut found = Vec::new();
        let mut pieces = body.as_bytes().chunks(size);
        loop {
            match pieces.next() {
                Some(piece) => items.feed(piece),
                None => items.end(),
            }
            while let Some(item) = items.next() {
                match item {
                    Ok(item) => found.push(String::from_utf8(item).unwrap()),
                    Err(_) => {
                        assert!(items.next().is_none());
                        return (found, true);
                    }
                }
            }
            if items.ended {
                return (found, false);
            }
        }
    }

    #[test]
    fn arrays() {
        for (body, values, wrong) in [
            ("[]", &[][..], false),
            (" [ ] ", &[], false),
            ("[1]", &["1"], false),
            (r#" [ {"a":[1,2]} , "x,]\"y" ,[[]] ] "#, &[r#"{"a":[1,2]}"#, r#""x,]\"y""#, "[[]]"], false),
            (r#"["\\",2]"#, &[r#""\\""#, "2"], false),
            ("[1 2,3]", &["1 2", "3"], false),
            ("", &[], true),
            ("{}", &[], true),
            ("[1,]", &["1"], true),
            ("[,1]", &[], true),
            ("[1,,2]", &["1"], true),
            ("[1,2", &["1"], true),
            ("[1]x", &["1"], true),
            ("[1,\"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz\"]", &["1"], true),
        ] {
            for size in 1..=body.len().max(1) {
                let (found, was_wrong) = cut(Format::Array, body, size);
                assert_eq!(
                    (found.as_slice(), was_wrong),
                    (values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>().as_slice(), wrong),
                    "{body}, {size}"
                );
            }
        }
    }

    #[test]
    fn lines() {
        for (body, values, wrong) in [
            ("", &[][..], false),
            ("1\n2\r\n\n 3", &["1", "2", "3"], false),
            ("1\nabcdefghijklmnopqrstuvwxyzabcdefghijklmnop\n2", &["1"], true),
        ] {
            for size in 1..=body.len().max(1) {
                let (found, was_wrong) = cut(Format::Lines, body, size);
                assert_eq!(
                    (found.as_slice(), was_wrong),
                    (values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>().as_slice(), wrong),
                    "{body}, {size}"
                );
            }
        }
    }
}
