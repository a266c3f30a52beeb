//! Compiles what clients upload, on a thread that mostly waits for another process, and loads code that was
//! compiled before, on another. Each does one component at a time, tenants in turn.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Signal, pidfd_send_signal};
use tokio::runtime::Handle;

use crate::sandbox::{CompileLimits, NotCompiled, Program, Sandbox, one_line};
use crate::store::Readers;
use crate::task::Digest;
use crate::turns::Turns;

/// How long to wait before a component is tried again that only the server's own trouble kept from being
/// compiled. Twice as long after each time, up to [`TRY_AGAIN_AT_LAST`].
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The longest of those waits.
const TRY_AGAIN_AT_LAST: Duration = Duration::from_secs(600);

/// What came of compiling a component: the program, or why it cannot be one.
pub type Compiled = Result<Arc<Program>, Arc<str>>;

/// What came of loading a component that was compiled before; `None`: its code is not there.
pub type Loaded = Option<Compiled>;

/// Takes components to be compiled and to be loaded; clones are the same compiler.
#[derive(Clone, Default)]
pub struct Compiler(Arc<Shared>);

#[derive(Default)]
struct Shared {
    work: Mutex<Work>,
    came: Condvar,
}

/// What there is to do.
#[derive(Default)]
struct Work {
    to_compile: Waiting,
    to_load: Waiting,
    /// Components whose code is to be removed.
    gone: Vec<Digest>,
    /// What is compiled, and whether anybody still wants it.
    compiling: Option<Compiling>,
    /// What could not be compiled for the server's own trouble, and when it is tried again.
    later: HashMap<Digest, Later>,
}

/// Components that wait, each once. The store has a bounded number of them.
#[derive(Default)]
struct Waiting {
    turns: Turns<Digest>,
    known: HashSet<Digest>,
}

impl Waiting {
    fn add(&mut self, tenant: Arc<str>, digest: Digest) {
        if self.known.insert(digest) {
            self.turns.add(tenant, digest);
        }
    }

    fn remove(&mut self, digest: Digest) {
        if self.known.remove(&digest) {
            self.turns.retain(|other| *other != digest);
        }
    }

    fn next(&mut self) -> Option<(Arc<str>, Digest)> {
        let next = self.turns.pop()?;
        self.known.remove(&next.1);
        Some(next)
    }
}

struct Compiling {
    digest: Digest,
    process: Option<OwnedFd>,
    is_gone: bool,
}

struct Later {
    tenant: Arc<str>,
    /// `None`: it is being tried.
    due: Option<Instant>,
    wait: Duration,
}

impl Compiler {
    /// Has a component compiled, after what came before of the same tenant.
    pub fn compile(&self, tenant: Arc<str>, digest: Digest) {
        self.work().to_compile.add(tenant, digest);
        self.0.came.notify_all();
    }

    /// Has a component loaded, in the same way.
    pub fn load(&self, tenant: Arc<str>, digest: Digest) {
        self.work().to_load.add(tenant, digest);
        self.0.came.notify_all();
    }

    /// Removes the code of a component that is gone. Where it is being compiled, that ends.
    pub fn forget(&self, digest: Digest) {
        let mut work = self.work();
        work.to_compile.remove(digest);
        work.to_load.remove(digest);
        work.later.remove(&digest);
        work.gone.push(digest);
        if let Some(compiling) = work.compiling.as_mut().filter(|compiling| compiling.digest == digest) {
            compiling.is_gone = true;
            kill(compiling);
        }
        self.0.came.notify_all();
    }

