//! When a cron pattern is due: times on a wall clock, and what becomes of them where the clocks of its
//! time zone go forward or back. Pure: the time is passed in.
//!
//! A pattern whose hours are named (`30 2 * * *`) means times of the wall clock. Each of them is due once:
//! one that the clock skips is due at the first moment after the gap, one that the clock shows twice is due
//! the first time. Several that fall into one gap are due once together. A pattern with `*` in its hours
//! (`*/5 * * * *`) means a rhythm, which goes on as time does: nothing in a gap, and both times where the
//! clock shows a time twice.

use std::str::FromStr;

use chrono::{DateTime, Days, NaiveDateTime, TimeDelta, TimeZone};
use chrono_tz::Tz;
use croner::parser::{CronParser, Seconds, Year};
use croner::time::CronDateTime;

use super::CatchUp;
use crate::task::Timestamp;

/// Bytes of a pattern.
const MOST_BYTES: usize = 256;

/// The longest time that a clock shows twice.
const LONGEST_REPEAT: TimeDelta = TimeDelta::hours(3);

/// The longest gap is a day: a zone that changed the side of the date line.
const LONGEST_GAP_MINUTES: i64 = 26 * 60;

/// A due time that is older was missed.
const LATE_MS: u64 = 60_000;

/// Missed due times that are caught up. Of more, the oldest are given up.
pub const MOST_MISSED: usize = 1000;

/// A pattern in a time zone.
#[derive(Clone, Debug)]
pub struct Cron {
    pattern: croner::Cron,
    zone: Tz,
    /// Its hours are named: it means times, not a rhythm.
    at_hours: bool,
}

/// Why there is no such [`Cron`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCron {
    /// The pattern is none; why.
    #[error("{0}")]
    Pattern(String),
    /// There is no such time zone.
    #[error("there is no time zone of this name in the IANA database, such as Europe/Berlin or UTC")]
    Zone,
}

impl Cron {
    /// Reads a pattern of five fields, or of six with seconds in front.
    pub fn parse(pattern: &str, zone: &str) -> Result<Cron, BadCron> {
        let zone = Tz::from_str(zone).map_err(|_| BadCron::Zone)?;
        if pattern.len() > MOST_BYTES {
            return Err(BadCron::Pattern(format!("a pattern has at most {MOST_BYTES} bytes")));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let fields: Vec<&str> = pattern.split_whitespace().collect();
        let hours = match fields[..] {
            [nickname] if nickname.starts_with('@') => {
                if nickname.eq_ignore_ascii_case("@hourly") {
                    "*"
                } else {
                    "0"
                }
            }
            [_, hours, _, _, _] | [_, _, hours, _, _, _] => hours,
            _ => {
                let detail = "a pattern has five fields, six with seconds in front, or is @hourly, @daily, @weekly, \
                              @monthly or @yearly";
                return Err(BadCron::Pattern(detail.into()));
            }
        };
        let parsed = parser.parse(pattern).map_err(|error| BadCron::Pattern(error.to_string()))?;
        Ok(Cron { pattern: parsed, zone, at_hours: !hours.contains('*') })
    }

    /// The first due time after `after`; `None` where there is none, ever.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let start = self.at(after)?;
        if !self.at_hours {
            return self.pattern.find_next_occurrence(&start, false).ok().map(stamp);
        }
        let mut wall = start.naive_local().and_utc();
        loop {
            wall = self.pattern.find_next_occurrence(&wall, false).ok()?;
            // On the second way through a repeated time what comes next on the clock was already.
            let due = self.moment(wall.naive_utc())?;
            if due > after {
                return Some(due);
            }
        }
    }

    /// The last due times up to `until`, that are not before `from`: at most `most`, the latest first.
    fn last_until(&self, until: Timestamp, from: Timestamp, most: usize) -> Vec<Timestamp> {
        let mut found: Vec<Timestamp> = Vec::new();
        let Some(start) = self.at(until) else { return found };
        let mut wall = start.naive_local();
        if self.zone.from_local_datetime(&wall).latest() != self.zone.from_local_datetime(&wall).earliest() {
            // The clock has shown later times already.
            wall += LONGEST_REPEAT;
        }
        let (mut wall, mut real, mut inclusive) = (wall.and_utc(), start, true);
        while found.len() < most {
            let due = if self.at_hours {
                let before = previous(&self.pattern, &wall, inclusive);
                before.and_then(|before| {
                    wall = before;
                    self.moment(before.naive_utc())
                })
            } else {
                let before = previous(&self.pattern, &real, inclusive);
                before.map(|before| {
                    real = before;
                    stamp(before)
                })
            };
            inclusive = false;
            match due {
                Some(due) if due < from => break,
                Some(due) if due <= until && found.last() != Some(&due) => found.push(due),
                Some(_) => {}
                None => break,
            }
        }
        found
    }

