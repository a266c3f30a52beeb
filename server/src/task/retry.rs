//! Which attempts are repeated, and when.

use serde::{Deserialize, Serialize};

/// Most attempts that can be asked for.
const MOST_ATTEMPTS: u32 = 100;

/// The longest wait between two attempts that can be asked for: a week.
const LONGEST_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// When a task is attempted again that failed in a way another attempt may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts that may end by themselves: 1 is no retry.
    pub max_attempts: u32,
    /// The longest wait after the first of them, in milliseconds. It doubles with each.
    pub initial_backoff_ms: u64,
    /// The longest wait after any, in milliseconds.
    pub max_backoff_ms: u64,
}

/// A retry policy of which some is said; the rest is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryOverrides {
    /// Attempts that may end by themselves: 1 is no retry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub max_attempts: Option<u32>,
    /// The longest wait after the first of them, in milliseconds. It doubles with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800_000)]
    pub initial_backoff_ms: Option<u64>,
    /// The longest wait after any, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 604_800_000)]
    pub max_backoff_ms: Option<u64>,
}

/// A field of a retry policy that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} must be between 1 and {most}")]
pub struct BadRetry {
    /// Its name.
    pub name: &'static str,
    /// The most it can be.
    pub most: u64,
}

impl RetryPolicy {
    /// No retry.
    pub const DEFAULT: RetryPolicy = RetryPolicy { max_attempts: 1, initial_backoff_ms: 1_000, max_backoff_ms: 60_000 };

    /// This policy with `overrides` in place.
    pub fn with(mut self, overrides: &RetryOverrides) -> Result<RetryPolicy, Vec<BadRetry>> {
        let mut bad = Vec::new();
        let mut check = |name, value: u64, most: u64| {
            if value == 0 || value > most {
                bad.push(BadRetry { name, most });
            }
        };
        if let Some(attempts) = overrides.max_attempts {
            check("max_attempts", attempts.into(), MOST_ATTEMPTS.into());
            self.max_attempts = attempts;
        }
        if let Some(backoff) = overrides.initial_backoff_ms {
            check("initial_backoff_ms", backoff, LONGEST_MS);
            self.initial_backoff_ms = backoff;
        }
        if let Some(backoff) = overrides.max_backoff_ms {
            check("max_backoff_ms", backoff, LONGEST_MS);
            self.max_backoff_ms = backoff;
        }
        if bad.is_empty() { Ok(self) } else { Err(bad) }
    }

    /// Milliseconds to wait after the `failures`th failed attempt: exponential backoff with full
    /// jitter, so that tasks which failed together do not come back together, but not before what the
    /// guest asked for. `random` is any number.
    pub fn backoff_ms(&self, failures: u32, after_ms: Option<u32>, random: u64) -> u64 {
        let doubled =
            1_u64.checked_shl(failures.saturating_sub(1)).map(|times| self.initial_backoff_ms.saturating_mul(times));
        let longest = doubled.unwrap_or(u64::MAX).min(self.max_backoff_ms);
        let jittered = random % longest.saturating_add(1);
        jittered.max(after_ms.unwrap_or(0).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_doubles_up_to_the_most() {
        let policy = RetryPolicy { max_attempts: 9, initial_backoff_ms: 100, max_backoff_ms: 1_000 };
        for (failures, longest) in
            [(1, 100), (2, 200), (3, 400), (4, 800), (5, 1_000), (64, 1_000), (65, 1_000), (100, 1_000)]
        {
            let waits = (0..5_000).map(|random| policy.backoff_ms(failures, None, random));
            assert_eq!(waits.clone().max(), Some(longest), "after {failures}");
            assert_eq!(waits.min(), Some(0), "full jitter");
        }
    }

    #[test]
    fn not_before_what_the_guest_asked_for() {
        let policy = RetryPolicy { max_backoff_ms: 10, ..RetryPolicy::DEFAULT };
        assert_eq!(policy.backoff_ms(1, Some(5_000), 3), 5_000);
        assert_eq!(policy.backoff_ms(1, Some(2), 7), 7);
    }

    #[test]
    fn overrides_are_checked() {
        let all = RetryOverrides { max_attempts: Some(0), initial_backoff_ms: Some(0), max_backoff_ms: Some(u64::MAX) };
        let bad = RetryPolicy::DEFAULT.with(&all).unwrap_err();
        assert_eq!(
            bad.iter().map(|bad| bad.name).collect::<Vec<_>>(),
            ["max_attempts", "initial_backoff_ms", "max_backoff_ms"]
        );
        let some = RetryOverrides { max_attempts: Some(3), ..Default::default() };
        assert_eq!(RetryPolicy::DEFAULT.with(&some).unwrap(), RetryPolicy { max_attempts: 3, ..RetryPolicy::DEFAULT });
    }
}
