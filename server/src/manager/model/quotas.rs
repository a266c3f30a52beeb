//! Quotas: what is counted is what there is, and nothing is over by one.

use std::collections::HashSet;

use super::World;
use crate::quotas::Quotas;
use crate::task::{TaskId, Timestamp};

const PER_SECOND: u64 = 1;
const BURST: u64 = 6;
const LOG_BYTES: u64 = 1_000;

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
            ..Quotas::default()
        };
        self.crash();
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
        let core = self.core.as_mut().unwrap();
        let (counted, kept) = core.store.counted_and_kept_log_bytes();
        assert_eq!(counted, kept, "bytes of log lines");
        assert!(self.quotas.log_bytes.is_none_or(|most| kept <= most), "{kept} bytes of log lines");
        for (tenant, pending) in core.store.pending().unwrap() {
            assert_eq!(core.backlog.of(&tenant), pending, "the count of {tenant} is the store's");
        }
    }
}
