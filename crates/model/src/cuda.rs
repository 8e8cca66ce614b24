//! The CUDA device: the decoder's operations as launches. The residual stream is f32, activations are
//! 16 bits. A failure is kept and told at the end of the step: what follows it computes garbage that
//! nobody reads.

use crate::batch::{AdapterSegment, ForwardBatch};
use crate::config::ModelConfig;
use crate::cpu::kv_shape;
use crate::device::{Device, Projection, TensorKind};
use crate::load::LoadedModel;
use crate::weights::{LayerWeights, LinearWeights, ModelWeights};
use std::ops::Range;
use weft_cuda::adapter_table::site_index;
use weft_cuda::ops::kv_cache::KvType;
use weft_cuda::step_ops::{AttentionCall, LinearCall, StepOps, StepOpsConfig};
use weft_cuda::step_tables::{StepInput, StepLimits};
use weft_cuda::tensor::CudaTensor;
use weft_cuda::weights::WeightFormat;
use weft_cuda::{Buffer, CudaAdapter, CudaArena, CudaLinear, DriverError, Gpu, HalfType};
use weft_kernels::attention::AttentionShape;
use weft_types::{LinearShape, Module};

/// Steps on a GPU.
#[derive(Debug)]
pub struct CudaDevice {
    ops: StepOps,
    /// The first failure of the step.
    failure: Option<DriverError>,
}

impl CudaDevice {
    /// A device with its KV cache in `arena`, for sequences of at most `max_model_len`.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn new(
        gpu: &Gpu,
        config: &ModelConfig,
        (half, kv_type): (HalfType, KvType),
        arena: CudaArena,
        limits: StepLimits,
        [max_model_len, max_rank]: [usize; 2],
    ) -> Result<Self, DriverError> {
        let config = StepOpsConfig {
            half,
            kv_type,
            kv_shape: kv_shape(config),
            hidden_size: config.spec.hidden_size,
            vocab_size: config.spec.vocab_size,
            num_heads: config.spec.num_heads,
            frequencies: config.rope.frequencies(),
            max_inputs: config.spec.intermediate_size.max(config.spec.hidden_size),
            max_model_len,
            max_rank,
            limits,
        };
        let ops = StepOps::new(gpu, arena, &config)?;
        Ok(Self { ops, failure: None })
    }

    /// The launches behind the operations.
    #[must_use]
    pub fn ops(&mut self) -> &mut StepOps {
        &mut self.ops
    }

    /// The first failure since the last call.
    pub fn take_failure(&mut self) -> Option<DriverError> {
        self.failure.take()
    }

    fn note(&mut self, outcome: Result<(), DriverError>) {
        if let Err(error) = outcome {
            self.failure.get_or_insert(error);
        }
    }
}

impl Device for CudaDevice {
    type Tensor = CudaTensor;
    type Linear = CudaLinear;
    type Vector = Buffer<f32>;
    type Adapter = CudaAdapter;

    fn tensor(&mut self, kind: TensorKind, max_rows: usize, width: usize) -> CudaTensor {
        let bytes = if kind == TensorKind::Activation { 2 } else { 4 };
        CudaTensor::new(self.ops.gpu(), max_rows, width, bytes).unwrap_or_else(|error| {
            self.failure.get_or_insert(error);
            CudaTensor::without_memory(width, bytes)
        })
    }

    fn begin(&mut self, batch: &ForwardBatch<CudaAdapter>) {
        let input = StepInput {
            tokens: &batch.tokens,
            positions: &batch.positions,
            slots: &batch.slots,
            attention: &batch.attention,
            block_tables: &batch.block_tables,
            logit_rows: &batch.logit_rows,
        };
        let segments = batch.segments.iter();
        let segments = segments.map(|segment| (segment.rows.clone(), segment.adapter.as_deref()));
        let outcome = self.ops.begin(&input, segments);
        self.note(outcome);
    }

    fn embed(&mut self, _: &ForwardBatch<CudaAdapter>, table: &CudaLinear, out: &mut CudaTensor) {
        let outcome = self.ops.embed(table, out);
        self.note(outcome);
    }

    fn rms_norm(&mut self, x: &CudaTensor, weight: &Buffer<f32>, eps: f32, out: &mut CudaTensor) {
        let outcome = self.ops.rms_norm(x, weight, eps, out);
        self.note(outcome);
    }

    fn head_norm(&mut self, x: &mut CudaTensor, weight: &Buffer<f32>, eps: f32) {
        let outcome = self.ops.head_norm(x, weight, eps);
        self.note(outcome);
    }

