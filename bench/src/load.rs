//! The closed loop: a fixed number of connections, each with one request in flight, driven by one
//! thread and epoll so that the machine's cores are left to the server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::check::check;
use crate::connection::Connection;
use crate::cpu;
use crate::histogram::Histogram;
use crate::request::{Kind, Random, Template};

/// `Prefer: wait` is answered after 60 s at the latest; what is out longer has been lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(70);
/// How many errors are kept with their text. All are counted.
const KEPT_ERRORS: usize = 5;

/// What one run of the loop does.
pub(crate) struct Plan<'a> {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// The server's process, whose CPU time is taken.
    pub(crate) server: u32,
    /// How many connections, each with one request in flight.
    pub(crate) connections: usize,
    /// Whether an answer means the task's end.
    pub(crate) kind: Kind,
    /// The type of the tasks; it must answer with its input.
    pub(crate) task_type: &'a str,
    /// What the requests authenticate with.
    pub(crate) key: Option<&'a str>,
    /// How long after its creation a task is due.
    pub(crate) delay: Duration,
    /// Load before the measurement. It is checked like the rest and not counted.
    pub(crate) warm_up: Duration,
    /// How long requests are sent and counted.
    pub(crate) measured: Duration,
    /// Stops earlier when this many have been sent after the warm-up.
    pub(crate) at_most: u64,
}

/// What one run of the loop found.
pub(crate) struct Found {
    /// Good answers within the measured time.
    pub(crate) answered: u64,
    /// Good answers to requests that were still out at its end.
    pub(crate) late: u64,
    /// The measured time as it was.
    pub(crate) elapsed: Duration,
    /// From sending to the whole answer, for all good answers since the warm-up, late ones too.
    pub(crate) latency: Histogram,
    /// CPU time that the server used in the measured time.
    pub(crate) server_cpu: Duration,
    /// CPU time that this program used in the measured time.
    pub(crate) own_cpu: Duration,
    /// All faults, those of the warm-up included.
    pub(crate) errors: u64,
    /// The text of the first few faults.
    pub(crate) messages: Vec<String>,
    /// When the measurement began.
    pub(crate) began: Instant,
}

impl Found {
    /// Good answers per second of the measured time.
    pub(crate) fn rate(&self) -> f64 {
        // The smallest time that is not zero: a run without any answer has none.
        self.answered as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Drives the load and checks every answer. An error is returned only when the run cannot go on;
/// wrong answers are counted in what is returned.
pub(crate) fn run(plan: &Plan<'_>, random: &mut Random) -> Result<Found> {
    let mut load = Load::open(plan, random)?;
    for index in 0..load.connections.len() {
        load.next_request(index)?;
    }
    load.turn_until(Instant::now() + plan.warm_up)?;
    load.begin()?;
    load.turn_until(load.found.began + plan.measured)?;
    load.end()?;
    load.collect_late()?;
    Ok(load.found)
}

struct Load<'a> {
    plan: &'a Plan<'a>,
    random: &'a mut Random,
    template: Template,
    /// The one buffer that every request is written in.
    request: Vec<u8>,
    connections: Vec<Connection>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    in_flight: usize,
    phase: Phase,
    /// Requests that may still be started in this phase.
    to_start: u64,
    last_answer: Instant,
    found: Found,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    WarmUp,
    Measured,
    Late,
}

impl<'a> Load<'a> {
    fn open(plan: &'a Plan<'a>, random: &'a mut Random) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections {
            let connection = Connection::open(plan.address)
                .with_context(|| format!("opening connection {} of {}", index + 1, plan.connections))?;
            epoll::add(&epoll, &connection, EventData::new_u64(index as u64), EventFlags::IN)?;
            connections.push(connection);
        }
        let now = Instant::now();
        Ok(Self {
            plan,
            random,
            template: Template::new(plan.address, plan.task_type, plan.kind, plan.key, plan.delay),
            request: Vec::with_capacity(4096),
            events: Vec::with_capacity(plan.connections.min(1024)),
            connections,
            epoll,
            in_flight: 0,
            phase: Phase::WarmUp,
            to_start: if plan.warm_up.is_zero() { 0 } else { u64::MAX },
            last_answer: now,
            found: Found {
                answered: 0,
                late: 0,
                elapsed: Duration::ZERO,
                latency: Histogram::new(),
                server_cpu: Duration::ZERO,
                own_cpu: Duration::ZERO,
                errors: 0,
                messages: Vec::new(),
                began: now,
            },
        })
    }

