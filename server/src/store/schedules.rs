//! Schedules, as they are stored.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::Json;
use super::{Readers, StoreError, Writer};
use crate::schedules::{Failure, MadeTask, Schedule};
use crate::task::Timestamp;

type Result<T> = std::result::Result<T, StoreError>;

/// The columns of a schedule, in the order of [`schedule`].
const COLUMNS: &str = "tenant, name, spec, created_at, updated_at, next_at, queued, error, error_at";

fn schedule(row: &Row<'_>) -> rusqlite::Result<Schedule> {
    let (message, at): (Option<String>, Option<Timestamp>) = (row.get(7)?, row.get(8)?);
    Ok(Schedule {
        tenant: row.get::<_, String>(0)?.into(),
        name: row.get::<_, String>(1)?.into(),
        spec: row.get::<_, Json<_>>(2)?.0,
        created_at: row.get(3)?,
        updated_at: row.get(4)?,
        next_at: row.get(5)?,
        queued: row.get(6)?,
        error: message.zip(at).map(|(message, at)| Failure { at, message }),
    })
}

fn one(conn: &Connection, tenant: &str, name: &str) -> rusqlite::Result<Option<Schedule>> {
    let sql = format!("SELECT {COLUMNS} FROM schedule WHERE tenant = ?1 AND name = ?2");
    conn.prepare_cached(&sql)?.query_row([tenant, name], schedule).optional()
}

fn last_tasks(conn: &Connection, tenant: &str, name: &str, limit: usize) -> rusqlite::Result<Vec<MadeTask>> {
    let mut statement = conn.prepare_cached(
        "SELECT id, status, created_at FROM task INDEXED BY task_schedule
         WHERE tenant = ?1 AND schedule = ?2 ORDER BY id DESC LIMIT ?3",
    )?;
    let rows = statement.query_map(params![tenant, name, limit as i64], |row| {
        Ok(MadeTask { id: row.get(0)?, status: row.get(1)?, created_at: row.get(2)? })
    })?;
    rows.collect()
}

impl Writer {
    /// The tenant's schedule of that name.
    pub fn schedule(&mut self, tenant: &str, name: &str) -> Result<Option<Schedule>> {
        Ok(one(&self.conn, tenant, name)?)
    }

    /// How many schedules a tenant has.
    pub fn count_schedules(&mut self, tenant: &str) -> Result<u64> {
        let mut statement = self.conn.prepare_cached("SELECT count(*) FROM schedule WHERE tenant = ?1")?;
        Ok(statement.query_row([tenant], |row| row.get(0))?)
    }

    /// Stores a schedule in place of the one of that name, if there is one.
    pub fn put_schedule(&mut self, schedule: &Schedule) -> Result<()> {
        let error = schedule.error.as_ref();
        self.conn
            .prepare_cached(
                "INSERT OR REPLACE INTO schedule
                 (tenant, name, spec, paused, created_at, updated_at, next_at, queued, error, error_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                &*schedule.tenant,
                &*schedule.name,
                Json(&schedule.spec),
                schedule.spec.paused,
                schedule.created_at,
                schedule.updated_at,
                schedule.next_at,
                schedule.queued,
                error.map(|error| error.message.as_str()),
                error.map(|error| error.at),
            ])?;
        Ok(())
    }

    /// Writes how far a schedule is.
    pub fn advance_schedule(&mut self, schedule: &Schedule) -> Result<()> {
        let error = schedule.error.as_ref();
        self.conn
            .prepare_cached(
                "UPDATE schedule SET next_at = ?3, queued = ?4, error = ?5, error_at = ?6
                 WHERE tenant = ?1 AND name = ?2",
            )?
            .execute(params![
                &*schedule.tenant,
                &*schedule.name,
                schedule.next_at,
                schedule.queued,
                error.map(|error| error.message.as_str()),
                error.map(|error| error.at),
            ])?;
        Ok(())
    }

