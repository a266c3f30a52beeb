//! Tasks: read, cancel, retry, delete.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderName, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Caller;
use super::extract::{IdInPath, PageSize, Query};
use super::prefer::{self, PREFERENCE_APPLIED};
use super::problem::{Problem, problems};
use super::wire::{self, Deleted, Time};
use super::{Api, conditional};
use crate::clock;
use crate::host::log::LogLevel;
use crate::task::{Status, Task};
use crate::tenants::Tenants;

/// Bytes of a task's JSON without its input, output and error.
pub(super) const TASK_BYTES: usize = 800;

problems!(ReadProblems: NotFound, Overloaded);
problems!(ResultProblems: NotFound, TaskFailed, Overloaded);
problems!(LogProblems: Malformed, NotFound, Overloaded);
problems!(CancelProblems: NotFound, TaskEnded, Overloaded, Draining, StorageUnavailable);
problems!(RetryProblems: NotFound, TaskNotEnded, TypeGone, TypeNotReady, UniqueKey, TooManyPending, Overloaded, QueueFull, Draining,
    StorageUnavailable);
problems!(DeleteProblems: NotFound, Overloaded, Draining, StorageUnavailable);

/// Read a task
///
/// With `Prefer: wait=N` the answer is held for up to N seconds, until the task has ended; with
/// `If-None-Match` as well until its state is another one than the client has.
#[utoipa::path(
    get, path = "/task/{id}", operation_id = "get_task", tag = "tasks",
    params(
        ("id" = String, Path, description = "The id of the task", format = Uuid),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the answer for up to N seconds, at most 60", example = "wait=10"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags of the states that the client has"),
    ),
    responses(
        (status = 200, description = "The task", body = wire::Task, headers(
            ("ETag" = String, description = "A weak entity tag of the task's state"),
            ("Preference-Applied" = String, description = "`wait=N`, where it was asked for"))),
        (status = 304, description = "The client has this state", headers(
            ("ETag" = String, description = "A weak entity tag of the task's state"))),
        ReadProblems,
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = prefer::wait_seconds(&headers);
    let has = |task: &Task| conditional::has(&headers, &wire::task_tag(task, &api.tenants));
    let task = match wait.map(Duration::from_secs) {
        None | Some(Duration::ZERO) => api.manager.get(&caller.tenant, id).await?,
        Some(wait) if conditional::if_none_match(&headers).is_some() => {
            api.manager.get_changed(&caller.tenant, id, wait, has).await?
        }
        Some(wait) => api.manager.get_ended(&caller.tenant, id, wait).await?,
    };
    let mut response = if has(&task) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        task_json(StatusCode::OK, &task, &api.tenants)?
    };
    set(&mut response, CACHE_CONTROL, "no-store");
    if let Ok(tag) = HeaderValue::try_from(format!("W/\"{}\"", wire::task_tag(&task, &api.tenants))) {
        response.headers_mut().insert(ETAG, tag);
    }
    waited(&mut response, wait);
    Ok(response)
}

/// Read where a task is
#[utoipa::path(
    get, path = "/task/{id}/status", operation_id = "get_task_status", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid)),
    responses((status = 200, description = "Where the task is", body = wire::TaskStatus), ReadProblems)
)]
pub(super) async fn status(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    let task = api.manager.get(&caller.tenant, id).await?;
    let mut response = wire::json(StatusCode::OK, &wire::TaskStatus::of(&task, &api.tenants, clock::now()))?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Read a task's result
///
/// With `Prefer: wait=N` the answer is held until the task has ended, for up to N seconds.
#[utoipa::path(
    get, path = "/task/{id}/result", operation_id = "get_task_result", tag = "tasks",
    params(
        ("id" = String, Path, description = "The id of the task", format = Uuid),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the answer for up to N seconds, at most 60", example = "wait=10"),
    ),
    responses(
        (status = 200, description = "Completed: the task's own output, byte for byte", body = serde_json::Value, headers(
            ("Preference-Applied" = String, description = "`wait=N`, where it was asked for"))),
        (status = 202, description = "Not ended yet: where the task is", body = wire::TaskStatus, headers(
            ("Retry-After" = u32, description = "Seconds to wait before the next try"),
            ("Preference-Applied" = String, description = "`wait=N`, where it was asked for"))),
        ResultProblems,
    )
)]
pub(super) async fn result(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = prefer::wait_seconds(&headers);
    let task = match wait {
        None | Some(0) => api.manager.get(&caller.tenant, id).await?,
        Some(seconds) => api.manager.get_ended(&caller.tenant, id, Duration::from_secs(seconds)).await?,
    };
    let mut response = match (task.status, task.error) {
        (Status::Completed, _) => {
            let output = task.output.map_or_else(|| "null".into(), |output| String::from(&*output));
            let mut response = wire::json_bytes(StatusCode::OK, output);
            // The bytes are a guest's: no browser is to take them for anything else.
            set(&mut response, X_CONTENT_TYPE_OPTIONS, "nosniff");
            response
        }
        (Status::Failed, Some(error)) => Problem::task_failed(error).into_response(),
        (Status::Pending | Status::Running | Status::Failed, error) => {
            let task = Task { error, output: None, ..task };
            let mut response =
                wire::json(StatusCode::ACCEPTED, &wire::TaskStatus::of(&task, &api.tenants, clock::now()))?;
            set(&mut response, RETRY_AFTER, "1");
            response
        }
    };
    set(&mut response, CACHE_CONTROL, "no-store");
    waited(&mut response, wait);
    Ok(response)
}

