//! What a computed step changes: tokens are appended, sequences end, blocks become findable or
//! free. In: the plan and its output. Out: one event per thing that a client sees.

use crate::scheduler::{Scheduler, release};
use weft_types::{ExecuteError, SeqId, SequenceOutput, StepOutput, StepPlan, TokenEvent};

/// What an output token counts for a tenant; an input token that had to be computed counts 1.
const OUTPUT_TOKEN: u64 = 2;

/// What happened to one sequence. Those of a sequence come in order.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceEvent {
    /// Which.
    pub seq: SeqId,
    /// After `Finished`, `Failed` and `Expired` the scheduler has forgotten the sequence.
    pub event: TokenEvent,
}

impl Scheduler {
    /// Applies the output of `plan`, which has one entry per planned sequence, with a token
    /// exactly where `sample` is set. Log probabilities are moved out of `output`. Events are
    /// appended to `events`.
    pub fn commit(
        &mut self,
        plan: &StepPlan,
        output: &mut StepOutput,
        events: &mut Vec<SequenceEvent>,
    ) {
        let Self { running, memory, waiting, hasher, limits, counters, .. } = self;
        let num_running = running.len();
        // Both lists are in the order of running, so one pass over both finds all.
        let mut computed = plan.sequences.iter().zip(&mut output.sequences);
        running.retain_mut(|seq| {
            if std::mem::take(&mut seq.num_planned) == 0 {
                return true;
            }
            let Some((chunk, output)) = computed.find(|(chunk, _)| chunk.seq == seq.id) else {
                debug_assert!(false, "{:?} was planned and has no output", seq.id);
                return true;
            };
            let SequenceOutput { token, logprobs, mut prompt_logprobs, failed } =
                std::mem::take(output);
            let mut emit = |event| events.push(SequenceEvent { seq: seq.id, event });
            if let Some(error) = failed {
                emit(TokenEvent::Failed(error));
                release(seq, memory, waiting);
                return false;
            }

            // After a preemption the first positions are computed, and reported, again.
            // Virtual tokens have none.
            let num_sent = seq.max_computed.saturating_sub(chunk.start.max(seq.num_virtual));
            prompt_logprobs.drain(..num_sent.min(prompt_logprobs.len()));
            if !prompt_logprobs.is_empty() {
                emit(TokenEvent::PromptLogprobs(prompt_logprobs));
            }
            if let Some(token) = token {
                emit(TokenEvent::Token { token, logprobs });
                counters.generation_tokens += 1;
                waiting.charge(seq.tenant, OUTPUT_TOKEN);
            }
            seq.advance_to(chunk.start + chunk.tokens.len());
            if self.enable_prefix_caching {
                seq.register_full_blocks(memory, hasher, limits.block_size);
            }
            seq.tokens.extend(token);

            let Some(reason) = seq.finish_reason(limits) else { return true };
            events.push(SequenceEvent {
                seq: seq.id,
                event: TokenEvent::Finished { reason, usage: seq.usage() },
            });
            release(seq, memory, waiting);
            false
        });
        if self.running.len() != num_running {
            self.roster_version += 1;
            self.may_look_ahead = true;
        }
    }

    /// Ends every sequence of `plan` with `error`, for a step that could not be computed. Blocks
    /// of earlier steps stay findable; what this step wrote was never made so.
    pub fn fail(&mut self, plan: &StepPlan, error: &ExecuteError, events: &mut Vec<SequenceEvent>) {
        for chunk in &plan.sequences {
            if self.abort(chunk.seq) {
                let event = TokenEvent::Failed(error.clone());
                events.push(SequenceEvent { seq: chunk.seq, event });
            }
        }
    }
}
