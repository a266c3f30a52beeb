//! What a tenant may have, and what it uses of that.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::access::Caller;
use super::problem::{Kind, Problem, problems};
use super::tasks::set;
use super::wire::{self, Time};
use crate::clock;
use crate::quotas::{Quotas, Rate};
use crate::tenants::{Submits, Tenant};

pub(super) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

problems!(OwnProblems: NotFound, Overloaded, Draining, StorageUnavailable);

/// A tenant with its quotas.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantWithQuotas {
    /// Its name.
    name: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// Its share of the machine: while several tenants have work, each gets CPU time by its weight.
    weight: u32,
    /// By name; `PATCH /tenants/{tenant}` says what each bounds.
    quotas: BTreeMap<&'static str, Quota>,
}

/// A quota.
#[derive(Serialize, ToSchema)]
pub(super) struct Quota {
    /// How much it is; null: there is no bound.
    #[schema(required)]
    limit: Option<u64>,
    /// How much of it is used now, where that is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    used: Option<u64>,
}

/// Read what the tenant may have, and what it uses of that
#[utoipa::path(
    get, path = "/tenant", operation_id = "get_own_tenant", tag = "tenants",
    responses((status = 200, description = "The tenant", body = TenantWithQuotas), OwnProblems)
)]
pub(super) async fn own(State(api): State<Arc<Api>>, caller: Caller) -> Result<Response, Problem> {
    let tenant = api.tenants.find(&caller.tenant).ok_or_else(|| Problem::of(Kind::NotFound))?;
    with_quotas(&api, StatusCode::OK, &tenant, api.manager.tenant_use(&tenant.name).await?)
}

/// Answers with a tenant as it was changed. That is so, whether or not it can be told what it uses.
pub(super) async fn changed(api: &Api, status: StatusCode, tenant: &Tenant) -> Result<Response, Problem> {
    with_quotas(api, status, tenant, api.manager.tenant_use(&tenant.name).await.unwrap_or_default())
}

/// Answers with a tenant that uses so much.
pub(super) fn with_quotas(api: &Api, status: StatusCode, tenant: &Tenant, used: Quotas) -> Result<Response, Problem> {
    let Tenant { name, created_at, weight, .. } = tenant;
    let (limits, now) = (api.tenants.quotas(name), clock::now());
    let used = Quotas {
        submit_burst: api.tenants.submits(name, now).map(|Submits { rate, left, .. }| rate.burst - left),
        http_requests_per_hour: Some(api.tenants.requests(name, now)),
        changes_per_hour: Some(api.tenants.changes(name, now)),
        event_streams: Some(api.connections.streams(name)),
        ..used
    };
    let limits = Quotas { submit_burst: limits.submit_rate().map(|rate| rate.burst), ..limits };
    let quotas = limits.iter().zip(used.iter()).map(|((name, limit), (_, used))| (name, Quota { limit, used }));
    let (name, created_at, quotas) = (name.to_string(), Time(*created_at), quotas.collect());
    let mut response = wire::json(status, &TenantWithQuotas { name, created_at, weight: *weight, quotas })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Tells how many tasks a tenant may create, where that is bounded.
pub(super) fn tell_submits(api: &Api, tenant: &str, response: &mut Response) {
    if let Some(Submits { rate, left, full_in }) = api.tenants.submits(tenant, clock::now()) {
        let (limit, policy) = submits(rate, left, full_in);
        let headers = [(RATE_LIMIT, limit), (RATE_LIMIT_POLICY, policy)];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value).ok()?)));
        response.headers_mut().extend(headers);
    }
}

/// The same as the two headers say it (draft-ietf-httpapi-ratelimit-headers).
pub(super) fn submits(rate: Rate, left: u64, full_in: u64) -> (String, String) {
    let policy = format!("\"submitted-tasks\";q={};w={}", rate.burst, rate.window());
    (format!("\"submitted-tasks\";r={left};t={full_in}"), policy)
}
