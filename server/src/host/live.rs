//! What running attempts say of themselves before it is stored: the latest progress.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::task::{Progress, TaskId};

/// The latest progress of every running attempt that reported any.
#[derive(Debug, Default)]
pub struct LiveAttempts(Mutex<HashMap<TaskId, (u32, Progress)>>);

impl LiveAttempts {
    /// Notes the latest progress.
    pub fn set(&self, id: TaskId, attempt: u32, progress: Progress) {
        self.lock().insert(id, (attempt, progress));
    }

    /// The latest progress of that attempt.
    pub fn progress(&self, id: TaskId, attempt: u32) -> Option<Progress> {
        self.lock().get(&id).filter(|(of, _)| *of == attempt).map(|(_, progress)| progress.clone())
    }

    /// Forgets the attempt.
    pub fn remove(&self, id: TaskId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TaskId, (u32, Progress)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
