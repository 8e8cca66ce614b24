//! Each family on a tiny seeded model in single precision: logits within 1e-4 of transformers'.

use super::{prompts, tokens};
use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use crate::support::scheduling::{Request, Setup, run};
use weft_model::{LoadOptions, LoadedModel, Quantize};
use weft_testkit::golden::GoldenFile;
use weft_types::SamplingParams;

const MODELS: [&str; 6] = [
    "tiny-llama",
    "tiny-llama-sharded",
    "tiny-llama-rope3",
    "tiny-mistral",
    "tiny-qwen2",
    "tiny-qwen3",
];

fn load(name: &str, quantize: Quantize) -> (LoadedModel, GoldenFile) {
    let dir = golden(&format!("models/{name}"));
    let options = LoadOptions { quantize, ..LoadOptions::default() };
    let model = LoadedModel::load(&dir, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    (model, GoldenFile::open(&dir.join("golden.safetensors")).unwrap())
}

#[test]
fn every_family_gives_the_logits_of_transformers() {
    for name in MODELS {
        let (model, file) = load(name, Quantize::None);
        for (tokens, want) in prompts(&file) {
            let error = relative_error(&all_logits(&model, None, &tokens), &want);
            println!("{name}: {} tokens, relative error {error:.1e}", tokens.len());
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
}

#[test]
fn every_family_continues_greedily_as_transformers_does() {
    for name in MODELS {
        let (model, file) = load(name, Quantize::None);
        let requests: Vec<Request> = (0..prompts(&file).len())
            .map(|i| Request {
                prompt: tokens(&file, &format!("tokens.{i}")),
                adapter: None,
                sampling: SamplingParams { logprobs: Some(0), ..SamplingParams::greedy() },
                max_tokens: tokens(&file, &format!("greedy.{i}")).len() as u32,
                arrival: i,
            })
            .collect();
        let (answers, _) = run(&model, Setup::default(), &requests);
        for (i, answer) in answers.iter().enumerate() {
            let got: Vec<u32> = answer.tokens.iter().map(|(token, _)| *token).collect();
            assert_eq!(got, tokens(&file, &format!("greedy.{i}")), "{name} prompt {i}");
        }
    }
}

#[test]
fn quantizing_at_load_stays_near_the_float_model() {
    for name in MODELS {
        for (quantize, limit) in [(Quantize::Int8, 0.03), (Quantize::Int4, 0.4)] {
            let (model, file) = load(name, quantize);
            for (tokens, want) in prompts(&file) {
                let error = relative_error(&all_logits(&model, None, &tokens), &want);
                assert!(error < limit, "{name} {quantize:?}: {error}");
                assert!(error > 1e-5, "{name} {quantize:?} was quantized at all");
            }
        }
    }
}
