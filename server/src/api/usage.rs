//! What a tenant used, day by day.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use axum::response::Response;
use chrono::{DateTime, NaiveDate};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::access::Caller;
use super::extract::Query;
use super::problem::{Kind, Problem, problems};
use super::tasks::set;
use super::tenants::TenantInPath;
use super::wire;
use crate::clock;
use crate::ledger::{CameTo, Day, Sums};

/// Days that one answer tells of where the client does not say, and at most.
const USUAL_DAYS: u32 = 30;
const MOST_DAYS: u32 = 400;

problems!(OwnProblems: Malformed, Overloaded);
problems!(UsageProblems: Malformed, NotFound, Overloaded);

/// A day as `2026-11-23`, UTC.
#[derive(Clone, Copy)]
struct Date(Day);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Date, D::Error> {
        let text = String::deserialize(deserializer)?;
        let date = text.parse::<NaiveDate>().ok().filter(|date| date.to_string() == text);
        let date = date.ok_or_else(|| serde::de::Error::custom("not a day such as 2026-11-23"))?;
        Ok(Date(Day(date.signed_duration_since(DateTime::UNIX_EPOCH.date_naive()).num_days())))
    }
}

/// Of which days.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQuery {
    /// The first day, UTC; 29 days before `to` where it is not given.
    #[param(value_type = Option<String>, format = Date, nullable = false)]
    from: Option<Date>,
    /// The last day, which is included; today where it is not given. At most 400 days from the first.
    #[param(value_type = Option<String>, format = Date, nullable = false)]
    to: Option<Date>,
}

/// What a tenant used.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantUsage {
    /// The first day that is told of.
    #[schema(format = Date)]
    from: String,
    /// The last one.
    #[schema(format = Date)]
    to: String,
    /// The days on which something ended, in order.
    days: Vec<UsageOfDay>,
}

/// What ended on a day, UTC, and what it used.
#[derive(Serialize, ToSchema)]
pub(super) struct UsageOfDay {
    /// The day.
    #[schema(format = Date)]
    day: String,
    /// By what it came to: `completed`, or the kind of the error. An attempt that is repeated is under what it
    /// came to itself, its task under what it ended with.
    outcomes: BTreeMap<&'static str, Used>,
    /// All outcomes together: the sum of the receipts of the attempts that ended on this day.
    total: Used,
    /// Beside it: what `POST /task-types/{name}/test` ran.
    tests: Used,
    /// Beside it: attempts that were given back without being counted, because the server stopped or had no room
    /// for them after all.
    given_back: Used,
}

/// How many there were, and what they used.
#[derive(Serialize, ToSchema)]
pub(super) struct Used {
    /// Tasks that ended. One that is retried by hand ends again.
    tasks: u64,
    /// Attempts.
    attempts: u64,
    /// CPU time in milliseconds, with three decimals.
    cpu_ms: f64,
    /// From their starts to their ends, in milliseconds, with three decimals.
    wall_ms: f64,
    /// How long they waited for their turns, in milliseconds, with three decimals.
    queue_ms: f64,
    /// Fuel.
    fuel: u64,
    /// The most memory of each attempt times how long it ran, in MiB times seconds.
    memory_mib_seconds: f64,
    /// Calls of `taskcell:task` interfaces.
    host_calls: u64,
    /// Bytes of objects read and written.
    io_bytes: u64,
    /// Bytes of log lines kept.
    log_bytes: u64,
}

/// Read what the tenant used
///
/// By day, UTC, on which an attempt ended. It is written down together with the attempt's end, so that it is the sum
/// of the receipts, and stays when the tasks are removed. An attempt that the server went down under has no receipt.
#[utoipa::path(
    get, path = "/tenant/usage", operation_id = "get_own_usage", tag = "keys", params(UsageQuery),
    responses((status = 200, description = "The days", body = TenantUsage), OwnProblems)
)]
pub(super) async fn own(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Problem> {
    read(&api, caller.tenant.clone(), query).await
}

/// Read what a tenant used
///
/// By day, as the tenant itself reads it under `/tenant/usage`.
#[utoipa::path(
    get, path = "/tenants/{tenant}/usage", operation_id = "get_usage", tag = "tenants",
    params(("tenant" = String, Path, description = "The name of the tenant"), UsageQuery),
    responses((status = 200, description = "The days", body = TenantUsage), UsageProblems)
)]
pub(super) async fn of_tenant(
    State(api): State<Arc<Api>>,
    TenantInPath(tenant): TenantInPath,
    Query(query): Query<UsageQuery>,
) -> Result<Response, Problem> {
    read(&api, tenant, query).await
}

async fn read(api: &Api, tenant: Arc<str>, UsageQuery { from, to }: UsageQuery) -> Result<Response, Problem> {
    let to = to.map_or_else(|| Day::of(clock::now()), |to| to.0);
    let from = from.map_or_else(|| to.minus(USUAL_DAYS - 1), |from| from.0);
    if from > to {
        return Err(Problem::new(Kind::Malformed, "from must not be after to"));
    }
    if from < to.minus(MOST_DAYS - 1) {
        return Err(Problem::new(Kind::Malformed, format!("there can be at most {MOST_DAYS} days from from to to")));
    }
    let found = api.manager.usage(&tenant, from, to).await?;
    let days = found.chunk_by(|(one, ..), (other, ..)| one == other).map(UsageOfDay::of).collect();
    let mut response = wire::json(StatusCode::OK, &TenantUsage { from: written(from), to: written(to), days })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

fn written(day: Day) -> String {
    let at = day.0.checked_mul(24 * 60 * 60).and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    at.unwrap_or_default().date_naive().to_string()
}

impl UsageOfDay {
    /// Rows of one day.
    fn of(rows: &[(Day, CameTo, Sums)]) -> UsageOfDay {
        let [mut total, mut tests, mut given_back] = [(); 3].map(|()| Sums::default());
        let mut outcomes = BTreeMap::new();
        for (_, came_to, sums) in rows {
            match came_to {
                CameTo::Test => tests.add(sums),
                CameTo::GivenBack => given_back.add(sums),
                CameTo::Completed | CameTo::Failed(_) => {
                    total.add(sums);
                    outcomes.insert(came_to.name(), Used::of(sums));
                }
            }
        }
        let day = rows.first().map(|(day, ..)| written(*day)).unwrap_or_default();
        let [total, tests, given_back] = [total, tests, given_back].map(|sums| Used::of(&sums));
        UsageOfDay { day, outcomes, total, tests, given_back }
    }
}

impl Used {
    fn of(sums: &Sums) -> Used {
        let millis = |micros: u64| micros as f64 / 1000.0;
        Used {
            tasks: sums.tasks,
            attempts: sums.attempts,
            cpu_ms: millis(sums.cpu_us),
            wall_ms: millis(sums.wall_us),
            queue_ms: millis(sums.queue_us),
            fuel: sums.fuel,
            memory_mib_seconds: sums.memory_kib_ms as f64 / (1024.0 * 1000.0),
            host_calls: sums.host_calls,
            io_bytes: sums.io_bytes,
            log_bytes: sums.log_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_they_are_written() {
        let of = |text: &str| serde_json::from_value::<Date>(text.into()).ok().map(|date| date.0);
        for (text, day) in [("1970-01-01", 0), ("1969-12-31", -1), ("2026-11-23", 20_780), ("9999-12-31", 2_932_896)] {
            assert_eq!((of(text), written(Day(day))), (Some(Day(day)), text.to_owned()));
        }
        for bad in ["", "2026-1-1", "2026-02-30", "20261123", "2026-11-23T00:00:00Z", " 2026-11-23", "+2026-11-23"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
