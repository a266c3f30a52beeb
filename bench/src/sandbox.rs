//! Instances per second: a fresh store, instantiation, a call of `echo`, and all of it dropped.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::in_process::InProcess;
use crate::report::Table;

/// What one round measured.
struct Round {
    per_second: f64,
    /// Of all instances, each in microseconds.
    median: f64,
    p99: f64,
}

/// Measures with one and with two guest threads, in turn.
#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
pub(crate) fn measure(dir: &Path, measured: Duration, rounds: u32) -> Result<()> {
    println!("\n## Sandbox: instantiate, run `echo` and drop, in process\n");
    let mut table =
        Table::new(&["world", "threads", "instances/s", "min", "max", "median µs", "p99 µs (median of rounds)"]);
    let cases = [("task", "echo"), ("blocking-task", "echo-blocking")];
    let mut results: Vec<Vec<Round>> = (0..cases.len() * 2).map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (case, (_, guest)) in cases.iter().enumerate() {
            for threads in 1..=2 {
                results[case * 2 + threads - 1].push(round(dir, guest, threads, measured)?);
            }
        }
    }
    for (case, (world, _)) in cases.iter().enumerate() {
        for threads in 1..=2 {
            let of = &results[case * 2 + threads - 1];
            let rates = sorted(of.iter().map(|round| round.per_second));
            let medians = sorted(of.iter().map(|round| round.median));
            let p99s = sorted(of.iter().map(|round| round.p99));
            table.row(vec![
                (*world).to_owned(),
                threads.to_string(),
                format!("{:.0}", rates[rates.len() / 2]),
                format!("{:.0}", rates[0]),
                format!("{:.0}", rates[rates.len() - 1]),
                format!("{:.1}", medians[medians.len() / 2]),
                format!("{:.1}", p99s[p99s.len() / 2]),
            ]);
        }
    }
    print!("{table}");
    Ok(())
}

fn round(dir: &Path, guest: &str, threads: usize, measured: Duration) -> Result<Round> {
    let timers = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let guests = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    let sandbox = Arc::new(InProcess::new(dir, timers.handle().clone())?);
    let program = Arc::new(sandbox.load(guest)?);
    let begin = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|worker| {
            let (sandbox, program) = (sandbox.clone(), program.clone());
            guests.spawn(async move {
                let mut times = Vec::new();
                while begin.elapsed() < measured {
                    let input = (worker as u64 + times.len() as u64).to_string();
                    let started = Instant::now();
                    let output = sandbox.run(&program, &input).await?;
                    times.push(started.elapsed().as_secs_f64() * 1e6);
                    ensure!(*output == *input, "echo answered {output} to {input}");
                }
                Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for worker in workers {
        times.extend(timers.block_on(worker)??);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let times = sorted(times.into_iter());
    Ok(Round {
        per_second: times.len() as f64 / seconds,
        median: times[times.len() / 2],
        p99: times[times.len() * 99 / 100],
    })
}

pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
