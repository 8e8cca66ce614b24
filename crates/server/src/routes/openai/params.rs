//! In: the fields that both completion routes share. Out: how to draw, when to stop, what to send.

use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::generation::{SequenceInput, TextOptions};
use crate::random::{derive_seed, random_u64};
use axum::http::{HeaderMap, header};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weft_types::{Queueing, SamplingParams, StopConditions, TokenId};

/// `n`
const MAX_CHOICES: u32 = 16;
const MAX_STOP_STRINGS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;
const MAX_STOP_TOKENS: usize = 1024;
const MAX_LOGIT_BIAS: usize = 1024;
const MAX_SALT_BYTES: usize = 1024;
const MAX_USER_BYTES: usize = 1024;
/// Of `queue_timeout`: a day.
const MAX_QUEUE_TIMEOUT_S: f64 = 86_400.0;
/// The most alternatives that `logprobs`, `top_logprobs` and `prompt_logprobs` may ask for.
pub(super) const MAX_LOGPROBS: u32 = 20;

/// What both routes share.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Params {
    /// With a seed, the client's or a random one; without `logprobs`, which each route reads.
    pub(super) sampling: SamplingParams,
    /// `n`
    pub(super) num_choices: usize,
    /// `None` lets the route decide.
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Stop,
    /// `None` sends one body.
    pub(super) stream: Option<StreamOptions>,
    pub(super) tokens: TokenOptions,
    /// `None` lets the route decide.
    pub(super) add_special_tokens: Option<bool>,
    pub(super) cache_salt: Option<Arc<str>>,
    /// How long and with whom the request waits. Its tenant is the `user`, if one is named.
    pub(super) queueing: Queueing,
}

/// When a sequence ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Stop {
    pub(super) strings: Vec<String>,
    pub(super) token_ids: Vec<TokenId>,
    pub(super) include_in_output: bool,
    /// Goes on past the model's own end.
    pub(super) ignore_eos: bool,
    pub(super) min_tokens: u32,
}

/// What a stream says of usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    /// In a chunk of its own at the end.
    pub(super) include_usage: bool,
    /// In every chunk.
    pub(super) continuous_usage: bool,
}

/// How tokens appear in the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenOptions {
    /// Special tokens have no text.
    pub(super) skip_special: bool,
    /// Log probabilities name tokens `token_id:7`.
    pub(super) as_ids: bool,
    /// The ids of prompt and output are sent along.
    pub(super) return_ids: bool,
}

