//! The modules of the base that an adapter may touch, under the names that PEFT gives them.

use weft_types::{BaseModelSpec, LinearShape, Module, Site};

/// Where an adapter may apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Embedding,
    Linear(Site),
}

/// A module of the base.
#[derive(Clone, Debug)]
pub(crate) struct BaseModule {
    /// PEFT's key, e.g. `model.layers.0.self_attn.q_proj`: what patterns are matched with.
    pub(crate) key: String,
    pub(crate) place: Place,
    /// For the embedding: from the vocabulary to the hidden width.
    pub(crate) shape: LinearShape,
}

impl BaseModule {
    /// Of a layer, and not the head: what `all-linear` means.
    pub(crate) fn is_layer_linear(&self) -> bool {
        matches!(self.place, Place::Linear(Site::Layer { .. }))
    }
}

/// All of them: the layers' linears in the order of [`Site`], the head, the embedding.
pub(crate) fn base_modules(base: &BaseModelSpec) -> Vec<BaseModule> {
    let layers = (0..base.num_layers as u32)
        .flat_map(|layer| Module::ALL.map(|module| Site::Layer { layer, module }));
    let linears = layers.chain([Site::LmHead]).map(|site| BaseModule {
        key: site.hf_name(),
        place: Place::Linear(site),
        shape: base.site(site),
    });
    let embedding = BaseModule {
        key: "model.embed_tokens".to_owned(),
        place: Place::Embedding,
        shape: LinearShape { num_inputs: base.vocab_size, num_outputs: base.hidden_size },
    };
    linears.chain([embedding]).collect()
}
