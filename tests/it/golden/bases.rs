//! Quantized checkpoints as bitsandbytes, GPTQ and AWQ save them: codes to the bit, logits within 1e-4
//! of their dequantized weights in transformers. What is malformed is refused with a sentence.

use super::prompts;
use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use proptest::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use safetensors::{Dtype, View};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_adapters::{LoadLimits, load_peft_dir};
use weft_kernels::PackedLinear;
use weft_kernels::weight::Format;
use weft_model::{LoadOptions, LoadedModel, ModelError, Quantize};
use weft_testkit::golden::GoldenFile;

/// Each base with what its weights are, as `weft check` says it.
const BASES: [(&str, &str, &str); 13] = [
    ("nf4", "bitsandbytes NF4", "NF4 in groups of 64"),
    ("nf4-dq", "bitsandbytes NF4, double quantization", "NF4 in groups of 64"),
    ("nf4-stored-as-bf16", "bitsandbytes NF4", "NF4 in groups of 64"),
    ("fp4-dq-skip", "bitsandbytes FP4, double quantization", "FP4 in groups of 64, bfloat16"),
    (
        "int8",
        "bitsandbytes LLM.int8, multiplied in single precision",
        "8 bits with zeros in groups of 128, 8 bits with zeros in groups of 256",
    ),
    ("gptq-sym-32", "GPTQ, 4 bits, groups of 32", "4 bits with zeros in groups of 32"),
    ("gptq-asym-128", "GPTQ, 4 bits, groups of 128", "4 bits with zeros in groups of 128"),
    (
        "gptq-act-order",
        "GPTQ, 4 bits, groups of 64, act-order",
        "4 bits with zeros in groups of 64",
    ),
    (
        "gptq-v2-rows",
        "GPTQ, 4 bits, one group a row",
        "4 bits with zeros in groups of 128, 4 bits with zeros in groups of 256",
    ),
    (
        "gptq-8-act-order",
        "GPTQ, 8 bits, groups of 32, act-order",
        "8 bits with zeros in groups of 32",
    ),
    ("awq-32", "AWQ, 4 bits, groups of 32", "4 bits with zeros in groups of 32"),
    ("awq-64", "AWQ, 4 bits, groups of 64", "4 bits with zeros in groups of 64"),
    ("awq-128", "AWQ, 4 bits, groups of 128", "4 bits with zeros in groups of 128"),
];

fn dir(name: &str) -> PathBuf {
    golden(&format!("bases/{name}"))
}

fn load_as(name: &str, quantize: Quantize) -> Result<LoadedModel, ModelError> {
    LoadedModel::load(&dir(name), &LoadOptions { quantize, ..LoadOptions::default() })
}

