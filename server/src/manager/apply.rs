//! What a command does inside the transaction.

use std::time::Instant;

use super::core::{Core, Created, Done};
use super::{Answer, Command, Idempotency, NewItem, Refused};
use crate::executor::Report;
use crate::history::Happened;
use crate::ledger::{self, CameTo, Sums};
use crate::limits::Limits;
use crate::sandbox::RunEnd;
use crate::schedule::rank;
use crate::store::{KeyUse, StoreError};
use crate::task::{AttemptRecord, ErrorKind, Event, Hold, Outcome, Rejected, Status, Task, TaskId, Timestamp};
use crate::tenants::Submits;

type Result<T> = std::result::Result<T, StoreError>;

impl Core {
    pub(super) fn apply(&mut self, command: &Command, now: Timestamp) -> Result<Done> {
        // In turn with what takes keys back: after that nothing of this is done, however long it was on its way.
        if let Some(by) = command.by()
            && !self.is_admitted(by, now)?
        {
            return Ok(Done::Refused(Refused::KeyOver));
        }
        match command {
            Command::Create { item, reply: Answer::Ended(reply) } if self.is_held(item, reply, now) => Ok(Done::Held),
            Command::Create { item, .. } => Ok(Done::Created(self.create(item, now)?)),
            Command::CreateMany { items, .. } => {
                let created = items.iter().map(|item| self.create(item, now)).collect::<Result<_>>()?;
                Ok(Done::CreatedMany(created))
            }
            Command::Report(report) => self.report(report, now),
            Command::Log { id, attempt, news } => {
                if let Some(running) = self.running.get(id).filter(|running| running.task.attempt == *attempt) {
                    let task = running.task.clone();
                    self.store_log(&task, *attempt, news, now)?;
                }
                Ok(Done::Nothing)
            }
            Command::Cancel { tenant, id, stopped, .. } => {
                let Some(mut task) = self.task(tenant, *id)? else { return Ok(Done::Refused(Refused::NotFound)) };
                match self.change(&mut task, Event::Cancel, now)? {
                    Ok(()) => Ok(Done::Task(task)),
                    Err(Rejected::Running) => Ok(Done::Stopping),
                    // Stopped for this very request, and not ended by itself in the meantime.
                    Err(_) if *stopped && is_canceled(&task) => Ok(Done::Task(task)),
                    Err(_) => Ok(Done::Refused(Refused::Ended)),
                }
            }
            Command::Retry { tenant, id, .. } => {
                let Some(mut task) = self.task(tenant, *id)? else { return Ok(Done::Refused(Refused::NotFound)) };
                Ok(match self.retry(&mut task, now)? {
                    Ok(()) => Done::Task(task),
                    Err(refused) => Done::Refused(refused),
                })
            }
            Command::Delete { tenant, id, .. } => {
                let Some(task) = self.task(tenant, *id)? else { return Ok(Done::Refused(Refused::NotFound)) };
                if task.status == Status::Running {
                    return Ok(Done::Stopping);
                }
                self.remove(&task, now)?;
                Ok(Done::Removed(task.id))
            }
            Command::AwaitEnd { tenant, id, .. } => Ok(match self.store.task_head(tenant, *id)? {
                Some(task) if !task.status.is_ended() => Done::Waiting,
                // Now whole.
                _ => self.task(tenant, *id)?.map_or(Done::Refused(Refused::NotFound), Done::Task),
            }),
            Command::PutObject { tenant, put, .. } => Ok(Done::Object(self.store.put_object(
                tenant,
                &put.name,
                &put.etag,
                &put.data,
                &put.precondition,
                &self.tenants.quotas(tenant),
            )?)),
            Command::RemoveObject { tenant, name, precondition, .. } => {
                Ok(Done::Object(self.store.remove_object(tenant, name, precondition)?))
            }
            Command::KeyValue(command) => Ok(Done::KeyValue(self.apply_key_value(command)?)),
            Command::PutSchedule { tenant, put, .. } => self.put_schedule(tenant, put, now),
            Command::DeleteSchedule { tenant, name, precondition, by, .. } => {
                self.delete_schedule(tenant, name, precondition, by, now)
            }
            Command::Secret(command) => Ok(Done::Secret(self.apply_secret(command, now)?)),
            Command::Bulk(command) => Ok(Done::Bulk(self.apply_bulk(command, now)?)),
            Command::Settings(command) => Ok(Done::Settings(self.apply_settings(command, now)?)),
            Command::Type(command) => Ok(Done::Type(Box::new(self.apply_type(command, now)?))),
            Command::Trial(_) if self.draining.is_some() => Ok(Done::Refused(Refused::Draining)),
            Command::Trial(command) => Ok(self.apply_trial(command, now)),
            Command::Tried(tried) => {
                self.charge_trial(tried, now);
                Ok(Done::Nothing)
            }
            Command::Tenant(command) => Ok(Done::Tenant(Box::new(self.apply_tenant(command, now)?))),
            Command::IsStored { tenant, id, .. } => Ok(match self.store.task_head(tenant, *id)? {
                Some(_) => Done::Nothing,
                None => Done::Refused(Refused::NotFound),
            }),
            Command::Flush { .. } | Command::Room => Ok(Done::Nothing),
            Command::Drain { grace } => {
                self.draining.get_or_insert(Instant::now() + *grace);
                Ok(Done::Nothing)
            }
        }
    }

