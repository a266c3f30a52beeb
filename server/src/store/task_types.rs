//! Task types, their versions, and the components that those are.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use super::rows::{self, Json, StoredType};
use super::{StoreError, Writer};
use crate::task::{Digest, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// Versions of a type that are kept to go back to, though no task is pinned to them: the newest ones.
const KEPT_VERSIONS: usize = 10;

/// How many tasks more, or fewer, are pinned to components since the transaction began.
pub(super) type Uses = HashMap<Digest, i64>;

/// A component as far as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredComponent {
    /// Its digest.
    pub digest: Digest,
    /// The name of a type that has, or had, it as a version.
    pub name: Arc<str>,
    /// A tenant who has it; `None`: the operator put it there, for all of them.
    pub owner: Option<Arc<str>>,
    /// Why it cannot be compiled, and what said so.
    pub failure: Option<(Arc<str>, Arc<str>)>,
}

/// Versions of a type that are neither current, nor to become it, nor among the newest, and that no task is pinned
/// to: those of the tenant ?1 and the name ?2, apart from ?3, ?4 and the ?5 newest of the others. Those of ?6, a JSON
/// array, count as old whenever they came.
const OLD_VERSIONS: &str = "tenant = ?1 AND name = ?2 AND component IS NOT ?3 AND component IS NOT ?4
     AND component NOT IN (SELECT digest FROM component_use WHERE tasks > 0)
     AND (component IN (SELECT unhex(value) FROM json_each(?6)) OR component IN (
         SELECT component FROM task_type_version WHERE tenant = ?1 AND name = ?2
         AND component IS NOT ?3 AND component IS NOT ?4
         AND component NOT IN (SELECT unhex(value) FROM json_each(?6))
         ORDER BY created_at DESC, component LIMIT -1 OFFSET ?5))";

/// How many versions are kept for their age: the current one and the one to become it are kept whatever that is.
fn kept(task_type: &StoredType) -> i64 {
    KEPT_VERSIONS as i64 - i64::from(task_type.component.is_some()) - i64::from(task_type.next.is_some())
}

fn hex(digests: &[Digest]) -> Json<Vec<String>> {
    Json(digests.iter().map(|digest| digest.hex()).collect())
}

