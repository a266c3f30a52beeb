//! What happened to tasks, as it is told to whoever listens. Pure.

use crate::task::{Status, TaskId, Timestamp};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Happened {
    /// It was created, or goes on waiting after an attempt; then with that attempt's error.
    Pending = 0,
    /// An attempt started.
    Running = 1,
    /// It said how far it is.
    Progress = 2,
    /// It wrote log lines.
    Log = 3,
    /// It ended well.
    Completed = 4,
    /// It ended with an error.
    Failed = 5,
    /// It was removed.
    Deleted = 6,
}

impl Happened {
    /// All of them, in the order of their numbers.
    pub const ALL: [Happened; 7] = [
        Happened::Pending,
        Happened::Running,
        Happened::Progress,
        Happened::Log,
        Happened::Completed,
        Happened::Failed,
        Happened::Deleted,
    ];

    /// The name of the event in the API.
    pub fn name(self) -> &'static str {
        match self {
            Happened::Pending => "task.pending",
            Happened::Running => "task.running",
            Happened::Progress => "task.progress",
            Happened::Log => "task.log",
            Happened::Completed => "task.completed",
            Happened::Failed => "task.failed",
            Happened::Deleted => "task.deleted",
        }
    }

    /// What it is when a task comes to a status.
    pub fn becoming(status: Status) -> Happened {
        match status {
            Status::Pending => Happened::Pending,
            Status::Running => Happened::Running,
            Status::Completed => Happened::Completed,
            Status::Failed => Happened::Failed,
        }
    }
}

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number: later events have higher ones.
    pub seq: u64,
    /// The task.
    pub task: TaskId,
    /// What.
    pub happened: Happened,
    /// The number of the attempt; 0 before the first.
    pub attempt: u32,
    /// When.
    pub at: Timestamp,
    /// More of it, as JSON: the error, the progress, or the lines.
    pub data: Option<String>,
}