    /// Creates a task, and starts it in the same transaction where nothing waits before it.
    pub(super) fn create(&mut self, item: &NewItem, now: Timestamp) -> Result<std::result::Result<Created, Refused>> {
        if self.draining.is_some() {
            return Ok(Err(Refused::Draining));
        }
        let mut task = item.task.clone();
        if let Some(idempotency) = &item.idempotency
            && let Some(before) = self.replay(&task, idempotency, now)?
        {
            return Ok(before);
        }
        // Since it was checked its type may have been removed.
        if !self.registry.is_there(&task.tenant, &task.task_type) {
            return Ok(Err(Refused::UnknownTaskType));
        }
        if self.registry.is_closed(&task.tenant, &task.task_type) {
            return Ok(Err(Refused::TypeClosed));
        }
        if !self.gone.allow(&task) || self.registry.version(task.component).is_none() {
            return Ok(Err(Refused::TypeNotReady));
        }
        if let Some(key) = &task.unique_key
            && let Some(holder) = self.store.unique_holder(&task.tenant, key)?
        {
            return Ok(Err(Refused::UniqueKey { holder }));
        }
        let submits = self.submits(&task, now);
        if let Some(Submits { rate, left: 0, full_in }) = submits {
            return Ok(Err(Refused::TooManySubmitted { rate, full_in }));
        }
        if self.must_wait(&task) {
            // Where it is not ready yet, that is seen when it is.
            let _ = task.apply(Event::Hold(Hold::Paused), now);
        } else if task.is_ready()
            && let Some(why) = self.too_many(&task)
        {
            let _ = task.apply(Event::Hold(why), now);
        }
        // One that has expired already is Pending for the moment until that is seen.
        let is_ready = task.is_ready() && task.expires_at.is_none_or(|expires| expires > now);
        let limits = self.as_its_tenant_may(&task.tenant, item.limits);
        let start = if is_ready { self.place_for_new(&task, &limits, now) } else { None };
        if let Err(refused) = self.check_backlog(&task.tenant, u64::from(start.is_none()), now) {
            return Ok(Err(refused));
        }
        if let Some(submits) = submits {
            self.tenants.submit(&task.tenant, submits.rate, now);
            self.submitted.push(task.tenant.clone());
        }
        if let Some(Idempotency { key, item, fingerprint }) = &item.idempotency {
            self.store.use_key(&task.tenant, key, *item, fingerprint, task.id, now)?;
        }
        if let Some((place, program)) = start
            && task.apply(Event::Start { server: self.server }, now).is_ok()
        {
            self.store.insert_task(&task)?;
            self.at_once.begins(&task, limits.memory_bytes);
            self.store.append_begun(&task, now)?;
            self.changed.push((task.tenant.clone(), task.id));
            return Ok(Ok(Created { task, replayed: false, start: Some((place, program, limits)) }));
        }
        self.store.insert_task(&task)?;
        self.note(&task, Happened::Pending, 0, None, now)?;
        self.backlog.came(&task.tenant);
        self.waits(&task);
        Ok(Ok(Created { task, replayed: false, start: None }))
    }

    /// How many tasks the tenant of a new one may create, where that is bounded. Those of schedules are not
    /// counted: they have their times.
    pub(super) fn submits(&self, task: &Task, now: Timestamp) -> Option<Submits> {
        if task.schedule.is_some() { None } else { self.tenants.submits(&task.tenant, now) }
    }

    fn check_backlog(&self, tenant: &str, more: u64, now: Timestamp) -> std::result::Result<(), Refused> {
        self.backlog.check(tenant, self.tenants.quotas(tenant).pending_tasks, more, now)
    }

