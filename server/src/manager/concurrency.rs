//! How many tasks of a type, and of a concurrency key, run at once.
//!
//! A task that finds as many at work as may is held back, in the store, where an index keeps its place; whatever ends
//! or goes away makes room for the first of those. So one that is held back for its type or its key has others before
//! it that run or are ready, also after a restart.

use std::collections::HashMap;
use std::sync::Arc;

use super::core::Core;
use crate::quotas::AtWork;
use crate::registry::SHARED;
use crate::store::StoreError;
use crate::task::{Event, Hold, Task, TaskId, Timestamp};

/// Tasks that one transaction releases for each place that became free, looks at after a change of settings, and places
/// that it looks at.
const STEP: usize = 200;

/// A tenant's type, and one of its keys; `None`: all of the type.
type Lane = (Arc<str>, Arc<str>, Option<Arc<str>>);

/// What runs, counted in step with the store.
#[derive(Default)]
pub(super) struct AtOnce {
    running: HashMap<Lane, u32>,
    tenants: HashMap<Arc<str>, AtWork>,
    /// The memory that each of them may have.
    memory: HashMap<TaskId, u64>,
    /// What the open transaction changed, to be undone with it.
    changes: Vec<Change>,
    /// Lanes in which there may be room now.
    freed: Vec<Lane>,
    /// Types of which other tasks may run now, and how far that was looked at.
    again: Vec<LookAgain>,
    /// Those that the open transaction has done with, to be looked at once more where it fails.
    done: (Vec<Lane>, Vec<LookAgain>),
}

/// A tenant's type, and the last of its tasks that was looked at.
type LookAgain = (Arc<str>, Arc<str>, Option<TaskId>);

/// An attempt that began, or is over.
struct Change {
    tenant: Arc<str>,
    id: TaskId,
    memory: u64,
    /// Of a task: there is none in those of a trial.
    lanes: [Option<Lane>; 2],
    began: bool,
}

fn lanes(task: &Task) -> [Option<Lane>; 2] {
    let lane = |key| (task.tenant.clone(), task.task_type.clone(), key);
    [Some(lane(None)), task.concurrency_key.clone().map(|key| lane(Some(key)))]
}

impl AtOnce {
    /// An attempt of the task begins, that may have so much memory.
    pub(super) fn begins(&mut self, task: &Task, memory: u64) {
        self.note(Change { tenant: task.tenant.clone(), id: task.id, memory, lanes: lanes(task), began: true });
    }

    /// It is over.
    pub(super) fn ends(&mut self, task: &Task) {
        self.over(&task.tenant, task.id, lanes(task));
        // One that is to be attempted again at once is still before the others.
        if !task.is_ready() {
            self.frees(task);
        }
    }

    /// A trial begins, which is at work for its tenant and nothing else.
    pub(super) fn trial_begins(&mut self, tenant: &Arc<str>, id: TaskId, memory: u64) {
        self.note(Change { tenant: tenant.clone(), id, memory, lanes: [None, None], began: true });
    }

    /// It is over.
    pub(super) fn trial_ends(&mut self, tenant: &Arc<str>, id: TaskId) {
        self.over(tenant, id, [None, None]);
    }

    fn over(&mut self, tenant: &Arc<str>, id: TaskId, lanes: [Option<Lane>; 2]) {
        // One of an earlier start of the server was not counted by this one.
        if let Some(memory) = self.memory.get(&id).copied() {
            self.note(Change { tenant: tenant.clone(), id, memory, lanes, began: false });
        }
    }

    fn note(&mut self, change: Change) {
        self.count(&change, change.began);
        self.changes.push(change);
    }

    /// What a tenant has at work.
    pub(super) fn of_tenant(&self, tenant: &str) -> AtWork {
        self.tenants.get(tenant).copied().unwrap_or_default()
    }

    /// The task is no longer before those that are held back.
    pub(super) fn frees(&mut self, task: &Task) {
        self.freed.extend(lanes(task).into_iter().flatten());
    }

    /// The task makes room for others of its type.
    pub(super) fn frees_type(&mut self, task: &Task) {
        self.freed.push((task.tenant.clone(), task.task_type.clone(), None));
    }

    /// What a type's name means for a tenant has changed, or may have.
    pub(super) fn look_again(&mut self, tenant: &Arc<str>, name: &str) {
        self.again.push((tenant.clone(), name.into(), None));
    }

