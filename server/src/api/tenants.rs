//! Tenants and keys: a tenant's own, and all of them for the operator.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::http::request::Parts;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::access::{self, Caller};
use super::extract::{self, Rfc3339};
use super::problem::{Kind, Problem, problems};
use super::quotas::{TenantWithQuotas, changed, with_quotas};
use super::tasks::set;
use super::wire::{self, Time};
use crate::clock;
use crate::keys::{KeyId, Role, StoredKey};
use crate::manager::{Change, Changed, FieldError, NewKey, Refused};
use crate::names;
use crate::quotas::{MOST, QuotaPatch};
use crate::task::Timestamp;
use crate::tenants::{self, MOST_WEIGHT};

/// The largest body here.
const MOST_BYTES: u64 = 64 << 10;

problems!(ReadProblems: NotFound);
problems!(ReadTenantProblems: NotFound, Overloaded, Draining, StorageUnavailable);
problems!(CreateKeyProblems: Malformed, NotFound, RequestTimeout, TooManyWaiting, TooLarge, UnsupportedMediaType,
    Unacceptable, TooManyKeys, Overloaded, Draining, StorageUnavailable);
problems!(RevokeProblems: NotFound, Overloaded, Draining, StorageUnavailable);
problems!(PutProblems: Malformed, RequestTimeout, TooManyWaiting, TooLarge, Unacceptable, TooManyTenants, Overloaded,
    Draining, StorageUnavailable);
problems!(PatchProblems: Malformed, NotFound, RequestTimeout, TooManyWaiting, TooLarge, UnsupportedMediaType,
    Unacceptable, Overloaded, Draining, StorageUnavailable);

/// A key, without the key itself.
#[derive(Serialize, ToSchema)]
pub(super) struct Key {
    /// Its id, which is a part of it and no secret.
    id: String,
    /// The tenant whose it is.
    tenant: String,
    /// What it may do.
    role: Role,
    /// The task types that it may run and change; null: all.
    #[schema(required)]
    task_types: Option<Vec<String>>,
    /// What its maker calls it by.
    label: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// From when on it is good no more.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Time>,
    /// When it was revoked.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Time>,
    /// When it was used last.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Time>,
}

/// A key that was just made.
#[derive(Serialize, ToSchema)]
pub(super) struct CreatedKey {
    /// The key itself. It is told this once.
    key: String,
    #[serde(flatten)]
    of: Key,
}

/// A tenant's keys.
#[derive(Serialize, ToSchema)]
pub(super) struct KeyList {
    /// The keys in the order in which they were made.
    keys: Vec<Key>,
}

/// A key to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateKey {
    /// What it may do: each role what the ones before it may, and more.
    role: Role,
    /// The task types that it may run and change. Null: all.
    #[serde(default)]
    #[schema(max_items = 100)]
    task_types: Option<Vec<String>>,
    /// What it is called by.
    #[serde(default)]
    #[schema(max_length = 200)]
    label: String,
    /// From when on it is good no more.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Rfc3339>,
}

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(super) struct Tenant {
    /// Its name.
    name: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// Its share of the machine: while several tenants have work, each gets CPU time by its weight.
    weight: u32,
}

/// All tenants.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantList {
    /// The tenants, by name.
    tenants: Vec<Tenant>,
}

/// Settings of a tenant. What is not there stays as it is; null sets it back to the default.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantPatch {
    /// Its share of the machine.
    #[serde(default, deserialize_with = "set_or_null")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_000, default = 100)]
    weight: Option<Option<u32>>,
    /// What it may have, where that is not as the server's settings say; null sets all of it back.
    #[serde(default, deserialize_with = "quotas_or_null")]
    #[schema(value_type = Option<QuotaPatch>)]
    quotas: Option<Option<QuotaPatch>>,
}

/// `{}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoMembers {}

fn quotas_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<QuotaPatch>>, D::Error> {
    extract::object_or_null(deserializer).map(Some)
}

fn set_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// The tenant that a path names, where there is one.
pub(super) struct TenantInPath(pub(super) Arc<str>);

/// And a key.
pub(super) struct KeyInPath(KeyId);

