//! Schedules: clients write and read them, and the manager's thread makes their tasks.
//!
//! A task is made in the transaction that moves its schedule on to the due time after it. So each due time
//! makes one task or none, whenever the server goes down.

use std::sync::Arc;

use super::core::{Core, Created, Done, Start};
use super::upkeep::{RETRY_FULL_MS, Timer};
use super::{Command, Manager, NewTask, Refused, check};
use crate::audit::{Act, Actor};
use crate::schedules::{CatchUp, Cron, Failure, MOST_QUEUED, MadeTask, Overlap, Schedule, ScheduledTask, Spec};
use crate::store::{Precondition, StoreError};
use crate::task::Timestamp;

/// Schedules that one transaction looks at: each is read with its task, which may be large.
const STEP: usize = 16;

/// Tasks that schedules make in one transaction.
const MOST_MADE: usize = 128;

/// Due times that one transaction looks at, of all schedules together.
const MOST_LOOKED_AT: usize = 1000;

/// A schedule to be stored.
pub(super) struct PutSchedule {
    name: Arc<str>,
    spec: Spec,
    /// The spec's.
    cron: Cron,
    precondition: Precondition,
    pub(super) by: Actor,
}

/// What one transaction may still do for schedules.
struct Left {
    made: usize,
    looked_at: usize,
}

/// What became of a due time.
enum Made {
    /// There is a task.
    Task,
    /// No task can be made: it is given up.
    None,
    /// The queue has no room for one: it waits.
    Full,
}

/// Tasks that are shown of a schedule.
const LAST_TASKS: usize = 5;

/// About how large a page of schedules may be, in bytes.
const PAGE_BYTES: usize = 4 << 20;

type Result<T> = std::result::Result<T, StoreError>;

/// A schedule with its last tasks, newest first.
pub(super) type WithTasks = (Schedule, Vec<MadeTask>);

impl Manager {
    /// Stores a schedule in place of the one of that name, if there is one: `true` where there was none. Its
    /// task must be one that could be created now, except that its type need not be ready.
    pub async fn put_schedule(
        &self,
        tenant: &Arc<str>,
        name: &str,
        spec: Spec,
        cron: Cron,
        precondition: Precondition,
        by: Actor,
    ) -> std::result::Result<(WithTasks, bool), Refused> {
        match self.check(tenant, new_task(&spec.task), None).await {
            Ok(_) | Err(Refused::TypeNotReady) => {}
            Err(refused) => return Err(refused),
        }
        let put = Box::new(PutSchedule { name: name.into(), spec, cron, precondition, by });
        let (schedule, created) = self.ask(|reply| Command::PutSchedule { tenant: tenant.clone(), put, reply }).await?;
        // It is stored, whatever comes of this, and it may be gone again.
        let found = self.0.readers.schedule(tenant.clone(), name.to_owned(), LAST_TASKS).await;
        let tasks = found.ok().flatten().map(|(_, tasks)| tasks).unwrap_or_default();
        Ok(((schedule, tasks), created))
    }

    /// Removes a schedule. The tasks that it made stay.
    pub async fn delete_schedule(
        &self,
        tenant: &Arc<str>,
        name: &str,
        precondition: Precondition,
        by: Actor,
    ) -> std::result::Result<(), Refused> {
        let (tenant, name) = (tenant.clone(), name.into());
        self.ask(|reply| Command::DeleteSchedule { tenant, name, precondition, by, reply }).await
    }

    /// A schedule.
    pub async fn schedule(&self, tenant: &Arc<str>, name: &str) -> std::result::Result<WithTasks, Refused> {
        self.0.readers.schedule(tenant.clone(), name.to_owned(), LAST_TASKS).await?.ok_or(Refused::NotFound)
    }

    /// Schedules in the order of their names, after `after`; fewer than `limit` where they are large. True:
    /// there are more.
    pub async fn schedules(
        &self,
        tenant: &Arc<str>,
        after: String,
        limit: usize,
    ) -> std::result::Result<(Vec<WithTasks>, bool), Refused> {
        Ok(self.0.readers.schedules(tenant.clone(), after, limit, PAGE_BYTES, LAST_TASKS).await?)
    }
}

