//! What handlers take from a request. Each of these refuses with a [`Problem`], as axum's own
//! would not.

use std::fmt;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::RequestPartsExt;
use axum::body::{Body, HttpBody};
use axum::extract::{FromRequestParts, Request};
use axum::http::Uri;
use axum::http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName, TRANSFER_ENCODING,
};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use chrono::DateTime;
use http_body_util::BodyExt;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_path_to_error::Segment;

use super::access::Caller;
use super::connections::{Connections, Held, HoldsConnection};
use super::problem::{Kind, Problem};
use super::room::{Part, Room};
use crate::manager::FieldError;
use crate::pointer::add_segment;
use crate::task::{TaskId, Timestamp};

/// A body up to this size is read whenever it comes. Larger ones together have to fit into
/// [`Uploads`].
const SMALL_BODY: u64 = 64 << 10;

/// A body that takes longer holds one of the connections that its tenant may hold.
const SOON: Duration = Duration::from_secs(1);

/// What is read of a body that is too large, beyond its limit, and for how long.
const DISCARD_BYTES: u64 = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Memory for larger bodies that are being read, in all.
const UPLOAD_BYTES: u64 = 256 << 20;

/// The id in the path. What is no id never was a task's.
pub(super) struct IdInPath(pub(super) TaskId);

impl<S: Send + Sync> FromRequestParts<S> for IdInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<IdInPath, Problem> {
        let axum::extract::Path(text): axum::extract::Path<String> =
            parts.extract().await.map_err(|_| Problem::of(Kind::NotFound))?;
        // The hyphenated form only: a task has one path.
        match uuid::Uuid::try_parse(&text) {
            Ok(id) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(IdInPath(TaskId(id))),
            _ => Err(Problem::of(Kind::NotFound)),
        }
    }
}

/// A name in the path, percent-decoded. `None` where it is not UTF-8.
pub(super) struct NameInPath(pub(super) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for NameInPath {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<NameInPath, Self::Rejection> {
        let path: Result<axum::extract::Path<String>, _> = parts.extract().await;
        Ok(NameInPath(path.ok().map(|axum::extract::Path(name)| name)))
    }
}

/// The query's parameters. `T` should refuse those it does not know.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Query<T>, Problem> {
        query(&parts.uri).map(Query)
    }
}

/// The parameters of a URI's query.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    match axum::extract::Query::try_from_uri(uri) {
        Ok(axum::extract::Query(query)) => Ok(query),
        Err(rejection) => Err(Problem::new(Kind::Malformed, rejection.body_text())),
    }
}

/// How many things a page of a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageSize(pub(super) usize);

impl PageSize {
    /// More is taken as this many.
    const MOST: usize = 1000;
}

impl Default for PageSize {
    fn default() -> PageSize {
        PageSize(50)
    }
}

impl<'de> Deserialize<'de> for PageSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<PageSize, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for an integer is above the most all the same.
        match if digits { text.parse().unwrap_or(usize::MAX) } else { 0 } {
            0 => Err(serde::de::Error::custom("the limit must be a number above 0")),
            size => Ok(PageSize(size.min(PageSize::MOST))),
        }
    }
}

/// A time as RFC 3339 has it, in a query or in a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rfc3339(pub(super) Timestamp);

impl<'de> Deserialize<'de> for Rfc3339 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rfc3339, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(|_| {
            serde::de::Error::custom(
                "not a time as RFC 3339 has it, such as 2026-11-23T10:00:00Z (in a query a '+' is %2B)",
            )
        })?;
        Ok(Rfc3339(Timestamp(time.timestamp_millis())))
    }
}

/// Room for the bodies that are being read.
pub(super) struct Uploads {
    room: Room,
    timeout: Duration,
    connections: Arc<Connections>,
}

/// A body that was read, and its part of the room.
pub(super) struct ReadBody {
    /// The bytes.
    pub(super) bytes: Bytes,
    _room: Option<Part>,
}

impl Uploads {
    /// Room for bodies of which the largest has `largest` bytes, each of which has to arrive within
    /// `timeout`. Those that come slowly are counted among `connections`.
    pub(super) fn new(largest: u64, timeout: Duration, connections: Arc<Connections>) -> Uploads {
        Uploads { room: Room::new(units(UPLOAD_BYTES.max(largest))), timeout, connections }
    }

    /// Reads a request's body of at most `most` bytes.
    pub(super) async fn read(&self, request: Request, most: u64) -> Result<ReadBody, Problem> {
        let mut slow = Slow::new(&request, &self.connections);
        let tenant = slow.tenant.clone();
        slow.wait_for(self.read_all(&tenant, request, most)).await?
    }

