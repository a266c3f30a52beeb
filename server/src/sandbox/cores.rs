//! The processors that guests have, and whose turn on them it is.
//!
//! Every attempt that could run asks here for a turn, and only one that has a turn is polled. So the runtime under it
//! never holds more attempts that could run than it has threads, and their order is decided here: among tenants by the
//! CPU time that they used ([`Shares`]), within a tenant by what each turn took: who had a long one comes again when the
//! others have had as much. A tenant that has used what it may have in an hour gets no more turns in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::meter::{Control, Stop};
use crate::clock;
use crate::quotas::Hour;
use crate::share::Shares;
use crate::task::Timestamp;

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

/// A turn up to this length is not paid for: a guest that computes yields before, and most attempts end. Where those went
/// behind all that come, more would be under way at once, which costs a twentieth of what is done.
const USUAL_TURN: Duration = Duration::from_micros(250);

/// For so many others, at most, a turn is paid for: thousands may want one for a moment, and be gone in the next.
const MOST_PAID: u64 = 64;

/// The processors.
pub struct Cores {
    state: Mutex<State>,
    /// The thread that looks at them now and then, while it is parked.
    ticker: Mutex<Option<Thread>>,
    /// Whether there is one.
    is_parked: AtomicBool,
}

struct State {
    all: usize,
    free: usize,
    shares: Shares,
    numbers: HashMap<Arc<str>, usize>,
    /// By their numbers.
    tenants: Vec<OfTenant>,
    /// Attempts that get no turn and may not wait for one: to be stopped when the lock is free.
    to_stop: Vec<Arc<Control>>,
}

/// What is known of a tenant.
struct OfTenant {
    /// Its attempts that wait for a turn, by when they are due and then as they came.
    queue: BTreeMap<(u64, u64), Arc<Control>>,
    /// How many came to wait so far.
    came: u64,
    /// How many of its attempts want the processor, or have it.
    active: u64,
    /// CPU time that it used so far, in nanoseconds.
    used: u64,
    /// CPU time that it may have in an hour, in nanoseconds; `None`: as much as there is, and it is not counted.
    most: Option<u64>,
    /// What it had.
    hour: Hour,
    /// Since when it gets no turns, as it has had that much.
    held_since: Option<Instant>,
    /// How long that was before, all together.
    held_for: Duration,
}

impl OfTenant {
    fn is_used_up(&self, now: Timestamp) -> bool {
        self.most.is_some_and(|most| self.hour.used(now) >= most)
    }

