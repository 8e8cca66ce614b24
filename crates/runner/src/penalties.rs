//! Changes to logits before the draw: bias, penalties, and stop tokens that come too early.

use crate::sequence::SequenceState;
use rustc_hash::{FxHashMap, FxHashSet};
use weft_types::{SequenceSpec, TokenId};

/// Which tokens a sequence has seen and drawn.
#[derive(Debug)]
pub(crate) struct TokenCounts {
    prompt: FxHashSet<TokenId>,
    output: FxHashMap<TokenId, u32>,
}

impl TokenCounts {
    pub(crate) fn if_needed(spec: &SequenceSpec) -> Option<Self> {
        let sampling = &spec.sampling;
        let repetition = sampling.repetition_penalty != 1.0;
        let other = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        // Virtual tokens have no logits.
        let num_virtual = spec.adapter.map_or(0, |adapter| adapter.num_virtual_tokens);
        let prompt = || spec.prompt[num_virtual..].iter().copied().collect();
        (repetition || other).then(|| Self {
            prompt: if repetition { prompt() } else { <_>::default() },
            output: FxHashMap::default(),
        })
    }

    /// Each token once, with how often it was drawn.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (TokenId, u32)> {
        let only_prompt = self.prompt.iter().filter(|token| !self.output.contains_key(token));
        let drawn = self.output.iter().map(|(&token, &count)| (token, count));
        only_prompt.map(|&token| (token, 0)).chain(drawn)
    }

    pub(crate) fn push(&mut self, token: TokenId) {
        *self.output.entry(token).or_default() += 1;
    }
}

/// Whether [`apply`] may change a logit.
pub(crate) fn may_change(state: &SequenceState) -> bool {
    let is_early = state.num_drawn < u64::from(state.spec.min_tokens);
    let holds_back = is_early && !state.spec.stop_token_ids.is_empty();
    holds_back || state.counts.is_some() || !state.spec.sampling.logit_bias.is_empty()
}

/// Applies everything that comes before temperature.
pub(crate) fn apply(logits: &mut [f32], state: &SequenceState) {
    let sampling = &state.spec.sampling;
    for &(token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(counts) = &state.counts {
        let repeat = |logit: f32| {
            let penalty = sampling.repetition_penalty;
            if logit > 0.0 { logit / penalty } else { logit * penalty }
        };
        if sampling.repetition_penalty != 1.0 {
            let only_prompt =
                counts.prompt.iter().filter(|token| !counts.output.contains_key(token));
            for &token in only_prompt.chain(counts.output.keys()) {
                logits[token as usize] = repeat(logits[token as usize]);
            }
        }
        for (&token, &count) in &counts.output {
            logits[token as usize] -=
                sampling.presence_penalty + sampling.frequency_penalty * count as f32;
        }
    }
    if state.num_drawn < u64::from(state.spec.min_tokens) {
        for &token in &state.spec.stop_token_ids {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}
