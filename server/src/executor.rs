//! Runs attempts on the guests' own threads and reports how they ended.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::clock;
use crate::grants::Grants;
use crate::host::AttemptOf;
use crate::host::log::{LogBuffer, News, OnLine};
use crate::limits::Limits;
use crate::sandbox::{Attempt, Control, Program, RunEnd, Sandbox};
use crate::task::{AttemptEnd, Task, TaskId, Timestamp};

/// An attempt that is durably Running and waits to be run.
pub struct Job {
    /// The task, as it was stored.
    pub task: Task,
    /// Its component.
    pub program: Arc<Program>,
    /// Its limits.
    pub limits: Limits,
    /// What it may touch.
    pub grants: Arc<Grants>,
    /// Its handle, with its place.
    pub control: Arc<Control>,
    /// Who is told of its end, where it is of no task that is stored. Its lines come with its end.
    pub told: Option<Told>,
}

/// Is told how an attempt ended.
pub type Told = Box<dyn FnOnce(Report) + Send>;

/// How an attempt ended.
pub struct Report {
    /// The task.
    pub id: TaskId,
    /// The number of the attempt.
    pub attempt: u32,
    /// How.
    pub end: RunEnd,
    /// When.
    pub ended_at: Timestamp,
    /// What it said that was not stored yet.
    pub news: News,
}

/// Attempts that wait for their lines to be stored, at most; no more than a quarter of the slots.
const FLOODS: usize = 32;

/// Starts attempts.
#[derive(Clone)]
pub struct Executor {
    guests: Handle,
    floods: Arc<Semaphore>,
    sandbox: Arc<Sandbox>,
    on_line: OnLine,
    report: Arc<dyn Fn(Report) + Send + Sync>,
}

impl Executor {
    /// An executor that runs attempts on `guests` and hands their ends to `report`. `on_line` hears
    /// of every buffer that has lines to be stored.
    pub fn new(
        guests: Handle,
        slots: usize,
        sandbox: Arc<Sandbox>,
        on_line: OnLine,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> Executor {
        let floods = Arc::new(Semaphore::new(FLOODS.min(slots / 4)));
        Executor { guests, floods, sandbox, on_line, report: Arc::new(report) }
    }

    /// Starts an attempt.
    pub fn start(&self, job: Job) {
        let Executor { floods, sandbox, on_line, report, .. } = self.clone();
        let started = Instant::now();
        self.guests.spawn(async move {
            let Job { task, program, limits, grants, control, told } = job;
            let on_line = if told.is_some() { Arc::new(|_: &LogBuffer| {}) } else { on_line };
            let log = LogBuffer::new(task.id, task.attempt, limits.log_bytes, on_line);
            let since = task.started_at.unwrap_or_else(clock::now).millis_since(task.ready_at);
            let attempt = Attempt {
                of: AttemptOf { id: task.id, attempt: task.attempt, tenant: task.tenant.clone() },
                input: &task.input,
                limits,
                grants,
                log: log.clone(),
                control: &control,
                started,
                queue: Duration::from_millis(since),
            };
            // What panics under the guest is caught inside; this is for everything around it. An attempt
            // that reported no end would run for ever.
            let ran = AssertUnwindSafe(sandbox.run(&program, attempt)).catch_unwind().await;
            let end = ran.unwrap_or_else(|_| {
                tracing::error!(task = %task.id, "running an attempt panicked, which is a bug");
                RunEnd::Ended(AttemptEnd::host_failure("the host failed under it"))
            });
            let ended_at = clock::now();
            // A flood of lines is stored at its own pace, which holds up nothing else. Few attempts wait for
            // that at once, as each keeps its slot; what is more is stored with the attempt's end.
            if told.is_none()
                && log.is_flooded()
                && let Ok(_turn) = floods.try_acquire()
            {
                control.park();
                tokio::select! {
                    () = log.ebbed() => {}
                    () = control.until_stopped() => {}
                }
            }
            // Everything the attempt held is free before its end is told: what waits for room finds it.
            control.leave();
            let (id, attempt) = (task.id, task.attempt);
            log.drain(|news| {
                let ended = Report { id, attempt, end, ended_at, news };
                match told {
                    Some(told) => told(ended),
                    None => report(ended),
                }
            });
        });
    }
}
