//! Watches over a running attempt from outside of its future: CPU time, wall-clock time, and
//! whether somebody wants it stopped.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::task::AtomicWaker;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tokio::time::Sleep;

use super::cores::Cores;
use crate::limits::Limits;
use crate::room::Place;

/// A poll below this is short: less than a slice of a guest that computes.
const SHORT_POLL: Duration = Duration::from_micros(50);

/// Why an attempt is stopped from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// Somebody canceled or deleted the task.
    Cancel = 1,
    /// It is to be given back: the server stops, or its tenant has used up its hour and it may not wait.
    GiveBack = 2,
}

/// The handle by which an attempt is stopped, and its place among those that run.
pub struct Control {
    stop: AtomicU8,
    /// Whether the attempt was woken since its last poll began.
    woken: AtomicBool,
    task: AtomicWaker,
    place: Place,
    cores: Arc<Cores>,
    /// The number that its tenant has there.
    pub(super) tenant: usize,
    /// Where it stands there: a [`Turn`](super::cores::Turn).
    pub(super) turn: AtomicU8,
    /// When its next turn is due, by the CPU time that its tenant used by then, in nanoseconds. It is changed as `turn` is.
    pub(super) due: AtomicU64,
    /// As the how manieth of its tenant's it came to wait for it.
    pub(super) came: AtomicU64,
    /// When its time is over, where its tenant is not held.
    deadline: OnceLock<Instant>,
    /// How long its tenant was held before it began.
    held_before: Duration,
    /// Whether it may wait until its tenant's next hour begins.
    pub(super) may_be_held: bool,
}

impl Control {
    /// A handle for the attempt that holds `place`, of a tenant of that weight and with that many milliseconds of CPU
    /// time in an hour, for turns on `cores`. Where those are used up it waits for the next hour, or is given back.
    pub fn new(
        place: Place,
        cores: &Arc<Cores>,
        tenant: &Arc<str>,
        weight: u32,
        cpu_ms_per_hour: Option<u64>,
        may_be_held: bool,
    ) -> Arc<Control> {
        let tenant = cores.set(tenant, weight, cpu_ms_per_hour);
        Arc::new(Control {
            stop: AtomicU8::new(0),
            woken: AtomicBool::new(false),
            task: AtomicWaker::new(),
            place,
            tenant,
            cores: cores.clone(),
            turn: AtomicU8::new(0),
            due: AtomicU64::new(0),
            came: AtomicU64::new(0),
            deadline: OnceLock::new(),
            held_before: cores.held(tenant, Instant::now()),
            may_be_held,
        })
    }

    /// Whether it was woken since its last poll began.
    pub(super) fn was_woken(&self) -> bool {
        self.woken.load(Ordering::Acquire)
    }

    /// Its turn has come, or it ends without one: it is polled.
    pub(super) fn run(&self) {
        self.task.wake();
    }

    /// Whether its time is over, of a tenant that was held for so long; that time does not count.
    pub(super) fn is_overdue(&self, now: Instant, held: impl FnOnce() -> Duration) -> bool {
        let deadline = self.deadline.get().filter(|deadline| now >= **deadline);
        deadline.is_some_and(|deadline| now >= *deadline + held().saturating_sub(self.held_before))
    }

    /// Stops the attempt wherever it is. The first reason stays.
    pub fn stop(&self, why: Stop) {
        let _ = self.stop.compare_exchange(0, why as u8, Ordering::AcqRel, Ordering::Acquire);
        // It needs no turn to end.
        self.task.wake();
    }

    /// Gives the place back: the attempt is over and holds nothing any more.
    pub fn leave(&self) {
        self.place.leave();
    }

    /// The attempt uses no CPU any more, but is not over.
    pub fn park(&self) {
        self.place.parked();
    }

    /// It goes on.
    pub(super) fn unpark(&self) {
        self.place.resumed();
    }

