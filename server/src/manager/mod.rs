//! The manager: everything that can be done with tasks. Requests become commands to its one thread
//! (`core`), which alone changes state; reads go to the store beside it.

mod apply;
mod backlog;
mod bulk;
mod changes;
mod check;
mod concurrency;
mod core;
mod held;
mod held_back;
mod key_value;
mod logs;
#[cfg(test)]
mod model;
mod objects;
mod refused;
mod schedules;
mod secrets;
mod settings;
mod starts;
mod tell;
mod tenants;
mod trial;
mod types;
mod upkeep;
mod waiters;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::oneshot;

pub use self::core::{Core, CoreSettings, Workers};
pub use changes::{Changes, Listener, Topic};
pub use refused::{FieldError, Refused};
pub use secrets::SecretWritten;
pub use settings::SettingsPatch;
pub use tenants::{Change, Changed, NewKey, administer};
pub use trial::LONGEST as LONGEST_TRIAL;
pub(crate) use types::promoted;
pub use types::{Seen, Uploaded};

use bulk::BulkCommand;
use key_value::KeyValueCommand;
use objects::PutObject;
use schedules::PutSchedule;
use secrets::SecretCommand;
use settings::SettingsCommand;
use tenants::TenantCommand;
use trial::{TrialCommand, Tried};
use types::TypeCommand;

use crate::audit::Actor;
use crate::executor::Report;
use crate::host::live::LiveAttempts;
use crate::host::log::News;
use crate::limits::{LimitOverrides, Limits};
use crate::registry::{Registry, TaskType, Version};
use crate::schedules::Schedule;
use crate::store::{ListFilter, LoggedLine, ObjectWrite, Page, Precondition, Readers, StoreError, ToldEvents};
use crate::task::{AttemptRecord, Digest, Hold, Labels, RetryOverrides, Status, Task, TaskId, Timestamp};
use crate::turns::Places;

/// Requests that may wait for the manager's thread. More are refused: they would only wait longer.
const MAX_WAITING: usize = 8192;

/// Inputs that are checked at once, of those that take their time.
const INPUTS_AT_ONCE: usize = 2;

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

fn answer<T>(reply: Reply<T>, result: Result<T, Refused>) {
    // Whoever hung up cancels nothing.
    let _ = reply.send(result);
}

/// Whether a create is answered when the task is stored or when it has ended.
enum Answer {
    Stored(Reply<Stored>),
    Ended(Reply<Task>),
}

/// A task that is in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As it was when this was told.
    pub task: Task,
    /// It was there before, under the same idempotency key.
    pub replayed: bool,
}

/// What became of many tasks that were to be created.
pub struct CreatedMany {
    /// For each, why it never came to be stored.
    pub refused: Vec<Option<Refused>>,
    /// What became of the others, or why all of them were refused together.
    pub stored: Result<Vec<Result<Stored, Refused>>, Refused>,
}

/// A task to be stored.
struct NewItem {
    task: Task,
    limits: Limits,
    idempotency: Option<Idempotency>,
}

/// What makes a repeated create lead to the same task.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// The client's key.
    pub key: Arc<str>,
    /// The place in the array of a `POST /tasks`; -1 for a `POST /task`.
    pub item: i64,
    /// SHA-256 of the request, or of its item.
    pub fingerprint: Digest,
}