    async fn read_all(&self, tenant: &Arc<str>, request: Request, most: u64) -> Result<ReadBody, Problem> {
        // Such a client sends nothing before it is asked to (RFC 9110, section 10.1.1).
        let sends_already = !request.headers().contains_key(EXPECT);
        let mut body = request.into_body();
        let size = body.size_hint();
        if size.lower() > most {
            if sends_already {
                self.discard(&mut body).await;
            }
            return Err(too_large(most));
        }
        // The room for all of it is taken before the first byte: bodies that each had a part of
        // what they need could wait for each other.
        let room = self.room_for(tenant, size.upper().unwrap_or(most).min(most)).await?;
        match tokio::time::timeout(self.timeout, collect(&mut body, most)).await {
            Ok(Ok(Some(bytes))) => Ok(ReadBody { bytes, _room: room }),
            Ok(Ok(None)) => {
                drop(room);
                self.discard(&mut body).await;
                Err(too_large(most))
            }
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(Problem::of(Kind::RequestTimeout)),
        }
    }

    /// A request's body of at most `most` bytes, piece by piece.
    pub(super) async fn stream(&self, request: Request, most: u64) -> Result<StreamedBody, Problem> {
        let mut slow = Slow::new(&request, &self.connections);
        let tenant = slow.tenant.clone();
        let body = request.into_body();
        let size = body.size_hint();
        if size.lower() > most {
            return Err(too_large(most));
        }
        // What becomes of it is kept until all of it was read.
        let room = slow.wait_for(self.room_for(&tenant, size.upper().unwrap_or(most).min(most))).await??;
        Ok(StreamedBody { body, left: most, most, patience: self.timeout, slow, _room: room })
    }

    /// Room for a body of that many bytes; a small one needs none.
    async fn room_for(&self, tenant: &Arc<str>, bytes: u64) -> Result<Option<Part>, Problem> {
        if bytes <= SMALL_BODY {
            return Ok(None);
        }
        match tokio::time::timeout(self.timeout, self.room.take(tenant, units(bytes))).await {
            Ok(Ok(room)) => Ok(Some(room)),
            _ => Err(Problem::of(Kind::Overloaded)),
        }
    }

    /// Reads on for a while without keeping anything. The connection is closed after an answer to a
    /// body that was not read to its end, and a client that is still sending then may lose the
    /// answer with it (RFC 9112, section 9.6).
    async fn discard(&self, body: &mut Body) {
        let mut left = DISCARD_BYTES;
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if left == 0 {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(self.timeout.min(DISCARD_TIME), reading).await;
    }

    /// The same with the body of a request that is refused, for as long as its tenant may hold the connection.
    pub(super) async fn discard_refused(&self, request: Request) {
        let mut slow = Slow::new(&request, &self.connections);
        let mut body = request.into_body();
        // It is refused already.
        let _ = slow.wait_for(self.discard(&mut body)).await;
    }
}

/// A body that is read piece by piece.
pub(super) struct StreamedBody {
    body: Body,
    left: u64,
    most: u64,
    /// How long it is still waited for, all pieces together: what is done between them does not count.
    patience: Duration,
    slow: Slow,
    _room: Option<Part>,
}

/// What a body costs its tenant that comes slowly: past [`SOON`] one of the connections that the tenant may hold.
struct Slow {
    tenant: Arc<str>,
    connections: Arc<Connections>,
    /// How long it may still be waited for without.
    left: Duration,
    is_held: bool,
    _held: Option<Held>,
}

impl Slow {
    fn new(request: &Request, connections: &Arc<Connections>) -> Slow {
        let caller = request.extensions().get::<Caller>();
        let tenant = caller.map_or_else(|| "".into(), |caller| caller.tenant.clone());
        let is_held = request.extensions().get::<HoldsConnection>().is_some();
        Slow { tenant, connections: connections.clone(), left: SOON, is_held, _held: None }
    }

    /// Waits for what comes with the body.
    async fn wait_for<T>(&mut self, coming: impl Future<Output = T>) -> Result<T, Problem> {
        let mut coming = pin!(coming);
        if !self.is_held {
            let asked = Instant::now();
            if let Ok(came) = tokio::time::timeout(self.left, coming.as_mut()).await {
                self.left = self.left.saturating_sub(asked.elapsed());
                return Ok(came);
            }
            self._held = Some(self.connections.wait(&self.tenant)?);
            self.is_held = true;
        }
        Ok(coming.await)
    }
}

impl StreamedBody {
    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let asked = Instant::now();
        let piece = tokio::time::timeout(self.patience, piece(&mut self.body, &mut self.left, self.most));
        let piece = self.slow.wait_for(piece).await?;
        self.patience = self.patience.saturating_sub(asked.elapsed());
        piece.unwrap_or_else(|_| Err(Problem::of(Kind::RequestTimeout)))
    }
}

