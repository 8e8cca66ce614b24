//! Chat templates in the manner of the field's families, as transformers rendered them
//! (`scripts/golden/chat_templates.py`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Map, Value};
use std::path::Path;
use weft_text::{ChatTemplate, RenderInput, TextError};

/// Keys of a case that are no further variables of its template.
const OURS: [&str; 9] = [
    "name",
    "template",
    "messages",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "tools",
    "expected",
    "expected_error",
];

fn render(case: &Map<String, Value>) -> Result<String, TextError> {
    let source = case["template"].as_str().unwrap();
    let template =
        ChatTemplate::new(source, case["bos_token"].as_str(), case["eos_token"].as_str())?;
    let variables = case.iter().filter(|(key, _)| !OURS.contains(&key.as_str()));
    template.render(&RenderInput {
        messages: case["messages"].as_array().unwrap(),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        continue_final_message: false,
        tools: case["tools"].as_array().map(Vec::as_slice),
        kwargs: variables.map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

#[test]
fn every_family_renders_as_in_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/chat_templates.json");
    let cases: Vec<Map<String, Value>> =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let (mut failures, mut num_refused) = (Vec::new(), 0);
    for case in &cases {
        let outcome = render(case);
        let right = match (&outcome, case.get("expected")) {
            (Ok(text), Some(expected)) => expected == text,
            // What the template raises is told in its words; other failures in Weft's.
            (Err(TextError::Refused { message }), None) => {
                num_refused += 1;
                case["expected_error"] == *message
            }
            (Err(TextError::Render { .. }), None) => true,
            _ => false,
        };
        if !right {
            let expected = case.get("expected").or(case.get("expected_error")).unwrap();
            failures
                .push(format!("{}\n  expected {expected}\n  got      {outcome:?}", case["name"]));
        }
    }
    let num_failures = failures.len();
    assert!(failures.is_empty(), "{num_failures} of {}:\n{}", cases.len(), failures.join("\n"));
    assert!(num_refused > 0, "no case is refused by its template");
}