    fn begin(&mut self) -> Result<()> {
        self.phase = Phase::Measured;
        self.to_start = self.plan.at_most;
        // The difference to the reading at the end is what counts.
        self.found.server_cpu = cpu::used_by(self.plan.server)?;
        self.found.own_cpu = cpu::used_by(std::process::id())?;
        self.found.began = Instant::now();
        // Without a warm-up nothing is in flight yet.
        for index in 0..self.connections.len() {
            if self.connections[index].sent.is_none() {
                self.next_request(index)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        // With nothing left to send the last answer was the end, not the time at which it was seen.
        let end = if self.in_flight == 0 { self.last_answer } else { Instant::now() };
        self.phase = Phase::Late;
        self.to_start = 0;
        self.found.elapsed = end - self.found.began;
        self.found.server_cpu = cpu::used_by(self.plan.server)?.saturating_sub(self.found.server_cpu);
        self.found.own_cpu = cpu::used_by(std::process::id())?.saturating_sub(self.found.own_cpu);
        Ok(())
    }

    /// Waits for the requests still out, so that a lost one is found.
    fn collect_late(&mut self) -> Result<()> {
        self.turn_until(Instant::now() + ANSWER_LIMIT)?;
        if self.in_flight > 0 {
            self.found.errors += self.in_flight as u64 - 1;
            let text = format!("{} requests without an answer after {ANSWER_LIMIT:?}", self.in_flight);
            self.note(text);
        }
        Ok(())
    }

    /// Handles what the sockets have until `deadline`, or until no request is out any more.
    fn turn_until(&mut self, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.in_flight == 0 {
                return Ok(());
            }
            self.events.clear();
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let room = rustix::buffer::spare_capacity(&mut self.events);
            match epoll::wait(&self.epoll, room, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("epoll_wait"),
            }
            for at in 0..self.events.len() {
                let event = self.events[at];
                self.handle(event.data.u64() as usize, event.flags)?;
            }
        }
    }

    fn handle(&mut self, index: usize, flags: EventFlags) -> Result<()> {
        let connection = &mut self.connections[index];
        if flags.contains(EventFlags::OUT) {
            match connection.send_rest() {
                Ok(true) => watch(&self.epoll, connection, index, EventFlags::IN)?,
                Ok(false) => {}
                Err(error) => return self.reconnect(index, format!("sending: {error}")),
            }
        }
        let connection = &mut self.connections[index];
        // Without a request in flight this tells a close or an answer that nobody asked for.
        let Some(sent) = connection.sent else {
            return self.reconnect(index, "an answer or a close without a request".to_owned());
        };
        let kind = self.plan.kind;
        // Borrowed apart from the answer, which borrows the connection.
        let input = std::mem::take(&mut connection.input);
        let checked = match connection.receive() {
            Ok(None) => {
                connection.input = input;
                return Ok(());
            }
            Ok(Some(response)) => Ok((check(kind, &input, &response), response.close)),
            Err(error) => Err(error),
        };
        connection.input = input;
        match checked {
            Err(error) => self.reconnect(index, format!("{error:#}")),
            Ok((verdict, close)) => {
                let now = Instant::now();
                self.connections[index].sent = None;
                self.in_flight -= 1;
                self.last_answer = now;
                match verdict {
                    Ok(()) => self.count(now - sent),
                    Err(error) => self.note(format!("{error:#}")),
                }
                if close {
                    return self.reconnect(index, "an answer with `Connection: close`".to_owned());
                }
                self.next_request(index)
            }
        }
    }

    fn count(&mut self, latency: Duration) {
        match self.phase {
            Phase::WarmUp => return,
            Phase::Measured => self.found.answered += 1,
            Phase::Late => self.found.late += 1,
        }
        self.found.latency.record(latency);
    }

    fn note(&mut self, message: String) {
        self.found.errors += 1;
        let messages = &self.found.messages;
        if messages.len() < KEPT_ERRORS && !messages.contains(&message) {
            self.found.messages.push(message);
        }
    }

    fn reconnect(&mut self, index: usize, message: String) -> Result<()> {
        if self.connections[index].sent.is_some() {
            self.in_flight -= 1;
        }
        let again = self.connections[index].reopen(self.plan.address);
        if let Err(error) = again {
            bail!("{message}; connecting again failed too: {error}");
        }
        self.note(message);
        let connection = &self.connections[index];
        // The old socket left the epoll set when it was closed.
        epoll::add(&self.epoll, connection, EventData::new_u64(index as u64), EventFlags::IN)?;
        self.next_request(index)
    }

    fn next_request(&mut self, index: usize) -> Result<()> {
        if self.to_start == 0 {
            return Ok(());
        }
        self.to_start -= 1;
        let connection = &mut self.connections[index];
        self.template.random(self.random, &mut connection.input);
        self.template.write(&connection.input, &mut self.request);
        connection.sent = Some(Instant::now());
        self.in_flight += 1;
        match connection.send(&self.request) {
            Ok(true) => Ok(()),
            Ok(false) => watch(&self.epoll, connection, index, EventFlags::IN | EventFlags::OUT),
            // Reading finds the same fault, counts it and connects again; were that done here, a
            // server that closes every connection would be met with endless recursion.
            Err(_) => Ok(()),
        }
    }
}

fn watch(epoll: &OwnedFd, connection: &Connection, index: usize, flags: EventFlags) -> Result<()> {
    epoll::modify(epoll, connection, EventData::new_u64(index as u64), flags)?;
    Ok(())
}
