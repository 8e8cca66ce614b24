//! A checkpoint that stays open: single linears, packed as [`crate::LoadedModel`] has them, for whoever needs one
//! after the weights have gone to a device. Pages of its files are the system's to keep or drop.

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::gguf_source::GgufSource;
use crate::hf_source::HfSource;
use crate::load::{Quantize, WeightSource};
use crate::weights::{LinearWeights, ModelWeights};
use std::path::Path;
use weft_kernels::PackedLinear;
use weft_types::{Module, Site};

/// A GGUF file or a Hugging Face directory.
#[derive(Debug)]
pub struct Checkpoint {
    source: Source,
}

enum Source {
    HuggingFace(HfSource),
    Gguf(GgufSource),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::HuggingFace(_) => "HuggingFace",
            Self::Gguf(_) => "Gguf",
        })
    }
}

impl Checkpoint {
    /// Opens what [`crate::LoadedModel::load`] loads.
    ///
    /// # Errors
    /// Those of [`crate::LoadedModel::load`], as far as opening finds them.
    pub fn open(path: &Path, quantize: Quantize) -> Result<Self, ModelError> {
        let source = if path.is_dir() {
            Source::HuggingFace(HfSource::open(path, quantize)?)
        } else {
            Source::Gguf(GgufSource::open(path)?)
        };
        Ok(Self { source })
    }

    /// The weight at `site`, packed anew. The head of tied embeddings is the embedding.
    ///
    /// # Errors
    /// If the checkpoint has no such tensor.
    pub fn linear(&self, site: Site) -> Result<PackedLinear, ModelError> {
        let shape = self.config().spec.site(site);
        let name = match site {
            Site::LmHead if self.has_no_head() => "model.embed_tokens".to_owned(),
            _ => hf_name(site),
        };
        match &self.source {
            Source::HuggingFace(source) => source.linear(&name, shape),
            Source::Gguf(source) => source.linear(&name, shape),
        }
    }

    /// The bias at `site`, if there is one.
    ///
    /// # Errors
    /// If it is of another shape than the configuration says.
    pub fn bias(&self, site: Site) -> Result<Option<Vec<f32>>, ModelError> {
        let (name, len) =
            (format!("{}.bias", hf_name(site)), self.config().spec.site(site).num_outputs);
        match (&self.source, site) {
            // The decoder adds none there.
            (_, Site::LmHead) => Ok(None),
            (Source::HuggingFace(source), _) => source.vector(&name, len),
            (Source::Gguf(source), _) => source.vector(&name, len),
        }
    }

    fn config(&self) -> &ModelConfig {
        match &self.source {
            Source::HuggingFace(source) => source.config(),
            Source::Gguf(source) => source.config(),
        }
    }

    fn has_no_head(&self) -> bool {
        let has = match &self.source {
            Source::HuggingFace(source) => source.has("lm_head.weight"),
            Source::Gguf(source) => source.has("lm_head.weight"),
        };
        self.config().spec.tied_embeddings || !has
    }
}

fn hf_name(site: Site) -> String {
    match site {
        Site::Layer { layer, module } => {
            let block = match module {
                Module::Q | Module::K | Module::V | Module::O => "self_attn",
                Module::Gate | Module::Up | Module::Down => "mlp",
            };
            format!("model.layers.{layer}.{block}.{}", module.hf_name())
        }
        Site::LmHead => "lm_head".to_owned(),
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
