//! Tenants and their keys: made, changed and taken back, each with its line in the audit log.

use std::sync::Arc;

use chrono::SecondsFormat;

use super::core::Core;
use super::{Command, FieldError, Manager, Refused, Reply, answer};
use crate::audit::{Act, Actor, Line};
use crate::keys::{KeyId, OPERATOR, Role, StoredKey, Token};
use crate::ledger::{CameTo, Day, Sums};
use crate::names;
use crate::quotas::{QuotaOverrides, QuotaPatch, Quotas};
use crate::store::{AuditFilter, StoreError, Writer};
use crate::task::Timestamp;
use crate::tenants::{DEFAULT_WEIGHT, Tenant};

/// Keys that are kept of a tenant. When one more is made, the first that is good no more goes.
pub(super) const MOST_KEYS: usize = 1000;

/// How often it is written down when keys were used last.
pub(super) const NOTE_USE_EVERY_MS: u64 = 60_000;

/// A change of tenants or keys.
#[derive(Clone, Debug)]
pub enum Change {
    /// A tenant of that name, if there is none.
    CreateTenant {
        /// The name.
        name: Arc<str>,
        /// The most tenants that there may be.
        most: u64,
    },
    /// Other settings of a tenant.
    ChangeTenant {
        /// The tenant.
        name: Arc<str>,
        /// The weight, where it changes.
        weight: Option<u32>,
        /// What changes of its quotas.
        quotas: QuotaPatch,
    },
    /// A new key.
    CreateKey(StoredKey),
    /// A key is good no more.
    RevokeKey {
        /// Whose it is.
        tenant: Arc<str>,
        /// Which.
        id: KeyId,
    },
}

/// What a change came to.
#[derive(Clone, Debug)]
pub enum Changed {
    /// The tenant as it is now, and whether there was none before.
    Tenant(Tenant, bool),
    /// The new key, and one that was removed for it.
    KeyCreated(StoredKey, Option<KeyId>),
    /// The key as it is now.
    KeyRevoked(StoredKey),
}

/// The manager's thread is asked for a change, or for what it alone knows.
pub(super) enum TenantCommand {
    Change { change: Box<Change>, by: Actor, reply: Reply<Changed> },
    Use { tenant: Arc<str>, reply: Reply<Quotas> },
}

/// What it came to inside the transaction.
pub(super) enum TenantDone {
    Changed(Result<Changed, Refused>),
    Use(Quotas),
}

impl TenantCommand {
    /// Who asks for it.
    pub(super) fn by(&self) -> Option<&Actor> {
        match self {
            TenantCommand::Change { by, .. } => Some(by),
            TenantCommand::Use { .. } => None,
        }
    }

    pub(super) fn refuse(self, why: Refused) {
        match self {
            TenantCommand::Change { reply, .. } => answer(reply, Err(why)),
            TenantCommand::Use { reply, .. } => answer(reply, Err(why)),
        }
    }
}

/// A new key, as it is asked for.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose it is to be.
    pub tenant: Arc<str>,
    /// What it may do.
    pub role: Role,
    /// The task types that it may run and change; `None`: all of them.
    pub task_types: Option<Vec<String>>,
    /// What it is called by.
    pub label: String,
    /// From when on it is good no more.
    pub expires_at: Option<Timestamp>,
}

/// The longest label of a key, in bytes.
const LABEL_BYTES: usize = 200;

/// Most task types that a key lists.
const MOST_TYPES: usize = 100;

impl NewKey {
    /// What is wrong with it.
    pub fn faults(&self, now: Timestamp) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut wrong = |pointer: String, detail: String| faults.push(FieldError { pointer, detail });
        if self.expires_at.is_some_and(|at| at <= now) {
            wrong("#/expires_at".into(), "must lie ahead".into());
        }
        if self.label.len() > LABEL_BYTES || self.label.chars().any(char::is_control) {
            wrong("#/label".into(), format!("has at most {LABEL_BYTES} bytes without control characters"));
        }
        let listed = self.task_types.as_deref().unwrap_or_default();
        if listed.len() > MOST_TYPES {
            wrong("#/task_types".into(), format!("has at most {MOST_TYPES} names"));
        }
        if self.task_types.is_some() && *self.tenant == *OPERATOR {
            wrong("#/task_types".into(), "the operator's keys are for all task types".into());
        }
        for (index, name) in listed.iter().enumerate().filter(|(_, name)| !names::is_name(name)) {
            wrong(format!("#/task_types/{index}"), format!("{name:?} is no name of a task type"));
        }
        faults
    }

    /// Makes it: what is told once, and what is kept.
    pub fn make(self, now: Timestamp) -> std::io::Result<(Token, StoredKey)> {
        let NewKey { tenant, role, task_types, label, expires_at } = self;
        let (id, token) = Token::new()?;
        let hash = token.hash();
        let (created_at, revoked_at, last_used_at) = (now, None, None);
        Ok((
            token,
            StoredKey { id, tenant, role, task_types, hash, label, created_at, expires_at, revoked_at, last_used_at },
        ))
    }
}

