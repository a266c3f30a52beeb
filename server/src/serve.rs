//! Puts the parts together, serves, and takes them apart again.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::api::{self, App, Tls};
use crate::clock;
use crate::command_line as control;
use crate::compiler::Compiler;
use crate::config::Config;
use crate::executor::Executor;
use crate::host::Services;
use crate::host::http::Outbound;
use crate::host::live::LiveAttempts;
use crate::key_value::KeyValues;
use crate::manager::{Changes, Core, CoreSettings, Manager, Workers};
use crate::objects::Objects;
use crate::registry::{MOST_PROGRAMS, Registry};
use crate::room::{self, Memory, Room};
use crate::sandbox::{CodeCache, CompileLimits, Cores, EngineSettings, MAPS_PER_SLOT, Sandbox};
use crate::secrets::{Key, Secrets};
use crate::storage::Storage;
use crate::store::{self, DataDir};
use crate::tenants::Tenants;
use crate::types_at_start;

/// Kernel memory maps left for everything that is not an attempt: a program in memory has about three.
const MAPS_RESERVED: usize = 1_000 + 3 * MOST_PROGRAMS;

/// File descriptors left for everything that is no connection: the database, its readers, the log, the processes
/// that compile; and the programs in memory.
const FILES_RESERVED: u64 = 256 + MOST_PROGRAMS as u64;

/// Attempts that may work at once, for each core: so few that the default CPU time of all of them fits
/// into the default timeout, and a full machine makes tasks wait and not fail.
const WORKING_PER_CORE: usize = 28;

/// Connections that read the database.
const READERS: usize = 4;

/// Serves until a signal ends it.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let file = config.secret_key_file.as_deref();
    let key = file.map(|file| Key::read(file, &config.data_dir)).transpose()?.map(Arc::new);
    raise_open_files(u64::from(config.max_connections) + u64::from(config.max_http_connections));
    // Two runtimes: what a guest does to the one cannot delay a request or a timer on the other.
    let api_threads = threads("api", cores).enable_all().build().context("cannot start the api threads")?;
    let starting = api_threads.block_on(async { end_at_a_signal() })?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let (mut writer, readers) = store::open(&data_dir.path, READERS)?;
    let (defaults, ceiling) = (config.defaults.limits(), config.ceilings.limits());

    let guests = config.guest_threads.map_or(cores, |threads| threads as usize);
    let guest_threads = threads("guest", guests)
        // Guests have no sockets, and WASI's timers only: looking at them costs more than most polls,
        // and not looking delays them by as many slices.
        .enable_time()
        .event_interval(8)
        .build()
        .context("cannot start the guest threads")?;

    let slots = slots(config.max_running as usize);
    let working = config.max_working.map_or(cores * WORKING_PER_CORE, |working| working as usize);
    let reserve = config.memory_reserve.unwrap_or_else(|| room::available().unwrap_or(0) / 10);
    let room = Arc::new(Room::new(slots, working, Memory::new(reserve)));

    let tenants = Arc::new(Tenants::new(config.quotas()));
    writer.tenants()?.into_iter().for_each(|tenant| tenants.put(tenant));
    writer.keys()?.into_iter().for_each(|key| tenants.keys.put(key));
    if !config.listen.ip().is_loopback() && !tenants.keys.are_needed() {
        bail!(
            "there are no keys yet, so only a loopback address is served, and {} is none: anybody who reaches it could \
             run code here. Make a key first: taskcell key create --tenant operator --role admin --data-dir {}",
            config.listen,
            config.data_dir.display()
        );
    }

    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(certificates), Some(key)) => Some(Arc::new(Tls::open(certificates, key)?)),
        _ => None,
    };
    if !config.listen.ip().is_loopback() && tls.is_none() {
        tracing::warn!(
            "keys and everything else cross the network as they are: set --tls-cert and --tls-key, or let nothing but \
             a proxy that speaks TLS reach this address"
        );
    }

    let registry = Arc::new(Registry::default());
    let live = Arc::new(LiveAttempts::default());
    let changes = Arc::new(Changes::default());
    let (manager, inbox) =
        Manager::new(readers.clone(), registry.clone(), live.clone(), changes.clone(), defaults, ceiling);
    let compile_readers = readers.clone();
    let guest_readers = readers.half();
    let secrets = Secrets::new(readers.clone(), key.clone());
    let guest_secrets = Secrets::new(guest_readers.clone(), key);
    let storage = Storage::new(manager.clone(), readers);
    let for_guests = storage.for_guests(guest_readers);
    let objects = Objects::new(storage, config.max_object_bytes);
    let outbound = Arc::new(Outbound::new(config.http(), tenants.clone(), api_threads.handle().clone())?);
    let timers = api_threads.handle().clone();
    let services = Services {
        objects: Objects::new(for_guests.clone(), config.max_object_bytes),
        secrets: guest_secrets,
        key_values: KeyValues::new(for_guests, config.max_value_bytes),
        timers,
        outbound,
        live,
    };

    let settings = EngineSettings { slots, max_memory_bytes: ceiling.memory_bytes };
    let cache = CodeCache::open(data_dir.path.join("compiled"))?;
    let turns = Arc::new(Cores::new(guests));
    let sandbox = Arc::new(Sandbox::new(&settings, cache, room.clone(), turns.clone(), services)?);
    let ours = types_at_start::store(&mut writer, &registry, config.components.as_deref())?;
    let compiler = Compiler::default();
    let compile_limits = CompileLimits { memory_bytes: config.compile_memory_bytes, cpu_ms: config.compile_cpu_ms };
    // What could not be compiled within these limits may be within others.
    let CompileLimits { memory_bytes, cpu_ms } = compile_limits;
    let by: Arc<str> = format!("{} within {memory_bytes} bytes, {cpu_ms} ms", sandbox.compiler()).into();
    types_at_start::load(&mut writer, &sandbox, &registry, &compiler, &ours, &by)?;
    let (by_compiler, for_compiled, for_loaded) = (by.clone(), manager.clone(), manager.clone());
    compiler.start(
        sandbox.clone(),
        compile_readers,
        api_threads.handle().clone(),
        compile_limits,
        move |digest, compiled| for_compiled.compiled(digest, by_compiler.clone(), compiled),
        move |tenant, digest, loaded| for_loaded.loaded(tenant, digest, by.clone(), loaded),
    )?;

    let (logs, full_logs) = tokio::sync::mpsc::unbounded_channel();
    api_threads.spawn(manager.clone().store_logs(full_logs));
    let on_line = Arc::new(move |buffer: &crate::host::log::LogBuffer| {
        let _ = logs.send(buffer.clone());
    });
    let reports = manager.clone();
    let executor =
        Executor::new(guest_threads.handle().clone(), slots, sandbox, on_line, move |report| reports.report(report));
    let told = manager.clone();
    room.on_room(move || told.room());
    // Before anything runs: where the port is taken, nothing has happened.
    let listener = api_threads.block_on(listen(&config))?;
    let private = api_threads.block_on(async { control::listen(&data_dir.path) })?;
    let core_settings = CoreSettings {
        defaults,
        ceiling,
        max_interruptions: config.max_interruptions,
        max_pending: config.max_pending,
        retention_ms: config.retention,
        usage_retention_days: config.usage_retention,
        audit_retention_days: config.audit_retention,
    };
    let workers = Workers { run: Box::new(move |job| executor.start(job)), room: room.clone(), turns, compiler };
    let operations = writer.open_operations()?;
    let core = Core::new(writer, registry, tenants.clone(), workers, changes, core_settings, clock::now())?;
    let core_thread = std::thread::Builder::new().name("manager".into()).spawn(move || core.run(inbox))?;
    for operation in operations {
        api_threads.spawn(manager.clone().go_on(operation));
    }

    let app = App {
        manager: manager.clone(),
        objects,
        tenants,
        secrets,
        room,
        max_input_bytes: config.ceilings.max_input_bytes,
        max_component_bytes: config.max_component_bytes,
        max_memory_bytes: ceiling.memory_bytes,
    };
    let served = api_threads.block_on(serve_api(listener, private, tls, &config, app, starting));
    // Also where serving failed: what runs is put back, and what was said is on the disk.
    manager.drain(Duration::ZERO);
    let _ = core_thread.join();
    guest_threads.shutdown_background();
    api_threads.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}: choose another address with --listen", config.listen))
}

