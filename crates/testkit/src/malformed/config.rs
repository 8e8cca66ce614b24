//! Configurations that ask for what is not served, contradict themselves, or are none.

use super::{Table, good};
use crate::peft::{RandomAdapter, write_peft_dir};
use serde_json::{Value, json};
use std::fs;
use weft_types::Module;

/// Every key, with the types that it may have.
const KEYS: [(&str, &[&str]); 45] = [
    ("alora_invocation_tokens", &["list"]),
    ("alpha_pattern", &["object"]),
    ("arrow_config", &["object"]),
    ("auto_mapping", &["object"]),
    ("base_model_name_or_path", &["string"]),
    ("bias", &["string"]),
    ("corda_config", &["object"]),
    ("enable_lora", &["list"]),
    ("ensure_weight_tying", &["bool"]),
    ("eva_config", &["object"]),
    ("exclude_modules", &["list", "string"]),
    ("fan_in_fan_out", &["bool"]),
    ("inference_mode", &["bool"]),
    ("init_lora_weights", &["bool", "string"]),
    ("kasa_config", &["object"]),
    ("layer_replication", &["list"]),
    ("layers_pattern", &["list", "string"]),
    ("layers_to_transform", &["list", "number"]),
    ("loftq_config", &["object"]),
    ("lora_alpha", &["number"]),
    ("lora_bias", &["bool"]),
    ("lora_dropout", &["number"]),
    ("lora_ga_config", &["object"]),
    ("megatron_config", &["object"]),
    ("megatron_core", &["string"]),
    ("merge_weights", &["bool"]),
    ("modules_to_save", &["list"]),
    ("monteclora_config", &["object"]),
    ("peft_type", &["string"]),
    ("peft_version", &["string"]),
    ("qalora_group_size", &["number"]),
    ("r", &["number"]),
    ("rank_pattern", &["object"]),
    ("revision", &["string"]),
    ("runtime_config", &["object"]),
    ("target_modules", &["list", "string"]),
    ("target_parameters", &["list"]),
    ("task_type", &["string"]),
    ("trainable_token_indices", &["list", "object"]),
    ("unsloth_fixed", &["bool"]),
    ("use_bdlora", &["bool", "object"]),
    ("use_dora", &["bool"]),
    ("use_qalora", &["bool"]),
    ("use_rslora", &["bool"]),
    ("velora_config", &["object"]),
];

pub(super) fn add(table: &mut Table, max_lora_rank: usize) {
    add_wrong_types(table);
    add_wrong_values(table);
    add_wrong_targets(table);
    add_ranks(table, max_lora_rank);
    add_broken_json(table);
}

fn add_wrong_types(table: &mut Table) {
    let values = [
        ("bool", json!(true)),
        ("number", json!(3)),
        ("string", json!("x")),
        ("list", json!(["x"])),
        ("object", json!({"x": 1})),
    ];
    for (key, allowed) in KEYS {
        for (kind, value) in &values {
            if !allowed.contains(kind) {
                set(table, &format!("type-{key}-{kind}"), &[key], key, value.clone());
            }
        }
    }
}

/// A case: the good adapter with one key set.
fn set(table: &mut Table, name: &str, words: &[&str], key: &'static str, value: Value) {
    table.add_config(name, words, good(), move |config| {
        config.insert(key.to_owned(), value.clone());
    });
}