    /// With which due time a schedule goes on at `now` whose next one was `next_at`, which has come: what is
    /// before it is given up.
    pub fn resume(&self, next_at: Timestamp, catch_up: CatchUp, now: Timestamp) -> Option<Timestamp> {
        let late = Timestamp(now.0.saturating_sub_unsigned(LATE_MS));
        match catch_up {
            CatchUp::None if next_at < late => self.next_after(Timestamp(late.0 - 1)),
            CatchUp::One if next_at < late => Some(self.last_until(now, next_at, 1).pop().unwrap_or(next_at)),
            CatchUp::All if next_at < late => Some(self.last_until(now, next_at, MOST_MISSED).pop().unwrap_or(next_at)),
            CatchUp::None | CatchUp::One | CatchUp::All => Some(next_at),
        }
    }

    /// The moment at which a time of the wall clock is due.
    fn moment(&self, wall: NaiveDateTime) -> Option<Timestamp> {
        if let Some(at) = self.zone.from_local_datetime(&wall).earliest() {
            return Some(stamp(at));
        }
        // Gaps end with a minute.
        let minute = wall - TimeDelta::seconds(wall.and_utc().timestamp().rem_euclid(60));
        (1..=LONGEST_GAP_MINUTES)
            .find_map(|minutes| self.zone.from_local_datetime(&(minute + TimeDelta::minutes(minutes))).earliest())
            .map(stamp)
    }

    fn at(&self, at: Timestamp) -> Option<DateTime<Tz>> {
        // To the second: there is nothing finer in a pattern.
        let at = DateTime::from_timestamp(at.0.div_euclid(1000), 0)?;
        // So that no time zone leads out of what can be written.
        (at.checked_add_days(Days::new(2)).is_some()).then(|| at.with_timezone(&self.zone))
    }
}

fn previous<T: CronDateTime>(pattern: &croner::Cron, before: &T, inclusive: bool) -> Option<T> {
    pattern.find_previous_occurrence(before, inclusive).ok()
}

