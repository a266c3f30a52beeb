//! What an attempt may hold: its memories and tables, and what the host holds for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wasmtime::ResourceLimiter;

use crate::room::Room;

/// What one handle or one pending host call costs the host, a little more than was measured.
pub(super) const HANDLE_BYTES: u64 = 1024;

/// What one element of a table costs.
const TABLE_ELEMENT_BYTES: u64 = 16;

/// Most elements of one table: the pool's bound, lower than what the limit may allow.
pub const MAX_TABLE_ELEMENTS: usize = 10_000;

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

/// Whether the system had no memory or no memory map left.
pub fn is_out_of_memory(error: &wasmtime::Error) -> bool {
    let system = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error)
        .or_else(|| error.downcast_ref::<rustix::io::Errno>().map(|errno| errno.raw_os_error()));
    system == Some(rustix::io::Errno::NOMEM.raw_os_error()) || error.is::<wasmtime::OutOfMemory>()
}

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
    // The engine asks here before it looks at the module's own maximum, and what it refuses afterwards
    // was not grown: so that is looked at here, and nothing is counted that is not held.
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(current as u64, desired as u64)
    }

    // Not every call here has one of `memory_growing` before it, so nothing can be taken back. Nor need it
    // be: what is left to fail, once the limit and the maximum allow it, is the system.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        if is_out_of_memory(&error) { Err(NoMemoryLeft.into()) } else { Ok(()) }
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if let Some(maximum) = maximum.filter(|maximum| desired > *maximum) {
            // The lower of the pool's bound and the module's own: only the pool's is a limit of ours.
            self.refused |= maximum == MAX_TABLE_ELEMENTS;
            return Ok(false);
        }
        self.grow(current as u64 * TABLE_ELEMENT_BYTES, (desired as u64).saturating_mul(TABLE_ELEMENT_BYTES))
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
    handle_bytes: u64,
    used: AtomicU64,
    refused: AtomicBool,
}

impl HostMemory {
    /// Nothing held yet, at most `limit` bytes, of which a handle costs `handle_bytes`.
    pub fn new(limit: u64, handle_bytes: u64) -> HostMemory {
        HostMemory(Arc::new(HostMemoryInner {
            limit,
            handle_bytes,
            used: AtomicU64::new(0),
            refused: AtomicBool::new(false),
        }))
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
        usize::try_from(self.0.limit / self.0.handle_bytes).unwrap_or(usize::MAX).max(16)
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

impl HeldMemory {
    /// Takes `bytes` more, or notes that they were refused.
    pub fn grow(&mut self, bytes: u64) -> Result<(), MemoryRefused> {
        // Counted here from now on, and not twice.
        let mut more = self.of.take(bytes)?;
        self.bytes += std::mem::take(&mut more.bytes);
        Ok(())
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.of.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Memory;

    fn memory(limit: u64) -> TaskMemory {
        TaskMemory::new(limit, Arc::new(Room::new(1, 1, Memory::new(0))))
    }

    #[test]
    fn what_the_modules_own_maximum_forbids_is_neither_counted_nor_refused() {
        let mut memory = memory(1000);
        assert!(memory.memory_growing(0, 100, Some(200)).unwrap());
        for _ in 0..100 {
            assert!(!memory.memory_growing(100, 201, Some(200)).unwrap());
            assert!(!memory.memory_growing(100, 5000, Some(200)).unwrap());
            assert!(!memory.table_growing(0, 20, Some(10)).unwrap());
            memory.memory_grow_failed(wasmtime::format_err!("no such memory")).unwrap();
        }
        assert_eq!((memory.used, memory.peak(), memory.refused()), (100, 100, false));
        assert!(!memory.memory_growing(100, 1001, None).unwrap());
        assert_eq!((memory.used, memory.peak(), memory.refused()), (100, 100, true));
    }

    #[test]
    fn the_pools_bound_of_a_table_is_a_limit() {
        let mut memory = memory(u64::MAX);
        assert!(!memory.table_growing(0, MAX_TABLE_ELEMENTS + 1, Some(MAX_TABLE_ELEMENTS)).unwrap());
        assert!(memory.refused());
    }

    #[test]
    fn growth_that_the_system_fails_is_no_refusal_to_the_guest() {
        let mut memory = memory(1000);
        let failed = memory.memory_grow_failed(rustix::io::Errno::NOMEM.into()).unwrap_err();
        assert!(failed.is::<NoMemoryLeft>());
        assert!(!memory.refused());
    }
}