fn load(name: &str) -> LoadedModel {
    load_as(name, Quantize::None).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_quantized_base_gives_the_logits_of_its_dequantized_weights() {
    for (name, origin, formats) in BASES {
        let model = load(name);
        assert_eq!(model.origin, origin, "{name}");
        let found: Vec<String> = model.layer_formats().iter().map(ToString::to_string).collect();
        assert_eq!(found.join(", "), formats, "{name}");
        let file = GoldenFile::open(&dir(name).join("golden.safetensors")).unwrap();
        for (tokens, want) in prompts(&file) {
            let error = relative_error(&all_logits(&model, None, &tokens), &want);
            println!("{name}: {} tokens, relative error {error:.1e}", tokens.len());
            assert!(error < 1e-4, "{name}: {error}");
        }
    }
}

fn linears(model: &LoadedModel) -> Vec<&PackedLinear> {
    let layers = model.weights.layers.iter().flat_map(|layer| {
        [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
    });
    layers.map(|linear| &linear.weight).collect()
}

/// Codes and scales of all rows of an NF4 matrix.
fn nf4_parts(linear: &PackedLinear) -> (Vec<u8>, Vec<f32>) {
    let (num_outputs, num_inputs) = (linear.num_outputs(), linear.num_inputs());
    let mut codes = vec![0; num_outputs * num_inputs];
    let mut scales = vec![0.0; num_outputs * num_inputs / 64];
    let rows = codes.chunks_exact_mut(num_inputs).zip(scales.chunks_exact_mut(num_inputs / 64));
    for (row, (codes, scales)) in rows.enumerate() {
        linear.coded_row_into(row, codes, scales, &mut []);
    }
    (codes, scales)
}

#[test]
fn quantizing_to_nf4_gives_the_codes_and_scales_of_bitsandbytes() {
    for (quantize, name) in [(Quantize::Nf4, "nf4"), (Quantize::Nf4DoubleQuant, "nf4-dq")] {
        let (ours, theirs) = (load_as("float", quantize).unwrap(), load(name));
        let (mut num_scales, mut num_same) = (0, 0);
        for (ours, theirs) in linears(&ours).into_iter().zip(linears(&theirs)) {
            let ((codes, scales), (want_codes, want_scales)) = (nf4_parts(ours), nf4_parts(theirs));
            assert_eq!(codes, want_codes, "{name}");
            for (scale, want) in scales.iter().zip(&want_scales) {
                num_scales += 1;
                num_same += usize::from(scale == want);
                // A step of the table of double quantization.
                assert!((scale - want).abs() <= 0.02 * want, "{name}: {scale} {want}");
            }
        }
        println!("{name}: all codes and {num_same} of {num_scales} scales have the same bits");
        // bitsandbytes' CPU build does not always find the nearest byte.
        let num_allowed = if quantize == Quantize::Nf4 { 0 } else { num_scales / 200 };
        assert!(num_same + num_allowed >= num_scales);
        assert_eq!(ours.weights.embedding.format(), Format::Bf16);
    }
}

#[test]
fn a_qlora_adapter_is_nearest_to_itself_on_the_base_it_was_trained_on() {
    let adapter_dir = dir("qlora");
    let file = GoldenFile::open(&adapter_dir.join("golden.safetensors")).unwrap();
    println!("| base | logits' error against peft on the NF4 base |\n|---|---|");
    let mut errors = Vec::new();
    for (what, name, quantize) in [
        ("bitsandbytes NF4, double quantization", "nf4-dq", Quantize::None),
        ("--quantize nf4-dq", "float", Quantize::Nf4DoubleQuant),
        ("--quantize nf4", "float", Quantize::Nf4),
        ("bf16", "float", Quantize::None),
        ("--quantize int8", "float", Quantize::Int8),
        ("--quantize int4", "float", Quantize::Int4),
    ] {
        let model = load_as(name, quantize).unwrap();
        let adapter = load_peft_dir(&adapter_dir, model.spec(), &LoadLimits::default()).unwrap();
        let adapter = Arc::new(adapter);
        let prompts = prompts(&file);
        let of_prompt = |(tokens, want): &(Vec<u32>, Vec<f32>)| {
            relative_error(&all_logits(&model, Some(&adapter), tokens), want)
        };
        let worst = prompts.iter().map(of_prompt).fold(0.0, f64::max);
        println!("| {what} | {worst:.1e} |");
        errors.push(worst);
    }
    assert!(errors[0] < 1e-4 && errors[1] < 5e-3, "{errors:?}");
    assert!(errors[2] > 2.0 * errors[1] && errors[2] < 0.02, "{errors:?}");
    assert!(errors[3..].iter().all(|&error| error > 0.1), "{errors:?}");
}

#[test]
fn what_is_quantized_already_is_not_quantized_again() {
    let error = load_as("awq-64", Quantize::Int4).unwrap_err().to_string();
    assert!(error.contains("--quantize int4") && error.contains("AWQ, 4 bits"), "{error}");
}

/// A tensor that owns its bytes.
#[derive(Clone)]
struct Owned(Dtype, Vec<usize>, Vec<u8>);

impl View for Owned {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.2.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

type Tensors = std::collections::BTreeMap<String, Owned>;

fn tensors(name: &str) -> Tensors {
    let bytes = std::fs::read(dir(name).join("model.safetensors")).unwrap();
    let owned =
        |view: &TensorView<'_>| Owned(view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    parsed.iter().map(|(name, view)| (name.to_owned(), owned(&view))).collect()
}

/// Loads a base with other tensors and another `config.json`.
fn load_edited(
    name: &str,
    tensors: &Tensors,
    config: impl Fn(String) -> String,
) -> Result<LoadedModel, ModelError> {
    let edited = tempfile::tempdir().unwrap();
    let write = |file: &str, bytes: &[u8]| std::fs::write(edited.path().join(file), bytes).unwrap();
    let text = std::fs::read_to_string(dir(name).join("config.json")).unwrap();
    write("config.json", config(text).as_bytes());
    write("model.safetensors", &serialize(tensors.clone(), None).unwrap());
    LoadedModel::load(edited.path(), &LoadOptions { num_threads: 1, ..LoadOptions::default() })
}

const UP: &str = "model.layers.0.mlp.up_proj";

#[test]
fn malformed_checkpoints_are_refused_with_the_tensors_name() {
    let with = |name: &str, edit: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors(name);
        edit(&mut tensors);
        let error = load_edited(name, &tensors, |text| text).err();
        error.unwrap_or_else(|| panic!("{name} is refused")).to_string()
    };
    let without = |name: &str, key: &str| {
        with(name, &|tensors| drop(tensors.remove(&format!("{UP}.{key}")).expect(key)))
    };
    let shorter = |name: &str, key: &str| {
        with(name, &|tensors| {
            let tensor = tensors.get_mut(&format!("{UP}.{key}")).expect(key);
            let row = tensor.2.len() / tensor.1[0];
            tensor.1[0] -= 1;
            tensor.2.truncate(tensor.1[0] * row);
        })
    };
    let filled = |name: &str, key: &str, byte: u8| {
        with(name, &|tensors| tensors.get_mut(&format!("{UP}.{key}")).expect(key).2.fill(byte))
    };
    let state = "weight.quant_state.bitsandbytes__nf4";
    for (error, words) in [
        (without("nf4", "weight.absmax"), "up_proj.weight.absmax"),
        (without("nf4", "weight.quant_map"), "up_proj.weight.quant_map"),
        (without("nf4", "weight"), "up_proj.weight"),
        (without("nf4", state), "no codes and scales"),
        (without("nf4-dq", "weight.nested_absmax"), "up_proj.weight.nested_absmax"),
        (without("nf4-dq", "weight.nested_quant_map"), "up_proj.weight.nested_quant_map"),
        (without("int8", "SCB"), "no codes and scales"),
        (without("gptq-sym-32", "scales"), "up_proj.scales"),
        (without("gptq-sym-32", "qzeros"), "up_proj.qzeros"),
        (without("gptq-act-order", "g_idx"), "g_idx, which desc_act asks for"),
        (without("gptq-sym-32", "qweight"), "up_proj.weight"),
        (without("awq-64", "qweight"), "no codes and scales"),
        (shorter("nf4", "weight"), "up_proj.weight has"),
        (shorter("nf4", "weight.absmax"), "up_proj.weight.absmax has shape"),
        (shorter("nf4", state), "quant_state"),
        (shorter("nf4-dq", "weight.nested_quant_map"), "nested_quant_map has shape"),
        (shorter("int8", "weight"), "up_proj.weight has shape"),
        (shorter("int8", "SCB"), "up_proj.SCB has shape"),
        (shorter("gptq-sym-32", "qweight"), "up_proj.qweight has shape"),
        (shorter("gptq-sym-32", "qzeros"), "up_proj.qzeros has shape"),
        (shorter("gptq-act-order", "g_idx"), "up_proj.g_idx has shape"),
        (shorter("awq-64", "scales"), "up_proj.scales has shape"),
        (filled("nf4", "weight.quant_map", 0), "not the table of NF4"),
        (filled("int8", "weight_format", 2), "order of a GPU"),
        (filled("gptq-act-order", "g_idx", 1), "not among 2"),
        (filled("gptq-sym-32", "g_idx", 0), "not in order"),
        (filled("nf4", state, b'x'), "quant_state"),
    ] {
        assert!(error.contains(words), "{error} (not: {words})");
    }
}

#[test]
fn a_config_that_says_something_else_is_refused_with_its_key() {
    let with = |name: &str, from: &str, to: &str| {
        let replaced = |text: String| {
            assert!(text.contains(from), "{from} in {text}");
            text.replace(from, to)
        };
        load_edited(name, &tensors(name), replaced).expect_err("refused").to_string()
    };
    for (error, words) in [
        (with("nf4", "\"bitsandbytes\"", "\"hqq\""), "quant_method `hqq`"),
        (with("nf4", "\"nf4\"", "\"fp4\""), "bnb_4bit_quant_type makes it fp4"),
        (with("gptq-sym-32", "\"bits\": 4", "\"bits\": 2"), "bits `2`"),
        (with("gptq-sym-32", "\"group_size\": 32", "\"group_size\": 64"), "qzeros has shape"),
        (with("awq-64", "\"gemm\"", "\"gemv\""), "version `gemv`"),
    ] {
        assert!(error.contains(words), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a file holds: a model or a sentence.
    #[test]
    fn damaged_tensors_never_panic(
        base in 0usize..13, tensor in 0usize..1000, at in any::<u32>(), len in 1usize..200, fill in any::<u8>(), cut in 0usize..3
    ) {
        let name = BASES[base].0;
        let mut tensors = tensors(name);
        let of_layers: Vec<String> =
            tensors.keys().filter(|key| key.contains("_proj")).cloned().collect();
        let tensor = tensors.get_mut(&of_layers[tensor % of_layers.len()]).unwrap();
        match cut {
            // Other bytes, another shape of as many, another type of as many.
            0 if !tensor.2.is_empty() => {
                let at = at as usize % tensor.2.len();
                let end = (at + len).min(tensor.2.len());
                tensor.2[at..end].fill(fill);
            }
            1 => tensor.1.insert(0, 1),
            _ => {
                tensor.0 = Dtype::U8;
                tensor.1 = vec![tensor.2.len()];
            }
        }
        match load_edited(name, &tensors, |text| text) {
            Ok(model) => drop(model),
            Err(error) => prop_assert!(error.to_string().len() > 10),
        }
    }

    /// The settings of a method are any JSON: a meaning or a sentence.
    #[test]
    fn odd_settings_never_panic(base in 0usize..13, key in 0usize..100, value in 0usize..8) {
        let name = BASES[base].0;
        let value = ["null", "-1", "0", "7", "1e40", "\"x\"", "[]", "{\"a\": {}}"][value];
        let replaced = |text: String| {
            let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
            let method = config["quantization_config"].as_object_mut().unwrap();
            let keys: Vec<String> = method.keys().cloned().collect();
            method.insert(keys[key % keys.len()].clone(), serde_json::from_str(value).unwrap());
            config.to_string()
        };
        if let Err(error) = load_edited(name, &tensors(name), replaced) {
            prop_assert!(error.to_string().len() > 10);
        }
    }
}

#[test]
fn bases_are_all_that_lie_in_their_directory() {
    let entries = std::fs::read_dir(golden("bases")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = ["float", "qlora"];
    let known = |name: &str| BASES.iter().any(|(base, ..)| *base == name) || others.contains(&name);
    for name in names {
        assert!(known(&name), "{name} has no test");
        assert!(Path::new(&dir(&name)).is_dir());
    }
}
