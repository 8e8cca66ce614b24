//! DoRA (Liu 2024): the rows of `W + s B A` get lengths of their own, which are trained.
//!
//! ```text
//! y = g ⊙ (W x + s B (A x)) + b      g[n] = m[n] / ‖W[n,:] + s B[n,:] A‖
//!   = g ⊙ (W x + b + s B (A x)) + (1 - g) ⊙ b
//! ```
//!
//! W is the weight as served, which for a quantized base is not that of training: then rows have the
//! lengths that were trained all the same. The lengths cost `N K rank` multiplications at load.

use super::{LowRank, ModuleUpdate, base_weights, unreadable};
use crate::base_weights::{BaseLinear, ForBase};
use crate::error::Refusal;
use crate::matrix::tensor_values;
use crate::polite::pause;
use weft_types::{LinearShape, Site};

/// Elements of a row that are summed in a register before they go to the f64 sum.
const LANES: usize = 16;

/// Adds the gain `g` and, where the base has a bias, what takes the gain from it.
pub(super) fn scale_rows(
    update: &mut ModuleUpdate,
    low_rank: &LowRank,
    magnitude: Vec<f32>,
    site: Site,
    base: ForBase<'_>,
) -> Result<(), Refusal> {
    let weights = base_weights(base, "uses DoRA")?;
    let shape = base.spec.site(site);
    let linear = weights.linear(site).map_err(|cause| unreadable(&cause))?;
    let norms = row_norms(low_rank, shape, &*linear);
    let mut gain = magnitude;
    for (row, (gain, norm)) in gain.iter_mut().zip(norms).enumerate() {
        *gain /= norm;
        if !norm.is_finite() || !gain.is_finite() {
            return Err(Refusal::new(format!(
                "uses DoRA where row {row} of the updated weight has length {norm:e}, which cannot be \
                 scaled"
            )));
        }
    }
    if let Some(bias) = weights.bias(site).map_err(|cause| unreadable(&cause))? {
        let shift = bias.iter().zip(&gain).map(|(bias, gain)| bias - gain * bias);
        update.shift = Some(shift.collect());
    }
    update.output = Some(gain);
    Ok(())
}

/// `‖W[n,:] + s B[n,:] A‖` for all n.
fn row_norms(low_rank: &LowRank, shape: LinearShape, linear: &dyn BaseLinear) -> Vec<f32> {
    let (a, b) = (tensor_values(&low_rank.a), tensor_values(&low_rank.b));
    let mut values = vec![0.0; shape.num_inputs];
    let mut norms = Vec::with_capacity(shape.num_outputs);
    for row in 0..shape.num_outputs {
        pause();
        linear.row_into(row, &mut values);
        // B is stored [rank, N].
        for (a, b) in a.chunks_exact(shape.num_inputs).zip(b.chunks_exact(shape.num_outputs)) {
            let factor = low_rank.scale * b[row];
            values.iter_mut().zip(a).for_each(|(value, a)| *value += factor * a);
        }
        norms.push(norm(&values));
    }
    norms
}

fn norm(values: &[f32]) -> f32 {
    let squares = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>();
    let sum: f64 = values.chunks(LANES).map(|values| f64::from(squares(values))).sum();
    sum.sqrt() as f32
}
