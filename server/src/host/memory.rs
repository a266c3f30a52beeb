//! What an attempt may hold: its memories and tables, and what the host holds for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

use crate::room::Room;

/// What one handle or one pending host call costs the host, a little more than was measured.
const HANDLE_BYTES: u64 = 1024;

/// What one element of a table costs.
const TABLE_ELEMENT_BYTES: u64 = 16;

/// The attempt's own limit refused something that a guest cannot be told of otherwise.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("what the host holds for the task is over its limit of {limit} bytes")]
pub struct MemoryRefused {
    /// The limit.
    pub limit: u64,
}

/// The machine has no memory left: no fault of the attempt, which is given back.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the machine has no memory left")]
pub struct NoMemoryLeft;

/// Counts all linear memories and tables of a store together. Wasmtime's own `StoreLimits` counts
/// each by itself, so a component with ten memories would get ten times the limit.
pub struct TaskMemory {
    limit: u64,
    used: u64,
    peak: u64,
    refused: bool,
    room: Arc<Room>,
}

impl TaskMemory {
    /// Nothing used yet, at most `limit` bytes.
    pub fn new(limit: u64, room: Arc<Room>) -> TaskMemory {
        TaskMemory { limit, used: 0, peak: 0, refused: false, room }
    }

    /// Whether growth was refused at the limit.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// The most that was held at once, in bytes.
    pub fn peak(&self) -> u64 {
        self.peak
    }

    fn grow(&mut self, from: u64, to: u64) -> wasmtime::Result<bool> {
        let growth = to.saturating_sub(from);
        let wanted = self.used.saturating_add(growth);
        if wanted > self.limit {
            self.refused = true;
            return Ok(false);
        }
        if !self.room.may_grow(growth) {
            return Err(NoMemoryLeft.into());
        }
        self.used = wanted;
        self.peak = self.peak.max(wanted);
        Ok(true)
    }
}

impl Drop for TaskMemory {
    fn drop(&mut self) {
        self.room.shrunk(self.used);
    }
}

impl ResourceLimiter for TaskMemory {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current as u64, desired as u64)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        self.grow(current as u64 * TABLE_ELEMENT_BYTES, (desired as u64).saturating_mul(TABLE_ELEMENT_BYTES))
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // The pool's own bound on a table's elements is lower than what the limit may allow.
        self.refused = true;
        Ok(())
    }

    // The pool bounds how many instances, memories and tables a component has. The counts here are
    // for each store, and a store holds one component.
    fn instances(&self) -> usize {
        1000
    }

    fn memories(&self) -> usize {
        1000
    }

    fn tables(&self) -> usize {
        1000
    }
}

/// What the host holds for an attempt: buffers and pending calls.
#[derive(Clone)]
pub struct HostMemory(Arc<HostMemoryInner>);

struct HostMemoryInner {
    limit: u64,
    used: AtomicU64,
    refused: AtomicBool,
}

impl HostMemory {
    /// Nothing held yet, at most `limit` bytes.
    pub fn new(limit: u64) -> HostMemory {
        HostMemory(Arc::new(HostMemoryInner { limit, used: AtomicU64::new(0), refused: AtomicBool::new(false) }))
    }

    /// Takes `bytes` for a buffer, or notes that they were refused.
    pub fn take(&self, bytes: u64) -> Result<HeldMemory, MemoryRefused> {
        let taken = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.0.limit)
        });
        match taken {
            Ok(_) => Ok(HeldMemory { of: self.clone(), bytes }),
            Err(_) => {
                self.0.refused.store(true, Ordering::Relaxed);
                Err(MemoryRefused { limit: self.0.limit })
            }
        }
    }

    /// Takes what one pending call costs beside its buffers.
    pub fn take_call(&self) -> Result<HeldMemory, MemoryRefused> {
        self.take(HANDLE_BYTES)
    }

    /// Bytes that are not taken at the moment.
    pub fn left(&self) -> u64 {
        self.0.limit.saturating_sub(self.0.used.load(Ordering::Relaxed))
    }

    /// How many handles fit.
    pub fn max_handles(&self) -> usize {
        usize::try_from(self.0.limit / HANDLE_BYTES).unwrap_or(usize::MAX).max(16)
    }

    /// Whether anything was refused.
    pub fn refused(&self) -> bool {
        self.0.refused.load(Ordering::Relaxed)
    }
}

/// Bytes that are taken until this is dropped, with the call they belong to.
pub struct HeldMemory {
    of: HostMemory,
    bytes: u64,
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.of.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