impl Manager {
    /// Changes tenants or keys. It is durable and holds when this returns.
    pub async fn administer(&self, change: Change, by: Actor) -> Result<Changed, Refused> {
        let change = Box::new(change);
        self.ask(|reply| Command::Tenant(Box::new(TenantCommand::Change { change, by, reply }))).await
    }

    /// What a tenant uses of its quotas, as far as the store and the manager know.
    pub async fn tenant_use(&self, tenant: &Arc<str>) -> Result<Quotas, Refused> {
        let of = tenant.clone();
        let counted = self.ask(|reply| Command::Tenant(Box::new(TenantCommand::Use { tenant: of, reply }))).await?;
        let stored = self.0.readers.stored_use(tenant.clone()).await?;
        let Quotas { pending_tasks, running_tasks, running_memory_bytes, cpu_ms_per_hour, .. } = counted;
        Ok(Quotas { pending_tasks, running_tasks, running_memory_bytes, cpu_ms_per_hour, ..stored })
    }
}

/// Makes a change inside a transaction, with its line in the audit log.
pub fn administer(
    store: &mut Writer,
    change: &Change,
    by: &Actor,
    now: Timestamp,
) -> Result<Result<Changed, Refused>, StoreError> {
    let (changed, act) = match change {
        Change::CreateTenant { name, most } => {
            if let Some(tenant) = store.tenant(name)? {
                return Ok(Ok(Changed::Tenant(tenant, false)));
            }
            if store.tenants()?.len() as u64 >= *most {
                return Ok(Err(Refused::TooManyTenants { limit: *most }));
            }
            let quotas = QuotaOverrides::default();
            let tenant = Tenant { name: name.clone(), created_at: now, weight: DEFAULT_WEIGHT, quotas };
            store.put_tenant(&tenant)?;
            let act = Act { action: "tenant.create", of: name.clone(), target: name.to_string(), detail: None };
            (Changed::Tenant(tenant, true), act)
        }
        Change::ChangeTenant { name, weight, quotas } => {
            let Some(before) = store.tenant(name)? else { return Ok(Err(Refused::NotFound)) };
            let (weight_now, quotas_now) = (weight.unwrap_or(before.weight), before.quotas.changed(quotas));
            let tenant = Tenant { weight: weight_now, quotas: quotas_now, ..before.clone() };
            if tenant == before {
                return Ok(Ok(Changed::Tenant(tenant, false)));
            }
            store.put_tenant(&tenant)?;
            let weight = weight.map(|weight| format!("weight {weight}"));
            // Made of numbers, which can always be written as JSON.
            let quotas = Some(quotas).filter(|quotas| **quotas != QuotaPatch::default());
            let quotas = quotas.and_then(|quotas| serde_json::to_string(quotas).ok());
            let quotas = quotas.map(|quotas| format!("quotas {quotas}"));
            let detail = Some(weight.into_iter().chain(quotas).collect::<Vec<_>>().join(", "));
            let act = Act { action: "tenant.change", of: name.clone(), target: name.to_string(), detail };
            (Changed::Tenant(tenant, false), act)
        }
        Change::CreateKey(key) => {
            if store.tenant(&key.tenant)?.is_none() {
                return Ok(Err(Refused::NotFound));
            }
            let gone = match place_for_one_more(&store.keys_of(&key.tenant)?, now) {
                Ok(gone) => gone,
                Err(refused) => return Ok(Err(refused)),
            };
            if let Some(gone) = gone {
                store.delete_key(gone)?;
            }
            store.insert_key(key)?;
            let types = key.task_types.as_ref().map(|types| format!(", task types {}", types.join(" ")));
            let expires = key.expires_at.and_then(|at| chrono::DateTime::from_timestamp_millis(at.0));
            let expires = expires.map(|at| format!(", expires {}", at.to_rfc3339_opts(SecondsFormat::Secs, true)));
            let gone_too = gone.map(|gone| format!(", in place of {gone}"));
            let bounds: String = [types, expires, gone_too].into_iter().flatten().collect();
            let detail = Some(format!("role {}{bounds}", key.role.name()));
            let act = Act { action: "key.create", of: key.tenant.clone(), target: key.id.to_string(), detail };
            (Changed::KeyCreated(key.clone(), gone), act)
        }
        Change::RevokeKey { tenant, id } => {
            let found = store.keys_of(tenant)?.into_iter().find(|key| key.id == *id);
            let Some(key) = found else { return Ok(Err(Refused::NotFound)) };
            if key.revoked_at.is_some() {
                return Ok(Ok(Changed::KeyRevoked(key)));
            }
            store.revoke_key(*id, now)?;
            let act = Act { action: "key.revoke", of: tenant.clone(), target: id.to_string(), detail: None };
            (Changed::KeyRevoked(StoredKey { revoked_at: Some(now), ..key }), act)
        }
    };
    store.audit(by, &act, now)?;
    Ok(Ok(changed))
}

