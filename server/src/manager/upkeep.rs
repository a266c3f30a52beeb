//! What the manager does by itself, in bounded steps beside the commands: tasks whose time has come,
//! tasks that expired, schedules that are due, and what is kept no longer.

use std::collections::HashMap;
use std::time::Duration;

use super::core::{Core, Started};
use super::tenants::NOTE_USE_EVERY_MS;
use crate::ledger::Day;
use crate::registry::TaskType;
use crate::store::{HeldGroup, KEY_AGE_MS, StoreError, Time};
use crate::task::{Event, Timestamp};

/// Tasks that one transaction looks at for each of these.
const STEP: usize = 500;

/// Of the tasks that are held back, one transaction looks at so many groups, and releases about so many.
pub(super) const HELD_GROUPS: usize = 100;
pub(super) const HELD_STEP: usize = 500;

/// Which groups of tasks that are held back are to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LookAtHeld {
    All,
    After(HeldGroup),
}

/// A look at all of them, some in each transaction.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldLook {
    /// What is left of it; `None`: nothing.
    left: Option<LookAtHeld>,
    /// Something changed behind it: there has to be another one after it.
    again: bool,
}

impl HeldLook {
    /// All have to be looked at. A look that is on its way is gone on with, so that those at its end have their turn
    /// however often this is asked for.
    fn ask(&mut self) {
        match self.left {
            None => self.left = Some(LookAtHeld::All),
            Some(LookAtHeld::All) => {}
            Some(LookAtHeld::After(_)) => self.again = true,
        }
    }

    /// What is left of it after one transaction.
    fn set_left(&mut self, left: Option<LookAtHeld>) {
        self.left = left;
        if self.left.is_none() && std::mem::take(&mut self.again) {
            self.left = Some(LookAtHeld::All);
        }
    }
}

/// Tasks that one transaction removes because they ended long ago: as many as things happened in it, which
/// are two or more for each task that comes and ends, so that removing is faster than what comes; but at
/// least, and at most, so many.
const SWEEP_STEP: usize = 20;
const LONGEST_SWEEP: usize = 2_048;

/// How often it is looked for what is kept no longer.
const SWEEP_EVERY_MS: u64 = 1_000;

/// When schedules that found the queue full are looked at again.
pub(super) const RETRY_FULL_MS: u64 = 1_000;

/// How long it can still be read that a task was removed: an hour.
const DELETED_AGE_MS: u64 = 60 * 60 * 1000;

/// How long it can still be read what a bulk operation did: a day.
const OPERATION_AGE_MS: u64 = 24 * 60 * 60 * 1000;

/// A day.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The clock is looked at again at least this often: it may be set while nothing happens.
const LONGEST_SLEEP_MS: u64 = 60_000;

/// When something has to be looked at next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer(Option<Timestamp>);

impl Timer {
    /// At `at`, or not at all.
    pub(super) fn at(at: Option<Timestamp>) -> Timer {
        Timer(at)
    }

    /// Not later than at `at`.
    pub(super) fn earlier(&mut self, at: Timestamp) {
        self.0 = Some(self.0.map_or(at, |before| before.min(at)));
    }

    pub(super) fn has_come(self, now: Timestamp) -> bool {
        self.0.is_some_and(|at| at <= now)
    }
}

/// All of them. Each is at its time or before it, never after: a look that comes too early finds nothing.
#[derive(Clone, Debug)]
pub(super) struct Timers {
    pub(super) due: Timer,
    pub(super) expires: Timer,
    /// The next due time of a schedule.
    pub(super) schedules: Timer,
    /// A task of a schedule has ended, for whose end a due time may wait.
    pub(super) queued: Timer,
    /// Schedules at the head of those two that found the queue full.
    pub(super) full_due: usize,
    pub(super) full_queued: usize,
    /// The hour is over in which a tenant that has tasks waiting has used what it may, or its quotas have changed.
    pub(super) hours: Timer,
    sweep: Timer,
    /// When keys were used last has to be written down.
    keys: Timer,
    /// Until when that was done.
    keys_noted: Timestamp,
    held: HeldLook,
}

impl Timers {
    /// Look at everything at once.
    pub(super) fn all_at_once() -> Timers {
        let now = Timer(Some(Timestamp(0)));
        let held = HeldLook { left: Some(LookAtHeld::All), again: false };
        Timers {
            due: now,
            expires: now,
            schedules: now,
            queued: now,
            full_due: 0,
            full_queued: 0,
            hours: now,
            sweep: now,
            keys: now,
            keys_noted: Timestamp(0),
            held,
        }
    }

    /// Look at the tasks that are held back: some may not have to be any more.
    pub(super) fn look_at_held(&mut self) {
        self.held.ask();
    }

    /// How long until the first.
    pub(super) fn next(&self, now: Timestamp) -> Duration {
        if self.held.left.is_some() {
            return Duration::ZERO;
        }
        let all = [self.due, self.expires, self.schedules, self.queued, self.hours, self.sweep, self.keys];
        let first = all.into_iter().filter_map(|timer| timer.0).min();
        let wait = first.map_or(LONGEST_SLEEP_MS, |at| at.millis_since(now));
        Duration::from_millis(wait.min(LONGEST_SLEEP_MS))
    }
}

