//! The contract between `scheduler` and `runner`: what one step computes, and what came out.
//!
//! Flat arrays that are cleared and refilled, so that a steady decode allocates nothing.

use crate::event::TokenLogprobs;
use crate::executor::{ExecuteError, ExecutorLimits};
use crate::id::{AdapterId, BlockId, SeqId, TokenId};
use std::ops::Range;

/// The part of one sequence that runs in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSequence {
    /// Which sequence.
    pub seq: SeqId,
    /// Position of the first token of this chunk in its sequence.
    pub start: usize,
    /// This chunk's tokens in [`StepPlan::tokens`]; at least one.
    pub tokens: Range<usize>,
    /// The sequence's blocks in [`StepPlan::block_tables`]: enough for `start + tokens.len()`.
    /// Block `i` holds positions `i * block_size ..`.
    pub blocks: Range<usize>,
    /// Draw a token from the last position: the chunk reaches the end of what is known.
    pub sample: bool,
}

/// An adapter to be copied to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterLoad {
    /// Not on the device.
    pub adapter: AdapterId,
    /// One for each of its pages.
    pub chunks: Box<[BlockId]>,
}

/// What one step computes: decodes (one token) and prefill chunks (many) mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// In order of scheduling; each sequence at most once.
    pub sequences: Vec<PlannedSequence>,
    /// All chunks' tokens, in the order of `sequences`.
    pub tokens: Vec<TokenId>,
    /// All sequences' block tables, in the order of `sequences`.
    pub block_tables: Vec<BlockId>,
    /// Adapters that leave the device before the step: their chunks may be written in it.
    pub evictions: Vec<AdapterId>,
    /// Copies to begin, after the evictions. None of these adapters is used in this step.
    pub loads: Vec<AdapterLoad>,
}

impl StepPlan {
    /// An empty plan with memory for any step within `limits` whose sequences share no blocks.
    #[must_use]
    pub fn for_limits(limits: &ExecutorLimits) -> Self {
        Self {
            sequences: Vec::with_capacity(limits.max_num_seqs.min(limits.num_blocks)),
            tokens: Vec::with_capacity(limits.max_num_batched_tokens),
            block_tables: Vec::with_capacity(limits.num_blocks),
            ..Self::default()
        }
    }

    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.evictions.clear();
        self.loads.clear();
        self.sequences.clear();
        self.tokens.clear();
        self.block_tables.clear();
    }

    /// Whether there is nothing to compute.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// What a step gave for one planned sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceOutput {
    /// The drawn token, exactly if `sample` was set.
    pub token: Option<TokenId>,
    /// Its log probabilities, if asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// Log probabilities of the prompt tokens at positions `start + 1 ..= start + len` that lie in
    /// the prompt, if asked for: entry `i` is that of the token after the chunk's `i`-th. Virtual tokens
    /// are not counted and have none, nor has the token after them.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// This sequence cannot go on, though the others of the step can: its logits are not finite,
    /// say. Nothing that it computed in this step may be reused.
    pub failed: Option<ExecuteError>,
}

/// The outputs in the order of [`StepPlan::sequences`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One per planned sequence.
    pub sequences: Vec<SequenceOutput>,
}
