//! The ledger says what ended, and what it used.

use std::collections::{HashMap, HashSet};

use super::{MAX_ATTEMPTS, Random, USAGE_DAYS, World};
use crate::ledger::{CameTo, Day, Sums};
use crate::task::{ErrorKind, Outcome, Status, Task, TaskId, Timestamp, Usage};

/// What the ledger must say.
#[derive(Default)]
pub(super) struct Tally {
    all: HashMap<CameTo, Sums>,
    /// The tasks that had ended when it was looked last.
    ended: HashSet<TaskId>,
}

impl Tally {
    fn of(&mut self, came_to: CameTo) -> &mut Sums {
        self.all.entry(came_to).or_default()
    }

    fn receipt(&mut self, came_to: CameTo, random: &mut Random) -> Usage {
        let (fuel, micros, bytes) = (random.below(1_000), random.below(1_000_000), random.below(100));
        let millis = |micros: u64| micros as f64 / 1000.0;
        let usage = Usage {
            fuel,
            cpu_ms: millis(micros),
            wall_ms: millis(2 * micros),
            queue_ms: millis(3 * micros),
            peak_memory_bytes: 1 << 20,
            host_calls: 1,
            io_bytes: bytes,
            log_bytes: 2 * bytes,
        };
        let sums = self.of(came_to);
        sums.attempts += 1;
        sums.fuel += fuel;
        sums.cpu_us += micros;
        sums.wall_us += 2 * micros;
        sums.queue_us += 3 * micros;
        // A MiB is 1024 KiB, and this many milliseconds of it.
        sums.memory_kib_ms += 1024 * 2 * micros / 1000;
        sums.host_calls += 1;
        sums.io_bytes += bytes;
        sums.log_bytes += 2 * bytes;
        usage
    }

    /// An attempt ends so: its receipt.
    pub(super) fn ended(&mut self, outcome: &Outcome, random: &mut Random) -> Usage {
        self.receipt(came_to(outcome), random)
    }

    /// The same where its task is removed at once, so that nobody sees whether it ended with it.
    pub(super) fn ended_and_removed(
        &mut self,
        outcome: &Outcome,
        task: &Task,
        now: Timestamp,
        random: &mut Random,
    ) -> Usage {
        if task.failures + 1 >= MAX_ATTEMPTS {
            self.of(came_to(outcome)).tasks += 1;
        } else if task.expires_at.is_some_and(|expires| expires <= now) {
            // It would wait for another attempt, and has expired.
            self.of(CameTo::Failed(ErrorKind::Expired)).tasks += 1;
        }
        self.ended(outcome, random)
    }

    /// An attempt is given back: what it used.
    pub(super) fn given_back(&mut self, random: &mut Random) -> Usage {
        self.receipt(CameTo::GivenBack, random)
    }

    /// The server goes down under so many attempts.
    pub(super) fn interrupted(&mut self, attempts: usize) {
        if attempts > 0 {
            self.of(CameTo::Failed(ErrorKind::Interrupted)).attempts += attempts as u64;
        }
    }
}

fn came_to(outcome: &Outcome) -> CameTo {
    match outcome {
        Outcome::Completed(_) => CameTo::Completed,
        Outcome::Failed(error) => CameTo::Failed(error.kind),
    }
}

impl World {
    pub(super) fn check_ledger(&mut self) {
        let tasks = self.all();
        let ended: Vec<&Task> = tasks.iter().filter(|task| task.status.is_ended()).collect();
        for task in ended.iter().filter(|task| !self.tally.ended.contains(&task.id)) {
            let came_to = match task.status {
                Status::Completed => CameTo::Completed,
                _ => CameTo::Failed(task.error.as_ref().unwrap().kind),
            };
            self.tally.all.entry(came_to).or_default().tasks += 1;
        }
        self.tally.ended = ended.iter().map(|task| task.id).collect();
        let ledger = self.core.as_mut().unwrap().store.usage_of("default").unwrap();
        assert_eq!(ledger, self.tally.all, "the ledger");
    }
}

#[test]
fn what_was_used_is_forgotten_after_its_days() {
    let mut world = World::new();
    let begin = world.now;
    let charge = |world: &mut World, day: u64, tenant: &str| {
        let at = Timestamp(begin.0).plus_millis(day * 24 * 60 * 60 * 1000);
        let store = &mut world.core.as_mut().unwrap().store;
        store.begin().unwrap();
        store.charge(&tenant.into(), at, CameTo::Completed, &Sums { fuel: 1 << day, ..Sums::default() });
        store.commit().unwrap();
        at
    };
    let fuel = |world: &mut World, tenant: &str| {
        let usage = world.core.as_mut().unwrap().store.usage_of(tenant).unwrap();
        usage.values().map(|sums| sums.fuel).sum::<u64>()
    };
    for day in 0..5 {
        world.now = charge(&mut world, day, "a");
        charge(&mut world, day, "b");
        world.step(Vec::new());
        let kept = (day.saturating_sub(u64::from(USAGE_DAYS))..=day).map(|day| 1 << day).sum::<u64>();
        assert_eq!((fuel(&mut world, "a"), fuel(&mut world, "b")), (kept, kept), "on day {day}");
    }
    assert_eq!(Day::of(world.now), Day(Day::of(begin).0 + 4));
}
