//! Looking at components, and compiling them, in a process of its own. A component of two kilobytes can cost a
//! parser gigabytes, and one of a megabyte a compiler: what it may use is bounded by the kernel, and where it takes
//! more that process ends and not the server.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, setrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::precheck::{self, Bounds};
use super::{Faults, adapt, engine};

/// What looking at any component may use, at most. CPython takes 90 MB.
const LOOK: CompileLimits = CompileLimits { memory_bytes: 512 << 20, cpu_ms: 1000 };

/// CPU time that looking at a component may take, and that for each MiB of it. CPython, of 18 MB, takes 70 ms; what
/// takes far more than its size lets expect means harm, and whoever sent it has its answer soon.
const LOOK_TIME: Duration = Duration::from_millis(50);
const LOOK_TIME_PER_MIB: Duration = Duration::from_millis(5);

/// How exactly the CPU time of looking is bounded.
const TICK: Duration = Duration::from_millis(5);

/// What compiling one component, or looking at it, may use.
#[derive(Clone, Copy, Debug)]
pub struct CompileLimits {
    /// Address space, in bytes.
    pub memory_bytes: u64,
    /// CPU time, in milliseconds; a started second counts as one.
    pub cpu_ms: u64,
}

/// Why there is no code.
#[derive(Debug)]
pub enum NotCompiled {
    /// The component is the reason; for its owner.
    Refused(String),
    /// The server is; trying again may help.
    Failed(anyhow::Error),
}

/// The subcommands of this program that are the other process.
const COMPILE: &str = "compile-component";
const CHECK: &str = "check-component";

/// The largest compiled code, in bytes.
const MOST_CODE: u64 = 1 << 30;

/// Open files of the other process.
const MOST_FILES: u64 = 64;

/// How many times its CPU time the other process may take on the clock, on a machine that is busy.
const PATIENCE: u32 = 10;

/// The signals of somebody else: of the kernel where the machine is short of memory, and of whoever stops the server
/// with all its processes, or its terminal. What a component brings about ends the other process in other ways.
const OF_OTHERS: [Signal; 5] = [Signal::KILL, Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT];

/// Bytes of its last words that are kept.
const MOST_WORDS: u64 = 1 << 20;

/// Looks at a component of a client whose tasks can have so much memory; an error is the server's own trouble.
pub fn check(bytes: &[u8], task_memory_bytes: u64) -> anyhow::Result<Result<(), Faults>> {
    let mut command = Command::new("/proc/self/exe");
    command.args([CHECK, &task_memory_bytes.to_string()]).stdout(Stdio::null());
    let (status, words) = run(command, bytes, LOOK.cpu_ms, drop).context("cannot look at the component")?;
    let fault = |what: &str| Ok(Err(Faults(vec![what.to_owned()])));
    match status.code() {
        Some(0) => Ok(Ok(())),
        Some(REFUSED) => {
            Ok(Err(Faults(serde_json::from_str(&words).with_context(|| format!("what is wrong with it: {words}"))?)))
        }
        Some(COULD_NOT) => Err(anyhow::anyhow!(words)),
        Some(TOO_LONG) | None => fault("looking at it takes more time or memory than is allowed"),
        // A panic.
        Some(_) => fault("it is no valid WebAssembly that is taken here"),
    }
}

/// Compiles `bytes` into `into`. `started` is given a handle of the other process.
pub(super) fn compile(
    bytes: &[u8],
    into: std::fs::File,
    limits: CompileLimits,
    started: impl FnOnce(OwnedFd),
) -> Result<(), NotCompiled> {
    let mut command = Command::new("/proc/self/exe");
    command.args([COMPILE, &limits.memory_bytes.to_string(), &limits.cpu_ms.to_string()]).stdout(into);
    let (status, words) = run(command, bytes, limits.cpu_ms, started).map_err(NotCompiled::Failed)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(REFUSED) => Err(NotCompiled::Refused(words)),
        Some(COULD_NOT) => Err(NotCompiled::Failed(anyhow::anyhow!(words))),
        // A panic.
        Some(_) => Err(NotCompiled::Refused("the compiler cannot take it".to_owned())),
        None => {
            let most = match status.signal() {
                Some(signal) if signal == Signal::XCPU.as_raw() => format!("{} ms of CPU time", limits.cpu_ms),
                // It had no memory left.
                _ => format!("{} bytes of memory", limits.memory_bytes),
            };
            Err(NotCompiled::Refused(format!("compiling it takes more than is allowed: {most}")))
        }
    }
}

