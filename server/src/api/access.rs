//! Who may do what: every path and method has its rule here, and a request that passes comes to its handler with
//! its [`Caller`].

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::Method;
use axum::http::header::{AUTHORIZATION, CONNECTION, EXPECT, HOST, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{OpenApi, PathItem};

use super::connections::HoldsConnection;
use super::prefer::PREFER;
use super::problem::{Kind, Problem};
use super::until::until;
use super::{Api, problem};
use crate::audit::Actor;
use crate::clock;
use crate::keys::{DEFAULT_TENANT, Key, OPERATOR, Role};
use crate::registry::SHARED;
use crate::task::TaskId;
use crate::tenants::Tenants;

/// Who may call a path with a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Everybody, without a key.
    Anyone,
    /// Keys of that role or a higher one, for what is their tenant's. Not the operator's, which see no tenant's data.
    Tenant(Role),
    /// The same, and the operator's keys for what all tenants share.
    Shared(Role),
    /// The operator's keys of that role or a higher one.
    Operator(Role),
}

use Role::{Admin, Deploy, Operate, Read, Submit};
use Rule::{Anyone, Operator, Shared, Tenant};

/// The rule of every path and method. `HEAD` is as `GET` is.
const RULES: &[(&str, &str, Rule)] = &[
    ("POST", "/task", Tenant(Submit)),
    ("GET", "/tasks", Tenant(Read)),
    ("POST", "/tasks", Tenant(Submit)),
    ("POST", "/tasks/cancel", Tenant(Operate)),
    ("POST", "/tasks/retry", Tenant(Operate)),
    ("POST", "/tasks/delete", Tenant(Operate)),
    ("GET", "/task/{id}", Tenant(Read)),
    ("DELETE", "/task/{id}", Tenant(Operate)),
    ("GET", "/task/{id}/status", Tenant(Read)),
    ("GET", "/task/{id}/result", Tenant(Read)),
    ("GET", "/task/{id}/logs", Tenant(Read)),
    ("GET", "/task/{id}/attempts", Tenant(Read)),
    ("GET", "/task/{id}/events", Tenant(Read)),
    ("POST", "/task/{id}/cancel", Tenant(Operate)),
    ("POST", "/task/{id}/retry", Tenant(Operate)),
    ("GET", "/events", Tenant(Read)),
    ("GET", "/operations", Tenant(Read)),
    ("GET", "/operations/{id}", Tenant(Read)),
    ("GET", "/objects", Tenant(Read)),
    ("GET", "/objects/{*name}", Tenant(Read)),
    ("PUT", "/objects/{*name}", Tenant(Submit)),
    ("DELETE", "/objects/{*name}", Tenant(Submit)),
    ("GET", "/schedules", Tenant(Read)),
    ("GET", "/schedules/{name}", Tenant(Read)),
    ("PUT", "/schedules/{name}", Tenant(Operate)),
    ("DELETE", "/schedules/{name}", Tenant(Operate)),
    ("GET", "/task-types", Shared(Read)),
    ("GET", "/task-types/{name}", Shared(Read)),
    ("PUT", "/task-types/{name}", Shared(Deploy)),
    ("PATCH", "/task-types/{name}", Shared(Operate)),
    ("DELETE", "/task-types/{name}", Shared(Deploy)),
    ("GET", "/task-types/{name}/versions/{version}", Shared(Read)),
    ("POST", "/task-types/{name}/test", Tenant(Submit)),
    ("GET", "/secrets", Tenant(Deploy)),
    ("PUT", "/secrets/{name}", Tenant(Deploy)),
    ("DELETE", "/secrets/{name}", Tenant(Deploy)),
    ("GET", "/keys", Tenant(Admin)),
    ("POST", "/keys", Tenant(Admin)),
    ("DELETE", "/keys/{id}", Tenant(Admin)),
    ("GET", "/tenant", Tenant(Read)),
    ("GET", "/tenants", Operator(Read)),
    ("GET", "/tenants/{tenant}", Operator(Read)),
    ("PUT", "/tenants/{tenant}", Operator(Admin)),
    ("PATCH", "/tenants/{tenant}", Operator(Admin)),
    ("GET", "/tenants/{tenant}/keys", Operator(Admin)),
    ("POST", "/tenants/{tenant}/keys", Operator(Admin)),
    ("DELETE", "/tenants/{tenant}/keys/{id}", Operator(Admin)),
    ("GET", "/tenant/usage", Tenant(Read)),
    ("GET", "/tenants/{tenant}/usage", Operator(Read)),
    ("GET", "/audit", Operator(Read)),
    ("GET", "/metrics", Operator(Read)),
    ("GET", "/healthz", Anyone),
    ("GET", "/readyz", Anyone),
    ("GET", "/openapi.json", Anyone),
    ("GET", "/docs", Anyone),
    ("GET", "/docs/", Anyone),
    ("GET", "/docs/{*file}", Anyone),
    ("GET", "/problems", Anyone),
    ("GET", "/problems/{name}", Anyone),
];

