//! A tokenizer from GGUF metadata: vocabulary, merges or scores and token types in, a `tokenizers`
//! pipeline out, the same as the model's original tokenizer.json describes.

use crate::error::TextError;
use crate::pre_tokenizer::{pre_tokenization, supported_names};
use crate::special_tokens::SpecialTokens;
use crate::token_bytes::Decoding;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use tokenizers::models::bpe::BPE;
use tokenizers::{AddedToken, Tokenizer};
use weft_gguf::{GgufError, Metadata};
use weft_types::TokenId;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// Values of `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Control tokens that end a turn in the chat formats of common models. Files made by older
/// converters name only the token that ends a document, and a chat would never end.
const TURN_ENDS: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|eot|>"];

/// # Errors
/// When a key is missing or contradicts another, or names rules that are not known.
pub(crate) fn build(
    metadata: &Metadata,
) -> Result<(Tokenizer, Decoding, SpecialTokens), TextError> {
    let vocabulary = Vocabulary::read(metadata)?;
    let special = vocabulary.special_tokens(metadata)?;
    let (mut tokenizer, decoding, add_bos) = match metadata.require_str(MODEL)? {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => sentence_piece(metadata, &vocabulary)?,
        model => return Err(TextError::UnknownTokenizerModel { model: model.to_owned() }),
    };
    tokenizer
        .add_tokens(vocabulary.added_tokens(&special))
        .map_err(|error| TextError::Build { reason: error.to_string() })?;

    let add_bos = metadata.get_bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let add_eos = metadata.get_bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let named = |key: &str, id: Option<TokenId>| special.texts.get(key).cloned().zip(id);
    let bos = named("bos_token", special.bos).filter(|_| add_bos);
    let eos = named("eos_token", special.eos.first().copied()).filter(|_| add_eos);
    surround(&mut tokenizer, bos, eos)?;
    Ok((tokenizer, decoding, special))
}

/// Lets `encode` with special tokens add these before and after a text.
pub(crate) fn surround(
    tokenizer: &mut Tokenizer,
    bos: Option<(String, TokenId)>,
    eos: Option<(String, TokenId)>,
) -> Result<(), TextError> {
    let special = |token: &Option<(String, TokenId)>| {
        token.iter().map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": 0}})).collect()
    };
    let sequence = |id: &str| vec![json!({"Sequence": {"id": id, "type_id": 0}})];
    let (before, after): (Vec<Value>, Vec<Value>) = (special(&bos), special(&eos));
    let table: serde_json::Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(text, id)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let single = [before.as_slice(), &sequence("A"), &after].concat();
    let pair = [before.as_slice(), &sequence("A"), &sequence("B"), &after].concat();
    let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": table});
    tokenizer.with_post_processor(Some(part::<tokenizers::PostProcessorWrapper>(template)?));
    Ok(())
}

/// A part of the pipeline, written as tokenizer.json writes it.
fn part<T: for<'a> serde::Deserialize<'a>>(json: Value) -> Result<T, TextError> {
    serde_json::from_value(json).map_err(|error| TextError::Build { reason: error.to_string() })
}

struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, TextError> {
        let tokens = metadata.require_str_array(TOKENS)?;
        if tokens.is_empty() || u32::try_from(tokens.len()).is_err() {
            let reason = format!("has {} tokens", tokens.len());
            return Err(TextError::BadKey { key: TOKENS.to_owned(), reason });
        }
        let types = metadata.get_i64_array(TOKEN_TYPES)?;
        let types = types.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        check_len(TOKEN_TYPES, types.len(), tokens.len())?;
        Ok(Self { tokens, types })
    }

    /// Texts with ids and types. A cast cannot truncate: `read` checked the number of tokens.
    fn iter(&self) -> impl Iterator<Item = (&'a str, TokenId, i64)> {
        let types = self.types.iter();
        self.tokens
            .iter()
            .zip(types)
            .enumerate()
            .map(|(id, (text, kind))| (*text, id as u32, *kind))
    }

    fn ids(&self) -> HashMap<&'a str, TokenId> {
        self.iter().map(|(text, id, _)| (text, id)).collect()
    }

    fn special_tokens(&self, metadata: &Metadata) -> Result<SpecialTokens, TextError> {
        let mut special = SpecialTokens::default();
        let mut token = |name: &str| -> Result<Option<TokenId>, TextError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let Some(id) = metadata.get_u64(&key)? else { return Ok(None) };
            let text = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
            let Some(text) = text else {
                let reason = format!("is {id}, but there are {} tokens", self.tokens.len());
                return Err(TextError::BadKey { key, reason });
            };
            let variable = if name == "unknown" { "unk" } else { name };
            special.texts.insert(format!("{variable}_token"), (*text).to_owned());
            Ok(u32::try_from(id).ok())
        };
        let bos = token("bos")?;
        let mut eos: Vec<TokenId> = token("eos")?.into_iter().collect();
        let turn_ends = [token("eot")?, token("eom")?];
        for name in ["unknown", "padding", "separator"] {
            token(name)?;
        }
        if let Some(text) = special.texts.remove("padding_token") {
            special.texts.insert("pad_token".to_owned(), text);
        }
        if let Some(text) = special.texts.remove("separator_token") {
            special.texts.insert("sep_token".to_owned(), text);
        }
        eos.extend(turn_ends.into_iter().flatten());
        let is_turn_end = |text: &str, kind| kind == CONTROL && TURN_ENDS.contains(&text);
        eos.extend(self.iter().filter(|(text, _, kind)| is_turn_end(text, *kind)).map(|t| t.1));
        let mut seen = BTreeSet::new();
        eos.retain(|id| seen.insert(*id));
        (special.bos, special.eos) = (bos, eos);
        Ok(special)
    }

    /// Tokens that are recognised when they are written out in a text.
    fn added_tokens(&self, special: &SpecialTokens) -> Vec<AddedToken> {
        let ends: BTreeSet<TokenId> = special.bos.into_iter().chain(special.eos.clone()).collect();
        let added = |(text, id, kind): (&str, TokenId, i64)| {
            let is_special = kind == CONTROL || ends.contains(&id);
            (is_special || kind == USER_DEFINED)
                .then(|| AddedToken::from(text, is_special).normalized(false))
        };
        self.iter().filter(|(text, ..)| !text.is_empty()).filter_map(added).collect()
    }

    fn build_bpe(
        &self,
        merges: Vec<(String, String)>,
        options: impl FnOnce(tokenizers::models::bpe::BpeBuilder) -> tokenizers::models::bpe::BpeBuilder,
    ) -> Result<Tokenizer, TextError> {
        let vocabulary: tokenizers::models::bpe::Vocab =
            self.iter().map(|(text, id, _)| (text.to_owned(), id)).collect();
        let builder = options(BPE::builder().vocab_and_merges(vocabulary, merges));
        let bpe =
            builder.build().map_err(|error| TextError::Build { reason: error.to_string() })?;
        Ok(Tokenizer::new(bpe))
    }
}

fn check_len(key: &str, len: usize, num_tokens: usize) -> Result<(), TextError> {
    if len == num_tokens {
        return Ok(());
    }
    let reason = format!("has {len} elements, but there are {num_tokens} tokens");
    Err(TextError::BadKey { key: key.to_owned(), reason })
}

/// The pipeline, its decoding, and whether texts begin with bos unless the file says otherwise.
type Pipeline = (Tokenizer, Decoding, bool);

