//! The ledger: what the attempts of each tenant came to and what they used, day by day (UTC). Pure.
//!
//! All of it is counted in whole numbers, so that the sums are those of the receipts exactly, in whatever order
//! they are added up. A sum stops at 2^63 - 1, the largest number that the store has.

use crate::task::{ErrorKind, Event, Outcome, Timestamp, Usage};

/// The largest sum.
const MOST: u64 = i64::MAX as u64;

/// A day: how many were before it since 1970-01-01, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(pub i64);

impl Day {
    /// The day of a time.
    pub fn of(at: Timestamp) -> Day {
        Day(at.0.div_euclid(24 * 60 * 60 * 1000))
    }

    /// That many days before it.
    pub fn minus(self, days: u32) -> Day {
        Day(self.0.saturating_sub(i64::from(days)))
    }
}

/// What an attempt, or a task that was waiting, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CameTo {
    /// It completed.
    Completed,
    /// It failed in that way.
    Failed(ErrorKind),
    /// It was given back, and is in no record of its task: the server stopped, or had no room for it after all.
    GivenBack,
    /// It was a test of a task type, and of no task.
    Test,
}

impl CameTo {
    /// The name in the store, which is the error's where it failed.
    pub fn name(self) -> &'static str {
        match self {
            CameTo::Completed => "completed",
            CameTo::Failed(kind) => kind.name(),
            CameTo::GivenBack => "given_back",
            CameTo::Test => "test",
        }
    }

    /// What has that name.
    pub fn named(name: &str) -> Option<CameTo> {
        let failed = ErrorKind::ALL.into_iter().map(CameTo::Failed);
        [CameTo::Completed, CameTo::GivenBack, CameTo::Test].into_iter().chain(failed).find(|of| of.name() == name)
    }
}

/// How many there were, and what they used together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Tasks that ended so. One that is retried by hand ends again.
    pub tasks: u64,
    /// Attempts that came to it.
    pub attempts: u64,
    /// CPU time in microseconds, as exact as the receipts have it.
    pub cpu_us: u64,
    /// From their starts to their ends, in microseconds.
    pub wall_us: u64,
    /// From when each could have started to its start, in microseconds.
    pub queue_us: u64,
    /// Fuel.
    pub fuel: u64,
    /// The most memory of each times how long it ran: KiB times milliseconds, of each rounded down.
    pub memory_kib_ms: u64,
    /// Calls of `taskcell:task` interfaces.
    pub host_calls: u64,
    /// Bytes of objects read and written.
    pub io_bytes: u64,
    /// Bytes of log lines kept.
    pub log_bytes: u64,
}

impl Sums {
    /// One attempt with that receipt.
    pub fn of(usage: &Usage) -> Sums {
        let (wall_us, peak) = (micros(usage.wall_ms), usage.peak_memory_bytes);
        let memory_kib_ms = u128::from(peak) * u128::from(wall_us) / (1024 * 1000);
        Sums {
            tasks: 0,
            attempts: 1,
            cpu_us: micros(usage.cpu_ms),
            wall_us,
            queue_us: micros(usage.queue_ms),
            fuel: usage.fuel,
            memory_kib_ms: u64::try_from(memory_kib_ms).unwrap_or(MOST),
            host_calls: usage.host_calls,
            io_bytes: usage.io_bytes,
            log_bytes: usage.log_bytes,
        }
    }

    /// Adds others.
    pub fn add(&mut self, others: &Sums) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more).min(MOST);
        add(&mut self.tasks, others.tasks);
        add(&mut self.attempts, others.attempts);
        add(&mut self.cpu_us, others.cpu_us);
        add(&mut self.wall_us, others.wall_us);
        add(&mut self.queue_us, others.queue_us);
        add(&mut self.fuel, others.fuel);
        add(&mut self.memory_kib_ms, others.memory_kib_ms);
        add(&mut self.host_calls, others.host_calls);
        add(&mut self.io_bytes, others.io_bytes);
        add(&mut self.log_bytes, others.log_bytes);
    }
}

/// What an event brings into the ledger where a task takes it; whether the task ends with it is not known yet.
/// What an attempt used that the server went down under is not known, and one that is given back says it apart.
pub fn entry(event: &Event) -> Option<(CameTo, Sums)> {
    match event {
        Event::End { end, .. } => {
            let came_to = match &end.outcome {
                Outcome::Completed(_) => CameTo::Completed,
                Outcome::Failed(error) => CameTo::Failed(error.kind),
            };
            Some((came_to, Sums::of(&end.usage)))
        }
        Event::Interrupt { .. } => {
            Some((CameTo::Failed(ErrorKind::Interrupted), Sums { attempts: 1, ..Sums::default() }))
        }
        Event::Expire => Some((CameTo::Failed(ErrorKind::Expired), Sums::default())),
        Event::Cancel => Some((CameTo::Failed(ErrorKind::Canceled), Sums::default())),
        Event::Start { .. } | Event::GiveBack { .. } | Event::Due | Event::Retry | Event::Hold(_) | Event::Release => {
            None
        }
    }
}

/// The microseconds that a receipt's milliseconds were made of.
fn micros(millis: f64) -> u64 {
    (millis * 1000.0).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for of in
            ErrorKind::ALL.map(CameTo::Failed).into_iter().chain([CameTo::Completed, CameTo::GivenBack, CameTo::Test])
        {
            assert_eq!(CameTo::named(of.name()), Some(of));
        }
        assert_eq!(CameTo::named("else"), None);
    }

    #[test]
    fn microseconds_are_exact() {
        for exact in (0..1_000_000).chain([86_400_000_001, 31_536_000_000_001, (1 << 50) + 1]) {
            assert_eq!(micros(exact as f64 / 1000.0), exact);
        }
    }

    #[test]
    fn days_begin_at_midnight() {
        let of = |millis: i64| Day::of(Timestamp(millis)).0;
        assert_eq!([of(-1), of(0), of(86_399_999), of(86_400_000)], [-1, 0, 0, 1]);
        assert_eq!(Day(10).minus(3), Day(7));
    }

    #[test]
    fn sums_stop_at_the_largest_number() {
        let much = Usage { fuel: u64::MAX, peak_memory_bytes: u64::MAX, wall_ms: 1e15, ..Usage::default() };
        let mut sums = Sums::of(&much);
        sums.add(&Sums::of(&Usage { fuel: 1, ..Usage::default() }));
        assert_eq!((sums.fuel, sums.memory_kib_ms, sums.attempts), (MOST, MOST, 2));
        // 3 MiB for half a second.
        let usage = Usage { peak_memory_bytes: 3 << 20, wall_ms: 500.0, ..Usage::default() };
        assert_eq!(Sums::of(&usage).memory_kib_ms, 3 * 1024 * 500);
    }
}
