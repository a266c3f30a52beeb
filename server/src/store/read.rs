//! Reading beside the writer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::history::{LoggedLine, log_lines};
use super::list::{self, Bulk, Found};
use super::rows::{self, TASK_COLUMNS};
use super::{StoreError, components};
use crate::registry::SHARED;
use crate::task::{AttemptRecord, Digest, ErrorKind, Status, Task, TaskId, Timestamp};
use crate::turns::{Place, Places};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};

/// A read that takes longer is given up: it would keep the write-ahead log from being emptied.
const READ_TIME: Duration = Duration::from_secs(2);

type Result<T> = std::result::Result<T, StoreError>;

/// Which tasks a list holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListFilter {
    /// Only of this status.
    pub status: Option<Status>,
    /// Only of this type.
    pub task_type: Option<String>,
    /// Only failed in this way.
    pub error_kind: Option<ErrorKind>,
    /// Only created after this time.
    pub created_after: Option<Timestamp>,
    /// Only created before this time.
    pub created_before: Option<Timestamp>,
    /// Only with all of these labels.
    pub labels: Vec<(String, String)>,
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The tasks that match, newest first.
    pub tasks: Vec<TaskSummary>,
    /// There may be more, older than this one.
    pub more_after: Option<TaskId>,
}

/// What a list says of a task: all of it but its input and output, which are empty here.
pub type TaskSummary = Task;

/// What is known of an object without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Its name.
    pub name: String,
    /// Its strong entity tag, without the quotes.
    pub etag: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub updated_at: Timestamp,
}

/// Connections that read, each in a snapshot of what was committed when the read began.
#[derive(Clone)]
pub struct Readers {
    inner: Arc<Inner>,
    /// How many of them this handle and its clones may use at once, where that is not all.
    share: Option<Places>,
}

struct Inner {
    count: usize,
    // A std mutex: it is held to pop and to push only.
    free: Mutex<Vec<Connection>>,
    places: Places,
    /// How many of them may look for tasks, which takes long where few match: the others are there for what is quick.
    searches: Places,
}

impl Readers {
    pub(super) fn open(path: &Path, count: usize) -> anyhow::Result<Readers> {
        let mut free = Vec::with_capacity(count);
        for _ in 0..count {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let conn = Connection::open_with_flags(path, flags)?;
            conn.execute_batch("PRAGMA query_only = ON; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -8192;")?;
            conn.set_prepared_statement_cache_capacity(32);
            free.push(conn);
        }
        let (places, searches) = (Places::new(count), Places::new((count / 2).max(1)));
        let inner = Inner { count, places, searches, free: Mutex::new(free) };
        Ok(Readers { inner: Arc::new(inner), share: None })
    }

    /// The same, but no more than half of them at once: however many reads wait for their turn here,
    /// they keep the other half from nobody.
    pub fn half(&self) -> Readers {
        Readers { inner: self.inner.clone(), share: Some(Places::new((self.inner.count / 2).max(1))) }
    }

