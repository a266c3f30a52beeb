//! Random operations on the manager over a real store, with a clock of the test's own, against a model
//! of what must be true. `SEED` repeats a run, `STEPS` makes it longer.

mod at_once;
mod bounds;
mod ledger;
mod quotas;
mod refusals;
mod revoked;
mod uploads;
mod waited;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::core::{Core, CoreSettings, Workers};
use super::{Answer, Command, Idempotency, Manager, NewItem, Refused, Reply, Stored};
use ledger::Tally;
use quotas::Created;
use waited::Waited;

use crate::compiler::Compiler;
use crate::executor::{Job, Report};
use crate::host::Services;
use crate::host::http::{HttpSettings, Outbound};
use crate::host::live::LiveAttempts;
use crate::host::log::{LogLevel, LogLine, News};
use crate::key_value::KeyValues;
use crate::limits::Limits;
use crate::objects::Objects;
use crate::quotas::Quotas;
use crate::registry::{Registry, TaskType, Version};
use crate::room::{Memory, Room};
use crate::sandbox::{CodeCache, Cores, EngineSettings, RunEnd, Sandbox};
use crate::schedule::Concurrency;
use crate::secrets::Secrets;
use crate::storage::Storage;
use crate::store::{self, Readers, StoredType};
use crate::task::{
    AttemptEnd, Digest, ErrorKind, Hold, Labels, Outcome, RetryPolicy, Status, Task, TaskError, TaskId, Timestamp,
    Usage,
};
use crate::tenants::Tenants;

/// Attempts at once.
const SLOTS: usize = 3;

const MAX_INTERRUPTIONS: u32 = 2;
const MAX_ATTEMPTS: u32 = 3;
const MAX_PENDING: u64 = 12;
const RETENTION_MS: u64 = 200_000;
const USAGE_DAYS: u32 = 2;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn one_of<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        (!items.is_empty()).then(|| items[self.below(items.len() as u64) as usize].clone())
    }
}

fn reply<T>() -> (Reply<T>, oneshot::Receiver<Result<T, Refused>>) {
    oneshot::channel()
}

/// What must be there whatever happens: tasks that were acknowledged, as they were told last.
#[derive(Default)]
struct Told {
    /// By id: the task as it was told, and whether it was asked to be ended since.
    tasks: BTreeMap<TaskId, Task>,
    keys: HashMap<String, TaskId>,
    deleted: HashSet<TaskId>,
}

struct World {
    directory: tempfile::TempDir,
    runtime: Runtime,
    registry: Arc<Registry>,
    core: Option<Core>,
    jobs: std::sync::mpsc::Receiver<Job>,
    /// Attempts that the manager has started and that did not end yet.
    running: BTreeMap<TaskId, Job>,
    /// Reports of attempts that are over, to be sent once more.
    late: Vec<(TaskId, u32)>,
    now: Timestamp,
    told: Told,
    /// Creates that wait for the end of their task.
    waited: Vec<Waited>,
    last_event: u64,
    max_pending: u64,
    /// Its quotas beside that one.
    quotas: Quotas,
    created: Created,
    readers: Option<Readers>,
    tally: Tally,
}

