//! The lowered form of an adapter: what `adapters` makes from files and devices compute.
//!
//! Methods (LoRA, DoRA, IA3, prompt tuning, …) end at the loader. What is left are a few primitives, all
//! of which one adapter may have at once. A linear of the base with all of them is
//!
//! ```text
//! y = g_out ⊙ (W (g_in ⊙ x) + b + Σ s · B^T (A x)) + shift       low-rank update, gains
//! h = h + y + B₂^T act(A₂ x + c) + d                               bottleneck, at O and Down: x = y, or h + y
//! ```
//!
//! with `x:[K] A:[r,K] B:[r,N] y:[N] g_in:[K] g_out,shift:[N]`, matrices row-major. The low-rank update
//! reads x as it is. Tokens may have embeddings of their own, and keys and values that are given.

use crate::id::{ContentHash, TokenId};

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
    /// `[rows]`: what each row is multiplied with; [`Dtype::I8`] always has it, tables of tokens never.
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

/// `y = output ⊙ (W (input ⊙ x) + b + low-rank) + shift`: what is not there is 1, or 0.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteVectors {
    /// Where it applies.
    pub site: Site,
    /// `[K]`
    pub input: Option<Box<[f32]>>,
    /// `[N]`
    pub output: Option<Box<[f32]>>,
    /// `[N]`
    pub shift: Option<Box<[f32]>>,
}

/// The nonlinearity of a [`Bottleneck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// The same, with tanh.
    GeluTanh,
    /// `x · sigmoid(x)`
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// None.
    Identity,
}

/// What a [`Bottleneck`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BottleneckInput {
    /// The output of its linear (Houlsby 2019).
    Output,
    /// The residual stream with that output added (Pfeiffer 2020).
    Residual,
}

/// `h[t,:] += (act(x[t,:] A^T + c) B) + d`, `A:[rank,N] c:[rank] B:[rank,N] d:[N]`: h is the residual stream
/// after the output of a linear was added to it, x is that output or h. Scales are folded into B and d.
#[derive(Clone, Debug, PartialEq)]
pub struct Bottleneck {
    /// [`Module::O`] or [`Module::Down`] of a layer.
    pub site: Site,
    /// x
    pub reads: BottleneckInput,
    /// `[rank, N]`
    pub a: AdapterTensor,
    /// `[rank]`
    pub a_bias: Box<[f32]>,
    /// Between the two.
    pub activation: Activation,
    /// `[rank, N]`
    pub b: AdapterTensor,
    /// `[N]`
    pub b_bias: Box<[f32]>,
}

/// Tokens with embeddings of their own, instead of the base's: trained tokens, whole tables, and
/// virtual tokens, whose ids begin at the size of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRows {
    /// `[n]`, ascending.
    pub tokens: Box<[u32]>,
    /// `[n, hidden]`, never [`Dtype::I8`].
    pub rows: AdapterTensor,
}

/// Keys and values that are given and not computed (prefix tuning, Li 2021): those of the first virtual
/// tokens. Keys are as attention reads them, not to be rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct KvPrefix {
    /// Virtual tokens.
    pub num_tokens: usize,
    /// `[layers * 2 * num_tokens, kv heads * head dim]`: for each layer all keys, then all values.
    pub rows: AdapterTensor,
}

/// One adapter, validated against the base and ready to be multiplied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoweredAdapter {
    /// Digest of the adapter's files: equal bytes, equal hash. Keys caches.
    pub content_hash: ContentHash,
    /// At most one per site, sorted by site.
    pub low_rank: Vec<LowRankUpdate>,
    /// The update of the token embedding, if any.
    pub embedding: Option<EmbeddingUpdate>,
    /// At most one per site, sorted by site.
    pub vectors: Vec<SiteVectors>,
    /// At most one per site, sorted by site.
    pub bottlenecks: Vec<Bottleneck>,
    /// Tokens with embeddings of their own.
    pub token_rows: Option<TokenRows>,
    /// Keys and values of virtual tokens.
    pub kv_prefix: Option<KvPrefix>,
    /// Tokens with ids from the size of the vocabulary on that every prompt of this adapter begins with.
    pub num_virtual_tokens: usize,
    /// Active only from the begin of the last occurrence of these tokens in the prompt on, and not at
    /// all without one (activated LoRA, Greenewald 2025). At least one; `None` is active everywhere.
    pub invocation_tokens: Option<Box<[TokenId]>>,
}

impl LoweredAdapter {
    /// The largest rank of any update.
    #[must_use]
    pub fn max_rank(&self) -> usize {
        let embedding = self.embedding.iter().map(|update| update.b.rows);
        let bottlenecks = self.bottlenecks.iter().map(|bottleneck| bottleneck.a.rows);
        let low_rank = self.low_rank.iter().map(LowRankUpdate::rank);
        low_rank.chain(embedding).chain(bottlenecks).max().unwrap_or(0)
    }

    /// Bytes of all weights.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let embedding = self.embedding.iter().flat_map(|update| [&update.a, &update.b]);
        let low_rank = self.low_rank.iter().flat_map(|update| [&update.a, &update.b]);
        let bottlenecks = self.bottlenecks.iter().flat_map(|b| [&b.a, &b.b]);
        let rows = self.token_rows.iter().map(|rows| &rows.rows);
        let prefix = self.kv_prefix.iter().map(|prefix| &prefix.rows);
        let tensors = low_rank.chain(embedding).chain(bottlenecks).chain(rows).chain(prefix);
        let vectors = self.vectors.iter().flat_map(|v| [&v.input, &v.output, &v.shift]).flatten();
        let biases = self.bottlenecks.iter().flat_map(|b| [&b.a_bias, &b.b_bias]);
        tensors.map(|tensor| tensor.data.len()).sum::<usize>()
            + vectors.chain(biases).map(|vector| vector.len() * size_of::<f32>()).sum::<usize>()
    }

    /// The update at `site`, if the adapter has one.
    #[must_use]
    pub fn at(&self, site: Site) -> Option<&LowRankUpdate> {
        let index = self.low_rank.binary_search_by_key(&site, |update| update.site).ok()?;
        self.low_rank.get(index)
    }
}