/// A call whose body needs a higher role than its rule says where it has other members than one.
const MORE: (&str, &str, &str, Role) = ("PATCH", "/task-types/{name}", "paused", Deploy);

/// Calls that make or change something and are no administration: tasks one by one, and objects. The audit log tells
/// of all others.
const NOT_AUDITED: &[(&str, &str)] = &[
    ("POST", "/task"),
    ("POST", "/tasks"),
    ("POST", "/task/{id}/cancel"),
    ("POST", "/task/{id}/retry"),
    ("PUT", "/objects/{*name}"),
    ("POST", TRIAL),
];

/// Whether a tenant may make only so many calls like this one, as each leaves a line in the audit log. No
/// `DELETE` counts: it only removes what was made, and a key must be revoked whatever else was asked for.
fn is_bounded(rule: Rule, method: &str, path: &str) -> bool {
    let is_tenants = matches!(rule, Tenant(_) | Shared(_));
    is_tenants && ["PUT", "POST", "PATCH"].contains(&method) && !NOT_AUDITED.contains(&(method, path))
}

fn rule(method: &str, path: &str) -> Option<Rule> {
    let method = if method == "HEAD" { "GET" } else { method };
    let found = RULES.iter().find(|(of, at, _)| *of == method && *at == path);
    found.map(|(_, _, rule)| *rule)
}

/// Where a connection came from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// Over the network.
    Network(SocketAddr),
    /// Through the socket in the data directory, which only the server's own user can open.
    Private,
}

/// Who a request is from, once it may be answered.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Whose things it is about.
    pub(super) tenant: Arc<str>,
    /// What it may do with them.
    role: Role,
    /// Whether it may change what all tenants share.
    pub(super) is_operator: bool,
    key: Option<Arc<Key>>,
    peer: Peer,
}

impl Caller {
    /// For the audit log.
    pub(super) fn actor(&self) -> Actor {
        let key = self.key.as_ref();
        let tenant = match (key, &self.peer) {
            (Some(key), _) => key.stored.tenant.clone(),
            (None, Peer::Private) => OPERATOR.into(),
            (None, Peer::Network(_)) => DEFAULT_TENANT.into(),
        };
        let peer = match &self.peer {
            Peer::Private => PRIVATE.into(),
            Peer::Network(address) => address.ip().to_string().into(),
        };
        Actor { tenant, key: key.map(|key| key.stored.id), peer }
    }

    /// Refuses what needs a higher role.
    fn needs(&self, role: Role) -> Result<(), Problem> {
        if self.role >= role { Ok(()) } else { Err(insufficient(role, "")) }
    }