    /// Removes a schedule; false where there is none. The tasks that it made stay.
    pub fn delete_schedule(&mut self, tenant: &str, name: &str) -> Result<bool> {
        let mut statement = self.conn.prepare_cached("DELETE FROM schedule WHERE tenant = ?1 AND name = ?2")?;
        Ok(statement.execute([tenant, name])? > 0)
    }

    /// Schedules whose next due time has come, the first ones first, without the first `skip`.
    pub fn schedules_due(&mut self, now: Timestamp, skip: usize, limit: usize) -> Result<Vec<Schedule>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM schedule INDEXED BY schedule_next
             WHERE paused = 0 AND next_at IS NOT NULL AND next_at <= ?1
             ORDER BY next_at, tenant, name LIMIT ?3 OFFSET ?2"
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params![now, skip as i64, limit as i64], schedule)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// When the next due time of all schedules comes.
    pub fn next_due_time(&mut self) -> Result<Option<Timestamp>> {
        let sql = "SELECT min(next_at) FROM schedule INDEXED BY schedule_next
                   WHERE paused = 0 AND next_at IS NOT NULL";
        Ok(self.conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    }

    /// Schedules with due times that wait, and no task that has not ended; without the first `skip`.
    pub fn schedules_free(&mut self, skip: usize, limit: usize) -> Result<Vec<Schedule>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM schedule INDEXED BY schedule_queued
             WHERE paused = 0 AND queued > 0 AND NOT EXISTS (
                 SELECT 1 FROM task INDEXED BY task_schedule_open
                 WHERE task.tenant = schedule.tenant AND task.schedule = schedule.name AND task.status < 2
                     AND task.schedule IS NOT NULL)
             ORDER BY tenant, name LIMIT ?2 OFFSET ?1"
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([skip as i64, limit as i64], schedule)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Whether a task of a schedule is Pending or Running.
    pub fn has_open_task(&mut self, tenant: &str, schedule: &str) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT 1 FROM task INDEXED BY task_schedule_open
                 WHERE tenant = ?1 AND schedule = ?2 AND status < 2 AND schedule IS NOT NULL",
            )?
            .exists([tenant, schedule])?)
    }
}

impl Readers {
    /// The tenant's schedule of that name, with its last tasks, newest first.
    pub async fn schedule(
        &self,
        tenant: Arc<str>,
        name: String,
        tasks: usize,
    ) -> Result<Option<(Schedule, Vec<MadeTask>)>> {
        self.read(&tenant.clone(), move |conn| {
            let Some(schedule) = one(conn, &tenant, &name)? else { return Ok(None) };
            Ok(Some((schedule, last_tasks(conn, &tenant, &name, tasks)?)))
        })
        .await
    }

    /// The tenant's schedules after `after` in the order of their names, each with its last tasks: at most
    /// `limit`, and no more once they have `bytes` together. True: there are more.
    pub async fn schedules(
        &self,
        tenant: Arc<str>,
        after: String,
        limit: usize,
        bytes: usize,
        tasks: usize,
    ) -> Result<(Vec<(Schedule, Vec<MadeTask>)>, bool)> {
        self.read(&tenant.clone(), move |conn| {
            let sql =
                format!("SELECT {COLUMNS}, length(spec) FROM schedule WHERE tenant = ?1 AND name > ?2 ORDER BY name");
            let mut statement = conn.prepare_cached(&sql)?;
            let mut rows = statement.query(params![&*tenant, after])?;
            let (mut found, mut size) = (Vec::new(), 0_usize);
            while let Some(row) = rows.next()? {
                if found.len() == limit || size >= bytes {
                    return Ok((found, true));
                }
                let schedule = schedule(row)?;
                size += row.get::<_, usize>(9)?;
                let made = last_tasks(conn, &tenant, &schedule.name, tasks)?;
                found.push((schedule, made));
            }
            Ok((found, false))
        })
        .await
    }
}
