//! When requests arrive. In: a rate and its burstiness. Out: offsets from the start of the run.

use crate::rng::Rng;
use serde::Serialize;
use std::fmt;
use std::time::Duration;

/// How requests are let in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Closed loop: so many clients, each sends its next request when the last one ended.
    Closed {
        /// Clients at work at once.
        concurrency: usize,
    },
    /// Open loop: gaps are Gamma(shape `1/cv^2`, scale `cv^2/rate`), whoever is still waiting.
    Open {
        /// Requests per second.
        rate: f64,
        /// Coefficient of variation of the gaps: 1 is a Poisson process, more is burstier, 0 is
        /// a fixed gap.
        cv: f64,
    },
}

impl Arrivals {
    /// The gap before the next request, in seconds; zero in a closed loop.
    pub fn gap(self, rng: &mut Rng) -> f64 {
        match self {
            Self::Closed { .. } => 0.0,
            Self::Open { rate, cv } if cv > 0.0 => rng.gamma(1.0 / (cv * cv), cv * cv / rate),
            Self::Open { rate, .. } => 1.0 / rate,
        }
    }

    /// The offset of each request from the start, not falling; all zero in a closed loop.
    #[must_use]
    pub fn draw(self, num_requests: usize, rng: &mut Rng) -> Vec<Duration> {
        let mut at = 0.0;
        (0..num_requests)
            .map(|_| {
                at += self.gap(rng);
                Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX)
            })
            .collect()
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "concurrency {concurrency}"),
            Self::Open { rate, cv } => write!(f, "{rate} requests/s (cv {cv})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(rate: f64, cv: f64) -> (f64, f64) {
        let n = 50_000;
        let times = Arrivals::Open { rate, cv }.draw(n, &mut Rng::new(5, "test"));
        assert!(times.is_sorted());
        let gaps: Vec<f64> = std::iter::once(times[0])
            .chain(times.windows(2).map(|pair| pair[1] - pair[0]))
            .map(|gap| gap.as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / n as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn open_loop_keeps_its_rate_and_burstiness() {
        for (rate, cv) in [(4.0, 1.0), (10.0, 2.0), (0.5, 0.5), (2.0, 0.0)] {
            let (mean, seen_cv) = gaps(rate, cv);
            assert!((mean * rate - 1.0).abs() < 0.04, "mean gap {mean} at rate {rate}");
            assert!((seen_cv - cv).abs() < 0.08 * cv.max(0.1), "cv {seen_cv}, not {cv}");
        }
    }

    #[test]
    fn closed_loop_has_no_times() {
        let times = Arrivals::Closed { concurrency: 3 }.draw(4, &mut Rng::new(5, "test"));
        assert_eq!(times, [Duration::ZERO; 4]);
    }
}
