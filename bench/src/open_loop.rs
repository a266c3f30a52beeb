//! The open loop: requests are sent at times that do not depend on the answers, as clients that know
//! nothing of each other send them. One thread and epoll, as in the closed loop.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};
use serde::Deserialize;

use crate::check::check;
use crate::connection::Connection;
use crate::cpu;
use crate::request::{Kind, Random, Template};

/// So many that one is nearly always free; a request that finds none waits, and that counts.
const CONNECTIONS: usize = 256;
/// What is not answered then has been lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The timer among the connections.
const TIMER: u64 = u64::MAX;

/// What one run of the loop does.
pub(crate) struct Plan<'a> {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// The server's process, whose CPU time is taken.
    pub(crate) server: u32,
    /// The type of the tasks.
    pub(crate) task_type: &'a str,
    /// Requests a second. The gaps between them are exponentially distributed.
    pub(crate) rate: u32,
    /// Load before the measurement. It is checked like the rest and not counted.
    pub(crate) warm_up: Duration,
    /// How long requests are counted that are sent.
    pub(crate) measured: Duration,
}

/// A task that was accepted.
pub(crate) struct Posted {
    /// Its id.
    pub(crate) id: String,
    /// When its request was to be sent.
    pub(crate) due: SystemTime,
    /// How much later it was sent.
    pub(crate) late: Duration,
    /// From when it was to be sent until its whole answer was there.
    pub(crate) stored: Duration,
}

/// What one run of the loop found.
pub(crate) struct Found {
    /// The tasks of the measured time.
    pub(crate) posted: Vec<Posted>,
    /// CPU time that the server used in the measured time.
    pub(crate) server_cpu: Duration,
}

/// A request that is out.
struct Out {
    due: Instant,
    due_by_clock: SystemTime,
    late: Duration,
}

/// Drives the load. Every answer must be the accepted task; the first fault ends the run.
pub(crate) fn run(plan: &Plan<'_>, random: &mut Random) -> Result<Found> {
    let template = Template::new(plan.address, plan.task_type, Kind::Enqueued, None, Duration::ZERO);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // The time that epoll itself takes is in whole milliseconds.
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for index in 0..CONNECTIONS {
        let connection = Connection::open(plan.address).context("opening a connection")?;
        epoll::add(&epoll, &connection, EventData::new_u64(index as u64), EventFlags::IN)?;
        connections.push(connection);
    }
    let mut out: Vec<Option<Out>> = (0..CONNECTIONS).map(|_| None).collect();
    let mut free: Vec<usize> = (0..CONNECTIONS).collect();
    let mut events: Vec<epoll::Event> = Vec::with_capacity(CONNECTIONS);
    let mut request = Vec::new();
    let mut found = Found { posted: Vec::new(), server_cpu: Duration::ZERO };
    let mean = Duration::from_secs(1) / plan.rate;
    let counted_from = Instant::now() + plan.warm_up;
    let end = counted_from + plan.measured;
    let mut cpu_at_start = None;
    let mut due = Instant::now() + random.gap(mean);
    while due < end || free.len() < CONNECTIONS {
        let now = Instant::now();
        ensure!(now < end + ANSWER_LIMIT, "{} requests without an answer", CONNECTIONS - free.len());
        if cpu_at_start.is_none() && now >= counted_from {
            cpu_at_start = Some(cpu::used_by(plan.server)?);
        }
        if now >= due
            && due < end
            && let Some(index) = free.pop()
        {
            let connection = &mut connections[index];
            template.random(random, &mut connection.input);
            template.write(&connection.input, &mut request);
            let now = Instant::now();
            let late = now - due;
            out[index] = Some(Out { due, due_by_clock: SystemTime::now() - late, late });
            ensure!(connection.send(&request)?, "a socket did not take a request at once");
            due += random.gap(mean);
            continue;
        }
        // Without a free connection an answer comes first.
        let wait = if due < end && !free.is_empty() { due - now } else { ANSWER_LIMIT };
        set(&timer, wait)?;
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for event in events.iter().filter(|event| event.data.u64() != TIMER) {
            let index = event.data.u64() as usize;
            let input = std::mem::take(&mut connections[index].input);
            if let Some(response) = connections[index].receive()? {
                let answered = Instant::now();
                check(Kind::Enqueued, &input, &response)?;
                let Out { due, due_by_clock, late } = out[index].take().context("an answer that nobody asked for")?;
                if due >= counted_from {
                    let id = id(response.body)?;
                    found.posted.push(Posted { id, due: due_by_clock, late, stored: answered - due });
                }
                free.push(index);
            }
            connections[index].input = input;
        }
    }
    found.server_cpu = cpu::used_by(plan.server)?.saturating_sub(cpu_at_start.unwrap_or_default());
    ensure!(!found.posted.is_empty(), "nothing was sent");
    Ok(found)
}

/// Lets the timer go off after `wait`, which is above 0, and forget that it went off before.
fn set(timer: &OwnedFd, wait: Duration) -> Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
    let setting = Itimerspec { it_interval: zero, it_value: wait };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting)?;
    Ok(())
}

fn id(body: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Task {
        id: String,
    }
    let task: Task = serde_json::from_slice(body).context("an answer that is no task")?;
    Ok(task.id)
}
