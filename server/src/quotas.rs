//! Quotas: what a tenant may have of the server. Which there are, how the server's defaults and what is set for a
//! tenant become one set, and how what is counted over time is counted. Pure.

use serde::{Deserialize, Deserializer, Serialize};

use crate::task::Timestamp;

/// The largest value that can be set: the largest whole number that every reader of JSON takes.
pub const MOST: u64 = (1 << 53) - 1;

/// A quota that does not allow something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} {what} are allowed, and {left} are left")]
pub struct UsedUp {
    /// What it is of.
    pub what: &'static str,
    /// How much it is.
    pub limit: u64,
    /// How much is left of it, which is too little.
    pub left: u64,
    /// In how many seconds all of it is there again, where it is of an hour.
    pub whole_in: Option<u64>,
}

/// Declares the quotas once: all of them, those that are set for a tenant, and a change of those.
macro_rules! quotas {
    ($($(#[$doc:meta])* $name:ident, at least $least:tt;)*) => {
        /// All quotas of a tenant; `None`: there is no bound. What it uses of each has the same form; `None`:
        /// that is not counted.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Quotas { $($(#[$doc])* pub $name: Option<u64>,)* }

        /// Quotas that are set for a tenant; the others are as the server has them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct QuotaOverrides {
            $(
                $(#[$doc])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $name: Option<u64>,
            )*
        }

        /// A change of what is set for a tenant. What is not there stays as it is; null sets it back to the default.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct QuotaPatch {
            $(
                $(#[$doc])*
                #[serde(default, deserialize_with = "set_or_null", skip_serializing_if = "Option::is_none")]
                #[schema(value_type = Option<u64>, minimum = $least, maximum = 9_007_199_254_740_991_u64)]
                pub $name: Option<Option<u64>>,
            )*
        }

        impl Quotas {
            /// Name and value of each.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, Option<u64>)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// These, with what is set for a tenant.
            pub fn with(&self, set: &QuotaOverrides) -> Quotas {
                Quotas { $($name: set.$name.or(self.$name),)* }
            }
        }

        impl QuotaOverrides {
            /// These after a change.
            pub fn changed(&self, patch: &QuotaPatch) -> QuotaOverrides {
                QuotaOverrides { $($name: patch.$name.unwrap_or(self.$name),)* }
            }
        }

        impl QuotaPatch {
            /// A change that sets every quota back to its default.
            pub const RESET: QuotaPatch = QuotaPatch { $($name: Some(None),)* };

            /// The name of each value that cannot be, and the least that it can be.
            pub fn faults(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), $least, self.$name),)*].into_iter().filter_map(|(name, least, set)| {
                    set.flatten().is_some_and(|set| set < least || set > MOST).then_some((name, least))
                })
            }
        }
    };
}

quotas! {
    /// Tasks that are Pending.
    pending_tasks, at least 0;
    /// Tasks that are Running; more wait.
    running_tasks, at least 1;
    /// Memory that all tasks which are Running may have together, in bytes: each counts with its limit of memory. More
    /// tasks wait; one that could have more than all of it has no more than that.
    running_memory_bytes, at least 1;
    /// CPU time in an hour, in milliseconds. Past it tasks wait, also those that are Running, whose time limits wait
    /// with them.
    cpu_ms_per_hour, at least 1;
    /// Tasks that are created in a second, for long.
    submitted_per_second, at least 1;
    /// Tasks that can be created at once, where fewer were before; as many as in a second where it is not set.
    submit_burst, at least 1;
    /// Task types.
    task_types, at least 0;
    /// All versions of the task types together, in bytes.
    component_bytes, at least 0;
    /// Objects.
    objects, at least 0;
    /// All objects together, in bytes.
    object_bytes, at least 0;
    /// Log lines that are kept of all tasks, in bytes; each counts its text and 64 bytes. More lines are dropped.
    log_bytes, at least 0;
    /// HTTP requests of all tasks that go out in an hour; more are refused.
    http_requests_per_hour, at least 0;
    /// Changes in an hour, of those that the audit log tells of; more are refused. No `DELETE` counts.
    changes_per_hour, at least 0;
    /// Event streams that are open.
    event_streams, at least 0;
    /// Schedules.
    schedules, at least 0;
    /// Secrets.
    secrets, at least 0;
    /// Keys that tasks keep with `wasi:keyvalue`.
    keyvalue_keys, at least 0;
    /// All of those keys and their values together, in bytes.
    keyvalue_bytes, at least 0;
}

/// A field that may be there as null.
fn set_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Quotas {
    /// How fast tasks may be created, where that is bounded.
    pub fn submit_rate(&self) -> Option<Rate> {
        let per_second = self.submitted_per_second?;
        Some(Rate { per_second, burst: self.submit_burst.unwrap_or(per_second) })
    }

    /// Whether a tenant that has so much at work may start one more attempt, with so much memory; one that could have
    /// more than all of it has no more than that.
    pub fn allow(&self, at_work: AtWork, memory: u64) -> Result<(), UsedUp> {
        let of = |what, used, more, most: Option<u64>| match most {
            Some(limit) if limit.saturating_sub(used) < more => {
                Err(UsedUp { what, limit, left: limit.saturating_sub(used), whole_in: None })
            }
            _ => Ok(()),
        };
        of("running tasks", at_work.tasks, 1, self.running_tasks)?;
        let memory = memory.min(self.running_memory_bytes.unwrap_or(u64::MAX));
        of("running memory bytes", at_work.memory, memory, self.running_memory_bytes)
    }
}