async fn piece(body: &mut Body, left: &mut u64, most: u64) -> Result<Option<Bytes>, Problem> {
    loop {
        let frame = match body.frame().await {
            None => return Ok(None),
            Some(frame) => frame.map_err(|_| Problem::new(Kind::Malformed, "the body ended early"))?,
        };
        let Ok(data) = frame.into_data() else { continue };
        *left = left.checked_sub(data.len() as u64).ok_or_else(|| too_large(most))?;
        return Ok(Some(data));
    }
}

/// A semaphore counts to less than 2³² at a time, so it counts pieces.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(SMALL_BODY)).unwrap_or(u32::MAX)
}

fn too_large(most: u64) -> Problem {
    Problem::new(Kind::TooLarge, format!("the body is larger than {most} bytes"))
}

/// All of a body; `None` where it is larger than `most` bytes.
async fn collect(body: &mut Body, most: u64) -> Result<Option<Bytes>, Problem> {
    // Most bodies come in one piece, which is kept as it is. Others are copied together: a list of
    // tiny pieces would take many times their size.
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::new(Kind::Malformed, "the body ended early"))?;
        let Ok(data) = frame.into_data() else { continue };
        if (first.len() + all.len() + data.len()) as u64 > most {
            return Ok(None);
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(Some(if all.is_empty() { first } else { all.freeze() }))
}

/// Refuses a body that is not sent as JSON.
///
/// One without a media type is refused as well: a web page of any origin could send it to a server
/// on the reader's own machine without being asked whether it may.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    check_media_type(headers, "application/json")
}

/// Refuses a body of another media type.
pub(super) fn check_media_type(headers: &HeaderMap, expected: &str) -> Result<(), Problem> {
    let media_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(expected) {
        check_encoding(headers)
    } else {
        Err(Problem::new(Kind::UnsupportedMediaType, format!("the body must be {expected}")))
    }
}

/// Refuses a body that is no merge patch (RFC 7396), and says what is taken (RFC 5789, section 3.1).
pub(super) fn check_merge_patch(headers: &HeaderMap) -> Result<(), Problem> {
    const MERGE_PATCH: &str = "application/merge-patch+json";
    check_media_type(headers, MERGE_PATCH)
        .map_err(|problem| problem.with(HeaderName::from_static("accept-patch"), MERGE_PATCH.to_owned()))
}

/// Refuses a body that is compressed (RFC 9110, section 8.4; RFC 9112, section 7).
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    if others(headers, TRANSFER_ENCODING, b"chunked") {
        return Err(Problem::new(Kind::Malformed, "of the transfer codings only chunked is understood"));
    }
    if others(headers, CONTENT_ENCODING, b"identity") {
        return Err(Problem::new(Kind::UnsupportedMediaType, "the body must be sent without a Content-Encoding")
            .with(ACCEPT_ENCODING, "identity".into()));
    }
    Ok(())
}

/// Whether a header lists anything but that.
fn others(headers: &HeaderMap, name: HeaderName, known: &[u8]) -> bool {
    let listed = headers.get_all(name).into_iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    listed.map(<[u8]>::trim_ascii).any(|listed| !listed.is_empty() && !listed.eq_ignore_ascii_case(known))
}

/// Reads JSON. What is no JSON is malformed; what is JSON and does not fit is told with the place.
pub(super) fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let error = match object(&mut deserializer).and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if bytes.trim_ascii().is_empty() {
        return Err(Problem::new(Kind::Malformed, "the body is empty"));
    }
    // The first reading stopped at the first field that does not fit; the rest may be no JSON.
    let error = match error.classify() {
        Category::Data => match serde_json::from_slice::<IgnoredAny>(bytes) {
            Ok(_) => return Err(Problem::fields(vec![place::<T>(bytes, &error)])),
            Err(error) => error,
        },
        Category::Syntax | Category::Eof | Category::Io => error,
    };
    Err(Problem::new(Kind::Malformed, format!("the body is no JSON: {error}")))
}

/// Reads a `T` that is written as an object. By itself serde takes an array for a struct, too, and
/// reads the fields by their position.
pub(super) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct FromMap<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for FromMap<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_map(FromMap(PhantomData))
}

/// As [`object`], or null.
pub(super) fn object_or_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(bound = "T: Deserialize<'de>")]
    struct Object<T>(#[serde(deserialize_with = "object")] T);

    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|object| object.0))
}

