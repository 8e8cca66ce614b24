//! Tensors that are missing, too many, in the wrong shape or dtype, or no numbers.

use super::{Table, good};
use crate::peft::{RandomAdapter, in_layer};
use crate::safetensors_file::{RawTensor, dtype_name};
use weft_types::{Dtype, Module};

/// A shape made wrong.
type Reshape = fn(&[usize]) -> Vec<usize>;

const PREFIX: &str = "base_model.model.";

pub(super) fn add(table: &mut Table) {
    add_shapes(table);
    add_missing(table);
    add_strangers(table);
    add_values(table);
    add_ends(table);
}

/// All seven linears of the first layer.
fn all_linears() -> RandomAdapter {
    RandomAdapter { modules: Module::ALL.to_vec(), ..good() }
}

/// An f32 tensor of zeros.
fn zeros(name: impl Into<String>, shape: &[usize]) -> RawTensor {
    let values = vec![0.0; shape.iter().product()];
    RawTensor::new(name, Dtype::F32, shape, &values)
}

fn first_layer(module: Module) -> String {
    format!("model.layers.0.{}", in_layer(module))
}

/// Replaces the tensor of that name by zeros in another shape.
fn reshape(tensors: &mut [RawTensor], name: &str, change: Reshape) {
    for tensor in tensors.iter_mut().filter(|tensor| tensor.name == name) {
        *tensor = zeros(name, &change(&tensor.shape));
    }
}

fn add_shapes(table: &mut Table) {
    let changes: [(&str, Reshape); 5] = [
        ("one-row-more", |shape| vec![shape[0] + 1, shape[1]]),
        ("one-column-less", |shape| vec![shape[0], shape[1] - 1]),
        ("turned", |shape| vec![shape[1], shape[0]]),
        ("flat", |shape| vec![shape[0] * shape[1]]),
        ("deep", |shape| vec![1, 1, 1, shape[0], shape[1], 1]),
    ];
    for (index, module) in Module::ALL.into_iter().enumerate() {
        for part in ["lora_A", "lora_B"] {
            // Each module meets three of the five.
            for step in 0..3 {
                let (what, change) = changes[(index + step) % changes.len()];
                let name = format!("shape-{}-{part}-{what}", module.hf_name());
                let tensor = format!("{PREFIX}{}.{part}.weight", first_layer(module));
                let words = ["shape", module.hf_name(), part];
                table.add_tensors(name, &words, all_linears(), move |tensors| {
                    reshape(tensors, &tensor, change);
                });
            }
        }
    }
    table.add_tensors("rank-0", &["shape", "q_proj"], good(), |tensors| {
        for tensor in tensors {
            let rank = |&length: &usize| if length == 4 { 0 } else { length };
            let shape: Vec<_> = tensor.shape.iter().map(rank).collect();
            *tensor = zeros(&*tensor.name, &shape);
        }
    });
}

fn add_missing(table: &mut Table) {
    for module in Module::ALL {
        for part in ["lora_A", "lora_B"] {
            let tensor = format!("{PREFIX}{}.{part}.weight", first_layer(module));
            let name = format!("without-{}-{part}", module.hf_name());
            let words = ["incomplete", module.hf_name(), part];
            table.add_tensors(name, &words, all_linears(), move |tensors| {
                tensors.retain(|other| other.name != tensor);
            });
        }
    }
    table.add_tensors("without-v_proj", &["incomplete", "v_proj"], good(), |tensors| {
        tensors.retain(|tensor| !tensor.name.contains("v_proj"));
    });
    table.add_tensors("without-tensors", &["incomplete", "q_proj"], good(), Vec::clear);
}