impl Core {
    /// Does what is due, a bounded part of it.
    pub(super) fn keep_up(&mut self, now: Timestamp) -> Result<Started, StoreError> {
        let mut done = Started::default();
        if self.draining.is_some() {
            self.timers.held = HeldLook::default();
            self.timers.hours = Timer::default();
            return Ok(done);
        }
        if self.timers.due.has_come(now) {
            let tasks = self.store.come(Time::Due, now, STEP)?;
            let all = tasks.len() < STEP;
            for mut task in tasks {
                let _ = self.change(&mut task, Event::Due, now)?;
            }
            if all {
                self.timers.due = Timer(self.store.next(Time::Due)?);
            }
        }
        if self.timers.expires.has_come(now) {
            let tasks = self.store.come(Time::Expires, now, STEP)?;
            let all = tasks.len() < STEP;
            for mut task in tasks {
                if self.change(&mut task, Event::Expire, now)?.is_ok() {
                    done.ended.push(task.id);
                }
            }
            if all {
                self.timers.expires = Timer(self.store.next(Time::Expires)?);
            }
        }
        if let Some(groups) = self.timers.held.left.clone() {
            let left = self.release_held(groups, now)?;
            self.timers.held.set_left(left);
        }
        self.release_freed(now)?;
        self.keep_schedules(now, &mut done.starts)?;
        if self.timers.keys.has_come(now) {
            self.note_used_keys(self.timers.keys_noted)?;
            self.timers.keys_noted = now;
            self.timers.keys = Timer(Some(now.plus_millis(NOTE_USE_EVERY_MS)));
        }
        if self.timers.sweep.has_come(now) && !self.sweep(now)? {
            self.timers.sweep = Timer(Some(now.plus_millis(SWEEP_EVERY_MS)));
        }
        Ok(done)
    }

    /// Writes down when keys were used last, as the server stops.
    pub(super) fn note_used_keys_at_last(&mut self) -> Result<(), StoreError> {
        self.store.begin()?;
        match self.note_used_keys(self.timers.keys_noted).and_then(|()| self.store.commit()) {
            Err(error) => {
                self.store.rollback();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Removes a bounded part of what is kept no longer. True: there may be more.
    fn sweep(&mut self, now: Timestamp) -> Result<bool, StoreError> {
        let step = self.changed.len().clamp(SWEEP_STEP, LONGEST_SWEEP);
        let mut left = step;
        let mut kept_for: HashMap<_, _> = HashMap::new();
        for (tenant, name) in self.store.types_with_ended()? {
            let of_type = self.registry.find(&tenant, &name).and_then(|found: TaskType| found.retention_ms);
            kept_for.insert((tenant, name), of_type.unwrap_or(self.settings.retention_ms));
        }
        for ((tenant, name), kept_ms) in kept_for {
            let before = Timestamp(now.0.saturating_sub_unsigned(kept_ms));
            for task in self.store.ended_before(&tenant, &name, before, left)? {
                // Nobody is told: it would be more to keep than what is removed.
                self.store.delete_task(&task)?;
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
        let unused = self.store.remove_components_without_tasks()?;
        self.gone.add_components(unused);
        // Whether or not all tasks could be removed: what is behind them must not wait for that.
        let (old, many) = (|age: u64| Timestamp(now.0.saturating_sub_unsigned(age)), step.max(STEP));
        let keys = self.store.forget_keys(old(KEY_AGE_MS), many)?;
        let events = self.store.forget_deleted(old(DELETED_AGE_MS), many)?;
        let operations = self.store.forget_operations(old(OPERATION_AGE_MS), STEP)?;
        let (audit_days, usage_days) = (self.settings.audit_retention_days, self.settings.usage_retention_days);
        let audit = self.store.forget_audit(old(u64::from(audit_days) * DAY_MS), STEP)?;
        let usage = self.store.forget_usage(Day::of(now).minus(usage_days), STEP)?;
        let more = [operations, audit, usage].contains(&STEP);
        Ok(left == 0 || keys == many || events == many || more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Digest;

    #[test]
    fn a_look_at_what_is_held_comes_to_its_end_however_often_it_is_asked_for() {
        let group = |name: &str| HeldGroup { tenant: "a".into(), task_type: name.into(), component: Digest([0; 32]) };
        let mut look = HeldLook::default();
        look.ask();
        assert_eq!(look.left, Some(LookAtHeld::All));
        look.ask();
        look.set_left(Some(LookAtHeld::After(group("m"))));
        look.ask();
        assert_eq!(look.left, Some(LookAtHeld::After(group("m"))), "it goes on where it was");
        look.ask();
        look.set_left(Some(LookAtHeld::After(group("z"))));
        look.set_left(None);
        assert_eq!(look.left, Some(LookAtHeld::All), "and then once again");
        look.set_left(None);
        assert_eq!(look.left, None);
    }
}
