//! LoRA (Hu 2021) and what is saved as LoRA: rsLoRA, LoRA+, converted PiSSA and its kin.
//! `y = W x + b + s (B (A x) + c)`; with DoRA the sum without b is scaled by row.

use super::{LowRank, Lowering, ModuleTensors, ModuleUpdate, check_rank, dora};
use crate::base_weights::ForBase;
use crate::error::Refusal;
use crate::matrix::{copied, transposed};
use crate::modules::{BaseModule, Place};
use crate::peft_config::{LoraConfig, Selection};
use crate::read::LoadLimits;
use crate::targets::{Target, targets};
use crate::tensor_names::Part;

pub(super) struct Lora<'a> {
    config: &'a LoraConfig,
    targets: Vec<Option<Target>>,
    base: ForBase<'a>,
}

impl<'a> Lora<'a> {
    pub(super) fn new(
        config: &'a LoraConfig,
        selection: &Selection,
        modules: &[BaseModule],
        limits: &LoadLimits,
        base: ForBase<'a>,
    ) -> Result<Self, Refusal> {
        let targets = targets(selection, &config.ranks, modules)?;
        let rank = targets.iter().flatten().map(|target| target.rank).max().unwrap_or(0);
        check_rank(rank, limits, "")?;
        Ok(Self { config, targets, base })
    }
}

impl Lowering for Lora<'_> {
    fn lower_module(
        &mut self,
        index: usize,
        module: &BaseModule,
        tensors: &mut ModuleTensors<'_>,
    ) -> Result<ModuleUpdate, Refusal> {
        let Some(Target { rank, scale, .. }) = self.targets[index] else {
            return Ok(ModuleUpdate::default());
        };
        let (shape, key) = (module.shape, &module.key);
        let why = format!("rank {rank} (r, rank_pattern) and the shape of this base demand");
        let mut update = ModuleUpdate { is_targeted: true, ..ModuleUpdate::default() };
        let (part_a, part_b) = match module.place {
            Place::Linear(_) => (Part::A, Part::B),
            Place::Embedding => (Part::EmbeddingA, Part::EmbeddingB),
        };
        let a = tensors.require(key, part_a, &[rank, shape.num_inputs], &why)?;
        let b = tensors.require(key, part_b, &[shape.num_outputs, rank], &why)?;
        let low_rank = match module.place {
            Place::Linear(_) => LowRank { scale, a: copied(&a), b: transposed(&b) },
            Place::Embedding => LowRank { scale, a: transposed(&a), b: transposed(&b) },
        };
        match module.place {
            Place::Linear(site) => {
                if self.config.lora_bias {
                    let mut bias = tensors.require_vector(key, Part::BBias, shape.num_outputs)?;
                    bias.iter_mut().for_each(|value| *value *= scale);
                    update.shift = Some(bias);
                }
                if self.config.use_dora {
                    let magnitude = take_magnitude(tensors, module)?;
                    dora::scale_rows(&mut update, &low_rank, magnitude, site, self.base)?;
                }
            }
            Place::Embedding if self.config.use_dora || self.config.lora_bias => {
                let what = if self.config.use_dora { "DoRA" } else { "lora_bias" };
                return Err(Refusal::new(format!(
                    "targets {key} with {what}, which is served on linears only; leave it out of \
                     target_modules or merge the adapter into the base"
                )));
            }
            Place::Embedding => {}
        }
        update.low_rank = Some(low_rank);
        Ok(update)
    }
}

/// `[N]`; some releases saved `[1, N]`.
fn take_magnitude(
    tensors: &mut ModuleTensors<'_>,
    module: &BaseModule,
) -> Result<Vec<f32>, Refusal> {
    tensors.require_vector(&module.key, Part::Magnitude, module.shape.num_outputs)
}
