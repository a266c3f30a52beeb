//! The server under test: a process of its own on a fresh data directory.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use serde::Deserialize;

use crate::database::Database;
use crate::http;

/// The first start compiles every task type.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const ANNOUNCEMENT: &str = "taskcell listening on http://";

/// Where the server is and how it is started.
pub(crate) struct Program {
    /// The binary.
    pub(crate) path: PathBuf,
    /// More arguments for `serve`.
    pub(crate) arguments: Vec<OsString>,
    /// The directory that gets the data directories and logs.
    pub(crate) dir: PathBuf,
}

impl Program {
    /// The binary that was asked for, or the one built beside this program.
    pub(crate) fn find(path: Option<PathBuf>, arguments: Vec<OsString>, dir: Option<PathBuf>) -> Result<Self> {
        let own = std::env::current_exe().context("finding this program's own path")?;
        let beside = own.parent().context("this program has no directory")?;
        let path = path.unwrap_or_else(|| beside.join("taskcell"));
        ensure!(
            path.is_file(),
            "no server at {}: build it with `cargo build --release` first, or name one with --server",
            path.display()
        );
        // Not the system's directory for temporary files: that is often held in memory, where a
        // sync costs nothing and every figure would be too good.
        let dir = dir.unwrap_or_else(|| beside.to_owned());
        let dir = fs::canonicalize(&dir).with_context(|| format!("the directory {}", dir.display()))?;
        Ok(Self { path, arguments, dir })
    }
}

/// A running server. Dropping it kills the process and removes its data.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// The id of the newest task that was in the database at the start; empty where there was none.
    pub(crate) newest: String,
    log: PathBuf,
    keep_log: bool,
}

impl Server {
    /// Starts the server on a data directory of its own and waits until it takes tasks of `task_type`.
    pub(crate) fn start(program: &Program, task_type: &str, database: &Database) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(1);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("taskcell-bench-{}-{number}", std::process::id());
        let data = program.dir.join(&name);
        let log = program.dir.join(format!("{name}.log"));
        File::create_new(&log).with_context(|| format!("creating {}", log.display()))?;
        let filled = database.copy_to(&data).with_context(|| format!("filling {}", data.display()));
        let child = match filled.and_then(|()| launch(program, &data, &log, &[])) {
            Ok(child) => child,
            Err(error) => {
                remove(&data, &log);
                return Err(error);
            }
        };
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let newest = database.newest().to_owned();
        let mut server = Self { child, address, data, newest, log, keep_log: false };
        match server.await_ready(task_type) {
            Ok(()) => Ok(server),
            Err(error) => Err(server.explain(&error)),
        }
    }

    /// Starts the server again, after [`Server::end`], on the same data and with `more` arguments. Returns
    /// the time from the start of its process until it takes tasks of `task_type`.
    pub(crate) fn start_again(&mut self, program: &Program, task_type: &str, more: &[&OsStr]) -> Result<Duration> {
        let began = Instant::now();
        self.child = launch(program, &self.data, &self.log, more)?;
        self.await_ready(task_type)?;
        Ok(began.elapsed())
    }

    fn await_ready(&mut self, task_type: &str) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let stdout = self.child.stdout.take().context("the server has no stdout")?;
        let line = first_line(stdout)
            .recv_timeout(START_LIMIT)
            // A time-out, or the end of its stdout without a line.
            .map_err(|_| anyhow::anyhow!("the server announced no address"))?;
        self.address = line
            .trim_end()
            .strip_prefix(ANNOUNCEMENT)
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("the server's first line is not `{ANNOUNCEMENT}ADDR`: `{line}`"))?;
        let mut last = String::new();
        while Instant::now() < deadline {
            if http::get(self.address, "/readyz")?.0 == 200 {
                last = type_state(self.address, task_type)?;
                match last.as_str() {
                    "ready" => return Ok(()),
                    "compiling" => {}
                    other => bail!("task type `{task_type}` is `{other}`, not ready"),
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("not ready after {START_LIMIT:?}; task type `{task_type}` is `{last}`")
    }

    /// The number of its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Adds to an error what the server's end and its log say about it, and keeps the log.
    pub(crate) fn explain(&mut self, error: &anyhow::Error) -> anyhow::Error {
        self.keep_log();
        // A server that is just dying gets the time to do so.
        thread::sleep(Duration::from_millis(200));
        let end = match self.child.try_wait() {
            Ok(Some(status)) => format!("the server has ended ({status})"),
            _ => "the server still runs".to_owned(),
        };
        let log = tail(&self.log);
        anyhow::anyhow!("{error:#}\n  {end}; the last lines of its log:{log}")
    }

    /// Leaves the log file where it is, and says where.
    pub(crate) fn keep_log(&mut self) {
        if !self.keep_log {
            eprintln!("the server's log is kept: {}", self.log.display());
        }
        self.keep_log = true;
    }

    /// Stops the server as an operator would. A server that does not end well is an error.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    /// The same, and its data stays until it is dropped.
    pub(crate) fn end(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let stopped = match self.await_end() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => Err(anyhow::anyhow!("after SIGTERM the server ended with {status}")),
            Ok(None) => Err(anyhow::anyhow!("{STOP_LIMIT:?} after SIGTERM the server still ran")),
            Err(error) => Err(error),
        };
        stopped.map_err(|error| self.explain(&error))
    }

    fn await_end(&mut self) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(None)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Neither can be helped here: the process may have ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.keep_log {
            let _ = fs::remove_dir_all(&self.data);
        } else {
            remove(&self.data, &self.log);
        }
    }
}

fn launch(program: &Program, data: &Path, log: &Path, more: &[&OsStr]) -> Result<Child> {
    let log_file = File::options().append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let mut command = Command::new(&program.path);
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .args(&program.arguments)
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file);
    // SAFETY: between fork and exec only this one system call is made; it takes no lock and
    // allocates nothing.
    unsafe {
        // A server left behind by a benchmark that was killed would disturb the next one.
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
    }
    command.spawn().with_context(|| format!("starting {}", program.path.display()))
}

fn remove(data: &Path, log: &Path) {
    let _ = fs::remove_dir_all(data);
    let _ = fs::remove_file(log);
}

/// Reads the first line in a thread, so that waiting for it can have an end. The thread then reads
/// on, so that a server that prints more is not stopped by a full pipe.
fn first_line(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        if matches!(stdout.read_line(&mut line), Ok(1..)) {
            let _ = sender.send(line);
        }
        drop(sender);
        let _ = std::io::copy(&mut stdout, &mut std::io::sink());
    });
    receiver
}

fn type_state(address: SocketAddr, task_type: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct TaskType {
        state: String,
    }
    let (status, body) = http::get(address, &format!("/task-types/{task_type}"))?;
    let shown = String::from_utf8_lossy(&body);
    ensure!(status == 200, "task type `{task_type}`: status {status}: {shown}");
    let found: TaskType = serde_json::from_slice(&body).with_context(|| format!("task type `{task_type}`: {shown}"))?;
    Ok(found.state)
}

/// The last lines of a file, for an error message: each on a new line and indented.
fn tail(path: &Path) -> String {
    // A log of one round is small; reading all of it is simpler than seeking.
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    last.iter().map(|line| format!("\n    {line}")).collect()
}
