//! Creating tasks, one or many.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LOCATION, HeaderName, LOCATION, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::Api;
use super::access::Caller;
use super::extract::{self, Rfc3339};
use super::idempotency;
use super::items::{Format, Items};
use super::prefer;
use super::problem::{Kind, Problem, problems};
use super::quotas::tell_submits;
use super::tasks::{TASK_BYTES, set, task_json, waited};
use super::wire;
use crate::clock;
use crate::limits::LimitOverrides;
use crate::manager::{CreatedMany, FieldError, Idempotency, NewTask, Refused, Stored};
use crate::task::{Digest, Labels, RetryOverrides};

/// What the body of `POST /task` may have beside the input.
const BODY_EXTRA: u64 = 64 << 10;

/// The largest body of `POST /tasks`, and the most tasks in it.
const MANY_BYTES: u64 = 64 << 20;
const MANY_TASKS: usize = 10_000;

/// Tasks of a `POST /tasks` that are stored in one transaction: so many, or of so many bytes.
const TOGETHER: usize = 256;
const TOGETHER_BYTES: usize = 1 << 20;

/// The longest delay: ten years.
const LONGEST_DELAY_MS: u64 = 10 * 366 * 24 * 60 * 60 * 1000;

/// Labels of one task.
const MOST_LABELS: usize = 32;
const LABEL_KEY_BYTES: usize = 63;
const LABEL_VALUE_BYTES: usize = 255;

/// Bytes of a unique key.
const UNIQUE_KEY_BYTES: usize = 255;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

problems!(CreateProblems: Malformed, NotFound, RequestTimeout, TooManyWaiting, TypeNotReady, UniqueKey, KeyGone,
    TooLarge, UnsupportedMediaType, Unacceptable, KeyReused, TooManySubmitted, TooManyPending, Overloaded, QueueFull,
    Draining, StorageUnavailable);
problems!(CreateManyProblems: Malformed, RequestTimeout, TooManyWaiting, TooLarge, UnsupportedMediaType, Overloaded,
    Draining);

/// A task to be created.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateTask<'a> {
    /// The name of its type.
    #[schema(example = "io")]
    pub(super) task_type: String,
    /// Any JSON value; it reaches the task byte for byte.
    #[serde(borrow, default)]
    #[schema(value_type = Option<serde_json::Value>)]
    pub(super) input: Option<&'a RawValue>,
    /// Your own names for it, to find it by: at most 32, keys of 1 to 63 bytes without ':', values of at
    /// most 255 bytes.
    #[serde(default)]
    #[schema(value_type = std::collections::BTreeMap<String, String>, required = false)]
    labels: Labels,
    /// Higher first. What waits gains on what comes later, so nothing waits for ever.
    #[serde(default)]
    #[schema(default = 0, minimum = -100, maximum = 100)]
    priority: i32,
    /// Milliseconds before which it does not start.
    #[serde(default)]
    #[schema(minimum = 0)]
    delay_ms: Option<u64>,
    /// The time before which it does not start.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<Rfc3339>,
    /// The time at which it fails if it is still Pending.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Rfc3339>,
    /// At most one task with it is Pending or Running: 1 to 255 bytes.
    #[serde(default)]
    unique_key: Option<String>,
    /// So many tasks of the type that have it run at once as the type's `concurrency` says; one where it does not: 1
    /// to 255 bytes.
    #[serde(default)]
    concurrency_key: Option<String>,
    /// Limits of its attempts; none may be above what the type allows.
    #[serde(default, deserialize_with = "extract::object")]
    limits: LimitOverrides,
    /// How it is attempted again; what is not said is as the type has it.
    #[serde(default, deserialize_with = "extract::object")]
    retry: RetryOverrides,
}

