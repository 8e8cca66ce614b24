//! VeRA (Kopiczko 2024): `y = W x + b + λ_b ⊙ (B (λ_d ⊙ (A x)))` with A and B shared by all modules,
//! random and not trained. A module reads as many columns of A and rows of B as it has inputs and
//! outputs. λ_d scales the ranks of A, which stays the same bytes for all modules of a width; λ_b is
//! folded into B.

use super::{
    LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, linear_site, torch_random,
};
use crate::error::Refusal;
use crate::matrix::{computed, values};
use crate::modules::BaseModule;
use crate::peft_config::{Selection, VeraConfig};
use crate::read::LoadLimits;
use crate::targets::selected;
use crate::tensor_names::{Part, SHARED};

/// The modules that are targeted, if the rank is accepted.
pub(super) fn targeted(
    config: &VeraConfig,
    selection: &Selection,
    modules: &[BaseModule],
    limits: &LoadLimits,
) -> Result<Vec<bool>, Refusal> {
    let targeted = selected(selection, modules)?;
    check_rank(config.rank, limits, "")?;
    for (module, _) in modules.iter().zip(&targeted).filter(|(_, targeted)| **targeted) {
        linear_site(module, "VeRA")?;
    }
    Ok(targeted)
}

pub(super) struct Vera {
    rank: usize,
    targeted: Vec<bool>,
    /// `[rank, num_inputs]`
    a: Vec<f32>,
    /// The largest K.
    num_inputs: usize,
    /// `[num_outputs, rank]`, with the largest N.
    b: Vec<f32>,
}

impl Vera {
    pub(super) fn new(
        config: &VeraConfig,
        targeted: Vec<bool>,
        modules: &[BaseModule],
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<Self, Refusal> {
        let shapes = modules.iter().zip(&targeted).filter(|(_, targeted)| **targeted);
        let shapes: Vec<_> = shapes.map(|(module, _)| module.shape).collect();
        let num_inputs = shapes.iter().map(|shape| shape.num_inputs).max().unwrap_or(0);
        let num_outputs = shapes.iter().map(|shape| shape.num_outputs).max().unwrap_or(0);
        let (rank, why) = (config.rank, "rank r and the largest targeted linear demand");
        let saved_a = tensors.take(SHARED, Part::SharedA, &[rank, num_inputs], why)?;
        let saved_b = tensors.take(SHARED, Part::SharedB, &[num_outputs, rank], why)?;
        let (a, b) = match (saved_a, saved_b, config.has_projection) {
            (Some(a), Some(b), true) => (values(&a), values(&b)),
            (None, None, false) => {
                let mut random = torch_random::Mt19937::new(config.seed);
                // In this order, one after the other.
                let a = torch_random::kaiming_uniform(&mut random, rank, num_inputs);
                (a, torch_random::kaiming_uniform(&mut random, num_outputs, rank))
            }
            (_, _, true) => {
                return Err(Refusal::new(
                    "sets save_projection in adapter_config.json, but adapter_model.safetensors \
                     lacks base_model.vera_A or base_model.vera_B",
                ));
            }
            (_, _, false) => {
                return Err(Refusal::new(
                    "holds base_model.vera_A or base_model.vera_B, but save_projection is false in \
                     adapter_config.json: peft draws them anew",
                ));
            }
        };
        Ok(Self { rank, targeted, a, num_inputs, b })
    }
}

impl Lowering for Vera {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        if !self.targeted[index] {
            return Ok(ModuleUpdate::default());
        }
        let (rank, shape) = (self.rank, module.shape);
        let lambda_d = tensors.require_vector(&module.key, Part::LambdaD, rank)?;
        let lambda_b = tensors.require_vector(&module.key, Part::LambdaB, shape.num_outputs)?;
        let rows = self.a.chunks_exact(self.num_inputs);
        let a: Vec<f32> = rows.flat_map(|row| &row[..shape.num_inputs]).copied().collect();
        let mut b = vec![0.0; rank * shape.num_outputs];
        for ((n, row), lambda) in self.b.chunks_exact(rank).enumerate().zip(lambda_b) {
            for (j, value) in row.iter().enumerate() {
                b[j * shape.num_outputs + n] = lambda * value;
            }
        }
        let mut a = computed(rank, shape.num_inputs, &a);
        a.row_scales = Some(lambda_d.into());
        let b = computed(rank, shape.num_outputs, &b);
        let low_rank = Some(LowRank { scale: 1.0, a, b });
        Ok(ModuleUpdate { is_targeted: true, low_rank, ..ModuleUpdate::default() })
    }
}
