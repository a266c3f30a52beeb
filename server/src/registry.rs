//! Task types: names, their current versions, and the programs to run. In memory; the store keeps
//! names and bytes, and whoever changes a type changes both.
//!
//! What is known of a version is always here. Its code is where it is needed: every program in memory costs a file
//! descriptor and some maps, of which a process has only so many.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use crate::grants::Grants;
use crate::input_schema::InputSchema;
use crate::limits::{LimitOverrides, Limits};
use crate::sandbox::{About, Program};
use crate::schedule::Concurrency;
use crate::store::StoredType;
use crate::task::{Digest, RetryOverrides, RetryPolicy};

/// The tenant whose types all tenants share.
pub const SHARED: &str = "";

/// Most programs that are kept in memory beside those that run. Loading one again takes about a millisecond.
pub const MOST_PROGRAMS: usize = 1_000;

/// A version of a type.
#[derive(Clone)]
pub enum Version {
    /// Compiled. Its code is loaded when it is needed.
    Ready(Arc<About>),
    /// It does not compile or link; why.
    Failed(Arc<str>),
    /// It is being compiled, or will be.
    Compiling,
}

/// A task type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskType {
    /// Its name.
    pub name: Arc<str>,
    /// Its current version, which new tasks are pinned to; `None`: none can be used yet.
    pub current: Option<Digest>,
    /// The version that becomes current once it is compiled and granted.
    pub next: Option<Digest>,
    /// Its own limits, over the server's defaults.
    pub limits: LimitOverrides,
    /// Its own retry policy, over the default one.
    pub retry: RetryOverrides,
    /// How long its ended tasks are kept, in milliseconds, where that is not as the server says.
    pub retention_ms: Option<u64>,
    /// Whether its tasks are held back.
    pub paused: bool,
    /// What its tasks may touch.
    pub grants: Arc<Grants>,
    /// What its inputs have to meet, where its component does not say so itself.
    pub input_schema: Option<Arc<InputSchema>>,
    /// How many of its tasks run at once.
    pub concurrency: Concurrency,
}

/// Every task type and every version that is loaded.
#[derive(Default)]
pub struct Registry {
    inner: RwLock<Inner>,
    /// Told when a version has changed.
    changed: Notify,
    /// How often programs were asked for.
    uses: AtomicU64,
}

/// A program that is in memory.
struct Loaded {
    program: Arc<Program>,
    /// Which use of all programs was its last.
    used: AtomicU64,
}

#[derive(Default)]
struct Inner {
    // By tenant, then by name. Shared types have the tenant "".
    types: HashMap<Arc<str>, HashMap<Arc<str>, TaskType>>,
    versions: HashMap<Digest, Version>,
    programs: HashMap<Digest, Loaded>,
    /// Shared types that the server brings with it.
    kept: HashSet<Arc<str>>,
    /// Types that somebody is removing, by owner and name, and how many are at it.
    closed: HashMap<Name, usize>,
}

/// The owner of a type, and its name.
type Name = (Arc<str>, Arc<str>);

/// No task of a type is created until this is dropped.
pub struct Closed {
    registry: Arc<Registry>,
    of: Name,
}

impl Drop for Closed {
    fn drop(&mut self) {
        let mut inner = self.registry.write();
        if let Some(count) = inner.closed.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                inner.closed.remove(&self.of);
            }
        }
    }
}

impl Inner {
    /// The type that `name` means for a tenant: its own before a shared one.
    fn meant(&self, tenant: &str, name: &str) -> Option<&TaskType> {
        [tenant, SHARED].iter().find_map(|tenant| self.types.get(*tenant)?.get(name))
    }
}

impl Registry {
    /// Adds a type, or replaces the one of that tenant and name.
    pub fn put_type(&self, tenant: Arc<str>, mut task_type: TaskType) {
        let mut inner = self.write();
        let types = inner.types.entry(tenant).or_default();
        // A schema that is the same need not be compiled again.
        if let Some(before) = types.get(&task_type.name)
            && before.input_schema == task_type.input_schema
        {
            task_type.input_schema = before.input_schema.clone();
        }
        types.insert(task_type.name.clone(), task_type);
    }

    /// A shared type of that name comes with the server: it is there again with each start, and not to be removed.
    pub fn keep(&self, name: Arc<str>) {
        self.write().kept.insert(name);
    }

    /// Whether it is one of those.
    pub fn keeps(&self, name: &str) -> bool {
        self.read().kept.contains(name)
    }

    /// Somebody removes the type of that tenant and name.
    pub fn close(self: &Arc<Self>, tenant: &Arc<str>, name: &str) -> Closed {
        let of: Name = (tenant.clone(), name.into());
        *self.write().closed.entry(of.clone()).or_default() += 1;
        Closed { registry: self.clone(), of }
    }

    /// Whether somebody removes the type that `name` means for a tenant.
    pub fn is_closed(&self, tenant: &str, name: &str) -> bool {
        let inner = self.read();
        if inner.closed.is_empty() {
            return false;
        }
        let is_own = inner.types.get(tenant).is_some_and(|types| types.contains_key(name));
        inner.closed.contains_key(&(if is_own { tenant } else { SHARED }.into(), name.into()))
    }

    /// Whether `name` means a type for a tenant.
    pub fn is_there(&self, tenant: &str, name: &str) -> bool {
        self.read().meant(tenant, name).is_some()
    }

    /// Removes the type of that tenant and name.
    pub fn remove_type(&self, tenant: &str, name: &str) {
        if let Some(types) = self.write().types.get_mut(tenant) {
            types.remove(name);
        }
    }

