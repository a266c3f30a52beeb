//! Task types: what can be run.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{ETAG, HeaderMap};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::access::Caller;
use super::conditional::Tags;
use super::extract::{self, NameInPath};
use super::problem::{Kind, Problem, problems};
use super::wire::{self, Time};
use super::{Api, conditional};
use crate::grants::{self, Grants};
use crate::limits::{LimitOverrides, Limits};
use crate::manager::{FieldError, SettingsPatch};
use crate::registry::{self, Version};
use crate::sandbox;
use crate::schedule::Concurrency;
use crate::task::{Digest, RetryOverrides, RetryPolicy};

/// The largest one.
const PATCH_BYTES: u64 = 64 << 10;

problems!(ListProblems:);
problems!(ReadProblems: NotFound, Overloaded);
problems!(PatchProblems: Malformed, NotFound, RequestTimeout, TooManyWaiting, SharedType, PreconditionFailed, TooLarge,
    UnsupportedMediaType, Unacceptable, Overloaded, Draining, StorageUnavailable);

/// Every task type.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskTypeList {
    /// The types, by name.
    task_types: Vec<TaskType>,
}

/// A task type with all its versions.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskTypeWithVersions {
    #[serde(flatten)]
    task_type: TaskType,
    /// The JSON Schema that inputs have to meet: that of the component's function, or the one that was set for the
    /// type; null: any JSON is taken.
    #[schema(required, value_type = Option<serde_json::Value>)]
    input_schema: Option<Box<RawValue>>,
    /// The JSON Schema of outputs, where the component's function says it.
    #[schema(required, value_type = Option<serde_json::Value>)]
    output_schema: Option<Box<RawValue>>,
    /// Its versions, newest first.
    versions: Vec<TypeVersion>,
}

/// A task type.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskType {
    /// Its name.
    #[schema(example = "io")]
    name: String,
    /// Whether tasks of it can be created.
    state: TypeState,
    /// Why not.
    #[schema(required)]
    reason: Option<String>,
    /// The version that new tasks get; null: none can be used yet.
    #[serde(serialize_with = "wire::optional_digest")]
    #[schema(required, value_type = Option<String>, example = "sha256:3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b")]
    version: Option<Digest>,
    /// The version that takes its place once it is compiled and granted; null: none does.
    #[serde(serialize_with = "wire::optional_digest")]
    #[schema(required, value_type = Option<String>)]
    next: Option<Digest>,
    /// What makes the version that new tasks get a task; null where there is none.
    #[schema(required)]
    kind: Option<sandbox::Kind>,
    /// What that version imports.
    imports: Vec<String>,
    /// What that version exports.
    exports: Vec<String>,
    /// The limits of an attempt where the task lowers none.
    #[schema(value_type = LimitOverrides)]
    limits: Limits,
    /// How an attempt is repeated where the task does not say.
    #[schema(value_type = RetryOverrides)]
    retry: RetryPolicy,
    /// How long ended tasks are kept, in milliseconds; null: as long as the server says.
    #[schema(required)]
    retention_ms: Option<u64>,
    /// Whether its tasks are held back.
    paused: bool,
    /// How many of its tasks run at once.
    concurrency: Concurrency,
    /// What its tasks may touch. Of a type of the operator's, values of `env` and `config` are told to the operator
    /// alone.
    #[schema(value_type = Grants)]
    grants: Arc<Grants>,
    /// What that version, or the one that waits to be current, imports and is not granted.
    grants_missing: Vec<&'static str>,
}

