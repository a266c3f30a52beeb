//! What can go wrong in the store, told apart by what the caller can do.

use rusqlite::ErrorCode;
use rusqlite::ffi;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or does not take writes at the moment: trying again later may help, and
    /// nothing of the transaction was kept.
    #[error("the disk takes no writes")]
    NoRoom(#[source] rusqlite::Error),
    /// A sync failed: what is on the disk is unknown, and the process must end.
    #[error("syncing the database failed")]
    SyncFailed(#[source] rusqlite::Error),
    /// The read took too long.
    #[error("the read took too long")]
    TooSlow,
    /// Anything else: a damaged file or a bug.
    #[error("the database failed")]
    Failed(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> StoreError {
        let extended = match &error {
            rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
            _ => 0,
        };
        match (error.sqlite_error_code(), extended) {
            (_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC) => StoreError::SyncFailed(error),
            (Some(ErrorCode::OperationInterrupted), _) => StoreError::TooSlow,
            (Some(ErrorCode::DiskFull), _)
            | (
                _,
                ffi::SQLITE_IOERR_WRITE
                | ffi::SQLITE_IOERR_TRUNCATE
                | ffi::SQLITE_IOERR_SHMSIZE
                | ffi::SQLITE_IOERR_SHMMAP
                | ffi::SQLITE_IOERR_SHMOPEN,
            ) => StoreError::NoRoom(error),
            _ => StoreError::Failed(error),
        }
    }
}
