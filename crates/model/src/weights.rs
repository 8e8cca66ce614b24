//! The weights of a model in a device's layout.

/// All weights. `L` is the device's packed linear, `V` its vector.
#[derive(Debug)]
pub struct ModelWeights<L, V = Vec<f32>> {
    /// `[vocab, hidden]`
    pub embedding: L,
    /// In order.
    pub layers: Vec<LayerWeights<L, V>>,
    /// `[hidden]`
    pub final_norm: V,
    /// `[vocab, hidden]`; `None` if it is the embedding.
    pub lm_head: Option<L>,
}

/// One decoder layer. Biases are `[N]`, norms `[hidden]` (of heads: `[head_dim]`).
#[derive(Debug)]
#[expect(missing_docs, reason = "the names are the field's")]
pub struct LayerWeights<L, V = Vec<f32>> {
    pub attention_norm: V,
    pub q: LinearWeights<L, V>,
    pub k: LinearWeights<L, V>,
    pub v: LinearWeights<L, V>,
    pub q_norm: Option<V>,
    pub k_norm: Option<V>,
    pub o: LinearWeights<L, V>,
    pub mlp_norm: V,
    pub gate: LinearWeights<L, V>,
    pub up: LinearWeights<L, V>,
    pub down: LinearWeights<L, V>,
}

/// A linear: weight `[N, K]` and perhaps a bias `[N]`.
#[derive(Debug)]
pub struct LinearWeights<L, V = Vec<f32>> {
    /// W
    pub weight: L,
    /// b
    pub bias: Option<V>,
}

impl<L, V> ModelWeights<L, V> {
    /// The linears of layers, in order.
    pub(crate) fn layer_linears(&self) -> impl Iterator<Item = &L> {
        let layers = self.layers.iter().flat_map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
        });
        layers.map(|linear| &linear.weight)
    }

    /// Those, the embedding, and a head that is none.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &L> {
        self.layer_linears().chain([&self.embedding]).chain(&self.lm_head)
    }

    /// The same on another device.
    ///
    /// # Errors
    /// The first that a conversion gave.
    pub fn try_map<M, W, E>(
        &self,
        mut linear: impl FnMut(&L) -> Result<M, E>,
        mut vector: impl FnMut(&V) -> Result<W, E>,
    ) -> Result<ModelWeights<M, W>, E> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let mut with_bias = |from: &LinearWeights<L, V>| {
                let bias = from.bias.as_ref().map(&mut vector).transpose()?;
                Ok(LinearWeights { weight: linear(&from.weight)?, bias })
            };
            let (q, k, v) = (with_bias(&layer.q)?, with_bias(&layer.k)?, with_bias(&layer.v)?);
            let o = with_bias(&layer.o)?;
            let (gate, up) = (with_bias(&layer.gate)?, with_bias(&layer.up)?);
            let down = with_bias(&layer.down)?;
            let attention_norm = vector(&layer.attention_norm)?;
            let q_norm = layer.q_norm.as_ref().map(&mut vector).transpose()?;
            let k_norm = layer.k_norm.as_ref().map(&mut vector).transpose()?;
            let mlp_norm = vector(&layer.mlp_norm)?;
            layers.push(LayerWeights {
                attention_norm,
                q,
                k,
                v,
                q_norm,
                k_norm,
                o,
                mlp_norm,
                gate,
                up,
                down,
            });
        }
        Ok(ModelWeights {
            embedding: linear(&self.embedding)?,
            layers,
            final_norm: vector(&self.final_norm)?,
            lm_head: self.lm_head.as_ref().map(linear).transpose()?,
        })
    }
}
