//! Tokenizers from GGUF metadata: byte-level ones built here, a SentencePiece one as its own
//! library encodes.

use crate::gguf_writer::{Entry, file, metadata};
use crate::read_json;
use std::io::Write;
use weft_gguf::GgufFile;
use weft_text::{ChatTemplate, RenderInput, TextError, Tokenizer};

/// GPT-2's alphabet in the order of bytes, found by what each character decodes to.
fn byte_alphabet() -> Vec<String> {
    let itself = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100_u32..;
    (0..=255_u8)
        .map(|byte| match itself(&byte) {
            true => char::from(byte).to_string(),
            false => char::from_u32(others.next().unwrap()).unwrap().to_string(),
        })
        .collect()
}

const MERGED: [&str; 5] = ["he", "llo", "Ġw", "12", "ĠĠ"];
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const USER_DEFINED: &str = "<think>";

/// Ids: 0..256 bytes, then `ll`, [`MERGED`], [`SPECIAL`], [`USER_DEFINED`].
pub(crate) fn byte_level_entries(pre: &str) -> Vec<(&'static str, Entry<'_>)> {
    let mut tokens = byte_alphabet();
    tokens.push("ll".to_owned());
    tokens.extend(MERGED.map(str::to_owned));
    let num_normal = tokens.len();
    tokens.extend(SPECIAL.map(str::to_owned));
    tokens.push(USER_DEFINED.to_owned());
    let mut types = vec![1; num_normal];
    types.extend([3, 3, 3, 4]);
    let merges = ["h e", "l l", "ll o", "Ġ w", "1 2", "Ġ Ġ"].map(str::to_owned).to_vec();
    vec![
        ("tokenizer.ggml.model", Entry::Text("gpt2")),
        ("tokenizer.ggml.pre", Entry::Text(pre)),
        ("tokenizer.ggml.tokens", Entry::Texts(tokens)),
        ("tokenizer.ggml.token_type", Entry::Integers(types)),
        ("tokenizer.ggml.merges", Entry::Texts(merges)),
        ("tokenizer.ggml.bos_token_id", Entry::Id(262)),
        ("tokenizer.ggml.eos_token_id", Entry::Id(262)),
    ]
}

fn byte_level(pre: &str) -> Tokenizer {
    Tokenizer::from_gguf_metadata(&metadata(&byte_level_entries(pre))).unwrap()
}

/// The tokens' texts, to read a split at a glance.
fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let tokens = tokenizer.encode(text, false).unwrap();
    tokens.into_iter().map(|token| tokenizer.token_text(token)).collect()
}

#[test]
fn bytes_merge_inside_words_and_decode_to_the_text() {
    let tokenizer = byte_level("gpt-2");
    assert_eq!(pieces(&tokenizer, "hello world"), ["he", "llo", " w", "o", "r", "l", "d"]);
    let text = "naïve 🙂\n\tx  \u{0}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false), text);
    assert_eq!(tokenizer.vocab_size(), 266);
    assert_eq!(tokenizer.token_bytes(0xc3), [0xc3]);
    assert_eq!(tokenizer.token_text(0xc3), "\u{fffd}");
    assert_eq!(tokenizer.token_id("Ġw"), Some(259));
    assert_eq!(tokenizer.decode(&[9999], false), "");
}

#[test]
fn digits_are_split_as_the_family_splits_them() {
    assert_eq!(pieces(&byte_level("gpt-2"), "a 12"), ["a", " ", "12"]);
    assert_eq!(pieces(&byte_level("smollm"), "a 12"), ["a", " ", "1", "2"]);
    assert_eq!(pieces(&byte_level("qwen2"), "a12"), ["a", "1", "2"]);
    assert_eq!(pieces(&byte_level("tekken"), "a12"), ["a", "1", "2"]);
    assert_eq!(pieces(&byte_level("deepseek-llm"), "a12"), ["a", "1", "2"]);
    assert_eq!(pieces(&byte_level("deepseek-coder"), "a12"), ["a", "1", "2"]);
    // Runs of at most three: only in the first text are 1 and 2 in one run.
    assert_eq!(pieces(&byte_level("llama-bpe"), "99912"), ["9", "9", "9", "12"]);
    assert_eq!(pieces(&byte_level("llama-bpe"), "9912"), ["9", "9", "1", "2"]);
    assert_eq!(pieces(&byte_level("gpt-4o"), "9912"), ["9", "9", "1", "2"]);
    assert_eq!(pieces(&byte_level("deepseek-v3"), "9912"), ["9", "9", "1", "2"]);
}

