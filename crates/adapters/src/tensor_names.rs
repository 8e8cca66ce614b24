//! The name of a tensor in a PEFT file → the module and which of its matrices it is. Releases differ
//! in the prefix and in whether the adapter's own name is part of it; anything else has no meaning
//! here and is refused by name.

use crate::error::Refusal;
use crate::quoted::Quoted;

/// What a tensor is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    /// `lora_A.weight`: `[rank, K]`
    A,
    /// `lora_B.weight`: `[N, rank]`
    B,
    /// `lora_embedding_A`: `[rank, vocab]`
    EmbeddingA,
    /// `lora_embedding_B`: `[hidden, rank]`
    EmbeddingB,
    /// `base_layer.weight`: the base's own weight, which PEFT saves beside an adapter of the
    /// embedding or the head. Training leaves it as it was.
    BaseCopy,
}

/// A name taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TensorName<'a> {
    /// As in `modules`, e.g. `model.layers.0.self_attn.q_proj`.
    pub(crate) module: &'a str,
    pub(crate) part: Part,
    /// The adapter's name in the file of a release that wrote it.
    pub(crate) adapter: Option<&'a str>,
}

/// Parts of names that belong to something known, with its sentence.
const KNOWN_STRANGERS: [(&str, &str); 9] = [
    (".lora_magnitude_vector", "DoRA is not supported"),
    (".modules_to_save.", "fully trained modules are not supported"),
    (".original_module.", "fully trained modules are not supported"),
    (".token_adapter.", "trained token embeddings are not supported"),
    (".trainable_tokens_", "trained token embeddings are not supported"),
    (".lora_E", "AdaLoRA is not supported"),
    (".ranknum", "AdaLoRA is not supported"),
    (".bias", "biases are not supported"),
    (".weight", "full weights are not supported, only low-rank updates"),
];

/// Takes a name apart.
pub(crate) fn tensor_name(name: &str) -> Result<TensorName<'_>, Refusal> {
    let short = name.strip_prefix("base_model.model.").unwrap_or(name);
    split(short).ok_or_else(|| {
        let why = KNOWN_STRANGERS.iter().find(|(part, _)| name.contains(part));
        let why = why.map_or("which no rule explains", |(_, why)| *why);
        let but = if why.starts_with("which") { "" } else { "but " };
        Refusal::new(format!("holds tensor {}, {but}{why}", Quoted(name)))
    })
}

fn split(name: &str) -> Option<TensorName<'_>> {
    if let Some(module) = name.strip_suffix(".base_layer.weight") {
        return Some(TensorName { module, part: Part::BaseCopy, adapter: None });
    }
    // `weight` closes the linears' names and not the embedding's, which are bare parameters.
    let (name, is_linear) = match name.strip_suffix(".weight") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let part_of = |word: &str| match (word, is_linear) {
        ("lora_A", true) => Some(Part::A),
        ("lora_B", true) => Some(Part::B),
        ("lora_embedding_A", false) => Some(Part::EmbeddingA),
        ("lora_embedding_B", false) => Some(Part::EmbeddingB),
        _ => None,
    };
    let (head, last) = name.rsplit_once('.')?;
    if let Some(part) = part_of(last) {
        return Some(TensorName { module: head, part, adapter: None });
    }
    let (module, word) = head.rsplit_once('.')?;
    let part = part_of(word)?;
    Some(TensorName { module, part, adapter: Some(last) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_matrix_is_understood() {
        let q = "model.layers.0.self_attn.q_proj";
        let cases = [
            (format!("base_model.model.{q}.lora_A.weight"), q, Part::A, None),
            (format!("{q}.lora_B.weight"), q, Part::B, None),
            (format!("base_model.model.{q}.lora_A.default.weight"), q, Part::A, Some("default")),
            ("base_model.model.lm_head.lora_B.x.weight".into(), "lm_head", Part::B, Some("x")),
            ("lm_head.base_layer.weight".into(), "lm_head", Part::BaseCopy, None),
            ("e.lora_embedding_A".into(), "e", Part::EmbeddingA, None),
            ("e.lora_embedding_B.default".into(), "e", Part::EmbeddingB, Some("default")),
        ];
        for (name, module, part, adapter) in cases {
            assert_eq!(tensor_name(&name), Ok(TensorName { module, part, adapter }), "{name}");
        }
    }

    #[test]
    fn strangers_are_refused_with_what_they_are() {
        let cases = [
            ("m.q_proj.lora_magnitude_vector.weight", "DoRA"),
            ("m.q_proj.lora_magnitude_vector", "DoRA"),
            ("m.q_proj.lora_B.bias", "bias"),
            ("m.score.modules_to_save.weight", "fully trained"),
            ("m.q_proj.lora_E", "AdaLoRA"),
            ("model.embed_tokens.weight", "full weights"),
            ("m.q_proj.lora_A", "no rule"),
            ("m.lora_embedding_A.weight", "full weights"),
            ("", "no rule"),
        ];
        for (name, words) in cases {
            let message = tensor_name(name).unwrap_err().to_string();
            assert!(message.contains(words), "{name}: {message}");
        }
    }
}
