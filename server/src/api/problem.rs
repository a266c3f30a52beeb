//! Errors as clients see them: `application/problem+json` (RFC 9457), from one closed list.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use axum::body::Body;
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{Content, Ref, RefOr, ResponseBuilder, Responses};

use super::quotas::{RATE_LIMIT, RATE_LIMIT_POLICY, submits};
use crate::manager::{self, FieldError};
use crate::objects;
use crate::quotas::UsedUp;
use crate::task::TaskError;

/// The media type of every error.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Most characters of a detail. Some repeat what the client sent, which may be long.
const DETAIL_CHARS: usize = 500;

/// Declares every kind of problem once: name, path, status, title, and what its page says.
macro_rules! kinds {
    ($($name:ident = $slug:literal, $status:ident, $title:literal, $page:literal;)*) => {
        /// What can be wrong: each kind is a problem type with a page of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind { $($name,)* }

        impl Kind {
            /// All of them.
            pub(super) const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The problem type, as a reference relative to the server.
            pub(super) fn uri(self) -> &'static str {
                match self { $(Kind::$name => concat!("/problems/", $slug),)* }
            }

            /// The status of the answer.
            pub(super) fn status(self) -> StatusCode {
                match self { $(Kind::$name => StatusCode::$status,)* }
            }

            /// The title, the same every time.
            pub(super) fn title(self) -> &'static str {
                match self { $(Kind::$name => $title,)* }
            }

            /// What it means and what to do: the page, and the detail where there is no other.
            pub(super) fn page(self) -> &'static str {
                match self { $(Kind::$name => $page,)* }
            }
        }
    };
}