fn byte_level(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Pipeline, TextError> {
    let pre = metadata.get_str(PRE)?.unwrap_or_else(|| {
        tracing::warn!("{PRE} is missing: splitting text as GPT-2 does, which may be wrong");
        "default"
    });
    let rules = pre_tokenization(pre).ok_or_else(|| TextError::UnknownPreTokenizer {
        pre: pre.to_owned(),
        supported: supported_names(),
    })?;
    let merges = metadata.require_str_array(MERGES)?.into_iter().map(|merge| {
        // Never at the first character: a token may begin with a space.
        let at = merge.char_indices().skip(1).find(|(_, char)| *char == ' ');
        let parts = at.and_then(|(at, _)| Some((merge.get(..at)?, merge.get(at + 1..)?)));
        let (left, right) = parts.ok_or_else(|| TextError::BadKey {
            key: MERGES.to_owned(),
            reason: format!("has {merge:?}, which is not two tokens with a space between them"),
        })?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let merges = merges.collect::<Result<Vec<_>, TextError>>()?;
    let mut tokenizer =
        vocabulary.build_bpe(merges, |builder| builder.ignore_merges(rules.ignore_merges))?;
    tokenizer
        .with_pre_tokenizer(Some(part::<tokenizers::PreTokenizerWrapper>(rules.pre_tokenizer)?));
    if let Some(normalizer) = rules.normalizer {
        set_normalizer(&mut tokenizer, normalizer)?;
    }
    Ok((tokenizer, Decoding::ByteLevel, rules.add_bos))
}

fn sentence_piece(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Pipeline, TextError> {
    let scores = metadata.get_f64_array(SCORES)?;
    let scores = scores.ok_or_else(|| GgufError::MissingKey { key: SCORES.to_owned() })?;
    check_len(SCORES, scores.len(), vocabulary.tokens.len())?;
    let unknown = metadata.get_u64("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(usize::try_from(id).ok()?));
    let merges = merges_by_score(vocabulary, &scores);
    let mut tokenizer = vocabulary.build_bpe(merges, |builder| {
        let builder = builder.byte_fallback(true).fuse_unk(true);
        match unknown {
            Some(token) => builder.unk_token((*token).to_owned()),
            None => builder,
        }
    })?;
    let prefix = metadata.get_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": "\u{2581}"}));
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let steps: Vec<Value> = prepend.into_iter().chain([replace]).collect();
    set_normalizer(&mut tokenizer, json!({"type": "Sequence", "normalizers": steps}))?;
    Ok((tokenizer, Decoding::sentence_piece(prefix), true))
}

fn set_normalizer(tokenizer: &mut Tokenizer, normalizer: Value) -> Result<(), TextError> {
    let normalizer = part::<tokenizers::NormalizerWrapper>(normalizer)?;
    let set = tokenizer.with_normalizer(Some(normalizer));
    set.map(|_| ()).map_err(|error| TextError::Build { reason: error.to_string() })
}

/// SentencePiece merges the pair that makes the piece with the highest score. As a list: all ways
/// to make each piece of two pieces, by falling score, in the order in which transformers converts.
fn merges_by_score(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<(String, String)> {
    let ids = vocabulary.ids();
    let is_normal = |id: TokenId| vocabulary.types.get(id as usize) == Some(&NORMAL);
    let mut merges = Vec::new();
    for ((piece, id, _), score) in vocabulary.iter().zip(scores) {
        if !is_normal(id) {
            continue;
        }
        let num_chars = piece.chars().count();
        let splits = piece.char_indices().enumerate().skip(1);
        let mut of_piece: Vec<_> = splits
            .filter_map(|(num_left, (at, _))| {
                let (left, right) = piece.split_at(at);
                let by_id = (*ids.get(left)?, *ids.get(right)?);
                let reachable = is_normal(by_id.0) && is_normal(by_id.1);
                reachable.then_some((by_id, (*score, num_left, num_chars - num_left), left, right))
            })
            .collect();
        of_piece.sort_by_key(|(by_id, ..)| *by_id);
        merges.extend(of_piece);
    }
    merges.sort_by(|(_, a, ..), (_, b, ..)| {
        b.0.total_cmp(&a.0).then_with(|| (b.1, b.2).cmp(&(a.1, a.2)))
    });
    merges.into_iter().map(|(_, _, left, right)| (left.to_owned(), right.to_owned())).collect()
}
