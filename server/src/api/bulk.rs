//! Bulk operations: cancel, retry or delete all tasks that match a filter.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::access::Caller;
use super::extract::{self, IdInPath, Rfc3339};
use super::problem::{Problem, problems};
use super::task_list::MOST_LABELS;
use super::tasks::set;
use super::wire::{self, Time};
use crate::manager::FieldError;
use crate::names;
use crate::store::{self, Action, ListFilter, OperationId};
use crate::task::{ErrorKind, Labels, Status};

/// The largest filter.
const FILTER_BYTES: u64 = 64 << 10;

problems!(StartProblems: Malformed, RequestTimeout, TooManyWaiting, TooLarge, UnsupportedMediaType, Unacceptable,
    TooManyOperations, Overloaded, Draining, StorageUnavailable);
problems!(ReadProblems: NotFound, Overloaded);
problems!(ListProblems: Overloaded);

/// Which tasks: those that match all of it. An empty one matches every task.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskFilter {
    /// Only of this status.
    status: Option<Status>,
    /// Only of this type.
    task_type: Option<String>,
    /// Only those whose last attempt failed in this way.
    error_kind: Option<ErrorKind>,
    /// Only created after this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    created_after: Option<Rfc3339>,
    /// Only created before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    created_before: Option<Rfc3339>,
    /// Only with all of these labels, at most 8.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>, required = false)]
    labels: Labels,
}

impl TaskFilter {
    fn checked(self) -> Result<ListFilter, Problem> {
        let TaskFilter { status, task_type, error_kind, created_after, created_before, labels } = self;
        if labels.len() > MOST_LABELS {
            let detail = format!("there can be at most {MOST_LABELS}");
            return Err(Problem::fields(vec![FieldError { pointer: "#/labels".into(), detail }]));
        }
        if task_type.as_deref().is_some_and(|name| !names::is_name(name)) {
            let detail = format!("a task type's name {}", names::RULE);
            return Err(Problem::fields(vec![FieldError { pointer: "#/task_type".into(), detail }]));
        }
        Ok(ListFilter {
            status,
            task_type,
            error_kind,
            created_after: created_after.map(|at| at.0),
            created_before: created_before.map(|at| at.0),
            labels: labels.into_iter().collect(),
        })
    }
}

/// Something that is done with many tasks.
#[derive(Serialize, ToSchema)]
pub(super) struct Operation<'a> {
    /// Its id.
    #[schema(value_type = String, format = Uuid)]
    id: String,
    /// What is done.
    action: Action,
    /// With which tasks, as it was asked for.
    filter: ShownFilter<'a>,
    /// Whether it goes on.
    status: OperationStatus,
    /// How many tasks matched when it was created, and could be canceled, retried or deleted then; null
    /// where counting them took too long.
    #[schema(required)]
    matched: Option<u64>,
    /// With how many it was done so far.
    done: u64,
    /// With how many it could not be done: they had changed when it was their turn. Once it is done, this and
    /// `done` make up what matched, and more where others came to match since.
    skipped: u64,
    /// When it was created. Tasks that were created later are none of its.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// When it was done with all of them.
    #[schema(value_type = Option<String>, format = DateTime, required)]
    finished_at: Option<Time>,
}

/// Whether an operation goes on.
#[derive(Clone, Copy, Serialize, ToSchema)]
enum OperationStatus {
    /// It goes on.
    Running,
    /// It is done.
    Completed,
}

/// The filter of an operation.
#[derive(Serialize, ToSchema)]
struct ShownFilter<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    task_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    error_kind: Option<ErrorKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    created_after: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    created_before: Option<Time>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    labels: BTreeMap<&'a str, &'a str>,
}

/// The operations of the last day.
#[derive(Serialize, ToSchema)]
pub(super) struct OperationList<'a> {
    /// The last 100, newest first.
    operations: Vec<Operation<'a>>,
}