kinds! {
    Malformed = "malformed", BAD_REQUEST, "The request is malformed",
        "The body is no JSON, ended early, or is missing, or a query parameter or header cannot be read. The detail says which.";
    BadCursor = "bad-cursor", BAD_REQUEST, "The cursor cannot be used here",
        "A cursor is good for the list that gave it, with the same filters. Begin again without a cursor.";
    Unauthorized = "unauthorized", UNAUTHORIZED, "A key is needed",
        "Send a key as 'Authorization: Bearer KEY'. An admin of the tenant, or the server's operator, makes one.";
    InvalidKey = "invalid-key", UNAUTHORIZED, "The key cannot be used",
        "The key is malformed or unknown, has expired, or was revoked.";
    InsufficientScope = "insufficient-scope", FORBIDDEN, "The key does not allow this",
        "The call needs a key of a higher role, of another tenant, or for other task types. The detail says which.";
    Misdirected = "misdirected", MISDIRECTED_REQUEST, "The request is for another host",
        "As long as there are no keys, requests whose Host is a domain are not answered, so that no page of another site can send them. Use localhost or the address, or make a key.";
    NotFound = "not-found", NOT_FOUND, "There is no such thing",
        "Nothing is at this path: it never was, it was removed, or it belongs to somebody else.";
    MethodNotAllowed = "method-not-allowed", METHOD_NOT_ALLOWED, "The method is not allowed here",
        "The path exists and does not take this method. The Allow header says which it takes.";
    RequestTimeout = "request-timeout", REQUEST_TIMEOUT, "The request took too long to arrive",
        "The body did not arrive in the time that the server waits for one. Nothing was done; the connection is closed.";
    TaskEnded = "task-ended", CONFLICT, "The task has ended",
        "A task that is Completed or Failed cannot be canceled.";
    TaskNotEnded = "task-not-ended", CONFLICT, "The task has not ended",
        "Only a task that is Completed or Failed can be attempted afresh.";
    UniqueKey = "unique-key", CONFLICT, "Another task has this unique key",
        "A task with this unique_key is Pending or Running. The Location header names it.";
    KeyGone = "idempotency-key-gone", GONE, "The task of this idempotency key was removed",
        "A request with this Idempotency-Key created a task that was removed since. To create another one, use another key.";
    KeyReused = "idempotency-key-reused", UNPROCESSABLE_ENTITY, "The idempotency key was used for another request",
        "An Idempotency-Key stands for one request, byte for byte, for 24 hours. To send another one, use another key.";
    TaskFailed = "task-failed", CONFLICT, "The task failed",
        "The task has no result because it failed. The member 'error' says why: its kind is one of a closed set.";
    TypeNotReady = "task-type-not-ready", CONFLICT, "The task type has no usable version",
        "It is being compiled, or it failed, or it needs what it is not granted. GET /task-types/{name} says which, and why. Or somebody is removing it.";
    TypeGone = "task-type-gone", CONFLICT, "The task type was removed",
        "A task is attempted again within the limits of its type, and that was removed. A type of the same name can be uploaded.";
    TypeInUse = "task-type-in-use", CONFLICT, "Tasks of this type have not ended",
        "A task type is removed once none of its tasks is Pending or Running. With ?cancel=true they are canceled first.";
    SharedType = "shared-task-type", CONFLICT, "The task type is shared",
        "The operator put this type there for all tenants. Its keys can pause it, and cannot remove what comes with the server; upload another one under its name to have your own.";
    BadComponent = "bad-component", UNPROCESSABLE_ENTITY, "The component cannot be a task",
        "Each entry of 'errors' says what is wrong with the component, or what it imports that is not offered here.";
    TooManyTaskTypes = "too-many-task-types", TOO_MANY_REQUESTS, "There are too many task types",
        "The tenant has as many task types as it may, which the server's operator decides. Remove some.";
    TooManyTenants = "too-many-tenants", TOO_MANY_REQUESTS, "There are too many tenants",
        "There are as many tenants as the server takes, which its setting max-tenants says.";
    TooManyKeys = "too-many-keys", TOO_MANY_REQUESTS, "There are too many keys",
        "The tenant has as many keys as it may that are good. Revoke some.";
    PreconditionFailed = "precondition-failed", PRECONDITION_FAILED, "The precondition does not hold",
        "If-Match or If-None-Match does not fit what there is. Read it again, then decide.";
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, "The request is too large",
        "The body, the input of the task or the object is larger than the limit that the detail names.";
    UnsupportedMediaType = "unsupported-media-type", UNSUPPORTED_MEDIA_TYPE, "The media type is not supported",
        "The body must be sent with the Content-Type that the reference at /docs names.";
    Unacceptable = "unacceptable", UNPROCESSABLE_ENTITY, "The request is not acceptable",
        "The body is well-formed and says something that cannot be. Each entry of 'errors' points at a field.";
    BadObjectName = "bad-object-name", UNPROCESSABLE_ENTITY, "The object's name is not allowed",
        "A name has 1 to 512 bytes of UTF-8 in Unicode normalization form C, in segments separated by '/', none of them empty, '.' or '..', without control characters.";
    QuotaExceeded = "quota-exceeded", TOO_MANY_REQUESTS, "A quota is used up",
        "The tenant keeps as many objects, or as many bytes in them or in its task types, as it may: remove some. Or, where a type is tested, as many of its tasks run, with as much memory, or have had as much CPU time in the hour, as may: try again later.";
    TooManySubmitted = "too-many-submitted", TOO_MANY_REQUESTS, "Tasks are created too fast",
        "The tenant created as many tasks at once as it may. One more can be created after the time in Retry-After, and as many as ever after the time in RateLimit.";
    TooManyChanges = "too-many-changes", TOO_MANY_REQUESTS, "Too many changes are asked for",
        "The tenant's keys asked for as many changes in an hour as they may, of those that the audit log tells of; the server's operator decides how many that is. Retry-After says when the hour is over.";
    TooManyPending = "too-many-pending", TOO_MANY_REQUESTS, "Too many tasks are pending",
        "As many tasks of the tenant wait as may, which the server's operator decides; those with a delay wait as well. Retry-After is reckoned from the rate at which its tasks leave the queue, and is a minute where none did of late.";
    TooManyStreams = "too-many-event-streams", TOO_MANY_REQUESTS, "Too many event streams are open",
        "The tenant listens on as many streams of events as it may, which the server's operator decides. Close one.";
    TooManyWaiting = "too-many-waiting", TOO_MANY_REQUESTS, "Too many requests wait",
        "The tenant's streams of events, requests that wait, and bodies that are still being sent hold as many connections as those of one tenant may, which is three quarters of all. Close one, or wait for one to end.";
    TooManySchedules = "too-many-schedules", TOO_MANY_REQUESTS, "There are too many schedules",
        "The tenant has as many schedules as it may, which the server's operator decides. Remove some.";
    TooManySecrets = "too-many-secrets", TOO_MANY_REQUESTS, "There are too many secrets",
        "The tenant has as many secrets as it may, which the server's operator decides. Remove some.";
    NoSecretKey = "no-secret-key", CONFLICT, "The server has no key for secrets",
        "Secrets are sealed with a key that the server's operator gives to it. As long as there is none, no secret is taken.";
    TooManyOperations = "too-many-operations", TOO_MANY_REQUESTS, "Too many operations are running",
        "As many bulk operations of the tenant are open as may be. GET /operations lists them; send the request again when one is Completed.";
    QueueFull = "queue-full", SERVICE_UNAVAILABLE, "The queue is full",
        "As many tasks wait as the server takes. Retry-After is reckoned from the rate at which they are done.";
    Internal = "internal", INTERNAL_SERVER_ERROR, "Something went wrong in the server",
        "The fault is the server's, and its log says more. Sending the request again may help.";
    Overloaded = "overloaded", SERVICE_UNAVAILABLE, "The server has too much to do",
        "Send the request again after the time in Retry-After.";
    Draining = "draining", SERVICE_UNAVAILABLE, "The server stops",
        "The server is being stopped and takes no new work. Send the request again after the time in Retry-After.";
    StorageUnavailable = "storage-unavailable", SERVICE_UNAVAILABLE, "The storage is not available",
        "The disk is full or does not answer. Nothing was changed. The server goes on by itself once there is room.";
}

