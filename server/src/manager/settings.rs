//! What is set of a task type while the server runs.

use std::sync::Arc;

use serde_json::Value;

use super::core::Core;
use super::types::promoted;
use super::{Command, FieldError, Manager, Refused, Reply, answer};
use crate::audit::{Act, Actor};
use crate::grants::{BadGrant, Grants};
use crate::input_schema::InputSchema;
use crate::limits::LimitOverrides;
use crate::pointer::Fault;
use crate::registry::{SHARED, TaskType, Version};
use crate::schedule::Concurrency;
use crate::store::{StoreError, StoredType};
use crate::task::{Digest, RetryOverrides, RetryPolicy, Timestamp};

/// The longest that ended tasks can be kept: a hundred years.
const LONGEST_RETENTION_MS: u64 = 100 * 366 * 24 * 60 * 60 * 1000;

/// Changes of a type's settings, as a JSON merge patch has them (RFC 7396).
#[derive(Clone, Debug)]
pub struct SettingsPatch {
    /// The patch itself.
    pub patch: Value,
    /// What it sets, to be checked. What it takes back is not in here.
    pub limits: LimitOverrides,
    /// The same of the retry policy.
    pub retry: RetryOverrides,
    /// And of how many run at once.
    pub concurrency: Concurrency,
    /// And of how long ended tasks are kept.
    pub retention_ms: Option<u64>,
    /// The version that is to be current; `Some(None)`: the newest.
    pub version: Option<Option<Digest>>,
    /// What its inputs have to meet, instead of what there was; `Some(None)`: nothing any more.
    pub input_schema: Option<Option<Arc<str>>>,
    /// Only where the type is still as it was here.
    pub seen: Option<TaskType>,
    /// Whether the type may be one that all tenants share.
    pub may_change_shared: bool,
}

/// The manager's thread is asked to change a type's settings.
pub(super) struct SettingsCommand {
    tenant: Arc<str>,
    name: String,
    patch: SettingsPatch,
    pub(super) by: Actor,
    reply: Reply<TaskType>,
}

/// What the change came to inside the transaction.
pub(super) type SettingsDone = Result<StoredType, Refused>;

impl SettingsCommand {
    pub(super) fn refuse(self, why: Refused) {
        answer(self.reply, Err(why));
    }
}

impl Manager {
    /// Changes the settings of a task type. They are durable and hold when this returns.
    pub async fn patch_task_type(
        &self,
        tenant: &Arc<str>,
        name: &str,
        patch: SettingsPatch,
        by: Actor,
    ) -> Result<TaskType, Refused> {
        self.check_patch(&patch)?;
        if let Some(Some(text)) = &patch.input_schema {
            self.check_input_schema(tenant, text.clone()).await?;
        }
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.ask(|reply| Command::Settings(Box::new(SettingsCommand { tenant, name, patch, by, reply }))).await
    }

    fn check_patch(&self, patch: &SettingsPatch) -> Result<(), Refused> {
        let mut errors = Vec::new();
        let mut wrong = |pointer: String, most: u64| {
            errors.push(FieldError { pointer, detail: format!("must be between 1 and {most}") });
        };
        let ceiling = self.0.ceiling;
        for bad in ceiling.with(&patch.limits, &ceiling).err().into_iter().flatten() {
            wrong(format!("#/limits/{}", bad.name), bad.ceiling);
        }
        for bad in RetryPolicy::DEFAULT.with(&patch.retry).err().into_iter().flatten() {
            wrong(format!("#/retry/{}", bad.name), bad.most);
        }
        if patch.retention_ms.is_some_and(|ms| ms == 0 || ms > LONGEST_RETENTION_MS) {
            wrong("#/retention_ms".into(), LONGEST_RETENTION_MS);
        }
        for (name, most) in [("running", patch.concurrency.running), ("per_key", patch.concurrency.per_key)] {
            if most == Some(0) {
                wrong(format!("#/concurrency/{name}"), u32::MAX.into());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Refused::Invalid(errors)) }
    }

    async fn check_input_schema(&self, tenant: &Arc<str>, text: Arc<str>) -> Result<(), Refused> {
        // It takes its time, which others would wait for.
        let turn = self.0.schema_turn.take(tenant).await;
        let fault = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            InputSchema::new(text).fault()
        });
        match fault.await {
            Ok(None) => Ok(()),
            Ok(Some(Fault { pointer, detail })) => {
                Err(Refused::Invalid(vec![FieldError { pointer: format!("#/input_schema{pointer}"), detail }]))
            }
            Err(error) => Err(Refused::Internal(error.into())),
        }
    }
}

