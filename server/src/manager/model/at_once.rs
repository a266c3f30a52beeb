//! How many tasks of a type, and of a key, run at once.

use super::{Random, World, put_type};
use crate::schedule::Concurrency;
use crate::task::{AttemptEnd, Event, Hold, Status, Task};

impl World {
    pub(super) fn most_at_once(&self) -> Concurrency {
        self.registry.concurrency("default", "t")
    }

    /// Somebody says that one of the type runs at once, or as many as there is room for.
    /// The server may go down before it has looked at what that means.
    pub(super) fn bound_at_once(&mut self, random: &mut Random) {
        let running = self.most_at_once().running.is_none().then_some(1);
        put_type(&self.registry, self.is_paused(), Concurrency { running, per_key: None });
        if random.below(3) == 0 {
            return self.crash();
        }
        self.core.as_mut().unwrap().at_once.look_again(&"default".into(), "t");
        self.step(Vec::new());
    }

    /// No task waits for others where there are none, and no key has two that run.
    pub(super) fn check_at_once(&self, all: &[Task]) {
        // What will make room for those that are held back: it runs, or is to run before them.
        let is_before = |task: &&Task, why: Hold| match task.status {
            Status::Running => true,
            Status::Pending => task.due_at.is_none() && task.held != Some(why) && task.held != Some(Hold::Key),
            _ => false,
        };
        for key in ["0", "1"] {
            let of_key: Vec<_> = all.iter().filter(|task| task.concurrency_key.as_deref() == Some(key)).collect();
            assert!(of_key.iter().filter(|task| task.status == Status::Running).count() <= 1, "two of {key} run");
            let waits = of_key.iter().any(|task| task.held == Some(Hold::Key));
            assert!(
                !waits || of_key.iter().any(|task| is_before(task, Hold::Key)),
                "{key} waits for ever: {of_key:#?}"
            );
        }
        let waits = all.iter().any(|task| task.held == Some(Hold::Type));
        assert!(!waits || all.iter().any(|task| is_before(&task, Hold::Type)), "all wait for ever: {all:#?}");
        let is_bounded = self.most_at_once().running.is_some();
        assert!(!waits || is_bounded, "they wait for a bound that is none: {all:#?}");
    }
}

/// A lane in which there is room now is looked at again where the transaction fails that looked at it.
#[test]
fn room_is_not_forgotten_with_a_transaction_that_fails() {
    let mut world = World::new();
    let of_key = |world: &World| Task { concurrency_key: Some("k".into()), ..world.plain_task() };
    let tasks = [of_key(&world), of_key(&world)];
    world.store(&tasks);
    world.step(Vec::new());
    let (first, second) = (tasks[0].id, tasks[1].id);
    assert_eq!(world.stored(second).unwrap().held, Some(Hold::Key));
    // As after a transaction that had as much to look at as it may: what is left is for the next, which fails.
    world.running.remove(&first).unwrap().control.leave();
    let end = Event::End { attempt: 1, end: AttemptEnd::host_failure("why"), random: 0 };
    let (core, now) = (world.core.as_mut().unwrap(), world.now);
    core.store.begin().unwrap();
    let mut task = core.store.task(first).unwrap().unwrap();
    task.retry.max_attempts = 1;
    core.change(&mut task, end, now).unwrap().unwrap();
    core.store.commit().unwrap();
    core.at_once.committed();
    core.running.remove(&first);
    core.store.hide("event");
    let mut kept = Vec::new();
    core.step(Vec::new(), now, &mut kept);
    core.store.show("event");
    assert_eq!(core.store.task(second).unwrap().unwrap().held, Some(Hold::Key));
    world.step(Vec::new());
    assert_eq!(world.stored(second).unwrap().status, Status::Running);
}
