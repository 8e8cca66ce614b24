//! A byte-level tokenizer as files: `<s>`, `</s>`, then one token per byte, so that token ids are
//! bytes plus two.

use serde_json::{Map, json};
use std::path::Path;
use std::{fs, io};

pub(crate) const BOS: u32 = 0;
pub(crate) const EOS: u32 = 1;
pub(crate) const FIRST_BYTE: u32 = 2;
pub(crate) const VOCAB_SIZE: usize = 258;

pub(crate) const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {% if message.role == 'forbidden' %}{{ raise_exception('no such role') }}{% endif %}\
    {{ message.role }}:{{ message.content }}\n{% endfor %}\
    {% if shout is defined %}{{ shout }}\n{% endif %}\
    {% if add_generation_prompt %}assistant:{% endif %}";

/// The token ids of a text.
pub(crate) fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| FIRST_BYTE + u32::from(byte)).collect()
}

pub(crate) fn write(dir: &Path) -> io::Result<()> {
    let mut vocab = Map::new();
    vocab.insert("<s>".into(), json!(BOS));
    vocab.insert("</s>".into(), json!(EOS));
    for byte in 0..=255_u8 {
        vocab.insert(byte_char(byte).to_string(), json!(FIRST_BYTE + u32::from(byte)));
    }
    let special = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true })
    };
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let with_bos = json!([
        { "SpecialToken": { "id": "<s>", "type_id": 0 } },
        { "Sequence": { "id": "A", "type_id": 0 } },
    ]);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": with_bos,
            "pair": with_bos,
            "special_tokens": { "<s>": { "id": "<s>", "ids": [BOS], "tokens": ["<s>"] } },
        },
        "decoder": byte_level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null,
                   "continuing_subword_prefix": null, "end_of_word_suffix": null,
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>",
                         "eos_token": "</s>", "chat_template": CHAT_TEMPLATE });
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string())?;
    fs::write(dir.join("tokenizer_config.json"), config.to_string())?;
    fs::write(
        dir.join("config.json"),
        json!({ "bos_token_id": BOS, "eos_token_id": EOS }).to_string(),
    )
}

/// The character that stands for a byte in byte-level vocabularies.
fn byte_char(byte: u8) -> char {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_itself(byte) {
        return char::from(byte);
    }
    let nth = (0..byte).filter(|before| !is_itself(*before)).count();
    char::from_u32(0x100 + nth as u32).unwrap()
}
