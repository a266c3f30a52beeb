//! Nothing is changed with a key that is good no more.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures::FutureExt;
use serde_json::json;

use super::super::settings::SettingsPatch;
use super::super::tenants::{Change, NewKey};
use super::super::{Command, Refused, Seen};
use super::refusals::{actor, next};
use super::{COMPONENT, World, bounds};
use crate::audit::Actor;
use crate::keys::{Role, StoredKey};
use crate::schedules::Spec;
use crate::store::{Action, ListFilter, Precondition};
use crate::task::Timestamp;

type Asked<'a> = Pin<Box<dyn Future<Output = Result<(), Refused>> + 'a>>;

/// Taken back in the same transaction, right before all of them; expired when they come; or neither.
#[test]
fn what_was_on_its_way_when_its_key_ended_is_not_done() {
    for (is_revoked, has_expired) in [(false, false), (true, false), (false, true)] {
        let mut world = World::new();
        let now = world.now;
        let expires_at = Some(if has_expired { now } else { Timestamp(now.0 + 1) });
        let key = key(expires_at);
        let by = Actor { key: Some(key.id), ..actor() };
        let core = world.core.as_mut().unwrap();
        core.store.begin().unwrap();
        core.store.insert_key(&key).unwrap();
        core.store.commit().unwrap();
        let (manager, inbox) = world.manager();
        let handle = world.runtime.handle().clone();
        let _on = handle.enter();
        let tenant: Arc<str> = "default".into();
        let spec = bounds::schedule(now, "a", Default::default(), 0).spec;
        let cron = Spec::cron(&spec).unwrap();
        let patch = SettingsPatch {
            patch: json!({"paused": true}),
            limits: Default::default(),
            retry: Default::default(),
            concurrency: Default::default(),
            retention_ms: None,
            version: None,
            input_schema: None,
            seen: None,
            may_change_shared: true,
        };
        let (none, filter) = (Precondition::None, ListFilter::default);
        let revoke = Change::RevokeKey { tenant: tenant.clone(), id: key.id };
        let closed = world.registry.close(&tenant, "mine");
        let mut asked: Vec<Asked<'_>> = vec![
            Box::pin(manager.put_secret(&tenant, "a", vec![1], none.clone(), by.clone()).map(done)),
            Box::pin(manager.delete_secret(&tenant, "a", none.clone(), by.clone()).map(done)),
            Box::pin(manager.put_schedule(&tenant, "a", spec, cron, none.clone(), by.clone()).map(done)),
            Box::pin(manager.delete_schedule(&tenant, "a", none, by.clone())),
            Box::pin(manager.start_bulk(&tenant, Action::Cancel, filter(), by.clone()).map(done)),
            Box::pin(manager.patch_task_type(&tenant, "t", patch, by.clone()).map(done)),
            Box::pin(
                manager.put_task_type(&tenant, "mine", COMPONENT, vec![0].into(), Seen::Anything, by.clone()).map(done),
            ),
            Box::pin(manager.delete_task_type(closed, &tenant, "mine", Seen::Anything, by.clone())),
            Box::pin(manager.administer(Change::CreateKey(self::key(None)), by).map(done)),
        ];
        let mut commands: Vec<Command> = asked.iter_mut().map(|asked| next(asked, &inbox)).collect();
        let mut revoked = Box::pin(manager.administer(revoke, actor()));
        if is_revoked {
            commands.insert(0, next(&mut revoked, &inbox));
        }
        world.step(commands);
        for (at, asked) in asked.into_iter().enumerate() {
            let told = handle.block_on(asked);
            let is_refused = matches!(told, Err(Refused::KeyOver));
            assert_eq!(is_refused, is_revoked || has_expired, "{at}: {told:?}");
        }
        if is_revoked {
            handle.block_on(revoked).unwrap();
        }
    }
}

fn done<T>(result: Result<T, Refused>) -> Result<(), Refused> {
    result.map(|_| ())
}

fn key(expires_at: Option<Timestamp>) -> StoredKey {
    let (tenant, role) = ("default".into(), Role::Admin);
    NewKey { tenant, role, task_types: None, label: String::new(), expires_at }.make(Timestamp(0)).unwrap().1
}
