//! Secrets: written and removed, and never read back.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, LOCATION};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::access::Caller;
use super::conditional;
use super::extract::{NameInPath, PageSize, Query};
use super::problem::{Kind, Problem, problems};
use super::tasks::set;
use super::wire::{self, Time};
use crate::manager::Refused;
use crate::names::{self, is_name};
use crate::secrets::{VALUE_BYTES, fault};
use crate::store::SecretMeta;

problems!(ListProblems: Malformed, Overloaded);
problems!(PutProblems: Malformed, RequestTimeout, TooManyWaiting, NoSecretKey, PreconditionFailed, TooLarge,
    Unacceptable, TooManySecrets, Overloaded, Draining, StorageUnavailable);
problems!(DeleteProblems: Malformed, NotFound, PreconditionFailed, Overloaded, Draining, StorageUnavailable);

/// Which secrets to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only names after this one.
    #[serde(default)]
    #[param(required = false)]
    after: String,
    /// How many at once; more than 1000 is taken as 1000.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
}

/// What is told of a secret.
#[derive(Serialize, ToSchema)]
pub(super) struct Secret<'a> {
    /// Its name.
    #[schema(example = "api-token")]
    name: &'a str,
    /// When it was written first.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// When it was written last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Time,
    /// Whether the server can open it: false where it has another key now, or none.
    usable: bool,
}

/// A page of secrets.
#[derive(Serialize, ToSchema)]
pub(super) struct SecretList<'a> {
    /// The secrets in the order of their names.
    secrets: Vec<Secret<'a>>,
    /// `after` for the next page, where there is one.
    #[schema(required)]
    next_after: Option<&'a str>,
}

/// A secret that was removed.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedSecret<'a> {
    /// Its name.
    name: &'a str,
    /// Always true.
    deleted: bool,
}

/// List secrets
///
/// Their names; no call tells a value.
#[utoipa::path(
    get, path = "/secrets", operation_id = "list_secrets", tag = "secrets", params(ListQuery),
    responses((status = 200, description = "A page of secrets", body = SecretList), ListProblems)
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Query(ListQuery { after, limit }): Query<ListQuery>,
) -> Result<Response, Problem> {
    // One more than asked for tells whether there is a next page.
    let mut found = api.secrets.list(&caller.tenant, after, limit.0 + 1).await.map_err(Refused::from)?;
    let more = found.len() > limit.0;
    found.truncate(limit.0);
    let secrets = found.iter().map(|SecretMeta { name, created_at, updated_at, usable }| Secret {
        name,
        created_at: Time(*created_at),
        updated_at: Time(*updated_at),
        usable: *usable,
    });
    let next_after = found.last().filter(|_| more).map(|last| &*last.name);
    let mut response = wire::json(StatusCode::OK, &SecretList { secrets: secrets.collect(), next_after })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Write a secret
///
/// Creates or replaces it. It is stored when this answers, sealed, and requests of tasks from then on have the new
/// value. A task type has to be granted it for each destination that it may go to.
#[utoipa::path(
    put, path = "/secrets/{name}", operation_id = "put_secret", tag = "secrets",
    params(
        ("name" = String, Path, description = "The name: `[a-z0-9][a-z0-9-]{0,62}`"),
        ("If-Match" = Option<String>, Header, description = "`*`: only where there is such a secret"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only where there is no such secret"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description =
        "The value, of any media type: 8 to 8192 bytes of visible ASCII, with spaces and tabs inside only"),
    responses(
        (status = 200, description = "Replaced", body = Secret),
        (status = 201, description = "Created", body = Secret, headers(("Location" = String, description = "Its path"))),
        PutProblems,
    )
)]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    request: Request,
) -> Result<Response, Problem> {
    let name = name
        .filter(|name| is_name(name))
        .ok_or_else(|| Problem::new(Kind::Unacceptable, format!("a secret's name {}", names::RULE)))?;
    caller.may_use_all()?;
    let key = api.secrets.key().ok_or_else(|| Problem::of(Kind::NoSecretKey))?;
    let precondition = conditional::precondition(request.headers())?;
    let body = api.uploads.read(request, *VALUE_BYTES.end() as u64).await?;
    if let Some(fault) = fault(&body.bytes) {
        return Err(Problem::new(Kind::Unacceptable, fault));
    }
    let sealed = key.seal(&caller.tenant, &name, &body.bytes).map_err(|error| Problem::internal(&error))?;
    drop(body);
    let written = api.manager.put_secret(&caller.tenant, &name, sealed, precondition, caller.actor()).await?;
    let status = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let (created_at, updated_at) = (Time(written.created_at), Time(written.updated_at));
    let mut response = wire::json(status, &Secret { name: &name, created_at, updated_at, usable: true })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    if written.created
        && let Ok(path) = HeaderValue::try_from(format!("/secrets/{name}"))
    {
        response.headers_mut().insert(LOCATION, path);
    }
    Ok(response)
}

/// Remove a secret
///
/// Requests that name it are refused from then on.
#[utoipa::path(
    delete, path = "/secrets/{name}", operation_id = "delete_secret", tag = "secrets",
    params(
        ("name" = String, Path, description = "The name of the secret"),
        ("If-Match" = Option<String>, Header, description = "`*`: only where there is such a secret"),
    ),
    responses((status = 200, description = "The secret is gone", body = RemovedSecret), DeleteProblems)
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = name.filter(|name| is_name(name)).ok_or_else(|| Problem::of(Kind::NotFound))?;
    caller.may_use_all()?;
    api.manager.delete_secret(&caller.tenant, &name, conditional::precondition(&headers)?, caller.actor()).await?;
    wire::json(StatusCode::OK, &RemovedSecret { name: &name, deleted: true })
}