    /// How long it got no turns, all together.
    fn held(&self, now: Instant) -> Duration {
        self.held_for + self.held_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

impl Cores {
    /// As many as there are threads for guests.
    pub fn new(cores: usize) -> Cores {
        let (shares, numbers, tenants) = (Shares::default(), HashMap::new(), Vec::new());
        let state = State { all: cores, free: cores, shares, numbers, tenants, to_stop: Vec::new() };
        Cores { state: Mutex::new(state), ticker: Mutex::new(None), is_parked: AtomicBool::new(false) }
    }

    /// Whether no attempt has a turn or wants one.
    pub(super) fn are_idle(&self) -> bool {
        let state = self.state();
        state.free == state.all && state.tenants.iter().all(|of| of.queue.is_empty())
    }

    /// Parks the thread that looks at them, until an attempt wants a turn, but no longer than that.
    pub(super) fn park_ticker(&self, longest: Duration) {
        *self.ticker() = Some(std::thread::current());
        self.is_parked.store(true, Ordering::SeqCst);
        // Looked at once more: who wants a turn from here on sees that it is parked.
        if self.are_idle() {
            std::thread::park_timeout(longest);
        }
        self.is_parked.store(false, Ordering::SeqCst);
    }

    fn unpark_ticker(&self) {
        if self.is_parked.load(Ordering::SeqCst)
            && let Some(ticker) = self.ticker().take()
        {
            ticker.unpark();
        }
    }

    fn ticker(&self) -> MutexGuard<'_, Option<Thread>> {
        self.ticker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a tenant. From now on it has that weight, and that many milliseconds of CPU time in an hour.
    pub fn set(&self, tenant: &Arc<str>, weight: u32, cpu_ms_per_hour: Option<u64>) -> usize {
        let most = cpu_ms_per_hour.map(|ms| ms.saturating_mul(1_000_000));
        let mut state = self.state();
        let Some(number) = state.numbers.get(tenant).copied() else {
            let number = state.shares.join(weight);
            state.numbers.insert(tenant.clone(), number);
            state.tenants.push(OfTenant {
                queue: BTreeMap::new(),
                came: 0,
                active: 0,
                used: 0,
                most,
                hour: Hour::new(Timestamp(0)),
                held_since: None,
                held_for: Duration::ZERO,
            });
            return number;
        };
        state.shares.set_weight(number, weight);
        let Some(of) = state.tenants.get_mut(number) else { return number };
        let is_changed = of.most != most;
        if of.most.is_none() {
            of.hour = Hour::new(Timestamp(0));
        }
        of.most = most;
        // An attempt of it begins: its next hour may have, too.
        if is_changed || of.held_since.is_some() {
            state.hold_or_release(number, clock::now());
            self.go_on(state);
        }
        number
    }

    /// Milliseconds of CPU time that a tenant had in the hour of `now`, where that is bounded.
    pub fn used_in_hour(&self, tenant: &str, now: Timestamp) -> Option<u64> {
        let state = self.state();
        let of = state.numbers.get(tenant).and_then(|number| state.tenants.get(*number))?;
        of.most.map(|_| of.hour.used(now) / 1_000_000)
    }

    /// Until when a tenant has used up its hour, if it has.
    pub fn used_up_until(&self, tenant: &str, now: Timestamp) -> Option<Timestamp> {
        let state = self.state();
        let of = state.numbers.get(tenant).and_then(|number| state.tenants.get(*number))?;
        of.is_used_up(now).then(|| of.hour.ends())
    }

    /// How long the attempts of a tenant got no turns as it had used up its hour, all together.
    pub(super) fn held(&self, number: usize, now: Instant) -> Duration {
        self.state().held(number, now)
    }

    /// What a tenant has used, for its weight; 0: nothing yet.
    pub fn used(&self, tenant: &str) -> u128 {
        let state = self.state();
        state.numbers.get(tenant).map_or(0, |number| state.shares.used(*number))
    }

    /// An attempt was woken: it gets a turn, now or later, where it does not have one already.
    pub(super) fn ready(&self, control: &Arc<Control>) {
        let mut state = self.state();
        match Turn::of(control) {
            Turn::None => {}
            Turn::Waits if state.is_held(control.tenant) => return control.park(),
            Turn::Waits | Turn::Comes | Turn::Runs | Turn::Over => return,
        }
        state.comes(control);
        if state.free > 0 && !state.is_held(control.tenant) {
            // Whoever waited would have had it.
            state.free -= 1;
            Turn::Comes.set(control);
            drop(state);
            control.run();
        } else {
            state.push(control);
            self.go_on(state);
        }
        self.unpark_ticker();
    }

    /// An attempt is about to be polled. False: it is not its turn, and it will be woken when it is.
    pub(super) fn begin(&self, control: &Arc<Control>) -> bool {
        let mut state = self.state();
        match Turn::of(control) {
            Turn::Comes => {
                Turn::Runs.set(control);
                return true;
            }
            Turn::Waits | Turn::Runs | Turn::Over => return false,
            Turn::None => state.comes(control),
        }
        let is_its_turn = state.free > 0 && !state.is_held(control.tenant);
        if is_its_turn {
            state.free -= 1;
            Turn::Runs.set(control);
        } else {
            state.push(control);
        }
        self.go_on(state);
        self.unpark_ticker();
        is_its_turn
    }

    /// A poll is over that took that much CPU time, and the attempt is not. One that was woken meanwhile waits for its
    /// next turn.
    pub(super) fn end(&self, control: &Arc<Control>, cpu: Duration) {
        let mut state = self.state();
        state.charge(control.tenant, cpu);
        state.pays(control, cpu);
        state.free += 1;
        // Looked at under the lock: who wakes it from here on finds that it wants a turn, or asks for one itself.
        if control.was_woken() {
            state.push(control);
        } else {
            Turn::None.set(control);
            state.goes(control);
        }
        self.go_on(state);
    }

    /// An attempt wants no turn any more; its last one took that much CPU time.
    pub(super) fn leave(&self, control: &Arc<Control>, cpu: Duration) {
        let mut state = self.state();
        state.charge(control.tenant, cpu);
        match Turn::of(control) {
            Turn::Over => return,
            Turn::None => {}
            Turn::Waits => {
                if let Some(of) = state.tenants.get_mut(control.tenant) {
                    of.queue.remove(&(control.due.load(Ordering::Relaxed), control.came.load(Ordering::Relaxed)));
                }
                state.tell_shares(control.tenant);
                state.goes(control);
            }
            Turn::Comes | Turn::Runs => {
                state.free += 1;
                state.goes(control);
            }
        }
        Turn::Over.set(control);
        self.go_on(state);
    }

    /// Gives the free processors to those that wait, and stops who may not wait.
    fn go_on<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        // Waking takes other locks.
        let to_stop = std::mem::take(&mut state.to_stop);
        while state.free > 0 {
            let Some(next) = state.pop() else { break };
            state.free -= 1;
            Turn::Comes.set(&next);
            drop(state);
            next.run();
            state = self.state();
        }
        drop(state);
        to_stop.iter().for_each(|control| control.stop(Stop::GiveBack));
    }

    /// Wakes those that are over their time while they wait for a turn, as they end without one, and gives turns again
    /// to the tenants whose hour is over.
    pub(super) fn look(&self, now: Instant, clock: Timestamp) {
        let mut state = self.state();
        for number in 0..state.tenants.len() {
            state.hold_or_release(number, clock);
        }
        let waiting = state.tenants.iter().flat_map(|of| of.queue.values());
        let overdue: Vec<_> =
            waiting.filter(|control| control.is_overdue(now, || state.held(control.tenant, now))).cloned().collect();
        self.go_on(state);
        overdue.iter().for_each(|control| control.run());
    }
}

impl State {
    fn comes(&mut self, control: &Control) {
        self.shares.comes(control.tenant);
        if let Some(of) = self.tenants.get_mut(control.tenant) {
            of.active += 1;
        }
    }

