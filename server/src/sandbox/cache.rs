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

    pub(super) fn get_or_compile(&self, engine: &Engine, digest: Digest, bytes: &[u8]) -> anyhow::Result<Component> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let prefix = format!("{}-{:016x}-", digest.hex(), hasher.finish());
        if let Some(component) = self.load(engine, &prefix) {
            return Ok(component);
        }
        let code = engine.precompile_component(bytes)?;
        match self.store(&prefix, &code) {
            Ok(path) => {
                // SAFETY: this process has just written the file, from the compiler's output.
                match unsafe { Component::deserialize_file(engine, &path) } {
                    Ok(component) => {
                        self.note_used(path);
                        return Ok(component);
                    }
                    Err(error) => tracing::warn!(path = %path.display(), %error, "cannot map compiled code"),
                }
            }
            // A cache that cannot be written only costs time at the next start.
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot cache compiled code"),
        }
        // SAFETY: `code` is what the compiler has just put out.
        Ok(unsafe { Component::deserialize(engine, &code) }?)
    }

    fn load(&self, engine: &Engine, prefix: &str) -> Option<Component> {
        let found = std::fs::read_dir(&self.dir).ok()?.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let hash = name.strip_prefix(prefix)?.strip_suffix(".cwasm")?.to_owned();
            Some((entry.path(), hash))
        });
        let (path, hash) = found?;
        match self.verify(&path, &hash) {
            Ok(true) => {}
            Ok(false) => {
                tracing::warn!(path = %path.display(), "compiled code is damaged and is compiled again");
                let _ = std::fs::remove_file(&path);
                return None;
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read compiled code");
                return None;
            }
        }
        // SAFETY: the file has the hash under which `store` put it there, in a directory that tasks
        // cannot reach.
        match unsafe { Component::deserialize_file(engine, &path) } {
            Ok(component) => {
                self.note_used(path);
                Some(component)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot load compiled code");
                None
            }
        }
    }

    fn note_used(&self, path: PathBuf) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
    }

    fn verify(&self, path: &Path, hash: &str) -> std::io::Result<bool> {
        let bytes = std::fs::read(path)?;
        Ok(Digest(Sha256::digest(&bytes).into()).hex() == hash)
    }

    fn store(&self, prefix: &str, code: &[u8]) -> anyhow::Result<PathBuf> {
        let hash = Digest(Sha256::digest(code).into()).hex();
        let path = self.dir.join(format!("{prefix}{hash}.cwasm"));
        // Under another name until it is whole: whoever looks sees all of it or nothing.
        let partial = self.dir.join(format!("{prefix}{hash}.partial"));
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(code)?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        Ok(path)
    }
}
