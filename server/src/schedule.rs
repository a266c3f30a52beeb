//! Whose turn it is. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::task::{TaskId, Timestamp};

/// One step of priority is worth this much waiting, in milliseconds. So a task of priority 0 that
/// waits for 100 minutes goes before a new one of priority 100, and nothing starves.
const MILLIS_PER_PRIORITY: i64 = 60_000;

/// A task's place in the queue: lower goes first. `ready_at`: since when it could be started. All tasks
/// age at the same speed, so the order of
/// two tasks never changes while they wait, and an index can hold it.
pub fn rank(ready_at: Timestamp, priority: i32) -> i64 {
    ready_at.0 - i64::from(priority) * MILLIS_PER_PRIORITY
}

/// Since when a task of that rank is ready: the inverse of [`rank`].
pub fn ready_at(rank: i64, priority: i32) -> Timestamp {
    Timestamp(rank.saturating_add(i64::from(priority) * MILLIS_PER_PRIORITY))
}

/// How many tasks of a type run at once. What is not set is as it is without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Concurrency {
    /// All of the type, of a tenant. Not set: as many as there is room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub running: Option<u32>,
    /// Those that have the same `concurrency_key`. Not set: one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub per_key: Option<u32>,
}

/// How many attempts of a tenant may work at once however many others do: its part, by weight, of as many as may work
/// in all. One at least.
pub fn part(in_all: usize, weight: u32, weights: u64) -> usize {
    let part = in_all as u64 * u64::from(weight) / weights.max(1);
    usize::try_from(part).unwrap_or(usize::MAX).max(1)
}

/// The place of a tenant in the order in which tenants start their tasks: who has least at work for its weight goes
/// first.
pub fn claim(working: usize, weight: u32) -> u64 {
    (working as u64).saturating_mul(1_000_000) / u64::from(weight.max(1))
}

/// The heads of the tenants' queues. One that is exhausted is not here.
#[derive(Debug)]
pub struct Queues {
    capacity: usize,
    tenants: HashMap<Arc<str>, ReadyWindow>,
    /// Those of them that a quota keeps from starting anything, with their first task and the memory that it needs. For
    /// the others they do not wait.
    held: HashMap<Arc<str>, (TaskId, u64)>,
}

impl Queues {
    /// Queues of tenants of which the store may hold ready tasks; in memory up to `capacity` of each.
    pub fn new(capacity: usize, tenants: Vec<Arc<str>>) -> Queues {
        let mut queues = Queues { capacity, tenants: HashMap::new(), held: HashMap::new() };
        queues.reset(tenants.iter());
        queues
    }

    /// Takes a task that became ready.
    pub fn push(&mut self, tenant: &Arc<str>, rank: i64, id: TaskId) {
        match self.tenants.get_mut(tenant) {
            Some(window) => window.push(rank, id),
            None => {
                let mut window = ReadyWindow::new(self.capacity);
                window.fill(vec![(rank, id)]);
                self.tenants.insert(tenant.clone(), window);
            }
        }
    }

    /// Takes the task out, where it is in.
    pub fn remove(&mut self, tenant: &str, rank: i64, id: TaskId) {
        if let Some(window) = self.tenants.get_mut(tenant) {
            window.remove(rank, id);
            if window.is_exhausted() {
                self.tenants.remove(tenant);
                self.held.remove(tenant);
            }
        }
    }

    /// Whether no task of the tenant is ready.
    pub fn is_exhausted(&self, tenant: &str) -> bool {
        !self.tenants.contains_key(tenant)
    }

    /// Whether a task of another tenant is ready, and may be started.
    pub fn others_wait(&self, tenant: &str) -> bool {
        let itself = self.tenants.contains_key(tenant) && !self.held.contains_key(tenant);
        self.tenants.len() - self.held.len() > usize::from(itself)
    }

    /// The tenants that have ready tasks which may be started, as far as is known.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.keys().filter(|tenant| !self.held.contains_key(*tenant))
    }

    /// A quota keeps a tenant that has ready tasks from starting the first of them, which needs so much memory.
    pub fn hold(&mut self, tenant: &Arc<str>, first: TaskId, memory: u64) {
        if self.tenants.contains_key(tenant) {
            self.held.insert(tenant.clone(), (first, memory));
        }
    }

    /// The tenants that are held, and the memory that the first task of each needs; `None`: that is another now.
    pub fn held(&self) -> impl Iterator<Item = (&Arc<str>, Option<u64>)> {
        self.held.iter().map(|(tenant, (first, memory))| {
            let is_first = self.first(tenant).is_some_and(|(_, id)| id == *first);
            (tenant, is_first.then_some(*memory))
        })
    }

    /// It is held no longer.
    pub fn release(&mut self, tenant: &str) {
        self.held.remove(tenant);
    }

    /// Whether the tenant's first tasks have to be read from the store.
    pub fn needs_fill(&self, tenant: &str) -> bool {
        self.tenants.get(tenant).is_some_and(ReadyWindow::needs_fill)
    }

    /// How many of a tenant it holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes the store's first tasks of a tenant; fewer than asked for are all there are.
    pub fn fill(&mut self, tenant: &str, tasks: Vec<(i64, TaskId)>) {
        if tasks.is_empty() {
            self.tenants.remove(tenant);
            self.held.remove(tenant);
        } else if let Some(window) = self.tenants.get_mut(tenant) {
            window.fill(tasks);
        }
    }

    /// The tenant's first task.
    pub fn first(&self, tenant: &str) -> Option<(i64, TaskId)> {
        self.tenants.get(tenant).and_then(ReadyWindow::first)
    }

    /// Forgets everything, so that it is read from the store again, of these tenants.
    pub fn reset<'a>(&mut self, tenants: impl Iterator<Item = &'a Arc<str>>) {
        self.tenants = tenants.map(|tenant| (tenant.clone(), ReadyWindow::new(self.capacity))).collect();
        self.held.clear();
    }
}

