//! What was stored is not refused, and what an operation stops is not forgotten.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::mpsc;

use super::super::bulk::BulkCommand;
use super::super::{Command, Idempotency, Inbox, MAX_WAITING, NewTask};
use super::{World, reply};
use crate::executor::Report;
use crate::host::log::News;
use crate::sandbox::RunEnd;
use crate::schedules::Spec;
use crate::store::{Action, Found, ListFilter, Operation, OperationId, Precondition, StoreError};
use crate::task::{AttemptEnd, Digest, ErrorKind, Status};

/// The next command of a request, which must not be answered yet.
fn next<T>(asked: &mut (impl Future<Output = T> + Unpin), inbox: &Inbox) -> Command {
    let started = Instant::now();
    loop {
        assert!(asked.now_or_never().is_none(), "it is answered already");
        if let Ok(command) = inbox.commands.recv_timeout(Duration::from_millis(5)) {
            return command;
        }
        assert!(started.elapsed() < Duration::from_secs(30), "nothing is asked");
    }
}

fn new_task(key: Option<&str>) -> NewTask {
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
    let (tenant, spec) = ("default".into(), super::bounds::schedule(&world, "a", Default::default(), 0).spec);
    let cron = Spec::cron(&spec).unwrap();
    let mut asked = Box::pin(manager.put_schedule(&tenant, "a", spec, cron, Precondition::None));
    let put = next(&mut asked, &inbox);
    world.step(vec![put]);
    world.core.as_mut().unwrap().store.hide("schedule");
    let ((schedule, tasks), created) = handle.block_on(asked).unwrap();
    assert_eq!((&*schedule.name, tasks.len(), created), ("a", 0, true));
}

