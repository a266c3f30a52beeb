//! What bounds a transaction, and that what is put off by that is done all the same.

use std::time::Duration;

use super::super::core::MAX_STARTS;
use super::super::upkeep::HELD_STEP;
use super::super::{Command, INPUTS_AT_ONCE, Inbox, MAX_WAITING, Manager, NewItem, Refused};
use super::refusals::new_task;
use super::{COMPONENT, MAX_PENDING, RETENTION_MS, Random, SLOTS, World, put_type, reply};
use crate::limits::Limits;
use crate::registry::{MOST_PROGRAMS, TaskType, Version};
use crate::schedules::{CatchUp, Overlap, Schedule, ScheduledTask, Spec};
use crate::store::{KEY_AGE_MS, StoredType, Time};
use crate::task::{Digest, ErrorKind, Hold, RetryPolicy, Status, Task, TaskError, TaskId, Timestamp};

impl World {
    /// A task that is ready.
    pub(super) fn plain_task(&self) -> Task {
        let task = self.new_task(&mut Random(1));
        Task { due_at: None, ready_at: self.now, expires_at: None, unique_key: None, concurrency_key: None, ..task }
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
        core.ready.reset([&"default".into()].into_iter());
    }

    /// A single transaction; how long the next can wait.
    fn one_step(&mut self, commands: Vec<Command>) -> Duration {
        let mut kept = Vec::new();
        let again = self.core.as_mut().unwrap().step(commands, self.now, &mut kept);
        assert!(kept.is_empty());
        again
    }
}

/// Of programs that nothing needs only so many are in memory, and those that were needed last stay.
#[test]
fn only_so_many_programs_are_in_memory() {
    let world = World::new();
    let program = world.registry.program(COMPONENT).unwrap();
    let digests: Vec<Digest> = (0..2 * MOST_PROGRAMS as u128)
        .map(|number| {
            let mut digest = [9; 32];
            digest[..16].copy_from_slice(&number.to_be_bytes());
            Digest(digest)
        })
        .collect();
    for (at, digest) in digests.iter().enumerate() {
        world.registry.put_version(*digest, Version::Ready(program.about.clone()));
        world.registry.put_program(*digest, program.clone());
        assert!(world.registry.program(COMPONENT).is_some(), "it is in use");
        let first = at.saturating_sub(MOST_PROGRAMS - 2);
        assert!(world.registry.is_in_memory(digests[first]) && world.registry.is_in_memory(*digest));
        assert!(first == 0 || !world.registry.is_in_memory(digests[first - 1]), "{at}");
    }
    assert!(digests.iter().all(|digest| matches!(world.registry.version(*digest), Some(Version::Ready(_)))));
    // What is gone takes no place, and nothing puts it back.
    world.registry.remove_version(digests[0]);
    world.registry.put_program(digests[0], program);
    assert!(!world.registry.is_in_memory(digests[0]));
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
        // One whose wait happens to be none is attempted again at once.
        let attempts = all.iter().map(|task| task.attempt as usize).sum::<usize>();
        assert!(attempts == looked_at || (looked_at == tasks.len() && all.iter().all(|task| task.attempt > 0)));
        assert!(again.is_zero() || looked_at == tasks.len());
    }
    // What it does then comes to an end.
    assert!((0..100).any(|_| !world.one_step(Vec::new()).is_zero()));
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

/// However many have one to be checked that takes its time, as the first of a schema does: it is compiled for it.
#[test]
fn so_many_inputs_are_checked_at_once() {
    let world = World::new();
    let schema = Some(r#"{"type":"object"}"#.into());
    let stored = StoredType::new(crate::registry::SHARED.into(), "t".into());
    world.registry.put_type(
        stored.tenant.clone(),
        TaskType::of(&StoredType { component: Some(COMPONENT), input_schema: schema, ..stored }),
    );
    let (manager, _inbox) = world.manager();
    world.runtime.block_on(async {
        let tenant = "default".into();
        let mut places = Vec::new();
        for _ in 0..INPUTS_AT_ONCE {
            places.push(manager.0.input_turn.take(&tenant).await);
        }
        let mut created = std::pin::pin!(manager.create(&tenant, new_task(None)));
        // Without a place it would be refused in a moment, as its input is no object.
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut created).await.is_err());
        places.pop();
        assert!(matches!(created.await, Err(Refused::Invalid(_))));
    });
}

