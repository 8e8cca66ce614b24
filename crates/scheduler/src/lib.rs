//! Decides which sequences run in the next step, and with which KV blocks.
//!
//! In: new sequences, cancellations, step outputs. Out: [`weft_types::StepPlan`] and
//! [`SequenceEvent`]. Knows no clock, thread, channel, device or text: the same calls always give
//! the same plans.
//!
//! The rules, in the order in which a step meets them:
//!
//! 1. Running sequences come first, in order of arrival: one token for a decode, the next chunk
//!    for an unfinished prefill ([`Scheduler::plan`]).
//! 2. One that needs a block when there is none takes those of the latest arrival, which goes back
//!    to the front of the queue and is recomputed later. So the oldest always completes.
//! 3. What is left of the token budget goes to waiting sequences, first come first served, behind
//!    whatever prefix the cache already holds for the same tokens *and the same adapter*.
//! 4. [`Scheduler::commit`] appends the drawn tokens, ends sequences and frees their blocks; full
//!    blocks stay findable until their room is needed.

mod admission;
mod block_pool;
mod commit;
mod integrity;
mod lru;
mod plan;
mod preempt;
mod prefix_cache;
mod queue;
mod scheduler;
mod sequence;
#[cfg(test)]
mod tests;

pub use admission::{AddError, check_fits};
pub use commit::SequenceEvent;
pub use scheduler::{Scheduler, SchedulerConfig, SchedulerCounters};
pub use sequence::NewSequence;
