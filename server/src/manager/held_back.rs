//! Tasks that are ready and must not be started: their type is paused, or their version is not loaded.

use std::sync::Arc;

use super::core::Core;
use super::upkeep::{HELD_GROUPS, HELD_STEP, LookAtHeld};
use crate::registry::Version;
use crate::store::StoreError;
use crate::task::{Digest, Event, Task, Timestamp};

impl Core {
    /// Whether a task that is ready must not be started at the moment.
    pub(super) fn must_wait(&self, task: &Task) -> bool {
        self.is_held_back(&task.tenant, &task.task_type, task.component)
    }

    fn is_held_back(&self, tenant: &Arc<str>, task_type: &str, component: Digest) -> bool {
        self.registry.is_paused(tenant, task_type)
            || match self.registry.version(component) {
                Some(Version::Ready(_)) => !self.is_in_memory(tenant, component),
                Some(Version::Compiling) => true,
                Some(Version::Failed(_)) | None => false,
            }
    }

    /// Whether the program of a version is in memory. Otherwise it is loaded for a tenant, which is told.
    pub(super) fn is_in_memory(&self, tenant: &Arc<str>, component: Digest) -> bool {
        let is_in_memory = self.registry.is_in_memory(component);
        if !is_in_memory {
            self.workers.compiler.load(tenant.clone(), component);
        }
        is_in_memory
    }

    /// Looks at some groups of the tasks that are held back, and releases those that can be started now. Returns
    /// the groups that are left to be looked at; `None`: there are no more.
    pub(super) fn release_held(
        &mut self,
        groups: LookAtHeld,
        now: Timestamp,
    ) -> Result<Option<LookAtHeld>, StoreError> {
        let mut after = match groups {
            LookAtHeld::All => None,
            LookAtHeld::After(group) => Some(group),
        };
        let mut released = 0;
        for _ in 0..HELD_GROUPS {
            let Some(group) = self.store.next_held(after.as_ref())? else { return Ok(None) };
            if !self.is_held_back(&group.tenant, &group.task_type, group.component) {
                let tasks = self.store.held(&group, HELD_STEP)?;
                let mut more = tasks.len() == HELD_STEP;
                released += tasks.len();
                for mut task in tasks {
                    more &= self.change(&mut task, Event::Release, now)?.is_ok();
                }
                // What is left of this group comes next: those before it are held no more.
                if more {
                    break;
                }
            }
            after = Some(group);
            if released >= HELD_STEP {
                break;
            }
        }
        Ok(Some(after.map_or(LookAtHeld::All, LookAtHeld::After)))
    }
}
