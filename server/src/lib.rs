//! taskcell: runs other people's code as background tasks, sandboxed and durable.
//!
//! The way of a task: [`api`] → [`manager`] → [`store`] → [`executor`] → [`sandbox`] → [`host`]
//! functions → outcome → [`manager`] → [`store`]. Beside it stand the pure parts: what a task may
//! do ([`task`]), what it may use ([`limits`]), whose turn it is ([`schedule`]).
//!
//! ARCHITECTURE.md has the map and what must always hold.

pub mod api;
pub mod audit;
pub mod clock;
mod command_line;
pub mod compiler;
pub mod config;
pub mod executor;
pub mod grants;
pub mod history;
pub mod host;
pub mod input_schema;
pub mod key_value;
pub mod keys;
pub mod ledger;
pub mod limits;
pub mod manager;
pub mod names;
pub mod objects;
pub mod pointer;
pub mod quotas;
pub mod registry;
pub mod room;
pub mod sandbox;
pub mod schedule;
pub mod schedules;
pub mod secrets;
pub mod serve;
pub mod share;
pub mod storage;
pub mod store;
pub mod task;
pub mod tenants;
pub mod turns;
mod types_at_start;

use std::io::Write;
use std::process::ExitCode;

use config::{Command, LogFormat};
use sandbox::CompileLimits;

/// The program: reads the configuration, does what it is to do, and says what went wrong.
pub fn main() -> ExitCode {
    // What is made is for this user alone, also in a directory that others may look into.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let done = match Command::load() {
        Ok(Command::CheckComponent { task_memory_bytes }) => return sandbox::check_here(task_memory_bytes),
        Ok(Command::CompileComponent { memory_bytes, cpu_ms }) => {
            return sandbox::compile_here(CompileLimits { memory_bytes, cpu_ms });
        }
        Ok(Command::Serve(config)) => {
            start_logging(config.log_format);
            serve::serve(*config)
        }
        Ok(Command::Backup(args)) => store::back_up(&args.data_dir, &args.file),
        Ok(Command::Tenant(command)) => command_line::tenant(command),
        Ok(Command::Key(command)) => command_line::key(command),
        Ok(Command::Restore(args)) => store::restore(&args.file, &args.data_dir),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    // Where nobody reads it, the exit code says it all the same.
    let _ = writeln!(std::io::stderr(), "taskcell: {error:#}");
    ExitCode::FAILURE
}

fn start_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Nobody may be left to read the log, or its disk may be full: that is not to end the server.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            logs.with_ansi(std::io::stderr().is_terminal()).init();
        }
        LogFormat::Json => logs.json().init(),
    }
}
