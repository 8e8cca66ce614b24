//! The CUDA device, on the emulated driver: the same scheduler, decoder and pool give the CPU's tokens.

use crate::support::adapters::{NUM_VIRTUAL, random_adapter, versatile_adapter};
use crate::support::failing_driver::{Failed, FailingDriver, Retrying};
use crate::support::golden;
use crate::support::scheduling::{Answer, Request, Setup, run, run_on, runner_config};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use weft_cuda::{EmulatedDriver, Gpu, HalfType, Order, PinnedPages};
use weft_model::cuda::CudaModel;
use weft_model::{LoadOptions, LoadedModel};
use weft_runner::{CudaExecutor, KvCacheDtype, RunnerConfig};
use weft_types::{LoweredAdapter, PageAllocator, SamplingParams, Site};

/// Names the library of kernels in the run under sanitizers.
const LIBRARY_VARIABLE: &str = "WEFT_EMULATOR";

/// Of log probabilities, by the roundings of keys, values and activations: 2^-11 each time in f16, 2^-8
/// in bf16, 2^-4 of keys and values in e4m3. They add up at random over the sums of these small models.
const F16_TOLERANCE: f32 = 0.02;
const BF16_TOLERANCE: f32 = 8.0 * F16_TOLERANCE;
const FP8_TOLERANCE: f32 = 0.5;

/// What the device computes with.
#[derive(Clone, Copy)]
pub(crate) struct OnGpu {
    half: HalfType,
    kv: KvCacheDtype,
    order: Order,
    max_lora_rank: usize,
}

pub(crate) const F16: OnGpu =
    OnGpu { half: HalfType::F16, kv: KvCacheDtype::F16, order: Order::Fixed, max_lora_rank: 512 };

fn model(path: &str) -> LoadedModel {
    LoadedModel::load(Path::new(&golden(path)), &LoadOptions::default()).unwrap()
}

impl OnGpu {
    fn driver(self) -> EmulatedDriver {
        let library = std::env::var(LIBRARY_VARIABLE);
        let library = library.unwrap_or_else(|_| weft_emulator::LIBRARY.to_owned());
        EmulatedDriver::load(Path::new(&library), self.order).unwrap()
    }

    fn executor(self, gpu: &Gpu, model: &LoadedModel, setup: Setup) -> CudaExecutor {
        let uploaded = CudaModel::upload(gpu, self.half, model).unwrap();
        let Self { kv, max_lora_rank, .. } = self;
        let config =
            RunnerConfig { kv_dtype: Some(kv), max_lora_rank, ..runner_config(model, setup) };
        CudaExecutor::on_gpu(gpu, uploaded, self.half, &config).unwrap()
    }

    pub(crate) fn run(
        self,
        model: &LoadedModel,
        setup: Setup,
        requests: &[Request],
    ) -> (Vec<Answer>, u64) {
        let gpu = Gpu::new(Arc::new(self.driver()));
        run_on(self.executor(&gpu, model, setup), &pinned(&gpu), setup, requests)
    }
}

fn pinned(gpu: &Gpu) -> Arc<dyn PageAllocator> {
    Arc::new(PinnedPages::new(gpu, |error| panic!("{error}")))
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

/// The same greedy tokens, with log probabilities as close as the numbers allow. Where two
/// tokens are as likely as each other by that measure, either may be chosen: these models are random,
/// and have such ties. Returns how many answers ended in one.
#[track_caller]
fn assert_agree(got: &[Answer], want: &[Answer], tolerance: f32, what: &str) -> usize {
    let mut num_ties = 0;
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.tokens.len(), want.tokens.len());
        for ((got_token, got), (want_token, want)) in got.tokens.iter().zip(&want.tokens) {
            let error = (f32::from_bits(*got) - f32::from_bits(*want)).abs();
            assert!(error < tolerance, "{what}, request {index}: {error} apart");
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
        let (got, _) = F16.run(&model, Setup::default(), &requests);
        let num_ties = assert_agree(&got, &want, F16_TOLERANCE, path);
        assert!(num_ties <= 1, "{path}: {num_ties} of 12 answers differ");
    }
}

#[test]
fn quantized_bases_answer_as_on_the_cpu() {
    for name in ["nf4-dq", "fp4-dq-skip", "int8", "awq-128", "gptq-act-order", "gptq-8-act-order"] {
        let model = model(&format!("bases/{name}"));
        let mut requests = requests(&model, &[3, 16], &greedy());
        requests.truncate(5);
        let (want, _) = run(&model, Setup::default(), &requests);
        let (got, _) = F16.run(&model, Setup::default(), &requests);
        let num_ties = assert_agree(&got, &want, F16_TOLERANCE, name);
        assert!(num_ties <= 1, "{name}: {num_ties} of 5 answers differ");
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
        F16.run(&model, Setup::default(), &requests(&model, &[1, 3, 8, 16, 64], &sampling)).0
    };
    // So many log probabilities are the host's business, and the draw with them.
    let (device, host) = (drawn(3), drawn(21));
    for (index, (device, host)) in device.iter().zip(&host).enumerate() {
        let tokens = |answer: &Answer| answer.tokens.iter().map(|t| t.0).collect::<Vec<_>>();
        assert_eq!(tokens(device), tokens(host), "request {index}");
    }
    assert_eq!(assert_agree(&device, &host, F16_TOLERANCE, "drawn"), 0);
}