    /// Refuses settings of a task type that need a higher role than to pause it.
    pub(super) fn may_set<'a>(&self, mut settings: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
        let (_, _, pausing, role) = MORE;
        if settings.all(|setting| setting == pausing) { Ok(()) } else { self.needs(role) }
    }

    /// Refuses a type that its key is not for.
    pub(super) fn may_use(&self, task_type: &str) -> Result<(), Problem> {
        match self.task_types() {
            Some(listed) if !listed.iter().any(|name| name == task_type) => {
                Err(other_types("the key is for other task types"))
            }
            _ => Ok(()),
        }
    }

    /// The task types that its key is for; `None`: all.
    pub(super) fn task_types(&self) -> Option<&[String]> {
        self.key.as_ref().and_then(|key| key.stored.task_types.as_deref())
    }

    /// Refuses a filter that goes beyond the types that its key is for.
    pub(super) fn may_use_all_of(&self, task_type: Option<&str>) -> Result<(), Problem> {
        match (self.task_types(), task_type) {
            (None, _) => Ok(()),
            (Some(_), Some(task_type)) => self.may_use(task_type),
            (Some(_), None) => Err(other_types("the key is for some task types: name one of them in the filter")),
        }
    }

    /// Counts a change that the audit log tells of, and refuses it where a tenant has made as many as it may. The
    /// operator decides that, and makes as many as need be.
    pub(super) fn may_make_a_change(&self, api: &Api) -> Result<(), Problem> {
        let (tenant, now) = (self.actor().tenant, clock::now());
        if *tenant == *OPERATOR {
            return Ok(());
        }
        api.tenants.change(&tenant, now).map_err(|(limit, over)| {
            Problem::of_hour(Kind::TooManyChanges, "changes-per-hour", limit, over.seconds_after(now))
        })
    }

    /// Refuses what is for all task types.
    pub(super) fn may_use_all(&self) -> Result<(), Problem> {
        match self.task_types() {
            None => Ok(()),
            Some(_) => Err(other_types("the key is for some task types, and this is for all of them")),
        }
    }

    /// Refuses a task of a type that its key is not for.
    pub(super) async fn may_change(&self, api: &Api, id: TaskId) -> Result<(), Problem> {
        match self.task_types() {
            None => Ok(()),
            Some(_) => self.may_use(&api.manager.get(&self.tenant, id).await?.task_type),
        }
    }

    /// Returns once its key is good no more.
    pub(super) fn end_of_key(&self, tenants: Arc<Tenants>) -> impl Future<Output = ()> + Send + use<> {
        let (key, peer) = (self.key.clone(), self.peer);
        async move {
            match key {
                Some(key) => tenants.keys.end_of(&key).await,
                // Whoever comes that way never needs one.
                None if matches!(peer, Peer::Private) => std::future::pending().await,
                // It needed none, until there was one.
                None => tenants.keys.needed().await,
            }
        }
    }
}

/// The tenant that a response is for.
#[derive(Clone)]
pub(super) struct AnswerTo(pub(super) Arc<str>);

const PRIVATE: &str = "private socket";

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Problem> {
        // Every route lies behind `check`.
        parts.extensions.get().cloned().ok_or_else(|| Problem::of(Kind::Unauthorized))
    }
}

