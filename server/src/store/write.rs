//! The one connection that writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, OptionalExtension, params};

use super::StoreError;
use super::checkpoint::Moving;
use super::history::{EventNumbers, LogUse};
use super::ledger::Ledger;
use super::rows::{self, INSERT_TASK, TASK_COLUMNS, UPDATE_TASK};
use super::task_types::Uses;
use crate::clock;
use crate::quotas::{Quotas, UsedUp};
use crate::task::{Task, TaskId};

type Result<T> = std::result::Result<T, StoreError>;

/// What must hold for a write of an object or a schedule to happen (RFC 9110, section 13.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// `If-Match` with these entity tags.
    Match(Vec<String>),
    /// `If-Match: *`.
    Exists,
    /// `If-None-Match: *`.
    Absent,
}

impl Precondition {
    /// Whether it holds for what has the entity tag `current`, or for nothing.
    pub fn holds(&self, current: Option<&str>) -> bool {
        match self {
            Precondition::None => true,
            Precondition::Match(tags) => current.is_some_and(|current| tags.iter().any(|tag| tag == current)),
            Precondition::Exists => current.is_some(),
            Precondition::Absent => current.is_none(),
        }
    }
}

/// What became of a write of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectWrite {
    /// There is a new object.
    Created,
    /// There was one before.
    Replaced,
    /// It is gone.
    Removed,
    /// There is none of that name.
    NotFound,
    /// The precondition does not hold; nothing changed.
    PreconditionFailed,
    /// A quota of the tenant does not allow it; nothing changed.
    QuotaExceeded(UsedUp),
}

/// Makes every change, inside transactions that its owner begins and commits.
#[derive(Debug)]
pub struct Writer {
    pub(super) conn: Connection,
    /// Size of the write-ahead log in pages after the last commit.
    pub(super) wal_pages: Arc<AtomicU64>,
    pub(super) moving: Moving,
    pub(super) events: EventNumbers,
    pub(super) uses: Uses,
    pub(super) ledger: Ledger,
    pub(super) log_use: LogUse,
}

