//! Bulk operations: canceling, retrying or deleting all tasks that match a filter.
//!
//! An operation is a row in the store. One future for each open one looks for the next tasks beside the
//! writer and has them done by the manager's thread, a bounded part in one transaction, which also
//! stores how far the operation is. So a crash interrupts it between two parts, and the next start
//! goes on there.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::apply::is_canceled;
use super::check::created_at;
use super::core::Core;
use super::{Command, Manager, Refused, Reply, answer};
use crate::audit::{Act, Actor};
use crate::store::{Action, Found, ListFilter, Operation, OperationId, StoreError};
use crate::task::{Event, Rejected, Status, Task, TaskId, Timestamp};

/// Tasks in one transaction.
const STEP: usize = 200;

/// Operations of a tenant that may be open at once. A retry may have to wait for room in the queue, which the others
/// make: they find places that no retry takes.
const MOST_OPEN: u64 = 10;
const MOST_OPEN_FOR_RETRY: u64 = 8;

/// Operations that are listed.
const MOST_LISTED: usize = 100;

/// How long counting what matches may wait for its turn.
const COUNT_TURN: Duration = Duration::from_secs(2);

/// How long to wait where an operation cannot go on: the queue is full, or the store takes no writes.
const PAUSE: Duration = Duration::from_secs(1);

/// What the manager's thread is asked to do for bulk operations.
pub(super) enum BulkCommand {
    Create {
        operation: Box<Operation>,
        by: Actor,
        reply: Reply<Operation>,
    },
    /// Do it with the tasks that were found. `stopped` is held until those that run have been stopped.
    Step {
        id: OperationId,
        found: Found,
        stopped: mpsc::Sender<Infallible>,
        reply: Reply<Option<Stepped>>,
    },
    /// A task's attempt was stopped for an operation: do it with the task. Nobody waits for an answer.
    Stopped {
        id: OperationId,
        action: Action,
        tenant: Arc<str>,
        task: TaskId,
        _stopped: mpsc::Sender<Infallible>,
    },
}

/// What a [`BulkCommand`] did inside the transaction.
pub(super) enum BulkDone {
    Created(Result<Operation, Refused>),
    /// `None`: there is no such operation, or none that is open.
    Stepped(Option<Part>),
    Stopped(One),
}

/// A part of an operation that was done.
pub(super) struct Stepped {
    operation: Operation,
    /// There was no room for more tasks in the queue.
    full: bool,
}

/// The same with what became of each task, to be told.
type Part = (Stepped, Vec<(TaskId, One)>);

/// What became of one task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum One {
    /// It was canceled.
    Ended,
    /// It was retried.
    Retried,
    /// It was removed.
    Removed,
    /// It is not as the action needs it any more.
    Skipped,
    /// Its attempt has to be stopped first.
    Running,
    /// The queue has no room for it, or somebody removes its type.
    Full,
}

impl BulkCommand {
    /// Whether somebody waits for an answer.
    pub(super) fn is_asked(&self) -> bool {
        !matches!(self, BulkCommand::Stopped { .. })
    }

    /// How many tasks it is about.
    pub(super) fn tasks(&self) -> usize {
        match self {
            BulkCommand::Step { found, .. } => found.ids.len(),
            BulkCommand::Create { .. } | BulkCommand::Stopped { .. } => 1,
        }
    }

    /// Whether a task is to be canceled once it has been stopped.
    pub(super) fn cancels(&self) -> bool {
        matches!(self, BulkCommand::Stopped { action: Action::Cancel, .. })
    }

    /// Whether a task is to be removed once it has been stopped.
    pub(super) fn removes(&self) -> bool {
        matches!(self, BulkCommand::Stopped { action: Action::Delete, .. })
    }

    /// Says that it was not done; returned where nobody would ask for it again.
    pub(super) fn refuse(self, why: Refused) -> Option<BulkCommand> {
        match self {
            BulkCommand::Create { reply, .. } => answer(reply, Err(why)),
            BulkCommand::Step { reply, .. } => answer(reply, Err(why)),
            BulkCommand::Stopped { .. } => return Some(self),
        }
        None
    }
}

impl Core {
    pub(super) fn apply_bulk(&mut self, command: &BulkCommand, now: Timestamp) -> Result<BulkDone, StoreError> {
        match command {
            BulkCommand::Create { operation, by, .. } => {
                if self.draining.is_some() {
                    return Ok(BulkDone::Created(Err(Refused::Draining)));
                }
                let limit = if operation.action == Action::Retry { MOST_OPEN_FOR_RETRY } else { MOST_OPEN };
                if self.store.open_operations_of(&operation.tenant)? >= limit {
                    return Ok(BulkDone::Created(Err(Refused::TooManyOperations { limit })));
                }
                self.store.insert_operation(operation)?;
                self.store.audit(by, &act(operation), now)?;
                Ok(BulkDone::Created(Ok(Operation::clone(operation))))
            }
            BulkCommand::Step { id, found, .. } => Ok(BulkDone::Stepped(self.bulk_step(*id, found, now)?)),
            BulkCommand::Stopped { id, action, tenant, task, .. } => {
                let one = match self.store.task_head(tenant, *task)? {
                    None => One::Skipped,
                    // By somebody else, before this came.
                    Some(task) if *action == Action::Cancel && is_canceled(&task) => One::Ended,
                    Some(mut task) => self.bulk_one(*action, &mut task, now)?,
                };
                if one != One::Running {
                    self.store.count_operation(*id, one != One::Skipped)?;
                }
                Ok(BulkDone::Stopped(one))
            }
        }
    }