    fn project(
        &mut self,
        x: &CudaTensor,
        segments: &[AdapterSegment<CudaAdapter>],
        projections: &mut [Projection<'_, Self>],
    ) {
        let num_layers = self.ops.num_layers();
        let mut calls = projections.iter_mut().map(|projection| LinearCall {
            weight: projection.weight,
            bias: projection.bias,
            accumulate: projection.accumulate,
            site: site_index(projection.site, num_layers),
            out: &mut *projection.out,
        });
        let segments = segments.iter();
        let segments = segments.map(|segment| (segment.rows.clone(), segment.adapter.as_deref()));
        let outcome = match (calls.next(), calls.next(), calls.next()) {
            (Some(a), Some(b), Some(c)) => self.ops.project(x, segments, &mut [a, b, c]),
            (Some(a), Some(b), None) => self.ops.project(x, segments, &mut [a, b]),
            (Some(a), ..) => self.ops.project(x, segments, &mut [a]),
            (None, ..) => Ok(()),
        };
        self.note(outcome);
    }

    fn rotate_and_store(
        &mut self,
        _: &ForwardBatch<CudaAdapter>,
        layer: usize,
        head_dim: usize,
        q: &mut CudaTensor,
        k: &mut CudaTensor,
        v: &CudaTensor,
    ) {
        debug_assert_eq!(head_dim, self.ops.kv_shape().head_dim);
        let outcome = self.ops.rotate_and_store(layer, q, k, v);
        self.note(outcome);
    }

    fn attention(
        &mut self,
        _: &ForwardBatch<CudaAdapter>,
        layer: usize,
        shape: &AttentionShape,
        q: &CudaTensor,
        out: &mut CudaTensor,
    ) {
        let call = AttentionCall { layer, scale: shape.scale, window: shape.window };
        let outcome = self.ops.attention(call, q, out);
        self.note(outcome);
    }

    fn gated_activation(&mut self, gate: &mut CudaTensor, up: &CudaTensor) {
        let outcome = self.ops.gated_activation(gate, up);
        self.note(outcome);
    }

    fn gather(&mut self, _: &ForwardBatch<CudaAdapter>, x: &CudaTensor, out: &mut CudaTensor) {
        let outcome = self.ops.gather_logit_rows(x, out);
        self.note(outcome);
    }

    fn slice(&mut self, x: &CudaTensor, range: Range<usize>, out: &mut CudaTensor) {
        // A recorded step computes the logits of padding, too.
        let num_rows = if self.ops.is_recorded() { x.num_rows() } else { range.len() };
        out.view(x, range.start, num_rows);
    }
}

/// A model in a GPU's memory.
#[derive(Debug)]
pub struct CudaModel {
    /// What it is.
    pub config: ModelConfig,
    /// For [`CudaDevice`].
    pub weights: ModelWeights<CudaLinear, Buffer<f32>>,
}

impl CudaModel {
    /// Copies a model to a device, in the device's layout.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn upload(gpu: &Gpu, half: HalfType, model: &LoadedModel) -> Result<Self, DriverError> {
        let weights = model.weights.try_map(
            |linear| CudaLinear::from_packed(gpu, half, linear),
            |vector| gpu.upload(vector),
        )?;
        Ok(Self { config: model.config.clone(), weights })
    }

    /// Random weights in four bits, made on the device: as fast as real ones.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn dummy(gpu: &Gpu, half: HalfType, config: ModelConfig) -> Result<Self, DriverError> {
        let spec = config.spec.clone();
        let mut seed = 0;
        let mut random = |format: WeightFormat, shape: LinearShape| {
            seed += 1;
            let shape = [shape.num_outputs, shape.num_inputs];
            CudaLinear::random(gpu, half, format, shape, seed)
        };
        let ones = |len: usize| gpu.upload(&vec![1.0f32; len]);
        let table = LinearShape { num_inputs: spec.hidden_size, num_outputs: spec.vocab_size };
        let has_bias = config.architecture == "qwen2";
        let mut layers = Vec::with_capacity(spec.num_layers);
        for _ in 0..spec.num_layers {
            let mut linear = |module: Module, has_bias: bool| {
                let shape = spec.linear(module);
                let bias = has_bias.then(|| gpu.upload(&vec![0.0f32; shape.num_outputs]));
                let weight = random(WeightFormat::W4, shape)?;
                Ok::<_, DriverError>(LinearWeights { weight, bias: bias.transpose()? })
            };
            let head_norm = || config.qk_norm.then(|| ones(spec.head_dim)).transpose();
            layers.push(LayerWeights {
                attention_norm: ones(spec.hidden_size)?,
                q: linear(Module::Q, has_bias)?,
                k: linear(Module::K, has_bias)?,
                v: linear(Module::V, has_bias)?,
                q_norm: head_norm()?,
                k_norm: head_norm()?,
                o: linear(Module::O, false)?,
                mlp_norm: ones(spec.hidden_size)?,
                gate: linear(Module::Gate, false)?,
                up: linear(Module::Up, false)?,
                down: linear(Module::Down, false)?,
            });
        }
        let weights = ModelWeights {
            embedding: random(WeightFormat::Dense, table)?,
            layers,
            final_norm: ones(spec.hidden_size)?,
            lm_head: (!spec.tied_embeddings)
                .then(|| random(WeightFormat::Dense, table))
                .transpose()?,
        };
        Ok(Self { config, weights })
    }

    /// Bytes of all linears.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        let weights = &self.weights;
        let layers = weights.layers.iter().flat_map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
        });
        let linears = layers.map(|linear| &linear.weight);
        let all = linears.chain([&weights.embedding]).chain(&weights.lm_head);
        all.map(CudaLinear::num_bytes).sum()
    }
}
