//! What the writer knows of tasks that wait, run, or are to be removed.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::rows;
use super::{StoreError, Writer};
use crate::task::{Digest, Status, Task, TaskId, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// A time at which tasks that wait have to be looked at.
#[derive(Clone, Copy, Debug)]
pub enum Time {
    /// They become ready.
    Due,
    /// They expire.
    Expires,
}

impl Time {
    fn column(self) -> &'static str {
        match self {
            Time::Due => "due_at",
            Time::Expires => "expires_at",
        }
    }
}

/// What tasks that are held back have in common: whether they still are is the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldGroup {
    /// Their tenant.
    pub tenant: Arc<str>,
    /// Their type.
    pub task_type: Arc<str>,
    /// Their version of it.
    pub component: Digest,
}

/// What an idempotency key was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The SHA-256 of the request.
    pub fingerprint: Digest,
    /// The task that it created.
    pub task: TaskId,
}

/// How long an idempotency key leads to its task, in milliseconds: 24 hours.
pub const KEY_AGE_MS: u64 = 24 * 60 * 60 * 1000;

impl Writer {
    /// A tenant's first ready tasks: rank and id.
    pub fn ready(&mut self, tenant: &str, limit: usize) -> Result<Vec<(i64, TaskId)>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT rank, id FROM task WHERE status = 0 AND due_at IS NULL AND held = 0 AND tenant = ?1
             ORDER BY rank, id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![tenant, limit as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Some of the tasks that are Running under another start than `server`, in the order of their ids,
    /// after `after`; without their input, which may be large.
    pub fn running_elsewhere(&mut self, server: i64, after: Option<TaskId>, limit: usize) -> Result<Vec<Task>> {
        let sql = format!(
            "SELECT {} FROM task WHERE status = {} AND status <> 2 AND id > ?1 AND server IS NOT ?3 ORDER BY id LIMIT ?2",
            rows::without_data(),
            Status::Running as i64
        );
        let after = after.map_or_else(Vec::new, |id| id.0.as_bytes().to_vec());
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![after, limit as i64, server], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Tasks that wait and whose time has come, the first ones first; without their input, which may be large.
    pub fn come(&mut self, time: Time, now: Timestamp, limit: usize) -> Result<Vec<Task>> {
        let column = time.column();
        let sql = format!(
            "SELECT {} FROM task WHERE status = 0 AND {column} IS NOT NULL AND {column} <= ?1
             ORDER BY {column}, id LIMIT ?2",
            rows::without_data()
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![now, limit as i64], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The tenant, type and version of the tasks that are held back, in that order: the first after `after`.
    pub fn next_held(&mut self, after: Option<&HeldGroup>) -> Result<Option<HeldGroup>> {
        const SELECT: &str = "SELECT tenant, task_type, component FROM task WHERE held = 1";
        const FIRST: &str = "ORDER BY tenant, task_type, component LIMIT 1";
        let group = |row: &rusqlite::Row<'_>| {
            let (tenant, task_type): (String, String) = (row.get(0)?, row.get(1)?);
            Ok(HeldGroup { tenant: tenant.into(), task_type: task_type.into(), component: row.get(2)? })
        };
        let found = match after {
            None => self.conn.prepare_cached(&format!("{SELECT} {FIRST}"))?.query_row([], group),
            Some(HeldGroup { tenant, task_type, component }) => self
                .conn
                .prepare_cached(&format!("{SELECT} AND (tenant, task_type, component) > (?1, ?2, ?3) {FIRST}"))?
                .query_row(params![&**tenant, &**task_type, component], group),
        };
        Ok(found.optional()?)
    }

    /// Tasks of such a group, in the order of their ids; without their input.
    pub fn held(&mut self, group: &HeldGroup, limit: usize) -> Result<Vec<Task>> {
        let sql = format!(
            "SELECT {} FROM task WHERE held = 1 AND tenant = ?1 AND task_type = ?2 AND component = ?3
             ORDER BY id LIMIT ?4",
            rows::without_data()
        );
        let HeldGroup { tenant, task_type, component } = group;
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![&**tenant, &**task_type, component, limit as i64], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The first task of a tenant's type that is held back because as many of the type run as may, or as many that
    /// have `key`; without its input.
    pub fn first_held(&mut self, tenant: &str, task_type: &str, key: Option<&str>) -> Result<Option<Task>> {
        // Each has an index of its own.
        let place = match key {
            None => "held = 2 AND tenant = ?1 AND task_type = ?2 AND ?3 IS NULL",
            Some(_) => "held = 3 AND tenant = ?1 AND task_type = ?2 AND concurrency_key = ?3",
        };
        let sql = format!("SELECT {} FROM task WHERE {place} ORDER BY rank, id LIMIT 1", rows::without_data());
        let mut statement = self.conn.prepare_cached(&sql)?;
        Ok(statement.query_row(params![tenant, task_type, key], rows::task).optional()?)
    }

    /// Tasks of a tenant's type that are held back for either, in the order of their ids, after `after`; without
    /// their input.
    pub fn held_at_once(
        &mut self,
        tenant: &str,
        task_type: &str,
        after: Option<TaskId>,
        limit: usize,
    ) -> Result<Vec<Task>> {
        let sql = format!(
            "SELECT {} FROM task WHERE held >= 2 AND tenant = ?1 AND task_type = ?2 AND id > ?3 ORDER BY id LIMIT ?4",
            rows::without_data()
        );
        let after = after.map_or_else(Vec::new, |id| id.0.as_bytes().to_vec());
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![tenant, task_type, after, limit as i64], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// When the next of them comes.
    pub fn next(&mut self, time: Time) -> Result<Option<Timestamp>> {
        let column = time.column();
        let sql = format!("SELECT min({column}) FROM task WHERE status = 0 AND {column} IS NOT NULL");
        Ok(self.conn.prepare_cached(&sql)?.query_row([], |row| row.get(0))?)
    }

    /// How many tasks of each tenant are Pending.
    pub fn pending(&mut self) -> Result<Vec<(Arc<str>, u64)>> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT tenant, count(*) FROM task WHERE status = 0 AND status <> 2 GROUP BY tenant")?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?.into(), row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The tenant's task with that unique key that has not ended.
    pub fn unique_holder(&mut self, tenant: &str, key: &str) -> Result<Option<TaskId>> {
        Ok(self
            .conn
            .prepare_cached("SELECT id FROM task WHERE tenant = ?1 AND unique_key = ?2 AND status < 2")?
            .query_row(params![tenant, key], |row| row.get(0))
            .optional()?)
    }

    /// Notes that a server starts on this database, and gives it a number that no other start had.
    pub fn new_server(&mut self, now: Timestamp) -> Result<i64> {
        self.conn.prepare_cached("INSERT INTO server (started_at) VALUES (?1)")?.execute(params![now])?;
        let server = self.conn.last_insert_rowid();
        // Only those that a Running task may belong to are of any use.
        self.conn.prepare_cached("DELETE FROM server WHERE id < ?1 - 100")?.execute([server])?;
        Ok(server)
    }

    /// Every tenant and type that has tasks which have ended.
    pub fn types_with_ended(&mut self) -> Result<Vec<(Arc<str>, Arc<str>)>> {
        self.types_in("task_ended", "status >= 2")
    }

    /// Every tenant and type that has tasks which wait for others of theirs.
    pub fn types_held_at_once(&mut self) -> Result<Vec<(Arc<str>, Arc<str>)>> {
        self.types_in("task_at_once", "held >= 2")
    }

    /// Every tenant and type in an index that begins with both, and holds the tasks of which `which` is true.
    fn types_in(&mut self, index: &str, which: &str) -> Result<Vec<(Arc<str>, Arc<str>)>> {
        // Steps from one to the next in the index, however many tasks each has.
        let mut found: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        loop {
            let (tenant, name) = found.last().map_or(("", ""), |(tenant, name)| (tenant, name));
            let mut next = None;
            // Two seeks and not one for the pair: that would go through all tasks of the type.
            for place in ["tenant = ?1 AND task_type > ?2", "tenant > ?1 AND ?2 IS NOT NULL"] {
                let sql = format!(
                    "SELECT tenant, task_type FROM task INDEXED BY {index}
                     WHERE {which} AND {place} ORDER BY tenant, task_type LIMIT 1"
                );
                next = self
                    .conn
                    .prepare_cached(&sql)?
                    .query_row(params![tenant, name], |row| {
                        Ok((row.get::<_, String>(0)?.into(), row.get::<_, String>(1)?.into()))
                    })
                    .optional()?;
                if next.is_some() {
                    break;
                }
            }
            match next {
                Some(next) => found.push(next),
                None => return Ok(found),
            }
        }
    }

    /// Tasks of a tenant's type that ended before `before`, the first ones first.
    pub fn ended_before(
        &mut self,
        tenant: &str,
        task_type: &str,
        before: Timestamp,
        limit: usize,
    ) -> Result<Vec<Task>> {
        let sql = format!(
            "SELECT {} FROM task INDEXED BY task_ended WHERE status >= 2 AND tenant = ?1 AND task_type = ?2
             AND finished_at < ?3 ORDER BY finished_at LIMIT ?4",
            rows::without_data()
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![tenant, task_type, before, limit as i64], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// What an idempotency key of a tenant was used for in the last 24 hours.
    pub fn key_use(&mut self, tenant: &str, key: &str, item: i64, now: Timestamp) -> Result<Option<KeyUse>> {
        let since = now.0.saturating_sub_unsigned(KEY_AGE_MS);
        Ok(self
            .conn
            .prepare_cached(
                "SELECT fingerprint, task FROM idempotency
                 WHERE tenant = ?1 AND key = ?2 AND item = ?3 AND created_at > ?4",
            )?
            .query_row(params![tenant, key, item, since], |row| {
                Ok(KeyUse { fingerprint: row.get(0)?, task: row.get(1)? })
            })
            .optional()?)
    }

    /// Notes what an idempotency key is used for.
    pub fn use_key(
        &mut self,
        tenant: &str,
        key: &str,
        item: i64,
        fingerprint: &Digest,
        task: TaskId,
        now: Timestamp,
    ) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO idempotency (tenant, key, item, fingerprint, task, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![tenant, key, item, fingerprint, task, now])?;
        Ok(())
    }

    /// Forgets idempotency keys from before `before`, at most `limit`; returns how many.
    pub fn forget_keys(&mut self, before: Timestamp, limit: usize) -> Result<usize> {
        let mut statement = self.conn.prepare_cached(
            "DELETE FROM idempotency WHERE (tenant, key, item) IN
             (SELECT tenant, key, item FROM idempotency WHERE created_at <= ?1 ORDER BY created_at LIMIT ?2)",
        )?;
        Ok(statement.execute(params![before, limit as i64])?)
    }

    /// Forgets that tasks were removed before `before`, at most `limit` of them; returns how many.
    pub fn forget_deleted(&mut self, before: Timestamp, limit: usize) -> Result<usize> {
        let mut statement = self.conn.prepare_cached(
            "DELETE FROM event WHERE (tenant, seq) IN
             (SELECT tenant, seq FROM event WHERE kind = 6 AND at < ?1 LIMIT ?2)",
        )?;
        Ok(statement.execute(params![before, limit as i64])?)
    }
}

/// What the model looks at.
#[cfg(test)]
impl Writer {
    /// How many pieces of components there are.
    pub(crate) fn pieces(&mut self) -> Result<u64> {
        Ok(self.conn.query_row("SELECT count(*) FROM component_piece", [], |row| row.get(0))?)
    }

    pub(crate) fn all_tasks(&mut self) -> Result<Vec<Task>> {
        let mut statement =
            self.conn.prepare_cached(&format!("SELECT {} FROM task ORDER BY id", rows::TASK_COLUMNS))?;
        let rows = statement.query_map([], rows::task)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(crate) fn attempt_numbers(&mut self, id: TaskId) -> Result<Vec<u32>> {
        let mut statement = self.conn.prepare_cached("SELECT number FROM attempt WHERE task = ?1 ORDER BY number")?;
        let rows = statement.query_map([id], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// From now on every read and write of a table fails.
    pub(crate) fn hide(&mut self, table: &str) {
        self.conn.execute_batch(&format!("ALTER TABLE {table} RENAME TO hidden")).unwrap();
    }

    /// They no longer do.
    pub(crate) fn show(&mut self, table: &str) {
        self.conn.execute_batch(&format!("ALTER TABLE hidden RENAME TO {table}")).unwrap();
    }

    /// The last number of an event that is written down for a tenant, and the highest that is there.
    pub(crate) fn event_numbers_of(&self, tenant: &str) -> (u64, u64) {
        let sql = "SELECT coalesce((SELECT last FROM event_number WHERE tenant = ?1), 0),
                   coalesce((SELECT max(seq) FROM event WHERE tenant = ?1), 0)";
        self.conn.query_row(sql, [tenant], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }
}
