//! Room for bodies, large requests and large answers, that all tenants share: however much one of them sends slowly, or
//! reads slowly, some of it is left to the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// So much room, of which no tenant takes more than three quarters.
pub(super) struct Room {
    all: Arc<Semaphore>,
    most: u32,
    // As many as there are tenants.
    tenants: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

/// A part of the room, which is free again when this is dropped.
pub(super) struct Part {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Room {
    /// Room of so many units.
    pub(super) fn new(units: u32) -> Room {
        let most = units.saturating_sub(units.div_ceil(4)).max(1);
        Room { all: Arc::new(Semaphore::new(units as usize)), most, tenants: Mutex::default() }
    }

    /// Waits for so many units, or for as many as a tenant may have. Whoever has as many as it may waits for itself, and not
    /// before the others.
    pub(super) async fn take(&self, tenant: &Arc<str>, units: u32) -> Result<Part, AcquireError> {
        let units = units.min(self.most);
        let own = self.of(tenant).acquire_many_owned(units).await?;
        let all = self.all.clone().acquire_many_owned(units).await?;
        Ok(Part { _own: own, _all: all })
    }

    /// The same where they are free.
    pub(super) fn try_take(&self, tenant: &Arc<str>, units: u32) -> Result<Part, TryAcquireError> {
        let units = units.min(self.most);
        let own = self.of(tenant).try_acquire_many_owned(units)?;
        let all = self.all.clone().try_acquire_many_owned(units)?;
        Ok(Part { _own: own, _all: all })
    }

    fn of(&self, tenant: &Arc<str>) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.most as usize))).clone()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_tenant_leaves_some_to_the_others() {
        let room = Room::new(8);
        let [a, b] = ["a", "b"].map(Arc::<str>::from);
        let taken = [4, 2].map(|units| room.try_take(&a, units).ok().unwrap());
        assert!(room.try_take(&a, 1).is_err());
        let mut waits = Box::pin(room.take(&a, 1));
        assert!(waits.as_mut().now_or_never().is_none());
        // It waits for itself: others pass.
        let of_b = room.take(&b, 2).now_or_never().unwrap().ok().unwrap();
        assert!(room.try_take(&b, 1).is_err());
        drop((taken, of_b));
        assert!(waits.now_or_never().unwrap().is_ok());
        // What is larger than what one may have takes that.
        let large = room.take(&a, 100).now_or_never().unwrap().ok().unwrap();
        assert!(room.try_take(&b, 3).is_err() && room.try_take(&b, 2).is_ok());
        drop(large);
        assert!(room.try_take(&b, 3).is_ok());
    }
}
