//! Tenants beside each other: what one's load does to another's latency, how CPU time is shared, and what keys cost.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::Setup;
use crate::database::Database;
use crate::histogram::Histogram;
use crate::http;
use crate::load::{self, Plan};
use crate::report::{Spread, Table, millis, millis_of};
use crate::request::{Kind, Random};
use crate::server::Server;

/// Tasks that the busy tenant has waiting at the start.
const BACKLOG: usize = 100_000;
/// Most tasks of one `POST /tasks`.
const TOGETHER: usize = 10_000;
/// More than a tenant can use in an hour.
const CPU_MS_PER_HOUR: u64 = 1_000_000_000_000;
/// The quiet tenant's tasks, a second.
const QUIET_RATE: u32 = 50;

/// A server that has keys, and the ones that the measurements use.
struct Tenants<'a> {
    setup: &'a Setup,
    server: Server,
    operator: String,
}

impl<'a> Tenants<'a> {
    fn start(setup: &'a Setup) -> Result<Self> {
        let server = Server::start(&setup.program, &setup.task_type, &Database::Empty)?;
        let mut tenants = Tenants { setup, server, operator: String::new() };
        tenants.operator = tenants.key("operator")?;
        Ok(tenants)
    }

    fn command(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new(&self.setup.program.path).args(arguments).arg("--data-dir").arg(&self.server.data).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn key(&self, tenant: &str) -> Result<String> {
        self.command(&["key", "create", "--tenant", tenant, "--role", "admin"])
    }

    /// A new tenant's key.
    fn tenant(&self, name: &str, weight: u32) -> Result<String> {
        self.command(&["tenant", "create", name])?;
        let patch = format!("{{\"weight\":{weight}}}");
        self.send(&self.operator, "PATCH", &format!("/tenants/{name}"), "application/merge-patch+json", &patch)?;
        self.key(name)
    }

    fn send(&self, key: &str, method: &str, path: &str, media: &str, body: &str) -> Result<Vec<u8>> {
        let head = format!("Authorization: Bearer {key}\r\nContent-Type: {media}\r\n");
        let (status, answer) = http::Reader::open(self.server.address)?.send(method, path, &head, body.as_bytes())?;
        ensure!((200..300).contains(&status), "{method} {path}: {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }

    /// Hands over `count` tasks that find primes, which take CPU time by `up_to`.
    fn enqueue(&self, key: &str, count: usize, up_to: u64) -> Result<()> {
        let task = format!("{{\"task_type\":\"primes\",\"input\":{{\"up_to\":{up_to}}}}}");
        let mut left = count;
        while left > 0 {
            let now = left.min(TOGETHER);
            let body = format!("[{}]", vec![task.as_str(); now].join(","));
            self.send(key, "POST", "/tasks", "application/json", &body)?;
            left -= now;
        }
        Ok(())
    }

    /// Has a tenant's CPU time counted as it is used.
    fn count_cpu(&self, tenant: &str) -> Result<()> {
        let patch = format!("{{\"quotas\":{{\"cpu_ms_per_hour\":{CPU_MS_PER_HOUR}}}}}");
        self.send(&self.operator, "PATCH", &format!("/tenants/{tenant}"), "application/merge-patch+json", &patch)?;
        Ok(())
    }

    /// CPU time that the tenant of that key has used, that of attempts which still run among it. The ledger has those
    /// that are over: attempts of one tenant take turns, so that long ones end many at a time.
    fn cpu_ms(&self, key: &str) -> Result<f64> {
        let tenant: Value = serde_json::from_slice(&self.send(key, "GET", "/tenant", "application/json", "")?)?;
        tenant["quotas"]["cpu_ms_per_hour"]["used"].as_f64().context("the CPU time is not counted")
    }
}

/// Runs all of them and prints their tables. `true`: no fault was found.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn run(setup: &Setup, random: &mut Random) -> Result<bool> {
    println!(
        "\ntenants: one with {BACKLOG} CPU-bound tasks waiting, another's waited `{}`, {QUIET_RATE}/s",
        setup.task_type
    );
    let mut table = Table::new(&["beside it", "tasks", "p50 ms", "p99 ms", "max ms"]);
    for busy in [false, true] {
        let (latency, tasks) = noisy(setup, busy, random)?;
        let of = |quantile| millis_of(latency.quantile(quantile).as_secs_f64());
        let beside = if busy { "100,000 waiting" } else { "nothing" };
        table.row(vec![beside.to_owned(), tasks.to_string(), of(0.5), of(0.99), millis(latency.max())]);
    }
    println!("{table}");

    println!("tenants: CPU time of two that always have work, in {:.0} s", share_time(setup).as_secs_f64());
    let mut table = Table::new(&["tenants", "first", "second", "second / first", "wanted"]);
    for (about, weights, sizes) in [
        ("equal, short and short tasks", [100, 100], [300_000, 300_000]),
        ("equal, short and long tasks", [100, 100], [300_000, 20_000_000]),
        ("weights 1 : 3, short and long", [100, 300], [300_000, 20_000_000]),
        ("weights 1 : 3, long and short", [100, 300], [20_000_000, 300_000]),
    ] {
        let [first, second] = shares(setup, weights, sizes)?;
        table.row(vec![
            about.to_owned(),
            format!("{:.0} %", 100.0 * first / (first + second)),
            format!("{:.0} %", 100.0 * second / (first + second)),
            format!("{:.2}", second / first),
            format!("{:.2}", f64::from(weights[1]) / f64::from(weights[0])),
        ]);
    }
    println!("{table}");

    println!("tenants: waited tasks without keys and with, 64 connections, in turn");
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..setup.rounds {
        for (keyed, rates) in rates.iter_mut().enumerate() {
            rates.push(throughput(setup, keyed == 1, random)?);
        }
    }
    let mut table = Table::new(&["", "req/s", "min–max"]);
    for (about, rates) in ["without keys", "with keys"].into_iter().zip(&rates) {
        let spread = Spread::of(rates.iter().copied());
        table.row(vec![about.to_owned(), format!("{:.0}", spread.median()), spread.range()]);
    }
    println!("{table}");
    Ok(true)
}

/// The quiet tenant's latencies, and how many.
fn noisy(setup: &Setup, busy: bool, random: &mut Random) -> Result<(Histogram, u64)> {
    let tenants = Tenants::start(setup)?;
    let (a, b) = (tenants.tenant("a", 100)?, tenants.tenant("b", 100)?);
    if busy {
        // Some milliseconds of CPU time each.
        tenants.enqueue(&a, BACKLOG, 1_000_000)?;
    }
    let head = format!("Authorization: Bearer {b}\r\nContent-Type: application/json\r\nPrefer: wait=60\r\n");
    let mut client = http::Reader::open(tenants.server.address)?;
    let (mut latency, mut tasks) = (Histogram::new(), 0);
    let (began, warm_up) = (Instant::now(), setup.warm_up);
    while began.elapsed() < warm_up + setup.measured {
        let number = random.next() >> 12;
        let body = format!("{{\"task_type\":\"{}\",\"input\":{number}}}", setup.task_type);
        let sent = Instant::now();
        let (status, answer) = client.send("POST", "/task", &head, body.as_bytes())?;
        let took = sent.elapsed();
        let task: Value = serde_json::from_slice(&answer)?;
        ensure!(status == 200 && task["output"] == number, "{status}: {task}");
        if began.elapsed() > warm_up {
            latency.record(took);
            tasks += 1;
        }
        std::thread::sleep(random.gap(Duration::from_secs(1) / QUIET_RATE));
    }
    if busy {
        let waiting = tenants.send(&a, "GET", "/tasks?status=Pending&limit=1", "application/json", "")?;
        let waiting: Value = serde_json::from_slice(&waiting)?;
        if waiting["tasks"].as_array().is_none_or(Vec::is_empty) {
            bail!("the busy tenant ran out of tasks");
        }
    }
    tenants.server.stop()?;
    Ok((latency, tasks))
}

fn share_time(setup: &Setup) -> Duration {
    setup.measured.max(Duration::from_secs(1)) * 3
}

/// The CPU time of two tenants with those weights whose tasks find primes up to those numbers.
fn shares(setup: &Setup, weights: [u32; 2], sizes: [u64; 2]) -> Result<[f64; 2]> {
    let tenants = Tenants::start(setup)?;
    let names = ["a", "b"];
    let mut keys = Vec::new();
    for (name, weight) in names.into_iter().zip(weights) {
        keys.push(tenants.tenant(name, weight)?);
        tenants.count_cpu(name)?;
    }
    for (key, up_to) in keys.iter().zip(sizes) {
        // Enough for all the time, however few the cores.
        let count = if up_to > 1_000_000 { 2_000 } else { 60_000 };
        tenants.enqueue(key, count, up_to)?;
    }
    // What the first had alone does not count.
    std::thread::sleep(setup.warm_up.max(Duration::from_secs(2)));
    let used = || -> Result<[f64; 2]> { Ok([tenants.cpu_ms(&keys[0])?, tenants.cpu_ms(&keys[1])?]) };
    let before = used()?;
    std::thread::sleep(share_time(setup));
    let after = used()?;
    ensure!(
        after.iter().zip(before).all(|(after, before)| *after > before),
        "a tenant got no CPU time, or its hour ended meanwhile"
    );
    Ok([after[0] - before[0], after[1] - before[1]])
}

/// Waited tasks a second.
fn throughput(setup: &Setup, keyed: bool, random: &mut Random) -> Result<f64> {
    let (server, key) = if keyed {
        let tenants = Tenants::start(setup)?;
        let key = tenants.tenant("a", 100)?;
        (tenants.server, Some(key))
    } else {
        (Server::start(&setup.program, &setup.task_type, &Database::Empty)?, None)
    };
    let plan = Plan {
        address: server.address,
        server: server.process(),
        connections: 64,
        kind: Kind::Waited,
        task_type: &setup.task_type,
        key: key.as_deref(),
        delay: Duration::ZERO,
        warm_up: setup.warm_up,
        measured: setup.measured,
        at_most: u64::MAX,
    };
    let found = load::run(&plan, random)?;
    ensure!(found.errors == 0, "{} answers were wrong: {:?}", found.errors, found.messages);
    server.stop()?;
    Ok(found.rate())
}
