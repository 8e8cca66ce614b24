//! A request's tokens and log probabilities have the same bits alone, among strangers, chunked,
//! cached, preempted, and on any number of threads.

use crate::support::adapters::{NUM_VIRTUAL, random_adapter, versatile_adapter};
use crate::support::golden;
use crate::support::scheduling::{Answer, Request, Setup, run};
use std::path::Path;
use std::sync::Arc;
use weft_kernels::quantize::Activations;
use weft_model::{LoadOptions, LoadedModel};
use weft_runner::KvCacheDtype;
use weft_types::{LoweredAdapter, SamplingParams};

/// Every weight format between them: all of GGUF's, single precision, a codebook and zero points.
fn models() -> Vec<LoadedModel> {
    [
        "gguf/tiny-mixed.gguf",
        "models/tiny-llama",
        "models/tiny-mistral",
        "bases/nf4-dq",
        "bases/gptq-act-order",
    ]
    .map(|path| LoadedModel::load(Path::new(&golden(path)), &LoadOptions::default()).unwrap())
    .into()
}

/// Thirty-two requests: different prompts, lengths, samplings, arrivals, and adapters of ranks
/// 1..=64; every fourth is for the bare base.
fn strangers(model: &LoadedModel) -> Vec<Request> {
    let spec = model.spec();
    (0..32usize)
        .map(|i| {
            let rank = [1, 3, 8, 16, 64][i % 5];
            let greedy = i.is_multiple_of(3);
            Request {
                prompt: prompt(i, 3 + i * 5 % 70),
                adapter: (i % 4 != 0).then(|| random_adapter(spec, rank, i as u64)),
                sampling: SamplingParams {
                    temperature: if greedy { 0.0 } else { 0.9 },
                    top_p: 0.95,
                    repetition_penalty: 1.1,
                    seed: i as u64,
                    logprobs: Some(1),
                    prompt_logprobs: i.is_multiple_of(5).then_some(0),
                    ..Default::default()
                },
                max_tokens: 4 + (i * 7 % 20) as u32,
                arrival: i % 7,
            }
        })
        .collect()
}

/// The same, but every adapter becomes active somewhere in its prompts.
fn activated(model: &LoadedModel) -> Vec<Request> {
    const INVOCATION: [u32; 2] = [7, 300];
    let activate = |(i, mut request): (usize, Request)| {
        if let Some(adapter) = &mut request.adapter {
            let adapter = Arc::make_mut(adapter);
            adapter.content_hash.0[31] ^= 0x55;
            adapter.invocation_tokens = Some(INVOCATION.into());
            let at = i * 7 % request.prompt.len();
            request.prompt.splice(at..at, INVOCATION);
        }
        request
    };
    strangers(model).into_iter().enumerate().map(activate).collect()
}

fn prompt(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|t| ((t * 31 + seed * 17 + t * t) % 320) as u32).collect()
}

fn alone(model: &LoadedModel, setup: Setup, request: &Request) -> Answer {
    let request = Request { arrival: 0, ..request.clone() };
    run(model, setup, &[request]).0.remove(0)
}

fn assert_same(got: &[Answer], want: &[Answer]) {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.tokens, want.tokens, "request {index}");
        assert_eq!(got.prompt_logprobs, want.prompt_logprobs, "request {index}");
    }
}

#[test]
fn a_request_answers_the_same_bits_alone_and_among_strangers_with_other_adapters() {
    for model in models() {
        let requests = strangers(&model);
        let want: Vec<Answer> =
            requests.iter().map(|request| alone(&model, Setup::default(), request)).collect();
        let (together, _) = run(&model, Setup::default(), &requests);
        assert_same(&together, &want);
        let one_thread = Setup { num_threads: 1, ..Setup::default() };
        assert_same(&run(&model, one_thread, &requests).0, &want);
    }
}

