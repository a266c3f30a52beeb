//! Bulk operations: what is done with all tasks that match a filter, and how far that is.

use std::sync::Arc;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, params};
use serde::Serialize;
use uuid::Uuid;

use super::list::{Bulk, Found, LOOK};
use super::rows::Json;
use super::{ListFilter, Readers, StoreError, Writer};
use crate::task::{Status, Task, TaskId, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// Finished operations of a tenant that are kept, however young they are.
const MOST_KEPT: usize = 1000;

/// An operation's id: a UUIDv7, so it sorts among the tasks by the time of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(pub Uuid);

/// What is done with each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Stop it and keep the record.
    Cancel,
    /// Attempt it afresh.
    Retry,
    /// Stop it and remove it.
    Delete,
}

impl Action {
    const ALL: [Action; 3] = [Action::Cancel, Action::Retry, Action::Delete];

    /// The name in the API and in the store.
    pub fn name(self) -> &'static str {
        match self {
            Action::Cancel => "cancel",
            Action::Retry => "retry",
            Action::Delete => "delete",
        }
    }

    /// The statuses in which it can be done with a task.
    fn statuses(self) -> &'static [Status] {
        match self {
            Action::Cancel => &[Status::Pending, Status::Running],
            Action::Retry => &[Status::Completed, Status::Failed],
            Action::Delete => &Status::ALL,
        }
    }
}

/// A bulk operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its id. Tasks with a larger one were created after it and are none of its.
    pub id: OperationId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What is done.
    pub action: Action,
    /// With which tasks.
    pub filter: ListFilter,
    /// How many there were when it was created, where that could be counted in time.
    pub matched: Option<u64>,
    /// With how many it was done.
    pub done: u64,
    /// With how many it could not be done any more.
    pub skipped: u64,
    /// The last task that it is done with.
    pub after: Option<TaskId>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was done with all of them.
    pub finished_at: Option<Timestamp>,
}

impl Operation {
    fn tasks(&self) -> Bulk<'_> {
        let Operation { tenant, filter, action, id, created_at, .. } = self;
        // What began to be so later was something else when the operation was created.
        let since = if self.is_of_any(&[Status::Completed, Status::Failed]) {
            Some("finished_at")
        } else if self.is_of_any(&[Status::Running]) {
            Some("started_at")
        } else {
            None
        };
        let since = since.map(|column| (column, *created_at));
        Bulk { tenant, filter, statuses: action.statuses(), before: TaskId(id.0), since }
    }

    /// Whether it is about tasks of these statuses alone.
    fn is_of_any(&self, statuses: &[Status]) -> bool {
        let mut may = self.action.statuses().iter().filter(|may| self.filter.status.is_none_or(|only| only == **may));
        may.all(|may| statuses.contains(may))
    }

    /// Whether a task that was found is none of its any more: it has ended, and was retried since.
    pub fn is_over_for(&self, task: &Task) -> bool {
        !task.status.is_ended() && self.is_of_any(&[Status::Completed, Status::Failed])
    }
}

const COLUMNS: &str = "id, tenant, action, filter, matched, done, skipped, after, created_at, finished_at";

fn operation(row: &Row<'_>) -> rusqlite::Result<Operation> {
    Ok(Operation {
        id: row.get(0)?,
        tenant: row.get::<_, String>(1)?.into(),
        action: row.get(2)?,
        filter: row.get::<_, Json<ListFilter>>(3)?.0,
        matched: row.get(4)?,
        done: row.get(5)?,
        skipped: row.get(6)?,
        after: row.get(7)?,
        created_at: row.get(8)?,
        finished_at: row.get(9)?,
    })
}