impl Kind {
    /// When to try again, in seconds.
    fn retry_after(self) -> Option<&'static str> {
        match self {
            Kind::Overloaded | Kind::TooManySubmitted => Some("1"),
            Kind::TooManyPending | Kind::TooManyStreams | Kind::TooManyOperations | Kind::QueueFull => Some("10"),
            Kind::Draining | Kind::StorageUnavailable | Kind::TooManyWaiting => Some("5"),
            Kind::TypeNotReady => Some("30"),
            Kind::QuotaExceeded
            | Kind::TooManySchedules
            | Kind::TooManySecrets
            | Kind::TooManyTaskTypes
            | Kind::TooManyChanges
            | Kind::TooManyTenants
            | Kind::TooManyKeys => Some("60"),
            _ => None,
        }
    }
}

impl Kind {
    /// The headers that come with it, and what they are.
    fn headers(self) -> Vec<(&'static str, &'static str)> {
        let mut headers = Vec::new();
        if self.retry_after().is_some() {
            headers.push(("Retry-After", "Seconds to wait before the next try."));
        }
        if self.status() == StatusCode::TOO_MANY_REQUESTS {
            headers.push(("RateLimit", "Which quota is used up (draft-ietf-httpapi-ratelimit-headers)."));
            headers.push(("RateLimit-Policy", "How much that quota is."));
        }
        match self {
            Kind::UniqueKey => headers.push(("Location", "The task that has the key.")),
            Kind::Unauthorized | Kind::InvalidKey | Kind::InsufficientScope => {
                headers.push(("WWW-Authenticate", "`Bearer`, with what is wrong (RFC 6750, section 3)."))
            }
            Kind::MethodNotAllowed => headers.push(("Allow", "The methods that the path takes.")),
            Kind::UnsupportedMediaType => {
                headers.push(("Accept-Patch", "What a PATCH is written in; of a PATCH only."))
            }
            _ => {}
        }
        headers
    }
}

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct Problem {
    kind: Kind,
    detail: Option<String>,
    errors: Vec<FieldError>,
    task_error: Option<Box<TaskError>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem of which there is nothing to say but what is always said.
    pub(super) fn of(kind: Kind) -> Problem {
        Problem { kind, detail: None, errors: Vec::new(), task_error: None, headers: Vec::new() }
    }

    /// A problem with a detail for people.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem { detail: Some(shortened(detail.into())), ..Problem::of(kind) }
    }

    /// A body with faults in some fields.
    pub(super) fn fields(errors: Vec<FieldError>) -> Problem {
        Problem::fields_of(Kind::Unacceptable, errors)
    }

    /// A problem of a kind, with everything that is wrong.
    pub(super) fn fields_of(kind: Kind, errors: Vec<FieldError>) -> Problem {
        let errors =
            errors.into_iter().map(|FieldError { pointer, detail }| FieldError { pointer, detail: shortened(detail) });
        Problem { errors: errors.collect(), ..Problem::of(kind) }
    }

    /// A key that is malformed, unknown, expired or taken back: one answer for all of these.
    pub(super) fn invalid_key() -> Problem {
        Problem::of(Kind::InvalidKey).with(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"".to_owned())
    }

    /// A task that has no result because it failed.
    pub(super) fn task_failed(error: TaskError) -> Problem {
        Problem { task_error: Some(Box::new(error)), ..Problem::of(Kind::TaskFailed) }
    }

    /// The same with a header.
    pub(super) fn with(mut self, name: HeaderName, value: String) -> Problem {
        self.headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
        self
    }

    /// What one of its headers says.
    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        let given = self.headers.iter().rev().find(|(given, _)| given == name);
        let given = given.and_then(|(_, value)| value.to_str().ok());
        given.or_else(|| self.kind.retry_after().filter(|_| name == RETRY_AFTER))
    }

    /// A quota that does not allow something: what is left of it, how much it is, and what else its policy says.
    pub(super) fn of_quota(kind: Kind, name: &str, left: u64, limit: u64, more: &str) -> Problem {
        Problem::limited(kind, name, limit, format!("r={left}"), more)
    }

    /// One of an hour of which nothing is left, and which is over in that many seconds.
    pub(super) fn of_hour(kind: Kind, name: &str, limit: u64, seconds: u64) -> Problem {
        Problem::limited(kind, name, limit, format!("r=0;t={seconds}"), ";w=3600")
            .with(RETRY_AFTER, seconds.to_string())
    }

    fn limited(kind: Kind, name: &str, limit: u64, left: String, more: &str) -> Problem {
        Problem::new(kind, format!("{} The limit is {limit}.", kind.page()))
            .with(RATE_LIMIT, format!("\"{name}\";{left}"))
            .with(RATE_LIMIT_POLICY, format!("\"{name}\";q={limit}{more}"))
    }

    fn used_up(used_up: UsedUp) -> Problem {
        let UsedUp { what, limit, left, whole_in } = used_up;
        let (kind, name) = (Kind::QuotaExceeded, what.replace(' ', "-"));
        let mut problem = match whole_in {
            Some(seconds) => Problem::of_hour(kind, &name, limit, seconds),
            None if what.ends_with("bytes") => Problem::of_quota(kind, &name, left, limit, ";qu=\"content-bytes\""),
            None => Problem::of_quota(kind, &name, left, limit, ""),
        };
        problem.detail = Some(used_up.to_string());
        problem
    }

    /// The same of a body that has what is at fault under `pointer`.
    pub(super) fn under(mut self, pointer: &str) -> Problem {
        for error in &mut self.errors {
            error.pointer = format!("{pointer}{}", error.pointer.trim_start_matches('#'));
        }
        self
    }

    /// The status.
    pub(super) fn status(&self) -> StatusCode {
        self.kind.status()
    }

    /// The JSON.
    pub(super) fn body(&self) -> Vec<u8> {
        let errors: Vec<FieldProblem<'_>> =
            self.errors.iter().map(|FieldError { pointer, detail }| FieldProblem { pointer, detail }).collect();
        let body = ProblemBody {
            r#type: self.kind.uri(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: self.detail.as_deref().unwrap_or(self.kind.page()),
            errors: &errors,
            error: self.task_error.as_deref(),
        };
        // Strings and numbers only: there is nothing in it that cannot be written as JSON.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The server's own fault: the log gets the causes, the client none of them.
    pub(super) fn internal(error: &anyhow::Error) -> Problem {
        tracing::error!(error = format!("{error:#}"), "a request failed");
        Problem::of(Kind::Internal)
    }
}

fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(DETAIL_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The way from what the manager refuses to HTTP: the only one.
impl From<manager::Refused> for Problem {
    fn from(refused: manager::Refused) -> Problem {
        use manager::Refused;
        match refused {
            Refused::NotFound => Problem::of(Kind::NotFound),
            Refused::UnknownTaskType => {
                let detail =
                    "there is no task type of this name: GET /task-types lists those that there are".to_owned();
                Problem::fields(vec![FieldError { pointer: "#/task_type".into(), detail }])
            }
            Refused::TypeInUse => Problem::of(Kind::TypeInUse),
            Refused::SharedType => Problem::of(Kind::SharedType),
            Refused::TooManyTaskTypes { limit } => {
                Problem::of_quota(Kind::TooManyTaskTypes, "task-types", 0, limit, "")
            }
            Refused::TooManyTenants { limit } => Problem::of_quota(Kind::TooManyTenants, "tenants", 0, limit, ""),
            Refused::TooManyKeys { limit } => Problem::of_quota(Kind::TooManyKeys, "keys", 0, limit, ""),
            Refused::TypeNotReady | Refused::TypeClosed => Problem::of(Kind::TypeNotReady),
            Refused::TypeGone => Problem::of(Kind::TypeGone),
            Refused::Invalid(errors) => Problem::fields(errors),
            Refused::InputTooLarge { .. } => Problem::new(Kind::TooLarge, refused.to_string()),
            Refused::Ended => Problem::of(Kind::TaskEnded),
            Refused::NotEnded => Problem::of(Kind::TaskNotEnded),
            Refused::UniqueKey { holder } => Problem::of(Kind::UniqueKey).with(LOCATION, format!("/task/{holder}")),
            Refused::KeyReused => Problem::of(Kind::KeyReused),
            Refused::Gone => Problem::of(Kind::KeyGone),
            Refused::TooManyPending { limit, retry_after } => {
                Problem::of_quota(Kind::TooManyPending, "pending-tasks", 0, limit, "")
                    .with(RETRY_AFTER, retry_after.to_string())
            }
            Refused::TooManySubmitted { rate, full_in } => {
                let (limit, policy) = submits(rate, 0, full_in);
                Problem::of(Kind::TooManySubmitted).with(RATE_LIMIT, limit).with(RATE_LIMIT_POLICY, policy)
            }
            Refused::QuotaExceeded(used_up) => Problem::used_up(used_up),
            Refused::QueueFull { retry_after } => {
                Problem::of(Kind::QueueFull).with(RETRY_AFTER, retry_after.to_string())
            }
            Refused::KeyOver => Problem::invalid_key(),
            Refused::PreconditionFailed => Problem::of(Kind::PreconditionFailed),
            Refused::TooManySchedules { limit } => Problem::of_quota(Kind::TooManySchedules, "schedules", 0, limit, ""),
            Refused::TooManySecrets { limit } => Problem::of_quota(Kind::TooManySecrets, "secrets", 0, limit, ""),
            Refused::TooManyOperations { limit } => {
                Problem::of_quota(Kind::TooManyOperations, "open-operations", 0, limit, "")
            }
            Refused::NoRoom => Problem::of(Kind::StorageUnavailable),
            Refused::StoppedOnly => Problem::new(
                Kind::StorageUnavailable,
                "The attempt of the task was stopped. That it was canceled is stored as soon as there is room.",
            ),
            Refused::Busy | Refused::TooSlow => {
                tracing::warn!("a request was refused: {refused}");
                Problem::of(Kind::Overloaded)
            }
            Refused::Draining => Problem::of(Kind::Draining),
            Refused::Internal(error) => Problem::internal(&error),
        }
    }
}

/// The same for objects.
impl From<objects::Refused> for Problem {
    fn from(refused: objects::Refused) -> Problem {
        use objects::Refused;
        match refused {
            Refused::NotFound => Problem::of(Kind::NotFound),
            Refused::InvalidName(why) => Problem::new(Kind::BadObjectName, why),
            Refused::TooLarge(_) => Problem::new(Kind::TooLarge, refused.to_string()),
            Refused::QuotaExceeded(used_up) => Problem::used_up(used_up),
            Refused::PreconditionFailed => Problem::of(Kind::PreconditionFailed),
            Refused::Undone(refused) => refused.into(),
        }
    }
}

/// The JSON of a problem.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Problem, title = "Problem", description = "An error (RFC 9457)")]
pub(super) struct ProblemBody<'a> {
    /// The problem type: a stable path on this server, with a page that explains it.
    #[schema(example = "/problems/unacceptable", format = "uri-reference")]
    r#type: &'static str,
    /// What kind of problem it is.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong this time, or what it means in general.
    detail: &'a str,
    /// The fields of the body that are at fault.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [FieldProblem<'a>],
    /// Why the task failed; in `/problems/task-failed` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = TaskError)]
    error: Option<&'a TaskError>,
}

