//! What is kept of a task beside itself: events, log lines, attempts that are over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{self, Json};
use super::{Readers, StoreError, Writer};
use crate::history::{Event, Happened};
use crate::host::log::{LogLevel, LogLine};
use crate::task::{AttemptRecord, Status, Task, TaskId, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// Bytes of text that are kept together at most, unless a single line has more.
const LINES_BYTES: usize = 64 << 10;

/// The data of an event that says that its task was created by the event before, which has no row.
const CREATED: &str = "\"created\"";

/// A line of a log: its number, the attempt that wrote it, and the line.
pub type LoggedLine = (u64, u32, LogLine);

/// Log lines as they are kept: time, level, text.
type StoredLine<'a> = (i64, u8, std::borrow::Cow<'a, str>);

/// Bytes of the log lines that are kept of tenants whose lines the transaction changes: when it began, and now.
pub(super) type LogUse = HashMap<Arc<str>, (u64, u64)>;

/// The last numbers of events that were given, by tenant.
#[derive(Debug, Default)]
pub(super) struct EventNumbers {
    last: HashMap<Arc<str>, u64>,
    /// Of these the transaction gave some.
    given: HashSet<Arc<str>>,
}

impl EventNumbers {
    /// The numbers that a transaction gave are not given again: somebody may have noted them.
    pub(super) fn rolled_back(&mut self) {
        self.given.clear();
    }
}

/// The last number of an event that was given for a tenant.
fn last_event(conn: &Connection, tenant: &str) -> rusqlite::Result<u64> {
    let last = conn
        .prepare_cached("SELECT last FROM event_number WHERE tenant = ?1")?
        .query_row([tenant], |row| row.get(0))
        .optional()?;
    Ok(last.unwrap_or(0))
}

impl Writer {
    /// Gives the next `count` numbers of a tenant's events, and returns the last of them. Numbers are given once: one
    /// that a transaction took which was rolled back is not given again while the server runs.
    fn event_numbers(&mut self, tenant: &Arc<str>, count: u64) -> Result<u64> {
        let EventNumbers { last, given } = &mut self.events;
        let last = match last.get_mut(tenant) {
            Some(last) => last,
            None => last.entry(tenant.clone()).or_insert(last_event(&self.conn, tenant)?),
        };
        *last += count;
        if !given.contains(tenant) {
            given.insert(tenant.clone());
        }
        Ok(*last)
    }

    /// Writes down which numbers were given.
    pub(super) fn flush_event_numbers(&mut self) -> Result<()> {
        for tenant in self.events.given.drain() {
            let last = self.events.last.get(&tenant);
            self.conn
                .prepare_cached(
                    "INSERT INTO event_number (tenant, last) VALUES (?1, ?2)
                     ON CONFLICT (tenant) DO UPDATE SET last = ?2",
                )?
                .execute(params![&*tenant, last])?;
        }
        Ok(())
    }

    /// Notes what happened to a task, and returns the event's number.
    pub fn append_event(
        &mut self,
        task: &Task,
        happened: Happened,
        attempt: u32,
        at: Timestamp,
        data: Option<&str>,
    ) -> Result<u64> {
        let seq = self.event_numbers(&task.tenant, 1)?;
        self.insert_event(task, seq, happened, attempt, at, data)?;
        Ok(seq)
    }

