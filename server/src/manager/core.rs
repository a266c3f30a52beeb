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

use super::backlog::Backlog;
use super::bulk::BulkDone;
use super::changes::Changes;
use super::concurrency::AtOnce;
use super::held::Held;
use super::settings::SettingsDone;
use super::tenants::TenantDone;
use super::types::{GoneTypes, TypeDone};
use super::upkeep::Timers;
use super::waiters::EndWaiters;
use super::{Command, Inbox, Refused, SecretWritten};
use crate::clock;
use crate::compiler::Compiler;
use crate::executor::Job;
use crate::grants::Grants;
use crate::limits::Limits;
use crate::registry::Registry;
use crate::room::{Place, Room};
use crate::sandbox::{Control, Cores, Program, Stop};
use crate::schedule::Queues;
use crate::schedules::Schedule;
use crate::store::{KeyValueWrite, ObjectWrite, StoreError, Writer};
use crate::task::{Event, Task, TaskId, Timestamp};
use crate::tenants::Tenants;

/// Commands in one transaction. More wait for the next: a transaction's length bounds how long the
/// first of them waits for its answer.
const MAX_BATCH: usize = 1024;

/// Tasks and keys that the commands of one transaction are about, or a few more: a command may be about many.
const MAX_THINGS: usize = 2_048;

/// Queued tasks that one transaction looks at, to start them.
pub(super) const MAX_STARTS: usize = 256;

/// Queued tasks of each tenant whose place is kept in memory.
const WINDOW: usize = 1_000;

/// How much longer than the grace a store that takes no writes is given when the server stops.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// How often a store that goes on taking no writes is logged.
const LOG_STORE_EVERY: Duration = Duration::from_secs(60);

/// How long to wait before the disk is tried again.
const RETRY_STORE: Duration = Duration::from_millis(500);

/// How long to wait before attempts are started again when the machine was short of something that
/// nobody announces: memory, or address space.
pub(super) const RETRY_START: Duration = Duration::from_millis(100);

/// Exit code for a storage of which nothing is known any more (EX_IOERR of sysexits).
const EXIT_SYNC_FAILED: i32 = 74;

/// Exit code for a fault of the program itself (EX_SOFTWARE of sysexits).
const EXIT_BUG: i32 = 70;

/// What the operator decides for the manager.
#[derive(Clone, Copy, Debug)]
pub struct CoreSettings {
    /// The limits where nobody says otherwise.
    pub defaults: Limits,
    /// The most any limit can be.
    pub ceiling: Limits,
    /// How often an attempt is repeated that the server went down under.
    pub max_interruptions: u32,
    /// How many tasks may be Pending, of all tenants together.
    pub max_pending: u64,
    /// How long ended tasks are kept where their type does not say, in milliseconds.
    pub retention_ms: u64,
    /// How many days it is kept what tenants used.
    pub usage_retention_days: u32,
    /// How many days lines of the audit log are kept.
    pub audit_retention_days: u32,
}

/// Who does what the manager wants done.
pub struct Workers {
    /// Is given what is to be run.
    pub run: Box<dyn Fn(Job) + Send>,
    /// Where it finds a place.
    pub room: Arc<Room>,
    /// Gives it its turns on the processors.
    pub turns: Arc<Cores>,
    /// Is given what is to be compiled.
    pub compiler: Compiler,
}

