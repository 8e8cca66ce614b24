//! `bias="all"` and `"lora_only"`: biases of the base that were trained, and that the file holds as they
//! are now. What is served is the difference.

use super::{ModuleTensors, ModuleUpdate, base_weights, unreadable};
use crate::base_weights::ForBase;
use crate::error::Refusal;
use crate::modules::{BaseModule, Place};
use crate::tensor_names::Part;

/// Adds `trained - own` to the shift: whatever the method did with the own bias stays.
pub(super) fn add(
    update: &mut ModuleUpdate,
    module: &BaseModule,
    tensors: &mut ModuleTensors<'_>,
    base: ForBase<'_>,
) -> Result<(), Refusal> {
    let Place::Linear(site) = module.place else { return Ok(()) };
    let num_outputs = module.shape.num_outputs;
    let why = "the shape of this base demands";
    // Nothing is saved of a base without biases.
    let Some(trained) = tensors.take(&module.key, Part::Bias, &[num_outputs], why)? else {
        return Ok(());
    };
    let weights = base_weights(base, "trains biases of the base")?;
    let own = weights.bias(site).map_err(|cause| unreadable(&cause))?;
    let Some(own) = own else {
        return Err(Refusal::new(format!(
            "holds a trained bias for {}, where this base has none",
            module.key
        )));
    };
    let shift = update.shift.get_or_insert_with(|| vec![0.0; num_outputs]);
    let trained = crate::matrix::values(&trained);
    for ((shift, trained), own) in shift.iter_mut().zip(trained).zip(own) {
        *shift += trained - own;
    }
    Ok(())
}
