//! From `POST /task` to the start of the guest, at a given rate of arrivals.
//!
//! The guest tells the machine's clock at its first instruction, and that is its output: the time until
//! then has all that is between, the commit that holds the start included, and rests on no time that the
//! server takes itself.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::Setup;
use crate::commit;
use crate::histogram::Histogram;
use crate::http::Reader;
use crate::in_process::guest;
use crate::listing;
use crate::open_loop::{self, Plan, Posted};
use crate::report::{Spread, Table, micros_each, millis, millis_of};
use crate::request::Random;
use crate::rounds::{self, Point, Row};
use crate::server::Server;

/// The guest that tells when it began.
const GUEST: &str = "clock";

struct Latency {
    /// A transaction with one task, just before and just after, while nothing else is done.
    commit: Histogram,
    /// From when a request was to be sent, as the other two: until it was sent.
    late: Histogram,
    /// Until its `202` was there.
    stored: Histogram,
    /// Until the guest's first instruction.
    started: Histogram,
    tasks: u64,
    server_cpu: Duration,
}

impl Point for Latency {
    /// Any fault ends the round.
    fn faults(&self) -> (u64, &[String]) {
        (0, &[])
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("started p50", self.started.quantile(0.5).as_secs_f64()),
            ("started p99", self.started.quantile(0.99).as_secs_f64()),
            ("stored p50", self.stored.quantile(0.5).as_secs_f64()),
            ("stored p99", self.stored.quantile(0.99).as_secs_f64()),
            ("server CPU of 1,000", micros_each(self.server_cpu, self.tasks) / 1e3),
        ]
    }
}

/// Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup, random: &mut Random) -> Result<bool> {
    let about = format!(
        "latency: POST /task without waiting, {} a second with random gaps, from when a request is to be sent until \
         its 202 (stored) and until the guest's first instruction (started); median of the rounds",
        setup.rate
    );
    rounds::run(setup, &about, &[1], |server, _| measure(setup, random, server), table)
}

fn measure(setup: &Setup, random: &mut Random, server: &mut Server) -> Result<Latency> {
    let components = server.data.join("components");
    std::fs::create_dir(&components)?;
    std::fs::write(components.join(format!("{GUEST}.wasm")), guest(GUEST)?)?;
    server.end()?;
    let mut commit = Histogram::new();
    commit::measure(&setup.program.dir, &mut commit)?;
    server.start_again(&setup.program, GUEST, &[OsStr::new("--components"), components.as_os_str()])?;
    let plan = Plan {
        address: server.address,
        server: server.process(),
        task_type: GUEST,
        rate: setup.rate,
        warm_up: setup.warm_up,
        measured: setup.measured,
    };
    let found = open_loop::run(&plan, random)?;
    listing::await_ends(server)?;
    commit::measure(&setup.program.dir, &mut commit)?;
    let mut latency = Latency {
        commit,
        late: Histogram::new(),
        stored: Histogram::new(),
        started: Histogram::new(),
        tasks: found.posted.len() as u64,
        server_cpu: found.server_cpu,
    };
    let mut reader = Reader::open(server.address)?;
    for posted in &found.posted {
        latency.late.record(posted.late);
        latency.stored.record(posted.stored);
        latency
            .started
            .record(began(&mut reader, posted)?.duration_since(posted.due).context("began before it was sent")?);
    }
    Ok(latency)
}

/// When a task's guest began, as it says itself.
fn began(reader: &mut Reader, posted: &Posted) -> Result<SystemTime> {
    let path = format!("/task/{}/result", posted.id);
    let (status, body) = reader.get(&path)?;
    let shown = String::from_utf8_lossy(&body);
    ensure!(status == 200, "GET {path}: status {status}: {shown}");
    let nanos: u64 = shown.parse().with_context(|| format!("GET {path}: {shown}"))?;
    Ok(UNIX_EPOCH + Duration::from_nanos(nanos))
}

fn table(rows: &[Row<Latency>]) -> Table {
    let mut table = Table::new(&[
        "tasks",
        "sent late p50 ms",
        "p99 ms",
        "stored p50 ms",
        "p99 ms",
        "started p50 ms",
        "p99 ms",
        "max ms",
        "one commit p50 ms",
        "started p50 in commits",
        "min–max",
        "server CPU µs/task",
    ]);
    for Row { rounds, .. } in rows {
        let quantile = |of: fn(&Latency) -> &Histogram, share: f64| {
            millis_of(Spread::of(rounds.iter().map(|round| of(round).quantile(share).as_secs_f64())).median())
        };
        let commits = Spread::of(
            rounds
                .iter()
                .map(|round| round.started.quantile(0.5).as_secs_f64() / round.commit.quantile(0.5).as_secs_f64()),
        );
        let longest = rounds.iter().map(|round| round.started.max()).max();
        let cpu = Spread::of(rounds.iter().map(|round| micros_each(round.server_cpu, round.tasks)));
        table.row(vec![
            rounds.iter().map(|round| round.tasks).sum::<u64>().to_string(),
            quantile(|round| &round.late, 0.5),
            quantile(|round| &round.late, 0.99),
            quantile(|round| &round.stored, 0.5),
            quantile(|round| &round.stored, 0.99),
            quantile(|round| &round.started, 0.5),
            quantile(|round| &round.started, 0.99),
            millis(longest.unwrap_or_default()),
            quantile(|round| &round.commit, 0.5),
            format!("{:.2}", commits.median()),
            commits.range_to_hundredths(),
            format!("{:.1}", cpu.median()),
        ]);
    }
    table
}
