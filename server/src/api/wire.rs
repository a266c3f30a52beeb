//! What the answers look like.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use chrono::{DateTime, Datelike, Timelike};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::task::{self, AttemptRecord, Digest, Progress, TaskError, TaskId, Timestamp, Usage};
use crate::tenants::Tenants;

/// A task, all of it.
#[derive(Serialize, ToSchema)]
pub(super) struct Task<'a> {
    #[serde(flatten)]
    summary: TaskSummary<'a>,
    /// The input, byte for byte as it was sent.
    #[schema(value_type = serde_json::Value)]
    input: &'a RawValue,
    /// The output, once Completed: byte for byte as the task wrote it.
    #[schema(value_type = Option<serde_json::Value>, required)]
    output: Option<&'a RawValue>,
}

/// A task without its input and output.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskSummary<'a> {
    #[serde(flatten)]
    status: TaskStatus<'a>,
    /// The version of the type that was current when the task was created.
    #[serde(serialize_with = "digest")]
    #[schema(value_type = String, example = "sha256:3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b")]
    component: Digest,
    /// −100 … 100, higher first.
    priority: i32,
    /// Its client's names for it.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    labels: &'a task::Labels,
    /// Why the last attempt failed.
    #[schema(required)]
    error: Option<&'a TaskError>,
    /// The receipt of the last attempt.
    #[schema(required)]
    usage: Option<&'a Usage>,
    /// The receipts of all attempts together.
    usage_total: &'a Usage,
}

/// Where a task is.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskStatus<'a> {
    /// Its id: a UUIDv7.
    #[serde(serialize_with = "id")]
    #[schema(value_type = String, format = Uuid)]
    id: TaskId,
    /// The name of its type.
    task_type: &'a str,
    /// Its status.
    status: task::Status,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// When its last attempt started.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    started_at: Option<Time>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Time>,
    /// Execution time of the last attempt in milliseconds, so far while it runs.
    #[schema(required)]
    duration_ms: Option<u64>,
    /// How many attempts were started.
    attempt: u32,
    /// What it reported last.
    #[schema(required)]
    progress: Option<&'a Progress>,
    /// What it waits for; only while Pending.
    #[schema(required)]
    waiting_for: Option<WaitingFor>,
}

/// Why a task is Pending.
#[derive(Serialize, ToSchema)]
pub(super) struct WaitingFor {
    /// For its time, for the time of its next attempt, or for its turn.
    reason: task::Waiting,
    /// Until when, where that is known.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    until: Option<Time>,
}

/// An attempt of a task.
#[derive(Serialize, ToSchema)]
pub(super) struct Attempt<'a> {
    /// Its number: 1 for the first.
    number: u32,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    started_at: Time,
    /// When it ended; null while it runs.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Time>,
    /// What came of it.
    outcome: AttemptOutcome,
    /// Why it failed.
    #[schema(required)]
    error: Option<&'a TaskError>,
    /// Its receipt; null where the server went down under it.
    #[schema(required)]
    usage: Option<&'a Usage>,
}

/// What came of an attempt.
#[derive(Serialize, ToSchema)]
enum AttemptOutcome {
    /// It goes on.
    Running,
    /// It completed the task.
    Completed,
    /// It ended with an error.
    Failed,
}

impl<'a> Attempt<'a> {
    /// The attempt of that record.
    pub(super) fn of(record: &'a AttemptRecord) -> Attempt<'a> {
        Attempt {
            number: record.number,
            started_at: Time(record.started_at),
            finished_at: record.finished_at.map(Time),
            outcome: match (record.finished_at, record.completed) {
                (None, _) => AttemptOutcome::Running,
                (_, true) => AttemptOutcome::Completed,
                (_, false) => AttemptOutcome::Failed,
            },
            error: record.error.as_ref(),
            usage: record.usage.as_ref(),
        }
    }
}

/// A task that was removed.
#[derive(Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Its id.
    #[serde(serialize_with = "id")]
    #[schema(value_type = String, format = Uuid)]
    pub(super) id: TaskId,
    /// Always true.
    pub(super) deleted: bool,
}

