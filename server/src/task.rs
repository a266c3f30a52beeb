//! A task and its state machine: what a task is, and which change may follow which.
//!
//! Pure: no clock, no IO, no async, no other module of this crate but [`crate::limits`]. Whoever
//! drives a task passes the time in and writes down what comes out.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::LimitOverrides;

/// A task's id: a UUIDv7 (RFC 9562), so ids sort by the time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds from `earlier` to here; 0 when the clock went backwards in between.
    pub fn millis_since(self, earlier: Timestamp) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// SHA-256 of a component's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest as 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0.iter().fold(String::with_capacity(64), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    }
}

/// As the API writes it: `sha256:` and 64 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The four statuses are all there are; why a task failed is in its [`TaskError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[repr(u8)]
pub enum Status {
    /// Waits for its (next) attempt.
    Pending = 0,
    /// An attempt runs.
    Running = 1,
    /// Ended with an output.
    Completed = 2,
    /// Ended with an error.
    Failed = 3,
}

impl Status {
    /// All of them, in order.
    pub const ALL: [Status; 4] = [Status::Pending, Status::Running, Status::Completed, Status::Failed];

    /// Whether nothing will change any more.
    pub fn is_ended(self) -> bool {
        matches!(self, Status::Completed | Status::Failed)
    }
}

/// Why an attempt, and so perhaps its task, failed: the contract's closed set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The guest said that the same input would fail again, or exited with a code other than 0.
    Permanent,
    /// The guest said that another attempt may succeed.
    Transient,
    /// The guest trapped.
    Trap,
    /// Its fuel is used up.
    FuelExhausted,
    /// Its CPU time is used up.
    CpuExceeded,
    /// Its wall-clock time was over.
    Timeout,
    /// It trapped, or exited in error, after memory was refused at its own limit.
    MemoryExceeded,
    /// Its output is over the limit.
    OutputTooLarge,
    /// Its output is no JSON.
    InvalidOutput,
    /// Somebody canceled it.
    Canceled,
    /// Still Pending when it expired.
    Expired,
    /// The server went down under it too often.
    Interrupted,
    /// The host itself failed.
    Host,
}

impl ErrorKind {
    /// All of them, as the contract's table has them.
    pub const ALL: [ErrorKind; 13] = [
        ErrorKind::Permanent,
        ErrorKind::Transient,
        ErrorKind::Trap,
        ErrorKind::FuelExhausted,
        ErrorKind::CpuExceeded,
        ErrorKind::Timeout,
        ErrorKind::MemoryExceeded,
        ErrorKind::OutputTooLarge,
        ErrorKind::InvalidOutput,
        ErrorKind::Canceled,
        ErrorKind::Expired,
        ErrorKind::Interrupted,
        ErrorKind::Host,
    ];

    /// The name in the API and in the store.
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::Permanent => "permanent",
            ErrorKind::Transient => "transient",
            ErrorKind::Trap => "trap",
            ErrorKind::FuelExhausted => "fuel_exhausted",
            ErrorKind::CpuExceeded => "cpu_exceeded",
            ErrorKind::Timeout => "timeout",
            ErrorKind::MemoryExceeded => "memory_exceeded",
            ErrorKind::OutputTooLarge => "output_too_large",
            ErrorKind::InvalidOutput => "invalid_output",
            ErrorKind::Canceled => "canceled",
            ErrorKind::Expired => "expired",
            ErrorKind::Interrupted => "interrupted",
            ErrorKind::Host => "host",
        }
    }

    /// Whether another attempt of the same task may succeed.
    pub fn is_retryable(self) -> bool {
        matches!(self, ErrorKind::Transient | ErrorKind::Timeout | ErrorKind::Host)
    }
}

/// Why a task failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskError {
    /// Which of the closed set.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
    /// Whether another attempt may succeed.
    pub retryable: bool,
}

impl TaskError {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> TaskError {
        TaskError { kind, message: message.into(), retryable: kind.is_retryable() }
    }
}

/// The receipt of an attempt: what it used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// Fuel: about one unit an instruction, and one a byte of a bulk memory operation.
    pub fuel: u64,
    /// CPU time of the thread that ran it, host calls included, in milliseconds.
    pub cpu_ms: f64,
    /// From the start of the attempt to its end, in milliseconds.
    pub wall_ms: f64,
    /// From the task's creation, or from the end of the attempt before, to the start of this one.
    pub queue_ms: f64,
    /// Most that all its linear memories and tables held together, in bytes.
    pub peak_memory_bytes: u64,
    /// Calls of `taskcell:task` interfaces.
    pub host_calls: u64,
    /// Bytes of objects read and written.
    pub io_bytes: u64,
    /// Bytes of log lines kept.
    pub log_bytes: u64,
}

impl Usage {
    /// Adds another attempt: sums, but the larger of the peaks.
    pub fn add(&mut self, other: &Usage) {
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.cpu_ms += other.cpu_ms;
        self.wall_ms += other.wall_ms;
        self.queue_ms += other.queue_ms;
        self.peak_memory_bytes = self.peak_memory_bytes.max(other.peak_memory_bytes);
        self.host_calls = self.host_calls.saturating_add(other.host_calls);
        self.io_bytes = self.io_bytes.saturating_add(other.io_bytes);
        self.log_bytes = self.log_bytes.saturating_add(other.log_bytes);
    }
}

