//! Which tasks start when there is room.
//!
//! Among tenants the one that has least at work for its weight goes first, within a tenant the queue's order holds. A
//! tenant's part of the places is its own even when others hold all of them, and each tenant that has nothing running
//! finds a slot: so nobody's long tasks keep another tenant out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, MAX_STARTS, Start, Started};
use super::upkeep::Timer;
use super::{NewItem, Reply};
use crate::limits::Limits;
use crate::quotas::UsedUp;
use crate::registry::Version;
use crate::room::{Claim, NoRoom, Place};
use crate::sandbox::{Control, Program};
use crate::schedule::{claim, part};
use crate::store::StoreError;
use crate::task::{AttemptEnd, Event, Hold, Task, TaskId, Timestamp};
use crate::tenants::DEFAULT_WEIGHT;

type Result<T> = std::result::Result<T, StoreError>;

/// A tenant's place in the order: what it has at work for its weight, the CPU time it had, its name.
type Turn = (u64, u128, Arc<str>);

/// The weights of all tenants that have something at work, or want to, added up; `None`: not yet.
type Weights = Option<u64>;

/// How many creates that are held back would find a place now.
pub(super) struct Admitted<'a> {
    core: &'a Core,
    free: usize,
    weights: Weights,
    taken: HashMap<Arc<str>, usize>,
}

impl Admitted<'_> {
    /// Whether one more of the tenant does.
    pub(super) fn take(&mut self, tenant: &Arc<str>) -> bool {
        let core = self.core;
        // It takes its place in the queue.
        if core.draining.is_some() || !core.ready.is_exhausted(tenant) {
            return true;
        }
        if core.hold_starts.is_some() {
            return false;
        }
        if self.free > 0 && !core.ready.others_wait(tenant) {
            self.free -= 1;
            return true;
        }
        if !core.is_contended(tenant) {
            return false;
        }
        let taken = self.taken.entry(tenant.clone()).or_insert(core.room.working_of(tenant));
        *taken += 1;
        *taken <= core.part_of(tenant, &mut self.weights)
    }
}

impl Core {
    /// Starts queued tasks in their order, as long as there is room.
    pub(super) fn start_ready(&mut self, now: Timestamp, started: &mut Started) -> Result<()> {
        if self.draining.is_some() {
            return Ok(());
        }
        let unread: Vec<_> = self.ready.tenants().filter(|tenant| self.ready.needs_fill(tenant)).cloned().collect();
        unread.iter().try_for_each(|tenant| self.fill(tenant))?;
        self.release_by_quotas(now);
        // Whoever finds no room from here on says so again.
        self.room.looked_at();
        let mut order: BTreeSet<Turn> = self.ready.tenants().cloned().map(|tenant| self.turn_of(tenant)).collect();
        // All are counted, also those that come to nothing: each is work for this transaction.
        let mut looked_at = 0;
        let mut weights = None;
        while let Some((.., tenant)) = order.pop_first() {
            if self.ready.needs_fill(&tenant) {
                self.fill(&tenant)?;
            }
            let Some((rank, id)) = self.ready.first(&tenant) else { continue };
            if let Some(memory) = self.waits_for_quota(&tenant, id, now)? {
                self.ready.hold(&tenant, id, memory);
                if let Some(until) = self.workers.turns.used_up_until(&tenant, now) {
                    self.timers.hours.earlier(until);
                }
                continue;
            }
            // The others have more at work, but some may have less than their part.
            let Some(place) = self.place_among(&tenant, &mut weights) else { continue };
            if looked_at == MAX_STARTS {
                started.full = true;
                break;
            }
            looked_at += 1;
            self.ready.remove(&tenant, rank, id);
            if let Some(task) = self.store.task(id)? {
                self.start_one(task, place, now, started)?;
            }
            if !self.ready.is_exhausted(&tenant) {
                order.insert(self.turn_of(tenant));
            }
        }
        self.tenants.wait_for_quotas(&self.ready);
        Ok(())
    }

