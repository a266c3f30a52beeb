//! The list of tasks.

use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, ToSql, params_from_iter};

use super::read::{ListFilter, Page};
use super::rows;
use crate::task::{Status, TaskId, Timestamp};

/// How long is looked for tasks that match before a page is given as it is.
const LOOK: Duration = Duration::from_millis(1000);

/// Conditions with their values, in the order of their question marks.
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, sql: &str, value: &dyn ToSql) -> rusqlite::Result<()> {
        self.sql.push_str(" AND ");
        self.sql.push_str(sql);
        self.values.push(match value.to_sql()? {
            rusqlite::types::ToSqlOutput::Borrowed(value) => value.try_into().map_err(rusqlite::Error::from)?,
            rusqlite::types::ToSqlOutput::Owned(value) => value,
            _ => Value::Null,
        });
        Ok(())
    }
}

/// What a filter is as SQL.
struct Query {
    from: &'static str,
    /// The column that the ids are read off, which the index has that finds the rows.
    id: &'static str,
    /// What an index finds: these are the rows that are looked at.
    found: Conditions,
    /// And what is looked at in each of them.
    matches: Conditions,
}

fn query(tenant: &str, filter: &ListFilter) -> rusqlite::Result<Query> {
    let mut found = Conditions { sql: String::new(), values: Vec::new() };
    let from = match filter.labels.first() {
        None => {
            found.add("task.tenant = ?", &tenant)?;
            "task"
        }
        Some((key, value)) => {
            found.add("label.tenant = ?", &tenant)?;
            found.add("label.key = ?", key)?;
            found.add("label.value = ?", value)?;
            "label JOIN task ON task.id = label.task"
        }
    };
    let id = if filter.labels.is_empty() { "task.id" } else { "label.task" };
    if let Some(status) = filter.status {
        found.add("status = ?", &status)?;
        if status != Status::Completed {
            found.sql.push_str(" AND status <> 2");
        }
    } else if filter.error_kind.is_some() {
        // Only these have one; an index holds them.
        found.sql.push_str(" AND status IN (0, 1, 3) AND status <> 2");
    }
    if let Some(after) = filter.created_after {
        found.add(&format!("{id} >= ?"), &first_id_at(Timestamp(after.0.saturating_add(1))))?;
    }
    if let Some(created_before) = filter.created_before {
        found.add(&format!("{id} < ?"), &first_id_at(created_before))?;
    }
    let mut matches = Conditions { sql: String::from("1"), values: Vec::new() };
    if let Some(task_type) = &filter.task_type {
        matches.add("task_type = ?", task_type)?;
    }
    if let Some(kind) = filter.error_kind {
        matches.add("error_kind IS ?", &kind)?;
    }
    for (key, value) in filter.labels.iter().skip(1) {
        matches.add(
            "EXISTS (SELECT 1 FROM label l WHERE l.task = task.id AND l.tenant = task.tenant AND l.key = ?",
            key,
        )?;
        matches.add("l.value = ?)", value)?;
    }
    Ok(Query { from, id, found, matches })
}

pub(super) fn page(
    conn: &Connection,
    tenant: &str,
    filter: &ListFilter,
    before: Option<TaskId>,
    limit: usize,
) -> rusqlite::Result<Page> {
    let Query { from, id, mut found, matches } = query(tenant, filter)?;
    if let Some(before) = before {
        found.add(&format!("{id} < ?"), &before)?;
    }
    let columns = rows::without_data().replace("id, tenant,", "task.id, task.tenant,");
    let sql = format!(
        "SELECT {columns}, ({}) FROM {from} WHERE {} ORDER BY {id} DESC",
        matches.sql,
        found.sql.trim_start_matches(" AND ")
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let matches_column = statement.column_count() - 1;
    let mut rows = statement.query(params_from_iter(matches.values.iter().chain(&found.values)))?;
    let mut page = Page::default();
    let started = Instant::now();
    let mut looked_at = 0_u32;
    let mut last: Option<TaskId> = None;
    while let Some(row) = rows.next()? {
        if page.tasks.len() == limit {
            page.more_after = last;
            break;
        }
        last = Some(row.get(0)?);
        if row.get(matches_column)? {
            page.tasks.push(rows::task(row)?);
        }
        looked_at += 1;
        if looked_at.is_multiple_of(256) && started.elapsed() > LOOK {
            page.more_after = last;
            break;
        }
    }
    Ok(page)
}

/// Which tasks a bulk operation is about.
#[derive(Clone, Debug)]
pub(super) struct Bulk<'a> {
    pub(super) tenant: &'a str,
    pub(super) filter: &'a ListFilter,
    /// Only of one of these.
    pub(super) statuses: &'a [Status],
    /// Only created before this id.
    pub(super) before: TaskId,
}

