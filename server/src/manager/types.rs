//! Task types that clients upload: their versions come, become current once they are compiled, and go.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::{Command, Manager, Refused, Reply, answer};
use crate::audit::{Act, Actor};
use crate::compiler::{Compiled, Loaded};
use crate::grants;
use crate::quotas::UsedUp;
use crate::registry::{Closed, SHARED, TaskType, Version};
use crate::sandbox::{About, Program};
use crate::store::{PIECE_BYTES, StoreError, StoredType, new_upload};
use crate::task::{Digest, Task, Timestamp};
use crate::tenants::Tenants;

/// The longest that a client waits for code that is loaded.
const LOAD_TIME: Duration = Duration::from_secs(30);

/// What must hold of a type for a change of it: that it is still as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Anything,
    /// There was none of that name.
    Nothing,
    /// It was like this.
    This(Box<TaskType>),
}

/// What became of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// There is a new type.
    Created,
    /// The type was there before.
    Replaced,
}

/// The manager's thread is asked to change a type.
pub(super) enum TypeCommand {
    /// A piece of a component that arrives.
    Piece {
        upload: u64,
        at: u64,
        bytes: bytes::Bytes,
        by: Actor,
        reply: Reply<()>,
    },
    /// The rest of it will not come, or nobody wants it.
    Abandon {
        upload: u64,
    },
    Put {
        put: Put,
        reply: Reply<Uploaded>,
    },
    Compiled {
        digest: Digest,
        by: Arc<str>,
        compiled: Compiled,
    },
    /// Somebody waits for its program.
    Load {
        tenant: Arc<str>,
        digest: Digest,
    },
    Loaded {
        tenant: Arc<str>,
        digest: Digest,
        by: Arc<str>,
        loaded: Loaded,
    },
    /// No task of it may come before it is gone.
    Delete {
        closed: Closed,
        tenant: Arc<str>,
        name: Arc<str>,
        seen: Seen,
        by: Actor,
        reply: Reply<()>,
    },
}

/// A component to be stored as a version of a type.
pub(super) struct Put {
    tenant: Arc<str>,
    name: Arc<str>,
    digest: Digest,
    /// In bytes.
    size: u64,
    /// Which upload brought it; `None`: it was there already.
    upload: Option<u64>,
    seen: Seen,
    by: Actor,
}

/// An upload that is arriving. Dropped, it is abandoned.
struct Arriving<'a> {
    manager: &'a Manager,
    upload: Option<u64>,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(upload) = self.upload {
            // After whatever was sent of it before.
            self.manager.send(Command::Type(Box::new(TypeCommand::Abandon { upload })));
        }
    }
}

/// What a command did inside the transaction.
#[derive(Default)]
pub(super) struct TypeDone {
    refused: Option<Refused>,
    /// Types as they are now.
    changed: Vec<StoredType>,
    created: bool,
    /// It has to be compiled.
    compile: bool,
    /// What was compiled, or loaded, is of a version that is there.
    known: bool,
}

impl TypeDone {
    fn refused(why: Refused) -> TypeDone {
        TypeDone { refused: Some(why), ..TypeDone::default() }
    }
}

impl TypeCommand {
    pub(super) fn is_asked(&self) -> bool {
        matches!(self, TypeCommand::Piece { .. } | TypeCommand::Put { .. } | TypeCommand::Delete { .. })
    }

    /// Who asks for it.
    pub(super) fn by(&self) -> Option<&Actor> {
        match self {
            TypeCommand::Put { put, .. } => Some(&put.by),
            TypeCommand::Piece { by, .. } | TypeCommand::Delete { by, .. } => Some(by),
            TypeCommand::Abandon { .. }
            | TypeCommand::Compiled { .. }
            | TypeCommand::Load { .. }
            | TypeCommand::Loaded { .. } => None,
        }
    }

    /// How much it brings, as much as so many tasks would.
    pub(super) fn things(&self) -> usize {
        if let TypeCommand::Piece { bytes, .. } = self { 1 + (bytes.len() >> 12) } else { 1 }
    }

