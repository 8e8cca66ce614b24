//! A hundred random configurations: which modules are targeted, in which rank and with which scale,
//! is what peft made of them (`scripts/golden/make_peft_configs.py`).

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use weft_adapters::{LoadLimits, lower_peft_bytes};
use weft_testkit::peft::in_layer;
use weft_testkit::safetensors_file::{RawTensor, safetensors_bytes};
use weft_testkit::tiny_llama_spec;
use weft_types::{BaseModelSpec, Dtype, LinearShape, LoweredAdapter, Module, Site};

/// A module's rank and scale.
type Modules = BTreeMap<String, (usize, f32)>;

#[test]
fn modules_ranks_and_scales_are_those_of_peft() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/peft_configs.json");
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let base = tiny_llama_spec();
    for case in &cases {
        let expected: Modules = case["modules"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, pair)| {
                let (rank, scale) = (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap());
                (name.clone(), (rank as usize, scale as f32))
            })
            .collect();
        let tensors = safetensors_bytes(&tensors(&expected, &base));
        let config = case["config"].to_string();
        let lowered = lower_peft_bytes(config.as_bytes(), &tensors, &base, &LoadLimits::default())
            .unwrap_or_else(|refusal| panic!("{refusal}: {config}"));
        assert_eq!(modules(&lowered), expected, "{config}");
    }
    assert_eq!(cases.len(), 100);
}

fn name(site: Site) -> String {
    match site {
        Site::Layer { layer, module } => format!("model.layers.{layer}.{}", in_layer(module)),
        Site::LmHead => "lm_head".to_owned(),
    }
}

fn modules(adapter: &LoweredAdapter) -> Modules {
    let linears =
        adapter.low_rank.iter().map(|update| (name(update.site), (update.rank(), update.scale)));
    let embedding = adapter.embedding.iter();
    let embedding =
        embedding.map(|update| ("model.embed_tokens".to_owned(), (update.b.rows, update.scale)));
    linears.chain(embedding).collect()
}

/// Zeros in the shapes that the modules have.
fn tensors(modules: &Modules, base: &BaseModelSpec) -> Vec<RawTensor> {
    let shapes: BTreeMap<String, LinearShape> = (0..base.num_layers as u32)
        .flat_map(|layer| Module::ALL.map(|module| Site::Layer { layer, module }))
        .chain([Site::LmHead])
        .map(|site| (name(site), base.site(site)))
        .collect();
    let zeros = |name: String, shape: [usize; 2]| {
        RawTensor::new(name, Dtype::F32, &shape, &vec![0.0; shape[0] * shape[1]])
    };
    let pair = |(name, &(rank, _)): (&String, &(usize, f32))| match shapes.get(name) {
        Some(shape) => [
            zeros(format!("{name}.lora_A.weight"), [rank, shape.num_inputs]),
            zeros(format!("{name}.lora_B.weight"), [shape.num_outputs, rank]),
        ],
        None => [
            zeros(format!("{name}.lora_embedding_A"), [rank, base.vocab_size]),
            zeros(format!("{name}.lora_embedding_B"), [base.hidden_size, rank]),
        ],
    };
    modules.iter().flat_map(pair).collect()
}