impl CreateTask<'_> {
    /// What the manager is asked for; checked as far as that needs no knowledge of the type.
    pub(super) fn checked(self, idempotency: Option<Idempotency>) -> Result<NewTask, Problem> {
        let mut errors = Vec::new();
        let mut wrong = |pointer: &str, detail: String| errors.push(FieldError { pointer: pointer.into(), detail });
        check_labels(&self.labels, &mut wrong);
        if self.delay_ms.is_some_and(|delay| delay > LONGEST_DELAY_MS) {
            wrong("#/delay_ms", format!("must be at most {LONGEST_DELAY_MS}"));
        }
        if self.run_at.is_some() && self.delay_ms.is_some_and(|delay| delay > 0) {
            wrong("#/run_at", "there is a delay_ms already".into());
        }
        if self.unique_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > UNIQUE_KEY_BYTES) {
            wrong("#/unique_key", format!("must have 1 to {UNIQUE_KEY_BYTES} bytes"));
        }
        if self.concurrency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > UNIQUE_KEY_BYTES) {
            wrong("#/concurrency_key", format!("must have 1 to {UNIQUE_KEY_BYTES} bytes"));
        }
        if !errors.is_empty() {
            return Err(Problem::fields(errors));
        }
        let delayed = self.delay_ms.filter(|delay| *delay > 0).map(|delay| clock::now().plus_millis(delay));
        Ok(NewTask {
            task_type: self.task_type,
            input: self.input.map_or("null", RawValue::get).into(),
            priority: self.priority,
            limits: self.limits,
            labels: self.labels,
            retry: self.retry,
            due_at: self.run_at.map(|at| at.0).or(delayed),
            expires_at: self.expires_at.map(|at| at.0),
            unique_key: self.unique_key.map(Into::into),
            concurrency_key: self.concurrency_key.map(Into::into),
            idempotency,
        })
    }
}

impl CreateTask<'_> {
    /// As the task of a schedule, which has its times from there.
    pub(super) fn scheduled(self) -> Result<NewTask, Problem> {
        let times = [
            ("#/delay_ms", self.delay_ms.is_some_and(|delay| delay > 0)),
            ("#/run_at", self.run_at.is_some()),
            ("#/expires_at", self.expires_at.is_some()),
        ];
        let detail = "the task of a schedule has its time from there";
        let errors = times.into_iter().filter(|(_, is_set)| *is_set);
        let errors: Vec<_> =
            errors.map(|(pointer, _)| FieldError { pointer: pointer.into(), detail: detail.into() }).collect();
        if errors.is_empty() { self.checked(None) } else { Err(Problem::fields(errors)) }
    }
}

fn check_labels(labels: &Labels, wrong: &mut impl FnMut(&str, String)) {
    if labels.len() > MOST_LABELS {
        wrong("#/labels", format!("there can be at most {MOST_LABELS}"));
        return;
    }
    for (key, value) in labels {
        let bad_key = key.is_empty() || key.len() > LABEL_KEY_BYTES || key.contains(':');
        if bad_key || key.chars().any(char::is_control) {
            wrong("#/labels", format!("a key has 1 to {LABEL_KEY_BYTES} bytes without ':' and control characters"));
        }
        if value.len() > LABEL_VALUE_BYTES || value.chars().any(char::is_control) {
            wrong("#/labels", format!("a value has at most {LABEL_VALUE_BYTES} bytes without control characters"));
        }
    }
}

fn fingerprint(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// Create a task
///
/// It is stored when this answers. With `Prefer: wait=N` the answer is held for up to N seconds and
/// is the finished task where it has ended by then; a client that hangs up cancels nothing.
#[utoipa::path(
    post, path = "/task", operation_id = "create_task", tag = "tasks",
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: hold the answer for up to N seconds, at most 60", example = "wait=10"),
        ("Idempotency-Key" = Option<String>, Header, description = "Any text of at most 255 bytes: the same request again within 24 hours leads to the same task"),
    ),
    request_body = CreateTask,
    responses(
        (status = 200, description = "The task has ended", body = wire::Task, headers(
            ("Content-Location" = String, description = "The path of the task"),
            ("RateLimit" = String, description = "How many tasks can still be created, where their rate is bounded"),
            ("RateLimit-Policy" = String, description = "That rate"),
            ("Idempotency-Replayed" = String, description = "`true`: the task was there already"),
            ("Preference-Applied" = String, description = "`wait=N`"))),
        (status = 202, description = "The task is stored and runs as soon as there is room", body = wire::Task, headers(
            ("Location" = String, description = "The path of the task"),
            ("RateLimit" = String, description = "How many tasks can still be created, where their rate is bounded"),
            ("RateLimit-Policy" = String, description = "That rate"),
            ("Idempotency-Replayed" = String, description = "`true`: the task was there already"),
            ("Preference-Applied" = String, description = "`wait=N`, where it was asked for"))),
        CreateProblems,
    )
)]
pub(super) async fn create(State(api): State<Arc<Api>>, caller: Caller, request: Request) -> Result<Response, Problem> {
    extract::check_json(request.headers())?;
    let wait = prefer::wait_seconds(request.headers());
    let key = idempotency::key(request.headers())?;
    let body = api.uploads.read(request, api.max_input_bytes.saturating_add(BODY_EXTRA)).await?;
    let idempotency = key.map(|key| Idempotency { key, item: -1, fingerprint: fingerprint(&body.bytes) });
    let new = extract::from_json::<CreateTask<'_>>(&body.bytes)?.checked(idempotency)?;
    caller.may_use(&new.task_type)?;
    drop(body);
    let Stored { task, replayed } = match wait {
        None | Some(0) => api.manager.create(&caller.tenant, new).await?,
        Some(seconds) => api.manager.create_and_wait(&caller.tenant, new, Duration::from_secs(seconds)).await?,
    };
    let path = HeaderValue::try_from(format!("/task/{}", task.id)).map_err(|error| Problem::internal(&error.into()))?;
    let (status, place) =
        if task.status.is_ended() { (StatusCode::OK, CONTENT_LOCATION) } else { (StatusCode::ACCEPTED, LOCATION) };
    let mut response = task_json(status, &task, &api.tenants)?;
    response.headers_mut().insert(place, path);
    if replayed {
        set(&mut response, REPLAYED, "true");
    }
    waited(&mut response, wait);
    tell_submits(&api, &caller.tenant, &mut response);
    Ok(response)
}

