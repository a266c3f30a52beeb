//! Whose turn it is.

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

/// Whoever comes while it waits comes after it.
#[test]
fn a_usual_turn_is_not_paid_for() {
    for (length, order) in [(USUAL_TURN, [1, 0, 2]), (USUAL_TURN * 2, [1, 2, 0])] {
        let world = World::new(1);
        let [first, second, late] = [(); 3].map(|()| world.attempt(None));
        [&first, &second].into_iter().for_each(|control| world.cores.ready(control));
        let attempts = [(&first, length), (&second, USUAL_TURN), (&late, USUAL_TURN)];
        assert_eq!(turns(&world, &attempts, 1), [0]);
        world.cores.ready(&late);
        assert_eq!(turns(&world, &attempts, 3), order, "after a turn of {length:?}");
    }
}

/// Thousands may have wanted one in the moment when it had its turn.
#[test]
fn a_long_turn_is_paid_for_so_many_others_only() {
    const MANY: usize = 1_000;
    let room = Arc::new(Room::new(MANY + 2, MANY + 2, Memory::new(0)));
    let world = World { room, cores: Arc::new(Cores::new(1)), tenant: "a".into() };
    let [long, short] = [(); 2].map(|()| world.attempt(None));
    let gone: Vec<_> = (0..MANY).map(|_| world.attempt(None)).collect();
    world.cores.ready(&long);
    gone.iter().chain([&short]).for_each(|control| world.cores.ready(control));
    assert_eq!(turns(&world, &[(&long, MS)], 1), [0]);
    gone.iter().for_each(|control| world.cores.leave(control, Duration::ZERO));
    let had = turns(&world, &[(&long, MS), (&short, MS)], MOST_PAID as usize + 2);
    assert!(had.contains(&0), "it waits for those that are gone");
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
        world.cores.look(Instant::now(), crate::clock::now());
        assert!(!ticker.is_finished());
        world.cores.ready(&attempt);
        assert_eq!(Turn::of(&attempt), if most.is_some() { Turn::Waits } else { Turn::Comes });
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