pub(super) fn schedule(now: Timestamp, name: &str, overlap: Overlap, queued: u32) -> Schedule {
    let input = serde_json::value::RawValue::from_string("null".to_owned()).unwrap();
    let task = ScheduledTask {
        concurrency_key: None,
        task_type: "t".to_owned(),
        input,
        labels: Default::default(),
        priority: 0,
        unique_key: None,
        limits: Default::default(),
        retry: Default::default(),
    };
    let (cron, time_zone) = ("* * * * * *".to_owned(), "UTC".to_owned());
    Schedule {
        tenant: "default".into(),
        name: name.into(),
        spec: Spec { cron, time_zone, task, overlap, catch_up: CatchUp::None, paused: false },
        created_at: now,
        updated_at: now,
        next_at: Some(now.plus_millis(1_000)),
        queued,
        error: None,
    }
}

/// Due times that find the queue full wait for it, and none is made twice.
#[test]
fn a_full_queue_eats_no_due_times() {
    let mut world = World::new();
    let tasks = vec![world.plain_task(); SLOTS + MAX_PENDING as usize];
    let tasks: Vec<Task> = tasks
        .into_iter()
        .map(|task| Task { id: TaskId(uuid::Uuid::now_v7()), retry: RetryPolicy::DEFAULT, ..task })
        .collect();
    world.store(&tasks);
    world.crash();
    assert_eq!((world.running.len(), world.count(Status::Pending)), (SLOTS, MAX_PENDING as usize));
    let (all, queue) = (schedule(world.now, "all", Overlap::Allow, 0), schedule(world.now, "queue", Overlap::Queue, 5));
    let queue = Schedule { next_at: None, ..queue };
    let core = world.core.as_mut().unwrap();
    core.store.begin().unwrap();
    core.store.put_schedule(&all).unwrap();
    core.store.put_schedule(&queue).unwrap();
    core.store.commit().unwrap();
    world.crash();
    let of =
        |world: &mut World, name: &str| world.core.as_mut().unwrap().store.schedule("default", name).unwrap().unwrap();
    for _ in 0..30 {
        world.now = world.now.plus_millis(1_000);
        world.step(Vec::new());
    }
    let waits = of(&mut world, "all");
    assert_eq!(waits.next_at, all.next_at, "it was given up");
    assert_eq!(waits.error.unwrap().message, "12 tasks are pending");
    assert_eq!(of(&mut world, "queue").queued, 5, "they were given up");
    // The queue is worked off, and time stands still.
    let mut made = 0;
    while made < 35 {
        let id = *world.running.keys().next().unwrap();
        let job = world.running.remove(&id).unwrap();
        made += usize::from(job.task.schedule.is_some());
        job.control.leave();
        let end = crate::task::AttemptEnd::host_failure("over");
        world.report(id, job.task.attempt, crate::sandbox::RunEnd::Ended(end));
        // They look again once a second.
        world.core.as_mut().unwrap().timers = super::super::upkeep::Timers::all_at_once();
        world.step(Vec::new());
    }
    assert!(world.running.is_empty(), "more tasks than due times");
    assert_eq!((of(&mut world, "all").error, of(&mut world, "queue").queued), (None, 0));
    assert_eq!(world.all().iter().filter(|task| task.schedule.is_some()).count(), 35);
}

