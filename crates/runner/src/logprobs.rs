//! Log probabilities of tokens, from logits as the model gave them.

use crate::sampler::look_at;
use weft_types::{TokenId, TokenLogprob, TokenLogprobs};

/// ln p of `chosen` and of the `num_top` most likely tokens; ties go to the lower id.
pub(crate) fn of(logits: &[f32], chosen: TokenId, num_top: usize) -> TokenLogprobs {
    look_at(logits, |row, _| {
        let log_total = f64::from(row.max()) + row.mass(1.0).ln();
        let logprob = |token: TokenId| TokenLogprob {
            token,
            logprob: (f64::from(logits[token as usize]) - log_total) as f32,
        };
        let top = if num_top == 0 {
            Vec::new()
        } else {
            row.sorted_first(num_top).map(logprob).collect()
        };
        TokenLogprobs { chosen: logprob(chosen), top }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_and_come_in_order() {
        let logits = [1.0, 3.0, 3.0, -2.0];
        let logprobs = of(&logits, 0, 10);
        let order: Vec<TokenId> = logprobs.top.iter().map(|top| top.token).collect();
        assert_eq!(order, [1, 2, 0, 3]);
        let total: f32 = logprobs.top.iter().map(|top| top.logprob.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert_eq!(logprobs.chosen, logprobs.top[2]);
    }
}
