//! The CPU device: the decoder's operations on the CPU kernels.

use crate::batch::{AdapterSegment, ForwardBatch};
use crate::config::ModelConfig;
use crate::device::{Device, Projection, TensorKind};
use std::ops::Range;
use weft_kernels::attention::{AttentionShape, attention_into};
use weft_kernels::lora::{self, LoraScratch, LoraTarget};
use weft_kernels::matmul::{self, Input, Job};
use weft_kernels::quantize::QuantizedRows;
use weft_kernels::rope::RopeTable;
use weft_kernels::{
    Arena, Isa, KvCache, KvDtype, KvShape, LentChunks, PackedLinear, PlacedAdapter, ThreadPool,
    activation, embedding, norm,
};
use weft_types::{BlockId, Site};

/// Rows of activations in single precision.
#[derive(Debug)]
pub struct CpuTensor {
    data: Vec<f32>,
    width: usize,
}

impl CpuTensor {
    /// Values of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// All rows, one after the other.
    #[must_use]
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All rows, one after the other.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    fn num_rows(&self) -> usize {
        self.data.len() / self.width
    }

    /// Within the capacity given at creation this does not allocate.
    fn set_rows(&mut self, num_rows: usize) -> &mut [f32] {
        self.data.resize(num_rows * self.width, 0.0);
        &mut self.data
    }
}

/// Threads, the KV cache and scratch memory.
#[derive(Debug)]
pub struct CpuDevice {
    pool: ThreadPool,
    isa: Isa,
    cache: KvCache,
    rope: RopeTable,
    quantized: QuantizedRows,
    lora: LoraScratch,
    segments: Vec<Range<usize>>,
}

impl CpuDevice {
    /// A device with its KV cache in `arena`, for sequences of at most `max_model_len`.
    ///
    /// # Panics
    /// When a KV block is larger than a chunk of the arena.
    #[must_use]
    pub fn new(
        config: &ModelConfig,
        num_threads: usize,
        kv_dtype: KvDtype,
        arena: Arena,
        max_model_len: usize,
    ) -> Self {
        Self {
            pool: ThreadPool::new(num_threads),
            isa: Isa::detect(),
            cache: KvCache::new(kv_shape(config), kv_dtype, arena),
            rope: RopeTable::new(&config.rope.frequencies(), max_model_len, 1.0),
            quantized: QuantizedRows::default(),
            lora: LoraScratch::default(),
            segments: Vec::new(),
        }
    }

    /// The threads, for work that is not the decoder's.
    #[must_use]
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// Chunks of the arena for an adapter: no KV blocks until the result is dropped.
    ///
    /// # Panics
    /// When a chunk does not exist or is lent already.
    #[must_use]
    pub fn lend(&mut self, chunks: &[BlockId]) -> LentChunks {
        self.cache.lend(chunks)
    }
}

/// What one token needs in the cache.
#[must_use]
pub fn kv_shape(config: &ModelConfig) -> KvShape {
    let spec = &config.spec;
    KvShape {
        num_layers: spec.num_layers,
        num_kv_heads: spec.num_kv_heads,
        head_dim: spec.head_dim,
    }
}

impl Device for CpuDevice {
    type Tensor = CpuTensor;
    type Linear = PackedLinear;
    type Vector = Vec<f32>;
    type Adapter = PlacedAdapter;

    fn tensor(&mut self, _: TensorKind, max_rows: usize, width: usize) -> CpuTensor {
        CpuTensor { data: Vec::with_capacity(max_rows * width), width }
    }

    fn embed(&mut self, batch: &ForwardBatch, table: &PackedLinear, out: &mut CpuTensor) {
        let width = out.width;
        let rows = out.set_rows(batch.num_rows());
        embedding::gather_rows_into(&self.pool, table, &batch.tokens, rows);
        for segment in &batch.segments {
            let update = segment.adapter.as_ref().and_then(|adapter| adapter.embedding());
            if let Some(update) = update {
                let range = segment.rows.start * width..segment.rows.end * width;
                let tokens = &batch.tokens[segment.rows.clone()];
                let out = &mut out.data[range];
                lora::add_embedding(self.isa, &update, tokens, out, &mut self.lora);
            }
        }
    }

    fn rms_norm(&mut self, x: &CpuTensor, weight: &Vec<f32>, eps: f32, out: &mut CpuTensor) {
        let num_rows = x.num_rows();
        norm::rms_norm_into(&self.pool, self.isa, &x.data, weight, eps, out.set_rows(num_rows));
    }

