//! An adapter applied at run time equals the same adapter merged into the weights.

use crate::support::adapters::random_adapter;
use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use std::sync::Arc;
use weft_kernels::PackedLinear;
use weft_kernels::pack::Packer;
use weft_model::weights::{LayerWeights, LinearWeights, ModelWeights};
use weft_model::{LoadOptions, LoadedModel};
use weft_types::{LowRankUpdate, LoweredAdapter, Module, Site};

#[test]
fn run_time_application_equals_merged_weights() {
    for name in ["tiny-llama", "tiny-qwen3"] {
        let dir = golden(&format!("models/{name}"));
        let model = LoadedModel::load(&dir, &LoadOptions::default()).unwrap();
        for rank in [1, 3, 16, 256] {
            let adapter = random_adapter(model.spec(), rank, rank as u64);
            let merged = merge(&model, &adapter);
            let tokens: Vec<u32> = (0..40).map(|t| t * 7 % 320).collect();
            let want = all_logits(&merged, None, &tokens);
            let error = relative_error(&all_logits(&model, Some(&adapter), &tokens), &want);
            println!("{name} rank {rank}: relative error {error:.1e}");
            assert!(error < 1e-4, "{name} rank {rank}: {error}");
            assert!(relative_error(&all_logits(&model, None, &tokens), &want) > 1e-2);
        }
    }
}

fn merge(model: &LoadedModel, adapter: &LoweredAdapter) -> LoadedModel {
    let layers = model.weights.layers.iter().enumerate().map(|(index, layer)| {
        let linear = |module: Module, linear: &LinearWeights<PackedLinear>| LinearWeights {
            weight: merge_linear(
                &linear.weight,
                adapter.at(Site::Layer { layer: index as u32, module }),
            ),
            bias: linear.bias.clone(),
        };
        LayerWeights {
            attention_norm: layer.attention_norm.clone(),
            q: linear(Module::Q, &layer.q),
            k: linear(Module::K, &layer.k),
            v: linear(Module::V, &layer.v),
            q_norm: layer.q_norm.clone(),
            k_norm: layer.k_norm.clone(),
            o: linear(Module::O, &layer.o),
            mlp_norm: layer.mlp_norm.clone(),
            gate: linear(Module::Gate, &layer.gate),
            up: linear(Module::Up, &layer.up),
            down: linear(Module::Down, &layer.down),
        }
    });
    let weights = ModelWeights {
        embedding: model.weights.embedding.clone(),
        layers: layers.collect(),
        final_norm: model.weights.final_norm.clone(),
        lm_head: model.weights.lm_head.clone(),
    };
    LoadedModel {
        config: model.config.clone(),
        origin: model.origin.clone(),
        weights: Arc::new(weights),
    }
}

/// `W + s (A^T B)^T`
fn merge_linear(weight: &PackedLinear, update: Option<&LowRankUpdate>) -> PackedLinear {
    let Some(update) = update else { return weight.clone() };
    let read = |bytes: &[u8]| -> Vec<f64> {
        let floats = bytes.as_chunks::<4>().0.iter();
        floats.map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
    };
    let (a, b) = (read(&update.a.data), read(&update.b.data));
    let (k, n) = (weight.num_inputs(), weight.num_outputs());
    let mut packer = Packer::new(weight.format(), n, k);
    let mut row = vec![0.0; k];
    for output in 0..n {
        weight.dequantize_row_into(output, &mut row);
        for (i, w) in row.iter_mut().enumerate() {
            let sum: f64 = (0..update.rank()).map(|j| a[j * k + i] * b[j * n + output]).sum();
            *w = (f64::from(*w) + f64::from(update.scale) * sum) as f32;
        }
        packer.set_float(output, &row);
    }
    packer.finish()
}
