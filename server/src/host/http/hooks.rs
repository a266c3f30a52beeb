//! Where a guest's request is let out, or is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::header::{CONNECTION, EXPECT, HOST, HeaderValue, TE, TRAILER};
use hyper::{Method, Request, Response, Uri};
use tokio::sync::Semaphore;
use wasmtime_wasi::runtime::AbortOnDropJoinHandle;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks,
};

use super::connect::{HttpLimits, Outbound, Target};
use super::exchange::{Answer, Exchange, Timeouts};
use super::secrets::{self, PutIn};
use super::{Allowed, BODY_CHUNK_BYTES, BODY_CHUNKS};
use crate::clock;
use crate::grants::{MOST_SECRETS, Scheme};
use crate::host::log::LogLevel;

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Box<dyn Future<Output = Result<(Response<WasiBody>, Io), Error>> + Send>;

/// One attempt's requests.
pub(super) struct Hooks {
    outbound: Arc<Outbound>,
    allowed: Allowed,
    turns: Arc<Semaphore>,
    requests: u64,
    bytes: Arc<AtomicU64>,
}

impl Hooks {
    pub(super) fn new(outbound: Arc<Outbound>, allowed: Allowed) -> Hooks {
        let turns = Arc::new(Semaphore::new(outbound.limits.connections));
        Hooks { outbound, allowed, turns, requests: 0, bytes: Arc::default() }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// What is to be sent, where it may be sent at all.
    fn admit(&mut self, request: Request<WasiBody>, options: Option<RequestOptions>) -> Result<Exchange, Error> {
        self.requests += 1;
        let HttpLimits { requests, timeout, .. } = self.outbound.limits;
        if self.requests > requests {
            return Err(self.refuse(&format!("a request: only {requests} are allowed"), Error::ConnectionLimitReached));
        }
        let target = target(request.uri())?;
        let method = request.method().as_str();
        if !self.allowed.grants.allows(target.scheme, &target.host, target.port, method) {
            let what = format!("{}: it is not granted", named(method, &target));
            return Err(self.refuse(&what, Error::HttpRequestDenied));
        }
        let put_in = self.put_in(&request, &target)?;
        let request = origin_form(request, &target)?;
        if let Err(most) = self.outbound.tenants.request(&self.allowed.tenant, clock::now()) {
            let what = format!("a request: only {most} are allowed in an hour, of all the tenant's tasks");
            return Err(self.refuse(&what, Error::ConnectionLimitReached));
        }
        let options = options.unwrap_or_default();
        let capped = |asked: Option<Duration>| asked.map_or(timeout, |asked| asked.min(timeout));
        Ok(Exchange {
            tenant: self.allowed.tenant.clone(),
            target,
            request,
            timeouts: Timeouts {
                connect: capped(options.connect_timeout),
                first_byte: capped(options.first_byte_timeout),
                between_bytes: capped(options.between_bytes_timeout),
            },
            bytes: self.bytes.clone(),
            turns: self.turns.clone(),
            memory: self.allowed.memory.clone(),
            put_in,
        })
    }

    /// What is to be put into the request, where all of it may be.
    fn put_in(&self, request: &Request<WasiBody>, target: &Target) -> Result<Option<PutIn>, Error> {
        let method = request.method().as_str();
        let refuse =
            |why: &str| Err(self.refuse(&format!("{}: {why}", named(method, target)), Error::HttpRequestDenied));
        let names = match secrets::names(request.headers()) {
            Ok(names) if names.is_empty() => return Ok(None),
            Ok(names) => names,
            Err(malformed) => return refuse(&malformed.to_string()),
        };
        if names.len() > MOST_SECRETS {
            return refuse(&format!("only {MOST_SECRETS} secrets are allowed in a request"));
        }
        let Allowed { grants, secrets, tenant, log, .. } = &self.allowed;
        let Target { scheme, host, port } = target;
        match names.iter().find(|name| !grants.allows_secret(*scheme, host, *port, method, name)) {
            Some(name) => refuse(&format!("the secret {name} is not granted there")),
            None => Ok(Some(PutIn {
                names,
                secrets: secrets.clone(),
                tenant: tenant.clone(),
                log: log.clone(),
                what: named(method, target),
            })),
        }
    }

    /// Tells the task's author why, who sees no more than the error's name otherwise.
    fn refuse(&self, what: &str, error: Error) -> Error {
        self.allowed.log.push(LogLevel::Warn, format!("refused {what}"));
        error
    }
}

impl WasiHttpHooks for Hooks {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        // Beside those that would change what the connection is: what asks the peer for more than one
        // response, or for trailers.
        Arc::new(|name| DEFAULT_FORBIDDEN_HEADERS.contains(name) || [TE, TRAILER, EXPECT].contains(name))
    }

