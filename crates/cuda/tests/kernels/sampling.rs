//! Draws on the device against the plain semantics of sampling.

use crate::support::{Rng, gpu};
use weft_cuda::Gpu;
use weft_cuda::ops::sampling::{
    DrawStatus, Drawn, MAX_TOP, RowRequest, SamplingBuffers, SamplingPlan, reference, sample,
};
use weft_types::{SamplingParams, TokenId};

/// A row of a test: what it wants, and its logits.
#[derive(Clone, Debug)]
struct Case {
    logits: Vec<f32>,
    sampling: SamplingParams,
    u: f64,
    seen: Vec<(TokenId, u32)>,
    banned: Vec<TokenId>,
    mask: Option<Vec<u32>>,
}

impl Case {
    fn new(logits: Vec<f32>, sampling: SamplingParams, u: f64) -> Self {
        Self { logits, sampling, u, seen: Vec::new(), banned: Vec::new(), mask: None }
    }

    fn request(&self) -> RowRequest<'_> {
        let (sampling, banned) = (&self.sampling, &self.banned[..]);
        RowRequest { sampling, u: self.u, banned, mask: self.mask.as_deref() }
    }
}

/// All rows in one launch; behind them a row of padding.
fn draw(gpu: &Gpu, cases: &[Case], stride: usize) -> Vec<Drawn> {
    let (num_rows, vocab) = (cases.len() + 1, cases[0].logits.len());
    let mut plan = SamplingPlan::new(num_rows, vocab);
    let mut logits = vec![f32::NAN; num_rows * stride];
    for (case, row) in cases.iter().zip(logits.chunks_mut(stride)) {
        row[..vocab].copy_from_slice(&case.logits);
        plan.push(case.request(), case.seen.iter().copied());
    }
    plan.push_padding();
    let mut buffers = SamplingBuffers::new(gpu, num_rows, vocab, 8).expect("the device works");
    buffers.upload(gpu, &plan).expect("the device works");
    let logits = gpu.upload(&logits).expect("the device works");
    // SAFETY: the logits are there, the plan was uploaded.
    unsafe { sample(gpu, (logits.ptr(), stride), num_rows, &buffers) }.expect("the device works");
    buffers.read(cases.len()).expect("the device works")
}

#[track_caller]
fn check(gpu: &Gpu, cases: &[Case], stride: usize) {
    for (case, got) in cases.iter().zip(draw(gpu, cases, stride)) {
        let want = reference(&case.logits, &case.request(), &case.seen);
        let what = || format!("{:?} u {} of {}", case.sampling, case.u, case.logits.len());
        assert_eq!((got.token, got.status), (want.token, want.status), "{}", what());
        let Some(num_top) = case.sampling.logprobs.filter(|_| got.status == DrawStatus::Drawn)
        else {
            assert_eq!((got.logprob, got.top.len()), (0.0, 0));
            continue;
        };
        let near = |got: f32, want: f64| (f64::from(got) - want).abs() < 2e-6 * (1.0 + want.abs());
        assert!(near(got.logprob, want.logprob), "{} not {}", got.logprob, want.logprob);
        assert_eq!(got.top.len(), (num_top as usize).min(MAX_TOP).min(case.logits.len()));
        for (got, &(token, logprob)) in got.top.iter().zip(&want.ranking) {
            assert_eq!(got.token, token, "{}", what());
            assert!(near(got.logprob, logprob), "{} not {logprob}", got.logprob);
        }
    }
}

/// Logits as models give them: many near 0, some far above. `coarse`: with many ties.
fn logits(rng: &mut Rng, vocab: usize, coarse: bool) -> Vec<f32> {
    let logit = |_| {
        let x = rng.float() + rng.float() + rng.float();
        let x = if rng.below(50) == 0 { 4.0 + 4.0 * x } else { 2.0 * x };
        if coarse { (x * 2.0).round() / 2.0 } else { x }
    };
    (0..vocab).map(logit).collect()
}

fn uniform(rng: &mut Rng) -> f64 {
    (rng.bits() >> 11) as f64 / (1u64 << 53) as f64
}

