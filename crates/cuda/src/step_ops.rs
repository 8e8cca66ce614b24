//! The decoder's operations on a step: what is checked here is what makes the launches sound. Tensors
//! know their rows and widths, the step's tables their places.
//!
//! Decode steps are recorded once for each number of rows (padded) and then replayed: adapters, block
//! tables and tokens are in tables whose places never change. While a step is replayed, operations only
//! count rows; [`StepOps::finish`] runs the graph.

use crate::adapter::CudaAdapter;
use crate::arena::CudaArena;
use crate::driver::{DevicePtr, DriverError, Graph};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::attention::{
    DecodeOperands, PrefillOperands, QueryHeads, decode, decode_scratch_len, decode_splits, prefill,
};
use crate::ops::kv_cache::{ActivationRows, KvType, PagedKv, RopeStoreOperands, rope_store};
use crate::ops::matmul::{Linear, Output};
use crate::ops::sampling::{Drawn, SamplingBuffers, SamplingPlan, sample};
use crate::ops::{embedding, norm, rows};
use crate::step_lora::{StepLora, Target};
use crate::step_tables::{StepInput, StepLimits, StepTables};
use crate::tensor::CudaTensor;
use crate::weights::CudaLinear;
use rustc_hash::FxHashMap;
use std::ops::Range;
use weft_kernels::KvShape;
use weft_kernels::rope::RopeTable;

/// Room for penalties and biases before the sampler's lists move.
const LIST_WORDS: usize = 1 << 16;

/// What operations need to know once.
#[derive(Clone, Debug)]
pub struct StepOpsConfig {
    /// Of activations.
    pub half: HalfType,
    /// Of the KV cache.
    pub kv_type: KvType,
    /// What one token needs in the cache.
    pub kv_shape: KvShape,
    /// Values of the residual stream.
    pub hidden_size: usize,
    /// Tokens from here on are virtual: adapters give their embeddings, or keys and values.
    pub vocab_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Of the rotary embedding, one for each pair.
    pub frequencies: Vec<f32>,
    /// The widest input of a linear.
    pub max_inputs: usize,
    /// Positions of the rotary embedding.
    pub max_model_len: usize,
    /// The largest rank of an adapter.
    pub max_rank: usize,
    /// The largest step.
    pub limits: StepLimits,
}

/// One linear of [`StepOps::project`].
#[derive(Debug)]
pub struct LinearCall<'a> {
    /// `[N, K]`
    pub weight: &'a CudaLinear,
    /// `[N]`
    pub bias: Option<&'a Buffer<f32>>,
    /// Add to `out`, which is f32.
    pub accumulate: bool,
    /// Which update of an adapter applies.
    pub site: u32,
    /// `[T, N]`
    pub out: &'a mut CudaTensor,
}

/// How queries look at keys.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCall {
    /// Which.
    pub layer: usize,
    /// Of scores.
    pub scale: f32,
    /// A row sees so many last positions.
    pub window: Option<usize>,
}

/// What becomes of launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// They run.
    #[default]
    Eager,
    /// They are recorded as the graph of these steps.
    Recording(StepKind),
    /// They were recorded.
    Replaying(Graph),
}

/// Steps that one graph serves: rows with padding, ranks up to a power of two, sites with gains, shifts or
/// bottlenecks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StepKind {
    num_rows: usize,
    max_rank: usize,
    parts: usize,
}

/// See the module.
#[derive(Debug)]
pub struct StepOps {
    gpu: Gpu,
    arena: CudaArena,
    config: StepOpsConfig,
    tables: StepTables,
    lora: StepLora,
    /// `[positions, rotary_dim / 2]` of (cos, sin)
    rotations: Buffer<f32>,
    attention_scratch: Buffer<f32>,
    /// Made for the first draw.
    sampling: Option<SamplingBuffers>,
    mode: Mode,
    /// `None`: seen once, not yet recorded.
    graphs: FxHashMap<StepKind, Option<Graph>>,
}

