//! The operations that a decoder needs of a device. Activations stay on the device between them.

use crate::batch::{AdapterSegment, ForwardBatch};
use std::ops::Range;
use weft_kernels::attention::AttentionShape;
use weft_types::Site;

/// One linear of a [`Device::project`] call: `out (+)= x W^T + b + the adapters' updates`.
#[derive(Debug)]
pub struct Projection<'a, D: Device + ?Sized> {
    /// `[N, K]`
    pub weight: &'a D::Linear,
    /// `[N]`
    pub bias: Option<&'a D::Vector>,
    /// Which update of an adapter applies.
    pub site: Site,
    /// Add to `out`: the residual stream.
    pub accumulate: bool,
    /// `[T, N]`
    pub out: &'a mut D::Tensor,
}

/// What a tensor is for, and so how precise its numbers must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// The residual stream: sums of many layers.
    Residual,
    /// What linears and attention read.
    Activation,
    /// Scores of the vocabulary.
    Logits,
}

/// A CPU or a GPU. T is the number of rows of the call's input.
pub trait Device {
    /// Activations: `[T, width]` in the device's memory.
    type Tensor: std::fmt::Debug;
    /// A packed weight matrix.
    type Linear: std::fmt::Debug;

    /// Norm weights, biases: f32.
    type Vector: std::fmt::Debug;

    /// An adapter in the device's memory.
    type Adapter: std::fmt::Debug;

    /// An empty tensor of rows of `width`, with room for `max_rows`.
    fn tensor(&mut self, kind: TensorKind, max_rows: usize, width: usize) -> Self::Tensor;

    /// The calls up to the next one are about this batch.
    fn begin(&mut self, batch: &ForwardBatch<Self::Adapter>) {
        let _ = batch;
    }

    /// `out[t,:] = table[tokens[t],:]` plus the adapters' embedding updates.
    fn embed(
        &mut self,
        batch: &ForwardBatch<Self::Adapter>,
        table: &Self::Linear,
        out: &mut Self::Tensor,
    );

    /// `out[t,:] = x[t,:] / sqrt(mean(x[t,:]²) + eps) * weight`
    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
    );

    /// The same in place for each run of `weight.len()` values: norms of heads.
    fn head_norm(&mut self, x: &mut Self::Tensor, weight: &Self::Vector, eps: f32);

    /// Linears that share their input, at most three. `segments` are runs of the rows of `x`.
    fn project(
        &mut self,
        x: &Self::Tensor,
        segments: &[AdapterSegment<Self::Adapter>],
        projections: &mut [Projection<'_, Self>],
    );

    /// Rotates the heads of q and k by their rows' positions, then stores k and v in the cache.
    fn rotate_and_store(
        &mut self,
        batch: &ForwardBatch<Self::Adapter>,
        layer: usize,
        head_dim: usize,
        q: &mut Self::Tensor,
        k: &mut Self::Tensor,
        v: &Self::Tensor,
    );

    /// Attention of q over the cache, each row up to its own position.
    fn attention(
        &mut self,
        batch: &ForwardBatch<Self::Adapter>,
        layer: usize,
        shape: &AttentionShape,
        q: &Self::Tensor,
        out: &mut Self::Tensor,
    );

    /// `gate = silu(gate) * up`
    fn gated_activation(&mut self, gate: &mut Self::Tensor, up: &Self::Tensor);

    /// `out[i,:] = x[batch.logit_rows[i],:]`
    fn gather(
        &mut self,
        batch: &ForwardBatch<Self::Adapter>,
        x: &Self::Tensor,
        out: &mut Self::Tensor,
    );

    /// `out = x[range,:]`
    fn slice(&mut self, x: &Self::Tensor, range: Range<usize>, out: &mut Self::Tensor);
}
