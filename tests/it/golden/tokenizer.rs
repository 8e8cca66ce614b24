//! The demo base's tokenizer against the `tokenizers` library with the rules that the file names.

use crate::support::demo::model_path;
use crate::support::golden;
use serde_json::Value;
use weft_gguf::GgufFile;
use weft_text::Tokenizer;

#[test]
fn texts_have_the_reference_tokens_and_come_back_from_them() {
    let tokenizer = Tokenizer::from_gguf(&GgufFile::open(&model_path()).unwrap()).unwrap();
    let file = std::fs::read_to_string(golden("smollm2_tokenizer.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(cases.len() >= 150, "{} cases", cases.len());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        let ids: Vec<u32> = ids.collect();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false), case["decoded"].as_str().unwrap(), "{text:?}");
    }
}
