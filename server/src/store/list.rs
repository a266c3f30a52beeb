//! The list of tasks.

use std::time::{Duration, Instant};

use rusqlite::types::{ToSqlOutput, Value};
use rusqlite::{Connection, ToSql, params_from_iter};

use super::read::{ListFilter, Page};
use super::rows;
use crate::task::{Status, TaskId, Timestamp};

/// How long is looked for tasks that match before a page is given as it is.
pub(super) const LOOK: Duration = Duration::from_millis(1000);

/// A search for tasks of a tenant, in the order of their ids.
///
/// SQLite skips only what an index skips. All other conditions are looked at row by row here, so that a
/// search that finds little among millions can stop after a while and go on later: SQLite by itself would
/// come back with the next match only, or sort all of them first.
struct Search {
    /// The values of `?1`, `?2` and so on.
    values: Vec<Value>,
    /// The column that the ids are read off, which the index has that finds the rows.
    id: &'static str,
    /// What indexes find, as `FROM … WHERE …`. Each gives its rows in the order of the ids, and SQLite merges
    /// them; a single scan of several statuses would have to be sorted.
    scans: Vec<String>,
    /// Between which ids.
    within: String,
    /// What is looked at in each row.
    matches: Vec<String>,
}

impl Search {
    fn new(tenant: &str, filter: &ListFilter, of: &[Status]) -> rusqlite::Result<Search> {
        let may = |status: &Status| {
            filter.status.is_none_or(|only| only == *status)
                // A Completed task has no error.
                && (filter.error_kind.is_none() || *status != Status::Completed)
        };
        let statuses: Vec<Status> = of.iter().copied().filter(may).collect();
        let mut search =
            Search { values: Vec::new(), id: "task.id", scans: Vec::new(), within: String::new(), matches: Vec::new() };
        let tenant = search.value(&tenant)?;
        let number = |status: &Status| (*status as u8).to_string();
        let one_of = || {
            let numbers: Vec<String> = statuses.iter().map(number).collect();
            format!("status IN ({})", numbers.join(", "))
        };
        if let Some((key, value)) = filter.labels.first() {
            let (key, value) = (search.value(key)?, search.value(value)?);
            search.id = "label.task";
            search.scans.push(format!(
                "FROM label CROSS JOIN task ON task.id = label.task \
                 WHERE label.tenant = {tenant} AND label.key = {key} AND label.value = {value}"
            ));
            if statuses.len() < Status::ALL.len() {
                search.matches.push(one_of());
            }
        } else if statuses.contains(&Status::Completed) {
            // No index holds these: they are read off the table itself.
            search.scans.push("FROM task WHERE 1".to_owned());
            search.matches.push(format!("tenant = {tenant}"));
            if statuses.len() < Status::ALL.len() {
                search.matches.push(one_of());
            }
        } else {
            search.scans.extend(statuses.iter().map(|status| {
                format!(
                    "FROM task INDEXED BY task_status WHERE status = {} AND status <> 2 AND tenant = {tenant}",
                    number(status)
                )
            }));
            if statuses.is_empty() {
                search.scans.push(format!("FROM task WHERE 0 AND tenant = {tenant}"));
            }
        }
        if let Some(after) = filter.created_after {
            search.within(">=", first_id_at(Timestamp(after.0.saturating_add(1))))?;
        }
        if let Some(created_before) = filter.created_before {
            search.within("<", first_id_at(created_before))?;
        }
        if let Some(task_type) = &filter.task_type {
            let task_type = search.value(task_type)?;
            search.matches.push(format!("task_type = {task_type}"));
        }
        for (key, value) in filter.labels.iter().skip(1) {
            let (key, value) = (search.value(key)?, search.value(value)?);
            search.matches.push(format!(
                "EXISTS (SELECT 1 FROM label l WHERE l.tenant = {tenant} AND l.key = {key} AND l.value = {value} \
                 AND l.task = task.id)"
            ));
        }
        if let Some(kind) = filter.error_kind {
            let kind = search.value(&kind)?;
            search.matches.push(format!("error_kind IS {kind}"));
        }
        Ok(search)
    }

