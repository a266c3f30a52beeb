//! Uploads of task types: what is left of one that came to nothing, and what comes late.

use std::sync::Arc;
use std::task::{Context, Waker};

use super::super::bulk::BulkCommand;
use super::super::types::TypeCommand;
use super::super::{Answer, Command, NewItem, Refused, Seen, Stored};
use super::refusals::actor;
use super::{COMPONENT, World, bounds, reply};
use crate::grants::Grants;
use crate::limits::Limits;
use crate::registry::{SHARED, TaskType, Version};
use crate::schedules::Overlap;
use crate::store::{Action, Found, ListFilter, Operation, OperationId, StoredType};
use crate::task::{Digest, ErrorKind, Status, Task, TaskError};

const OTHER: Digest = Digest([9; 32]);

/// Its client goes away before its first piece is answered.
#[test]
fn an_upload_that_nobody_waits_for_leaves_nothing() {
    for together in [true, false] {
        let mut world = World::new();
        let (manager, inbox) = world.manager();
        let tenant = "default".into();
        let mut upload =
            Box::pin(manager.put_task_type(&tenant, "mine", OTHER, vec![0; 10].into(), Seen::Anything, actor()));
        assert!(upload.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let mut commands = Vec::from_iter(inbox.commands.try_iter());
        if !together {
            world.step(std::mem::take(&mut commands));
            assert_eq!(world.core.as_mut().unwrap().store.pieces().unwrap(), 1);
        }
        drop(upload);
        commands.extend(inbox.commands.try_iter());
        world.step(commands);
        assert_eq!(world.core.as_mut().unwrap().store.pieces().unwrap(), 0, "together: {together}");
    }
}

/// Compiling, or loading what was compiled, ends for a component that was removed meanwhile, and that is brought again
/// at that moment.
#[test]
fn the_late_end_of_a_compile_leaves_no_version_that_nobody_knows() {
    for (late_first, is_load) in [(true, false), (false, false), (true, true), (false, true)] {
        let mut world = World::new();
        let (manager, inbox) = world.manager();
        let tenant: Arc<str> = "default".into();
        let mut upload =
            Box::pin(manager.put_task_type(&tenant, "mine", OTHER, vec![0; 10].into(), Seen::Anything, actor()));
        let mut poll = || upload.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(poll().is_pending());
        world.step(inbox.commands.try_iter().collect());
        assert!(poll().is_pending());
        let mut commands = Vec::from_iter(inbox.commands.try_iter());
        let program = world.registry.program(COMPONENT).unwrap();
        let compiled = || {
            let (digest, by, compiled) = (OTHER, "it".into(), Ok(program.clone()));
            Command::Type(Box::new(match is_load {
                true => TypeCommand::Loaded { tenant: tenant.clone(), digest, by, loaded: Some(compiled) },
                false => TypeCommand::Compiled { digest, by, compiled },
            }))
        };
        commands.insert(if late_first { 0 } else { commands.len() }, compiled());
        world.step(commands);
        assert!(poll().is_ready());
        // It is the same code, whoever asked for it. But before it is there again nobody has it.
        let (current, next) = if late_first { (None, Some(OTHER)) } else { (Some(OTHER), None) };
        let found = world.registry.own(&tenant, "mine").unwrap();
        assert_eq!((found.current, found.next), (current, next));
        let is_compiled = matches!(world.registry.version(OTHER), Some(Version::Ready(_)));
        assert_eq!(is_compiled, !late_first, "or else it is compiled again");
        world.step(vec![compiled()]);
        assert_eq!(world.registry.own(&tenant, "mine").unwrap().current, Some(OTHER));
        assert!(matches!(world.registry.version(OTHER), Some(Version::Ready(_))));
    }
}

/// A task is granted what the type is granted that it was created for, whatever came of that name since.
#[test]
fn a_task_keeps_the_grants_of_the_shared_type_where_its_tenants_own_came() {
    let mut world = World::new();
    let task = world.plain_task();
    let granted =
        |variable: &str| Arc::new(Grants { env: [(variable.into(), "1".into())].into(), ..Grants::default() });
    let put = |world: &World, tenant: &str, component, grants: Arc<Grants>| {
        let stored = StoredType { component: Some(component), ..StoredType::new(tenant.into(), "t".into()) };
        world.registry.put_type(tenant.into(), TaskType { grants, ..TaskType::of(&stored) });
    };
    put(&world, SHARED, COMPONENT, granted("SHARED"));
    put(&world, "default", OTHER, granted("OWN"));
    assert_eq!(world.core.as_mut().unwrap().grants(&task), granted("SHARED"));
    put(&world, "default", COMPONENT, granted("OWN"));
    assert_eq!(world.core.as_mut().unwrap().grants(&task), granted("OWN"));
    // A version that neither has.
    put(&world, SHARED, OTHER, granted("SHARED"));
    put(&world, "default", OTHER, granted("OWN"));
    assert_eq!(world.core.as_mut().unwrap().grants(&task), Arc::default());
}

/// Also where the client that removes it hung up, and in the transaction in which it goes.
#[test]
fn a_type_is_closed_until_it_is_gone() {
    let mut world = World::new();
    let (manager, inbox) = world.manager();
    let tenant: Arc<str> = "default".into();
    let poll_all = |world: &mut World, mut asked: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        while asked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            world.step(inbox.commands.try_iter().collect());
        }
    };
    let (of, upload) = (tenant.clone(), manager.clone());
    let put = async move {
        upload.put_task_type(&of, "mine", OTHER, vec![0; 10].into(), Seen::Anything, actor()).await.unwrap();
    };
    poll_all(&mut world, Box::pin(put));
    let program = world.registry.program(COMPONENT).unwrap();
    let compiled = TypeCommand::Compiled { digest: OTHER, by: "it".into(), compiled: Ok(program) };
    world.step(vec![Command::Type(Box::new(compiled))]);
    let of_mine = |world: &World| Task { task_type: "mine".into(), component: OTHER, ..world.plain_task() };
    let error = Some(TaskError::new(ErrorKind::Permanent, "why"));
    let ended = Task { status: Status::Failed, finished_at: Some(world.now), error, ..of_mine(&world) };
    world.store(std::slice::from_ref(&ended));

    let closed = world.registry.close(&tenant, "mine");
    let (create, mut created) = reply::<Stored>();
    let item = Box::new(NewItem { task: of_mine(&world), limits: Limits::DEFAULT, idempotency: None });
    manager.send(Command::Create { item, reply: Answer::Stored(create) });
    let mut removal = Box::pin(manager.delete_task_type(closed, &tenant, "mine", Seen::Anything, actor()));
    assert!(removal.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(removal);
    let retry = || {
        let (retry, retried) = reply();
        (Command::Retry { tenant: tenant.clone(), id: ended.id, reply: retry }, retried)
    };
    let (again, mut retried) = retry();
    manager.send(again);
    world.step(inbox.commands.try_iter().collect());
    assert!(matches!(created.try_recv().unwrap(), Err(Refused::TypeClosed)));
    assert!(matches!(retried.try_recv().unwrap(), Err(Refused::TypeClosed)));
    assert!(world.registry.own(&tenant, "mine").is_none() && !world.registry.is_closed(&tenant, "mine"));
    let (again, mut retried) = retry();
    world.step(vec![again]);
    assert!(matches!(retried.try_recv().unwrap(), Err(Refused::TypeGone)));
}

