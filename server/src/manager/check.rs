//! Makes a task of what was asked for, where its type and the server allow it. Used beside the manager's
//! thread for what clients ask, and on it for what schedules do.

use std::sync::Arc;

use super::{FieldError, NewItem, NewTask, Refused};
use crate::clock;
use crate::input_schema::InputSchema;
use crate::limits::Limits;
use crate::pointer::Fault;
use crate::registry::{Registry, TaskType, Version};
use crate::sandbox::About;
use crate::task::{Digest, RetryPolicy, Status, Task, TaskId, Timestamp, Usage};

/// An input of no more bytes than this is turned into arguments at once.
const CHEAP_INPUT: usize = 16 << 10;

/// A task to be stored, of the current version of its type or of another one, and what its input has to meet.
pub(super) fn new_item(
    registry: &Registry,
    defaults: &Limits,
    ceiling: &Limits,
    tenant: &Arc<str>,
    new: NewTask,
    version: Option<Digest>,
) -> Result<(NewItem, Option<Rules>), Refused> {
    let found = find(registry, tenant, &new.task_type, version)?;
    let item = item_of(defaults, ceiling, tenant, new, &found)?;
    Ok((item, found.rules()))
}

/// What inputs have to meet: to be what a component's function takes, or what a type says.
pub(super) enum Rules {
    Function(Arc<About>),
    Schema(Arc<InputSchema>),
}

impl Rules {
    /// Whether checking an input against them takes less than a millisecond or so.
    pub(super) fn are_cheap(&self, input: &str) -> bool {
        match self {
            Rules::Function(_) => input.len() <= CHEAP_INPUT,
            Rules::Schema(schema) => schema.is_cheap(input),
        }
    }

    /// Checks the input of a task.
    pub(super) fn check(&self, NewItem { task, limits, .. }: &NewItem) -> Result<(), Refused> {
        let checked = match self {
            Rules::Function(about) => match &about.function {
                Some(function) => function.check(&task.input, limits.host_memory_bytes),
                None => Ok(()),
            },
            Rules::Schema(schema) => schema.check(&task.input),
        };
        checked.map_err(|faults| {
            let errors = faults.into_iter();
            let errors =
                errors.map(|Fault { pointer, detail }| FieldError { pointer: format!("#/input{pointer}"), detail });
            Refused::Invalid(errors.collect())
        })
    }
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

impl Found {
    fn rules(&self) -> Option<Rules> {
        match (&self.version, &self.task_type.input_schema) {
            (Version::Ready(about), _) if about.function.is_some() => Some(Rules::Function(about.clone())),
            (_, Some(schema)) => Some(Rules::Schema(schema.clone())),
            (_, None) => None,
        }
    }
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

/// A UUIDv7 begins with its time of creation (RFC 9562, section 5.7).
pub(super) fn created_at(id: TaskId) -> Timestamp {
    i64::try_from(id.0.as_u128() >> 80).map_or_else(|_| clock::now(), Timestamp)
}