    /// Removes a version that no type has and no task is pinned to.
    pub fn remove_version(&self, digest: Digest) {
        let mut inner = self.write();
        inner.versions.remove(&digest);
        inner.programs.remove(&digest);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Whether the type that `name` means for a tenant is paused.
    pub fn is_paused(&self, tenant: &str, name: &str) -> bool {
        self.read().meant(tenant, name).is_some_and(|found| found.paused)
    }

    /// How many tasks of the type that `name` means for a tenant run at once.
    pub fn concurrency(&self, tenant: &str, name: &str) -> Concurrency {
        self.read().meant(tenant, name).map(|found| found.concurrency).unwrap_or_default()
    }

    /// The type of that name that is a tenant's own, and the shared one, each with its owner.
    pub fn own_and_shared(&self, tenant: &str, name: &str) -> impl Iterator<Item = (Arc<str>, TaskType)> + use<> {
        let inner = self.read();
        let of = |owner: &str| {
            let (owner, types) = inner.types.get_key_value(owner)?;
            Some((owner.clone(), types.get(name)?.clone()))
        };
        [of(tenant), of(SHARED)].into_iter().flatten()
    }

    /// Puts the program of a version that is there into memory. The one that was not asked for the longest goes
    /// where there are too many.
    pub fn put_program(&self, digest: Digest, program: Arc<Program>) {
        let mut inner = self.write();
        let Some(Version::Ready(_)) = inner.versions.get(&digest) else { return };
        if inner.programs.len() >= MOST_PROGRAMS && !inner.programs.contains_key(&digest) {
            let used = |loaded: &Loaded| loaded.used.load(Ordering::Relaxed);
            let oldest = inner.programs.iter().min_by_key(|(_, loaded)| used(loaded)).map(|(digest, _)| *digest);
            oldest.and_then(|oldest| inner.programs.remove(&oldest));
        }
        inner.programs.insert(digest, Loaded { program, used: AtomicU64::new(self.next_use()) });
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The program of a version, where it is in memory.
    pub fn program(&self, digest: Digest) -> Option<Arc<Program>> {
        let inner = self.read();
        let loaded = inner.programs.get(&digest)?;
        loaded.used.store(self.next_use(), Ordering::Relaxed);
        Some(loaded.program.clone())
    }

    /// Whether it is.
    pub fn is_in_memory(&self, digest: Digest) -> bool {
        self.read().programs.contains_key(&digest)
    }

    fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until the program of a version is in memory; `None`: it cannot be.
    pub async fn loaded(&self, digest: Digest) -> Option<Arc<Program>> {
        loop {
            let changed = self.changed.notified();
            if let Some(program) = self.program(digest) {
                return Some(program);
            }
            if !matches!(self.version(digest), Some(Version::Ready(_))) {
                return None;
            }
            changed.await;
        }
    }

    /// Adds a version.
    pub fn put_version(&self, digest: Digest, version: Version) {
        let mut inner = self.write();
        if !matches!(version, Version::Ready(_)) {
            inner.programs.remove(&digest);
        }
        inner.versions.insert(digest, version);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The type that `name` means for a tenant: its own before a shared one.
    pub fn find(&self, tenant: &str, name: &str) -> Option<TaskType> {
        self.read().meant(tenant, name).cloned()
    }

    /// The type of that name that is a tenant's own.
    pub fn own(&self, tenant: &str, name: &str) -> Option<TaskType> {
        self.read().types.get(tenant)?.get(name).cloned()
    }

    /// All types that a tenant sees, by name.
    pub fn all(&self, tenant: &str) -> Vec<TaskType> {
        let inner = self.read();
        let mut seen: HashMap<&str, &TaskType> = HashMap::new();
        for tenant in [SHARED, tenant] {
            let types = inner.types.get(tenant).into_iter().flatten();
            seen.extend(types.map(|(name, task_type)| (&**name, task_type)));
        }
        let mut all: Vec<TaskType> = seen.into_values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Waits until a version is no longer being compiled.
    pub async fn compiled(&self, digest: Digest) {
        loop {
            let changed = self.changed.notified();
            if !matches!(self.version(digest), Some(Version::Compiling)) {
                return;
            }
            changed.await;
        }
    }

    /// What is known of a version.
    pub fn version(&self, digest: Digest) -> Option<Version> {
        self.read().versions.get(&digest).cloned()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TaskType {
    /// A type as the store has it.
    pub fn of(stored: &StoredType) -> TaskType {
        let StoredType {
            name,
            component,
            next,
            limits,
            retry,
            retention_ms,
            paused,
            grants,
            input_schema,
            concurrency,
            ..
        } = stored.clone();
        let input_schema = input_schema.map(|text| Arc::new(InputSchema::new(text)));
        let current = component;
        TaskType { name, current, next, limits, retry, retention_ms, paused, grants, input_schema, concurrency }
    }

    /// How its attempts are repeated where the task does not say.
    pub fn retry(&self) -> RetryPolicy {
        // What is stored was checked.
        RetryPolicy::DEFAULT.with(&self.retry).unwrap_or(RetryPolicy::DEFAULT)
    }

    /// The limits of an attempt where the task asks for nothing.
    pub fn limits(&self, defaults: &Limits, ceiling: &Limits) -> Limits {
        let mut limits = *defaults;
        for (name, value) in self.limits.iter() {
            if let Some(limit) = limits.get_mut(name) {
                *limit = value;
            }
        }
        limits.capped(ceiling)
    }
}
