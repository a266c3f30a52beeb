//! Objects: the same that the tenant's tasks see.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Api;
use super::access::Caller;
use super::conditional::{self, Tags};
use super::extract::{NameInPath, PageSize, Query, check_encoding};
use super::problem::{Kind, Problem, problems};
use super::wire::{self, Time};
use crate::store::ObjectMeta;

problems!(ListProblems: Malformed, Overloaded, StorageUnavailable);
problems!(PutProblems: Malformed, RequestTimeout, TooManyWaiting, PreconditionFailed, TooLarge, UnsupportedMediaType, BadObjectName,
    QuotaExceeded, Overloaded, Draining, StorageUnavailable);
problems!(ReadProblems: NotFound, PreconditionFailed, BadObjectName, Overloaded, StorageUnavailable);
problems!(DeleteProblems: Malformed, NotFound, PreconditionFailed, BadObjectName, Overloaded, Draining,
    StorageUnavailable);

/// Which objects to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only names that start with this.
    #[serde(default)]
    #[param(required = false)]
    prefix: String,
    /// Only names after this one, in byte order.
    #[param(nullable = false)]
    after: Option<String>,
    /// How many at once; more than 1000 is taken as 1000.
    #[serde(default)]
    #[param(value_type = u64, minimum = 1, default = 50, required = false)]
    limit: PageSize,
}

/// A page of objects.
#[derive(Serialize, ToSchema)]
pub(super) struct ObjectList {
    /// The objects, in the byte order of their names.
    objects: Vec<ListedObject>,
    /// `after` for the next page, where there is one.
    #[schema(required)]
    next_after: Option<String>,
}

/// What is known of an object.
#[derive(Serialize, ToSchema)]
pub(super) struct ListedObject {
    /// Its name.
    #[schema(example = "reports/2026.csv")]
    name: String,
    /// Its size in bytes.
    size: u64,
    /// Its strong entity tag, as in `ETag`.
    #[schema(example = "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"")]
    etag: String,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Time,
}

/// An object that was written.
#[derive(Serialize, ToSchema)]
pub(super) struct WrittenObject<'a> {
    /// Its name.
    name: &'a str,
    /// Its size in bytes.
    size: u64,
    /// Its strong entity tag, as in `ETag`.
    etag: String,
}

/// An object that was removed.
#[derive(Serialize, ToSchema)]
pub(super) struct RemovedObject {
    /// Its name.
    name: String,
    /// Always true.
    deleted: bool,
}

/// List objects
#[utoipa::path(
    get, path = "/objects", operation_id = "list_objects", tag = "objects", params(ListQuery),
    responses((status = 200, description = "A page of objects", body = ObjectList), ListProblems)
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Query(ListQuery { prefix, after, limit }): Query<ListQuery>,
) -> Result<Response, Problem> {
    // One more than asked for tells whether there is a next page.
    let mut found = api.objects.list(&caller.tenant, prefix, after, limit.0 + 1).await?;
    let more = found.len() > limit.0;
    found.truncate(limit.0);
    let next_after = found.last().filter(|_| more).map(|last| last.name.clone());
    let objects = found
        .into_iter()
        .map(|ObjectMeta { name, etag, size, updated_at }| ListedObject {
            name,
            size,
            etag: quoted(&etag),
            updated_at: Time(updated_at),
        })
        .collect();
    wire::json(StatusCode::OK, &ObjectList { objects, next_after })
}

/// Write an object
///
/// Creates or replaces it. It is stored when this answers.
#[utoipa::path(
    put, path = "/objects/{*name}", operation_id = "put_object", tag = "objects",
    params(
        ("name" = String, Path, description = "The name; it may have '/'"),
        ("If-Match" = Option<String>, Header, description = "Only where the object has one of these entity tags, or `*`: only where there is one"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only where there is no such object"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "Any bytes, of any media type"),
    responses(
        (status = 200, description = "Replaced", body = WrittenObject, headers(("ETag" = String, description = "The entity tag"))),
        (status = 201, description = "Created", body = WrittenObject, headers(
            ("ETag" = String, description = "The entity tag"), ("Location" = String, description = "Its path"))),
        PutProblems,
    )
)]
pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: NameInPath,
    request: Request,
) -> Result<Response, Problem> {
    let name = checked(name)?;
    // It would not be known any more when it is read.
    check_encoding(request.headers())?;
    if request.headers().contains_key(CONTENT_RANGE) {
        // RFC 9110, section 14.5.
        return Err(Problem::new(Kind::Malformed, "an object is written whole: there can be no Content-Range"));
    }
    let precondition = conditional::precondition(request.headers())?;
    let path = HeaderValue::try_from(request.uri().path()).map_err(|error| Problem::internal(&error.into()))?;
    let body = api.uploads.read(request, api.objects.max_bytes()).await?;
    let size = body.bytes.len() as u64;
    let (etag, created) = api.objects.put_if(&caller.tenant, name.clone(), body.bytes.clone(), precondition).await?;
    let etag = quoted(&etag);
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = wire::json(status, &WrittenObject { name: &name, size, etag: etag.clone() })?;
    tag(&mut response, &etag);
    if created {
        response.headers_mut().insert(LOCATION, path);
    }
    Ok(response)
}