impl Core {
    pub(super) fn put_schedule(&mut self, tenant: &Arc<str>, put: &PutSchedule, now: Timestamp) -> Result<Done> {
        let PutSchedule { name, spec, cron, precondition, by } = put;
        let before = self.store.schedule(tenant, name)?;
        if !precondition.holds(before.as_ref().map(|before| before.spec.tag()).as_deref()) {
            return Ok(Done::Refused(Refused::PreconditionFailed));
        }
        if before.is_none()
            && let Some(limit) = self.tenants.quotas(tenant).schedules
            && self.store.count_schedules(tenant)? >= limit
        {
            return Ok(Done::Refused(Refused::TooManySchedules { limit }));
        }
        let created = before.is_none();
        // The same times: what has come, and what waits, is not lost by a change of something else.
        let same_times =
            before.as_ref().filter(|before| before.spec.cron == spec.cron && before.spec.time_zone == spec.time_zone);
        // But what came in a pause that is over.
        let given_up = before.as_ref().is_some_and(|before| before.spec.paused) && spec.catch_up == CatchUp::None;
        let next_at = same_times.and_then(|before| before.next_at).filter(|at| *at > now || !given_up || spec.paused);
        let next_at = next_at.or_else(|| cron.next_after(now));
        let queued = same_times.filter(|_| spec.overlap == Overlap::Queue).map_or(0, |before| before.queued);
        let schedule = Schedule {
            tenant: tenant.clone(),
            name: name.clone(),
            spec: spec.clone(),
            created_at: before.map_or(now, |before| before.created_at),
            updated_at: now,
            next_at,
            queued,
            error: None,
        };
        self.store.put_schedule(&schedule)?;
        let paused = if spec.paused { "; paused" } else { "" };
        let detail = Some(format!("{}; {}; {}{paused}", spec.task.task_type, spec.cron, spec.time_zone));
        let act = Act { action: "schedule.put", of: tenant.clone(), target: name.to_string(), detail };
        self.store.audit(by, &act, now)?;
        if !spec.paused {
            self.timers.queued.earlier(now);
            if let Some(next_at) = next_at {
                self.timers.schedules.earlier(next_at);
            }
        }
        Ok(Done::Schedule(Box::new((schedule, created))))
    }

    pub(super) fn delete_schedule(
        &mut self,
        tenant: &Arc<str>,
        name: &str,
        precondition: &Precondition,
        by: &Actor,
        now: Timestamp,
    ) -> Result<Done> {
        let before = self.store.schedule(tenant, name)?;
        if !precondition.holds(before.as_ref().map(|before| before.spec.tag()).as_deref()) {
            return Ok(Done::Refused(Refused::PreconditionFailed));
        }
        if !self.store.delete_schedule(tenant, name)? {
            return Ok(Done::Refused(Refused::NotFound));
        }
        let act = Act { action: "schedule.delete", of: tenant.clone(), target: name.to_owned(), detail: None };
        self.store.audit(by, &act, now)?;
        Ok(Done::Nothing)
    }

    /// Makes the tasks that are due, a bounded part of them. Those that start at once go to `starts`.
    ///
    /// A schedule that finds the queue full stays where it is, and is passed over until all others were
    /// looked at: whose queue is full holds up nobody else's schedules.
    pub(super) fn keep_schedules(&mut self, now: Timestamp, starts: &mut Vec<Start>) -> Result<()> {
        let mut left = Left { made: MOST_MADE, looked_at: MOST_LOOKED_AT };
        let later = now.plus_millis(RETRY_FULL_MS);
        if self.timers.schedules.has_come(now) {
            let due = self.store.schedules_due(now, self.timers.full_due, STEP)?;
            let mut all = due.len() < STEP;
            for mut schedule in due {
                if left.made == 0 || left.looked_at == 0 {
                    all = false;
                    break;
                }
                if self.come_due(&mut schedule, now, &mut left, starts)? {
                    self.timers.full_due += 1;
                }
                self.store.advance_schedule(&schedule)?;
            }
            self.timers.schedules = if !all {
                Timer::at(Some(now))
            } else if std::mem::take(&mut self.timers.full_due) > 0 {
                Timer::at(Some(later))
            } else {
                // What was left over is due at once.
                Timer::at(self.store.next_due_time()?)
            };
        }
        if self.timers.queued.has_come(now) {
            let free = self.store.schedules_free(self.timers.full_queued, STEP)?;
            let all = free.len() < STEP;
            for mut schedule in free {
                let mut made = Made::None;
                while schedule.queued > 0 && left.made > 0 && matches!(made, Made::None) {
                    left.made -= 1;
                    made = self.make(&mut schedule, now, now, starts)?;
                    match made {
                        Made::Task | Made::None => schedule.queued -= 1,
                        Made::Full => self.timers.full_queued += 1,
                    }
                }
                self.store.advance_schedule(&schedule)?;
            }
            if all && left.made > 0 {
                let full = std::mem::take(&mut self.timers.full_queued) > 0;
                self.timers.queued = Timer::at(full.then_some(later));
            }
        }
        Ok(())
    }

