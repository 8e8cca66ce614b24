//! Names and order of rows of weights in GGUF ↔ in Hugging Face checkpoints. Knows no file.

use crate::factors::Weight;
use weft_types::{Module, Site};

const MODULES: [(Module, &str); 7] = [
    (Module::Q, "attn_q"),
    (Module::K, "attn_k"),
    (Module::V, "attn_v"),
    (Module::O, "attn_output"),
    (Module::Gate, "ffn_gate"),
    (Module::Up, "ffn_up"),
    (Module::Down, "ffn_down"),
];

/// `blk.3.attn_q`
pub(super) fn gguf_stem(weight: Weight) -> String {
    match weight {
        Weight::Linear(Site::Layer { layer, module }) => {
            let name = MODULES.iter().find(|(known, _)| *known == module).map_or("", |(_, n)| n);
            format!("blk.{layer}.{name}")
        }
        Weight::Linear(Site::LmHead) => "output".to_owned(),
        Weight::Embedding => "token_embd".to_owned(),
    }
}

/// The other way; `None` for any other name.
pub(super) fn weight_of(stem: &str) -> Option<Weight> {
    match stem {
        "output" => return Some(Weight::Linear(Site::LmHead)),
        "token_embd" => return Some(Weight::Embedding),
        _ => {}
    }
    let (layer, name) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer = layer.parse().ok()?;
    let (module, _) = MODULES.iter().find(|(_, known)| *known == name)?;
    let weight = Weight::Linear(Site::Layer { layer, module: *module });
    // Not two spellings of one layer.
    (gguf_stem(weight) == stem).then_some(weight)
}

/// Whether the rows of this weight have another order in files of this architecture: llama.cpp rotates
/// neighbours where Hugging Face rotates halves.
pub(super) fn is_interleaved(weight: Weight, architecture: &str) -> bool {
    let is_rotated =
        matches!(weight, Weight::Linear(Site::Layer { module: Module::Q | Module::K, .. }));
    architecture == "llama" && is_rotated
}

/// Where row `row` of the Hugging Face order stands in the file.
pub(super) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (i % half) + i / half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_is_found_by_its_name_again() {
        let layers = MODULES.map(|(module, _)| Weight::Linear(Site::Layer { layer: 12, module }));
        for weight in layers.into_iter().chain([Weight::Linear(Site::LmHead), Weight::Embedding]) {
            assert_eq!(weight_of(&gguf_stem(weight)), Some(weight));
        }
        for stem in ["blk.1", "blk.x.attn_q", "blk.01.attn_q", "blk.1.attn_norm", "", "outputs"] {
            assert_eq!(weight_of(stem), None, "{stem}");
        }
    }

    #[test]
    fn rows_of_a_head_are_interleaved() {
        let order: Vec<usize> = (0..8).map(|row| interleaved_row(row, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