#[test]
fn a_memory_that_is_too_small_changes_no_token() {
    let model = model("models/tiny-llama");
    let sampling = SamplingParams { prompt_logprobs: Some(0), ..greedy() };
    let mut requests = requests(&model, &[1, 3, 8], &sampling);
    requests.iter_mut().for_each(|request| request.max_tokens += 40);
    let tight = Setup { num_blocks: 48, enable_prefix_caching: true, ..Setup::default() };
    let (want, _) = F16.run(&model, Setup::default(), &requests);
    let (got, num_preemptions) = F16.run(&model, tight, &requests);
    assert!(num_preemptions > 0, "the memory was not too small");
    assert!(assert_agree(&got, &want, F16_TOLERANCE, "tight") <= 1);
}

#[test]
fn bfloat16_answers_nearly_as_the_cpu() {
    let model = model("models/tiny-llama");
    let requests = requests(&model, &[1, 3, 8, 16, 64], &greedy());
    let (want, _) = run(&model, Setup::default(), &requests);
    let bf16 = OnGpu { half: HalfType::Bf16, kv: KvCacheDtype::Bf16, ..F16 };
    let (got, _) = bf16.run(&model, Setup::default(), &requests);
    let num_ties = assert_agree(&got, &want, BF16_TOLERANCE, "bf16");
    assert!(num_ties <= 3, "{num_ties} of 12 answers differ");
}

#[test]
fn an_eight_bit_cache_answers_nearly_as_the_cpu() {
    let model = model("models/tiny-llama");
    let requests = requests(&model, &[1, 3, 8, 16, 64], &greedy());
    let (want, _) = run(&model, Setup::default(), &requests);
    let fp8 = OnGpu { kv: KvCacheDtype::Fp8, ..F16 };
    let (got, _) = fp8.run(&model, Setup::default(), &requests);
    let num_ties = assert_agree(&got, &want, FP8_TOLERANCE, "fp8");
    assert!(num_ties <= 6, "{num_ties} of 12 answers differ");
    let (half, _) = F16.run(&model, Setup::default(), &requests);
    assert_ne!(got, half, "the cache has eight bits");
}

/// Few and short requests in a small memory: all of it is compared after each launch.
fn run_small(on_gpu: OnGpu, path: &str) {
    let model = model(path);
    let mut requests = requests(&model, &[1, 8, 16], &greedy());
    requests.truncate(4);
    for request in &mut requests {
        request.prompt.truncate(20);
        request.max_tokens = 4;
    }
    let setup = Setup { num_blocks: 64, max_num_batched_tokens: 32, ..Setup::default() };
    let (want, _) = run(&model, setup, &requests);
    let (got, _) = OnGpu { max_lora_rank: 16, ..on_gpu }.run(&model, setup, &requests);
    assert_eq!(assert_agree(&got, &want, F16_TOLERANCE, path), 0, "the same tokens");
}

#[test]
fn no_step_depends_on_the_order_of_threads() {
    run_small(OnGpu { order: Order::Compared, ..F16 }, "gguf/tiny-mixed.gguf");
}

#[test]
fn a_small_model_answers_as_on_the_cpu() {
    for path in ["models/tiny-llama", "gguf/tiny-mixed.gguf"] {
        run_small(F16, path);
    }
}

#[test]
fn steps_are_clean_under_address_and_undefined_behaviour_sanitizers() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["cuda::a_small_model_answers_as_on_the_cpu", "--exact"])
        .env(LIBRARY_VARIABLE, weft_emulator::SANITIZED_LIBRARY)
        .env("LD_PRELOAD", weft_emulator::SANITIZER)
        // The test runner itself keeps some memory to its end.
        .env("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0:exitcode=99")
        .env("UBSAN_OPTIONS", "print_stacktrace=1:halt_on_error=1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
}

/// Launches fail in the middle of steps that run, that are recorded and that are replayed.
#[test]
fn a_step_that_fails_anywhere_leaves_nothing_behind() {
    let model = model("models/tiny-llama");
    let requests = requests(&model, &[1, 8], &greedy());
    let setup = Setup::default();
    let (want, _) = F16.run(&model, setup, &requests);
    let failed = Arc::new(Failed::default());
    for period in [71, 151] {
        let gpu = Gpu::new(Arc::new(FailingDriver::new(F16.driver(), period, &failed)));
        let executor = Retrying(F16.executor(&gpu, &model, setup));
        let (got, _) = run_on(executor, &pinned(&gpu), setup, &requests);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got, want, "request {index}, every {period}th launch fails");
        }
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert!(of(&failed.num_run) > 3 && of(&failed.num_recorded) > 0, "{failed:?}");
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
        let (got, _) = F16.run(&model, Setup::default(), &requests);
        let num_ties = assert_agree(&got, &want, F16_TOLERANCE, path);
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
        adapter.num_virtual_tokens = 0;
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
    let (got, _) = F16.run(&model, Setup::default(), &requests);
    assert!(assert_agree(&got, &want, F16_TOLERANCE, "gains") <= 1);
}
