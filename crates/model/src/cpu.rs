//! The CPU device: the decoder's operations on the CPU kernels.

use crate::batch::{AdapterSegment, ForwardBatch};
use crate::config::ModelConfig;
use crate::cpu_project::Projector;
use crate::device::{Device, Projection, TensorKind};
use std::ops::Range;
use weft_kernels::attention::{AttentionShape, attention_into};
use weft_kernels::kv::KvSlot;
use weft_kernels::lora;
use weft_kernels::quantize::Activations;
use weft_kernels::rope::RopeTable;
use weft_kernels::{
    Arena, Isa, KvCache, KvDtype, KvShape, LentChunks, PackedLinear, PlacedAdapter, ThreadPool,
    activation, embedding, norm,
};
use weft_types::BlockId;

/// Rows of activations in single precision.
#[derive(Debug)]
pub struct CpuTensor {
    data: Vec<f32>,
    width: usize,
}

impl CpuTensor {
    /// Room for so many rows.
    pub(crate) fn new(max_rows: usize, width: usize) -> Self {
        Self { data: Vec::with_capacity(max_rows * width), width }
    }

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

    pub(crate) fn num_rows(&self) -> usize {
        self.data.len() / self.width
    }

    /// Within the capacity given at creation this does not allocate.
    pub(crate) fn set_rows(&mut self, num_rows: usize) -> &mut [f32] {
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
    projector: Projector,
    vocab_size: usize,
    given: GivenKv,
}

/// Keys and values of one layer that adapters give for virtual tokens, and where they go.
#[derive(Debug, Default)]
struct GivenKv {
    slots: Vec<KvSlot>,
    /// `[slots, kv heads, head dim]`
    keys: Vec<f32>,
    /// The same.
    values: Vec<f32>,
}

impl GivenKv {
    /// Those of a batch; virtual tokens begin at `vocab_size`.
    fn gather(&mut self, batch: &ForwardBatch, layer: usize, vocab_size: usize) {
        self.slots.clear();
        self.keys.clear();
        self.values.clear();
        for segment in &batch.segments {
            let Some(adapter) = segment.adapter.as_ref().filter(|a| a.has_kv_prefix()) else {
                continue;
            };
            for row in segment.rows.clone() {
                let Some(index) = (batch.tokens[row] as usize).checked_sub(vocab_size) else {
                    continue;
                };
                if adapter.kv_prefix_into(layer, index, &mut self.keys, &mut self.values) {
                    self.slots.push(batch.slots[row]);
                }
            }
        }
    }
}

impl CpuDevice {
    /// A device that computes on `pool`, with its KV cache in `arena`, for sequences of at most `max_model_len`.
    ///
    /// # Panics
    /// When a KV block is larger than a chunk of the arena.
    #[must_use]
    pub fn new(
        config: &ModelConfig,
        pool: ThreadPool,
        kv_dtype: KvDtype,
        arena: Arena,
        max_model_len: usize,
    ) -> Self {
        Self {
            pool,
            isa: Isa::detect(),
            cache: KvCache::new(kv_shape(config), kv_dtype, arena),
            rope: RopeTable::new(&config.rope.frequencies(), max_model_len, 1.0),
            projector: Projector::default(),
            vocab_size: config.spec.vocab_size,
            given: GivenKv::default(),
        }
    }

    /// The same with these instructions; without, with the widest of this machine.
    ///
    /// # Panics
    /// When this machine does not have them.
    #[must_use]
    pub fn with_isa(self, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this machine has no {isa}");
        Self { isa, ..self }
    }

    /// The same with activations that meet integer weights as these; without, as 12-bit integers.
    #[must_use]
    pub fn with_activations(self, activations: Activations) -> Self {
        Self { projector: Projector::new(activations), ..self }
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
        CpuTensor::new(max_rows, width)
    }

    fn embed(&mut self, batch: &ForwardBatch, table: &PackedLinear, out: &mut CpuTensor) {
        let width = out.width;
        let rows = out.set_rows(batch.num_rows());
        embedding::gather_rows_into(&self.pool, table, &batch.tokens, rows);
        for segment in &batch.segments {
            let Some(adapter) = &segment.adapter else { continue };
            let range = segment.rows.start * width..segment.rows.end * width;
            let tokens = &batch.tokens[segment.rows.clone()];
            let out = &mut out.data[range];
            adapter.replace_embeddings(self.vocab_size, tokens, out);
            if let Some(update) = adapter.embedding() {
                lora::add_embedding(self.isa, &update, tokens, out, &mut self.projector.lora);
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
        self.projector.project((&self.pool, self.isa), x, segments, projections);
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
        self.given.gather(batch, layer, self.vocab_size);
        if !self.given.slots.is_empty() {
            let GivenKv { slots, keys, values } = &self.given;
            self.cache.store(&self.pool, layer, keys, values, slots);
        }
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