/// The state that only the manager's thread touches.
pub struct Core {
    pub(super) store: Writer,
    pub(super) room: Arc<Room>,
    pub(super) registry: Arc<Registry>,
    pub(super) tenants: Arc<Tenants>,
    pub(super) workers: Workers,
    pub(super) settings: CoreSettings,
    /// Which start of a server this is.
    pub(super) server: i64,
    pub(super) backlog: Backlog,
    pub(super) at_once: AtOnce,
    /// Whose tasks the open transaction created, of tenants who may create only so many in a time.
    pub(super) submitted: Vec<Arc<str>>,
    pub(super) timers: Timers,
    pub(super) changes: Arc<Changes>,
    /// What the open transaction changed, for those who listen.
    pub(super) changed: Vec<(Arc<str>, TaskId)>,
    pub(super) gone: GoneTypes,
    pub(super) ready: Queues,
    pub(super) running: HashMap<TaskId, Running>,
    /// Attempts of no task.
    pub(super) trials: HashMap<TaskId, Arc<Control>>,
    pub(super) ended: EndWaiters,
    pub(super) held: Held,
    /// No attempt is started before: the machine was short of something.
    pub(super) hold_starts: Option<Instant>,
    pub(super) draining: Option<Instant>,
    /// When it was last logged that the store takes no writes; `None` while it does.
    pub(super) failure_logged: Option<Instant>,
    /// When it was last logged that the machine is short of something.
    pub(super) shortage_logged: Option<Instant>,
}

/// An attempt that runs.
pub(super) struct Running {
    pub(super) task: Task,
    pub(super) control: Arc<Control>,
    /// The event that tells how far it is, of which only the newest is kept.
    pub(super) progress: Option<u64>,
    /// Who canceled or deletes the task, to be answered when the attempt has ended.
    pub(super) then: Vec<Command>,
}

/// What a command did inside the transaction, to be told after its commit.
pub(super) enum Done {
    Nothing,
    Refused(Refused),
    /// A create that is done again in some milliseconds.
    Held,
    /// The task as it is now.
    Task(Task),
    /// A new task, or the one that there is already under its idempotency key.
    Created(Result<Created, Refused>),
    CreatedMany(Vec<Result<Created, Refused>>),
    /// The task's attempt is to be stopped; the answer comes with its end.
    Stopping,
    /// The task has not ended; the answer comes with its end.
    Waiting,
    Removed(TaskId),
    Object(ObjectWrite),
    KeyValue(KeyValueWrite),
    /// The schedule as it is now, and whether there was none before.
    Schedule(Box<(Schedule, bool)>),
    Secret(Result<SecretWritten, Refused>),
    Bulk(BulkDone),
    Settings(SettingsDone),
    Type(Box<TypeDone>),
    /// Room for what is no task, if there is any.
    Trial(Option<Place>),
    Tenant(Box<TenantDone>),
}

/// A task that is there now.
pub(super) struct Created {
    pub(super) task: Task,
    /// It was there before, under the same idempotency key.
    pub(super) replayed: bool,
    /// It starts at once, with this.
    pub(super) start: Option<(Place, Arc<Program>, Limits)>,
}

/// What a transaction did beside its commands.
#[derive(Default)]
pub(super) struct Started {
    /// To be started after the commit.
    pub(super) starts: Vec<Start>,
    /// Ended by it: they expired, or cannot be run.
    pub(super) ended: Vec<TaskId>,
    /// It looked at as many queued tasks as it may, and there may be room for more.
    pub(super) full: bool,
}

/// An attempt to be started after the commit.
pub(super) struct Start {
    pub(super) task: Task,
    pub(super) place: Place,
    pub(super) program: Arc<Program>,
    pub(super) limits: Limits,
}

impl Core {
    /// The manager's state over a store; attempts that a crash cut off are put back first.
    pub fn new(
        mut store: Writer,
        registry: Arc<Registry>,
        tenants: Arc<Tenants>,
        workers: Workers,
        changes: Arc<Changes>,
        settings: CoreSettings,
        now: Timestamp,
    ) -> Result<Core, StoreError> {
        store.begin()?;
        let server = store.new_server(now)?;
        store.commit()?;
        let backlog = Backlog::new(settings.max_pending, store.pending()?);
        let backlog_tenants = backlog.tenants().cloned().collect();
        let mut core = Core {
            store,
            room: workers.room.clone(),
            registry,
            tenants,
            workers,
            settings,
            server,
            backlog,
            at_once: AtOnce::default(),
            submitted: Vec::new(),
            timers: Timers::all_at_once(),
            changes,
            changed: Vec::new(),
            gone: GoneTypes::default(),
            ready: Queues::new(WINDOW, backlog_tenants),
            running: HashMap::new(),
            trials: HashMap::new(),
            ended: EndWaiters::default(),
            held: Held::default(),
            hold_starts: None,
            draining: None,
            failure_logged: None,
            shortage_logged: None,
        };
        core.recover(now)?;
        // What was to be looked at when the server went down.
        for (tenant, name) in core.store.types_held_at_once()? {
            core.at_once.look_again(&tenant, &name);
        }
        Ok(core)
    }

