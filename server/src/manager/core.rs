//! The manager's thread: the one writer of state.
//!
//! It takes all commands that wait, applies them in one transaction, starts what there is room for
//! in the same transaction, commits, and only then answers and starts: what was said is on the
//! disk. There is no timer: while one commit syncs, the next batch gathers by itself.
//!
//! The store is the truth. What is kept in memory beside it (the head of the queue, the running
//! attempts, who waits for what) is changed only once the transaction is committed, or can be read
//! again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::waiters::EndWaiters;
use super::{Command, Created, Inbox, Refused, answer};
use crate::clock;
use crate::executor::{Executor, Job};
use crate::limits::Limits;
use crate::registry::{Registry, Version};
use crate::room::{NoRoom, Place, Room};
use crate::sandbox::{Control, Program, RunEnd, Stop};
use crate::schedule::{ReadyWindow, rank};
use crate::store::{ObjectWrite, StoreError, Writer};
use crate::task::{AttemptEnd, ErrorKind, Event, Outcome, Rejected, Status, Task, TaskError, TaskId, Timestamp, Usage};

/// Commands in one transaction. More wait for the next: a transaction's length bounds how long the
/// first of them waits for its answer.
const MAX_BATCH: usize = 1024;

/// Queued tasks started in one transaction.
const MAX_STARTS: usize = 256;

/// Queued tasks whose place is kept in memory.
const WINDOW: usize = 10_000;

/// How much longer than the grace a store that takes no writes is given when the server stops.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// How often a store that goes on taking no writes is logged.
const LOG_STORE_EVERY: Duration = Duration::from_secs(60);

/// How long to wait before the disk is tried again.
const RETRY_STORE: Duration = Duration::from_millis(500);

/// How long to wait before attempts are started again when the machine was short of something that
/// nobody announces: memory, or address space.
const RETRY_START: Duration = Duration::from_millis(100);

/// Exit code for a storage of which nothing is known any more (EX_IOERR of sysexits).
const EXIT_SYNC_FAILED: i32 = 74;

/// What the operator decides for the manager.
#[derive(Clone, Copy, Debug)]
pub struct CoreSettings {
    /// The limits where nobody says otherwise.
    pub defaults: Limits,
    /// The most any limit can be.
    pub ceiling: Limits,
    /// How often an attempt is repeated that the server went down under.
    pub max_interruptions: u32,
}

/// The state that only the manager's thread touches.
pub struct Core {
    store: Writer,
    room: Arc<Room>,
    registry: Arc<Registry>,
    executor: Executor,
    settings: CoreSettings,
    ready: ReadyWindow,
    running: HashMap<TaskId, Running>,
    ended: EndWaiters,
    /// No attempt is started before: the machine was short of something.
    hold_starts: Option<Instant>,
    draining: Option<Instant>,
    /// When it was last logged that the store takes no writes; `None` while it does.
    failure_logged: Option<Instant>,
}

/// An attempt that runs.
struct Running {
    task: Task,
    control: Arc<Control>,
    /// Who canceled or deletes the task, to be answered when the attempt has ended.
    then: Vec<Command>,
}

/// What a command did inside the transaction, to be told after its commit.
enum Done {
    Nothing,
    Refused(Refused),
    /// The task as it is now.
    Task(Task),
    /// A new task that starts at once.
    Started(Start),
    /// The task's attempt is to be stopped; the answer comes with its end.
    Stopping,
    /// The task has not ended; the answer comes with its end.
    Waiting,
    Removed(TaskId),
    Object(ObjectWrite),
}

/// An attempt to be started after the commit.
struct Start {
    task: Task,
    place: Place,
    program: Arc<Program>,
    limits: Limits,
}

impl Core {
    /// The manager's state over a store; attempts that a crash cut off are put back first.
    pub fn new(
        mut store: Writer,
        room: Arc<Room>,
        registry: Arc<Registry>,
        executor: Executor,
        settings: CoreSettings,
    ) -> Result<Core, StoreError> {
        recover(&mut store, settings.max_interruptions)?;
        Ok(Core {
            store,
            room,
            registry,
            executor,
            settings,
            ready: ReadyWindow::new(WINDOW),
            running: HashMap::new(),
            ended: EndWaiters::default(),
            hold_starts: None,
            draining: None,
            failure_logged: None,
        })
    }

