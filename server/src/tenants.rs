//! Tenants: those who share the server and know nothing of each other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::keys::Keys;
use crate::quotas::{Bucket, Hour, QuotaOverrides, Quotas, Rate};
use crate::schedule::Queues;
use crate::task::{Task, Timestamp, Waiting};

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its share of the machine beside the others', by the weights of those that have work.
    pub weight: u32,
    /// Quotas of its own.
    pub quotas: QuotaOverrides,
}

/// The weight that a tenant has by itself.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The largest weight.
pub const MOST_WEIGHT: u32 = 10_000;

/// The tenants that there are, and everybody's keys.
#[derive(Debug, Default)]
pub struct Tenants {
    known: RwLock<HashMap<Arc<str>, Arc<Tenant>>>,
    /// The keys.
    pub keys: Keys,
    defaults: Quotas,
    /// How many tasks each may still create, where that has a rate.
    submits: Mutex<HashMap<Arc<str>, Bucket>>,
    /// Requests that each one's tasks sent in this hour.
    requests: Mutex<Hours>,
    /// Changes that each one's keys asked for in this hour.
    changes: Mutex<Hours>,
    /// Those that a quota keeps from starting the tasks that are ready.
    waiting: RwLock<HashSet<Arc<str>>>,
}

/// What each tenant used in its hour.
type Hours = HashMap<Arc<str>, Hour>;

/// How many tasks a tenant may create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submits {
    /// How fast.
    pub rate: Rate,
    /// How many at once, now.
    pub left: u64,
    /// Seconds until it may again create as many as it ever may at once.
    pub full_in: u64,
}

impl Tenants {
    /// None yet. Those that come have these quotas where they have none of their own.
    pub fn new(defaults: Quotas) -> Tenants {
        Tenants { defaults, ..Tenants::default() }
    }

    /// The tenant of that name.
    pub fn find(&self, name: &str) -> Option<Arc<Tenant>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes a tenant as it is now.
    pub fn put(&self, tenant: Tenant) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(tenant.name.clone(), Arc::new(tenant));
    }

    /// How many tenants run tasks: all but the operator.
    pub fn sharing(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len().saturating_sub(1)
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The quotas that hold for a tenant.
    pub fn quotas(&self, name: &str) -> Quotas {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map_or(self.defaults, |tenant| self.defaults.with(&tenant.quotas))
    }

    /// How many tasks a tenant may create, where that is bounded.
    pub fn submits(&self, name: &str, now: Timestamp) -> Option<Submits> {
        let rate = self.quotas(name).submit_rate()?;
        let bucket = lock(&self.submits).get(name).copied().unwrap_or(Bucket::full(now));
        Some(Submits { rate, left: bucket.left(rate, now), full_in: bucket.full_in(rate, now) })
    }

    /// A task is created. Asked for by one thread alone, which asked before whether it may be.
    pub fn submit(&self, name: &Arc<str>, rate: Rate, now: Timestamp) {
        lock(&self.submits).entry(name.clone()).or_insert(Bucket::full(now)).take(rate, now);
    }

    /// It was not created after all.
    pub fn unsubmit(&self, name: &str) {
        if let Some(bucket) = lock(&self.submits).get_mut(name) {
            bucket.give_back();
        }
    }

    /// A task sends a request, where it may: otherwise how many may be sent in an hour.
    pub fn request(&self, name: &Arc<str>, now: Timestamp) -> Result<(), u64> {
        let most = self.quotas(name).http_requests_per_hour.unwrap_or(u64::MAX);
        if hour(&mut lock(&self.requests), name, now).take(most, now) { Ok(()) } else { Err(most) }
    }

    /// A key of it asks for a change that the audit log tells of, where it may: otherwise how many may be in an hour,
    /// and when that is over.
    pub fn change(&self, name: &Arc<str>, now: Timestamp) -> Result<(), (u64, Timestamp)> {
        let most = self.quotas(name).changes_per_hour.unwrap_or(u64::MAX);
        let mut changes = lock(&self.changes);
        let hour = hour(&mut changes, name, now);
        if hour.take(most, now) { Ok(()) } else { Err((most, hour.ends())) }
    }

    /// Takes which tenants wait for a quota from now on. Asked for by one thread alone.
    pub fn wait_for_quotas(&self, queues: &Queues) {
        let known = self.waiting.read().unwrap_or_else(PoisonError::into_inner);
        let is_known = known.len() == queues.held().count() && queues.held().all(|(name, _)| known.contains(name));
        drop(known);
        if !is_known {
            let held = queues.held().map(|(name, _)| name.clone()).collect();
            *self.waiting.write().unwrap_or_else(PoisonError::into_inner) = held;
        }
    }

    /// What a task waits for. Where it is its turn, that may be its tenant's quota.
    pub fn waiting(&self, task: &Task) -> Option<Waiting> {
        let waiting = task.waiting()?;
        let of_quota = waiting == Waiting::Queue
            && self.waiting.read().unwrap_or_else(PoisonError::into_inner).contains(&task.tenant);
        Some(if of_quota { Waiting::Quota } else { waiting })
    }

    /// How many requests a tenant's tasks sent in this hour.
    pub fn requests(&self, name: &str, now: Timestamp) -> u64 {
        lock(&self.requests).get(name).map_or(0, |hour| hour.used(now))
    }

    /// How many changes a tenant's keys asked for in this hour.
    pub fn changes(&self, name: &str, now: Timestamp) -> u64 {
        lock(&self.changes).get(name).map_or(0, |hour| hour.used(now))
    }
}

fn hour<'a>(hours: &'a mut Hours, name: &Arc<str>, now: Timestamp) -> &'a mut Hour {
    hours.entry(name.clone()).or_insert(Hour::new(now))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