    /// Waits until the attempt is stopped, where its guest has ended already.
    pub async fn until_stopped(&self) {
        poll_fn(|context| {
            self.task.register(context.waker());
            if self.stopped().is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn stopped(&self) -> Option<StoppedBy> {
        match self.stop.load(Ordering::Acquire) {
            0 => None,
            1 => Some(StoppedBy::Cancel),
            _ => Some(StoppedBy::GiveBack),
        }
    }
}

impl Wake for Control {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.place.resumed();
            self.cores.ready(self);
        }
    }
}

/// Why a future was dropped before it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StoppedBy {
    Cancel,
    GiveBack,
    Timeout,
    Cpu,
    /// Host code panicked; the message, for the log only.
    Panic(String),
}

/// Polls an attempt's future and ends it at the first of: its end, its limits, a stop, a panic.
pub(super) struct Metered<'a, F> {
    future: Pin<&'a mut F>,
    control: &'a Arc<Control>,
    waker: Waker,
    timers: &'a Handle,
    deadline: Instant,
    /// By how much that was put off.
    held: Duration,
    // Only once the attempt waits: most end before they ever do.
    timer: Option<Pin<Box<Sleep>>>,
    cpu: Duration,
    max_cpu: Duration,
    last_poll: Duration,
}

impl<'a, F: Future> Metered<'a, F> {
    /// The caller drops the future when this is done, so that nothing of it runs on.
    pub(super) fn new(
        future: Pin<&'a mut F>,
        control: &'a Arc<Control>,
        timers: &'a Handle,
        deadline: Instant,
        limits: &Limits,
    ) -> Metered<'a, F> {
        let _ = control.deadline.set(deadline);
        Metered {
            future,
            control,
            waker: Waker::from(control.clone()),
            timers,
            deadline,
            held: Duration::ZERO,
            timer: None,
            cpu: Duration::ZERO,
            max_cpu: Duration::from_millis(limits.cpu_ms),
            last_poll: Duration::ZERO,
        }
    }

    fn step(&mut self) -> Poll<Result<F::Output, StoppedBy>> {
        let started = Instant::now();
        if started >= self.deadline && self.is_over() {
            // While it waited for its turn.
            return Poll::Ready(Err(StoppedBy::Timeout));
        }
        let clock = Clock::begin(self.last_poll >= SHORT_POLL, started);
        let future = self.future.as_mut();
        let waker = &self.waker;
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.poll(&mut Context::from_waker(waker))));
        self.last_poll = started.elapsed();
        self.cpu += clock.end(self.last_poll);
        match polled {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) if self.cpu > self.max_cpu => Poll::Ready(Err(StoppedBy::Cpu)),
            Ok(Poll::Pending) if self.is_over() => Poll::Ready(Err(StoppedBy::Timeout)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(StoppedBy::Panic(panic_message(&*panic)))),
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| {
            let _on = self.timers.enter();
            Box::pin(tokio::time::sleep_until(self.deadline.into()))
        });
        timer.as_mut().poll(cx)
    }

    /// Whether its time is over. While its tenant gets no turns, it stands still.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        if now < self.deadline {
            return false;
        }
        let held = self.control.cores.held(self.control.tenant, now).saturating_sub(self.control.held_before);
        if held > self.held {
            self.deadline += held - self.held;
            self.held = held;
            if let Some(timer) = &mut self.timer {
                timer.as_mut().reset(self.deadline.into());
            }
        }
        now >= self.deadline
    }
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = (Result<F::Output, StoppedBy>, Duration);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.control.task.register(cx.waker());
        if let Some(stopped) = this.control.stopped() {
            return Poll::Ready((Err(stopped), this.cpu));
        }
        if !this.control.cores.begin(this.control) {
            // It waits for its turn, or for something else and was woken by its timer.
            let over = this.is_over();
            return if over { Poll::Ready((Err(StoppedBy::Timeout), this.cpu)) } else { Poll::Pending };
        }
        // What a wake before this was for is seen by this poll.
        this.control.woken.swap(false, Ordering::AcqRel);
        let before = this.cpu;
        let polled = this.step();
        let cpu = this.cpu.saturating_sub(before);
        if let Poll::Ready(result) = polled {
            this.control.cores.leave(this.control, cpu);
            return Poll::Ready((result, this.cpu));
        }
        this.control.cores.end(this.control, cpu);
        if this.control.woken.load(Ordering::Acquire) {
            // It yielded and wants to go on: no need for a timer yet.
            return Poll::Pending;
        }
        // Its end needs no turn.
        while this.poll_timer(cx).is_ready() {
            if this.is_over() {
                return Poll::Ready((Err(StoppedBy::Timeout), this.cpu));
            }
        }
        this.control.place.parked();
        // A wake that came between the look and the parking found the place still working.
        if this.control.woken.load(Ordering::Acquire) {
            this.control.place.resumed();
            // Where its tenant is held by now, it is parked again.
            this.control.cores.ready(this.control);
        }
        Poll::Pending
    }
}