    /// Runs `read` on a thread that may block, when it is its tenant's turn.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        tenant: &Arc<str>,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        let pool_closed = || StoreError::Failed(rusqlite::Error::InvalidQuery);
        let share = match &self.share {
            Some(share) => Some(share.take(tenant).await),
            None => None,
        };
        let place = inner.places.take(tenant).await;
        let mut lent = Lent { inner, conn: None, _place: place, _share: share };
        let done = tokio::task::spawn_blocking(move || {
            let free = lent.inner.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let conn = lent.conn.insert(free.ok_or_else(pool_closed)?);
            let started = Instant::now();
            conn.progress_handler(10_000, Some(move || started.elapsed() > READ_TIME))?;
            read(&*conn).map_err(StoreError::from)
        });
        done.await.map_err(|_| pool_closed())?
    }

    /// The tenant's task.
    pub async fn task(&self, tenant: Arc<str>, id: TaskId) -> Result<Option<Task>> {
        self.read(&tenant.clone(), move |conn| {
            let sql = format!("SELECT {TASK_COLUMNS} FROM task WHERE id = ?1 AND tenant = ?2");
            conn.prepare_cached(&sql)?.query_row(params![id, &*tenant], rows::task).optional()
        })
        .await
    }

    /// The tenant's tasks that match, newest first, from before `before` on. Where few match, what was
    /// found until the time was up.
    pub async fn list(
        &self,
        tenant: Arc<str>,
        filter: ListFilter,
        before: Option<TaskId>,
        limit: usize,
    ) -> Result<Page> {
        let search = self.inner.searches.take(&tenant).await;
        self.read(&tenant.clone(), move |conn| {
            // Kept here, where the client may go away and the work goes on.
            let _search = search;
            list::page(conn, &tenant, &filter, before, limit, list::LOOK)
        })
        .await
    }

    /// Whether the tenant has tasks of a type that are Pending or Running.
    pub async fn has_unended(&self, tenant: &Arc<str>, task_type: &str) -> Result<bool> {
        self.has_unended_in_looks(tenant, task_type, list::LOOK).await
    }

    /// The same, in looks of that length.
    pub(super) async fn has_unended_in_looks(
        &self,
        tenant: &Arc<str>,
        task_type: &str,
        look: Duration,
    ) -> Result<bool> {
        let mut after = None;
        loop {
            let (of, filter) = (tenant.clone(), ListFilter { task_type: Some(task_type.into()), ..Default::default() });
            let find = move |conn: &Connection| {
                // Both at once: a task goes from one to the other, and back.
                let statuses = &[Status::Pending, Status::Running];
                let tasks =
                    Bulk { tenant: &of, filter: &filter, statuses, before: TaskId(uuid::Uuid::max()), since: None };
                tasks.find(conn, after, 1, look)
            };
            match self.read(tenant, find).await? {
                Found { ids, .. } if !ids.is_empty() => return Ok(true),
                Found { until: None, .. } => return Ok(false),
                // Others read in between.
                Found { until, .. } => after = until,
            }
        }
    }

    /// Lines of a task's log after line `after`, each with its number; `None` where there is no such task.
    pub async fn log(&self, tenant: Arc<str>, id: TaskId, after: u64, limit: usize) -> Result<Option<Vec<LoggedLine>>> {
        self.read(&tenant.clone(), move |conn| {
            let exists = conn
                .prepare_cached("SELECT 1 FROM task WHERE id = ?1 AND tenant = ?2")?
                .exists(params![id, &*tenant])?;
            if !exists {
                return Ok(None);
            }
            log_lines(conn, id, after, limit).map(Some)
        })
        .await
    }

    /// Every attempt of a task, the first one first; `None` where there is no such task.
    pub async fn attempts(&self, tenant: Arc<str>, id: TaskId) -> Result<Option<Vec<AttemptRecord>>> {
        self.read(&tenant.clone(), move |conn| {
            let sql = format!("SELECT {} FROM task WHERE id = ?1 AND tenant = ?2", rows::without_data());
            let task = conn.prepare_cached(&sql)?.query_row(params![id, &*tenant], rows::task).optional()?;
            let Some(task) = task else { return Ok(None) };
            let sql = format!("SELECT {} FROM attempt WHERE task = ?1 ORDER BY number", rows::ATTEMPT_COLUMNS);
            let mut statement = conn.prepare_cached(&sql)?;
            let mut attempts: Vec<AttemptRecord> =
                statement.query_map([id], rows::attempt)?.collect::<rusqlite::Result<_>>()?;
            // The last one is in the task's own row, unless it is between two.
            attempts.extend(task.started_at.map(|started_at| {
                let ended = task.status.is_ended();
                AttemptRecord {
                    number: task.attempt,
                    started_at,
                    finished_at: task.finished_at,
                    completed: task.status == Status::Completed,
                    error: task.error.filter(|_| ended),
                    usage: task.usage.filter(|_| ended),
                }
            }));
            Ok(Some(attempts))
        })
        .await
    }

    /// An object with its data. One that is larger than `max_bytes` comes without: `Err` of its size.
    pub async fn object(
        &self,
        tenant: Arc<str>,
        name: String,
        max_bytes: u64,
    ) -> Result<Option<std::result::Result<(ObjectMeta, Vec<u8>), u64>>> {
        self.read(&tenant.clone(), move |conn| {
            // One statement, so that the size that was checked is the size of the data that is read.
            conn.prepare_cached(
                "SELECT name, etag, size, updated_at, CASE WHEN size <= ?3 THEN data END
                 FROM object WHERE tenant = ?1 AND name = ?2",
            )?
            .query_row(params![&*tenant, name, i64::try_from(max_bytes).unwrap_or(i64::MAX)], |row| {
                let meta = object_meta(row)?;
                Ok(match row.get::<_, Option<Vec<u8>>>(4)? {
                    Some(data) => Ok((meta, data)),
                    None => Err(meta.size),
                })
            })
            .optional()
        })
        .await
    }

    /// What is known of an object.
    pub async fn object_meta(&self, tenant: Arc<str>, name: String) -> Result<Option<ObjectMeta>> {
        self.read(&tenant.clone(), move |conn| {
            conn.prepare_cached("SELECT name, etag, size, updated_at FROM object WHERE tenant = ?1 AND name = ?2")?
                .query_row(params![&*tenant, name], object_meta)
                .optional()
        })
        .await
    }

    /// Objects whose names start with `prefix`, in byte order, after `after`.
    pub async fn objects(
        &self,
        tenant: Arc<str>,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT name, etag, size, updated_at FROM object
                 WHERE tenant = ?1 AND name >= ?2 AND name > ?3 ORDER BY name",
            )?;
            let after = after.unwrap_or_default();
            let rows = statement.query_map(params![&*tenant, prefix, after], object_meta)?;
            let mut found = Vec::new();
            // Names with the prefix are neighbours: the first without it ends the list.
            for meta in rows {
                let meta = meta?;
                if found.len() == limit || !meta.name.starts_with(&prefix) {
                    break;
                }
                found.push(meta);
            }
            Ok(found)
        })
        .await
    }

    /// The versions of a task type, newest first, with the time of their first storing.
    pub async fn versions(&self, tenant: Arc<str>, name: String) -> Result<Vec<(Digest, Timestamp)>> {
        self.read(&tenant.clone(), move |conn| {
            let mut statement = conn.prepare_cached(
                "SELECT component, created_at FROM task_type_version WHERE tenant = ?1 AND name = ?2
                 ORDER BY created_at DESC, component",
            )?;
            statement.query_map(params![&*tenant, name], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
        .await
    }

    /// The bytes of a version of a task type.
    pub async fn version_bytes(&self, tenant: Arc<str>, name: String, digest: Digest) -> Result<Option<Vec<u8>>> {
        self.read(&tenant.clone(), move |conn| {
            let is_version = conn
                .prepare_cached("SELECT 1 FROM task_type_version WHERE tenant = ?1 AND name = ?2 AND component = ?3")?
                .exists(params![&*tenant, name, digest])?;
            if is_version { components::bytes(conn, digest) } else { Ok(None) }
        })
        .await
    }

    /// The bytes of a component.
    pub async fn component(&self, digest: Digest) -> Result<Option<Vec<u8>>> {
        self.read(&SHARED.into(), move |conn| components::bytes(conn, digest)).await
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        self.read(&SHARED.into(), |conn| conn.query_row("SELECT 1", [], |_| Ok(()))).await
    }
}

/// A place among the readers. The blocking thread holds it, not the caller, who may go away.
struct Lent {
    inner: Arc<Inner>,
    conn: Option<Connection>,
    // Free for others only after the connection is back.
    _place: Place,
    _share: Option<Place>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            self.inner.free.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
        }
    }
}

