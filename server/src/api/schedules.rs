//! Schedules: written, read and removed. The manager makes their tasks.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, ETAG, HeaderMap, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::access::Caller;
use super::conditional;
use super::create::CreateTask;
use super::extract::{self, NameInPath, PageSize, Query};
use super::problem::{Kind, Problem, problems};
use super::tasks::set;
use super::wire::{self, Time};
use crate::clock;
use crate::manager::{FieldError, NewTask, Refused};
use crate::names::{self, is_name};
use crate::schedules::{self, BadCron, CatchUp, Cron, MadeTask, Overlap, ScheduledTask, Spec};
use crate::task::{Status, Timestamp};

/// The largest body of a `PUT`.
const MOST_BYTES: u64 = 1 << 20;

/// Due times that are shown.
const NEXT_TIMES: usize = 5;

problems!(ListProblems: Malformed, Overloaded);
problems!(ReadProblems: NotFound, Overloaded);
problems!(PutProblems: Malformed, RequestTimeout, TooManyWaiting, PreconditionFailed, TooLarge, UnsupportedMediaType,
    Unacceptable, TooManySchedules, Overloaded, Draining, StorageUnavailable);
problems!(DeleteProblems: Malformed, NotFound, PreconditionFailed, Overloaded, Draining, StorageUnavailable);

/// A schedule as a client writes it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PutSchedule<'a> {
    /// When: minute, hour, day of the month, month and day of the week, as cron has them, or six fields with
    /// seconds in front; also `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`. Where the clocks go
    /// forward or back, a pattern whose hours are named is due once for each of its times, after the gap or
    /// the first time; one with `*` in its hours goes on as time does.
    #[schema(example = "*/5 * * * *", max_length = 256)]
    cron: String,
    /// Whose clock: a name of the IANA time zone database.
    #[serde(default = "utc")]
    #[schema(default = "UTC", example = "Europe/Berlin")]
    time_zone: String,
    /// What is created: as the body of `POST /task`, without its times.
    #[serde(borrow, deserialize_with = "extract::object")]
    task: CreateTask<'a>,
    /// What happens at a due time while a task of the schedule is Pending or Running; `allow` where it is not given.
    #[serde(default, deserialize_with = "named")]
    #[schema(required = false)]
    overlap: Overlap,
    /// What happens with due times that were missed; `none` where it is not given.
    #[serde(default, deserialize_with = "named")]
    #[schema(required = false)]
    catch_up: CatchUp,
    /// No tasks are created. Due times that pass meanwhile are missed: `catch_up` says what becomes of them.
    #[serde(default)]
    #[schema(default = false)]
    paused: bool,
}

/// Reads one of a few names. By itself serde_json takes whatever is no text there for no JSON at all.
fn named<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    T::deserialize(String::deserialize(deserializer)?.into_deserializer())
}

fn utc() -> String {
    "UTC".to_owned()
}

/// A schedule.
#[derive(Serialize, ToSchema)]
pub(super) struct Schedule<'a> {
    /// Its name.
    name: &'a str,
    #[serde(flatten)]
    spec: &'a Spec,
    /// When it was written first.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
    /// When it was written last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Time,
    /// The next five due times; none while it is paused.
    #[schema(value_type = Vec<String>, format = DateTime)]
    next_times: Vec<Time>,
    /// Due times that wait for the task before them.
    queued: u32,
    /// Its last five tasks, newest first.
    last_tasks: Vec<LastTask>,
    /// Why the last due time created no task; null where it did.
    #[schema(required)]
    error: Option<ScheduleError<'a>>,
}

/// A task that a schedule created.
#[derive(Serialize, ToSchema)]
pub(super) struct LastTask {
    /// Its id.
    #[serde(serialize_with = "wire::id")]
    #[schema(value_type = String, format = Uuid)]
    id: crate::task::TaskId,
    /// Its status.
    status: Status,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Time,
}

/// Why a due time created no task.
#[derive(Serialize, ToSchema)]
pub(super) struct ScheduleError<'a> {
    /// The due time, or when the turn came of one that had waited.
    #[schema(value_type = String, format = DateTime)]
    at: Time,
    /// Why.
    message: &'a str,
}

/// Which schedules to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only names after this one.
    #[serde(default)]
    #[param(required = false)]
    after: String,
    /// How many at once; more than 1000 is taken as 1000. A page may have fewer though there are more.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
}

