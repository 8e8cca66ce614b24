//! The trait that turns a [`StepPlan`] into a [`StepOutput`]: a model on a device, or a simulation.

use crate::id::{AdapterId, ContentHash, SeqId, TokenId};
use crate::packed::PackedAdapter;
use crate::plan::{AdapterLoad, StepOutput, StepPlan};
use crate::request::SamplingParams;
use std::sync::Arc;

/// What the executor can hold. Fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecutorLimits {
    /// Tokens of one KV block.
    pub block_size: usize,
    /// Chunks of the memory pool: each is a KV block or a page of an adapter.
    pub num_blocks: usize,
    /// Bytes of a chunk.
    pub chunk_bytes: usize,
    /// The longest sequence, prompt and output together.
    pub max_model_len: usize,
    /// Sequences of one step.
    pub max_num_seqs: usize,
    /// Tokens of one step.
    pub max_num_batched_tokens: usize,
}

/// What the executor must know of a sequence before its first step.
#[derive(Clone, Debug)]
pub struct SequenceSpec {
    /// For penalties and prompt log probabilities. Begins with the adapter's virtual tokens.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Never drawn before `min_tokens` output tokens.
    pub stop_token_ids: Vec<TokenId>,
    /// See [`crate::StopConditions::min_tokens`].
    pub min_tokens: u32,
    /// `None` is the bare base.
    pub adapter: Option<AdapterRef>,
}

/// The adapter of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterRef {
    /// Under which loads name it, as long as the sequence lives.
    pub id: AdapterId,
    /// What must be loaded under that id: an executor never computes with anything else.
    pub content_hash: ContentHash,
    /// Tokens at the begin of the prompt that the adapter put there: ids from the size of the vocabulary
    /// on, of which nothing is ever told.
    pub num_virtual_tokens: usize,
    /// Positions before this one are computed without the adapter.
    pub active_from: usize,
}

impl AdapterRef {
    /// An adapter that is active everywhere and puts nothing before the prompt.
    #[must_use]
    pub fn new(id: AdapterId, content_hash: ContentHash) -> Self {
        Self { id, content_hash, num_virtual_tokens: 0, active_from: 0 }
    }
}

/// A step failed. Its sequences end with this sentence; the engine goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExecuteError {
    /// For the person who reads the response.
    pub message: String,
}

/// Runs steps. Owned by the engine's loop thread.
pub trait Executor: Send {
    /// What it can hold.
    fn limits(&self) -> ExecutorLimits;

    /// Says that all later calls come from the calling thread, which may be bound to a processor.
    fn stay_on_thread(&mut self) {}

    /// Begins to copy an adapter to the device, one page to each chunk, and returns at once. The
    /// chunks are its own until [`Self::unload_adapter`].
    fn load_adapter(&mut self, load: &AdapterLoad, adapter: Arc<PackedAdapter>);

    /// Appends the adapters whose copies have ended since the last call.
    fn finished_loads(&mut self, finished: &mut Vec<AdapterId>);

    /// Forgets an adapter whose copy has ended. No step uses it any more.
    fn unload_adapter(&mut self, adapter: AdapterId);

    /// Announces a sequence; it may be planned from the next step on.
    fn add_sequence(&mut self, seq: SeqId, spec: SequenceSpec);

    /// Forgets a sequence that ended or was cancelled. Unknown ids are ignored.
    fn remove_sequence(&mut self, seq: SeqId);

    /// Begins a step on a device that computes by itself, and returns while it does;
    /// [`Self::execute`] with the same plan follows. What happens between the two costs no time.
    /// Sequences may be announced there; none of the plan's is forgotten.
    ///
    /// Where the caller's own processor computes, as by default, there is nothing to begin.
    ///
    /// # Errors
    /// When the step cannot be computed: then [`Self::execute`] does not follow.
    fn begin(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        let _ = plan;
        Ok(())
    }

    /// Computes a step, or what is left of it, and fills `output` (cleared first), one entry per
    /// planned sequence. The adapters of the sequences are on the device. Loads and evictions of the
    /// plan were begun before.
    ///
    /// A sequence may be planned again from position 0 after a preemption, with the tokens drawn
    /// so far as part of its input: what was drawn stays drawn.
    ///
    /// # Errors
    /// When the step could not be computed. The executor stays usable.
    fn execute(&mut self, plan: &StepPlan, output: &mut StepOutput) -> Result<(), ExecuteError>;
}