    /// A task is removed that was stopped for that. Who asked first has done it, which may be an operation.
    pub(super) fn count_removed(&mut self, task: TaskId) -> Result<(), StoreError> {
        match self.running.get(&task).and_then(|running| running.then.first()) {
            Some(Command::Bulk(BulkCommand::Stopped { id, .. })) => self.store.count_operation(*id, true),
            _ => Ok(()),
        }
    }

    /// A task is canceled that was stopped, also for these operations: they are done with it once that is committed.
    pub(super) fn count_canceled(&mut self, task: TaskId) -> Result<(), StoreError> {
        let Some(running) = self.running.get(&task) else { return Ok(()) };
        for command in &running.then {
            if let Command::Bulk(BulkCommand::Stopped { id, action: Action::Cancel, .. }) = command {
                self.store.count_operation(*id, true)?;
            }
        }
        Ok(())
    }

    fn bulk_step(&mut self, id: OperationId, found: &Found, now: Timestamp) -> Result<Option<Part>, StoreError> {
        let operation = self.store.operation(id)?;
        let Some(mut operation) = operation.filter(|operation| operation.finished_at.is_none()) else {
            return Ok(None);
        };
        let mut ones = Vec::with_capacity(found.ids.len());
        let mut full = false;
        // The place in the store stays before the first task that runs, until it was stopped: a crash in
        // between must not forget it. Those behind it are not found again, as they are not any more what
        // the action needs.
        let mut passed = true;
        for id in &found.ids {
            // Read again: what was found may have changed since.
            let one = match self.store.task_head(&operation.tenant, *id)? {
                Some(mut task) if !operation.is_over_for(&task) => self.bulk_one(operation.action, &mut task, now)?,
                _ => One::Skipped,
            };
            match one {
                One::Ended | One::Retried | One::Removed => operation.done += 1,
                One::Skipped => operation.skipped += 1,
                One::Running => passed = false,
                One::Full => {
                    full = true;
                    break;
                }
            }
            if passed {
                operation.after = Some(*id);
            }
            ones.push((*id, one));
        }
        if passed && !full {
            match found.until {
                Some(until) => operation.after = Some(until),
                None => {
                    operation.finished_at = Some(now);
                    // Some that matched were not found any more: they had changed by then.
                    let matched = operation.matched.unwrap_or(0);
                    operation.skipped = operation.skipped.max(matched.saturating_sub(operation.done));
                }
            }
        }
        self.store.update_operation(&operation)?;
        Ok(Some((Stepped { operation, full }, ones)))
    }

    /// Goes on with operations on Running tasks when the server starts: a crash has stopped those tasks, and
    /// once they are put back to Pending they would not be found any more.
    pub(super) fn recover_bulk(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let max_interruptions = self.settings.max_interruptions;
        for mut operation in self.store.open_operations()? {
            let of_running = operation.filter.status == Some(Status::Running);
            while of_running && operation.finished_at.is_none() {
                let found = self.store.find(&operation, STEP)?;
                self.store.begin()?;
                for id in &found.ids {
                    if let Some(mut task) = self.store.task_head(&operation.tenant, *id)? {
                        let _ = self.change(&mut task, Event::Interrupt { max_interruptions }, now)?;
                    }
                }
                let part = self.bulk_step(operation.id, &found, now)?;
                self.store.commit()?;
                self.backlog.committed(now);
                let Some((stepped, _)) = part else { break };
                operation = stepped.operation;
            }
        }
        Ok(())
    }

    fn bulk_one(&mut self, action: Action, task: &mut Task, now: Timestamp) -> Result<One, StoreError> {
        Ok(match action {
            Action::Cancel => match self.change(task, Event::Cancel, now)? {
                Ok(()) => One::Ended,
                Err(Rejected::Running) => One::Running,
                Err(_) => One::Skipped,
            },
            Action::Retry => match self.retry(task, now)? {
                Ok(()) => One::Retried,
                Err(Refused::TooManyPending { .. } | Refused::QueueFull { .. } | Refused::TypeClosed) => One::Full,
                Err(_) => One::Skipped,
            },
            Action::Delete if task.status == Status::Running => One::Running,
            Action::Delete => {
                self.remove(task, now)?;
                One::Removed
            }
        })
    }