/// Which key has to go so that there can be one more, if any.
fn place_for_one_more(keys: &[StoredKey], now: Timestamp) -> Result<Option<KeyId>, Refused> {
    if keys.len() < MOST_KEYS {
        return Ok(None);
    }
    let is_over = |key: &&StoredKey| key.revoked_at.is_some() || key.expires_at.is_some_and(|expires| expires <= now);
    let over = keys.iter().find(is_over).ok_or(Refused::TooManyKeys { limit: MOST_KEYS as u64 })?;
    Ok(Some(over.id))
}

impl Core {
    /// Whether somebody whose request was let through may still change something.
    pub(super) fn is_admitted(&mut self, by: &Actor, now: Timestamp) -> Result<bool, StoreError> {
        match by.key {
            Some(key) => self.store.is_key_good(key, now),
            // The command line and the private socket never need one. Others need none until there is one.
            None => Ok(*by.tenant == *OPERATOR || !self.store.has_keys()?),
        }
    }

    pub(super) fn apply_tenant(&mut self, command: &TenantCommand, now: Timestamp) -> Result<TenantDone, StoreError> {
        Ok(match command {
            TenantCommand::Change { change, by, .. } => {
                TenantDone::Changed(administer(&mut self.store, change, by, now)?)
            }
            TenantCommand::Use { tenant, .. } => {
                let at_work = self.at_once.of_tenant(tenant);
                TenantDone::Use(Quotas {
                    pending_tasks: Some(self.backlog.of(tenant)),
                    running_tasks: Some(at_work.tasks),
                    running_memory_bytes: Some(at_work.memory),
                    cpu_ms_per_hour: self.workers.turns.used_in_hour(tenant, now),
                    ..Quotas::default()
                })
            }
        })
    }

    pub(super) fn tell_tenant(&mut self, command: TenantCommand, done: TenantDone) {
        let (reply, done) = match (command, done) {
            (TenantCommand::Change { reply, .. }, TenantDone::Changed(done)) => (reply, done),
            (TenantCommand::Use { reply, .. }, TenantDone::Use(used)) => return answer(reply, Ok(used)),
            // No command does what another asks for.
            _ => return,
        };
        match &done {
            Ok(Changed::Tenant(tenant, _)) => {
                self.tenants.put(tenant.clone());
                let cpu = self.tenants.quotas(&tenant.name).cpu_ms_per_hour;
                self.workers.turns.set(&tenant.name, tenant.weight, cpu);
                // Its tasks may not have to wait any more.
                self.timers.hours.earlier(Timestamp(0));
            }
            Ok(Changed::KeyCreated(key, gone)) => {
                self.tenants.keys.put(key.clone());
                if let Some(gone) = gone {
                    self.tenants.keys.forget(*gone);
                }
            }
            Ok(Changed::KeyRevoked(key)) => self.tenants.keys.put(key.clone()),
            Err(_) => {}
        }
        answer(reply, done);
    }

    /// Writes down when keys were used last.
    pub(super) fn note_used_keys(&mut self, since: Timestamp) -> Result<(), StoreError> {
        for (id, used) in self.tenants.keys.used_since(since) {
            self.store.key_used(id, used)?;
        }
        Ok(())
    }
}

impl Manager {
    /// What a tenant used from one day to another, both included.
    pub async fn usage(&self, tenant: &Arc<str>, from: Day, to: Day) -> Result<Vec<(Day, CameTo, Sums)>, Refused> {
        Ok(self.0.readers.usage(tenant.clone(), from, to).await?)
    }

    /// Lines of the audit log, newest first.
    pub async fn audit(&self, filter: AuditFilter, limit: usize) -> Result<Vec<Line>, Refused> {
        Ok(self.0.readers.audit(filter, limit).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_over_makes_place_for_another() {
        let key = |number: u64| {
            let new = NewKey {
                tenant: "a".into(),
                role: Role::Read,
                task_types: None,
                label: String::new(),
                expires_at: Some(Timestamp(100)),
            };
            StoredKey { id: KeyId(number), ..new.make(Timestamp(0)).unwrap().1 }
        };
        let mut keys: Vec<_> = (0..MOST_KEYS as u64).map(key).collect();
        assert!(place_for_one_more(&keys[1..], Timestamp(0)).unwrap().is_none());
        assert!(matches!(place_for_one_more(&keys, Timestamp(99)), Err(Refused::TooManyKeys { .. })));
        assert_eq!(place_for_one_more(&keys, Timestamp(100)).unwrap(), Some(KeyId(0)));
        keys[7].revoked_at = Some(Timestamp(1));
        assert_eq!(place_for_one_more(&keys, Timestamp(99)).unwrap(), Some(KeyId(7)));
    }
}
