//! Templates render byte for byte as transformers rendered them, and fail where it failed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Map, Value};
use std::path::Path;
use weft_text::{ChatTemplate, RenderInput, SpecialTokens, TextError};

/// Keys of a case that are no variables of the template.
const OURS: [&str; 8] = [
    "name",
    "template",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "expected",
    "expected_error",
];

fn render(case: &Map<String, Value>) -> Result<String, TextError> {
    let source = case["template"].as_str().unwrap();
    let template = ChatTemplate::with_special_tokens(source, &SpecialTokens::default())?;
    let flag = |key: &str| case.get(key).and_then(Value::as_bool).unwrap_or(false);
    let mut kwargs: Map<String, Value> = case
        .iter()
        .filter(|(key, _)| !OURS.contains(&key.as_str()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    // A special token that the model does not have is not a variable at all.
    kwargs.retain(|key, value| !(key.ends_with("_token") && value.is_null()));
    template.render(&RenderInput {
        messages: case["messages"].as_array().unwrap(),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: case.get("tools").and_then(Value::as_array).map(Vec::as_slice),
        kwargs,
    })
}

fn check(cases: &[Value], common: &Map<String, Value>) {
    let mut failures = Vec::new();
    for case in cases {
        let mut whole = common.clone();
        whole.extend(case.as_object().unwrap().clone());
        let outcome = render(&whole);
        let raised = |message: &str| whole["expected_error"].as_str().unwrap().ends_with(message);
        let right = match (&outcome, whole.get("expected").and_then(Value::as_str)) {
            (Ok(text), Some(expected)) => text == expected,
            (Err(TextError::Refused { message }), None) => raised(message),
            (Err(_), None) => true,
            _ => false,
        };
        if !right {
            let expected = whole.get("expected").or(whole.get("expected_error"));
            failures.push(format!(
                "{}\n  expected {}\n  got      {:?}",
                whole["name"],
                expected.unwrap(),
                outcome
            ));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {} cases:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn read(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_feature_renders_as_in_transformers() {
    let document = read("tests/data/template_features.json");
    check(document["cases"].as_array().unwrap(), document["common"].as_object().unwrap());
}