    fn count(&mut self, change: &Change, begins: bool) {
        for lane in change.lanes.iter().flatten() {
            if begins {
                *self.running.entry(lane.clone()).or_default() += 1;
            } else if let Some(count) = self.running.get_mut(lane) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.running.remove(lane);
                }
            }
        }
        if begins {
            self.memory.insert(change.id, change.memory);
            let at_work = self.tenants.entry(change.tenant.clone()).or_default();
            at_work.tasks += 1;
            at_work.memory = at_work.memory.saturating_add(change.memory);
        } else if let Some(at_work) = self.tenants.get_mut(&change.tenant) {
            self.memory.remove(&change.id);
            at_work.tasks = at_work.tasks.saturating_sub(1);
            at_work.memory = at_work.memory.saturating_sub(change.memory);
            if at_work.tasks == 0 {
                self.tenants.remove(&change.tenant);
            }
        }
    }

    fn of(&self, lane: &Lane) -> u32 {
        self.running.get(lane).copied().unwrap_or(0)
    }

    /// The transaction was committed. False: there is more to be looked at.
    pub(super) fn committed(&mut self) -> bool {
        self.changes.clear();
        self.done = Default::default();
        self.freed.is_empty() && self.again.is_empty()
    }

    /// The transaction was rolled back.
    pub(super) fn rolled_back(&mut self) {
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            self.count(&change, !change.began);
        }
        let (lanes, types) = std::mem::take(&mut self.done);
        self.freed.extend(lanes);
        self.again.extend(types);
    }
}

impl Core {
    /// Why a task that is ready has to wait for others of its type or its key, if it has to.
    pub(super) fn too_many(&self, task: &Task) -> Option<Hold> {
        let most = self.registry.concurrency(&task.tenant, &task.task_type);
        let lane = |key| (task.tenant.clone(), task.task_type.clone(), key);
        if let Some(key) = &task.concurrency_key
            && self.at_once.of(&lane(Some(key.clone()))) >= most.per_key.unwrap_or(1)
        {
            return Some(Hold::Key);
        }
        let most = most.running?;
        (self.at_once.of(&lane(None)) >= most).then_some(Hold::Type)
    }

    /// How many tasks of a type run at once has changed: those of its tenant, or of all where it is shared.
    pub(super) fn look_again_at(&mut self, tenant: &Arc<str>, name: &str) {
        if **tenant != *SHARED {
            return self.at_once.look_again(tenant, name);
        }
        for tenant in self.tenants.all() {
            self.at_once.look_again(&tenant.name, name);
        }
    }

    /// Releases tasks for which there is room now.
    pub(super) fn release_freed(&mut self, now: Timestamp) -> Result<(), StoreError> {
        for (tenant, name, after) in std::mem::take(&mut self.at_once.again) {
            self.at_once.done.1.push((tenant.clone(), name.clone(), after));
            let tasks = self.store.held_at_once(&tenant, &name, after, STEP)?;
            let last = tasks.last().filter(|_| tasks.len() == STEP).map(|task| task.id);
            let most = self.registry.concurrency(&tenant, &name);
            let mut released: HashMap<Lane, u32> = HashMap::new();
            for mut task in tasks {
                // What it waits for, and not what it may have to wait for besides: that is seen when its turn comes.
                let (key, most) = match task.held {
                    Some(Hold::Key) => (task.concurrency_key.clone(), Some(most.per_key.unwrap_or(1))),
                    _ => (None, most.running),
                };
                let lane = (tenant.clone(), name.clone(), key);
                let running = self.at_once.of(&lane);
                let released = released.entry(lane).or_default();
                if most.is_none_or(|most| running + *released < most) {
                    *released += 1;
                    let _ = self.change(&mut task, Event::Release, now)?;
                }
            }
            if last.is_some() {
                self.at_once.again.push((tenant, name, last));
            }
        }
        let mut freed = std::mem::take(&mut self.at_once.freed);
        freed.sort_unstable();
        freed.dedup();
        let left = freed.split_off(freed.len().min(STEP));
        self.at_once.freed = left;
        self.at_once.done.0.clone_from(&freed);
        for lane @ (tenant, name, key) in &freed {
            let most = self.registry.concurrency(tenant, name);
            let most = match key {
                Some(_) => most.per_key.unwrap_or(1),
                // Nobody is held back for a type without a bound: where it had one, all of its tasks are looked at.
                None => match most.running {
                    Some(most) => most,
                    None => continue,
                },
            };
            let room = most.saturating_sub(self.at_once.of(lane)) as usize;
            for _ in 0..room.min(STEP) {
                let Some(mut task) = self.store.first_held(tenant, name, key.as_deref())? else { break };
                let _ = self.change(&mut task, Event::Release, now)?;
            }
        }
        Ok(())
    }
}
