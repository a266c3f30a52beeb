//! A task's log: what the guest says through `context.log`, stdout and stderr.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::clock;
use crate::task::{Progress, TaskId, Timestamp};

/// What a line costs beside its text, so that empty lines are not free.
const LINE_OVERHEAD: u64 = 64;

/// Text that may be stored with the attempt's end. What is more is stored before, at the logs' own pace.
const AT_THE_END: usize = 16 << 10;

/// How serious a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LogLevel {
    /// Finest.
    Trace = 0,
    /// For whoever looks for a fault.
    Debug = 1,
    /// Also everything from stdout.
    Info = 2,
    /// Also everything from stderr, and the marker of dropped lines.
    Warn = 3,
    /// Something failed.
    Error = 4,
}

impl LogLevel {
    /// The level with that number in the store; an unknown one is an error.
    pub fn from_number(number: u8) -> LogLevel {
        match number {
            0 => LogLevel::Trace,
            1 => LogLevel::Debug,
            2 => LogLevel::Info,
            3 => LogLevel::Warn,
            _ => LogLevel::Error,
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// How serious it is.
    pub level: LogLevel,
    /// The text, without the line's end.
    pub message: String,
}

/// Called once when a buffer has its first line, or progress, that waits to be stored.
pub type OnLine = Arc<dyn Fn(&LogBuffer) + Send + Sync>;

/// The lines of one attempt that are not stored yet.
#[derive(Clone)]
pub struct LogBuffer(Arc<Shared>);

struct Shared {
    task: TaskId,
    attempt: u32,
    limit: u64,
    on_line: OnLine,
    inner: Mutex<Inner>,
    drained: Notify,
}

/// What an attempt said of itself that is not stored yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// Log lines.
    pub lines: Vec<LogLine>,
    /// How far it is.
    pub progress: Option<Progress>,
}

impl News {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.progress.is_none()
    }

    /// Bytes of the lines' text.
    pub fn bytes(&self) -> usize {
        self.lines.iter().map(|line| line.message.len()).sum()
    }
}

#[derive(Default)]
struct Inner {
    news: News,
    bytes: u64,
    dropped: bool,
}

impl LogBuffer {
    /// A buffer that takes `limit` bytes over the whole attempt.
    pub fn new(task: TaskId, attempt: u32, limit: u64, on_line: OnLine) -> LogBuffer {
        LogBuffer(Arc::new(Shared { task, attempt, limit, on_line, inner: Mutex::default(), drained: Notify::new() }))
    }

    /// Whose log it is: the task and the number of the attempt.
    pub fn of(&self) -> (TaskId, u32) {
        (self.0.task, self.0.attempt)
    }

    /// Adds a line. The first that does not fit any more is replaced by a marker, all later ones
    /// are dropped.
    pub fn push(&self, level: LogLevel, message: String) {
        let mut inner = self.lock();
        if inner.dropped {
            return;
        }
        let first = inner.news.is_empty();
        let cost = message.len() as u64 + LINE_OVERHEAD;
        let line = if inner.bytes.saturating_add(cost) > self.0.limit {
            inner.dropped = true;
            let message = format!("the log limit of {} bytes is reached, further lines are dropped", self.0.limit);
            LogLine { at: clock::now(), level: LogLevel::Warn, message }
        } else {
            inner.bytes += cost;
            LogLine { at: clock::now(), level, message }
        };
        inner.news.lines.push(line);
        drop(inner);
        if first {
            (self.0.on_line)(self);
        }
    }

    /// Notes how far the attempt is. Only the latest is kept.
    pub fn note_progress(&self, progress: Progress) {
        let mut inner = self.lock();
        let first = inner.news.is_empty();
        inner.news.progress = Some(progress);
        drop(inner);
        if first {
            (self.0.on_line)(self);
        }
    }

    /// Whether nothing that is added now would be kept.
    pub fn is_full(&self) -> bool {
        self.lock().dropped
    }

    /// Bytes of the lines kept so far.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Hands what waits to `take` while no other can: so a caller that sends it on keeps it in order.
    pub fn drain<R>(&self, take: impl FnOnce(News) -> R) -> R {
        let mut inner = self.lock();
        let news = std::mem::take(&mut inner.news);
        let taken = take(news);
        drop(inner);
        self.0.drained.notify_one();
        taken
    }

    /// Whether so many lines wait that the attempt has to outlast them.
    pub fn is_flooded(&self) -> bool {
        self.lock().news.bytes() > AT_THE_END
    }

    /// Waits until so few lines are left that they may be stored with the attempt's end. For one at a time.
    pub async fn ebbed(&self) {
        while self.is_flooded() {
            self.0.drained.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_limit_there_is_one_marker_and_nothing_more() {
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, 2 * (LINE_OVERHEAD + 1), Arc::new(|_| ()));
        for _ in 0..5 {
            buffer.push(LogLevel::Info, "x".into());
        }
        let lines = buffer.drain(|news| news.lines);
        assert_eq!(lines.len(), 3);
        assert!(lines[2].message.contains("further lines are dropped"));
        assert_eq!(buffer.bytes(), 2 * (LINE_OVERHEAD + 1));
        buffer.push(LogLevel::Info, "x".into());
        assert!(buffer.drain(|news| news).is_empty());
    }

    #[tokio::test]
    async fn a_flood_ebbs_when_its_lines_are_taken() {
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, u64::MAX, Arc::new(|_| ()));
        buffer.push(LogLevel::Info, "x".repeat(AT_THE_END));
        assert!(!buffer.is_flooded());
        buffer.ebbed().await;
        buffer.push(LogLevel::Info, "x".into());
        let ebbed = std::pin::pin!(buffer.ebbed());
        let mut ebbed = futures::future::maybe_done(ebbed);
        assert!(buffer.is_flooded() && futures::poll!(&mut ebbed).is_pending());
        buffer.drain(drop);
        ebbed.await;
    }

    #[test]
    fn empty_lines_are_not_free() {
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, 1000, Arc::new(|_| ()));
        for _ in 0..1000 {
            buffer.push(LogLevel::Info, String::new());
        }
        assert!(buffer.drain(|news| news.lines).len() < 20);
    }
}
