//! What will be asked, all of it before the first request. In: a config with a seed. Out: the list
//! of requests. The same config gives the same list; no clock, no network.

use crate::arrivals::Arrivals;
use crate::popularity::Popularity;
use crate::rng::Rng;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use weft_types::TokenId;

/// Lengths drawn uniformly from `min..=max` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LengthRange {
    /// Shortest.
    pub min: usize,
    /// Longest.
    pub max: usize,
}

impl LengthRange {
    /// Always `length`.
    #[must_use]
    pub fn fixed(length: usize) -> Self {
        Self { min: length, max: length }
    }
}

impl FromStr for LengthRange {
    type Err = WorkloadError;

    /// `128` or `8-511`, at least 1.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || WorkloadError::Length { text: text.to_owned() };
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let range = Self {
            min: min.parse().map_err(|_| refuse())?,
            max: max.parse().map_err(|_| refuse())?,
        };
        if range.min == 0 || range.min > range.max {
            return Err(refuse());
        }
        Ok(range)
    }
}

impl fmt::Display for LengthRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{}-{}", self.min, self.max)
        }
    }
}

/// Everything that determines a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadConfig {
    /// Requests in all, without warm-up.
    pub num_requests: usize,
    /// Requests sent and awaited before the clock starts, not reported.
    pub num_warmup: usize,
    /// The name sent when no adapter is asked for.
    pub base: String,
    /// Names of adapters; none means that all requests go to the base.
    pub adapters: Vec<String>,
    /// How requests spread over the adapters.
    pub popularity: Popularity,
    /// When requests are let in.
    pub arrivals: Arrivals,
    /// Prompt tokens, shared prefix included.
    pub input_len: LengthRange,
    /// Output tokens; end-of-sequence is ignored, so this many are made.
    pub output_len: LengthRange,
    /// This many first tokens are the same in all prompts; the rest are random.
    pub shared_prefix_len: usize,
    /// Prompt tokens are drawn from `token_low..token_high`.
    pub token_low: TokenId,
    /// See `token_low`.
    pub token_high: TokenId,
    /// Same seed, same workload.
    pub seed: u64,
}

/// Why a workload cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// `--input-len` or `--output-len`.
    #[error("length `{text}` is neither a number of tokens nor a range such as 8-511")]
    Length {
        /// What was given.
        text: String,
    },
    /// Nothing to send.
    #[error("--num-requests is 0: there is nothing to measure")]
    NoRequests,
    /// No client at work.
    #[error("--concurrency is 0: no request would ever be sent")]
    NoConcurrency,
    /// `--rate` or `--cv`.
    #[error("--rate must be above 0 and --cv at least 0")]
    Rate,
    /// No room for the distinct part of a prompt.
    #[error("--shared-prefix {shared} leaves nothing of the shortest prompt, {min} tokens")]
    SharedPrefix {
        /// `--shared-prefix`
        shared: usize,
        /// Shortest `--input-len`.
        min: usize,
    },
    /// Their indices do not fit.
    #[error("there are more adapters than 32 bits can number")]
    TooManyAdapters,
    /// An empty range of ids.
    #[error("--token-ids {low}-{high} is an empty range")]
    TokenRange {
        /// First id.
        low: TokenId,
        /// One past the last id.
        high: TokenId,
    },
}

/// One request of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchRequest {
    /// Position in the workload.
    pub index: usize,
    /// When it is sent, from the start of the run; zero in a closed loop.
    pub at: Duration,
    /// Index into [`WorkloadConfig::adapters`]; `None` is the base.
    pub adapter: Option<usize>,
    /// The name to ask for.
    pub model: String,
    /// The prompt as tokens.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate.
    pub output_len: usize,
}

/// A workload, ready to be driven.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// What it was made from.
    pub config: WorkloadConfig,
    /// Sent first, one client after another, and not reported: each adapter in turn.
    pub warmup: Vec<BenchRequest>,
    /// Sent and reported.
    pub requests: Vec<BenchRequest>,
}

impl WorkloadConfig {
    /// Draws the workload.
    ///
    /// # Errors
    /// When the config contradicts itself; see [`WorkloadError`].
    pub fn generate(self) -> Result<Workload, WorkloadError> {
        self.check()?;
        let adapters = self.popularity.draw(
            self.num_requests,
            self.adapters.len(),
            &mut Rng::new(self.seed, "adapters"),
        );
        let times = self.arrivals.draw(self.num_requests, &mut Rng::new(self.seed, "arrivals"));
        let mut rng = Rng::new(self.seed, "prompts");
        let prefix = self.tokens(self.shared_prefix_len, &mut rng);
        let requests = (0..self.num_requests)
            .map(|i| self.request(i, times[i], adapters.get(i).copied(), &prefix, &mut rng))
            .collect();
        let mut rng = Rng::new(self.seed, "warmup");
        let warmup = (0..self.num_warmup)
            .map(|i| {
                let adapter = (!self.adapters.is_empty()).then(|| i % self.adapters.len());
                self.request(i, Duration::ZERO, adapter, &prefix, &mut rng)
            })
            .collect();
        Ok(Workload { config: self, warmup, requests })
    }