/// What a tenant has at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtWork {
    /// Tasks that are Running.
    pub tasks: u64,
    /// Memory that they may have, in bytes.
    pub memory: u64,
}

/// How often something may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Times a second, for long; at least 1.
    pub per_second: u64,
    /// Times at once; at least 1.
    pub burst: u64,
}

impl Rate {
    /// Seconds in which all of the burst comes back.
    pub fn window(self) -> u64 {
        self.burst.div_ceil(self.per_second)
    }
}

/// How often something can still be done (a token bucket). It is counted in thousandths, as a rate of one a
/// second gives them each millisecond: so nothing is rounded.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// What was taken and did not come back yet: so a burst that is raised is there at once.
    taken: u64,
    at: Timestamp,
}

const ONE: u64 = 1000;

impl Bucket {
    /// One from which nothing was taken yet.
    pub fn full(now: Timestamp) -> Bucket {
        Bucket { taken: 0, at: now }
    }

    /// As it is at `now`. A clock that was put back gives nothing.
    fn at(self, rate: Rate, now: Timestamp) -> Bucket {
        let came = now.millis_since(self.at).saturating_mul(rate.per_second);
        // More than the burst was taken where that was lowered since: it is not waited for.
        Bucket { taken: self.taken.min(rate.burst.saturating_mul(ONE)).saturating_sub(came), at: now }
    }

    fn thousandths_left(self, rate: Rate, now: Timestamp) -> u64 {
        rate.burst.saturating_mul(ONE).saturating_sub(self.at(rate, now).taken)
    }

    /// How often it can be done at once.
    pub fn left(self, rate: Rate, now: Timestamp) -> u64 {
        self.thousandths_left(rate, now) / ONE
    }

    /// Does it once, if it can be done.
    pub fn take(&mut self, rate: Rate, now: Timestamp) -> bool {
        *self = self.at(rate, now);
        let can = self.thousandths_left(rate, now) >= ONE;
        self.taken += if can { ONE } else { 0 };
        can
    }

    /// It was not done after all.
    pub fn give_back(&mut self) {
        self.taken = self.taken.saturating_sub(ONE);
    }

    /// Seconds until all of the burst is there again.
    pub fn full_in(self, rate: Rate, now: Timestamp) -> u64 {
        self.at(rate, now).taken.div_ceil(rate.per_second.saturating_mul(ONE))
    }
}

/// How much of something was used in an hour, which begins with the first use and not before the hour before it is
/// over.
#[derive(Clone, Copy, Debug)]
pub struct Hour {
    since: Timestamp,
    used: u64,
}

const HOUR_MS: i64 = 60 * 60 * 1000;

impl Hour {
    /// One in which nothing was used yet.
    pub fn new(now: Timestamp) -> Hour {
        Hour { since: now, used: 0 }
    }

    /// How much was used in the hour of `now`.
    pub fn used(self, now: Timestamp) -> u64 {
        // A clock that was put back begins another one: the time that is gone is not known.
        let elapsed = now.0.saturating_sub(self.since.0);
        if (0..HOUR_MS).contains(&elapsed) { self.used } else { 0 }
    }

    /// So much more is used.
    pub fn add(&mut self, amount: u64, now: Timestamp) {
        let used = self.used(now);
        if used == 0 {
            *self = Hour::new(now);
        }
        self.used = used.saturating_add(amount);
    }

    /// Uses one, where that is not more than `most` in the hour.
    pub fn take(&mut self, most: u64, now: Timestamp) -> bool {
        let allowed = self.used(now) < most;
        self.add(allowed.into(), now);
        allowed
    }