    /// Answers that it was not done; what must not get lost comes back.
    pub(super) fn refuse(self, why: Refused) -> Option<TypeCommand> {
        match self {
            TypeCommand::Piece { reply, .. } => answer(reply, Err(why)),
            TypeCommand::Put { reply, .. } => answer(reply, Err(why)),
            TypeCommand::Delete { reply, .. } => answer(reply, Err(why)),
            TypeCommand::Abandon { .. }
            | TypeCommand::Compiled { .. }
            | TypeCommand::Load { .. }
            | TypeCommand::Loaded { .. } => return Some(self),
        }
        None
    }
}

/// What the open transaction removed of task types.
#[derive(Default)]
pub(super) struct GoneTypes {
    types: Vec<(Arc<str>, Arc<str>)>,
    components: Vec<Digest>,
    /// Versions that it was told of, which are known to all with its commit.
    told: Vec<(Digest, Version)>,
}

impl GoneTypes {
    pub(super) fn clear(&mut self) {
        self.types.clear();
        self.components.clear();
        self.told.clear();
    }

    pub(super) fn add_components(&mut self, components: Vec<Digest>) {
        self.components.extend(components);
    }

    /// Whether a task can still be created: its type, and the version it was checked against, are there.
    pub(super) fn allow(&self, task: &Task) -> bool {
        !self.components.contains(&task.component)
            && !self.types.iter().any(|(tenant, name)| *tenant == task.tenant && *name == task.task_type)
    }
}

impl Manager {
    /// Stores a component as a version of a tenant's type. It is durable when this returns, and becomes
    /// current once it is compiled. Whoever calls this has looked at the component.
    pub async fn put_task_type(
        &self,
        tenant: &Arc<str>,
        name: &str,
        digest: Digest,
        bytes: bytes::Bytes,
        seen: Seen,
        by: Actor,
    ) -> Result<Uploaded, Refused> {
        let mut arriving = Arriving { manager: self, upload: None };
        let mut is_there = self.0.registry.version(digest).is_some();
        loop {
            let pieces = if is_there { 0 } else { bytes.len() };
            for (at, start) in (0..).zip((0..pieces).step_by(PIECE_BYTES)) {
                let upload = *arriving.upload.get_or_insert_with(new_upload);
                let bytes = bytes.slice(start..bytes.len().min(start + PIECE_BYTES));
                let by = by.clone();
                let piece = |reply| Command::Type(Box::new(TypeCommand::Piece { upload, at, bytes, by, reply }));
                self.ask(piece).await?;
            }
            let (tenant, name, size, upload) = (tenant.clone(), name.into(), bytes.len() as u64, arriving.upload);
            let put = Put { tenant, name, digest, size, upload, seen: seen.clone(), by: by.clone() };
            match self.ask(|reply| Command::Type(Box::new(TypeCommand::Put { put, reply }))).await {
                // It was removed since it was looked for.
                Err(Refused::Busy) if is_there => is_there = false,
                Err(refused) => return Err(refused),
                Ok(uploaded) => {
                    arriving.upload = None;
                    return Ok(uploaded);
                }
            }
        }
    }

    /// Waits until a version is no longer being compiled, but no longer than `wait`.
    pub async fn wait_compiled(&self, digest: Digest, wait: Duration) {
        let _ = tokio::time::timeout(wait, self.0.registry.compiled(digest)).await;
    }

    /// Takes what came of compiling a component, by the compiler, and within the limits, that `by` names.
    pub fn compiled(&self, digest: Digest, by: Arc<str>, compiled: Compiled) {
        self.send(Command::Type(Box::new(TypeCommand::Compiled { digest, by, compiled })));
    }

    /// Takes what came of loading a component that was compiled before, in the same way. A tenant needs it.
    pub fn loaded(&self, tenant: Arc<str>, digest: Digest, by: Arc<str>, loaded: Loaded) {
        self.send(Command::Type(Box::new(TypeCommand::Loaded { tenant, digest, by, loaded })));
    }

    /// The program of a version, which a tenant waits for.
    pub(super) async fn program(&self, tenant: &Arc<str>, digest: Digest) -> Result<Arc<Program>, Refused> {
        if !self.0.registry.is_in_memory(digest) {
            self.send(Command::Type(Box::new(TypeCommand::Load { tenant: tenant.clone(), digest })));
        }
        match tokio::time::timeout(LOAD_TIME, self.0.registry.loaded(digest)).await {
            Ok(program) => program.ok_or(Refused::TypeNotReady),
            Err(_) => Err(Refused::Busy),
        }
    }

