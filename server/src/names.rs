//! The names that tenants, task types, schedules and secrets can have. Pure.

/// The rule in words.
pub const RULE: &str = "has 1 to 63 letters a-z, digits and '-', and does not begin with '-'";

/// Whether it is one: `[a-z0-9][a-z0-9-]{0,62}`.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= 63 && bytes.first().is_some_and(allowed) && bytes.iter().all(|byte| allowed(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "a-b", "word-count", "a-", &"x".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a b", "a.b", "\u{e4}", "a/b", "a\n", &"x".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