    fn start_one(&mut self, mut task: Task, place: Place, now: Timestamp, started: &mut Started) -> Result<()> {
        // Its timer may be late.
        if task.expires_at.is_some_and(|expires| expires <= now) {
            if self.change(&mut task, Event::Expire, now)?.is_ok() {
                started.ended.push(task.id);
            }
            return Ok(());
        }
        if self.must_wait(&task) {
            let _ = self.change(&mut task, Event::Hold(Hold::Paused), now)?;
            return Ok(());
        }
        if let Some(why) = self.too_many(&task) {
            let _ = self.change(&mut task, Event::Hold(why), now)?;
            // It waits for its key, and others of its type need not.
            if why == Hold::Key {
                self.at_once.frees_type(&task);
            }
            return Ok(());
        }
        match self.registry.program(task.component) {
            Some(program) => {
                if self.change(&mut task, Event::Start { server: self.server }, now)?.is_ok() {
                    let limits = self.limits(&task);
                    started.starts.push(Start { task, place, program, limits });
                }
            }
            None => {
                let why = match self.registry.version(task.component) {
                    Some(Version::Failed(why)) => why.to_string(),
                    _ => "its component is not there".to_owned(),
                };
                if self.fail_unstarted(&mut task, format!("it cannot be run: {why}"), now)? {
                    started.ended.push(task.id);
                }
            }
        }
        Ok(())
    }

    /// Whether a tenant's quotas allow one more attempt, with so much memory.
    pub(super) fn quotas_allow(&self, tenant: &str, memory: u64, now: Timestamp) -> std::result::Result<(), UsedUp> {
        let quotas = self.tenants.quotas(tenant);
        quotas.allow(self.at_once.of_tenant(tenant), memory)?;
        self.has_cpu_time(tenant, now)
    }

    /// Whether a tenant has not used up its hour.
    pub(super) fn has_cpu_time(&self, tenant: &str, now: Timestamp) -> std::result::Result<(), UsedUp> {
        match (self.tenants.quotas(tenant).cpu_ms_per_hour, self.workers.turns.used_up_until(tenant, now)) {
            (Some(limit), Some(until)) => {
                let whole_in = Some(until.seconds_after(now));
                Err(UsedUp { what: "cpu ms per hour", limit, left: 0, whole_in })
            }
            _ => Ok(()),
        }
    }

    /// Whether a quota keeps the first task of a tenant from being started: then how much memory that needs.
    fn waits_for_quota(&mut self, tenant: &Arc<str>, first: TaskId, now: Timestamp) -> Result<Option<u64>> {
        let needed = match self.tenants.quotas(tenant).running_memory_bytes {
            Some(_) => self.store.task_head(tenant, first)?.map_or(0, |task| self.limits(&task).memory_bytes),
            None => 0,
        };
        Ok(self.quotas_allow(tenant, needed, now).err().map(|_| needed))
    }

    /// The tenants whose quotas allow it may start tasks again.
    fn release_by_quotas(&mut self, now: Timestamp) {
        self.timers.hours = Timer::default();
        let held: Vec<_> = self.ready.held().map(|(tenant, memory)| (tenant.clone(), memory)).collect();
        for (tenant, memory) in held {
            // Where another task is the first now, that is looked at in its place.
            if memory.is_none_or(|memory| self.quotas_allow(&tenant, memory, now).is_ok()) {
                self.ready.release(&tenant);
            } else if let Some(until) = self.workers.turns.used_up_until(&tenant, now) {
                self.timers.hours.earlier(until);
            }
        }
    }

    fn fill(&mut self, tenant: &Arc<str>) -> Result<()> {
        let tasks = self.store.ready(tenant, self.ready.capacity())?;
        self.ready.fill(tenant, tasks);
        Ok(())
    }

    fn turn_of(&self, tenant: Arc<str>) -> Turn {
        let weight = self.weight(&tenant);
        (claim(self.room.working_of(&tenant), weight), self.workers.turns.used(&tenant), tenant)
    }

    pub(super) fn weight(&self, tenant: &str) -> u32 {
        self.tenants.find(tenant).map_or(DEFAULT_WEIGHT, |tenant| tenant.weight)
    }

    /// Whether other tenants have something at work, or want to.
    fn is_contended(&self, tenant: &Arc<str>) -> bool {
        self.ready.others_wait(tenant) || self.room.working() > self.room.working_of(tenant)
    }

    /// What a tenant may have at work, whatever the others have.
    fn part_of(&self, tenant: &Arc<str>, weights: &mut Weights) -> usize {
        let weight = u64::from(self.weight(tenant));
        let all = *weights.get_or_insert_with(|| {
            let mut tenants = self.room.tenants_at_work();
            tenants.extend(self.ready.tenants().cloned());
            tenants.sort_unstable();
            tenants.dedup();
            tenants.iter().map(|tenant| u64::from(self.weight(tenant))).sum()
        });
        // It may be none of those yet.
        part(self.room.max_working(), self.weight(tenant), all.max(weight))
    }

