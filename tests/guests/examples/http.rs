//! Makes HTTP requests by `wasi:http`, in the blocking world.
//!
//! Input: `{"requests": […], "at_once": false, "fields": 0, "fail": false}`. A request has `method`, `scheme`, `authority`,
//! `path`, `headers`, `body`, `body_bytes` (so many bytes instead, without a length), and timeouts in
//! milliseconds: `connect_ms`, `first_byte_ms`, `between_bytes_ms`. With `follow` it goes where a response says.
//! `heads` leaves the body out. `at_once` sends all of them before it waits for the first response, and keeps
//! all responses until the last is there. `fields` makes so many of the host's `fields` first and keeps them.
//! With `fail` it prints the output and fails with it instead.
//!
//! Output: for each request `{"status", "headers", "body"}`, or `{"error"}`, with the body's length where it is
//! over 1000 bytes.

use std::collections::BTreeMap;

use guest_tasks::parse;
use serde::Deserialize;
use serde_json::{Value, json};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingResponse, Method, OutgoingBody, OutgoingRequest, RequestOptions,
    Scheme, http_error_code,
};
use wasip2::io::streams::StreamError;

wit_bindgen::generate!({
    path: "../../wit",
    world: "blocking-task",
    with: {
        "taskcell:task/types@0.1.0": guest_tasks::types,
        "taskcell:task/context@0.1.0": guest_tasks::context,
    },
});

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Input {
    requests: Vec<Ask>,
    at_once: bool,
    fields: usize,
    fail: bool,
}

#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ask {
    method: String,
    scheme: String,
    authority: String,
    path: Option<String>,
    headers: BTreeMap<String, String>,
    body: Option<String>,
    body_bytes: Option<usize>,
    connect_ms: Option<u64>,
    first_byte_ms: Option<u64>,
    between_bytes_ms: Option<u64>,
    follow: bool,
    heads: bool,
}

impl Default for Ask {
    fn default() -> Ask {
        Ask {
            method: "GET".into(),
            scheme: "https".into(),
            authority: String::new(),
            path: Some("/".into()),
            headers: BTreeMap::new(),
            body: None,
            body_bytes: None,
            connect_ms: None,
            first_byte_ms: None,
            between_bytes_ms: None,
            follow: false,
            heads: false,
        }
    }
}

struct Http;

impl Guest for Http {
    fn run(input: String) -> Result<String, Failure> {
        let Input { requests, at_once, fields, fail } = parse(&input)?;
        let _kept: Vec<Fields> = (0..fields).map(|_| Fields::new()).collect();
        let answers: Vec<Value> = if at_once {
            let sent: Vec<_> = requests.iter().map(send).collect();
            // All are there before the first is read and let go.
            let arrived: Vec<_> = sent.into_iter().map(|sent| sent.and_then(wait)).collect();
            let asked = arrived.into_iter().zip(&requests);
            asked.map(|(response, ask)| told(response.and_then(|response| read(response, ask.heads)))).collect()
        } else {
            requests.iter().map(|ask| told(fetch(ask))).collect()
        };
        let output = Value::from(answers).to_string();
        if fail {
            println!("{output}");
            return Err(Failure::Permanent(output));
        }
        Ok(output)
    }
}

fn told(answer: Result<Value, String>) -> Value {
    answer.unwrap_or_else(|error| json!({ "error": error }))
}

fn fetch(ask: &Ask) -> Result<Value, String> {
    let answer = read(wait(send(ask)?)?, ask.heads)?;
    let location = answer["headers"]["location"].as_str().filter(|_| ask.follow);
    let Some((scheme, rest)) = location.and_then(|location| location.split_once("://")) else { return Ok(answer) };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (scheme, authority) = (scheme.to_owned(), authority.to_owned());
    fetch(&Ask { scheme, authority, path: Some(format!("/{path}")), ..ask.clone() })
}