    /// When it is over.
    pub fn ends(self) -> Timestamp {
        Timestamp(self.since.0.saturating_add(HOUR_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_for_a_tenant_wins_and_null_takes_it_back() {
        let defaults = Quotas { pending_tasks: Some(10), objects: Some(5), ..Quotas::default() };
        let patch = |text: &str| serde_json::from_str::<QuotaPatch>(text).unwrap();
        let set = QuotaOverrides::default().changed(&patch(r#"{"objects":7,"submit_burst":3}"#));
        let of = defaults.with(&set);
        assert_eq!((of.pending_tasks, of.objects, of.submit_burst), (Some(10), Some(7), Some(3)));
        let set = set.changed(&patch(r#"{"objects":null}"#));
        assert_eq!(defaults.with(&set), Quotas { submit_burst: Some(3), ..defaults });
        assert_eq!(set.changed(&QuotaPatch::RESET), QuotaOverrides::default());
        assert_eq!(serde_json::to_string(&set).unwrap(), r#"{"submit_burst":3}"#);
    }

    #[test]
    fn values_that_cannot_be() {
        let patch = QuotaPatch {
            objects: Some(Some(0)),
            submit_burst: Some(Some(0)),
            log_bytes: Some(Some(MOST + 1)),
            task_types: Some(None),
            ..QuotaPatch::default()
        };
        assert_eq!(patch.faults().collect::<Vec<_>>(), [("submit_burst", 1), ("log_bytes", 0)]);
    }

    #[test]
    fn a_rate_holds_for_long_and_at_once() {
        let rate = Rate { per_second: 3, burst: 10 };
        let mut bucket = Bucket::full(Timestamp(0));
        // Whatever the steps of the clock: the burst, and then three a second.
        for step in [1, 7, 333, 1000] {
            bucket = Bucket::full(Timestamp(0));
            let taken: usize =
                (0..=10_000).step_by(step).map(|ms| (0..20).filter(|_| bucket.take(rate, Timestamp(ms))).count()).sum();
            let last = 10_000 / step as u64 * step as u64;
            assert_eq!(taken as u64, 10 + last * 3 / 1000, "{step}");
        }
        assert_eq!((bucket.left(rate, Timestamp(10_000)), bucket.full_in(rate, Timestamp(10_000))), (0, 4));
        assert_eq!((bucket.left(rate, Timestamp(60_000)), bucket.full_in(rate, Timestamp(60_000))), (10, 0));
        // A clock that is put back gives nothing, and goes on from there.
        assert!(!bucket.take(rate, Timestamp(-10_000)));
        assert_eq!(bucket.left(rate, Timestamp(-9_000)), 3);
        bucket.give_back();
        assert_eq!(bucket.left(rate, Timestamp(-10_000)), 1);
        assert_eq!(rate.window(), 4);
    }

    #[test]
    fn a_burst_that_is_changed_holds_at_once() {
        let mut bucket = Bucket::full(Timestamp(0));
        let of = |burst| Rate { per_second: 1, burst };
        assert_eq!((bucket.left(of(3), Timestamp(0)), bucket.full_in(of(3), Timestamp(0))), (3, 0));
        (0..5).for_each(|_| assert!(bucket.take(of(100), Timestamp(0))));
        assert_eq!(bucket.left(of(3), Timestamp(0)), 0);
        assert_eq!((bucket.left(of(200), Timestamp(0)), bucket.full_in(of(200), Timestamp(0))), (195, 5));
        // Where it was lowered, one more can be done when one has come.
        assert_eq!(bucket.full_in(of(3), Timestamp(0)), 3);
        assert!(!bucket.take(of(3), Timestamp(999)) && bucket.take(of(3), Timestamp(1000)));
    }

    #[test]
    fn an_hour_begins_with_the_first_time() {
        const HOUR: i64 = HOUR_MS;
        let mut hour = Hour::new(Timestamp(0));
        assert!(hour.take(2, Timestamp(1000)) && hour.take(2, Timestamp(HOUR)));
        assert!(!hour.take(2, Timestamp(HOUR + 999)));
        assert_eq!((hour.used(Timestamp(HOUR + 999)), hour.used(Timestamp(HOUR + 1000))), (2, 0));
        assert!(hour.take(2, Timestamp(HOUR + 1000)));
        assert!(hour.take(3, Timestamp(HOUR + 1001)) && hour.take(3, Timestamp(HOUR + 1002)));
        assert!(!hour.take(3, Timestamp(HOUR + 1003)) && !hour.take(1, Timestamp(HOUR + 1003)));
        assert!(!Hour::new(Timestamp(0)).take(0, Timestamp(5)));
        assert!(hour.take(1, Timestamp(0)), "a clock that was put back");
        hour.add(1_000, Timestamp(5));
        assert_eq!((hour.used(Timestamp(HOUR - 1)), hour.ends()), (1_001, Timestamp(HOUR)));
        hour.add(7, hour.ends());
        assert_eq!((hour.used(Timestamp(HOUR)), hour.ends()), (7, Timestamp(2 * HOUR)));
    }

    #[test]
    fn what_is_at_work_is_bounded_by_number_and_by_memory() {
        let quotas = Quotas { running_tasks: Some(3), running_memory_bytes: Some(100), ..Quotas::default() };
        for (tasks, memory, more, allowed) in [
            (0, 0, 100, true),
            (0, 0, 101, true),
            (1, 1, 101, false),
            (2, 90, 10, true),
            (2, 90, 11, false),
            (3, 0, 0, false),
        ] {
            assert_eq!(quotas.allow(AtWork { tasks, memory }, more).is_ok(), allowed, "{tasks} {memory} {more}");
        }
        let used_up = UsedUp { what: "running memory bytes", limit: 100, left: 10, whole_in: None };
        assert_eq!(quotas.allow(AtWork { tasks: 2, memory: 90 }, 11), Err(used_up));
        assert_eq!(Quotas::default().allow(AtWork { tasks: u64::MAX, memory: u64::MAX }, u64::MAX), Ok(()));
    }
}