/// A fault in one field of the body.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct FieldProblem<'a> {
    /// Where: a JSON pointer as a URI fragment (RFC 6901, section 6).
    #[schema(example = "#/limits/fuel")]
    pointer: &'a str,
    /// What is wrong there.
    detail: &'a str,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.kind.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        if self.kind == Kind::RequestTimeout {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // These replace what is said of the kind in general.
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

/// What some kinds of problem are in the OpenAPI document: one answer for each status, which names
/// the problem types it can be. Every call can fail in the server, so `Internal` is always there.
pub(super) fn documented(kinds: &[Kind]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let mut by_status: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
    for kind in kinds.iter().copied().chain([Kind::Internal]) {
        by_status.entry(kind.status().as_str().to_owned()).or_default().push(kind);
    }
    by_status
        .into_iter()
        .map(|(status, kinds)| {
            let types: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}.", kind.uri(), kind.title())).collect();
            let content = Content::new(Some(Ref::from_schema_name("Problem")));
            let mut response = ResponseBuilder::new().description(types.join(" ")).content(PROBLEM_JSON, content);
            for (name, about) in kinds.iter().flat_map(|kind| kind.headers()) {
                let header = utoipa::openapi::header::HeaderBuilder::new().description(Some(about));
                response = response.header(name, header.build());
            }
            (status, RefOr::T(response.build()))
        })
        .collect()
}