    fn insert_event(
        &mut self,
        task: &Task,
        seq: u64,
        happened: Happened,
        attempt: u32,
        at: Timestamp,
        data: Option<&str>,
    ) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO event (seq, tenant, task, kind, attempt, at, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![seq, &*task.tenant, task.id, happened as u8, attempt, at, data])?;
        Ok(())
    }

    /// Notes that a task was created and started at once: two events with their numbers, and one row, as
    /// most tasks begin so.
    pub fn append_begun(&mut self, task: &Task, at: Timestamp) -> Result<()> {
        let seq = self.event_numbers(&task.tenant, 2)?;
        self.insert_event(task, seq, Happened::Running, task.attempt, at, Some(CREATED))
    }

    /// Adds lines to a task's log, and returns the number of the first and how many there are. The lines that are
    /// kept of its tenant come to no more than `most` bytes: from the first that does not fit on they are dropped,
    /// and a marker, which counts nothing, is there in their place.
    pub fn append_log(
        &mut self,
        task: &Task,
        attempt: u32,
        lines: &[LogLine],
        most: Option<u64>,
    ) -> Result<Option<(u64, u64)>> {
        if lines.is_empty() {
            return Ok(None);
        }
        let last: Option<(u64, u32, u64)> = self
            .conn
            .prepare_cached(
                "SELECT first + count, attempt, bytes FROM log_lines WHERE task = ?1 ORDER BY first DESC LIMIT 1",
            )?
            .query_row([task.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let first = last.map_or(1, |(next, ..)| next);
        let mut next = first;
        let kept = self.log_bytes(task)?;
        let mut left = most.map_or(u64::MAX, |most| most.saturating_sub(kept));
        let fit = lines.iter().take_while(|line| match left.checked_sub(line.cost()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
        let (mut rest, dropped) = lines.split_at(fit.count());
        let marked = rest.is_empty() && last.is_some_and(|(_, of, bytes)| of == attempt && bytes == 0);
        while !rest.is_empty() {
            let mut bytes = 0;
            let together = rest.iter().take_while(|line| {
                bytes += line.message.len();
                bytes <= LINES_BYTES
            });
            let (now, later) = rest.split_at(together.count().max(1));
            let bytes = now.iter().map(LogLine::cost).sum();
            self.insert_lines(task, next, attempt, now, bytes)?;
            self.count_lines(task, bytes, 0)?;
            next += now.len() as u64;
            rest = later;
        }
        if let (Some(line), Some(most), false) = (dropped.first(), most, marked) {
            let message = format!("the tenant's quota of {most} bytes of log lines is used up, lines are dropped");
            self.insert_lines(task, next, attempt, &[LogLine { at: line.at, level: LogLevel::Warn, message }], 0)?;
            next += 1;
        }
        Ok((next > first).then_some((first, next - first)))
    }

    fn insert_lines(&mut self, task: &Task, first: u64, attempt: u32, lines: &[LogLine], bytes: u64) -> Result<()> {
        let stored: Vec<StoredLine<'_>> =
            lines.iter().map(|line| (line.at.0, line.level as u8, line.message.as_str().into())).collect();
        self.conn
            .prepare_cached(
                "INSERT INTO log_lines (task, first, count, attempt, bytes, lines) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![task.id, first, lines.len(), attempt, bytes, Json(stored)])?;
        Ok(())
    }

    /// Removes the lines of a task, or of one of its attempts.
    pub(super) fn remove_lines(&mut self, task: &Task, attempt: Option<u32>) -> Result<()> {
        let mut statement = self
            .conn
            .prepare_cached("DELETE FROM log_lines WHERE task = ?1 AND (?2 IS NULL OR attempt = ?2) RETURNING bytes")?;
        let rows = statement.query_map(params![task.id, attempt], |row| row.get::<_, u64>(0))?;
        let removed = rows.sum::<rusqlite::Result<u64>>()?;
        drop(statement);
        if removed > 0 { self.count_lines(task, 0, removed) } else { Ok(()) }
    }

    /// Bytes of the lines that are kept of a task's tenant.
    fn log_bytes(&mut self, task: &Task) -> Result<u64> {
        if let Some((_, bytes)) = self.log_use.get(&task.tenant) {
            return Ok(*bytes);
        }
        let bytes = self
            .conn
            .prepare_cached("SELECT bytes FROM log_use WHERE tenant = ?1")?
            .query_row([&*task.tenant], |row| row.get(0))
            .optional()?
            .unwrap_or(0);
        self.log_use.insert(task.tenant.clone(), (bytes, bytes));
        Ok(bytes)
    }

    fn count_lines(&mut self, task: &Task, added: u64, removed: u64) -> Result<()> {
        let bytes = (self.log_bytes(task)? + added).saturating_sub(removed);
        if let Some((_, now)) = self.log_use.get_mut(&task.tenant) {
            *now = bytes;
        }
        Ok(())
    }

    /// Writes down how many bytes of log lines are kept of whom.
    pub(super) fn flush_log_use(&mut self) -> Result<()> {
        for (tenant, (_, bytes)) in self.log_use.drain().filter(|(_, (before, now))| before != now) {
            self.conn
                .prepare_cached(
                    "INSERT INTO log_use (tenant, bytes) VALUES (?1, ?2)
                     ON CONFLICT (tenant) DO UPDATE SET bytes = ?2",
                )?
                .execute(params![&*tenant, bytes])?;
        }
        Ok(())
    }

    /// Removes an event of a tenant.
    pub fn remove_event(&mut self, tenant: &str, seq: u64) -> Result<()> {
        self.conn.prepare_cached("DELETE FROM event WHERE tenant = ?1 AND seq = ?2")?.execute(params![tenant, seq])?;
        Ok(())
    }

    /// Removes the lines that an attempt wrote, and what was told of them.
    pub fn remove_log(&mut self, task: &Task, attempt: u32) -> Result<()> {
        self.remove_lines(task, Some(attempt))?;
        self.conn
            .prepare_cached("DELETE FROM event WHERE task = ?1 AND attempt = ?2 AND kind = ?3")?
            .execute(params![task.id, attempt, Happened::Log as u8])?;
        Ok(())
    }

    /// Keeps the record of an attempt that is over.
    pub fn insert_attempt(&mut self, task: TaskId, record: &AttemptRecord) -> Result<()> {
        let sql = format!("INSERT INTO attempt (task, {}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", rows::ATTEMPT_COLUMNS);
        self.conn.prepare_cached(&sql)?.execute(params![
            task,
            record.number,
            record.started_at,
            record.finished_at,
            record.completed,
            record.error.as_ref().map(Json),
            record.usage.as_ref().map(Json),
        ])?;
        Ok(())
    }
}

#[cfg(test)]
impl Writer {
    /// Bytes of the log lines that are counted, and of those that there are.
    pub(crate) fn counted_and_kept_log_bytes(&mut self) -> (u64, u64) {
        let sum = |sql: &str| self.conn.query_row(sql, [], |row| row.get::<_, Option<u64>>(0)).unwrap().unwrap_or(0);
        let kept = "SELECT sum(octet_length(value ->> 2) + 64) FROM log_lines, json_each(lines) WHERE bytes > 0";
        (sum("SELECT sum(bytes) FROM log_use"), sum(kept))
    }
}

/// An event with what there is to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The event.
    pub event: Event,
    /// The name of the task's type; `None` where the task is gone.
    pub task_type: Option<String>,
    /// The lines, where it tells of some.
    pub lines: Vec<LoggedLine>,
}

/// Some of the events that somebody asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldEvents {
    /// The events, in order.
    pub told: Vec<Told>,
    /// Up to which number was looked.
    pub looked_to: u64,
    /// Whether there are more at the moment.
    pub more: bool,
    /// Whether the task they are of has ended.
    pub ended: bool,
}

/// Events that one read gives at most.
const EVENTS_AT_ONCE: usize = 200;

/// Bytes of log lines after which a read gives no further event.
const LINES_AT_ONCE: usize = 1 << 20;

impl Readers {
    /// What happened to a task after event `after`; `None` where there is no such task.
    pub async fn task_events(
        &self,
        tenant: Arc<str>,
        id: TaskId,
        after: u64,
    ) -> std::result::Result<Option<ToldEvents>, StoreError> {
        self.read(&tenant.clone(), move |conn| {
            let status: Option<Status> = conn
                .prepare_cached("SELECT status FROM task WHERE id = ?1 AND tenant = ?2")?
                .query_row(params![id, &*tenant], |row| row.get(0))
                .optional()?;
            let sql =
                format!("SELECT {TOLD_COLUMNS} WHERE event.task = ?1 AND event.tenant = ?2 AND seq > ?3 ORDER BY seq");
            let mut told = told(conn, &sql, params![id, &*tenant, after], after)?;
            if status.is_none() && told.told.is_empty() {
                return Ok(None);
            }
            told.ended = status.is_none_or(Status::is_ended);
            Ok(Some(told))
        })
        .await
    }

    /// What happened to a tenant's tasks after event `after`.
    pub async fn tenant_events(&self, tenant: Arc<str>, after: u64) -> std::result::Result<ToldEvents, StoreError> {
        self.read(&tenant.clone(), move |conn| {
            let sql = format!("SELECT {TOLD_COLUMNS} WHERE event.tenant = ?1 AND seq > ?2 ORDER BY seq");
            told(conn, &sql, params![&*tenant, after], after)
        })
        .await
    }

    /// The number of a tenant's newest event.
    pub async fn newest_event(&self, tenant: Arc<str>) -> std::result::Result<u64, StoreError> {
        self.read(&tenant.clone(), move |conn| last_event(conn, &tenant)).await
    }
}

const TOLD_COLUMNS: &str = "seq, event.task, kind, event.attempt, at, data, task.task_type \
     FROM event LEFT JOIN task ON task.id = event.task";

fn told(conn: &Connection, sql: &str, params: impl rusqlite::Params, after: u64) -> rusqlite::Result<ToldEvents> {
    let mut found = ToldEvents { told: Vec::new(), looked_to: after, more: false, ended: false };
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if found.told.len() >= EVENTS_AT_ONCE || bytes > LINES_AT_ONCE {
            found.more = true;
            break;
        }
        let mut event = rows::event(row)?;
        let mut lines = Vec::new();
        if event.data.as_deref() == Some(CREATED) && event.happened == Happened::Running {
            event.data = None;
            let created = Event { seq: event.seq - 1, happened: Happened::Pending, attempt: 0, ..event.clone() };
            if created.seq > after {
                found.told.push(Told { event: created, task_type: row.get(6)?, lines: Vec::new() });
            }
        }
        if event.happened == Happened::Log
            && let Some(Json((first, count))) =
                event.data.as_deref().and_then(|data| serde_json::from_str(data).ok()).map(Json::<(u64, usize)>)
        {
            lines = log_lines(conn, event.task, first.saturating_sub(1), count)?;
        }
        bytes += lines.iter().map(|(_, _, line)| line.message.len()).sum::<usize>();
        found.looked_to = event.seq;
        found.told.push(Told { event, task_type: row.get(6)?, lines });
    }
    Ok(found)
}

/// Lines of a log after line `after`: number, attempt and line.
pub(super) fn log_lines(conn: &Connection, id: TaskId, after: u64, limit: usize) -> rusqlite::Result<Vec<LoggedLine>> {
    let mut statement = conn.prepare_cached(
        "SELECT first, attempt, lines FROM log_lines WHERE task = ?1 AND first >= coalesce(
             (SELECT max(first) FROM log_lines WHERE task = ?1 AND first <= ?2), 0)
         ORDER BY first",
    )?;
    let from = i64::try_from(after).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = statement.query(params![id, from])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (first, attempt): (u64, u32) = (row.get(0)?, row.get(1)?);
        let lines: Vec<StoredLine<'_>> = row.get::<_, Json<_>>(2)?.0;
        for (number, (at, level, message)) in (first..).zip(lines) {
            if found.len() == limit {
                return Ok(found);
            }
            if number > after {
                let level = LogLevel::from_number(level);
                found.push((number, attempt, LogLine { at: Timestamp(at), level, message: message.into_owned() }));
            }
        }
    }
    Ok(found)
}
