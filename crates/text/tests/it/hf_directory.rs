//! Tokenizers and templates from Hugging Face directories, in the spellings that occur.

use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;
use weft_text::{ChatTemplate, RenderInput, TextError, Tokenizer};

/// A directory with a tiny tokenizer, ids: 0..4 characters, 4 `<s>`, 5 `</s>`, 6 `<|end|>`.
fn directory(files: &[(&str, Value)]) -> TempDir {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": [added(4, "<s>"), added(5, "</s>"), added(6, "<|end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": ["a b"]},
    });
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", &tokenizer);
    files.iter().for_each(|(name, value)| write(dir.path(), name, value));
    dir
}

fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

fn load(files: &[(&str, Value)]) -> Tokenizer {
    Tokenizer::from_hf_dir(directory(files).path()).unwrap()
}

#[test]
fn texts_are_never_truncated_or_padded() {
    let tokenizer = load(&[]);
    assert_eq!(tokenizer.encode("ab ba ab</s>", true).unwrap(), [3, 2, 1, 0, 2, 3, 5]);
    assert_eq!(tokenizer.decode(&[3, 2, 1, 5], true), "ab b");
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_ids()), (None, [].as_slice()));
}

#[test]
fn special_tokens_come_from_every_file_that_names_them() {
    let tokenizer = load(&[
        ("tokenizer_config.json", json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}})),
        ("generation_config.json", json!({"eos_token_id": [6, 5]})),
        ("config.json", json!({"eos_token_id": 5})),
    ]);
    assert_eq!(tokenizer.bos_token_id(), Some(4));
    assert_eq!(tokenizer.eos_token_ids(), [6, 5]);
    let tokenizer = load(&[
        ("special_tokens_map.json", json!({"bos_token": "<s>", "eos_token": "<|end|>"})),
        ("tokenizer_config.json", json!({"bos_token": null})),
    ]);
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_ids()), (None, [6].as_slice()));
}

#[test]
fn bos_and_eos_are_added_as_the_configuration_says() {
    let config = |add_bos, add_eos| json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos, "add_eos_token": add_eos});
    let encode =
        |config: Value| load(&[("tokenizer_config.json", config)]).encode("a", true).unwrap();
    assert_eq!(encode(config(true, false)), [4, 0]);
    assert_eq!(encode(config(true, true)), [4, 0, 5]);
    assert_eq!(encode(config(false, false)), [0]);
    assert_eq!(encode(json!({"bos_token": "<s>"})), [0]);
}

#[test]
fn damaged_directories_are_refused_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let message = Tokenizer::from_hf_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains("tokenizer.json"), "{message}");
    let dir = directory(&[("config.json", json!(1))]);
    std::fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    let message = Tokenizer::from_hf_dir(dir.path()).unwrap_err().to_string();
    assert!(message.contains("generation_config.json"), "{message}");
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(Tokenizer::from_hf_dir(dir.path()), Err(TextError::BadFile { .. })));
}

fn rendered(dir: &Path, tools: Option<&[Value]>) -> Option<String> {
    let template = ChatTemplate::from_hf_dir(dir).unwrap()?;
    Some(template.render(&RenderInput { tools, ..Default::default() }).unwrap())
}

#[test]
fn templates_are_found_in_every_place_and_the_file_wins() {
    assert_eq!(rendered(directory(&[]).path(), None), None);
    let config = json!({"eos_token": "</s>", "chat_template": "config {{ eos_token }}"});
    let dir = directory(&[("tokenizer_config.json", config)]);
    assert_eq!(rendered(dir.path(), None).unwrap(), "config </s>");
    std::fs::write(dir.path().join("chat_template.jinja"), "file {{ eos_token }}\n").unwrap();
    assert_eq!(rendered(dir.path(), None).unwrap(), "file </s>");
}

#[test]
fn of_named_templates_the_one_for_tools_is_taken_when_there_are_tools() {
    let named = json!([{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | length }} tools"}]);
    let dir = directory(&[("tokenizer_config.json", json!({"chat_template": named}))]);
    assert_eq!(rendered(dir.path(), None).unwrap(), "plain");
    assert_eq!(rendered(dir.path(), Some(&[json!({})])).unwrap(), "1 tools");
}
