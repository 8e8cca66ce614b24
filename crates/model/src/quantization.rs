//! `quantization_config` of a `config.json`: how the weights of a checkpoint were quantized, or a
//! sentence about why they cannot be read. Knows no tensor.

use crate::error::ModelError;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt;
use weft_kernels::codebook::Codebook;

/// How the linears of a checkpoint were quantized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Quantization {
    /// Not at all.
    None,
    /// bitsandbytes' 4-bit blocks (QLoRA).
    Bnb4 {
        book: Codebook,
        /// Whether the scales are quantized, too.
        double: bool,
        skipped: Vec<String>,
    },
    /// bitsandbytes' LLM.int8.
    BnbInt8 { skipped: Vec<String> },
    /// GPTQ, packed along the inputs.
    Gptq {
        /// Of a code: 4 or 8.
        bits: usize,
        /// Inputs that share a scale; all of them if `None`.
        group: Option<usize>,
        /// Whether inputs were taken by importance, not in order.
        act_order: bool,
        /// Whether zeros are stored less one: the first format.
        less_one: bool,
    },
    /// AWQ of four bits, packed along the outputs.
    Awq {
        /// Inputs that share a scale; all of them if `None`.
        group: Option<usize>,
        skipped: Vec<String>,
    },
}

#[derive(Deserialize)]
struct Config {
    quantization_config: Option<Value>,
}

/// The keys of all methods; each reads its own.
#[derive(Deserialize)]
struct Raw {
    quant_method: Option<String>,
    // bitsandbytes
    #[serde(default)]
    load_in_4bit: bool,
    #[serde(default)]
    load_in_8bit: bool,
    bnb_4bit_quant_type: Option<String>,
    #[serde(default)]
    bnb_4bit_use_double_quant: bool,
    llm_int8_skip_modules: Option<Vec<String>>,
    // GPTQ and AWQ
    bits: Option<u64>,
    group_size: Option<i64>,
    #[serde(default)]
    desc_act: bool,
    checkpoint_format: Option<String>,
    pack_dtype: Option<String>,
    dynamic: Option<Map<String, Value>>,
    version: Option<String>,
    modules_to_not_convert: Option<Vec<String>>,
}

impl Quantization {
    /// Parses the text of a `config.json`.
    pub(crate) fn parse(text: &str) -> Result<Self, ModelError> {
        let invalid =
            |error| ModelError::Invalid(format!("config.json: quantization_config: {error}"));
        let config: Config = serde_json::from_str(text)
            .map_err(|error| ModelError::Invalid(format!("config.json: {error}")))?;
        let Some(value) = config.quantization_config.filter(|value| !value.is_null()) else {
            return Ok(Self::None);
        };
        let raw: Raw = serde_json::from_value(value).map_err(invalid)?;
        match raw.quant_method.as_deref() {
            Some("bitsandbytes") => bitsandbytes(raw),
            Some("gptq") => gptq(&raw),
            Some("awq") => awq(raw),
            method => Err(unsupported(
                "quant_method",
                method.unwrap_or("missing"),
                "bitsandbytes, gptq and awq are; or use the unquantized checkpoint with --quantize, \
                 or a GGUF file",
            )),
        }
    }

    /// Whether the method leaves the linear of this name as it is.
    pub(crate) fn skips(&self, name: &str) -> bool {
        let skipped = match self {
            // GPTQ names what it quantizes by patterns of its own: what has no codes is skipped.
            Self::None | Self::Gptq { .. } => return true,
            Self::Bnb4 { skipped, .. } | Self::BnbInt8 { skipped } | Self::Awq { skipped, .. } => {
                skipped
            }
        };
        // Output heads and embeddings need not be named.
        let is_table = name == "lm_head" || name == "model.embed_tokens";
        is_table
            || skipped.iter().any(|key| {
                name.ends_with(key.as_str())
                    || name.strip_prefix(key.as_str()).is_some_and(|rest| rest.starts_with('.'))
                    || name.split('.').any(|part| part == key)
            })
    }
}

fn unsupported(key: &str, value: &str, rest: &str) -> ModelError {
    ModelError::Unsupported(format!(
        "config.json: quantization_config has {key} `{value}`, which is not read: {rest}"
    ))
}

fn bitsandbytes(raw: Raw) -> Result<Quantization, ModelError> {
    let skipped = raw.llm_int8_skip_modules.unwrap_or_default();
    match (raw.load_in_4bit, raw.load_in_8bit) {
        (true, false) => {
            let book = match raw.bnb_4bit_quant_type.as_deref() {
                Some("nf4") => Codebook::Nf4,
                // bitsandbytes' default.
                Some("fp4") | None => Codebook::Fp4,
                Some(other) => {
                    return Err(unsupported("bnb_4bit_quant_type", other, "nf4 and fp4 are"));
                }
            };
            Ok(Quantization::Bnb4 { book, double: raw.bnb_4bit_use_double_quant, skipped })
        }
        (false, true) => Ok(Quantization::BnbInt8 { skipped }),
        _ => Err(ModelError::Invalid(
            "config.json: quantization_config of bitsandbytes sets one of load_in_4bit and \
             load_in_8bit"
                .into(),
        )),
    }
}

