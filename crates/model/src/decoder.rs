//! The decoder: a Llama-shaped transformer with flags, written once for every device.
//!
//! ```text
//! h = embed(tokens)
//! for each layer:  h += O · attention(rope(Q·n), rope(K·n), V·n)    n = rms_norm(h)
//!                  h += Down · (silu(Gate·n) * Up·n)                n = rms_norm(h)
//! logits = head · rms_norm(h[rows])
//! ```
//! Every linear takes the batch's adapter segments along.

use crate::batch::{AdapterSegment, ForwardBatch};
use crate::config::ModelConfig;
use crate::device::{Device, Projection, TensorKind};
use crate::weights::{LayerWeights, LinearWeights, ModelWeights};
use std::ops::Range;
use std::sync::Arc;
use weft_kernels::attention::AttentionShape;
use weft_types::{Module, Site};

/// A model on a device, with the activations of one step.
#[derive(Debug)]
pub struct Decoder<D: Device> {
    config: ModelConfig,
    weights: Arc<ModelWeights<D::Linear, D::Vector>>,
    device: D,
    max_logit_rows: usize,
    buffers: Buffers<D::Tensor>,
    /// Memory for the segments of a [`Self::logits`] call; empty between calls.
    head_segments: Vec<AdapterSegment<D::Adapter>>,
}

#[derive(Debug)]
struct Buffers<T> {
    hidden: T,
    /// Rows of `hidden` whose logits are wanted.
    gathered: T,
    normed: T,
    q: T,
    k: T,
    v: T,
    attended: T,
    gate: T,
    up: T,
    /// Final hidden states of the rows whose logits are wanted.
    picked: T,
    /// Those of one [`Decoder::logits`] call.
    head_input: T,
    logits: T,
}

impl<D: Device> Decoder<D> {
    /// `max_rows` limits T of a batch, `max_logit_rows` the rows of one [`Self::logits`] call.
    pub fn new(
        config: ModelConfig,
        weights: Arc<ModelWeights<D::Linear, D::Vector>>,
        mut device: D,
        max_rows: usize,
        max_logit_rows: usize,
    ) -> Self {
        let spec = &config.spec;
        let q_width = spec.linear(Module::Q).num_outputs;
        let kv_width = spec.linear(Module::K).num_outputs;
        let hidden = device.tensor(TensorKind::Residual, max_rows, spec.hidden_size);
        let gathered = device.tensor(TensorKind::Residual, max_rows, spec.hidden_size);
        let head_input = device.tensor(TensorKind::Activation, max_logit_rows, spec.hidden_size);
        let logits = device.tensor(TensorKind::Logits, max_logit_rows, spec.vocab_size);
        let mut tensor = |width| device.tensor(TensorKind::Activation, max_rows, width);
        let buffers = Buffers {
            hidden,
            gathered,
            head_input,
            logits,
            normed: tensor(spec.hidden_size),
            q: tensor(q_width),
            k: tensor(kv_width),
            v: tensor(kv_width),
            attended: tensor(q_width),
            gate: tensor(spec.intermediate_size),
            up: tensor(spec.intermediate_size),
            picked: tensor(spec.hidden_size),
        };
        let head_segments = Vec::new();
        Self { config, weights, device, max_logit_rows, buffers, head_segments }
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, to change what it holds.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// How many rows one [`Self::logits`] call may have.
    pub fn max_logit_rows(&self) -> usize {
        self.max_logit_rows
    }

    /// How attention items are cut.
    pub fn attention_shape(&self, layer: usize) -> AttentionShape {
        let spec = &self.config.spec;
        AttentionShape {
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            scale: 1.0 / (spec.head_dim as f32).sqrt(),
            window: self.config.windows[layer],
        }
    }

    /// Runs the layers over the batch: fills the cache and keeps the rows for [`Self::logits`].
    pub fn forward(&mut self, batch: &ForwardBatch<D::Adapter>) {
        let weights = Arc::clone(&self.weights);
        self.device.begin(batch);
        self.device.embed(batch, &weights.embedding, &mut self.buffers.hidden);
        for (index, layer) in weights.layers.iter().enumerate() {
            self.attention_block(batch, index, layer);
            self.mlp_block(batch, index, layer);
        }
        // The norm works row by row, so only rows that are read need it.
        let Buffers { hidden, gathered, picked, .. } = &mut self.buffers;
        self.device.gather(batch, hidden, gathered);
        self.device.rms_norm(gathered, &weights.final_norm, self.config.rms_norm_eps, picked);
    }

    /// Logits `[range.len(), vocab]` of some of the batch's `logit_rows`, after [`Self::forward`],
    /// for the caller to scribble on; and the device, to work on them.
    pub fn logits(
        &mut self,
        batch: &ForwardBatch<D::Adapter>,
        range: Range<usize>,
    ) -> (&mut D::Tensor, &mut D) {
        assert!(range.len() <= self.max_logit_rows);
        let mut segments = std::mem::take(&mut self.head_segments);
        for AdapterSegment { rows, adapter } in &batch.logit_segments {
            let (start, end) = (rows.start.max(range.start), rows.end.min(range.end));
            if start < end {
                let rows = start - range.start..end - range.start;
                segments.push(AdapterSegment { rows, adapter: adapter.clone() });
            }
        }
        let Buffers { picked, head_input, logits, .. } = &mut self.buffers;
        self.device.slice(picked, range, head_input);
        let weight = self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding);
        let projection =
            Projection { weight, bias: None, site: Site::LmHead, accumulate: false, out: logits };
        self.device.project(head_input, &segments, &mut [projection]);
        segments.clear();
        self.head_segments = segments;
        (logits, &mut self.device)
    }