impl Writer {
    pub(super) fn new(mut conn: Connection) -> anyhow::Result<Writer> {
        let wal_pages = Arc::new(AtomicU64::new(0));
        let seen = wal_pages.clone();
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, pages: std::ffi::c_int| {
            seen.store(u64::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        let (uses, ledger, log_use) = (Uses::new(), Ledger::new(), LogUse::new());
        Ok(Writer {
            conn,
            wal_pages,
            moving: Moving::default(),
            events: EventNumbers::default(),
            uses,
            ledger,
            log_use,
        })
    }

    /// Begins a transaction.
    pub fn begin(&mut self) -> Result<()> {
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(())
    }

    /// Commits: when this returns, the transaction survives a power loss.
    pub fn commit(&mut self) -> Result<()> {
        self.flush_uses()?;
        self.flush_ledger()?;
        self.flush_log_use()?;
        self.flush_event_numbers()?;
        self.conn.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }

    /// Drops the transaction, where one is still open: some errors end it by themselves.
    pub fn rollback(&mut self) {
        self.uses.clear();
        self.ledger.clear();
        self.log_use.clear();
        self.events.rolled_back();
        if !self.conn.is_autocommit()
            && let Err(error) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back");
        }
    }

    /// Adds a task.
    pub fn insert_task(&mut self, task: &Task) -> Result<()> {
        rows::insert(&mut self.conn.prepare_cached(INSERT_TASK)?, task)?;
        *self.uses.entry(task.component).or_default() += 1;
        for (key, value) in &task.labels {
            self.conn
                .prepare_cached("INSERT INTO label (tenant, key, value, task) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![&*task.tenant, key, value, task.id])?;
        }
        Ok(())
    }

    /// Writes what changed of a task.
    pub fn update_task(&mut self, task: &Task) -> Result<()> {
        rows::update(&mut self.conn.prepare_cached(UPDATE_TASK)?, task)?;
        Ok(())
    }

    /// Removes a task with everything that is kept of it.
    pub fn delete_task(&mut self, task: &Task) -> Result<()> {
        self.remove_lines(task, None)?;
        for table in ["attempt", "event"] {
            self.conn.prepare_cached(&format!("DELETE FROM {table} WHERE task = ?1"))?.execute([task.id])?;
        }
        for (key, value) in &task.labels {
            self.conn
                .prepare_cached("DELETE FROM label WHERE tenant = ?1 AND key = ?2 AND value = ?3 AND task = ?4")?
                .execute(params![&*task.tenant, key, value, task.id])?;
        }
        self.conn.prepare_cached("DELETE FROM task WHERE id = ?1")?.execute([task.id])?;
        *self.uses.entry(task.component).or_default() -= 1;
        Ok(())
    }

    /// The whole task.
    pub fn task(&mut self, id: TaskId) -> Result<Option<Task>> {
        let sql = format!("SELECT {TASK_COLUMNS} FROM task WHERE id = ?1");
        Ok(self.conn.prepare_cached(&sql)?.query_row([id], rows::task).optional()?)
    }

    /// The tenant's task.
    pub fn task_of(&mut self, tenant: &str, id: TaskId) -> Result<Option<Task>> {
        let sql = format!("SELECT {TASK_COLUMNS} FROM task WHERE id = ?1 AND tenant = ?2");
        Ok(self.conn.prepare_cached(&sql)?.query_row(params![id, tenant], rows::task).optional()?)
    }

    /// The tenant's task without its input and output, which may be large.
    pub fn task_head(&mut self, tenant: &str, id: TaskId) -> Result<Option<Task>> {
        let sql = format!("SELECT {} FROM task WHERE id = ?1 AND tenant = ?2", rows::without_data());
        Ok(self.conn.prepare_cached(&sql)?.query_row(params![id, tenant], rows::task).optional()?)
    }

    /// Stores an object in place of the one of that name, if there is one.
    pub fn put_object(
        &mut self,
        tenant: &str,
        name: &str,
        etag: &str,
        data: &[u8],
        precondition: &Precondition,
        quotas: &Quotas,
    ) -> Result<ObjectWrite> {
        let current = self.object_head(tenant, name)?;
        if !precondition.holds(current.as_ref().map(|(etag, _)| etag.as_str())) {
            return Ok(ObjectWrite::PreconditionFailed);
        }
        let (objects, bytes) = self.object_use(tenant)?;
        let (old_size, size) = (current.as_ref().map_or(0, |(_, size)| *size), data.len() as u64);
        // What shrinks is always taken, also from a tenant that is over a quota lowered since.
        let more = [
            ("objects", quotas.objects, objects, u64::from(current.is_none())),
            ("object bytes", quotas.object_bytes, bytes, size.saturating_sub(old_size)),
        ];
        for (what, limit, used, more) in more {
            if let Some(limit) = limit
                && more > 0
                && used + more > limit
            {
                let left = limit.saturating_sub(used);
                return Ok(ObjectWrite::QuotaExceeded(UsedUp { what, limit, left, whole_in: None }));
            }
        }
        let objects = objects + u64::from(current.is_none());
        let bytes = bytes - old_size.min(bytes) + size;
        self.conn
            .prepare_cached(
                "INSERT INTO object (tenant, name, etag, size, updated_at, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (tenant, name) DO UPDATE
                 SET etag = ?3, size = ?4, updated_at = ?5, data = ?6",
            )?
            .execute(params![tenant, name, etag, data.len() as i64, clock::now(), data])?;
        self.set_object_use(tenant, objects, bytes)?;
        Ok(if current.is_none() { ObjectWrite::Created } else { ObjectWrite::Replaced })
    }

    /// Removes an object.
    pub fn remove_object(&mut self, tenant: &str, name: &str, precondition: &Precondition) -> Result<ObjectWrite> {
        let current = self.object_head(tenant, name)?;
        if !precondition.holds(current.as_ref().map(|(etag, _)| etag.as_str())) {
            return Ok(ObjectWrite::PreconditionFailed);
        }
        let Some((_, size)) = current else { return Ok(ObjectWrite::NotFound) };
        let (objects, bytes) = self.object_use(tenant)?;
        self.conn
            .prepare_cached("DELETE FROM object WHERE tenant = ?1 AND name = ?2")?
            .execute(params![tenant, name])?;
        self.set_object_use(tenant, objects.saturating_sub(1), bytes.saturating_sub(size))?;
        Ok(ObjectWrite::Removed)
    }

    fn object_head(&mut self, tenant: &str, name: &str) -> Result<Option<(String, u64)>> {
        Ok(self
            .conn
            .prepare_cached("SELECT etag, size FROM object WHERE tenant = ?1 AND name = ?2")?
            .query_row(params![tenant, name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?)
    }

    fn object_use(&mut self, tenant: &str) -> Result<(u64, u64)> {
        let row = self
            .conn
            .prepare_cached("SELECT objects, bytes FROM object_use WHERE tenant = ?1")?
            .query_row([tenant], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        Ok(row.unwrap_or((0, 0)))
    }

    fn set_object_use(&mut self, tenant: &str, objects: u64, bytes: u64) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO object_use (tenant, objects, bytes) VALUES (?1, ?2, ?3)
                 ON CONFLICT (tenant) DO UPDATE SET objects = ?2, bytes = ?3",
            )?
            .execute(params![tenant, objects as i64, bytes as i64])?;
        Ok(())
    }
}
