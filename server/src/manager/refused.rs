//! Why a request was refused, whatever the way it came.

use crate::pointer::add_segment;
use crate::quotas::{Rate, UsedUp};
use crate::task::TaskId;

/// A fault in one field of a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Where: a JSON pointer as a URI fragment (RFC 6901, section 6).
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

impl FieldError {
    /// A fault at the end of that way.
    pub fn at<'a>(path: impl IntoIterator<Item = &'a str>, detail: String) -> FieldError {
        let mut pointer = String::from("#");
        for segment in path {
            add_segment(&mut pointer, segment);
        }
        FieldError { pointer, detail }
    }
}

/// A request that was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such task, for this tenant.
    #[error("there is no such task")]
    NotFound,
    /// There is no task type of that name.
    #[error("there is no such task type")]
    UnknownTaskType,
    /// The type has no usable version.
    #[error("the task type has no usable version")]
    TypeNotReady,
    /// The store has no room for the end of an attempt that was stopped for this.
    #[error("the attempt was stopped, and there is no room to store that yet")]
    StoppedOnly,
    /// Somebody removes the type, or tries to.
    #[error("the task type is being removed")]
    TypeClosed,
    /// The type of the task was removed.
    #[error("the task type was removed")]
    TypeGone,
    /// Tasks of the type are Pending or Running.
    #[error("tasks of this type are pending or running")]
    TypeInUse,
    /// The type is shared by all tenants.
    #[error("the type is shared by all tenants")]
    SharedType,
    /// The tenant has as many task types as it may.
    #[error("there are {limit} task types already")]
    TooManyTaskTypes {
        /// How many that is.
        limit: u64,
    },
    /// There are as many tenants as may be.
    #[error("there are {limit} tenants already")]
    TooManyTenants {
        /// How many that is.
        limit: u64,
    },
    /// The tenant has as many keys as it may.
    #[error("there are {limit} keys already")]
    TooManyKeys {
        /// How many that is.
        limit: u64,
    },
    /// The request is well-formed and says something that cannot be.
    #[error("the request is not acceptable")]
    Invalid(Vec<FieldError>),
    /// The input is too large.
    #[error("the input is larger than {limit} bytes")]
    InputTooLarge {
        /// The limit that holds for it.
        limit: u64,
    },
    /// The task has ended.
    #[error("the task has ended")]
    Ended,
    /// The task has not ended.
    #[error("the task has not ended")]
    NotEnded,
    /// Another task that has not ended has the unique key.
    #[error("another task has this unique key")]
    UniqueKey {
        /// Which.
        holder: TaskId,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The task that was created under the idempotency key is gone.
    #[error("the task that was created under this idempotency key was removed")]
    Gone,
    /// The tenant has as much as it may.
    #[error(transparent)]
    QuotaExceeded(UsedUp),
    /// The tenant creates tasks faster than it may.
    #[error("{} tasks were created at once", rate.burst)]
    TooManySubmitted {
        /// How fast it may.
        rate: Rate,
        /// When it may again create as many as it ever may at once, in seconds.
        full_in: u64,
    },
    /// The tenant has as many Pending tasks as it may.
    #[error("{limit} tasks are pending")]
    TooManyPending {
        /// How many that is.
        limit: u64,
        /// When to try again, in seconds.
        retry_after: u64,
    },
    /// As many tasks are Pending as the server takes.
    #[error("the queue is full")]
    QueueFull {
        /// When to try again, in seconds.
        retry_after: u64,
    },
    /// The key of the request was taken back, or has expired.
    #[error("the key is good no more")]
    KeyOver,
    /// The precondition of a write does not hold.
    #[error("the precondition does not hold")]
    PreconditionFailed,
    /// The tenant has as many schedules as it may.
    #[error("there are {limit} schedules already")]
    TooManySchedules {
        /// How many that is.
        limit: u64,
    },
    /// The tenant has as many secrets as it may.
    #[error("there are {limit} secrets already")]
    TooManySecrets {
        /// How many that is.
        limit: u64,
    },
    /// The tenant has as many bulk operations open as it may.
    #[error("{limit} operations are running")]
    TooManyOperations {
        /// How many that is.
        limit: u64,
    },
    /// The disk takes no writes at the moment.
    #[error("the storage takes no writes")]
    NoRoom,
    /// Too many requests wait already.
    #[error("too many requests wait")]
    Busy,
    /// The server stops.
    #[error("the server stops")]
    Draining,
    /// Reading took too long.
    #[error("reading took too long")]
    TooSlow,
    /// The host's own fault; for the log only.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}
