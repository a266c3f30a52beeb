//! What was stored is not refused, and what an operation stops is not forgotten.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::super::bulk::BulkCommand;
use super::super::{Command, Idempotency, Inbox, MAX_WAITING, NewTask};
use super::{World, reply};
use crate::audit::Actor;
use crate::executor::Report;
use crate::host::log::News;
use crate::sandbox::RunEnd;
use crate::schedules::Spec;
use crate::store::{Action, Found, ListFilter, Operation, OperationId, Precondition, StoreError};
use crate::task::{AttemptEnd, Digest, ErrorKind, Outcome, Status, Task, TaskError, Timestamp};

pub(super) fn actor() -> Actor {
    Actor { tenant: "default".into(), key: None, peer: "here".into() }
}

impl World {
    /// An operation on all tasks that run, and one part of it: they are asked to stop.
    fn stop_all(&mut self, action: Action) -> OperationId {
        let id = OperationId(uuid::Uuid::now_v7());
        let operation = Operation {
            id,
            tenant: "default".into(),
            action,
            filter: ListFilter { status: Some(Status::Running), ..ListFilter::default() },
            matched: None,
            done: 0,
            skipped: 0,
            after: None,
            created_at: self.now,
            finished_at: None,
        };
        let found = Found { ids: self.running.keys().copied().collect(), until: None };
        self.step(vec![Command::Bulk(BulkCommand::Create {
            operation: Box::new(operation),
            by: actor(),
            reply: reply().0,
        })]);
        let (stopped, reply) = (mpsc::channel(1).0, reply().0);
        self.step(vec![Command::Bulk(BulkCommand::Step { id, found, stopped, reply })]);
        id
    }

    fn operation(&mut self, id: OperationId) -> Operation {
        self.core.as_mut().unwrap().store.operation(id).unwrap().unwrap()
    }
}

/// The next command of a request, which must not be answered yet.
pub(super) fn next<T>(asked: &mut (impl Future<Output = T> + Unpin), inbox: &Inbox) -> Command {
    let started = Instant::now();
    loop {
        assert!(asked.now_or_never().is_none(), "it is answered already");
        if let Ok(command) = inbox.commands.recv_timeout(Duration::from_millis(5)) {
            return command;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is asked");
    }
}

pub(super) fn new_task(key: Option<&str>) -> NewTask {
    NewTask {
        task_type: "t".to_owned(),
        input: "1".into(),
        priority: 0,
        limits: Default::default(),
        labels: Default::default(),
        retry: Default::default(),
        due_at: None,
        expires_at: None,
        unique_key: None,
        concurrency_key: None,
        idempotency: key.map(|key| Idempotency { key: key.into(), item: -1, fingerprint: Digest([1; 32]) }),
    }
}

#[test]
fn a_create_that_is_still_on_its_way_is_not_refused() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    let handle = world.runtime.handle().clone();
    let _on = handle.enter();
    let tenant = "default".into();
    let mut asked = Box::pin(manager.create_and_wait(&tenant, new_task(None), Duration::from_millis(1)));
    let create = next(&mut asked, &inbox);
    // It waits no longer, and as many others wait as may.
    inbox.waiting.store(MAX_WAITING, Ordering::Relaxed);
    let stored = next(&mut asked, &inbox);
    world.step(vec![create, stored]);
    // Not even where it cannot be read.
    world.core.as_mut().unwrap().store.hide("task");
    let told = handle.block_on(asked).unwrap().task;
    assert_eq!(told.id, *world.running.keys().next().unwrap());
}

#[test]
fn a_create_that_was_refused_is() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    let handle = world.runtime.handle().clone();
    let _on = handle.enter();
    let tenant = "default".into();
    let mut asked = Box::pin(manager.create_and_wait(&tenant, new_task(None), Duration::from_millis(1)));
    let create = next(&mut asked, &inbox);
    let stored = next(&mut asked, &inbox);
    let kept = world.core.as_mut().unwrap().refuse(vec![create, stored], &StoreError::TooSlow);
    assert!(kept.is_empty());
    handle.block_on(asked).unwrap_err();
    assert!(world.all().is_empty());
}

#[test]
fn a_create_under_a_key_is_not_refused_once_it_is_stored() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    let handle = world.runtime.handle().clone();
    let _on = handle.enter();
    let tenant = "default".into();
    let mut asked = Box::pin(manager.create_and_wait(&tenant, new_task(Some("key")), Duration::from_secs(60)));
    let create = next(&mut asked, &inbox);
    world.step(vec![create]);
    inbox.waiting.store(MAX_WAITING, Ordering::Relaxed);
    let told = handle.block_on(asked).unwrap().task;
    assert_eq!(told.id, *world.running.keys().next().unwrap());
}

#[test]
fn a_schedule_is_not_refused_once_it_is_stored() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    let handle = world.runtime.handle().clone();
    let _on = handle.enter();
    let (tenant, spec) = ("default".into(), super::bounds::schedule(world.now, "a", Default::default(), 0).spec);
    let cron = Spec::cron(&spec).unwrap();
    let mut asked = Box::pin(manager.put_schedule(&tenant, "a", spec, cron, Precondition::None, actor()));
    let put = next(&mut asked, &inbox);
    world.step(vec![put]);
    world.core.as_mut().unwrap().store.hide("schedule");
    let ((schedule, tasks), created) = handle.block_on(asked).unwrap();
    assert_eq!((&*schedule.name, tasks.len(), created), ("a", 0, true));
}

