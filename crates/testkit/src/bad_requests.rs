//! Out: malformed requests to the completion routes, each with what its error must say.
//!
//! Systematic: every field with every value that is not of its type or range, every parameter that
//! is known and not supported, and every way to cut a body short. Over a thousand in all.

use serde_json::{Map, Value, json};

/// A request that must be answered with an error.
#[derive(Clone, Debug)]
pub struct BadRequest {
    /// `/v1/chat/completions` or `/v1/completions`.
    pub route: &'static str,
    /// To be sent as `application/json`.
    pub body: Vec<u8>,
    /// The status of the answer.
    pub status: u16,
    /// What `error.message` must contain.
    pub message_part: String,
}

/// What a field accepts, of the values in `palette`.
#[derive(Clone, Copy)]
enum Accepts {
    Bool,
    Integer(f64, f64),
    /// From above the first to the second, or from the first itself if the flag is set.
    Number(f64, f64, bool),
    Text,
    NonEmptyText,
    Texts,
    TokenIds,
    Object,
    /// Only `{}`: every other object of the palette has an entry that is wrong here.
    EmptyObject,
    Nothing,
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

const SHARED: &[(&str, Accepts)] = &[
    ("temperature", Accepts::Number(0.0, 2.0, true)),
    ("top_p", Accepts::Number(0.0, 1.0, false)),
    ("top_k", Accepts::Integer(-1.0, 4e9)),
    ("min_p", Accepts::Number(0.0, 1.0, true)),
    ("repetition_penalty", Accepts::Number(0.0, 10.0, false)),
    ("presence_penalty", Accepts::Number(-2.0, 2.0, true)),
    ("frequency_penalty", Accepts::Number(-2.0, 2.0, true)),
    ("n", Accepts::Integer(1.0, 16.0)),
    ("best_of", Accepts::Integer(1.0, 1.0)),
    ("seed", Accepts::Integer(-9e15, 9e15)),
    ("min_tokens", Accepts::Integer(0.0, 1.0)),
    ("max_completion_tokens", Accepts::Integer(1.0, 1.0)),
    ("stop", Accepts::Texts),
    ("stop_token_ids", Accepts::TokenIds),
    ("logit_bias", Accepts::EmptyObject),
    ("stream", Accepts::Bool),
    ("stream_options", Accepts::Nothing),
    ("ignore_eos", Accepts::Bool),
    ("skip_special_tokens", Accepts::Bool),
    ("include_stop_str_in_output", Accepts::Bool),
    ("return_tokens_as_token_ids", Accepts::Bool),
    ("return_token_ids", Accepts::Bool),
    ("add_special_tokens", Accepts::Bool),
    ("cache_salt", Accepts::NonEmptyText),
    ("prompt_logprobs", Accepts::Integer(0.0, 20.0)),
    ("user", Accepts::Text),
    ("priority", Accepts::Integer(-2_147_483_648.0, 2_147_483_647.0)),
    ("queue_timeout", Accepts::Number(0.0, 86_400.0, true)),
    ("response_format", Accepts::Nothing),
    ("model", Accepts::NonEmptyText),
];

const CHAT_ONLY: &[(&str, Accepts)] = &[
    ("messages", Accepts::Nothing),
    ("max_tokens", Accepts::Integer(1.0, 200.0)),
    ("logprobs", Accepts::Bool),
    ("top_logprobs", Accepts::Integer(0.0, 0.0)),
    ("add_generation_prompt", Accepts::Bool),
    ("continue_final_message", Accepts::Bool),
    ("chat_template_kwargs", Accepts::Object),
    ("messages[0].role", Accepts::NonEmptyText),
    ("messages[0].content", Accepts::Text),
    ("messages[0].name", Accepts::Text),
];

const COMPLETIONS_ONLY: &[(&str, Accepts)] = &[
    ("prompt", Accepts::Nothing),
    ("max_tokens", Accepts::Integer(0.0, 200.0)),
    ("logprobs", Accepts::Integer(0.0, 20.0)),
    ("echo", Accepts::Bool),
];

/// Known parameters that are not supported.
const UNSUPPORTED: &[&str] = &[
    "tools",
    "functions",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "suffix",
    "prompt_embeds",
    "use_beam_search",
    "length_penalty",
    "bad_words",
    "allowed_token_ids",
    "logprob_token_ids",
    "logits_processors",
    "truncate_prompt_tokens",
    "chat_template",
    "documents",
    "reasoning_effort",
    "thinking_token_budget",
    "vllm_xargs",
    "kv_transfer_params",
    "mm_processor_kwargs",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
];

/// Values of every type, small and large.
fn palette() -> Vec<Value> {
    vec![
        json!("text"),
        json!(""),
        json!("1"),
        json!(0),
        json!(1),
        json!(-1),
        json!(1.5),
        json!(-7.25),
        json!(101),
        json!(1e30),
        json!(-9e18),
        json!(u64::MAX),
        json!(true),
        json!([]),
        json!([null]),
        json!([true]),
        json!([1.5]),
        json!([-1]),
        json!([1e12]),
        json!([""]),
        json!([{}]),
        json!([["a"]]),
        json!({}),
        json!({ "a": 1 }),
        json!({ "1": "x" }),
        json!({ "1": 1e9 }),
        json!({ "type": 7 }),
        json!({ "type": "json_object" }),
    ]
}

impl Accepts {
    fn value(self, value: &Value) -> bool {
        let number = value.as_f64();
        match self {
            Self::Bool => value.is_boolean(),
            Self::Integer(low, high) => {
                number.is_some_and(|n| n.fract() == 0.0 && n >= low && n <= high)
            }
            Self::Number(low, high, from_low) => {
                number.is_some_and(|n| n <= high && (n > low || from_low && n == low))
            }
            Self::Text => value.is_string(),
            Self::NonEmptyText => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Texts => value == &json!([]) || value.as_str().is_some_and(|t| !t.is_empty()),
            Self::TokenIds => value == &json!([]),
            Self::Object => value.is_object(),
            Self::EmptyObject => value == &json!({}),
            Self::Nothing => false,
        }
    }
}

/// All of them, for a server that serves `model`.
#[must_use]
pub fn bad_requests(model: &str) -> Vec<BadRequest> {
    let chat = json!({
        "model": model, "max_tokens": 1, "messages": [{ "role": "user", "content": "hi" }],
    });
    let completion = json!({ "model": model, "max_tokens": 1, "prompt": "hi" });
    let mut all = Vec::new();
    for (route, good, own) in [(CHAT, chat, CHAT_ONLY), (COMPLETIONS, completion, COMPLETIONS_ONLY)]
    {
        let good = good.as_object().cloned().unwrap_or_default();
        wrong_values(route, &good, own, &mut all);
        just_too_large(route, &good, &mut all);
        unsupported(route, &good, &mut all);
        missing(route, &good, &mut all);
        broken_json(route, &good, &mut all);
    }
    all
}

fn wrong_values(
    route: &'static str,
    good: &Map<String, Value>,
    own: &[(&str, Accepts)],
    all: &mut Vec<BadRequest>,
) {
    for (field, accepts) in SHARED.iter().chain(own) {
        for value in palette().into_iter().filter(|value| !accepts.value(value)) {
            if *field == "messages[0].content" && value == json!([]) {
                // No parts are no text, which is a content.
                continue;
            }
            if *field == "prompt" && (value.is_string() || value == json!([""])) {
                continue;
            }
            let mut body = good.clone();
            let needle = match field.strip_prefix("messages[0].") {
                Some(key) => {
                    body["messages"][0][key] = value;
                    "`messages[0]".to_owned()
                }
                None => {
                    body.insert((*field).to_owned(), value);
                    format!("`{field}")
                }
            };
            all.push(bad(route, &body, needle));
        }
    }
}

/// Values that are wrong by a little only.
fn just_too_large(route: &'static str, good: &Map<String, Value>, all: &mut Vec<BadRequest>) {
    for (field, value) in [
        ("user", json!("u".repeat(1025))),
        ("cache_salt", json!("s".repeat(1025))),
        ("priority", json!(2_147_483_648_u64)),
        ("priority", json!(-2_147_483_649_i64)),
        ("queue_timeout", json!(86_400.5)),
        ("queue_timeout", json!(-0.001)),
    ] {
        let mut body = good.clone();
        body.insert(field.to_owned(), value);
        all.push(bad(route, &body, format!("`{field}` must")));
    }
}

fn unsupported(route: &'static str, good: &Map<String, Value>, all: &mut Vec<BadRequest>) {
    for name in UNSUPPORTED {
        for value in [json!("x"), json!(7), json!([{ "type": "function" }]), json!({ "a": 1 })] {
            let mut body = good.clone();
            body.insert((*name).to_owned(), value);
            all.push(bad(route, &body, format!("`{name}` is not supported")));
        }
    }
}

fn missing(route: &'static str, good: &Map<String, Value>, all: &mut Vec<BadRequest>) {
    for field in good.keys().filter(|field| *field != "max_tokens") {
        let mut without = good.clone();
        without.shift_remove(field);
        all.push(bad(route, &without, format!("`{field}` is required")));
        let mut null = good.clone();
        null.insert(field.clone(), Value::Null);
        all.push(bad(route, &null, format!("`{field}` is required")));
    }
}

fn broken_json(route: &'static str, good: &Map<String, Value>, all: &mut Vec<BadRequest>) {
    let text = Value::Object(good.clone()).to_string().into_bytes();
    let mut push = |body: Vec<u8>, needle: &str| {
        all.push(BadRequest { route, body, status: 400, message_part: needle.to_owned() });
    };
    push(Vec::new(), "the body is empty");
    for end in 1..text.len() {
        push(text[..end].to_vec(), "not valid JSON");
    }
    let garbage: [&[u8]; 6] =
        [b"{", b"]", b"{'a': 1}", b"{\"a\": NaN}", b"\xff\xfe", b"{\"\xc3\x28\": 1}"];
    garbage.iter().for_each(|body| push(body.to_vec(), "not valid JSON"));
    push([&text[..], b"}"].concat(), "not valid JSON");
    push([b"{\"a\":".repeat(5000), b"1".to_vec(), b"}".repeat(5000)].concat(), "not valid JSON");
    for other in [json!(null), json!(true), json!(1), json!("x"), json!([]), json!([good])] {
        push(other.to_string().into_bytes(), "must be a JSON object");
    }
}

fn bad(route: &'static str, body: &Map<String, Value>, message_part: String) -> BadRequest {
    let body = Value::Object(body.clone()).to_string().into_bytes();
    BadRequest { route, body, status: 400, message_part }
}

#[cfg(test)]
mod tests {
    use super::bad_requests;
    use std::collections::HashSet;

    #[test]
    fn there_are_over_a_thousand_different_ones() {
        let all = bad_requests("base");
        let distinct: HashSet<_> = all.iter().map(|one| (one.route, &one.body)).collect();
        assert!(distinct.len() > 1000, "{} distinct of {}", distinct.len(), all.len());
    }
}