const COMPONENT: Digest = Digest([7; 32]);

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let registry = Arc::new(Registry::default());
        let program = Arc::new(program(directory.path(), &runtime));
        registry.put_version(COMPONENT, Version::Ready(program.about.clone()));
        registry.put_program(COMPONENT, program);
        put_type(&registry, false, Concurrency::default());
        let mut world = World {
            directory,
            runtime,
            registry,
            core: None,
            jobs: std::sync::mpsc::channel().1,
            running: BTreeMap::new(),
            late: Vec::new(),
            now: Timestamp(1_800_000_000_000),
            told: Told::default(),
            waited: Vec::new(),
            last_event: 0,
            max_pending: MAX_PENDING,
            quotas: Quotas::default(),
            created: Created::default(),
            readers: None,
            tally: Tally::default(),
        };
        world.start();
        world
    }

    /// A server starts on what there is.
    fn start(&mut self) {
        let (mut writer, readers) = store::open(self.directory.path(), 1).unwrap();
        self.readers = Some(readers);
        let room = Arc::new(Room::new(SLOTS, SLOTS, Memory::new(0)));
        let (send, jobs) = std::sync::mpsc::channel();
        self.jobs = jobs;
        let settings = CoreSettings {
            defaults: Limits::DEFAULT,
            ceiling: Limits::CEILING,
            max_interruptions: MAX_INTERRUPTIONS,
            max_pending: self.max_pending,
            retention_ms: RETENTION_MS,
            usage_retention_days: USAGE_DAYS,
            audit_retention_days: 1,
        };
        let run = Box::new(move |job| drop(send.send(job)));
        let workers = Workers { run, room, turns: Arc::new(Cores::new(1)), compiler: Compiler::default() };
        let tenants = Arc::new(Tenants::new(Quotas { pending_tasks: Some(self.max_pending), ..self.quotas }));
        writer.tenants().unwrap().into_iter().for_each(|tenant| tenants.put(tenant));
        let core =
            Core::new(writer, self.registry.clone(), tenants, workers, Arc::default(), settings, self.now).unwrap();
        // How many were created at once is forgotten with the process.
        self.created.times.clear();
        self.core = Some(core);
        self.step(Vec::new());
    }

    /// Somebody pauses the type, or no longer.
    fn pause(&mut self) {
        let paused = self.is_paused();
        put_type(&self.registry, !paused, self.most_at_once());
        self.core.as_mut().unwrap().timers.look_at_held();
        self.step(Vec::new());
    }

    fn is_paused(&self) -> bool {
        self.registry.is_paused("default", "t")
    }

    /// The server goes down without a word.
    fn crash(&mut self) {
        self.tally.interrupted(self.running.len());
        self.running.clear();
        self.core = None;
        self.start();
    }

    fn step(&mut self, commands: Vec<Command>) {
        let mut kept = commands;
        let core = self.core.as_mut().unwrap();
        // What is to be done again is done at once, as the manager's thread does it.
        loop {
            let commands = std::mem::take(&mut kept);
            let again = core.step(commands, self.now, &mut kept);
            if kept.is_empty() && again > Duration::ZERO {
                break;
            }
        }
        while let Ok(job) = self.jobs.try_recv() {
            let before = self.running.insert(job.task.id, job);
            assert!(before.is_none(), "two attempts of one task at once");
            self.check_started();
        }
    }

    fn new_task(&self, random: &mut Random) -> Task {
        let id = TaskId(uuid::Uuid::now_v7());
        let later = |random: &mut Random, within: u64| self.now.plus_millis(random.below(within));
        let due_at = (random.below(4) == 0).then(|| later(random, 20_000)).filter(|due| *due > self.now);
        Task {
            id,
            tenant: "default".into(),
            task_type: "t".into(),
            component: COMPONENT,
            priority: random.below(3) as i32 - 1,
            created_at: self.now,
            limits: quotas::memory(random),
            input: random.below(1 << 30).to_string().into(),
            labels: Labels::from([("n".to_owned(), random.below(3).to_string())]),
            retry: RetryPolicy { max_attempts: MAX_ATTEMPTS, initial_backoff_ms: 5_000, max_backoff_ms: 20_000 },
            due_at,
            ready_at: due_at.unwrap_or(self.now),
            expires_at: (random.below(6) == 0).then(|| later(random, 15_000)),
            unique_key: (random.below(5) == 0).then(|| random.below(3).to_string().into()),
            schedule: None,
            concurrency_key: (random.below(4) == 0).then(|| random.below(2).to_string().into()),
            held: None,
            status: Status::Pending,
            attempt: 0,
            failures: 0,
            interruptions: 0,
            server: None,
            started_at: None,
            finished_at: None,
            progress: None,
            output: None,
            error: None,
            usage: None,
            usage_total: Usage::default(),
        }
    }

    fn create(&mut self, random: &mut Random) {
        let task = self.new_task(random);
        let key = (random.below(4) == 0).then(|| random.below(40).to_string());
        let idempotency =
            key.as_deref().map(|key| Idempotency { key: key.into(), item: -1, fingerprint: Digest([0; 32]) });
        let limits = Limits::DEFAULT.lowered(&task.limits);
        let item = Box::new(NewItem { task: task.clone(), limits, idempotency });
        if key.is_none() && random.below(2) == 0 {
            let (answer, answered) = reply();
            self.step(vec![Command::Create { item, reply: Answer::Ended(answer) }]);
            self.waited.push(Waited { task, answered });
            return;
        }
        let (answer, mut answered) = reply::<Stored>();
        let pending = self.count(Status::Pending) as u64;
        self.step(vec![Command::Create { item, reply: Answer::Stored(answer) }]);
        match answered.try_recv().unwrap() {
            Ok(Stored { task: stored, replayed }) => {
                let before = key.as_ref().and_then(|key| self.told.keys.get(key));
                if replayed {
                    assert_eq!(Some(&stored.id), before, "another task than the key's");
                } else {
                    assert_eq!(stored.id, task.id);
                    assert_eq!(before, None, "the key has a task already");
                    self.told.keys.extend(key.map(|key| (key, stored.id)));
                }
                self.told.tasks.insert(stored.id, stored);
            }
            Err(Refused::UniqueKey { holder }) => {
                let holder = self.stored(holder).unwrap();
                assert_eq!(holder.unique_key, task.unique_key);
                assert!(!holder.status.is_ended());
            }
            // Removed by somebody, or because it ended long ago.
            Err(Refused::Gone) => {
                let before = self.told.keys[&key.unwrap()];
                assert!(self.stored(before).is_none(), "{before} is there");
            }
            Err(Refused::TooManyPending { .. }) => {
                assert!(pending >= MAX_PENDING, "refused though there is room");
            }
            Err(Refused::TooManySubmitted { .. }) => {
                self.note_created();
                assert!(self.has_created_enough(), "refused though its rate allows one more");
            }
            Err(refused) => panic!("{refused}"),
        }
    }

    fn end_attempt(&mut self, random: &mut Random) {
        let ids: Vec<TaskId> = self.running.keys().copied().collect();
        let Some(job) = random.one_of(&ids).and_then(|id| self.running.remove(&id)) else { return };
        let failed = |kind| Outcome::Failed(TaskError::new(kind, "why"));
        let outcome = match random.below(8) {
            0..4 => Outcome::Completed(job.task.input.clone()),
            4 => failed(ErrorKind::Transient),
            5 => failed(ErrorKind::Timeout),
            6 => failed(ErrorKind::Trap),
            _ => {
                job.control.leave();
                self.late.push((job.task.id, job.task.attempt));
                let usage = self.tally.given_back(random);
                return self.report(job.task.id, job.task.attempt, RunEnd::GiveBack(usage));
            }
        };
        let end = AttemptEnd {
            usage: self.tally.ended(&outcome, random),
            outcome,
            progress: None,
            retry_after_ms: (random.below(2) == 0).then_some(3_000),
        };
        job.control.leave();
        self.late.push((job.task.id, job.task.attempt));
        self.report(job.task.id, job.task.attempt, RunEnd::Ended(end));
    }

    fn report(&mut self, id: TaskId, attempt: u32, end: RunEnd) {
        let line = LogLine { at: self.now, level: LogLevel::Info, message: "x".into() };
        let news = News { lines: vec![line], progress: None };
        self.step(vec![Command::Report(Report { id, attempt, end, ended_at: self.now, news })]);
    }

    /// A report that comes a second time, or of an attempt that a crash took.
    fn late_report(&mut self, random: &mut Random) {
        let Some((id, attempt)) = random.one_of(&self.late) else { return };
        if self.running.get(&id).is_some_and(|job| job.task.attempt == attempt) {
            return;
        }
        let end = AttemptEnd::host_failure("late");
        self.report(id, attempt, RunEnd::Ended(end));
        // Time may have changed the task meanwhile; the report must not have.
        let error = self.stored(id).and_then(|task| task.error);
        assert!(error.is_none_or(|error| error.message != "late"), "a late end was taken");
    }

    fn some_id(&self, random: &mut Random) -> Option<TaskId> {
        random.one_of(&self.told.tasks.keys().copied().collect::<Vec<_>>())
    }

    fn cancel(&mut self, random: &mut Random) {
        let Some(id) = self.some_id(random) else { return };
        let (answer, mut answered) = reply();
        self.step(vec![Command::Cancel { tenant: "default".into(), id, stopped: false, reply: answer }]);
        if let Some(job) = self.running.remove(&id) {
            // It is asked to stop, and does.
            job.control.leave();
            let stopped = Outcome::Failed(TaskError::new(ErrorKind::Canceled, "canceled"));
            let usage = self.tally.ended(&stopped, random);
            let end = AttemptEnd { outcome: stopped, usage, ..AttemptEnd::host_failure("") };
            self.report(id, job.task.attempt, RunEnd::Ended(end));
        }
        match answered.try_recv().unwrap() {
            Ok(task) => {
                assert_eq!(task.error.as_ref().unwrap().kind, ErrorKind::Canceled);
                self.told.tasks.insert(id, task);
            }
            Err(Refused::Ended) => assert!(self.stored(id).unwrap().status.is_ended()),
            Err(Refused::NotFound) => assert!(self.stored(id).is_none()),
            Err(refused) => panic!("{refused}"),
        }
    }

    fn retry(&mut self, random: &mut Random) {
        let Some(id) = self.some_id(random) else { return };
        let (answer, mut answered) = reply();
        self.step(vec![Command::Retry { tenant: "default".into(), id, reply: answer }]);
        match answered.try_recv().unwrap() {
            Ok(task) => {
                self.told.tasks.insert(id, task);
            }
            Err(Refused::NotEnded) => assert!(!self.stored(id).unwrap().status.is_ended()),
            Err(Refused::NotFound) => assert!(self.stored(id).is_none()),
            Err(Refused::UniqueKey { .. } | Refused::TooManyPending { .. }) => {}
            Err(refused) => panic!("{refused}"),
        }
    }

    fn delete(&mut self, random: &mut Random) {
        let Some(id) = self.some_id(random) else { return };
        let (answer, mut answered) = reply();
        self.step(vec![Command::Delete { tenant: "default".into(), id, reply: answer }]);
        if let Some(job) = self.running.remove(&id) {
            job.control.leave();
            let end = AttemptEnd::host_failure("stopped");
            let usage = self.tally.ended_and_removed(&end.outcome, &job.task, self.now, random);
            self.report(id, job.task.attempt, RunEnd::Ended(AttemptEnd { usage, ..end }));
        }
        match answered.try_recv().unwrap() {
            Ok(()) => assert!(self.stored(id).is_none()),
            Err(Refused::NotFound) => {}
            Err(refused) => panic!("{refused}"),
        }
        self.told.tasks.remove(&id);
        self.told.deleted.insert(id);
    }

    fn stored(&mut self, id: TaskId) -> Option<Task> {
        self.core.as_mut().unwrap().store.task(id).unwrap()
    }

    fn all(&mut self) -> Vec<Task> {
        self.core.as_mut().unwrap().store.all_tasks().unwrap()
    }

    fn count(&mut self, status: Status) -> usize {
        self.all().iter().filter(|task| task.status == status).count()
    }

    /// What must be true after every step.
    fn check(&mut self) {
        self.check_waited();
        self.check_quotas();
        let now = self.now;
        let all = self.all();
        let by_id: HashMap<TaskId, &Task> = all.iter().map(|task| (task.id, task)).collect();
        for (id, told) in &self.told.tasks {
            let Some(task) = by_id.get(id) else {
                let old = told.finished_at.is_none_or(|ended| now.millis_since(ended) >= RETENTION_MS);
                assert!(old, "{id} was acknowledged and is gone");
                continue;
            };
            assert_eq!((&task.input, &task.labels), (&told.input, &told.labels), "{id} changed");
            if told.status.is_ended() {
                assert_eq!(*task, told, "an ended task changed");
            }
            // One that was given back is not counted.
            assert!(task.attempt + 1 >= told.attempt, "attempts are uncounted: {task:?}");
        }
        for id in &self.told.deleted {
            assert!(!by_id.contains_key(id), "{id} was deleted and is back");
        }
        let running: Vec<TaskId> =
            all.iter().filter(|task| task.status == Status::Running).map(|task| task.id).collect();
        assert_eq!(running, self.running.keys().copied().collect::<Vec<_>>(), "what runs is what is Running");
        assert!(running.len() <= SLOTS);
        self.check_at_once(&all);
        let is_full = running.len() == SLOTS || self.is_at_quota(&all);
        let mut unique = HashSet::new();
        for task in &all {
            assert!(task.failures <= MAX_ATTEMPTS && task.interruptions <= MAX_INTERRUPTIONS + 1, "{task:?}");
            if task.status == Status::Pending {
                assert!(task.due_at.is_none_or(|due| due > now), "due and not ready: {task:?}");
                assert!(task.expires_at.is_none_or(|expires| expires > now), "expired and waits: {task:?}");
                let for_others = matches!(task.held, Some(Hold::Type | Hold::Key));
                let waits = task.due_at.is_some() || for_others || is_full || self.is_held();
                assert!(waits || self.is_paused(), "ready, and there is room: {task:?}");
                assert!(task.held != Some(Hold::Paused) || self.is_paused(), "held back for nothing: {task:?}");
            }
            if let Some(key) = task.unique_key.as_ref().filter(|_| !task.status.is_ended()) {
                assert!(unique.insert(key.clone()), "two tasks with one key");
            }
            let ended_long_ago = task.finished_at.is_some_and(|ended| now.millis_since(ended) > RETENTION_MS + 20_000);
            assert!(!ended_long_ago, "kept too long: {task:?}");
        }
        let core = self.core.as_mut().unwrap();
        let pending = core.store.pending().unwrap().iter().map(|(_, count)| count).sum::<u64>();
        assert_eq!(core.backlog.total(), pending, "the count is the store's");
        for task in &all {
            let attempts = core.store.attempt_numbers(task.id).unwrap();
            // Those in the table, and the one in the task's own row.
            let over = if task.started_at.is_some() { task.attempt - 1 } else { task.attempt };
            assert_eq!(attempts, (1..=over).collect::<Vec<_>>(), "{task:?}");
        }
        let (events, highest) = core.store.event_numbers_of("default");
        assert!(events >= self.last_event && events >= highest, "event numbers only grow");
        self.last_event = events;
        for task in all.into_iter().filter(|task| task.status.is_ended()) {
            // From now on it must stay as it is.
            if self.told.tasks.contains_key(&task.id) {
                self.told.tasks.insert(task.id, task);
            }
        }
    }

    /// The machine was short of something a moment ago, and starts wait.
    fn is_held(&self) -> bool {
        self.core.as_ref().unwrap().hold_starts.is_some()
    }
}