/// A part of the tasks that a bulk operation is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Their ids, oldest first.
    pub ids: Vec<TaskId>,
    /// How far was looked, where there may be more behind it.
    pub until: Option<TaskId>,
}

impl Bulk<'_> {
    /// One query for each index that the tasks are in: each gives them in the order of their ids. One
    /// query for several statuses would have to sort all tasks for each part.
    fn queries(&self) -> rusqlite::Result<Vec<Query>> {
        let may = |status: &Status| {
            self.filter.status.is_none_or(|only| only == *status)
                // A Completed task has no error.
                && (self.filter.error_kind.is_none() || *status != Status::Completed)
        };
        let statuses: Vec<Status> = self.statuses.iter().copied().filter(may).collect();
        let mut queries = if statuses.len() == Status::ALL.len() {
            vec![query(self.tenant, self.filter)?]
        } else {
            let of = |status| query(self.tenant, &ListFilter { status: Some(status), ..self.filter.clone() });
            statuses.into_iter().map(of).collect::<rusqlite::Result<_>>()?
        };
        for Query { id, found, .. } in &mut queries {
            found.add(&format!("{id} < ?"), &self.before)?;
        }
        Ok(queries)
    }

    /// How many there are.
    pub(super) fn count(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let snapshot = conn.unchecked_transaction()?;
        let mut count = 0;
        for Query { from, found, matches, .. } in self.queries()? {
            let sql = format!(
                "SELECT count(*) FROM {from} WHERE {} AND {}",
                found.sql.trim_start_matches(" AND "),
                matches.sql
            );
            let values = params_from_iter(found.values.iter().chain(&matches.values));
            count += snapshot.prepare_cached(&sql)?.query_row(values, |row| row.get::<_, u64>(0))?;
        }
        Ok(count)
    }

    /// The first of them after `after`, at most `limit`; fewer where looking takes long.
    pub(super) fn find(&self, conn: &Connection, after: Option<TaskId>, limit: usize) -> rusqlite::Result<Found> {
        // A task that changes its status must not slip through between two queries.
        let snapshot = conn.unchecked_transaction()?;
        let queries = self.queries()?;
        let look = LOOK / u32::try_from(queries.len().max(1)).unwrap_or(u32::MAX);
        let mut ids = Vec::new();
        let mut until: Option<TaskId> = None;
        for query in queries {
            let found = query.find(&snapshot, after, limit, look)?;
            ids.extend(found.ids);
            until = until.into_iter().chain(found.until).min();
        }
        ids.sort_unstable();
        if let Some(until) = until {
            ids.retain(|id| *id <= until);
        }
        if ids.len() > limit {
            ids.truncate(limit);
            until = ids.last().copied();
        }
        Ok(Found { ids, until })
    }
}

impl Query {
    fn find(
        mut self,
        conn: &Connection,
        after: Option<TaskId>,
        limit: usize,
        look: Duration,
    ) -> rusqlite::Result<Found> {
        let id = self.id;
        if let Some(after) = after {
            self.found.add(&format!("{id} > ?"), &after)?;
        }
        let sql = format!(
            "SELECT {id}, ({}) FROM {} WHERE {} ORDER BY {id}",
            self.matches.sql,
            self.from,
            self.found.sql.trim_start_matches(" AND ")
        );
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(self.matches.values.iter().chain(&self.found.values)))?;
        let mut found = Found::default();
        let started = Instant::now();
        let mut looked_at = 0_u32;
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            if row.get(1)? {
                found.ids.push(id);
            }
            looked_at += 1;
            if found.ids.len() == limit || (looked_at.is_multiple_of(256) && started.elapsed() > look) {
                found.until = Some(id);
                break;
            }
        }
        Ok(found)
    }
}

/// The smallest UUIDv7 of that millisecond (RFC 9562, section 5.7).
fn first_id_at(at: Timestamp) -> TaskId {
    let millis = u64::try_from(at.0).unwrap_or(0).min((1 << 48) - 1);
    TaskId(uuid::Uuid::from_u128((u128::from(millis) << 80) | (0x7 << 76) | (0x8 << 60)))
}
