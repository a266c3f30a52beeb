//! The machine's commit: the server's own store writes that a task began, and nobody else writes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use taskcell_server::limits::LimitOverrides;
use taskcell_server::store;
use taskcell_server::task::{Digest, Labels, RetryPolicy, Status, Task, TaskId, Timestamp, Usage};
use uuid::Uuid;

use crate::histogram::Histogram;

const COMMITS: usize = 500;

/// Adds the times of transactions that each hold one task that was created and started, from the beginning
/// to the end of the commit, on a new database in `dir`, which is removed again.
pub(crate) fn measure(dir: &Path, times: &mut Histogram) -> Result<()> {
    let dir = dir.join(format!("taskcell-bench-{}-commits", std::process::id()));
    std::fs::create_dir(&dir)?;
    let committed = commit(&dir, times);
    std::fs::remove_dir_all(&dir)?;
    committed
}

fn commit(dir: &Path, times: &mut Histogram) -> Result<()> {
    let (mut writer, _readers) = store::open(dir, 1)?;
    writer.begin()?;
    let server = writer.new_server(Timestamp(0))?;
    writer.commit()?;
    for _ in 0..COMMITS {
        let task = begun(server);
        let start = Instant::now();
        writer.begin()?;
        writer.insert_task(&task)?;
        writer.append_begun(&task, task.created_at)?;
        writer.commit()?;
        times.record(start.elapsed());
    }
    Ok(())
}

fn begun(server: i64) -> Task {
    let id = Uuid::now_v7();
    let now = Timestamp((id.as_u128() >> 80) as i64);
    Task {
        id: TaskId(id),
        tenant: "default".into(),
        task_type: "echo".into(),
        component: Digest([0; 32]),
        priority: 0,
        created_at: now,
        limits: LimitOverrides::default(),
        input: Arc::from("\"0123456789abcdef-abcdefghijklmnopqrstuvwxyz\""),
        labels: Labels::new(),
        retry: RetryPolicy::DEFAULT,
        due_at: None,
        ready_at: now,
        expires_at: None,
        unique_key: None,
        schedule: None,
        concurrency_key: None,
        held: None,
        status: Status::Running,
        attempt: 1,
        failures: 0,
        interruptions: 0,
        server: Some(server),
        started_at: Some(now),
        finished_at: None,
        progress: None,
        output: None,
        error: None,
        usage: None,
        usage_total: Usage::default(),
    }
}
