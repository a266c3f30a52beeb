//! What is in the database that a server is measured on: nothing, or many tasks.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::listing;
use crate::load::{self, Plan};
use crate::request::{BATCH, Kind, Random};
use crate::server::{Program, Server};

/// Finished tasks of the large database for each Pending one.
const FINISHED_FOR_EACH_PENDING: u64 = 5;
/// Tasks that are put in before their end is waited for: below the most that may be Pending.
const PART: u64 = 200_000;
/// When the Pending ones are due: long after the measurement.
const DELAY: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Longer than filling takes on any machine.
const FILL_LIMIT: Duration = Duration::from_secs(3600);

/// What a server starts on.
pub(crate) enum Database {
    /// An empty directory.
    Empty,
    /// A copy of a database with many tasks.
    Large(Large),
}

/// A database with many finished tasks and some that are due much later. Dropping it removes it.
pub(crate) struct Large {
    /// Stopped; its data directory is the one that is copied.
    server: Server,
    /// The id of the newest task.
    newest: String,
}

impl Database {
    /// As it is called in the tables.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Database::Empty => "empty",
            Database::Large(_) => "large",
        }
    }

    /// The id of the newest task in it; empty where there is none.
    pub(crate) fn newest(&self) -> &str {
        match self {
            Database::Empty => "",
            Database::Large(large) => &large.newest,
        }
    }

    /// Makes the new directory `data` with what is in this one. It is on the disk then: nothing of it is
    /// still being written while something is measured.
    pub(crate) fn copy_to(&self, data: &Path) -> Result<()> {
        match self {
            Database::Empty => Ok(fs::create_dir(data)?),
            Database::Large(large) => copy(&large.server.data, data),
        }
    }
}

impl Large {
    /// Makes one through the API: `finished` tasks that a server really ran, and a fifth as many Pending
    /// ones.
    #[expect(clippy::print_stdout, reason = "the report is what this program is for")]
    pub(crate) fn make(program: &Program, task_type: &str, finished: u64, random: &mut Random) -> Result<Large> {
        let mut server = Server::start(program, task_type, &Database::Empty)?;
        match fill(&server, task_type, finished, random) {
            Ok((filled, pending)) => {
                let newest = listing::newest(server.address, "Pending")?.context("nothing is Pending")?;
                server.end()?;
                let bytes = fs::metadata(server.data.join("taskcell.db"))?.len();
                println!(
                    "large database: {filled} finished tasks and {pending} Pending ones, due in a year; {} MiB",
                    bytes >> 20
                );
                Ok(Large { server, newest })
            }
            Err(error) => Err(server.explain(&error)),
        }
    }
}

fn fill(server: &Server, task_type: &str, finished: u64, random: &mut Random) -> Result<(u64, u64)> {
    let mut put = |tasks: u64, delay: Duration| -> Result<u64> {
        let plan = Plan {
            address: server.address,
            server: server.process(),
            connections: 4,
            kind: Kind::Batch,
            task_type,
            key: None,
            delay,
            warm_up: Duration::ZERO,
            measured: FILL_LIMIT,
            at_most: tasks.div_ceil(BATCH as u64),
        };
        let found = load::run(&plan, random)?;
        ensure!(found.errors == 0, "filling the large database: {}", found.messages.join("; "));
        Ok(found.answered * BATCH as u64)
    };
    let mut done = 0;
    while done < finished {
        eprintln!("large database: {done} of {finished} ...");
        done += put(PART.min(finished - done), Duration::ZERO)?;
        listing::await_ends(server)?;
    }
    ensure!(!listing::has_any(server, "Failed")?, "some tasks of the large database Failed");
    let pending = put(finished.div_ceil(FINISHED_FOR_EACH_PENDING), DELAY)?;
    Ok((done, pending))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &to)?;
        } else if kind.is_file() {
            // And not the socket that a server leaves.
            fs::copy(entry.path(), &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    Ok(())
}
