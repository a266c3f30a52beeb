//! The sandbox: components in, outcomes out. With [`crate::host`] the only place that knows wasmtime.

mod adapt;
mod apart;
mod cache;
mod cores;
mod engine;
mod linking;
mod meter;
mod offered;
mod outcome;
mod precheck;
mod typed;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use wasmtime::Store;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;

pub use apart::{CompileLimits, NotCompiled, check, check_here, compile_here};
pub use cache::CodeCache;
pub use cores::Cores;
pub use engine::{EngineSettings, MAPS_PER_SLOT};
pub use meter::{Control, Stop};
pub use precheck::Faults;
pub use typed::Function;

use crate::grants::Grants;
use crate::host::blocking_world::BlockingTaskPre;
use crate::host::log::LogBuffer;
use crate::host::task_world::TaskPre;
use crate::host::{self, AttemptOf, Host, May, Services};
use crate::limits::Limits;
use crate::room::Room;
use crate::task::{AttemptEnd, Digest, Outcome, Usage};
use engine::Ticker;
use meter::{Metered, StoppedBy};
use typed::FunctionPre;

/// Fuel between two yields: 50 to 100 µs of work. It bounds how long others wait for their turn,
/// and what an attempt that is canceled may have burned without being billed.
const YIELD_FUEL: u64 = 1_000_000;

/// Compiles components and runs attempts.
pub struct Sandbox {
    /// Its slots are pooled.
    pooled: Linker<Host>,
    /// For what does not fit into a slot: it maps all its memory anew for each attempt.
    large: Linker<Host>,
    cache: CodeCache,
    room: Arc<Room>,
    services: Services,
    _ticker: Ticker,
}

/// A component that is compiled and linked, ready for any number of attempts.
pub struct Program {
    engine: wasmtime::Engine,
    world: World,
    /// What is known of it.
    pub about: Arc<About>,
    /// Whether it may hold what `wasi:http` keeps.
    uses_http: bool,
}

/// What is known of a component, whether or not its code is in memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct About {
    /// What makes it a task.
    pub kind: Kind,
    /// What it imports, by name.
    pub imports: Vec<String>,
    /// What it exports, by name.
    pub exports: Vec<String>,
    /// The function of its own that it is called by, where it has one.
    pub function: Option<Function>,
}

/// Which way a component is a task: by one of the two worlds, as a command, or by a function of its own.
enum World {
    Task(TaskPre<Host>),
    Blocking(BlockingTaskPre<Host>),
    Command(CommandPre<Host>),
    Typed(FunctionPre),
}

/// What makes a component a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It is of world `task`.
    Task,
    /// It is of world `blocking-task`.
    BlockingTask,
    /// It is a WASI command: its input is on stdin, its output what it writes to stdout.
    Command,
    /// It has a function of its own, whose parameters are its input.
    Typed,
}

/// One attempt, as the executor wants it run.
pub struct Attempt<'a> {
    /// Which it is.
    pub of: AttemptOf,
    /// Its input.
    pub input: &'a str,
    /// Its limits.
    pub limits: Limits,
    /// What it may touch.
    pub grants: Arc<Grants>,
    /// Where its log goes.
    pub log: LogBuffer,
    /// How it is stopped from outside.
    pub control: &'a Arc<Control>,
    /// When it started. It may have waited for a thread since.
    pub started: Instant,
    /// How long it waited before it started, for its receipt.
    pub queue: Duration,
}

/// How a run ended.
#[derive(Debug, PartialEq)]
pub enum RunEnd {
    /// The attempt ended.
    Ended(AttemptEnd),
    /// The attempt is to be given back, with what it used: the server stops, there was no room for it after all, or it
    /// could not wait for its tenant's next hour.
    GiveBack(Usage),
}

