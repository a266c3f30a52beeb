//! The listening socket and its connections: how many there may be, how slow a client may be, and
//! how they end.
//!
//! hyper is driven here directly, HTTP/1.1 only, because every one of these bounds is about the
//! connection and not about a request.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, HOST};
use axum::http::{StatusCode, Version};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tower::Service;

use super::ServerSettings;
use super::access::{AnswerTo, Peer};
use super::problem::{Kind, Problem};
use super::room::{Part, Room};
use super::waiting::{Connection, Waiting};
use super::write_deadline::WriteDeadline;

/// How long requests in flight may go on once the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// The largest head of a request: a longer one is answered with 431. Bodies pass through a buffer
/// of this size, too.
const BUFFER_BYTES: usize = 64 << 10;

/// An answer up to this size is sent whenever it is ready. Larger ones that clients have not read yet
/// have together at most [`LARGE_ANSWERS`].
const LARGE_ANSWER: usize = 64 << 10;
const LARGE_ANSWERS: usize = 512 << 20;

/// How long to wait after the system refused a connection: it is out of file descriptors or memory.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the same trouble is logged again.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The connections there may be, and what was answered on them.
pub(super) struct Traffic {
    most: u32,
    /// Places for connections: who holds none is not served.
    places: Arc<Semaphore>,
    /// Room for large answers that clients have not yet read, in pieces of [`LARGE_ANSWER`].
    large: Room,
    /// Answers by the class of their status, from 1xx on.
    answered: [AtomicU64; 5],
}

impl Traffic {
    /// Traffic of at most that many connections at once.
    pub(super) fn new(max_connections: usize) -> Traffic {
        let most = u32::try_from(max_connections).unwrap_or(u32::MAX);
        let large = Room::new(u32::try_from(LARGE_ANSWERS / LARGE_ANSWER).unwrap_or(u32::MAX));
        Traffic { most, places: Arc::new(Semaphore::new(most as usize)), large, answered: Default::default() }
    }

    /// An answer that is held in memory until the client has read it needs room, if it is large. Where
    /// there is none it is dropped, and the client is asked to come again. Only of reads: an answer that
    /// says that something was done is never replaced by one that says to try again.
    fn bounded(&self, is_read: bool, response: Response) -> Response {
        let bytes = usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX);
        if bytes <= LARGE_ANSWER {
            return response;
        }
        let tenant = response.extensions().get::<AnswerTo>().map_or_else(|| "".into(), |of| of.0.clone());
        let pieces = u32::try_from(bytes.div_ceil(LARGE_ANSWER)).unwrap_or(u32::MAX);
        match self.large.try_take(&tenant, pieces) {
            Ok(room) => {
                let room = Arc::new(room);
                response.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        frame.map_data(|bytes| Bytes::from_owner(Held { bytes, _room: room.clone() }))
                    }))
                })
            }
            Err(_) if !is_read => response,
            Err(_) => {
                Problem::new(Kind::Overloaded, "too many large answers are being read at the moment").into_response()
            }
        }
    }

    /// Connections allowed at once.
    pub(super) fn max_connections(&self) -> u64 {
        self.most.into()
    }

    /// Open connections.
    pub(super) fn connections(&self) -> u64 {
        self.max_connections().saturating_sub(self.places.available_permits() as u64)
    }

    /// Answers so far with a status of that class: 2 for 2xx.
    pub(super) fn answered(&self, class: u16) -> u64 {
        self.class(class).map_or(0, |answered| answered.load(Ordering::Relaxed))
    }

    fn count(&self, status: StatusCode) {
        if let Some(answered) = self.class(status.as_u16() / 100) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn class(&self, class: u16) -> Option<&AtomicU64> {
        self.answered.get(usize::from(class).wrapping_sub(1))
    }
}

