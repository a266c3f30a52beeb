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

pub(super) fn page(
    conn: &Connection,
    tenant: &str,
    filter: &ListFilter,
    before: Option<TaskId>,
    limit: usize,
) -> rusqlite::Result<Page> {
    // What an index finds: these are the rows that are looked at.
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
    if let Some(before) = before {
        found.add(&format!("{id} < ?"), &before)?;
    }
    // And what is looked at in each of them.
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

/// The smallest UUIDv7 of that millisecond (RFC 9562, section 5.7).
fn first_id_at(at: Timestamp) -> TaskId {
    let millis = u64::try_from(at.0).unwrap_or(0).min((1 << 48) - 1);
    TaskId(uuid::Uuid::from_u128((u128::from(millis) << 80) | (0x7 << 76) | (0x8 << 60)))
}
