//! Percentiles of any number of durations in 20 kB. In: seconds. Out: a [`Summary`] whose
//! percentiles are off by less than 0.8 %; count, mean and maximum are exact.

use crate::report::Summary;

/// Each octave of microseconds is cut into `1 << SUB_BITS` buckets of equal width.
const SUB_BITS: u32 = 6;
/// Longer durations, of twelve days, fall into the last bucket.
const NUM_OCTAVES: usize = 40;
/// The bits of an f64 below its exponent and the sub-bucket.
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - SUB_BITS;
/// What `1.0_f64.to_bits() >> SHIFT` is.
const FIRST: u64 = 1.0_f64.to_bits() >> SHIFT;

/// A histogram whose buckets grow with the value, as HDR histograms do: the top bits of an f64 are
/// the bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogHistogram {
    buckets: Vec<u64>,
    count: u64,
    sum_us: f64,
    max_us: f64,
}

impl LogHistogram {
    /// Counts one duration; what is negative or not a number counts as zero.
    pub fn record(&mut self, seconds: f64) {
        self.record_n(seconds, 1);
    }

    /// Counts `n` equal durations.
    pub fn record_n(&mut self, seconds: f64, n: u64) {
        if n == 0 {
            return;
        }
        // `max` also turns NaN into zero.
        let us = (seconds * 1e6).max(0.0);
        // What is below a microsecond shares the first bucket.
        let bucket = ((us.max(1.0).to_bits() >> SHIFT) - FIRST) as usize;
        let bucket = bucket.min((NUM_OCTAVES << SUB_BITS) - 1);
        if bucket >= self.buckets.len() {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += n;
        self.count += n;
        self.sum_us += us * n as f64;
        self.max_us = self.max_us.max(us);
    }

    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration below which a share `q` of all lies, in seconds: the middle of the bucket of
    /// rank `ceil(q * count)`. Zero if there are none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> f64 {
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                let edge = |bucket: usize| f64::from_bits((bucket as u64 + FIRST) << SHIFT);
                let middle = f64::midpoint(edge(bucket), edge(bucket + 1));
                return middle.min(self.max_us) / 1e6;
            }
        }
        0.0
    }

    /// What reports show.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.count as usize,
            mean_ms: if self.count > 0 { self.sum_us / self.count as f64 / 1e3 } else { 0.0 },
            p50_ms: self.quantile(0.50) * 1e3,
            p90_ms: self.quantile(0.90) * 1e3,
            p99_ms: self.quantile(0.99) * 1e3,
            max_ms: self.max_us / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quantiles_are_within_a_percent_of_the_exact_ones(
            mut micros in proptest::collection::vec(1_u64..1 << 38, 1..200),
            q in 0.0..=1.0_f64,
        ) {
            let mut histogram = LogHistogram::default();
            for &us in &micros {
                histogram.record(us as f64 / 1e6);
            }
            micros.sort_unstable();
            let rank = ((q * micros.len() as f64).ceil() as usize).clamp(1, micros.len());
            let exact = micros[rank - 1] as f64 / 1e6;
            let seen = histogram.quantile(q);
            prop_assert!((seen / exact - 1.0).abs() < 0.008, "{seen}, not {exact}");
        }

        #[test]
        fn no_number_panics(seconds in any::<f64>(), q in any::<f64>()) {
            let mut histogram = LogHistogram::default();
            histogram.record(seconds);
            let _ = histogram.quantile(q);
            prop_assert_eq!(histogram.count(), 1);
        }
    }

    #[test]
    fn mean_count_and_maximum_are_exact() {
        let mut histogram = LogHistogram::default();
        histogram.record(0.010);
        histogram.record_n(0.020, 3);
        histogram.record_n(5.0, 0);
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.max_ms), (4, 20.0));
        assert!((summary.mean_ms - 17.5).abs() < 1e-9);
        assert_eq!(LogHistogram::default().summary(), Summary::default());
    }

    #[test]
    fn memory_is_bounded() {
        let mut histogram = LogHistogram::default();
        histogram.record(f64::MAX);
        histogram.record(f64::INFINITY);
        assert_eq!(histogram.buckets.len(), 2560);
    }
}
