//! Tenants in turn: what waits for one who does one thing after the other, and for something of which there is only
//! so much. So a tenant that wants a lot waits for itself and not the others for it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Things that wait, each of a tenant.
pub struct Turns<T> {
    tenants: BTreeMap<Arc<str>, VecDeque<T>>,
    /// How many all tenants have.
    len: usize,
    last: Option<Arc<str>>,
}

impl<T> Default for Turns<T> {
    fn default() -> Turns<T> {
        Turns { tenants: BTreeMap::new(), len: 0, last: None }
    }
}

impl<T> Turns<T> {
    /// One comes after those that came before of the same tenant.
    pub fn add(&mut self, tenant: Arc<str>, thing: T) {
        self.len += 1;
        self.tenants.entry(tenant).or_default().push_back(thing);
    }

    /// Those that do not wait any longer go.
    pub fn retain(&mut self, mut waits: impl FnMut(&T) -> bool) {
        self.len = 0;
        self.tenants.retain(|_, waiting| {
            waiting.retain(&mut waits);
            self.len += waiting.len();
            !waiting.is_empty()
        });
    }

    /// The next one: the first of the tenant whose turn it is.
    pub fn pop(&mut self) -> Option<(Arc<str>, T)> {
        let after = self.last.as_ref().and_then(|last| {
            let range = (Bound::Excluded(last.clone()), Bound::Unbounded);
            self.tenants.range(range).next()
        });
        let tenant = after.or_else(|| self.tenants.iter().next()).map(|(tenant, _)| tenant.clone())?;
        let waiting = self.tenants.get_mut(&tenant)?;
        let thing = waiting.pop_front()?;
        self.len -= 1;
        if waiting.is_empty() {
            self.tenants.remove(&tenant);
        }
        self.last = Some(tenant.clone());
        Some((tenant, thing))
    }
}

/// So many places. A tenant alone has all of them; where there are none left, those that wait come in turn.
#[derive(Clone)]
pub struct Places(Arc<Mutex<Taken>>);

struct Taken {
    free: usize,
    waiting: Turns<oneshot::Sender<Place>>,
    /// When so many wait, those that do no longer are looked for.
    look_at: usize,
}

/// The least that wait before it is looked for those that do no longer.
const LOOK_AT: usize = 32;

/// A place, which is free again when this is dropped.
pub struct Place(Option<Places>);

impl Places {
    /// So many of them.
    pub fn new(free: usize) -> Places {
        Places(Arc::new(Mutex::new(Taken { free, waiting: Turns::default(), look_at: LOOK_AT })))
    }

    /// Waits for a place.
    pub async fn take(&self, tenant: &Arc<str>) -> Place {
        let given = {
            let mut taken = self.taken();
            if taken.free > 0 {
                taken.free -= 1;
                return Place(Some(self.clone()));
            }
            let (give, given) = oneshot::channel();
            // Whoever waits no longer is forgotten here too, and not only when it would be its turn. As this is done
            // again only when there are twice as many, it costs each of them little.
            if taken.waiting.len >= taken.look_at {
                taken.waiting.retain(|waiting| !waiting.is_closed());
                taken.look_at = LOOK_AT.max(2 * taken.waiting.len);
            }
            taken.waiting.add(tenant.clone(), give);
            given
        };
        // It is sent for as long as the places are there, which they are until this returns.
        given.await.unwrap_or(Place(None))
    }

    fn give_back(&self) {
        loop {
            let mut taken = self.taken();
            let Some((_, next)) = taken.waiting.pop() else {
                taken.free += 1;
                return;
            };
            drop(taken);
            match next.send(Place(Some(self.clone()))) {
                Ok(()) => return,
                // Nobody waits for it any more.
                Err(mut place) => place.0 = None,
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = self.0.take() {
            places.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn tenants_take_turns() {
        let mut turns = Turns::default();
        for (tenant, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("d", 7), ("a", 8)] {
            turns.add(tenant.into(), number);
        }
        turns.retain(|number| *number < 7);
        let mut order = Vec::new();
        while let Some((tenant, number)) = turns.pop() {
            order.push((tenant.to_string(), number));
            if order.len() == 2 {
                turns.add("b".into(), 6);
            }
        }
        let expected = [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)];
        assert_eq!(order, expected.map(|(tenant, number)| (tenant.to_owned(), number)));
    }

    #[test]
    fn places_are_given_in_turn() {
        let places = Places::new(2);
        let [a, b] = ["a", "b"].map(Arc::<str>::from);
        let first = places.take(&a).now_or_never().unwrap();
        let second = places.take(&a).now_or_never().unwrap();
        let mut waiting: Vec<_> = [&a, &a, &b].map(|tenant| Box::pin(places.take(tenant))).into_iter().collect();
        let mut poll = |at: usize| waiting[at].as_mut().now_or_never();
        assert!((0..3).all(|at| poll(at).is_none()));
        drop(first);
        assert!(poll(1).is_none() && poll(2).is_none());
        let third = poll(0).unwrap();
        drop(second);
        assert!(poll(1).is_none(), "it is the other's turn");
        let fourth = poll(2).unwrap();
        // Who goes away keeps no place, whether or not it was given one already.
        drop(third);
        waiting.clear();
        let fifth = places.take(&b).now_or_never().unwrap();
        assert!(places.take(&a).now_or_never().is_none(), "there are two");
        drop(fourth);
        let sixth = places.take(&a).now_or_never().unwrap();
        drop((fifth, sixth));
        assert_eq!(places.taken().free, 2);
    }
}
