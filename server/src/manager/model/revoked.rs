//! Nothing is changed with a key that is good no more.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use serde_json::json;

use super::super::settings::SettingsPatch;
use super::super::tenants::{Change, NewKey};
use super::super::{Command, Inbox, Refused, Seen};
use super::refusals::{actor, next};
use super::{World, bounds};
use crate::audit::Actor;
use crate::keys::{OPERATOR, Role, StoredKey};
use crate::registry::{SHARED, TaskType};
use crate::schedules::Spec;
use crate::store::{Action, AuditFilter, ListFilter, Precondition, StoredType};
use crate::task::{Digest, Timestamp};

const NEW: Digest = Digest([9; 32]);

type Asked<'a> = Pin<Box<dyn Future<Output = Result<(), Refused>> + 'a>>;

fn done<T>(result: Result<T, Refused>) -> Result<(), Refused> {
    result.map(|_| ())
}

fn key(expires_at: Option<Timestamp>) -> StoredKey {
    let (tenant, role) = ("default".into(), Role::Admin);
    NewKey { tenant, role, task_types: None, label: String::new(), expires_at }.make(Timestamp(0)).unwrap().1
}

fn operator() -> Actor {
    Actor { tenant: OPERATOR.into(), ..actor() }
}

impl World {
    fn put_key(&mut self, key: &StoredKey) {
        let store = &mut self.core.as_mut().unwrap().store;
        store.begin().unwrap();
        store.insert_key(key).unwrap();
        store.commit().unwrap();
    }

    fn put_types(&mut self) {
        let store = &mut self.core.as_mut().unwrap().store;
        store.begin().unwrap();
        for (tenant, name) in [(SHARED, "t"), ("default", "old")] {
            let stored = StoredType::new(tenant.into(), name.into());
            store.put_task_type(&stored).unwrap();
            self.registry.put_type(stored.tenant.clone(), TaskType::of(&stored));
        }
        store.commit().unwrap();
    }

    /// Does what is asked until there is an answer.
    fn answer(&mut self, inbox: &Inbox, mut asked: Asked<'_>) -> Result<(), Refused> {
        let started = Instant::now();
        loop {
            if let Some(answer) = asked.as_mut().now_or_never() {
                drop(asked);
                self.step(inbox.commands.try_iter().collect());
                return answer;
            }
            let next = inbox.commands.recv_timeout(Duration::from_millis(5));
            self.step(next.into_iter().collect());
            assert!(started.elapsed() < Duration::from_secs(30), "it is not answered");
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    Never,
    /// Taken back in the same transaction, right before all that is asked.
    Before,
    /// The same, right after.
    After,
    Expires,
    /// There was none, and none was needed until one is made.
    Needed,
}

#[test]
fn what_is_on_its_way_when_its_key_ends_is_not_done() {
    for ends in [Ends::Never, Ends::Before, Ends::After, Ends::Expires, Ends::Needed] {
        let mut world = World::new();
        let now = world.now;
        world.put_types();
        let key = key(Some(if ends == Ends::Expires { now } else { Timestamp(now.0 + 1) }));
        let by = Actor { key: (ends != Ends::Needed).then_some(key.id), ..actor() };
        let change = if ends == Ends::Needed {
            Change::CreateKey(key)
        } else {
            world.put_key(&key);
            Change::RevokeKey { tenant: "default".into(), id: key.id }
        };
        let (manager, inbox) = world.manager();
        let handle = world.runtime.handle().clone();
        let _on = handle.enter();
        let tenant: Arc<str> = "default".into();
        let spec = bounds::schedule(now, "a", Default::default(), 0).spec;
        let cron = Spec::cron(&spec).unwrap();
        let patch = SettingsPatch {
            patch: json!({"retention_ms": 5}),
            limits: Default::default(),
            retry: Default::default(),
            concurrency: Default::default(),
            retention_ms: Some(5),
            version: None,
            input_schema: None,
            seen: None,
            may_change_shared: true,
        };
        let (none, filter, bytes) = (Precondition::None, ListFilter::default(), vec![0; 10].into());
        let closed = world.registry.close(&tenant, "old");
        let mut asked: Vec<Asked<'_>> = vec![
            Box::pin(manager.put_secret(&tenant, "a", vec![1], none.clone(), by.clone()).map(done)),
            Box::pin(manager.delete_secret(&tenant, "a", none.clone(), by.clone()).map(done)),
            Box::pin(manager.put_schedule(&tenant, "a", spec, cron, none.clone(), by.clone()).map(done)),
            Box::pin(manager.delete_schedule(&tenant, "a", none, by.clone())),
            Box::pin(manager.start_bulk(&tenant, Action::Cancel, filter, by.clone()).map(done)),
            Box::pin(manager.patch_task_type(&tenant, "t", patch, by.clone()).map(done)),
            Box::pin(manager.delete_task_type(closed, &tenant, "old", Seen::Anything, by.clone())),
            Box::pin(manager.administer(Change::CreateKey(self::key(None)), by.clone()).map(done)),
            // More than one transaction: a piece, and then the type.
            Box::pin(manager.put_task_type(&tenant, "new", NEW, bytes, Seen::Anything, by).map(done)),
        ];
        let all = asked.len();
        let mut commands: Vec<Command> = asked.iter_mut().map(|asked| next(asked, &inbox)).collect();
        let mut ending: Asked<'_> = Box::pin(manager.administer(change, operator()).map(done));
        let is_asked = matches!(ends, Ends::Before | Ends::After | Ends::Needed);
        if is_asked {
            let at = if ends == Ends::After { all } else { 0 };
            commands.insert(at, next(&mut ending, &inbox));
        }
        world.step(commands);
        if is_asked {
            world.answer(&inbox, ending).unwrap();
        }
        let refused = match ends {
            Ends::Never => 0,
            Ends::Before | Ends::Expires | Ends::Needed => all,
            // The upload, whose piece had come.
            Ends::After => 1,
        };
        for (at, asked) in asked.into_iter().enumerate() {
            let told = world.answer(&inbox, asked);
            let is_refused = matches!(told, Err(Refused::KeyOver));
            assert!(is_refused || told.is_ok(), "{ends:?}, {at}: {told:?}");
            assert_eq!(is_refused, at >= all - refused, "{ends:?}, {at}");
        }
        let lines = handle.block_on(manager.audit(AuditFilter::default(), 100)).unwrap();
        assert_eq!(lines.len(), all - refused + usize::from(is_asked), "{ends:?}: {lines:#?}");
        let (old, new) = (world.registry.own(&tenant, "old"), world.registry.own(&tenant, "new"));
        assert_eq!((old.is_some(), new.is_some()), (refused == all, refused == 0), "{ends:?}");
        assert!(!world.registry.is_closed(&tenant, "old"));
        let pieces = world.core.as_mut().unwrap().store.pieces().unwrap();
        assert_eq!(pieces, u64::from(refused == 0), "{ends:?}");
    }
}
