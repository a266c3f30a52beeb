//! Uploads of task types: what is left of one that came to nothing, and what comes late.

use std::sync::Arc;
use std::task::{Context, Waker};

use super::super::types::TypeCommand;
use super::super::{Command, Seen};
use super::refusals::actor;
use super::{COMPONENT, World};
use crate::grants::Grants;
use crate::registry::{SHARED, TaskType, Version};
use crate::store::StoredType;
use crate::task::Digest;

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

/// Compiling ends for a component that was removed meanwhile, and that is brought again at that moment.
#[test]
fn the_late_end_of_a_compile_leaves_no_version_that_nobody_knows() {
    for late_first in [true, false] {
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
            let late = TypeCommand::Compiled { digest: OTHER, by: "it".into(), compiled: Ok(program.clone()) };
            Command::Type(Box::new(late))
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
