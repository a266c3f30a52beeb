//! Components that clients upload: looked at, stored, and then compiled.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::access::Caller;
use super::conditional;
use super::extract::{self, NameInPath, Query};
use super::prefer;
use super::problem::{Kind, Problem, problems};
use super::task_types::{TaskTypeWithVersions, add_tag, find, whole};
use super::tasks::{set, waited};
use super::wire;
use crate::manager::{FieldError, Refused, Seen, Uploaded};
use crate::names::{self, is_name};
use crate::sandbox;
use crate::store::{Action, ListFilter, Precondition};
use crate::task::Digest;

/// The media type of a component.
const WASM: &str = "application/wasm";

/// How long a `DELETE` with `?cancel=true` waits for the tasks to end.
const CANCEL_TIME: Duration = Duration::from_secs(20);

problems!(PutProblems: Malformed, NotFound, RequestTimeout, TooManyWaiting, PreconditionFailed, TooLarge,
    UnsupportedMediaType, BadComponent, Unacceptable, TooManyTaskTypes, QuotaExceeded, Overloaded, Draining,
    StorageUnavailable);
problems!(BytesProblems: NotFound, Overloaded);
problems!(DeleteProblems: Malformed, NotFound, TypeInUse, SharedType, PreconditionFailed, TooManyOperations, Overloaded,
    Draining, StorageUnavailable);

/// How a task type is removed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    /// Cancel its tasks that are Pending or Running first.
    #[serde(default)]
    #[param(default = false, required = false)]
    cancel: bool,
}

/// A task type that is gone.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedType {
    /// Its name.
    name: String,
    /// Always true.
    deleted: bool,
}

/// Upload a task type
///
/// The component becomes the type's current version once it is compiled; until then the one before serves. The
/// same bytes again make no new version. A name that the operator shares with all tenants can be taken: it means
/// your own type from then on.
#[utoipa::path(
    put, path = "/task-types/{name}", operation_id = "put_task_type", tag = "task types",
    params(
        ("name" = String, Path, description = "The name of the type: `[a-z0-9][a-z0-9-]{0,62}`"),
        ("If-Match" = Option<String>, Header, description = "Only where the type has one of these entity tags"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only where there is no type of this name"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the answer for up to N seconds, at most 60, until it is compiled", example = "wait=60"),
    ),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The component"),
    responses(
        (status = 201, description = "The new type, once it is stored", body = TaskTypeWithVersions, headers(
            ("ETag" = String, description = "The entity tag"),
            ("Location" = String, description = "The path of the type"),
            ("Preference-Applied" = String, description = "`wait=N`, where it was asked for"))),
        (status = 200, description = "The type with its new version, once that is stored", body = TaskTypeWithVersions,
            headers(("ETag" = String, description = "The entity tag"))),
        PutProblems,
    )
)]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    request: Request,
) -> Result<Response, Problem> {
    extract::check_media_type(request.headers(), WASM)?;
    let name = name
        .filter(|name| is_name(name))
        .ok_or_else(|| Problem::new(Kind::Malformed, format!("a task type's name {}", names::RULE)))?;
    caller.may_use(&name)?;
    let seen = seen(&api, &caller, &name, request.headers()).await?;
    let wait = prefer::wait_seconds(request.headers());
    let body = api.uploads.read(request, api.max_component_bytes).await?;
    let (bytes, memory) = (body.bytes.clone(), api.max_memory_bytes);
    // One at a time, tenants in turn: it takes a processor for a moment.
    let turn = api.checks.take(&caller.tenant).await;
    let looked = tokio::task::spawn_blocking(move || {
        // Kept here, where the client may go away and the work goes on.
        let _turn = turn;
        (sandbox::check(&bytes, memory), Digest(Sha256::digest(&bytes).into()))
    });
    let looked = looked.await;
    let (checked, digest) = looked.map_err(|error| Problem::internal(&error.into()))?;
    // The server's own trouble, which may pass.
    let checked = checked.map_err(|error| {
        tracing::error!(error = format!("{error:#}"), "cannot look at an upload at the moment");
        Problem::of(Kind::Overloaded)
    })?;
    checked.map_err(|faults| {
        let errors = faults.0.into_iter().map(|detail| FieldError { pointer: "#".into(), detail });
        Problem::fields_of(Kind::BadComponent, errors.collect())
    })?;
    let uploaded =
        api.manager.put_task_type(&caller.tenant, &name, digest, body.bytes.clone(), seen, caller.actor()).await?;
    drop(body);
    if let Some(seconds) = wait {
        tokio::select! {
            () = api.manager.wait_compiled(digest, Duration::from_secs(seconds)) => {}
            // It is stored, whatever comes of the wait.
            () = caller.end_of_key(api.tenants.clone()) => return Err(Problem::invalid_key()),
        }
    }
    let (text, tag) = whole(&api, &caller, &find(&api, &caller, Some(name.clone()))?).await?;
    let status = match uploaded {
        Uploaded::Created => StatusCode::CREATED,
        Uploaded::Replaced => StatusCode::OK,
    };
    let mut response = wire::json_bytes(status, text);
    add_tag(&mut response, &tag);
    waited(&mut response, wait);
    if uploaded == Uploaded::Created
        && let Ok(path) = HeaderValue::try_from(format!("/task-types/{name}"))
    {
        response.headers_mut().insert(LOCATION, path);
    }
    Ok(response)
}

