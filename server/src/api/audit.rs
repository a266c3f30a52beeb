//! The audit log, for the operator.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::extract::{PageSize, Query};
use super::problem::{Problem, problems};
use super::tasks::set;
use super::wire::{self, Time};
use crate::audit::{Actor, Line};
use crate::registry::SHARED;
use crate::store::AuditFilter;

problems!(AuditProblems: Malformed, Overloaded);

/// Which lines.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Only what was done to this tenant's things; empty: to those that all tenants share.
    #[param(nullable = false)]
    tenant: Option<String>,
    /// Only this action.
    #[param(nullable = false)]
    action: Option<String>,
    /// Only lines before the one of this number: `next_before` of the page before.
    #[param(nullable = false)]
    before: Option<u64>,
    /// How many at once; more than 1000 is taken as 1000.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
}

/// A page of the audit log.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditLog<'a> {
    /// The lines, newest first.
    lines: Vec<AuditLine<'a>>,
    /// `before` for the next page, where there is one.
    #[schema(required)]
    next_before: Option<u64>,
}

/// Something that was administered.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditLine<'a> {
    /// Its number. Later lines have larger ones.
    number: u64,
    /// When it was done.
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// Who did it.
    by: AuditActor<'a>,
    /// What was done: `tenant.create`, `tenant.change`, `key.create`, `key.revoke`, `task_type.put`,
    /// `task_type.change`, `task_type.delete`, `schedule.put`, `schedule.delete`, `secret.put`, `secret.delete`,
    /// `tasks.cancel`, `tasks.retry` or `tasks.delete`.
    #[schema(example = "key.create")]
    action: &'a str,
    /// The tenant whose thing it was done to; null: one that all tenants share.
    #[schema(required)]
    tenant: Option<&'a str>,
    /// Which thing: the name of a tenant, task type, schedule or secret, the id of a key or operation.
    target: &'a str,
    /// What else there is to say.
    #[schema(required)]
    detail: Option<&'a str>,
}

/// Who did something.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditActor<'a> {
    /// The tenant whose key it was.
    tenant: &'a str,
    /// The id of the key; null: none was needed.
    #[schema(required)]
    key: Option<String>,
    /// The address that the request came from, or `private socket` where the command line asked a server that ran,
    /// or `command line` where none did.
    address: &'a str,
}

/// Read the audit log
///
/// Newest first: who changed tenants, keys, secrets, task types and schedules, and who began bulk operations. A line is
/// written together with what it tells. A call that is refused, or changes nothing, leaves none. Lines are kept for
/// as many days as the server says, and never changed.
#[utoipa::path(
    get, path = "/audit", operation_id = "get_audit", tag = "operations", params(AuditQuery),
    responses((status = 200, description = "A page of the log", body = AuditLog), AuditProblems)
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Query(AuditQuery { tenant, action, before, limit }): Query<AuditQuery>,
) -> Result<Response, Problem> {
    // One more, to see whether there is one.
    let mut found = api.manager.audit(AuditFilter { before, of: tenant, action }, limit.0 + 1).await?;
    let more = found.len() > limit.0;
    found.truncate(limit.0);
    let next_before = found.last().filter(|_| more).map(|last| last.seq);
    let lines = found.iter().map(AuditLine::of).collect();
    let mut response = wire::json(StatusCode::OK, &AuditLog { lines, next_before })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

impl<'a> AuditLine<'a> {
    fn of(line: &'a Line) -> AuditLine<'a> {
        let Line { seq, at, by: Actor { tenant, key, peer }, action, of, target, detail } = line;
        AuditLine {
            number: *seq,
            at: Time(*at),
            by: AuditActor { tenant, key: key.map(|key| key.to_string()), address: peer },
            action,
            tenant: Some(of.as_str()).filter(|of| *of != SHARED),
            target,
            detail: detail.as_deref(),
        }
    }
}
