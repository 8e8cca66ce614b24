//! The sampler against the definitions of its parameters.

use super::*;
use weft_types::SequenceSpec;

fn state(sampling: SamplingParams) -> SequenceState {
    SequenceState::new(SequenceSpec {
        prompt: [3, 3, 1].into(),
        sampling,
        stop_token_ids: vec![2],
        min_tokens: 0,
        adapter: None,
    })
}

/// Shares of each token over many draws.
fn shares(logits: &[f32], sampling: &SamplingParams) -> Vec<f64> {
    let num_draws = 20_000;
    let mut state = state(sampling.clone());
    let mut counts = vec![0.0; logits.len()];
    for index in 0..num_draws {
        state.num_drawn = index;
        counts[draw(&mut logits.to_vec(), &state).unwrap().token as usize] +=
            1.0 / num_draws as f64;
    }
    counts
}

fn assert_near(got: &[f64], want: &[f64]) {
    assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 0.015), "{got:?} {want:?}");
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let drawn = draw(&mut [0.0, 5.0, 1.0, 5.0], &state(SamplingParams::greedy())).unwrap();
    assert_eq!(drawn.token, 1);
}

#[test]
fn draws_follow_the_softmax_at_each_temperature() {
    let logits = [0.0, 1.0, 2.0];
    for temperature in [0.5f32, 1.0, 2.0] {
        let weights = logits.map(|l| f64::from(l / temperature).exp());
        let want = weights.map(|w| w / weights.iter().sum::<f64>());
        let sampling = SamplingParams { temperature, ..Default::default() };
        assert_near(&shares(&logits, &sampling), &want);
    }
}

#[test]
fn truncations_keep_what_they_say() {
    // Probabilities 0.5, 0.3, 0.15, 0.05.
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    let with = |change: &dyn Fn(&mut SamplingParams)| {
        let mut sampling = SamplingParams::default();
        change(&mut sampling);
        shares(&logits, &sampling)
    };
    assert_near(&with(&|s| s.top_k = 2), &[0.625, 0.375, 0.0, 0.0]);
    assert_near(&with(&|s| s.top_p = 0.79), &[0.625, 0.375, 0.0, 0.0]);
    assert_near(&with(&|s| s.top_p = 0.0001), &[1.0, 0.0, 0.0, 0.0]);
    assert_near(&with(&|s| s.min_p = 0.2), &[0.526, 0.316, 0.158, 0.0]);
    assert_near(&with(&|s| s.logit_bias = vec![(0, -100.0)]), &[0.0, 0.6, 0.3, 0.1]);
}

#[test]
fn penalties_act_on_what_was_seen_and_drawn() {
    let mut state = state(SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..Default::default()
    });
    state.push(0);
    state.push(0);
    let mut logits = [4.0, -1.0, 3.0, 2.0];
    penalties::apply(&mut logits, &state);
    // Token 0 was drawn twice; 1 and 3 are in the prompt; 2 is untouched.
    assert_eq!(logits, [2.0 - 0.5 - 0.5, -2.0, 3.0, 1.0]);
}

#[test]
fn stop_tokens_wait_for_min_tokens() {
    let mut state = state(SamplingParams::greedy());
    state.spec.min_tokens = 1;
    assert_eq!(draw(&mut [0.0, 1.0, 9.0, 0.5], &state).unwrap().token, 1);
    state.push(1);
    assert_eq!(draw(&mut [0.0, 1.0, 9.0, 0.5], &state).unwrap().token, 2);
}

#[test]
fn logprobs_are_those_of_the_model_not_of_the_penalties() {
    let state = state(SamplingParams {
        temperature: 0.0,
        logprobs: Some(1),
        logit_bias: vec![(2, 100.0)],
        ..Default::default()
    });
    let drawn = draw(&mut [0.0, 0.0, 0.0, 0.0], &state).unwrap();
    assert_eq!(drawn.token, 2);
    assert!((drawn.logprobs.unwrap().chosen.logprob - 0.25f32.ln()).abs() < 1e-6);
}

#[test]
fn logits_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 17, 39] {
            let mut logits = vec![1.0; 40];
            logits[at] = bad;
            assert_eq!(draw(&mut logits, &state(SamplingParams::default())), None);
        }
    }
}
