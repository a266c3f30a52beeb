//! Compiling in a process of its own. A component of a megabyte can cost a compiler minutes and many
//! gigabytes: what it may use is bounded by the kernel, and where it takes more that process ends and not
//! the server.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{engine, precheck};

/// What compiling one component may use.
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

/// The subcommand of this program that is the other process.
const SUBCOMMAND: &str = "compile-component";

/// The largest compiled code, in bytes.
const MOST_CODE: u64 = 1 << 30;

/// How many times its CPU time the other process may take on the clock, on a machine that is busy.
const PATIENCE: u32 = 10;

/// Bytes of its last words that are kept.
const MOST_WORDS: u64 = 4 << 10;

/// Compiles `bytes` into `into`.
pub(super) fn compile(bytes: &[u8], into: std::fs::File, limits: CompileLimits) -> Result<(), NotCompiled> {
    let failed = |error: std::io::Error| NotCompiled::Failed(error.into());
    let mut child = Command::new("/proc/self/exe")
        .args([SUBCOMMAND, &limits.memory_bytes.to_string(), &limits.cpu_ms.to_string()])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(into)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let child = Guard(child);
    let pid = child.0.id();
    let patience = Duration::from_millis(limits.cpu_ms).max(Duration::from_secs(1)) * PATIENCE;
    std::thread::scope(|scope| {
        let mut child = child;
        let (done, ended) = std::sync::mpsc::channel::<()>();
        // Writes beside the reading of what it says: either may wait for the other.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(bytes)));
        let words = scope.spawn(move || {
            let mut words = Vec::new();
            let _ = stderr.map(|stderr| stderr.take(MOST_WORDS).read_to_end(&mut words));
            words
        });
        // Its CPU time is bounded by the kernel, but it may be starved of it.
        scope.spawn(move || {
            if ended.recv_timeout(patience) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                && let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        let words = words.join().unwrap_or_default();
        let status = child.0.wait();
        drop(done);
        let words = String::from_utf8_lossy(&words).trim().to_owned();
        match status.map_err(failed)?.code() {
            Some(0) => Ok(()),
            Some(REFUSED) => Err(NotCompiled::Refused(words)),
            Some(COULD_NOT) => Err(NotCompiled::Failed(anyhow::anyhow!(words))),
            // A panic.
            Some(_) => Err(NotCompiled::Refused("the compiler cannot take it".to_owned())),
            // A signal: the kernel ended it, or it had no memory left.
            None => Err(NotCompiled::Refused(format!(
                "compiling it takes more than is allowed: {} ms of CPU time and {} bytes of memory",
                limits.cpu_ms, limits.memory_bytes
            ))),
        }
    })
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
const COULD_NOT: i32 = 74;

/// The other process: compiles what comes on stdin to stdout, and says on stderr why it does not.
pub fn compile_here(limits: CompileLimits) -> ExitCode {
    let read = bound(limits).and_then(|()| {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read the component")?;
        Ok(bytes)
    });
    let (code, why) = match read {
        Err(error) => (COULD_NOT, error),
        Ok(bytes) => match code_of(&bytes) {
            Err(error) => (REFUSED, error),
            Ok(code) => match std::io::stdout().lock().write_all(&code) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(error) => (COULD_NOT, anyhow::Error::from(error).context("cannot write the code")),
            },
        },
    };
    let _ = writeln!(std::io::stderr(), "{why:#}");
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

fn code_of(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    precheck::check(bytes)?;
    Ok(engine::compiler()?.precompile_component(bytes)?)
}

/// Sets the limits of this process, before it has seen a byte of the component.
fn bound(limits: CompileLimits) -> anyhow::Result<()> {
    let cap = |resource, most| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    cap(Resource::As, limits.memory_bytes).context("cannot bound the memory")?;
    cap(Resource::Cpu, limits.cpu_ms.div_ceil(1000)).context("cannot bound the CPU time")?;
    cap(Resource::Fsize, MOST_CODE).context("cannot bound the output")?;
    cap(Resource::Core, 0).context("cannot switch off core dumps")?;
    // It goes on beside tasks, and not in their place; and where memory is short it is the first to go.
    rustix::process::nice(19).context("cannot step back")?;
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    // The server may end meanwhile.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie this process to the server")?;
    Ok(())
}
