//! Compositions over HTTP: log probabilities of prompts as peft has them with several active adapters.

use super::{prompt_logprobs, tiny_server, want_logprobs};
use crate::support::{golden, golden_metadata};
use serde_json::{Value, json};
use weft_testkit::golden::GoldenFile;

#[tokio::test(flavor = "multi_thread")]
async fn formula_field_and_name_answer_as_peft_does_with_several_active_adapters() {
    let server = tiny_server("tiny-llama", "adapters", &["--allow-runtime-adapters"]);
    for name in ["two", "scaled"] {
        let path = golden(&format!("compositions/{name}.safetensors"));
        let formula = &golden_metadata(&path)["formula"];
        let (lora_name, lora_path) = (format!("my-{name}"), format!("compose:{formula}"));
        let body = json!({ "lora_name": lora_name, "lora_path": lora_path });
        assert_eq!(server.post_json("/v1/load_lora_adapter", &body).await.0, 200);
        let part = |term: &str| match term.split_once('*') {
            Some((scale, name)) => json!({ "name": name, "scale": scale.parse::<f64>().unwrap() }),
            None => json!({ "name": term }),
        };
        let parts: Value = formula.split('+').map(part).collect();
        let file = GoldenFile::open(&path).unwrap();
        for (tokens, logits) in crate::golden::prompts(&file) {
            let want = want_logprobs(&tokens, &logits);
            let bodies = [
                json!({ "model": formula }),
                json!({ "model": "base", "adapters": parts }),
                json!({ "model": lora_name }),
            ];
            let mut answers = Vec::new();
            for body in bodies {
                answers.push(prompt_logprobs(&server, body, &tokens).await);
            }
            assert!(answers.iter().all(|answer| *answer == answers[0]), "three spellings of one");
            for (got, want) in answers[0].iter().zip(&want) {
                assert!((got - want).abs() < 1e-2, "{formula}: {got} and {want}");
            }
        }
    }
    server.assert_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn different_compositions_run_in_one_batch_and_each_answers_as_it_does_alone() {
    let server = tiny_server("tiny-llama", "adapters", &[]);
    let models = ["base", "rank8-linears", "rank8-linears+rank3-q-v", "0.5*rank8-linears+bf16"];
    let tokens: Vec<u32> = (40..70).collect();
    let complete = async |model: &str| {
        let body = json!({ "model": model, "prompt": tokens, "max_tokens": 12, "temperature": 0,
                           "ignore_eos": true, "return_token_ids": true });
        let (status, answer) = server.post_json("/v1/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["token_ids"].clone()
    };
    let mut alone = Vec::new();
    for model in models {
        alone.push(complete(model).await);
    }
    let together = futures::future::join_all(models.map(complete)).await;
    assert_eq!(together, alone);
    assert!((1..4).all(|i| !alone[..i].contains(&alone[i])), "they differ: {alone:?}");
    server.assert_idle().await;
}