impl<'a> Operation<'a> {
    fn of(operation: &'a store::Operation) -> Operation<'a> {
        let filter = &operation.filter;
        Operation {
            id: operation.id.0.to_string(),
            action: operation.action,
            filter: ShownFilter {
                status: filter.status,
                task_type: filter.task_type.as_deref(),
                error_kind: filter.error_kind,
                created_after: filter.created_after.map(Time),
                created_before: filter.created_before.map(Time),
                labels: filter.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
            },
            status: match operation.finished_at {
                None => OperationStatus::Running,
                Some(_) => OperationStatus::Completed,
            },
            matched: operation.matched,
            done: operation.done,
            skipped: operation.skipped,
            created_at: Time(operation.created_at),
            finished_at: operation.finished_at.map(Time),
        }
    }
}

/// Cancel many tasks
///
/// All that match and have not ended, among those that were created before this. They are canceled a part
/// at a time; the answer is the operation, which says how far that is.
#[utoipa::path(
    post, path = "/tasks/cancel", operation_id = "cancel_tasks", tag = "tasks", request_body = TaskFilter,
    responses((status = 202, description = "The operation is stored and goes on", body = Operation, headers(
        ("Location" = String, description = "The path of the operation"))), StartProblems)
)]
pub(super) async fn cancel(State(api): State<Arc<Api>>, caller: Caller, request: Request) -> Result<Response, Problem> {
    start(&api, &caller, request, Action::Cancel).await
}

/// Retry many tasks
///
/// All that match and have ended, among those that were created before this. Where the queue is full the
/// operation waits until there is room.
#[utoipa::path(
    post, path = "/tasks/retry", operation_id = "retry_tasks", tag = "tasks", request_body = TaskFilter,
    responses((status = 202, description = "The operation is stored and goes on", body = Operation, headers(
        ("Location" = String, description = "The path of the operation"))), StartProblems)
)]
pub(super) async fn retry(State(api): State<Arc<Api>>, caller: Caller, request: Request) -> Result<Response, Problem> {
    start(&api, &caller, request, Action::Retry).await
}

/// Delete many tasks
///
/// All that match, among those that were created before this; those that run are stopped.
#[utoipa::path(
    post, path = "/tasks/delete", operation_id = "delete_tasks", tag = "tasks", request_body = TaskFilter,
    responses((status = 202, description = "The operation is stored and goes on", body = Operation, headers(
        ("Location" = String, description = "The path of the operation"))), StartProblems)
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, caller: Caller, request: Request) -> Result<Response, Problem> {
    start(&api, &caller, request, Action::Delete).await
}

async fn start(api: &Api, caller: &Caller, request: Request, action: Action) -> Result<Response, Problem> {
    extract::check_json(request.headers())?;
    let body = api.uploads.read(request, FILTER_BYTES).await?;
    let filter = extract::from_json::<TaskFilter>(&body.bytes)?.checked()?;
    drop(body);
    caller.may_use_all_of(filter.task_type.as_deref())?;
    let operation = api.manager.start_bulk(&caller.tenant, action, filter, caller.actor()).await?;
    let path = HeaderValue::try_from(format!("/operations/{}", operation.id.0));
    let path = path.map_err(|error| Problem::internal(&error.into()))?;
    let mut response = wire::json(StatusCode::ACCEPTED, &Operation::of(&operation))?;
    set(&mut response, CACHE_CONTROL, "no-store");
    response.headers_mut().insert(LOCATION, path);
    Ok(response)
}

/// Read an operation
#[utoipa::path(
    get, path = "/operations/{id}", operation_id = "get_operation", tag = "tasks",
    params(("id" = String, Path, description = "The id of the operation", format = Uuid)),
    responses((status = 200, description = "How far it is", body = Operation), ReadProblems)
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
) -> Result<Response, Problem> {
    let operation = api.manager.operation(&caller.tenant, OperationId(id.0)).await?;
    let mut response = wire::json(StatusCode::OK, &Operation::of(&operation))?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// List operations
///
/// Newest first. Finished ones are kept for a day, and no more than the newest 1,000.
#[utoipa::path(
    get, path = "/operations", operation_id = "list_operations", tag = "tasks",
    responses((status = 200, description = "The last 100", body = OperationList), ListProblems)
)]
pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Response, Problem> {
    let operations = api.manager.operations(&caller.tenant).await?;
    let operations = operations.iter().map(Operation::of).collect();
    let mut response = wire::json(StatusCode::OK, &OperationList { operations })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}
