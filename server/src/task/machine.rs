//! The state machine: which change may follow which. A rejected event changes nothing.

use super::{AttemptRecord, ErrorKind, Hold, Outcome, Progress, Status, Task, TaskError, Timestamp, Usage};

/// The end of an attempt, as the executor reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct AttemptEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// What it reported last.
    pub progress: Option<Progress>,
    /// The guest asked not to be attempted again sooner, in milliseconds.
    pub retry_after_ms: Option<u32>,
}

impl AttemptEnd {
    /// The end of an attempt under which the host failed before it used anything.
    pub fn host_failure(message: impl Into<String>) -> AttemptEnd {
        let outcome = Outcome::Failed(TaskError::new(ErrorKind::Host, message));
        AttemptEnd { outcome, usage: Usage::default(), progress: None, retry_after_ms: None }
    }
}

/// What can happen to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An attempt starts.
    Start {
        /// The start of the server that runs it.
        server: i64,
    },
    /// The attempt with this number ended by itself, at a limit, or because it was canceled.
    End {
        /// The number of the attempt, which fences off a late one.
        attempt: u32,
        /// How.
        end: AttemptEnd,
        /// Any number, for the jitter of a retry.
        random: u64,
    },
    /// The attempt with this number is given back without being counted: the server stops, or
    /// had no room for it after all.
    GiveBack {
        /// The number of the attempt.
        attempt: u32,
    },
    /// The server went down under the attempt that was Running. At most `max_interruptions` such
    /// attempts are repeated.
    Interrupt {
        /// How many are repeated.
        max_interruptions: u32,
    },
    /// The time that it waited for has come.
    Due,
    /// It waited for longer than its client wants it.
    Expire,
    /// Somebody cancels a task that no attempt runs of.
    Cancel,
    /// Somebody wants a task that has ended attempted afresh.
    Retry,
    /// It must not be started at the moment, though it is ready.
    Hold(Hold),
    /// It is held back no longer.
    Release,
}

/// An event that does not fit the state; nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The task has ended.
    #[error("the task has ended")]
    Ended,
    /// The task has not ended.
    #[error("the task has not ended")]
    NotEnded,
    /// The task is not Running, or another attempt is.
    #[error("that attempt is not the current one")]
    Stale,
    /// The task is Running.
    #[error("the task is running")]
    Running,
    /// The task's time has not come, or it waits for none; or it is held back, or is not.
    #[error("the task does not wait for that")]
    NotDue,
}

impl Task {
    /// Takes an event, or says why it does not fit. What it returns is an attempt that is over while
    /// the task goes on: its record is kept apart, as the task's own fields will be the next attempt's.
    ///
    /// | | Start | End, GiveBack of the current attempt | … of another | Interrupt | Due | Expire | Cancel | Retry | Hold | Release |
    /// |---|---|---|---|---|---|---|---|---|---|---|
    /// | Pending, ready | Running | stale | stale | stale | not due | Failed | Failed | not ended | Pending | not due |
    /// | Pending, not due | not due | stale | stale | stale | Pending | Failed | Failed | not ended | not due | not due |
    /// | Pending, held | not due | stale | stale | stale | not due | Failed | Failed | not ended | not due | Pending |
    /// | Running | running | Completed, Failed, Pending; Pending | stale | Pending, Failed | running | running | running | not ended | running | running |
    /// | ended | ended | ended | ended | ended | ended | ended | ended | Pending | ended | ended |
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Result<Option<AttemptRecord>, Rejected> {
        match (self.status, event) {
            (Status::Completed | Status::Failed, Event::Retry) => Ok(self.retry(now)),
            (Status::Completed | Status::Failed, _) => Err(Rejected::Ended),
            (Status::Pending | Status::Running, Event::Retry) => Err(Rejected::NotEnded),

            (Status::Pending, Event::Start { server }) => {
                if !self.is_ready() {
                    return Err(Rejected::NotDue);
                }
                self.status = Status::Running;
                self.server = Some(server);
                self.attempt += 1;
                self.started_at = Some(now);
                self.progress = None;
                Ok(None)
            }
            (Status::Pending, Event::Due) => {
                self.ready_at = self.due_at.take().ok_or(Rejected::NotDue)?;
                Ok(None)
            }
            (Status::Pending, Event::Hold(why)) => {
                if !self.is_ready() {
                    return Err(Rejected::NotDue);
                }
                self.held = Some(why);
                Ok(None)
            }
            (Status::Pending, Event::Release) => {
                self.held.take().ok_or(Rejected::NotDue)?;
                Ok(None)
            }
            (Status::Pending, Event::Expire) => {
                self.end(
                    Outcome::Failed(TaskError::new(ErrorKind::Expired, "it was still waiting when it expired")),
                    now,
                );
                Ok(None)
            }
            (Status::Pending, Event::Cancel) => {
                self.end(Outcome::Failed(TaskError::new(ErrorKind::Canceled, "canceled while it waited")), now);
                Ok(None)
            }
            (Status::Pending, Event::End { .. } | Event::GiveBack { .. } | Event::Interrupt { .. }) => {
                Err(Rejected::Stale)
            }

            (
                Status::Running,
                Event::Start { .. } | Event::Due | Event::Expire | Event::Cancel | Event::Hold(_) | Event::Release,
            ) => Err(Rejected::Running),
            (Status::Running, Event::End { attempt, end, random }) => {
                self.fence(attempt)?;
                Ok(self.attempt_ended(end, random, now))
            }
            (Status::Running, Event::GiveBack { attempt }) => {
                self.fence(attempt)?;
                self.attempt -= 1;
                self.back_to_pending(self.ready_at, now);
                Ok(None)
            }
            (Status::Running, Event::Interrupt { max_interruptions }) => {
                self.interruptions += 1;
                self.usage = None;
                let error = TaskError::new(ErrorKind::Interrupted, "the server went down while it ran");
                if self.interruptions > max_interruptions {
                    self.end(Outcome::Failed(error), now);
                    return Ok(None);
                }
                self.error = Some(error);
                let record = self.record(now);
                // It keeps its place: those that waited for it still do.
                self.back_to_pending(self.ready_at, now);
                Ok(record)
            }
        }
    }

