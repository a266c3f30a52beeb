//! How many attempts run at once: slots of the pool, attempts that use the CPU, memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a measurement of the memory is used.
const MEASURE_EVERY: Duration = Duration::from_millis(100);

/// What an attempt is taken to need until the next measurement sees it.
const BYTES_PER_START: u64 = 1 << 20;

/// Called when an attempt that waited for room may find some now.
type OnRoom = Box<dyn Fn() + Send + Sync>;

/// The room there is for attempts, and what is taken of it.
pub struct Room {
    slots: usize,
    max_working: usize,
    started: AtomicUsize,
    working: AtomicUsize,
    memory: Memory,
    /// Somebody was sent away and wants to hear of room.
    wanted: AtomicBool,
    on_room: Mutex<Option<OnRoom>>,
    /// What each tenant has taken of it. There are as many as there are tenants.
    tenants: Mutex<HashMap<Arc<str>, Arc<OfTenant>>>,
    /// How many of them hold a place.
    tenants_started: AtomicUsize,
}

/// What a tenant has taken of the room.
#[derive(Debug, Default)]
struct OfTenant {
    started: AtomicUsize,
    working: AtomicUsize,
    /// What it may have at work though there are enough: of the last time that it asked.
    part: AtomicUsize,
}

/// What a tenant may have, whatever the others have.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// So many of its attempts may work though enough work already.
    pub part: usize,
    /// It has no more than that, as others wait.
    pub no_more: bool,
    /// So many slots are kept for others, where it has one.
    pub kept: usize,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// All slots are taken: the end of an attempt makes room.
    Slots,
    /// Enough attempts work: one that ends, or waits for the host, makes room.
    Working,
    /// The machine has too little memory: only looking again tells.
    Memory,
}

impl Room {
    /// Room for `slots` attempts of which `max_working` may use the CPU when another is started.
    pub fn new(slots: usize, max_working: usize, memory: Memory) -> Room {
        Room {
            slots,
            max_working,
            started: AtomicUsize::new(0),
            working: AtomicUsize::new(0),
            memory,
            wanted: AtomicBool::new(false),
            on_room: Mutex::new(None),
            tenants: Mutex::default(),
            tenants_started: AtomicUsize::new(0),
        }
    }

    fn of_tenant(&self, tenant: &Arc<str>) -> Arc<OfTenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_tenant) = tenants.get(tenant) {
            return of_tenant.clone();
        }
        tenants.entry(tenant.clone()).or_default().clone()
    }

    /// How many attempts of a tenant work.
    pub fn working_of(&self, tenant: &Arc<str>) -> usize {
        self.of_tenant(tenant).working.load(Ordering::SeqCst)
    }

    /// How many attempts of a tenant hold a place.
    pub fn started_of(&self, tenant: &Arc<str>) -> usize {
        self.of_tenant(tenant).started.load(Ordering::SeqCst)
    }

    /// The tenants that have attempts which work.
    pub fn tenants_at_work(&self) -> Vec<Arc<str>> {
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let at_work = tenants.iter().filter(|(_, of)| of.working.load(Ordering::SeqCst) > 0);
        at_work.map(|(tenant, _)| tenant.clone()).collect()
    }

    /// How many tenants hold a place.
    pub fn tenants_started(&self) -> usize {
        self.tenants_started.load(Ordering::SeqCst)
    }

    /// How many attempts may work when another is started.
    pub fn max_working(&self) -> usize {
        self.max_working
    }

    /// Whom to tell when there is room again, after [`take`](Self::take) found none.
    pub fn on_room(&self, tell: impl Fn() + Send + Sync + 'static) {
        *self.on_room.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tell));
    }

    /// Takes the place of one attempt. Called by one thread only.
    pub fn take(self: &Arc<Self>, tenant: &Arc<str>, claim: Claim) -> Result<Place, NoRoom> {
        let of_tenant = self.of_tenant(tenant);
        let has_one = of_tenant.started.load(Ordering::SeqCst) > 0;
        let kept = if has_one { claim.kept } else { 0 };
        if self.started.load(Ordering::Acquire).saturating_add(kept) >= self.slots {
            return Err(NoRoom::Slots);
        }
        // Announced before the look, so that room made in between is not missed.
        let wanted = self.wanted.swap(true, Ordering::SeqCst);
        of_tenant.part.store(claim.part, Ordering::SeqCst);
        let is_full = claim.no_more || self.working.load(Ordering::SeqCst) >= self.max_working;
        if is_full && of_tenant.working.load(Ordering::SeqCst) >= claim.part {
            return Err(NoRoom::Working);
        }
        if !wanted {
            self.wanted.store(false, Ordering::SeqCst);
        }
        if !self.memory.take_for_start() {
            return Err(NoRoom::Memory);
        }
        self.started.fetch_add(1, Ordering::AcqRel);
        self.working.fetch_add(1, Ordering::SeqCst);
        if of_tenant.started.fetch_add(1, Ordering::SeqCst) == 0 {
            self.tenants_started.fetch_add(1, Ordering::SeqCst);
        }
        of_tenant.working.fetch_add(1, Ordering::SeqCst);
        Ok(Place { room: self.clone(), of_tenant, state: AtomicU8::new(WORKING) })
    }

    /// Whoever waited looks now.
    pub fn looked_at(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    /// How many attempts can be started, as long as there is memory for them.
    pub fn free(&self) -> usize {
        let slots = self.slots.saturating_sub(self.started.load(Ordering::Acquire));
        slots.min(self.max_working.saturating_sub(self.working.load(Ordering::SeqCst)))
    }

    /// Announces that somebody waits for room, who is told when there is some, as after [`take`](Self::take)
    /// found none.
    pub fn announce(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Whether the machine has memory for a guest to grow by `bytes`.
    pub fn may_grow(&self, bytes: u64) -> bool {
        self.memory.may_grow(bytes)
    }

    /// Takes back what a guest had grown by.
    pub fn shrunk(&self, bytes: u64) {
        self.memory.give_back(bytes);
    }

    /// Attempts that hold a place.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// Attempts that use, or wait for, the CPU.
    pub fn working(&self) -> usize {
        self.working.load(Ordering::Relaxed)
    }

    /// How many places there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    fn stopped_working(&self, of_tenant: &OfTenant) {
        let of_tenant_before = of_tenant.working.fetch_sub(1, Ordering::SeqCst);
        let before = self.working.fetch_sub(1, Ordering::SeqCst);
        if (before <= self.max_working || of_tenant_before <= of_tenant.part.load(Ordering::SeqCst))
            && self.wanted.swap(false, Ordering::SeqCst)
            && let Some(tell) = &*self.on_room.lock().unwrap_or_else(PoisonError::into_inner)
        {
            tell();
        }
    }
}

