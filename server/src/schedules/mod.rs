//! Schedules: tasks that are made when their time has come, again and again. Here is what a schedule
//! is, and in `cron` when it is due. Pure; the manager makes the tasks.

mod cron;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub use cron::{BadCron, Cron, MOST_MISSED};

use crate::limits::LimitOverrides;
use crate::task::{Digest, Labels, RetryOverrides, Status, TaskId, Timestamp};

/// Due times that wait for the task before them. More are given up.
pub const MOST_QUEUED: u32 = 1000;

/// What happens at a due time while a task of the schedule is Pending or Running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Another task is made.
    #[default]
    Allow,
    /// None is made.
    Skip,
    /// One is made when the task before it has ended; at most 1000 due times wait.
    Queue,
}

/// What happens with due times that were missed: those that are more than a minute ago when they are looked
/// at, because the server was down, the schedule paused or the queue full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// Nothing; of a pause no due time at all, however short it was.
    #[default]
    None,
    /// One task is made for all due times until now.
    One,
    /// A task is made for each; of more than 1000 for the last 1000.
    All,
}

/// What a client says of a schedule; stored as it is written here.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Spec {
    /// When: a cron pattern.
    pub cron: String,
    /// Whose clock: a name of the IANA time zone database.
    pub time_zone: String,
    /// What is made.
    pub task: ScheduledTask,
    /// What happens while a task of the schedule has not ended.
    pub overlap: Overlap,
    /// What happens with due times that were missed.
    pub catch_up: CatchUp,
    /// No tasks are made.
    pub paused: bool,
}

/// The task of a schedule.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ScheduledTask {
    /// The name of its type.
    pub task_type: String,
    /// Its input, byte for byte as it was sent.
    #[schema(value_type = serde_json::Value)]
    pub input: Box<RawValue>,
    /// Its client's names for it.
    #[schema(value_type = std::collections::BTreeMap<String, String>)]
    pub labels: Labels,
    /// −100 … 100, higher first.
    pub priority: i32,
    /// At most one task with it is Pending or Running.
    #[schema(required)]
    pub unique_key: Option<String>,
    /// So many tasks of the type that have it run at once as the type says.
    #[serde(default)]
    #[schema(required)]
    pub concurrency_key: Option<String>,
    /// Limits of its attempts.
    pub limits: LimitOverrides,
    /// How it is attempted again.
    pub retry: RetryOverrides,
}

impl Spec {
    /// The strong entity tag of what the client says, without quotes.
    pub fn tag(&self) -> String {
        // Strings, numbers and JSON: there is nothing in it that cannot be written.
        Digest(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()).into()).hex()
    }

    /// Its times.
    pub fn cron(&self) -> Result<Cron, BadCron> {
        Cron::parse(&self.cron, &self.time_zone)
    }
}

/// A schedule as it is stored.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Whose it is.
    pub tenant: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// What its client says of it.
    pub spec: Spec,
    /// When there was none of this name before.
    pub created_at: Timestamp,
    /// When its client wrote it last.
    pub updated_at: Timestamp,
    /// The due time that comes next, or that it will go on with when it is paused no longer.
    pub next_at: Option<Timestamp>,
    /// Due times that wait for the task before them.
    pub queued: u32,
    /// Why the last due time made no task.
    pub error: Option<Failure>,
}

/// Why a due time made no task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When that was.
    pub at: Timestamp,
    /// Why.
    pub message: String,
}

/// A task that a schedule made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeTask {
    /// Its id.
    pub id: TaskId,
    /// Its status.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
}