    fn attempt_ended(&mut self, end: AttemptEnd, random: u64, now: Timestamp) -> Option<AttemptRecord> {
        self.usage_total.add(&end.usage);
        self.usage = Some(end.usage);
        self.progress = end.progress;
        let Outcome::Failed(error) = end.outcome else {
            self.end(end.outcome, now);
            return None;
        };
        self.failures += 1;
        if !error.kind.is_retryable() || self.failures >= self.retry.max_attempts {
            self.end(Outcome::Failed(error), now);
            return None;
        }
        self.error = Some(error);
        let record = self.record(now);
        let wait = self.retry.backoff_ms(self.failures, end.retry_after_ms, random);
        self.back_to_pending(now.plus_millis(wait), now);
        record
    }

    fn retry(&mut self, now: Timestamp) -> Option<AttemptRecord> {
        let record = self.finished_at.and_then(|finished| self.record(finished));
        self.failures = 0;
        self.interruptions = 0;
        self.output = None;
        // Whoever wants it again wants it now.
        self.expires_at = None;
        self.back_to_pending(now, now);
        record
    }

    /// The record of the last attempt, where the task's own fields are that attempt's.
    fn record(&self, finished_at: Timestamp) -> Option<AttemptRecord> {
        let completed = self.status == Status::Completed;
        Some(AttemptRecord {
            number: self.attempt,
            started_at: self.started_at?,
            finished_at: Some(finished_at),
            completed,
            error: self.error.clone(),
            usage: self.usage.clone(),
        })
    }

    fn fence(&self, attempt: u32) -> Result<(), Rejected> {
        if attempt == self.attempt { Ok(()) } else { Err(Rejected::Stale) }
    }

    fn back_to_pending(&mut self, ready_at: Timestamp, now: Timestamp) {
        self.status = Status::Pending;
        self.server = None;
        self.started_at = None;
        self.finished_at = None;
        self.progress = None;
        self.ready_at = ready_at;
        self.due_at = (ready_at > now).then_some(ready_at);
        self.held = None;
    }