fn gptq(raw: &Raw) -> Result<Quantization, ModelError> {
    let bits = match raw.bits {
        Some(4) => 4,
        Some(8) => 8,
        other => return Err(unsupported("bits", &number(other), "GPTQ of 4 and 8 bits is")),
    };
    let less_one = match raw.checkpoint_format.as_deref() {
        None | Some("gptq") => true,
        Some("gptq_v2") => false,
        Some(other) => {
            return Err(unsupported("checkpoint_format", other, "gptq and gptq_v2 are"));
        }
    };
    if let Some(dtype) = raw.pack_dtype.as_deref().filter(|dtype| *dtype != "int32") {
        return Err(unsupported("pack_dtype", dtype, "int32 is"));
    }
    if let Some(pattern) = raw.dynamic.iter().flatten().map(|(key, _)| key).next() {
        return Err(unsupported("dynamic", pattern, "one setting for all modules is"));
    }
    Ok(Quantization::Gptq { bits, group: group(raw)?, act_order: raw.desc_act, less_one })
}

fn awq(raw: Raw) -> Result<Quantization, ModelError> {
    if raw.bits != Some(4) {
        return Err(unsupported("bits", &number(raw.bits), "AWQ of 4 bits is"));
    }
    let version = raw.version.as_deref().or(raw.checkpoint_format.as_deref()).unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(unsupported("version", version, "AWQ's gemm is"));
    }
    let group = group(&raw)?;
    Ok(Quantization::Awq { group, skipped: raw.modules_to_not_convert.unwrap_or_default() })
}

fn group(raw: &Raw) -> Result<Option<usize>, ModelError> {
    match raw.group_size {
        Some(-1) => Ok(None),
        Some(size) if size > 0 && size % 8 == 0 => Ok(usize::try_from(size).ok()),
        other => Err(unsupported(
            "group_size",
            &number(other),
            "multiples of 8 are, and -1 for whole rows",
        )),
    }
}

fn number(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "missing".to_owned(), |value| value.to_string())
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_groups = |group: &Option<usize>| match group {
            Some(group) => format!("groups of {group}"),
            None => "one group a row".to_owned(),
        };
        match self {
            Self::None => f.write_str("not quantized"),
            Self::Bnb4 { book, double: false, .. } => write!(f, "bitsandbytes {book}"),
            Self::Bnb4 { book, .. } => write!(f, "bitsandbytes {book}, double quantization"),
            // What LLM.int8 does to outliers is a matter of activations, which here stay as they are.
            Self::BnbInt8 { .. } => {
                f.write_str("bitsandbytes LLM.int8, multiplied in single precision")
            }
            Self::Gptq { bits, group, act_order, .. } => {
                let order = if *act_order { ", act-order" } else { "" };
                write!(f, "GPTQ, {bits} bits, {}{order}", in_groups(group))
            }
            Self::Awq { group, .. } => write!(f, "AWQ, 4 bits, {}", in_groups(group)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> Result<Quantization, ModelError> {
        Quantization::parse(&format!(
            r#"{{"model_type": "llama", "quantization_config": {config}}}"#
        ))
    }

    #[test]
    fn what_tools_write_is_understood_and_named() {
        for (config, name) in [
            ("null", "not quantized"),
            (
                r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
                    "_load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
                    "bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": null}"#,
                "bitsandbytes NF4, double quantization",
            ),
            (r#"{"quant_method": "bitsandbytes", "load_in_4bit": true}"#, "bitsandbytes FP4"),
            (
                r#"{"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_threshold": 6.0}"#,
                "bitsandbytes LLM.int8, multiplied in single precision",
            ),
            (
                r#"{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": true, "sym": true}"#,
                "GPTQ, 4 bits, groups of 128, act-order",
            ),
            (
                r#"{"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": false, "dynamic": {}}"#,
                "GPTQ, 8 bits, one group a row",
            ),
            (
                r#"{"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": true}"#,
                "AWQ, 4 bits, groups of 64",
            ),
        ] {
            assert_eq!(parse(config).unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_is_not_read_is_refused_with_its_key_and_what_is() {
        for (config, words) in [
            (r#"{"quant_method": "hqq"}"#, "quant_method `hqq`"),
            (r#"{}"#, "quant_method `missing`"),
            (r#"{"quant_method": "bitsandbytes"}"#, "load_in_4bit"),
            (
                r#"{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "int4"}"#,
                "nf4 and fp4",
            ),
            (r#"{"quant_method": "gptq", "bits": 3, "group_size": 128}"#, "bits `3`"),
            (r#"{"quant_method": "gptq", "bits": 4, "group_size": 0}"#, "group_size `0`"),
            (
                r#"{"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "marlin"}"#,
                "checkpoint_format `marlin`",
            ),
            (
                r#"{"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:.*up": {"bits": 8}}}"#,
                "dynamic `+:.*up`",
            ),
            (
                r#"{"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}"#,
                "`gemv`",
            ),
            (r#"{"quant_method": "awq", "bits": 8, "group_size": 32}"#, "bits `8`"),
            (r#"{"quant_method": 3}"#, "quantization_config"),
        ] {
            let error = parse(config).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn skipped_modules_are_found_by_their_name_its_end_or_what_they_are_in() {
        let quantization = |key: &str| Quantization::BnbInt8 { skipped: vec![key.to_owned()] };
        let name = "model.layers.1.self_attn.q_proj";
        for (key, skips) in [
            ("q_proj", true),
            ("self_attn", true),
            ("model.layers.1", true),
            ("model.layers.1.self_attn.q_proj", true),
            ("model.layers.11", false),
            ("k_proj", false),
        ] {
            assert_eq!(quantization(key).skips(name), skips, "{key}");
        }
        assert!(quantization("x").skips("lm_head"));
    }
}