/// Read an object
#[utoipa::path(
    get, path = "/objects/{*name}", operation_id = "get_object", tag = "objects",
    params(
        ("name" = String, Path, description = "The name; it may have '/'"),
        ("If-Match" = Option<String>, Header, description = "Only where the object has one of these entity tags"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the client has"),
    ),
    responses(
        (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream", headers(
            ("ETag" = String, description = "The entity tag"))),
        (status = 304, description = "The client has it", headers(
            ("ETag" = String, description = "The entity tag"))),
        ReadProblems,
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = checked(name)?;
    // Whoever has it already is told so without reading the data.
    if conditional::if_none_match(&headers).is_some() || conditional::if_match(&headers).is_some() {
        let meta = api.objects.head(&caller.tenant, name.clone()).await?;
        if let Some(answer) = without_data(&headers, &meta)? {
            return Ok(answer);
        }
    }
    let (meta, data) = api.objects.get(&caller.tenant, name, u64::MAX).await?;
    // It may have been replaced since.
    match without_data(&headers, &meta)? {
        Some(answer) => Ok(answer),
        None => Ok(with_data(&meta, Body::from(data))),
    }
}

/// Look at an object without reading it
#[utoipa::path(
    head, path = "/objects/{*name}", operation_id = "head_object", tag = "objects",
    params(
        ("name" = String, Path, description = "The name; it may have '/'"),
        ("If-Match" = Option<String>, Header, description = "Only where the object has one of these entity tags"),
        ("If-None-Match" = Option<String>, Header, description = "Entity tags that the client has"),
    ),
    responses(
        (status = 200, description = "There is such an object", headers(
            ("ETag" = String, description = "The entity tag"), ("Content-Length" = u64, description = "Its size in bytes"))),
        (status = 304, description = "The client has it", headers(
            ("ETag" = String, description = "The entity tag"))),
        ReadProblems,
    )
)]
pub(super) async fn head(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let meta = api.objects.head(&caller.tenant, checked(name)?).await?;
    match without_data(&headers, &meta)? {
        Some(answer) => Ok(answer),
        None => {
            let mut response = with_data(&meta, Body::empty());
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(meta.size));
            Ok(response)
        }
    }
}

/// Remove an object
#[utoipa::path(
    delete, path = "/objects/{*name}", operation_id = "delete_object", tag = "objects",
    params(
        ("name" = String, Path, description = "The name; it may have '/'"),
        ("If-Match" = Option<String>, Header, description = "Only where the object has one of these entity tags"),
    ),
    responses((status = 200, description = "The object is gone", body = RemovedObject), DeleteProblems)
)]
pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    caller: Caller,
    name: NameInPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let name = checked(name)?;
    api.objects.remove_if(&caller.tenant, name.clone(), conditional::precondition(&headers)?).await?;
    wire::json(StatusCode::OK, &RemovedObject { name, deleted: true })
}

/// The name in the path. Its rules are the objects' own; here it only has to be text.
fn checked(NameInPath(name): NameInPath) -> Result<String, Problem> {
    name.ok_or_else(|| Problem::new(Kind::BadObjectName, "the name is not UTF-8"))
}

/// The answer to a read that needs no data: the client has it, or wants another version of it.
fn without_data(headers: &HeaderMap, meta: &ObjectMeta) -> Result<Option<Response>, Problem> {
    if let Some(Tags::These(tags)) = conditional::if_match(headers)
        && !conditional::strong(tags).contains(&meta.etag)
    {
        return Err(Problem::of(Kind::PreconditionFailed));
    }
    if !conditional::has(headers, &meta.etag) {
        return Ok(None);
    }
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    tag(&mut response, &quoted(&meta.etag));
    Ok(Some(response))
}

fn with_data(meta: &ObjectMeta, data: Body) -> Response {
    let mut response = Response::new(data);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    // Anybody's bytes: no browser is to take them for a page.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    tag(&mut response, &quoted(&meta.etag));
    response
}

fn tag(response: &mut Response, etag: &str) {
    if let Ok(etag) = HeaderValue::try_from(etag) {
        response.headers_mut().insert(ETAG, etag);
    }
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}