    /// Adds a value, and returns what stands for it.
    fn value(&mut self, value: &dyn ToSql) -> rusqlite::Result<String> {
        self.values.push(match value.to_sql()? {
            ToSqlOutput::Borrowed(value) => value.try_into().map_err(rusqlite::Error::from)?,
            ToSqlOutput::Owned(value) => value,
            _ => Value::Null,
        });
        Ok(format!("?{}", self.values.len()))
    }

    /// Only where the id is so to `id`.
    fn within(&mut self, so: &str, id: TaskId) -> rusqlite::Result<()> {
        let value = self.value(&id)?;
        self.within.push_str(&format!(" AND {} {so} {value}", self.id));
        Ok(())
    }

    fn matches(&self) -> String {
        if self.matches.is_empty() { "1".to_owned() } else { self.matches.join(" AND ") }
    }

    /// The rows in that order, each as its id and whether it matches.
    fn sql(&self, order: &str) -> String {
        let Search { id, within, scans, .. } = self;
        let matches = self.matches();
        let scans: Vec<String> = scans.iter().map(|scan| format!("SELECT {id}, {matches} {scan}{within}")).collect();
        format!("{} ORDER BY 1 {order}", scans.join(" UNION ALL "))
    }

    /// Gives `each` the tasks that match, in that order, until `limit` of them were found or `look` is over.
    /// Returns how far was looked, where there is more behind it.
    fn look(
        &self,
        conn: &Connection,
        order: &str,
        limit: usize,
        look: Duration,
        mut each: impl FnMut(TaskId) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Option<TaskId>> {
        let mut statement = conn.prepare_cached(&self.sql(order))?;
        let mut rows = statement.query(params_from_iter(&self.values))?;
        let started = Instant::now();
        let mut found = 0;
        let mut last = None;
        while let Some(row) = rows.next()? {
            // The clock is looked at each time: a condition behind a large output takes a while. However slow it
            // is, one row is looked at, so that it gets on.
            if found == limit || (last.is_some() && started.elapsed() >= look) {
                return Ok(last);
            }
            let id = row.get(0)?;
            if row.get(1)? {
                each(id)?;
                found += 1;
            }
            last = Some(id);
        }
        Ok(None)
    }
}

pub(super) fn page(
    conn: &Connection,
    tenant: &str,
    filter: &ListFilter,
    before: Option<TaskId>,
    limit: usize,
    look: Duration,
) -> rusqlite::Result<Page> {
    let mut search = Search::new(tenant, filter, &Status::ALL)?;
    if let Some(before) = before {
        search.within("<", before)?;
    }
    // What is found must still be there when it is read.
    let snapshot = conn.unchecked_transaction()?;
    let sql = format!("SELECT {} FROM task WHERE id = ?1", rows::without_data());
    let mut task = snapshot.prepare_cached(&sql)?;
    let mut tasks = Vec::new();
    let more_after = search.look(&snapshot, "DESC", limit, look, |id| {
        tasks.push(task.query_row([id], rows::task)?);
        Ok(())
    })?;
    Ok(Page { tasks, more_after })
}

/// Which tasks a bulk operation, or a look for what keeps a type, is about.
#[derive(Clone, Debug)]
pub(super) struct Bulk<'a> {
    pub(super) tenant: &'a str,
    pub(super) filter: &'a ListFilter,
    /// Only of one of these.
    pub(super) statuses: &'a [Status],
    /// Only created before this id.
    pub(super) before: TaskId,
    /// Only where this column has no later time than that.
    pub(super) since: Option<(&'static str, Timestamp)>,
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
    fn search(&self) -> rusqlite::Result<Search> {
        let mut search = Search::new(self.tenant, self.filter, self.statuses)?;
        search.within("<", self.before)?;
        if let Some((column, at)) = self.since {
            let at = search.value(&at)?;
            search.matches.push(format!("{column} <= {at}"));
        }
        Ok(search)
    }

    /// How many there are.
    pub(super) fn count(&self, conn: &Connection) -> rusqlite::Result<u64> {
        let search = self.search()?;
        let (within, matches) = (&search.within, search.matches());
        let counts = search.scans.iter().map(|scan| format!("(SELECT count(*) {scan}{within} AND {matches})"));
        let sql = format!("SELECT {}", counts.collect::<Vec<_>>().join(" + "));
        conn.prepare_cached(&sql)?.query_row(params_from_iter(&search.values), |row| row.get(0))
    }

    /// The first of them after `after`, at most `limit`; fewer where that takes longer than `look`.
    pub(super) fn find(
        &self,
        conn: &Connection,
        after: Option<TaskId>,
        limit: usize,
        look: Duration,
    ) -> rusqlite::Result<Found> {
        let mut search = self.search()?;
        if let Some(after) = after {
            search.within(">", after)?;
        }
        let mut ids = Vec::new();
        let until = search.look(conn, "ASC", limit, look, |id| {
            ids.push(id);
            Ok(())
        })?;
        Ok(Found { ids, until })
    }
}

/// The smallest UUIDv7 of that millisecond (RFC 9562, section 5.7).
fn first_id_at(at: Timestamp) -> TaskId {
    let millis = u64::try_from(at.0).unwrap_or(0).min((1 << 48) - 1);
    TaskId(uuid::Uuid::from_u128((u128::from(millis) << 80) | (0x7 << 76) | (0x8 << 60)))
}

#[cfg(test)]
mod tests {
    use rusqlite::params;

