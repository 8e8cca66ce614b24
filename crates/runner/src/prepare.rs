//! `StepPlan` → [`ForwardBatch`]: flat arrays, sequences of one adapter side by side.

use crate::sequence::SequenceState;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use weft_kernels::attention::{AttentionItem, AttentionShape};
use weft_kernels::kv::{BLOCK_SIZE, KvSlot};
use weft_model::{AdapterSegment, ForwardBatch};
use weft_types::{AdapterId, PlannedSequence, SeqId, StepPlan};

/// The adapters on the device.
pub(crate) type PlacedAdapters<A> = FxHashMap<AdapterId, Arc<A>>;

/// What is wanted of one row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitRow {
    /// Index in the plan.
    pub(crate) planned: usize,
    /// Position of the row in its sequence.
    pub(crate) position: usize,
    /// The log probability of the prompt's next token.
    pub(crate) prompt_logprobs: bool,
    /// A draw.
    pub(crate) sample: bool,
}

/// Reused from step to step.
#[derive(Debug)]
pub(crate) struct Prepared<A> {
    pub(crate) batch: ForwardBatch<A>,
    /// One per entry of `batch.logit_rows`.
    pub(crate) logit_rows: Vec<LogitRow>,
    order: Vec<usize>,
}

impl<A> Default for Prepared<A> {
    fn default() -> Self {
        Self { batch: ForwardBatch::default(), logit_rows: Vec::new(), order: Vec::new() }
    }
}

impl<A> Prepared<A> {
    /// Lays out the step. Every planned sequence is in `sequences`, its adapter in `adapters`.
    pub(crate) fn fill(
        &mut self,
        plan: &StepPlan,
        sequences: &FxHashMap<SeqId, SequenceState>,
        adapters: &PlacedAdapters<A>,
        shape: &AttentionShape,
    ) {
        self.clear();
        self.order.clear();
        self.order.extend(0..plan.sequences.len());
        // A chunk that ends before its adapter becomes active is the base's.
        let adapter = |index: usize| {
            let PlannedSequence { seq, start, tokens, .. } = &plan.sequences[index];
            let adapter = sequences[seq].spec.adapter;
            adapter.filter(|adapter| adapter.active_from < start + tokens.len()).map(|one| one.id)
        };
        // By the order of scheduling within an adapter; a stable sort may allocate.
        self.order.sort_unstable_by_key(|&index| (adapter(index), index));
        self.batch.block_tables.extend_from_slice(&plan.block_tables);
        for index in 0..self.order.len() {
            let planned = self.order[index];
            let sequence = &plan.sequences[planned];
            self.push_rows(plan, sequence, shape);
            let state = &sequences[&sequence.seq];
            let first_logit_row = self.logit_rows.len();
            self.push_logit_rows(planned, sequence, state);
            let logit_rows = &self.logit_rows[first_logit_row..];
            let adapter = state.spec.adapter.map(|adapter| &adapters[&adapter.id]);
            let active_from = state.spec.adapter.map_or(0, |adapter| adapter.active_from);
            let num_base = active_from.saturating_sub(sequence.start).min(sequence.tokens.len());
            let num_base_logits = logit_rows.partition_point(|row| row.position < active_from);
            let Self { batch, .. } = self;
            push_segment(&mut batch.segments, num_base, None);
            push_segment(&mut batch.segments, sequence.tokens.len() - num_base, adapter);
            push_segment(&mut batch.logit_segments, num_base_logits, None);
            let num_logits = logit_rows.len() - num_base_logits;
            push_segment(&mut batch.logit_segments, num_logits, adapter);
        }
    }

    /// Lets go of the adapters of the last step, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.batch.clear();
        self.logit_rows.clear();
    }

    fn push_rows(&mut self, plan: &StepPlan, sequence: &PlannedSequence, shape: &AttentionShape) {
        let batch = &mut self.batch;
        let first_row = batch.num_rows();
        let tokens = &plan.tokens[sequence.tokens.clone()];
        let blocks = &plan.block_tables[sequence.blocks.clone()];
        batch.tokens.extend_from_slice(tokens);
        for position in sequence.start..sequence.start + tokens.len() {
            batch.positions.push(position as u32);
            let block = blocks[position / BLOCK_SIZE];
            batch.slots.push(KvSlot { block, offset: (position % BLOCK_SIZE) as u32 });
        }
        let step = shape.rows_per_item();
        for row in (0..tokens.len()).step_by(step) {
            batch.attention.push(AttentionItem {
                first_row: first_row + row,
                num_rows: step.min(tokens.len() - row),
                position: sequence.start + row,
                first_block: sequence.blocks.start,
            });
        }
    }

    fn push_logit_rows(
        &mut self,
        planned: usize,
        sequence: &PlannedSequence,
        state: &SequenceState,
    ) {
        let len = sequence.tokens.len();
        let first_row = self.batch.num_rows() - len;
        let num_virtual = state.num_virtual();
        for i in 0..len {
            let position = sequence.start + i;
            let in_prompt = (num_virtual + 1..state.spec.prompt.len()).contains(&(position + 1));
            let prompt_logprobs = in_prompt && state.spec.sampling.prompt_logprobs.is_some();
            let sample = sequence.sample && i + 1 == len;
            if prompt_logprobs || sample {
                self.batch.logit_rows.push(first_row + i);
                self.logit_rows.push(LogitRow { planned, position, prompt_logprobs, sample });
            }
        }
    }
}

/// Extends the last segment or opens a new one.
fn push_segment<A>(
    segments: &mut Vec<AdapterSegment<A>>,
    num_rows: usize,
    adapter: Option<&Arc<A>>,
) {
    if num_rows == 0 {
        return;
    }
    let end = segments.last().map_or(0, |segment| segment.rows.end);
    match segments.last_mut() {
        Some(last) if same(last.adapter.as_ref(), adapter) => last.rows.end += num_rows,
        _ => segments.push(AdapterSegment { rows: end..end + num_rows, adapter: adapter.cloned() }),
    }
}

fn same<A>(a: Option<&Arc<A>>, b: Option<&Arc<A>>) -> bool {
    a.map(Arc::as_ptr) == b.map(Arc::as_ptr)
}