    // The one of the target is put in, once it is known.
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Sent {
        let exchange = match self.admit(request, options) {
            Ok(exchange) => exchange,
            Err(error) => return Box::new(async { Err(error) }),
        };
        let outbound = self.outbound.clone();
        let answer = self.outbound.runtime.spawn(async move { outbound.exchange(exchange).await });
        // Dropped with the guest's handle of the response, and with the store.
        let answer = AbortOnDropJoinHandle::from(answer);
        Box::new(async move {
            let (response, driver): Answer = answer.await?;
            let driver: Io = Box::new(async move {
                driver.await;
                Ok(())
            });
            Ok((response, driver))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

/// Where the request goes, taken from its authority, in which there must be nothing else.
fn target(uri: &Uri) -> Result<Target, Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let scheme = match uri.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err(Error::HttpProtocolError),
    };
    let host = authority.host();
    // A user before the host, or more than digits behind it, is no part of a target.
    let rest =
        authority.as_str().strip_prefix(host).filter(|_| !host.is_empty()).ok_or(Error::HttpRequestUriInvalid)?;
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => scheme.default_port(),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0).ok_or(Error::HttpRequestUriInvalid)?
        }
        _ => return Err(Error::HttpRequestUriInvalid),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Ok(Target { scheme, host: bare.unwrap_or(host).to_ascii_lowercase(), port })
}

/// The request as it is sent: its path alone, so that no server takes another host from it, and the `Host`
/// of where it goes.
fn origin_form(mut request: Request<WasiBody>, target: &Target) -> Result<Request<WasiBody>, Error> {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    // No path is the root (RFC 9112, section 3.2.1).
    let path = if path.is_empty() || path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
    if !path.starts_with('/') || request.method() == Method::CONNECT {
        return Err(Error::HttpRequestUriInvalid);
    }
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    if request.uri().authority().is_some() {
        return Err(Error::HttpRequestUriInvalid);
    }
    let Target { scheme, host, port } = target;
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let host = if *port == scheme.default_port() { host } else { format!("{host}:{port}") };
    let host = HeaderValue::try_from(host).map_err(|_| Error::HttpRequestUriInvalid)?;
    let headers = request.headers_mut();
    headers.insert(HOST, host);
    // A connection for each request.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(request)
}

/// The request, as the log names it.
fn named(method: &str, Target { scheme, host, port }: &Target) -> String {
    format!("{} {}://{host}:{port}", method.get(..32).unwrap_or(method), scheme.name())
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    fn of(uri: &str) -> Option<(Scheme, String, u16)> {
        let target = target(&uri.parse().ok()?).ok()?;
        Some((target.scheme, target.host, target.port))
    }

    #[test]
    fn targets() {
        use Scheme::{Http, Https};
        assert_eq!(of("https://a.example/x"), Some((Https, "a.example".into(), 443)));
        assert_eq!(of("http://A.Example:8080/"), Some((Http, "a.example".into(), 8080)));
        assert_eq!(of("http://[::1]:8080/"), Some((Http, "::1".into(), 8080)));
        assert_eq!(of("https://[::1]"), Some((Https, "::1".into(), 443)));
        for bad in [
            "https://user@a.example/",
            "https://user:word@a.example/",
            "https://a.example@b.example/",
            "https://a.example:0/",
            "https://a.example:/",
            "https://a.example:65536/",
            "ftp://a.example/",
            "/x",
            "*",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_the_path_is_sent() {
        let sent = |method: Method, uri: &str| {
            let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
            let request = Request::builder().method(method).uri(uri).body(body).unwrap();
            let target = target(request.uri()).unwrap();
            let request = origin_form(request, &target).ok()?;
            Some((request.uri().to_string(), request.headers()[HOST].to_str().unwrap().to_owned()))
        };
        let some = |path: &str, host: &str| Some((path.to_owned(), host.to_owned()));
        assert_eq!(sent(Method::GET, "https://a.example/x?y=z"), some("/x?y=z", "a.example"));
        assert_eq!(sent(Method::GET, "https://a.example"), some("/", "a.example"));
        assert_eq!(sent(Method::GET, "https://a.example?x"), some("/?x", "a.example"));
        assert_eq!(sent(Method::GET, "http://[::1]:8080/"), some("/", "[::1]:8080"));
        assert_eq!(sent(Method::GET, "http://a.example//b.example/"), some("//b.example/", "a.example"));
        assert_eq!(sent(Method::CONNECT, "http://a.example/"), None);
    }
}
