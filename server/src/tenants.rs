//! Tenants: those who share the server and know nothing of each other.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::keys::Keys;
use crate::task::Timestamp;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its share of the machine beside the others', by the weights of those that have work.
    pub weight: u32,
}

/// The weight that a tenant has by itself.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The largest weight.
pub const MOST_WEIGHT: u32 = 10_000;

/// Whether a tenant can have that name: `[a-z0-9][a-z0-9-]{0,62}`.
pub fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// The tenants that there are, and everybody's keys.
#[derive(Debug, Default)]
pub struct Tenants {
    known: RwLock<HashMap<Arc<str>, Arc<Tenant>>>,
    /// The keys.
    pub keys: Keys,
}

impl Tenants {
    /// The tenant of that name.
    pub fn find(&self, name: &str) -> Option<Arc<Tenant>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes a tenant as it is now.
    pub fn put(&self, tenant: Tenant) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(tenant.name.clone(), Arc::new(tenant));
    }

    /// How many tenants run tasks: all but the operator.
    pub fn sharing(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len().saturating_sub(1)
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Tenant>> {
        let mut all: Vec<_> = self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}
