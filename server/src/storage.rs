//! The way to what tenants keep: changes by the manager, reads beside it. Guests go it together, and leave room
//! for the API.

use std::sync::Arc;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::manager::Manager;
use crate::store::Readers;

/// Changes by guests that may wait for the manager at once, all guests together: enough to fill a
/// transaction, and few of those that the API may have waiting.
const GUEST_WRITES: usize = 64;

/// Where it is read and changed.
#[derive(Clone)]
pub struct Storage {
    /// Makes changes.
    pub manager: Manager,
    /// Read it.
    pub readers: Readers,
    /// How many changes may wait for the manager at once, where there is a bound of its own.
    writes: Option<Arc<Semaphore>>,
}

impl Storage {
    /// What `manager` writes and `readers` read.
    pub fn new(manager: Manager, readers: Readers) -> Storage {
        Storage { manager, readers, writes: None }
    }

    /// The same for guests, who all together leave readers and places with the manager to the API,
    /// whatever they do.
    pub fn for_guests(&self, readers: Readers) -> Storage {
        let writes = Some(Arc::new(Semaphore::new(GUEST_WRITES)));
        Storage { manager: self.manager.clone(), readers, writes }
    }

    /// Waits for a turn to change something.
    pub async fn turn_to_write(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody closes the semaphore.
        self.writes.as_ref()?.acquire().await.ok()
    }
}