    fn request(
        &self,
        index: usize,
        at: Duration,
        adapter: Option<usize>,
        prefix: &[TokenId],
        rng: &mut Rng,
    ) -> BenchRequest {
        let input_len = rng.between(self.input_len.min, self.input_len.max);
        let output_len = rng.between(self.output_len.min, self.output_len.max);
        let mut prompt = prefix.to_vec();
        prompt.extend(self.tokens(input_len - prefix.len(), rng));
        let model = adapter.map_or_else(|| self.base.clone(), |i| self.adapters[i].clone());
        BenchRequest { index, at, adapter, model, prompt, output_len }
    }

    fn tokens(&self, count: usize, rng: &mut Rng) -> Vec<TokenId> {
        let span = u64::from(self.token_high - self.token_low);
        (0..count).map(|_| self.token_low + rng.below(span) as TokenId).collect()
    }

    fn check(&self) -> Result<(), WorkloadError> {
        if self.num_requests == 0 {
            return Err(WorkloadError::NoRequests);
        }
        check_arrivals(self.arrivals)?;
        if self.shared_prefix_len >= self.input_len.min {
            return Err(WorkloadError::SharedPrefix {
                shared: self.shared_prefix_len,
                min: self.input_len.min,
            });
        }
        if self.token_low >= self.token_high {
            return Err(WorkloadError::TokenRange { low: self.token_low, high: self.token_high });
        }
        Ok(())
    }
}

pub(crate) fn check_arrivals(arrivals: Arrivals) -> Result<(), WorkloadError> {
    match arrivals {
        Arrivals::Closed { concurrency: 0 } => Err(WorkloadError::NoConcurrency),
        Arrivals::Open { rate, cv }
            if !(rate.is_finite() && rate > 0.0 && cv.is_finite() && cv >= 0.0) =>
        {
            Err(WorkloadError::Rate)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Twelve requests of 16 in and 4 out over three adapters, in a closed loop of four.
    pub(crate) fn small() -> WorkloadConfig {
        WorkloadConfig {
            num_requests: 12,
            num_warmup: 2,
            base: "base".into(),
            adapters: vec!["a".into(), "b".into(), "c".into()],
            popularity: Popularity::Distinct,
            arrivals: Arrivals::Closed { concurrency: 4 },
            input_len: LengthRange::fixed(16),
            output_len: LengthRange::fixed(4),
            shared_prefix_len: 0,
            token_low: 100,
            token_high: 200,
            seed: 9,
        }
    }

    #[test]
    fn a_seed_names_one_workload() {
        let first = small().generate().unwrap();
        assert_eq!(first, small().generate().unwrap());
        let other = WorkloadConfig { seed: 10, ..small() }.generate().unwrap();
        assert_ne!(first.requests[0].prompt, other.requests[0].prompt);
    }

    #[test]
    fn prompts_keep_to_their_lengths_and_token_range_and_differ() {
        let config =
            WorkloadConfig { input_len: "8-24".parse().unwrap(), num_requests: 200, ..small() };
        let workload = config.generate().unwrap();
        let lengths = workload.requests.iter().map(|request| request.prompt.len());
        assert_eq!((lengths.clone().min(), lengths.max()), (Some(8), Some(24)));
        assert!(workload.requests.iter().flat_map(|r| &r.prompt).all(|t| (100..200).contains(t)));
        let heads: std::collections::HashSet<_> =
            workload.requests.iter().map(|request| request.prompt[..8].to_vec()).collect();
        assert_eq!(heads.len(), 200);
    }

    #[test]
    fn a_shared_prefix_is_shared_and_nothing_after_it() {
        let workload =
            WorkloadConfig { shared_prefix_len: 10, ..small() }.generate().unwrap().requests;
        assert!(workload.iter().all(|request| request.prompt[..10] == workload[0].prompt[..10]));
        assert_ne!(workload[0].prompt[10..], workload[1].prompt[10..]);
    }

    #[test]
    fn without_adapters_every_request_asks_for_the_base() {
        let workload = WorkloadConfig { adapters: Vec::new(), ..small() }.generate().unwrap();
        assert!(workload.requests.iter().all(|r| r.adapter.is_none() && r.model == "base"));
    }

    #[test]
    fn popularity_does_not_change_the_prompts() {
        let distinct = small().generate().unwrap();
        let one =
            WorkloadConfig { popularity: Popularity::Identical, ..small() }.generate().unwrap();
        assert_eq!(distinct.requests[5].prompt, one.requests[5].prompt);
        assert_ne!(distinct.requests[5].model, one.requests[5].model);
    }

    #[test]
    fn contradictions_are_refused_with_a_sentence() {
        let refused = |config: WorkloadConfig| config.generate().unwrap_err().to_string();
        assert!(refused(WorkloadConfig { num_requests: 0, ..small() }).contains("--num-requests"));
        let closed = Arrivals::Closed { concurrency: 0 };
        assert!(refused(WorkloadConfig { arrivals: closed, ..small() }).contains("--concurrency"));
        let open = Arrivals::Open { rate: 0.0, cv: 1.0 };
        assert!(refused(WorkloadConfig { arrivals: open, ..small() }).contains("--rate"));
        let shared = WorkloadConfig { shared_prefix_len: 16, ..small() };
        assert!(refused(shared).contains("--shared-prefix 16"));
        let empty = WorkloadConfig { token_low: 5, token_high: 5, ..small() };
        assert!(refused(empty).contains("--token-ids"));
        for text in ["0", "5-3", "x", "-4"] {
            assert!(text.parse::<LengthRange>().is_err(), "{text}");
        }
    }
}
