//! Log probabilities of tokens, from logits as the model gave them.

use weft_types::{TokenId, TokenLogprob, TokenLogprobs};

/// ln p of `chosen` and of the `num_top` most likely tokens; ties go to the lower id.
pub(crate) fn of(logits: &[f32], chosen: TokenId, num_top: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_total = f64::from(max) + total.ln();
    let logprob = |token: TokenId| TokenLogprob {
        token,
        logprob: (f64::from(logits[token as usize]) - log_total) as f32,
    };
    let mut best: Vec<TokenId> = Vec::new();
    if num_top > 0 {
        let mut ids: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        let by_logit = |a: &TokenId, b: &TokenId| {
            logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b))
        };
        let num_top = num_top.min(ids.len());
        ids.select_nth_unstable_by(num_top - 1, by_logit);
        best.extend(&ids[..num_top]);
        best.sort_unstable_by(by_logit);
    }
    TokenLogprobs { chosen: logprob(chosen), top: best.into_iter().map(logprob).collect() }
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
