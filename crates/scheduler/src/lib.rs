//! Decides which sequences run in the next step, and with which KV blocks.
//!
//! In: new sequences, cancellations, step outputs. Out: [`weft_types::StepPlan`] and
//! [`SequenceEvent`]. Knows no clock, thread, channel, device or text: the same calls always give
//! the same plans.
//!
//! The rules, in the order in which a step meets them:
//!
//! 1. Running sequences that decode get their token; then unfinished prefills get their next chunks,
//!    the most urgent first ([`Scheduler::plan`]). While some decode, prefills get only as much as
//!    fits into a step of the wanted duration (`step_times`).
//! 2. One that needs a block when there is none takes those of the sequence that began last, which
//!    goes back to the queue and is recomputed later. So the first always completes.
//! 3. Who is next and of a tenant that is behind goes ahead of prefills that have begun, and takes
//!    the place of a sequence whose tenant has more than its share of the places.
//! 4. What is left of the token budget goes to waiting sequences whose adapter is on the device:
//!    by priority, then fairly among tenants, then first come first served (`queue`); behind
//!    whatever prefix the cache already holds for the same tokens *and the same adapter*.
//! 5. The adapters of the next in line are loaded meanwhile. Others overtake a sequence that waits
//!    for its adapter, but only so many, and a tenant gets only so far ahead of another.
//! 6. KV blocks, cached prefixes and adapters share one pool of chunks; of what nobody uses, the
//!    least valuable leaves first (`memory`, `eviction`).
//! 7. [`Scheduler::commit`] appends the drawn tokens, ends sequences and frees their blocks; full
//!    blocks stay findable until their room is needed.

mod admission;
mod block_pool;
mod commit;
mod cost;
mod eviction;
mod integrity;
mod lru;
mod memory;
mod plan;
mod preempt;
mod prefix_cache;
mod queue;
mod residency;
mod scheduler;
mod sequence;
mod step_times;
#[cfg(test)]
mod tests;

pub use admission::{AddError, PromptLength, check_fits};
pub use commit::SequenceEvent;
pub use cost::CostModel;
pub use eviction::{AdapterFacts, EvictionKind, EvictionPolicy, PrefixFacts};
pub use memory::{Memory, PoolUse};
pub use residency::{AdapterSpec, ResidencyCounters, ResidentAdapter};
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerCounters};
pub use sequence::NewSequence;