/// The end of an attempt that was stopped for an operation cannot be stored at first.
#[test]
fn an_operation_keeps_what_it_stopped_while_the_store_takes_no_writes() {
    let mut world = World::new();
    let task = world.plain_task();
    world.store(std::slice::from_ref(&task));
    world.step(Vec::new());
    let operation = world.stop_all(Action::Delete);
    let job = world.running.remove(&task.id).unwrap();
    job.control.leave();
    let end = RunEnd::Ended(AttemptEnd::host_failure("stopped"));
    let report =
        Report { id: task.id, attempt: 1, end, ended_at: world.now, news: News { lines: Vec::new(), progress: None } };
    let core = world.core.as_mut().unwrap();
    let kept = core.refuse(vec![Command::Report(report)], &StoreError::TooSlow);
    world.step(kept);
    assert_eq!(world.operation(operation).done, 1);
    assert!(world.stored(task.id).is_none());
}

/// It is counted with the end of the attempt, in one transaction.
#[test]
fn a_crash_right_after_an_end_makes_no_operation_forget_it() {
    let mut world = World::new();
    let task = world.plain_task();
    world.store(std::slice::from_ref(&task));
    world.step(Vec::new());
    let operation = world.stop_all(Action::Cancel);
    let job = world.running.remove(&task.id).unwrap();
    job.control.leave();
    let outcome = Outcome::Failed(TaskError::new(ErrorKind::Canceled, "it was canceled"));
    let end = RunEnd::Ended(AttemptEnd { outcome, ..AttemptEnd::host_failure("") });
    let report =
        Report { id: task.id, attempt: 1, end, ended_at: world.now, news: News { lines: Vec::new(), progress: None } };
    let mut next = Vec::new();
    world.core.as_mut().unwrap().step(vec![Command::Report(report)], world.now, &mut next);
    assert_eq!((world.operation(operation).done, next.len()), (1, 0), "nothing is left to be done");
    world.crash();
    assert_eq!((world.operation(operation).done, world.operation(operation).skipped), (1, 0));
}

/// Tasks that are so since later, and one that was retried after it was found.
#[test]
fn an_operation_is_about_what_was_so_when_it_was_created() {
    let mut world = World::new();
    let now = world.now;
    let ended = |world: &World, at: Timestamp| Task {
        status: Status::Failed,
        finished_at: Some(at),
        error: Some(TaskError::new(ErrorKind::Permanent, "why")),
        ..world.plain_task()
    };
    let running = |world: &World, at: Timestamp| Task {
        status: Status::Running,
        attempt: 1,
        started_at: Some(at),
        ..world.plain_task()
    };
    let later = now.plus_millis(1);
    let tasks = [ended(&world, now), ended(&world, later), running(&world, now), running(&world, later)];
    world.store(&tasks);
    let mut operation = Operation {
        id: OperationId(uuid::Uuid::now_v7()),
        tenant: "default".into(),
        action: Action::Delete,
        filter: ListFilter::default(),
        matched: None,
        done: 0,
        skipped: 0,
        after: None,
        created_at: now,
        finished_at: None,
    };
    let store = &mut world.core.as_mut().unwrap().store;
    let mut found = |action: Action, status: Option<Status>| {
        (operation.action, operation.filter.status) = (action, status);
        store.find(&operation, 10).unwrap().ids
    };
    let ids = |which: &[usize]| which.iter().map(|which| tasks[*which].id).collect::<Vec<_>>();
    assert_eq!(found(Action::Delete, Some(Status::Failed)), ids(&[0]));
    assert_eq!(found(Action::Retry, None), ids(&[0]));
    assert_eq!(found(Action::Cancel, Some(Status::Running)), ids(&[2]));
    // These were something that matches all the time.
    assert_eq!(found(Action::Cancel, None), ids(&[2, 3]));
    assert_eq!(found(Action::Delete, None), ids(&[0, 1, 2, 3]));
    operation.filter.status = Some(Status::Failed);
    assert!(operation.is_over_for(&tasks[2]) && !operation.is_over_for(&tasks[0]));
}

#[test]
fn a_crash_makes_no_operation_forget_what_ran() {
    for action in [Action::Cancel, Action::Delete] {
        let mut world = World::new();
        let tasks: Vec<_> = (0..3).map(|_| world.plain_task()).collect();
        world.store(&tasks);
        world.step(Vec::new());
        let operation = world.stop_all(action);
        let later = world.plain_task();
        world.store(std::slice::from_ref(&later));
        world.crash();
        let operation = world.operation(operation);
        assert_eq!((operation.done, operation.finished_at.is_some()), (3, true));
        assert!(world.running.keys().eq([&later.id]), "only what came later runs");
        for task in tasks {
            let kind = world.stored(task.id).map(|task| task.error.unwrap().kind);
            assert_eq!(kind, (action == Action::Cancel).then_some(ErrorKind::Canceled));
        }
    }
}