/// The place of one attempt; dropping it gives it back at the latest.
pub struct Place {
    room: Arc<Room>,
    of_tenant: Arc<OfTenant>,
    /// One of the three below. One value, so that whoever changes it knows what it was before.
    state: AtomicU8,
}

const WORKING: u8 = 0;
const PARKED: u8 = 1;
const LEFT: u8 = 2;

impl Place {
    /// The attempt waits for the host and uses no CPU.
    pub fn parked(&self) {
        if self.turn(WORKING, PARKED) {
            self.room.stopped_working(&self.of_tenant);
        }
    }

    /// The attempt can go on. It is never held back: it has its memory already.
    pub fn resumed(&self) {
        if self.state.load(Ordering::Acquire) != PARKED {
            return;
        }
        // Counted first: whoever finds it working may at once count it off again.
        self.room.working.fetch_add(1, Ordering::SeqCst);
        self.of_tenant.working.fetch_add(1, Ordering::SeqCst);
        if !self.turn(PARKED, WORKING) {
            self.room.stopped_working(&self.of_tenant);
        }
    }

    /// Gives the place back.
    pub fn leave(&self) {
        let before = self.state.swap(LEFT, Ordering::AcqRel);
        if before != LEFT {
            self.room.memory.give_back(BYTES_PER_START);
            if self.of_tenant.started.fetch_sub(1, Ordering::SeqCst) == 1 {
                self.room.tenants_started.fetch_sub(1, Ordering::SeqCst);
            }
            self.room.started.fetch_sub(1, Ordering::AcqRel);
        }
        if before == WORKING {
            self.room.stopped_working(&self.of_tenant);
        }
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The machine's memory, as far as this process may use it.
pub struct Memory {
    reserve: u64,
    measured_at: Mutex<Instant>,
    /// What was available at the last measurement.
    measured: AtomicU64,
    /// The same, less what was given out since and not given back.
    left: AtomicU64,
    measure: fn() -> Option<u64>,
}

impl Memory {
    /// Measures the memory of the machine and of this process's control group, and keeps `reserve`
    /// bytes of it free.
    pub fn new(reserve: u64) -> Memory {
        Memory::with(reserve, available)
    }

    fn with(reserve: u64, measure: fn() -> Option<u64>) -> Memory {
        let available = measure().unwrap_or(u64::MAX);
        let (measured, left) = (AtomicU64::new(available), AtomicU64::new(available));
        Memory { reserve, measured_at: Mutex::new(Instant::now()), measured, left, measure }
    }

    fn take_for_start(&self) -> bool {
        self.take(BYTES_PER_START)
    }

    fn may_grow(&self, bytes: u64) -> bool {
        self.take(bytes)
    }

    fn take(&self, bytes: u64) -> bool {
        self.refresh();
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes).filter(|left| *left >= self.reserve)
        });
        taken.is_ok()
    }

    fn refresh(&self) {
        // Whoever finds the lock taken goes on with the figure there is.
        if let Ok(mut measured_at) = self.measured_at.try_lock()
            && measured_at.elapsed() >= MEASURE_EVERY
        {
            *measured_at = Instant::now();
            let available = (self.measure)().unwrap_or(u64::MAX);
            self.measured.store(available, Ordering::Relaxed);
            self.left.store(available, Ordering::Relaxed);
        }
    }

    /// Takes back what an attempt that has ended was given. Never more than was measured: of what was
    /// taken before the measurement, nobody knows how much was really used.
    fn give_back(&self, bytes: u64) {
        let measured = self.measured.load(Ordering::Relaxed);
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_add(bytes).min(measured)));
    }
}