impl Writer {
    /// Makes a component that is there a version of a type that is there, or will be in the same transaction.
    pub fn put_version(&mut self, tenant: &str, name: &str, digest: Digest, now: Timestamp) -> Result<()> {
        self.conn
            .prepare_cached(
                "INSERT INTO task_type_version (tenant, name, component, created_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![tenant, name, digest, now])?;
        Ok(())
    }

    /// Whether a component is a version of a type.
    pub fn has_version(&mut self, tenant: &str, name: &str, digest: Digest) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached("SELECT 1 FROM task_type_version WHERE tenant = ?1 AND name = ?2 AND component = ?3")?
            .exists(params![tenant, name, digest])?)
    }

    /// The versions of a type.
    pub fn versions(&mut self, tenant: &str, name: &str) -> Result<Vec<Digest>> {
        let mut statement =
            self.conn.prepare_cached("SELECT component FROM task_type_version WHERE tenant = ?1 AND name = ?2")?;
        let rows = statement.query_map(params![tenant, name], |row| row.get(0))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The version of a type that was stored last.
    pub fn newest_version(&mut self, tenant: &str, name: &str) -> Result<Option<Digest>> {
        Ok(self
            .conn
            .prepare_cached(
                "SELECT component FROM task_type_version WHERE tenant = ?1 AND name = ?2
                 ORDER BY created_at DESC, component LIMIT 1",
            )?
            .query_row(params![tenant, name], |row| row.get(0))
            .optional()?)
    }

    /// All task types.
    pub fn task_types(&mut self) -> Result<Vec<StoredType>> {
        let sql = format!("SELECT {} FROM task_type ORDER BY tenant, name", rows::TYPE_COLUMNS);
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([], rows::task_type)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The task type that a tenant has under that very name.
    pub fn task_type(&mut self, tenant: &str, name: &str) -> Result<Option<StoredType>> {
        let sql = format!("SELECT {} FROM task_type WHERE tenant = ?1 AND name = ?2", rows::TYPE_COLUMNS);
        Ok(self.conn.prepare_cached(&sql)?.query_row(params![tenant, name], rows::task_type).optional()?)
    }

    /// How many task types a tenant has.
    pub fn count_task_types(&mut self, tenant: &str) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM task_type WHERE tenant = ?1")?
            .query_row([tenant], |row| row.get(0))?)
    }

    /// Writes a task type, in place of the one of that tenant and name.
    pub fn put_task_type(&mut self, task_type: &StoredType) -> Result<()> {
        let StoredType {
            tenant,
            name,
            component,
            next,
            limits,
            retry,
            retention_ms,
            paused,
            grants,
            input_schema,
            concurrency,
        } = task_type;
        let retention_ms = retention_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
        let sql = format!(
            "INSERT INTO task_type ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT (tenant, name) DO UPDATE
             SET component = ?3, next = ?4, limits = ?5, retry = ?6, retention_ms = ?7, paused = ?8, grants = ?9,
                 input_schema = ?10, concurrency = ?11",
            rows::TYPE_COLUMNS
        );
        self.conn.prepare_cached(&sql)?.execute(params![
            &**tenant,
            &**name,
            component,
            next,
            Json(limits),
            Json(retry),
            retention_ms,
            paused,
            Json(&**grants),
            input_schema.as_deref(),
            Json(concurrency),
        ])?;
        Ok(())
    }

    /// Removes a task type and its versions. What no task is pinned to is gone with them; returned are the
    /// components that are.
    pub fn delete_task_type(&mut self, tenant: &str, name: &str) -> Result<Vec<Digest>> {
        self.conn
            .prepare_cached("DELETE FROM task_type WHERE tenant = ?1 AND name = ?2")?
            .execute(params![tenant, name])?;
        let mut statement = self
            .conn
            .prepare_cached("DELETE FROM task_type_version WHERE tenant = ?1 AND name = ?2 RETURNING component")?;
        let rows = statement.query_map(params![tenant, name], |row| row.get(0))?;
        let versions: Vec<Digest> = rows.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        self.remove_unused(versions)
    }

    /// Removes versions of a type that are old, or `useless`. Returned are the components that are gone with them.
    pub fn remove_old_versions(&mut self, task_type: &StoredType, useless: &[Digest]) -> Result<Vec<Digest>> {
        let StoredType { tenant, name, component, next, .. } = task_type;
        self.flush_uses()?;
        let sql = format!("DELETE FROM task_type_version WHERE {OLD_VERSIONS} RETURNING component");
        let mut statement = self.conn.prepare_cached(&sql)?;
        let (kept, useless) = (kept(task_type), hex(useless));
        let rows =
            statement.query_map(params![&**tenant, &**name, component, next, kept, useless], |row| row.get(0))?;
        let old: Vec<Digest> = rows.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        self.remove_unused(old)
    }

    /// Bytes of what [`remove_old_versions`](Self::remove_old_versions) would remove, and of what a tenant has in
    /// all.
    pub fn version_bytes(&mut self, task_type: &StoredType, useless: &[Digest]) -> Result<(u64, u64)> {
        let StoredType { tenant, name, component, next, .. } = task_type;
        self.flush_uses()?;
        let sql = format!(
            "SELECT (SELECT coalesce(sum(size), 0) FROM component WHERE digest IN
                     (SELECT component FROM task_type_version WHERE {OLD_VERSIONS})),
                 coalesce((SELECT bytes FROM version_use WHERE tenant = ?1), 0)"
        );
        let (kept, useless) = (kept(task_type), hex(useless));
        let mut statement = self.conn.prepare_cached(&sql)?;
        let row = params![&**tenant, &**name, component, next, kept, useless];
        Ok(statement.query_row(row, |row| Ok((row.get(0)?, row.get(1)?)))?)
    }

    /// Of these components, removes those that are no version of any type and that no task is pinned to.
    fn remove_unused(&mut self, digests: Vec<Digest>) -> Result<Vec<Digest>> {
        self.flush_uses()?;
        let mut remove = self.conn.prepare_cached(
            "DELETE FROM component WHERE digest = ?1
             AND NOT EXISTS (SELECT 1 FROM task_type_version WHERE component = ?1)
             AND NOT EXISTS (SELECT 1 FROM component_use WHERE digest = ?1 AND tasks > 0) RETURNING upload",
        )?;
        let mut gone = Vec::new();
        for digest in digests {
            if let Some(upload) = remove.query_row([digest], |row| row.get::<_, u64>(0)).optional()? {
                gone.push((digest, upload));
            }
        }
        drop(remove);
        gone.iter().try_for_each(|(_, upload)| self.remove_upload(*upload))?;
        Ok(gone.into_iter().map(|(digest, _)| digest).collect())
    }

    /// Components that were needed for tasks only, which are gone, and that are gone now as well.
    pub fn remove_components_without_tasks(&mut self) -> Result<Vec<Digest>> {
        self.flush_uses()?;
        let mut statement = self.conn.prepare_cached("DELETE FROM component_use WHERE tasks <= 0 RETURNING digest")?;
        let rows = statement.query_map([], |row| row.get(0))?;
        let unused: Vec<Digest> = rows.collect::<rusqlite::Result<_>>()?;
        drop(statement);
        if unused.is_empty() {
            return Ok(unused);
        }
        // Each may have been an old version that its tasks alone kept.
        let mut gone = Vec::new();
        for digest in &unused {
            for task_type in self.with_version(*digest)? {
                gone.extend(self.remove_old_versions(&task_type, &[])?);
            }
        }
        gone.extend(self.remove_unused(unused)?);
        Ok(gone)
    }

    /// The task types, of all tenants, that have a component as a version.
    pub fn with_version(&mut self, digest: Digest) -> Result<Vec<StoredType>> {
        let sql = format!(
            "SELECT {} FROM task_type WHERE (tenant, name) IN
             (SELECT tenant, name FROM task_type_version WHERE component = ?1)",
            rows::TYPE_COLUMNS
        );
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([digest], rows::task_type)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Every component, each with the name of a type that it belongs, or belonged, to.
    pub fn components(&mut self) -> Result<Vec<StoredComponent>> {
        let mut statement = self.conn.prepare_cached(
            "SELECT digest, coalesce(min(name), ''), coalesce(min(tenant), '-'), failure, failed_with
             FROM component LEFT JOIN task_type_version ON component = digest GROUP BY digest",
        )?;
        let rows = statement.query_map([], |row| {
            let (failure, by): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
            Ok(StoredComponent {
                digest: row.get(0)?,
                name: row.get::<_, String>(1)?.into(),
                owner: Some(row.get::<_, String>(2)?.into()).filter(|owner: &Arc<str>| !owner.is_empty()),
                failure: failure.zip(by).map(|(why, by)| (why.into(), by.into())),
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Notes why a component cannot be compiled, and what said so; or that it can.
    pub fn set_failure(&mut self, digest: Digest, failure: Option<(&str, &str)>) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE component SET failure = ?2, failed_with = ?3 WHERE digest = ?1")?
            .execute(params![digest, failure.map(|(why, _)| why), failure.map(|(_, by)| by)])?;
        Ok(())
    }

    /// Writes down how many tasks are pinned to which components.
    pub(super) fn flush_uses(&mut self) -> Result<()> {
        for (digest, more) in std::mem::take(&mut self.uses) {
            self.conn
                .prepare_cached(
                    "INSERT INTO component_use (digest, tasks) VALUES (?1, ?2)
                     ON CONFLICT (digest) DO UPDATE SET tasks = tasks + ?2",
                )?
                .execute(params![digest, more])?;
        }
        Ok(())
    }
}