/// A page of schedules.
#[derive(Serialize, ToSchema)]
pub(super) struct ScheduleList<'a> {
    /// The schedules in the order of their names.
    schedules: Vec<Schedule<'a>>,
    /// `after` for the next page, where there is one.
    #[schema(required)]
    next_after: Option<&'a str>,
}

/// A schedule that was removed.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedSchedule<'a> {
    /// Its name.
    name: &'a str,
    /// Always true.
    deleted: bool,
}

/// List schedules
#[utoipa::path(
    get, path = "/schedules", operation_id = "list_schedules", tag = "schedules", params(ListQuery),
    responses((status = 200, description = "A page of schedules", body = ScheduleList), ListProblems)
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Query(ListQuery { after, limit }): Query<ListQuery>,
) -> Result<Response, Problem> {
    let (found, more) = api.manager.schedules(&caller.tenant, after, limit.0).await?;
    let now = clock::now();
    let schedules = found.iter().map(|(schedule, tasks)| Schedule::of(schedule, tasks, now)).collect();
    let next_after = found.last().filter(|_| more).map(|(last, _)| &*last.name);
    let mut response = wire::json(StatusCode::OK, &ScheduleList { schedules, next_after })?;
    set(&mut response, CACHE_CONTROL, "no-store");
    Ok(response)
}

/// Write a schedule
///
/// Creates or replaces it. It is stored when this answers. Each due time creates one task, also where the
/// server goes down. A change that leaves `cron` and `time_zone` as they are keeps what has come due.
#[utoipa::path(
    put, path = "/schedules/{name}", operation_id = "put_schedule", tag = "schedules",
    params(
        ("name" = String, Path, description = "The name: `[a-z0-9][a-z0-9-]{0,62}`"),
        ("If-Match" = Option<String>, Header, description = "Only where the schedule has one of these entity tags, or `*`: only where there is one"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only where there is no such schedule"),
    ),
    request_body = PutSchedule,
    responses(
        (status = 200, description = "Replaced", body = Schedule, headers(
            ("ETag" = String, description = "The entity tag of what was written"))),
        (status = 201, description = "Created", body = Schedule, headers(
            ("ETag" = String, description = "The entity tag of what was written"), ("Location" = String, description = "Its path"))),
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
        .ok_or_else(|| Problem::new(Kind::Unacceptable, format!("a schedule's name {}", names::RULE)))?;
    extract::check_json(request.headers())?;
    let precondition = conditional::precondition(request.headers())?;
    let body = api.uploads.read(request, MOST_BYTES).await?;
    let (spec, cron) = read(&body.bytes)?;
    caller.may_use(&spec.task.task_type)?;
    may_replace(&api, &caller, &name).await?;
    drop(body);
    let put = api.manager.put_schedule(&caller.tenant, &name, spec, cron, precondition, caller.actor()).await;
    let ((schedule, tasks), created) = put.map_err(|refused| match refused {
        Refused::Invalid(_) | Refused::UnknownTaskType => Problem::from(refused).under("#/task"),
        other => other.into(),
    })?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = shown(status, &schedule, &tasks)?;
    if created && let Ok(path) = HeaderValue::try_from(format!("/schedules/{name}")) {
        response.headers_mut().insert(LOCATION, path);
    }
    Ok(response)
}

/// Read a schedule
#[utoipa::path(
    get, path = "/schedules/{name}", operation_id = "get_schedule", tag = "schedules",
    params(("name" = String, Path, description = "The name of the schedule")),
    responses(
        (status = 200, description = "The schedule", body = Schedule, headers(
            ("ETag" = String, description = "The entity tag of what was written, for `If-Match`"))),
        ReadProblems,
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
) -> Result<Response, Problem> {
    let (schedule, tasks) = api.manager.schedule(&caller.tenant, &known(name)?).await?;
    shown(StatusCode::OK, &schedule, &tasks)
}

/// Remove a schedule
///
/// The tasks that it created stay.
#[utoipa::path(
    delete, path = "/schedules/{name}", operation_id = "delete_schedule", tag = "schedules",
    params(
        ("name" = String, Path, description = "The name of the schedule"),
        ("If-Match" = Option<String>, Header, description = "Only where the schedule has one of these entity tags"),
    ),
    responses((status = 200, description = "The schedule is gone", body = RemovedSchedule), DeleteProblems)
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    NameInPath(name): NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = known(name)?;
    may_replace(&api, &caller, &name).await?;
    let precondition = conditional::precondition(&headers)?;
    api.manager.delete_schedule(&caller.tenant, &name, precondition, caller.actor()).await?;
    wire::json(StatusCode::OK, &RemovedSchedule { name: &name, deleted: true })
}