/// Bytes that can still be used: the machine's, or the control group's where that is less. `None`
/// where neither can be read.
pub fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| meminfo_available(&text));
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| cgroup_available(&text, read));
    match (machine, groups) {
        (Some(machine), Some(group)) => Some(machine.min(group)),
        (machine, group) => machine.or(group),
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What this process's control groups leave, version 2 and version 1: in each the tightest of the
/// group and the groups above it.
fn cgroup_available(self_cgroup: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut tightest = None;
    for line in self_cgroup.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (root, limit, used, reclaimable) = if controllers.is_empty() {
            ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        } else if controllers.split(',').any(|controller| controller == "memory") {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        } else {
            continue;
        };
        // A container often sees its own group at the root, whatever path is written here.
        for dir in Path::new(group).ancestors() {
            let dir = Path::new(root).join(dir.strip_prefix("/").unwrap_or(dir));
            let number = |name: &str| read(&dir.join(name))?.trim().parse::<u64>().ok();
            let (Some(limit), Some(used)) = (number(limit), number(used)) else { continue };
            // File pages that were not used lately are taken back before anything is killed.
            let cache = read(&dir.join("memory.stat"))
                .and_then(|stat| stat.lines().find_map(|line| line.strip_prefix(reclaimable)?.trim().parse().ok()))
                .unwrap_or(0);
            let left = limit.saturating_sub(used.saturating_sub(cache));
            tightest = Some(tightest.map_or(left, |tightest: u64| tightest.min(left)));
        }
    }
    tightest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(slots: usize, max_working: usize) -> Arc<Room> {
        Arc::new(Room::new(slots, max_working, Memory::with(0, || None)))
    }

    const ALONE: Claim = Claim { part: 0, no_more: false, kept: 0 };

    fn take(room: &Arc<Room>) -> Result<Place, NoRoom> {
        room.take(&"a".into(), ALONE)
    }

    #[test]
    fn a_tenant_has_its_part_though_others_hold_everything() {
        let room = room(8, 2);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let claim = Claim { part: 1, ..ALONE };
        let _of_a = [room.take(&a, claim).ok().unwrap(), room.take(&a, claim).ok().unwrap()];
        assert_eq!(room.take(&a, claim).err(), Some(NoRoom::Working));
        let of_b = room.take(&b, claim).ok().unwrap();
        assert_eq!(room.take(&b, claim).err(), Some(NoRoom::Working));
        assert_eq!((room.working(), room.working_of(&b), room.tenants_started()), (3, 1, 2));
        // Whoever was sent away hears of it, though more work than may.
        let told = Arc::new(AtomicUsize::new(0));
        let tell = told.clone();
        room.on_room(move || {
            tell.fetch_add(1, Ordering::SeqCst);
        });
        of_b.parked();
        assert_eq!(told.load(Ordering::SeqCst), 1);
        drop(of_b);
        assert_eq!((room.working_of(&b), room.started_of(&b), room.tenants_started()), (0, 0, 1));
        // No more than its part, where others wait.
        drop(_of_a);
        let claim = Claim { no_more: true, ..claim };
        let _one = room.take(&a, claim).ok().unwrap();
        assert_eq!(room.take(&a, claim).err(), Some(NoRoom::Working));
    }

    #[test]
    fn slots_are_kept_for_tenants_that_have_none() {
        let room = room(4, 100);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let claim = Claim { kept: 2, ..ALONE };
        let _of_a = [room.take(&a, claim).ok().unwrap(), room.take(&a, claim).ok().unwrap()];
        assert_eq!(room.take(&a, claim).err(), Some(NoRoom::Slots));
        let _of_b = room.take(&b, claim).ok().unwrap();
        assert_eq!(room.take(&b, Claim { kept: 1, ..claim }).err(), Some(NoRoom::Slots));
        let _last = room.take(&"c".into(), claim).ok().unwrap();
        assert_eq!(room.take(&"d".into(), ALONE).err(), Some(NoRoom::Slots));
    }

    #[test]
    fn slots_bound_all_and_working_bounds_those_that_work() {
        let room = room(3, 1);
        let first = take(&room).ok().unwrap();
        assert_eq!(take(&room).err(), Some(NoRoom::Working));
        first.parked();
        let second = take(&room).ok().unwrap();
        second.parked();
        let third = take(&room).ok().unwrap();
        third.parked();
        assert_eq!(take(&room).err(), Some(NoRoom::Slots), "a sleeping attempt keeps its slot");
        first.resumed();
        second.resumed();
        assert_eq!(room.working(), 2, "who wakes up is never held back");
        drop((first, second, third));
        assert_eq!((room.started(), room.working()), (0, 0));
    }

    /// A wake from another thread may come at any time, also while the attempt leaves.
    #[test]
    fn a_wake_in_the_middle_of_leaving_counts_nothing() {
        let room = room(1, 1);
        for _ in 0..2000 {
            let place = take(&room).ok().unwrap();
            place.parked();
            std::thread::scope(|scope| {
                scope.spawn(|| (0..10).for_each(|_| place.resumed()));
                place.leave();
            });
            place.resumed();
            place.parked();
            assert_eq!((room.started(), room.working()), (0, 0));
        }
    }

    #[test]
    fn who_was_sent_away_hears_of_room_once() {
        let room = room(3, 1);
        let told = Arc::new(AtomicUsize::new(0));
        let tell = told.clone();
        room.on_room(move || {
            tell.fetch_add(1, Ordering::SeqCst);
        });
        let first = take(&room).ok().unwrap();
        first.parked();
        assert_eq!(told.load(Ordering::SeqCst), 0, "nobody waits");
        first.resumed();
        assert!(take(&room).is_err());
        first.parked();
        first.resumed();
        first.parked();
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_reserve_is_kept() {
        let memory = Memory::with(BYTES_PER_START, || Some(3 * BYTES_PER_START + 5));
        assert!(memory.take_for_start());
        assert!(memory.take_for_start());
        assert!(!memory.take_for_start());
        assert!(memory.may_grow(5));
        assert!(!memory.may_grow(1));
        memory.give_back(3);
        assert!(memory.may_grow(3));
        assert!(!memory.may_grow(1));
        memory.give_back(u64::MAX);
        assert!(!memory.take(3 * BYTES_PER_START), "never more than was measured");
    }

    /// Short attempts, many of them between two measurements, do not use up what they gave back.
    #[test]
    fn attempts_that_end_give_their_memory_back() {
        let room = Arc::new(Room::new(10, 10, Memory::with(0, || Some(2 * BYTES_PER_START))));
        for _ in 0..100 {
            let place = take(&room).ok().unwrap();
            assert!(room.may_grow(BYTES_PER_START));
            room.shrunk(BYTES_PER_START);
            drop(place);
        }
    }

    #[test]
    fn meminfo() {
        assert_eq!(meminfo_available("MemTotal: 8 kB\nMemAvailable:     12 kB\n"), Some(12 * 1024));
        assert_eq!(meminfo_available("MemTotal: 8 kB\n"), None);
    }

    #[test]
    fn cgroup_version_2_takes_the_tightest_of_the_group_and_those_above() {
        let read = |path: &Path| {
            Some(
                match path.to_str().unwrap() {
                    "/sys/fs/cgroup/a/b/memory.max" => "max\n",
                    "/sys/fs/cgroup/a/b/memory.current" => "10\n",
                    "/sys/fs/cgroup/a/memory.max" => "1000\n",
                    "/sys/fs/cgroup/a/memory.current" => "900\n",
                    "/sys/fs/cgroup/a/memory.stat" => "active_file 7\ninactive_file 300\n",
                    _ => return None,
                }
                .to_string(),
            )
        };
        assert_eq!(cgroup_available("0::/a/b\n", read), Some(400));
    }

    #[test]
    fn cgroup_version_1_and_a_container_that_sees_its_group_at_the_root() {
        let read = |path: &Path| {
            Some(
                match path.to_str().unwrap() {
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "1000\n",
                    "/sys/fs/cgroup/memory/memory.usage_in_bytes" => "400\n",
                    _ => return None,
                }
                .to_string(),
            )
        };
        assert_eq!(cgroup_available("5:cpu:/x\n4:memory:/docker/abc\n", read), Some(600));
        assert_eq!(cgroup_available("5:cpu:/x\n", read), None);
    }
}