/// However many schedules find the queue full, the others are looked at.
#[test]
fn schedules_that_wait_hold_up_no_others() {
    let mut world = World::new();
    let mut tasks = Vec::new();
    for _ in 0..SLOTS + MAX_PENDING as usize {
        tasks.push(world.plain_task());
    }
    world.store(&tasks);
    let core_schedules: Vec<Schedule> = (0..40)
        .map(|number| schedule(world.now, &format!("s{number}"), Overlap::Allow, 0))
        .chain(
            (0..40).map(|number| Schedule {
                next_at: None,
                ..schedule(world.now, &format!("q{number}"), Overlap::Queue, 2)
            }),
        )
        .chain([Schedule { next_at: Some(world.now.plus_millis(2_000)), ..schedule(world.now, "z", Overlap::Skip, 0) }])
        .collect();
    let core = world.core.as_mut().unwrap();
    core.store.begin().unwrap();
    core_schedules.iter().for_each(|schedule| core.store.put_schedule(schedule).unwrap());
    core.store.commit().unwrap();
    world.crash();
    // The last one has a task already, so that it needs no place.
    let open = Task { schedule: Some("z".into()), ..world.plain_task() };
    world.store(&[open]);
    world.now = world.now.plus_millis(5_000);
    world.step(Vec::new());
    let core = world.core.as_mut().unwrap();
    let next_at = core.store.schedule("default", "z").unwrap().unwrap().next_at;
    assert!(next_at > Some(world.now), "{next_at:?} is looked at no more");
    let queued: Vec<u32> =
        (0..40).map(|number| core.store.schedule("default", &format!("q{number}")).unwrap().unwrap().queued).collect();
    assert_eq!(queued, [2; 40]);
}

/// What was missed is looked at a part at a time, of all schedules together.
#[test]
fn what_was_missed_is_looked_at_a_part_at_a_time() {
    let mut world = World::new();
    let names = ["a", "b", "c"];
    let core = world.core.as_mut().unwrap();
    core.store.begin().unwrap();
    for name in names {
        let mut schedule = schedule(world.now, name, Overlap::Skip, 0);
        schedule.spec.catch_up = CatchUp::All;
        core.store.put_schedule(&schedule).unwrap();
    }
    core.store.commit().unwrap();
    // So that none makes another.
    let open = names.map(|name| Task { schedule: Some(name.into()), ..world.plain_task() });
    world.store(&open);
    world.crash();
    world.now = world.now.plus_millis(3_000_000);
    let now = world.now;
    for looked_at in 1..=names.len() {
        let again = world.one_step(Vec::new());
        let core = world.core.as_mut().unwrap();
        let mut next = names.iter().map(|name| core.store.schedule("default", name).unwrap().unwrap().next_at);
        assert_eq!(next.by_ref().filter(|next| *next > Some(now)).count(), looked_at);
        assert_eq!(again.is_zero(), looked_at < names.len());
    }
}

/// However many tasks of another type are held back, and however many versions that has.
#[test]
fn tasks_that_stay_held_back_are_passed_over() {
    let mut world = World::new();
    let held = |world: &World, task_type: &str, component| Task {
        task_type: task_type.into(),
        component,
        held: Some(Hold::Paused),
        ..world.plain_task()
    };
    let others = StoredType::new(crate::registry::SHARED.into(), "a".into());
    world.registry.put_type(
        others.tenant.clone(),
        TaskType::of(&StoredType { component: Some(COMPONENT), paused: true, ..others }),
    );
    world.pause();
    let mut tasks: Vec<Task> =
        (0..4 * HELD_STEP).map(|number| held(&world, "a", Digest([10 + (number % 2) as u8; 32]))).collect();
    let released = 2 * HELD_STEP + 10;
    tasks.extend((0..released).map(|_| held(&world, "t", COMPONENT)));
    world.store(&tasks);
    put_type(&world.registry, false, Default::default());
    world.core.as_mut().unwrap().timers.look_at_held();
    for expected in [HELD_STEP, 2 * HELD_STEP, released] {
        assert!(world.one_step(Vec::new()).is_zero() || expected == released);
        let all = world.all();
        let still =
            |task_type: &str| all.iter().filter(|task| task.held.is_some() && &*task.task_type == task_type).count();
        assert_eq!((still("a"), still("t")), (4 * HELD_STEP, released - expected));
    }
}
