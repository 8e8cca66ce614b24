//! The CUDA device, on the emulated driver: the same scheduler, decoder and pool give the CPU's tokens.

use crate::support::adapters::{NUM_VIRTUAL, random_adapter, versatile_adapter};
use crate::support::golden;
use crate::support::scheduling::{Answer, Request, Setup, run, run_on, runner_config};
use std::path::Path;
use std::sync::Arc;
use weft_cuda::{EmulatedDriver, Gpu, HalfType, Order};
use weft_model::cuda::CudaModel;
use weft_model::{LoadOptions, LoadedModel};
use weft_runner::CudaExecutor;
use weft_types::{LoweredAdapter, SamplingParams, Site};

/// Of log probabilities.
const TOLERANCE: f32 = 0.02;

fn model(path: &str) -> LoadedModel {
    LoadedModel::load(Path::new(&golden(path)), &LoadOptions::default()).unwrap()
}

fn run_on_gpu(model: &LoadedModel, setup: Setup, requests: &[Request]) -> (Vec<Answer>, u64) {
    let driver = EmulatedDriver::load(Path::new(weft_emulator::LIBRARY), Order::Fixed).unwrap();
    let gpu = Gpu::new(Arc::new(driver));
    let half = HalfType::F16;
    let uploaded = CudaModel::upload(&gpu, half, model).unwrap();
    let config = runner_config(model, setup);
    let executor = CudaExecutor::on_gpu(&gpu, uploaded, half, &config).unwrap();
    run_on(executor, setup, requests)
}

/// Prompts short and long, adapters of several ranks, bases among them, some later than others.
fn requests(model: &LoadedModel, ranks: &[usize], sampling: &SamplingParams) -> Vec<Request> {
    let spec = model.spec();
    let prompt = |i: usize, len: usize| {
        (0..len).map(|t| ((t * 31 + i * 17 + t * t) % spec.vocab_size) as u32).collect()
    };
    (0..12)
        .map(|i| Request {
            prompt: prompt(i, 3 + i * 37 % 90),
            adapter: (i % 4 != 0).then(|| random_adapter(spec, ranks[i % ranks.len()], i as u64)),
            sampling: SamplingParams { seed: i as u64, ..sampling.clone() },
            max_tokens: 3 + (i * 7 % 9) as u32,
            arrival: i % 5,
        })
        .collect()
}

/// The same greedy tokens, with log probabilities as close as 16-bit activations allow. Where two
/// tokens are as likely as each other by that measure, either may be chosen: these models are random,
/// and have such ties. Returns how many answers ended in one.
#[track_caller]
fn assert_agree(got: &[Answer], want: &[Answer], what: &str) -> usize {
    let mut num_ties = 0;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.tokens.len(), want.tokens.len());
        for ((got_token, got), (want_token, want)) in got.tokens.iter().zip(&want.tokens) {
            let error = (f32::from_bits(*got) - f32::from_bits(*want)).abs();
            assert!(error < TOLERANCE, "{what}, request {index}: {error} apart");
            if got_token != want_token {
                num_ties += 1;
                break;
            }
        }
    }
    num_ties
}

fn greedy() -> SamplingParams {
    SamplingParams { logprobs: Some(1), ..SamplingParams::greedy() }
}

#[test]
fn every_family_answers_as_on_the_cpu_with_mixed_adapters() {
    for path in [
        "models/tiny-llama",
        "models/tiny-llama-rope3",
        "models/tiny-mistral",
        "models/tiny-qwen2",
        "models/tiny-qwen3",
        "gguf/tiny-mixed.gguf",
    ] {
        let model = model(path);
        let requests = requests(&model, &[1, 3, 8, 16, 64], &greedy());
        let (want, _) = run(&model, Setup::default(), &requests);
        let (got, _) = run_on_gpu(&model, Setup::default(), &requests);
        let num_ties = assert_agree(&got, &want, path);
        assert!(num_ties <= 1, "{path}: {num_ties} of 12 answers differ");
    }
}

