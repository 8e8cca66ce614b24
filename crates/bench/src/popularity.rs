//! Which adapter a request asks for. In: the number of adapters. Out: an index per request.

use crate::rng::Rng;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// How requests spread over `n` adapters; index 0 is the most popular.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Popularity {
    /// All requests ask for adapter 0.
    Identical,
    /// Request `i` asks for adapter `i mod n`: in flight together, all are different.
    Distinct,
    /// Each adapter is as likely as any other.
    Uniform,
    /// P(i) proportional to `1 / (i + 1)^s`.
    Zipf(f64),
    /// P(i) proportional to `ratio^-i`: each adapter `ratio` times as popular as the next. Punica
    /// calls this "Zipf-1.5".
    Geometric(f64),
    /// `floor(n * u^(1/alpha))`, as S-LoRA draws it: 1 is uniform, smaller is more skewed.
    Power(f64),
}

/// What was wrong with a popularity given as text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "distribution `{0}` is not one of identical, distinct, uniform, zipf[:1.5], geometric[:1.5], power[:0.3]"
)]
pub struct ParsePopularityError(String);

impl FromStr for Popularity {
    type Err = ParsePopularityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParsePopularityError(text.to_owned());
        let (kind, parameter) = match text.split_once(':') {
            Some((kind, number)) => (kind, Some(number.parse::<f64>().map_err(|_| refuse())?)),
            None => (text, None),
        };
        let with = |default: f64, is_valid: fn(f64) -> bool| {
            Some(parameter.unwrap_or(default)).filter(|&p| p.is_finite() && is_valid(p))
        };
        let parsed = match (kind, parameter) {
            ("identical", None) => Some(Self::Identical),
            ("distinct", None) => Some(Self::Distinct),
            ("uniform", None) => Some(Self::Uniform),
            ("zipf", _) => with(1.5, |s| s > 0.0).map(Self::Zipf),
            ("geometric", _) => with(1.5, |ratio| ratio >= 1.0).map(Self::Geometric),
            ("power", _) => with(0.3, |alpha| alpha > 0.0).map(Self::Power),
            _ => None,
        };
        parsed.ok_or_else(refuse)
    }
}

impl fmt::Display for Popularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identical => f.write_str("identical"),
            Self::Distinct => f.write_str("distinct"),
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
            Self::Geometric(ratio) => write!(f, "geometric:{ratio}"),
            Self::Power(alpha) => write!(f, "power:{alpha}"),
        }
    }
}

impl Popularity {
    /// Draws adapters one by one, each below `num_adapters`; `None` if that is 0.
    #[must_use]
    pub fn sampler(self, num_adapters: usize) -> Option<AdapterSampler> {
        let last = num_adapters.checked_sub(1)?;
        let weight = |i: usize| match self {
            Self::Zipf(s) => ((i + 1) as f64).powf(-s),
            Self::Geometric(ratio) => ratio.powf(-(i as f64)),
            _ => 0.0,
        };
        let cumulative = match self {
            Self::Zipf(_) | Self::Geometric(_) => (0..num_adapters)
                .scan(0.0, |sum, i| {
                    *sum += weight(i);
                    Some(*sum)
                })
                .collect(),
            _ => Vec::new(),
        };
        Some(AdapterSampler { popularity: self, last, cumulative, num_drawn: 0 })
    }

    /// The adapter of each of `num_requests` requests, each below `num_adapters`.
    ///
    /// Empty if `num_adapters` is 0.
    #[must_use]
    pub fn draw(self, num_requests: usize, num_adapters: usize, rng: &mut Rng) -> Vec<usize> {
        match self.sampler(num_adapters) {
            Some(mut sampler) => (0..num_requests).map(|_| sampler.draw(rng)).collect(),
            None => Vec::new(),
        }
    }
}

