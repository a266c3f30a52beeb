//! Measures taskcell. `--help` and this directory's README say what and how.

mod check;
mod commit;
mod connection;
mod cpu;
mod database;
mod drain;
mod enqueue;
mod guests;
mod histogram;
/// The tests upload the same ones.
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/it/support/hostile.rs"]
mod hostile;
mod http;
mod in_process;
mod latency;
mod listing;
mod load;
mod machine;
mod open_loop;
mod report;
mod request;
mod rounds;
mod sandbox;
mod server;
mod start;
mod tenants;
mod types;
mod uploads;
mod waited;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::database::{Database, Large};
use crate::request::Random;
use crate::server::Program;

/// Measures taskcell: starts the real server on a data directory of its own, drives it over HTTP,
/// checks every answer, and prints a table for each measurement.
///
/// Without a command everything is measured, which takes a few minutes. The server and this
/// program share the machine's cores, so nothing else should run on it. Exits with 1 when any
/// answer was wrong or missing.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Command {
    /// Tasks that are waited for: `POST /task` with `Prefer: wait`, one request in flight on each
    /// connection; every output must be the random input that was sent
    Waited,
    /// Tasks that are only handed over: `POST /task` without waiting, then the time until all of
    /// them have ended
    Enqueue,
    /// Many tasks handed over in each request: `POST /tasks`, then the time until all have ended
    Batch,
    /// A queue worked off: tasks that are all Pending when the server starts, then the time until all
    /// have ended
    Drain,
    /// From `POST /task` to the start of the guest, at a given rate of arrivals
    Latency,
    /// The server's start: from its process to its taking tasks
    Start,
    /// Tenants beside each other: latency beside another's backlog, shares of CPU time, what keys cost
    Tenants,
    /// The server's start with 100 uploaded types of 200 KB
    Types,
    /// Uploads that are refused, each kind, and tasks beside them and beside what is hard to compile
    Uploads,
    /// The sandbox alone, in this process: instantiate, run `echo` and drop
    Sandbox,
    /// Guests that compute: with all limits, without any, and the same code native
    Guests,
}

#[derive(Args)]
#[command(next_help_heading = "Options for all commands")]
struct Options {
    /// The server's binary [default: `taskcell` beside this program]
    #[arg(long, global = true, value_name = "PATH")]
    server: Option<PathBuf>,
    /// One more argument for `taskcell serve`; can be repeated. TASKCELL_… variables reach it too
    #[arg(long, global = true, value_name = "ARG", allow_hyphen_values = true)]
    server_arg: Vec<OsString>,
    /// Directory for the data directories and logs; its disk decides the figures [default: the
    /// directory of this program]
    #[arg(long, global = true, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// Numbers of connections, separated by commas [default: 1,64,256,512; enqueue: 1,64,512; batch:
    /// 1,4,16]
    #[arg(long, global = true, value_name = "N,…", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    connections: Vec<u16>,
    /// Measured time for each point and round
    #[arg(long, global = true, value_name = "SECONDS", default_value = "8", value_parser = seconds)]
    seconds: Duration,
    /// Load before that, checked and not counted
    #[arg(long, global = true, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    warm_up: Duration,
    /// How often each point is measured, in turn with the others
    #[arg(long, global = true, value_name = "N", default_value = "3",
          value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The task type; its output must be its input
    #[arg(long, global = true, value_name = "NAME", default_value = "echo")]
    task_type: String,
    /// enqueue, batch: at most this many tasks for each point and round; drain: this many
    #[arg(long, global = true, value_name = "N", default_value = "100000",
          value_parser = clap::value_parser!(u64).range(1..))]
    tasks: u64,
    /// latency: tasks a second
    #[arg(long, global = true, value_name = "N", default_value = "1000",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// All but sandbox and guests once more, in turn, on a database with N finished tasks and a fifth as
    /// many Pending ones that are due much later [N: 1000000]
    #[arg(long, global = true, value_name = "N", num_args = 0..=1, require_equals = true,
          default_missing_value = "1000000", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    large: Option<u64>,
    /// Seed of the random inputs [default: from the clock; it is printed]
    #[arg(long, global = true, value_name = "N")]
    seed: Option<u64>,
}

/// What all measurements share.
struct Setup {
    program: Program,
    /// What the servers start on; the empty one is the first.
    databases: Vec<Database>,
    /// Empty: each measurement's own.
    connections: Vec<usize>,
    measured: Duration,
    warm_up: Duration,
    rounds: u32,
    task_type: String,
    tasks: u64,
    rate: u32,
}

impl Setup {
    /// The numbers of connections that were asked for, or those of the measurement.
    fn connections_or<'a>(&'a self, own: &'a [usize]) -> &'a [usize] {
        if self.connections.is_empty() { own } else { &self.connections }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report is what this program is for")]
fn run(cli: Cli) -> Result<bool> {
    let options = cli.options;
    ensure!(!options.seconds.is_zero(), "--seconds must be above 0");
    let mut setup = Setup {
        databases: vec![Database::Empty],
        program: Program::find(options.server, options.server_arg, options.dir)?,
        connections: options.connections.into_iter().map(usize::from).collect(),
        measured: options.seconds,
        warm_up: options.warm_up,
        rounds: options.rounds,
        task_type: options.task_type,
        tasks: options.tasks,
        rate: options.rate,
    };
    let seed = options.seed.unwrap_or_else(clock_seed);
    let mut random = Random::new(seed);
    let file_system = machine::file_system(&setup.program.dir);
    println!("machine: {}", machine::describe());
    println!("data: {} ({file_system})", setup.program.dir.display());
    if file_system == "tmpfs" || file_system == "ramfs" {
        println!("WARNING: this file system is memory; nothing is synced to a disk. Use --dir.");
    }
    if cfg!(debug_assertions) {
        println!("WARNING: built without --release; the figures mean nothing.");
    }
    println!("server: {}", setup.program.path.display());
    println!("seed: {seed}");

    let in_process_only = matches!(cli.command, Some(Command::Sandbox | Command::Guests));
    if let Some(finished) = options.large.filter(|_| !in_process_only) {
        let large = Large::make(&setup.program, &setup.task_type, finished, &mut random)?;
        setup.databases.push(Database::Large(large));
    }

    let mut good = true;
    if matches!(cli.command, None | Some(Command::Waited)) {
        good &= waited::run(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Enqueue)) {
        good &= enqueue::run(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Batch)) {
        good &= enqueue::run_batch(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Drain)) {
        good &= drain::run(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Latency)) {
        good &= latency::run(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Start)) {
        good &= start::run(&setup)?;
    }
    if matches!(cli.command, None | Some(Command::Tenants)) {
        good &= tenants::run(&setup, &mut random)?;
    }
    if matches!(cli.command, None | Some(Command::Types)) {
        good &= types::run(&setup)?;
    }
    if matches!(cli.command, None | Some(Command::Uploads)) {
        good &= uploads::run(&setup)?;
    }
    let in_process = setup.program.dir.join("in-process");
    if matches!(cli.command, None | Some(Command::Sandbox)) {
        sandbox::measure(&in_process, setup.measured, setup.rounds)?;
    }
    if matches!(cli.command, None | Some(Command::Guests)) {
        guests::measure(&in_process, setup.rounds)?;
    }
    if in_process.exists() {
        std::fs::remove_dir_all(&in_process)?;
    }
    Ok(good)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(number) {
        Ok(time) if time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err("must be from 0 to 86400".to_owned()),
    }
}

fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(1, |time| time.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["-1", "inf", "NaN", "x", "1e9"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