    fn head_norm(&mut self, x: &mut CpuTensor, weight: &Vec<f32>, eps: f32) {
        norm::rms_norm_in_place(&self.pool, self.isa, &mut x.data, weight, eps);
    }

    fn project(
        &mut self,
        x: &CpuTensor,
        segments: &[AdapterSegment],
        projections: &mut [Projection<'_, Self>],
    ) {
        let num_rows = x.num_rows();
        if projections.iter().any(|projection| projection.weight.format().is_integer()) {
            self.quantized.quantize(&self.pool, self.isa, &x.data, x.width);
        }
        let input = Input { rows: &x.data, quantized: &self.quantized, num_rows };
        let mut sites = [Site::LmHead; 3];
        for (site, projection) in sites.iter_mut().zip(projections.iter()) {
            *site = projection.site;
        }
        for projection in projections.iter_mut() {
            projection.out.set_rows(num_rows);
        }
        let mut jobs = projections.iter_mut().map(|projection| Job {
            weight: projection.weight,
            bias: projection.bias.map(Vec::as_slice),
            accumulate: projection.accumulate,
            out: &mut projection.out.data,
        });
        // One to three, on the stack.
        match (jobs.next(), jobs.next(), jobs.next()) {
            (Some(a), Some(b), Some(c)) => {
                matmul::matmul(&self.pool, self.isa, input, &mut [a, b, c]);
            }
            (Some(a), Some(b), None) => matmul::matmul(&self.pool, self.isa, input, &mut [a, b]),
            (Some(a), ..) => matmul::matmul(&self.pool, self.isa, input, &mut [a]),
            (None, ..) => return,
        }
        if segments.iter().all(|segment| segment.adapter.is_none()) {
            return;
        }
        self.segments.clear();
        self.segments.extend(segments.iter().map(|segment| segment.rows.clone()));
        let mut targets = projections.iter_mut().map(|projection| LoraTarget {
            num_outputs: projection.weight.num_outputs(),
            out: &mut projection.out.data,
        });
        let update =
            |segment: usize, target: usize| segments[segment].adapter.as_ref()?.at(sites[target]);
        let mut apply = |targets: &mut [LoraTarget<'_>]| {
            lora::apply(
                &self.pool,
                self.isa,
                &x.data,
                x.width,
                &self.segments,
                targets,
                update,
                &mut self.lora,
            );
        };
        match (targets.next(), targets.next(), targets.next()) {
            (Some(a), Some(b), Some(c)) => apply(&mut [a, b, c]),
            (Some(a), Some(b), None) => apply(&mut [a, b]),
            (Some(a), ..) => apply(&mut [a]),
            (None, ..) => {}
        }
    }

    fn rotate_and_store(
        &mut self,
        batch: &ForwardBatch,
        layer: usize,
        head_dim: usize,
        q: &mut CpuTensor,
        k: &mut CpuTensor,
        v: &CpuTensor,
    ) {
        self.rope.rotate(&self.pool, &mut q.data, head_dim, &batch.positions);
        self.rope.rotate(&self.pool, &mut k.data, head_dim, &batch.positions);
        self.cache.store(&self.pool, layer, &k.data, &v.data, &batch.slots);
    }

    fn attention(
        &mut self,
        batch: &ForwardBatch,
        layer: usize,
        shape: &AttentionShape,
        q: &CpuTensor,
        out: &mut CpuTensor,
    ) {
        attention_into(
            &self.pool,
            self.isa,
            shape,
            &self.cache,
            layer,
            &batch.attention,
            &batch.block_tables,
            &q.data,
            out.set_rows(q.num_rows()),
        );
    }

    fn gated_activation(&mut self, gate: &mut CpuTensor, up: &CpuTensor) {
        activation::silu_mul(&self.pool, self.isa, &mut gate.data, &up.data);
    }

    fn gather(&mut self, batch: &ForwardBatch, x: &CpuTensor, out: &mut CpuTensor) {
        let width = x.width;
        let target = out.set_rows(batch.logit_rows.len());
        for (out, &row) in target.chunks_exact_mut(width).zip(&batch.logit_rows) {
            out.copy_from_slice(&x.data[row * width..(row + 1) * width]);
        }
    }

    fn slice(&mut self, x: &CpuTensor, range: Range<usize>, out: &mut CpuTensor) {
        let source = &x.data[range.start * x.width..range.end * x.width];
        out.set_rows(range.len()).copy_from_slice(source);
    }
}