    /// Whether a tenant has a type of that name, or the operator a shared one, that does not come with the server.
    pub fn may_be_removed(&self, tenant: &Arc<str>, name: &str) -> Result<(), Refused> {
        if self.0.registry.own(tenant, name).is_none() {
            let shared = self.0.registry.is_there(tenant, name);
            return Err(if shared { Refused::SharedType } else { Refused::NotFound });
        }
        if **tenant == *SHARED && self.0.registry.keeps(name) {
            return Err(Refused::SharedType);
        }
        Ok(())
    }

    /// Keeps tasks of a type from coming, until what is returned is dropped. Those that came before are stored.
    pub async fn close_task_type(&self, tenant: &Arc<str>, name: &str) -> Result<Closed, Refused> {
        let closed = self.0.registry.close(tenant, name);
        self.ask(|reply| Command::Flush { reply }).await?;
        Ok(closed)
    }

    /// The tenants that have tasks of a type that are Pending or Running. Of a closed type no more come.
    pub async fn users_at_work(
        &self,
        owner: &Arc<str>,
        name: &str,
        tenants: &Tenants,
    ) -> Result<Vec<Arc<str>>, Refused> {
        let mut at_work = Vec::new();
        for user in self.users_of(owner, name, tenants) {
            if self.0.readers.has_unended(&user, name).await? {
                at_work.push(user);
            }
        }
        Ok(at_work)
    }

    /// Removes a type that is not in use.
    pub async fn delete_task_type(
        &self,
        closed: Closed,
        tenant: &Arc<str>,
        name: &str,
        seen: Seen,
        by: Actor,
    ) -> Result<(), Refused> {
        let (tenant, name) = (tenant.clone(), name.into());
        self.ask(|reply| Command::Type(Box::new(TypeCommand::Delete { closed, tenant, name, seen, by, reply }))).await
    }

    /// The tenants for which `name` means the type that `owner` has.
    fn users_of(&self, owner: &Arc<str>, name: &str, tenants: &Tenants) -> Vec<Arc<str>> {
        if **owner != *SHARED {
            return vec![owner.clone()];
        }
        let all = tenants.all().into_iter().map(|tenant| tenant.name.clone());
        all.filter(|tenant| self.0.registry.own(tenant, name).is_none()).collect()
    }

    /// The bytes of a version of a type.
    pub async fn component(&self, tenant: &Arc<str>, name: &str, digest: Digest) -> Result<Vec<u8>, Refused> {
        let owner = match self.0.registry.own(tenant, name) {
            Some(_) => tenant.clone(),
            None => SHARED.into(),
        };
        self.0.readers.version_bytes(owner, name.to_owned(), digest).await?.ok_or(Refused::NotFound)
    }
}

fn version_of(compiled: &Compiled) -> Version {
    match compiled {
        Ok(program) => Version::Ready(program.about.clone()),
        Err(why) => Version::Failed(why.clone()),
    }
}

impl Core {
    pub(super) fn apply_type(&mut self, command: &TypeCommand, now: Timestamp) -> Result<TypeDone, StoreError> {
        match command {
            TypeCommand::Piece { .. } if self.draining.is_some() => Ok(TypeDone::refused(Refused::Draining)),
            TypeCommand::Piece { upload, at, bytes, .. } => {
                self.store.put_piece(*upload, *at, bytes)?;
                Ok(TypeDone::default())
            }
            TypeCommand::Abandon { upload } => {
                self.store.remove_upload(*upload)?;
                Ok(TypeDone::default())
            }
            TypeCommand::Put { put, .. } => self.put_type(put, now),
            TypeCommand::Compiled { digest, by, compiled } => self.compiled(*digest, by, compiled),
            TypeCommand::Load { .. } => Ok(TypeDone::default()),
            TypeCommand::Loaded { digest, by, loaded, .. } => match (loaded, self.version(*digest)) {
                // It was removed and came again while it was loaded: it may have become current by this.
                (Some(loaded), Some(Version::Compiling)) => self.compiled(*digest, by, loaded),
                (Some(failed @ Err(_)), _) => self.compiled(*digest, by, failed),
                (Some(Ok(_)) | None, version) => Ok(TypeDone { known: version.is_some(), ..TypeDone::default() }),
            },
            TypeCommand::Delete { tenant, name, seen, by, .. } => {
                let Some(stored) = self.store.task_type(tenant, name)? else {
                    return Ok(TypeDone::refused(Refused::NotFound));
                };
                if !self.holds(seen, Some(&stored)) {
                    return Ok(TypeDone::refused(Refused::PreconditionFailed));
                }
                let gone = self.store.delete_task_type(tenant, name)?;
                self.gone.add_components(gone);
                self.gone.types.push((tenant.clone(), name.clone()));
                let (of, target) = (tenant.clone(), name.to_string());
                self.store.audit(by, &Act { action: "task_type.delete", of, target, detail: None }, now)?;
                Ok(TypeDone::default())
            }
        }
    }