    fn end(&mut self, outcome: Outcome, now: Timestamp) {
        self.finished_at = Some(now);
        self.server = None;
        self.due_at = None;
        self.held = None;
        match outcome {
            Outcome::Completed(output) => {
                self.status = Status::Completed;
                self.output = Some(output);
                self.error = None;
            }
            Outcome::Failed(error) => {
                self.status = Status::Failed;
                self.error = Some(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::limits::LimitOverrides;
    use crate::task::{Digest, Labels, RetryPolicy, TaskId};

    const NOW: Timestamp = Timestamp(1_000);

    /// The states of the table.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum From {
        Ready,
        NotDue,
        Held,
        Running,
        Completed,
        Failed,
    }

    fn task(from: From) -> Task {
        let status = match from {
            From::Ready | From::NotDue | From::Held => Status::Pending,
            From::Running => Status::Running,
            From::Completed => Status::Completed,
            From::Failed => Status::Failed,
        };
        Task {
            id: TaskId(Uuid::from_u128(1)),
            tenant: "default".into(),
            task_type: "echo".into(),
            component: Digest([0; 32]),
            priority: 0,
            created_at: Timestamp(0),
            limits: LimitOverrides::default(),
            input: "null".into(),
            labels: Labels::new(),
            retry: RetryPolicy { max_attempts: 2, ..RetryPolicy::DEFAULT },
            due_at: (from == From::NotDue).then_some(Timestamp(2_000)),
            ready_at: Timestamp(0),
            expires_at: None,
            unique_key: None,
            schedule: None,
            concurrency_key: None,
            held: (from == From::Held).then_some(Hold::Paused),
            status,
            attempt: if status == Status::Pending { 1 } else { 2 },
            failures: 0,
            interruptions: 0,
            server: (status == Status::Running).then_some(7),
            started_at: (status != Status::Pending).then_some(Timestamp(500)),
            finished_at: status.is_ended().then_some(Timestamp(600)),
            progress: None,
            output: None,
            error: None,
            usage: None,
            usage_total: Usage::default(),
        }
    }

    fn completed() -> AttemptEnd {
        AttemptEnd {
            outcome: Outcome::Completed("1".into()),
            usage: Usage { fuel: 7, ..Usage::default() },
            progress: None,
            retry_after_ms: None,
        }
    }

    fn failed(kind: ErrorKind) -> AttemptEnd {
        AttemptEnd { outcome: Outcome::Failed(TaskError::new(kind, "why")), ..completed() }
    }

    fn end(end: AttemptEnd) -> Event {
        Event::End { attempt: 2, end, random: 123_456 }
    }

    fn events() -> [(&'static str, Event); 15] {
        [
            ("start", Event::Start { server: 7 }),
            ("end well", end(completed())),
            ("end to be repeated", end(failed(ErrorKind::Transient))),
            ("end not to be repeated", end(failed(ErrorKind::Trap))),
            ("end of an earlier attempt", Event::End { attempt: 1, end: completed(), random: 0 }),
            ("give back the current attempt", Event::GiveBack { attempt: 2 }),
            ("give back an earlier attempt", Event::GiveBack { attempt: 1 }),
            ("interrupt, to be repeated", Event::Interrupt { max_interruptions: 3 }),
            ("interrupt, once too often", Event::Interrupt { max_interruptions: 0 }),
            ("due", Event::Due),
            ("expire", Event::Expire),
            ("cancel", Event::Cancel),
            ("retry", Event::Retry),
            ("hold", Event::Hold(Hold::Type)),
            ("release", Event::Release),
        ]
    }

    /// Every state and every event, written out.
    #[test]
    #[rustfmt::skip]
    fn every_state_and_every_event() {
        use Rejected::{Ended, NotDue, NotEnded, Running as IsRunning, Stale};
        use Status::{Completed, Failed, Pending, Running};
        let ended = [
            Err(Ended), Err(Ended), Err(Ended), Err(Ended), Err(Ended), Err(Ended), Err(Ended), Err(Ended), Err(Ended),
            Err(Ended), Err(Ended), Err(Ended), Ok(Pending), Err(Ended), Err(Ended),
        ];
        let table: [(From, [Result<Status, Rejected>; 15]); 6] = [
            (From::Ready, [
                Ok(Running), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale),
                Err(NotDue), Ok(Failed), Ok(Failed), Err(NotEnded), Ok(Pending), Err(NotDue),
            ]),
            (From::NotDue, [
                Err(NotDue), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale),
                Ok(Pending), Ok(Failed), Ok(Failed), Err(NotEnded), Err(NotDue), Err(NotDue),
            ]),
            (From::Held, [
                Err(NotDue), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale), Err(Stale),
                Err(NotDue), Ok(Failed), Ok(Failed), Err(NotEnded), Err(NotDue), Ok(Pending),
            ]),
            (From::Running, [
                Err(IsRunning), Ok(Completed), Ok(Pending), Ok(Failed), Err(Stale), Ok(Pending), Err(Stale), Ok(Pending),
                Ok(Failed), Err(IsRunning), Err(IsRunning), Err(IsRunning), Err(NotEnded), Err(IsRunning), Err(IsRunning),
            ]),
            (From::Completed, ended),
            (From::Failed, ended),
        ];
        for (from, expected) in table {
            for ((name, event), expected) in events().into_iter().zip(expected) {
                let before = task(from);
                let mut after = before.clone();
                let result = after.apply(event.clone(), NOW);
                assert_eq!(result.clone().map(|_| after.status), expected, "{from:?}, {name}");
                if result.is_err() {
                    assert_eq!(after, before, "{from:?}, {name}: a rejected event changes nothing");
                }
                assert_eq!(after.status.is_ended(), after.finished_at.is_some(), "{from:?}, {name}");
                assert_eq!(after.status == Running, after.server.is_some(), "{from:?}, {name}");
                assert!(after.due_at.is_none() || after.status == Pending, "{from:?}, {name}");
                assert!(after.held.is_none() || after.status == Pending && after.due_at.is_none(), "{from:?}, {name}");
                if result.is_ok() {
                    assert_eq!(after.held.is_some(), matches!(event, Event::Hold(_)), "{from:?}, {name}");
                }
                // An attempt that is over is in the task's own fields or in the record, never in neither.
                let over = matches!(before.status, Running | Completed | Failed) && after.attempt == before.attempt;
                let recorded = matches!(result, Ok(Some(_)));
                assert_eq!(recorded, over && after.status == Pending, "{from:?}, {name}");
            }
        }
    }

    #[test]
    fn an_attempt_counts_when_it_starts_and_not_when_it_is_given_back() {
        let mut task = task(From::Ready);
        task.attempt = 0;
        task.apply(Event::Start { server: 7 }, NOW).unwrap();
        assert_eq!((task.attempt, task.started_at), (1, Some(NOW)));
        task.apply(Event::GiveBack { attempt: 1 }, NOW).unwrap();
        assert_eq!((task.attempt, task.started_at, task.interruptions, task.failures), (0, None, 0, 0));
        assert_eq!(task.ready_at, Timestamp(0), "it keeps its place");
    }

    #[test]
    fn an_interrupted_attempt_stays_counted_and_counts_apart() {
        let mut task = task(From::Running);
        let record = task.apply(Event::Interrupt { max_interruptions: 1 }, NOW).unwrap().unwrap();
        assert_eq!((record.number, record.usage, record.error.unwrap().kind), (2, None, ErrorKind::Interrupted));
        assert_eq!((task.status, task.attempt, task.interruptions, task.failures), (Status::Pending, 2, 1, 0));
        assert_eq!((task.ready_at, task.due_at), (Timestamp(0), None), "it keeps its place");
        task.apply(Event::Start { server: 8 }, NOW).unwrap();
        task.apply(Event::Interrupt { max_interruptions: 1 }, NOW).unwrap();
        assert_eq!(task.status, Status::Failed);
        assert_eq!(task.error.unwrap().kind, ErrorKind::Interrupted);
    }

    #[test]
    fn attempts_are_repeated_as_the_policy_says_and_no_more() {
        let mut task = task(From::Running);
        let record = task.apply(end(failed(ErrorKind::Timeout)), NOW).unwrap().unwrap();
        assert_eq!((record.number, record.finished_at, record.completed), (2, Some(NOW), false));
        assert_eq!((task.failures, task.waiting()), (1, Some(crate::task::Waiting::Backoff)));
        let due = task.due_at.unwrap();
        assert!(due > NOW && due <= NOW.plus_millis(1_000) && task.ready_at == due, "{due:?}");
        assert!(task.error.is_some() && task.usage.is_some(), "it keeps what the last attempt left");
        task.apply(Event::Due, due).unwrap();
        task.apply(Event::Start { server: 7 }, due).unwrap();
        let last = Event::End { attempt: 3, end: failed(ErrorKind::Timeout), random: 1 };
        assert_eq!(task.apply(last, due), Ok(None));
        assert_eq!((task.status, task.failures, task.usage_total.fuel), (Status::Failed, 2, 14));
    }

    #[test]
    fn a_wait_that_the_guest_asks_for_is_kept() {
        let mut task = task(From::Running);
        let asks = AttemptEnd { retry_after_ms: Some(90_000), ..failed(ErrorKind::Transient) };
        task.apply(end(asks), NOW).unwrap();
        assert_eq!(task.due_at, Some(NOW.plus_millis(90_000)));
    }

    #[test]
    fn an_ended_task_is_attempted_afresh() {
        let mut task = task(From::Failed);
        (task.failures, task.interruptions, task.expires_at) = (2, 3, Some(Timestamp(1)));
        let record = task.apply(Event::Retry, NOW).unwrap().unwrap();
        assert_eq!((record.number, record.finished_at), (2, Some(Timestamp(600))));
        assert_eq!((task.failures, task.interruptions, task.attempt, task.expires_at), (0, 0, 2, None));
        assert_eq!((task.ready_at, task.due_at), (NOW, None));
    }

    #[test]
    fn receipts_add_up() {
        let mut task = task(From::Running);
        task.usage_total.fuel = 10;
        task.apply(end(completed()), NOW).unwrap();
        assert_eq!((task.usage.unwrap().fuel, task.usage_total.fuel), (7, 17));
        assert_eq!(task.output.as_deref(), Some("1"));
    }
}
