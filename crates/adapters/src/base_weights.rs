//! What some methods must know of the base: DoRA the lengths of its rows, trained biases and heads what
//! they differ from. Given by whoever loaded the base; knows no formats.

use std::fmt::Debug;
use std::io;
use weft_types::{BaseModelSpec, Site};

/// The linears of the base as they are served. Called on loading threads, by several at once.
pub trait BaseWeights: Debug + Send + Sync {
    /// The weight at `site`. The head of a base with tied embeddings is its embedding.
    ///
    /// # Errors
    /// If it cannot be read again.
    fn linear(&self, site: Site) -> io::Result<Box<dyn BaseLinear + '_>>;

    /// The bias `[N]` at `site`, if the base has one there.
    ///
    /// # Errors
    /// If it cannot be read again.
    fn bias(&self, site: Site) -> io::Result<Option<Vec<f32>>>;
}

/// The weight `[N, K]` of a linear, dequantized row by row, in Hugging Face's order of rows.
pub trait BaseLinear {
    /// Row `row` to `out:[K]`.
    fn row_into(&self, row: usize, out: &mut [f32]);
}

/// The base that an adapter is read for.
#[derive(Clone, Copy, Debug)]
pub struct ForBase<'a> {
    /// Its shapes.
    pub spec: &'a BaseModelSpec,
    /// Its weights. Without them, adapters that need them are refused.
    pub weights: Option<&'a dyn BaseWeights>,
}

impl<'a> From<&'a BaseModelSpec> for ForBase<'a> {
    fn from(spec: &'a BaseModelSpec) -> Self {
        Self { spec, weights: None }
    }
}