/// Lets a request through to its handler, or does not.
pub(super) async fn check(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    match admit(&api, &request) {
        Ok(Some(caller)) => {
            let is_trial = path(&request) == TRIAL;
            // A component waits to be looked at, and a schema to be compiled.
            let is_looked_at = path(&request) == TASK_TYPE && matches!(*request.method(), Method::PUT | Method::PATCH);
            let held = if is_trial || is_looked_at || request.headers().contains_key(PREFER) {
                match api.connections.wait(&caller.tenant) {
                    Ok(held) => Some(held),
                    Err(problem) if is_trial || is_looked_at => return refuse(&api, request, problem).await,
                    Err(_) => {
                        // It is answered with what is known.
                        request.headers_mut().remove(PREFER);
                        None
                    }
                }
            } else {
                None
            };
            if held.is_some() {
                request.extensions_mut().insert(HoldsConnection);
            }
            request.extensions_mut().insert(caller.clone());
            let (request, was_read) = watched(request);
            let mut answered = pin!(next.run(request));
            let response = tokio::select! {
                // First: nothing is read, or done, once the key is good no more.
                biased;
                () = caller.end_of_key(api.tenants.clone()) => {
                    // What was sent whole with a good key is answered, and done where it does not come too late for the
                    // thread that writes. What is still being sent is not.
                    // Nor does anybody wait on, for an answer or for what is run for it.
                    if held.is_some() && !is_looked_at || !was_read.load(Ordering::Acquire) {
                        return Problem::invalid_key().into_response();
                    }
                    answered.await
                }
                response = &mut answered => response,
            };
            // Nor is what is still on its way to the client.
            let mut response = until(response, caller.end_of_key(api.tenants.clone()));
            response.extensions_mut().insert(AnswerTo(caller.tenant));
            if !was_read.load(Ordering::Acquire) {
                // The connection ends with this answer, as what is left of the body is not looked at: a client must not
                // send the next request on it (RFC 9112, section 9.6).
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
        Ok(None) => next.run(request).await,
        Err(problem) => refuse(&api, request, problem).await,
    }
}

async fn refuse(api: &Api, mut request: Request, problem: Problem) -> Response {
    // A client that is still sending would lose the answer with its connection.
    if !request.headers().contains_key(EXPECT) {
        // Who may not do this holds its connection for its tenant all the same, and who has no key for all such.
        if let Ok(caller) = caller(api, &request) {
            request.extensions_mut().insert(caller);
        }
        api.uploads.discard_refused(request).await;
    }
    problem.into_response()
}

/// Where an input is run without a task.
const TRIAL: &str = "/task-types/{name}/test";
const TASK_TYPE: &str = "/task-types/{name}";

/// The path of a request, as the rules have it.
fn path(request: &Request) -> &str {
    request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str)
}

/// A request, and whether all of its body was read.
fn watched(request: Request) -> (Request, Arc<AtomicBool>) {
    let was_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
    let watched = was_read.clone();
    (request.map(|body| Body::new(Watched { body, was_read: watched })), was_read)
}

/// A body that says when all of it was read.
struct Watched {
    body: Body,
    was_read: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.was_read.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Who a request is from; `None` where it does not matter.
fn admit(api: &Api, request: &Request) -> Result<Option<Caller>, Problem> {
    let rule = match rule(request.method().as_str(), path(request)) {
        Some(Anyone) => return Ok(None),
        Some(rule) => rule,
        // A method that the path does not take.
        None => return caller(api, request).map(Some),
    };
    let caller = caller(api, request)?;
    let key_of_operator = &*caller.tenant == OPERATOR;
    let keyless = caller.key.is_none();
    match rule {
        Anyone => return Ok(None),
        Tenant(role) if !key_of_operator => caller.needs(role)?,
        // Whatever its role: it sees no tenant's data.
        Tenant(role) => return Err(insufficient(role, "of a tenant that is not the operator, ")),
        Shared(role) => caller.needs(role)?,
        Operator(role) if key_of_operator || keyless => caller.needs(role)?,
        Operator(role) => return Err(insufficient(role, "of the operator, ")),
    }
    if key_of_operator {
        let tenant = if matches!(rule, Shared(_)) { SHARED.into() } else { caller.tenant };
        return Ok(Some(Caller { tenant, ..caller }));
    }
    if is_bounded(rule, request.method().as_str(), path(request)) {
        caller.may_make_a_change(api)?;
    }
    Ok(Some(caller))
}

fn caller(api: &Api, request: &Request) -> Result<Caller, Problem> {
    let peer = request.extensions().get().copied();
    let peer: Peer = peer.ok_or_else(|| Problem::internal(&anyhow::anyhow!("nobody said where a request is from")))?;
    if matches!(peer, Peer::Private) {
        return Ok(Caller { tenant: OPERATOR.into(), role: Admin, is_operator: true, key: None, peer });
    }
    if !api.tenants.keys.are_needed() {
        // As long as no key was ever made: whoever reaches the loopback address is everybody. A page of another site
        // in a browser here is not: it could only reach it under a name of its own (DNS rebinding).
        if is_for_a_domain(request) {
            return Err(Problem::of(Kind::Misdirected));
        }
        return Ok(Caller { tenant: DEFAULT_TENANT.into(), role: Admin, is_operator: true, key: None, peer });
    }
    let Some(token) = bearer(request.headers())? else {
        return Err(Problem::of(Kind::Unauthorized).with(WWW_AUTHENTICATE, "Bearer".to_owned()));
    };
    let key = api.tenants.keys.find(token, clock::now()).ok_or_else(Problem::invalid_key)?;
    let (tenant, role) = (key.stored.tenant.clone(), key.stored.role);
    Ok(Caller { is_operator: &*tenant == OPERATOR, tenant, role, key: Some(key), peer })
}

/// Whether a request names a host as only somebody's domain can be: one with a dot that is neither an address nor this
/// machine (RFC 6761, section 6.3).
fn is_for_a_domain(request: &Request) -> bool {
    let host = || request.headers().get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let named = request.uri().authority().cloned().or_else(host);
    named.is_some_and(|named| {
        let host = named.host().trim_end_matches('.').to_ascii_lowercase();
        let is_this = host == "localhost" || host.ends_with(".localhost");
        !is_this && named.host().contains('.') && host.parse::<Ipv4Addr>().is_err() && !host.starts_with('[')
    })
}

/// What is sent as a key (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = sent.next() else { return Ok(None) };
    if sent.next().is_some() {
        return Err(Problem::invalid_key());
    }
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_matches(' '))
    });
    token.map(Some).ok_or_else(Problem::invalid_key)
}

/// A key that is for some task types alone.
pub(super) fn other_types(detail: &str) -> Problem {
    Problem::new(Kind::InsufficientScope, detail)
        .with(WWW_AUTHENTICATE, "Bearer error=\"insufficient_scope\"".to_owned())
}

