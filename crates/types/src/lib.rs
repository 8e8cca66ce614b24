//! Words that every Weft crate shares, and the contracts between them.
//!
//! * [`id`]: newtypes for sequences, KV blocks, adapters and content hashes.
//! * [`request`]: what a client wants generated, after parsing and validation.
//! * [`adapter`]: the lowered form of an adapter: what `adapters` makes and `runner` multiplies.
//! * [`packed`]: the same in pages as large as the device's chunks: what is copied there.
//! * [`page`]: the memory that those pages are in.
//! * [`plan`]: `StepPlan` and `StepOutput`, the contract between `scheduler` and `runner`.
//! * [`executor`]: the trait that turns one into the other.
//! * [`event`]: what the engine tells the stream of one request.
//! * [`model`]: the few facts about a base model that crates without weights need.
//!
//! Plain data: no threads, no clock, no device, no I/O.

pub mod adapter;
pub mod event;
pub mod executor;
pub mod id;
pub mod model;
pub mod packed;
pub mod page;
pub mod plan;
pub mod request;

pub use adapter::{
    Activation, AdapterTensor, Bottleneck, BottleneckInput, Dtype, EmbeddingUpdate, KvPrefix,
    LowRankUpdate, LoweredAdapter, Module, Site, SiteVectors, TokenRows,
};
pub use event::{FinishReason, TokenEvent, TokenLogprob, TokenLogprobs, Usage};
pub use executor::{AdapterRef, ExecuteError, Executor, ExecutorLimits, SequenceSpec};
pub use id::{AdapterId, BlockId, ContentHash, SeqId, TokenId};
pub use model::{BaseModelSpec, LinearShape};
pub use packed::{
    AdapterLayout, PackedAdapter, PackedBottleneck, PackedEmbedding, PackedKvPrefix, PackedMatrix,
    PackedTokenRows, PackedUpdate, PackedVectors, Packer, RowRun, RowTooLarge,
};
pub use page::{HeapPages, Page, PageAllocator, PageMemory};
pub use plan::{AdapterLoad, PlannedSequence, SequenceOutput, StepOutput, StepPlan};
pub use request::{GenerateRequest, Queueing, SamplingParams, StopConditions};
