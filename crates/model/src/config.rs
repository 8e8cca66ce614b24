//! A model as a description: shapes and flags. One decoder reads them; there is no second one.

use crate::rope::RopeConfig;
use weft_types::BaseModelSpec;

/// Everything the decoder must know besides the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, as the checkpoint spells it: `llama`, `mistral`, `qwen2`, `qwen3`.
    pub architecture: String,
    /// Shapes and limits.
    pub spec: BaseModelSpec,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Per layer: how many positions a row sees; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// Whether each head of q and k is normalised before the rotation (Qwen3).
    pub qk_norm: bool,
}

/// Families whose checkpoints differ from Llama by flags only.
pub(crate) const ARCHITECTURES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
