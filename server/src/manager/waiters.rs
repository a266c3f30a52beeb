//! Who is told when a task ends.

use std::collections::HashMap;

use super::{Refused, Reply, answer};
use crate::task::{Task, TaskId};

/// Who waits for the end of which task.
#[derive(Default)]
pub(super) struct EndWaiters {
    waiters: HashMap<TaskId, Vec<Reply<Task>>>,
    sweep_at: usize,
}

impl EndWaiters {
    /// Notes who waits for the end of a task.
    pub(super) fn add(&mut self, id: TaskId, reply: Reply<Task>) {
        // Those who hung up are forgotten now and then, so that they cannot pile up.
        if self.waiters.len() >= self.sweep_at.max(1024) {
            self.waiters.retain(|_, replies| {
                replies.retain(|reply| !reply.is_closed());
                !replies.is_empty()
            });
            self.sweep_at = self.waiters.len() * 2;
        }
        let replies = self.waiters.entry(id).or_default();
        if replies.len() >= 64 {
            replies.retain(|reply| !reply.is_closed());
        }
        replies.push(reply);
    }

    /// Whether anybody waits for the end of the task.
    pub(super) fn has(&self, id: TaskId) -> bool {
        self.waiters.contains_key(&id)
    }

    /// Tells everybody who waits that the task has ended.
    pub(super) fn tell(&mut self, task: Task) {
        let Some(mut replies) = self.waiters.remove(&task.id) else { return };
        let last = replies.pop();
        replies.into_iter().for_each(|reply| answer(reply, Ok(task.clone())));
        if let Some(reply) = last {
            answer(reply, Ok(task));
        }
    }

    /// Tells everybody who waits that the task is gone.
    pub(super) fn gone(&mut self, id: TaskId) {
        for reply in self.waiters.remove(&id).into_iter().flatten() {
            answer(reply, Err(Refused::NotFound));
        }
    }
}
