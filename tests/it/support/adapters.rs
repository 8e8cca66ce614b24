//! Random adapters in lowered form.

use super::noise;
use std::sync::Arc;
use weft_types::{
    Activation, AdapterTensor, BaseModelSpec, Bottleneck, BottleneckInput, ContentHash, Dtype,
    KvPrefix, LowRankUpdate, LoweredAdapter, Module, Site, SiteVectors, TokenRows,
};

/// `[rows, cols]` of f32 up to `size`.
fn random_tensor(
    next: &mut impl FnMut() -> f32,
    [rows, cols]: [usize; 2],
    size: f32,
) -> AdapterTensor {
    let data = (0..rows * cols).flat_map(|_| (next() * size).to_le_bytes()).collect();
    AdapterTensor { dtype: Dtype::F32, rows, cols, data, row_scales: None }
}

/// An adapter of `rank` on all seven linears of every layer, large enough to change the output.
pub(crate) fn random_adapter(spec: &BaseModelSpec, rank: usize, seed: u64) -> Arc<LoweredAdapter> {
    let mut next = noise(seed);
    let mut tensor =
        |rows: usize, cols: usize, size: f32| random_tensor(&mut next, [rows, cols], size);
    let mut low_rank = Vec::new();
    for layer in 0..spec.num_layers as u32 {
        for module in Module::ALL {
            let shape = spec.linear(module);
            low_rank.push(LowRankUpdate {
                site: Site::Layer { layer, module },
                scale: 1.0 / (rank as f32).sqrt(),
                a: tensor(rank, shape.num_inputs, 0.2),
                b: tensor(rank, shape.num_outputs, 0.2),
            });
        }
    }
    let mut content_hash = ContentHash([0; 32]);
    content_hash.0[..8].copy_from_slice(&seed.to_le_bytes());
    content_hash.0[8..16].copy_from_slice(&(rank as u64).to_le_bytes());
    Arc::new(LoweredAdapter { content_hash, low_rank, ..LoweredAdapter::default() })
}

/// [`random_adapter`] with everything else that adapters have: gains and shifts and bottlenecks at
/// sites that depend on the seed, embeddings of tokens, and [`NUM_VIRTUAL`] virtual tokens, of which the
/// first two have given keys and values, the others embeddings.
pub(crate) fn versatile_adapter(
    spec: &BaseModelSpec,
    rank: usize,
    seed: u64,
) -> Arc<LoweredAdapter> {
    let mut next = noise(seed + 1000);
    let mut adapter = LoweredAdapter::clone(&random_adapter(spec, rank, seed));
    adapter.content_hash.0[31] = 1;
    let mut vector = |len: usize, mean: f32, is_there: bool| {
        is_there.then(|| (0..len).map(|_| mean + 0.3 * next()).collect::<Box<[f32]>>())
    };
    let hidden = spec.hidden_size;
    let mut number = seed;
    for layer in 0..spec.num_layers as u32 {
        for module in Module::ALL {
            let (site, shape) = (Site::Layer { layer, module }, spec.linear(module));
            number += 1;
            let kind = number % 5;
            let vectors = SiteVectors {
                site,
                input: vector(shape.num_inputs, 1.0, kind == 0 || kind == 3),
                output: vector(shape.num_outputs, 1.0, kind == 1 || kind == 3),
                shift: vector(shape.num_outputs, 0.0, kind == 2 || kind == 3),
            };
            if kind != 4 {
                adapter.vectors.push(vectors);
            }
        }
    }
    if seed.is_multiple_of(2) {
        adapter.vectors.push(SiteVectors {
            site: Site::LmHead,
            input: vector(hidden, 1.0, true),
            output: vector(spec.vocab_size, 1.0, true),
            shift: vector(spec.vocab_size, 0.0, true),
        });
    }
    let activations = [Activation::Gelu, Activation::Relu, Activation::Silu, Activation::Tanh];
    for layer in 0..spec.num_layers as u32 {
        for module in [Module::O, Module::Down] {
            number += 1;
            if number.is_multiple_of(3) {
                continue;
            }
            // The residual stream is larger than what is added to it, and rounds as much more coarsely.
            let (reads, size) = match module {
                Module::O => (BottleneckInput::Output, 0.2),
                _ => (BottleneckInput::Residual, 0.1),
            };
            adapter.bottlenecks.push(Bottleneck {
                site: Site::Layer { layer, module },
                reads,
                a_bias: (0..rank).map(|_| next()).collect(),
                activation: activations[number as usize % activations.len()],
                b_bias: (0..hidden).map(|_| 0.1 * next()).collect(),
                a: random_tensor(&mut next, [rank, hidden], size),
                b: random_tensor(&mut next, [rank, hidden], 0.2),
            });
        }
    }
    let vocab = spec.vocab_size as u32;
    let given = (0..vocab).step_by(5).chain(vocab + 2..vocab + NUM_VIRTUAL as u32);
    let tokens: Box<[u32]> = given.collect();
    let rows = random_tensor(&mut next, [tokens.len(), hidden], 1.0);
    adapter.token_rows = Some(TokenRows { tokens, rows });
    let kv_width = spec.linear(Module::K).num_outputs;
    let rows = random_tensor(&mut next, [spec.num_layers * 2 * 2, kv_width], 1.0);
    adapter.kv_prefix = Some(KvPrefix { num_tokens: 2, rows });
    adapter.num_virtual_tokens = NUM_VIRTUAL;
    Arc::new(adapter)
}

/// Virtual tokens of a [`versatile_adapter`].
pub(crate) const NUM_VIRTUAL: usize = 4;