impl Core {
    pub(super) fn apply_settings(
        &mut self,
        command: &SettingsCommand,
        now: Timestamp,
    ) -> Result<SettingsDone, StoreError> {
        let SettingsCommand { tenant, name, patch, by, .. } = command;
        // The one that the name means for the tenant. A shared one is the operator's.
        let stored = match self.store.task_type(tenant, name)? {
            Some(own) => Some(own),
            None => self.store.task_type(SHARED, name)?,
        };
        let Some(before) = stored else { return Ok(Err(Refused::NotFound)) };
        let mut stored = before.clone();
        if *stored.tenant == *SHARED && !patch.may_change_shared {
            return Ok(Err(Refused::SharedType));
        }
        // Compared here, in turn with the other changes, so that none is lost.
        if patch.seen.as_ref().is_some_and(|seen| *seen != TaskType::of(&stored)) {
            return Ok(Err(Refused::PreconditionFailed));
        }
        match patched(&stored, &patch.patch) {
            Ok(Settings { limits, retry, retention_ms, paused, concurrency, grants: Ok(grants) }) => {
                let grants = Arc::new(grants);
                stored = StoredType { limits, retry, retention_ms, paused, concurrency, grants, ..stored };
            }
            Ok(Settings { grants: Err(bad), .. }) => {
                let at = |BadGrant { path, detail }| {
                    FieldError::at(std::iter::once("grants").chain(path.iter().map(String::as_str)), detail)
                };
                return Ok(Err(Refused::Invalid(bad.into_iter().map(at).collect())));
            }
            Err(error) => return Ok(Err(Refused::Internal(error.into()))),
        }
        let mut judged = stored.component;
        if let Some(version) = patch.version {
            let version = match version {
                Some(version) => Some(version),
                None => self.store.newest_version(&stored.tenant, &stored.name)?,
            };
            match version {
                Some(version) if self.store.has_version(&stored.tenant, &stored.name, version)? => {
                    if let Some(Version::Failed(why)) = self.version(version) {
                        let detail = format!("cannot be used: {why}");
                        return Ok(Err(Refused::Invalid(vec![FieldError { pointer: "#/version".into(), detail }])));
                    }
                    stored.next = Some(version).filter(|_| stored.component != Some(version));
                    judged = Some(version);
                }
                _ => {
                    let detail = "is no version of this type".to_owned();
                    return Ok(Err(Refused::Invalid(vec![FieldError { pointer: "#/version".into(), detail }])));
                }
            }
        }
        if let Some(input_schema) = &patch.input_schema {
            if input_schema.is_some()
                && let Some(Version::Ready(about)) = judged.and_then(|version| self.version(version))
                && about.function.is_some()
            {
                let detail = "the function of the component says what its inputs have to meet".to_owned();
                return Ok(Err(Refused::Invalid(vec![FieldError { pointer: "#/input_schema".into(), detail }])));
            }
            stored.input_schema = input_schema.clone();
        }
        // What it was held for may be granted now.
        if let Some(next) = stored.next
            && let Some(Version::Ready(about)) = self.version(next)
        {
            stored = promoted(&stored, next, &about).unwrap_or(stored);
        }
        self.store.put_task_type(&stored)?;
        if let Some(detail) = differences(&before, &stored) {
            let (of, target) = (stored.tenant.clone(), stored.name.to_string());
            let act = Act { action: "task_type.change", of, target, detail: Some(detail) };
            self.store.audit(by, &act, now)?;
        }
        Ok(Ok(stored))
    }

    pub(super) fn tell_settings(&mut self, command: SettingsCommand, done: SettingsDone) {
        let told = done.map(|stored| {
            let task_type = TaskType::of(&stored);
            let before = self.registry.own(&stored.tenant, &stored.name).map(|before| before.concurrency);
            if before.is_some_and(|before| before != task_type.concurrency) {
                self.look_again_at(&stored.tenant, &stored.name);
            }
            self.registry.put_type(stored.tenant, task_type.clone());
            self.timers.look_at_held();
            task_type
        });
        answer(command.reply, told);
    }
}