    use super::*;
    use crate::store;
    use crate::task::ErrorKind;

    /// What a filter may say, in all combinations.
    fn filters() -> Vec<ListFilter> {
        let labels = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
        let mut filters = Vec::new();
        for status in [None].into_iter().chain(Status::ALL.map(Some)) {
            for error_kind in [None, Some(ErrorKind::Trap)] {
                for task_type in [None, Some("echo".to_owned())] {
                    for created_after in [None, Some(Timestamp(2))] {
                        for created_before in [None, Some(Timestamp(200))] {
                            for labels in [&labels[..0], &labels[..1], &labels[..]] {
                                let (labels, task_type) = (labels.to_vec(), task_type.clone());
                                filters.push(ListFilter {
                                    status,
                                    task_type,
                                    error_kind,
                                    created_after,
                                    created_before,
                                    labels,
                                });
                            }
                        }
                    }
                }
            }
        }
        filters
    }

    /// The statuses of the list and of each action.
    const STATUSES: [&[Status]; 3] =
        [&Status::ALL, &[Status::Pending, Status::Running], &[Status::Completed, Status::Failed]];

    fn id(number: i64) -> TaskId {
        first_id_at(Timestamp(number))
    }

    /// A task in each millisecond from 1 on, of all sorts; only those of the tenant "a" are returned.
    fn fill(conn: &Connection, count: i64) -> Vec<(TaskId, ListFilter)> {
        let mut tasks = Vec::new();
        for number in 1..=count {
            let tenant = ["a", "a", "b"][number as usize % 3];
            let status = Status::ALL[number as usize / 3 % 4];
            let task_type = ["echo", "io"][number as usize / 5 % 2];
            let kind = (status != Status::Completed && number % 7 != 0).then_some(ErrorKind::Trap);
            conn.execute(
                "INSERT INTO task (id, tenant, task_type, component, status, rank, priority, created_at, attempt,
                 interruptions, input, error_kind) VALUES (?1, ?2, ?3, zeroblob(32), ?4, 0, 0, ?5, 0, 0, 'null', ?6)",
                params![id(number), tenant, task_type, status, number, kind],
            )
            .unwrap();
            let mut labels = Vec::new();
            for (label, every) in [(("a", "1"), 2), (("b", "2"), 3)] {
                if number % every == 0 {
                    let sql = "INSERT INTO label (tenant, key, value, task) VALUES (?1, ?2, ?3, ?4)";
                    conn.execute(sql, params![tenant, label.0, label.1, id(number)]).unwrap();
                    labels.push((label.0.to_owned(), label.1.to_owned()));
                }
            }
            if tenant == "a" {
                let (status, task_type, at) = (Some(status), Some(task_type.to_owned()), Some(Timestamp(number)));
                let is =
                    ListFilter { status, task_type, error_kind: kind, created_after: at, created_before: at, labels };
                tasks.push((id(number), is));
            }
        }
        tasks
    }