#[test]
fn so_it_does_with_every_kind_of_activations_and_a_cache_of_8_bits() {
    let kinds = [
        (Activations::Int8, KvCacheDtype::F16),
        (Activations::F32, KvCacheDtype::Int8),
        (Activations::Int8, KvCacheDtype::Int8),
    ];
    let mut answers = Vec::new();
    for (activations, kv_dtype) in kinds {
        // Of all integer formats.
        let model = models().remove(0);
        let setup = Setup { activations, kv_dtype, ..Setup::default() };
        let requests = strangers(&model);
        let want: Vec<Answer> =
            requests.iter().map(|request| alone(&model, setup, request)).collect();
        assert_same(&run(&model, setup, &requests).0, &want);
        let chunked = Setup {
            max_num_batched_tokens: 7,
            enable_prefix_caching: true,
            num_threads: 1,
            ..setup
        };
        assert_same(&run(&model, chunked, &requests).0, &want);
        answers.push(want);
    }
    assert_ne!(answers[0][0].tokens, answers[2][0].tokens, "log probabilities differ");
    assert_ne!(answers[1][0].tokens, answers[2][0].tokens, "log probabilities differ");
}

#[test]
fn adapters_do_change_the_answers() {
    let model = &models()[1];
    let request = strangers(model).remove(1);
    let base = Request { adapter: None, ..request.clone() };
    assert_ne!(alone(model, Setup::default(), &request), alone(model, Setup::default(), &base));
}

#[test]
fn chunks_of_prefill_do_not_change_a_bit() {
    for model in models() {
        let requests = strangers(&model);
        let (want, _) = run(&model, Setup::default(), &requests);
        for max_num_batched_tokens in [1, 7, 33, 64] {
            let setup = Setup { max_num_batched_tokens, ..Setup::default() };
            assert_same(&run(&model, setup, &requests).0, &want);
        }
    }
}

#[test]
fn prefix_cache_hits_do_not_change_a_bit_and_never_cross_adapters() {
    for model in models() {
        // The same long prompt under every adapter and the base, then all of them again.
        let first: Vec<Request> = strangers(&model)
            .into_iter()
            .map(|request| {
                let sampling = SamplingParams { prompt_logprobs: None, ..request.sampling };
                Request { prompt: prompt(1, 64), sampling, ..request }
            })
            .collect();
        let second = first.iter().map(|request| Request { arrival: 200, ..request.clone() });
        let requests: Vec<Request> = first.iter().cloned().chain(second).collect();
        let (want, _) = run(&model, Setup::default(), &requests);
        let setup = Setup { enable_prefix_caching: true, ..Setup::default() };
        let (got, _) = run(&model, setup, &requests);
        assert_same(&got, &want);
        let late = &got[first.len()..];
        assert!(late.iter().all(|answer| answer.num_cached == 48), "all but the last block hit");
    }
}

#[test]
fn activated_adapters_answer_the_same_bits_alone_chunked_and_from_the_cache_of_the_base() {
    for model in models() {
        let requests = activated(&model);
        let want: Vec<Answer> =
            requests.iter().map(|request| alone(&model, Setup::default(), request)).collect();
        for max_num_batched_tokens in [512, 7, 1] {
            let setup = Setup { max_num_batched_tokens, ..Setup::default() };
            assert_same(&run(&model, setup, &requests).0, &want);
        }
        // The base has seen every prompt before, and both have once they come again.
        let later = |request: &Request, arrival| Request { arrival, ..request.clone() };
        let base = requests.iter().map(|request| Request { adapter: None, ..later(request, 0) });
        let twice = [300, 600].map(|arrival| requests.iter().map(move |r| later(r, arrival)));
        let all: Vec<Request> = base.chain(twice.into_iter().flatten()).collect();
        let setup = Setup { enable_prefix_caching: true, ..Setup::default() };
        let (got, _) = run(&model, setup, &all);
        let (got, again) = got[requests.len()..].split_at(requests.len());
        assert_same(got, &want);
        assert_same(again, &want);
        let cached = |answers: &[Answer]| answers.iter().map(|one| one.num_cached).sum::<usize>();
        assert!(0 < cached(got) && cached(got) < cached(again));
    }
}

