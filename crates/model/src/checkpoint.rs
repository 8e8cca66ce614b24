//! A checkpoint that stays open: single linears, packed as [`crate::LoadedModel`] has them, for whoever needs one
//! after the weights have gone to a device. Pages of its files are the system's to keep or drop.

use crate::error::ModelError;
use crate::load::{Quantize, Source, open};
use crate::weights::{LinearWeights, ModelWeights};
use std::fmt;
use std::path::Path;
use weft_kernels::PackedLinear;
use weft_types::{Module, Site};

/// A GGUF file or a Hugging Face directory.
pub struct Checkpoint {
    source: Box<Source>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checkpoint").field(&self.source.describe()).finish()
    }
}

impl Checkpoint {
    /// Opens what [`crate::LoadedModel::load`] loads.
    ///
    /// # Errors
    /// Those of [`crate::LoadedModel::load`], as far as opening finds them.
    pub fn open(path: &Path, quantize: Quantize) -> Result<Self, ModelError> {
        Ok(Self { source: open(path, quantize)? })
    }

    /// The weight at `site`, packed anew. The head of tied embeddings is the embedding.
    ///
    /// # Errors
    /// If the checkpoint has no such tensor.
    pub fn linear(&self, site: Site) -> Result<PackedLinear, ModelError> {
        let spec = &self.source.config().spec;
        let is_tied = || spec.tied_embeddings || !self.source.has("lm_head.weight");
        let name = match site {
            Site::LmHead if is_tied() => "model.embed_tokens".to_owned(),
            _ => site.hf_name(),
        };
        self.source.linear(&name, spec.site(site))
    }

    /// The bias at `site`, if there is one.
    ///
    /// # Errors
    /// If it is of another shape than the configuration says.
    pub fn bias(&self, site: Site) -> Result<Option<Vec<f32>>, ModelError> {
        // The decoder adds none to the head.
        if site == Site::LmHead {
            return Ok(None);
        }
        let len = self.source.config().spec.site(site).num_outputs;
        self.source.vector(&format!("{}.bias", site.hf_name()), len)
    }
}

impl<L, V> ModelWeights<L, V> {
    /// The weight at `site`; the head of tied embeddings is the embedding.
    #[must_use]
    pub fn linear(&self, site: Site) -> Option<&L> {
        match site {
            Site::LmHead => Some(self.lm_head.as_ref().unwrap_or(&self.embedding)),
            _ => self.layer_linear(site).map(|linear| &linear.weight),
        }
    }

    /// The bias at `site`, if there is one.
    #[must_use]
    pub fn bias(&self, site: Site) -> Option<&V> {
        self.layer_linear(site)?.bias.as_ref()
    }

    fn layer_linear(&self, site: Site) -> Option<&LinearWeights<L, V>> {
        let Site::Layer { layer, module } = site else { return None };
        let layer = self.layers.get(layer as usize)?;
        Some(match module {
            Module::Q => &layer.q,
            Module::K => &layer.k,
            Module::V => &layer.v,
            Module::O => &layer.o,
            Module::Gate => &layer.gate,
            Module::Up => &layer.up,
            Module::Down => &layer.down,
        })
    }
}
