//! The few facts about a base model that crates without weights need.

use crate::adapter::{Module, Site};
use serde::{Deserialize, Serialize};

/// Input and output width of a linear: `y:[T,N] = x:[T,K] W^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinearShape {
    /// K
    pub num_inputs: usize,
    /// N
    pub num_outputs: usize,
}

/// Shapes and limits of a loaded base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseModelSpec {
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head; not always `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The longest context that the model was trained for.
    pub max_context: usize,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
}

impl BaseModelSpec {
    /// The shape of a decoder linear.
    #[must_use]
    pub fn linear(&self, module: Module) -> LinearShape {
        let (num_inputs, num_outputs) = match module {
            Module::Q => (self.hidden_size, self.num_heads * self.head_dim),
            Module::K | Module::V => (self.hidden_size, self.num_kv_heads * self.head_dim),
            Module::O => (self.num_heads * self.head_dim, self.hidden_size),
            Module::Gate | Module::Up => (self.hidden_size, self.intermediate_size),
            Module::Down => (self.intermediate_size, self.hidden_size),
        };
        LinearShape { num_inputs, num_outputs }
    }

    /// The shape of the linear at `site`.
    #[must_use]
    pub fn site(&self, site: Site) -> LinearShape {
        match site {
            Site::Layer { module, .. } => self.linear(module),
            Site::LmHead => {
                LinearShape { num_inputs: self.hidden_size, num_outputs: self.vocab_size }
            }
        }
    }
}
