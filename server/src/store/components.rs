//! The bytes of components. They are kept in pieces, so that a large one is written over several transactions, and
//! no other's change waits for all of it.

use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::{StoreError, Writer};
use crate::task::{Digest, Timestamp};

type Result<T> = std::result::Result<T, StoreError>;

/// Bytes of one piece, at most.
pub const PIECE_BYTES: usize = 256 << 10;

/// A number for an upload, which no other has: it is random, as whoever sends the first piece must be able to take
/// it back before anything was answered.
pub fn new_upload() -> u64 {
    // SQLite's integers have a sign.
    Uuid::new_v4().as_u64_pair().0 >> 1
}

/// The bytes of a component.
pub(super) fn bytes(conn: &Connection, digest: Digest) -> rusqlite::Result<Option<Vec<u8>>> {
    let found: Option<(u64, usize)> = conn
        .prepare_cached("SELECT upload, size FROM component WHERE digest = ?1")?
        .query_row([digest], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((upload, size)) = found else { return Ok(None) };
    let mut bytes = Vec::with_capacity(size);
    let mut statement = conn.prepare_cached("SELECT bytes FROM component_piece WHERE upload = ?1 ORDER BY at")?;
    let mut rows = statement.query([upload])?;
    while let Some(row) = rows.next()? {
        bytes.extend_from_slice(row.get_ref(0)?.as_blob()?);
    }
    Ok(Some(bytes))
}

impl Writer {
    /// Adds a piece of an upload, the one at that place.
    pub fn put_piece(&mut self, upload: u64, at: u64, bytes: &[u8]) -> Result<()> {
        self.conn
            .prepare_cached("INSERT INTO component_piece (upload, at, bytes) VALUES (?1, ?2, ?3)")?
            .execute(params![upload, at, bytes])?;
        Ok(())
    }

    /// Whether a component is there.
    pub fn has_component(&mut self, digest: Digest) -> Result<bool> {
        Ok(self.conn.prepare_cached("SELECT 1 FROM component WHERE digest = ?1")?.exists([digest])?)
    }

    /// An upload is whole: it is this component, of so many bytes. Where that is there already the upload goes.
    pub fn put_component(&mut self, digest: Digest, upload: u64, size: u64, now: Timestamp) -> Result<()> {
        let inserted = self
            .conn
            .prepare_cached(
                "INSERT INTO component (digest, upload, size, created_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![digest, upload, size, now])?;
        if inserted > 0 { Ok(()) } else { self.remove_upload(upload) }
    }

    /// Removes what there is of an upload, unless a component has it.
    pub fn remove_upload(&mut self, upload: u64) -> Result<()> {
        self.conn
            .prepare_cached(
                "DELETE FROM component_piece WHERE upload = ?1
                 AND NOT EXISTS (SELECT 1 FROM component WHERE upload = ?1)",
            )?
            .execute([upload])?;
        Ok(())
    }

    /// Removes what there is of uploads that were never whole. For the start, when there can be no others.
    pub fn remove_unfinished_uploads(&mut self) -> Result<()> {
        self.conn.execute("DELETE FROM component_piece WHERE upload NOT IN (SELECT upload FROM component)", [])?;
        Ok(())
    }

    /// The bytes of a component.
    pub fn component(&mut self, digest: Digest) -> Result<Option<Vec<u8>>> {
        Ok(bytes(&self.conn, digest)?)
    }
}