#[test]
fn spaces_before_a_word_leave_one_to_the_word() {
    for pre in ["gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "deepseek-v3", "dbrx"] {
        assert_eq!(pieces(&byte_level(pre), "x   wz"), ["x", "  ", " w", "z"], "{pre}");
    }
    // Before a digit, the split digit leaves them all together.
    assert_eq!(pieces(&byte_level("smollm"), "x  1"), ["x", "  ", "1"]);
    assert_eq!(pieces(&byte_level("gpt-2"), "x  1"), ["x", " ", " ", "1"]);
}

#[test]
fn special_tokens_in_text_are_recognised_and_skipped_on_demand() {
    let tokenizer = byte_level("smollm");
    let tokens = tokenizer.encode("<|im_start|>he<think><|im_end|>", false).unwrap();
    assert_eq!(tokens, [263, 257, 265, 264]);
    assert_eq!(tokenizer.decode(&tokens, false), "<|im_start|>he<think><|im_end|>");
    assert_eq!(tokenizer.decode(&tokens, true), "he<think>");
    assert!(tokenizer.is_special(263) && !tokenizer.is_special(265));
}

#[test]
fn tokens_that_end_a_turn_are_eos_although_the_file_names_another() {
    let tokenizer = byte_level("smollm");
    assert_eq!(tokenizer.bos_token_id(), Some(262));
    assert_eq!(tokenizer.eos_token_ids(), [262, 264]);
    assert_eq!(tokenizer.special_tokens().texts["eos_token"], "<|endoftext|>");
}

#[test]
fn every_family_gives_the_text_back() {
    let text = "I'll say \u{1f7d}Ώ don't; 日本語 안녕　x。 12345\r\n\n  fn(x) { return -1.5e3; }\t é\u{301} A\u{30a} 🙂🙂";
    for pre in [
        "default",
        "command-r",
        "llama3",
        "smaug-bpe",
        "qwen2",
        "tekken",
        "llama4",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
    ] {
        let tokenizer = byte_level(pre);
        let decoded = tokenizer.decode(&tokenizer.encode(text, false).unwrap(), false);
        // Qwen composes characters before it splits.
        let expected = if pre == "qwen2" {
            text.replace("e\u{301}", "é").replace("A\u{30a}", "Å").replace('\u{1f7d}', "ώ")
        } else {
            text.to_owned()
        };
        assert_eq!(decoded, expected, "{pre}");
    }
}

#[test]
fn bos_and_eos_are_added_when_the_file_or_the_family_says_so() {
    let encode = |tokenizer: &Tokenizer, add| tokenizer.encode("he", add).unwrap();
    assert_eq!(encode(&byte_level("smollm"), true), [257]);
    assert_eq!(encode(&byte_level("llama-bpe"), true), [262, 257]);
    assert_eq!(encode(&byte_level("llama-bpe"), false), [257]);
    let mut entries = byte_level_entries("llama-bpe");
    entries.push(("tokenizer.ggml.add_bos_token", Entry::Flag(false)));
    entries.push(("tokenizer.ggml.add_eos_token", Entry::Flag(true)));
    let tokenizer = Tokenizer::from_gguf_metadata(&metadata(&entries)).unwrap();
    assert_eq!(encode(&tokenizer, true), [257, 262]);
}

