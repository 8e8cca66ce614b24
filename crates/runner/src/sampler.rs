//! Logits of one row → a token. A row is sampled from itself, its seed and its index alone.

use crate::logprobs;
use crate::penalties;
use crate::rng::uniform;
use crate::sequence::SequenceState;
use weft_types::{SamplingParams, TokenId, TokenLogprobs};

/// What a draw gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: TokenId,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// Draws the next token of `state`; `logits` are scratch afterwards. `None` if they are not finite.
pub(crate) fn draw(logits: &mut [f32], state: &SequenceState) -> Option<Drawn> {
    if !all_finite(logits) {
        return None;
    }
    let sampling = &state.spec.sampling;
    let raw = sampling.logprobs.map(|_| logits.to_vec());
    penalties::apply(logits, state);
    let token = if sampling.temperature <= 0.0 {
        arg_max(logits)
    } else {
        choose(logits, sampling, uniform(sampling.seed, state.num_drawn))
    };
    let logprobs =
        raw.map(|raw| logprobs::of(&raw, token, sampling.logprobs.unwrap_or_default() as usize));
    Some(Drawn { token, logprobs })
}

/// `x * 0` is 0 for every finite x and NaN for the others.
pub(crate) fn all_finite(logits: &[f32]) -> bool {
    let mut lanes = [0.0f32; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * 0.0;
        }
    }
    lanes.iter().sum::<f32>() == 0.0 && rest.iter().all(|x| x.is_finite())
}

/// The first of the largest.
fn arg_max(logits: &[f32]) -> TokenId {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&x| x == max).unwrap_or(0) as TokenId
}

/// Temperature, top-k, top-p and min-p, then the token at `u` of the remaining mass.
fn choose(logits: &[f32], sampling: &SamplingParams, u: f64) -> TokenId {
    let max = logits[arg_max(logits) as usize];
    let weight = |logit: f32| (f64::from(logit - max) / f64::from(sampling.temperature)).exp();
    let top_k = match sampling.top_k as usize {
        0 => logits.len(),
        k => k.min(logits.len()),
    };
    let mut candidates: Vec<(TokenId, f64)>;
    if top_k == logits.len() && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
        candidates = (0..).zip(logits).map(|(token, &logit)| (token, weight(logit))).collect();
    } else {
        let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        let by_logit = |a: &TokenId, b: &TokenId| {
            logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
        };
        if top_k < order.len() {
            order.select_nth_unstable_by(top_k - 1, by_logit);
            order.truncate(top_k);
        }
        order.sort_unstable_by(by_logit);
        candidates =
            order.into_iter().map(|token| (token, weight(logits[token as usize]))).collect();
        keep_top_p(&mut candidates, f64::from(sampling.top_p));
        let least = f64::from(sampling.min_p) * candidates[0].1;
        candidates.retain(|&(_, weight)| weight >= least);
    }
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = u * total;
    for &(token, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    // Rounding can leave a little: the last token that could be drawn.
    candidates.iter().rev().find(|(_, weight)| *weight > 0.0).map_or(0, |(token, _)| *token)
}

/// Keeps the fewest candidates, most likely first, whose mass reaches `top_p`; at least one.
fn keep_top_p(candidates: &mut Vec<(TokenId, f64)>, top_p: f64) {
    let limit = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut mass = 0.0;
    let num_kept = candidates.iter().position(|(_, weight)| {
        mass += weight;
        mass >= limit
    });
    candidates.truncate(num_kept.map_or(candidates.len(), |index| index + 1));
}

#[cfg(test)]
mod tests;
