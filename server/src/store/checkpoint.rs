//! Moves the write-ahead log into the database.
//!
//! A thread moves most of it while commits go on: copying tens of megabytes and syncing them takes tens of
//! milliseconds, for which nobody should have to wait. But the log begins anew only when all of it is moved, and while
//! there are commits there is always something more. So the short rest that came meanwhile is moved by the writer, with
//! no commit beside it.

use std::fs::File;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rusqlite::Connection;

use super::{BUSY_TIMEOUT, StoreError, Writer};

/// Pages the write-ahead log may have before they are moved into the database: 64 MiB. A page
/// that many tasks change is moved once, so fewer moves are less work, and a longer log at a start.
const CHECKPOINT_PAGES: u64 = 16_384;

/// Pages of a log that does not begin anew, as there is always somebody who reads: 512 MiB. Commits wait then until
/// nobody does, which is no longer than a read may take, so that the log cannot fill the disk.
const RESTART_PAGES: u64 = 8 * CHECKPOINT_PAGES;

/// How long commits wait for those who began to read before, and then for those who began meanwhile: a little longer
/// than a read may take. A backup reads for longer; so it is tried again only when the log has twice as many pages.
const RESTART_PATIENCE: Duration = Duration::from_millis(2_500);

/// How often it is looked whether the first of them have ended.
const RESTART_LOOK: Duration = Duration::from_millis(5);

/// The rest of the log that is left to the writer, in pages, about; and how often a rest is moved beside it.
const SHORT_REST: i64 = 512;
const MOST_RESTS: usize = 4;

type Result<T> = std::result::Result<T, StoreError>;

/// How far the writer is with moving the log.
#[derive(Debug)]
pub(super) struct Moving {
    /// A thread that moves most of it.
    thread: Option<JoinHandle<Result<()>>>,
    /// To sync the database with. Never closed: that would drop all locks that this process has on the file, SQLite's
    /// too (<https://sqlite.org/howtocorrupt.html>, section 2.2).
    database: Option<&'static File>,
    /// When so many pages are in the log, commits wait for it to begin anew.
    restart_at: u64,
}

impl Default for Moving {
    fn default() -> Moving {
        Moving { thread: None, database: None, restart_at: RESTART_PAGES }
    }
}

impl Writer {
    /// Moves the log into the database once it is large. Called after the answers of a commit are on their way. A
    /// failure is no loss: the log keeps everything and grows.
    pub fn checkpoint_if_due(&mut self) -> Result<()> {
        match &self.moving.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            Some(_) => {
                self.wait_for_move()?;
                self.move_rest()
            }
            None if self.wal_pages.load(Ordering::Relaxed) < CHECKPOINT_PAGES => Ok(()),
            None => match self.move_beside() {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "commits wait until the write-ahead log is moved");
                    self.move_rest()
                }
            },
        }
    }

    /// Moves all of the write-ahead log into the database and empties it, for a clean end.
    pub fn checkpoint_all(&mut self) -> Result<()> {
        self.wait_for_move()?;
        self.checkpoint("TRUNCATE").map(drop)
    }

    fn move_beside(&mut self) -> anyhow::Result<()> {
        let path = self.conn.path().context("the database has no path")?;
        let conn = Connection::open(path)?;
        let database = match self.moving.database {
            Some(database) => database,
            None => Box::leak(Box::new(File::open(path)?)),
        };
        self.moving.database = Some(database);
        let thread = std::thread::Builder::new().name("checkpoint".into());
        self.moving.thread = Some(thread.spawn(move || move_most(&conn, database))?);
        Ok(())
    }

    /// A sync that failed is an error. What else the thread could not do is left to the writer.
    fn wait_for_move(&mut self) -> Result<()> {
        let Some(thread) = self.moving.thread.take() else { return Ok(()) };
        match thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            Err(error @ StoreError::SyncFailed(_)) => Err(error),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot move the write-ahead log beside commits"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn move_rest(&mut self) -> Result<()> {
        let pages = self.wal_pages.load(Ordering::Relaxed);
        if pages < self.moving.restart_at {
            return self.checkpoint("PASSIVE").map(drop);
        }
        let restarted = self.move_all()? && self.restart()?;
        self.moving.restart_at = if restarted { RESTART_PAGES } else { 2 * pages };
        Ok(())
    }

    /// Waits for those who read what is not moved yet. SQLite would wait for a place in the log, which the next to read
    /// may take and those after it share, so that it is never free; so it is looked again and again.
    fn move_all(&mut self) -> Result<bool> {
        let started = Instant::now();
        while !self.checkpoint("PASSIVE")? {
            if started.elapsed() >= RESTART_PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(RESTART_LOOK);
        }
        Ok(true)
    }

    /// Waits for those who began to read before all was moved. Who begins now needs no place in the log.
    fn restart(&mut self) -> Result<bool> {
        self.conn.busy_timeout(RESTART_PATIENCE)?;
        let restarted = self.checkpoint("RESTART");
        self.conn.busy_timeout(BUSY_TIMEOUT)?;
        restarted
    }

    /// Whether nothing was in its way, and all of the log is moved.
    fn checkpoint(&mut self, mode: &str) -> Result<bool> {
        self.wal_pages.store(0, Ordering::Relaxed);
        let pragma = format!("PRAGMA wal_checkpoint({mode})");
        let (busy, pages, moved): (u8, i64, i64) =
            self.conn.query_row(&pragma, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        Ok(busy == 0 && pages == moved)
    }
}

