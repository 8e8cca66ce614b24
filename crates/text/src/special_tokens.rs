//! The tokens that begin and end texts, by name and id.

use std::collections::BTreeMap;
use weft_types::TokenId;

/// What a model's files say of its special tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that begins a text.
    pub bos: Option<TokenId>,
    /// The tokens that end a text or a turn, the main one first.
    pub eos: Vec<TokenId>,
    /// Texts by the names that templates use: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
    pub texts: BTreeMap<String, String>,
}
