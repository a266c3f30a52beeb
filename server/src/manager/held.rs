//! Creates that are waited for and find no place, while nothing is in the queue. They are held back unstored for
//! some milliseconds: most get a place within that time, and are then stored as Running at once, without the
//! way through the queue. Nothing was said to their clients yet, so nothing that was acknowledged can be lost
//! here. As soon as something is in the queue they take their places in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Command, NewItem, Reply};
use crate::schedule::rank;
use crate::task::{Task, TaskId, Timestamp};

/// How long after its creation a task need not be stored.
pub(super) const LONGEST_HELD: Duration = Duration::from_millis(50);

/// Creates held back before a transaction, beside what comes in it. More go through the queue.
const MOST: usize = 1024;

/// The creates that are held back, in the order of the queue.
#[derive(Default)]
pub(super) struct Held {
    creates: BTreeMap<(i64, TaskId), (Box<NewItem>, Reply<Task>)>,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.creates.is_empty()
    }

    /// Whether there is room for a create, and it may be held back.
    pub(super) fn may_hold(&self, item: &NewItem, reply: &Reply<Task>, now: Timestamp) -> bool {
        let Task { due_at, expires_at, .. } = item.task;
        due_at.is_none() && expires_at.is_none() && self.creates.len() < MOST && !is_over(item, reply, now)
    }

    pub(super) fn add(&mut self, item: Box<NewItem>, reply: Reply<Task>) {
        let Task { ready_at, priority, id, .. } = item.task;
        self.creates.insert((rank(ready_at, priority), id), (item, reply));
    }

    /// Whether one of them finds a place.
    pub(super) fn any(&self, mut finds_place: impl FnMut(&Arc<str>) -> bool) -> bool {
        self.creates.values().any(|(item, _)| finds_place(&item.task.tenant))
    }

    /// How long from now until one of them may be held back no longer.
    pub(super) fn next(&self, now: Timestamp) -> Duration {
        let waited = |(item, _): &(Box<NewItem>, _)| Duration::from_millis(now.millis_since(item.task.created_at));
        self.creates.values().map(|create| LONGEST_HELD.saturating_sub(waited(create))).min().unwrap_or(Duration::MAX)
    }

    /// Takes out those that may be held back no longer, and the first ones that find a place.
    pub(super) fn take(&mut self, now: Timestamp, mut finds_place: impl FnMut(&Arc<str>) -> bool) -> Vec<Command> {
        let over = |item: &NewItem, reply: &Reply<Task>| is_over(item, reply, now);
        let taken = self.creates.extract_if(.., |_, (item, reply)| over(item, reply) || finds_place(&item.task.tenant));
        let taken: Vec<_> = taken.map(|(_, create)| create).collect();
        taken.into_iter().map(|(item, reply)| Command::Create { item, reply: Answer::Ended(reply) }).collect()
    }
}

/// Its client asks next whether it is stored, or it waits for long enough.
fn is_over(item: &NewItem, reply: &Reply<Task>, now: Timestamp) -> bool {
    // Not one from the future either: the clock may have been put back.
    let held_ms = now.0 - item.task.created_at.0;
    reply.is_closed() || !(0..LONGEST_HELD.as_millis() as i64).contains(&held_ms)
}
