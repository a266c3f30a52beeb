//! Backups: everything that is kept, in one file.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::inspect::inspect;
use super::{CHECK_TIME, DATABASE, DataDir, sync_dir};

/// Copies the database of a data directory into a new file, as it is at one moment, whether or not a
/// server runs on it. What was committed before the copy began is in it. Compiled code is not: a server
/// makes it anew.
pub fn back_up(data_dir: &Path, file: &Path) -> anyhow::Result<()> {
    // Absolute, as SQLite would take a path that begins with `file:` for a URI.
    let database = std::path::absolute(data_dir)?.join(DATABASE);
    ensure!(database.exists(), "there is no database in {}: is --data-dir right?", data_dir.display());
    ensure!(!file.exists(), "{} exists already, and a backup replaces nothing", file.display());
    // A server that runs has looked at it.
    if let Some(_locked) = DataDir::try_open(data_dir)? {
        inspect(&database, Some(CHECK_TIME))?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn =
        Connection::open_with_flags(&database, flags).with_context(|| format!("cannot open {}", database.display()))?;
    conn.busy_timeout(Duration::from_secs(30))?;
    // The log stays as it is.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Under another name until it is whole: a file of that name is a backup, or there is none.
    let partial = partial(&std::path::absolute(file)?);
    let _ = std::fs::remove_file(&partial);
    let written = conn
        .execute("VACUUM INTO ?1", [partial.to_string_lossy()])
        .map_err(anyhow::Error::from)
        .and_then(|_| Ok(File::open(&partial)?.sync_all()?))
        .and_then(|()| Ok(std::fs::rename(&partial, file)?));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write the backup {}", file.display()))?;
    sync_dir(parent(file))
}

/// Refuses a data directory whose restore was cut off: what is wanted there is not what a new database has.
pub(super) fn check_restored(dir: &Path) -> anyhow::Result<()> {
    let partial = partial(&dir.join(DATABASE));
    ensure!(
        !partial.exists() || dir.join(DATABASE).exists(),
        "a restore into {} was cut off: do it again, or remove {} to begin with nothing",
        dir.display(),
        partial.display()
    );
    Ok(())
}

/// Puts a backup into a data directory that has no database. Tasks that ran when it was made are
/// attempted again when a server starts, as after a crash.
pub fn restore(file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    ensure!(bytes > 0, "{} is empty: it is no backup", file.display());
    // Nothing is written before this is known to be a sound backup that this version can read.
    inspect(&std::path::absolute(file)?, None)?;
    let dir = DataDir::open(data_dir)?;
    let database = dir.path.join(DATABASE);
    // A log without its database as well: it would be taken for the restored one's.
    for part in ["", "-wal", "-shm", "-journal"] {
        let path = dir.path.join(format!("{DATABASE}{part}"));
        ensure!(
            !path.exists(),
            "there is a database, or a part of one, in {} already: {}. Move {DATABASE}* away, or choose another \
             --data-dir",
            data_dir.display(),
            path.display()
        );
    }
    let partial = partial(&database);
    // The backup may be for others to read.
    let copied = std::fs::copy(file, &partial)
        .and_then(|_| std::fs::set_permissions(&partial, Permissions::from_mode(0o600)))
        .and_then(|()| File::open(&partial)?.sync_all())
        .and_then(|()| std::fs::rename(&partial, &database));
    if copied.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    copied.with_context(|| format!("cannot write the database {}", database.display()))?;
    sync_dir(&dir.path)
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
