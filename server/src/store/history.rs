//! What is kept of a task beside itself: events, log lines, attempts that are over.

use rusqlite::{Connection, params};

use super::rows::{self, Json};
use super::{StoreError, Writer};
use crate::history::Happened;
use crate::host::log::LogLine;
use crate::task::{AttemptRecord, Task, TaskId, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// Bytes of text that are kept together at most, unless a single line has more.
const LINES_BYTES: usize = 64 << 10;

/// Log lines as they are kept: time, level, text.
pub(super) type StoredLine<'a> = (i64, u8, std::borrow::Cow<'a, str>);

pub(super) fn next_event(conn: &Connection) -> rusqlite::Result<u64> {
    conn.query_row("SELECT coalesce(max(seq), 0) + 1 FROM event", [], |row| row.get(0))
}

impl Writer {
    /// Notes what happened to a task, and returns the event's number. Numbers are given once: one that
    /// a transaction took which was rolled back is not given again while the server runs.
    pub fn append_event(
        &mut self,
        task: &Task,
        happened: Happened,
        attempt: u32,
        at: Timestamp,
        data: Option<&str>,
    ) -> Result<u64> {
        let seq = self.next_event;
        self.next_event += 1;
        self.conn
            .prepare_cached(
                "INSERT INTO event (seq, tenant, task, kind, attempt, at, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![seq, &*task.tenant, task.id, happened as u8, attempt, at, data])?;
        Ok(seq)
    }

    /// Adds lines to a task's log, and returns the number of the first and how many there are.
    pub fn append_log(&mut self, task: TaskId, attempt: u32, lines: &[LogLine]) -> Result<Option<(u64, u64)>> {
        if lines.is_empty() {
            return Ok(None);
        }
        let first: u64 = self
            .conn
            .prepare_cached("SELECT first + count FROM log_lines WHERE task = ?1 ORDER BY first DESC LIMIT 1")?
            .query_row([task], |row| row.get(0))
            .or_else(|error| if error == rusqlite::Error::QueryReturnedNoRows { Ok(1) } else { Err(error) })?;
        let mut next = first;
        let mut rest = lines;
        while !rest.is_empty() {
            let mut bytes = 0;
            let together = rest.iter().take_while(|line| {
                bytes += line.message.len();
                bytes <= LINES_BYTES
            });
            let (now, later) = rest.split_at(together.count().max(1));
            let stored: Vec<StoredLine<'_>> =
                now.iter().map(|line| (line.at.0, line.level as u8, line.message.as_str().into())).collect();
            self.conn
                .prepare_cached(
                    "INSERT INTO log_lines (task, first, count, attempt, lines) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![task, next, now.len(), attempt, Json(stored)])?;
            next += now.len() as u64;
            rest = later;
        }
        Ok(Some((first, next - first)))
    }

    /// Removes the lines that an attempt wrote, and what was told of them.
    pub fn remove_log(&mut self, task: TaskId, attempt: u32) -> Result<()> {
        self.conn
            .prepare_cached("DELETE FROM log_lines WHERE task = ?1 AND attempt = ?2")?
            .execute(params![task, attempt])?;
        self.conn
            .prepare_cached("DELETE FROM event WHERE task = ?1 AND attempt = ?2 AND kind = ?3")?
            .execute(params![task, attempt, Happened::Log as u8])?;
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