/// With a bit of everything.
fn random_case(rng: &mut Rng, vocab: usize) -> Case {
    let coarse = rng.below(3) == 0;
    let sampling = SamplingParams {
        temperature: [0.0, 0.3, 0.8, 1.0, 1.7, 30.0][rng.below(6)],
        top_p: [1.0, 1.0, 0.95, 0.5, 1e-6][rng.below(5)],
        top_k: [0, 0, 1, 7, 40, 100_000][rng.below(6)],
        min_p: [0.0, 0.0, 0.0, 0.05, 1.0][rng.below(5)],
        repetition_penalty: [1.0, 1.3, 0.8][rng.below(3)],
        presence_penalty: [0.0, 0.5][rng.below(2)],
        frequency_penalty: [0.0, 0.3][rng.below(2)],
        logprobs: [None, Some(0), Some(5), Some(20)][rng.below(4)],
        logit_bias: (0..rng.below(4)).map(|_| (rng.below(vocab + 3) as u32, 8.0)).collect(),
        ..SamplingParams::default()
    };
    let mut case = Case::new(logits(rng, vocab, coarse), sampling, uniform(rng));
    let mut tokens: Vec<u32> = (0..rng.below(30)).map(|_| rng.below(vocab) as u32).collect();
    tokens.sort_unstable();
    tokens.dedup();
    case.seen = tokens.into_iter().map(|token| (token, rng.below(4) as u32)).collect();
    case.banned = (0..rng.below(3)).map(|_| rng.below(vocab + 3) as u32).collect();
    if rng.below(3) == 0 {
        let keep = rng.below(2) == 0;
        let word =
            |_| if keep { rng.bits() as u32 | rng.bits() as u32 } else { 1 << rng.below(32) };
        case.mask = Some((0..vocab.div_ceil(32)).map(word).collect());
    }
    case
}

#[test]
fn tokens_are_those_of_the_reference() {
    let (gpu, mut rng) = (gpu(), Rng::new(11));
    for (vocab, num_rows) in [(1, 8), (50, 50), (501, 50), (2000, 40)] {
        let cases: Vec<Case> = (0..num_rows).map(|_| random_case(&mut rng, vocab)).collect();
        check(&gpu, &cases, vocab);
    }
}

#[test]
fn a_large_vocabulary_is_cut_into_slices() {
    let (gpu, mut rng) = (gpu(), Rng::new(12));
    let cases: Vec<Case> = (0..10).map(|_| random_case(&mut rng, 9001)).collect();
    check(&gpu, &cases, 9004);
}

#[test]
fn flat_distributions_do_not_fit_into_shared_memory_and_need_none_to() {
    let (gpu, mut rng) = (gpu(), Rng::new(13));
    let mut cases = Vec::new();
    for (top_k, top_p, min_p) in [(5000, 1.0, 0.0), (0, 0.9, 0.0), (4000, 0.9, 0.3), (0, 1.0, 0.2)]
    {
        let sampling = SamplingParams { top_k, top_p, min_p, ..SamplingParams::default() };
        let flat = (0..6000).map(|_| 3.0 + rng.float() * 0.5).collect();
        cases.push(Case::new(flat, sampling.clone(), uniform(&mut rng)));
        // One tie of all.
        cases.push(Case::new(vec![-1.5; 6000], sampling, uniform(&mut rng)));
    }
    check(&gpu, &cases, 6000);
}

#[test]
fn a_temperature_alone_draws_by_id_over_all_slices() {
    let (gpu, mut rng) = (gpu(), Rng::new(14));
    let row = logits(&mut rng, 3 * 4096 + 5, false);
    let draws = [0.0, 0.2, 0.4, 0.6, 0.8, 0.97, 1.0 - f64::EPSILON];
    let cases = draws.map(|u| Case::new(row.clone(), SamplingParams::default(), u));
    check(&gpu, &cases, row.len());
}