/// How far a task is, as it said itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Progress {
    /// 0 to 1.
    pub fraction: f64,
    /// A short note.
    pub note: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// With an output: valid JSON, byte for byte as the guest wrote it.
    Completed(Arc<str>),
    /// With an error.
    Failed(TaskError),
}

/// A task as the store keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// The name of its type.
    pub task_type: Arc<str>,
    /// The version of the type that was current when it was created.
    pub component: Digest,
    /// −100 … 100, higher first.
    pub priority: i32,
    /// When it was created.
    pub created_at: Timestamp,
    /// Lowered limits, as the client gave them.
    pub limits: LimitOverrides,
    /// Its input: one JSON text, byte for byte as the client wrote it.
    pub input: Arc<str>,
    /// Where it is.
    pub status: Status,
    /// Attempts started so far and not given back; while Running the number of the current one.
    pub attempt: u32,
    /// Attempts that ended because the server went down.
    pub interruptions: u32,
    /// Start of the last attempt.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// What it reported last.
    pub progress: Option<Progress>,
    /// Its output, once Completed.
    pub output: Option<Arc<str>>,
    /// Why its last attempt failed.
    pub error: Option<TaskError>,
    /// The receipt of the last attempt.
    pub usage: Option<Usage>,
    /// The receipts of all attempts together.
    pub usage_total: Usage,
}

/// The end of an attempt, as the executor reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// What it reported last.
    pub progress: Option<Progress>,
}

/// What can happen to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An attempt starts.
    Start,
    /// The attempt with this number ended by itself, at a limit, or because it was canceled.
    End {
        /// The number of the attempt, which fences off a late one.
        attempt: u32,
        /// How.
        end: AttemptEnd,
    },
    /// The attempt with this number is given back without being counted: the server stops, or
    /// had no room for it after all.
    GiveBack {
        /// The number of the attempt.
        attempt: u32,
    },
    /// The server went down under the attempt that was Running. At most `max_interruptions` such
    /// attempts are repeated.
    Interrupt {
        /// How many are repeated.
        max_interruptions: u32,
    },
    /// Somebody cancels a task that no attempt runs of.
    Cancel,
}

/// An event that does not fit the state; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The task has ended.
    #[error("the task has ended")]
    Ended,
    /// The task is not Running, or another attempt is.
    #[error("that attempt is not the current one")]
    Stale,
    /// The task is Running.
    #[error("the task is running")]
    Running,
}

impl Task {
    /// Takes an event, or says why it does not fit.
    ///
    /// | | Start | End, GiveBack of the current attempt | … of another | Interrupt | Cancel |
    /// |---|---|---|---|---|---|
    /// | Pending | Running | stale | stale | stale | Failed |
    /// | Running | running | Completed, Failed; Pending | stale | Pending, Failed | running |
    /// | ended | ended | ended | ended | ended | ended |
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Result<(), Rejected> {
        match (self.status, event) {
            (Status::Completed | Status::Failed, _) => Err(Rejected::Ended),
            (Status::Pending, Event::Start) => {
                self.status = Status::Running;
                self.attempt += 1;
                self.started_at = Some(now);
                self.progress = None;
                Ok(())
            }
            (Status::Pending, Event::Cancel) => {
                self.end(Outcome::Failed(TaskError::new(ErrorKind::Canceled, "canceled before it started")), now);
                Ok(())
            }
            (Status::Pending, Event::End { .. } | Event::GiveBack { .. } | Event::Interrupt { .. }) => {
                Err(Rejected::Stale)
            }
            (Status::Running, Event::Start | Event::Cancel) => Err(Rejected::Running),
            (Status::Running, Event::End { attempt, end }) => {
                self.fence(attempt)?;
                self.usage_total.add(&end.usage);
                self.usage = Some(end.usage);
                self.progress = end.progress;
                self.end(end.outcome, now);
                Ok(())
            }
            (Status::Running, Event::GiveBack { attempt }) => {
                self.fence(attempt)?;
                self.attempt -= 1;
                self.back_to_pending();
                Ok(())
            }
            (Status::Running, Event::Interrupt { max_interruptions }) => {
                self.interruptions += 1;
                let error = TaskError::new(ErrorKind::Interrupted, "the server went down while it ran");
                if self.interruptions > max_interruptions {
                    self.end(Outcome::Failed(error), now);
                } else {
                    self.error = Some(error);
                    self.back_to_pending();
                }
                Ok(())
            }
        }
    }

    /// Execution time of the last attempt, so far while it runs; `None` before the first.
    pub fn duration_ms(&self, now: Timestamp) -> Option<u64> {
        match (self.status, self.started_at, self.finished_at) {
            (Status::Running, Some(started), _) => Some(now.millis_since(started)),
            (_, Some(started), Some(finished)) => Some(finished.millis_since(started)),
            _ => None,
        }
    }

