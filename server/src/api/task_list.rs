//! The list of tasks.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, LINK};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::access::Caller;
use super::extract::{self, PageSize, Rfc3339};
use super::problem::{Kind, Problem, problems};
use super::tasks::{TASK_BYTES, set};
use super::wire::{self, Time};
use super::{Api, cursor};
use crate::clock;
use crate::pointer::push_encoded;
use crate::store::{ListFilter, Page};
use crate::task::{ErrorKind, Status, Timestamp};

problems!(ListProblems: Malformed, BadCursor, Overloaded);

/// The filters of a list, as its query has them.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only of this status.
    #[param(nullable = false)]
    status: Option<Status>,
    /// Only of this type.
    #[param(nullable = false)]
    task_type: Option<String>,
    /// Only those whose last attempt failed in this way.
    #[param(nullable = false)]
    error_kind: Option<ErrorKind>,
    /// Only created after this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    created_after: Option<Rfc3339>,
    /// Only created before this time (RFC 3339).
    #[param(value_type = Option<String>, format = DateTime, nullable = false)]
    created_before: Option<Rfc3339>,
    /// How many at once; more than 1000 is taken as 1000. A page may have fewer though there are more.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
    /// Where to go on: `next_cursor` of the page before, with the same filters.
    #[param(nullable = false)]
    cursor: Option<String>,
}

/// Takes the `label` parameters, which may come several times, out of a query.
fn labels(uri: &Uri) -> Result<(Vec<(String, String)>, Uri), Problem> {
    let mut labels = Vec::new();
    let mut rest = form_urlencoded::Serializer::new(String::from("/?"));
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name != "label" {
            rest.append_pair(&name, &value);
            continue;
        }
        let label = value.split_once(':').filter(|(key, _)| !key.is_empty());
        let (key, value) =
            label.ok_or_else(|| Problem::new(Kind::Malformed, "a label is written as label=key:value"))?;
        labels.push((key.to_owned(), value.to_owned()));
    }
    if labels.len() > MOST_LABELS {
        return Err(Problem::new(Kind::Malformed, format!("there can be at most {MOST_LABELS} labels")));
    }
    let rest = rest.finish().parse().map_err(|_| Problem::new(Kind::Malformed, "the query cannot be read"))?;
    Ok((labels, rest))
}

/// Labels that a filter may have.
pub(super) const MOST_LABELS: usize = 8;

/// A page of tasks.
#[derive(Serialize, ToSchema)]
pub(super) struct TaskList<'a> {
    /// The tasks, newest first.
    tasks: Vec<wire::TaskSummary<'a>>,
    /// The cursor of the next page, where there is one.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// List tasks
///
/// Newest first, without their inputs and outputs.
#[utoipa::path(
    get, path = "/tasks", operation_id = "list_tasks", tag = "tasks",
    params(
        ListQuery,
        ("label" = Option<Vec<String>>, Query, style = Form, explode,
            description = "Only with this label, written `key:value`; may be repeated, and all must match"),
    ),
    responses(
        (status = 200, description = "A page of tasks", body = TaskList, headers(
            ("Link" = String, description = "`rel=\"next\"`: the next page, where there is one (RFC 8288)"))),
        ListProblems,
    )
)]
pub(super) async fn list(State(api): State<Arc<Api>>, caller: Caller, uri: Uri) -> Result<Response, Problem> {
    let (labels, rest) = labels(&uri)?;
    let ListQuery { status, task_type, error_kind, created_after, created_before, limit, cursor } =
        extract::query(&rest)?;
    let filter = ListFilter {
        status,
        task_type,
        error_kind,
        created_after: created_after.map(|at| at.0),
        created_before: created_before.map(|at| at.0),
        labels,
    };
    let before = match cursor {
        None => None,
        Some(cursor) => {
            Some(cursor::decode(&cursor, &caller.tenant, &filter).ok_or_else(|| Problem::of(Kind::BadCursor))?)
        }
    };
    let Page { tasks, more_after } = api.manager.list(&caller.tenant, filter.clone(), before, limit.0).await?;
    let next_cursor = more_after.map(|last| cursor::encode(last, &caller.tenant, &filter));
    let link = next_cursor.as_ref().map(|cursor| next_link(&filter, limit, cursor));
    let now = clock::now();
    let tasks: Vec<_> = tasks.iter().map(|task| wire::TaskSummary::of(task, &api.tenants, now)).collect();
    let about = (tasks.len() + 1) * TASK_BYTES;
    let mut response = wire::json_of_about(StatusCode::OK, &TaskList { tasks, next_cursor }, about)?;
    set(&mut response, CACHE_CONTROL, "no-store");
    if let Some(link) = link.and_then(|link| HeaderValue::try_from(link).ok()) {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

/// The same list from `cursor` on (RFC 8288).
fn next_link(filter: &ListFilter, limit: PageSize, cursor: &str) -> String {
    let ListFilter { status, task_type, error_kind, created_after, created_before, labels } = filter;
    let time = |at: &Timestamp| serde_json::to_value(Time(*at)).ok()?.as_str().map(str::to_owned);
    let parameters = [
        ("status", status.map(|status| format!("{status:?}"))),
        ("task_type", task_type.clone()),
        ("error_kind", error_kind.map(|kind| kind.name().to_owned())),
        ("created_after", created_after.as_ref().and_then(time)),
        ("created_before", created_before.as_ref().and_then(time)),
        ("limit", Some(limit.0.to_string())),
        ("cursor", Some(cursor.to_owned())),
    ];
    let mut link = String::from("</tasks");
    let labels = labels.iter().map(|(key, value)| ("label", format!("{key}:{value}")));
    let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).chain(labels);
    for (separator, (name, value)) in std::iter::once('?').chain(std::iter::repeat('&')).zip(given) {
        link.push(separator);
        link.push_str(name);
        link.push('=');
        push_encoded(&mut link, &value);
    }
    link + ">; rel=\"next\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_next_page_has_the_same_filters() {
        let filter = ListFilter {
            status: Some(Status::Failed),
            task_type: Some("a b&>".into()),
            error_kind: Some(ErrorKind::CpuExceeded),
            created_after: Some(Timestamp(0)),
            created_before: None,
            labels: vec![("team".into(), "a:b".into())],
        };
        assert_eq!(
            next_link(&filter, PageSize(7), "abc"),
            "</tasks?status=Failed&task_type=a%20b%26%3E&error_kind=cpu_exceeded\
             &created_after=1970-01-01T00%3A00%3A00.000Z&limit=7&cursor=abc&label=team%3Aa%3Ab>; rel=\"next\""
        );
    }
}
