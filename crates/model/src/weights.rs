//! The weights of a model in a device's layout.

/// All weights. `L` is the device's packed linear.
#[derive(Debug)]
pub struct ModelWeights<L> {
    /// `[vocab, hidden]`
    pub embedding: L,
    /// In order.
    pub layers: Vec<LayerWeights<L>>,
    /// `[hidden]`
    pub final_norm: Vec<f32>,
    /// `[vocab, hidden]`; `None` if it is the embedding.
    pub lm_head: Option<L>,
}

/// One decoder layer. Biases are `[N]`, norms `[hidden]` (of heads: `[head_dim]`).
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are the field's")]
pub struct LayerWeights<L> {
    pub attention_norm: Vec<f32>,
    pub q: LinearWeights<L>,
    pub k: LinearWeights<L>,
    pub v: LinearWeights<L>,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub o: LinearWeights<L>,
    pub mlp_norm: Vec<f32>,
    pub gate: LinearWeights<L>,
    pub up: LinearWeights<L>,
    pub down: LinearWeights<L>,
}

/// A linear: weight `[N, K]` and perhaps a bias `[N]`.
#[derive(Debug)]
pub struct LinearWeights<L> {
    /// W
    pub weight: L,
    /// b
    pub bias: Option<Vec<f32>>,
}