    /// Compiles and loads what comes, for as long as the process lives. `compiled` and `loaded` are told of each.
    pub fn start(
        &self,
        sandbox: Arc<Sandbox>,
        readers: Readers,
        runtime: Handle,
        limits: CompileLimits,
        compiled: impl Fn(Digest, Compiled) + Send + 'static,
        loaded: impl Fn(Arc<str>, Digest, Loaded) + Send + 'static,
    ) -> anyhow::Result<()> {
        let (loader, code) = (self.clone(), sandbox.clone());
        let load = move || {
            loop {
                let (tenant, digest) = loader.next_to_load();
                let program = catch_unwind(AssertUnwindSafe(|| load(&code, digest)));
                loaded(tenant, digest, program.unwrap_or_else(|_| Some(Err(failed_by_us()))));
            }
        };
        let compiler = self.clone();
        let compile = move || {
            loop {
                let (gone, next) = compiler.next_to_compile();
                gone.into_iter().for_each(|digest| sandbox.forget(digest));
                let Some((tenant, digest)) = next else { continue };
                let started = |process| compiler.started(process);
                let came =
                    catch_unwind(AssertUnwindSafe(|| compile(&sandbox, &readers, &runtime, digest, limits, started)));
                if !compiler.is_wanted() {
                    continue;
                }
                match came.unwrap_or_else(|_| Ok(Err(failed_by_us()))) {
                    Ok(came) => {
                        compiler.work().later.remove(&digest);
                        compiled(digest, came);
                    }
                    Err(error) => {
                        tracing::error!(%digest, error = format!("{error:#}"), "cannot compile at the moment");
                        compiler.later(tenant, digest);
                    }
                }
            }
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        thread("loader").spawn(load).context("cannot start the loader's thread")?;
        thread("compiler").spawn(compile).context("cannot start the compiler's thread")?;
        Ok(())
    }

    fn next_to_load(&self) -> (Arc<str>, Digest) {
        let mut work = self.work();
        loop {
            if let Some(next) = work.to_load.next() {
                return next;
            }
            work = self.0.came.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for something to do: code to remove first, then a component to compile.
    fn next_to_compile(&self) -> (Vec<Digest>, Option<(Arc<str>, Digest)>) {
        let mut work = self.work();
        loop {
            let now = Instant::now();
            let Work { later, to_compile, .. } = &mut *work;
            for (digest, later) in later.iter_mut() {
                if later.due.is_some_and(|due| due <= now) {
                    later.due = None;
                    to_compile.add(later.tenant.clone(), *digest);
                }
            }
            let next = (std::mem::take(&mut work.gone), work.to_compile.next());
            if !next.0.is_empty() || next.1.is_some() {
                let compiling =
                    |(_, digest): &(_, Digest)| Compiling { digest: *digest, process: None, is_gone: false };
                work.compiling = next.1.as_ref().map(compiling);
                return next;
            }
            let due = work.later.values().filter_map(|later| later.due).min();
            let wait = due.map_or(Duration::MAX, |due| due.saturating_duration_since(now));
            (work, _) = self.0.came.wait_timeout(work, wait).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The process that compiles has started.
    fn started(&self, process: OwnedFd) {
        if let Some(compiling) = &mut self.work().compiling {
            compiling.process = Some(process);
            if compiling.is_gone {
                kill(compiling);
            }
        }
    }

    /// Whether what was compiled is still there; nothing is compiled any more.
    fn is_wanted(&self) -> bool {
        self.work().compiling.take().is_some_and(|compiling| !compiling.is_gone)
    }

    fn later(&self, tenant: Arc<str>, digest: Digest) {
        let mut work = self.work();
        let before = work.later.get(&digest).map(|later| later.wait);
        let wait = before.map_or(TRY_AGAIN, |wait| (wait * 2).min(TRY_AGAIN_AT_LAST));
        work.later.insert(digest, Later { tenant, due: Some(Instant::now() + wait), wait });
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.0.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kill(compiling: &Compiling) {
    if let Some(process) = &compiling.process {
        // It may have ended by itself.
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
}

fn failed_by_us() -> Arc<str> {
    "the server failed over it, which is a bug".into()
}

fn load(sandbox: &Sandbox, digest: Digest) -> Loaded {
    let loaded = sandbox.load(digest)?;
    Some(loaded.map(Arc::new).map_err(|error| one_line(&format!("{error:#}")).into()))
}

/// An error is the server's own trouble, which may pass.
fn compile(
    sandbox: &Sandbox,
    readers: &Readers,
    runtime: &Handle,
    digest: Digest,
    limits: CompileLimits,
    started: impl FnOnce(OwnedFd),
) -> anyhow::Result<Compiled> {
    // Under another name it may have been compiled already.
    if let Some(loaded) = load(sandbox, digest) {
        return Ok(loaded);
    }
    let Some(bytes) = runtime.block_on(readers.component(digest))? else {
        return Ok(Err("it was removed".into()));
    };
    match sandbox.compile_apart(digest, &bytes, limits, started) {
        Ok(program) => Ok(Ok(Arc::new(program))),
        Err(NotCompiled::Refused(why)) => Ok(Err(one_line(&why).into())),
        Err(NotCompiled::Failed(error)) => Err(error),
    }
}