impl Sandbox {
    /// A sandbox with an engine of its own.
    pub fn new(
        settings: &EngineSettings,
        cache: CodeCache,
        room: Arc<Room>,
        cores: Arc<Cores>,
        services: Services,
    ) -> anyhow::Result<Sandbox> {
        let linker = |engine: wasmtime::Engine| -> anyhow::Result<Linker<Host>> {
            let mut linker = Linker::new(&engine);
            host::add_to_linker(&mut linker)?;
            Ok(linker)
        };
        let (pooled, large) = (linker(engine::pooled(settings)?)?, linker(engine::on_demand()?)?);
        let ticker = Ticker::start([pooled.engine(), large.engine()], cores)?;
        Ok(Sandbox { pooled, large, cache, room, services, _ticker: ticker })
    }

    /// Checks a component or a WASI 0.1 module, compiles it and links it. Blocks for as long as that takes, and uses as much of the
    /// machine: for components of the operator only.
    pub fn compile(&self, digest: Digest, bytes: &[u8]) -> anyhow::Result<Program> {
        let bytes = adapt::adapt(bytes)?;
        precheck::check(&bytes, precheck::Bounds::NONE)?;
        let code = self.pooled.engine().precompile_component(&bytes)?;
        if let Err(error) = self.cache.store(self.pooled.engine(), digest, &code) {
            // A cache that cannot be written only costs time at the next start.
            tracing::warn!(error = format!("{error:#}"), "cannot cache compiled code");
        } else if let Some(loaded) = self.load(digest) {
            return loaded;
        }
        // SAFETY: `code` is what the compiler has just put out.
        let map = |linker: &Linker<Host>| unsafe { Component::deserialize(linker.engine(), &code) };
        match map(&self.pooled) {
            Ok(component) => self.program(&self.pooled, &component),
            Err(_) => self.program(&self.large, &map(&self.large)?),
        }
    }