impl<F> Drop for Metered<'_, F> {
    fn drop(&mut self) {
        self.control.cores.leave(self.control, Duration::ZERO);
    }
}

/// What a poll takes of this thread's CPU time. Reading its clock is a system call, and two for each poll are too
/// many. So a poll is expected to be as short, or as long, as the one before it, and a short one is taken at its
/// wall-clock time. Where that is long after all, another process may have had the processor, and it is no more than
/// what the thread has used since its clock was read last.
enum Clock {
    /// Of a poll that is expected to be long: the clock as it begins.
    Read(Duration),
    /// Of a short one.
    Estimated(LastRead),
}

/// When the clock of this thread was read last.
#[derive(Clone, Copy)]
struct LastRead {
    at: Instant,
    cpu: Duration,
    /// What polls were estimated at since.
    estimated: Duration,
}

/// The clock is read at least so often while there are polls.
const READ_EVERY: Duration = Duration::from_millis(1);

thread_local! {
    static LAST_READ: Cell<Option<LastRead>> = const { Cell::new(None) };
}

impl Clock {
    fn begin(long: bool, now: Instant) -> Clock {
        if long {
            return Clock::Read(thread_cpu_time());
        }
        let last = LAST_READ.get().filter(|last| now.saturating_duration_since(last.at) < READ_EVERY);
        Clock::Estimated(last.unwrap_or_else(|| LastRead::now(thread_cpu_time())))
    }

    /// What the poll has taken, by the wall clock `wall`.
    fn end(self, wall: Duration) -> Duration {
        let (taken, read) = match self {
            Clock::Estimated(last) if wall < SHORT_POLL => {
                (wall, LastRead { estimated: last.estimated + wall, ..last })
            }
            Clock::Estimated(last) => {
                let cpu = thread_cpu_time();
                (wall.min(cpu.saturating_sub(last.cpu + last.estimated)), LastRead::now(cpu))
            }
            Clock::Read(before) => {
                let cpu = thread_cpu_time();
                (cpu.saturating_sub(before), LastRead::now(cpu))
            }
        };
        LAST_READ.set(Some(read));
        taken
    }
}

impl LastRead {
    fn now(cpu: Duration) -> LastRead {
        LastRead { at: Instant::now(), cpu, estimated: Duration::ZERO }
    }
}