/// Runs the other process, which may take `cpu_ms` of CPU time. Returns how it ended, and its last words. An error is
/// no fault of the component: the process got no time, or somebody else ended it.
fn run(
    mut command: Command,
    bytes: &[u8],
    cpu_ms: u64,
    started: impl FnOnce(OwnedFd),
) -> anyhow::Result<(ExitStatus, String)> {
    let mut child = Guard(command.env_clear().stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
    let (stdin, stderr) = (child.0.stdin.take(), child.0.stderr.take());
    let handle = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty()).context("cannot watch the process")?;
    started(handle.try_clone()?);
    let patience = Duration::from_millis(cpu_ms).max(Duration::from_secs(1)) * PATIENCE;
    std::thread::scope(|scope| {
        // Writes beside the reading of what it says: either may wait for the other.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(bytes)));
        let words = scope.spawn(move || {
            let mut words = Vec::new();
            let _ = stderr.map(|stderr| stderr.take(MOST_WORDS).read_to_end(&mut words));
            words
        });
        // Its CPU time is bounded by the kernel, but it may be starved of it.
        let in_time = ends_within(&handle, patience);
        if !in_time {
            let _ = child.0.kill();
        }
        let status = child.0.wait();
        let words = words.join().unwrap_or_default();
        anyhow::ensure!(in_time, "the process for it did not get its CPU time within {} s", patience.as_secs());
        let status = status?;
        let of_others = |signal: i32| OF_OTHERS.iter().any(|other| other.as_raw() == signal);
        anyhow::ensure!(
            !status.signal().is_some_and(of_others),
            "the process for it was killed ({status}): the machine may be short of memory, or the server stops"
        );
        Ok((status, String::from_utf8_lossy(&words).trim().to_owned()))
    })
}

/// Waits for a process to end, but no longer than `patience`.
fn ends_within(process: &OwnedFd, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            Err(_) => return false,
        }
    }
}

/// Ends the other process where this one stops to wait for it.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const REFUSED: i32 = 65;
const TOO_LONG: i32 = 66;
const COULD_NOT: i32 = 74;

/// The other process: looks at what comes on stdin, and says on stderr what is wrong with it.
pub fn check_here(task_memory_bytes: u64) -> ExitCode {
    let bytes = match read(LOOK) {
        Err(error) => return end(COULD_NOT, &format!("{error:#}")),
        Ok(bytes) => bytes,
    };
    let time = LOOK_TIME + LOOK_TIME_PER_MIB * u32::try_from(bytes.len() >> 20).unwrap_or(u32::MAX);
    let since = cpu_time();
    // The kernel counts whole seconds only.
    std::thread::spawn(move || {
        while cpu_time().saturating_sub(since) < time {
            std::thread::sleep(TICK);
        }
        std::process::exit(TOO_LONG);
    });
    // What of its functions is not looked into in half of the time is the compiler's, which looks into all of them.
    let bounds = Bounds { bodies_until: Some(since + time / 2), task_memory_bytes };
    match precheck::check(&bytes, bounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Faults(faults)) => end(REFUSED, &serde_json::json!(faults).to_string()),
    }
}

/// The other process: compiles what comes on stdin to stdout, and says on stderr why it does not.
pub fn compile_here(limits: CompileLimits) -> ExitCode {
    // It goes on beside tasks, and not in their place.
    let step_back = || rustix::process::nice(19).context("cannot step back");
    let bytes = match step_back().and_then(|_| read(limits)) {
        Err(error) => return end(COULD_NOT, &format!("{error:#}")),
        Ok(bytes) => bytes,
    };
    match code_of(&bytes) {
        Err(error) => end(REFUSED, &format!("{error:#}")),
        Ok(code) => match std::io::stdout().lock().write_all(&code) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => end(COULD_NOT, &format!("cannot write the code: {error}")),
        },
    }
}

/// Bounds this process and reads the component.
fn read(limits: CompileLimits) -> anyhow::Result<Vec<u8>> {
    bound(limits)?;
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read the component")?;
    Ok(bytes)
}

fn end(code: i32, why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{why}");
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The CPU time that this process has used.
pub(super) fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

fn code_of(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let bytes = adapt::adapt(bytes)?;
    precheck::check(&bytes, Bounds::NONE)?;
    Ok(engine::compiler()?.precompile_component(&bytes)?)
}

/// Sets the limits of this process, before it has seen a byte of the component.
fn bound(limits: CompileLimits) -> anyhow::Result<()> {
    // What is bounded more tightly already stays so: raising it is refused.
    let cap = |resource, most: u64, at_last: u64| {
        let allowed = |most: u64| getrlimit(resource).maximum.map_or(most, |allowed| most.min(allowed));
        setrlimit(resource, Rlimit { current: Some(allowed(most)), maximum: Some(allowed(at_last)) })
    };
    let seconds = limits.cpu_ms.div_ceil(1000);
    cap(Resource::As, limits.memory_bytes, limits.memory_bytes).context("cannot bound the memory")?;
    // A second later it would be killed, which tells nobody why.
    cap(Resource::Cpu, seconds, seconds + 1).context("cannot bound the CPU time")?;
    cap(Resource::Fsize, MOST_CODE, MOST_CODE).context("cannot bound the output")?;
    cap(Resource::Core, 0, 0).context("cannot switch off core dumps")?;
    // The server may have many, and this process needs few.
    cap(Resource::Nofile, MOST_FILES, MOST_FILES).context("cannot bound the open files")?;
    // Where memory is short it is the first to go.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // The server may end meanwhile.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie this process to the server")?;
    Ok(())
}
