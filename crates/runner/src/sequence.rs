//! What the executor remembers of a sequence between steps.

use crate::penalties::TokenCounts;
use weft_types::{SequenceSpec, TokenId};

/// A sequence announced and not yet removed.
#[derive(Debug)]
pub struct SequenceState {
    pub(crate) spec: SequenceSpec,
    /// Tokens drawn so far: index of the next draw.
    pub(crate) num_drawn: u64,
    /// Kept only if a penalty needs them.
    pub(crate) counts: Option<TokenCounts>,
}

impl SequenceState {
    pub(crate) fn new(spec: SequenceSpec) -> Self {
        let counts = TokenCounts::if_needed(&spec);
        Self { spec, num_drawn: 0, counts }
    }

    /// Tokens at the begin of the prompt that stand for nothing in the vocabulary.
    pub(crate) fn num_virtual(&self) -> usize {
        self.spec.adapter.map_or(0, |adapter| adapter.num_virtual_tokens)
    }

    /// Notes a drawn token.
    pub(crate) fn push(&mut self, token: TokenId) {
        self.num_drawn += 1;
        if let Some(counts) = &mut self.counts {
            counts.push(token);
        }
    }
}
