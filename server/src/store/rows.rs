//! Rows to values and back.

use std::sync::Arc;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use rusqlite::{Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::grants::Grants;
use crate::history::{Event, Happened};
use crate::limits::LimitOverrides;
use crate::schedule::{self, Concurrency};
use crate::task::{
    AttemptRecord, Digest, ErrorKind, Hold, RetryOverrides, RetryPolicy, Status, Task, TaskId, Timestamp, Usage,
};

/// A task type as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredType {
    /// Whose it is; empty for the types that all tenants share.
    pub tenant: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its current version; `None`: none can be used yet.
    pub component: Option<Digest>,
    /// The version that becomes current once it is compiled and granted.
    pub next: Option<Digest>,
    /// Its own limits.
    pub limits: LimitOverrides,
    /// Its own retry policy.
    pub retry: RetryOverrides,
    /// How long its ended tasks are kept, in milliseconds.
    pub retention_ms: Option<u64>,
    /// Whether its tasks are held back.
    pub paused: bool,
    /// What its tasks may touch.
    pub grants: Arc<Grants>,
    /// A JSON Schema that its inputs have to meet.
    pub input_schema: Option<Arc<str>>,
    /// How many of its tasks run at once.
    pub concurrency: Concurrency,
}

impl StoredType {
    /// A type without versions, with nothing set.
    pub fn new(tenant: Arc<str>, name: Arc<str>) -> StoredType {
        let (limits, retry) = (LimitOverrides::default(), RetryOverrides::default());
        StoredType {
            tenant,
            name,
            component: None,
            next: None,
            limits,
            retry,
            retention_ms: None,
            paused: false,
            grants: Arc::default(),
            input_schema: None,
            concurrency: Concurrency::default(),
        }
    }
}

impl ToSql for TaskId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(self.0.as_bytes())))
    }
}

impl FromSql for TaskId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        uuid::Uuid::from_slice(value.as_blob()?).map(TaskId).map_err(FromSqlError::other)
    }
}

impl ToSql for Digest {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for Digest {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_blob()?.try_into().map(Digest).map_err(FromSqlError::other)
    }
}

impl ToSql for Timestamp {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Timestamp {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(Timestamp)
    }
}

impl ToSql for Status {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok((*self as i64).into())
    }
}

impl FromSql for Status {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = i64::column_result(value)?;
        usize::try_from(number)
            .ok()
            .and_then(|index| Status::ALL.get(index).copied())
            .ok_or(FromSqlError::OutOfRange(number))
    }
}

impl ToSql for ErrorKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for ErrorKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        ErrorKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or(FromSqlError::InvalidType)
    }
}

/// Why a task is held back, as a number; 0: it is not.
struct Held(Option<Hold>);

impl ToSql for Held {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.map_or(0, |why| why as i64).into())
    }
}

impl FromSql for Held {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Held(match i64::column_result(value)? {
            0 => None,
            1 => Some(Hold::Paused),
            2 => Some(Hold::Type),
            3 => Some(Hold::Key),
            other => return Err(FromSqlError::OutOfRange(other)),
        }))
    }
}

/// A column that holds a value as JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0)
            .map(ToSqlOutput::from)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?).map(Json).map_err(FromSqlError::other)
    }
}

/// The columns of a whole task, in the order of [`task`] and [`insert`].
pub(super) const TASK_COLUMNS: &str = "id, tenant, task_type, component, status, rank, priority, created_at, \
     started_at, finished_at, attempt, interruptions, limits, input, output, progress, error_kind, error, usage, \
     usage_total, labels, retry, due_at, expires_at, unique_key, failures, server, schedule, held, concurrency_key";

/// How a task is inserted.
pub(super) const INSERT_TASK: &str = "INSERT INTO task (id, tenant, task_type, component, status, rank, priority, \
     created_at, started_at, finished_at, attempt, interruptions, limits, input, output, progress, error_kind, error, \
     usage, usage_total, labels, retry, due_at, expires_at, unique_key, failures, server, schedule, held, \
     concurrency_key) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, \
     ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30)";

/// How the columns that change are written.
pub(super) const UPDATE_TASK: &str = "UPDATE task SET status = ?2, started_at = ?3, finished_at = ?4, attempt = ?5, \
     interruptions = ?6, output = ?7, progress = ?8, error_kind = ?9, error = ?10, usage = ?11, usage_total = ?12, \
     rank = ?13, due_at = ?14, expires_at = ?15, failures = ?16, server = ?17, held = ?18 \
     WHERE id = ?1";

/// The columns of a task without its input and output, which may be large.
pub(super) fn without_data() -> String {
    TASK_COLUMNS.replace(" input, output,", " '', NULL,")
}

fn usage_total(task: &Task) -> Option<Json<&Usage>> {
    // The total of a single attempt is its usage: written once only.
    (task.usage.as_ref() != Some(&task.usage_total) && task.usage_total != Usage::default())
        .then_some(Json(&task.usage_total))
}

