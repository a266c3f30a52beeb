//! The ledger of what tenants used.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, params};

use super::{Readers, StoreError, Writer};
use crate::ledger::{CameTo, Day, Sums};
use crate::task::Timestamp;

type Result<T> = std::result::Result<T, StoreError>;

/// What the open transaction adds.
pub(super) type Ledger = HashMap<(Arc<str>, Day, CameTo), Sums>;

/// The columns of sums, in the order of [`sums`].
const SUMS: &str = "tasks, attempts, cpu_us, wall_us, queue_us, fuel, memory_kib_ms, host_calls, io_bytes, log_bytes";

fn sums(row: &Row<'_>) -> rusqlite::Result<Sums> {
    Ok(Sums {
        tasks: row.get(0)?,
        attempts: row.get(1)?,
        cpu_us: row.get(2)?,
        wall_us: row.get(3)?,
        queue_us: row.get(4)?,
        fuel: row.get(5)?,
        memory_kib_ms: row.get(6)?,
        host_calls: row.get(7)?,
        io_bytes: row.get(8)?,
        log_bytes: row.get(9)?,
    })
}

impl Writer {
    /// Adds to what a tenant has used on the day of `at`. It is written with the commit.
    pub fn charge(&mut self, tenant: &Arc<str>, at: Timestamp, came_to: CameTo, more: &Sums) {
        self.ledger.entry((tenant.clone(), Day::of(at), came_to)).or_default().add(more);
    }

    /// Writes down what the transaction adds to the ledger: few rows, however many attempts ended in it.
    pub(super) fn flush_ledger(&mut self) -> Result<()> {
        for ((tenant, day, came_to), more) in self.ledger.drain() {
            let mut all = self
                .conn
                .prepare_cached(&format!("SELECT {SUMS} FROM usage WHERE tenant = ?1 AND day = ?2 AND came_to = ?3"))?
                .query_row(params![&*tenant, day.0, came_to.name()], sums)
                .optional()?
                .unwrap_or_default();
            // Here and not by the database, whose sums become inexact where they are too large.
            all.add(&more);
            let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
            self.conn
                .prepare_cached(&format!(
                    "INSERT INTO usage (tenant, day, came_to, {SUMS})
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
                     ON CONFLICT (tenant, day, came_to) DO UPDATE
                     SET tasks = ?4, attempts = ?5, cpu_us = ?6, wall_us = ?7, queue_us = ?8, fuel = ?9,
                         memory_kib_ms = ?10, host_calls = ?11, io_bytes = ?12, log_bytes = ?13"
                ))?
                .execute(params![
                    &*tenant,
                    day.0,
                    came_to.name(),
                    number(all.tasks),
                    number(all.attempts),
                    number(all.cpu_us),
                    number(all.wall_us),
                    number(all.queue_us),
                    number(all.fuel),
                    number(all.memory_kib_ms),
                    number(all.host_calls),
                    number(all.io_bytes),
                    number(all.log_bytes),
                ])?;
        }
        Ok(())
    }

    /// Forgets what was used before a day, at most `limit` rows of it; returns how many.
    pub fn forget_usage(&mut self, before: Day, limit: usize) -> Result<usize> {
        let mut statement = self.conn.prepare_cached(
            "DELETE FROM usage WHERE (tenant, day, came_to) IN
             (SELECT tenant, day, came_to FROM usage WHERE day < ?1 LIMIT ?2)",
        )?;
        Ok(statement.execute(params![before.0, limit as i64])?)
    }
}

impl Readers {
    /// What a tenant used from one day to another, both included, in the order of the days.
    pub async fn usage(&self, tenant: Arc<str>, from: Day, to: Day) -> Result<Vec<(Day, CameTo, Sums)>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached(&format!(
                "SELECT {SUMS}, day, came_to FROM usage WHERE tenant = ?1 AND day BETWEEN ?2 AND ?3
                 ORDER BY day, came_to"
            ))?;
            let rows = statement.query_map(params![&*tenant, from.0, to.0], |row| {
                let name: String = row.get(11)?;
                let came_to = CameTo::named(&name)
                    .ok_or_else(|| rusqlite::Error::InvalidColumnType(11, name, rusqlite::types::Type::Text))?;
                Ok((Day(row.get(10)?), came_to, sums(row)?))
            })?;
            rows.collect()
        })
        .await
    }
}

#[cfg(test)]
impl Writer {
    /// What a tenant used, of all days together.
    pub(crate) fn usage_of(&mut self, tenant: &str) -> Result<HashMap<CameTo, Sums>> {
        let mut statement =
            self.conn.prepare_cached(&format!("SELECT {SUMS}, came_to FROM usage WHERE tenant = ?1"))?;
        let rows = statement.query_map([tenant], |row| Ok((row.get::<_, String>(10)?, sums(row)?)))?;
        let mut all = HashMap::<CameTo, Sums>::new();
        for row in rows {
            let (name, sums) = row?;
            if let Some(came_to) = CameTo::named(&name) {
                all.entry(came_to).or_default().add(&sums);
            }
        }
        Ok(all)
    }
}
