//! How many tasks wait, and how fast the queue drains. The bound on both is what keeps a server that is
//! asked for more than it can do from promising all of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::Refused;
use crate::task::Timestamp;

/// Over how long the drain rate is measured, in milliseconds.
const RATE_WINDOW_MS: u64 = 10_000;

/// What a client is told to wait at most, in seconds.
const LONGEST_WAIT: u64 = 300;

/// What it is told where no task left the queue of late: that says nothing of when one will.
const UNKNOWN_WAIT: u64 = 60;

/// Counts of Pending tasks, kept in step with the store.
pub(super) struct Backlog {
    /// How many may be Pending, of all tenants together.
    most: u64,
    total: u64,
    tenants: HashMap<Arc<str>, u64>,
    /// What the open transaction changed, to be undone with it.
    changes: Vec<(Arc<str>, bool)>,
    /// Of all tenants together.
    drain: Drain,
    /// Of each that had tasks leave the queue of late: nobody is told how fast others are.
    drains: HashMap<Arc<str>, Drain>,
    /// When the window began in which is counted what leaves.
    since: Timestamp,
}

/// How fast a queue drains.
#[derive(Clone, Copy, Default)]
struct Drain {
    /// Tasks that left in this window.
    left: u64,
    /// How many did in a second of the one before.
    per_second: f64,
}

impl Backlog {
    pub(super) fn new(most: u64, pending: Vec<(Arc<str>, u64)>) -> Backlog {
        Backlog {
            most,
            total: pending.iter().map(|(_, count)| count).sum(),
            tenants: pending.into_iter().collect(),
            changes: Vec::new(),
            drain: Drain::default(),
            drains: HashMap::new(),
            since: Timestamp(0),
        }
    }

    /// A task came into the queue.
    pub(super) fn came(&mut self, tenant: &Arc<str>) {
        self.count(tenant, true);
        self.changes.push((tenant.clone(), true));
    }

    /// A task left the queue.
    pub(super) fn left(&mut self, tenant: &Arc<str>) {
        self.count(tenant, false);
        self.changes.push((tenant.clone(), false));
    }

    /// The tenants that have tasks in the queue.
    pub(super) fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.keys()
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn count(&mut self, tenant: &Arc<str>, came: bool) {
        let of_tenant = self.tenants.entry(tenant.clone()).or_default();
        if came {
            *of_tenant += 1;
            self.total += 1;
        } else {
            *of_tenant = of_tenant.saturating_sub(1);
            self.total = self.total.saturating_sub(1);
            if *of_tenant == 0 {
                self.tenants.remove(tenant);
            }
        }
    }

    /// The transaction was committed at `now`.
    pub(super) fn committed(&mut self, now: Timestamp) {
        for (tenant, _) in self.changes.drain(..).filter(|(_, came)| !came) {
            self.drain.left += 1;
            self.drains.entry(tenant).or_default().left += 1;
        }
        let elapsed = now.millis_since(self.since);
        if elapsed >= RATE_WINDOW_MS {
            let next = |Drain { left, .. }: Drain| Drain { left: 0, per_second: left as f64 * 1000.0 / elapsed as f64 };
            self.drain = next(self.drain);
            self.drains.values_mut().for_each(|drain| *drain = next(*drain));
            self.drains.retain(|_, drain| drain.per_second > 0.0);
            self.since = now;
        }
    }

    /// The transaction was rolled back.
    pub(super) fn rolled_back(&mut self) {
        for (tenant, came) in std::mem::take(&mut self.changes).into_iter().rev() {
            self.count(&tenant, !came);
        }
    }

    /// How many tasks of a tenant wait.
    pub(super) fn of(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).copied().unwrap_or(0)
    }

    /// Whether `more` may come to those that wait, of a tenant that may have so many. None at all: one that starts at
    /// once may come back to the queue whatever is in it, so none starts while there are too many.
    pub(super) fn check(&self, tenant: &str, most: Option<u64>, more: u64, now: Timestamp) -> Result<(), Refused> {
        let of_tenant = self.drains.get(tenant).copied().unwrap_or_default();
        if let Some(limit) = most
            && self.of(tenant) + more > limit
        {
            return Err(Refused::TooManyPending {
                limit,
                retry_after: self.until_a_tenth_is_free(limit, of_tenant, now),
            });
        }
        if self.total + more > self.most {
            return Err(Refused::QueueFull { retry_after: self.until_a_tenth_is_free(self.most, self.drain, now) });
        }
        Ok(())
    }

    /// Seconds until, at the rate at which the queue drains, a tenth of a bound is free.
    fn until_a_tenth_is_free(&self, limit: u64, drain: Drain, now: Timestamp) -> u64 {
        let elapsed = now.millis_since(self.since).clamp(1, RATE_WINDOW_MS) as f64 / 1000.0;
        // What this window shows counts as soon as it is more than the last one showed.
        let rate = drain.per_second.max(drain.left as f64 / elapsed.max(1.0));
        if rate <= 0.0 {
            return UNKNOWN_WAIT;
        }
        ((limit as f64 / 10.0 / rate).ceil() as u64).clamp(1, LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog() -> (Backlog, Arc<str>) {
        (Backlog::new(100, vec![("b".into(), 60)]), "a".into())
    }

    #[test]
    fn both_bounds_hold_and_a_rolled_back_transaction_leaves_no_trace() {
        let (mut backlog, tenant) = backlog();
        for _ in 0..40 {
            backlog.check(&tenant, Some(40), 1, Timestamp(0)).unwrap();
            backlog.came(&tenant);
        }
        let check = |of: &str, most| backlog.check(of, most, 1, Timestamp(0));
        assert!(matches!(check(&tenant, Some(40)), Err(Refused::TooManyPending { limit: 40, .. })));
        assert!(matches!(check(&tenant, Some(41)), Err(Refused::QueueFull { .. })));
        assert!(matches!(check("c", None), Err(Refused::QueueFull { .. })));
        backlog.rolled_back();
        assert_eq!((backlog.total, backlog.tenants.len()), (60, 1));
        backlog.check(&tenant, Some(1), 1, Timestamp(0)).unwrap();
    }

    #[test]
    fn the_wait_follows_the_rate() {
        let (mut backlog, _) = backlog();
        let tenant: Arc<str> = "b".into();
        let told = |backlog: &Backlog, tenant: &str, most, now| match backlog.check(tenant, most, 1, Timestamp(now)) {
            Err(Refused::TooManyPending { retry_after, .. } | Refused::QueueFull { retry_after }) => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(told(&backlog, "b", Some(60), 1), UNKNOWN_WAIT, "nothing drains");
        backlog.committed(Timestamp(1_000_000));
        (0..60).for_each(|_| backlog.came(&"a".into()));
        for second in 1..=10 {
            (0..4).for_each(|_| backlog.left(&tenant));
            backlog.committed(Timestamp(1_000_000 + second * 1000));
        }
        assert_eq!(told(&backlog, "b", Some(20), 1_010_000), 1, "two at four a second");
        assert_eq!(told(&backlog, "a", Some(60), 1_010_000), UNKNOWN_WAIT, "what another has done makes no room here");
        (0..40).for_each(|_| backlog.came(&"a".into()));
        assert_eq!(told(&backlog, "c", None, 1_010_000), 3, "ten at four a second");
        backlog.committed(Timestamp(1_020_000));
        assert!(backlog.drains.is_empty(), "nobody is remembered for ever");
    }
}
