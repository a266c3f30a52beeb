//! A task: what it is, and in `machine` which change may follow which.
//!
//! Pure: no clock, no IO, no async, no other module of this crate but [`crate::limits`]. Whoever
//! drives a task passes the time in and writes down what comes out.

mod machine;
mod retry;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::limits::LimitOverrides;

pub use machine::{AttemptEnd, Event, Rejected};
pub use retry::{BadRetry, RetryOverrides, RetryPolicy};

/// A task's id: a UUIDv7 (RFC 9562), so ids sort by the time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Milliseconds from `earlier` to here; 0 when the clock went backwards in between.
    pub fn millis_since(self, earlier: Timestamp) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// Seconds from `earlier` to here, rounded up and at least 1, as a client is told to wait.
    pub fn seconds_after(self, earlier: Timestamp) -> u64 {
        self.millis_since(earlier).div_ceil(1000).max(1)
    }

    /// That many milliseconds later.
    pub fn plus_millis(self, millis: u64) -> Timestamp {
        Timestamp(self.0.saturating_add_unsigned(millis))
    }
}

/// SHA-256 of a component's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// What [`Display`](fmt::Display) writes, read back.
    pub fn parse(text: &str) -> Option<Digest> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            let pair = &hex[at..at + 2];
            if !pair.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
                return None;
            }
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Digest(bytes))
    }

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
        matches!(self, ErrorKind::Transient | ErrorKind::Timeout | ErrorKind::Interrupted | ErrorKind::Host)
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
    /// From the task's creation, or from the end of the attempt before, to the start of this one. An attempt that went
    /// down with the server, or was given back, ends nothing.
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
        // Whole microseconds, as those of receipts.
        let sum = |a: f64, b: f64| ((a + b) * 1000.0).round() / 1000.0;
        self.fuel = self.fuel.saturating_add(other.fuel);
        self.cpu_ms = sum(self.cpu_ms, other.cpu_ms);
        self.wall_ms = sum(self.wall_ms, other.wall_ms);
        self.queue_ms = sum(self.queue_ms, other.queue_ms);
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

/// A client's own names for a task.
pub type Labels = BTreeMap<String, String>;

/// Why a task is Pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// For the time that its client gave.
    Schedule,
    /// Between two attempts.
    Backoff,
    /// For its turn.
    Queue,
    /// Its type is paused.
    Paused,
    /// As many tasks of its type, or of its concurrency key, run as may at once.
    Concurrency,
    /// Its tenant has as much at work as it may, or has used its CPU time of this hour.
    Quota,
}

/// Why a task that is ready is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Hold {
    /// Its type is paused, or its version is not loaded yet.
    Paused = 1,
    /// As many tasks of its type run as may at once.
    Type = 2,
    /// As many that have its concurrency key.
    Key = 3,
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
    /// What its client calls it by.
    pub labels: Labels,
    /// Which attempts are repeated, and when.
    pub retry: RetryPolicy,
    /// While Pending: not to be started before, because of its client or of a retry. `None`: ready.
    pub due_at: Option<Timestamp>,
    /// Since when it can be started: its creation, its due time, the end of the attempt before. What
    /// its place in the queue is counted from. An attempt that was cut off does not change it.
    pub ready_at: Timestamp,
    /// A task that is still Pending then fails.
    pub expires_at: Option<Timestamp>,
    /// At most one task of the tenant that has not ended has it.
    pub unique_key: Option<Arc<str>>,
    /// The schedule that created it.
    pub schedule: Option<Arc<str>>,
    /// So many tasks of the tenant's type that have it run at once as the type says.
    pub concurrency_key: Option<Arc<str>>,
    /// While Pending: why it is held back, though it is ready.
    pub held: Option<Hold>,
    /// Where it is.
    pub status: Status,
    /// Attempts started so far and not given back; while Running the number of the current one.
    pub attempt: u32,
    /// Attempts that ended by themselves without success, since it was created or retried by hand.
    pub failures: u32,
    /// Attempts that ended because the server went down, since then.
    pub interruptions: u32,
    /// The start of a server that runs its attempt; only while Running.
    pub server: Option<i64>,
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

impl Task {
    /// Whether it can be started.
    pub fn is_ready(&self) -> bool {
        self.status == Status::Pending && self.due_at.is_none() && self.held.is_none()
    }

    /// Why it is Pending, as far as the task itself tells; `None` where it is not.
    pub fn waiting(&self) -> Option<Waiting> {
        if self.status != Status::Pending {
            return None;
        }
        Some(match (self.due_at, self.held) {
            (None, Some(Hold::Paused)) => Waiting::Paused,
            (None, Some(Hold::Type | Hold::Key)) => Waiting::Concurrency,
            (None, None) => Waiting::Queue,
            (Some(_), _) if self.failures > 0 => Waiting::Backoff,
            (Some(_), _) => Waiting::Schedule,
        })
    }

    /// Execution time of the last attempt in milliseconds, so far while it runs; `None` before the first.
    pub fn duration_ms(&self, now: Timestamp) -> Option<u64> {
        match (self.status, self.started_at, self.finished_at) {
            (Status::Running, Some(started), _) => Some(now.millis_since(started)),
            (_, Some(started), Some(finished)) => Some(finished.millis_since(started)),
            // Between two attempts, or ended there.
            _ => self.usage.as_ref().map(|usage| usage.wall_ms as u64),
        }
    }
}

/// An attempt that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptRecord {
    /// Its number: 1 for the first.
    pub number: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When it ended; `None` while it runs.
    pub finished_at: Option<Timestamp>,
    /// Whether it completed the task.
    pub completed: bool,
    /// Why it failed.
    pub error: Option<TaskError>,
    /// What it used; `None` where that is not known, because the server went down.
    pub usage: Option<Usage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_json_are_the_names_in_the_store() {
        for kind in ErrorKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
