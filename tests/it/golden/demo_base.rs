//! The demo base and its adapters against their dequantized weights in transformers and peft.

use crate::support::decoding::{all_logits, cosine};
use crate::support::demo::model_path;
use crate::support::scheduling::{Request, Setup, run};
use crate::support::{golden, repository};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_kernels::KvDtype;
use weft_kernels::quantize::Activations;
use weft_model::{LoadOptions, LoadedModel};
use weft_runner::{SequenceNumbers, sequence_logits_in};
use weft_testkit::golden::GoldenFile;
use weft_types::{LoweredAdapter, SamplingParams};

fn load() -> LoadedModel {
    LoadedModel::load(&model_path(), &LoadOptions::default()).unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn request(prompt: Vec<u32>, num_tokens: usize, adapter: Option<&Arc<LoweredAdapter>>) -> Request {
    Request {
        prompt,
        adapter: adapter.cloned(),
        sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
        max_tokens: num_tokens as u32,
        arrival: 0,
    }
}

/// How many of the expected continuations came out; prints the margin where one did not.
fn num_same(model: &LoadedModel, cases: &[(String, Request, &Value, &Value)]) -> usize {
    let requests: Vec<Request> = cases.iter().map(|(_, request, ..)| request.clone()).collect();
    let (answers, _) = run(model, Setup::default(), &requests);
    let mut num_same = 0;
    for (answer, (name, _, want, margins)) in answers.iter().zip(cases) {
        let got: Vec<u32> = answer.tokens.iter().map(|(token, _)| *token).collect();
        match got.iter().zip(ids(want)).position(|(got, want)| *got != want) {
            None => num_same += 1,
            Some(at) => println!(
                "{name}: differs at token {at}, where the oracle's margin is {}",
                margins[at]
            ),
        }
    }
    println!("{num_same} of {} continuations are the oracle's", cases.len());
    num_same
}

#[test]
fn logits_have_a_cosine_of_at_least_0_999_with_the_dequantized_oracle() {
    let model = load();
    let golden_file = GoldenFile::open(&golden("smollm2_base.safetensors")).unwrap();
    let want = golden_file.f32("last_logits");
    let vocab_size = model.spec().vocab_size;
    let file = read_json(&golden("smollm2_base.json"));
    for (index, prompt) in file["prompts"].as_array().unwrap().iter().enumerate() {
        let logits = all_logits(&model, None, &ids(&prompt["prompt_ids"]));
        let cosine = cosine(&logits[logits.len() - vocab_size..], want.row(index));
        println!("{}: cosine {cosine:.6}", prompt["user"]);
        assert!(cosine >= 0.999, "{cosine}");
    }
}

#[test]
fn at_least_nine_of_ten_greedy_continuations_are_the_oracles() {
    let file = read_json(&golden("smollm2_base.json"));
    let cases: Vec<_> = file["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| {
            let request = request(ids(&prompt["prompt_ids"]), 32, None);
            (prompt["user"].to_string(), request, &prompt["greedy"], &prompt["margins"])
        })
        .collect();
    assert_eq!(cases.len(), 10);
    assert!(num_same(&load(), &cases) >= 9);
}

/// Mean negative log likelihood of each token after the first.
fn mean_nll(model: &LoadedModel, tokens: &[u32], numbers: SequenceNumbers) -> f64 {
    let logits = sequence_logits_in(model, None, 0, tokens, numbers);
    let rows = logits.chunks_exact(model.spec().vocab_size);
    let nll: f64 = rows
        .zip(&tokens[1..])
        .map(|(row, &next)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
            total.ln() + f64::from(max) - f64::from(row[next as usize])
        })
        .sum();
    nll / (tokens.len() - 1) as f64
}

#[test]
fn perplexity_is_within_half_a_percent_of_the_oracles_and_of_single_precision() {
    let file = &read_json(&golden("smollm2_base.json"))["perplexity"];
    let tokens = ids(&file["ids"]);
    let model = load();
    let oracle = file["mean_nll"].as_f64().unwrap();
    let f32_activations = SequenceNumbers { activations: Activations::F32, ..Default::default() };
    let reference = mean_nll(&model, &tokens, f32_activations);
    println!(
        "perplexity is {:.6} times the oracle's in single precision",
        (reference - oracle).exp()
    );
    assert!((reference - oracle).abs() < 1e-4);
    for (activations, kv_dtype, limit) in [
        (Activations::Int12, KvDtype::F32, 0.005),
        (Activations::Int12, KvDtype::F16, 0.005),
        (Activations::Int12, KvDtype::Int8, 0.005),
        (Activations::F32, KvDtype::Int8, 0.005),
        (Activations::Int8, KvDtype::F32, 0.005),
        (Activations::Int8, KvDtype::Int8, 0.005),
    ] {
        let nll = mean_nll(&model, &tokens, SequenceNumbers { activations, kv_dtype });
        let ratio = (nll - reference).exp();
        println!("{activations} activations, {kv_dtype:?} cache: {ratio:.5} times that");
        assert!((ratio - 1.0).abs() < limit, "{activations} {kv_dtype:?}: {ratio}");
    }
}

#[test]
fn demo_adapters_answer_held_out_prompts_as_peft_does() {
    let model = load();
    let file = read_json(&repository("demo/heldout_answers.json"));
    let (mut num_cases, mut num_right) = (0, 0);
    for (name, answers) in file.as_object().unwrap() {
        let dir = repository(&format!("demo/adapters/{name}"));
        let adapter = load_peft_dir(&dir, model.spec(), &LoadLimits::default()).unwrap();
        let adapter = Arc::new(adapter);
        let mut cases = Vec::new();
        for answer in answers.as_array().unwrap() {
            for (kind, adapter) in [("base", None), ("adapter", Some(&adapter))] {
                let want = &answer[kind]["tokens"];
                let num_tokens = want.as_array().unwrap().len();
                let request = request(ids(&answer["prompt_ids"]), num_tokens, adapter);
                let title = format!("{name} ({kind}) {}", answer["user"]);
                cases.push((title, request, want, &answer[kind]["margins"]));
            }
        }
        num_right += num_same(&model, &cases);
        num_cases += cases.len();
    }
    assert!(num_cases >= 50 && num_right * 10 >= num_cases * 9, "{num_right} of {num_cases}");
}
