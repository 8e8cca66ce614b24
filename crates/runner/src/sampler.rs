//! Logits of one row → a token. A row is sampled from itself, its seed and its index alone.
//!
//! Nothing sorts a row: blocks of logits that cannot matter are skipped by their maxima, and of what
//! remains only the part that decides is put in order.

mod row;

use crate::logprobs;
use crate::penalties;
use crate::rng::uniform;
use crate::sequence::SequenceState;
use row::{Row, mass_of, prefix_until};
use weft_types::{SamplingParams, TokenId, TokenLogprobs};

pub(crate) use row::look_at;

/// What a draw gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: TokenId,
    pub(crate) logprobs: Option<TokenLogprobs>,
}

/// Draws the next token of `state`; `logits` are scratch afterwards. `None` if they are not finite.
pub(crate) fn draw(logits: &mut [f32], state: &SequenceState) -> Option<Drawn> {
    let sampling = &state.spec.sampling;
    let changes = penalties::may_change(state);
    let raw = (changes && sampling.logprobs.is_some()).then(|| logits.to_vec());
    if changes {
        if !all_finite(logits) {
            return None;
        }
        penalties::apply(logits, state);
    }
    let token = look_at(logits, |row, is_finite| {
        if !is_finite && !changes {
            None
        } else if sampling.temperature <= 0.0 {
            Some(row.arg_max())
        } else {
            Some(choose(row, sampling, uniform(sampling.seed, state.num_drawn)))
        }
    })?;
    let num_top = sampling.logprobs.map(|num_top| num_top as usize);
    let logprobs = num_top.map(|num| logprobs::of(raw.as_deref().unwrap_or(logits), token, num));
    Some(Drawn { token, logprobs })
}

/// Whether the model gave numbers.
pub(crate) fn all_finite(logits: &[f32]) -> bool {
    look_at(logits, |_, is_finite| is_finite)
}

/// Temperature, top-k, top-p and min-p, then the token at `u` of the remaining mass: in the order of ids
/// if nothing is cut off, else in that of [`row`]. Each of the three keeps a beginning of that order, so
/// what all keep is the shortest.
fn choose(row: &mut Row<'_>, sampling: &SamplingParams, u: f64) -> TokenId {
    let scale = (1.0 / sampling.temperature).min(f32::MAX);
    let (top_k, top_p) = (sampling.top_k as usize, f64::from(sampling.top_p));
    // The most likely token has weight 1.
    let min_weight = f64::from(sampling.min_p).min(1.0);
    let has_top_k = top_k > 0 && top_k < row.logits.len();
    if !has_top_k && top_p >= 1.0 && min_weight <= 0.0 {
        let mass = row.mass(scale);
        return row.at_mass(u * mass, scale);
    }
    let mut limit = f64::INFINITY;
    if has_top_k {
        let mass = row.keep_first(top_k, scale);
        if top_p < 1.0 {
            limit = top_p * mass;
        }
    } else {
        if top_p < 1.0 {
            limit = top_p * row.mass(scale);
        }
        keep_likely(row, scale, min_weight, limit);
    }
    let kept = row.kept();
    if limit.is_finite() {
        let num_kept = prefix_until(kept, |mass| mass >= limit);
        kept.truncate(num_kept);
    }
    kept.retain(|candidate| candidate.weight > 0.0 && candidate.weight >= min_weight);
    let target = u * mass_of(kept);
    let num_before_end = prefix_until(kept, |mass| mass > target);
    kept[num_before_end - 1].token
}

/// Keeps at least those that have `min_weight` and lie within `limit` of the mass: few, as a rule, and
/// all only if the distribution is flat.
fn keep_likely(row: &mut Row<'_>, scale: f32, min_weight: f64, limit: f64) {
    // A little lower, since logarithms are rounded: candidates are weighed afterwards.
    let lowest = row.max() + (min_weight.ln() as f32 - 0.01) / scale - 1e-6 * row.max().abs();
    let mut distance = if limit.is_finite() { 6.0 } else { f32::INFINITY };
    loop {
        let floor = (row.max() - distance / scale).max(lowest);
        let mass = row.keep_at_least(floor, scale);
        // Rounding aside: they are summed in another order than the whole mass.
        if mass >= limit * (1.0 + 1e-5) || floor <= lowest || distance > NOTHING_BELOW {
            return;
        }
        distance *= 3.0;
    }
}

/// e to the minus this is nothing in single precision.
const NOTHING_BELOW: f32 = 104.0;

#[cfg(test)]
mod tests;