    /// Does what comes in until the server stops.
    pub fn run(mut self, inbox: Inbox) {
        let mut batch: Vec<Command> = Vec::with_capacity(MAX_BATCH);
        // Commands that must not get lost when the disk takes no writes.
        let mut kept: Vec<Command> = Vec::new();
        // What was left of an earlier run is started at once.
        let mut again = Some(Duration::ZERO);
        loop {
            if !self.gather(&inbox, &mut batch, again) {
                break;
            }
            let mut commands = std::mem::take(&mut kept);
            commands.append(&mut batch);
            let done = self.transaction(&commands);
            again = match done {
                Ok((done, starts)) => {
                    let full = starts.len() >= MAX_STARTS;
                    self.tell(commands, done, &mut kept);
                    starts.into_iter().for_each(|start| self.start(start));
                    self.after_commit();
                    if full || !kept.is_empty() { Some(Duration::ZERO) } else { self.held_for() }
                }
                Err(error) => {
                    self.store.rollback();
                    self.ready.reset();
                    self.log_failure(&error);
                    kept = refuse(commands, &error);
                    Some(RETRY_STORE)
                }
            };
            if let Some(deadline) = self.draining {
                if self.running.is_empty() && kept.is_empty() {
                    break;
                }
                let now = Instant::now();
                if now >= deadline + STORE_PATIENCE {
                    tracing::error!(
                        "not everything could be stored in time: those tasks are attempted again after the next start"
                    );
                    break;
                }
                let next = if now < deadline { deadline } else { deadline + STORE_PATIENCE };
                if now >= deadline {
                    self.running.values().for_each(|running| running.control.stop(Stop::Drain));
                }
                again = Some(again.unwrap_or(Duration::MAX).min(next - now));
            }
        }
        match self.store.checkpoint_all() {
            Ok(()) => {}
            Err(error @ StoreError::SyncFailed(_)) => sync_failed(&error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot empty the write-ahead log");
            }
        }
        inbox.drained.store(true, Ordering::Release);
    }

    /// Waits for commands, and takes all that are there. False when there can be no more.
    fn gather(&self, inbox: &Inbox, batch: &mut Vec<Command>, wait: Option<Duration>) -> bool {
        let first = match wait {
            Some(wait) => match inbox.commands.recv_timeout(wait) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            },
            None => match inbox.commands.recv() {
                Ok(command) => Some(command),
                Err(_) => return false,
            },
        };
        batch.extend(first.into_iter().chain(inbox.commands.try_iter()).take(MAX_BATCH));
        let asked = batch.iter().filter(|command| command.is_asked()).count();
        inbox.waiting.fetch_sub(asked, Ordering::AcqRel);
        true
    }

    fn transaction(&mut self, commands: &[Command]) -> Result<(Vec<Done>, Vec<Start>), StoreError> {
        let now = clock::now();
        let mut done = Vec::with_capacity(commands.len());
        self.store.begin()?;
        for command in commands {
            done.push(self.apply(command, now)?);
        }
        let starts = self.start_ready(now)?;
        self.store.commit()?;
        Ok((done, starts))
    }

    fn apply(&mut self, command: &Command, now: Timestamp) -> Result<Done, StoreError> {
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
                self.store.append_log(task.id, attempt, &report.log)?;
                if task.status == Status::Pending {
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
    fn start_ready(&mut self, now: Timestamp) -> Result<Vec<Start>, StoreError> {
        let mut starts = Vec::new();
        while starts.len() < MAX_STARTS && self.draining.is_none() {
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
                    }
                }
            }
        }
        Ok(starts)
    }

    /// How long starts are still held; zero once, when they are held no longer.
    fn held_for(&mut self) -> Option<Duration> {
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

    fn task(&mut self, tenant: &str, id: TaskId) -> Result<Option<Task>, StoreError> {
        Ok(self.store.task(id)?.filter(|task| &*task.tenant == tenant))
    }

    /// Answers what a committed transaction did. What has to be done again goes to `again`.
    fn tell(&mut self, commands: Vec<Command>, done: Vec<Done>, again: &mut Vec<Command>) {
        for (command, done) in commands.into_iter().zip(done) {
            match (command, done) {
                (Command::Create { reply, .. }, Done::Started(start)) => {
                    match reply {
                        Created::Stored(reply) => answer(reply, Ok(start.task.clone())),
                        Created::Ended(reply) => self.ended.add(start.task.id, reply),
                    }
                    self.start(start);
                }
                (Command::Create { reply, .. }, Done::Task(task)) => match reply {
                    Created::Stored(reply) => answer(reply, Ok(task)),
                    Created::Ended(reply) => self.ended.add(task.id, reply),
                },
                (Command::Create { reply: Created::Stored(reply) | Created::Ended(reply), .. }, Done::Refused(why)) => {
                    answer(reply, Err(why));
                }
                (Command::Report(report), Done::Task(task)) => {
                    let then = self.running.remove(&report.id).map(|running| running.then).unwrap_or_default();
                    // Who waits for a task that is being deleted is told that it is gone, in a moment.
                    let deleted = then.iter().any(|command| matches!(command, Command::Delete { .. }));
                    if task.status.is_ended() && !deleted {
                        self.ended.tell(task);
                    }
                    again.extend(then);
                }
                (Command::Cancel { reply, .. }, Done::Task(task)) => {
                    self.ended.tell(task.clone());
                    answer(reply, Ok(task));
                }
                (command @ (Command::Cancel { id, .. } | Command::Delete { id, .. }), Done::Stopping) => {
                    self.stop(id, command);
                }
                (Command::Delete { reply, .. }, Done::Removed(id)) => {
                    self.ended.gone(id);
                    answer(reply, Ok(()));
                }
                (Command::Delete { reply, .. }, Done::Refused(why)) => answer(reply, Err(why)),
                (Command::AwaitEnd { reply, .. }, Done::Task(task)) => answer(reply, Ok(task)),
                (Command::AwaitEnd { id, reply, .. }, Done::Waiting) => self.ended.add(id, reply),
                (Command::Cancel { reply, .. } | Command::AwaitEnd { reply, .. }, Done::Refused(why)) => {
                    answer(reply, Err(why));
                }
                (Command::PutObject { reply, .. } | Command::RemoveObject { reply, .. }, Done::Object(write)) => {
                    answer(reply, Ok(write));
                }
                (Command::Flush { reply }, Done::Nothing) => answer(reply, Ok(())),
                // The others have nobody to answer to.
                _ => {}
            }
        }
    }

    /// Stops the attempt that runs of a task, and does `then` when it has ended.
    fn stop(&mut self, id: TaskId, mut then: Command) {
        if let Command::Cancel { stopped, .. } = &mut then {
            *stopped = true;
        }
        if let Some(running) = self.running.get_mut(&id) {
            running.control.stop(Stop::Cancel);
            running.then.push(then);
        }
    }

    fn start(&mut self, start: Start) {
        let Start { task, place, program, limits } = start;
        let control = Control::new(place);
        let running = Running { task: task.clone(), control: control.clone(), then: Vec::new() };
        self.running.insert(task.id, running);
        self.executor.start(Job { task, program, limits, control });
    }

    /// Logs why the store did not take a transaction, now and then.
    fn log_failure(&mut self, error: &StoreError) {
        if matches!(error, StoreError::SyncFailed(_)) {
            sync_failed(error);
        }
        if self.failure_logged.is_none_or(|logged| logged.elapsed() >= LOG_STORE_EVERY) {
            self.failure_logged = Some(Instant::now());
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the store takes no writes; what has to be stored is kept and tried again"
            );
        }
    }

    fn after_commit(&mut self) {
        if self.failure_logged.take().is_some() {
            tracing::info!("the store takes writes again");
        }
        match self.store.checkpoint_if_due() {
            Ok(()) => {}
            Err(error @ StoreError::SyncFailed(_)) => sync_failed(&error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot empty the write-ahead log yet");
            }
        }
    }
}

