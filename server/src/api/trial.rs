//! Running an input of a type without a task.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::Api;
use super::access::Caller;
use super::extract::{self, NameInPath};
use super::problem::{Kind, Problem, problems};
use super::task_types::digest_at;
use super::wire::{self, Time};
use crate::host::log::LogLevel;
use crate::limits::LimitOverrides;
use crate::manager::NewTask;
use crate::sandbox::RunEnd;
use crate::task::{Labels, Outcome, Progress, RetryOverrides, Status, TaskError, Usage};

problems!(TrialProblems: Malformed, NotFound, TooManyWaiting, RequestTimeout, TypeNotReady, TooLarge,
    UnsupportedMediaType, Unacceptable, QuotaExceeded, Overloaded, Draining, StorageUnavailable);

/// What is tried.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Trial<'a> {
    /// Any JSON value; it reaches the component byte for byte.
    #[serde(borrow, default)]
    #[schema(value_type = Option<serde_json::Value>)]
    input: Option<&'a RawValue>,
    /// Limits, none above what the type allows. It is never run for longer than a minute.
    #[serde(default, deserialize_with = "extract::object")]
    limits: LimitOverrides,
    /// Another version than the current one, by its digest.
    #[schema(value_type = Option<String>)]
    version: Option<String>,
}

/// How it ended.
#[derive(Serialize, ToSchema)]
pub(super) struct TrialResult<'a> {
    /// `Completed` or `Failed`.
    status: Status,
    /// Its output.
    #[schema(required, value_type = Option<serde_json::Value>)]
    output: Option<&'a RawValue>,
    /// Why it failed.
    #[schema(required)]
    error: Option<&'a TaskError>,
    /// What it used.
    usage: &'a Usage,
    /// What it reported last.
    #[schema(required)]
    progress: Option<&'a Progress>,
    /// Its log.
    lines: Vec<TrialLine<'a>>,
}

/// A line of its log.
#[derive(Serialize, ToSchema)]
pub(super) struct TrialLine<'a> {
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    time: Time,
    /// How serious it is.
    level: LogLevel,
    /// The text.
    message: &'a str,
}

/// Try a task type
///
/// Runs an input in the very same sandbox, without a task: nothing is stored of it, but objects that it writes
/// are. It is stopped when the client hangs up.
#[utoipa::path(
    post, path = "/task-types/{name}/test", operation_id = "test_task_type", tag = "task types",
    params(("name" = String, Path, description = "The name of the type")),
    request_body(content = inline(Trial), content_type = "application/json"),
    responses((status = 200, description = "How it ended", body = TrialResult), TrialProblems)
)]
pub(super) async fn test(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    request: Request,
) -> Result<Response, Problem> {
    extract::check_json(request.headers())?;
    let task_type = name.filter(|name| api.manager.task_type(&caller.tenant, name).is_some());
    let task_type = task_type.ok_or_else(|| Problem::of(Kind::NotFound))?;
    caller.may_use(&task_type)?;
    let body = api.uploads.read(request, api.max_input_bytes.saturating_add(64 << 10)).await?;
    let Trial { input, limits, version } = extract::from_json(&body.bytes)?;
    let version = version.map(|text| digest_at("#/version", &text)).transpose()?;
    let new = NewTask {
        task_type,
        input: input.map_or("null", RawValue::get).into(),
        priority: 0,
        limits,
        labels: Labels::new(),
        retry: RetryOverrides::default(),
        due_at: None,
        expires_at: None,
        unique_key: None,
        concurrency_key: None,
        idempotency: None,
    };
    drop(body);
    let report = api.manager.try_out(&caller.tenant, new, version).await?;
    let RunEnd::Ended(end) = &report.end else { return Err(Problem::of(Kind::Overloaded)) };
    let (status, output, error) = match &end.outcome {
        Outcome::Completed(output) => (Status::Completed, Some(wire::raw(output)?), None),
        Outcome::Failed(error) => (Status::Failed, None, Some(error)),
    };
    let lines = report.news.lines.iter();
    let lines = lines.map(|line| TrialLine { time: Time(line.at), level: line.level, message: &line.message });
    let (usage, progress) = (&end.usage, end.progress.as_ref());
    wire::json(StatusCode::OK, &TrialResult { status, output, error, usage, progress, lines: lines.collect() })
}
