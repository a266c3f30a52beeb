//! What lasts: one SQLite database in the data directory. The only module that knows SQL.
//!
//! One [`Writer`], owned by the manager's thread, makes every change, many of them in one
//! transaction; [`Readers`] read beside it, each in a snapshot. The store decides nothing: it
//! writes down what the manager and the state machine decided.

mod audit;
mod backup;
mod checkpoint;
mod components;
mod error;
mod history;
mod inspect;
mod key_value;
mod ledger;
mod list;
mod operations;
mod queue;
mod read;
mod rows;
mod schedules;
mod secrets;
mod task_types;
mod tenants;
mod write;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rusqlite::Connection;

pub use audit::AuditFilter;
pub use backup::{back_up, restore};
pub use components::{PIECE_BYTES, new_upload};
pub use error::StoreError;
pub use history::{LoggedLine, Told, ToldEvents};
pub use key_value::{KeyValueChange, KeyValueWrite, KeyWithValue, Versioned};
pub use list::Found;
pub use operations::{Action, Operation, OperationId};
pub use queue::{HeldGroup, KEY_AGE_MS, KeyUse, Time};
pub use read::{ListFilter, ObjectMeta, Page, Readers, TaskSummary};
pub use rows::StoredType;
pub use secrets::SecretMeta;
pub use task_types::StoredComponent;
pub use write::{ObjectWrite, Precondition, Writer};

/// The name of the database in a data directory.
const DATABASE: &str = "taskcell.db";

/// Says that a file is a taskcell database ("tcel").
const APPLICATION_ID: i32 = 0x7463_656c;

/// The schema's changes in order; the version of a database is how many of them it has. A change
/// that was released is never edited.
const MIGRATIONS: &[&str] = &[
    include_str!("schema/1.sql"),
    include_str!("schema/2.sql"),
    include_str!("schema/3.sql"),
    include_str!("schema/4.sql"),
    include_str!("schema/5.sql"),
];

/// How long the writer waits for a lock of the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the lock of a data directory is waited for.
const LOCK_TIME: Duration = Duration::from_secs(1);

/// How long the start may spend on looking for damage. A small database is read whole.
const CHECK_TIME: Duration = Duration::from_millis(250);

/// Opens the database in `dir`, creates it, or brings it up to date.
///
/// A file that is damaged, that a newer taskcell wrote, or that is no taskcell database is refused
/// before anything is written to it.
pub fn open(dir: &Path, readers: usize) -> anyhow::Result<(Writer, Readers)> {
    backup::check_restored(dir)?;
    let path = dir.join(DATABASE);
    inspect::inspect(&path, Some(CHECK_TIME))?;
    inspect::sync_log(&path)?;
    let mut conn = Connection::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    configure_writer(&conn)?;
    migrate(&mut conn).with_context(|| {
        format!(
            "cannot bring the database {} up to date; it was left as it is: restore a backup, or start the version \
             that wrote it",
            path.display()
        )
    })?;
    // The name of a new database must survive a power loss, too.
    sync_dir(dir)?;
    let writer = Writer::new(conn)?;
    let readers = Readers::open(&path, readers)?;
    Ok((writer, readers))
}

fn configure_writer(conn: &Connection) -> anyhow::Result<()> {
    conn.set_prepared_statement_cache_capacity(64);
    // FULL: a commit is on the disk before anything is answered. When the log is moved into the database is decided
    // in `checkpoint.rs`, so that no commit does it.
    conn.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = 134217728;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -8192;",
    )?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    let mode: String = conn.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    if mode != "wal" {
        bail!("the database cannot use a write-ahead log here (journal mode {mode}): is it on a network file system?");
    }
    Ok(())
}

fn migrate(conn: &mut Connection) -> anyhow::Result<()> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: usize = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version < MIGRATIONS.len() {
        for migration in &MIGRATIONS[version..] {
            tx.execute_batch(migration)?;
        }
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    tx.commit()?;
    Ok(())
}

/// Makes the names in a directory last.
pub fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot sync the directory {}", dir.display()))
}

/// Creates the data directory and those above it where they are missing, and makes their names last:
/// what is synced in a directory that a power loss takes away is lost with it.
fn create_dir(path: &Path) -> anyhow::Result<()> {
    let missing = path.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).count();
    // What tenants store is nobody else's on this machine.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create the data directory {}", path.display()))?;
    // One more than was missing: a start that ended just here has made it, and not synced it.
    for (number, dir) in path.ancestors().take(missing + 1).enumerate() {
        let Some(parent) = dir.parent() else { break };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let synced = sync_dir(parent);
        // What was there before may be in a directory that this process may not read.
        if number < missing {
            synced?;
        }
    }
    Ok(())
}

/// Holds the data directory for this process until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    /// Where it is.
    pub path: PathBuf,
    _lock: std::fs::File,
}

impl DataDir {
    /// Creates the directory if need be and takes its lock; another process that holds it is an error.
    pub fn open(path: &Path) -> anyhow::Result<DataDir> {
        let started = Instant::now();
        loop {
            if let Some(dir) = DataDir::try_open(path)? {
                return Ok(dir);
            }
            // A command may hold it for a moment.
            if started.elapsed() >= LOCK_TIME {
                bail!(
                    "another taskcell serves the data directory {}: stop it first, or choose another --data-dir",
                    path.display()
                );
            }
            std::thread::sleep(LOCK_TIME / 100);
        }
    }

    /// The same; `None`: another process holds it.
    pub fn try_open(path: &Path) -> anyhow::Result<Option<DataDir>> {
        create_dir(path)?;
        let lock_path = path.join("lock");
        let lock = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("cannot write in the data directory {}", path.display()))?;
        match lock.try_lock() {
            // Absolute, as SQLite would take a path that begins with `file:` for a URI.
            Ok(()) => Ok(Some(DataDir { path: std::path::absolute(path)?, _lock: lock })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", lock_path.display()))
            }
        }
    }
}
