//! What bounds a transaction, and that what is put off by that is done all the same.

use std::time::Duration;

use super::super::core::MAX_STARTS;
use super::super::{Command, Inbox, MAX_WAITING, Manager, NewItem};
use super::{MAX_PENDING, RETENTION_MS, Random, SLOTS, World, reply};
use crate::limits::Limits;
use crate::registry::Version;
use crate::schedules::{CatchUp, Overlap, Schedule, ScheduledTask, Spec};
use crate::store::{KEY_AGE_MS, Time};
use crate::task::{Digest, ErrorKind, RetryPolicy, Status, Task, TaskError, TaskId, Timestamp};

impl World {
    /// A task that is ready.
    pub(super) fn plain_task(&self) -> Task {
        let task = self.new_task(&mut Random(1));
        Task { due_at: None, ready_at: self.now, expires_at: None, unique_key: None, ..task }
    }

    /// A handle beside the manager's thread, which the test is itself.
    pub(super) fn manager(&self) -> (Manager, Inbox) {
        let (registry, readers) = (self.registry.clone(), self.readers.clone().unwrap());
        Manager::new(readers, registry, Default::default(), Default::default(), Limits::DEFAULT, Limits::CEILING)
    }

    /// Puts tasks into the store, past the manager.
    pub(super) fn store(&mut self, tasks: &[Task]) {
        let core = self.core.as_mut().unwrap();
        core.store.begin().unwrap();
        tasks.iter().for_each(|task| core.store.insert_task(task).unwrap());
        core.store.commit().unwrap();
        core.ready.reset();
    }

    /// A single transaction; how long the next can wait.
    fn one_step(&mut self, commands: Vec<Command>) -> Duration {
        let mut kept = Vec::new();
        let again = self.core.as_mut().unwrap().step(commands, self.now, &mut kept);
        assert!(kept.is_empty());
        again
    }
}

#[test]
fn tasks_that_cannot_begin_are_looked_at_a_part_at_a_time() {
    let mut world = World::new();
    let component = Digest([8; 32]);
    world.registry.put_version(component, Version::Failed("it is broken".into()));
    let tasks: Vec<Task> = (0..2 * MAX_STARTS + 10).map(|_| Task { component, ..world.plain_task() }).collect();
    world.store(&tasks);
    for looked_at in [MAX_STARTS, 2 * MAX_STARTS, tasks.len()] {
        let again = world.one_step(Vec::new());
        let all = world.all();
        assert!(all.iter().all(|task| task.status == Status::Pending), "they have attempts left");
        assert_eq!(all.iter().filter(|task| task.attempt == 1).count(), looked_at);
        assert_eq!(again.is_zero(), looked_at < tasks.len());
    }
}

#[test]
fn what_ended_long_ago_is_removed_faster_than_more_ends() {
    let mut world = World::new();
    world.max_pending = 1_000;
    world.crash();
    let ended_at = Timestamp(world.now.0.saturating_sub_unsigned(RETENTION_MS + 1));
    let error = Some(TaskError::new(ErrorKind::Permanent, "why"));
    let ended = |task| Task { status: Status::Failed, finished_at: Some(ended_at), error: error.clone(), ..task };
    let old: Vec<Task> = (0..1_000).map(|_| ended(world.plain_task())).collect();
    world.store(&old);
    let (fingerprint, key_at) = (Digest([0; 32]), Timestamp(world.now.0.saturating_sub_unsigned(KEY_AGE_MS)));
    let core = world.core.as_mut().unwrap();
    core.store.begin().unwrap();
    core.store.use_key("default", "key", -1, &fingerprint, old[0].id, key_at).unwrap();
    core.store.commit().unwrap();
    assert!(core.store.key_use("default", "key", -1, key_at).unwrap().is_some());

    let left = |world: &mut World| world.all().iter().filter(|task| task.finished_at == Some(ended_at)).count();
    world.now = world.now.plus_millis(1_000);
    let items = (0..200).map(|_| {
        let task = Task { expires_at: Some(world.now), ..world.plain_task() };
        NewItem { task, limits: Limits::DEFAULT, idempotency: None }
    });
    let (answer, mut answered) = reply();
    let many = Command::CreateMany { items: items.collect(), reply: answer };
    assert!(world.one_step(vec![many]).is_zero(), "there is more to be removed");
    assert!(answered.try_recv().unwrap().unwrap().iter().all(Result::is_ok));
    let behind = left(&mut world);
    assert!((1..=600).contains(&behind), "200 ended, and of 1000 there are {behind}");
    let core = world.core.as_mut().unwrap();
    assert!(core.store.key_use("default", "key", -1, key_at).unwrap().is_none(), "a key waits for tasks");
    // Where nothing else happens, a few at a time, until all are gone.
    assert!(world.one_step(Vec::new()).is_zero());
    assert!((behind - 50..behind).contains(&left(&mut world)));
    world.step(Vec::new());
    assert_eq!((left(&mut world), world.all().len()), (0, 200));
}

#[test]
fn times_that_come_leave_inputs_where_they_are() {
    let mut world = World::new();
    let task = world.plain_task();
    let due = Task { due_at: Some(world.now), ..task.clone() };
    world.store(std::slice::from_ref(&due));
    let now = world.now;
    let found = world.core.as_mut().unwrap().store.come(Time::Due, now, 1).unwrap();
    assert_eq!((found[0].id, &*found[0].input), (due.id, ""));
    world.crash();
    assert_eq!((world.stored(due.id).unwrap().input, world.running.len()), (task.input, 1));
}

#[test]
fn a_batch_is_bounded_by_the_tasks_in_it() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    for _ in 0..20 {
        let items = (0..256).map(|_| NewItem { task: world.plain_task(), limits: Limits::DEFAULT, idempotency: None });
        manager.send(Command::CreateMany { items: items.collect(), reply: reply().0 });
    }
    inbox.waiting.store(MAX_WAITING, std::sync::atomic::Ordering::Relaxed);
    let core = world.core.as_mut().unwrap();
    let mut sizes = Vec::new();
    while sizes.iter().sum::<usize>() < 20 {
        let mut batch = Vec::new();
        assert!(core.gather(&inbox, &mut batch, Duration::from_secs(10)));
        sizes.push(batch.len());
    }
    assert_eq!(sizes, [8, 8, 4]);
    assert_eq!(inbox.waiting.load(std::sync::atomic::Ordering::Relaxed), MAX_WAITING - 20);
}