/// What became of many tasks.
#[derive(ToSchema)]
#[expect(dead_code, reason = "written piece by piece; this says how it looks")]
pub(super) struct CreatedTasks<'a> {
    /// One for each task that was sent, in their order.
    results: Vec<CreatedItem<'a>>,
}

/// What became of one of many tasks.
#[derive(ToSchema)]
#[expect(dead_code, reason = "written piece by piece; this says how it looks")]
pub(super) struct CreatedItem<'a> {
    /// The status that a `POST /task` would have answered.
    status: u16,
    /// The task, where it is stored. Its `output` is null here, also where it has ended.
    #[schema(required = false, nullable = false)]
    task: Option<wire::Task<'a>>,
    /// Why it is not.
    #[schema(required = false, nullable = false)]
    problem: Option<super::problem::ProblemBody<'a>>,
    /// Which task has its unique key, as in `Location`.
    #[schema(required = false, nullable = false)]
    location: Option<String>,
    /// Seconds to wait before the next try, as in `Retry-After`.
    #[schema(required = false, nullable = false)]
    retry_after: Option<u64>,
    /// The task was there already, under the same idempotency key.
    #[schema(required = false, nullable = false)]
    replayed: Option<bool>,
}

/// Create many tasks
///
/// At most 10,000, of 64 MiB together, as a JSON array or one a line (`application/x-ndjson`). Each is
/// stored or refused by itself; those at the beginning run while the rest still arrives. With an
/// `Idempotency-Key` a repeated request creates only what is missing; tasks that were there already come
/// without their outputs, which `GET /task/{id}` has.
#[utoipa::path(
    post, path = "/tasks", operation_id = "create_tasks", tag = "tasks",
    params(("Idempotency-Key" = Option<String>, Header, description = "Any text of at most 255 bytes")),
    request_body(content = Vec<CreateTask>, description = "The tasks"),
    responses((status = 200, description = "What became of each", body = CreatedTasks, headers(
        ("RateLimit" = String, description = "How many tasks can still be created, where their rate is bounded"),
        ("RateLimit-Policy" = String, description = "That rate"))), CreateManyProblems)
)]
pub(super) async fn create_many(
    State(api): State<Arc<Api>>,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    let format = Format::of(request.headers())?;
    let key = idempotency::key(request.headers())?;
    let mut body = api.uploads.stream(request, MANY_BYTES).await?;
    let mut many =
        Many { api: &api, caller: &caller, key, items: Vec::new(), bytes: 0, seen: 0, out: b"{\"results\":[".to_vec() };
    let most = usize::try_from(api.max_input_bytes.saturating_add(BODY_EXTRA)).unwrap_or(usize::MAX);
    let mut items = Items::new(format, most);
    let ended = loop {
        let piece = body.next().await;
        // What arrived before something went wrong counts all the same: each task is for itself.
        let (last, piece) = match piece {
            Ok(Some(piece)) => (false, piece),
            Ok(None) => (true, Default::default()),
            Err(problem) => break Some(problem),
        };
        items.feed(&piece);
        if last {
            items.end();
        }
        let mut wrong = None;
        while let Some(item) = items.next() {
            match item {
                Ok(_) if many.seen == MANY_TASKS => {
                    wrong = Some(Problem::new(Kind::TooLarge, format!("there are more than {MANY_TASKS} tasks")));
                }
                Ok(item) => {
                    many.add(&item).await?;
                    continue;
                }
                Err(problem) => wrong = Some(problem),
            }
            break;
        }
        if last || wrong.is_some() {
            break wrong;
        }
    };
    many.store().await?;
    // What became of the tasks at the beginning is of use only to a client that gets to read it: one that is
    // still sending would find its connection closed. A body has a bound, and so has the time that is waited for it.
    while let Ok(Some(_)) = body.next().await {}
    if let Some(problem) = ended {
        if many.seen == 0 {
            return Err(problem);
        }
        many.refuse(&match problem.status() {
            StatusCode::REQUEST_TIMEOUT => Problem::new(
                Kind::RequestTimeout,
                "The rest of the body did not arrive in the time that the server waits for it. What became of the tasks \
                 before is told with each.",
            ),
            _ => problem,
        });
    }
    many.out.extend_from_slice(b"]}");
    let mut response = wire::json_bytes(StatusCode::OK, many.out);
    set(&mut response, CACHE_CONTROL, "no-store");
    tell_submits(&api, &caller.tenant, &mut response);
    Ok(response)
}