fn put_type(registry: &Registry, paused: bool, concurrency: Concurrency) {
    let stored = StoredType::new(crate::registry::SHARED.into(), "t".into());
    let stored = StoredType { component: Some(COMPONENT), paused, concurrency, ..stored };
    registry.put_type(stored.tenant.clone(), TaskType::of(&stored));
}

/// The smallest program there is; it is never run here.
fn program(directory: &Path, runtime: &Runtime) -> crate::sandbox::Program {
    let (_writer, readers) = store::open(&directory.join("elsewhere"), 1)
        .or_else(|_| {
            std::fs::create_dir_all(directory.join("elsewhere")).unwrap();
            store::open(&directory.join("elsewhere"), 1)
        })
        .unwrap();
    let live = Arc::new(LiveAttempts::default());
    let (manager, _) =
        Manager::new(readers.clone(), Arc::default(), live.clone(), Arc::default(), Limits::DEFAULT, Limits::CEILING);
    let secrets = Secrets::new(readers.clone(), None);
    let storage = Storage::new(manager, readers);
    let objects = Objects::new(storage.clone(), 0);
    let key_values = KeyValues::new(storage, 0);
    let timers = runtime.handle().clone();
    let outbound = Arc::new(Outbound::new(HttpSettings::default(), Arc::default(), timers.clone()).unwrap());
    let services = Services { objects, secrets, key_values, timers, outbound, live };
    let room = Arc::new(Room::new(1, 1, Memory::new(0)));
    let cache = CodeCache::open(directory.join("compiled")).unwrap();
    let settings = EngineSettings { slots: 1, max_memory_bytes: 1 << 20 };
    let sandbox = Sandbox::new(&settings, cache, room, Arc::new(Cores::new(1)), services).unwrap();
    let bytes = wat::parse_str(include_str!("model.wat")).unwrap();
    sandbox.compile(COMPONENT, &bytes).unwrap()
}

#[test]
fn whatever_happens_the_invariants_hold() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("SEED").unwrap_or_else(|| uuid::Uuid::now_v7().as_u128() as u64);
    let steps = number("STEPS").unwrap_or(1_500);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let mut world = World::new();
    assert!(world.registry.is_in_memory(COMPONENT));
    world.bound();
    let _on = world.runtime.handle().clone();
    for _ in 0..steps {
        match random.below(100) {
            0..30 => world.create(&mut random),
            30..60 => world.end_attempt(&mut random),
            60..70 => world.cancel(&mut random),
            70..76 => world.retry(&mut random),
            76..82 => world.delete(&mut random),
            82..85 => world.late_report(&mut random),
            85 => world.give_up(&mut random),
            86 => world.pause(),
            87 => world.bound_at_once(&mut random),
            88 => world.bound_at_work(&mut random),
            89..98 => {
                world.now = world.now.plus_millis(if random.below(3) == 0 { 10 } else { random.below(8_000) });
                world.step(Vec::new());
            }
            _ => world.crash(),
        }
        world.check();
        world.check_ledger();
    }
}