impl FromRequestParts<Arc<Api>> for TenantInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<TenantInPath, Problem> {
        let found = parameter(parts, api, "tenant").await.and_then(|name| api.tenants.find(&name));
        found.map(|tenant| TenantInPath(tenant.name.clone())).ok_or_else(|| Problem::of(Kind::NotFound))
    }
}

impl FromRequestParts<Arc<Api>> for KeyInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<KeyInPath, Problem> {
        let id = parameter(parts, api, "id").await.and_then(|id| id.parse().ok());
        id.map(KeyInPath).ok_or_else(|| Problem::of(Kind::NotFound))
    }
}

async fn parameter(parts: &mut Parts, api: &Arc<Api>, wanted: &str) -> Option<String> {
    let Path(all) = Path::<Vec<(String, String)>>::from_request_parts(parts, api).await.ok()?;
    all.into_iter().find(|(name, _)| name == wanted).map(|(_, value)| value)
}

/// List the tenant's keys
#[utoipa::path(
    get, path = "/keys", operation_id = "list_own_keys", tag = "keys",
    responses((status = 200, description = "The keys of the tenant", body = KeyList))
)]
pub(super) async fn own_keys(State(api): State<Arc<Api>>, caller: Caller) -> Result<Response, Problem> {
    listed(&api, &caller.tenant)
}

/// Make a key
///
/// Of the tenant that the request's key is of. The answer has the key itself, which is told once.
#[utoipa::path(
    post, path = "/keys", operation_id = "create_own_key", tag = "keys",
    request_body = CreateKey,
    responses((status = 201, description = "The key", body = CreatedKey, headers(
        ("Location" = String, description = "Its path"))), CreateKeyProblems)
)]
pub(super) async fn create_own_key(
    State(api): State<Arc<Api>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let tenant = caller.tenant.clone();
    made(&api, &caller, tenant, "/keys", request).await
}

/// Revoke a key
///
/// It stops working at once, also on streams that are open and for requests that are still being sent. It stays in the
/// list until there are a thousand and one more is made.
#[utoipa::path(
    delete, path = "/keys/{id}", operation_id = "revoke_own_key", tag = "keys",
    params(("id" = String, Path, description = "The id of the key")),
    responses((status = 200, description = "The key as it is now", body = Key), RevokeProblems)
)]
pub(super) async fn revoke_own_key(
    State(api): State<Arc<Api>>,
    caller: Caller,
    KeyInPath(id): KeyInPath,
) -> Result<Response, Problem> {
    let tenant = caller.tenant.clone();
    revoked(&api, &caller, tenant, id).await
}

/// List tenants
#[utoipa::path(
    get, path = "/tenants", operation_id = "list_tenants", tag = "tenants",
    responses((status = 200, description = "All tenants", body = TenantList))
)]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let tenants = api.tenants.all().iter().map(|tenant| Tenant::of(tenant)).collect();
    wire::json(StatusCode::OK, &TenantList { tenants })
}

/// Read a tenant
#[utoipa::path(
    get, path = "/tenants/{tenant}", operation_id = "get_tenant", tag = "tenants",
    params(("tenant" = String, Path, description = "The name of the tenant")),
    responses((status = 200, description = "The tenant", body = TenantWithQuotas), ReadTenantProblems)
)]
pub(super) async fn get(State(api): State<Arc<Api>>, TenantInPath(name): TenantInPath) -> Result<Response, Problem> {
    let tenant = api.tenants.find(&name).ok_or_else(|| Problem::of(Kind::NotFound))?;
    with_quotas(&api, StatusCode::OK, &tenant, api.manager.tenant_use(&name).await?)
}

/// Make a tenant
///
/// It has no body: `PATCH` says what is different of it.
#[utoipa::path(
    put, path = "/tenants/{tenant}", operation_id = "put_tenant", tag = "tenants",
    params(("tenant" = String, Path, description = "The name: `[a-z0-9][a-z0-9-]{0,62}`")),
    responses(
        (status = 201, description = "It is made", body = TenantWithQuotas),
        (status = 200, description = "There is one of that name already", body = TenantWithQuotas),
        PutProblems,
    )
)]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let body = api.uploads.read(request, MOST_BYTES).await?;
    if !body.bytes.is_empty() {
        // Rather than not to do what somebody asks for.
        extract::from_json::<NoMembers>(&body.bytes)?;
    }
    if !names::is_name(&name) {
        return Err(Problem::new(Kind::Unacceptable, format!("a tenant's name {}", names::RULE)));
    }
    let change = Change::CreateTenant { name: name.into(), most: api.max_tenants };
    match api.manager.administer(change, caller.actor()).await? {
        Changed::Tenant(tenant, true) => changed(&api, StatusCode::CREATED, &tenant).await,
        Changed::Tenant(tenant, false) => changed(&api, StatusCode::OK, &tenant).await,
        other => Err(unexpected(&other)),
    }
}