/// The tasks of a `POST /tasks` on their way.
struct Many<'a> {
    api: &'a Api,
    caller: &'a Caller,
    key: Option<Arc<str>>,
    /// Read and not yet stored.
    items: Vec<Result<NewTask, Problem>>,
    bytes: usize,
    seen: usize,
    out: Vec<u8>,
}

impl Many<'_> {
    async fn add(&mut self, item: &[u8]) -> Result<(), Problem> {
        let idempotency = self.key.clone().map(|key| Idempotency {
            key,
            item: i64::try_from(self.seen).unwrap_or(i64::MAX),
            fingerprint: fingerprint(item),
        });
        self.seen += 1;
        self.bytes += item.len();
        let new = extract::from_json::<CreateTask<'_>>(item).and_then(|task| task.checked(idempotency));
        self.items.push(new.and_then(|new| self.caller.may_use(&new.task_type).map(|()| new)));
        if self.items.len() >= TOGETHER || self.bytes >= TOGETHER_BYTES { self.store().await } else { Ok(()) }
    }

    /// Stores what was read, and writes down what became of it.
    async fn store(&mut self) -> Result<(), Problem> {
        let mut new = Vec::with_capacity(self.items.len());
        let read: Vec<Option<Problem>> =
            self.items.drain(..).map(|item| item.map(|task| new.push(task)).err()).collect();
        self.bytes = 0;
        let CreatedMany { refused, stored } = self.api.manager.create_many(&self.caller.tenant, new).await;
        let mut refused = refused.into_iter();
        let (mut stored, all) = match stored {
            Ok(stored) => (stored.into_iter(), None),
            Err(all) => (Vec::new().into_iter(), Some(Problem::from(all))),
        };
        for problem in read {
            if let Some(problem) = problem.or_else(|| refused.next().flatten().map(Problem::from)) {
                self.refuse(&problem);
            } else if let Some(problem) = &all {
                self.refuse(problem);
            } else {
                match stored.next().unwrap_or(Err(Refused::NoRoom)) {
                    Ok(stored) => self.written(&stored)?,
                    Err(refused) => self.refuse(&refused.into()),
                }
            }
        }
        Ok(())
    }

    fn written(&mut self, Stored { task, replayed }: &Stored) -> Result<(), Problem> {
        self.separate();
        self.out.reserve(TASK_BYTES + task.input.len());
        let status = if task.status.is_ended() { "200" } else { "202" };
        self.out.extend_from_slice(format!("{{\"status\":{status},\"task\":").as_bytes());
        serde_json::to_writer(&mut self.out, &wire::Task::of(task, &self.api.tenants, clock::now())?)
            .map_err(|error| Problem::internal(&error.into()))?;
        self.out.extend_from_slice(if *replayed { b",\"replayed\":true}" } else { b"}" });
        Ok(())
    }

    fn refuse(&mut self, problem: &Problem) {
        self.separate();
        self.out.extend_from_slice(format!("{{\"status\":{},\"problem\":", problem.status().as_u16()).as_bytes());
        self.out.extend_from_slice(&problem.body());
        // What a POST /task says in its headers.
        if let Some(location) = problem.header(&LOCATION) {
            self.out.extend_from_slice(format!(",\"location\":\"{location}\"").as_bytes());
        }
        if let Some(seconds) = problem.header(&RETRY_AFTER) {
            self.out.extend_from_slice(format!(",\"retry_after\":{seconds}").as_bytes());
        }
        self.out.push(b'}');
    }

    fn separate(&mut self) {
        if self.out.last() != Some(&b'[') {
            self.out.push(b',');
        }
    }
}
