//! Writing secrets, which come here sealed: by the manager's thread, as every change.

use std::sync::Arc;

use super::core::Core;
use super::{Command, Manager, Refused, Reply, answer};
use crate::audit::{Act, Actor};
use crate::store::{Precondition, StoreError};
use crate::task::Timestamp;

/// The manager's thread is asked to write a secret, or to remove it.
pub(super) struct SecretCommand {
    tenant: Arc<str>,
    name: String,
    /// What is to be stored; `None` to remove it.
    sealed: Option<Vec<u8>>,
    precondition: Precondition,
    pub(super) by: Actor,
    reply: Reply<SecretWritten>,
}

/// A secret that was written or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretWritten {
    /// There was none of that name.
    pub created: bool,
    /// When it was written first.
    pub created_at: Timestamp,
    /// When it was written last.
    pub updated_at: Timestamp,
}

impl SecretCommand {
    pub(super) fn answer(self, done: Result<SecretWritten, Refused>) {
        answer(self.reply, done);
    }
}

impl Manager {
    /// Stores a sealed secret in place of the one of that name, if there is one; durable when it returns.
    pub async fn put_secret(
        &self,
        tenant: &Arc<str>,
        name: &str,
        sealed: Vec<u8>,
        precondition: Precondition,
        by: Actor,
    ) -> Result<SecretWritten, Refused> {
        self.write_secret(tenant, name, Some(sealed), precondition, by).await
    }

    /// Removes a secret.
    pub async fn delete_secret(
        &self,
        tenant: &Arc<str>,
        name: &str,
        precondition: Precondition,
        by: Actor,
    ) -> Result<SecretWritten, Refused> {
        self.write_secret(tenant, name, None, precondition, by).await
    }

    async fn write_secret(
        &self,
        tenant: &Arc<str>,
        name: &str,
        sealed: Option<Vec<u8>>,
        precondition: Precondition,
        by: Actor,
    ) -> Result<SecretWritten, Refused> {
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.ask(|reply| Command::Secret(Box::new(SecretCommand { tenant, name, sealed, precondition, by, reply })))
            .await
    }
}

impl Core {
    pub(super) fn apply_secret(
        &mut self,
        command: &SecretCommand,
        now: Timestamp,
    ) -> Result<Result<SecretWritten, Refused>, StoreError> {
        let SecretCommand { tenant, name, sealed, precondition, by, .. } = command;
        let act = |action| Act { action, of: tenant.clone(), target: name.clone(), detail: None };
        let before = self.store.secret_times(tenant, name)?;
        // A secret has no entity tag, which would tell whether it is still the same: so none matches.
        let holds = match precondition {
            Precondition::Match(_) => false,
            other => other.holds(before.map(|_| "")),
        };
        if !holds {
            return Ok(Err(Refused::PreconditionFailed));
        }
        let Some(sealed) = sealed else {
            let Some((created_at, updated_at)) = before else { return Ok(Err(Refused::NotFound)) };
            self.store.delete_secret(tenant, name)?;
            self.store.audit(by, &act("secret.delete"), now)?;
            return Ok(Ok(SecretWritten { created: false, created_at, updated_at }));
        };
        if before.is_none()
            && let Some(limit) = self.tenants.quotas(tenant).secrets
            && self.store.count_secrets(tenant)? >= limit
        {
            return Ok(Err(Refused::TooManySecrets { limit }));
        }
        let created_at = before.map_or(now, |(created_at, _)| created_at);
        self.store.put_secret(tenant, name, sealed, created_at, now)?;
        self.store.audit(by, &act("secret.put"), now)?;
        Ok(Ok(SecretWritten { created: before.is_none(), created_at, updated_at: now }))
    }
}
