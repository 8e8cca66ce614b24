//! How long steps take, and so how much prefill one may hold. In: steps and their durations. Out: a
//! number of tokens. While some sequences decode, each prefill token makes all of them wait (Sarathi-
//! Serve, OSDI 2024): prompts are computed in chunks, so that a step takes about a given time.

use weft_types::StepPlan;

/// Weight of the last step in the means.
const RECENT: f64 = 0.1;
/// Prefill tokens below which a step says little about their cost.
const MIN_TOKENS: usize = 16;
/// A step is not cut to less than this: smaller ones would be all overhead.
const MIN_PREFILL: usize = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct StepTimes {
    /// `None` is no limit.
    target_s: Option<f64>,
    /// A step without prefill.
    decode_s: f64,
    /// A token of a prefill, on top.
    token_s: f64,
}

impl StepTimes {
    pub(crate) fn new(target_s: Option<f64>) -> Self {
        Self { target_s, decode_s: 0.0, token_s: 0.0 }
    }

    /// A step took so long.
    pub(crate) fn note(&mut self, plan: &StepPlan, seconds: f64) {
        let chunks = plan.sequences.iter().map(|chunk| chunk.tokens.len());
        let num_prefill: usize = chunks.filter(|&len| len > 1).sum();
        if num_prefill == 0 {
            mix(&mut self.decode_s, seconds);
        } else if num_prefill >= MIN_TOKENS {
            let has_decodes = plan.tokens.len() > num_prefill;
            let besides = if has_decodes { self.decode_s } else { 0.0 };
            // At least half is the prefill's, should decodes be fewer now than they were.
            let of_prefill = (seconds - besides).max(seconds / 2.0);
            mix(&mut self.token_s, of_prefill / num_prefill as f64);
        }
    }

    /// Prefill tokens of a step in which others decode.
    pub(crate) fn prefill_tokens(&self) -> usize {
        match self.target_s {
            Some(target_s) if self.token_s > 0.0 => {
                let tokens = (target_s - self.decode_s) / self.token_s;
                (tokens as usize).max(MIN_PREFILL)
            }
            _ => usize::MAX,
        }
    }
}

fn mix(mean: &mut f64, seconds: f64) {
    *mean = if *mean == 0.0 { seconds } else { (1.0 - RECENT) * *mean + RECENT * seconds };
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_types::{PlannedSequence, SeqId};

    fn plan(chunks: &[usize]) -> StepPlan {
        let mut plan = StepPlan::default();
        for (index, &len) in chunks.iter().enumerate() {
            let first = plan.tokens.len();
            plan.tokens.extend(std::iter::repeat_n(0, len));
            plan.sequences.push(PlannedSequence {
                seq: SeqId(index as u64),
                start: 0,
                tokens: first..plan.tokens.len(),
                blocks: 0..0,
                sample: true,
            });
        }
        plan
    }

    #[test]
    fn prefill_fills_what_decodes_leave_of_the_target() {
        let mut times = StepTimes::new(Some(0.1));
        assert_eq!(times.prefill_tokens(), usize::MAX, "nothing is known yet");
        for _ in 0..100 {
            times.note(&plan(&[1, 1]), 0.02);
            times.note(&plan(&[1, 1, 100]), 0.07);
        }
        assert!((159..=160).contains(&times.prefill_tokens()), "{}", times.prefill_tokens());
        times.note(&plan(&[1, 1]), 1000.0);
        assert_eq!(times.prefill_tokens(), MIN_PREFILL);
    }

    #[test]
    fn without_a_target_there_is_no_limit() {
        let mut times = StepTimes::new(None);
        times.note(&plan(&[100]), 10.0);
        assert_eq!(times.prefill_tokens(), usize::MAX);
    }
}