/// Which settings differ, for the audit log; `None`: none does. Of grants and schemas it says no more, as there may
/// be secrets in them.
fn differences(before: &StoredType, after: &StoredType) -> Option<String> {
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    let mut found = Vec::new();
    if before.limits != after.limits {
        found.push(format!("limits {}", json(serde_json::to_string(&after.limits))));
    }
    if before.retry != after.retry {
        found.push(format!("retry {}", json(serde_json::to_string(&after.retry))));
    }
    if before.retention_ms != after.retention_ms {
        found.push(format!("retention_ms {}", json(serde_json::to_string(&after.retention_ms))));
    }
    if before.paused != after.paused {
        found.push(format!("paused {}", after.paused));
    }
    if before.concurrency != after.concurrency {
        found.push(format!("concurrency {}", json(serde_json::to_string(&after.concurrency))));
    }
    if before.grants != after.grants {
        found.push("grants".to_owned());
    }
    if before.input_schema != after.input_schema {
        found.push("input_schema".to_owned());
    }
    let version = |of: &StoredType| of.next.or(of.component);
    if (before.component, before.next) != (after.component, after.next)
        && let Some(version) = version(after)
    {
        found.push(format!("version {version}"));
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// What a patch is applied to.
#[derive(Debug, PartialEq)]
struct Settings {
    limits: LimitOverrides,
    retry: RetryOverrides,
    retention_ms: Option<u64>,
    paused: bool,
    concurrency: Concurrency,
    grants: Result<Grants, Vec<BadGrant>>,
}

/// A type's settings with a patch in place.
fn patched(stored: &StoredType, patch: &Value) -> serde_json::Result<Settings> {
    let mut settings = serde_json::json!({
        "limits": stored.limits,
        "retry": stored.retry,
        "retention_ms": stored.retention_ms,
        "paused": stored.paused,
        "concurrency": stored.concurrency,
        "grants": *stored.grants,
    });
    merge(&mut settings, patch);
    let mut take = |name: &str| settings.get_mut(name).map(Value::take).unwrap_or_default();
    let some = |value: Value| if value.is_null() { Value::Object(Default::default()) } else { value };
    Ok(Settings {
        limits: serde_json::from_value(some(take("limits")))?,
        retry: serde_json::from_value(some(take("retry")))?,
        retention_ms: serde_json::from_value(take("retention_ms"))?,
        paused: take("paused").as_bool().unwrap_or(false),
        concurrency: serde_json::from_value(some(take("concurrency")))?,
        grants: Grants::read(some(take("grants"))),
    })
}

/// Merges a patch (RFC 7396, section 2). It has been read as what it may be before, so it is not deep.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Default::default());
    }
    let Some(members) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396, appendix A.
    #[test]
    fn merge_patches() {
        for (mut target, patch, merged) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            merge(&mut target, &patch);
            assert_eq!(target, merged, "{patch}");
        }
    }

    #[test]
    fn settings() {
        let limits = LimitOverrides { fuel: Some(5), cpu_ms: Some(7), ..Default::default() };
        let retry = RetryOverrides { max_attempts: Some(3), ..Default::default() };
        let concurrency = Concurrency { running: Some(2), per_key: None };
        let fresh = StoredType::new(Arc::from(SHARED), Arc::from("a"));
        let stored = StoredType { limits, retry, retention_ms: Some(9), paused: true, concurrency, ..fresh };
        let of = |patch: Value| patched(&stored, &patch).unwrap();
        assert_eq!(
            of(json!({})),
            Settings { limits, retry, retention_ms: Some(9), paused: true, concurrency, grants: Ok(Grants::default()) }
        );
        assert_eq!(of(json!({"limits": {"fuel": null}})).limits, LimitOverrides { fuel: None, ..limits });
        assert_eq!(of(json!({"limits": {"timeout_ms": 1}})).limits, LimitOverrides { timeout_ms: Some(1), ..limits });
        let nothing =
            of(json!({"limits": null, "retry": null, "retention_ms": null, "paused": null, "concurrency": null}));
        let (limits, retry) = (LimitOverrides::default(), RetryOverrides::default());
        assert_eq!(
            nothing,
            Settings {
                limits,
                retry,
                retention_ms: None,
                paused: false,
                concurrency: Concurrency::default(),
                grants: Ok(Grants::default())
            }
        );
    }
}