/// While somebody tries to remove a type nothing of it comes, and what nobody would ask for again waits.
#[test]
fn while_a_type_is_closed_nothing_of_it_comes_and_nothing_is_lost() {
    let mut world = World::new();
    let now = world.now;
    let ended = || {
        let error = Some(TaskError::new(ErrorKind::Permanent, "why"));
        Task { status: Status::Failed, finished_at: Some(now), error, ..world.plain_task() }
    };
    let [by_hand, in_bulk] = [ended(), ended()];
    world.store(&[by_hand.clone(), in_bulk.clone()]);
    let operation = Operation {
        id: OperationId(uuid::Uuid::now_v7()),
        tenant: "default".into(),
        action: Action::Retry,
        filter: ListFilter::default(),
        matched: Some(1),
        done: 0,
        skipped: 0,
        after: None,
        created_at: now,
        finished_at: None,
    };
    let id = operation.id;
    let core = world.core.as_mut().unwrap();
    core.store.begin().unwrap();
    core.store.put_schedule(&bounds::schedule(now, "a", Overlap::Allow, 0)).unwrap();
    core.store.insert_operation(&operation).unwrap();
    core.store.commit().unwrap();
    world.crash();
    let (name, part) = ("default".into(), || Found { ids: vec![in_bulk.id], until: None });
    let bulk = |world: &mut World| {
        let stopped = tokio::sync::mpsc::channel(1).0;
        world.step(vec![Command::Bulk(BulkCommand::Step { id, found: part(), stopped, reply: reply().0 })]);
        let operation = world.core.as_mut().unwrap().store.operation(id).unwrap().unwrap();
        (operation.done, operation.skipped, operation.finished_at.is_some())
    };

    let closed = world.registry.close(&SHARED.into(), "t");
    let (create, mut created) = reply::<Stored>();
    let item = Box::new(NewItem { task: world.plain_task(), limits: Limits::DEFAULT, idempotency: None });
    let (retry, mut retried) = reply();
    world.step(vec![
        Command::Create { item, reply: Answer::Stored(create) },
        Command::Retry { tenant: Arc::clone(&name), id: by_hand.id, reply: retry },
    ]);
    assert!(matches!(created.try_recv().unwrap(), Err(Refused::TypeClosed)));
    assert!(matches!(retried.try_recv().unwrap(), Err(Refused::TypeClosed)));
    assert_eq!(bulk(&mut world), (0, 0, false));
    world.now = now.plus_millis(1_500);
    world.step(Vec::new());
    assert_eq!(world.all().len(), 2, "no task of the schedule");
    let schedule = world.core.as_mut().unwrap().store.schedule("default", "a").unwrap().unwrap();
    assert_eq!(schedule.error.unwrap().message, "the task type is being removed");

    drop(closed);
    assert_eq!(bulk(&mut world), (1, 0, true));
    world.now = now.plus_millis(3_000);
    world.step(Vec::new());
    let made = world.all().into_iter().filter(|task| task.schedule.is_some()).count();
    assert_eq!(made, 3, "each due time makes its task");
}
