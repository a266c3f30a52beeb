//! Clocks and random numbers that are the same in every attempt of a task, for types that ask for them.
//!
//! Time begins where the task was created and does not pass by itself: each look at a clock takes a
//! microsecond, and what was waited for has passed. Waiting takes as long as ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chacha20::ChaCha20Rng;
use chacha20::rand_core::SeedableRng;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::time::Instant;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock::Host as _;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use super::Host;
use crate::task::TaskId;

/// What a look at a clock takes, in nanoseconds: loops that wait for time to pass come to an end.
const LOOK: u64 = 1000;

/// Where the monotonic clock begins, in nanoseconds: programs subtract from what it says.
const BEGIN: u64 = 3_600_000_000_000;

/// The time of one attempt.
#[derive(Clone)]
pub(super) struct Time(Arc<TimeInner>);

struct TimeInner {
    /// What the wall clock says at `BEGIN`, since 1970.
    created: Duration,
    now: AtomicU64,
}

impl Time {
    /// The time of an attempt of that task, from its beginning.
    fn of(id: TaskId) -> Time {
        let (seconds, nanos) = id.0.get_timestamp().map_or((0, 0), |created| created.to_unix());
        Time(Arc::new(TimeInner { created: Duration::new(seconds, nanos), now: AtomicU64::new(BEGIN) }))
    }

    fn look(&self) -> u64 {
        self.0.now.fetch_add(LOOK, Ordering::Relaxed)
    }

    /// The moment that is `duration` from now.
    pub(super) fn after(&self, duration: Duration) -> u64 {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.0.now.load(Ordering::Relaxed).saturating_add(nanos)
    }

    /// That moment has come.
    pub(super) fn passed(&self, moment: u64) {
        self.0.now.fetch_max(moment, Ordering::Relaxed);
    }
}

impl HostMonotonicClock for Time {
    fn resolution(&self) -> u64 {
        LOOK
    }

    fn now(&self) -> u64 {
        self.look()
    }
}

impl HostWallClock for Time {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(LOOK)
    }

    fn now(&self) -> Duration {
        self.0.created + Duration::from_nanos(self.look() - BEGIN)
    }
}

/// Gives a guest the clocks and the randomness of that task.
pub(super) fn put_in(wasi: &mut WasiCtxBuilder, id: TaskId) -> Time {
    let time = Time::of(id);
    // A stream for each interface: how often the one is used does not show in the other.
    let seed =
        |of: &str| -> [u8; 32] { Sha256::new().chain_update(id.0.as_bytes()).chain_update(of).finalize().into() };
    let insecure_seed = seed("seed").iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte));
    wasi.monotonic_clock(time.clone())
        .wall_clock(time.clone())
        .secure_random(ChaCha20Rng::from_seed(seed("random")))
        .insecure_random(ChaCha20Rng::from_seed(seed("insecure")))
        .insecure_random_seed(insecure_seed);
    time
}

/// Waits until a moment of a [`Time`], as long as that is from when it was asked for.
struct Moment {
    time: Time,
    moment: u64,
    until: Instant,
    timers: Handle,
}

#[wasmtime_wasi::async_trait]
impl Pollable for Moment {
    async fn ready(&mut self) {
        let sleep = {
            let _on = self.timers.enter();
            tokio::time::sleep_until(self.until)
        };
        sleep.await;
        self.time.passed(self.moment);
    }
}

impl Host {
    fn subscribe(&mut self, time: Time, wait: Duration) -> wasmtime::Result<Resource<DynPollable>> {
        let moment = time.after(wait);
        // What is further away than the attempt can be is never reached.
        let until = Instant::now() + wait.min(Duration::from_secs(366 * 24 * 3600));
        let moment = self.table.push(Moment { time, moment, until, timers: self.services.timers.clone() })?;
        subscribe(&mut self.table, moment)
    }
}

/// Puts waiting by the clock into a linker, in place of the engine's, which is kept for all other guests.
pub(super) fn add_to_linker(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.12")?;
    clock.func_wrap("subscribe-duration", |mut store: StoreContextMut<'_, Host>, (nanos,): (u64,)| {
        let host = store.data_mut();
        Ok((match host.time.clone() {
            Some(time) => host.subscribe(time, Duration::from_nanos(nanos))?,
            None => host.clocks().subscribe_duration(nanos)?,
        },))
    })?;
    clock.func_wrap("subscribe-instant", |mut store: StoreContextMut<'_, Host>, (when,): (u64,)| {
        let host = store.data_mut();
        Ok((match host.time.clone() {
            Some(time) => {
                let wait = when.saturating_sub(time.look());
                host.subscribe(time, Duration::from_nanos(wait))?
            }
            None => host.clocks().subscribe_instant(when)?,
        },))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_begins_where_the_task_was_created_and_is_the_same_again() {
        let id = TaskId("01a213d1-0264-71e3-8633-81e6bac8d220".parse().unwrap());
        for _ in 0..2 {
            let time = Time::of(id);
            let wall = |time: &Time| HostWallClock::now(time).as_nanos();
            let created = 0x01a2_13d1_0264_u128 * 1_000_000;
            assert_eq!(
                (wall(&time), HostMonotonicClock::now(&time), wall(&time)),
                (created, BEGIN + 1000, created + 2000)
            );
            let later = time.after(Duration::from_millis(5));
            time.passed(later);
            assert_eq!(HostMonotonicClock::now(&time), BEGIN + 3000 + 5_000_000);
            time.passed(later);
            assert_eq!(HostMonotonicClock::now(&time), BEGIN + 4000 + 5_000_000, "it never goes back");
        }
    }
}