    /// What an idempotency key leads to, where it was used before, of a request for `new`.
    fn replay(
        &mut self,
        new: &Task,
        Idempotency { key, item, fingerprint }: &Idempotency,
        now: Timestamp,
    ) -> Result<Option<std::result::Result<Created, Refused>>> {
        let Some(KeyUse { fingerprint: before, task: id }) = self.store.key_use(&new.tenant, key, *item, now)? else {
            return Ok(None);
        };
        if before != *fingerprint {
            return Ok(Some(Err(Refused::KeyReused)));
        }
        let task = if *item < 0 {
            self.task(&new.tenant, id)?
        } else {
            // One of many comes without its output: that of ten thousand would be too much for this thread and
            // for the answer. Its input is the one that was sent, as the fingerprints are the same.
            let head = self.store.task_head(&new.tenant, id)?;
            head.map(|head| Task { input: new.input.clone(), ..head })
        };
        Ok(Some(match task {
            Some(task) => Ok(Created { task, replayed: true, start: None }),
            None => Err(Refused::Gone),
        }))
    }

    fn report(&mut self, report: &Report, now: Timestamp) -> Result<Done> {
        let Some(running) = self.running.get(&report.id) else { return Ok(Done::Nothing) };
        let mut task = running.task.clone();
        let attempt = report.attempt;
        let event = match &report.end {
            RunEnd::Ended(end) => Event::End { attempt, end: end.clone(), random: random(&end.outcome) },
            RunEnd::GiveBack(_) => Event::GiveBack { attempt },
        };
        if task.attempt == attempt && matches!(report.end, RunEnd::Ended(_)) {
            self.store_log(&task, attempt, &report.news, now)?;
        }
        // A late end of an attempt that is no longer the current one is dropped.
        let ended_at = report.ended_at.min(now);
        if self.change(&mut task, event, ended_at)?.is_err() {
            return Ok(Done::Nothing);
        }
        if let RunEnd::GiveBack(usage) = &report.end {
            self.store.charge(&task.tenant, ended_at, CameTo::GivenBack, &Sums::of(usage));
            // The number will be given again, and what was logged under it is logged again.
            self.store.remove_log(&task, attempt)?;
            // There was no room for it after all. At once there would be none again.
            if self.draining.is_none() {
                self.hold_starts("an attempt found no memory, address space or slot, and was put back");
            }
        }
        // It was stopped to be removed: nobody is told of an end that is none for long.
        if task.status.is_ended() && self.is_to_be_removed(task.id) {
            self.remove(&task, now)?;
            self.count_removed(task.id)?;
            return Ok(Done::Removed(task.id));
        }
        if is_canceled(&task) {
            self.count_canceled(task.id)?;
        }
        Ok(Done::Task(task))
    }

    fn store_log(&mut self, task: &Task, attempt: u32, news: &crate::host::log::News, now: Timestamp) -> Result<()> {
        let most = self.tenants.quotas(&task.tenant).log_bytes;
        if let Some((first, count)) = self.store.append_log(task, attempt, &news.lines, most)? {
            self.note(task, Happened::Log, attempt, Some(&format!("[{first},{count}]")), now)?;
        }
        if let Some(progress) = &news.progress {
            let event = self.note(task, Happened::Progress, attempt, json(progress).as_deref(), now)?;
            // Otherwise an attempt that tells it all the time would have events without end.
            let running = self.running.get_mut(&task.id);
            if let Some(before) = running.and_then(|running| running.progress.replace(event)) {
                self.store.remove_event(&task.tenant, before)?;
            }
        }
        Ok(())
    }

    /// Lets something happen to a stored task, and writes down what came of it.
    pub(super) fn change(
        &mut self,
        task: &mut Task,
        event: Event,
        now: Timestamp,
    ) -> Result<std::result::Result<(), Rejected>> {
        let (was, was_ready) = (task.status, task.is_ready());
        let place = rank(task.ready_at, task.priority);
        let entry = ledger::entry(&event);
        let over: Option<AttemptRecord> = match task.apply(event, now) {
            Ok(over) => over,
            Err(rejected) => return Ok(Err(rejected)),
        };
        self.store.update_task(task)?;
        if let Some(record) = over {
            self.store.insert_attempt(task.id, &record)?;
        }
        if was != Status::Running && task.status == Status::Running {
            let memory = self.limits(task).memory_bytes;
            self.at_once.begins(task, memory);
        }
        if was == Status::Running && task.status != Status::Running {
            self.at_once.ends(task);
        }
        if was == Status::Pending && task.status.is_ended() {
            self.at_once.frees(task);
        }
        if let Some((came_to, sums)) = entry {
            let sums = Sums { tasks: task.status.is_ended().into(), ..sums };
            self.store.charge(&task.tenant, now, came_to, &sums);
        }
        if was_ready {
            self.ready.remove(&task.tenant, place, task.id);
        }
        if was != Status::Pending && task.status == Status::Pending {
            self.backlog.came(&task.tenant);
        }
        if was == Status::Pending && task.status != Status::Pending {
            self.backlog.left(&task.tenant);
        }
        if task.status == Status::Pending {
            self.waits(task);
        }
        if task.schedule.is_some() && task.status.is_ended() {
            self.timers.queued.earlier(now);
        }
        if was != task.status {
            let error = task.error.as_ref().filter(|_| matches!(task.status, Status::Failed | Status::Pending));
            let error = error.and_then(json);
            self.note(task, Happened::becoming(task.status), task.attempt, error.as_deref(), now)?;
        }
        Ok(Ok(()))
    }

