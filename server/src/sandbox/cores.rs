//! The processors that guests have, and whose turn on them it is.
//!
//! Every attempt that could run asks here for a turn, and only one that has a turn is polled. So the runtime under it
//! never holds more attempts that could run than it has threads, and their order is decided here: among tenants by the
//! CPU time that they used ([`Shares`]), within a tenant one after the other.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::meter::Control;
use crate::share::Shares;

/// Where an attempt stands here. It is changed under the lock of [`Cores`] alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Turn {
    /// It wants none: it waits for something else, or was not polled yet.
    None = 0,
    /// It waits for one.
    Waits = 1,
    /// It has one, and is about to be polled.
    Comes = 2,
    /// It is being polled.
    Runs = 3,
    /// It wants none any more.
    Over = 4,
}

impl Turn {
    fn of(control: &Control) -> Turn {
        match control.turn.load(Ordering::Relaxed) {
            0 => Turn::None,
            1 => Turn::Waits,
            2 => Turn::Comes,
            3 => Turn::Runs,
            _ => Turn::Over,
        }
    }

    fn set(self, control: &Control) {
        control.turn.store(self as u8, Ordering::Relaxed);
    }
}

/// The processors.
pub struct Cores {
    state: Mutex<State>,
}

struct State {
    free: usize,
    shares: Shares,
    numbers: HashMap<Arc<str>, usize>,
    /// Those that wait for a turn, by the number of their tenant.
    queues: Vec<VecDeque<Arc<Control>>>,
}

impl Cores {
    /// As many as there are threads for guests.
    pub fn new(cores: usize) -> Cores {
        let (shares, numbers, queues) = (Shares::default(), HashMap::new(), Vec::new());
        Cores { state: Mutex::new(State { free: cores, shares, numbers, queues }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a tenant, which has that weight from now on.
    pub(super) fn number(&self, tenant: &Arc<str>, weight: u32) -> usize {
        let mut state = self.state();
        if let Some(number) = state.numbers.get(tenant).copied() {
            state.shares.set_weight(number, weight);
            return number;
        }
        let number = state.shares.join(weight);
        state.numbers.insert(tenant.clone(), number);
        state.queues.push(VecDeque::new());
        number
    }

    /// What a tenant has used, for its weight; 0: nothing yet.
    pub fn used(&self, tenant: &str) -> u128 {
        let state = self.state();
        state.numbers.get(tenant).map_or(0, |number| state.shares.used(*number))
    }

    /// An attempt was woken: it gets a turn, now or later, where it does not have one already.
    pub(super) fn ready(&self, control: &Arc<Control>) {
        let mut state = self.state();
        if Turn::of(control) != Turn::None {
            return;
        }
        state.comes(control);
        if state.free > 0 {
            // Whoever waited would have had it.
            state.free -= 1;
            Turn::Comes.set(control);
            drop(state);
            control.run();
        } else {
            state.push(control);
        }
    }

    /// An attempt is about to be polled. False: it is not its turn, and it will be woken when it is.
    pub(super) fn begin(&self, control: &Arc<Control>) -> bool {
        let mut state = self.state();
        match Turn::of(control) {
            Turn::Comes => {}
            Turn::None => {
                state.comes(control);
                if state.free == 0 {
                    state.push(control);
                    return false;
                }
                state.free -= 1;
            }
            Turn::Waits | Turn::Runs | Turn::Over => return false,
        }
        Turn::Runs.set(control);
        true
    }

    /// A poll is over that took that much CPU time, and the attempt is not. One that was woken meanwhile waits for its
    /// next turn.
    pub(super) fn end(&self, control: &Arc<Control>, cpu: Duration) {
        let mut state = self.state();
        state.shares.charge(control.tenant, cpu);
        state.free += 1;
        // Looked at under the lock: who wakes it from here on finds that it wants a turn, or asks for one itself.
        if control.was_woken() {
            state.push(control);
        } else {
            Turn::None.set(control);
            state.shares.goes(control.tenant);
        }
        self.go_on(state);
    }

    /// An attempt wants no turn any more; its last one took that much CPU time.
    pub(super) fn leave(&self, control: &Arc<Control>, cpu: Duration) {
        let mut state = self.state();
        state.shares.charge(control.tenant, cpu);
        match Turn::of(control) {
            Turn::Over => return,
            Turn::None => {}
            Turn::Waits => {
                let queue = state.queues.get_mut(control.tenant);
                let left = queue.map_or(0, |queue| {
                    queue.retain(|waiting| !Arc::ptr_eq(waiting, control));
                    queue.len()
                });
                state.shares.waits(control.tenant, left > 0);
                state.shares.goes(control.tenant);
            }
            Turn::Comes | Turn::Runs => {
                state.free += 1;
                state.shares.goes(control.tenant);
            }
        }
        Turn::Over.set(control);
        self.go_on(state);
    }

    /// Gives the free processors to those that wait.
    fn go_on<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while state.free > 0 {
            let Some(next) = state.pop() else { return };
            state.free -= 1;
            Turn::Comes.set(&next);
            // Waking takes other locks.
            drop(state);
            next.run();
            state = self.state();
        }
    }

    /// Wakes those that are over their time while they wait for a turn: they end without one.
    pub(super) fn wake_overdue(&self, now: Instant) {
        let state = self.state();
        let waiting = state.queues.iter().flatten();
        let overdue: Vec<_> = waiting.filter(|control| control.is_overdue(now)).cloned().collect();
        drop(state);
        overdue.iter().for_each(|control| control.run());
    }
}

impl State {
    fn comes(&mut self, control: &Control) {
        self.shares.comes(control.tenant);
    }

    fn push(&mut self, control: &Arc<Control>) {
        Turn::Waits.set(control);
        if let Some(queue) = self.queues.get_mut(control.tenant) {
            queue.push_back(control.clone());
        }
        self.shares.waits(control.tenant, true);
    }

    fn pop(&mut self) -> Option<Arc<Control>> {
        let number = self.shares.whose_turn()?;
        let queue = self.queues.get_mut(number)?;
        let first = queue.pop_front();
        if queue.is_empty() {
            self.shares.waits(number, false);
        }
        first
    }
}