/// What the manager's thread is asked to do.
enum Command {
    Create {
        item: Box<NewItem>,
        reply: Answer,
    },
    CreateMany {
        items: Vec<NewItem>,
        reply: Reply<Vec<Result<Stored, Refused>>>,
    },
    Report(Report),
    Log {
        id: TaskId,
        attempt: u32,
        news: News,
    },
    /// `stopped`: its attempt was stopped for it.
    Cancel {
        tenant: Arc<str>,
        id: TaskId,
        stopped: bool,
        reply: Reply<Task>,
    },
    Retry {
        tenant: Arc<str>,
        id: TaskId,
        reply: Reply<Task>,
    },
    Delete {
        tenant: Arc<str>,
        id: TaskId,
        reply: Reply<()>,
    },
    /// Answered with the task once it has ended.
    AwaitEnd {
        tenant: Arc<str>,
        id: TaskId,
        reply: Reply<Task>,
    },
    PutObject {
        tenant: Arc<str>,
        put: PutObject,
        reply: Reply<ObjectWrite>,
    },
    RemoveObject {
        tenant: Arc<str>,
        name: String,
        precondition: Precondition,
        reply: Reply<ObjectWrite>,
    },
    PutSchedule {
        tenant: Arc<str>,
        put: Box<PutSchedule>,
        /// With whether there was none before.
        reply: Reply<(Schedule, bool)>,
    },
    DeleteSchedule {
        tenant: Arc<str>,
        name: Arc<str>,
        precondition: Precondition,
        by: Actor,
        reply: Reply<()>,
    },
    Secret(Box<SecretCommand>),
    KeyValue(Box<KeyValueCommand>),
    Bulk(BulkCommand),
    Settings(Box<SettingsCommand>),
    Type(Box<TypeCommand>),
    Trial(Box<TrialCommand>),
    Tried(Box<Tried>),
    Tenant(Box<TenantCommand>),
    /// Answered once everything before it was done.
    Flush {
        reply: Reply<()>,
    },
    /// The same, with whether there is such a task: for a create that was sent. It had its place among
    /// those that wait, so this is counted no more.
    IsStored {
        tenant: Arc<str>,
        id: TaskId,
        reply: Reply<()>,
    },
    /// There may be room again.
    Room,
    /// Stop: no new attempts, and those that run may take that long.
    Drain {
        grace: Duration,
    },
}

/// The commands, on their way to [`Core`].
pub struct Inbox {
    commands: mpsc::Receiver<Command>,
    waiting: Arc<AtomicUsize>,
    drained: Arc<AtomicBool>,
}

/// A task to be created, as a client describes it.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// The name of its type.
    pub task_type: String,
    /// Its input: valid JSON.
    pub input: Arc<str>,
    /// −100 … 100.
    pub priority: i32,
    /// Lowered limits.
    pub limits: LimitOverrides,
    /// What its client calls it by.
    pub labels: Labels,
    /// How its attempts are repeated, where it is not as its type says.
    pub retry: RetryOverrides,
    /// Not to be started before.
    pub due_at: Option<Timestamp>,
    /// Fails if it is still Pending then.
    pub expires_at: Option<Timestamp>,
    /// At most one task that has not ended has it.
    pub unique_key: Option<Arc<str>>,
    /// So many that have it run at once as the type says.
    pub concurrency_key: Option<Arc<str>>,
    /// What makes a repeated create lead to the same task.
    pub idempotency: Option<Idempotency>,
}

/// A handle to the manager; clones are the same manager.
#[derive(Clone)]
pub struct Manager(Arc<Shared>);

struct Shared {
    commands: mpsc::Sender<Command>,
    waiting: Arc<AtomicUsize>,
    draining: AtomicBool,
    drained: Arc<AtomicBool>,
    readers: Readers,
    registry: Arc<Registry>,
    live: Arc<LiveAttempts>,
    changes: Arc<Changes>,
    defaults: Limits,
    ceiling: Limits,
    /// Held to look for tasks of bulk operations.
    bulk_turn: tokio::sync::Semaphore,
    /// Held to look at a schema.
    schema_turn: Places,
    /// Held to check an input that takes its time.
    input_turn: Places,
}

impl Manager {
    /// A manager's handle, and the commands that [`Core`] takes.
    pub fn new(
        readers: Readers,
        registry: Arc<Registry>,
        live: Arc<LiveAttempts>,
        changes: Arc<Changes>,
        defaults: Limits,
        ceiling: Limits,
    ) -> (Manager, Inbox) {
        let (commands, inbox) = mpsc::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let drained = Arc::new(AtomicBool::new(false));
        let shared = Shared {
            commands,
            waiting: waiting.clone(),
            draining: AtomicBool::new(false),
            drained: drained.clone(),
            readers,
            registry,
            live,
            changes,
            defaults,
            ceiling,
            bulk_turn: tokio::sync::Semaphore::new(1),
            schema_turn: Places::new(1),
            input_turn: Places::new(INPUTS_AT_ONCE),
        };
        (Manager(Arc::new(shared)), Inbox { commands: inbox, waiting, drained })
    }

