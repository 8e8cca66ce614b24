//! Synthetic traces, after those of the S-LoRA and Punica papers. In: a config with a seed. Out: an
//! iterator over requests by arrival, which holds none of them.
//!
//! The distributions are the papers'; the numbers are not numpy's, but this crate's own for ever.

use crate::arrivals::Arrivals;
use crate::popularity::{AdapterSampler, Popularity};
use crate::rng::Rng;
use crate::trace::{TraceAdapter, TraceRequest, to_microsecond};
use crate::workload::{LengthRange, WorkloadError, check_arrivals};
use std::fmt;
use std::iter::Peekable;
use std::str::FromStr;
use weft_types::{BaseModelSpec, Dtype, Module};

/// How long prompts and outputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// Each uniform in its range, whatever the other is.
    Uniform {
        /// Prompt tokens.
        input: LengthRange,
        /// Output tokens.
        output: LengthRange,
    },
    /// Punica's: prompts lognormal (shape 0.8, scale 18, moved by -1), prompt and output together
    /// uniform below `max_len`, outputs of at least two tokens.
    Punica {
        /// 2048 in the paper.
        max_len: usize,
    },
}

impl Lengths {
    /// S-LoRA's `randint(8, 512)` for both.
    pub const S_LORA: Self = {
        let range = LengthRange { min: 8, max: 511 };
        Self::Uniform { input: range, output: range }
    };

    fn draw(self, rng: &mut Rng) -> (u32, u32) {
        let (input, output) = match self {
            Self::Uniform { input, output } => {
                (rng.between(input.min, input.max), rng.between(output.min, output.max))
            }
            Self::Punica { max_len } => {
                let prompt = (18.0 * (0.8 * rng.normal()).exp() - 1.0) as usize;
                let prompt = prompt.min(max_len.saturating_sub(2)).max(1);
                let total = rng.below(max_len as u64) as usize;
                (prompt, total.max(prompt + 2) - prompt)
            }
        };
        let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        (count(input), count(output))
    }
}

/// S-LoRA's settings: which ranks its adapters have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the paper's")]
pub enum SLoraSetting {
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
}

impl SLoraSetting {
    /// All six.
    pub const ALL: [Self; 6] = [Self::S1, Self::S2, Self::S3, Self::S4, Self::S5, Self::S6];

    /// Ranks, which the adapters have in turn.
    #[must_use]
    pub fn ranks(self) -> &'static [u32] {
        match self {
            Self::S1 => &[8],
            Self::S2 => &[64, 32, 16, 8],
            Self::S3 => &[16],
            Self::S4 => &[64, 32, 16],
            Self::S5 => &[32],
            Self::S6 => &[64],
        }
    }
}

impl fmt::Display for SLoraSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl FromStr for SLoraSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|setting| setting.to_string() == text);
        found.ok_or_else(|| format!("setting `{text}` is not one of S1, S2, S3, S4, S5, S6"))
    }
}

/// Everything that determines the requests of one tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticTrace {
    /// Requests in all.
    pub num_requests: u64,
    /// Whose they are.
    pub tenant: u32,
    /// Adapters are `first_adapter .. first_adapter + num_adapters`.
    pub first_adapter: u32,
    /// None means that all requests go to the base.
    pub num_adapters: u32,
    /// Ranks, which the adapters have in turn; adapter 0 has the first. Empty if unknown.
    pub ranks: Vec<u32>,
    /// How requests spread over the adapters.
    pub popularity: Popularity,
    /// When they arrive; a closed loop's are all there from the start.
    pub arrivals: Arrivals,
    /// How long they are.
    pub lengths: Lengths,
    /// Same seed and tenant, same requests.
    pub seed: u64,
}

impl SyntheticTrace {
    /// S-LoRA's generator: `rate * duration_s` requests, popularity by the power law `alpha`, gaps
    /// Gamma with the given `cv`.
    #[must_use]
    pub fn s_lora(setting: SLoraSetting, num_adapters: u32, load: SLoraLoad, seed: u64) -> Self {
        Self {
            num_requests: (load.rate * load.duration_s) as u64,
            tenant: 0,
            first_adapter: 0,
            num_adapters,
            ranks: setting.ranks().to_vec(),
            popularity: Popularity::Power(load.alpha),
            arrivals: Arrivals::Open { rate: load.rate, cv: load.cv },
            lengths: Lengths::S_LORA,
            seed,
        }
    }

    /// Punica's text generation: all requests are there from the start, rank 16, and there are as
    /// many adapters as its popularity needs: one, one per request, `ceil(sqrt(n))`, or, skewed,
    /// as many as let the least popular have one request.
    #[must_use]
    pub fn punica(popularity: Popularity, num_requests: u64, seed: u64) -> Self {
        let n = num_requests as f64;
        let num_adapters = match popularity {
            Popularity::Identical => 1.0,
            Popularity::Distinct => n,
            Popularity::Geometric(ratio) if ratio > 1.0 => {
                (n * (ratio - 1.0) + 1.0).log(ratio).ceil()
            }
            _ => n.sqrt().ceil(),
        };
        Self {
            num_requests,
            tenant: 0,
            first_adapter: 0,
            num_adapters: num_adapters as u32,
            ranks: vec![16],
            popularity,
            arrivals: Arrivals::Closed { concurrency: 32 },
            lengths: Lengths::Punica { max_len: 2048 },
            seed,
        }
    }

