//! What operators and newcomers ask for: health, metrics, the reference, the pages of the problems.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::extract::NameInPath;
use super::problem::{Kind, Problem, problems};
use super::wire;

problems!(NoProblems:);
problems!(ReadyProblems: Overloaded, Draining, StorageUnavailable);
problems!(PageProblems: NotFound);

const HTML: &str = "text/html; charset=utf-8";

/// Is the server alive?
#[utoipa::path(
    get, path = "/healthz", tag = "operations",
    responses((status = 200, description = "It is", body = String, content_type = "text/plain"), NoProblems)
)]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Does the server take work?
#[utoipa::path(
    get, path = "/readyz", tag = "operations",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"), ReadyProblems)
)]
pub(super) async fn readyz(State(api): State<Arc<Api>>) -> Result<&'static str, Problem> {
    if api.manager.is_draining() {
        return Err(Problem::of(Kind::Draining));
    }
    api.manager.ping().await?;
    Ok("ok\n")
}

/// Metrics as Prometheus reads them
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4"), NoProblems)
)]
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Response {
    let mut text = String::with_capacity(2048);
    let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
        // Writing to a string does not fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let answered: Vec<(String, u64)> =
        (2..=5).map(|class| (format!("{{status=\"{class}xx\"}}"), api.traffic.answered(class))).collect();
    let answered: Vec<(&str, u64)> = answered.iter().map(|(labels, value)| (&**labels, *value)).collect();
    metric("taskcell_http_requests_total", "counter", "Requests answered, by the class of the status.", &answered);
    let gauge = |number: usize| number as u64;
    metric(
        "taskcell_http_connections",
        "gauge",
        "Open connections, and the place for the next.",
        &[("", api.traffic.connections())],
    );
    metric("taskcell_http_connections_max", "gauge", "Connections allowed.", &[("", api.traffic.max_connections())]);
    metric(
        "taskcell_tasks_running",
        "gauge",
        "Attempts that run, those that sleep included.",
        &[("", gauge(api.room.started()))],
    );
    metric(
        "taskcell_tasks_working",
        "gauge",
        "Attempts that use, or wait for, the CPU.",
        &[("", gauge(api.room.working()))],
    );
    metric("taskcell_task_slots", "gauge", "Attempts that can run at once.", &[("", gauge(api.room.slots()))]);
    metric("taskcell_draining", "gauge", "1 while the server stops.", &[("", u64::from(api.manager.is_draining()))]);
    metric(
        "taskcell_build_info",
        "gauge",
        "The version of the server.",
        &[(concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1)],
    );
    typed("text/plain; version=0.0.4; charset=utf-8", text)
}

/// This reference as an OpenAPI 3.1 document
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations",
    responses((status = 200, description = "The document", body = serde_json::Value), NoProblems)
)]
pub(super) async fn openapi(State(api): State<Arc<Api>>) -> Response {
    wire::json_bytes(StatusCode::OK, api.openapi.clone())
}

/// This reference to browse
#[utoipa::path(
    get, path = "/docs", tag = "operations",
    responses((status = 308, description = "It is at /docs/", headers(("Location" = String, description = "`/docs/`"))), NoProblems)
)]
pub(super) async fn docs() -> Response {
    (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "/docs/")]).into_response()
}

/// A page of the reference
#[utoipa::path(
    get, path = "/docs/", tag = "operations",
    responses((status = 200, description = "The page", body = String, content_type = "text/html"), NoProblems)
)]
pub(super) async fn docs_index(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    docs_page(&api, "index.html")
}

/// A file of the reference's page
#[utoipa::path(
    get, path = "/docs/{*file}", tag = "operations",
    params(("file" = String, Path, description = "The name of the file")),
    responses((status = 200, description = "The file", body = Vec<u8>, content_type = "*/*"), PageProblems)
)]
pub(super) async fn docs_file(State(api): State<Arc<Api>>, NameInPath(file): NameInPath) -> Result<Response, Problem> {
    docs_page(&api, &file.ok_or_else(|| Problem::of(Kind::NotFound))?)
}

fn docs_page(api: &Api, file: &str) -> Result<Response, Problem> {
    let found = utoipa_swagger_ui::serve(file, api.docs.clone())
        .map_err(|error| Problem::internal(&anyhow::anyhow!("the reference cannot be shown: {error}")))?;
    let found = found.ok_or_else(|| Problem::of(Kind::NotFound))?;
    let media_type = HeaderValue::try_from(found.content_type).map_err(|error| Problem::internal(&error.into()))?;
    Ok(([(CONTENT_TYPE, media_type)], found.bytes.into_owned()).into_response())
}

/// All problem types
#[utoipa::path(
    get, path = "/problems", tag = "operations",
    responses((status = 200, description = "A list of all problem types", body = String, content_type = "text/html"), NoProblems)
)]
pub(super) async fn problems() -> Response {
    let items: String = Kind::ALL
        .iter()
        .map(|kind| format!("<li><a href=\"{}\">{}</a> ({})</li>\n", kind.uri(), kind.title(), kind.status().as_u16()))
        .collect();
    page("Problems", &format!("<ul>\n{items}</ul>"))
}

/// What a problem type means
#[utoipa::path(
    get, path = "/problems/{name}", tag = "operations",
    params(("name" = String, Path, description = "The last part of the problem's `type`")),
    responses((status = 200, description = "The page", body = String, content_type = "text/html"), PageProblems)
)]
pub(super) async fn problem(NameInPath(name): NameInPath) -> Result<Response, Problem> {
    let name = name.unwrap_or_default();
    let kind = Kind::ALL.iter().find(|kind| kind.uri().strip_prefix("/problems/") == Some(&*name));
    let kind = kind.ok_or_else(|| Problem::of(Kind::NotFound))?;
    let body = format!(
        "<p>Status {}</p>\n<p>{}</p>\n<p><a href=\"/problems\">All problems</a></p>",
        kind.status(),
        kind.page()
    );
    Ok(page(kind.title(), &body))
}

/// Titles and texts are this program's own, so nothing has to be escaped.
fn page(title: &str, body: &str) -> Response {
    let text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n{body}\n</html>\n"
    );
    typed(HTML, text)
}

fn typed(media_type: &'static str, text: String) -> Response {
    let headers: [(HeaderName, &str); 2] = [(CONTENT_TYPE, media_type), (CACHE_CONTROL, "no-cache")];
    (headers, text).into_response()
}
