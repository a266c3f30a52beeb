//! The audit log.

use rusqlite::{Row, params};

use super::{Readers, StoreError, Writer};
use crate::audit::{Act, Actor, Line};
use crate::keys::OPERATOR;
use crate::task::Timestamp;

type Result<T> = std::result::Result<T, StoreError>;

/// Which lines of the audit log are read.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only before this number.
    pub before: Option<u64>,
    /// Only what was done to this tenant's things; empty: to those that all tenants share.
    pub of: Option<String>,
    /// Only this action.
    pub action: Option<String>,
}

fn line(row: &Row<'_>) -> rusqlite::Result<Line> {
    let by = Actor { tenant: row.get::<_, String>(2)?.into(), key: row.get(3)?, peer: row.get::<_, String>(4)?.into() };
    Ok(Line {
        seq: row.get(0)?,
        at: row.get(1)?,
        by,
        action: row.get(5)?,
        of: row.get(6)?,
        target: row.get(7)?,
        detail: row.get(8)?,
    })
}

impl Writer {
    /// Adds a line to the audit log, in the transaction of what it tells.
    pub fn audit(&mut self, by: &Actor, act: &Act, now: Timestamp) -> Result<()> {
        let Actor { tenant, key, peer } = by;
        let Act { action, of, target, detail } = act;
        self.conn
            .prepare_cached(
                "INSERT INTO audit (at, tenant, key, peer, action, of, target, detail)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![now, &**tenant, key, &**peer, action, &**of, target, detail])?;
        Ok(())
    }

    /// Removes lines from before `before`, at most `limit`; returns how many. Nothing else removes any.
    pub fn forget_audit(&mut self, before: Timestamp, limit: usize) -> Result<usize> {
        let mut statement = self.conn.prepare_cached(
            "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?;
        Ok(statement.execute(params![before, limit as i64])?)
    }
}

impl Readers {
    /// Lines of the audit log, newest first.
    pub async fn audit(&self, filter: AuditFilter, limit: usize) -> Result<Vec<Line>> {
        self.read(&OPERATOR.into(), move |conn| {
            let AuditFilter { before, of, action } = filter;
            let before = before.map_or(i64::MAX, |before| i64::try_from(before).unwrap_or(i64::MAX));
            // One tenant's lines have an index of their own.
            let whose = if of.is_some() { "of = ?2" } else { "?2 IS NULL" };
            let sql = format!(
                "SELECT seq, at, tenant, key, peer, action, of, target, detail FROM audit
                 WHERE {whose} AND seq < ?1 AND (?3 IS NULL OR action = ?3) ORDER BY seq DESC LIMIT ?4"
            );
            let mut statement = conn.prepare_cached(&sql)?;
            statement.query_map(params![before, of, action, limit as i64], line)?.collect()
        })
        .await
    }
}