impl StepOps {
    /// Memory for the largest step.
    ///
    /// # Errors
    /// When there is not as much.
    pub fn new(gpu: &Gpu, arena: CudaArena, config: &StepOpsConfig) -> Result<Self, DriverError> {
        let limits = config.limits;
        let rotations = RopeTable::new(&config.frequencies, config.max_model_len, 1.0);
        let rotations: Vec<f32> =
            rotations.rotations().iter().flat_map(|&(cos, sin)| [cos, sin]).collect();
        let mut ops = Self {
            gpu: gpu.clone(),
            arena,
            config: config.clone(),
            tables: StepTables::new(gpu, limits)?,
            lora: StepLora::new(gpu, config)?,
            rotations: gpu.upload(&rotations)?,
            attention_scratch: gpu.alloc(0)?,
            sampling: None,
            mode: Mode::Eager,
            graphs: FxHashMap::default(),
        };
        let heads = QueryHeads { num_heads: config.num_heads, scale: 1.0, window: None };
        let kv = ops.paged_kv(0);
        let max_seqs = limits.max_seqs.next_multiple_of(32);
        let scratch = (1..=max_seqs).map(|num_seqs| {
            let num_splits = decode_splits(gpu, &kv, &heads, num_seqs);
            decode_scratch_len([num_seqs, num_splits], config.num_heads, config.kv_shape.head_dim)
        });
        ops.attention_scratch = gpu.alloc(scratch.max().unwrap_or(0))?;
        Ok(ops)
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The memory pool.
    #[must_use]
    pub fn arena(&self) -> &CudaArena {
        &self.arena
    }

    /// Of the model.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.config.kv_shape.num_layers
    }

    /// What one token needs in the cache.
    #[must_use]
    pub fn kv_shape(&self) -> KvShape {
        self.config.kv_shape
    }

