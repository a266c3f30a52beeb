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

    /// An attempt had a turn of that length: its next is due when each other that wants one now could have had as much.
    /// So a host call that takes long, and cannot be interrupted, costs who made it and not who comes after.
    fn pays(&mut self, control: &Control, cpu: Duration) {
        let Some(of) = self.tenants.get(control.tenant) else { return };
        let others = of.active.saturating_sub(1).min(MOST_PAID);
        control.due.store(of.used.saturating_add(nanos(cpu).saturating_mul(others)), Ordering::Relaxed);
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
mod tests {
    use super::*;
    use crate::room::{Claim, Memory, Room};

    /// Attempts of one tenant.
    struct World {
        room: Arc<Room>,
        cores: Arc<Cores>,
        tenant: Arc<str>,
    }

    impl World {
        fn new(cores: usize) -> World {
            let room = Arc::new(Room::new(8, 8, Memory::new(0)));
            World { room, cores: Arc::new(Cores::new(cores)), tenant: "a".into() }
        }

        fn attempt(&self, cpu_ms_per_hour: Option<u64>) -> Arc<Control> {
            let place = self.room.take(&self.tenant, Claim { part: 0, no_more: false, kept: 0 }).ok().unwrap();
            Control::new(place, &self.cores, &self.tenant, 100, cpu_ms_per_hour, true)
        }

        fn used(&self) -> Option<u64> {
            self.cores.used_in_hour("a", clock::now())
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_tenant_that_has_used_its_hour_gets_no_turns_until_it_is_over() {
        let world = World::new(2);
        let (first, second) = (world.attempt(Some(10)), world.attempt(Some(10)));
        assert!(world.cores.begin(&first) && world.cores.begin(&second));
        // What has its turn already goes on to the end of it.
        world.cores.end(&first, 9 * MS);
        assert_eq!((world.used(), world.cores.used_up_until("a", clock::now())), (Some(9), None));
        assert!(world.cores.begin(&first));
        world.cores.end(&first, 4 * MS);
        world.cores.end(&second, 4 * MS);
        assert_eq!(world.used(), Some(17));
        let over = world.cores.used_up_until("a", clock::now()).unwrap();
        assert!(!world.cores.begin(&first), "it waits");
        assert_eq!(world.room.working(), 1, "and is not counted as one that works");
        // Neither is one that something else wakes.
        first.unpark();
        world.cores.ready(&first);
        world.cores.ready(&second);
        assert_eq!(world.room.working(), 0);
        // Others have their turns.
        let others = World { tenant: "b".into(), room: world.room.clone(), cores: world.cores.clone() };
        let other = others.attempt(None);
        assert!(world.cores.begin(&other));
        world.cores.end(&other, MS);
        other.park();
        assert_eq!(world.cores.used_in_hour("b", clock::now()), None);

        let now = Instant::now() + 60 * MS;
        assert!(world.cores.held(first.tenant, now) >= 60 * MS);
        world.cores.look(now, Timestamp(over.0 - 1));
        assert!(!world.cores.begin(&first));
        world.cores.look(now, over);
        assert_eq!(world.room.working(), 2);
        assert!(world.cores.begin(&first) && world.cores.begin(&second), "each has its turn");
        let held = world.cores.held(first.tenant, now);
        assert_eq!(world.cores.held(first.tenant, now + 60 * MS), held);
    }

    #[test]
    fn another_bound_holds_at_once() {
        let world = World::new(1);
        let attempt = world.attempt(None);
        assert!(world.cores.begin(&attempt));
        world.cores.end(&attempt, 50 * MS);
        assert_eq!(world.used(), None);
        let set = |most| world.cores.set(&world.tenant, 100, most);
        // It is counted from here on.
        set(Some(10));
        assert!(world.cores.begin(&attempt));
        world.cores.end(&attempt, 10 * MS);
        assert!(!world.cores.begin(&attempt));
        set(Some(20));
        assert_eq!((Turn::of(&attempt), world.used()), (Turn::Comes, Some(10)));
        assert!(world.cores.begin(&attempt));
        set(Some(5));
        world.cores.end(&attempt, MS);
        assert!(!world.cores.begin(&attempt));
        set(None);
        assert!(world.cores.begin(&attempt));
    }

    /// Plays turns of the length that each attempt has, and says whose they were, by number.
    fn turns(world: &World, attempts: &[(&Arc<Control>, Duration)], count: usize) -> Vec<usize> {
        let turn = |_| {
            let (at, (control, length)) =
                attempts.iter().enumerate().find(|(_, (control, _))| Turn::of(control) == Turn::Comes).unwrap();
            assert!(world.cores.begin(control));
            std::task::Waker::from((*control).clone()).wake();
            world.cores.end(control, *length);
            at
        };
        (0..count).map(turn).collect()
    }

    #[test]
    fn attempts_of_equal_turns_have_them_one_after_the_other() {
        let world = World::new(1);
        let [a, b, c] = [(); 3].map(|()| world.attempt(None));
        [&a, &b, &c].into_iter().for_each(|control| world.cores.ready(control));
        assert_eq!(turns(&world, &[(&a, MS), (&b, MS), (&c, MS)], 9), [0, 1, 2, 0, 1, 2, 0, 1, 2]);
    }

    /// And nobody waits for ever: neither who had a long turn nor who has short ones.
    #[test]
    fn who_had_a_long_turn_comes_again_when_the_others_had_as_much() {
        let world = World::new(1);
        let [long, short, late] = [(); 3].map(|()| world.attempt(None));
        [&long, &short].into_iter().for_each(|control| world.cores.ready(control));
        let longs = |had: Vec<usize>| had.into_iter().filter(|had| *had == 0).count();
        let of_longs = longs(turns(&world, &[(&long, 20 * MS), (&short, MS)], 421));
        assert!((20..=22).contains(&of_longs), "{of_longs} of 21 ms, and 20 of the other's");
        // Who comes goes before who is not due yet.
        while turns(&world, &[(&long, 20 * MS), (&short, MS)], 1) != [0] {}
        world.cores.ready(&late);
        let had = turns(&world, &[(&long, 20 * MS), (&short, MS), (&late, MS)], 2);
        assert!(had.contains(&2), "{had:?}");
        // Neither does a moment in which it wants no turn make it forget.
        let world = World::new(1);
        let [long, short] = [(); 2].map(|()| world.attempt(None));
        [&long, &short].into_iter().for_each(|control| world.cores.ready(control));
        assert!(world.cores.begin(&long));
        world.cores.end(&long, 20 * MS);
        world.cores.ready(&long);
        let had = turns(&world, &[(&long, MS), (&short, MS)], 25);
        let before = had.iter().position(|had| *had == 0).unwrap();
        assert!((19..=21).contains(&before), "{had:?}");
    }

    /// Also one that is held, as its tenant's next hour has to be seen.
    #[test]
    fn the_ticker_rests_while_nobody_wants_a_turn() {
        let long = Duration::from_secs(60);
        for most in [None, Some(0)] {
            let world = World::new(1);
            assert!(world.cores.are_idle());
            let ticker = std::thread::spawn({
                let cores = world.cores.clone();
                move || cores.park_ticker(long)
            });
            while !world.cores.is_parked.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let attempt = world.attempt(most);
            assert!(!ticker.is_finished());
            world.cores.ready(&attempt);
            ticker.join().unwrap();
            assert!(!world.cores.are_idle());
            let started = Instant::now();
            world.cores.park_ticker(long);
            assert!(started.elapsed() < long, "somebody wants one");
            world.cores.leave(&attempt, Duration::ZERO);
            assert!(world.cores.are_idle());
        }
    }

    #[test]
    fn what_ends_while_it_is_held_leaves_nothing() {
        let world = World::new(1);
        let attempt = world.attempt(Some(1));
        assert!(world.cores.begin(&attempt));
        world.cores.end(&attempt, MS);
        assert!(!world.cores.begin(&attempt));
        world.cores.leave(&attempt, Duration::ZERO);
        attempt.leave();
        assert_eq!((world.room.started(), world.room.working()), (0, 0));
        assert!(world.cores.state().tenants[0].queue.is_empty());
        world.cores.set(&world.tenant, 100, None);
        let next = world.attempt(None);
        assert!(world.cores.begin(&next), "the processor is free");
    }
}
