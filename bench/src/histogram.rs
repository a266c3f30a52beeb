//! A histogram of times with bounded memory and an error below one percent.

use std::time::Duration;

/// Every power of two is cut into this many buckets of equal width; below it each nanosecond has
/// a bucket of its own. A bucket is therefore at most 1/128 of its value wide.
const STEPS: u64 = 128;
const STEP_BITS: u32 = STEPS.trailing_zeros();
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS as usize;

/// Counts of times in log-linear buckets.
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
    max: u64,
}

impl Histogram {
    /// An empty histogram. All its memory (57 KiB) is taken here.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0, max: 0 }
    }

    /// Counts one time.
    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.max = self.max.max(nanos);
    }

    /// The longest time recorded, exactly.
    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max)
    }

    /// The time that `share` (0 to 1) of all recorded times did not exceed. It is the upper end of
    /// its bucket, so that rounding never makes a figure look better than it was.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_end(index).min(self.max));
            }
        }
        self.max()
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    // The leading one and the STEP_BITS bits after it choose the bucket.
    let shift = nanos.ilog2() - STEP_BITS;
    (u64::from(shift) * STEPS + (nanos >> shift)) as usize
}

fn upper_end(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * STEPS {
        return index;
    }
    let shift = index / STEPS - 1;
    let lead = index % STEPS + STEPS;
    (lead << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_and_buckets_are_narrow() {
        let mut value = 1_u64;
        while value < u64::MAX / 3 {
            for probe in [value - 1, value, value + 1, value + value / 3] {
                let index = bucket(probe);
                assert!(upper_end(index) >= probe, "{probe}");
                assert!(index == 0 || upper_end(index - 1) < probe, "{probe}");
                assert!(upper_end(index) - probe <= probe / STEPS, "bucket of {probe} is too wide");
            }
            value = value * 2 + 1;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper_end(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let close = |found: Duration, micros: u64| {
            let exact = Duration::from_micros(micros);
            assert!(found >= exact && found <= exact + exact / 100, "{found:?} for {exact:?}");
        };
        close(histogram.quantile(0.5), 500);
        close(histogram.quantile(0.99), 990);
        assert_eq!(histogram.quantile(1.0), Duration::from_millis(1));
        assert_eq!(histogram.max(), Duration::from_millis(1));
    }

    #[test]
    fn an_empty_histogram_and_a_single_value() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.99), Duration::ZERO);
        histogram.record(Duration::from_secs(3));
        assert_eq!(histogram.quantile(0.01), Duration::from_secs(3));
        assert_eq!(histogram.max(), Duration::from_secs(3));
    }
}
