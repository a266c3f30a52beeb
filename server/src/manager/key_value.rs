//! Changes of what tasks keep through `wasi:keyvalue`: by the manager's thread, as every change.

use std::sync::Arc;

use super::core::Core;
use super::{Command, Manager, Refused, Reply};
use crate::store::{KeyValueChange, KeyValueWrite, StoreError};

/// A change in a tenant's bucket.
pub(super) struct KeyValueCommand {
    tenant: Arc<str>,
    bucket: Arc<str>,
    change: KeyValueChange,
    pub(super) reply: Reply<KeyValueWrite>,
}

impl KeyValueCommand {
    /// How many keys it is about.
    pub(super) fn keys(&self) -> usize {
        self.change.keys()
    }
}

impl Manager {
    /// Makes a change in a tenant's bucket; durable when it returns.
    pub(crate) async fn change_key_values(
        &self,
        tenant: &Arc<str>,
        bucket: &Arc<str>,
        change: KeyValueChange,
    ) -> Result<KeyValueWrite, Refused> {
        let (tenant, bucket) = (tenant.clone(), bucket.clone());
        self.ask(|reply| Command::KeyValue(Box::new(KeyValueCommand { tenant, bucket, change, reply }))).await
    }
}

impl Core {
    pub(super) fn apply_key_value(&mut self, command: &KeyValueCommand) -> Result<KeyValueWrite, StoreError> {
        let KeyValueCommand { tenant, bucket, change, .. } = command;
        self.store.change_key_values(tenant, bucket, change, &self.tenants.quotas(tenant))
    }
}
