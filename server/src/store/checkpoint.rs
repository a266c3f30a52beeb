//! Moves the write-ahead log into the database.
//!
//! A thread moves most of it while commits go on: copying tens of megabytes and syncing them takes tens of
//! milliseconds, for which nobody should have to wait. But the log begins anew only when all of it is moved, and while
//! there are commits there is always something more. So the short rest that came meanwhile is moved by the writer, with
//! no commit beside it.

use std::sync::atomic::Ordering;

use rusqlite::Connection;

use super::{StoreError, Writer};

/// Pages the write-ahead log may have before they are moved into the database: 64 MiB. A page
/// that many tasks change is moved once, so fewer moves are less work, and a longer log at a start.
const CHECKPOINT_PAGES: u64 = 16_384;

/// The rest of the log that is left to the writer, in pages, about; and how often a rest is moved beside it.
const SHORT_REST: i64 = 512;
const MOST_RESTS: usize = 4;

type Result<T> = std::result::Result<T, StoreError>;

impl Writer {
    /// Moves the log into the database once it is large. Called after the answers of a commit are on their way. A
    /// failure is no loss: the log keeps everything and grows.
    pub fn checkpoint_if_due(&mut self) -> Result<()> {
        match &self.moving {
            Some(moving) if !moving.is_finished() => Ok(()),
            Some(_) => {
                self.wait_for_move()?;
                self.checkpoint("PASSIVE")
            }
            None if self.wal_pages.load(Ordering::Relaxed) < CHECKPOINT_PAGES => Ok(()),
            None => self.move_beside(),
        }
    }

    /// Moves all of the write-ahead log into the database and empties it, for a clean end.
    pub fn checkpoint_all(&mut self) -> Result<()> {
        self.wait_for_move()?;
        self.checkpoint("TRUNCATE")
    }

    fn move_beside(&mut self) -> Result<()> {
        let Some(path) = self.conn.path() else { return self.checkpoint("PASSIVE") };
        let conn = Connection::open(path)?;
        let thread = std::thread::Builder::new().name("checkpoint".into());
        match thread.spawn(move || move_most(&conn)) {
            Ok(moving) => {
                self.moving = Some(moving);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "no thread can be started to empty the write-ahead log, commits wait for it");
                self.checkpoint("PASSIVE")
            }
        }
    }

    fn wait_for_move(&mut self) -> Result<()> {
        let Some(moving) = self.moving.take() else { return Ok(()) };
        moving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn checkpoint(&mut self, mode: &str) -> Result<()> {
        self.wal_pages.store(0, Ordering::Relaxed);
        self.conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).map_err(StoreError::from)
    }
}

/// Moves what is in the log into the database, and then what came meanwhile, until that is little.
fn move_most(conn: &Connection) -> Result<()> {
    conn.execute_batch("PRAGMA synchronous = FULL")?;
    let mut before = 0;
    for _ in 0..=MOST_RESTS {
        let moved: i64 = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))?;
        if moved - before < SHORT_REST {
            break;
        }
        before = moved;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
            beside += u32::from(writer.moving.is_some());
            if begun_anew == 2 {
                break;
            }
        }
        assert!(begun_anew == 2 && beside > 2, "{begun_anew} times, and {beside} commits beside the move");
        writer.checkpoint_all().unwrap();
        assert_eq!(directory.path().join("taskcell.db-wal").metadata().map_or(0, |log| log.len()), 0);
    }
}