fn insufficient(role: Role, whose: &str) -> Problem {
    let needed = role.name();
    Problem::new(Kind::InsufficientScope, format!("a key {whose}of the role {needed} is needed, or of a higher one"))
        .with(WWW_AUTHENTICATE, format!("Bearer error=\"insufficient_scope\", scope=\"{needed}\""))
}

/// How a call is refused for its key.
const KEY_PROBLEMS: &[Kind] = &[Kind::Unauthorized, Kind::InvalidKey, Kind::InsufficientScope, Kind::Misdirected];

/// Writes into the OpenAPI document what each call needs, and how it is refused.
pub(super) fn document(openapi: &mut OpenApi) {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("taskcell_…")
        .description(Some(
            "A key, as `taskcell key create` or `POST /keys` made it. As long as no key was ever made, none is needed.",
        ))
        .build();
    let components = openapi.components.get_or_insert_default();
    components.add_security_scheme("key", SecurityScheme::Http(scheme));
    for (path, item) in &mut openapi.paths.paths {
        for (method, operation) in operations(item) {
            let Some(rule) = rule(method, path) else { continue };
            let (mut role, whose, keys_of) = match rule {
                Anyone => {
                    operation.security = Some(vec![SecurityRequirement::default()]);
                    continue;
                }
                Tenant(role) => (role, "", &["tenant"][..]),
                Shared(role) => {
                    let whose = ", or a key of the operator for the types that all tenants share";
                    (role, whose, &["tenant", "operator"][..])
                }
                Operator(role) => (role, " of the operator", &["operator"][..]),
            };
            // Whose keys, and the role that a body needs which has nothing but one member.
            let mut more = Extensions::from_iter([("x-keys-of", keys_of)]);
            let mut said = String::new();
            if (MORE.0, MORE.1) == (method, path.as_str()) {
                more.insert("x-role-of".to_owned(), serde_json::json!({ MORE.2: role.name() }));
                said = format!(" The role `{}` is enough where the body has nothing but `{}`.", role.name(), MORE.2);
                role = MORE.3;
            }
            operation.extensions.get_or_insert_default().merge(more);
            operation.security = Some(vec![SecurityRequirement::new("key", [role.name()])]);
            let said = format!("Needs a key of the role `{}`{whose}.{said}", role.name());
            operation.description = Some(match operation.description.take() {
                Some(description) if !description.is_empty() => format!("{description}\n\n{said}"),
                _ => said,
            });
            let mut kinds = KEY_PROBLEMS.to_vec();
            kinds.extend(is_bounded(rule, method, path).then_some(Kind::TooManyChanges));
            problem::add(&mut operation.responses, &kinds);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = (&'static str, &mut Operation)> {
    let PathItem { get, put, post, delete, head, patch, .. } = item;
    let all = [("GET", get), ("PUT", put), ("POST", post), ("DELETE", delete), ("HEAD", head), ("PATCH", patch)];
    all.into_iter().filter_map(|(method, operation)| Some((method, operation.as_mut()?)))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    #[test]
    fn every_call_has_a_rule_and_every_rule_a_call() {
        let mut openapi = super::super::routes().into_openapi();
        let mut calls = Vec::new();
        for (path, item) in &mut openapi.paths.paths {
            calls.extend(operations(item).map(|(method, _)| (method, path.clone())));
        }
        for (method, path) in &calls {
            assert!(rule(method, path).is_some(), "{method} {path} has no rule");
        }
        for (method, path, _) in RULES {
            let known = calls.iter().any(|(of, at)| of == method && at == path);
            // The reference has calls that it does not list.
            assert!(known || path.starts_with("/docs"), "{method} {path} is no call");
        }
        for (index, (method, path, _)) in RULES.iter().enumerate() {
            assert!(RULES[..index].iter().all(|(of, at, _)| (of, at) != (method, path)), "{method} {path} twice");
        }
    }

    #[test]
    fn what_is_sent_as_a_key() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            });
            bearer(&headers).map(|token| token.map(str::to_owned)).map_err(|problem| problem.status())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&["Bearer a"]), Ok(Some("a".into())));
        assert_eq!(of(&["bearer  a "]), Ok(Some("a".into())));
        for bad in [&["Basic YTpi"][..], &["Bearer"], &["a"], &["Bearer a", "Bearer a"]] {
            assert_eq!(of(bad), Err(StatusCode::UNAUTHORIZED), "{bad:?}");
        }
    }
}