impl Params {
    /// Reads what is shared; `min_max_tokens` is the least that `max_tokens` may be.
    pub(super) fn read(
        fields: &mut Fields,
        vocab_size: usize,
        min_max_tokens: u32,
    ) -> Result<Self, ApiError> {
        let num_choices = fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1);
        require_best_of(fields, num_choices)?;
        let sampling = sampling(fields, vocab_size)?;
        let max_tokens = max_tokens(fields, min_max_tokens)?;
        let stop = Stop::read(fields, vocab_size)?;
        if max_tokens.is_some_and(|max| stop.min_tokens > max) {
            let message = format!(
                "`min_tokens` is {}, but at most {} tokens may be drawn",
                stop.min_tokens,
                max_tokens.unwrap_or_default()
            );
            return Err(ApiError::invalid("min_tokens", message));
        }
        Ok(Self {
            sampling,
            num_choices: num_choices as usize,
            max_tokens,
            stop,
            stream: StreamOptions::read(fields)?,
            tokens: TokenOptions {
                skip_special: fields.boolean("skip_special_tokens", true)?,
                as_ids: fields.boolean("return_tokens_as_token_ids", false)?,
                return_ids: fields.boolean("return_token_ids", false)?,
            },
            add_special_tokens: optional_boolean(fields, "add_special_tokens")?,
            cache_salt: cache_salt(fields)?,
            queueing: queueing(fields)?,
        })
    }

    /// `prompt_logprobs`, which streams do not carry.
    pub(super) fn read_prompt_logprobs(&mut self, fields: &mut Fields) -> Result<(), ApiError> {
        let wanted = fields.count("prompt_logprobs", 0..=MAX_LOGPROBS)?;
        if wanted.is_some() && self.stream.is_some() {
            let message = "`prompt_logprobs` cannot be had when `stream` is true";
            return Err(ApiError::invalid("prompt_logprobs", message));
        }
        self.sampling.prompt_logprobs = wanted;
        Ok(())
    }

    /// Who asks without naming a `user` is known by the API key.
    pub(super) fn set_key_tenant(&mut self, headers: &HeaderMap) {
        let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = key.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        if self.queueing.tenant.is_empty() && !key.is_empty() {
            self.queueing.tenant = Arc::from(format!("key:{key}"));
        }
    }

    /// One sequence per choice, each with a seed of its own.
    pub(super) fn sequences(
        &self,
        prompt: &Arc<[TokenId]>,
        max_tokens: u32,
        eos: &[TokenId],
    ) -> Vec<SequenceInput> {
        let seed = self.sampling.seed;
        let sequence = |choice| SequenceInput {
            prompt: Arc::clone(prompt),
            sampling: SamplingParams { seed: derive_seed(seed, choice), ..self.sampling.clone() },
            stop: StopConditions {
                max_tokens,
                min_tokens: self.stop.min_tokens.min(max_tokens),
                stop_token_ids: self.stop_token_ids(eos),
            },
            text: TextOptions {
                stop_strings: self.stop.strings.clone(),
                include_stop: self.stop.include_in_output,
                skip_special_tokens: self.tokens.skip_special,
                named_stop_token_ids: self.stop.token_ids.clone(),
            },
            cache_salt: self.cache_salt.clone(),
            queueing: self.queueing.clone(),
        };
        (0..self.num_choices).map(sequence).collect()
    }

    /// The stop conditions of the engine: the client's tokens and, unless ignored, the model's.
    fn stop_token_ids(&self, eos: &[TokenId]) -> Vec<TokenId> {
        let eos = if self.stop.ignore_eos { &[] } else { eos };
        let mut ids: Vec<_> = self.stop.token_ids.iter().chain(eos).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// `Some` only when the client says so.
pub(super) fn optional_boolean(fields: &mut Fields, key: &str) -> Result<Option<bool>, ApiError> {
    let path = fields.path(key);
    match fields.any(key) {
        None => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(other) => {
            let kind = fields::kind(&other);
            Err(ApiError::invalid(
                &path,
                format!("`{path}` must be true or false, but it is {kind}"),
            ))
        }
    }
}

fn require_best_of(fields: &mut Fields, num_choices: u32) -> Result<(), ApiError> {
    match fields.count("best_of", 1..=MAX_CHOICES)? {
        Some(best_of) if best_of != num_choices => Err(ApiError::unsupported(
            "best_of",
            format!("`best_of` must equal `n`, which is {num_choices}, but it is {best_of}"),
        )),
        _ => Ok(()),
    }
}

fn sampling(fields: &mut Fields, vocab_size: usize) -> Result<SamplingParams, ApiError> {
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0);
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(SamplingParams {
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0) as f32,
        top_p: positive(fields, "top_p", 1.0)?,
        // -1 and 0 both keep all.
        top_k: u32::try_from(top_k).unwrap_or(0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32,
        repetition_penalty: positive(fields, "repetition_penalty", 10.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32,
        logit_bias: logit_bias(fields, vocab_size)?,
        seed: seed.map_or_else(random_u64, i64::cast_unsigned),
        logprobs: None,
        prompt_logprobs: None,
    })
}

/// A number above 0 and up to `max`; 1 when absent.
fn positive(fields: &mut Fields, key: &str, max: f64) -> Result<f32, ApiError> {
    let path = fields.path(key);
    let value = fields.number(key, 0.0..=max)?.unwrap_or(1.0) as f32;
    if value > 0.0 {
        return Ok(value);
    }
    Err(ApiError::invalid(
        &path,
        format!("`{path}` must be above 0 and at most {max}, but it is 0"),
    ))
}

fn logit_bias(fields: &mut Fields, vocab_size: usize) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(object) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let map = object.into_map();
    if map.len() > MAX_LOGIT_BIAS {
        let message = format!(
            "`logit_bias` must hold at most {MAX_LOGIT_BIAS} tokens, but it holds {}",
            map.len()
        );
        return Err(ApiError::invalid("logit_bias", message));
    }
    let mut biases = BTreeMap::new();
    for (key, value) in &map {
        let path = format!("logit_bias.{key}");
        let id = key.parse().ok().filter(|id: &TokenId| (*id as usize) < vocab_size);
        let id = id.ok_or_else(|| {
            let last = vocab_size.saturating_sub(1);
            ApiError::invalid(
                "logit_bias",
                format!(
                    "`logit_bias` must have token ids from 0 to {last} as keys, but one is {key:?}"
                ),
            )
        })?;
        biases.insert(id, fields::number(value, &path, &(-100.0..=100.0))? as f32);
    }
    Ok(biases.into_iter().collect())
}

