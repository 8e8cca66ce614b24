//! The lowered form of an adapter: what `adapters` makes from files and `runner` multiplies.
//!
//! Methods (LoRA, rsLoRA, …) end at the loader. What is left is a list of low-rank updates, each
//! with its exact rank and its own scale. `y[t,:] += s * (x[t,:] A^T) B` with
//! `x:[T,K] A:[r,K] B:[r,N] y:[T,N]`, both matrices row-major.

use crate::id::ContentHash;

/// The element type of stored adapter weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Eight-bit integers, with a scale for each row.
    I8,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I8 => 1,
        }
    }
}

/// The seven linears of a decoder layer that an adapter may target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the field's")]
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    /// All seven, in the order of execution.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in Hugging Face checkpoints, e.g. `q_proj`.
    #[must_use]
    pub fn hf_name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The block that it belongs to there: `self_attn` or `mlp`.
    #[must_use]
    pub fn hf_block(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }
}

/// Where a low-rank update applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// A linear of a decoder layer.
    Layer {
        /// Index of the layer.
        layer: u32,
        /// Which linear.
        module: Module,
    },
    /// The output head: `x` is the final norm's output, `N` the vocabulary.
    LmHead,
}

impl Site {
    /// The name in Hugging Face checkpoints, e.g. `model.layers.0.self_attn.q_proj`.
    #[must_use]
    pub fn hf_name(self) -> String {
        match self {
            Self::Layer { layer, module } => {
                format!("model.layers.{layer}.{}.{}", module.hf_block(), module.hf_name())
            }
            Self::LmHead => "lm_head".to_owned(),
        }
    }
}

/// A row-major matrix in the dtype of the file, values little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns: the contiguous direction.
    pub cols: usize,
    /// `rows * cols * dtype.size()` bytes.
    pub data: Box<[u8]>,
    /// `[rows]`: what each row's integers are multiplied with. `None` but for [`Dtype::I8`].
    pub row_scales: Option<Box<[f32]>>,
}

/// `y[t,:] += scale * (x[t,:] A^T) B`, `A:[rank,K]`, `B:[rank,N]` (PEFT's `lora_B` transposed).
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankUpdate {
    /// Where it applies.
    pub site: Site,
    /// alpha / r, alpha / sqrt(r), … as the method defines it.
    pub scale: f32,
    /// `[rank, K]`
    pub a: AdapterTensor,
    /// `[rank, N]`
    pub b: AdapterTensor,
}

impl LowRankUpdate {
    /// The exact rank: never padded.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.a.rows
    }
}

/// `h[t,:] += scale * A[token[t],:] B`, `A:[vocab, rank]` (PEFT's `lora_embedding_A` transposed),
/// `B:[rank, hidden]` (`lora_embedding_B` transposed).
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingUpdate {
    /// As in [`LowRankUpdate`].
    pub scale: f32,
    /// `[vocab, rank]`
    pub a: AdapterTensor,
    /// `[rank, hidden]`
    pub b: AdapterTensor,
}

/// One adapter, validated against the base and ready to be multiplied.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredAdapter {
    /// Digest of the adapter's files: equal bytes, equal hash. Keys caches.
    pub content_hash: ContentHash,
    /// At most one per site, sorted by site.
    pub low_rank: Vec<LowRankUpdate>,
    /// The update of the token embedding, if any.
    pub embedding: Option<EmbeddingUpdate>,
}

impl LoweredAdapter {
    /// The largest rank of any update.
    #[must_use]
    pub fn max_rank(&self) -> usize {
        let embedding = self.embedding.iter().map(|update| update.b.rows);
        self.low_rank.iter().map(LowRankUpdate::rank).chain(embedding).max().unwrap_or(0)
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let embedding = self.embedding.iter().flat_map(|update| [&update.a, &update.b]);
        let low_rank = self.low_rank.iter().flat_map(|update| [&update.a, &update.b]);
        low_rank.chain(embedding).map(|tensor| tensor.data.len()).sum()
    }

    /// The update at `site`, if the adapter has one.
    #[must_use]
    pub fn at(&self, site: Site) -> Option<&LowRankUpdate> {
        let index = self.low_rank.binary_search_by_key(&site, |update| update.site).ok()?;
        self.low_rank.get(index)
    }
}