/// Download a component
#[utoipa::path(
    get, path = "/task-types/{name}/versions/{version}", operation_id = "get_component", tag = "task types",
    params(
        ("name" = String, Path, description = "The name of the type"),
        ("version" = String, Path, description = "The digest of the version: `sha256:` and 64 hexadecimal digits"),
    ),
    responses((status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/wasm"), BytesProblems)
)]
pub(super) async fn bytes(
    State(api): State<Arc<Api>>,
    caller: Caller,
    path: Result<axum::extract::Path<(String, String)>, axum::extract::rejection::PathRejection>,
) -> Result<Response, Problem> {
    let axum::extract::Path((name, version)) = path.map_err(|_| Problem::of(Kind::NotFound))?;
    let digest = Digest::parse(&version).ok_or_else(|| Problem::of(Kind::NotFound))?;
    let bytes = api.manager.component(&caller.tenant, &name, digest).await?;
    let mut response = bytes.into_response();
    set(&mut response, CONTENT_TYPE, WASM);
    set(&mut response, X_CONTENT_TYPE_OPTIONS, "nosniff");
    Ok(response)
}

/// Remove a task type
///
/// With its versions. While that is tried no task of it is created. Tasks of it that have ended stay, and can be
/// retried once there is a type of that name again.
#[utoipa::path(
    delete, path = "/task-types/{name}", operation_id = "delete_task_type", tag = "task types",
    params(
        ("name" = String, Path, description = "The name of the type"),
        DeleteQuery,
        ("If-Match" = Option<String>, Header, description = "Only where the type has one of these entity tags"),
    ),
    responses((status = 200, description = "The type is gone", body = RemovedType), DeleteProblems)
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    Query(DeleteQuery { cancel }): Query<DeleteQuery>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = name.ok_or_else(|| Problem::of(Kind::NotFound))?;
    caller.may_use(&name)?;
    let seen = match seen(&api, &caller, &name, &headers).await? {
        // There is nothing to remove then.
        Seen::Nothing => return Err(Problem::of(Kind::PreconditionFailed)),
        seen => seen,
    };
    let users = async || api.manager.users_at_work(&caller.tenant, &name, &api.tenants).await;
    api.manager.may_be_removed(&caller.tenant, &name)?;
    // Where it stays nothing is kept from anybody.
    if !cancel && !users().await?.is_empty() {
        return Err(Refused::TypeInUse.into());
    }
    let closed = api.manager.close_task_type(&caller.tenant, &name).await?;
    let started = tokio::time::Instant::now();
    let mut canceled = false;
    loop {
        let at_work = users().await?;
        if at_work.is_empty() {
            break;
        }
        if !cancel || started.elapsed() >= CANCEL_TIME {
            return Err(Refused::TypeInUse.into());
        }
        if !canceled {
            canceled = true;
            for user in at_work {
                // Each has a line of its own in the audit log.
                caller.may_make_a_change(&api)?;
                let filter = ListFilter { task_type: Some(name.clone()), ..ListFilter::default() };
                api.manager.start_bulk(&user, Action::Cancel, filter, caller.actor()).await?;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = caller.end_of_key(api.tenants.clone()) => return Err(Problem::invalid_key()),
        }
    }
    api.manager.delete_task_type(closed, &caller.tenant, &name, seen, caller.actor()).await?;
    wire::json(StatusCode::OK, &RemovedType { name, deleted: true })
}

/// What a client says of the type as it saw it.
async fn seen(api: &Api, caller: &Caller, name: &str, headers: &HeaderMap) -> Result<Seen, Problem> {
    let current = api.manager.task_type(&caller.tenant, name);
    match (conditional::precondition(headers)?, current) {
        (Precondition::None, _) => Ok(Seen::Anything),
        (Precondition::Absent, None) => Ok(Seen::Nothing),
        (Precondition::Exists, Some(current)) => Ok(Seen::This(Box::new(current))),
        (Precondition::Match(tags), Some(current)) if tags.contains(&whole(api, caller, &current).await?.1) => {
            Ok(Seen::This(Box::new(current)))
        }
        _ => Err(Problem::of(Kind::PreconditionFailed)),
    }
}