    /// How many slots are kept for other tenants: one for each that has none.
    fn kept_for_others(&self, tenant: &Arc<str>) -> usize {
        let itself = usize::from(self.room.started_of(tenant) == 0);
        let others = self.tenants.sharing().saturating_sub(self.room.tenants_started()).saturating_sub(itself);
        others.min(self.room.slots() / 2)
    }

    /// A place for an attempt of a tenant.
    pub(super) fn place_of(&mut self, tenant: &Arc<str>) -> Option<Place> {
        self.place_among(tenant, &mut None)
    }

    /// The same where more are asked for.
    fn place_among(&mut self, tenant: &Arc<str>, weights: &mut Weights) -> Option<Place> {
        if self.hold_starts.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        self.hold_starts = None;
        // A tenant whose turn it is in the queue goes before new tasks of others, which have no more than their part.
        let no_more = self.ready.is_exhausted(tenant) && self.ready.others_wait(tenant);
        let claim = Claim { part: 0, no_more, kept: self.kept_for_others(tenant) };
        let taken = match self.room.take(tenant, claim) {
            Err(NoRoom::Working) if self.is_contended(tenant) => {
                self.room.take(tenant, Claim { part: self.part_of(tenant, weights), ..claim })
            }
            taken => taken,
        };
        match taken {
            Ok(place) => Some(place),
            // The end of an attempt, or one that begins to wait, is told.
            Err(NoRoom::Slots | NoRoom::Working) => None,
            Err(NoRoom::Memory) => {
                self.hold_starts("the machine has no more memory free than --memory-reserve keeps for others");
                None
            }
        }
    }

    /// The handle of an attempt that has its place.
    pub(super) fn control(&self, tenant: &Arc<str>, place: Place, may_be_held: bool) -> Arc<Control> {
        Control::new(
            place,
            &self.workers.turns,
            tenant,
            self.weight(tenant),
            self.tenants.quotas(tenant).cpu_ms_per_hour,
            may_be_held,
        )
    }

    /// Whether a create that is waited for is held back: it would be the first in its tenant's queue.
    pub(super) fn is_held(&self, item: &NewItem, reply: &Reply<Task>, now: Timestamp) -> bool {
        self.draining.is_none()
            && self.ready.is_exhausted(&item.task.tenant)
            && !self.admitted().take(&item.task.tenant)
            && self.submits(&item.task, now).is_none_or(|submits| submits.left > 0)
            && self.held.may_hold(item, reply, now)
    }

    /// How many creates would find a place without the queue, as long as there is memory for them.
    pub(super) fn admitted(&self) -> Admitted<'_> {
        let free = if self.hold_starts.is_none() { self.room.free() } else { 0 };
        Admitted { core: self, free, weights: None, taken: HashMap::new() }
    }

    /// A place for a new task, where nothing of its tenant waits before it.
    pub(super) fn place_for_new(
        &mut self,
        task: &Task,
        limits: &Limits,
        now: Timestamp,
    ) -> Option<(Place, Arc<Program>)> {
        if !self.ready.is_exhausted(&task.tenant) || self.quotas_allow(&task.tenant, limits.memory_bytes, now).is_err()
        {
            return None;
        }
        let program = self.registry.program(task.component)?;
        Some((self.place_of(&task.tenant)?, program))
    }

    /// Counts an attempt that could not begin. True: the task has ended with it.
    fn fail_unstarted(&mut self, task: &mut Task, why: String, now: Timestamp) -> Result<bool> {
        if self.change(task, Event::Start { server: self.server }, now)?.is_err() {
            return Ok(false);
        }
        let end = AttemptEnd::host_failure(why);
        let event = Event::End { attempt: task.attempt, random: super::apply::random(&end.outcome), end };
        Ok(self.change(task, event, now)?.is_ok() && task.status.is_ended())
    }

    /// How long starts are still held; zero once, when they are held no longer.
    pub(super) fn held_for(&mut self) -> Option<Duration> {
        let left = self.hold_starts?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.hold_starts = None;
        }
        Some(left)
    }
}
