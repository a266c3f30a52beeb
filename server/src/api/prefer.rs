//! `Prefer: wait=N` (RFC 7240): how long a client would like an answer to be held. Pure. Where its tenant holds as many
//! connections as it may, `access` takes the header away, and the answer is what is known.

use axum::http::HeaderMap;
use axum::http::header::HeaderName;

/// The request header.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The response header that says which preference was honoured.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// More is taken as this many seconds.
const MAX_WAIT: u64 = 60;

/// The seconds to wait, where the client gave a usable number.
pub(super) fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let fields = headers.get_all(PREFER).into_iter().filter_map(|value| value.to_str().ok());
    // The first of several counts (RFC 7240, section 2), usable or not.
    fields
        .flat_map(preferences)
        .find(|(name, _)| name.eq_ignore_ascii_case("wait"))
        .and_then(|(_, value)| seconds(value))
}

/// Name and value of each preference in one header field, parameters left out.
fn preferences(field: &str) -> impl Iterator<Item = (&str, &str)> {
    split_unquoted(field, ',').filter_map(|preference| {
        let preference = split_unquoted(preference, ';').next()?;
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        Some((name.trim(), value.trim()))
    })
}

/// Splits at `separator` where it is not inside a quoted string.
fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        if escaped {
            escaped = false;
        } else {
            match c {
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => return c == separator && !quoted,
            }
        }
        false
    })
}

fn seconds(value: &str) -> Option<u64> {
    let digits = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // A number too large for an integer is a number above the maximum all the same.
    Some(digits.parse().map_or(MAX_WAIT, |seconds: u64| seconds.min(MAX_WAIT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(fields: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(PREFER, field.parse().unwrap());
        }
        wait_seconds(&headers)
    }

    #[test]
    fn usable_values() {
        assert_eq!(wait(&["wait=10"]), Some(10));
        assert_eq!(wait(&["WAIT = \"7\""]), Some(7));
        assert_eq!(wait(&["respond-async, wait=5"]), Some(5));
        assert_eq!(wait(&["foo; a=\"x, wait=1\"", "wait=5; b=c"]), Some(5));
        assert_eq!(wait(&["foo=\"\\\", wait=1\", wait=2"]), Some(2));
        assert_eq!(wait(&["wait=0"]), Some(0));
    }

    #[test]
    fn above_the_maximum_is_the_maximum() {
        assert_eq!(wait(&["wait=61"]), Some(60));
        assert_eq!(wait(&["wait=99999999999999999999999"]), Some(60));
    }

    #[test]
    fn unusable_values_are_ignored() {
        for field in ["", "wait", "wait=", "wait=-1", "wait=+1", "wait=1.5", "wait=x", "waits=3", "wait=\"", "a wait=1"]
        {
            assert_eq!(wait(&[field]), None, "{field:?}");
        }
        assert_eq!(wait(&["wait=x, wait=3"]), None, "the first counts");
        assert_eq!(wait(&[]), None);
    }
}
