//! Connections that wait for a request, or for the rest of its head or of the TLS handshake, and those whose client does
//! not read. No key is needed for that, so nobody is kept out by them: where there are as many connections as may be, the
//! one that waits longest makes room.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::Notify;

/// How long a connection may wait before it makes room: whoever has just come is about to send something.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// How long a client may take so little of what is there for it that the kernel takes no more, before it makes room.
const LEAST_STALL: Duration = Duration::from_secs(5);

/// An answer up to this size is handed to the connection whole.
const SMALL_ANSWER: u64 = 64 << 10;

/// A request is being answered.
const BUSY: u64 = u64::MAX;

/// Its answer was handed to the connection, and not all of it is sent.
const ANSWERED: u64 = u64::MAX - 1;

/// It is being closed.
const ENDED: u64 = u64::MAX - 2;

/// All connections.
pub(super) struct Waiting {
    began: Instant,
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
}

/// A connection.
pub(super) struct Connection {
    began: Instant,
    number: u64,
    /// Since when it waits, in milliseconds from `began`, or one of the three above.
    since: AtomicU64,
    /// Since when its client reads nothing, in the same way, or `BUSY`.
    stalled: AtomicU64,
    end: Notify,
}

/// A connection that is open.
pub(super) struct Entered {
    of: Arc<Waiting>,
    connection: Arc<Connection>,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { began: Instant::now(), connections: Mutex::default() }
    }
}

impl Waiting {
    /// One more, which waits from now on.
    pub(super) fn enter(self: &Arc<Self>) -> Entered {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::new(self.began, number));
        self.lock().insert(number, connection.clone());
        Entered { of: self.clone(), connection }
    }

    /// Ends the one that waits longest, if any waits for long enough.
    pub(super) fn end_longest(&self) {
        let now = millis(self.began.elapsed());
        let connections = self.lock();
        let may_end = connections.values().filter_map(|connection| {
            let since = connection.since.load(Ordering::Acquire);
            let waited = since.saturating_add(millis(LEAST_WAIT));
            let stalled = connection.stalled.load(Ordering::Acquire).saturating_add(millis(LEAST_STALL));
            let over = waited.min(stalled);
            (since != ENDED && over <= now).then_some((over, since, connection))
        });
        if let Some((_, since, connection)) = may_end.min_by_key(|(over, ..)| *over)
            && connection.since.compare_exchange(since, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            connection.end.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Connection {
    /// One that waits from now on, and never makes room.
    pub(super) fn alone() -> Connection {
        Connection::new(Instant::now(), 0)
    }

    fn new(began: Instant, number: u64) -> Connection {
        let since = AtomicU64::new(millis(began.elapsed()));
        Connection { began, number, since, stalled: AtomicU64::new(BUSY), end: Notify::new() }
    }

    /// A request is there. False: too late.
    pub(super) fn begin(&self) -> bool {
        self.is_now(BUSY)
    }

    /// False: it is being closed.
    fn is_now(&self, since: u64) -> bool {
        let set = |before| (before != ENDED).then_some(since);
        self.since.fetch_update(Ordering::AcqRel, Ordering::Acquire, set).is_ok()
    }

    /// Everything that was handed to it is sent. After an answer it waits again.
    pub(super) fn flushed(&self) {
        if self.since.load(Ordering::Acquire) == ANSWERED {
            self.is_now(millis(self.began.elapsed()));
        }
    }

    /// Whether its client reads what is there for it.
    pub(super) fn reads(&self, reads: bool) {
        let is_stalled = self.stalled.load(Ordering::Acquire) != BUSY;
        if is_stalled == reads {
            self.stalled.store(if reads { BUSY } else { millis(self.began.elapsed()) }, Ordering::Release);
        }
    }

    /// Sees when the answer was handed over.
    pub(super) fn until_handed_over(self: Arc<Self>, response: Response) -> Response {
        let handed_over = HandedOver(self);
        if response.body().size_hint().exact().is_some_and(|bytes| bytes <= SMALL_ANSWER) {
            return response;
        }
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _ = &handed_over;
                frame
            }))
        })
    }

    /// Returns when it is to make room.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}

/// Dropped when an answer was handed over.
struct HandedOver(Arc<Connection>);

impl Drop for HandedOver {
    fn drop(&mut self) {
        self.0.is_now(ANSWERED);
    }
}

impl std::ops::Deref for Entered {
    type Target = Arc<Connection>;

    fn deref(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.of.lock().remove(&self.connection.number);
    }
}
