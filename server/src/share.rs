//! Who gets the processor next: of those that want it, who had least of it for its weight. Pure.
//!
//! Start-time fair queueing over CPU time that was really used: each member has a virtual time that grows by what it
//! uses, divided by its weight, and the one that is furthest behind goes first. Who comes back after a pause begins
//! where the others are: what it left unused while it wanted nothing is no credit.

use core::time::Duration;
use std::collections::BTreeSet;

/// Virtual nanoseconds for each nanosecond at weight 1. So that a division by the largest weight loses little.
const SCALE: u128 = 10_000;

/// The members, by their numbers.
#[derive(Debug, Default)]
pub struct Shares {
    members: Vec<Member>,
    /// Those that want the processor and do not have it: virtual time and number.
    waiting: BTreeSet<(u128, usize)>,
    /// The virtual time of the member that was chosen last.
    now: u128,
}

#[derive(Debug)]
struct Member {
    weight: u32,
    used: u128,
    /// How many of its own want the processor, or have it.
    active: usize,
    is_waiting: bool,
}

impl Shares {
    /// A new member's number.
    pub fn join(&mut self, weight: u32) -> usize {
        self.members.push(Member { weight: weight.max(1), used: self.now, active: 0, is_waiting: false });
        self.members.len() - 1
    }

    /// From now on the member has that weight.
    pub fn set_weight(&mut self, member: usize, weight: u32) {
        if let Some(member) = self.members.get_mut(member) {
            member.weight = weight.max(1);
        }
    }

    /// The member's virtual time.
    pub fn used(&self, number: usize) -> u128 {
        self.members.get(number).map_or(0, |member| member.used)
    }

    /// One more of the member's own wants the processor.
    pub fn comes(&mut self, number: usize) {
        let Some(member) = self.members.get_mut(number) else { return };
        member.active += 1;
        if member.active == 1 && member.used < self.now {
            member.used = self.now;
        }
    }

    /// One of its own wants it no more.
    pub fn goes(&mut self, number: usize) {
        if let Some(member) = self.members.get_mut(number) {
            member.active = member.active.saturating_sub(1);
        }
    }

    /// It was kept from the processor, and is no longer: it begins where the others are.
    pub fn comes_back(&mut self, number: usize) {
        let Some(member) = self.members.get_mut(number).filter(|member| !member.is_waiting) else { return };
        member.used = member.used.max(self.now);
    }

    /// Whether some of its own wait for it.
    pub fn waits(&mut self, number: usize, is_waiting: bool) {
        let Some(member) = self.members.get_mut(number) else { return };
        if std::mem::replace(&mut member.is_waiting, is_waiting) != is_waiting {
            let entry = (member.used, number);
            if is_waiting {
                self.waiting.insert(entry);
            } else {
                self.waiting.remove(&entry);
            }
        }
    }

    /// The member has used that much.
    pub fn charge(&mut self, number: usize, cpu: Duration) {
        let Some(member) = self.members.get_mut(number) else { return };
        let before = member.used;
        // Wide enough for any CPU time: a number of 64 bits would be full after some weeks at the least weight, and who
        // comes first then comes first for ever.
        member.used = before.saturating_add(cpu.as_nanos().saturating_mul(SCALE) / u128::from(member.weight));
        if member.is_waiting {
            self.waiting.remove(&(before, number));
            self.waiting.insert((member.used, number));
        }
    }

    /// Whose turn it is, of those that wait.
    pub fn whose_turn(&mut self) -> Option<usize> {
        let (used, number) = self.waiting.first().copied()?;
        self.now = self.now.max(used);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: Duration = Duration::from_millis(5);

    /// Each always wants the one processor, in slices of that length; returns what each got.
    fn serve(shares: &mut Shares, slices: &[(usize, Duration)], total: Duration) -> Vec<f64> {
        let mut got = vec![Duration::ZERO; slices.len()];
        for (member, _) in slices {
            shares.comes(*member);
            shares.waits(*member, true);
        }
        while got.iter().sum::<Duration>() < total {
            let number = shares.whose_turn().unwrap();
            let at = slices.iter().position(|(member, _)| *member == number).unwrap();
            shares.charge(number, slices[at].1);
            got[at] += slices[at].1;
        }
        for (member, _) in slices {
            shares.waits(*member, false);
            shares.goes(*member);
        }
        let all: Duration = got.iter().sum();
        got.iter().map(|got| got.as_secs_f64() / all.as_secs_f64()).collect()
    }

    #[test]
    fn shares_follow_the_weights_whatever_the_slices() {
        let mut shares = Shares::default();
        let (a, b, c) = (shares.join(100), shares.join(300), shares.join(100));
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE / 50), (c, SLICE / 7)], Duration::from_secs(20));
        for (got, wanted) in got.iter().zip([0.2, 0.6, 0.2]) {
            assert!((got - wanted).abs() < 0.01, "{got} of {wanted}");
        }
        // One that left does not count, and one alone has everything.
        let got = serve(&mut shares, &[(a, SLICE), (c, SLICE)], Duration::from_secs(20));
        assert!((got[0] - 0.5).abs() < 0.01, "{got:?}");
        assert_eq!(serve(&mut shares, &[(b, SLICE)], Duration::from_secs(1)), [1.0]);
        shares.set_weight(b, 100);
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE)], Duration::from_secs(20));
        assert!((got[0] - 0.5).abs() < 0.01, "{got:?}");
    }

    #[test]
    fn a_pause_is_no_credit_and_no_debt() {
        let mut shares = Shares::default();
        let (a, b) = (shares.join(100), shares.join(100));
        serve(&mut shares, &[(a, SLICE)], Duration::from_secs(3600));
        // However long the one had everything, they share from here on.
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE)], Duration::from_secs(1));
        assert!((got[0] - 0.5).abs() < 0.02, "{got:?}");
        serve(&mut shares, &[(b, SLICE)], Duration::from_secs(3600));
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE)], Duration::from_secs(1));
        assert!((got[0] - 0.5).abs() < 0.02, "{got:?}");
    }

    #[test]
    fn who_was_kept_from_the_processor_has_no_credit() {
        let mut shares = Shares::default();
        let (a, b) = (shares.join(100), shares.join(100));
        // It goes on wanting it, and may not have it.
        shares.comes(a);
        serve(&mut shares, &[(b, SLICE)], Duration::from_secs(3600));
        shares.comes_back(a);
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE)], Duration::from_secs(1));
        assert!((got[0] - 0.5).abs() < 0.02, "{got:?}");
    }

    /// Ten years of a thousand processors at the least weight.
    #[test]
    fn they_share_however_long_they_have() {
        let mut shares = Shares::default();
        let (a, b) = (shares.join(1), shares.join(1));
        for member in [a, b] {
            shares.charge(member, Duration::from_secs(10 * 366 * 24 * 60 * 60) * 1000);
        }
        let got = serve(&mut shares, &[(a, SLICE), (b, SLICE)], Duration::from_secs(1));
        assert!((got[0] - 0.5).abs() < 0.02, "{got:?}");
    }

    #[test]
    fn who_comes_goes_before_who_had_much() {
        let mut shares = Shares::default();
        let (a, b) = (shares.join(100), shares.join(100));
        shares.comes(a);
        shares.waits(a, true);
        for _ in 0..100 {
            assert_eq!(shares.whose_turn(), Some(a));
            shares.charge(a, SLICE);
        }
        shares.comes(b);
        shares.waits(b, true);
        assert_eq!(shares.whose_turn(), Some(b));
        shares.waits(b, false);
        shares.waits(a, false);
        assert_eq!(shares.whose_turn(), None);
    }
}
