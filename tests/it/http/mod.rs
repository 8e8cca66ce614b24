//! The server over real sockets, with the demo model and its adapters.

mod activated;
mod behaviour;
mod churn;
mod composed;
mod faults;
mod lifecycle;
mod methods;
mod tenants;
mod virtual_tokens;

use crate::support::demo::model_path;
use crate::support::server::Server;
use crate::support::{golden, repository};
use serde_json::{Value, json};

/// The demo base as `base`, the demo's adapters by directory, and these flags.
fn demo_server(flags: &[&str]) -> Server {
    let (model, adapters) = (model_path(), repository("demo/adapters"));
    let mut args = vec![
        model.to_str().unwrap(),
        "--served-model-name=base",
        "--memory=256MiB",
        "--max-model-len=1024",
        "--adapter-dir",
        adapters.to_str().unwrap(),
    ];
    args.extend(flags);
    Server::start(&args)
}

/// A model of `tests/golden/models` as `base`, with the adapters of a directory of `tests/golden`.
fn tiny_server(model: &str, adapters: &str, flags: &[&str]) -> Server {
    let (model, adapters) = (golden(&format!("models/{model}")), golden(adapters));
    let mut args = vec![
        model.to_str().unwrap(),
        "--served-model-name=base",
        "--memory=64MiB",
        "--max-model-len=256",
        "--adapter-dir",
        adapters.to_str().unwrap(),
    ];
    args.extend(flags);
    Server::start(&args)
}

/// The log probabilities of all tokens of a prompt but the first. `body` names the model.
async fn prompt_logprobs(server: &Server, mut body: Value, tokens: &[u32]) -> Vec<f64> {
    body["prompt"] = json!(tokens);
    body["max_tokens"] = json!(1);
    body["prompt_logprobs"] = json!(0);
    let (status, answer) = server.post_json("/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["prompt_tokens"], tokens.len());
    let entries = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((entries.len(), &entries[0]), (tokens.len(), &Value::Null));
    let of_token = |(entry, token): (&Value, &u32)| {
        entry[token.to_string()]["logprob"].as_f64().expect("the token's own is there")
    };
    entries[1..].iter().zip(&tokens[1..]).map(of_token).collect()
}

/// The same from logits `[T, vocab]` of every position.
pub(crate) fn want_logprobs(tokens: &[u32], logits: &[f32]) -> Vec<f64> {
    let rows = logits.chunks_exact(logits.len() / tokens.len());
    let logprob = |(row, &next): (&[f32], &u32)| {
        let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        f64::from(row[next as usize]) - total.ln()
    };
    rows.zip(&tokens[1..]).map(logprob).collect()
}