/// Where in the body `error` is. The path is followed in a second reading, of bad bodies only.
fn place<'a, T: Deserialize<'a>>(bytes: &'a [u8], error: &serde_json::Error) -> FieldError {
    let detail = error.to_string();
    let mut pointer = String::from("#");
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    if object::<T, _>(tracked).is_err() {
        for segment in &track.path() {
            match segment {
                Segment::Seq { index } => add_segment(&mut pointer, &index.to_string()),
                Segment::Map { key } => add_segment(&mut pointer, key),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
    }
    // The path ends at the object where a field is missing or there twice; only the text names it.
    let named = ["missing field `", "duplicate field `"].iter().find_map(|start| detail.strip_prefix(start));
    if let Some((field, _)) = named.and_then(|rest| rest.split_once('`')) {
        add_segment(&mut pointer, field);
    }
    FieldError { pointer, detail }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use serde_json::value::RawValue;

    use super::*;
    use crate::limits::LimitOverrides;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body<'a> {
        task_type: String,
        #[serde(borrow, default)]
        input: Option<&'a RawValue>,
        #[serde(default)]
        priority: i32,
        #[serde(default, deserialize_with = "object")]
        limits: LimitOverrides,
    }

    async fn refusal(body: &str) -> (u16, String) {
        let problem = from_json::<Body<'_>>(body.as_bytes()).map(|body| format!("{body:?}")).unwrap_err();
        let response = problem.into_response();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned())
    }

    #[test]
    fn a_good_body_keeps_the_bytes_of_its_input() {
        let body = br#" { "input": {"b" : 1.0, "a":[ 1e2 ]} , "task_type":"io","priority":-3,"limits":{"fuel":5}} "#;
        let body: Body<'_> = from_json(body).unwrap();
        assert_eq!(body.input.unwrap().get(), r#"{"b" : 1.0, "a":[ 1e2 ]}"#);
        assert_eq!((body.task_type.as_str(), body.priority, body.limits.fuel), ("io", -3, Some(5)));
    }

    #[tokio::test]
    async fn what_is_no_json_is_malformed() {
        for body in
            ["", " \n", "{", "nonsense", r#"{"task_type":"io"}}"#, r#"{"foo":1,"#, r#"{"priority":"x",]"#, "\u{feff}{}"]
        {
            assert_eq!(refusal(body).await.0, 400, "{body}");
        }
        let invalid_utf8 = b"{\"task_type\":\"io\",\"input\":\"\xff\"}";
        assert_eq!(from_json::<Body<'_>>(invalid_utf8).unwrap_err().into_response().status(), 400);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_told_with_its_place() {
        for (body, pointer) in [
            ("[]", "#"),
            (r#"["io"]"#, "#"),
            (r#"{"task_type":"io","limits":[1]}"#, "#/limits"),
            ("{}", "#/task_type"),
            (r#"{"task_type":"io","foo":1}"#, "#/foo"),
            (r#"{"task_type":"io","a/b~ ü":1}"#, "#/a~1b~0%20%C3%BC"),
            (r#"{"task_type":1}"#, "#/task_type"),
            (r#"{"task_type":"io","task_type":"io"}"#, "#/task_type"),
            (r#"{"task_type":"io","priority":1.5}"#, "#/priority"),
            (r#"{"task_type":"io","priority":99999999999}"#, "#/priority"),
            (r#"{"task_type":"io","limits":{"fuel":-1}}"#, "#/limits/fuel"),
            (r#"{"task_type":"io","limits":{"fuel":1,"fuel":2}}"#, "#/limits/fuel"),
            (r#"{"task_type":"io","limits":{"speed":1}}"#, "#/limits/speed"),
            (r#"{"task_type":"io","limits":null}"#, "#/limits"),
        ] {
            assert_eq!(refusal(body).await, (422, pointer.to_owned()), "{body}");
        }
    }

    #[tokio::test]
    async fn depth_does_not_matter() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let body = format!(r#"{{"task_type":"io","input":{deep}}}"#);
        assert_eq!(from_json::<Body<'_>>(body.as_bytes()).unwrap().input.unwrap().get(), deep);
        assert_eq!(refusal(&format!(r#"{{"foo":{deep}}}"#)).await.0, 422);
        assert_eq!(refusal(&format!(r#"{{"task_type":{deep}}}"#)).await.0, 422);
        assert_eq!(refusal(&deep).await.0, 422);
        assert_eq!(refusal(&deep[..300_000]).await.0, 400);
    }

    #[test]
    fn page_sizes() {
        let of = |text: &str| serde_json::from_value::<PageSize>(text.into()).ok().map(|size| size.0);
        assert_eq!(
            [of("1"), of("1000"), of("1001"), of("99999999999999999999999")],
            [Some(1), Some(1000), Some(1000), Some(1000)]
        );
        for bad in ["", "0", "-1", "+1", "1.5", "x"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn media_types() {
        let check =
            |value: &'static str| check_json(&HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())])).is_ok();
        assert!(check("application/json") && check("Application/JSON ; charset=utf-8"));
        assert!(!check("text/plain") && !check("application/jsonl") && !check(""));
        assert!(check_json(&HeaderMap::new()).is_err());
    }
}