fn stamp<Z: TimeZone>(at: DateTime<Z>) -> Timestamp {
    Timestamp(at.timestamp_millis())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn cron(pattern: &str) -> Cron {
        Cron::parse(pattern, "Europe/Berlin").unwrap()
    }

    fn ts(text: &str) -> Timestamp {
        Timestamp(DateTime::parse_from_rfc3339(text).unwrap().timestamp_millis())
    }

    /// The next `count` due times after `after`, in UTC.
    fn next(cron: &Cron, after: &str, count: usize) -> Vec<String> {
        let times = std::iter::successors(cron.next_after(ts(after)), |at| cron.next_after(*at));
        times.take(count).map(show).collect()
    }

    fn show(at: Timestamp) -> String {
        DateTime::from_timestamp_millis(at.0).unwrap().format("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    #[test]
    fn patterns() {
        assert_eq!(
            next(&cron("*/5 * * * *"), "2026-11-23T10:02:30Z", 2),
            ["2026-11-23T10:05:00Z", "2026-11-23T10:10:00Z"]
        );
        assert_eq!(next(&cron("@daily"), "2026-11-23T23:00:00Z", 1), ["2026-11-24T23:00:00Z"]);
        assert_eq!(next(&cron("0 9 * * MON-FRI"), "2026-11-27T12:00:00Z", 1), ["2026-11-30T08:00:00Z"]);
        assert_eq!(next(&cron("*/20 * * * * *"), "2026-11-23T10:00:20.500Z", 1), ["2026-11-23T10:00:40Z"]);
        assert_eq!(
            next(&cron("0 0 29 2 *"), "2026-11-23T10:00:00Z", 2),
            ["2028-02-28T23:00:00Z", "2032-02-28T23:00:00Z"],
            "leap years"
        );
        // 2100 is none.
        assert_eq!(
            next(&Cron::parse("0 0 29 2 *", "UTC").unwrap(), "2096-03-01T00:00:00Z", 1),
            ["2104-02-29T00:00:00Z"]
        );
    }

    #[test]
    fn what_is_none_is_refused() {
        let long = "1,".repeat(200) + "1 * * * *";
        for bad in [
            "",
            "*",
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "* * * * 8",
            "@reboot",
            "a b c d e",
            "@",
            "*/0 * * * *",
            &long,
        ] {
            assert!(matches!(Cron::parse(bad, "UTC"), Err(BadCron::Pattern(_))), "{bad:?}");
        }
        for bad in ["", "Mars/Olympus", "+01:00", "europe/berlin"] {
            assert_eq!(Cron::parse("* * * * *", bad).unwrap_err(), BadCron::Zone, "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_never_due_takes_no_time() {
        for never in ["0 0 30 2 *", "59 59 23 31 4,6,9,11 *", "* * * 31 2 *"] {
            let start = Instant::now();
            assert_eq!(cron(never).next_after(ts("2026-11-23T10:00:00Z")), None, "{never}");
            assert!(start.elapsed() < Duration::from_secs(5), "{never}: {:?}", start.elapsed());
        }
    }

    /// In Berlin the clock goes from 02:00 to 03:00 on 2027-03-28, at 01:00 UTC.
    #[test]
    fn a_gap() {
        let before = "2027-03-27T12:00:00Z";
        assert_eq!(next(&cron("30 2 * * *"), before, 2), ["2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]);
        assert_eq!(
            next(&cron("0,30 2,4 * * *"), before, 4),
            ["2027-03-28T01:00:00Z", "2027-03-28T02:00:00Z", "2027-03-28T02:30:00Z", "2027-03-29T00:00:00Z"],
            "two in a gap are due once together"
        );
        assert_eq!(
            next(&cron("*/30 * * * *"), "2027-03-28T00:15:00Z", 3),
            ["2027-03-28T00:30:00Z", "2027-03-28T01:00:00Z", "2027-03-28T01:30:00Z"],
            "a rhythm goes on"
        );
    }

    /// In Berlin the clock goes from 03:00 back to 02:00 on 2026-10-25, at 01:00 UTC.
    #[test]
    fn a_repeated_hour() {
        let before = "2026-10-24T12:00:00Z";
        assert_eq!(next(&cron("30 2 * * *"), before, 2), ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        assert_eq!(
            next(&cron("0,30 2,4 * * *"), before, 4),
            ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T03:00:00Z", "2026-10-25T03:30:00Z"]
        );
        assert_eq!(next(&cron("30 2 * * *"), "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"], "on the second way");
        assert_eq!(
            next(&cron("*/30 * * * *"), "2026-10-24T23:45:00Z", 5),
            [
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:00:00Z"
            ],
            "a rhythm goes on"
        );
    }

    /// Going back finds what going forward finds, over both changes of a year and in other zones.
    #[test]
    fn back_and_forth() {
        for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Asia/Kolkata"] {
            for pattern in
                ["17 * * * *", "30 2 * * *", "0,30 1-3 * * *", "*/20 */2 * * *", "0 0 1 * *", "15 10 2 * * SUN"]
            {
                let cron = Cron::parse(pattern, zone).unwrap();
                let (from, until) = (ts("2026-03-01T00:00:00Z"), ts("2026-11-20T00:00:00Z"));
                let forth = std::iter::successors(cron.next_after(Timestamp(from.0 - 1)), |at| cron.next_after(*at));
                let forth: Vec<_> = forth.take_while(|at| *at <= until).collect();
                assert!(forth.is_sorted_by(|a, b| a < b), "{pattern} {zone}");
                let mut back = cron.last_until(until, from, usize::MAX);
                back.reverse();
                assert_eq!(forth, back, "{pattern} {zone}");
            }
        }
        // From within a repeated hour, on its second way.
        let back = cron("30,50 2 * * *").last_until(ts("2026-10-25T01:40:00Z"), Timestamp(0), 3);
        let back: Vec<_> = back.into_iter().map(show).collect();
        assert_eq!(back, ["2026-10-25T00:50:00Z", "2026-10-25T00:30:00Z", "2026-10-24T00:50:00Z"]);
    }

    #[test]
    fn what_was_missed() {
        let hourly = cron("0 * * * *");
        let resume = |next_at, catch_up, now| show(hourly.resume(ts(next_at), catch_up, ts(now)).unwrap());
        let (missed, now) = ("2026-11-23T07:00:00Z", "2026-11-23T10:00:30Z");
        assert_eq!(resume(missed, CatchUp::None, now), "2026-11-23T10:00:00Z", "it is not a minute late");
        assert_eq!(resume(missed, CatchUp::None, "2026-11-23T10:02:00Z"), "2026-11-23T11:00:00Z");
        assert_eq!(resume(missed, CatchUp::One, now), "2026-11-23T10:00:00Z");
        assert_eq!(resume(missed, CatchUp::All, now), missed);
        for catch_up in [CatchUp::None, CatchUp::One, CatchUp::All] {
            assert_eq!(resume("2026-11-23T10:00:00Z", catch_up, now), "2026-11-23T10:00:00Z", "nothing was missed");
        }
        // A year of seconds: the last thousand.
        let seconds = cron("* * * * * *");
        let start = Instant::now();
        let resumed = seconds.resume(ts("2025-11-23T10:00:00Z"), CatchUp::All, ts("2026-11-23T10:00:30.700Z")).unwrap();
        assert_eq!(show(resumed), "2026-11-23T09:43:51Z");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }

    /// Whatever is sent as a pattern, nothing panics and nothing takes long.
    #[test]
    fn any_text() {
        let pieces = [
            "*",
            "/",
            ",",
            "-",
            "0",
            "5",
            "59",
            "7",
            "31",
            "L",
            "W",
            "#",
            "?",
            "+",
            "MON",
            "JAN",
            " ",
            " ",
            " ",
            " ",
            "é",
            "@",
            "999999999999",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |most: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % most
        };
        for _ in 0..20_000 {
            let length = 5 + draw(14);
            let text: String = (0..length).map(|_| pieces[draw(pieces.len())]).collect();
            if let Ok(cron) = Cron::parse(&text, "Europe/Berlin") {
                let start = Instant::now();
                let first = cron.next_after(ts("2026-11-23T10:00:00Z"));
                if let Some(first) = first {
                    cron.last_until(first, Timestamp(0), 2);
                }
                assert!(start.elapsed() < Duration::from_secs(5), "{text:?}: {:?}", start.elapsed());
            }
        }
    }
}
