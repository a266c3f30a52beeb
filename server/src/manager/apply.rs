//! What a command does inside the transaction.

use std::time::{Duration, Instant};

use super::core::{Core, Done, MAX_STARTS, RETRY_START, Start, Started};
use super::{Command, Refused};
use crate::limits::Limits;
use crate::registry::Version;
use crate::room::{NoRoom, Place};
use crate::sandbox::RunEnd;
use crate::schedule::rank;
use crate::store::StoreError;
use crate::task::{AttemptEnd, ErrorKind, Event, Outcome, Rejected, Status, Task, TaskError, TaskId, Timestamp, Usage};

impl Core {
    pub(super) fn apply(&mut self, command: &Command, now: Timestamp) -> Result<Done, StoreError> {
        match command {
            Command::Create { task, limits, .. } => self.create(task, *limits, now),
            Command::Report(report) => {
                let Some(running) = self.running.get(&report.id) else { return Ok(Done::Nothing) };
                let mut task = running.task.clone();
                let attempt = report.attempt;
                let event = match &report.end {
                    RunEnd::Ended(end) => Event::End { attempt, end: end.clone() },
                    RunEnd::GiveBack => Event::GiveBack { attempt },
                };
                // A late end of an attempt that is no longer the current one is dropped.
                if task.apply(event, now).is_err() {
                    return Ok(Done::Nothing);
                }
                self.store.update_task(&task)?;
                if task.status != Status::Pending {
                    self.store.append_log(task.id, attempt, &report.log)?;
                } else {
                    // The number will be given again, and what was logged under it is logged again.
                    self.store.remove_log(task.id, attempt)?;
                    // There was no room for it after all. At once there would be none again.
                    self.hold_starts = Some(Instant::now() + RETRY_START);
                    self.ready.push(rank(task.created_at, task.priority), task.id);
                }
                Ok(Done::Task(task))
            }
            Command::Log { id, attempt, lines } => {
                if self.running.get(id).is_some_and(|running| running.task.attempt == *attempt) {
                    self.store.append_log(*id, *attempt, lines)?;
                }
                Ok(Done::Nothing)
            }
            Command::Cancel { tenant, id, stopped, .. } => {
                let Some(mut task) = self.task(tenant, *id)? else { return Ok(Done::Refused(Refused::NotFound)) };
                match task.apply(Event::Cancel, now) {
                    Ok(()) => {
                        self.store.update_task(&task)?;
                        self.ready.remove(rank(task.created_at, task.priority), task.id);
                        Ok(Done::Task(task))
                    }
                    Err(Rejected::Running) => Ok(Done::Stopping),
                    // Stopped for this very request, and not ended by itself in the meantime.
                    Err(_) if *stopped && is_canceled(&task) => Ok(Done::Task(task)),
                    Err(Rejected::Ended | Rejected::Stale) => Ok(Done::Refused(Refused::Ended)),
                }
            }
            Command::Delete { tenant, id, .. } => {
                let Some(task) = self.task(tenant, *id)? else { return Ok(Done::Refused(Refused::NotFound)) };
                if task.status == Status::Running {
                    return Ok(Done::Stopping);
                }
                self.store.delete_task(*id)?;
                self.ready.remove(rank(task.created_at, task.priority), task.id);
                Ok(Done::Removed(task.id))
            }
            Command::AwaitEnd { tenant, id, .. } => Ok(match self.task(tenant, *id)? {
                None => Done::Refused(Refused::NotFound),
                Some(task) if task.status.is_ended() => Done::Task(task),
                Some(_) => Done::Waiting,
            }),
            Command::PutObject { tenant, put, .. } => Ok(Done::Object(self.store.put_object(
                tenant,
                &put.name,
                &put.etag,
                &put.data,
                &put.precondition,
                put.quota,
            )?)),
            Command::RemoveObject { tenant, name, precondition, .. } => {
                Ok(Done::Object(self.store.remove_object(tenant, name, precondition)?))
            }
            Command::Flush { .. } | Command::Room => Ok(Done::Nothing),
            Command::Drain { grace } => {
                self.draining.get_or_insert(Instant::now() + *grace);
                Ok(Done::Nothing)
            }
        }
    }

    fn create(&mut self, task: &Task, limits: Limits, now: Timestamp) -> Result<Done, StoreError> {
        if self.draining.is_some() {
            return Ok(Done::Refused(Refused::Draining));
        }
        let mut task = task.clone();
        // Where nothing else waits it can start in the transaction that creates it.
        if self.ready.is_exhausted()
            && let Some(Version::Ready(program)) = self.registry.version(task.component)
            && let Some(place) = self.place()
            && task.apply(Event::Start, now).is_ok()
        {
            self.store.insert_task(&task)?;
            return Ok(Done::Started(Start { task, place, program, limits }));
        }
        self.store.insert_task(&task)?;
        self.ready.push(rank(task.created_at, task.priority), task.id);
        Ok(Done::Task(task))
    }

    /// Starts queued tasks in their order, as long as there is room.
    pub(super) fn start_ready(&mut self, now: Timestamp) -> Result<Started, StoreError> {
        let Started { mut starts, mut ended } = Started::default();
        while starts.len() + ended.len() < MAX_STARTS && self.draining.is_none() {
            if self.ready.needs_fill() {
                let tasks = self.store.ready(self.ready.capacity())?;
                self.ready.fill(tasks);
            }
            let Some((rank, id)) = self.ready.first() else { break };
            let Some(place) = self.place() else { break };
            self.ready.remove(rank, id);
            let Some(mut task) = self.store.task(id)? else { continue };
            if task.apply(Event::Start, now).is_err() {
                continue;
            }
            match self.registry.version(task.component) {
                Some(Version::Ready(program)) => {
                    let limits = self.limits(&task);
                    self.store.update_task(&task)?;
                    starts.push(Start { task, place, program, limits });
                }
                missing => {
                    let why = match missing {
                        Some(Version::Failed(why)) => why.to_string(),
                        _ => "its component is not there".to_owned(),
                    };
                    let error = TaskError::new(ErrorKind::Host, format!("it cannot be run: {why}"));
                    let end = AttemptEnd { outcome: Outcome::Failed(error), usage: Usage::default(), progress: None };
                    let attempt = task.attempt;
                    if task.apply(Event::End { attempt, end }, now).is_ok() {
                        self.store.update_task(&task)?;
                        ended.push(task);
                    }
                }
            }
        }
        Ok(Started { starts, ended })
    }

    /// How long starts are still held; zero once, when they are held no longer.
    pub(super) fn held_for(&mut self) -> Option<Duration> {
        let left = self.hold_starts?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.hold_starts = None;
        }
        Some(left)
    }

    fn place(&mut self) -> Option<Place> {
        if self.hold_starts.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.hold_starts = None;
        match self.room.take() {
            Ok(place) => Some(place),
            // The end of an attempt, or one that begins to wait, is told.
            Err(NoRoom::Slots | NoRoom::Working) => None,
            Err(NoRoom::Memory) => {
                self.hold_starts = Some(Instant::now() + RETRY_START);
                None
            }
        }
    }

    fn limits(&self, task: &Task) -> Limits {
        let of_type = self
            .registry
            .find(&task.tenant, &task.task_type)
            .map_or(self.settings.defaults, |found| found.limits(&self.settings.defaults, &self.settings.ceiling));
        of_type.lowered(&task.limits)
    }

    pub(super) fn task(&mut self, tenant: &str, id: TaskId) -> Result<Option<Task>, StoreError> {
        self.store.task_of(tenant, id)
    }
}

fn is_canceled(task: &Task) -> bool {
    task.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Canceled)
}
