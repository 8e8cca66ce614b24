//! A tokenizer from a Hugging Face directory: tokenizer.json, and what tokenizer_config.json,
//! generation_config.json and config.json say of special tokens.

use crate::error::TextError;
use crate::gguf_tokenizer::surround;
use crate::special_tokens::SpecialTokens;
use crate::token_bytes::Decoding;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;
use weft_types::TokenId;

/// Names of special tokens in tokenizer_config.json, which are also variables of chat templates.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// # Errors
/// When tokenizer.json is missing, a file is not what it should be, or the decoder is not known.
pub(crate) fn load(dir: &Path) -> Result<(Tokenizer, Decoding, SpecialTokens), TextError> {
    let path = dir.join("tokenizer.json");
    let bad = |reason: String| TextError::BadFile { path: path.clone(), reason };
    let bytes = std::fs::read(&path).map_err(|error| bad(error.to_string()))?;
    let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| bad(error.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| bad(error.to_string()))?;
    let decoder = serde_json::to_value(tokenizer.get_decoder());
    let decoding = Decoding::from_json(&decoder.map_err(|error| bad(error.to_string()))?)?;

    let config = read_json(dir, "tokenizer_config.json")?;
    let mut special = SpecialTokens { texts: special_texts(dir, &config)?, ..Default::default() };
    let id_of = |name: &str| {
        let text = special.texts.get(name)?;
        Some((text.clone(), tokenizer.token_to_id(text)?))
    };
    let (bos, eos) = (id_of("bos_token"), id_of("eos_token"));
    let flag = |key: &str| config[key].as_bool();
    if let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"))
        && (add_bos.is_some() || add_eos.is_some())
    {
        let bos = bos.clone().filter(|_| add_bos == Some(true));
        let eos = eos.clone().filter(|_| add_eos == Some(true));
        surround(&mut tokenizer, bos, eos)?;
    }
    special.bos = bos.map(|(_, id)| id);
    let mut ids: Vec<TokenId> = Vec::new();
    for file in ["generation_config.json", "config.json"] {
        ids.extend(token_ids(&read_json(dir, file)?["eos_token_id"]));
    }
    ids.extend(eos.map(|(_, id)| id));
    for id in ids {
        if !special.eos.contains(&id) {
            special.eos.push(id);
        }
    }
    Ok((tokenizer, decoding, special))
}

/// The texts of the special tokens, by name.
///
/// # Errors
/// When a file is there but cannot be read.
pub(crate) fn special_texts(
    dir: &Path,
    config: &Value,
) -> Result<std::collections::BTreeMap<String, String>, TextError> {
    let map = read_json(dir, "special_tokens_map.json")?;
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let named = NAMES.iter().filter_map(|name| {
        // An explicit null in tokenizer_config.json wins over the older file.
        let of_config = config.get(name);
        let value = of_config.map_or_else(|| text(&map[*name]), text)?;
        Some(((*name).to_owned(), value))
    });
    Ok(named.collect())
}

/// A JSON file of the directory; null when it is not there.
///
/// # Errors
/// When it is there but cannot be read.
pub(crate) fn read_json(dir: &Path, name: &str) -> Result<Value, TextError> {
    let path = dir.join(name);
    let bad = |reason: String| TextError::BadFile { path: path.clone(), reason };
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// One id or a list of them.
fn token_ids(value: &Value) -> Vec<TokenId> {
    let one = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Value::Array(ids) => ids.iter().filter_map(one).collect(),
        one_id => one(one_id).into_iter().collect(),
    }
}
