//! A task's log: what the guest says through `context.log`, stdout and stderr.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;

use crate::clock;
use crate::task::{Progress, TaskId, Timestamp};

/// What a line costs beside its text, so that empty lines are not free.
const LINE_OVERHEAD: usize = 64;

/// What a progress costs.
const PROGRESS_BYTES: usize = 256;

/// What may be stored with the attempt's end. What is more is stored before, at the logs' own pace.
const AT_THE_END: usize = 16 << 10;

/// What is stored of one attempt's lines before it is another's turn.
const AT_ONCE: u64 = 64 << 10;

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

impl LogLine {
    /// What it counts as, in bytes.
    pub fn cost(&self) -> u64 {
        (self.message.len() + LINE_OVERHEAD) as u64
    }
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

    /// What storing it costs, about, in bytes.
    pub fn bytes(&self) -> usize {
        let progress = if self.progress.is_some() { PROGRESS_BYTES } else { 0 };
        self.lines.iter().map(LogLine::cost).sum::<u64>() as usize + progress
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
        let mut line = LogLine { at: clock::now(), level, message };
        let cost = line.cost();
        if inner.bytes.saturating_add(cost) > self.0.limit {
            inner.dropped = true;
            line.level = LogLevel::Warn;
            line.message = format!("the log limit of {} bytes is reached, further lines are dropped", self.0.limit);
        } else {
            inner.bytes += cost;
        }
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
        take(news)
    }

    /// Hands some of what waits to `take`, in the same way: lines of no more than 64 KiB, unless a single one has
    /// more. Returns whether more waits.
    pub fn drain_some(&self, take: impl FnOnce(News)) -> bool {
        let mut inner = self.lock();
        let mut bytes = 0;
        let few = inner.news.lines.iter().take_while(|line| {
            bytes += line.cost();
            bytes <= AT_ONCE
        });
        let few = few.count().max(1).min(inner.news.lines.len());
        let later = inner.news.lines.split_off(few);
        let lines = std::mem::replace(&mut inner.news.lines, later);
        let progress = inner.news.progress.take();
        take(News { lines, progress });
        let more = !inner.news.is_empty();
        drop(inner);
        self.0.drained.notify_one();
        more
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
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, 2 * (LINE_OVERHEAD as u64 + 1), Arc::new(|_| ()));
        for _ in 0..5 {
            buffer.push(LogLevel::Info, "x".into());
        }
        let lines = buffer.drain(|news| news.lines);
        assert_eq!(lines.len(), 3);
        assert!(lines[2].message.contains("further lines are dropped"));
        assert_eq!(buffer.bytes(), 2 * (LINE_OVERHEAD as u64 + 1));
        buffer.push(LogLevel::Info, "x".into());
        assert!(buffer.drain(|news| news).is_empty());
    }

    #[tokio::test]
    async fn a_flood_ebbs_when_its_lines_are_taken() {
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, u64::MAX, Arc::new(|_| ()));
        buffer.push(LogLevel::Info, "x".repeat(AT_THE_END - LINE_OVERHEAD));
        assert!(!buffer.is_flooded());
        buffer.ebbed().await;
        buffer.push(LogLevel::Info, String::new());
        let ebbed = std::pin::pin!(buffer.ebbed());
        let mut ebbed = futures::future::maybe_done(ebbed);
        assert!(buffer.is_flooded() && futures::poll!(&mut ebbed).is_pending());
        assert!(!buffer.drain_some(drop));
        ebbed.await;
    }

    #[test]
    fn lines_are_taken_some_at_a_time_and_in_order() {
        let buffer = LogBuffer::new(TaskId(uuid::Uuid::nil()), 1, u64::MAX, Arc::new(|_| ()));
        for number in 0..10_000 {
            buffer.push(LogLevel::Info, number.to_string());
        }
        buffer.push(LogLevel::Info, "x".repeat(2 * AT_ONCE as usize));
        buffer.push(LogLevel::Info, "y".into());
        buffer.note_progress(Progress { fraction: 0.5, note: String::new() });
        let (mut taken, mut progress, mut times) = (Vec::new(), Vec::new(), 0);
        let mut more = true;
        while more {
            more = buffer.drain_some(|news| {
                assert!(news.lines.len() == 1 || news.lines.iter().map(LogLine::cost).sum::<u64>() <= AT_ONCE);
                taken.extend(news.lines.into_iter().map(|line| line.message));
                progress.extend(news.progress);
            });
            times += 1;
        }
        assert_eq!((times > 10, progress.len()), (true, 1));
        assert!(taken[..10_000].iter().enumerate().all(|(number, line)| *line == number.to_string()));
        assert_eq!(taken[10_001], "y");
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