fn add_wrong_values(table: &mut Table) {
    let cases: &[(&'static str, Value, &[&str])] = &[
        ("use_dora", json!(true), &["incomplete", "lora_magnitude_vector"]),
        ("lora_bias", json!(true), &["incomplete", "lora_B.bias"]),
        ("bias", json!("some"), &["bias", "\"some\"", "\"all\""]),
        ("bias", json!(""), &["bias"]),
        ("modules_to_save", json!(["lm_head"]), &["incomplete", "lm_head"]),
        ("modules_to_save", json!(["norm"]), &["modules_to_save", "\"norm\"", "norms"]),
        ("trainable_token_indices", json!([1, 2]), &["incomplete", "trainable_tokens_delta"]),
        ("trainable_token_indices", json!({"embed_tokens": [1]}), &["incomplete", "embed_tokens"]),
        ("trainable_token_indices", json!({"q_proj": [1]}), &["q_proj", "trainable_token_indices"]),
        ("trainable_token_indices", json!([-1]), &["trainable_token_indices", "-1"]),
        ("trainable_token_indices", json!([u32::MAX]), &["4294967295", "vocabulary"]),
        ("layer_replication", json!([[0, 1], [0, 1]]), &["layer_replication"]),
        ("fan_in_fan_out", json!(true), &["fan_in_fan_out"]),
        ("use_qalora", json!(true), &["use_qalora"]),
        ("alora_invocation_tokens", json!([]), &["alora_invocation_tokens", "empty"]),
        ("alora_invocation_tokens", json!([1, -2]), &["alora_invocation_tokens", "-2"]),
        ("alora_invocation_tokens", json!([1, "x"]), &["alora_invocation_tokens", "token"]),
        (
            "alora_invocation_tokens",
            json!([4_000_000_000_u32]),
            &["alora_invocation_tokens", "4000000000"],
        ),
        ("arrow_config", json!({"top_k": 2}), &["arrow_config"]),
        ("target_parameters", json!(["experts.w"]), &["target_parameters"]),
        ("megatron_config", json!({"a": 1}), &["megatron_config"]),
        ("use_bdlora", json!({"nblocks": 2}), &["use_bdlora"]),
        ("kasa_config", json!({"beta": 0.1}), &["kasa_config"]),
        ("velora_config", json!({"num_groups": 2}), &["velora_config"]),
        ("monteclora_config", json!({"num_samples": 2}), &["monteclora_config"]),
        ("enable_lora", json!([true, false, true]), &["enable_lora"]),
        ("init_lora_weights", json!("pissa"), &["pissa", "convert"]),
        ("init_lora_weights", json!("pissa_niter_4"), &["pissa_niter_4", "convert"]),
        ("init_lora_weights", json!("olora"), &["olora", "convert"]),
        ("init_lora_weights", json!("OLoRA"), &["OLoRA", "convert"]),
        ("init_lora_weights", json!("corda"), &["corda", "convert"]),
        ("init_lora_weights", json!("loftq"), &["loftq", "convert"]),
        ("init_lora_weights", json!("lora_ga"), &["lora_ga", "convert"]),
        ("init_lora_weights", json!("of the future"), &["of the future", "does not know"]),
        ("peft_type", json!("IA3"), &["does not know"]),
        ("peft_type", json!("OFT"), &["peft_type", "OFT", "merge"]),
        ("peft_type", json!("XLORA"), &["peft_type", "XLORA", "names of their own"]),
        ("peft_type", json!("lora"), &["peft_type", "LORA"]),
        ("peft_type", Value::Null, &["peft_type"]),
        ("method_of_the_future", json!(true), &["method_of_the_future", "does not know"]),
        ("future_size", json!(16), &["future_size", "does not know"]),
        ("future_object", Value::Null, &["future_object", "does not know"]),
        ("", json!(1), &["does not know"]),
        ("r", json!(0), &["rank 0"]),
        ("r", json!(-4), &["rank -4"]),
        ("r", json!(4.5), &["rank 4.5"]),
        ("r", json!(1e30), &["rank 1e"]),
        ("r", json!(u64::MAX), &["max-lora-rank"]),
        ("lora_alpha", json!(1e300), &["alpha 1e", "finite"]),
    ];
    for (index, (key, value, words)) in cases.iter().enumerate() {
        set(table, &format!("value-{index}-{key}"), words, key, value.clone());
    }
    for key in ["peft_type", "target_modules"] {
        table.add_config(format!("without-{key}"), &[key], good(), move |config| {
            config.remove(key);
        });
    }
}

fn add_wrong_targets(table: &mut Table) {
    let bomb = "(?:(?:a|l|m|o|d|e|.)*)*(?=z)";
    let cases: &[(&'static str, Value, &[&str])] = &[
        ("target_modules", Value::Null, &["target_modules"]),
        ("target_modules", json!([]), &["target_modules"]),
        ("target_modules", json!(""), &["target_modules"]),
        ("target_modules", json!([3]), &["target_modules", "3"]),
        ("target_modules", json!([""]), &["target_modules"]),
        ("target_modules", json!(["q_proj", "v_proj", null]), &["target_modules", "null"]),
        ("target_modules", json!(["q_proj", "v_proj", "c_attn"]), &["c_attn", "no linear"]),
        ("target_modules", json!(["q_proj", "v_proj", "input_layernorm"]), &["input_layernorm"]),
        ("target_modules", json!(["q_proj", "v_proj", "self_attn"]), &["self_attn", "no linear"]),
        ("target_modules", json!(["q_proj", "v_proj", "oj"]), &["\"oj\"", "no linear"]),
        ("target_modules", json!(["q_proj", "v_proj", "o_proj"]), &["o_proj", "incomplete"]),
        ("target_modules", json!(["q_proj"]), &["v_proj", "does not target"]),
        ("exclude_modules", json!(["v_proj"]), &["v_proj", "does not target"]),
        ("exclude_modules", json!(["v_proj", "q_proj"]), &["touches no module"]),
        ("exclude_modules", json!("("), &["exclude_modules", "regular expression"]),
        ("exclude_modules", json!([1]), &["exclude_modules"]),
        ("layers_to_transform", Value::Null, &["model.layers.1.", "incomplete"]),
        ("layers_to_transform", json!([0, 1]), &["model.layers.1.", "incomplete"]),
        ("layers_to_transform", json!([1]), &["model.layers.0.", "does not target"]),
        ("layers_to_transform", json!([0, 4000]), &["layer 4000", "layers_to_transform"]),
        ("layers_to_transform", json!(-1), &["layers_to_transform", "-1"]),
        ("layers_to_transform", json!([0.5]), &["layers_to_transform", "0.5"]),
        ("layers_to_transform", json!(["0"]), &["layers_to_transform"]),
        ("layers_pattern", json!("h"), &["layers_pattern", "\"h\""]),
        ("layers_pattern", json!(["blocks", "h"]), &["layers_pattern", "blocks"]),
        ("layers_pattern", json!("("), &["layers_pattern", "regular expression"]),
        ("rank_pattern", json!({"q_proj": 0}), &["rank 0", "rank_pattern"]),
        ("rank_pattern", json!({"q_proj": "8"}), &["rank_pattern", "q_proj"]),
        ("rank_pattern", json!({"q_proj": 5}), &["q_proj", "rank 5"]),
        ("rank_pattern", json!({"c_attn": 8}), &["c_attn", "rank_pattern"]),
        ("rank_pattern", json!({"proj": 8}), &["\"proj\"", "rank_pattern"]),
        ("rank_pattern", json!({"(": 8}), &["rank_pattern", "regular expression"]),
        ("rank_pattern", json!({".*_proj": 5}), &["q_proj", "rank 5"]),
        ("rank_pattern", json!({bomb: 8}), &["rank_pattern"]),
        ("alpha_pattern", json!({"q_proj": "16"}), &["alpha_pattern", "q_proj"]),
        ("alpha_pattern", json!({"q_proj": null}), &["alpha_pattern", "q_proj"]),
        ("alpha_pattern", json!({"c_attn": 8}), &["c_attn", "alpha_pattern"]),
        ("alpha_pattern", json!({"base_model.model.q_proj": 8}), &["alpha_pattern", "base_model"]),
    ];
    for (index, (key, value, words)) in cases.iter().enumerate() {
        set(table, &format!("target-{index}-{key}"), words, key, value.clone());
    }
    let patterns: &[(&str, &[&str])] = &[
        ("(q_proj", &["target_modules", "regular expression"]),
        ("[", &["target_modules", "regular expression"]),
        ("q_proj", &["touches no module"]),
        (".*c_attn", &["touches no module"]),
        ("(?:a{1000}){1000}", &["target_modules", "regular expression"]),
        (bomb, &["target_modules"]),
        ("all-linear", &["k_proj", "incomplete"]),
    ];
    for (index, &(pattern, words)) in patterns.iter().enumerate() {
        let adapter = RandomAdapter { layers: None, ..good() };
        table.add_config(format!("pattern-{index}"), words, adapter, move |config| {
            config.insert("target_modules".to_owned(), json!(pattern));
        });
    }
    let words = ["layers_to_transform", "target_modules"];
    table.add_config("pattern-with-layers", &words, good(), |config| {
        config.insert("target_modules".to_owned(), json!(".*(q|v)_proj"));
    });
    let adapter = RandomAdapter { layers: None, ..good() };
    let words = ["layers_pattern", "layers_to_transform"];
    table.add_config("layers-pattern-alone", &words, adapter, |config| {
        config.insert("layers_pattern".to_owned(), json!("layers"));
    });
}

fn add_ranks(table: &mut Table, max_lora_rank: usize) {
    let rank = max_lora_rank + 1;
    let words = [
        format!("has rank {rank}"),
        format!("but this server was started with --max-lora-rank {max_lora_rank}"),
    ];
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let one = RandomAdapter { modules: vec![Module::V], ..good() };
    let large = RandomAdapter { rank, ..one.clone() };
    table.add_config("rank-over-the-limit", &words, large, |_| {});
    let pattern = vec![("v_proj".to_owned(), rank)];
    let large = RandomAdapter { rank_pattern: pattern, ..one };
    table.add_config("rank-of-a-pattern-over-the-limit", &words, large, |_| {});
    for rank in [1, 3, 5, 8] {
        let name = format!("rank-{rank}-for-4");
        table.add_config(name, &["shape", &format!("rank {rank}")], good(), move |config| {
            config.insert("r".to_owned(), json!(rank));
        });
    }
}

fn add_broken_json(table: &mut Table) {
    let whole = serde_json::to_vec_pretty(&good().config()).unwrap_or_default();
    let truncated = (0..whole.len()).step_by(61).map(|end| whole[..end].to_vec());
    let mut texts: Vec<_> =
        truncated.enumerate().map(|(index, text)| (format!("cut-{index}"), text)).collect();
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    let others: [(&str, &[u8]); 12] = [
        ("null", b"null"),
        ("list", b"[]"),
        ("number", b"8"),
        ("string", b"\"LORA\""),
        ("blank", b"   \n"),
        ("not-utf8", b"{\"peft_type\": \"LO\xff\xfeRA\"}"),
        ("byte-order-mark", b"\xef\xbb\xbf{}"),
        ("python-nan", b"{\"peft_type\": \"LORA\", \"lora_alpha\": NaN}"),
        ("huge-number", b"{\"peft_type\": \"LORA\", \"lora_alpha\": 1e999}"),
        ("a-key-twice", b"{\"peft_type\": \"LORA\", \"r\": 4, \"r\": 8}"),
        ("comment", b"{\"peft_type\": \"LORA\" /* hello */}"),
        ("deep", &deep),
    ];
    texts.extend(others.iter().map(|(name, text)| ((*name).to_owned(), text.to_vec())));
    texts.push(("trailing".to_owned(), [&whole[..], b"}"].concat()));
    texts.push(("zeros".to_owned(), vec![0; 64]));
    texts.push(("large".to_owned(), vec![b' '; (1 << 20) + 1]));
    let base = table.base.clone();
    for (name, text) in texts {
        let base = base.clone();
        table.add(format!("json-{name}"), &["adapter_config.json"], move |dir| {
            write_peft_dir(dir, &good().config(), &good().tensors(&base))?;
            fs::write(dir.join("adapter_config.json"), &text)
        });
    }
}
