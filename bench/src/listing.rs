//! What the server tells of its tasks after they were put in.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde::Deserialize;

use crate::http::Reader;
use crate::server::Server;

/// How often the server is asked whether all have ended: the resolution of what is timed by it.
const POLL: Duration = Duration::from_millis(50);
const END_LIMIT: Duration = Duration::from_secs(600);

/// A task in a list.
#[derive(Deserialize)]
struct Listed {
    id: String,
    status: String,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct List {
    tasks: Vec<Listed>,
    next_cursor: Option<String>,
}

fn list(reader: &mut Reader, query: &str) -> Result<List> {
    let path = format!("/tasks?{query}");
    let (code, body) = reader.get(&path)?;
    let shown = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    ensure!(code == 200, "GET {path}: status {code}: {}", shown());
    serde_json::from_slice(&body).with_context(|| format!("GET {path}: {}", shown()))
}

/// The id of the newest task of a status.
pub(crate) fn newest(address: SocketAddr, status: &str) -> Result<Option<String>> {
    let list = list(&mut Reader::open(address)?, &format!("status={status}&limit=1"))?;
    Ok(list.tasks.into_iter().next().map(|task| task.id))
}

/// Whether a task has the status that was not in the database at the server's start. Ids are UUIDv7:
/// their order is that of their creation.
pub(crate) fn has_any(server: &Server, status: &str) -> Result<bool> {
    Ok(newest(server.address, status)?.is_some_and(|id| id > server.newest))
}

/// Waits until all tasks have ended that were not in the database at the server's start.
pub(crate) fn await_ends(server: &Server) -> Result<()> {
    let start = Instant::now();
    // In this order: a task that is no longer Pending is Running or has ended.
    while has_any(server, "Pending")? || has_any(server, "Running")? {
        ensure!(start.elapsed() < END_LIMIT, "tasks not ended after {END_LIMIT:?}");
        thread::sleep(POLL);
    }
    Ok(())
}

/// The start of the first and the end of the last of the `count` newest tasks, by the server's own times,
/// which are exact to a millisecond. All must be Completed.
pub(crate) fn span(server: &Server, count: u64) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let mut reader = Reader::open(server.address)?;
    let mut cursor = String::new();
    let mut left = count;
    let mut first: Option<DateTime<Utc>> = None;
    let mut last: Option<DateTime<Utc>> = None;
    while left > 0 {
        let page = list(&mut reader, &format!("limit={}{cursor}", left.min(1000)))?;
        for task in page.tasks {
            ensure!(task.id > server.newest, "only {} of {count} tasks are there", count - left);
            ensure!(task.status == "Completed", "task {} is {}", task.id, task.status);
            first = first.into_iter().chain(task.started_at).min();
            last = last.max(task.finished_at);
            left -= 1;
        }
        let next = page.next_cursor;
        ensure!(left == 0 || next.is_some(), "only {} of {count} tasks are there", count - left);
        cursor = next.map_or_else(String::new, |next| format!("&cursor={next}"));
    }
    first.zip(last).context("a Completed task has no times")
}
