//! Compiled code on disk, so that a restart compiles nothing again.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::task::Digest;

/// Which checks a component passed before it was compiled. Changed with them, so that what passed weaker ones
/// is looked at again.
const CHECKS: u32 = 2;

/// A directory of compiled code. The name of a file says which component it was compiled from, for
/// which engine, and what the SHA-256 of the file itself is: code is run as it is, so a file that
/// is damaged or was put there by somebody else must not be loaded.
pub struct CodeCache {
    dir: PathBuf,
    /// What was loaded from it.
    used: Mutex<HashSet<PathBuf>>,
}

impl CodeCache {
    /// The cache in `dir`, which is created.
    pub fn open(dir: PathBuf) -> anyhow::Result<CodeCache> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(CodeCache { dir, used: Mutex::default() })
    }

    /// Removes what was not loaded since the start: code for earlier engines and of components that are
    /// gone, and what a crash left half written.
    pub(super) fn remove_unused(&self) {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for path in std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
        {
            let ours = path.extension().is_some_and(|extension| extension == "cwasm" || extension == "partial");
            if ours && !used.contains(&path) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// Which compiler makes code for an engine, with which checks.
    pub(super) fn compiler(engine: &Engine) -> String {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        format!("{:016x}.{CHECKS}", hasher.finish())
    }

    fn prefix(engine: &Engine, digest: Digest) -> String {
        format!("{}-{}-", digest.hex(), CodeCache::compiler(engine))
    }

    /// Where the code of a component is, if it is whole.
    pub(super) fn get(&self, engine: &Engine, digest: Digest) -> Option<PathBuf> {
        let prefix = CodeCache::prefix(engine, digest);
        let found = std::fs::read_dir(&self.dir).ok()?.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let hash = name.strip_prefix(&prefix)?.strip_suffix(".cwasm")?.to_owned();
            Some((entry.path(), hash))
        });
        let (path, hash) = found?;
        match hash_of(&path) {
            Ok(found) if found == hash => {
                self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
                Some(path)
            }
            Ok(_) => {
                tracing::warn!(path = %path.display(), "compiled code is damaged and is compiled again");
                let _ = std::fs::remove_file(&path);
                None
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read compiled code");
                None
            }
        }
    }

    /// Maps code that [`get`](Self::get) has found.
    pub(super) fn load(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
        // SAFETY: the file has the hash under which it was put there by `store` or `adopt`, in a directory that
        // tasks cannot reach.
        unsafe { Component::deserialize_file(engine, path) }
    }

    /// Removes all code of a component.
    pub(super) fn remove(&self, digest: Digest) {
        let digest = digest.hex();
        let ours = |entry: &std::fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&digest));
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok).filter(ours) {
            let _ = std::fs::remove_file(entry.path());
        }
    }

    /// A file to write a component's code into.
    pub(super) fn begin(&self, digest: Digest) -> std::io::Result<(PathBuf, std::fs::File)> {
        let path = self.dir.join(format!("{}.partial", digest.hex()));
        let file = std::fs::OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
        Ok((path, file))
    }

    /// Takes code that a compiler has written into a file of [`begin`](Self::begin).
    pub(super) fn adopt(&self, engine: &Engine, digest: Digest, partial: &Path) -> anyhow::Result<()> {
        let hash = hash_of(partial)?;
        std::fs::File::open(partial)?.sync_all()?;
        std::fs::rename(partial, self.dir.join(format!("{}{hash}.cwasm", CodeCache::prefix(engine, digest))))?;
        Ok(())
    }

    /// Puts code into the cache.
    pub(super) fn store(&self, engine: &Engine, digest: Digest, code: &[u8]) -> anyhow::Result<()> {
        let prefix = CodeCache::prefix(engine, digest);
        let hash = Digest(Sha256::digest(code).into()).hex();
        let path = self.dir.join(format!("{prefix}{hash}.cwasm"));
        // Under another name until it is whole: whoever looks sees all of it or nothing.
        let partial = self.dir.join(format!("{prefix}{hash}.partial"));
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(code)?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        Ok(())
    }
}

fn hash_of(path: &Path) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()).hex())
}
