//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header). Pure.

use std::sync::Arc;

use axum::http::HeaderMap;

use super::problem::{Kind, Problem};

/// Bytes of a key.
const MOST_BYTES: usize = 255;

/// The key of a request, where it has one. A quoted key, as the draft has it (RFC 8941, section 3.3.3),
/// and the same without quotes, as most clients send it, are one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<Arc<str>>, Problem> {
    let mut fields = headers.get_all("idempotency-key").iter();
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(Problem::new(Kind::Malformed, "there is more than one Idempotency-Key"));
    }
    let wrong = || Problem::new(Kind::Malformed, format!("an Idempotency-Key has 1 to {MOST_BYTES} bytes of ASCII"));
    let field = field.to_str().map_err(|_| wrong())?.trim();
    let key = if field.starts_with('"') { unquoted(field).ok_or_else(wrong)? } else { field.to_owned() };
    if key.is_empty() || key.len() > MOST_BYTES { Err(wrong()) } else { Ok(Some(key.into())) }
}

/// The text of a quoted string; what follows it are parameters, which say nothing here.
fn unquoted(field: &str) -> Option<String> {
    let mut text = String::new();
    let mut rest = field.strip_prefix('"')?.chars();
    loop {
        match rest.next()? {
            '"' => break,
            '\\' => text.push(rest.next().filter(|c| matches!(c, '"' | '\\'))?),
            c => text.push(c),
        }
    }
    let after = rest.as_str().trim_start();
    (after.is_empty() || after.starts_with(';')).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(fields: &[&str]) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append("idempotency-key", field.parse().unwrap());
        }
        key(&headers).map(|key| key.map(|key| key.to_string())).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn quoted_and_bare_are_one_key() {
        for field in ["abc", "\"abc\"", " \"abc\" ", "\"abc\";a=1"] {
            assert_eq!(of(&[field]), Ok(Some("abc".into())), "{field}");
        }
        assert_eq!(of(&[r#""a\"b\\""#]), Ok(Some(r#"a"b\"#.into())));
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[&"x".repeat(255)]), Ok(Some("x".repeat(255))));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for field in ["", "\"\"", "\"abc", "\"abc\" d", r#""a\b""#, &"x".repeat(256)] {
            assert_eq!(of(&[field]), Err(400), "{field}");
        }
        assert_eq!(of(&["a", "b"]), Err(400));
    }
}