    fn compiled(&mut self, digest: Digest, by: &str, compiled: &Compiled) -> Result<TypeDone, StoreError> {
        // Where it was removed meanwhile nobody asks for it any more. Whoever brings it again has it compiled again.
        if self.version(digest).is_none() {
            return Ok(TypeDone::default());
        }
        self.store.set_failure(digest, compiled.as_ref().err().map(|why| (&**why, by)))?;
        let mut changed = Vec::new();
        self.gone.told.push((digest, version_of(compiled)));
        if let Ok(program) = compiled {
            for task_type in self.store.with_version(digest)? {
                if let Some(promoted) = promoted(&task_type, digest, &program.about) {
                    self.store.put_task_type(&promoted)?;
                    changed.push(promoted);
                }
            }
        }
        Ok(TypeDone { changed, known: true, ..TypeDone::default() })
    }

    fn put_type(&mut self, put: &Put, now: Timestamp) -> Result<TypeDone, StoreError> {
        let Put { tenant, name, digest, size, upload, seen, by } = put;
        let digest = *digest;
        if self.draining.is_some() {
            return Ok(TypeDone::refused(Refused::Draining));
        }
        if upload.is_none() && !self.store.has_component(digest)? {
            // It was removed since it was looked for.
            return Ok(TypeDone::refused(Refused::Busy));
        }
        let own = self.store.task_type(tenant, name)?;
        let meant = if own.is_some() { own.clone() } else { self.store.task_type(SHARED, name)? };
        if !self.holds(seen, meant.as_ref()) {
            return Ok(TypeDone::refused(Refused::PreconditionFailed));
        }
        let failed = self.failed_versions(tenant, name)?;
        let quotas = self.tenants.quotas(tenant);
        let created = own.is_none();
        if created
            && let Some(limit) = quotas.task_types
            && self.store.count_task_types(tenant)? >= limit
        {
            return Ok(TypeDone::refused(Refused::TooManyTaskTypes { limit }));
        }
        let mut stored = own.clone().unwrap_or_else(|| StoredType::new(tenant.clone(), name.clone()));
        // Whoever sends bytes again that could not be compiled wants it tried again.
        let loaded = self.version(digest).filter(|_| !self.gone.components.contains(&digest));
        stored.next = Some(digest).filter(|_| stored.component != Some(digest));
        let compile = match &loaded {
            Some(Version::Ready(about)) => {
                stored = promoted(&stored, digest, about).unwrap_or(stored);
                false
            }
            Some(Version::Compiling) => false,
            Some(Version::Failed(_)) | None => true,
        };
        if let Some(limit) = quotas.component_bytes
            && !self.store.has_version(tenant, name, digest)?
        {
            // What goes for the new version makes room for it.
            let (old, all) = self.store.version_bytes(&stored, &failed)?;
            let used = all.saturating_sub(old);
            if used + size > limit {
                let left = limit.saturating_sub(used);
                let used_up = UsedUp { what: "component bytes", limit, left, whole_in: None };
                return Ok(TypeDone::refused(Refused::QuotaExceeded(used_up)));
            }
        }
        if let Some(upload) = upload {
            self.store.put_component(digest, *upload, *size, now)?;
        }
        self.store.put_version(tenant, name, digest, now)?;
        // It is there again, where this very transaction removed it.
        self.gone.components.retain(|gone| *gone != digest);
        self.store.put_task_type(&stored)?;
        // The bytes that are current already change nothing.
        if own.as_ref() != Some(&stored) || compile {
            let (of, target, detail) = (tenant.clone(), name.to_string(), Some(digest.to_string()));
            self.store.audit(by, &Act { action: "task_type.put", of, target, detail }, now)?;
        }
        if compile {
            // For what comes after it in the same transaction.
            self.gone.told.push((digest, Version::Compiling));
        }
        let old = self.store.remove_old_versions(&stored, &failed)?;
        self.gone.add_components(old);
        Ok(TypeDone { changed: vec![stored], created, compile, ..TypeDone::default() })
    }