    /// Whether a task that is so is one of those of the filter.
    fn fits(is: &ListFilter, filter: &ListFilter, statuses: &[Status]) -> bool {
        fn same<T: PartialEq>(is: &Option<T>, wanted: &Option<T>) -> bool {
            wanted.is_none() || is == wanted
        }
        is.status.is_some_and(|status| statuses.contains(&status))
            && same(&is.status, &filter.status)
            && same(&is.task_type, &filter.task_type)
            && same(&is.error_kind, &filter.error_kind)
            && filter.created_after.is_none_or(|after| is.created_after > Some(after))
            && filter.created_before.is_none_or(|before| is.created_before < Some(before))
            && filter.labels.iter().all(|label| is.labels.contains(label))
    }

    /// Nothing is sorted, and an index finds where a search begins.
    #[test]
    fn no_search_sorts() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = store::open(directory.path(), 1).unwrap();
        for filter in filters() {
            for statuses in STATUSES {
                for (bound, order) in [("<", "DESC"), (">", "ASC")] {
                    let mut search = Search::new("a", &filter, statuses).unwrap();
                    search.within(bound, id(100)).unwrap();
                    let sql = format!("EXPLAIN QUERY PLAN {}", search.sql(order));
                    let mut statement = writer.conn.prepare(&sql).unwrap();
                    let plan = statement.query_map(params_from_iter(&search.values), |row| row.get::<_, String>(3));
                    let plan: Vec<String> = plan.unwrap().collect::<Result<_, _>>().unwrap();
                    let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE"));
                    // Where nothing can match, nothing is read whatever the plan says.
                    let scans = !sql.contains("WHERE 0") && plan.iter().any(|step| step.contains("SCAN"));
                    assert!(!sorts && !scans, "{sql}: {plan:#?}");
                }
            }
        }
    }

    /// Also where the only one is behind all others, and a look ends before it comes to it.
    #[test]
    fn a_task_that_has_not_ended_is_found_however_long_it_takes() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, readers) = store::open(directory.path(), 1).unwrap();
        fill(&writer.conn, 240);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let is_there = |tenant: &str, task_type: &str| {
            let tenant = tenant.into();
            runtime.block_on(readers.has_unended_in_looks(&tenant, task_type, Duration::ZERO)).unwrap()
        };
        assert!(is_there("a", "echo") && is_there("a", "io") && !is_there("a", "other") && !is_there("c", "echo"));
        for last in [Status::Pending, Status::Running] {
            writer.conn.execute("UPDATE task SET status = ?1 WHERE task_type = 'io'", [Status::Completed]).unwrap();
            assert!(!is_there("a", "io"));
            let sql = "UPDATE task SET status = ?1 WHERE id = (SELECT max(id) FROM task WHERE tenant = 'a' AND task_type = 'io')";
            writer.conn.execute(sql, [last]).unwrap();
            assert!(is_there("a", "io") && !is_there("b", "io"), "{last:?}");
        }
    }

    /// A search with no time at all stops behind each row, whatever is looked for, and finds everything once.
    #[test]
    fn a_search_that_runs_out_of_time_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = store::open(directory.path(), 1).unwrap();
        let tasks = fill(&writer.conn, 240);
        for filter in filters() {
            for statuses in STATUSES {
                let expected: Vec<TaskId> =
                    tasks.iter().filter(|(_, is)| fits(is, &filter, statuses)).map(|(id, _)| *id).collect();
                let bulk = Bulk { tenant: "a", filter: &filter, statuses, before: id(1000), since: None };
                assert_eq!(bulk.count(&writer.conn).unwrap(), expected.len() as u64, "{filter:?}");
                for (look, limit) in [(Duration::ZERO, 50), (Duration::MAX, 7)] {
                    let (mut ids, mut after, mut parts) = (Vec::new(), None, 0);
                    loop {
                        let found = bulk.find(&writer.conn, after, limit, look).unwrap();
                        assert!(found.ids.len() <= if look.is_zero() { 1 } else { limit });
                        ids.extend(found.ids);
                        parts += 1;
                        let Some(until) = found.until else { break };
                        assert!(after.is_none_or(|after| until > after), "it gets on");
                        after = Some(until);
                    }
                    assert_eq!(ids, expected, "{filter:?} {statuses:?}");
                    if !look.is_zero() {
                        assert!(parts <= expected.len() / limit + 1, "{parts} parts: {filter:?}");
                    }
                }
            }
            let expected: Vec<TaskId> =
                tasks.iter().rev().filter(|(_, is)| fits(is, &filter, &Status::ALL)).map(|(id, _)| *id).collect();
            for (look, limit) in [(Duration::ZERO, 50), (Duration::MAX, 7)] {
                let (mut ids, mut before) = (Vec::new(), None);
                loop {
                    let page = page(&writer.conn, "a", &filter, before, limit, look).unwrap();
                    assert!(page.tasks.len() <= if look.is_zero() { 1 } else { limit });
                    ids.extend(page.tasks.iter().map(|task| task.id));
                    let Some(more_after) = page.more_after else { break };
                    assert!(before.is_none_or(|before| more_after < before), "it gets on");
                    before = Some(more_after);
                }
                assert_eq!(ids, expected, "{filter:?}");
            }
        }
    }

    /// Where nothing matches, a page without a task comes back after the first row: nothing is skipped in
    /// SQLite, where it could not be stopped.
    #[test]
    fn what_does_not_match_is_looked_at_row_by_row() {
        let directory = tempfile::tempdir().unwrap();
        let (writer, _) = store::open(directory.path(), 1).unwrap();
        for number in 1..=10 {
            let sql = "INSERT INTO task (id, tenant, task_type, component, status, rank, priority, created_at, attempt,
                 interruptions, input) VALUES (?1, 'a', 'echo', zeroblob(32), 0, 0, 0, ?2, 0, 0, 'null')";
            writer.conn.execute(sql, params![id(number), number]).unwrap();
            let sql = "INSERT INTO label (tenant, key, value, task) VALUES ('a', 'k', 'v', ?1)";
            writer.conn.execute(sql, [id(number)]).unwrap();
        }
        let label = vec![("k".to_owned(), "v".to_owned())];
        let (completed, failed) = (Some(Status::Completed), Some(Status::Failed));
        for (tenant, filter) in [
            ("a", ListFilter { status: completed, ..Default::default() }),
            ("a", ListFilter { status: failed, labels: label, ..Default::default() }),
            ("a", ListFilter { task_type: Some("io".into()), ..Default::default() }),
            ("a", ListFilter { error_kind: Some(ErrorKind::Trap), ..Default::default() }),
            ("b", ListFilter::default()),
        ] {
            let first = page(&writer.conn, tenant, &filter, None, 50, Duration::ZERO).unwrap();
            assert_eq!((first.tasks.len(), first.more_after), (0, Some(id(10))), "{filter:?}");
            let bulk = Bulk { tenant, filter: &filter, statuses: &Status::ALL, before: id(1000), since: None };
            let first = bulk.find(&writer.conn, None, 50, Duration::ZERO).unwrap();
            assert_eq!(first, Found { ids: Vec::new(), until: Some(id(1)) }, "{filter:?}");
        }
    }
}