    /// Whether this step is one of those that graphs run.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.mode != Mode::Eager
    }

    /// Brings a step's tables to the device. `segments` are runs of rows with one adapter.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn begin<'a>(
        &mut self,
        input: &StepInput<'_>,
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
    ) -> Result<(), DriverError> {
        self.mode = Mode::Eager;
        self.lora.plan(input.tokens, segments);
        let num_rows = input.tokens.len();
        let padded = padded_rows(num_rows);
        let limits = self.config.limits;
        let fits = padded <= limits.max_rows.min(limits.max_logit_rows);
        let can_record = input.is_decode() && !self.lora.has_tables() && fits;
        let Some(parts) = can_record.then(|| self.lora.parts_kind()).flatten() else {
            self.tables.fill(input, num_rows)?;
            return self.lora.upload(None);
        };
        let kind = StepKind { num_rows: padded, max_rank: self.lora.padded_rank(), parts };
        self.tables.fill(input, padded)?;
        self.lora.upload(Some(padded))?;
        match self.graphs.get(&kind) {
            // All kernels were loaded when it comes again.
            None => {
                self.graphs.insert(kind, None);
            }
            Some(None) => {
                self.gpu.driver().begin_recording()?;
                self.mode = Mode::Recording(kind);
            }
            Some(Some(graph)) => self.mode = Mode::Replaying(*graph),
        }
        Ok(())
    }

    /// Runs the step if it was recorded. After all operations, before results are read.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn finish(&mut self) -> Result<(), DriverError> {
        let graph = match std::mem::take(&mut self.mode) {
            Mode::Eager => return Ok(()),
            Mode::Recording(kind) => {
                let graph = self.gpu.driver().end_recording()?;
                self.graphs.insert(kind, Some(graph));
                graph
            }
            Mode::Replaying(graph) => graph,
        };
        // SAFETY: the launches were sound when they were recorded, and all memory that they name has
        // its place as long as this device.
        unsafe { self.gpu.driver().replay(graph) }
    }

    fn is_replaying(&self) -> bool {
        matches!(self.mode, Mode::Replaying(_))
    }

    /// `out[t,:] = table[tokens[t],:]` plus the adapters' embedding updates.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn embed(&mut self, table: &CudaLinear, out: &mut CudaTensor) -> Result<(), DriverError> {
        assert!(out.is_f32() && out.width() == table.num_inputs());
        let out_ptr = out.set_rows(self.tables.num_rows());
        if self.is_replaying() {
            return Ok(());
        }
        let tokens = self.tables.tokens();
        // SAFETY: `out` has these rows, the tables as many tokens.
        unsafe { embedding::embed(&self.gpu, table, (tokens, out_ptr), out.num_rows())? };
        self.lora.embed(&self.gpu, tokens, out)
    }

    /// RMSNorm of the residual stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn rms_norm(
        &mut self,
        x: &CudaTensor,
        weight: &Buffer<f32>,
        eps: f32,
        out: &mut CudaTensor,
    ) -> Result<(), DriverError> {
        assert!(x.is_f32() && !out.is_f32() && x.width() == out.width());
        assert_eq!(weight.len(), x.width());
        let operands = (x.ptr(), weight.ptr(), out.set_rows(x.num_rows()));
        if self.is_replaying() {
            return Ok(());
        }
        let shape = [x.num_rows(), x.width()];
        // SAFETY: the tensors have this shape.
        unsafe { norm::rms_norm(&self.gpu, self.config.half, operands, shape, eps) }
    }

    /// The same in place for each run of `weight.len()` values.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn head_norm(
        &mut self,
        x: &mut CudaTensor,
        weight: &Buffer<f32>,
        eps: f32,
    ) -> Result<(), DriverError> {
        let width = weight.len();
        assert!(!x.is_f32() && width > 0 && x.width().is_multiple_of(width));
        if self.is_replaying() {
            return Ok(());
        }
        let shape = [x.num_rows() * (x.width() / width), width];
        // SAFETY: the tensor has as many runs.
        unsafe { norm::head_norm(&self.gpu, self.config.half, (x.ptr(), weight.ptr()), shape, eps) }
    }

    /// Linears that share their input, at most three, with the adapters' updates. `segments` are runs
    /// of the rows of `x`.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn project<'a>(
        &mut self,
        x: &CudaTensor,
        segments: impl Iterator<Item = (Range<usize>, Option<&'a CudaAdapter>)>,
        calls: &mut [LinearCall<'_>],
    ) -> Result<(), DriverError> {
        let num_rows = x.num_rows();
        let mut linears = Vec::with_capacity(calls.len());
        let mut targets = Vec::with_capacity(calls.len());
        for call in calls.iter_mut() {
            let num_outputs = call.weight.num_outputs();
            assert!(!x.is_f32() && x.width() == call.weight.num_inputs());
            assert!(
                call.out.width() == num_outputs && call.bias.is_none_or(|b| b.len() == num_outputs)
            );
            let is_f32 = call.out.is_f32();
            let out = if call.accumulate {
                assert!(is_f32 && call.out.num_rows() == num_rows, "it adds to what is there");
                call.out.ptr()
            } else {
                call.out.set_rows(num_rows)
            };
            let output = match (is_f32, call.accumulate) {
                (true, true) => Output::AddF32(out),
                (true, false) => Output::F32(out),
                (false, _) => Output::Half(out),
            };
            let bias = call.bias.map_or(DevicePtr::NULL, Buffer::ptr);
            linears.push(Linear { weight: call.weight, bias, out: output });
            targets.push(Target {
                site: call.site,
                num_outputs,
                out,
                is_f32,
                is_accumulated: call.accumulate,
            });
        }
        if self.is_replaying() {
            return Ok(());
        }
        // SAFETY: the tensors have these shapes.
        unsafe { self.lora.project(&self.gpu, x, segments, &linears, &targets) }
    }

    /// Rotates q and k in place, then stores k and v, or those that adapters give for virtual tokens.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn rotate_and_store(
        &mut self,
        layer: usize,
        q: &mut CudaTensor,
        k: &mut CudaTensor,
        v: &CudaTensor,
    ) -> Result<(), DriverError> {
        let (shape, num_rows) = (self.config.kv_shape, self.tables.num_rows());
        assert!(layer < shape.num_layers);
        assert!([q.num_rows(), k.num_rows(), v.num_rows()] == [num_rows; 3]);
        assert_eq!(q.width(), self.config.num_heads * shape.head_dim);
        assert!([k.width(), v.width()] == [shape.num_kv_heads * shape.head_dim; 2]);
        if self.is_replaying() {
            return Ok(());
        }
        let operands = RopeStoreOperands {
            q: rows_of(q),
            k: rows_of(k),
            v: rows_of(v),
            rotations: self.rotations.ptr(),
            positions: self.tables.positions(),
            blocks: self.tables.slot_blocks(),
            offsets: self.tables.slot_offsets(),
        };
        let sizes = [num_rows, self.config.num_heads, 2 * self.config.frequencies.len()];
        let places = [operands.blocks, operands.offsets];
        let kv = self.paged_kv(layer);
        // SAFETY: the tensors have these shapes; the scheduler gives each row a place of its own.
        unsafe { rope_store(&self.gpu, self.config.half, &kv, &operands, sizes)? };
        self.lora.store_given(&self.gpu, &kv, places)
    }

    /// Attention over the cache, each row up to its own position.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn attention(
        &mut self,
        call: AttentionCall,
        q: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<(), DriverError> {
        assert!(q.width() == out.width() && q.num_rows() == self.tables.num_rows());
        out.set_rows(q.num_rows());
        if self.is_replaying() {
            return Ok(());
        }
        let (gpu, half, kv) = (&self.gpu, self.config.half, self.paged_kv(call.layer));
        let AttentionCall { scale, window, .. } = call;
        let heads = QueryHeads { num_heads: self.config.num_heads, scale, window };
        let (q, out) = (rows_of(q), rows_of(out));
        let block_tables = self.tables.block_tables();
        let num_decodes = self.tables.num_decodes();
        if num_decodes > 0 {
            let [rows, contexts, first_blocks] = self.tables.decodes();
            let scratch = self.attention_scratch.ptr();
            let operands =
                DecodeOperands { q, out, rows, contexts, first_blocks, block_tables, scratch };
            let num_splits = decode_splits(gpu, &kv, &heads, num_decodes);
            // SAFETY: the tensors have these shapes, and block tables reach as far as contexts.
            unsafe { decode(gpu, half, &kv, &heads, &operands, [num_decodes, num_splits])? };
        }
        let num_items = self.tables.num_prefills();
        if num_items > 0 {
            let items = self.tables.prefill_items();
            let operands = PrefillOperands { q, out, items, block_tables };
            // SAFETY: as above.
            unsafe { prefill(gpu, half, &kv, &heads, &operands, num_items)? };
        }
        Ok(())
    }

    /// `gate = silu(gate) * up`
    ///
    /// # Errors
    /// When the driver fails.
    pub fn gated_activation(
        &mut self,
        gate: &mut CudaTensor,
        up: &CudaTensor,
    ) -> Result<(), DriverError> {
        assert!(!gate.is_f32() && !up.is_f32());
        assert!(gate.width() == up.width() && gate.num_rows() == up.num_rows());
        if self.is_replaying() {
            return Ok(());
        }
        let num = gate.num_rows() * gate.width();
        // SAFETY: both have as many.
        unsafe { rows::silu_mul(&self.gpu, self.config.half, (gate.ptr(), up.ptr()), num) }
    }

    /// The rows of the residual stream whose logits are wanted.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn gather_logit_rows(
        &mut self,
        x: &CudaTensor,
        out: &mut CudaTensor,
    ) -> Result<(), DriverError> {
        assert!(x.is_f32() && out.is_f32() && x.width() == out.width());
        let num_rows = self.tables.num_logit_rows();
        let operands = (x.ptr(), self.tables.logit_rows(), out.set_rows(num_rows));
        if self.is_replaying() {
            return Ok(());
        }
        // SAFETY: rows are those of the step, which `x` has.
        unsafe { rows::gather(&self.gpu, operands, [num_rows, x.width()]) }
    }

    /// Draws a token for each row of the plan from the logits, which are scratch afterwards. Waits
    /// for all that was launched.
    ///
    /// # Errors
    /// When the driver fails, or what it did before.
    pub fn sample(
        &mut self,
        logits: &CudaTensor,
        plan: &SamplingPlan,
    ) -> Result<Vec<Drawn>, DriverError> {
        assert!(logits.is_f32() && plan.num_rows() <= logits.num_rows());
        let vocab = logits.width();
        let buffers = match &mut self.sampling {
            Some(buffers) => buffers,
            none => none.insert(SamplingBuffers::new(
                &self.gpu,
                self.config.limits.max_logit_rows,
                vocab,
                LIST_WORDS,
            )?),
        };
        buffers.upload(&self.gpu, plan)?;
        // SAFETY: the logits have these rows, and the plan was uploaded.
        unsafe { sample(&self.gpu, (logits.ptr(), vocab), plan.num_rows(), buffers)? };
        buffers.read(plan.num_rows())
    }

    /// An empty plan for [`Self::sample`].
    #[must_use]
    pub fn sampling_plan(&self, vocab: usize) -> SamplingPlan {
        SamplingPlan::new(self.config.limits.max_logit_rows, vocab)
    }

    fn paged_kv(&self, layer: usize) -> PagedKv {
        let KvShape { num_kv_heads, head_dim, .. } = self.config.kv_shape;
        PagedKv {
            arena: self.arena.ptr(),
            chunk_bytes: self.arena.chunk_bytes(),
            layer,
            num_kv_heads,
            head_dim,
            kv_type: self.config.kv_type,
        }
    }
}

fn rows_of(tensor: &CudaTensor) -> ActivationRows {
    assert!(!tensor.is_f32());
    ActivationRows { ptr: tensor.ptr(), stride: tensor.width() }
}

/// Few enough kinds of steps, and little enough padding.
fn padded_rows(num_rows: usize) -> usize {
    match num_rows {
        0..=8 => num_rows.next_power_of_two(),
        9..=64 => num_rows.next_multiple_of(8),
        _ => num_rows.next_multiple_of(32),
    }
}