/// Change a tenant
#[utoipa::path(
    patch, path = "/tenants/{tenant}", operation_id = "patch_tenant", tag = "tenants",
    params(("tenant" = String, Path, description = "The name of the tenant")),
    request_body(content = TenantPatch, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The tenant as it is now", body = TenantWithQuotas), PatchProblems)
)]
pub(super) async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    TenantInPath(name): TenantInPath,
    request: Request,
) -> Result<Response, Problem> {
    extract::check_merge_patch(request.headers())?;
    let body = api.uploads.read(request, MOST_BYTES).await?;
    let TenantPatch { weight, quotas } = extract::from_json(&body.bytes)?;
    if weight.is_none() && quotas.is_none_or(|quotas| quotas == Some(QuotaPatch::default())) {
        let tenant = api.tenants.find(&name).ok_or_else(|| Problem::of(Kind::NotFound))?;
        return changed(&api, StatusCode::OK, &tenant).await;
    }
    let weight = weight.map(|weight| weight.unwrap_or(tenants::DEFAULT_WEIGHT));
    let quotas = quotas.map(|quotas| quotas.unwrap_or(QuotaPatch::RESET)).unwrap_or_default();
    let mut errors = Vec::new();
    if weight.is_some_and(|weight| !(1..=MOST_WEIGHT).contains(&weight)) {
        let detail = format!("must be between 1 and {MOST_WEIGHT}");
        errors.push(FieldError { pointer: "#/weight".into(), detail });
    }
    errors.extend(quotas.faults().map(|(name, least)| FieldError {
        pointer: format!("#/quotas/{name}"),
        detail: format!("must be between {least} and {MOST}"),
    }));
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    match api.manager.administer(Change::ChangeTenant { name, weight, quotas }, caller.actor()).await? {
        Changed::Tenant(tenant, _) => changed(&api, StatusCode::OK, &tenant).await,
        other => Err(unexpected(&other)),
    }
}

/// List a tenant's keys
#[utoipa::path(
    get, path = "/tenants/{tenant}/keys", operation_id = "list_keys", tag = "tenants",
    params(("tenant" = String, Path, description = "The name of the tenant")),
    responses((status = 200, description = "The keys of the tenant", body = KeyList), ReadProblems)
)]
pub(super) async fn keys(State(api): State<Arc<Api>>, TenantInPath(tenant): TenantInPath) -> Result<Response, Problem> {
    listed(&api, &tenant)
}

/// Make a key of a tenant
///
/// The answer has the key itself, which is told once.
#[utoipa::path(
    post, path = "/tenants/{tenant}/keys", operation_id = "create_key", tag = "tenants",
    params(("tenant" = String, Path, description = "The name of the tenant")),
    request_body = CreateKey,
    responses((status = 201, description = "The key", body = CreatedKey, headers(
        ("Location" = String, description = "Its path"))), CreateKeyProblems)
)]
pub(super) async fn create_key(
    State(api): State<Arc<Api>>,
    caller: Caller,
    TenantInPath(tenant): TenantInPath,
    request: Request,
) -> Result<Response, Problem> {
    let under = format!("/tenants/{tenant}/keys");
    made(&api, &caller, tenant, &under, request).await
}

/// Revoke a key of a tenant
///
/// It stops working at once, also on streams that are open and for requests that are still being sent. It stays in the
/// list until there are a thousand and one more is made.
#[utoipa::path(
    delete, path = "/tenants/{tenant}/keys/{id}", operation_id = "revoke_key", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The name of the tenant"),
        ("id" = String, Path, description = "The id of the key"),
    ),
    responses((status = 200, description = "The key as it is now", body = Key), RevokeProblems)
)]
pub(super) async fn revoke_key(
    State(api): State<Arc<Api>>,
    caller: Caller,
    TenantInPath(tenant): TenantInPath,
    KeyInPath(id): KeyInPath,
) -> Result<Response, Problem> {
    revoked(&api, &caller, tenant, id).await
}