#[test]
fn a_lane_has_two_slices_of_a_very_large_vocabulary() {
    let (gpu, mut rng) = (gpu(), Rng::new(16));
    let row = rng.floats(37 * 4096 + 3);
    let sampling = SamplingParams { logprobs: Some(6), ..SamplingParams::default() };
    let truncated = SamplingParams { top_k: 30, ..sampling.clone() };
    let draws = [(0.04, &sampling), (0.5, &sampling), (0.98, &sampling), (0.7, &truncated)];
    let cases = draws.map(|(u, sampling)| Case::new(row.clone(), sampling.clone(), u));
    check(&gpu, &cases, row.len());
}

#[test]
fn draws_have_the_probabilities_of_the_tokens() {
    const NUM: usize = 200;
    let gpu = gpu();
    let row = vec![0.0, 1.0, -1.0, 0.5, 1.0];
    let total: f64 = row.iter().map(|&x: &f32| f64::from(x).exp()).sum();
    for top_k in [0, 5] {
        let sampling = SamplingParams { top_k, ..SamplingParams::default() };
        let case = |i| Case::new(row.clone(), sampling.clone(), (i as f64 + 0.5) / NUM as f64);
        let cases: Vec<Case> = (0..NUM).map(case).collect();
        let drawn = draw(&gpu, &cases, row.len());
        for (token, &x) in row.iter().enumerate() {
            let got = drawn.iter().filter(|drawn| drawn.token as usize == token).count() as f64;
            let want = f64::from(x).exp() / total * NUM as f64;
            assert!((got - want).abs() <= 1.0, "token {token} {got} times, not {want}");
        }
    }
}

#[test]
fn a_bad_row_fails_alone_and_no_row_sees_another() {
    let (gpu, mut rng) = (gpu(), Rng::new(15));
    let vocab = 4100;
    let mut cases: Vec<Case> = (0..5).map(|_| random_case(&mut rng, vocab)).collect();
    cases[1].logits[vocab - 1] = f32::NAN;
    cases[2].logits[17] = f32::NEG_INFINITY;
    cases[3].mask = Some(vec![0; vocab.div_ceil(32)]);
    let drawn = draw(&gpu, &cases, vocab);
    assert_eq!(drawn[1].status, DrawStatus::NotFinite);
    assert_eq!(drawn[2].status, DrawStatus::NotFinite);
    assert_eq!(drawn[3].status, DrawStatus::NothingAllowed);
    for (case, together) in cases.iter().zip(&drawn) {
        let alone = draw(&gpu, std::slice::from_ref(case), vocab);
        assert_eq!(alone[0], *together);
    }
    check(&gpu, &cases, vocab);
}

#[test]
fn zeros_of_both_signs_are_told_apart_only_in_sorted_order() {
    let gpu = gpu();
    let row = vec![-0.0, 0.0, -1.0, 0.0, -0.0];
    let truncated = SamplingParams { top_k: 3, ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut cases: Vec<Case> =
        [0.1, 0.5, 0.9].map(|u| Case::new(row.clone(), truncated.clone(), u)).to_vec();
    cases.push(Case::new(row, greedy, 0.5));
    check(&gpu, &cases, 5);
    let tokens: Vec<TokenId> = draw(&gpu, &cases, 5).iter().map(|drawn| drawn.token).collect();
    assert_eq!(tokens, [1, 3, 0, 0]);
}

#[test]
fn a_plan_is_filled_again_and_grows_its_buffers_once() {
    let gpu = gpu();
    let row = [0.0f32, 3.0, 2.0, 1.0];
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let mut plan = SamplingPlan::new(1, 4);
    let mut buffers = SamplingBuffers::new(&gpu, 1, 4, 1).unwrap();
    for (banned, moves, token) in [(&[][..], false, 1), (&[1, 2], true, 3), (&[1, 1], false, 2)] {
        plan.clear();
        plan.push(RowRequest { sampling: &greedy, u: 0.0, banned, mask: None }, []);
        assert_eq!(buffers.upload(&gpu, &plan).unwrap(), moves);
        let logits = gpu.upload(&row).unwrap();
        // SAFETY: the logits are there, the plan was uploaded.
        unsafe { sample(&gpu, (logits.ptr(), 4), 1, &buffers) }.unwrap();
        assert_eq!(buffers.read(1).unwrap()[0].token, token);
    }
}
