//! Text to tokens and back. How a tokenizer is built from files is in `gguf_tokenizer` and
//! `hf_tokenizer`; what bytes a token stands for is in `token_bytes`.

use crate::error::TextError;
use crate::gguf_tokenizer;
use crate::hf_tokenizer;
use crate::special_tokens::SpecialTokens;
use crate::token_bytes::{Decoding, Leading, TokenBytes};
use std::path::Path;
use std::sync::Arc;
use weft_gguf::{GgufFile, Metadata};
use weft_types::TokenId;

/// A model's tokenizer. Cloning is cheap; clones share everything.
#[derive(Clone, Debug)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    bytes: TokenBytes,
    is_special: Vec<bool>,
    special: SpecialTokens,
}

impl Tokenizer {
    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// When a key is missing or wrong, or names a tokenizer that Weft does not know.
    pub fn from_gguf(file: &GgufFile) -> Result<Self, TextError> {
        Self::from_gguf_metadata(file.metadata())
    }

    /// As [`Tokenizer::from_gguf`], from the metadata alone.
    ///
    /// # Errors
    /// The same.
    pub fn from_gguf_metadata(metadata: &Metadata) -> Result<Self, TextError> {
        let (tokenizer, decoding, special) = gguf_tokenizer::build(metadata)?;
        Ok(Self::new(tokenizer, &decoding, special))
    }

    /// From tokenizer.json and the configuration files beside it.
    ///
    /// # Errors
    /// When a file is missing or wrong, or has rules that Weft does not know.
    pub fn from_hf_dir(dir: &Path) -> Result<Self, TextError> {
        let (tokenizer, decoding, special) = hf_tokenizer::load(dir)?;
        Ok(Self::new(tokenizer, &decoding, special))
    }

    fn new(tokenizer: tokenizers::Tokenizer, decoding: &Decoding, special: SpecialTokens) -> Self {
        let mut tokens = Vec::new();
        for (text, id) in tokenizer.get_vocab(true) {
            let index = id as usize;
            if tokens.len() <= index {
                tokens.resize(index + 1, None);
            }
            if let Some(place) = tokens.get_mut(index) {
                *place = Some(text);
            }
        }
        // Of two texts with one id, the added token's is the one that is written.
        let mut is_special = vec![false; tokens.len()];
        for (id, added) in tokenizer.get_added_tokens_decoder() {
            if let Some(place) = tokens.get_mut(id as usize) {
                *place = Some(added.content.clone());
            }
            if let Some(place) = is_special.get_mut(id as usize) {
                *place = added.special;
            }
        }
        let bytes = TokenBytes::new(&tokens, decoding);
        Self(Arc::new(Inner { tokenizer, bytes, is_special, special }))
    }

    /// The tokens of a text. Special tokens that are written out in it are recognised. With
    /// `add_special_tokens`, those that the model expects around a text are added.
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        let encoding = self.0.tokenizer.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| TextError::Encode { reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens. Bytes that are no UTF-8 become U+FFFD; unknown ids are nothing.
    #[must_use]
    pub fn decode(&self, tokens: &[TokenId], skip_special_tokens: bool) -> String {
        let (mut leading, mut bytes) = (self.leading(), Vec::new());
        for &token in tokens {
            if !(skip_special_tokens && self.is_special(token)) {
                leading.trim_into(self.raw_bytes(token), &mut bytes);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One more than the highest token id. The model's vocabulary may be padded beyond it.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.0.bytes.len()
    }

    /// The token that begins a text, if the model has one.
    #[must_use]
    pub fn bos_token_id(&self) -> Option<TokenId> {
        self.0.special.bos
    }

    /// The tokens that end a text or a turn, the main one first.
    #[must_use]
    pub fn eos_token_ids(&self) -> &[TokenId] {
        &self.0.special.eos
    }

    /// Names and ids of the special tokens.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.0.special
    }

    /// The bytes that a token stands for, which need not be UTF-8.
    #[must_use]
    pub fn token_bytes(&self, token: TokenId) -> Vec<u8> {
        self.raw_bytes(token).to_vec()
    }

    /// The text that a token stands for; U+FFFD where its bytes are no UTF-8.
    #[must_use]
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(self.raw_bytes(token)).into_owned()
    }

    /// Whether `skip_special_tokens` leaves the token out.
    #[must_use]
    pub fn is_special(&self, token: TokenId) -> bool {
        self.0.is_special.get(token as usize).copied().unwrap_or(false)
    }

    /// The id of a token by its exact text in the vocabulary, e.g. `<|im_end|>` or `Ġthe`.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<TokenId> {
        self.0.tokenizer.token_to_id(text)
    }

    pub(crate) fn raw_bytes(&self, token: TokenId) -> &[u8] {
        self.0.bytes.get(token as usize)
    }

    pub(crate) fn leading(&self) -> Leading {
        self.0.bytes.leading()
    }
}
