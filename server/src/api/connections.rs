//! The connections that tenants hold for long: each stream of events, each request that waits, and each whose body is
//! still being sent holds one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::problem::{Kind, Problem};

/// What a policy says of what is counted at one moment.
const AT_ONCE: &str = ";qu=\"concurrent-requests\"";

/// What each tenant holds. However much that is, some connections are left to the others.
pub(super) struct Connections {
    by_tenant: Mutex<HashMap<Arc<str>, Count>>,
    /// How many connections one tenant may hold so.
    most: u64,
}

#[derive(Clone, Copy, Default)]
struct Count {
    streams: u64,
    waits: u64,
}

/// In the extensions of a request whose connection is held for its tenant already.
#[derive(Clone, Copy)]
pub(super) struct HoldsConnection;

/// A connection that is held.
pub(super) struct Held {
    connections: Arc<Connections>,
    tenant: Arc<str>,
    is_stream: bool,
}

impl Connections {
    /// No tenant holds more than three quarters of so many connections.
    pub(super) fn new(max_connections: usize) -> Connections {
        let quarter = max_connections.div_ceil(4);
        Connections { by_tenant: Mutex::default(), most: max_connections.saturating_sub(quarter).max(1) as u64 }
    }

    /// How many streams a tenant has open.
    pub(super) fn streams(&self, tenant: &str) -> u64 {
        self.lock().get(tenant).map_or(0, |count| count.streams)
    }

    /// One stream more, where the tenant may have that many.
    pub(super) fn stream(self: &Arc<Self>, tenant: &Arc<str>, most: Option<u64>) -> Result<Held, Problem> {
        let mut by_tenant = self.lock();
        let count = by_tenant.get(tenant).copied().unwrap_or_default();
        if let Some(most) = most.filter(|most| count.streams >= *most) {
            return Err(Problem::of_quota(Kind::TooManyStreams, "event-streams", 0, most, AT_ONCE));
        }
        self.hold(&mut by_tenant, tenant, count, true)
    }

    /// One request more that waits, or is waited for, where the tenant does not hold as many connections as it may.
    pub(super) fn wait(self: &Arc<Self>, tenant: &Arc<str>) -> Result<Held, Problem> {
        let mut by_tenant = self.lock();
        let count = by_tenant.get(tenant).copied().unwrap_or_default();
        self.hold(&mut by_tenant, tenant, count, false)
    }

    fn hold(
        self: &Arc<Self>,
        by_tenant: &mut HashMap<Arc<str>, Count>,
        tenant: &Arc<str>,
        Count { streams, waits }: Count,
        is_stream: bool,
    ) -> Result<Held, Problem> {
        if streams + waits >= self.most {
            return Err(Problem::of_quota(Kind::TooManyWaiting, "held-connections", 0, self.most, AT_ONCE));
        }
        let count = Count { streams: streams + u64::from(is_stream), waits: waits + u64::from(!is_stream) };
        by_tenant.insert(tenant.clone(), count);
        Ok(Held { connections: self.clone(), tenant: tenant.clone(), is_stream })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Count>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut by_tenant = self.connections.lock();
        if let Some(count) = by_tenant.get_mut(&self.tenant) {
            if self.is_stream {
                count.streams -= 1;
            } else {
                count.waits -= 1;
            }
            if count.streams + count.waits == 0 {
                by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_counted_by_tenant() {
        let connections = Arc::new(Connections::new(100));
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let first = connections.stream(&a, Some(2)).unwrap();
        let _second = connections.stream(&a, Some(2)).unwrap();
        assert_eq!(connections.stream(&a, Some(2)).err().unwrap().status(), 429);
        let third = connections.stream(&b, None).unwrap();
        assert_eq!((connections.streams("a"), connections.streams("b")), (2, 1));
        drop((first, third));
        assert!(connections.stream(&a, Some(2)).is_ok());
        assert!(!connections.lock().contains_key("b"), "nobody is remembered for ever");
    }

    #[test]
    fn one_tenant_never_holds_all() {
        for (in_all, most) in [(1, 1), (2, 1), (3, 2), (4, 3), (10, 7), (4096, 3072)] {
            let connections = Arc::new(Connections::new(in_all));
            let (a, b) = (Arc::from("a"), Arc::from("b"));
            let mut held = vec![connections.stream(&a, None).unwrap()];
            held.extend(std::iter::from_fn(|| connections.wait(&a).ok()));
            assert_eq!(held.len(), most, "of {in_all}");
            assert!(connections.stream(&a, None).is_err() && connections.wait(&b).is_ok());
            held.pop();
            assert!(connections.wait(&a).is_ok());
        }
    }
}