fn object_meta(row: &rusqlite::Row<'_>) -> rusqlite::Result<ObjectMeta> {
    Ok(ObjectMeta { name: row.get(0)?, etag: row.get(1)?, size: row.get(2)?, updated_at: row.get(3)? })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    /// Searches keep what is quick from nobody.
    #[test]
    fn half_of_the_readers_are_no_ones_to_search_with() {
        let directory = tempfile::tempdir().unwrap();
        let (_writer, readers) = super::super::open(directory.path(), 2).unwrap();
        let a = Arc::<str>::from("a");
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let search = || Box::pin(readers.list(a.clone(), ListFilter::default(), None, 1));
            let held = readers.inner.searches.take(&a).await;
            let mut waits = search();
            assert!(waits.as_mut().now_or_never().is_none());
            assert_eq!(readers.task(a.clone(), TaskId(uuid::Uuid::nil())).await.unwrap(), None);
            assert!(waits.as_mut().now_or_never().is_none());
            drop(held);
            assert!(waits.await.unwrap().tasks.is_empty());
        });
    }

    /// One that reads a lot waits for itself.
    #[test]
    fn tenants_read_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let (_writer, readers) = super::super::open(directory.path(), 1).unwrap();
        let (go, wait) = std::sync::mpsc::channel();
        let order = Arc::new(Mutex::new(Vec::new()));
        let [a, b] = ["a", "b"].map(Arc::<str>::from);
        let noted = |tenant, name| {
            let order = order.clone();
            readers.read(tenant, move |_| {
                order.lock().unwrap().push(name);
                Ok(())
            })
        };
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let mut first = Box::pin(readers.read(&a, move |_| {
                wait.recv().unwrap();
                Ok(())
            }));
            assert!(first.as_mut().now_or_never().is_none());
            let mut others: Vec<_> =
                [(&a, "a"), (&a, "a, too"), (&b, "b")].map(|(tenant, name)| Box::pin(noted(tenant, name))).into();
            assert!(others.iter_mut().all(|read| read.as_mut().now_or_never().is_none()));
            go.send(()).unwrap();
            first.await.unwrap();
            assert!(join_all(others).await.iter().all(Result::is_ok));
        });
        assert_eq!(*order.lock().unwrap(), ["a", "b", "a, too"]);
    }
}