async fn serve_api(
    listener: TcpListener,
    private: UnixListener,
    tls: Option<Arc<Tls>>,
    config: &Config,
    app: App,
    starting: JoinHandle<()>,
) -> anyhow::Result<()> {
    let manager = app.manager.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    starting.abort();
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = tokio::spawn(api::serve(
        listener,
        private,
        api::ServerSettings {
            max_connections: config.max_connections as usize,
            max_tenants: config.max_tenants,
            tls: tls.clone(),
            client_timeout: Duration::from_millis(config.client_timeout),
        },
        app,
        stopped,
    ));
    let mut stdout = std::io::stdout();
    let scheme = if tls.is_some() { "https" } else { "http" };
    writeln!(stdout, "taskcell listening on {scheme}://{address}")?;
    stdout.flush()?;

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tls.iter().for_each(|tls| tls.reload()),
        }
    }
    let grace = Duration::from_millis(config.drain_timeout);
    tracing::info!(?grace, "stopping: no new tasks; a second signal ends the server at once");
    manager.drain(grace);
    let drained = async {
        while !manager.is_drained() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = stop.send(true);
        let _ = server.await;
    };
    tokio::select! {
        () = drained => Ok(()),
        _ = terminate.recv() => std::process::exit(0),
        _ = interrupt.recv() => std::process::exit(0),
    }
}

/// Ends the process at a signal, until what is returned is aborted. While it starts nothing was promised to anybody, and
/// what is half done is done again at the next start, as after a crash. The first process of a container has no other
/// way to be ended.
fn end_at_a_signal() -> anyhow::Result<JoinHandle<()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: it had not begun to serve");
        std::process::exit(0);
    }))
}

fn threads(name: &'static str, count: usize) -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(count).thread_name(name);
    builder
}

/// Raises the limit of open files to what so many connections need, as far as the system allows. The usual one, 1024,
/// is less than `--max-connections`.
fn raise_open_files(connections: u64) {
    let needed = connections + FILES_RESERVED;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` is without a limit.
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let allowed = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum });
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if open_files < needed {
        tracing::warn!(
            open_files,
            needed,
            error = raised.err().map(tracing::field::display),
            "the system allows fewer open files than --max-connections and --max-http-connections ask for: raise the \
             hard limit (ulimit -Hn {needed}), or lower them"
        );
    }
}

/// How many attempts the kernel's limit of memory maps allows, if that is less than asked for.
fn slots(asked: usize) -> usize {
    let limit =
        std::fs::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|text| text.trim().parse::<usize>().ok());
    let Some(limit) = limit else { return asked };
    let allowed = (limit.saturating_sub(MAPS_RESERVED) / MAPS_PER_SLOT).max(1);
    if allowed < asked {
        let needed = asked * MAPS_PER_SLOT + MAPS_RESERVED;
        tracing::warn!(
            max_map_count = limit,
            asked,
            allowed,
            "the system allows fewer tasks at once than --max-running asks for: `sysctl vm.max_map_count={needed}` \
             allows them all"
        );
    }
    allowed.min(asked)
}