    /// What the last [`Self::logits`] call computed.
    pub fn last_logits(&mut self) -> (&mut D::Tensor, &mut D) {
        (&mut self.buffers.logits, &mut self.device)
    }

    fn attention_block(
        &mut self,
        batch: &ForwardBatch<D::Adapter>,
        index: usize,
        layer: &LayerWeights<D::Linear, D::Vector>,
    ) {
        let (eps, head_dim) = (self.config.rms_norm_eps, self.config.spec.head_dim);
        let shape = self.attention_shape(index);
        let (device, buffers) = (&mut self.device, &mut self.buffers);
        device.rms_norm(&buffers.hidden, &layer.attention_norm, eps, &mut buffers.normed);
        device.project(
            &buffers.normed,
            &batch.segments,
            &mut [
                projection(index, Module::Q, &layer.q, &mut buffers.q),
                projection(index, Module::K, &layer.k, &mut buffers.k),
                projection(index, Module::V, &layer.v, &mut buffers.v),
            ],
        );
        if let Some(norm) = &layer.q_norm {
            device.head_norm(&mut buffers.q, norm, eps);
        }
        if let Some(norm) = &layer.k_norm {
            device.head_norm(&mut buffers.k, norm, eps);
        }
        let Buffers { q, k, v, attended, hidden, .. } = buffers;
        device.rotate_and_store(batch, index, head_dim, q, k, v);
        device.attention(batch, index, &shape, q, attended);
        let out = Projection { accumulate: true, ..projection(index, Module::O, &layer.o, hidden) };
        device.project(attended, &batch.segments, &mut [out]);
    }

    fn mlp_block(
        &mut self,
        batch: &ForwardBatch<D::Adapter>,
        index: usize,
        layer: &LayerWeights<D::Linear, D::Vector>,
    ) {
        let eps = self.config.rms_norm_eps;
        let (device, buffers) = (&mut self.device, &mut self.buffers);
        device.rms_norm(&buffers.hidden, &layer.mlp_norm, eps, &mut buffers.normed);
        device.project(
            &buffers.normed,
            &batch.segments,
            &mut [
                projection(index, Module::Gate, &layer.gate, &mut buffers.gate),
                projection(index, Module::Up, &layer.up, &mut buffers.up),
            ],
        );
        let Buffers { gate, up, hidden, .. } = buffers;
        device.gated_activation(gate, up);
        let out =
            Projection { accumulate: true, ..projection(index, Module::Down, &layer.down, hidden) };
        device.project(gate, &batch.segments, &mut [out]);
    }
}

fn projection<'a, D: Device>(
    layer: usize,
    module: Module,
    linear: &'a LinearWeights<D::Linear, D::Vector>,
    out: &'a mut D::Tensor,
) -> Projection<'a, D> {
    let site = Site::Layer { layer: layer as u32, module };
    Projection { weight: &linear.weight, bias: linear.bias.as_ref(), site, accumulate: false, out }
}