/// The head of a queue, in memory. The rest is in the store, however long it is.
#[derive(Debug)]
struct ReadyWindow {
    tasks: BTreeSet<(i64, TaskId)>,
    /// Whether the store may hold ready tasks behind the last one here.
    more: bool,
    capacity: usize,
}

impl ReadyWindow {
    /// An empty window that assumes that the store holds tasks.
    fn new(capacity: usize) -> ReadyWindow {
        ReadyWindow { tasks: BTreeSet::new(), more: true, capacity }
    }

    /// Takes a task that became ready, unless its place is behind the window's end.
    fn push(&mut self, rank: i64, id: TaskId) {
        let entry = (rank, id);
        if self.more && self.tasks.last().is_none_or(|last| *last < entry) {
            return;
        }
        self.tasks.insert(entry);
        if self.tasks.len() > self.capacity {
            self.tasks.pop_last();
            self.more = true;
        }
    }

    /// The first task; `None` when the window is empty, which says nothing of the store unless
    /// [`is_exhausted`](Self::is_exhausted).
    fn first(&self) -> Option<(i64, TaskId)> {
        self.tasks.first().copied()
    }

    /// Takes the task out, where it is in.
    fn remove(&mut self, rank: i64, id: TaskId) {
        self.tasks.remove(&(rank, id));
    }

    /// Whether the window is empty and must be filled from the store before its word counts.
    fn needs_fill(&self) -> bool {
        self.tasks.is_empty() && self.more
    }

    /// Whether no task is ready, here or in the store.
    fn is_exhausted(&self) -> bool {
        self.tasks.is_empty() && !self.more
    }

    /// Fills an empty window with the store's first tasks; fewer than asked for are all there are.
    fn fill(&mut self, tasks: Vec<(i64, TaskId)>) {
        self.more = tasks.len() >= self.capacity;
        self.tasks = tasks.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn id(n: u128) -> TaskId {
        TaskId(Uuid::from_u128(n))
    }

    #[test]
    fn a_tenant_that_is_held_waits_for_no_place() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut queues = Queues::new(4, Vec::new());
        queues.hold(&a, id(1), 5);
        assert_eq!(queues.held().count(), 0, "it has nothing that waits");
        queues.push(&a, 1, id(1));
        queues.push(&b, 1, id(2));
        assert!(queues.others_wait(&a) && queues.others_wait(&b) && queues.others_wait("c"));
        queues.hold(&a, id(1), 5);
        assert!(queues.others_wait(&a) && !queues.others_wait(&b) && !queues.is_exhausted(&a));
        assert_eq!(queues.tenants().collect::<Vec<_>>(), [&b]);
        queues.remove(&b, 1, id(2));
        assert!(!queues.others_wait(&a) && !queues.others_wait("c"));
        queues.release("b");
        assert_eq!(queues.held().collect::<Vec<_>>(), [(&a, Some(5))]);
        queues.push(&a, 0, id(3));
        assert_eq!(queues.held().collect::<Vec<_>>(), [(&a, None)], "another goes first");
        queues.remove(&a, 0, id(3));
        queues.remove(&a, 1, id(1));
        assert_eq!(queues.held().count(), 0, "with the last of its tasks");
        queues.push(&a, 1, id(1));
        queues.hold(&a, id(1), 5);
        queues.release("a");
        assert_eq!(queues.tenants().collect::<Vec<_>>(), [&a]);
    }

    #[test]
    fn priority_first_then_age_and_nothing_starves() {
        let now = 1_000_000_000;
        assert!(rank(Timestamp(now), 1) < rank(Timestamp(now - 1_000), 0), "higher priority first");
        assert!(rank(Timestamp(now - 1), 0) < rank(Timestamp(now), 0), "older first");
        assert!(rank(Timestamp(now - 101 * 60_000), 0) < rank(Timestamp(now), 100), "but it ages");
    }

    /// Whatever is pushed, removed and filled, the window hands out what a full sort would.
    #[test]
    fn the_window_agrees_with_a_sorted_list() {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_u64);
        println!("SEED={seed}");
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut window = ReadyWindow::new(4);
        let mut all = BTreeSet::new();
        for n in 0..20_000_u128 {
            match random(5) {
                0..=2 => {
                    let rank = random(50) as i64;
                    all.insert((rank, id(n)));
                    window.push(rank, id(n));
                }
                3 => {
                    if window.needs_fill() {
                        window.fill(all.iter().take(4).copied().collect());
                    }
                    assert_eq!(window.first(), all.first().copied());
                    if let Some((rank, id)) = window.first() {
                        window.remove(rank, id);
                        all.remove(&(rank, id));
                    }
                }
                _ => {
                    let skip = random(8) as usize;
                    if let Some(entry) = all.iter().nth(skip).copied() {
                        all.remove(&entry);
                        window.remove(entry.0, entry.1);
                    }
                }
            }
            assert!(window.tasks.len() <= 4);
            assert!(!window.is_exhausted() || all.is_empty());
        }
    }
}
