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

/// Counts of Pending tasks, kept in step with the store.
pub(super) struct Backlog {
    /// How many may be Pending, of all tenants together.
    most: u64,
    total: u64,
    tenants: HashMap<Arc<str>, u64>,
    /// What the open transaction changed, to be undone with it.
    changes: Vec<(Arc<str>, bool)>,
    /// Tasks that left the queue since then, and how many did in the window before.
    window: (Timestamp, u64),
    per_second: f64,
}

impl Backlog {
    pub(super) fn new(most: u64, pending: Vec<(Arc<str>, u64)>) -> Backlog {
        Backlog {
            most,
            total: pending.iter().map(|(_, count)| count).sum(),
            tenants: pending.into_iter().collect(),
            changes: Vec::new(),
            window: (Timestamp(0), 0),
            per_second: 0.0,
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
        self.window.1 += self.changes.drain(..).filter(|(_, came)| !came).count() as u64;
        let elapsed = now.millis_since(self.window.0);
        if elapsed >= RATE_WINDOW_MS {
            self.per_second = self.window.1 as f64 * 1000.0 / elapsed as f64;
            self.window = (now, 0);
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

    /// Whether one more may wait, of a tenant that may have so many.
    pub(super) fn check(&self, tenant: &str, most: Option<u64>, now: Timestamp) -> Result<(), Refused> {
        if let Some(limit) = most
            && self.of(tenant) >= limit
        {
            return Err(Refused::TooManyPending { limit, retry_after: self.until_a_tenth_is_free(limit, now) });
        }
        if self.total >= self.most {
            return Err(Refused::QueueFull { retry_after: self.until_a_tenth_is_free(self.most, now) });
        }
        Ok(())
    }

    /// Seconds until, at the rate at which the queue drains, a tenth of a bound is free.
    fn until_a_tenth_is_free(&self, limit: u64, now: Timestamp) -> u64 {
        let elapsed = now.millis_since(self.window.0).clamp(1, RATE_WINDOW_MS) as f64 / 1000.0;
        // What this window shows counts as soon as it is more than the last one showed.
        let rate = self.per_second.max(self.window.1 as f64 / elapsed.max(1.0));
        if rate <= 0.0 {
            return LONGEST_WAIT;
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
            backlog.check(&tenant, Some(40), Timestamp(0)).unwrap();
            backlog.came(&tenant);
        }
        let check = |of: &str, most| backlog.check(of, most, Timestamp(0));
        assert!(matches!(check(&tenant, Some(40)), Err(Refused::TooManyPending { limit: 40, .. })));
        assert!(matches!(check(&tenant, Some(41)), Err(Refused::QueueFull { .. })));
        assert!(matches!(check("c", None), Err(Refused::QueueFull { .. })));
        backlog.rolled_back();
        assert_eq!((backlog.total, backlog.tenants.len()), (60, 1));
        backlog.check(&tenant, Some(1), Timestamp(0)).unwrap();
    }

    #[test]
    fn the_wait_follows_the_rate() {
        let (mut backlog, _) = backlog();
        let tenant: Arc<str> = "b".into();
        assert_eq!(backlog.until_a_tenth_is_free(100, Timestamp(1)), LONGEST_WAIT, "nothing drains");
        backlog.committed(Timestamp(1_000_000));
        for second in 1..=10 {
            (0..4).for_each(|_| backlog.left(&tenant));
            backlog.committed(Timestamp(1_000_000 + second * 1000));
        }
        assert_eq!(backlog.until_a_tenth_is_free(100, Timestamp(1_010_000)), 3, "ten at four a second");
    }
}