    /// Links a component that was compiled before; `None`: it was not.
    pub fn load(&self, digest: Digest) -> Option<anyhow::Result<Program>> {
        // Both take the same code.
        let path = self.cache.get(self.pooled.engine(), digest)?;
        let loaded: anyhow::Result<Program> = match CodeCache::load(self.pooled.engine(), &path) {
            Ok(component) => self.program(&self.pooled, &component),
            // It has more of something than a slot has room for.
            Err(_) => match CodeCache::load(self.large.engine(), &path) {
                Ok(component) => self.program(&self.large, &component),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = format!("{error:#}"), "cannot load compiled code");
                    return None;
                }
            },
        };
        if let Ok(program) = &loaded {
            self.cache.put_about(self.pooled.engine(), digest, &program.about);
        }
        Some(loaded)
    }

    /// What is known of a component that was compiled before, without its code; `None`: it has to be loaded or
    /// compiled for that.
    pub fn about(&self, digest: Digest) -> Option<About> {
        self.cache.about(self.pooled.engine(), digest)
    }

    /// Removes the code of a component that is gone. Attempts that run it go on.
    pub fn forget(&self, digest: Digest) {
        self.cache.remove(digest);
    }

    /// Which compiler this is: another may take what this one refuses.
    pub fn compiler(&self) -> String {
        CodeCache::compiler(self.pooled.engine())
    }

    /// Compiles a component of a client in a process of its own, within `limits`, and links it. Blocks for
    /// as long as that takes. `started` is given a handle of the process.
    pub fn compile_apart(
        &self,
        digest: Digest,
        bytes: &[u8],
        limits: CompileLimits,
        started: impl FnOnce(OwnedFd),
    ) -> Result<Program, NotCompiled> {
        let (partial, file) = self.cache.begin(digest).map_err(|error| NotCompiled::Failed(error.into()))?;
        let adopted = apart::compile(bytes, file, limits, started)
            .and_then(|()| self.cache.adopt(self.pooled.engine(), digest, &partial).map_err(NotCompiled::Failed));
        if let Err(error) = adopted {
            let _ = std::fs::remove_file(partial);
            return Err(error);
        }
        match self.load(digest) {
            Some(Ok(program)) => Ok(program),
            Some(Err(error)) => Err(NotCompiled::Refused(format!("{error:#}"))),
            None => Err(NotCompiled::Failed(anyhow::anyhow!("the compiled code cannot be loaded"))),
        }
    }

    fn program(&self, linker: &Linker<Host>, component: &Component) -> anyhow::Result<Program> {
        let (engine, ty) = (linker.engine(), component.component_type());
        let names = |items: &mut dyn Iterator<Item = &str>| items.map(str::to_owned).collect();
        let imports: Vec<String> = names(&mut ty.imports(engine).map(|(name, _)| name));
        let exports = names(&mut ty.exports(engine).map(|(name, _)| name));
        let (world, function) = link(linker, component)?;
        let uses_http = host::http::is_used(&imports);
        let kind = match &world {
            World::Task(_) => Kind::Task,
            World::Blocking(_) => Kind::BlockingTask,
            World::Command(_) => Kind::Command,
            World::Typed(_) => Kind::Typed,
        };
        let about = Arc::new(About { kind, imports, exports, function });
        Ok(Program { engine: engine.clone(), world, about, uses_http })
    }

    /// Removes compiled code of all but these components. For the start.
    pub fn keep_code_of(&self, digests: &HashSet<Digest>) {
        self.cache.keep(self.pooled.engine(), digests);
    }

    /// Runs an attempt in a store of its own, from nothing to its outcome and receipt.
    pub async fn run(&self, program: &Program, attempt: Attempt<'_>) -> RunEnd {
        let Attempt { of, input, limits, grants, log, control, started, queue } = attempt;
        let timeout = Duration::from_millis(limits.timeout_ms);
        let deadline = started + timeout;
        let may = May { limits: &limits, grants, uses_http: program.uses_http };
        let host = Host::new(self.services.clone(), self.room.clone(), of, may, deadline, log.clone());
        let mut store = Store::new(&program.engine, host);
        if let Err(error) = prepare(&mut store, &limits) {
            return RunEnd::Ended(outcome::host_failure(&error));
        }

        let (result, cpu) = {
            let running = pin!(call(program, &mut store, input, &limits));
            Metered::new(running, control, &self.services.timers, deadline, &limits).await
        };

        let wall = started.elapsed();
        let fuel_left = store.get_fuel().unwrap_or(0);
        let refused_memory = store.data().refused_memory();
        let progress = store.data().progress();
        let (peak, calls, io_bytes) = (store.data().memory.peak(), store.data().calls(), store.data().io_bytes());
        // Before the log is counted: with the store goes stdout, and its last line may have no end.
        drop(store);
        let usage = Usage {
            fuel: limits.fuel.saturating_sub(fuel_left.saturating_sub(1)),
            cpu_ms: millis(cpu),
            wall_ms: millis(wall),
            queue_ms: millis(queue),
            peak_memory_bytes: peak,
            host_calls: calls,
            io_bytes,
            log_bytes: log.bytes(),
        };
        let retry_after_ms = match &result {
            Ok(Ok(Err(outcome::Failure::Transient(retry)))) => retry.after_ms,
            _ => None,
        };
        let outcome = match result {
            // Guests are stopped where a function begins or a loop goes round: it may have ended before. The one unit that
            // it had more than its limit is gone where that is passed.
            Ok(_) if fuel_left == 0 => Outcome::Failed(outcome::fuel_exhausted(&limits)),
            Ok(Ok(output)) => outcome::of_output(output, &limits),
            Ok(Err(error)) => match outcome::of_error(&error, refused_memory, &limits) {
                Some(error) => Outcome::Failed(error),
                None => return RunEnd::GiveBack(usage),
            },
            Err(StoppedBy::GiveBack) => return RunEnd::GiveBack(usage),
            Err(stopped) => Outcome::Failed(outcome::of_stop(stopped, &limits)),
        };
        RunEnd::Ended(AttemptEnd { outcome, usage, progress, retry_after_ms })
    }
}