fn max_tokens(fields: &mut Fields, least: u32) -> Result<Option<u32>, ApiError> {
    let old = fields.count("max_tokens", least..=u32::MAX)?;
    let new = fields.count("max_completion_tokens", least..=u32::MAX)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(ApiError::invalid(
            "max_tokens",
            format!("`max_tokens` is {old} and `max_completion_tokens` is {new}; send one of them"),
        )),
        _ => Ok(new.or(old)),
    }
}

fn queueing(fields: &mut Fields) -> Result<Queueing, ApiError> {
    let user = fields.string("user")?.unwrap_or_default();
    if user.len() > MAX_USER_BYTES {
        let message =
            format!("`user` must have at most {MAX_USER_BYTES} bytes, but it has {}", user.len());
        return Err(ApiError::invalid("user", message));
    }
    let priority = fields.integer("priority", i64::from(i32::MIN)..=i64::from(i32::MAX))?;
    let timeout = fields.number("queue_timeout", 0.0..=MAX_QUEUE_TIMEOUT_S)?;
    Ok(Queueing {
        tenant: if user.is_empty() { Arc::from("") } else { Arc::from(format!("user:{user}")) },
        priority: priority.map_or(0, |priority| priority as i32),
        timeout: timeout.map(Duration::from_secs_f64),
    })
}

fn cache_salt(fields: &mut Fields) -> Result<Option<Arc<str>>, ApiError> {
    let Some(salt) = fields.string("cache_salt")? else { return Ok(None) };
    if (1..=MAX_SALT_BYTES).contains(&salt.len()) {
        return Ok(Some(salt.into()));
    }
    let message = format!(
        "`cache_salt` must have between 1 and {MAX_SALT_BYTES} bytes, but it has {}",
        salt.len()
    );
    Err(ApiError::invalid("cache_salt", message))
}

impl Stop {
    fn read(fields: &mut Fields, vocab_size: usize) -> Result<Self, ApiError> {
        let token_ids = fields.token_ids("stop_token_ids", MAX_STOP_TOKENS, vocab_size)?;
        Ok(Self {
            strings: stop_strings(fields)?,
            token_ids: token_ids.unwrap_or_default(),
            include_in_output: fields.boolean("include_stop_str_in_output", false)?,
            ignore_eos: fields.boolean("ignore_eos", false)?,
            min_tokens: fields.count("min_tokens", 0..=u32::MAX)?.unwrap_or(0),
        })
    }
}

/// A string, or a list of them.
fn stop_strings(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let strings = match fields.any("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let items = fields::list(Value::Array(items), "stop", MAX_STOP_STRINGS)?;
            let read = |(index, item)| fields::string(item, &format!("stop[{index}]"));
            items.into_iter().enumerate().map(read).collect::<Result<_, _>>()?
        }
        Some(other) => {
            let kind = fields::kind(&other);
            let message = format!("`stop` must be a string or a list of strings, but it is {kind}");
            return Err(ApiError::invalid("stop", message));
        }
    };
    if strings.iter().all(|text| (1..=MAX_STOP_BYTES).contains(&text.len())) {
        return Ok(strings);
    }
    let message = format!("a string in `stop` must have between 1 and {MAX_STOP_BYTES} bytes");
    Err(ApiError::invalid("stop", message))
}

impl StreamOptions {
    fn read(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let stream = fields.boolean("stream", false)?;
        let Some(mut options) = fields.object("stream_options")? else {
            return Ok(stream.then(Self::default));
        };
        if !stream {
            let message = "`stream_options` can only be set when `stream` is true";
            return Err(ApiError::invalid("stream_options", message));
        }
        let include_usage = options.boolean("include_usage", false)?;
        // As in vLLM, the continuous form is a form of `include_usage`.
        let continuous = options.boolean("continuous_usage_stats", false)?;
        Ok(Some(Self { include_usage, continuous_usage: include_usage && continuous }))
    }
}