pub(super) fn insert(statement: &mut rusqlite::CachedStatement<'_>, task: &Task) -> rusqlite::Result<usize> {
    statement.execute(params![
        task.id,
        &*task.tenant,
        &*task.task_type,
        task.component,
        task.status,
        schedule::rank(task.ready_at, task.priority),
        task.priority,
        task.created_at,
        task.started_at,
        task.finished_at,
        task.attempt,
        task.interruptions,
        (task.limits != LimitOverrides::default()).then_some(Json(task.limits)),
        &*task.input,
        task.output.as_deref(),
        task.progress.as_ref().map(Json),
        task.error.as_ref().map(|error| error.kind),
        task.error.as_ref().map(Json),
        task.usage.as_ref().map(Json),
        usage_total(task),
        (!task.labels.is_empty()).then_some(Json(&task.labels)),
        (task.retry != RetryPolicy::DEFAULT).then_some(Json(task.retry)),
        task.due_at,
        task.expires_at,
        task.unique_key.as_deref(),
        task.failures,
        task.server,
        task.schedule.as_deref(),
        Held(task.held),
        task.concurrency_key.as_deref(),
    ])
}

pub(super) fn update(statement: &mut rusqlite::CachedStatement<'_>, task: &Task) -> rusqlite::Result<usize> {
    statement.execute(params![
        task.id,
        task.status,
        task.started_at,
        task.finished_at,
        task.attempt,
        task.interruptions,
        task.output.as_deref(),
        task.progress.as_ref().map(Json),
        task.error.as_ref().map(|error| error.kind),
        task.error.as_ref().map(Json),
        task.usage.as_ref().map(Json),
        usage_total(task),
        schedule::rank(task.ready_at, task.priority),
        task.due_at,
        task.expires_at,
        task.failures,
        task.server,
        Held(task.held),
    ])
}

fn json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>> {
    Ok(row.get::<_, Option<Json<T>>>(index)?.map(|json| json.0))
}

fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Arc<str>> {
    row.get_ref(index)?
        .as_str()
        .map(Arc::from)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error)))
}

/// A whole task from a row of [`TASK_COLUMNS`].
pub(super) fn task(row: &Row<'_>) -> rusqlite::Result<Task> {
    let usage: Option<Usage> = json(row, 18)?;
    let total: Option<Usage> = json(row, 19)?;
    let optional_text = |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<String>>(index)?.map(Arc::from));
    let priority = row.get(6)?;
    Ok(Task {
        id: row.get(0)?,
        tenant: text(row, 1)?,
        task_type: text(row, 2)?,
        component: row.get(3)?,
        status: row.get(4)?,
        ready_at: schedule::ready_at(row.get(5)?, priority),
        priority,
        created_at: row.get(7)?,
        started_at: row.get(8)?,
        finished_at: row.get(9)?,
        attempt: row.get(10)?,
        interruptions: row.get(11)?,
        limits: json(row, 12)?.unwrap_or_default(),
        input: text(row, 13)?,
        output: row.get::<_, Option<String>>(14)?.map(Arc::from),
        progress: json(row, 15)?,
        error: json(row, 17)?,
        usage_total: total.or_else(|| usage.clone()).unwrap_or_default(),
        usage,
        labels: json(row, 20)?.unwrap_or_default(),
        retry: json(row, 21)?.unwrap_or(RetryPolicy::DEFAULT),
        due_at: row.get(22)?,
        expires_at: row.get(23)?,
        unique_key: optional_text(24)?,
        failures: row.get(25)?,
        server: row.get(26)?,
        schedule: optional_text(27)?,
        held: row.get::<_, Held>(28)?.0,
        concurrency_key: optional_text(29)?,
    })
}

/// The columns of a task type, in the order of [`task_type`].
pub(super) const TYPE_COLUMNS: &str =
    "tenant, name, component, next, limits, retry, retention_ms, paused, grants, input_schema, concurrency";

/// A task type from a row of [`TYPE_COLUMNS`].
pub(super) fn task_type(row: &Row<'_>) -> rusqlite::Result<StoredType> {
    Ok(StoredType {
        tenant: text(row, 0)?,
        name: text(row, 1)?,
        component: row.get(2)?,
        next: row.get(3)?,
        limits: json(row, 4)?.unwrap_or_default(),
        retry: json(row, 5)?.unwrap_or_default(),
        retention_ms: row.get(6)?,
        paused: row.get(7)?,
        grants: Arc::new(json(row, 8)?.unwrap_or_default()),
        input_schema: row.get::<_, Option<String>>(9)?.map(Into::into),
        concurrency: json(row, 10)?.unwrap_or_default(),
    })
}

/// The columns of an attempt, in the order of [`attempt`].
pub(super) const ATTEMPT_COLUMNS: &str = "number, started_at, finished_at, completed, error, usage";

/// An attempt from a row of [`ATTEMPT_COLUMNS`].
pub(super) fn attempt(row: &Row<'_>) -> rusqlite::Result<AttemptRecord> {
    Ok(AttemptRecord {
        number: row.get(0)?,
        started_at: row.get(1)?,
        finished_at: Some(row.get(2)?),
        completed: row.get(3)?,
        error: json(row, 4)?,
        usage: json(row, 5)?,
    })
}

/// An event from its columns `seq, task, kind, attempt, at, data`.
pub(super) fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let kind: usize = row.get(2)?;
    Ok(Event {
        seq: row.get(0)?,
        task: row.get(1)?,
        happened: Happened::ALL.get(kind).copied().ok_or(rusqlite::Error::IntegralValueOutOfRange(2, kind as i64))?,
        attempt: row.get(3)?,
        at: row.get(4)?,
        data: row.get(5)?,
    })
}
