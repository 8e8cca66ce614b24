//! The same in plain f64, on the host: sorts where the kernels search.

use super::{DrawStatus, RowRequest};
use std::cmp::Ordering;
use weft_types::TokenId;

/// What a row should get.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceRow {
    /// 0 if there is none.
    pub token: TokenId,
    /// Whether there is one.
    pub status: DrawStatus,
    /// ln of the token's probability.
    pub logprob: f64,
    /// All tokens, most likely first, with ln of their probability.
    pub ranking: Vec<(TokenId, f64)>,
}

/// Draws a row's token. `seen`: as [`super::SamplingPlan::push`] takes it.
#[must_use]
pub fn reference(raw: &[f32], request: &RowRequest<'_>, seen: &[(TokenId, u32)]) -> ReferenceRow {
    let failed = |status| ReferenceRow { token: 0, status, logprob: 0.0, ranking: Vec::new() };
    if raw.iter().any(|x| !x.is_finite()) {
        return failed(DrawStatus::NotFinite);
    }
    let logits = changed(raw, request, seen);
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return failed(DrawStatus::NothingAllowed);
    }
    let token = if request.sampling.temperature <= 0.0 {
        logits.iter().position(|&x| x == max).unwrap_or(0) as TokenId
    } else {
        draw(&logits, max, request)
    };
    let raw_max = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = raw.iter().map(|&x| f64::from(x - raw_max).exp()).sum();
    let logprob = |token: TokenId| f64::from(raw[token as usize] - raw_max) - total.ln();
    ReferenceRow {
        token,
        status: DrawStatus::Drawn,
        logprob: logprob(token),
        ranking: sorted(raw).into_iter().map(|token| (token, logprob(token))).collect(),
    }
}

/// Bias, penalties, bans, mask.
fn changed(raw: &[f32], request: &RowRequest<'_>, seen: &[(TokenId, u32)]) -> Vec<f32> {
    let sampling = request.sampling;
    let mut logits = raw.to_vec();
    for &(token, bias) in &sampling.logit_bias {
        if let Some(x) = logits.get_mut(token as usize) {
            *x += bias;
        }
    }
    for &(token, count) in seen {
        let x = &mut logits[token as usize];
        let penalty = sampling.repetition_penalty;
        if penalty != 1.0 {
            *x = if *x > 0.0 { *x / penalty } else { *x * penalty };
        }
        if count != 0 {
            *x -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
        }
    }
    for &token in request.banned {
        if let Some(x) = logits.get_mut(token as usize) {
            *x = f32::NEG_INFINITY;
        }
    }
    if let Some(mask) = request.mask {
        for (token, x) in logits.iter_mut().enumerate() {
            if mask[token / 32] >> (token % 32) & 1 == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    logits
}

/// Tokens by logit descending, then by id.
fn sorted(logits: &[f32]) -> Vec<TokenId> {
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    let by_logit = |a: &TokenId, b: &TokenId| -> Ordering {
        logits[*b as usize].total_cmp(&logits[*a as usize])
    };
    order.sort_by(by_logit);
    order
}

fn draw(logits: &[f32], max: f32, request: &RowRequest<'_>) -> TokenId {
    let sampling = request.sampling;
    let mass = |token: TokenId| {
        (f64::from(logits[token as usize] - max) / f64::from(sampling.temperature)).exp()
    };
    let is_truncated = sampling.top_k != 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    let mut kept: Vec<TokenId> =
        if is_truncated { sorted(logits) } else { (0..logits.len() as TokenId).collect() };
    if sampling.top_k != 0 {
        kept.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let limit = f64::from(sampling.top_p) * kept.iter().map(|&t| mass(t)).sum::<f64>();
        let mut so_far = 0.0;
        let reaches = |&token: &TokenId| {
            so_far += mass(token);
            so_far >= limit
        };
        let last = kept.iter().position(reaches).unwrap_or(kept.len() - 1);
        kept.truncate(last + 1);
    }
    if sampling.min_p > 0.0 {
        kept.retain(|&token| mass(token) >= f64::from(sampling.min_p));
    }
    let target = request.u * kept.iter().map(|&token| mass(token)).sum::<f64>();
    let mut so_far = 0.0;
    let beyond = |&&token: &&TokenId| {
        so_far += mass(token);
        so_far > target
    };
    let last = || kept.iter().rfind(|&&token| mass(token) > 0.0);
    kept.iter().find(beyond).or_else(last).copied().unwrap_or(0)
}
