//! What a guest sees of the host: the interfaces of `wit/`, and a WASI 0.2 that denies everything.
//!
//! [`Host`] is the data of one attempt's store. Every function here is called by an untrusted
//! guest: it bounds what it is given before it keeps it, never blocks its thread, and may be
//! dropped at any `await`.

mod context;
pub mod http;
pub mod live;
pub mod log;
mod memory;
mod objects;
mod repeatable;
mod stdio;
mod timer;
mod wasi;

use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use wasmtime::component::{HasData, HasSelf, Linker, ResourceTable};
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

use memory::HANDLE_BYTES;
pub use memory::{
    HeldMemory, HostMemory, MAX_TABLE_ELEMENTS, MemoryRefused, NoMemoryLeft, TaskMemory, is_out_of_memory,
};
pub use stdio::{BadStdout, Stdout};

use crate::grants::Grants;
use crate::host::live::LiveAttempts;
use crate::host::log::LogBuffer;
use crate::limits::Limits;
use crate::objects::Objects;
use crate::room::Room;
use crate::task::{Progress, TaskId};

/// Bindings of world `task`.
#[expect(missing_docs, reason = "generated from wit/, where the documentation is")]
pub mod task_world {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "task",
        imports: { default: trappable },
        exports: { default: async },
    });
}

/// Bindings of world `blocking-task`. What it shares with `task` is the same here.
#[expect(missing_docs, reason = "generated from wit/, where the documentation is")]
pub mod blocking_world {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "blocking-task",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "taskcell:task/types": super::task_world::taskcell::task::types,
            "taskcell:task/context": super::task_world::taskcell::task::context,
        },
    });
}

/// What every attempt's host functions share.
#[derive(Clone)]
pub struct Services {
    /// The tenants' objects.
    pub objects: Objects,
    /// Where timers run: not on the guests' threads, which a guest may keep busy.
    pub timers: Handle,
    /// Where their requests go out.
    pub outbound: Arc<http::Outbound>,
    /// What attempts report while they run.
    pub live: Arc<LiveAttempts>,
}

/// The state of one attempt.
pub struct Host {
    wasi: WasiCtx,
    /// The clock, where it is not everybody's.
    time: Option<repeatable::Time>,
    config: WasiConfigVariables,
    grants: Arc<Grants>,
    table: ResourceTable,
    services: Services,
    id: TaskId,
    attempt: u32,
    tenant: Arc<str>,
    deadline: Instant,
    log: LogBuffer,
    /// Linear memories and tables.
    pub memory: TaskMemory,
    host_memory: HostMemory,
    /// Turns for calls of `objects`: one attempt's thousands do not stand in everybody's way.
    object_turns: Arc<Semaphore>,
    http: http::Http,
    progress: Option<Progress>,
    calls: u64,
    io_bytes: u64,
}

/// Which attempt a [`Host`] is for.
pub struct AttemptOf {
    /// The task's id.
    pub id: TaskId,
    /// The number of the attempt.
    pub attempt: u32,
    /// Whose task it is.
    pub tenant: Arc<str>,
}

/// What an attempt may use and touch.
pub struct May<'a> {
    /// Its limits.
    pub limits: &'a Limits,
    /// What it is granted.
    pub grants: Arc<Grants>,
    /// Whether its component imports `wasi:http`, whose handles cost more.
    pub uses_http: bool,
}

impl Host {
    /// The state of an attempt that begins.
    pub fn new(
        services: Services,
        room: Arc<Room>,
        of: AttemptOf,
        May { limits, grants, uses_http }: May<'_>,
        deadline: Instant,
        log: LogBuffer,
    ) -> Host {
        let host_memory =
            HostMemory::new(limits.host_memory_bytes, if uses_http { http::HANDLE_BYTES } else { HANDLE_BYTES });
        let mut table = ResourceTable::new();
        table.set_max_capacity(host_memory.max_handles());
        let (wasi, time) = wasi::context(&log, &grants, of.id);
        let config = grants.config.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let outbound = services.outbound.clone();
        let http = http::Http::new(outbound, of.tenant.clone(), grants.clone(), host_memory.clone(), log.clone());
        Host {
            wasi,
            time,
            config,
            grants,
            table,
            services,
            id: of.id,
            attempt: of.attempt,
            tenant: of.tenant,
            deadline,
            log,
            memory: TaskMemory::new(limits.memory_bytes, room),
            host_memory,
            object_turns: Arc::new(Semaphore::new(objects::CALLS_AT_ONCE)),
            http,
            progress: None,
            calls: 0,
            io_bytes: 0,
        }
    }

    /// Makes it that of a command: its stdin is `input`, and its stdout what is returned, up to
    /// `output_bytes`. For before it runs.
    pub fn make_command(&mut self, input: &str, output_bytes: u64) -> Result<Stdout, MemoryRefused> {
        let (stdin, stdout) = stdio::stdio(input, output_bytes, &self.host_memory)?;
        (self.wasi, self.time) = wasi::command(&self.log, &self.grants, self.id, stdin, stdout.clone());
        Ok(stdout)
    }

    /// Whether memory, a buffer or a handle was refused at the attempt's own limit.
    pub fn refused_memory(&self) -> bool {
        self.memory.refused() || self.host_memory.refused()
    }

    /// How many handles the engine may hold for the attempt.
    pub fn max_handles(&self) -> usize {
        self.host_memory.max_handles()
    }

    /// Bytes that the host may still hold for the attempt.
    pub fn memory_left(&self) -> u64 {
        self.host_memory.left()
    }

    /// Holds that many bytes for it, until what is returned is dropped.
    pub fn hold(&self, bytes: u64) -> Result<HeldMemory, MemoryRefused> {
        self.host_memory.take(bytes)
    }

    /// What the attempt reported last.
    pub fn progress(&self) -> Option<Progress> {
        self.progress.clone()
    }

    /// Calls of our own interfaces so far, and requests.
    pub fn calls(&self) -> u64 {
        self.calls + self.http.requests()
    }

    /// Bytes of objects read and written so far, and of requests and their responses.
    pub fn io_bytes(&self) -> u64 {
        self.io_bytes + self.http.bytes()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.progress.is_some() {
            self.services.live.remove(self.id);
        }
    }
}

/// Lends [`Host`] to the functions of an `async` interface.
pub struct HasHost;

impl HasData for HasHost {
    type Data<'a> = &'a mut Host;
}

/// Puts everything a component may import into a linker.
pub fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    use blocking_world::taskcell::task as blocking;
    use task_world::taskcell::task;
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_config::add_to_linker(linker, |host: &mut Host| {
        host.calls += 1;
        WasiConfig::from(&host.config)
    })?;
    http::add_to_linker(linker)?;
    repeatable::add_to_linker(linker)?;
    task::types::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    task::context::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    task::timer::add_to_linker::<_, HasHost>(linker, |host: &mut Host| host)?;
    task::objects::add_to_linker::<_, HasHost>(linker, |host: &mut Host| host)?;
    blocking::blocking_timer::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    blocking::blocking_objects::add_to_linker::<_, HasSelf<_>>(linker, |host: &mut Host| host)?;
    Ok(())
}