impl Writer {
    /// Adds an operation. The oldest finished ones make room for it where the tenant has very many.
    pub fn insert_operation(&mut self, operation: &Operation) -> Result<()> {
        self.conn
            .prepare_cached(
                "DELETE FROM operation WHERE id IN (SELECT id FROM operation INDEXED BY operation_tenant
                 WHERE tenant = ?1 AND finished_at IS NOT NULL ORDER BY id DESC LIMIT -1 OFFSET ?2)",
            )?
            .execute(params![&*operation.tenant, MOST_KEPT as i64])?;
        let sql = format!("INSERT INTO operation ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)");
        self.conn.prepare_cached(&sql)?.execute(params![
            operation.id,
            &*operation.tenant,
            operation.action,
            Json(&operation.filter),
            operation.matched.map(|matched| matched as i64),
            operation.done as i64,
            operation.skipped as i64,
            operation.after,
            operation.created_at,
            operation.finished_at,
        ])?;
        Ok(())
    }

    /// How many operations of a tenant are not finished.
    pub fn open_operations_of(&mut self, tenant: &str) -> Result<u64> {
        Ok(self
            .conn
            .prepare_cached("SELECT count(*) FROM operation WHERE tenant = ?1 AND finished_at IS NULL")?
            .query_row([tenant], |row| row.get(0))?)
    }

    /// Every operation that is not finished.
    pub fn open_operations(&mut self) -> Result<Vec<Operation>> {
        let sql = format!("SELECT {COLUMNS} FROM operation WHERE finished_at IS NULL ORDER BY id");
        let mut statement = self.conn.prepare_cached(&sql)?;
        let rows = statement.query_map([], operation)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// An operation.
    pub fn operation(&mut self, id: OperationId) -> Result<Option<Operation>> {
        let sql = format!("SELECT {COLUMNS} FROM operation WHERE id = ?1");
        Ok(self.conn.prepare_cached(&sql)?.query_row([id], operation).optional()?)
    }

    /// The next tasks of an operation, oldest first, at most `limit`. Not within a transaction.
    pub fn find(&mut self, operation: &Operation, limit: usize) -> Result<Found> {
        Ok(operation.tasks().find(&self.conn, operation.after, limit, LOOK)?)
    }

    /// Writes how far an operation is.
    pub fn update_operation(&mut self, operation: &Operation) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE operation SET done = ?2, skipped = ?3, after = ?4, finished_at = ?5 WHERE id = ?1")?
            .execute(params![
                operation.id,
                operation.done as i64,
                operation.skipped as i64,
                operation.after,
                operation.finished_at
            ])?;
        Ok(())
    }

    /// Counts one more task of an operation.
    pub fn count_operation(&mut self, id: OperationId, done: bool) -> Result<()> {
        self.conn
            .prepare_cached("UPDATE operation SET done = done + ?2, skipped = skipped + (1 - ?2) WHERE id = ?1")?
            .execute(params![id, done])?;
        Ok(())
    }

    /// Forgets operations that were finished before `before`, at most `limit`; returns how many.
    pub fn forget_operations(&mut self, before: Timestamp, limit: usize) -> Result<usize> {
        let mut statement = self.conn.prepare_cached(
            "DELETE FROM operation WHERE id IN
             (SELECT id FROM operation WHERE finished_at IS NOT NULL AND finished_at < ?1 ORDER BY finished_at LIMIT ?2)",
        )?;
        Ok(statement.execute(params![before, limit as i64])?)
    }
}

impl Readers {
    /// How many tasks an operation is about; `None` where counting takes too long.
    pub async fn count(&self, operation: Operation) -> Result<Option<u64>> {
        match self.read(&operation.tenant.clone(), move |conn| operation.tasks().count(conn)).await {
            Ok(count) => Ok(Some(count)),
            Err(StoreError::TooSlow) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next tasks of an operation, oldest first, at most `limit`.
    pub async fn find(&self, operation: Operation, limit: usize) -> Result<Found> {
        self.read(&operation.tenant.clone(), move |conn| operation.tasks().find(conn, operation.after, limit, LOOK))
            .await
    }

    /// The tenant's operation.
    pub async fn operation(&self, tenant: Arc<str>, id: OperationId) -> Result<Option<Operation>> {
        self.read(&tenant.clone(), move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM operation WHERE id = ?1 AND tenant = ?2");
            conn.prepare_cached(&sql)?.query_row(params![id, &*tenant], operation).optional()
        })
        .await
    }

    /// The tenant's last operations, newest first.
    pub async fn operations(&self, tenant: Arc<str>, limit: usize) -> Result<Vec<Operation>> {
        self.read(&tenant.clone(), move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM operation WHERE tenant = ?1 ORDER BY id DESC LIMIT ?2");
            let mut statement = conn.prepare_cached(&sql)?;
            statement.query_map(params![&*tenant, limit as i64], operation)?.collect()
        })
        .await
    }
}

impl ToSql for OperationId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for OperationId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        TaskId::column_result(value).map(|id| OperationId(id.0))
    }
}

impl ToSql for Action {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for Action {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Action::ALL.into_iter().find(|action| action.name() == name).ok_or(FromSqlError::InvalidType)
    }
}
