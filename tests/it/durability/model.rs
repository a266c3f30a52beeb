//! What is known of one task, and whether the server still says so.

use serde_json::Value;

use crate::support::Client;
use crate::support::time::{in_millis, millis};

/// The server's `--max-interruptions`: few, so that some tasks are interrupted too often.
const MAX_INTERRUPTIONS: usize = 1;

/// The flags of a server that these tasks are given to.
pub(super) const FLAGS: &[&str] = &["--max-interruptions", "1"];

/// How a task ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It completes with its input.
    Echo,
    /// It completes.
    Completes,
    /// It fails until this attempt, and completes then, with the number of the attempt.
    FailsUntil(u64),
    /// All its attempts fail.
    Fails,
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    No,
    /// It was asked for and not answered.
    Perhaps,
    Yes,
}

/// A task that a client was told of.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// Byte for byte.
    pub(super) input: String,
    pub(super) end: End,
    pub(super) max_attempts: u64,
    pub(super) delay_ms: i64,
    /// When it was made up, in milliseconds: the server heard of it later.
    pub(super) asked_at: i64,
    /// The task after its end, once it was seen.
    pub(super) ended: Option<Value>,
    pub(super) deleted: Was,
    pub(super) canceled: Was,
    /// How often it was retried by hand, or perhaps was.
    pub(super) retries: u64,
}

impl Task {
    /// One that is about to be created.
    pub(super) fn new(input: String, end: End) -> Task {
        let (deleted, canceled, asked_at) = (Was::No, Was::No, millis(&in_millis(0)));
        Task { input, end, max_attempts: 1, delay_ms: 0, asked_at, ended: None, deleted, canceled, retries: 0 }
    }

    /// Compares it with what the server says. True: it has to be looked at the next time, too.
    pub(super) fn check(&mut self, client: &Client, id: &str) -> Result<bool, String> {
        let path = format!("/task/{id}");
        let answer = client.get_with(&path, &[("prefer", "wait=60")]);
        if answer.status == 404 {
            // Deleted tasks are looked at each time: none may come back.
            let lost = || format!("task {id} was acknowledged and is gone");
            return if self.deleted == Was::No { Err(lost()) } else { Ok(self.deleted == Was::Yes) };
        }
        if answer.status != 200 {
            return Err(format!("task {id}: GET is answered with {}", answer.status));
        }
        if self.deleted == Was::Yes {
            return Err(format!("task {id} was deleted and is back"));
        }
        // A removal stops it first, and may have come no further.
        if std::mem::replace(&mut self.deleted, Was::No) == Was::Perhaps && self.canceled == Was::No {
            self.canceled = Was::Perhaps;
        }
        if answer.raw("input") != self.input {
            return Err(format!("task {id} has another input: {} instead of {}", answer.raw("input"), self.input));
        }
        let now = answer.json();
        if let Some(before) = &self.ended {
            return if now == *before { Ok(true) } else { Err(format!("task {id} was {before} and is {now}")) };
        }
        self.check_end(client, id, &now).map_err(|why| format!("task {id}: {why}: {self:?} {now}"))?;
        if self.end == End::Echo && now["status"] == "Completed" {
            let result = client.get(&format!("{path}/result"));
            if result.status != 200 || result.body != self.input.as_bytes() {
                return Err(format!("task {id} has another result: {} {now}", result.status));
            }
        }
        // Whatever was left open is settled by this.
        self.canceled = if now["error"]["kind"] == "canceled" { Was::Yes } else { Was::No };
        self.ended = Some(now);
        Ok(true)
    }

    /// Whether it ended as it can have, after as many attempts as it may.
    fn check_end(&self, client: &Client, id: &str, now: &Value) -> Result<(), String> {
        let attempts = client.get(&format!("/task/{id}/attempts")).expect(200).json();
        let attempts = attempts["attempts"].as_array().cloned().unwrap_or_default();
        let of_kind = |kind: &str| attempts.iter().filter(|attempt| attempt["error"]["kind"] == kind).count();
        let completed = attempts.iter().filter(|attempt| attempt["outcome"] == "Completed").count();
        let (transient, interrupted) = (of_kind("transient"), of_kind("interrupted"));
        let times = self.retries as usize + 1;

        let kind = now["error"]["kind"].as_str().unwrap_or_default();
        let as_expected = match (now["status"].as_str().unwrap_or_default(), kind) {
            ("Failed", "canceled") => self.canceled != Was::No,
            (_, _) if self.canceled == Was::Yes => false,
            ("Failed", "interrupted") => interrupted > MAX_INTERRUPTIONS,
            ("Failed", "transient") => self.end == End::Fails && transient as u64 >= self.max_attempts,
            ("Completed", "") => match self.end {
                End::Echo | End::Completes => true,
                End::FailsUntil(until) => now["output"].as_u64().is_some_and(|attempt| attempt >= until),
                End::Fails => false,
            },
            _ => false,
        };
        if !as_expected {
            return Err("it cannot have ended so".into());
        }
        let numbers = attempts.iter().map(|attempt| attempt["number"].as_u64());
        if !numbers.eq((1..=attempts.len() as u64).map(Some)) || now["attempt"] != attempts.len() {
            return Err(format!("its attempts are not those that were counted: {attempts:?}"));
        }
        let is_completed = usize::from(now["status"] == "Completed");
        if completed < is_completed || completed > is_completed + self.retries as usize {
            return Err(format!("it completed {completed} times"));
        }
        if transient > self.max_attempts as usize * times || interrupted > (MAX_INTERRUPTIONS + 1) * times {
            return Err(format!("it had more attempts than it may: {attempts:?}"));
        }
        if attempts.iter().any(|attempt| attempt["finished_at"].is_null()) {
            return Err(format!("an attempt never ended: {attempts:?}"));
        }
        // One that was canceled while it waited for its time is attempted at once when it is retried.
        if let Some(first) = attempts.first().filter(|_| self.delay_ms > 0 && self.retries == 0)
            && millis(first["started_at"].as_str().unwrap_or_default()) < self.asked_at + self.delay_ms
        {
            return Err(format!("it started before its time: {first}"));
        }
        Ok(())
    }
}
