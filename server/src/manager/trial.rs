//! Running an input without a task: in the very same sandbox, with nothing stored of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::core::{Core, Done};
use super::{Command, Manager, NewItem, NewTask, Refused, Reply, answer};
use crate::executor::{Job, Report, Told};
use crate::ledger::{CameTo, Sums};
use crate::room::Place;
use crate::sandbox::{Control, Program, RunEnd, Stop};
use crate::task::{Digest, TaskId, Timestamp};

/// The longest that one runs: somebody waits for it on a connection.
pub const LONGEST: Duration = Duration::from_secs(60);

/// An attempt of no task that runs. Dropped, it is stopped.
pub(super) struct Running(Arc<Control>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.stop(Stop::Cancel);
    }
}

/// The manager's thread is asked for a place to run one.
pub(super) struct TrialCommand {
    item: NewItem,
    program: Arc<Program>,
    /// Is told of its end.
    told: Told,
    reply: Reply<Running>,
}

/// One is over: what it used goes into the ledger, and then its end is told.
pub(super) struct Tried {
    tenant: Arc<str>,
    /// The number by which it was counted.
    id: TaskId,
    report: Report,
    told: oneshot::Sender<Result<Report, Refused>>,
}

impl TrialCommand {
    pub(super) fn refuse(self, why: Refused) {
        answer(self.reply, Err(why));
    }
}

impl Manager {
    /// Runs an input of a type, by its current version or by `version`, and returns how that ended.
    pub async fn try_out(&self, tenant: &Arc<str>, new: NewTask, version: Option<Digest>) -> Result<Report, Refused> {
        if self.is_draining() {
            return Err(Refused::Draining);
        }
        let mut item = self.check_version(tenant, new, version).await?;
        item.limits.timeout_ms = item.limits.timeout_ms.min(LONGEST.as_millis() as u64);
        let program = self.program(tenant, item.task.component).await?;
        let (told, ended) = oneshot::channel();
        // Also where nobody waits for it any more.
        let (manager, tenant, id) = (self.clone(), tenant.clone(), item.task.id);
        let told = Box::new(move |report| {
            manager.send(Command::Tried(Box::new(Tried { tenant, id, report, told })));
        });
        let running = self.ask(|reply| Command::Trial(Box::new(TrialCommand { item, program, told, reply }))).await?;
        let ended = ended.await;
        drop(running);
        // Nobody told it: the server went down before it was over.
        ended.unwrap_or(Err(Refused::Draining))
    }

    /// Checks a task of another than the current version.
    async fn check_version(
        &self,
        tenant: &Arc<str>,
        new: NewTask,
        version: Option<Digest>,
    ) -> Result<NewItem, Refused> {
        let Some(version) = version else { return self.check(tenant, new, None).await };
        let name = new.task_type.clone();
        let found = self.versions(tenant, &name).await?;
        if !found.iter().any(|(digest, _)| *digest == version) {
            return Err(Refused::NotFound);
        }
        self.check(tenant, new, Some(version)).await
    }
}

impl Core {
    /// Takes a place for one, if there is any and the tenant's quotas allow it: nothing waits here.
    pub(super) fn apply_trial(&mut self, command: &TrialCommand, now: Timestamp) -> Done {
        let NewItem { task, limits, .. } = &command.item;
        let limits = self.as_its_tenant_may(&task.tenant, *limits);
        if let Err(used_up) = self.quotas_allow(&task.tenant, limits.memory_bytes, now) {
            return Done::Refused(Refused::QuotaExceeded(used_up));
        }
        let place = self.place_of(&task.tenant);
        if place.is_some() {
            self.at_once.trial_begins(&task.tenant, task.id, limits.memory_bytes);
        }
        Done::Trial(place)
    }

    pub(super) fn tell_trial(&mut self, command: TrialCommand, place: Option<Place>, now: Timestamp) {
        let TrialCommand { item, program, told, reply } = command;
        let Some(place) = place else { return answer(reply, Err(Refused::Busy)) };
        // Somebody waits for it.
        let control = self.control(&item.task.tenant, place, false);
        let limits = self.as_its_tenant_may(&item.task.tenant, item.limits);
        let mut task = item.task;
        (task.attempt, task.started_at) = (1, Some(now));
        let grants = self.grants(&task);
        self.trials.insert(task.id, control.clone());
        answer(reply, Ok(Running(control.clone())));
        (self.workers.run)(Job { task, program, limits, grants, control, told: Some(told) });
    }

    pub(super) fn charge_trial(&mut self, Tried { tenant, id, report, .. }: &Tried, now: Timestamp) {
        self.at_once.trial_ends(tenant, *id);
        let usage = match &report.end {
            RunEnd::Ended(end) => &end.usage,
            RunEnd::GiveBack(usage) => usage,
        };
        self.store.charge(tenant, report.ended_at.min(now), CameTo::Test, &Sums::of(usage));
    }

    pub(super) fn tell_tried(&mut self, Tried { tenant, id, report, told }: Tried, now: Timestamp) {
        self.trials.remove(&id);
        let result = match report.end {
            RunEnd::Ended(_) => Ok(report),
            RunEnd::GiveBack(_) if self.draining.is_some() => Err(Refused::Draining),
            // Its tenant's hour is used up, or there was no room for it after all.
            RunEnd::GiveBack(_) => {
                Err(self.has_cpu_time(&tenant, now).map_or_else(Refused::QuotaExceeded, |()| Refused::Busy))
            }
        };
        // Whoever asked may have gone away.
        let _ = told.send(result);
    }
}