    fn fence(&self, attempt: u32) -> Result<(), Rejected> {
        if attempt == self.attempt { Ok(()) } else { Err(Rejected::Stale) }
    }

    fn back_to_pending(&mut self) {
        self.status = Status::Pending;
        self.started_at = None;
        self.progress = None;
    }

    fn end(&mut self, outcome: Outcome, now: Timestamp) {
        self.finished_at = Some(now);
        match outcome {
            Outcome::Completed(output) => {
                self.status = Status::Completed;
                self.output = Some(output);
                self.error = None;
            }
            Outcome::Failed(error) => {
                self.status = Status::Failed;
                self.error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn task(status: Status) -> Task {
        Task {
            id: TaskId(Uuid::from_u128(1)),
            tenant: "default".into(),
            task_type: "echo".into(),
            component: Digest([0; 32]),
            priority: 0,
            created_at: Timestamp(0),
            limits: LimitOverrides::default(),
            input: "null".into(),
            status,
            attempt: if status == Status::Pending { 1 } else { 2 },
            interruptions: 0,
            started_at: (status != Status::Pending).then_some(Timestamp(500)),
            finished_at: status.is_ended().then_some(Timestamp(600)),
            progress: None,
            output: None,
            error: None,
            usage: None,
            usage_total: Usage::default(),
        }
    }

    fn completed() -> AttemptEnd {
        AttemptEnd {
            outcome: Outcome::Completed("1".into()),
            usage: Usage { fuel: 7, ..Usage::default() },
            progress: None,
        }
    }

    fn events() -> Vec<(&'static str, Event)> {
        vec![
            ("start", Event::Start),
            ("end of the current attempt", Event::End { attempt: 2, end: completed() }),
            ("end of an earlier attempt", Event::End { attempt: 1, end: completed() }),
            ("give back the current attempt", Event::GiveBack { attempt: 2 }),
            ("give back an earlier attempt", Event::GiveBack { attempt: 1 }),
            ("interrupt, to be repeated", Event::Interrupt { max_interruptions: 3 }),
            ("interrupt, once too often", Event::Interrupt { max_interruptions: 0 }),
            ("cancel", Event::Cancel),
        ]
    }

    /// Every state and every event, written out.
    #[test]
    fn every_state_and_every_event() {
        use Rejected::{Ended, Running as IsRunning, Stale};
        use Status::{Completed, Failed, Pending, Running};
        let table: [(Status, [Result<Status, Rejected>; 8]); 4] = [
            (
                Pending,
                [Ok(Running), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Ok(Failed)],
            ),
            (
                Running,
                [
                    Err(IsRunning),
                    Ok(Completed),
                    Err(Stale),
                    Ok(Pending),
                    Err(Stale),
                    Ok(Pending),
                    Ok(Failed),
                    Err(IsRunning),
                ],
            ),
            (Completed, [Err(Ended); 8]),
            (Failed, [Err(Ended); 8]),
        ];
        for (from, expected) in table {
            for ((name, event), expected) in events().into_iter().zip(expected) {
                let before = task(from);
                let mut after = before.clone();
                let result = after.apply(event, NOW).map(|()| after.status);
                assert_eq!(result, expected, "{from:?}, {name}");
                if result.is_err() {
                    assert_eq!(after, before, "{from:?}, {name}: a rejected event changes nothing");
                }
                assert_eq!(after.status.is_ended(), after.finished_at.is_some(), "{from:?}, {name}");
            }
        }
    }

    #[test]
    fn an_attempt_counts_when_it_starts_and_not_when_it_is_given_back() {
        let mut task = task(Status::Pending);
        task.attempt = 0;
        task.apply(Event::Start, NOW).unwrap();
        assert_eq!((task.attempt, task.started_at), (1, Some(NOW)));
        task.apply(Event::GiveBack { attempt: 1 }, NOW).unwrap();
        assert_eq!((task.attempt, task.started_at, task.interruptions), (0, None, 0));
    }

    #[test]
    fn an_interrupted_attempt_stays_counted_and_counts_apart() {
        let mut task = task(Status::Running);
        task.apply(Event::Interrupt { max_interruptions: 1 }, NOW).unwrap();
        assert_eq!((task.status, task.attempt, task.interruptions), (Status::Pending, 2, 1));
        task.apply(Event::Start, NOW).unwrap();
        task.apply(Event::Interrupt { max_interruptions: 1 }, NOW).unwrap();
        assert_eq!(task.status, Status::Failed);
        assert_eq!(task.error.unwrap().kind, ErrorKind::Interrupted);
    }

    #[test]
    fn receipts_add_up() {
        let mut task = task(Status::Running);
        task.usage_total.fuel = 10;
        task.apply(Event::End { attempt: 2, end: completed() }, NOW).unwrap();
        assert_eq!((task.usage.unwrap().fuel, task.usage_total.fuel), (7, 17));
        assert_eq!(task.output.as_deref(), Some("1"));
    }

    #[test]
    fn names_in_json_are_the_names_in_the_store() {
        for kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