#[test]
fn draws_on_the_device_are_those_of_the_host() {
    let model = model("models/tiny-llama");
    let sampling = SamplingParams {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.01,
        repetition_penalty: 1.2,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        logit_bias: vec![(7, 1.5), (9, -100.0)],
        ..SamplingParams::default()
    };
    let drawn = |num_top: u32| {
        let sampling = SamplingParams { logprobs: Some(num_top), ..sampling.clone() };
        run_on_gpu(&model, Setup::default(), &requests(&model, &[1, 3, 8, 16, 64], &sampling)).0
    };
    // So many log probabilities are the host's business, and the draw with them.
    let (device, host) = (drawn(3), drawn(21));
    for (index, (device, host)) in device.iter().zip(&host).enumerate() {
        let tokens = |answer: &Answer| answer.tokens.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(tokens(device), tokens(host), "request {index}");
    }
    assert_eq!(assert_agree(&device, &host, "drawn"), 0);
}

#[test]
fn a_memory_that_is_too_small_changes_no_token() {
    let model = model("models/tiny-llama");
    let sampling = SamplingParams { prompt_logprobs: Some(0), ..greedy() };
    let mut requests = requests(&model, &[1, 3, 8], &sampling);
    requests.iter_mut().for_each(|request| request.max_tokens += 40);
    let tight = Setup { num_blocks: 48, enable_prefix_caching: true, ..Setup::default() };
    let (want, _) = run_on_gpu(&model, Setup::default(), &requests);
    let (got, num_preemptions) = run_on_gpu(&model, tight, &requests);
    assert!(num_preemptions > 0, "the memory was not too small");
    assert!(assert_agree(&got, &want, "tight") <= 1);
}

#[test]
fn adapters_of_every_primitive_answer_as_on_the_cpu() {
    for path in ["models/tiny-llama", "models/tiny-qwen2", "gguf/tiny-mixed.gguf"] {
        let model = model(path);
        let vocab = model.spec().vocab_size as u32;
        let mut requests = requests(&model, &[1, 3, 8], &greedy());
        for (i, request) in requests.iter_mut().enumerate().filter(|(i, _)| i % 4 > 1) {
            request.adapter = Some(versatile_adapter(model.spec(), [1, 3, 8][i % 3], i as u64));
            let virtual_tokens = vocab..vocab + NUM_VIRTUAL as u32;
            request.prompt = virtual_tokens.chain(request.prompt.iter().copied()).collect();
        }
        let (want, _) = run(&model, Setup::default(), &requests);
        let (got, _) = run_on_gpu(&model, Setup::default(), &requests);
        let num_ties = assert_agree(&got, &want, path);
        assert!(num_ties <= 1, "{path}: {num_ties} of 12 answers differ");
    }
}

#[test]
fn steps_with_gains_are_recorded_and_replayed() {
    // Nothing but gains, shifts and bottlenecks: no embeddings or heads that keep steps from graphs.
    let model = model("models/tiny-llama");
    let mut requests = requests(&model, &[3], &greedy());
    for (i, request) in requests.iter_mut().enumerate() {
        let mut adapter = LoweredAdapter::clone(&versatile_adapter(model.spec(), 3, i as u64 % 2));
        adapter.token_rows = None;
        adapter.kv_prefix = None;
        adapter.vectors.retain(|vectors| vectors.site != Site::LmHead);
        if i % 3 == 0 {
            adapter.low_rank.clear();
            adapter.bottlenecks.clear();
            adapter.content_hash.0[30] = 1;
        }
        request.adapter = Some(Arc::new(adapter));
        request.max_tokens = 12;
    }
    let (want, _) = run(&model, Setup::default(), &requests);
    let (got, _) = run_on_gpu(&model, Setup::default(), &requests);
    assert!(assert_agree(&got, &want, "gains") <= 1);
}