/// Settings of a task type. What is not there stays as it is; null sets it back to the default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskTypePatch<'a> {
    /// Limits of an attempt, none above what the server allows.
    #[serde(default, deserialize_with = "extract::object_or_null")]
    limits: Option<LimitOverrides>,
    /// How an attempt is repeated where the task does not say.
    #[serde(default, deserialize_with = "extract::object_or_null")]
    retry: Option<RetryOverrides>,
    /// How long ended tasks are kept, in milliseconds.
    #[schema(minimum = 1)]
    retention_ms: Option<u64>,
    /// Holds its tasks back: they are created and wait. Those that run go on.
    #[expect(dead_code, reason = "checked here, and merged with the rest of the patch")]
    paused: Option<bool>,
    /// What its tasks may touch. It holds for every attempt that starts after the answer.
    #[expect(dead_code, reason = "merged with what is granted already, and checked then")]
    #[serde(default)]
    #[schema(value_type = Option<Grants>)]
    grants: Option<serde_json::Map<String, serde_json::Value>>,
    /// How many of its tasks run at once. Those that run go on.
    #[serde(default, deserialize_with = "extract::object_or_null")]
    concurrency: Option<Concurrency>,
    /// The version that new tasks get: one that the type has, by its digest. Null: the newest.
    #[schema(value_type = Option<String>)]
    version: Option<String>,
    /// A JSON Schema (draft 2020-12) that inputs of new tasks have to meet, unless the component is called by a
    /// function of its own. It is taken as a whole: what is in it is not merged.
    #[serde(borrow, default)]
    #[schema(value_type = Option<serde_json::Value>)]
    input_schema: Option<&'a RawValue>,
}

/// Whether a type, or a version of it, can run.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum TypeState {
    /// It can.
    Ready,
    /// It does not compile or link.
    Failed,
    /// It is being compiled, or will be.
    Compiling,
    /// It needs more than the type is granted.
    Held,
    /// Its tasks are held back.
    Paused,
}

/// A version of a type.
#[derive(Serialize, ToSchema)]
pub(super) struct TypeVersion {
    /// The digest of its component.
    #[serde(serialize_with = "wire::digest")]
    #[schema(value_type = String)]
    version: Digest,
    /// When it was stored first.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// Whether it can run.
    state: TypeState,
    /// Why not.
    #[schema(required)]
    reason: Option<String>,
    /// What makes it a task; null while that is not known.
    #[schema(required)]
    kind: Option<sandbox::Kind>,
    /// What it imports.
    imports: Vec<String>,
    /// What it imports and is not granted.
    grants_missing: Vec<&'static str>,
}

/// List task types
#[utoipa::path(
    get, path = "/task-types", operation_id = "list_task_types", tag = "task types",
    responses((status = 200, description = "Every task type", body = TaskTypeList), ListProblems)
)]
pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller) -> Result<Response, Problem> {
    let task_types = api.manager.task_types(&caller.tenant);
    let task_types = task_types.iter().map(|task_type| of(&api, &caller, task_type)).collect();
    wire::json(StatusCode::OK, &TaskTypeList { task_types })
}