    /// A second tenant with adapters of its own, who sends `factor` times as much in the same time.
    #[must_use]
    pub fn neighbour(&self, factor: f64) -> Self {
        let arrivals = match self.arrivals {
            Arrivals::Open { rate, cv } => Arrivals::Open { rate: rate * factor, cv },
            closed @ Arrivals::Closed { .. } => closed,
        };
        Self {
            num_requests: (self.num_requests as f64 * factor) as u64,
            tenant: self.tenant.saturating_add(1),
            first_adapter: self.first_adapter.saturating_add(self.num_adapters),
            arrivals,
            ..self.clone()
        }
    }

    /// The requests, by arrival.
    ///
    /// # Errors
    /// When the config contradicts itself.
    pub fn requests(&self) -> Result<SyntheticRequests, WorkloadError> {
        if self.num_requests == 0 {
            return Err(WorkloadError::NoRequests);
        }
        if self.first_adapter.checked_add(self.num_adapters).is_none() {
            return Err(WorkloadError::TooManyAdapters);
        }
        if let Arrivals::Open { .. } = self.arrivals {
            check_arrivals(self.arrivals)?;
        }
        let stream = |purpose: &str| Rng::new(self.seed, &format!("{purpose} {}", self.tenant));
        Ok(SyntheticRequests {
            sampler: self.popularity.sampler(self.num_adapters as usize),
            left: self.num_requests,
            at: 0.0,
            adapters: stream("adapters"),
            gaps: stream("arrivals"),
            lengths: stream("lengths"),
            config: self.clone(),
        })
    }
}

/// How much S-LoRA's generator sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SLoraLoad {
    /// 1 is uniform, smaller is more skewed.
    pub alpha: f64,
    /// Requests per second.
    pub rate: f64,
    /// Coefficient of variation of the gaps.
    pub cv: f64,
    /// How long they arrive.
    pub duration_s: f64,
}

/// See [`SyntheticTrace::requests`].
#[derive(Clone, Debug)]
pub struct SyntheticRequests {
    config: SyntheticTrace,
    sampler: Option<AdapterSampler>,
    left: u64,
    at: f64,
    adapters: Rng,
    gaps: Rng,
    lengths: Rng,
}

impl Iterator for SyntheticRequests {
    type Item = TraceRequest;

    fn next(&mut self) -> Option<TraceRequest> {
        self.left = self.left.checked_sub(1)?;
        let SyntheticTrace { tenant, first_adapter, ranks, arrivals, lengths, .. } = &self.config;
        self.at += arrivals.gap(&mut self.gaps);
        let adapter = self
            .sampler
            .as_mut()
            .map(|sampler| first_adapter + sampler.draw(&mut self.adapters) as u32);
        let (prompt_tokens, output_tokens) = lengths.draw(&mut self.lengths);
        Some(TraceRequest {
            arrival_s: to_microsecond(self.at),
            adapter,
            tenant: *tenant,
            prompt_tokens,
            output_tokens,
            rank: adapter.and_then(|adapter| rank_of(adapter, ranks)),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = usize::try_from(self.left).ok();
        (left.unwrap_or(usize::MAX), left)
    }
}

/// The requests of several tenants as one trace, by arrival; ties go to the first.
#[must_use]
pub fn merge<I: Iterator<Item = TraceRequest>>(traces: Vec<I>) -> Merged<I> {
    Merged { traces: traces.into_iter().map(Iterator::peekable).collect() }
}

/// See [`merge`]. Looks at the head of each: meant for tens of tenants.
#[derive(Clone, Debug)]
pub struct Merged<I: Iterator<Item = TraceRequest>> {
    traces: Vec<Peekable<I>>,
}

impl<I: Iterator<Item = TraceRequest>> Iterator for Merged<I> {
    type Item = TraceRequest;

    fn next(&mut self) -> Option<TraceRequest> {
        let heads = self.traces.iter_mut().enumerate();
        let times = heads.filter_map(|(i, trace)| Some((i, trace.peek()?.arrival_s)));
        let (first, _) = times.min_by(|a, b| a.1.total_cmp(&b.1))?;
        self.traces[first].next()
    }
}

/// The header's adapters for synthetic requests: `adapter-0`, `adapter-1`, … with their `ranks` in
/// turn; see [`bytes_per_rank`].
#[must_use]
pub fn adapters(
    num_adapters: u32,
    ranks: &[u32],
    bytes_per_rank: Option<u64>,
) -> Vec<TraceAdapter> {
    (0..num_adapters)
        .map(|i| {
            let rank = rank_of(i, ranks);
            let bytes = rank.zip(bytes_per_rank).map(|(rank, each)| u64::from(rank) * each);
            TraceAdapter { name: format!("adapter-{i}"), rank, bytes }
        })
        .collect()
}

/// Bytes that each unit of rank costs a LoRA of all layers.
#[must_use]
pub fn bytes_per_rank(base: &BaseModelSpec, modules: &[Module], dtype: Dtype) -> u64 {
    let elements = |&module: &Module| {
        let shape = base.linear(module);
        shape.num_inputs + shape.num_outputs
    };
    let per_layer: usize = modules.iter().map(elements).sum();
    (per_layer * base.num_layers * dtype.size()) as u64
}

fn rank_of(adapter: u32, ranks: &[u32]) -> Option<u32> {
    ranks.get((adapter as usize).checked_rem(ranks.len())?).copied()
}

#[cfg(test)]
mod tests;