    /// The versions of a type that cannot be used: they go when another one comes.
    fn failed_versions(&mut self, tenant: &str, name: &str) -> Result<Vec<Digest>, StoreError> {
        let mut versions = self.store.versions(tenant, name)?;
        versions.retain(|version| matches!(self.version(*version), Some(Version::Failed(_))));
        Ok(versions)
    }

    /// A version, as far as the open transaction knows.
    pub(super) fn version(&self, digest: Digest) -> Option<Version> {
        let told = self.gone.told.iter().rev().find(|(told, _)| *told == digest);
        told.map_or_else(|| self.registry.version(digest), |(_, version)| Some(version.clone()))
    }

    /// Whether a type is as somebody saw it.
    pub(super) fn holds(&self, seen: &Seen, stored: Option<&StoredType>) -> bool {
        match (seen, stored) {
            (Seen::Anything, _) | (Seen::Nothing, None) => true,
            (Seen::This(seen), Some(stored)) => **seen == TaskType::of(stored),
            (Seen::Nothing, Some(_)) | (Seen::This(_), None) => false,
        }
    }

    pub(super) fn tell_type(&mut self, command: TypeCommand, done: TypeDone) {
        let TypeDone { refused, changed, created, compile, known } = done;
        for stored in changed {
            self.registry.put_type(stored.tenant.clone(), TaskType::of(&stored));
        }
        match command {
            TypeCommand::Piece { reply, .. } => answer(reply, refused.map_or(Ok(()), Err)),
            TypeCommand::Abandon { .. } => {}
            TypeCommand::Put { put: Put { tenant, name, digest, .. }, reply } => match refused {
                Some(why) => answer(reply, Err(why)),
                None => {
                    if compile {
                        self.registry.put_version(digest, Version::Compiling);
                        self.workers.compiler.compile(tenant.clone(), digest);
                    }
                    if created {
                        self.look_again_at_all_of(&tenant, &name);
                    }
                    answer(reply, Ok(if created { Uploaded::Created } else { Uploaded::Replaced }));
                }
            },
            TypeCommand::Compiled { digest, compiled, .. }
            | TypeCommand::Loaded { digest, loaded: Some(compiled), .. } => {
                if known {
                    self.registry.put_version(digest, version_of(&compiled));
                    compiled.into_iter().for_each(|program| self.registry.put_program(digest, program));
                }
                self.timers.look_at_held();
            }
            TypeCommand::Load { tenant, digest } => {
                self.is_in_memory(&tenant, digest);
            }
            TypeCommand::Loaded { tenant, digest, loaded: None, .. } => {
                // Somebody removed its code, or damaged it. What is known of it stays true.
                if known {
                    self.workers.compiler.compile(tenant, digest);
                }
            }
            TypeCommand::Delete { closed, tenant, name, reply, .. } => match refused {
                Some(why) => answer(reply, Err(why)),
                None => {
                    self.registry.remove_type(&tenant, &name);
                    drop(closed);
                    self.look_again_at_all_of(&tenant, &name);
                    answer(reply, Ok(()));
                }
            },
        }
    }

    /// A name means another type for a tenant now, or for all: its tasks that wait may not have to.
    fn look_again_at_all_of(&mut self, tenant: &Arc<str>, name: &str) {
        self.timers.look_at_held();
        self.look_again_at(tenant, name);
    }

    /// Forgets the components that the committed transaction removed.
    pub(super) fn tell_gone(&mut self) {
        for digest in self.gone.components.drain(..) {
            self.registry.remove_version(digest);
            self.workers.compiler.forget(digest);
        }
        self.gone.clear();
    }
}

/// A type whose version has become its current one: the one that was to be that, or any where there is none yet. The
/// type has to be granted what the version needs.
pub(crate) fn promoted(stored: &StoredType, version: Digest, about: &About) -> Option<StoredType> {
    if !grants::missing(&about.imports, &stored.grants).is_empty() {
        return None;
    }
    let is_next = stored.next == Some(version);
    let next = stored.next.filter(|_| !is_next);
    (is_next || stored.component.is_none()).then(|| StoredType { component: Some(version), next, ..stored.clone() })
}