    fn goes(&mut self, control: &Control) {
        self.shares.goes(control.tenant);
        if let Some(of) = self.tenants.get_mut(control.tenant) {
            of.active = of.active.saturating_sub(1);
        }
    }

    /// An attempt had a turn of that length: if that is a long one, its next is due when each other that wants one now
    /// could have had as much. So a host call that takes long, and cannot be interrupted, costs who made it and not who comes after.
    fn pays(&mut self, control: &Control, cpu: Duration) {
        let Some(of) = self.tenants.get(control.tenant) else { return };
        let others = of.active.saturating_sub(1).min(MOST_PAID);
        control.due.store(
            of.used.saturating_add(nanos(cpu.saturating_sub(USUAL_TURN)).saturating_mul(others)),
            Ordering::Relaxed,
        );
    }

    fn push(&mut self, control: &Arc<Control>) {
        Turn::Waits.set(control);
        if let Some(of) = self.tenants.get_mut(control.tenant) {
            let due = control.due.load(Ordering::Relaxed).max(of.used);
            of.came += 1;
            control.due.store(due, Ordering::Relaxed);
            control.came.store(of.came, Ordering::Relaxed);
            of.queue.insert((due, of.came), control.clone());
            if of.held_since.is_some() {
                control.park();
                if !control.may_be_held {
                    self.to_stop.push(control.clone());
                }
            }
        }
        self.tell_shares(control.tenant);
    }

    fn pop(&mut self) -> Option<Arc<Control>> {
        let number = self.shares.whose_turn()?;
        let first = self.tenants.get_mut(number)?.queue.pop_first();
        self.tell_shares(number);
        first.map(|(_, control)| control)
    }

    /// Whether a tenant wants turns and may have them.
    fn tell_shares(&mut self, number: usize) {
        if let Some(of) = self.tenants.get(number) {
            self.shares.waits(number, !of.queue.is_empty() && of.held_since.is_none());
        }
    }

    fn charge(&mut self, number: usize, cpu: Duration) {
        self.shares.charge(number, cpu);
        let Some(of) = self.tenants.get_mut(number) else { return };
        of.used = of.used.saturating_add(nanos(cpu));
        if of.most.is_some() {
            let now = clock::now();
            of.hour.add(nanos(cpu), now);
            self.hold_or_release(number, now);
        }
    }

    fn is_held(&self, number: usize) -> bool {
        self.tenants.get(number).is_some_and(|of| of.held_since.is_some())
    }

    fn held(&self, number: usize, now: Instant) -> Duration {
        self.tenants.get(number).map_or(Duration::ZERO, |of| of.held(now))
    }

    /// A tenant gets no more turns where its hour is used up, and gets them again where it is not. Meanwhile those of
    /// its attempts that wait for one are in nobody's way.
    fn hold_or_release(&mut self, number: usize, now: Timestamp) {
        let Some(of) = self.tenants.get_mut(number) else { return };
        match (of.is_used_up(now), of.held_since) {
            (true, None) => {
                of.held_since = Some(Instant::now());
                of.queue.values().for_each(|control| control.park());
                self.to_stop.extend(of.queue.values().filter(|control| !control.may_be_held).cloned());
            }
            (false, Some(since)) => {
                of.held_since = None;
                of.held_for += since.elapsed();
                of.queue.values().for_each(|control| control.unpark());
                self.shares.comes_back(number);
            }
            _ => return,
        }
        self.tell_shares(number);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
