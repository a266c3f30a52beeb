//! Writing objects: by the manager's thread, as every change.

use std::sync::Arc;

use super::{Command, Manager, Refused};
use crate::store::{ObjectWrite, Precondition};

/// An object to be written.
pub(super) struct PutObject {
    pub(super) name: String,
    pub(super) etag: String,
    pub(super) data: bytes::Bytes,
    pub(super) precondition: Precondition,
}

impl Manager {
    /// Creates or replaces an object; durable when it returns.
    pub(crate) async fn put_object(
        &self,
        tenant: &Arc<str>,
        name: String,
        etag: String,
        data: bytes::Bytes,
        precondition: Precondition,
    ) -> Result<ObjectWrite, Refused> {
        let put = PutObject { name, etag, data, precondition };
        self.ask(|reply| Command::PutObject { tenant: tenant.clone(), put, reply }).await
    }

    /// Removes an object.
    pub(crate) async fn remove_object(
        &self,
        tenant: &Arc<str>,
        name: String,
        precondition: Precondition,
    ) -> Result<ObjectWrite, Refused> {
        self.ask(|reply| Command::RemoveObject { tenant: tenant.clone(), name, precondition, reply }).await
    }
}
