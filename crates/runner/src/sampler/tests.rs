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

/// The definition: sorts everything.
fn choose_by_sorting(logits: &[f32], sampling: &SamplingParams, u: f64) -> TokenId {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let weight = |x: f32| (f64::from(x - max) / f64::from(sampling.temperature)).exp();
    let cuts_k = sampling.top_k > 0 && (sampling.top_k as usize) < logits.len();
    let mut all: Vec<_> = (0..).zip(logits).map(|(token, &x)| (token, x, weight(x))).collect();
    if cuts_k || sampling.top_p < 1.0 || sampling.min_p > 0.0 {
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if cuts_k {
            all.truncate(sampling.top_k as usize);
        }
        let limit = f64::from(sampling.top_p) * all.iter().map(|entry| entry.2).sum::<f64>();
        let mut mass = 0.0;
        all.retain(|entry| {
            let is_kept = mass < limit;
            mass += entry.2;
            is_kept
        });
        all.retain(|entry| entry.2 >= f64::from(sampling.min_p));
    }
    let mut left = u * all.iter().map(|entry| entry.2).sum::<f64>();
    let drawn = all.iter().find(|entry| {
        left -= entry.2;
        left < 0.0
    });
    drawn.or(all.last()).unwrap().0
}

#[test]
fn draws_are_those_of_a_sorted_row() {
    let mut bits = 1_u32;
    let mut random = || {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(bits >> 8) / f64::from(1 << 24)
    };
    let mut pick = |values: &[f32]| values[(random() * values.len() as f64) as usize];
    let mut num_alike = 0;
    for round in 0..3000 {
        // Rows of one block and of many, flat and peaked, some with many ties.
        let len = pick(&[5.0, 64.0, 200.0, 1500.0]) as usize;
        let (spread, step) = (pick(&[0.5, 4.0, 30.0]), pick(&[0.0, 0.5]));
        let noise =
            |x: f32| if step > 0.0 { (x * spread / step).round() * step } else { x * spread };
        let mut logits: Vec<f32> = (0..len)
            .map(|_| noise(pick(&[0.0, 0.3, 0.7, 1.0]) + pick(&[0.01, 0.02, 0.05])))
            .collect();
        if round % 7 == 0 && len > 2 {
            logits[1] = f32::NEG_INFINITY;
        }
        let sampling = SamplingParams {
            temperature: pick(&[0.01, 0.7, 1.0, 3.0]),
            top_k: pick(&[0.0, 0.0, 1.0, 10.0, 100.0]) as u32,
            top_p: pick(&[1.0, 0.99, 0.9, 0.3]),
            min_p: pick(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            ..SamplingParams::default()
        };
        let u = f64::from(round) / 3000.0;
        let got = look_at(&logits, |row, _| choose(row, &sampling, u));
        // Weights are single precision: a draw on the border of two tokens, or a token on the border of
        // what is kept, may go either way, and then draws differ by as much.
        let want = |u: f64| choose_by_sorting(&logits, &sampling, u.clamp(0.0, 1.0 - 1e-12));
        if got == want(u) {
            num_alike += 1;
        } else {
            let near = [u - 1e-5, u + 1e-5].map(want);
            let weight = |token: TokenId| logits[token as usize];
            let is_tie = weight(got) == weight(want(u));
            assert!(near.contains(&got) || is_tie, "{got}, not {near:?}: {sampling:?} {logits:?}");
        }
        assert!(logits[got as usize] > f32::NEG_INFINITY);
    }
    assert!(num_alike > 2900, "{num_alike}");
}

#[test]
fn a_prefix_is_found_among_logits_as_close_or_as_far_apart_as_numbers_can_be() {
    for logits in [[0.0, 1e-45], [1.0, 1.0 + f32::EPSILON], [-3e38, 3e38], [2.0, 2.0]] {
        let row: Vec<f32> = (0..300).map(|i| logits[i % 2]).collect();
        let sampling = SamplingParams { top_p: 0.5, ..SamplingParams::default() };
        let drawn = [0.0, 0.5, 0.999].map(|u| look_at(&row, |row, _| choose(row, &sampling, u)));
        let want = [0.0, 0.5, 0.999].map(|u| choose_by_sorting(&row, &sampling, u));
        assert_eq!(drawn, want, "{logits:?}");
    }
}