#[test]
fn unknown_or_contradicting_keys_are_refused_with_their_name() {
    let refusal = |key: &str, value: Entry<'_>| {
        let mut entries = byte_level_entries("smollm");
        entries.retain(|(name, _)| *name != key);
        entries.push((key, value));
        Tokenizer::from_gguf_metadata(&metadata(&entries)).unwrap_err().to_string()
    };
    let message = refusal("tokenizer.ggml.pre", Entry::Text("martian"));
    assert!(message.contains("\"martian\"") && message.contains("smollm, starcoder"), "{message}");
    let message = refusal("tokenizer.ggml.model", Entry::Text("bert"));
    assert!(message.contains("\"bert\"") && message.contains("gpt2, llama"), "{message}");
    let message = refusal("tokenizer.ggml.eos_token_id", Entry::Id(266));
    assert!(message.contains("eos_token_id\" is 266, but there are 266 tokens"), "{message}");
    let message = refusal("tokenizer.ggml.token_type", Entry::Integers(vec![1]));
    assert!(message.contains("token_type\" has 1 elements, but there are 266"), "{message}");
    let message = refusal("tokenizer.ggml.merges", Entry::Texts(vec!["ab".to_owned()]));
    assert!(message.contains("not two tokens"), "{message}");
    let message = refusal("tokenizer.ggml.merges", Entry::Texts(vec!["not there".to_owned()]));
    assert!(message.contains("cannot be built"), "{message}");
    let message = refusal("tokenizer.ggml.tokens", Entry::Texts(Vec::new()));
    assert!(message.contains("has 0 tokens"), "{message}");
    let error = Tokenizer::from_gguf_metadata(&metadata(&[])).unwrap_err();
    assert!(matches!(error, TextError::Gguf(_)), "{error}");
}

#[test]
fn a_file_has_its_chat_template_with_its_special_tokens() {
    let mut entries = byte_level_entries("smollm");
    let source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}";
    entries.push(("tokenizer.chat_template", Entry::Text(source)));
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file(&entries)).unwrap();
    let gguf = GgufFile::open(on_disk.path()).unwrap();
    let template = ChatTemplate::from_gguf(&gguf).unwrap().unwrap();
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    let rendered = template.render(&RenderInput { messages: &messages, ..Default::default() });
    assert_eq!(rendered.unwrap(), "<|endoftext|>hi<|endoftext|>");
    assert_eq!(Tokenizer::from_gguf(&gguf).unwrap().vocab_size(), 266);
}

/// The committed SentencePiece vocabulary.
pub(crate) fn sentence_piece() -> Tokenizer {
    let document = read_json("tests/data/sentence_piece.json");
    let strings =
        |key: &str| -> Vec<String> { serde_json::from_value(document[key].clone()).unwrap() };
    let types: Vec<i32> = serde_json::from_value(document["types"].clone()).unwrap();
    let scores: Vec<f32> = serde_json::from_value(document["scores"].clone()).unwrap();
    let entries = [
        ("tokenizer.ggml.model", Entry::Text("llama")),
        ("tokenizer.ggml.tokens", Entry::Texts(strings("tokens"))),
        ("tokenizer.ggml.scores", Entry::Floats(scores)),
        ("tokenizer.ggml.token_type", Entry::Integers(types)),
        ("tokenizer.ggml.unknown_token_id", Entry::Id(0)),
        ("tokenizer.ggml.bos_token_id", Entry::Id(1)),
        ("tokenizer.ggml.eos_token_id", Entry::Id(2)),
    ];
    Tokenizer::from_gguf_metadata(&metadata(&entries)).unwrap()
}

#[test]
fn sentence_piece_vocabularies_encode_as_their_own_library_does() {
    let tokenizer = sentence_piece();
    let document = read_json("tests/data/sentence_piece.json");
    for case in document["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), case["decoded"].as_str().unwrap(), "{text:?}");
    }
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    assert_eq!(tokenizer.encode("<s>", false).unwrap(), [1]);
}
