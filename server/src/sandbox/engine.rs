//! The engine: which WebAssembly is taken, and where its memory comes from.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cores::Cores;
use crate::clock;
use crate::host::MAX_TABLE_ELEMENTS;

/// How often running guests are made to yield, whatever fuel they use.
const TICK: Duration = Duration::from_millis(2);

/// Kernel memory maps that one attempt takes, of `vm.max_map_count`. Measured with sleeping guests.
pub const MAPS_PER_SLOT: usize = 6;

/// Address space of one linear memory. 4 GiB need no bounds check: what a 32-bit index can reach
/// is reserved.
const MEMORY_RESERVATION: u64 = 4 << 30;

const MEMORY_GUARD: u64 = 32 << 20;

/// Most core instances, memories and tables of one component.
const MAX_CORE_INSTANCES: u32 = 16;
const MAX_MEMORIES: u32 = 8;
const MAX_TABLES: u32 = 16;

/// What the operator decides.
#[derive(Clone, Copy, Debug)]
pub struct EngineSettings {
    /// Attempts at once.
    pub slots: usize,
    /// Most bytes of one linear memory.
    pub max_memory_bytes: u64,
}

fn base() -> Config {
    let mut config = Config::new();
    config.consume_fuel(true).epoch_interruption(true);
    // The default of 2 MiB for a fiber is mostly room that is never touched; 512 KiB for wasm is
    // what the engine gives by itself.
    config.max_wasm_stack(512 << 10).async_stack_size(1 << 20);
    config.memory_reservation(MEMORY_RESERVATION).memory_guard_size(MEMORY_GUARD);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(16));
    // What no guest needs is off: each is code that hostile input could reach. Garbage collection
    // and exceptions also for GHSA-43j2-gcp4-m22g and GHSA-wvgq-g5hf-6gm6, open in 48.0.8.
    config
        .wasm_threads(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_tail_call(false);
    config.wasm_component_model_async(true);
    config
}

fn pool(settings: &EngineSettings) -> PoolingAllocationConfig {
    let slots = u32::try_from(settings.slots).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    // Most components have one memory and up to four core instances. What is added is for one that
    // has as many as a component may have, however few slots there are.
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(4).saturating_add(MAX_CORE_INSTANCES))
        .total_memories(slots.saturating_add(MAX_MEMORIES))
        .total_tables(slots.saturating_mul(2).saturating_add(MAX_TABLES))
        .total_stacks(slots)
        .max_memory_size(usize::try_from(settings.max_memory_bytes).unwrap_or(usize::MAX))
        .max_core_instance_size(64 << 10)
        .max_component_instance_size(64 << 10)
        .max_core_instances_per_component(MAX_CORE_INSTANCES)
        .max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_tables_per_module(2)
        .max_memories_per_module(1)
        // Cleared by hand instead of given back to the kernel: unmapping makes all threads wait. What free
        // slots keep so counts as used in what `room` measures, and after a burst that may be much. The pool
        // could say how much it is; but adding that to what is available would promise it to anybody, and
        // an attempt finds only what its own slot has kept, so that one that grows further would use
        // memory that is not there.
        .linear_memory_keep_resident(2 << 20)
        .table_keep_resident(8 << 10)
        .pagemap_scan(Enabled::Auto)
        .total_gc_heaps(0);
    pool
}

/// An engine that only compiles, and for which the other's code is the same.
pub(super) fn compiler() -> anyhow::Result<Engine> {
    let mut config = base();
    // One thread: what it may use of the machine is bounded, and it goes on beside tasks.
    config.parallel_compilation(false);
    Engine::new(&config).map_err(anyhow::Error::from).context("cannot create the compiler")
}

/// An engine for what does not fit into a pool's slots. What an attempt may have is bounded by its limits, and
/// what a component may consist of by `precheck.rs`.
pub(super) fn on_demand() -> anyhow::Result<Engine> {
    let mut config = base();
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config).map_err(anyhow::Error::from).context("cannot create the WebAssembly engine")
}

/// Makes the engine with a pool, or without one where the machine cannot hold it.
pub(super) fn pooled(settings: &EngineSettings) -> anyhow::Result<Engine> {
    let mut config = base();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(settings)));
    match Engine::new(&config) {
        Ok(engine) => {
            let pagemap_scan = PoolingAllocationConfig::is_pagemap_scan_available();
            tracing::info!(slots = settings.slots, pagemap_scan, "sandbox ready, slots are pooled");
            Ok(engine)
        }
        Err(error) => {
            tracing::warn!(
                slots = settings.slots,
                error = format!("{error:#}"),
                "cannot reserve the address space for the slots: every attempt maps its memory anew, which is \
                 several times slower; lower --max-running, or raise the limit of the address space (ulimit -v)"
            );
            on_demand()
        }
    }
}

/// After so many ticks it is looked for attempts whose time was over while they waited for a turn, and for tenants whose
/// hour is over.
const OVERDUE_TICKS: u32 = 20;

/// After so many ticks in which no guest wanted a turn they pause until one does, or for the time of a look.
const IDLE_TICKS: u32 = 250;
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// Advances the engines' epochs from a thread of its own, so that nothing a guest does can stop it.
pub(super) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(super) fn start(engines: [&Engine; 2], cores: Arc<Cores>) -> anyhow::Result<Ticker> {
        let stop = Arc::new(AtomicBool::new(false));
        let (engines, stopped) = (engines.map(Engine::weak), stop.clone());
        let thread = std::thread::Builder::new().name("epoch".into()).spawn(move || {
            let (mut ticks, mut idle) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                idle = if cores.are_idle() { idle + 1 } else { 0 };
                if idle > IDLE_TICKS {
                    cores.park_ticker(IDLE_LOOK);
                    ticks = OVERDUE_TICKS - 1;
                }
                std::thread::sleep(TICK);
                engines.iter().filter_map(wasmtime::EngineWeak::upgrade).for_each(|engine| engine.increment_epoch());
                ticks = (ticks + 1) % OVERDUE_TICKS;
                if ticks == 0 {
                    cores.look(Instant::now(), clock::now());
                }
            }
        })?;
        Ok(Ticker { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
