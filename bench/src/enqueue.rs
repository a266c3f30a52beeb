//! Tasks that are only handed over: `POST /task` without waiting, and the time until all of them
//! have ended.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Setup;
use crate::listing;
use crate::load::{self, Found, Plan};
use crate::report::{Spread, Table, millis, millis_of};
use crate::request::{BATCH, Kind, Random};
use crate::rounds::{self, Point, Row};
use crate::server::Server;

const CONNECTIONS: [usize; 3] = [1, 64, 512];
const BATCH_CONNECTIONS: [usize; 3] = [1, 4, 16];

struct Drained {
    posted: Found,
    /// Tasks in each request.
    tasks_each: u64,
    /// From the last answer to the end of the last task.
    rest: Duration,
    /// From the first request to the end of the last task.
    whole: Duration,
}

impl Point for Drained {
    fn faults(&self) -> (u64, &[String]) {
        self.posted.faults()
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("1,000 tasks accepted", 1000.0 / (self.posted.rate() * self.tasks_each as f64)),
            ("p50", self.posted.latency.quantile(0.5).as_secs_f64()),
            ("p99", self.posted.latency.quantile(0.99).as_secs_f64()),
            ("1,000 tasks ended", 1000.0 * self.whole.as_secs_f64() / self.tasks() as f64),
        ]
    }
}

impl Drained {
    fn tasks(&self) -> u64 {
        (self.posted.answered + self.posted.late) * self.tasks_each
    }
}

/// One task a request. Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup, random: &mut Random) -> Result<bool> {
    measure(setup, random, Kind::Enqueued, "enqueue: POST /task without waiting", &CONNECTIONS)
}

/// The same with many tasks a request.
pub(crate) fn run_batch(setup: &Setup, random: &mut Random) -> Result<bool> {
    let about = format!("batch: POST /tasks with {BATCH} tasks a request");
    measure(setup, random, Kind::Batch, &about, &BATCH_CONNECTIONS)
}

fn measure(setup: &Setup, random: &mut Random, kind: Kind, what: &str, connections: &[usize]) -> Result<bool> {
    let tasks_each = if kind == Kind::Batch { BATCH as u64 } else { 1 };
    let about = format!(
        "{what}, type `{}`, then until all have ended; \
         median of the rounds",
        setup.task_type
    );
    let measure = |server: &mut Server, connections: usize| {
        let warm_up = Plan {
            address: server.address,
            server: server.process(),
            connections,
            kind: Kind::Waited,
            task_type: &setup.task_type,
            key: None,
            delay: Duration::ZERO,
            warm_up: setup.warm_up,
            measured: Duration::ZERO,
            at_most: 0,
        };
        let plan = Plan {
            kind,
            warm_up: Duration::ZERO,
            measured: setup.measured,
            at_most: setup.tasks.div_ceil(tasks_each),
            ..warm_up
        };
        // Tasks of a warm-up without waiting would still be queued when the clock starts.
        let warmed = load::run(&warm_up, random)?;
        let mut posted = load::run(&plan, random)?;
        posted.errors += warmed.errors;
        posted.messages.extend(warmed.messages);
        drain(server, posted, tasks_each)
    };
    rounds::run(setup, &about, setup.connections_or(connections), measure, table)
}

fn drain(server: &Server, mut posted: Found, tasks_each: u64) -> Result<Drained> {
    let start = Instant::now();
    listing::await_ends(server)?;
    let end = Instant::now();
    if listing::has_any(server, "Failed")? {
        posted.errors += 1;
        posted.messages.push("some tasks Failed".to_owned());
    }
    Ok(Drained { rest: end - start, whole: end - posted.began, posted, tasks_each })
}

fn table(rows: &[Row<Drained>]) -> Table {
    let mut table = Table::new(&[
        "connections",
        "requests",
        "seconds",
        "accepted/s",
        "min–max",
        "p50 ms",
        "p99 ms",
        "max ms",
        "errors",
        "tasks",
        "drained after s",
        "ended/s",
        "min–max",
    ]);
    for Row { connections, rounds, .. } in rows {
        let spread = |figure: fn(&Drained) -> f64| Spread::of(rounds.iter().map(figure));
        let rate = spread(|point| point.posted.rate() * point.tasks_each as f64);
        let ended = spread(|point| point.tasks() as f64 / point.whole.as_secs_f64());
        let seconds: Duration = rounds.iter().map(|point| point.posted.elapsed).sum();
        let longest = rounds.iter().map(|point| point.posted.latency.max()).max();
        table.row(vec![
            connections.to_string(),
            rounds.iter().map(|point| point.posted.answered).sum::<u64>().to_string(),
            format!("{:.1}", seconds.as_secs_f64()),
            format!("{:.0}", rate.median()),
            rate.range(),
            millis_of(spread(|point| point.posted.latency.quantile(0.5).as_secs_f64()).median()),
            millis_of(spread(|point| point.posted.latency.quantile(0.99).as_secs_f64()).median()),
            millis(longest.unwrap_or_default()),
            rounds.iter().map(|point| point.posted.errors).sum::<u64>().to_string(),
            rounds.iter().map(Drained::tasks).sum::<u64>().to_string(),
            format!("{:.2}", spread(|point| point.rest.as_secs_f64()).median()),
            format!("{:.0}", ended.median()),
            ended.range(),
        ]);
    }
    table
}
