//! Whose turn it is. Pure.

use std::collections::BTreeSet;

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

/// The head of the queue, in memory. The rest is in the store, however long it is.
#[derive(Debug)]
pub struct ReadyWindow {
    tasks: BTreeSet<(i64, TaskId)>,
    /// Whether the store may hold ready tasks behind the last one here.
    more: bool,
    capacity: usize,
}

impl ReadyWindow {
    /// An empty window that assumes that the store holds tasks.
    pub fn new(capacity: usize) -> ReadyWindow {
        ReadyWindow { tasks: BTreeSet::new(), more: true, capacity }
    }

    /// Takes a task that became ready, unless its place is behind the window's end.
    pub fn push(&mut self, rank: i64, id: TaskId) {
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
    pub fn first(&self) -> Option<(i64, TaskId)> {
        self.tasks.first().copied()
    }

    /// Takes the task out, where it is in.
    pub fn remove(&mut self, rank: i64, id: TaskId) {
        self.tasks.remove(&(rank, id));
    }

    /// Whether the window is empty and must be filled from the store before its word counts.
    pub fn needs_fill(&self) -> bool {
        self.tasks.is_empty() && self.more
    }

    /// Whether no task is ready, here or in the store.
    pub fn is_exhausted(&self) -> bool {
        self.tasks.is_empty() && !self.more
    }

    /// Fills an empty window with the store's first tasks; fewer than asked for are all there are.
    pub fn fill(&mut self, tasks: Vec<(i64, TaskId)>) {
        self.more = tasks.len() >= self.capacity;
        self.tasks = tasks.into_iter().collect();
    }

    /// Forgets everything, so that it is read from the store again.
    pub fn reset(&mut self) {
        self.tasks.clear();
        self.more = true;
    }

    /// How many tasks it holds at most.
    pub fn capacity(&self) -> usize {
        self.capacity
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