fn listed(api: &Api, tenant: &str) -> Result<Response, Problem> {
    let keys = api.tenants.keys.of_tenant(tenant);
    let keys = keys.iter().map(|key| Key::of(&key.stored, key.last_used_at())).collect();
    let mut response = wire::json(StatusCode::OK, &KeyList { keys })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

async fn made(
    api: &Api,
    caller: &Caller,
    tenant: Arc<str>,
    under: &str,
    request: Request,
) -> Result<Response, Problem> {
    extract::check_json(request.headers())?;
    let body = api.uploads.read(request, MOST_BYTES).await?;
    let now = clock::now();
    let new = extract::from_json::<CreateKey>(&body.bytes)?.of(tenant);
    let faults = new.faults(now);
    if !faults.is_empty() {
        return Err(Problem::fields(faults));
    }
    // Nobody makes a key that is for more than their own.
    for name in new.task_types.iter().flatten() {
        caller.may_use(name)?;
    }
    if new.task_types.is_none() && caller.task_types().is_some() {
        return Err(access::other_types("the key is for some task types, and one that it makes has to be as well"));
    }
    let (token, key) = new.make(now).map_err(|error| Problem::internal(&error.into()))?;
    let created = api.manager.administer(Change::CreateKey(key), caller.actor()).await?;
    let Changed::KeyCreated(key, _) = created else { return Err(unexpected(&created)) };
    let path = format!("{under}/{}", key.id);
    let body = CreatedKey { key: token.reveal().to_owned(), of: Key::of(&key, None) };
    let mut response = wire::json(StatusCode::CREATED, &body)?;
    set(&mut response, CACHE_CONTROL, "no-store");
    response.headers_mut().extend(path.parse().ok().map(|path| (LOCATION, path)));
    Ok(response)
}

async fn revoked(api: &Api, caller: &Caller, tenant: Arc<str>, id: KeyId) -> Result<Response, Problem> {
    let known = api.tenants.keys.of_tenant(&tenant).into_iter().find(|key| key.stored.id == id);
    if caller.task_types().is_some() {
        // Nobody takes back what they could not make.
        match known.as_ref().map(|key| key.stored.task_types.clone()) {
            Some(Some(listed)) => listed.iter().try_for_each(|name| caller.may_use(name))?,
            Some(None) => return Err(access::other_types("the key is for some task types, and that one is for all")),
            None => {}
        }
    }
    match api.manager.administer(Change::RevokeKey { tenant, id }, caller.actor()).await? {
        Changed::KeyRevoked(key) => {
            let last_used_at = known.map_or(key.last_used_at, |known| known.last_used_at());
            wire::json(StatusCode::OK, &Key::of(&key, last_used_at))
        }
        other => Err(unexpected(&other)),
    }
}

fn unexpected(changed: &Changed) -> Problem {
    Problem::from(Refused::Internal(anyhow::anyhow!("a change came to something else: {changed:?}")))
}

impl CreateKey {
    fn of(self, tenant: Arc<str>) -> NewKey {
        let CreateKey { role, task_types, label, expires_at } = self;
        NewKey { tenant, role, task_types, label, expires_at: expires_at.map(|Rfc3339(at)| at) }
    }
}

impl Key {
    fn of(key: &StoredKey, last_used_at: Option<Timestamp>) -> Key {
        Key {
            id: key.id.to_string(),
            tenant: key.tenant.to_string(),
            role: key.role,
            task_types: key.task_types.clone(),
            label: key.label.clone(),
            created_at: Time(key.created_at),
            expires_at: key.expires_at.map(Time),
            revoked_at: key.revoked_at.map(Time),
            last_used_at: last_used_at.map(Time),
        }
    }
}

impl Tenant {
    fn of(tenant: &tenants::Tenant) -> Tenant {
        let tenants::Tenant { name, created_at, weight, .. } = tenant;
        Tenant { name: name.to_string(), created_at: Time(*created_at), weight: *weight }
    }
}
