//! Compiled code on disk, so that a restart compiles nothing again.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::{About, adapt};
use crate::task::Digest;

/// Which checks a component passed before it was compiled, and how a component is made of a module. Changed
/// with them, so that what passed weaker ones is looked at again.
const CHECKS: u32 = 4;

/// A directory of compiled code. The name of a file says what it was compiled from, by which
/// compiler, and what the SHA-256 of the file itself is: code is run as it is, so a file that
/// is damaged or was put there by somebody else must not be loaded.
pub struct CodeCache {
    dir: PathBuf,
    /// The files that are there, so that nobody has to go through the directory for each component: the hash that
    /// is at the end of each name, by what is before it.
    files: Mutex<HashMap<String, String>>,
}

impl CodeCache {
    /// The cache in `dir`, which is created.
    pub fn open(dir: PathBuf) -> anyhow::Result<CodeCache> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let files = entries.filter_map(Result::ok).filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (prefix, hash) = name.strip_suffix(".cwasm")?.rsplit_once('-')?;
            Some((format!("{prefix}-"), hash.to_owned()))
        });
        let files = Mutex::new(files.collect());
        Ok(CodeCache { dir, files })
    }

    fn files(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes everything but the code of these components for this engine: code for earlier engines and of
    /// components that are gone, and what a crash left half written.
    pub(super) fn keep(&self, engine: &Engine, digests: &HashSet<Digest>) {
        let kept: HashSet<String> = digests.iter().map(|digest| CodeCache::prefix(engine, *digest)).collect();
        self.files().retain(|prefix, _| kept.contains(prefix));
        let files = self.files();
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name();
            let Some((name, extension)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
            let is_kept = match extension {
                "cwasm" => name
                    .rsplit_once('-')
                    .is_some_and(|(prefix, hash)| files.get(&format!("{prefix}-")).is_some_and(|known| known == hash)),
                "json" => files.contains_key(&format!("{name}-")),
                "partial" => false,
                // Not ours.
                _ => true,
            };
            if !is_kept {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// What is known of a component whose code is here.
    pub(super) fn about(&self, engine: &Engine, digest: Digest) -> Option<About> {
        let prefix = CodeCache::prefix(engine, digest);
        if !self.files().contains_key(&prefix) {
            return None;
        }
        // One that a crash left half written is made again when the code is loaded.
        serde_json::from_slice(&std::fs::read(self.about_path(&prefix)).ok()?).ok()
    }

    /// Keeps what is known of a component beside its code, unless that is there.
    pub(super) fn put_about(&self, engine: &Engine, digest: Digest, about: &About) {
        if self.about(engine, digest).is_some() {
            return;
        }
        let path = self.about_path(&CodeCache::prefix(engine, digest));
        let written =
            serde_json::to_vec(about).map_err(std::io::Error::from).and_then(|text| std::fs::write(path, text));
        if let Err(error) = written {
            // It only costs time at the next start.
            tracing::warn!(%digest, %error, "cannot keep what is known of a component");
        }
    }

    fn about_path(&self, prefix: &str) -> PathBuf {
        self.dir.join(format!("{}.json", prefix.trim_end_matches('-')))
    }

    /// What makes code of a component for an engine: the compiler, the checks, and the adapter for modules.
    pub(super) fn compiler(engine: &Engine) -> String {
        compiler(&engine.precompile_compatibility_hash(), adapt::adapter())
    }

    fn prefix(engine: &Engine, digest: Digest) -> String {
        format!("{}-{}-", digest.hex(), CodeCache::compiler(engine))
    }

    fn path(&self, prefix: &str, hash: &str) -> PathBuf {
        self.dir.join(format!("{prefix}{hash}.cwasm"))
    }

    /// Where the code of a component is, if it is whole.
    pub(super) fn get(&self, engine: &Engine, digest: Digest) -> Option<PathBuf> {
        let prefix = CodeCache::prefix(engine, digest);
        let hash = self.files().get(&prefix)?.clone();
        let path = self.path(&prefix, &hash);
        match hash_of(&path) {
            Ok(found) if found == hash => Some(path),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "compiled code is damaged and is compiled again");
                let _ = std::fs::remove_file(&path);
                self.files().remove(&prefix);
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
        self.files().retain(|prefix, _| !prefix.starts_with(&digest));
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
        let prefix = CodeCache::prefix(engine, digest);
        std::fs::rename(partial, self.path(&prefix, &hash))?;
        self.files().insert(prefix, hash);
        Ok(())
    }

    /// Puts code into the cache.
    pub(super) fn store(&self, engine: &Engine, digest: Digest, code: &[u8]) -> anyhow::Result<()> {
        let prefix = CodeCache::prefix(engine, digest);
        let hash = Digest(Sha256::digest(code).into()).hex();
        // Under another name until it is whole: whoever looks sees all of it or nothing.
        let partial = self.dir.join(format!("{prefix}{hash}.partial"));
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(code)?;
        file.sync_all()?;
        std::fs::rename(&partial, self.path(&prefix, &hash))?;
        self.files().insert(prefix, hash);
        Ok(())
    }
}

fn compiler(engine: &impl Hash, adapter: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    engine.hash(&mut hasher);
    adapter.hash(&mut hasher);
    format!("{:016x}.{CHECKS}", hasher.finish())
}

fn hash_of(path: &Path) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(Digest(hasher.finalize().into()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code is found only by what would make it again.
    #[test]
    fn another_compiler_or_adapter_makes_other_code() {
        let names = [compiler(&1, b"adapter"), compiler(&2, b"adapter"), compiler(&1, b"adapter of a newer version")];
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3, "{names:?}");
        assert_eq!(names[0], compiler(&1, b"adapter"));
        let engine = Engine::default();
        assert_eq!(
            CodeCache::compiler(&engine),
            compiler(&engine.precompile_compatibility_hash(), adapt::adapter()),
            "the adapter is the one that modules get"
        );
    }
}
