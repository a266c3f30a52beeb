//! Makes a task of what was asked for, where its type and the server allow it. Used beside the manager's
//! thread for what clients ask, and on it for what schedules do.

use std::sync::Arc;

use super::{FieldError, NewItem, NewTask, Refused};
use crate::clock;
use crate::limits::Limits;
use crate::pointer::Fault;
use crate::registry::{Registry, TaskType, Version};
use crate::task::{Digest, RetryPolicy, Status, Task, TaskId, Timestamp, Usage};

/// A task to be stored, of the current version of its type or of another one. Its input is looked at, too.
pub(super) fn new_item(
    registry: &Registry,
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
    version: Option<Digest>,
) -> Result<NewItem, Refused> {
    let found = find(registry, tenant, &new.task_type, version)?;
    let item = item_of(defaults, ceiling, tenant, new, &found)?;
    check_input(&found, &item.task.input, &item.limits)?;
    Ok(item)
}

/// A task of a schedule. Its input was looked at when the schedule was stored: to do it again would hold up
/// everybody else.
pub(super) fn scheduled_item(
    registry: &Registry,
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
) -> Result<NewItem, Refused> {
    let found = find(registry, tenant, &new.task_type, None)?;
    item_of(defaults, ceiling, tenant, new, &found)
}

/// A type, and a version of it that tasks can be pinned to.
struct Found {
    task_type: TaskType,
    component: Digest,
    version: Version,
}

fn find(registry: &Registry, tenant: &str, name: &str, version: Option<Digest>) -> Result<Found, Refused> {
    let task_type = registry.find(tenant, name).ok_or(Refused::UnknownTaskType)?;
    let component = version.or(task_type.current).ok_or(Refused::TypeNotReady)?;
    match registry.version(component) {
        Some(version @ (Version::Ready(_) | Version::Compiling)) => Ok(Found { task_type, component, version }),
        Some(Version::Failed(_)) | None => Err(Refused::TypeNotReady),
    }
}

fn item_of(
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
    Found { task_type, component, .. }: &Found,
) -> Result<NewItem, Refused> {
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
        component: *component,
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
        concurrency_key: new.concurrency_key,
        held: None,
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

/// Whether an input is what the component's function takes, or else what the type says that it has to meet.
fn check_input(found: &Found, input: &str, limits: &Limits) -> Result<(), Refused> {
    let function = match &found.version {
        Version::Ready(about) => about.function.as_ref(),
        _ => None,
    };
    let checked = match (function, &found.task_type.input_schema) {
        (Some(function), _) => function.check(input, limits.host_memory_bytes),
        (None, Some(schema)) => schema.check(input),
        (None, None) => Ok(()),
    };
    checked.map_err(|faults| {
        let errors = faults.into_iter();
        let errors =
            errors.map(|Fault { pointer, detail }| FieldError { pointer: format!("#/input{pointer}"), detail });
        Refused::Invalid(errors.collect())
    })
}

/// A UUIDv7 begins with its time of creation (RFC 9562, section 5.7).
pub(super) fn created_at(id: TaskId) -> Timestamp {
    i64::try_from(id.0.as_u128() >> 80).map_or_else(|_| clock::now(), Timestamp)
}