    /// Puts back what a crash cut off.
    fn recover(&mut self, now: Timestamp) -> Result<(), StoreError> {
        self.recover_bulk(now)?;
        let max_interruptions = self.settings.max_interruptions;
        let mut found = 0;
        loop {
            // Those that were put back are not found again.
            let tasks = self.store.running_elsewhere(self.server, None, MAX_BATCH)?;
            if tasks.is_empty() {
                break;
            }
            found += tasks.len();
            self.store.begin()?;
            for mut task in tasks {
                let _ = self.change(&mut task, Event::Interrupt { max_interruptions }, now)?;
            }
            self.store.commit()?;
            self.at_once.committed();
            self.backlog.committed(now);
        }
        if found > 0 {
            tracing::warn!(tasks = found, "the server went down under running tasks; they are attempted again");
        }
        Ok(())
    }

    /// Does what comes in until the server stops. A panic here ends the process: without its one writer
    /// the server can do nothing, and the next start finds everything that was committed.
    pub fn run(mut self, inbox: Inbox) {
        let _end = EndWithPanic;
        let mut batch: Vec<Command> = Vec::with_capacity(MAX_BATCH);
        // Commands that must not get lost when the disk takes no writes.
        let mut kept: Vec<Command> = Vec::new();
        // What was left of an earlier run is started at once.
        let mut again = Duration::ZERO;
        while self.gather(&inbox, &mut batch, again) {
            let mut commands = std::mem::take(&mut kept);
            commands.append(&mut batch);
            again = self.step(commands, clock::now(), &mut kept);
            if let Some(deadline) = self.draining {
                if self.running.is_empty() && self.trials.is_empty() && kept.is_empty() {
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
                    let tasks = self.running.values().map(|running| &running.control);
                    tasks.chain(self.trials.values()).for_each(|control| control.stop(Stop::GiveBack));
                }
                again = again.min(next - now);
            }
        }
        if let Err(error) = self.note_used_keys_at_last() {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot write down when keys were used last");
        }
        match self.store.checkpoint_all() {
            Ok(()) => {}
            Err(error @ StoreError::SyncFailed(_)) => sync_failed(&error),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot empty the write-ahead log");
            }
        }
        inbox.drained.store(true, Ordering::Release);
        self.changes.close();
    }

    /// One transaction with what follows it. Returns when the next has to be, whether or not anybody asks
    /// for anything; what has to be done again is put into `kept`.
    pub(super) fn step(&mut self, commands: Vec<Command>, now: Timestamp, kept: &mut Vec<Command>) -> Duration {
        let commands = self.with_held(commands, now);
        match self.transaction(&commands, now) {
            Ok((done, Started { starts, ended, full })) => {
                let full = full || !self.at_once.committed();
                self.backlog.committed(now);
                self.submitted.clear();
                self.tell(commands, done, now, kept);
                starts.into_iter().for_each(|start| self.start(start));
                ended.into_iter().for_each(|id| self.tell_ended(id));
                // Looked at only now: who began to listen before the commit, and read what was there, waits
                // for this.
                if self.changes.has_listeners() {
                    self.changed.iter().for_each(|(tenant, id)| self.changes.tell(tenant, *id));
                }
                self.changed.clear();
                self.tell_gone();
                self.after_commit();
                if full || !kept.is_empty() {
                    return Duration::ZERO;
                }
                let mut next = self.timers.next(now);
                if !self.held.is_empty() {
                    // Whoever makes room from here on says so.
                    self.room.announce();
                    let mut admitted = self.admitted();
                    let due = self.held.any(|tenant| admitted.take(tenant));
                    next = if due { Duration::ZERO } else { next.min(self.held.next(now)) };
                }
                self.held_for().map_or(next, |held| held.min(next))
            }
            Err(error) => {
                self.store.rollback();
                self.backlog.rolled_back();
                self.at_once.rolled_back();
                self.submitted.drain(..).for_each(|tenant| self.tenants.unsubmit(&tenant));
                self.changed.clear();
                self.gone.clear();
                self.ready.reset(self.backlog.tenants());
                self.timers = Timers::all_at_once();
                self.log_failure(&error);
                *kept = self.refuse(commands, &error);
                RETRY_STORE
            }
        }
    }

    /// The commands, after the creates that were held back until now.
    fn with_held(&mut self, commands: Vec<Command>, now: Timestamp) -> Vec<Command> {
        if self.held.is_empty() {
            return commands;
        }
        let mut held = std::mem::take(&mut self.held);
        let mut admitted = self.admitted();
        let mut all = held.take(now, |tenant| admitted.take(tenant));
        self.held = held;
        all.extend(commands);
        all
    }

    /// Waits for commands, and takes all that are there. False when there can be no more.
    pub(super) fn gather(&self, inbox: &Inbox, batch: &mut Vec<Command>, wait: Duration) -> bool {
        let first = match inbox.commands.recv_timeout(wait) {
            Ok(command) => Some(command),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return false,
        };
        let mut things = 0;
        for command in first.into_iter().chain(inbox.commands.try_iter()) {
            things += command.things();
            batch.push(command);
            if batch.len() >= MAX_BATCH || things >= MAX_THINGS {
                break;
            }
        }
        let asked = batch.iter().filter(|command| command.is_asked()).count();
        inbox.waiting.fetch_sub(asked, Ordering::AcqRel);
        true
    }

    fn transaction(&mut self, commands: &[Command], now: Timestamp) -> Result<(Vec<Done>, Started), StoreError> {
        let mut done = Vec::with_capacity(commands.len());
        self.store.begin()?;
        for command in commands {
            done.push(self.apply(command, now)?);
        }
        let mut started = self.keep_up(now)?;
        self.start_ready(now, &mut started)?;
        self.store.commit()?;
        Ok((done, started))
    }

    pub(super) fn start(&mut self, start: Start) {
        let Start { task, place, program, limits } = start;
        let control = self.control(&task.tenant, place, true);
        let grants = self.grants(&task);
        let running = Running { task: task.clone(), control: control.clone(), progress: None, then: Vec::new() };
        self.running.insert(task.id, running);
        (self.workers.run)(Job { task, program, limits, grants, control, told: None });
    }

    /// What a task may touch: what the type is granted that its component is a version of. Since it was created its
    /// tenant's type of that name may have come, or gone.
    pub(super) fn grants(&mut self, task: &Task) -> Arc<Grants> {
        for (owner, found) in self.registry.own_and_shared(&task.tenant, &task.task_type) {
            if [found.current, found.next].contains(&Some(task.component)) {
                return found.grants;
            }
            match self.store.has_version(&owner, &task.task_type, task.component) {
                Ok(true) => return found.grants,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, task = %task.id, "it is granted nothing");
                    break;
                }
            }
        }
        Arc::default()
    }

    /// Starts no attempts for a moment: the machine is short of something. That is logged now and then, as tasks only
    /// wait for it.
    pub(super) fn hold_starts(&mut self, short_of: &str) {
        self.hold_starts = Some(Instant::now() + RETRY_START);
        if self.shortage_logged.is_none_or(|logged| logged.elapsed() >= LOG_STORE_EVERY) {
            self.shortage_logged = Some(Instant::now());
            tracing::warn!(running = self.running.len(), "tasks wait: {short_of}");
        }
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

/// Ends the process where it is dropped by a panic.
struct EndWithPanic;

impl Drop for EndWithPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the manager failed, which is a bug: the server ends here, with all that was committed");
            std::process::exit(EXIT_BUG);
        }
    }
}