/// A part of a large answer, with the room that it takes until it is sent.
struct Held {
    bytes: Bytes,
    _room: Arc<Part>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Serves `router` until `stop` turns true. Returns once every connection has ended.
pub(super) async fn serve(
    listener: TcpListener,
    settings: ServerSettings,
    router: Router,
    traffic: Arc<Traffic>,
    mut stop: watch::Receiver<bool>,
) {
    let ServerSettings { client_timeout, tls, .. } = settings;
    let places = traffic.places.clone();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(client_timeout)
        .max_buf_size(BUFFER_BYTES)
        .max_header_size(BUFFER_BYTES);
    let waiting = Arc::new(Waiting::default());
    let mut accepting = Accepting {
        listener,
        places: places.clone(),
        waiting: waiting.clone(),
        full: Trouble::default(),
        refused: Trouble::default(),
    };
    loop {
        let (stream, peer, place) = tokio::select! {
            accepted = accepting.next() => accepted,
            () = stopped(&mut stop) => break,
        };
        let (http, router, traffic, stop) = (http.clone(), router.clone(), traffic.clone(), stop.clone());
        let (peer, acceptor) = (Peer::Network(peer), tls.as_ref().map(|tls| tls.acceptor()));
        let waits = waiting.enter();
        tokio::spawn(async move {
            // Under TLS, so that what is read slowly there is noticed, too.
            let io = WriteDeadline::new(stream, client_timeout, waits.clone());
            let served = async {
                match acceptor {
                    None => connection(&http, io, peer, router, traffic, &waits, stop).await,
                    Some(acceptor) => match timeout(client_timeout, acceptor.accept(io)).await {
                        Ok(Ok(io)) => connection(&http, io, peer, router, traffic, &waits, stop).await,
                        Ok(Err(error)) => tracing::debug!(%error, "a client does not speak TLS"),
                        Err(_) => tracing::debug!("a client was too slow with TLS"),
                    },
                }
            };
            tokio::select! {
                () = served => {}
                () = waits.ended() => tracing::debug!("a connection that waited made room for another"),
            }
            drop(place);
        });
    }
    drop(accepting);
    // Every connection holds a place, and none goes on for longer than the grace.
    let _ = places.acquire_many(traffic.most).await;
}

/// Returns when the server is to stop; also when nobody is left who could say so.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

pub(super) async fn connection<T: AsyncRead + AsyncWrite + Unpin>(
    http: &http1::Builder,
    io: T,
    peer: Peer,
    router: Router,
    traffic: Arc<Traffic>,
    waits: &Arc<Connection>,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(router.clone(), traffic.clone(), peer, waits.clone(), request));
    let mut connection = pin!(http.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            // Who still waits then loses the connection, and nothing else.
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        // A client's doing: it went away, was too slow, or does not speak HTTP.
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
    }
}

/// Answers one request. A panic in a handler becomes an answer, too.
async fn answer(
    mut router: Router,
    traffic: Arc<Traffic>,
    peer: Peer,
    waits: Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    if !waits.begin() {
        // It made room for another, and is being closed.
        return std::future::pending().await;
    }
    request.extensions_mut().insert(peer);
    let is_read = request.method().is_safe();
    // RFC 9112, section 3.2.
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && request.version() == Version::HTTP_11 {
        let response = Problem::new(Kind::Malformed, "the request must have one Host header").into_response();
        traffic.count(response.status());
        return Ok(waits.until_handed_over(response));
    }
    let answered = AssertUnwindSafe(async { router.call(request.map(Body::new)).await }).catch_unwind().await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Problem::internal(&anyhow::anyhow!("a handler panicked: {}", text.unwrap_or("no message"))).into_response()
        }
    };
    if response.status() == StatusCode::NOT_MODIFIED {
        // axum counts the bytes of the empty body, and a length here would be that of the full answer
        // (RFC 9110, section 8.6).
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    let response = traffic.bounded(is_read, response);
    traffic.count(response.status());
    Ok(waits.until_handed_over(response))
}