    /// An ended task is attempted afresh.
    pub(super) fn retry(&mut self, task: &mut Task, now: Timestamp) -> Result<std::result::Result<(), Refused>> {
        if !task.status.is_ended() {
            return Ok(Err(Refused::NotEnded));
        }
        // It would run without the limits of its type.
        if !self.registry.is_there(&task.tenant, &task.task_type) {
            return Ok(Err(Refused::TypeGone));
        }
        if self.registry.is_closed(&task.tenant, &task.task_type) {
            return Ok(Err(Refused::TypeClosed));
        }
        if let Some(key) = &task.unique_key
            && let Some(holder) = self.store.unique_holder(&task.tenant, key)?
        {
            return Ok(Err(Refused::UniqueKey { holder }));
        }
        if let Err(refused) = self.check_backlog(&task.tenant, 1, now) {
            return Ok(Err(refused));
        }
        Ok(self.change(task, Event::Retry, now)?.map_err(|_| Refused::NotEnded))
    }

    /// Removes a task that does not run.
    pub(super) fn remove(&mut self, task: &Task, now: Timestamp) -> Result<()> {
        self.store.delete_task(task)?;
        if task.schedule.is_some() {
            self.timers.queued.earlier(now);
        }
        if task.status == Status::Pending {
            self.at_once.frees(task);
            self.backlog.left(&task.tenant);
            self.ready.remove(&task.tenant, rank(task.ready_at, task.priority), task.id);
        }
        self.note(task, Happened::Deleted, task.attempt, json(&*task.task_type).as_deref(), now)?;
        Ok(())
    }

    /// A task is Pending: it has its place in the queue, or its time.
    fn waits(&mut self, task: &Task) {
        match task.due_at {
            None if task.held.is_some() => {}
            None => self.ready.push(&task.tenant, rank(task.ready_at, task.priority), task.id),
            Some(due) => self.timers.due.earlier(due),
        }
        if let Some(expires) = task.expires_at {
            self.timers.expires.earlier(expires);
        }
    }

    /// Notes what happened, for those who listen and for the record. Returns the event's number.
    fn note(
        &mut self,
        task: &Task,
        happened: Happened,
        attempt: u32,
        data: Option<&str>,
        now: Timestamp,
    ) -> Result<u64> {
        let event = self.store.append_event(task, happened, attempt, now, data)?;
        self.changed.push((task.tenant.clone(), task.id));
        Ok(event)
    }

    pub(super) fn limits(&self, task: &Task) -> Limits {
        let of_type = self
            .registry
            .find(&task.tenant, &task.task_type)
            .map_or(self.settings.defaults, |found| found.limits(&self.settings.defaults, &self.settings.ceiling));
        self.as_its_tenant_may(&task.tenant, of_type.lowered(&task.limits))
    }

    /// The limits of an attempt, which may have no more memory than all of its tenant's.
    pub(super) fn as_its_tenant_may(&self, tenant: &str, limits: Limits) -> Limits {
        let most = self.tenants.quotas(tenant).running_memory_bytes.unwrap_or(u64::MAX);
        Limits { memory_bytes: limits.memory_bytes.min(most), ..limits }
    }

    pub(super) fn task(&mut self, tenant: &str, id: TaskId) -> Result<Option<Task>> {
        self.store.task_of(tenant, id)
    }
}

pub(super) fn is_canceled(task: &Task) -> bool {
    // One that is attempted again keeps the error of its last end.
    task.status.is_ended() && task.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Canceled)
}

/// A number for the jitter of a retry. An id's last 62 bits are random (RFC 9562, section 5.7).
pub(super) fn random(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Completed(_) => 0,
        Outcome::Failed(_) => uuid::Uuid::now_v7().as_u128() as u64 & (u64::MAX >> 2),
    }
}

/// Made of strings and numbers, which can always be written as JSON.
fn json<T: serde::Serialize + ?Sized>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}
