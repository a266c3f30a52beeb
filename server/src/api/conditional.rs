//! `If-Match` and `If-None-Match` (RFC 9110, section 13.1). Pure.

use axum::http::HeaderMap;
use axum::http::header::{AsHeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};

use super::problem::{Kind, Problem};
use crate::store::Precondition;

/// What one of the two headers names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tags {
    /// `*`: anything that exists.
    Any,
    /// These entity tags.
    These(Vec<Tag>),
}

/// An entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    weak: bool,
    opaque: String,
}

/// `If-Match`, where it is given.
pub(super) fn if_match(headers: &HeaderMap) -> Option<Tags> {
    tags(headers, IF_MATCH)
}

/// `If-None-Match`, where it is given.
pub(super) fn if_none_match(headers: &HeaderMap) -> Option<Tags> {
    tags(headers, IF_NONE_MATCH)
}

/// Whether `If-None-Match` says that the client has what `opaque` stands for.
pub(super) fn has(headers: &HeaderMap, opaque: &str) -> bool {
    match if_none_match(headers) {
        None => false,
        Some(Tags::Any) => true,
        // The weak comparison (section 8.8.3.2), as this header wants it.
        Some(Tags::These(tags)) => tags.iter().any(|tag| tag.opaque == opaque),
    }
}

/// What must hold for a write.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    match (if_match(headers), if_none_match(headers)) {
        (None, None) => Ok(Precondition::None),
        (Some(Tags::Any), None) => Ok(Precondition::Exists),
        (Some(Tags::These(tags)), None) => Ok(Precondition::Match(strong(tags))),
        (None, Some(Tags::Any)) => Ok(Precondition::Absent),
        // There cannot be one and be none.
        (Some(_), Some(Tags::Any)) => Err(Problem::of(Kind::PreconditionFailed)),
        (_, Some(Tags::These(_))) => Err(Problem::new(Kind::Malformed, "If-None-Match can only be * here")),
    }
}

/// The strong tags of a list: a weak one matches nothing in `If-Match`.
pub(super) fn strong(tags: Vec<Tag>) -> Vec<String> {
    tags.into_iter().filter(|tag| !tag.weak).map(|tag| tag.opaque).collect()
}

fn tags(headers: &HeaderMap, name: impl AsHeaderName) -> Option<Tags> {
    let mut fields = headers.get_all(name).into_iter().peekable();
    fields.peek()?;
    let mut tags = Vec::new();
    for field in fields {
        if field.as_bytes().trim_ascii() == b"*" {
            return Some(Tags::Any);
        }
        read_list(field, &mut tags);
    }
    Some(Tags::These(tags))
}

/// Reads a list of tags. What is no tag ends it: it could match nothing.
fn read_list(field: &HeaderValue, tags: &mut Vec<Tag>) {
    let Ok(mut rest) = field.to_str() else { return };
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |rest| (true, rest));
        let Some((opaque, after)) = quoted.strip_prefix('"').and_then(|rest| rest.split_once('"')) else { return };
        tags.push(Tag { weak, opaque: opaque.to_owned() });
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, fields: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(name, field.parse().unwrap());
        }
        headers
    }

    #[test]
    fn lists() {
        let headers = headers("if-match", &["\"a\", W/\"b\"", " \"c,d\" ,"]);
        let Some(Tags::These(tags)) = if_match(&headers) else { panic!() };
        assert_eq!(strong(tags), ["a", "c,d"]);
        assert_eq!(if_none_match(&headers), None);
    }

    #[test]
    fn what_the_client_has() {
        assert!(has(&headers("if-none-match", &["*"]), "x"));
        assert!(has(&headers("if-none-match", &["\"y\", W/\"x\""]), "x"));
        assert!(!has(&headers("if-none-match", &["x"]), "x"), "a tag has quotes");
        assert!(!has(&HeaderMap::new(), "x"));
    }
}
