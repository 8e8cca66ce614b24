//! An adapter applied at run time equals the same adapter merged into the weights.

use crate::support::adapters::{random_adapter, versatile_adapter};
use crate::support::decoding::{all_logits, relative_error};
use crate::support::golden;
use std::sync::Arc;
use weft_kernels::PackedLinear;
use weft_kernels::pack::Packer;
use weft_model::weights::{LayerWeights, LinearWeights, ModelWeights};
use weft_model::{LoadOptions, LoadedModel};
use weft_types::{AdapterTensor, Dtype, LoweredAdapter, Module, Site, TokenRows};

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
        let linear = |module: Module, linear: &LinearWeights<PackedLinear>| {
            merge_linear(linear, adapter, Site::Layer { layer: index as u32, module })
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
    LoadedModel { config: model.config.clone(), weights: Arc::new(weights) }
}

/// `diag(g_out) (W diag(g_in) + s B^T A)` and `g_out b + shift`
fn merge_linear(
    linear: &LinearWeights<PackedLinear>,
    adapter: &LoweredAdapter,
    site: Site,
) -> LinearWeights<PackedLinear> {
    let read = |bytes: &[u8]| -> Vec<f64> {
        let floats = bytes.as_chunks::<4>().0.iter();
        floats.map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
    };
    let weight = &linear.weight;
    let (k, n) = (weight.num_inputs(), weight.num_outputs());
    let update = adapter.at(site).map(|update| {
        (update.rank(), f64::from(update.scale), read(&update.a.data), read(&update.b.data))
    });
    let vectors = adapter.vectors.iter().find(|vectors| vectors.site == site);
    let at = |vector: Option<&Box<[f32]>>, index: usize, none: f64| {
        vector.map_or(none, |vector| f64::from(vector[index]))
    };
    let input = |i: usize| at(vectors.and_then(|v| v.input.as_ref()), i, 1.0);
    let gain = |o: usize| at(vectors.and_then(|v| v.output.as_ref()), o, 1.0);
    let shift = |o: usize| at(vectors.and_then(|v| v.shift.as_ref()), o, 0.0);
    let mut packer = Packer::new(weight.format(), n, k);
    let mut row = vec![0.0; k];
    for output in 0..n {
        weight.dequantize_row_into(output, &mut row);
        for (i, w) in row.iter_mut().enumerate() {
            let sum: f64 = update.as_ref().map_or(0.0, |(rank, scale, a, b)| {
                scale * (0..*rank).map(|j| a[j * k + i] * b[j * n + output]).sum::<f64>()
            });
            *w = (gain(output) * (f64::from(*w) * input(i) + sum)) as f32;
        }
        packer.set_float(output, &row);
    }
    let bias = |o: usize| linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
    let bias = (0..n).map(|o| (gain(o) * bias(o) + shift(o)) as f32).collect();
    LinearWeights { weight: packer.finish(), bias: Some(bias) }
}

#[test]
fn gains_shifts_and_embeddings_of_tokens_equal_merged_weights() {
    for name in ["tiny-llama", "tiny-qwen2"] {
        let dir = golden(&format!("models/{name}"));
        let model = LoadedModel::load(&dir, &LoadOptions::default()).unwrap();
        let mut adapter = LoweredAdapter::clone(&versatile_adapter(model.spec(), 3, 1));
        adapter.bottlenecks.clear();
        adapter.kv_prefix = None;
        // The head has no bias that a shift could be merged into, and may be the embedding.
        adapter.vectors.retain(|vectors| vectors.site != Site::LmHead);
        let merged = merge(&model, &adapter);
        let mut weights = Arc::into_inner(merged.weights).unwrap();
        let table = &model.weights.embedding;
        weights.lm_head = weights.lm_head.or_else(|| Some(table.clone()));
        let mut packer = Packer::new(table.format(), table.num_outputs(), table.num_inputs());
        let mut row = vec![0.0; table.num_inputs()];
        for token in 0..table.num_outputs() {
            table.dequantize_row_into(token, &mut row);
            packer.set_float(token, &row);
        }
        let given = adapter.token_rows.as_ref().unwrap();
        for (token, bytes) in given.tokens.iter().zip(given.rows.data.chunks(4 * row.len())) {
            if (*token as usize) < table.num_outputs() {
                let numbers = bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
                packer.set_float(*token as usize, &numbers.collect::<Vec<_>>());
            }
        }
        weights.embedding = packer.finish();
        let merged = LoadedModel { config: merged.config, weights: Arc::new(weights) };
        let tokens: Vec<u32> = (0..40).map(|t| t * 7 % 320).collect();
        assert!(tokens.iter().any(|token| given.tokens.contains(token)));
        let want = all_logits(&merged, None, &tokens);
        let adapter = Arc::new(adapter);
        let error = relative_error(&all_logits(&model, Some(&adapter), &tokens), &want);
        println!("{name}: relative error {error:.1e}");
        assert!(error < 1e-4, "{name}: {error}");
        let without = LoweredAdapter { vectors: Vec::new(), ..LoweredAdapter::clone(&adapter) };
        let without = all_logits(&model, Some(&Arc::new(without)), &tokens);
        assert!(relative_error(&without, &want) > 1e-2);
    }
}

#[test]
fn virtual_tokens_with_the_embeddings_of_real_ones_have_their_bits() {
    let model = LoadedModel::load(&golden("models/tiny-llama"), &LoadOptions::default()).unwrap();
    let table = &model.weights.embedding;
    let (vocab, width) = (table.num_outputs(), table.num_inputs());
    let real: Vec<u32> = (0..20).map(|t| t * 31 % 320).collect();
    let mut row = vec![0.0; width];
    let mut data = Vec::new();
    for &token in &real[..5] {
        table.dequantize_row_into(token as usize, &mut row);
        data.extend(row.iter().flat_map(|value| value.to_le_bytes()));
    }
    let rows = AdapterTensor {
        dtype: Dtype::F32,
        rows: 5,
        cols: width,
        data: data.into(),
        row_scales: None,
    };
    let tokens: Box<[u32]> = (vocab as u32..).take(5).collect();
    let prompt: Vec<u32> = tokens.iter().chain(&real[5..]).copied().collect();
    let token_rows = Some(TokenRows { tokens, rows });
    let adapter = LoweredAdapter { token_rows, num_virtual_tokens: 5, ..LoweredAdapter::default() };
    let want = all_logits(&model, None, &real);
    assert_eq!(all_logits(&model, Some(&Arc::new(adapter)), &prompt), want);
}