#[test]
fn preemption_does_not_change_a_bit() {
    for model in models() {
        let requests: Vec<Request> =
            strangers(&model).into_iter().map(|r| Request { max_tokens: 40, ..r }).collect();
        let (want, num_preemptions) = run(&model, Setup::default(), &requests);
        assert_eq!(num_preemptions, 0);
        for enable_prefix_caching in [false, true] {
            // Hardly more than the largest adapter takes: adapters come and go, too.
            let setup = Setup { num_blocks: 150, enable_prefix_caching, ..Setup::default() };
            let (got, num_preemptions) = run(&model, setup, &requests);
            assert!(num_preemptions > 0, "the pool is small enough to preempt");
            assert_same(&got, &want);
        }
    }
}

/// Twelve requests: of adapters with every primitive, whose prompts begin with virtual tokens, of plain
/// ones, and of the base.
fn versatile_strangers(model: &LoadedModel) -> Vec<Request> {
    let spec = model.spec();
    (0..12usize)
        .map(|i| {
            let (rank, seed) = ([1, 3, 8][i / 3 % 3], i as u64);
            let (adapter, num_virtual) = match i % 4 {
                0 => (None, 0),
                1 => (Some(random_adapter(spec, rank, seed)), 0),
                _ => (Some(versatile_adapter(spec, rank, seed)), NUM_VIRTUAL),
            };
            let vocab = spec.vocab_size as u32;
            let virtual_tokens = vocab..vocab + num_virtual as u32;
            Request {
                prompt: virtual_tokens.chain(prompt(i, 3 + i * 11 % 60)).collect(),
                adapter,
                sampling: SamplingParams { logprobs: Some(1), ..SamplingParams::greedy() },
                max_tokens: 4 + (i * 7 % 20) as u32,
                arrival: i % 5,
            }
        })
        .collect()
}

#[test]
fn rows_never_meet_whatever_their_adapters_consist_of() {
    for model in models() {
        let requests = versatile_strangers(&model);
        let want: Vec<Answer> =
            requests.iter().map(|request| alone(&model, Setup::default(), request)).collect();
        let (together, _) = run(&model, Setup::default(), &requests);
        assert_same(&together, &want);
        for max_num_batched_tokens in [3, 33] {
            let setup = Setup { max_num_batched_tokens, num_threads: 1, ..Setup::default() };
            assert_same(&run(&model, setup, &requests).0, &want);
        }
        let setup = Setup { enable_prefix_caching: true, ..Setup::default() };
        assert_same(&run(&model, setup, &requests).0, &want);
    }
}

#[test]
fn every_primitive_of_an_adapter_changes_the_answer() {
    let model = &models()[1];
    let request = versatile_strangers(model).remove(2);
    let whole = request.adapter.clone().unwrap();
    let answer = |adapter: LoweredAdapter| {
        let request = Request { adapter: Some(Arc::new(adapter)), ..request.clone() };
        alone(model, Setup::default(), &request)
    };
    let want = answer(LoweredAdapter::clone(&whole));
    let strip: [fn(&mut LoweredAdapter); 7] = [
        |adapter| adapter.low_rank.clear(),
        |adapter| adapter.vectors.iter_mut().for_each(|vectors| vectors.input = None),
        |adapter| adapter.vectors.iter_mut().for_each(|vectors| vectors.output = None),
        |adapter| adapter.vectors.iter_mut().for_each(|vectors| vectors.shift = None),
        |adapter| adapter.bottlenecks.clear(),
        |adapter| {
            let rows = adapter.token_rows.as_mut().unwrap();
            rows.rows.data.iter_mut().for_each(|byte| *byte = 0);
        },
        |adapter| {
            let prefix = adapter.kv_prefix.as_mut().unwrap();
            prefix.rows.data.iter_mut().for_each(|byte| *byte = 0);
        },
    ];
    for (index, strip) in strip.into_iter().enumerate() {
        let mut adapter = LoweredAdapter::clone(&whole);
        strip(&mut adapter);
        assert_ne!(answer(adapter), want, "part {index}");
    }
}