fn add_strangers(table: &mut Table) {
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let cases: &[(&str, String, &[&str])] = &[
        ("dora", format!("{q}.lora_magnitude_vector"), &["DoRA"]),
        ("dora-of-later-releases", format!("{q}.lora_magnitude_vector.weight"), &["DoRA"]),
        ("lora-bias", format!("{q}.lora_B.bias"), &["lora_B.bias", "biases"]),
        ("bias", format!("{q}.bias"), &["q_proj.bias", "biases"]),
        ("base-bias", format!("{q}.base_layer.bias"), &["biases"]),
        ("base-weight", format!("{q}.base_layer.weight"), &["q_proj", "base"]),
        ("full-weight", format!("{q}.weight"), &["q_proj.weight", "full weights"]),
        ("embedding", "base_model.model.model.embed_tokens.weight".into(), &["full weights"]),
        ("norm", "base_model.model.model.norm.weight".into(), &["full weights"]),
        ("saved-module", "base_model.model.lm_head.modules_to_save.weight".into(), &["lm_head"]),
        ("saved-original", "base_model.model.score.original_module.weight".into(), &["score"]),
        (
            "trained-token",
            "model.embed_tokens.token_adapter.trainable_tokens_delta".into(),
            &["trainable_tokens_delta", "trainable_token_indices"],
        ),
        ("adalora", format!("{q}.lora_E"), &["lora_E", "peft_type"]),
        ("adalora-rank", format!("{q}.ranknum"), &["AdaLoRA"]),
        ("vera", format!("{q}.vera_lambda_b"), &["vera_lambda_b", "VeRA"]),
        ("ia3", format!("{q}.ia3_l"), &["ia3_l", "IA3"]),
        ("bare-matrix", format!("{q}.lora_A"), &["lora_A", "LoRA"]),
        ("lower-case", format!("{q}.lora_a.weight"), &["lora_a", "full weights"]),
        ("no-name", String::new(), &["no rule"]),
        ("odd-name", "\u{0}\n\u{1F9F6}".into(), &["no rule"]),
        ("long-name", "x".repeat(100_000), &["xxx", "no rule"]),
        (
            "unknown-module",
            "model.layers.0.self_attn.qkv_proj.lora_A.weight".into(),
            &["qkv_proj", "no linear"],
        ),
        ("wrong-block", "model.layers.0.mlp.q_proj.lora_A.weight".into(), &["mlp.q_proj"]),
        (
            "other-model",
            "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight".into(),
            &["c_attn"],
        ),
        (
            "layer-beyond",
            "model.layers.4000.self_attn.q_proj.lora_A.weight".into(),
            &["layers.4000", "this base has"],
        ),
        ("layer-negative", "model.layers.-1.self_attn.q_proj.lora_A.weight".into(), &["layers.-1"]),
        ("layer-padded", "model.layers.00.self_attn.q_proj.lora_A.weight".into(), &["layers.00"]),
        (
            "untargeted-module",
            "model.layers.0.self_attn.k_proj.lora_A.weight".into(),
            &["k_proj", "does not target"],
        ),
        (
            "untargeted-layer",
            "model.layers.1.self_attn.q_proj.lora_A.weight".into(),
            &["layers.1.", "does not target"],
        ),
        ("untargeted-head", "lm_head.lora_A.weight".into(), &["lm_head", "does not target"]),
        ("untargeted-copy", "lm_head.base_layer.weight".into(), &["lm_head", "does not target"]),
        ("embedding-in-linear", format!("{q}.lora_embedding_A"), &["q_proj", "kind"]),
        ("second-adapter", format!("{q}.lora_A.other.weight"), &["two tensors"]),
        (
            "second-spelling",
            "model.layers.0.self_attn.q_proj.lora_A.weight".into(),
            &["two tensors"],
        ),
    ];
    for (name, tensor, words) in cases {
        let tensor = tensor.clone();
        table.add_tensors(format!("stranger-{name}"), words, good(), move |tensors| {
            tensors.push(zeros(&*tensor, &[4, 4]));
        });
    }
    table.add_tensors("two-adapters", &["more than one adapter"], good(), |tensors| {
        for (index, tensor) in tensors.iter_mut().enumerate() {
            let name = if index % 2 == 0 { ".one.weight" } else { ".two.weight" };
            tensor.name = tensor.name.replace(".weight", name);
        }
    });
}

fn add_values(table: &mut Table) {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (what, value) in [("nan", f32::NAN), ("inf", f32::INFINITY)] {
            for index in 0..4 {
                let adapter = RandomAdapter { dtype, ..good() };
                let name = format!("{what}-{}-{index}", dtype_name(dtype));
                table.add_tensors(name, &["NaN or infinity"], adapter, move |tensors| {
                    let tensor = &mut tensors[index];
                    let flaw = RawTensor::new("", dtype, &[1], &[value]).data;
                    let at = tensor.data.len() - flaw.len() * (1 + index);
                    tensor.data[at..][..flaw.len()].copy_from_slice(&flaw);
                });
            }
        }
    }
    let dtypes =
        [("F64", 8), ("I64", 8), ("I32", 4), ("I16", 2), ("I8", 1), ("U8", 1), ("BOOL", 1)];
    for (dtype, size) in dtypes {
        table.add_tensors(format!("dtype-{dtype}"), &[dtype, "float32"], good(), move |tensors| {
            let tensor = &mut tensors[1];
            let num_elements: usize = tensor.shape.iter().product();
            tensor.dtype = dtype.to_owned();
            tensor.data = vec![0; num_elements * size];
        });
    }
    table.add_tensors("dtype-unknown", &["damaged"], good(), |tensors| {
        tensors[0].dtype = "Q4_1".to_owned();
    });
}

/// Embedding and head. Without the copies of the base's weights, which would be large.
fn add_ends(table: &mut Table) {
    let ends = || RandomAdapter {
        modules: Vec::new(),
        layers: None,
        embedding: true,
        lm_head: true,
        base_copies: false,
        ..good()
    };
    let parts = [
        "model.embed_tokens.lora_embedding_A",
        "model.embed_tokens.lora_embedding_B",
        "lm_head.lora_A.weight",
        "lm_head.lora_B.weight",
    ];
    for part in parts {
        let name = format!("{PREFIX}{part}");
        let tensor = name.clone();
        table.add_tensors(format!("ends-shape-{part}"), &["shape", part], ends(), move |tensors| {
            reshape(tensors, &tensor, |shape| vec![shape[0] + 1, shape[1]]);
        });
        let short = part.trim_end_matches(".weight");
        let words = ["incomplete", short.rsplit('.').next().unwrap_or(short)];
        table.add_tensors(format!("ends-without-{part}"), &words, ends(), move |tensors| {
            tensors.retain(|tensor| tensor.name != name);
        });
    }
    for module in ["model.embed_tokens", "lm_head"] {
        let name = format!("ends-resized-{module}");
        table.add_tensors(name, &["shape", module, "base_layer"], ends(), move |tensors| {
            tensors.push(zeros(format!("{PREFIX}{module}.base_layer.weight"), &[0, 8]));
        });
    }
    table.add_tensors("ends-linear-in-embedding", &["embed_tokens", "kind"], ends(), |tensors| {
        tensors.push(zeros("model.embed_tokens.lora_A.weight", &[4, 4]));
    });
}
