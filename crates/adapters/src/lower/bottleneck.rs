//! Bottleneck adapters of AdapterHub's library (Houlsby 2019, Pfeiffer 2020) → [`Bottleneck`]s after
//! attention and MLP:
//!
//! ```text
//! h = r + y + s ⊙ (U act(D x + c) + d)      x = y, or r + y
//! ```
//!
//! with r the residual stream before the block and y the block's output. s is folded into U and d.

use super::tensors::check_shape;
use super::{Each, Update, check_rank};
use crate::adapter_hub::{AdapterHubConfig, Scaling};
use crate::error::Refusal;
use crate::matrix::{check_finite, computed, copied, values};
use crate::polite::pause;
use crate::quoted::Quoted;
use crate::read::LoadLimits;
use crate::tensors::{FileTensor, read_tensors};
use std::collections::BTreeMap;
use weft_types::{BaseModelSpec, Bottleneck, Module, Site};

/// The blocks of a layer, in the order of sites.
const BLOCKS: [(&str, Module); 2] =
    [("attention_adapters", Module::O), ("output_adapters", Module::Down)];

pub(super) fn lower(
    config: &AdapterHubConfig,
    tensors: &[u8],
    base: &BaseModelSpec,
    limits: &LoadLimits,
    each: &mut Each<'_>,
) -> Result<(), Refusal> {
    let mut tensors = Tensors { by_name: read_tensors(tensors)? };
    let mut num_bottlenecks = 0;
    for layer in 0..base.num_layers {
        if config.leave_out.contains(&(layer as u64)) {
            continue;
        }
        for (block, module) in BLOCKS {
            pause();
            let is_there =
                if module == Module::O { config.has_attention } else { config.has_output };
            if !is_there {
                continue;
            }
            let Some(width) = config.width(layer, base.hidden_size) else {
                return Err(Refusal::new(format!(
                    "has no reduction_factor for layer {layer} in adapter_config.json, and no default"
                )));
            };
            check_rank(width, limits, " (hidden size / reduction_factor)")?;
            let prefix = format!("layers.{layer}.{block}.adapters.{}", config.name);
            let site = Site::Layer { layer: layer as u32, module };
            let part = bottleneck(config, site, &prefix, [width, base.hidden_size], &mut tensors)?;
            each(Update::Bottleneck(part))?;
            num_bottlenecks += 1;
        }
    }
    if let Some(name) = tensors.by_name.keys().next() {
        return Err(Refusal::new(format!(
            "holds tensor {}, which its adapter_config.json (mh_adapter, output_adapter, leave_out, \
             scaling, name) does not explain on this base of {} layers",
            Quoted(name),
            base.num_layers
        )));
    }
    match num_bottlenecks {
        0 => Err(Refusal::new(
            "touches no module of this base: mh_adapter, output_adapter and leave_out in \
             adapter_config.json leave none",
        )),
        _ => Ok(()),
    }
}

fn bottleneck(
    config: &AdapterHubConfig,
    site: Site,
    prefix: &str,
    [width, hidden]: [usize; 2],
    tensors: &mut Tensors<'_>,
) -> Result<Bottleneck, Refusal> {
    let mut take = |part: &str, shape: &[usize]| tensors.take(&format!("{prefix}.{part}"), shape);
    let down = take("adapter_down.0.weight", &[width, hidden])?;
    let a_bias = values(&take("adapter_down.0.bias", &[width])?);
    let up = values(&take("adapter_up.weight", &[hidden, width])?);
    let mut b_bias = values(&take("adapter_up.bias", &[hidden])?);
    let scaling = match config.scaling {
        Scaling::Given(scale) => vec![scale; hidden],
        Scaling::Learned => vec![values(&take("scaling", &[1])?)[0]; hidden],
        Scaling::Channel => values(&take("scaling", &[hidden])?),
    };
    let mut b = vec![0.0; width * hidden];
    for ((n, row), scale) in up.chunks_exact(width).enumerate().zip(&scaling) {
        for (j, value) in row.iter().enumerate() {
            b[j * hidden + n] = scale * value;
        }
    }
    b_bias.iter_mut().zip(&scaling).for_each(|(bias, scale)| *bias *= scale);
    Ok(Bottleneck {
        site,
        reads: config.reads,
        a: copied(&down),
        a_bias: a_bias.into(),
        activation: config.activation,
        b: computed(width, hidden, &b),
        b_bias: b_bias.into(),
    })
}

/// The tensors that are left.
struct Tensors<'a> {
    by_name: BTreeMap<String, FileTensor<'a>>,
}

impl<'a> Tensors<'a> {
    /// Takes a tensor by its name below the decoder, which files of whole models put into `model`.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<FileTensor<'a>, Refusal> {
        let full = format!("model.{name}");
        let found = self.by_name.remove(&full).or_else(|| self.by_name.remove(name));
        let Some(tensor) = found else {
            return Err(Refusal::new(format!(
                "is incomplete: its tensors' file has no {}, which adapter_config.json promises",
                Quoted(&full)
            )));
        };
        check_shape(&full, &tensor, shape, "reduction_factor and the shape of this base demand")?;
        check_finite(&full, &tensor)?;
        Ok(tensor)
    }
}
