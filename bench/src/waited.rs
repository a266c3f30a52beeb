//! Tasks that are waited for: `POST /task` with `Prefer: wait`.

use std::time::Duration;

use crate::Setup;
use crate::load::{self, Found, Plan};
use crate::report::{Spread, Table, micros_each, millis, millis_of};
use crate::request::{Kind, Random};
use crate::rounds::{self, Point, Row};
use crate::server::Server;

const CONNECTIONS: [usize; 4] = [1, 64, 256, 512];

impl Point for Found {
    fn faults(&self) -> (u64, &[String]) {
        (self.errors, &self.messages)
    }

    fn times(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("1,000 tasks", 1000.0 / self.rate()),
            ("p50", self.latency.quantile(0.5).as_secs_f64()),
            ("p99", self.latency.quantile(0.99).as_secs_f64()),
            ("server CPU of 1,000", micros_each(self.server_cpu, self.answered) / 1e3),
        ]
    }
}

/// Runs all rounds and prints their table. `true`: no fault was found.
pub(crate) fn run(setup: &Setup, random: &mut Random) -> anyhow::Result<bool> {
    let about = format!(
        "waited: POST /task with Prefer: wait=60, type `{}`, each answer checked; \
         median of the rounds",
        setup.task_type
    );
    let measure = |server: &mut Server, connections: usize| {
        let plan = Plan {
            address: server.address,
            server: server.process(),
            connections,
            kind: Kind::Waited,
            task_type: &setup.task_type,
            key: None,
            delay: Duration::ZERO,
            warm_up: setup.warm_up,
            measured: setup.measured,
            at_most: u64::MAX,
        };
        load::run(&plan, random)
    };
    rounds::run(setup, &about, setup.connections_or(&CONNECTIONS), measure, table)
}

fn table(rows: &[Row<Found>]) -> Table {
    let mut table = Table::new(&[
        "connections",
        "requests",
        "seconds",
        "req/s",
        "min–max",
        "p50 ms",
        "p99 ms",
        "max ms",
        "errors",
        "server CPU µs/req",
        "bench CPU µs/req",
    ]);
    for Row { connections, rounds, .. } in rows {
        let median = |figure: fn(&Found) -> f64| Spread::of(rounds.iter().map(figure)).median();
        let rate = Spread::of(rounds.iter().map(Found::rate));
        let seconds: Duration = rounds.iter().map(|found| found.elapsed).sum();
        let longest = rounds.iter().map(|found| found.latency.max()).max();
        table.row(vec![
            connections.to_string(),
            rounds.iter().map(|found| found.answered).sum::<u64>().to_string(),
            format!("{:.1}", seconds.as_secs_f64()),
            format!("{:.0}", rate.median()),
            rate.range(),
            millis_of(median(|found| found.latency.quantile(0.5).as_secs_f64())),
            millis_of(median(|found| found.latency.quantile(0.99).as_secs_f64())),
            millis(longest.unwrap_or_default()),
            rounds.iter().map(|found| found.errors).sum::<u64>().to_string(),
            format!("{:.1}", median(|found| micros_each(found.server_cpu, found.answered))),
            format!("{:.1}", median(|found| micros_each(found.own_cpu, found.answered))),
        ]);
    }
    table
}