/// Adds more kinds of problem to what a call can answer.
pub(super) fn add(responses: &mut Responses, kinds: &[Kind]) {
    for (status, more) in documented(kinds) {
        match (responses.responses.entry(status), more) {
            (Entry::Vacant(place), more) => drop(place.insert(more)),
            (Entry::Occupied(mut there), RefOr::T(more)) => {
                if let RefOr::T(there) = there.get_mut()
                    && !there.description.contains(&more.description)
                {
                    there.description = format!("{} {}", there.description, more.description);
                    there.headers.extend(more.headers);
                }
            }
            _ => {}
        }
    }
}

/// Declares the problems of a call, for its documentation.
macro_rules! problems {
    ($name:ident: $($kind:ident),* $(,)?) => {
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses() -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::Response>> {
                crate::api::problem::documented(&[$(crate::api::problem::Kind::$kind,)*])
            }
        }
    };
}
pub(super) use problems;

/// The answer for a path that is not there.
pub(super) async fn not_found() -> Problem {
    Problem::of(Kind::NotFound)
}

/// The answer for a method that a path does not take; axum adds `Allow`.
pub(super) async fn method_not_allowed() -> Problem {
    Problem::of(Kind::MethodNotAllowed)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_kind_has_a_path_of_its_own_and_an_error_status() {
        let uris: HashSet<_> = Kind::ALL.iter().map(|kind| kind.uri()).collect();
        assert_eq!(uris.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{kind:?}");
            let tells_when =
                kind.status() == StatusCode::SERVICE_UNAVAILABLE || kind.status() == StatusCode::TOO_MANY_REQUESTS;
            assert!(!tells_when || kind.retry_after().is_some(), "{kind:?}");
            assert!(!kind.title().ends_with('.') && kind.page().ends_with('.'), "{kind:?}");
        }
    }

    #[tokio::test]
    async fn what_is_written() {
        let problem = Problem::fields(vec![FieldError { pointer: "#/a~1b".into(), detail: "x".repeat(1000) }]);
        let response = problem.into_response();
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "/problems/unacceptable");
        assert_eq!(body["status"], 422);
        assert_eq!(body["errors"][0]["pointer"], "#/a~1b");
        assert_eq!(body["errors"][0]["detail"].as_str().unwrap().chars().count(), DETAIL_CHARS + 1);
        assert_eq!(body["detail"], Kind::Unacceptable.page());
        assert!(body.get("error").is_none());
    }

    #[test]
    fn a_refusal_has_one_answer_whatever_was_asked_for() {
        use manager::Refused;
        let all: [(fn() -> Refused, Kind); 5] = [
            (|| Refused::Busy, Kind::Overloaded),
            (|| Refused::TooSlow, Kind::Overloaded),
            (|| Refused::Draining, Kind::Draining),
            (|| Refused::NoRoom, Kind::StorageUnavailable),
            (|| Refused::Internal(anyhow::anyhow!("a fault")), Kind::Internal),
        ];
        for (refused, kind) in all {
            assert_eq!(Problem::from(refused()).kind, kind);
            assert_eq!(Problem::from(objects::Refused::from(refused())).kind, kind);
        }
    }

    #[tokio::test]
    async fn the_client_learns_nothing_of_a_fault_inside() {
        let response = Problem::from(manager::Refused::Internal(anyhow::anyhow!("secret path"))).into_response();
        assert_eq!(response.status(), 500);
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert!(!String::from_utf8_lossy(&body).contains("secret"));
    }
}
