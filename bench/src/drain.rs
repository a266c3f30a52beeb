//! A queue worked off: tasks that are all Pending, and the time until none is.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::Utc;

use crate::Setup;
use crate::cpu;
use crate::listing;
use crate::load::{self, Plan};
use crate::report::{Spread, Table, micros_each};
use crate::request::{BATCH, Kind, Random};
use crate::rounds::{self, Point, Row};
use crate::server::Server;

/// More memory than there is kept free: with it nothing may start.
const NOTHING_STARTS: [&str; 2] = ["--memory-reserve", "1000000000000000000"];
/// Connections that put the tasks in.
const CONNECTIONS: usize = 4;
const FILL_LIMIT: Duration = Duration::from_secs(3600);

struct Drained {
    tasks: u64,
    /// From the start of the first task to the end of the last.
    span: Duration,
    /// CPU time of the server that did it, its start included.
    server_cpu: Duration,
}

impl Point for Drained {
    /// Any fault ends the round.
    fn faults(&self) -> (u64, &[String]) {
        (0, &[])
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![("1,000 tasks ended", 1000.0 * self.span.as_secs_f64() / self.tasks as f64)]
    }
}

/// Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup, random: &mut Random) -> Result<bool> {
    let about = format!(
        "drain: tasks of type `{}` that are all Pending when the server starts, from the start of the first to the \
         end of the last; median of the rounds",
        setup.task_type
    );
    let measure = |server: &mut Server, connections| measure(setup, random, server, connections);
    rounds::run(setup, &about, &[CONNECTIONS], measure, table)
}

fn measure(setup: &Setup, random: &mut Random, server: &mut Server, connections: usize) -> Result<Drained> {
    server.end()?;
    server.start_again(&setup.program, &setup.task_type, &NOTHING_STARTS.map(OsStr::new))?;
    let plan = Plan {
        address: server.address,
        server: server.process(),
        connections,
        kind: Kind::Batch,
        task_type: &setup.task_type,
        key: None,
        delay: Duration::ZERO,
        warm_up: Duration::ZERO,
        measured: FILL_LIMIT,
        at_most: setup.tasks.div_ceil(BATCH as u64),
    };
    let posted = load::run(&plan, random)?;
    ensure!(posted.errors == 0, "filling the queue: {}", posted.messages.join("; "));
    server.end()?;
    let filled = Utc::now();
    server.start_again(&setup.program, &setup.task_type, &[])?;
    listing::await_ends(server)?;
    let server_cpu = cpu::used_by(server.process())?;
    let tasks = posted.answered * BATCH as u64;
    let (first, last) = listing::span(server, tasks)?;
    ensure!(first >= filled, "a task started before all were Pending");
    let span = (last - first).to_std().context("the last task ended before the first began")?;
    Ok(Drained { tasks, span, server_cpu })
}

fn table(rows: &[Row<Drained>]) -> Table {
    let mut table = Table::new(&["tasks", "seconds", "ended/s", "min–max", "server CPU µs/task"]);
    for Row { rounds, .. } in rows {
        let rate = Spread::of(rounds.iter().map(|drained| drained.tasks as f64 / drained.span.as_secs_f64()));
        let cpu = Spread::of(rounds.iter().map(|drained| micros_each(drained.server_cpu, drained.tasks)));
        table.row(vec![
            rounds.iter().map(|drained| drained.tasks).sum::<u64>().to_string(),
            format!("{:.1}", rounds.iter().map(|drained| drained.span.as_secs_f64()).sum::<f64>()),
            format!("{:.0}", rate.median()),
            rate.range(),
            format!("{:.1}", cpu.median()),
        ]);
    }
    table
}
