//! What happens to tasks, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Events are read from the store and not handed over: a reader that is slow holds no memory here, one
//! that was cut off goes on where it was, and one that comes late sees what it missed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, HeaderMap};
use axum::http::{HeaderName, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::stream;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Api;
use super::access::Caller;
use super::connections::Held;
use super::extract::IdInPath;
use super::problem::{Kind, Problem, problems};
use super::tasks::set;
use super::wire::{self, Time};
use crate::history::Happened;
use crate::host::log::LogLevel;
use crate::manager::{Listener, Manager, Refused, Topic};
use crate::store::{Told, ToldEvents};
use crate::task::TaskId;

/// How often a comment is sent where nothing happens.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// How long a tenant's stream waits for more to happen before it reads: one read for many events.
const GATHER: Duration = Duration::from_millis(20);

/// How long a client waits before it connects again.
const RECONNECT: Duration = Duration::from_secs(2);

problems!(TaskEventsProblems: Malformed, NotFound, TooManyStreams, TooManyWaiting, Overloaded, Draining);
problems!(EventsProblems: Malformed, TooManyStreams, TooManyWaiting, Overloaded, Draining);

/// What an event says.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(serialize_with = "wire::id")]
    id: TaskId,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_type: Option<&'a str>,
    attempt: u32,
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lines: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    time: Time,
    level: LogLevel,
    message: &'a str,
}

fn event(Told { event, task_type, lines }: &Told) -> Event {
    let more = event.data.as_deref().and_then(|data| serde_json::from_str::<&RawValue>(data).ok());
    let of = |happened: &[Happened]| more.filter(|_| happened.contains(&event.happened));
    let data = Data {
        id: event.task,
        task_type: task_type.as_deref(),
        attempt: event.attempt,
        time: Time(event.at),
        error: of(&[Happened::Pending, Happened::Failed]),
        progress: of(&[Happened::Progress]),
        lines: lines
            .iter()
            .map(|(seq, _, line)| Line { seq: *seq, time: Time(line.at), level: line.level, message: &line.message })
            .collect(),
    };
    // JSON has no line break outside of its strings' escapes, so it is one line of `data`.
    let text = serde_json::to_string(&data).unwrap_or_default();
    Event::default().id(event.seq.to_string()).event(event.happened.name()).data(text)
}

/// Where a client was before.
fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    // What a client sends that has seen no event yet.
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || Problem::new(Kind::Malformed, "the Last-Event-ID is not the id of an event");
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // The store counts so far.
        text.parse::<i64>().map(|seq| Some(seq.unsigned_abs())).map_err(|_| wrong())
    } else {
        Err(wrong())
    }
}

/// Where to go on after an event. Its number may be higher than any that there is, where a backup was restored:
/// then with what happens from now on.
async fn known(api: &Api, caller: &Caller, after: u64) -> Result<u64, Problem> {
    Ok(if after == 0 { 0 } else { after.min(api.manager.newest_event(&caller.tenant).await?) })
}

/// A stream on its way.
struct Reading {
    manager: Manager,
    tenant: Arc<str>,
    /// One task; `None`: all of the tenant's.
    task: Option<TaskId>,
    listener: Listener,
    after: u64,
    /// Read and not yet sent.
    ready: Option<ToldEvents>,
    over: bool,
    _held: Held,
}

impl Reading {
    async fn read(&self) -> Result<ToldEvents, Refused> {
        match self.task {
            Some(id) => self.manager.task_events(&self.tenant, id, self.after).await,
            None => self.manager.tenant_events(&self.tenant, self.after).await,
        }
    }

    /// The next events, once there are any; `None` at the end. A read that fails ends the stream: the
    /// client connects again and goes on where it was.
    async fn next(&mut self) -> Option<Vec<Event>> {
        while !self.over {
            let told = match self.ready.take() {
                Some(told) => told,
                None => self.read().await.ok()?,
            };
            self.after = told.looked_to;
            let gone = told.told.last().is_some_and(|last| last.event.happened == Happened::Deleted);
            self.over = self.task.is_some() && !told.more && (told.ended || gone);
            if !told.told.is_empty() {
                return Some(told.told.iter().map(event).collect());
            }
            if self.over || (!told.more && !self.wait().await) {
                return None;
            }
        }
        None
    }

    async fn wait(&mut self) -> bool {
        if self.manager.is_drained() || !self.listener.changed().await {
            return false;
        }
        if self.task.is_none() {
            tokio::time::sleep(GATHER).await;
        }
        true
    }
}