/// Refuses a schedule of a type that the caller's key is not for.
async fn may_replace(api: &Api, caller: &Caller, name: &str) -> Result<(), Problem> {
    if caller.task_types().is_none() {
        return Ok(());
    }
    match api.manager.schedule(&caller.tenant, name).await {
        Ok((schedule, _)) => caller.may_use(&schedule.spec.task.task_type),
        Err(Refused::NotFound) => Ok(()),
        Err(refused) => Err(refused.into()),
    }
}

/// What can be a schedule's name.
fn known(name: Option<String>) -> Result<String, Problem> {
    name.filter(|name| is_name(name)).ok_or_else(|| Problem::of(Kind::NotFound))
}

/// Reads a body, and checks it as far as that needs no knowledge of task types.
fn read(body: &[u8]) -> Result<(Spec, Cron), Problem> {
    let PutSchedule { cron: pattern, time_zone, task, overlap, catch_up, paused } = extract::from_json(body)?;
    let field = |pointer: &str, detail: String| Problem::fields(vec![FieldError { pointer: pointer.into(), detail }]);
    let cron = Cron::parse(&pattern, &time_zone).map_err(|bad| match bad {
        BadCron::Pattern(_) => field("#/cron", bad.to_string()),
        BadCron::Zone => field("#/time_zone", bad.to_string()),
    })?;
    if cron.next_after(clock::now()).is_none() {
        return Err(field("#/cron", "it is never due".into()));
    }
    let NewTask { task_type, input, priority, limits, labels, retry, unique_key, concurrency_key, .. } =
        task.scheduled().map_err(|problem| problem.under("#/task"))?;
    let input = RawValue::from_string(String::from(&*input)).map_err(|error| Problem::internal(&error.into()))?;
    let unique_key = unique_key.map(|key| String::from(&*key));
    let concurrency_key = concurrency_key.map(|key| String::from(&*key));
    let task = ScheduledTask { task_type, input, labels, priority, unique_key, concurrency_key, limits, retry };
    Ok((Spec { cron: pattern, time_zone, task, overlap, catch_up, paused }, cron))
}

impl<'a> Schedule<'a> {
    fn of(schedule: &'a schedules::Schedule, tasks: &'a [MadeTask], now: Timestamp) -> Schedule<'a> {
        let task = |task: &MadeTask| LastTask { id: task.id, status: task.status, created_at: Time(task.created_at) };
        Schedule {
            name: &schedule.name,
            spec: &schedule.spec,
            created_at: Time(schedule.created_at),
            updated_at: Time(schedule.updated_at),
            next_times: next_times(schedule, now),
            queued: schedule.queued,
            last_tasks: tasks.iter().map(task).collect(),
            error: schedule
                .error
                .as_ref()
                .map(|failure| ScheduleError { at: Time(failure.at), message: &failure.message }),
        }
    }
}

fn next_times(schedule: &schedules::Schedule, now: Timestamp) -> Vec<Time> {
    let Ok(cron) = schedule.spec.cron() else { return Vec::new() };
    if schedule.spec.paused {
        return Vec::new();
    }
    // What has come and is not done yet is no time that comes.
    let first = schedule.next_at.and_then(|next_at| if next_at > now { Some(next_at) } else { cron.next_after(now) });
    std::iter::successors(first, |at| cron.next_after(*at)).take(NEXT_TIMES).map(Time).collect()
}

fn shown(status: StatusCode, schedule: &schedules::Schedule, tasks: &[MadeTask]) -> Result<Response, Problem> {
    let mut response = wire::json(status, &Schedule::of(schedule, tasks, clock::now()))?;
    set(&mut response, CACHE_CONTROL, "no-store");
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", schedule.spec.tag())) {
        response.headers_mut().insert(ETAG, tag);
    }
    Ok(response)
}
