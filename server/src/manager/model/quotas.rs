//! Quotas: what is counted is what there is, and nothing is over by one.

use std::collections::HashSet;

use super::{Random, World, reply};
use crate::audit::Actor;
use crate::limits::{LimitOverrides, Limits};
use crate::manager::Command;
use crate::manager::tenants::{Change, Changed, TenantCommand};
use crate::quotas::{AtWork, QuotaPatch, Quotas};
use crate::schedule::rank;
use crate::task::{Status, Task, TaskId, Timestamp};

const PER_SECOND: u64 = 1;
const BURST: u64 = 6;
const LOG_BYTES: u64 = 1_000;

/// All of them may have two and a half times as much as one.
const MEMORY: u64 = Limits::DEFAULT.memory_bytes * 5 / 2;

/// Some tasks may have half as much.
pub(super) fn memory(random: &mut Random) -> LimitOverrides {
    LimitOverrides {
        memory_bytes: (random.below(3) == 0).then_some(Limits::DEFAULT.memory_bytes / 2),
        ..LimitOverrides::default()
    }
}

/// When tasks were created.
#[derive(Default)]
pub(super) struct Created {
    known: HashSet<TaskId>,
    /// Since the server started.
    pub(super) times: Vec<Timestamp>,
}

impl World {
    /// The tenant may have less than it asks for.
    pub(super) fn bound(&mut self) {
        self.quotas = Quotas {
            submitted_per_second: Some(PER_SECOND),
            submit_burst: Some(BURST),
            log_bytes: Some(LOG_BYTES),
            running_memory_bytes: Some(MEMORY),
            ..Quotas::default()
        };
        self.crash();
    }

    /// Somebody says that one or two of the tenant's tasks run at once, or as many as there is room for.
    pub(super) fn bound_at_work(&mut self, random: &mut Random) {
        let most = Some(random.below(3)).filter(|most| *most > 0);
        let quotas = QuotaPatch { running_tasks: Some(most), ..QuotaPatch::default() };
        let change = Box::new(Change::ChangeTenant { name: "default".into(), weight: None, quotas });
        let (answer, mut answered) = reply::<Changed>();
        let by = Actor { tenant: "operator".into(), key: None, peer: "".into() };
        let command = TenantCommand::Change { change, by, reply: answer };
        self.step(vec![Command::Tenant(Box::new(command))]);
        answered.try_recv().unwrap().unwrap();
    }

    fn quotas_now(&self) -> Quotas {
        self.core.as_ref().unwrap().tenants.quotas("default")
    }

    /// What runs, counted from what was handed out.
    fn at_work(&self) -> AtWork {
        let memory = self.running.values().map(|job| job.limits.memory_bytes).sum();
        AtWork { tasks: self.running.len() as u64, memory }
    }

    /// An attempt was just started.
    pub(super) fn check_started(&self) {
        let (at_work, quotas) = (self.at_work(), self.quotas_now());
        assert!(quotas.running_tasks.is_none_or(|most| at_work.tasks <= most), "more run than may: {at_work:?}");
        assert!(quotas.running_memory_bytes.is_none_or(|most| at_work.memory <= most), "{at_work:?}");
    }

    /// Whether the first task that is ready has to wait for others of its tenant.
    pub(super) fn is_at_quota(&self, all: &[Task]) -> bool {
        let ready = all.iter().filter(|task| task.is_ready() && task.status == Status::Pending);
        let first = ready.min_by_key(|task| (rank(task.ready_at, task.priority), task.id));
        let memory = first.map_or(0, |task| Limits::DEFAULT.lowered(&task.limits).memory_bytes);
        self.quotas_now().allow(self.at_work(), memory).is_err()
    }

    /// Notes the tasks that are new.
    pub(super) fn note_created(&mut self) {
        for task in self.all() {
            if self.created.known.insert(task.id) {
                self.created.times.push(self.now);
            }
        }
    }

    /// How many more could be created now, in thousandths: of every time until now, as many as at once and as many
    /// as its length allows, without those that were.
    fn left(&self) -> i64 {
        let times = &self.created.times;
        let spans = times.iter().enumerate().map(|(index, since)| {
            let allowed = BURST * 1000 + self.now.millis_since(*since) * PER_SECOND;
            allowed as i64 - (times.len() - index) as i64 * 1000
        });
        spans.min().unwrap_or(BURST as i64 * 1000)
    }

    /// Whether no more may be created now.
    pub(super) fn has_created_enough(&self) -> bool {
        self.left() < 1000
    }

    pub(super) fn check_quotas(&mut self) {
        self.note_created();
        if self.quotas.submitted_per_second.is_some() {
            assert!(self.left() >= 0, "more were created than its rate allows: {:?}", self.created.times);
        }
        let at_work = self.at_work();
        let core = self.core.as_mut().unwrap();
        assert_eq!(core.at_once.of_tenant("default"), at_work, "what is counted is what runs");
        let (counted, kept) = core.store.counted_and_kept_log_bytes();
        assert_eq!(counted, kept, "bytes of log lines");
        assert!(self.quotas.log_bytes.is_none_or(|most| kept <= most), "{kept} bytes of log lines");
        for (tenant, pending) in core.store.pending().unwrap() {
            assert_eq!(core.backlog.of(&tenant), pending, "the count of {tenant} is the store's");
        }
    }
}