/// Accepts connections, and finds places for them.
struct Accepting {
    listener: TcpListener,
    places: Arc<Semaphore>,
    waiting: Arc<Waiting>,
    full: Trouble,
    refused: Trouble,
}

impl Accepting {
    /// The next connection and its place. Trouble is logged and waited out, never the end.
    async fn next(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    // An answer is written at once and whole: waiting for more to send only delays it.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer, self.place().await);
                }
                // The client went away before it was accepted.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
                Err(error) => {
                    if self.refused.is_news() {
                        tracing::error!(error = &error as &dyn std::error::Error, "cannot accept connections");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A place for a connection. Where there is none, the one that waits longest for a request makes room.
    async fn place(&mut self) -> OwnedSemaphorePermit {
        loop {
            if self.places.available_permits() == 0 {
                if self.full.is_news() {
                    tracing::warn!(
                        "as many connections as --max-connections allows; others wait until one ends, or makes room as \
                         it only waits"
                    );
                }
                self.waiting.end_longest();
            }
            // Nobody closes the semaphore. One that begins to wait meanwhile is seen with the next look.
            if let Ok(Ok(place)) = timeout(ACCEPT_PAUSE, self.places.clone().acquire_owned()).await {
                return place;
            }
        }
    }
}

/// Trouble that goes on is logged now and then, not every time.
#[derive(Default)]
struct Trouble {
    logged: Option<Instant>,
}

impl Trouble {
    fn is_news(&mut self) -> bool {
        let news = self.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        if news {
            self.logged = Some(Instant::now());
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(30);

    /// More than sockets take, and in one piece.
    const MEDIUM: usize = 16 << 20;

    struct Server {
        address: std::net::SocketAddr,
        traffic: Arc<Traffic>,
        stop: watch::Sender<bool>,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(max_connections: usize, client_timeout: Duration) -> Server {
        let router = Router::new()
            .route("/", get(|| async { "hello" }))
            .route(
                "/panic",
                get(|| async {
                    if true {
                        panic!("secret")
                    }
                }),
            )
            .route("/slow", get(|| async { sleep(SHORT).await }))
            .route("/long", get(|| async { sleep(LONG).await }))
            .route("/medium", get(|| async { vec![0; MEDIUM] }))
            .route("/large", get(|| async { vec![0; 64 << 20] }).post(|| async { vec![0; 1 << 20] }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let traffic = Arc::new(Traffic::new(max_connections));
        let (stop, stopped) = watch::channel(false);
        let settings = ServerSettings { max_connections, max_tenants: 2, tls: None, client_timeout };
        let task = tokio::spawn(serve(listener, settings, router, traffic.clone(), stopped));
        Server { address, traffic, stop, task }
    }

    impl Server {
        async fn send(&self, request: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        }

        /// Sends, and reads until the connection is closed.
        async fn exchange(&self, request: &str) -> String {
            rest(self.send(request).await).await
        }
    }

    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("the connection stays open");
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn last(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let server = start(10, LONG).await;
        let answer = server.exchange(&format!("GET /panic HTTP/1.1\r\nhost: x\r\n\r\n{}", last("/"))).await;
        assert!(answer.starts_with("HTTP/1.1 500 ") && answer.contains("/problems/internal"), "{answer}");
        assert!(!answer.contains("secret") && answer.ends_with("hello"), "{answer}");
        assert_eq!((server.traffic.answered(5), server.traffic.answered(2)), (1, 1));
    }

    #[tokio::test]
    async fn slow_heads_and_idle_connections_end() {
        let server = start(10, SHORT).await;
        server.exchange("").await;
        server.exchange("GET / HTTP/1.1\r\nhost:").await;
        assert!(server.exchange("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.ends_with("hello"));
    }

    #[tokio::test]
    async fn who_does_not_read_the_answer_loses_the_connection() {
        let server = start(10, SHORT).await;
        let stream = server.send(&last("/large")).await;
        let ended = timeout(LONG, async {
            while server.traffic.answered(2) == 0 || server.traffic.connections() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        });
        ended.await.expect("the connection is held");
        assert!(rest(stream).await.len() < 64 << 20);
    }

    #[tokio::test]
    async fn large_answers_that_nobody_reads_are_bounded() {
        let server = start(100, LONG).await;
        let mut unread = Vec::new();
        // One tenant's are.
        for _ in 0..LARGE_ANSWERS / 4 * 3 / (64 << 20) {
            unread.push(server.send(&last("/large")).await);
        }
        while server.traffic.answered(2) < unread.len() as u64 {
            sleep(Duration::from_millis(1)).await;
        }
        let answer = server.exchange(&last("/large")).await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after"),
            "{}",
            answer.get(..200).unwrap_or(&answer)
        );
        assert!(server.exchange(&last("/")).await.ends_with("hello"), "small answers need no room");
        let done = server.exchange(&last("/large").replace("GET", "POST")).await;
        assert!(done.starts_with("HTTP/1.1 200 "), "what was done is said");
        drop(unread);
        let again = async {
            while !server.exchange(&last("/large")).await.starts_with("HTTP/1.1 200 ") {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, again).await.expect("there is no room again");
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let server = start(10, LONG).await;
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(BUFFER_BYTES));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
        for head in [long, many] {
            let answer = server.exchange(&head).await;
            assert!(answer.starts_with("HTTP/1.1 431 ") || answer.is_empty(), "{answer}");
        }
        assert!(server.exchange(&last("/")).await.ends_with("hello"));
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait() {
        let server = start(2, LONG).await;
        let first = server.send(&last("/slow")).await;
        let second = server.send(&last("/slow")).await;
        let started = Instant::now();
        assert!(server.exchange(&last("/")).await.ends_with("hello"));
        assert!(started.elapsed() >= SHORT / 2);
        assert!(rest(first).await.starts_with("HTTP/1.1 200 ") && rest(second).await.starts_with("HTTP/1.1 200 "));
    }

    /// Also one that has sent a part of a head. Those at work stay.
    #[tokio::test]
    async fn whoever_waits_longest_makes_room() {
        let server = start(4, LONG).await;
        let at_work = server.send(&last("/long")).await;
        // What is handed to the system is less than this, and the rest is not read yet.
        let slow_reader = server.send(&last("/medium")).await;
        let idle = server.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        sleep(SHORT / 3).await;
        let slow = server.send("GET / HTTP/1.1\r\nhost:").await;
        let mut others = Vec::new();
        for left in [idle, slow] {
            let started = Instant::now();
            others.push(server.send("GET / HTTP/1.1\r\nhost: x\r\n\r\n").await);
            rest(left).await;
            assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        }
        assert!(server.exchange(&last("/")).await.ends_with("hello"));
        drop((at_work, others));
        assert!(rest(slow_reader).await.len() > MEDIUM);
    }

    #[tokio::test]
    async fn whoever_reads_nothing_makes_room() {
        let server = start(2, LONG).await;
        let at_work = server.send(&last("/long")).await;
        let reads_nothing = server.send(&last("/medium")).await;
        let started = Instant::now();
        assert!(server.exchange(&last("/")).await.ends_with("hello"));
        assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        assert!(rest(reads_nothing).await.len() < MEDIUM);
        drop(at_work);
    }

    #[tokio::test]
    async fn at_the_end_requests_in_flight_may_finish_and_long_ones_are_cut() {
        let server = start(10, LONG).await;
        let (idle, slow, long) =
            (server.send("").await, server.send(&last("/slow")).await, server.send(&last("/long")).await);
        sleep(SHORT / 3).await;
        let started = Instant::now();
        server.stop.send(true).unwrap();
        assert!(rest(slow).await.starts_with("HTTP/1.1 200 "));
        timeout(GRACE + LONG / 3, server.task).await.expect("the server goes on").unwrap();
        assert!(started.elapsed() >= GRACE - SHORT);
        assert_eq!(rest(idle).await + &rest(long).await, "");
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