/// The part of a log to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Only lines after the one with this number.
    #[serde(default)]
    #[param(default = 0, required = false)]
    after: u64,
    /// How many at once; more than 1000 is taken as 1000.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
}

/// A part of a task's log.
#[derive(Serialize, ToSchema)]
pub(super) struct Log<'a> {
    /// The lines, oldest first.
    lines: Vec<Line<'a>>,
    /// Where to go on: `after` for the next read. There may be more now, or later while the task runs.
    next_after: u64,
}

/// A line of a log.
#[derive(Serialize, ToSchema)]
pub(super) struct Line<'a> {
    /// Its number; the next line's is higher.
    seq: u64,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    time: Time,
    /// How serious it is.
    level: LogLevel,
    /// The attempt that wrote it.
    attempt: u32,
    /// The text.
    message: &'a str,
}

/// Read a task's log
///
/// Also while the task runs: a line is there within a moment.
#[utoipa::path(
    get, path = "/task/{id}/logs", operation_id = "get_task_logs", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid), LogQuery),
    responses((status = 200, description = "Lines of the log", body = Log), LogProblems)
)]
pub(super) async fn logs(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
    Query(LogQuery { after, limit }): Query<LogQuery>,
) -> Result<Response, Problem> {
    let lines = api.manager.log(&caller.tenant, id, after, limit.0).await?;
    let next_after = lines.last().map_or(after, |(seq, ..)| *seq);
    let lines = lines
        .iter()
        .map(|(seq, attempt, line)| Line {
            seq: *seq,
            time: Time(line.at),
            level: line.level,
            attempt: *attempt,
            message: &line.message,
        })
        .collect();
    let mut response = wire::json(StatusCode::OK, &Log { lines, next_after })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Cancel a task
///
/// It is stopped wherever it is, and its record is kept: Failed, with the error kind `canceled`.
#[utoipa::path(
    post, path = "/task/{id}/cancel", operation_id = "cancel_task", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid)),
    responses((status = 202, description = "The task, canceled", body = wire::Task), CancelProblems)
)]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    caller.may_change(&api, id).await?;
    let task = api.manager.cancel(&caller.tenant, id).await?;
    task_json(StatusCode::ACCEPTED, &task, &api.tenants)
}

/// Retry a task
///
/// A task that has ended goes back to Pending with fresh attempts, under the same id.
#[utoipa::path(
    post, path = "/task/{id}/retry", operation_id = "retry_task", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid)),
    responses((status = 202, description = "The task, Pending again", body = wire::Task), RetryProblems)
)]
pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    caller.may_change(&api, id).await?;
    let task = api.manager.retry(&caller.tenant, id).await?;
    task_json(StatusCode::ACCEPTED, &task, &api.tenants)
}

/// Every attempt of a task.
#[derive(Serialize, ToSchema)]
pub(super) struct Attempts<'a> {
    /// The first one first; the last one may still run.
    attempts: Vec<wire::Attempt<'a>>,
}

/// Read a task's attempts
#[utoipa::path(
    get, path = "/task/{id}/attempts", operation_id = "get_task_attempts", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid)),
    responses((status = 200, description = "Every attempt", body = Attempts), ReadProblems)
)]
pub(super) async fn attempts(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    let attempts = api.manager.attempts(&caller.tenant, id).await?;
    let attempts = attempts.iter().map(wire::Attempt::of).collect();
    let mut response = wire::json(StatusCode::OK, &Attempts { attempts })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Delete a task
///
/// It is stopped if need be, and gone when this answers, with its result and its log.
#[utoipa::path(
    delete, path = "/task/{id}", operation_id = "delete_task", tag = "tasks",
    params(("id" = String, Path, description = "The id of the task", format = Uuid)),
    responses((status = 200, description = "The task is gone", body = Deleted), DeleteProblems)
)]
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    caller.may_change(&api, id).await?;
    api.manager.delete(&caller.tenant, id).await?;
    wire::json(StatusCode::OK, &Deleted { id, deleted: true })
}

pub(super) fn task_json(status: StatusCode, task: &Task, tenants: &Tenants) -> Result<Response, Problem> {
    let about = TASK_BYTES + task.input.len() + task.output.as_ref().map_or(0, |output| output.len());
    let mut response = wire::json_of_about(status, &wire::Task::of(task, tenants, clock::now())?, about)?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Says that the answer depends on the preference, and which was applied (RFC 7240).
pub(super) fn waited(response: &mut Response, wait: Option<u64>) {
    set(response, VARY, "Prefer");
    if let Some(applied) = wait.and_then(|seconds| HeaderValue::try_from(format!("wait={seconds}")).ok()) {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
}

/// Sets a header to a value that is known beforehand.
pub(super) fn set(response: &mut Response, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}
