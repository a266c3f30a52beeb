//! Pure: components that wait for one who works on them one at a time, tenants in turn.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::task::Digest;

/// Whose turn it is. One entry for each component, of which the store has a bounded number.
#[derive(Default)]
pub struct Turns {
    tenants: BTreeMap<Arc<str>, VecDeque<Digest>>,
    waiting: HashSet<Digest>,
    last: Option<Arc<str>>,
}

impl Turns {
    /// A component comes after what came before of the same tenant, unless it waits already.
    pub fn add(&mut self, tenant: Arc<str>, digest: Digest) {
        if self.waiting.insert(digest) {
            self.tenants.entry(tenant).or_default().push_back(digest);
        }
    }

    /// A component waits no longer.
    pub fn remove(&mut self, digest: Digest) {
        if self.waiting.remove(&digest) {
            self.tenants.retain(|_, waiting| {
                waiting.retain(|other| *other != digest);
                !waiting.is_empty()
            });
        }
    }

    /// The next one, which waits no longer.
    pub fn next(&mut self) -> Option<(Arc<str>, Digest)> {
        let after = self.last.as_ref().and_then(|last| {
            let range = (Bound::Excluded(last.clone()), Bound::Unbounded);
            self.tenants.range(range).next()
        });
        let tenant = after.or_else(|| self.tenants.iter().next()).map(|(tenant, _)| tenant.clone())?;
        let waiting = self.tenants.get_mut(&tenant)?;
        let digest = waiting.pop_front()?;
        if waiting.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.waiting.remove(&digest);
        self.last = Some(tenant.clone());
        Some((tenant, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns() {
        let mut turns = Turns::default();
        for (tenant, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("a", 1), ("d", 7)] {
            turns.add(tenant.into(), Digest([number; 32]));
        }
        turns.remove(Digest([7; 32]));
        turns.remove(Digest([7; 32]));
        let mut order = Vec::new();
        while let Some((tenant, digest)) = turns.next() {
            order.push((tenant.to_string(), digest.0[0]));
            if order.len() == 2 {
                turns.add("b".into(), Digest([6; 32]));
            }
        }
        let expected = [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)];
        assert_eq!(order, expected.map(|(tenant, number)| (tenant.to_owned(), number)));
    }
}