impl<'a> Task<'a> {
    /// The task as it is at `now`.
    pub(super) fn of(task: &'a task::Task, tenants: &Tenants, now: Timestamp) -> Result<Task<'a>, Problem> {
        Ok(Task {
            summary: TaskSummary::of(task, tenants, now),
            input: raw(&task.input)?,
            output: task.output.as_deref().map(raw).transpose()?,
        })
    }
}

impl<'a> TaskSummary<'a> {
    /// The task as it is at `now`.
    pub(super) fn of(task: &'a task::Task, tenants: &Tenants, now: Timestamp) -> TaskSummary<'a> {
        TaskSummary {
            status: TaskStatus::of(task, tenants, now),
            component: task.component,
            priority: task.priority,
            labels: &task.labels,
            error: task.error.as_ref(),
            usage: task.usage.as_ref(),
            usage_total: &task.usage_total,
        }
    }
}

impl<'a> TaskStatus<'a> {
    /// The task as it is at `now`.
    pub(super) fn of(task: &'a task::Task, tenants: &Tenants, now: Timestamp) -> TaskStatus<'a> {
        TaskStatus {
            id: task.id,
            task_type: &task.task_type,
            status: task.status,
            created_at: Time(task.created_at),
            started_at: task.started_at.map(Time),
            finished_at: task.finished_at.map(Time),
            duration_ms: task.duration_ms(now),
            attempt: task.attempt,
            progress: task.progress.as_ref(),
            waiting_for: tenants.waiting(task).map(|reason| WaitingFor { reason, until: task.due_at.map(Time) }),
        }
    }
}

/// JSON that is written as it is.
pub(super) fn raw(json: &str) -> Result<&RawValue, Problem> {
    serde_json::from_str(json)
        .map_err(|error| Problem::internal(&anyhow::Error::new(error).context("a stored value is no JSON")))
}

/// The entity tag of a task, without quotes: it changes when anything of the task changes but the
/// time that passes.
pub(super) fn task_tag(task: &task::Task, tenants: &Tenants) -> String {
    let mut hasher = DefaultHasher::new();
    let task::Task {
        status, attempt, failures, interruptions, due_at, ready_at, started_at, finished_at, held, ..
    } = task;
    let times = [*due_at, Some(*ready_at), *started_at, *finished_at].map(|at| at.map(|at| at.0));
    (status, attempt, failures, interruptions, times, held, tenants.waiting(task)).hash(&mut hasher);
    let progress = &task.progress;
    progress.as_ref().map(|progress| (progress.fraction.to_bits(), &progress.note)).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// A time as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Time(pub(super) Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(ascii(&rfc3339(self.0)))
    }
}

/// Written digit by digit: a task has three of these, and every answer has a task.
fn rfc3339(at: Timestamp) -> [u8; 24] {
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let at = DateTime::from_timestamp_millis(at.0).unwrap_or_default();
    let mut put = |place: std::ops::Range<usize>, mut number: u32| {
        for digit in text[place].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0..4, at.year().unsigned_abs());
    put(5..7, at.month());
    put(8..10, at.day());
    put(11..13, at.hour());
    put(14..16, at.minute());
    put(17..19, at.second());
    put(20..23, at.timestamp_subsec_millis());
    text
}

/// As `Display` writes it.
pub(super) fn id<S: Serializer>(id: &TaskId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.0.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
}

/// As `Display` writes it, without its many small steps.
pub(super) fn digest<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 71];
    text[..7].copy_from_slice(b"sha256:");
    for (pair, byte) in text[7..].chunks_exact_mut(2).zip(digest.0) {
        pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    serializer.serialize_str(ascii(&text))
}

/// The same where there may be none.
pub(super) fn optional_digest<S: Serializer>(of: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
    match of {
        Some(of) => digest(of, serializer),
        None => serializer.serialize_none(),
    }
}

fn ascii(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

/// An answer with a JSON body.
pub(super) fn json<T: Serialize>(status: StatusCode, body: &T) -> Result<Response, Problem> {
    json_of_about(status, body, 256)
}

/// An answer with a JSON body of about `bytes` bytes.
pub(super) fn json_of_about<T: Serialize>(status: StatusCode, body: &T, bytes: usize) -> Result<Response, Problem> {
    let mut text = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut text, body).map_err(|error| Problem::internal(&error.into()))?;
    Ok(json_bytes(status, text))
}

/// An answer with a body that is JSON already.
pub(super) fn json_bytes(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_428_000_007, "2026-11-23T10:00:00.007Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(serde_json::to_value(Time(Timestamp(millis))).unwrap(), text);
        }
    }

    #[test]
    fn digests_are_written_as_everywhere_else() {
        struct Of(Digest);
        impl Serialize for Of {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                digest(&self.0, serializer)
            }
        }
        let digest = Digest(std::array::from_fn(|i| (i * 37) as u8));
        assert_eq!(serde_json::to_value(Of(digest)).unwrap(), digest.to_string());
    }
}