/// CPU time of this thread so far.
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|message| (*message).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic".to_owned())
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::pin::pin;

    use super::*;
    use crate::room::{Claim, Memory, Room};

    fn run<F: Future>(future: F, limits: Limits, stop: Option<Stop>) -> Result<F::Output, StoppedBy> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let room = Arc::new(Room::new(1, 1, Memory::new(0)));
        let cores = Arc::new(Cores::new(1));
        let claim = Claim { part: 0, no_more: false, kept: 0 };
        let control = Control::new(room.take(&"a".into(), claim).ok().unwrap(), &cores, &"a".into(), 100, None, true);
        if let Some(stop) = stop {
            control.stop(stop);
        }
        let deadline = Instant::now() + Duration::from_millis(limits.timeout_ms);
        let running = pin!(future);
        let (result, _) = runtime.block_on(Metered::new(running, &control, runtime.handle(), deadline, &limits));
        control.leave();
        assert_eq!((room.started(), room.working()), (0, 0));
        result
    }

    /// What a guest that computes looks like from outside: it yields, and wants to go on.
    async fn spin() {
        poll_fn::<(), _>(|cx| {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(1) {}
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    #[test]
    fn a_panic_of_host_code_ends_the_attempt_and_nothing_else() {
        let panics = async {
            if true {
                panic!("a host function failed")
            }
        };
        let panicked = StoppedBy::Panic("a host function failed".into());
        assert_eq!(run(panics, Limits::DEFAULT, None), Err(panicked.clone()));
        let later = async {
            tokio::task::yield_now().await;
            if true {
                panic!("a host function failed")
            }
        };
        assert_eq!(run(later, Limits::DEFAULT, None), Err(panicked));
    }

    #[test]
    fn every_way_to_end() {
        let short = Limits { timeout_ms: 30, ..Limits::DEFAULT };
        assert_eq!(run(async { 7 }, short, None), Ok(7));
        assert_eq!(run(pending::<()>(), short, None), Err(StoppedBy::Timeout));
        assert_eq!(run(spin(), short, None), Err(StoppedBy::Timeout));
        assert_eq!(run(spin(), Limits { cpu_ms: 10, ..Limits::DEFAULT }, None), Err(StoppedBy::Cpu));
        assert_eq!(run(pending::<()>(), Limits::DEFAULT, Some(Stop::Cancel)), Err(StoppedBy::Cancel));
        assert_eq!(run(spin(), Limits::DEFAULT, Some(Stop::GiveBack)), Err(StoppedBy::GiveBack));
    }

    /// While its tenant has used up its hour, an attempt waits and its time stands still, whether it computes or waits
    /// for something else.
    #[test]
    fn the_time_of_who_is_held_stands_still() {
        const LIMITS: Limits = Limits { timeout_ms: 50, ..Limits::DEFAULT };
        let computes = poll_fn({
            let mut left = 10;
            move |cx| {
                let busy = Instant::now();
                while busy.elapsed() < Duration::from_millis(1) {}
                left -= 1;
                cx.waker().wake_by_ref();
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            }
        });
        for (future, ends) in [
            (Box::pin(computes) as Pin<Box<dyn Future<Output = ()> + Send>>, Ok(())),
            (Box::pin(pending()), Err(StoppedBy::Timeout)),
        ] {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
            let room = Arc::new(Room::new(2, 2, Memory::new(0)));
            let cores = Arc::new(Cores::new(1));
            let tenant: Arc<str> = "a".into();
            let claim = Claim { part: 0, no_more: false, kept: 0 };
            let control = Control::new(room.take(&tenant, claim).ok().unwrap(), &cores, &tenant, 100, Some(1), true);
            assert!(cores.begin(&control));
            cores.end(&control, Duration::from_millis(1));
            let began = Instant::now();
            let (timers, of, control) = (runtime.handle().clone(), cores.clone(), control.clone());
            let running = runtime.spawn(async move {
                let mut future = future;
                let deadline = Instant::now() + Duration::from_millis(LIMITS.timeout_ms);
                let result = Metered::new(Pin::new(&mut future), &control, &timers, deadline, &LIMITS).await.0;
                (result, began.elapsed())
            });
            // Its time would be over three times.
            while began.elapsed() < Duration::from_millis(3 * LIMITS.timeout_ms) {
                std::thread::sleep(Duration::from_millis(5));
                of.look(Instant::now(), crate::clock::now());
                assert!(!running.is_finished(), "it is held");
            }
            of.set(&tenant, 100, None);
            let (result, after) = runtime.block_on(running).unwrap();
            assert_eq!(result, ends);
            assert!(after >= Duration::from_millis(3 * LIMITS.timeout_ms));
        }
    }

    /// Where another process has the processor, the clock on the wall goes on and the thread's does not.
    #[test]
    fn a_poll_that_is_kept_from_the_processor_is_not_charged_for_it() {
        let pushed_aside = async {
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(20));
                // A short one between, after which another is expected.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
            }
        };
        assert_eq!(run(pushed_aside, Limits { cpu_ms: 15, ..Limits::DEFAULT }, None), Ok(()));
    }
}