impl Command {
    /// Whether somebody waits for an answer, and was counted for it.
    fn is_asked(&self) -> bool {
        !matches!(self, Command::Report(_) | Command::Log { .. } | Command::Room | Command::Drain { .. })
    }
}

/// Tells everybody who asked that nothing was done, and keeps what nobody would ask for again.
fn refuse(commands: Vec<Command>, error: &StoreError) -> Vec<Command> {
    let refusal = || match error {
        StoreError::NoRoom(_) | StoreError::TooSlow => Refused::NoRoom,
        StoreError::SyncFailed(_) | StoreError::Failed(_) => Refused::Internal(anyhow::anyhow!("{error}")),
    };
    let mut kept = Vec::new();
    for command in commands {
        match command {
            Command::Create { reply: Created::Stored(reply) | Created::Ended(reply), .. }
            | Command::Cancel { reply, .. } => answer(reply, Err(refusal())),
            // A read, which only looks in turn with the writes: it goes on waiting.
            Command::AwaitEnd { ref reply, .. } if reply.is_closed() => {}
            Command::AwaitEnd { .. } => kept.push(command),
            Command::Delete { reply, .. } | Command::Flush { reply } => answer(reply, Err(refusal())),
            Command::PutObject { reply, .. } | Command::RemoveObject { reply, .. } => answer(reply, Err(refusal())),
            Command::Report(_) | Command::Log { .. } | Command::Drain { .. } => kept.push(command),
            Command::Room => {}
        }
    }
    kept
}

/// After a failed sync nobody knows what is on the disk, and trying again proves nothing. The next
/// start reads what is really there.
fn sync_failed(error: &StoreError) -> ! {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "syncing the database failed, so what is on the disk is unknown: the server ends here; look at the disk, then \
         start it again"
    );
    std::process::exit(EXIT_SYNC_FAILED);
}

/// Puts back what a crash cut off.
fn recover(store: &mut Writer, max_interruptions: u32) -> Result<(), StoreError> {
    let now = clock::now();
    let mut after = None;
    let mut found = 0;
    loop {
        let tasks = store.running(after, MAX_BATCH)?;
        let Some(last) = tasks.last() else { break };
        after = Some(last.id);
        found += tasks.len();
        store.begin()?;
        for mut task in tasks {
            if task.apply(Event::Interrupt { max_interruptions }, now).is_ok() {
                store.update_task(&task)?;
            }
        }
        store.commit()?;
    }
    if found > 0 {
        tracing::warn!(tasks = found, "the server went down under running tasks; they are attempted again");
    }
    Ok(())
}

fn is_canceled(task: &Task) -> bool {
    task.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Canceled)
}