/// Moves what is in the log into the database, and then what came meanwhile, until that is little. SQLite syncs the
/// database only where nothing came: so that is done here, and little is left to be synced by the writer.
fn move_most(conn: &Connection, database: &File) -> Result<()> {
    conn.execute_batch("PRAGMA synchronous = FULL")?;
    let mut before = 0;
    for _ in 0..=MOST_RESTS {
        let moved: i64 = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))?;
        if moved - before < SHORT_REST {
            break;
        }
        before = moved;
    }
    database.sync_data().map_err(|error| {
        let failed = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
        StoreError::SyncFailed(rusqlite::Error::SqliteFailure(failed, Some(error.to_string())))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::{PIECE_BYTES, new_upload, open};
    use super::*;

    /// However much is committed without a pause.
    #[test]
    fn the_log_begins_anew_while_commits_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _readers) = open(directory.path(), 1).unwrap();
        let (upload, bytes) = (new_upload(), vec![7; PIECE_BYTES]);
        let (mut begun_anew, mut before, mut beside) = (0, 0, 0);
        // A gigabyte, which is many times what the log may have.
        for at in 0..4 << 10 {
            writer.begin().unwrap();
            writer.put_piece(upload, at, &bytes).unwrap();
            writer.commit().unwrap();
            let pages = writer.wal_pages.load(Ordering::Relaxed);
            begun_anew += u32::from(pages < before);
            before = pages;
            writer.checkpoint_if_due().unwrap();
            beside += u32::from(writer.moving.thread.is_some());
            if begun_anew == 2 {
                break;
            }
        }
        assert!(begun_anew == 2 && beside > 2, "{begun_anew} times, and {beside} commits beside the move");
        writer.checkpoint_all().unwrap();
        assert_eq!(directory.path().join("taskcell.db-wal").metadata().map_or(0, |log| log.len()), 0);
    }
    /// However many read, one after the other and each until after the next has begun.
    #[test]
    fn the_log_begins_anew_while_somebody_always_reads() {
        let directory = tempfile::tempdir().unwrap();
        let (mut writer, _readers) = open(directory.path(), 1).unwrap();
        writer.moving.restart_at = 2 * CHECKPOINT_PAGES;
        let (upload, bytes) = (new_upload(), vec![7; PIECE_BYTES]);
        let database = directory.path().join(super::super::DATABASE);
        let end = AtomicBool::new(false);
        let read = |after: Duration| {
            std::thread::sleep(after);
            while !end.load(Ordering::Relaxed) {
                let conn = Connection::open(&database).unwrap();
                conn.execute_batch("BEGIN; SELECT count(*) FROM task").unwrap();
                std::thread::sleep(Duration::from_millis(400));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| read(Duration::ZERO));
            scope.spawn(|| read(Duration::from_millis(200)));
            let (mut begun_anew, mut before, mut most) = (0, 0, 0);
            for at in 0..8 << 10 {
                writer.begin().unwrap();
                writer.put_piece(upload, at, &bytes).unwrap();
                writer.commit().unwrap();
                let pages = writer.wal_pages.load(Ordering::Relaxed);
                begun_anew += u32::from(pages < before);
                (before, most) = (pages, most.max(pages));
                writer.checkpoint_if_due().unwrap();
                if begun_anew == 2 {
                    break;
                }
            }
            end.store(true, Ordering::Relaxed);
            assert_eq!(begun_anew, 2, "up to {most} pages");
            assert!(most < RESTART_PAGES + CHECKPOINT_PAGES, "it began anew late: {most} pages");
        });
    }
}