/// A [`Popularity`] over a known number of adapters.
#[derive(Clone, Debug)]
pub struct AdapterSampler {
    popularity: Popularity,
    last: usize,
    /// Sums of the weights up to each adapter, where there are weights.
    cumulative: Vec<f64>,
    num_drawn: usize,
}

impl AdapterSampler {
    /// The adapter of the next request.
    pub fn draw(&mut self, rng: &mut Rng) -> usize {
        let num_adapters = self.last + 1;
        let request = self.num_drawn;
        self.num_drawn = self.num_drawn.wrapping_add(1);
        match self.popularity {
            Popularity::Identical => 0,
            Popularity::Distinct => request % num_adapters,
            Popularity::Uniform => rng.below(num_adapters as u64) as usize,
            Popularity::Zipf(_) | Popularity::Geometric(_) => {
                let point = rng.unit() * self.cumulative[self.last];
                self.cumulative.partition_point(|&sum| sum <= point).min(self.last)
            }
            Popularity::Power(alpha) => {
                ((rng.unit().powf(1.0 / alpha) * num_adapters as f64) as usize).min(self.last)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(popularity: Popularity, num_requests: usize, num_adapters: usize) -> Vec<usize> {
        let mut counts = vec![0; num_adapters];
        for adapter in popularity.draw(num_requests, num_adapters, &mut Rng::new(3, "test")) {
            counts[adapter] += 1;
        }
        counts
    }

    /// Largest difference between the observed shares and `expected` (which sums to 1).
    fn distance(popularity: Popularity, expected: &[f64]) -> f64 {
        let n = 200_000;
        counts(popularity, n, expected.len())
            .iter()
            .zip(expected)
            .map(|(&count, share)| (count as f64 / n as f64 - share).abs())
            .fold(0.0, f64::max)
    }

    #[test]
    fn identical_and_distinct_are_not_random() {
        assert_eq!(counts(Popularity::Identical, 10, 4), [10, 0, 0, 0]);
        let drawn = Popularity::Distinct.draw(5, 3, &mut Rng::new(0, "test"));
        assert_eq!(drawn, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn uniform_and_power_one_give_each_adapter_the_same_share() {
        assert!(distance(Popularity::Uniform, &[0.125; 8]) < 0.005);
        assert!(distance(Popularity::Power(1.0), &[0.125; 8]) < 0.005);
    }

    #[test]
    fn zipf_shares_fall_as_the_power_of_the_index() {
        let weights: Vec<f64> = (1..=6).map(|i| f64::from(i).powf(-1.5)).collect();
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        assert!(distance(Popularity::Zipf(1.5), &shares) < 0.005);
    }

    #[test]
    fn geometric_gives_each_adapter_a_fixed_multiple_of_the_next() {
        let weights: Vec<f64> = (0..6).map(|i| 1.5_f64.powi(-i)).collect();
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|w| w / sum).collect();
        assert!(distance(Popularity::Geometric(1.5), &shares) < 0.005);
    }

    #[test]
    fn power_follows_s_loras_distribution() {
        let (n, alpha) = (5_i32, 0.3);
        let edge = |i: i32| (f64::from(i) / f64::from(n)).powf(alpha);
        let shares: Vec<f64> = (0..n).map(|i| edge(i + 1) - edge(i)).collect();
        assert!(distance(Popularity::Power(alpha), &shares) < 0.005);
    }

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        for text in ["identical", "distinct", "uniform", "zipf:1.1", "geometric:2", "power:0.1"] {
            assert_eq!(text.parse::<Popularity>().unwrap().to_string(), text);
        }
        assert_eq!("zipf".parse(), Ok(Popularity::Zipf(1.5)));
        for text in ["zipf:0", "power:-1", "power:nan", "uniform:2", "geometric:0.5", "x", ""] {
            assert!(text.parse::<Popularity>().is_err(), "{text}");
        }
    }

    #[test]
    fn no_adapters_draw_nothing() {
        assert!(Popularity::Uniform.draw(5, 0, &mut Rng::new(0, "test")).is_empty());
    }
}
