//! Makes a task of what was asked for, where its type and the server allow it. Used beside the manager's
//! thread for what clients ask, and on it for what schedules do.

use std::sync::Arc;

use super::{FieldError, NewItem, NewTask, Refused};
use crate::clock;
use crate::limits::Limits;
use crate::registry::{Registry, Version};
use crate::task::{Digest, RetryPolicy, Status, Task, TaskId, Timestamp, Usage};

/// A task to be stored, of the current version of its type.
pub(super) fn new_item(
    registry: &Registry,
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
) -> Result<NewItem, Refused> {
    new_item_of(registry, defaults, ceiling, tenant, new, None)
}

/// The same of any version.
pub(super) fn new_item_of(
    registry: &Registry,
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
    version: Option<Digest>,
) -> Result<NewItem, Refused> {
    let task_type = registry.find(tenant, &new.task_type).ok_or(Refused::UnknownTaskType)?;
    let Some(component) = version.or(task_type.current).filter(|current| is_usable(registry, *current)) else {
        return Err(Refused::TypeNotReady);
    };
    let mut errors = Vec::new();
    let of_type = task_type.limits(defaults, ceiling);
    let limits = of_type.with(&new.limits, &of_type).unwrap_or_else(|bad| {
        errors.extend(bad.into_iter().map(|bad| FieldError {
            pointer: format!("#/limits/{}", bad.name),
            detail: format!("must be between 1 and {}", bad.ceiling),
        }));
        of_type
    });
    let retry = task_type.retry().with(&new.retry).unwrap_or_else(|bad| {
        errors.extend(bad.into_iter().map(|bad| FieldError {
            pointer: format!("#/retry/{}", bad.name),
            detail: format!("must be between 1 and {}", bad.most),
        }));
        RetryPolicy::DEFAULT
    });
    if !(-100..=100).contains(&new.priority) {
        let detail = "must be between -100 and 100".to_owned();
        errors.push(FieldError { pointer: "#/priority".into(), detail });
    }
    if !errors.is_empty() {
        return Err(Refused::Invalid(errors));
    }
    if new.input.len() as u64 > limits.input_bytes {
        return Err(Refused::InputTooLarge { limit: limits.input_bytes });
    }
    let id = TaskId(uuid::Uuid::now_v7());
    let created_at = created_at(id);
    let due_at = new.due_at.filter(|due| *due > created_at);
    let task = Task {
        id,
        tenant: tenant.clone(),
        task_type: task_type.name.clone(),
        component,
        priority: new.priority,
        created_at,
        limits: new.limits,
        input: new.input,
        labels: new.labels,
        retry,
        due_at,
        ready_at: due_at.unwrap_or(created_at),
        expires_at: new.expires_at,
        unique_key: new.unique_key,
        schedule: None,
        held: false,
        status: Status::Pending,
        attempt: 0,
        failures: 0,
        interruptions: 0,
        server: None,
        started_at: None,
        finished_at: None,
        progress: None,
        output: None,
        error: None,
        usage: None,
        usage_total: Usage::default(),
    };
    Ok(NewItem { task, limits, idempotency: new.idempotency })
}

/// Whether tasks can be pinned to a version: it was compiled, here or before the last start.
fn is_usable(registry: &Registry, component: Digest) -> bool {
    matches!(registry.version(component), Some(Version::Ready(_) | Version::Compiling))
}

/// A UUIDv7 begins with its time of creation (RFC 9562, section 5.7).
pub(super) fn created_at(id: TaskId) -> Timestamp {
    i64::try_from(id.0.as_u128() >> 80).map_or_else(|_| clock::now(), Timestamp)
}