/// Read a task type
#[utoipa::path(
    get, path = "/task-types/{name}", operation_id = "get_task_type", tag = "task types",
    params(
        ("name" = String, Path, description = "The name of the type"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the client has"),
    ),
    responses(
        (status = 200, description = "The type", body = TaskTypeWithVersions, headers(
            ("ETag" = String, description = "The entity tag"))),
        (status = 304, description = "The client has it", headers(
            ("ETag" = String, description = "The entity tag"))),
        ReadProblems,
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let task_type = find(&api, &caller, name)?;
    let (text, tag) = whole(&api, &caller, &task_type).await?;
    let mut response = if conditional::has(&headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        wire::json_bytes(StatusCode::OK, text)
    };
    add_tag(&mut response, &tag);
    Ok(response)
}

/// Change a task type's settings
///
/// They hold for every attempt that starts after the answer, also of tasks that wait already; the retry
/// policy for every task that is created after it.
#[utoipa::path(
    patch, path = "/task-types/{name}", operation_id = "patch_task_type", tag = "task types",
    params(
        ("name" = String, Path, description = "The name of the type"),
        ("If-Match" = Option<String>, Header, description = "Only where the type has one of these entity tags"),
    ),
    request_body(content = TaskTypePatch, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, description = "The type as it is now", body = TaskTypeWithVersions, headers(
            ("ETag" = String, description = "The entity tag"))),
        PatchProblems,
    )
)]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    request: Request,
) -> Result<Response, Problem> {
    extract::check_merge_patch(request.headers())?;
    let task_type = find(&api, &caller, name)?;
    caller.may_use(&task_type.name)?;
    let seen = match conditional::if_match(request.headers()) {
        // There is one, which is all that `*` wants.
        None | Some(Tags::Any) => None,
        Some(Tags::These(tags)) => {
            let (_, tag) = whole(&api, &caller, &task_type).await?;
            if !conditional::strong(tags).contains(&tag) {
                return Err(Problem::of(Kind::PreconditionFailed));
            }
            Some(task_type.clone())
        }
    };
    let body = api.uploads.read(request, PATCH_BYTES).await?;
    let TaskTypePatch { limits, retry, retention_ms, paused: _, grants: _, concurrency, version, input_schema } =
        extract::from_json::<TaskTypePatch<'_>>(&body.bytes)?;
    // Read before as what it may be, but for the schema.
    let patch: serde_json::Value = serde_json::from_slice(&body.bytes).map_err(|error| {
        let detail = format!("cannot be read: {error}");
        Problem::fields(vec![FieldError { pointer: "#/input_schema".into(), detail }])
    })?;
    caller.may_set(patch.as_object().into_iter().flat_map(|patch| patch.keys()))?;
    let version = match version {
        None => patch.get("version").map(|_| None),
        Some(text) => Some(Some(digest_at("#/version", &text)?)),
    };
    let input_schema = match input_schema {
        None => patch.get("input_schema").map(|_| None),
        Some(schema) => Some(Some(schema.get().into())),
    };
    let patch = SettingsPatch {
        patch,
        input_schema,
        version,
        limits: limits.unwrap_or_default(),
        retry: retry.unwrap_or_default(),
        concurrency: concurrency.unwrap_or_default(),
        retention_ms,
        seen,
        may_change_shared: caller.is_operator,
    };
    drop(body);
    let task_type = api.manager.patch_task_type(&caller.tenant, &task_type.name, patch, caller.actor()).await?;
    let (text, tag) = whole(&api, &caller, &task_type).await?;
    let mut response = wire::json_bytes(StatusCode::OK, text);
    add_tag(&mut response, &tag);
    Ok(response)
}

/// A digest in a body.
pub(super) fn digest_at(pointer: &str, text: &str) -> Result<Digest, Problem> {
    Digest::parse(text).ok_or_else(|| {
        let detail = "is no digest: sha256: and 64 hexadecimal digits".to_owned();
        Problem::fields(vec![FieldError { pointer: pointer.into(), detail }])
    })
}

pub(super) fn find(api: &Api, caller: &Caller, name: Option<String>) -> Result<registry::TaskType, Problem> {
    let task_type = name.and_then(|name| api.manager.task_type(&caller.tenant, &name));
    task_type.ok_or_else(|| Problem::of(Kind::NotFound))
}

/// All that is said of a type, and its strong entity tag: that of the very bytes that are sent.
pub(super) async fn whole(
    api: &Api,
    caller: &Caller,
    task_type: &registry::TaskType,
) -> Result<(Vec<u8>, String), Problem> {
    let versions =
        api.manager.versions(&caller.tenant, &task_type.name).await?.into_iter().map(|(version, created_at)| {
            // One that is not loaded was stored a moment ago, or is gone in a moment.
            let known = api.manager.version(version).unwrap_or(Version::Compiling);
            let grants_missing = missing(task_type, &known);
            let (state, reason) = match task_type.current {
                Some(current) if current == version => state(&known),
                _ => state_of_other(task_type, &known),
            };
            let (kind, imports) = match known {
                Version::Ready(about) => (Some(about.kind), about.imports.clone()),
                Version::Failed(_) | Version::Compiling => (None, Vec::new()),
            };
            TypeVersion { version, created_at: Time(created_at), state, reason, kind, imports, grants_missing }
        });
    let (input_schema, output_schema) = schemas(api, task_type)?;
    let body = TaskTypeWithVersions {
        task_type: of(api, caller, task_type),
        input_schema,
        output_schema,
        versions: versions.collect(),
    };
    let text = serde_json::to_vec(&body).map_err(|error| Problem::internal(&error.into()))?;
    let tag = Digest(Sha256::digest(&text).into()).hex();
    Ok((text, tag))
}

