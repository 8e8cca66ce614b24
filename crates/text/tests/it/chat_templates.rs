//! Templates render byte for byte as transformers rendered them, and fail where it failed.

use crate::read_json;
use serde_json::{Map, Value};
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

#[test]
fn every_feature_renders_as_in_transformers() {
    let document = read_json("tests/data/template_features.json");
    check(document["cases"].as_array().unwrap(), document["common"].as_object().unwrap());
}

fn refusal(source: &str) -> TextError {
    let template = ChatTemplate::new(source, None, None).unwrap();
    template.render(&RenderInput::default()).unwrap_err()
}

#[test]
fn templates_without_end_are_stopped() {
    let endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(refusal(endless), TextError::Render { .. }));
    let doubling = "{% set ns = namespace(x='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
    assert!(matches!(refusal(doubling), TextError::Render { .. }));
    let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(refusal(recursive), TextError::Render { .. }));
    let padded = "{{ 'x'.center(999999999999) }}";
    assert!(matches!(refusal(padded), TextError::Render { .. }));
    let long = "{% set x = 'x' * 1000000 %}{% for i in range(20) %}{{ x }}{% endfor %}";
    assert!(matches!(refusal(long), TextError::RenderedTooLong { .. }));
}

#[test]
fn what_a_template_raises_is_told_without_decoration() {
    let message = refusal("{{ raise_exception('roles must alternate') }}").to_string();
    assert_eq!(message, "the chat template refuses the messages: roles must alternate");
}

#[test]
fn variables_that_the_server_sets_cannot_be_given() {
    let template = ChatTemplate::new("x", None, None).unwrap();
    let kwargs = Map::from_iter([("messages".to_owned(), Value::Null)]);
    let error = template.render(&RenderInput { kwargs, ..Default::default() }).unwrap_err();
    assert!(matches!(error, TextError::ReservedKwarg { .. }), "{error}");
}

#[test]
fn today_is_written_in_the_format_that_is_asked_for() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", None, None).unwrap();
    let today = template.render(&RenderInput::default()).unwrap();
    let digits: Vec<usize> = today.split('-').map(str::len).collect();
    assert_eq!(digits, [4, 2, 2], "{today}");
    assert!(matches!(refusal("{{ strftime_now('%Q%') }}"), TextError::Render { .. }));
}