fn link(linker: &Linker<Host>, component: &Component) -> anyhow::Result<(World, Option<Function>)> {
    let linked: InstancePre<Host> = linker.instantiate_pre(component)?;
    // Bindings look for `run` by its name, which is the same in both worlds.
    let run = component.get_export(None, "run");
    let is_async = matches!(run, Some((ComponentItem::ComponentFunc(run), _)) if run.async_());
    let as_task = if is_async {
        TaskPre::new(linked.clone()).map(World::Task)
    } else {
        BlockingTaskPre::new(linked.clone()).map(World::Blocking)
    };
    let as_task = match as_task {
        Ok(world) => return Ok((world, None)),
        Err(error) => error,
    };
    let as_command = match CommandPre::new(linked.clone()) {
        Ok(pre) => return Ok((World::Command(pre), None)),
        Err(error) => error,
    };
    match Function::of(linker.engine(), component, linked) {
        Ok((function, pre)) => Ok((World::Typed(pre), Some(function))),
        Err(error) => Err(anyhow::anyhow!(
            "the component is no task: by its `run`: {as_task:#}; as a WASI command: {as_command:#}; by a function \
             of its own: {error:#}"
        )),
    }
}

/// The longest of what is told of a component, in characters.
const MOST_TOLD: usize = 16_000;

/// What is told of a component, on one line. Parsers write some of it on several, and names out of the component
/// may be in it, with anything in them.
pub(crate) fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join(": ");
    let mut shown = String::new();
    for char in line.chars().take(MOST_TOLD) {
        if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    if line.chars().nth(MOST_TOLD).is_some() {
        shown.push('…');
    }
    shown
}

/// In milliseconds, to the microsecond.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn prepare(store: &mut Store<Host>, limits: &Limits) -> wasmtime::Result<()> {
    store.limiter(|host| &mut host.memory);
    // One more, so that whoever uses all of it can be told from whoever needs more.
    store.set_fuel(limits.fuel.saturating_add(1))?;
    store.fuel_async_yield_interval(Some(YIELD_FUEL))?;
    // Every tick, besides: some instructions take long for the fuel they cost, and host calls cost none.
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    // One call's arguments or results can be no larger than the memory they lie in.
    store.set_hostcall_fuel(usize::try_from(limits.memory_bytes).unwrap_or(usize::MAX));
    // A backstop: what the host counts itself (pending calls, WASI resources) is refused before, with an
    // error of its own type. What only the engine counts ends in an error that has none: a trap.
    let handles = store.data().max_handles();
    store.set_max_component_handles(handles.saturating_mul(2));
    Ok(())
}

/// What `run` returned, as long as the guest lived to return it.
type Returned = Result<String, outcome::Failure>;

async fn call(program: &Program, store: &mut Store<Host>, input: &str, limits: &Limits) -> wasmtime::Result<Returned> {
    match &program.world {
        World::Task(pre) => {
            let task = pre.instantiate_async(&mut *store).await?;
            let input = input.to_owned();
            store.run_concurrent(async |accessor| task.call_run(accessor, input).await).await?
        }
        World::Blocking(pre) => {
            let task = pre.instantiate_async(&mut *store).await?;
            task.call_run(&mut *store, input).await
        }
        World::Command(pre) => {
            let stdout = store.data_mut().make_command(input, limits.output_bytes)?;
            match command(pre, store).await {
                Ok(Ok(())) => {}
                Ok(Err(())) => return Err(I32Exit(1).into()),
                // By now, or while it was instantiated: it is done.
                Err(error) if error.downcast_ref::<I32Exit>().is_some_and(|exit| exit.0 == 0) => {}
                Err(error) => return Err(error),
            }
            Ok(Ok(outcome::of_stdout(stdout.take(), limits)?))
        }
        World::Typed(pre) => {
            let function =
                program.about.function.as_ref().ok_or_else(|| wasmtime::format_err!("it has no function"))?;
            function.call(pre, store, input, limits).await
        }
    }
}

async fn command(pre: &CommandPre<Host>, store: &mut Store<Host>) -> wasmtime::Result<Result<(), ()>> {
    let command = pre.instantiate_async(&mut *store).await?;
    command.wasi_cli_run().call_run(store).await
}