type Schema = Option<Box<RawValue>>;

/// The schemas of inputs and outputs.
fn schemas(api: &Api, task_type: &registry::TaskType) -> Result<(Schema, Schema), Problem> {
    let current = task_type.current.and_then(|current| api.manager.version(current));
    if let Some(Version::Ready(about)) = &current
        && let Some(function) = &about.function
    {
        return Ok((Some(function.input_schema.clone()), Some(function.output_schema.clone())));
    }
    let set = task_type.input_schema.as_ref().map(|schema| RawValue::from_string(schema.text().to_string()));
    Ok((set.transpose().map_err(|error| Problem::internal(&error.into()))?, None))
}

pub(super) fn add_tag(response: &mut Response, tag: &str) {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{tag}\"")) {
        response.headers_mut().insert(ETAG, tag);
    }
}

fn of(api: &Api, caller: &Caller, task_type: &registry::TaskType) -> TaskType {
    let current = task_type.current.and_then(|current| api.manager.version(current));
    let next = task_type.next.and_then(|next| api.manager.version(next));
    let (state, reason) = match (&current, &next) {
        _ if task_type.paused => (TypeState::Paused, None),
        (Some(current), _) => state(current),
        (None, Some(next)) => state_of_other(task_type, next),
        (None, None) => (TypeState::Failed, Some("it has no version".into())),
    };
    let (kind, imports, exports) = match &current {
        Some(Version::Ready(about)) => (Some(about.kind), about.imports.clone(), about.exports.clone()),
        Some(Version::Failed(_) | Version::Compiling) | None => (None, Vec::new(), Vec::new()),
    };
    let grants_missing = next.as_ref().or(current.as_ref()).map_or(Vec::new(), |version| missing(task_type, version));
    let is_shared = api.manager.is_shared(&caller.tenant, &task_type.name);
    let grants = match is_shared && !caller.is_operator {
        true => Arc::new(task_type.grants.without_values()),
        false => task_type.grants.clone(),
    };
    let limits = api.manager.limits_of(task_type);
    TaskType {
        name: task_type.name.to_string(),
        state,
        reason,
        version: task_type.current,
        next: task_type.next,
        kind,
        imports,
        exports,
        limits,
        retry: task_type.retry(),
        retention_ms: task_type.retention_ms,
        paused: task_type.paused,
        concurrency: task_type.concurrency,
        grants,
        grants_missing,
    }
}

/// What a version imports and the type is not granted.
fn missing(task_type: &registry::TaskType, version: &Version) -> Vec<&'static str> {
    match version {
        Version::Ready(about) => grants::missing(&about.imports, &task_type.grants),
        Version::Failed(_) | Version::Compiling => Vec::new(),
    }
}

/// A version that is not current: it can be only with what it needs.
fn state_of_other(task_type: &registry::TaskType, version: &Version) -> (TypeState, Option<String>) {
    let missing = missing(task_type, version);
    if missing.is_empty() {
        return state(version);
    }
    (TypeState::Held, Some(format!("it needs what the type is not granted: {}", missing.join(", "))))
}

fn state(version: &Version) -> (TypeState, Option<String>) {
    match version {
        Version::Ready(_) => (TypeState::Ready, None),
        Version::Failed(why) => (TypeState::Failed, Some(why.to_string())),
        Version::Compiling => (TypeState::Compiling, None),
    }
}