fn answer(reading: Reading, end: impl Future<Output = ()> + Send + 'static) -> Response {
    let events = stream::unfold(reading, async |mut reading| Some((reading.next().await?, reading)));
    let first = stream::iter([Ok::<_, Infallible>(Event::default().retry(RECONNECT))]);
    let events = first.chain(events.flat_map(|events| stream::iter(events.into_iter().map(Ok))));
    let events = events.take_until(end);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(COMMENT_EVERY)).into_response();
    set(&mut response, CACHE_CONTROL, "no-store");
    // Proxies that gather answers would hold events back.
    set(&mut response, HeaderName::from_static("x-accel-buffering"), "no");
    response
}

/// Listen to a task
///
/// What happened to it so far and what happens from now on, as server-sent events: `task.pending`,
/// `task.running`, `task.progress`, `task.log`, `task.completed`, `task.failed`, `task.deleted`. The stream
/// ends after the last one. `Last-Event-ID` goes on after the event with that id; where the server has not come so
/// far, because a backup was restored, with what happens from now on.
#[utoipa::path(
    get, path = "/task/{id}/events", operation_id = "get_task_events", tag = "events",
    params(
        ("id" = String, Path, description = "The id of the task", format = Uuid),
        ("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event that the client has"),
    ),
    responses(
        (status = 200, description = "The events", body = String, content_type = "text/event-stream"),
        (status = 204, description = "The task has ended, and the client has its last event"),
        TaskEventsProblems,
    )
)]
pub(super) async fn of_task(
    State(api): State<Arc<Api>>,
    caller: Caller,
    IdInPath(id): IdInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let resumed = last_event_id(&headers)?;
    if api.manager.is_draining() {
        return Err(Problem::of(Kind::Draining));
    }
    // A task that is gone has no path any more; who listens while it goes is told.
    api.manager.get(&caller.tenant, id).await?;
    let held = api.connections.stream(&caller.tenant, api.tenants.quotas(&caller.tenant).event_streams)?;
    // Before the first read, so that nothing is missed after it.
    let listener = api.manager.listen(Topic::Task(id));
    let after = known(&api, &caller, resumed.unwrap_or(0)).await?;
    let told = api.manager.task_events(&caller.tenant, id, after).await?;
    if resumed.is_some() && told.ended && told.told.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let (manager, tenant) = (api.manager.clone(), caller.tenant.clone());
    Ok(answer(
        Reading { manager, tenant, task: Some(id), listener, after, ready: Some(told), over: false, _held: held },
        caller.end_of_key(api.tenants.clone()),
    ))
}

/// Listen to all tasks
///
/// What happens to any task from now on, or, with `Last-Event-ID`, since the event with that id, if there was one. Events of
/// tasks that are gone meanwhile are not told, but that somebody removed them (for an hour); what retention
/// removes goes without an event.
#[utoipa::path(
    get, path = "/events", operation_id = "get_events", tag = "events",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event that the client has")),
    responses((status = 200, description = "The events", body = String, content_type = "text/event-stream"), EventsProblems)
)]
pub(super) async fn of_tenant(
    State(api): State<Arc<Api>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let resumed = last_event_id(&headers)?;
    if api.manager.is_draining() {
        return Err(Problem::of(Kind::Draining));
    }
    let held = api.connections.stream(&caller.tenant, api.tenants.quotas(&caller.tenant).event_streams)?;
    let listener = api.manager.listen(Topic::Tenant(caller.tenant.clone()));
    let after = match resumed {
        Some(after) => known(&api, &caller, after).await?,
        None => api.manager.newest_event(&caller.tenant).await?,
    };
    let (manager, tenant) = (api.manager.clone(), caller.tenant.clone());
    Ok(answer(
        Reading { manager, tenant, task: None, listener, after, ready: None, over: false, _held: held },
        caller.end_of_key(api.tenants.clone()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_client_was() {
        let of = |value: &'static str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static("last-event-id"), value.parse().unwrap())]);
            last_event_id(&headers).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!((of("12"), of(""), of(" 7 ")), (Ok(Some(12)), Ok(None), Ok(Some(7))));
        for wrong in ["x", "-1", "+1", "1.5", "9223372036854775808", "99999999999999999999999"] {
            assert_eq!(of(wrong), Err(400), "{wrong}");
        }
        assert_eq!(last_event_id(&HeaderMap::new()).ok(), Some(None));
    }
}
