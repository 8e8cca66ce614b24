//! Random adapters in lowered form, and adapters on a device.

use super::noise;
use std::sync::Arc;
use weft_kernels::PlacedAdapter;
use weft_model::CpuDevice;
use weft_types::{
    AdapterTensor, BaseModelSpec, BlockId, ContentHash, Dtype, LowRankUpdate, LoweredAdapter,
    Module, PackedAdapter, Site,
};

/// An adapter of `rank` on all seven linears of every layer, large enough to change the output.
pub(crate) fn random_adapter(spec: &BaseModelSpec, rank: usize, seed: u64) -> Arc<LoweredAdapter> {
    let mut next = noise(seed);
    let mut tensor = |rows: usize, cols: usize, size: f32| AdapterTensor {
        dtype: Dtype::F32,
        rows,
        cols,
        data: (0..rows * cols).flat_map(|_| (next() * size).to_le_bytes()).collect(),
        row_scales: None,
    };
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

/// Copies an adapter to the chunks of a device from `first_chunk` on.
pub(crate) fn place(
    device: &mut CpuDevice,
    packed: PackedAdapter,
    first_chunk: usize,
) -> Arc<PlacedAdapter> {
    let chunks: Vec<BlockId> =
        (first_chunk..first_chunk + packed.num_chunks).map(|i| BlockId(i as u32)).collect();
    Arc::new(PlacedAdapter::copy(&packed, device.lend(&chunks)))
}