    /// A schedule whose next due time has come: does what is to be done until now, and moves it on. True: it
    /// waits, because the queue is full.
    fn come_due(
        &mut self,
        schedule: &mut Schedule,
        now: Timestamp,
        left: &mut Left,
        starts: &mut Vec<Start>,
    ) -> Result<bool> {
        let cron = match schedule.spec.cron() {
            Ok(cron) => cron,
            // It was read when it was stored: a later version of the server knows it no more.
            Err(bad) => {
                schedule.next_at = None;
                schedule.error = Some(Failure { at: now, message: bad.to_string() });
                return Ok(false);
            }
        };
        let mut due = schedule.next_at.and_then(|next_at| cron.resume(next_at, schedule.spec.catch_up, now));
        let mut full = false;
        while let Some(at) = due.filter(|at| *at <= now)
            && left.made > 0
            && left.looked_at > 0
        {
            left.looked_at -= 1;
            let open = schedule.spec.overlap != Overlap::Allow
                && self.store.has_open_task(&schedule.tenant, &schedule.name)?;
            match schedule.spec.overlap {
                Overlap::Skip if open => {}
                Overlap::Queue if open || schedule.queued > 0 => {
                    schedule.queued = (schedule.queued + 1).min(MOST_QUEUED);
                }
                Overlap::Allow | Overlap::Skip | Overlap::Queue => {
                    left.made -= 1;
                    full = matches!(self.make(schedule, at, now, starts)?, Made::Full);
                    if full {
                        break;
                    }
                }
            }
            due = cron.next_after(at);
        }
        schedule.next_at = due;
        Ok(full)
    }

    /// Makes a task of a schedule.
    fn make(
        &mut self,
        schedule: &mut Schedule,
        at: Timestamp,
        now: Timestamp,
        starts: &mut Vec<Start>,
    ) -> Result<Made> {
        let new = new_task(&schedule.spec.task);
        let (defaults, ceiling) = (&self.settings.defaults, &self.settings.ceiling);
        let made = match check::scheduled_item(&self.registry, defaults, ceiling, &schedule.tenant, new) {
            Ok(mut item) => {
                item.task.schedule = Some(schedule.name.clone());
                // It got its time of creation a moment after the transaction began.
                self.create(&item, now.max(item.task.created_at))?
            }
            Err(refused) => Err(refused),
        };
        match made {
            Ok(Created { task, start, .. }) => {
                starts.extend(start.map(|(place, program, limits)| Start { task, place, program, limits }));
                schedule.error = None;
                Ok(Made::Task)
            }
            Err(refused) => {
                schedule.error = Some(Failure { at, message: reason(&refused) });
                let full =
                    matches!(refused, Refused::TooManyPending { .. } | Refused::QueueFull { .. } | Refused::TypeClosed);
                Ok(if full { Made::Full } else { Made::None })
            }
        }
    }
}

/// Why no task was made, for whoever looks at the schedule.
fn reason(refused: &Refused) -> String {
    match refused {
        Refused::Invalid(errors) => {
            let errors: Vec<_> = errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect();
            errors.join("; ")
        }
        other => other.to_string(),
    }
}

fn new_task(task: &ScheduledTask) -> NewTask {
    NewTask {
        task_type: task.task_type.clone(),
        input: task.input.get().into(),
        priority: task.priority,
        limits: task.limits,
        labels: task.labels.clone(),
        retry: task.retry,
        due_at: None,
        expires_at: None,
        unique_key: task.unique_key.as_deref().map(Into::into),
        concurrency_key: task.concurrency_key.as_deref().map(Into::into),
        idempotency: None,
    }
}