    pub(super) fn tell_bulk(&mut self, command: BulkCommand, done: BulkDone) {
        match (command, done) {
            (BulkCommand::Create { reply, .. }, BulkDone::Created(created)) => answer(reply, created),
            (BulkCommand::Step { id, stopped, reply, .. }, BulkDone::Stepped(stepped)) => {
                let Some((stepped, ones)) = stepped else { return answer(reply, Ok(None)) };
                let Operation { action, tenant, .. } = &stepped.operation;
                for (task, one) in ones {
                    let (tenant, _stopped) = (tenant.clone(), stopped.clone());
                    self.tell_one(BulkCommand::Stopped { id, action: *action, tenant, task, _stopped }, one);
                }
                answer(reply, Ok(Some(stepped)));
            }
            (command, BulkDone::Stopped(one)) => self.tell_one(command, one),
            // No command does what another asks for.
            _ => {}
        }
    }

    /// Tells who waits for a task what became of it. `command` is what follows where it has to be stopped.
    fn tell_one(&mut self, command: BulkCommand, one: One) {
        let BulkCommand::Stopped { task: id, .. } = command else { return };
        match one {
            One::Running => self.stop(id, Command::Bulk(command)),
            One::Removed => self.ended.gone(id),
            One::Ended => self.tell_ended(id),
            One::Retried | One::Skipped | One::Full => {}
        }
    }
}

/// What the audit log says of an operation, with its filter.
fn act(operation: &Operation) -> Act {
    let action = match operation.action {
        Action::Cancel => "tasks.cancel",
        Action::Retry => "tasks.retry",
        Action::Delete => "tasks.delete",
    };
    let mut filter = serde_json::to_value(&operation.filter).unwrap_or_default();
    if let Some(members) = filter.as_object_mut() {
        members.retain(|_, value| !value.is_null());
        // What a tenant writes on its tasks is nobody else's: only that there were labels.
        members.insert("labels".to_owned(), operation.filter.labels.len().into());
        members.retain(|_, value| *value != 0);
    }
    let (of, target) = (operation.tenant.clone(), operation.id.0.to_string());
    Act { action, of, target, detail: Some(filter.to_string()) }
}

impl Manager {
    /// Begins to do `action` with all tasks of now that match. The operation is durable when this
    /// returns, and goes on by itself.
    pub async fn start_bulk(
        &self,
        tenant: &Arc<str>,
        action: Action,
        filter: ListFilter,
        by: Actor,
    ) -> Result<Operation, Refused> {
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        let id = uuid::Uuid::now_v7();
        let mut operation = Operation {
            id: OperationId(id),
            tenant: tenant.clone(),
            action,
            filter,
            matched: None,
            done: 0,
            skipped: 0,
            after: None,
            created_at: created_at(TaskId(id)),
            finished_at: None,
        };
        if let Ok(Ok(_turn)) = tokio::time::timeout(COUNT_TURN, self.0.bulk_turn.acquire()).await {
            operation.matched = self.0.readers.count(operation.clone()).await?;
        }
        // Apart from the request: where its client hangs up, what was stored goes on all the same.
        let (tell, told) = oneshot::channel();
        let manager = self.clone();
        tokio::spawn(async move {
            let operation = Box::new(operation);
            let created = manager.ask(|reply| Command::Bulk(BulkCommand::Create { operation, by, reply })).await;
            let go_on = created.as_ref().ok().cloned();
            answer(tell, created);
            if let Some(operation) = go_on {
                manager.go_on(operation).await;
            }
        });
        told.await.unwrap_or(Err(Refused::Draining))
    }

    /// Goes on with an operation until it is finished or the server stops.
    pub async fn go_on(self, mut operation: Operation) {
        while !self.is_draining() {
            match self.bulk_part(&operation).await {
                Ok(None) | Err(Refused::Draining) => return,
                Ok(Some(stepped)) if stepped.operation.finished_at.is_some() => return,
                Ok(Some(stepped)) => {
                    operation = stepped.operation;
                    if stepped.full {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(operation = %operation.id.0, error = &error as &dyn std::error::Error, "a bulk operation waits");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn bulk_part(&self, operation: &Operation) -> Result<Option<Stepped>, Refused> {
        let found = {
            // One at a time: however many operations are open, they keep the readers from nobody.
            let _turn = self.0.bulk_turn.acquire().await;
            self.0.readers.find(operation.clone(), STEP).await?
        };
        let id = operation.id;
        let (stopped, mut all_stopped) = mpsc::channel(1);
        let stepped = self.ask(|reply| Command::Bulk(BulkCommand::Step { id, found, stopped, reply })).await?;
        // Nothing is ever sent: it ends when the last task that had to be stopped was.
        let _ = all_stopped.recv().await;
        Ok(stepped)
    }

    /// An operation of a tenant.
    pub async fn operation(&self, tenant: &Arc<str>, id: OperationId) -> Result<Operation, Refused> {
        self.0.readers.operation(tenant.clone(), id).await?.ok_or(Refused::NotFound)
    }

    /// The last operations of a tenant, newest first.
    pub async fn operations(&self, tenant: &Arc<str>) -> Result<Vec<Operation>, Refused> {
        Ok(self.0.readers.operations(tenant.clone(), MOST_LISTED).await?)
    }
}