fn send(ask: &Ask) -> Result<FutureIncomingResponse, String> {
    let headers = Fields::new();
    for (name, value) in &ask.headers {
        headers.append(name, value.as_bytes()).map_err(|error| format!("header {name}: {error:?}"))?;
    }
    let request = OutgoingRequest::new(headers);
    let method = match ask.method.as_str() {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "TRACE" => Method::Trace,
        other => Method::Other(other.to_owned()),
    };
    request.set_method(&method).map_err(|()| "method")?;
    let scheme = match ask.scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.to_owned()),
    };
    request.set_scheme(Some(&scheme)).map_err(|()| "scheme")?;
    request.set_authority(Some(&ask.authority)).map_err(|()| "authority")?;
    request.set_path_with_query(ask.path.as_deref()).map_err(|()| "path")?;
    let options = RequestOptions::new();
    let nanos = |ms: Option<u64>| ms.map(|ms| ms * 1_000_000);
    options.set_connect_timeout(nanos(ask.connect_ms)).map_err(|()| "timeout")?;
    options.set_first_byte_timeout(nanos(ask.first_byte_ms)).map_err(|()| "timeout")?;
    options.set_between_bytes_timeout(nanos(ask.between_bytes_ms)).map_err(|()| "timeout")?;

    let bytes = match (&ask.body, ask.body_bytes) {
        (Some(body), _) => Some(body.clone().into_bytes()),
        (None, Some(count)) => Some(vec![b'x'; count]),
        (None, None) => None,
    };
    let body = bytes.map(|bytes| request.body().map(|body| (body, bytes))).transpose().map_err(|()| "body")?;
    let sent = outgoing_handler::handle(request, Some(options)).map_err(|error| name(&error))?;
    if let Some((body, bytes)) = body {
        // Where the host has stopped taking it the response says why.
        let written = write(&body, &bytes);
        if written.is_ok() {
            let _ = OutgoingBody::finish(body, None);
        }
    }
    Ok(sent)
}

fn write(body: &OutgoingBody, bytes: &[u8]) -> Result<(), StreamError> {
    let stream = body.write().map_err(|()| StreamError::Closed)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        stream.subscribe().block();
        let room = usize::try_from(stream.check_write()?).unwrap_or(usize::MAX).min(rest.len());
        let (now, later) = rest.split_at(room);
        if !now.is_empty() {
            stream.write(now)?;
        }
        rest = later;
    }
    stream.flush()
}

fn wait(sent: FutureIncomingResponse) -> Result<IncomingResponse, String> {
    loop {
        match sent.get() {
            Some(Ok(response)) => return response.map_err(|error| name(&error)),
            Some(Err(())) => return Err("taken twice".into()),
            None => sent.subscribe().block(),
        }
    }
}

fn read(response: IncomingResponse, head_only: bool) -> Result<Value, String> {
    let headers: BTreeMap<String, String> = response
        .headers()
        .entries()
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8_lossy(&value).into_owned()))
        .collect();
    if head_only {
        return Ok(json!({ "status": response.status(), "headers": headers }));
    }
    let body = response.consume().map_err(|()| "body")?;
    let stream = body.stream().map_err(|()| "stream")?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 << 10) {
            Ok(some) => bytes.extend(some),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(error)) => {
                let why = http_error_code(&error).map_or_else(|| error.to_debug_string(), |error| name(&error));
                return Err(format!("body: {why}"));
            }
        }
    }
    let body = match bytes.len() {
        0..=1000 => Value::from(String::from_utf8_lossy(&bytes)),
        length => Value::from(length),
    };
    Ok(json!({ "status": response.status(), "headers": headers, "body": body }))
}

/// The error without what it carries, such as `HttpRequestDenied`.
fn name(error: &ErrorCode) -> String {
    let text = format!("{error:?}");
    let text = text.strip_prefix("ErrorCode::").unwrap_or(&text);
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

export!(Http);
