//! The task types a server starts with: the built-in ones, those of `--components`, and what the
//! store has from before.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::compiler::Compiler;
use crate::manager;
use crate::registry::{Registry, SHARED, TaskType, Version};
use crate::sandbox::{Sandbox, one_line};
use crate::store::{PIECE_BYTES, StoredComponent, StoredType, Writer, new_upload};
use crate::task::Digest;

/// The built-in types: name and component.
const GUESTS: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// Programs that are loaded before the server is ready: about a millisecond each. The others are when they are
/// needed.
const LOADED_AT_START: usize = 100;

/// The largest component that is read from `--components`.
const MAX_COMPONENT_BYTES: u64 = 64 << 20;

/// Puts the built-in types and those of `dir` into the store: what the program, or the directory, holds now becomes
/// their current version, once it is compiled and granted as with any other. Returns those versions.
pub(crate) fn store(writer: &mut Writer, registry: &Registry, dir: Option<&Path>) -> anyhow::Result<HashSet<Digest>> {
    let mut found: Vec<(String, Vec<u8>)> =
        GUESTS.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
    if let Some(dir) = dir {
        found.extend(read_dir(dir)?);
    }
    let mut ours = HashSet::new();
    writer.begin()?;
    writer.remove_unfinished_uploads()?;
    for (name, bytes) in found {
        let digest = Digest(Sha256::digest(&bytes).into());
        let before = writer.task_type(SHARED, &name)?;
        let before = before.unwrap_or_else(|| StoredType::new(SHARED.into(), name.as_str().into()));
        let next = Some(digest).filter(|_| before.component != Some(digest));
        let stored = StoredType { next, ..before };
        if !writer.has_component(digest)? {
            let upload = new_upload();
            for (at, piece) in (0..).zip(bytes.chunks(PIECE_BYTES)) {
                writer.put_piece(upload, at, piece)?;
            }
            writer.put_component(digest, upload, bytes.len() as u64, clock::now())?;
        }
        writer.put_version(SHARED, &name, digest, clock::now())?;
        writer.put_task_type(&stored)?;
        writer.remove_old_versions(&stored, &[])?;
        registry.keep(stored.name);
        ours.insert(digest);
    }
    writer.commit()?;
    Ok(ours)
}

fn read_dir(dir: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read --components {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "wasm") {
            continue;
        }
        // One that cannot be used keeps none of the others from being served.
        match read_component(&path) {
            Ok(component) => found.push(component),
            Err(error) => tracing::error!(error = format!("{error:#}"), "a file of --components is left out"),
        }
    }
    found.sort();
    Ok(found)
}

fn read_component(path: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let shown = path.display();
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
    anyhow::ensure!(crate::names::is_name(&name), "{shown}: a task type's name {}", crate::names::RULE);
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
    anyhow::ensure!(about.is_file(), "{shown} is no file");
    anyhow::ensure!(about.len() <= MAX_COMPONENT_BYTES, "{shown} is larger than {MAX_COMPONENT_BYTES} bytes");
    Ok((name, std::fs::read(path).with_context(|| format!("cannot read {shown}"))?))
}

/// Makes every version of every type known: a task that has ended under an earlier one can be retried. Their code
/// is on the disk from the starts before, and that of current versions is loaded, as much as is soon done. One that
/// cannot be loaded is marked failed; the others are served. What has no code is left to the compiler, unless it is
/// the server's own (`ours`), or the same compiler with the same limits (`by`) could not compile it before.
pub(crate) fn load(
    writer: &mut Writer,
    sandbox: &Sandbox,
    registry: &Registry,
    compiler: &Compiler,
    ours: &HashSet<Digest>,
    by: &str,
) -> anyhow::Result<()> {
    let components = writer.components()?;
    sandbox.keep_code_of(&components.iter().map(|component| component.digest).collect());
    let task_types = writer.task_types()?;
    let current = |stored: &StoredType| stored.next.filter(|next| ours.contains(next)).or(stored.component);
    let at_once: HashSet<Digest> = task_types.iter().filter_map(current).take(LOADED_AT_START).collect();
    for StoredComponent { digest, name, owner, failure } in components {
        if let Some(about) = (!at_once.contains(&digest)).then(|| sandbox.about(digest)).flatten() {
            registry.put_version(digest, Version::Ready(Arc::new(about)));
            continue;
        }
        let loaded = match (sandbox.load(digest), failure) {
            (Some(loaded), _) => loaded,
            // It would be refused again.
            (None, Some((why, failed_with))) if *failed_with == *by && !ours.contains(&digest) => {
                registry.put_version(digest, Version::Failed(why));
                continue;
            }
            (None, _) if ours.contains(&digest) => {
                sandbox.compile(digest, &writer.component(digest)?.unwrap_or_default())
            }
            (None, _) => {
                registry.put_version(digest, Version::Compiling);
                compiler.compile(owner.unwrap_or_default(), digest);
                continue;
            }
        };
        match loaded {
            Ok(program) => {
                registry.put_version(digest, Version::Ready(program.about.clone()));
                registry.put_program(digest, Arc::new(program));
            }
            Err(error) => registry.put_version(digest, failed(&name, digest, &error)),
        }
    }
    writer.begin()?;
    for mut stored in task_types {
        // The server may have gone down between the end of compiling and this.
        let versions = match stored.component {
            Some(_) => Vec::new(),
            None => writer.versions(&stored.tenant, &stored.name)?,
        };
        for version in stored.next.into_iter().chain(versions) {
            if let Some(Version::Ready(about)) = registry.version(version)
                && let Some(promoted) = manager::promoted(&stored, version, &about)
            {
                stored = promoted;
                writer.put_task_type(&stored)?;
            }
        }
        registry.put_type(stored.tenant.clone(), TaskType::of(&stored));
    }
    writer.commit()?;
    Ok(())
}

fn failed(name: &str, digest: Digest, error: &anyhow::Error) -> Version {
    let why = one_line(&format!("{error:#}"));
    tracing::error!(task_type = name, %digest, why, "this task type cannot be used");
    Version::Failed(why.into())
}
