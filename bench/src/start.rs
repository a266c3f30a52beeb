//! The server's start on what it finds: from its process to its taking tasks.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{Advice, fadvise};

use crate::Setup;
use crate::report::{Spread, Table, millis_of};
use crate::rounds::{self, Point, Row};
use crate::server::Server;

/// Starts of each kind in a round.
const STARTS: usize = 3;

struct Starts {
    /// With the database in the kernel's page cache.
    warm: Vec<Duration>,
    /// With none of it there.
    cold: Vec<Duration>,
}

impl Point for Starts {
    /// Any fault ends the round.
    fn faults(&self) -> (u64, &[String]) {
        (0, &[])
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        let median = |times: &[Duration]| Spread::of(times.iter().map(Duration::as_secs_f64)).median();
        vec![("ready, warm", median(&self.warm)), ("ready, cold", median(&self.cold))]
    }
}

/// Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup) -> Result<bool> {
    let about = "start: from the start of the process until it takes tasks, after a clean end; median of all";
    let measure = |server: &mut Server, _| {
        let mut starts = Starts { warm: Vec::new(), cold: Vec::new() };
        for _ in 0..STARTS {
            server.end()?;
            starts.warm.push(server.start_again(&setup.program, &setup.task_type, &[])?);
            server.end()?;
            // All of it is on the disk, so the kernel can let go of it.
            let database = File::open(server.data.join("taskcell.db"))?;
            database.sync_all()?;
            fadvise(&database, 0, None, Advice::DontNeed)?;
            starts.cold.push(server.start_again(&setup.program, &setup.task_type, &[])?);
        }
        Ok(starts)
    };
    rounds::run(setup, about, &[1], measure, table)
}

fn table(rows: &[Row<Starts>]) -> Table {
    let mut table = Table::new(&["starts", "ready ms", "min–max", "ready ms, database not in memory", "min–max"]);
    for Row { rounds, .. } in rows {
        let spread = |of: fn(&Starts) -> &[Duration]| {
            Spread::of(rounds.iter().flat_map(of).map(|time| time.as_secs_f64() * 1e3))
        };
        let (warm, cold) = (spread(|starts| &starts.warm), spread(|starts| &starts.cold));
        table.row(vec![
            (rounds.len() * STARTS * 2).to_string(),
            millis_of(warm.median() / 1e3),
            warm.range(),
            millis_of(cold.median() / 1e3),
            cold.range(),
        ]);
    }
    table
}