    /// Creates a task. It is durable when this returns.
    pub async fn create(&self, tenant: &Arc<str>, new: NewTask) -> Result<Stored, Refused> {
        let item = Box::new(self.check(tenant, new, None).await?);
        self.ask(|reply| Command::Create { item, reply: Answer::Stored(reply) }).await
    }

    /// Creates a task and waits for its end, but no longer than `wait`.
    pub async fn create_and_wait(&self, tenant: &Arc<str>, new: NewTask, wait: Duration) -> Result<Stored, Refused> {
        let item = Box::new(self.check(tenant, new, None).await?);
        let task = item.task.clone();
        // Under a key the task may be another one, whose id only the manager knows. So such a create is
        // answered first, and waited for then.
        if item.idempotency.is_some() {
            let stored = self.ask(|reply| Command::Create { item, reply: Answer::Stored(reply) }).await?;
            // It is stored. Where waiting for its end is refused, that is told no less.
            return Ok(match self.get_ended(tenant, stored.task.id, wait).await {
                Ok(task) => Stored { task, ..stored },
                Err(_) => stored,
            });
        }
        let ended = self.ask(|reply| Command::Create { item, reply: Answer::Ended(reply) });
        match tokio::time::timeout(wait, ended).await {
            // It may still be on its way to the disk, or the server stopped over it.
            Ok(Err(Refused::Draining)) | Err(_) => self.await_stored(task).await,
            Ok(ended) => ended,
        }
        .map(|task| Stored { task, replayed: false })
    }

    /// Creates many tasks, each of which is durable or refused when this returns.
    pub async fn create_many(&self, tenant: &Arc<str>, new: Vec<NewTask>) -> CreatedMany {
        let mut items = Vec::with_capacity(new.len());
        let mut refused = Vec::with_capacity(new.len());
        for new in new {
            let checked = self.check(tenant, new, None).await;
            refused.push(checked.map(|item| items.push(item)).err());
        }
        let stored = if items.is_empty() {
            Ok(Vec::new())
        } else {
            self.ask(|reply| Command::CreateMany { items, reply }).await
        };
        CreatedMany { refused, stored }
    }

