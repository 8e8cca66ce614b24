//! Every golden adapter on both devices, on the base that it was made for, float or quantized: a table of
//! the largest errors against peft, and how many of peft's methods have such a line.

use super::methods::{base_of, load_dir, names};
use super::prompts;
use crate::cuda::F16;
use crate::http::want_logprobs;
use crate::support::decoding::{chunk_bytes, packed_logits, relative_error};
use crate::support::golden;
use crate::support::scheduling::{Answer, Request, Setup, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_model::{LoadOptions, LoadedModel};
use weft_testkit::golden::GoldenFile;
use weft_types::{LoweredAdapter, PackedAdapter, SamplingParams};

/// Of all logits in single precision: ‖error‖ / ‖logits‖.
const CPU_TOLERANCE: f64 = 1e-4;
/// Root mean square errors of log probabilities; five times as much of any single one. Half precision
/// rounds by up to 2^-11, and the logits of these models deviate by 2 to 3: up to 1e-3 for each rounding
/// that reaches them. A cache in half precision rounds keys and values; the GPU also weights, adapters
/// and the activations between kernels, about ten times as many, which add up at random.
const F16_CACHE_TOLERANCE: f64 = 0.003;
/// The same on the GPU.
const F16_TOLERANCE: f64 = 0.008;

/// One golden adapter.
struct Line {
    name: String,
    base: String,
    adapter: Arc<LoweredAdapter>,
    /// Tokens and peft's logits; prompts that invoke an activated adapter.
    prompts: Vec<(Vec<u32>, Vec<f32>)>,
}

fn line(dir: &Path, models: &mut BTreeMap<String, LoadedModel>) -> Line {
    let path = dir.join("golden.safetensors");
    // The oldest files name no base.
    let base = Some(base_of(&path)).filter(|base| !base.is_empty());
    let base = base.unwrap_or_else(|| "tiny-llama".to_owned());
    let model = models.entry(base.clone()).or_insert_with(|| {
        let dirs = [golden(&format!("models/{base}")), golden(&format!("bases/{base}"))];
        let dir = dirs.iter().find(|dir| dir.exists()).expect("a golden model");
        LoadedModel::load(dir, &LoadOptions::default()).unwrap()
    });
    let adapter = Arc::new(load_dir(dir, model));
    let mut prompts = prompts(&GoldenFile::open(&path).unwrap());
    if let Some(invocation) = &adapter.invocation_tokens {
        prompts.retain(|(tokens, _)| tokens.windows(invocation.len()).any(|w| w == &**invocation));
    }
    let kind = dir.parent().unwrap().file_name().unwrap().to_string_lossy();
    let name = format!("{kind}/{}", dir.file_name().unwrap().to_string_lossy());
    Line { name, base, adapter, prompts }
}

impl Line {
    fn with_virtual_tokens(&self, tokens: &[u32], model: &LoadedModel) -> Vec<u32> {
        let vocab = model.spec().vocab_size as u32;
        let virtual_tokens = vocab..vocab + self.adapter.num_virtual_tokens as u32;
        virtual_tokens.chain(tokens.iter().copied()).collect()
    }

    /// The largest relative error of the logits of a prompt, by the CPU's decoder.
    fn logits_error(&self, model: &LoadedModel) -> f64 {
        let packed = PackedAdapter::pack(&self.adapter, chunk_bytes(model)).unwrap();
        let num_virtual_logits = self.adapter.num_virtual_tokens * model.spec().vocab_size;
        let of_prompt = |(tokens, want): &(Vec<u32>, Vec<f32>)| {
            let invocation = self.adapter.invocation_tokens.as_deref().unwrap_or_default();
            let begins = |&at: &usize| tokens[at..].starts_with(invocation);
            let last = (0..tokens.len()).rev().find(begins).expect("invoked");
            let active_from = if invocation.is_empty() { 0 } else { last };
            let tokens = self.with_virtual_tokens(tokens, model);
            let got = packed_logits(model, Some(packed.clone()), active_from, &tokens);
            relative_error(&got[num_virtual_logits..], want)
        };
        self.prompts.iter().map(of_prompt).fold(0.0, f64::max)
    }

    /// For the log probabilities of the prompt's tokens and of one more.
    fn requests(&self, model: &LoadedModel) -> Vec<Request> {
        let request = |(tokens, _): &(Vec<u32>, Vec<f32>)| Request {
            prompt: self.with_virtual_tokens(tokens, model),
            adapter: Some(Arc::clone(&self.adapter)),
            sampling: SamplingParams {
                logprobs: Some(1),
                prompt_logprobs: Some(0),
                ..SamplingParams::greedy()
            },
            max_tokens: 1,
            arrival: 0,
        };
        self.prompts.iter().map(request).collect()
    }

    /// Of the log probabilities that clients get.
    fn logprob_errors(&self, answers: &[Answer]) -> Errors {
        let (mut max, mut sum, mut count) = (0.0_f64, 0.0, 0.0);
        for ((tokens, logits), answer) in self.prompts.iter().zip(answers) {
            let (drawn, logprob) = answer.tokens[0];
            let with_drawn = [tokens.as_slice(), &[drawn]].concat();
            let rows = logits.len() / tokens.len();
            // A row for the token after the last is never read.
            let logits = [logits.as_slice(), &vec![0.0; rows]].concat();
            let want = want_logprobs(&with_drawn, &logits);
            let got = answer.prompt_logprobs.iter().chain([&logprob]);
            assert_eq!(answer.prompt_logprobs.len() + 1, want.len(), "{}", self.name);
            for (&got, want) in got.zip(want) {
                let error = (f64::from(f32::from_bits(got)) - want).abs();
                max = max.max(error);
                sum += error * error;
                count += 1.0;
            }
        }
        Errors { max, mean_square: sum / count }
    }
}

struct Errors {
    max: f64,
    mean_square: f64,
}

impl Errors {
    fn rms(&self) -> f64 {
        self.mean_square.sqrt()
    }
}

/// All golden adapters; of the plain LoRAs a few.
fn dirs() -> Vec<PathBuf> {
    let plain = ["rank8-linears", "rank8-rslora", "rank-pattern", "lm-head", "embed-tokens"];
    let plain = plain.map(|name| golden(&format!("adapters/{name}")));
    let others = ["methods", "activated", "quantized"].into_iter().flat_map(|kind| {
        names(kind).into_iter().map(move |name| golden(&format!("{kind}/{name}")))
    });
    plain.into_iter().chain(others).collect()
}

#[test]
fn every_method_on_every_device_and_base_is_as_near_to_peft_as_its_numbers_allow() {
    let mut models = BTreeMap::new();
    let lines: Vec<Line> = dirs().iter().map(|dir| line(dir, &mut models)).collect();
    println!(
        "| adapter | base | CPU: logits, relative | CPU, f16 cache: log probabilities, rms (max) | \
         CUDA, f16, emulated: rms (max) | the base's log probabilities, rms |\n|---|---|---|---|---|---|"
    );
    let mut wrong = Vec::new();
    for (base, model) in &models {
        // All adapters of a base in one batch.
        let of_base: Vec<&Line> = lines.iter().filter(|line| line.base == *base).collect();
        let requests: Vec<Request> = of_base.iter().flat_map(|line| line.requests(model)).collect();
        let (on_cpu, _) = run(model, Setup::default(), &requests);
        let (on_gpu, _) = F16.run(model, Setup::default(), &requests);
        let without = requests.into_iter().zip(of_base.iter().flat_map(|line| &line.prompts));
        let without: Vec<Request> = without
            .map(|(request, (tokens, _))| Request {
                adapter: None,
                prompt: tokens.clone(),
                ..request
            })
            .collect();
        let (without, _) = run(model, Setup::default(), &without);
        let mut first = 0;
        for line in of_base {
            let range = first..first + line.prompts.len();
            first = range.end;
            let logits = line.logits_error(model);
            let cpu = line.logprob_errors(&on_cpu[range.clone()]);
            let gpu = line.logprob_errors(&on_gpu[range.clone()]);
            let without = line.logprob_errors(&without[range]).rms();
            println!(
                "| {} | {base} | {logits:.1e} | {:.1e} ({:.1e}) | {:.1e} ({:.1e}) | {without:.1} |",
                line.name,
                cpu.rms(),
                cpu.max,
                gpu.rms(),
                gpu.max
            );
            let of_device =
                |errors: &Errors, rms: f64| errors.rms() < rms && errors.max < 5.0 * rms;
            let near = logits < CPU_TOLERANCE
                && of_device(&cpu, F16_CACHE_TOLERANCE)
                && of_device(&gpu, F16_TOLERANCE);
            if !near || without < 10.0 * F16_TOLERANCE {
                wrong.push(&line.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(lines.len() >= 45, "{} adapters", lines.len());
}

/// A method is served if a golden adapter shows it; the others are known, and refused by name.
#[test]
fn each_of_pefts_methods_has_a_golden_adapter_or_is_refused_with_its_reason() {
    let read = |path: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    let all = read(&golden("peft_methods.json"));
    let methods: BTreeSet<&str> =
        all["methods"].as_object().unwrap().keys().map(String::as_str).collect();
    let configs = dirs().into_iter().map(|dir| read(&dir.join("adapter_config.json")));
    let served: BTreeSet<String> =
        configs.filter_map(|config| config["peft_type"].as_str().map(str::to_owned)).collect();
    let model = LoadedModel::load(&golden("models/tiny-llama"), &LoadOptions::default()).unwrap();
    for method in &methods {
        if served.contains(*method) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = json!({ "peft_type": method, "task_type": "CAUSAL_LM" });
        std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).unwrap();
        std::fs::write(dir.path().join("adapter_model.safetensors"), [0; 16]).unwrap();
        let error = load_peft_dir(dir.path(), model.spec(), &LoadLimits::default()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(method) && error.contains("but that"), "{error}");
    }
    println!(
        "of the {} methods of peft {}, {} are served: {}",
        methods.len(),
        all["peft_version"].as_str().unwrap(),
        served.len(),
        served.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    assert!(served.iter().all(|method| methods.contains(method.as_str())), "{served:?}");
    assert!(served.len() >= 10, "{served:?}");
}
