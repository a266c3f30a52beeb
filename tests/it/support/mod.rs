//! What the tests share: the server's process, a client, waiting for conditions.

pub(crate) mod client;
pub(crate) mod guests;
pub(crate) mod hostile;
pub(crate) mod server;
pub(crate) mod time;
mod turns;

use std::fmt::Debug;
use std::time::{Duration, Instant};

pub(crate) use client::{Answer, Client};
pub(crate) use guests::guest;
pub(crate) use server::{Server, server, shared_server};
pub(crate) use turns::alone;

/// How long anything may take that is expected to happen. Generous: only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `look` finds something; fails with `what` when that takes too long.
#[track_caller]
pub(crate) fn wait_for<T>(what: impl Debug, look: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, look)
}

/// As [`wait_for`], with a bound of its own.
#[track_caller]
pub(crate) fn wait_within<T>(bound: Duration, what: impl Debug, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < bound, "waited {bound:?} in vain for {what:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory that is removed when it is dropped, on the file system of the build.
pub(crate) fn temp_dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