    /// A task of the current version of its type, or of `version`, which the type has.
    async fn check(&self, tenant: &Arc<str>, new: NewTask, version: Option<Digest>) -> Result<NewItem, Refused> {
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        let shared = &self.0;
        let (item, rules) = check::new_item(&shared.registry, &shared.defaults, &shared.ceiling, tenant, new, version)?;
        let Some(rules) = rules else { return Ok(item) };
        if rules.are_cheap(&item.task.input) {
            rules.check(&item)?;
            // Many of them come one after the other, and others wait for the thread.
            tokio::task::yield_now().await;
            return Ok(item);
        }
        let turn = shared.input_turn.take(tenant).await;
        let checked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            rules.check(&item).map(|()| item)
        });
        checked.await.map_err(|error| Refused::Internal(error.into()))?
    }

    /// A task, as far as it is now.
    pub async fn get(&self, tenant: &Arc<str>, id: TaskId) -> Result<Task, Refused> {
        let task = self.0.readers.task(tenant.clone(), id).await?;
        let mut task = task.ok_or(Refused::NotFound)?;
        self.add_live(&mut task);
        Ok(task)
    }

    /// A task once it has ended, or as it is after `wait`.
    pub async fn get_ended(&self, tenant: &Arc<str>, id: TaskId, wait: Duration) -> Result<Task, Refused> {
        let task = self.get(tenant, id).await?;
        if task.status.is_ended() {
            return Ok(task);
        }
        let ended = self.ask(|reply| Command::AwaitEnd { tenant: tenant.clone(), id, reply });
        match tokio::time::timeout(wait, ended).await {
            Ok(Err(Refused::Draining)) | Err(_) => self.get(tenant, id).await,
            Ok(ended) => ended,
        }
    }

    /// A task once it is not as `known` says any more, or as it is after `wait`.
    pub async fn get_changed(
        &self,
        tenant: &Arc<str>,
        id: TaskId,
        wait: Duration,
        known: impl Fn(&Task) -> bool,
    ) -> Result<Task, Refused> {
        let deadline = tokio::time::Instant::now() + wait;
        // Before the first look, so that nothing is missed after it.
        let mut listener = self.0.changes.listen(Topic::Task(id));
        loop {
            let task = self.get(tenant, id).await?;
            if !known(&task) || self.is_drained() {
                return Ok(task);
            }
            if tokio::time::timeout_at(deadline, listener.changed()).await.is_err() {
                return Ok(task);
            }
        }
    }

    /// Every attempt of a task, the first one first.
    pub async fn attempts(&self, tenant: &Arc<str>, id: TaskId) -> Result<Vec<AttemptRecord>, Refused> {
        self.0.readers.attempts(tenant.clone(), id).await?.ok_or(Refused::NotFound)
    }

    /// What happened to a task after event `after`.
    pub async fn task_events(&self, tenant: &Arc<str>, id: TaskId, after: u64) -> Result<ToldEvents, Refused> {
        self.0.readers.task_events(tenant.clone(), id, after).await?.ok_or(Refused::NotFound)
    }

    /// What happened to a tenant's tasks after event `after`.
    pub async fn tenant_events(&self, tenant: &Arc<str>, after: u64) -> Result<ToldEvents, Refused> {
        Ok(self.0.readers.tenant_events(tenant.clone(), after).await?)
    }

    /// The number of a tenant's newest event.
    pub async fn newest_event(&self, tenant: &Arc<str>) -> Result<u64, Refused> {
        Ok(self.0.readers.newest_event(tenant.clone()).await?)
    }

    /// Listens to what happens.
    pub fn listen(&self, topic: Topic) -> Listener {
        self.0.changes.listen(topic)
    }

    /// A task whose create was sent but not yet answered. It is refused only where it is not stored: its
    /// client may send it again then.
    async fn await_stored(&self, created: Task) -> Result<Task, Refused> {
        let (tenant, id) = (created.tenant.clone(), created.id);
        let (reply, answer) = oneshot::channel();
        // Commands are done in turn: once this one is answered, the create was, too.
        self.send(Command::IsStored { tenant: tenant.clone(), id, reply });
        match answer.await {
            // Where it cannot be read at the moment, it is told as it was created.
            Ok(Ok(())) => Ok(self.get(&tenant, id).await.unwrap_or(created)),
            Ok(Err(Refused::NotFound)) if !self.is_draining() => Err(Refused::NoRoom),
            Ok(Err(Refused::NotFound)) => Err(Refused::Draining),
            Ok(Err(refused)) => Err(refused),
            // The manager's thread has ended. Only the store knows.
            Err(_) => self.get(&tenant, id).await.map_err(|refused| match refused {
                Refused::NotFound => Refused::Draining,
                other => Refused::Internal(other.into()),
            }),
        }
    }

    /// Tasks that match, newest first, from before `before` on.
    pub async fn list(
        &self,
        tenant: &Arc<str>,
        filter: ListFilter,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Page, Refused> {
        let mut page = self.0.readers.list(tenant.clone(), filter, before, limit).await?;
        for task in &mut page.tasks {
            self.add_live(task);
        }
        Ok(page)
    }

    /// Lines of a task's log after line `after`: number, attempt and line.
    pub async fn log(
        &self,
        tenant: &Arc<str>,
        id: TaskId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<LoggedLine>, Refused> {
        self.0.readers.log(tenant.clone(), id, after, limit).await?.ok_or(Refused::NotFound)
    }

    /// Cancels a task wherever it is. It has ended when this returns.
    pub async fn cancel(&self, tenant: &Arc<str>, id: TaskId) -> Result<Task, Refused> {
        self.ask(|reply| Command::Cancel { tenant: tenant.clone(), id, stopped: false, reply }).await
    }

    /// Attempts an ended task afresh, under the same id.
    pub async fn retry(&self, tenant: &Arc<str>, id: TaskId) -> Result<Task, Refused> {
        self.ask(|reply| Command::Retry { tenant: tenant.clone(), id, reply }).await
    }

    /// Stops a task if need be and removes it. It is gone when this returns.
    pub async fn delete(&self, tenant: &Arc<str>, id: TaskId) -> Result<(), Refused> {
        self.ask(|reply| Command::Delete { tenant: tenant.clone(), id, reply }).await
    }

    /// The type that a name means for a tenant.
    pub fn task_type(&self, tenant: &str, name: &str) -> Option<TaskType> {
        self.0.registry.find(tenant, name)
    }

    /// Whether a name means a type of the operator's for a tenant.
    pub fn is_shared(&self, tenant: &str, name: &str) -> bool {
        self.0.registry.own(tenant, name).is_none()
    }

    /// All types that a tenant sees.
    pub fn task_types(&self, tenant: &str) -> Vec<TaskType> {
        self.0.registry.all(tenant)
    }

    /// What is known of a version of a type.
    pub fn version(&self, component: Digest) -> Option<Version> {
        self.0.registry.version(component)
    }

    /// The versions of a type with the time of their storing, newest first.
    pub async fn versions(&self, tenant: &Arc<str>, name: &str) -> Result<Vec<(Digest, Timestamp)>, Refused> {
        let mut versions = self.0.readers.versions(tenant.clone(), name.to_owned()).await?;
        if versions.is_empty() {
            versions = self.0.readers.versions(crate::registry::SHARED.into(), name.to_owned()).await?;
        }
        Ok(versions)
    }

    /// The limits of a type's attempts where a task asks for nothing.
    pub fn limits_of(&self, task_type: &TaskType) -> Limits {
        task_type.limits(&self.0.defaults, &self.0.ceiling)
    }

    /// Takes the end of an attempt.
    pub fn report(&self, report: Report) {
        self.send(Command::Report(report));
    }

    /// Says that there may be room for attempts again.
    pub fn room(&self) {
        self.send(Command::Room);
    }

    /// Stops taking work, gives running attempts `grace`, and ends the manager's thread.
    pub fn drain(&self, grace: Duration) {
        self.0.draining.store(true, Ordering::Release);
        self.send(Command::Drain { grace });
    }

    /// Whether the server stops.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Whether the manager's thread has ended: everything is stored, and nothing runs.
    pub fn is_drained(&self) -> bool {
        self.0.drained.load(Ordering::Acquire)
    }

    /// Whether the store answers.
    pub async fn ping(&self) -> Result<(), Refused> {
        Ok(self.0.readers.ping().await?)
    }

    fn add_live(&self, task: &mut Task) {
        if task.status == Status::Running {
            task.progress = self.0.live.progress(task.id, task.attempt);
        }
        // Whether or not that was written down of the task yet.
        if task.status == Status::Pending && task.due_at.is_none() {
            let is_paused = self.0.registry.is_paused(&task.tenant, &task.task_type);
            task.held = task.held.filter(|why| *why != Hold::Paused).or(is_paused.then_some(Hold::Paused));
        }
    }

    fn send(&self, command: Command) {
        // After the end of the manager's thread nothing is left to be done.
        let _ = self.0.commands.send(command);
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
        if self.0.waiting.fetch_add(1, Ordering::AcqRel) >= MAX_WAITING {
            self.0.waiting.fetch_sub(1, Ordering::AcqRel);
            return Err(Refused::Busy);
        }
        let (reply, answer) = oneshot::channel();
        self.send(command(reply));
        answer.await.unwrap_or(Err(Refused::Draining))
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        match error {
            StoreError::NoRoom(_) => Refused::NoRoom,
            StoreError::TooSlow => Refused::TooSlow,
            StoreError::SyncFailed(_) | StoreError::Failed(_) => Refused::Internal(error.into()),
        }
    }
}
