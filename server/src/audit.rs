//! The audit log: who administered what, when, and from where.

use std::sync::Arc;

use crate::keys::KeyId;
use crate::task::Timestamp;

/// Who does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Whose key it is.
    pub tenant: Arc<str>,
    /// Which; `None`: none was needed.
    pub key: Option<KeyId>,
    /// The address that the request came from, or `private socket`, or `command line`.
    pub peer: Arc<str>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// By name, as `key.create`.
    pub action: &'static str,
    /// Whose thing it was done to.
    pub of: Arc<str>,
    /// Which thing.
    pub target: String,
    /// What else there is to say; no secrets.
    pub detail: Option<String>,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Numbers only grow.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: Actor,
    /// The action's name.
    pub action: String,
    /// Whose thing it was done to.
    pub of: String,
    /// Which thing.
    pub target: String,
    /// What else there is to say.
    pub detail: Option<String>,
}
