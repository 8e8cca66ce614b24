//! Messages in, the prompt out, byte for byte as transformers' `apply_chat_template` renders it.
//!
//! Templates come with model files and messages from clients: both are untrusted, and rendering is
//! bounded in time, memory and output. Knows no tokens: the prompt is text with special tokens
//! written out.

mod continuation;
mod environment;
mod filters;
mod methods;
mod python_json;
mod source;

use crate::error::TextError;
use crate::hf_tokenizer::{read_json, special_texts};
use crate::special_tokens::SpecialTokens;
use crate::tokenizer::Tokenizer;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weft_gguf::GgufFile;

/// What a prompt is rendered from.
#[derive(Clone, Debug, Default)]
pub struct RenderInput<'a> {
    /// The conversation: objects with `role`, `content` and whatever else the template reads.
    pub messages: &'a [Value],
    /// Whether the prompt ends with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// Whether the last message is left open, for the model to continue it.
    pub continue_final_message: bool,
    /// Descriptions of tools, if any.
    pub tools: Option<&'a [Value]>,
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
}

/// Variables that [`ChatTemplate::render`] sets from its input.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// The template's names in its files.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A model's chat template, compiled. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    default: environment::Compiled,
    /// Used instead when the request has tools.
    tool_use: Option<environment::Compiled>,
    special_texts: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// From a template's source and the texts of the bos and eos tokens, if the model has them.
    ///
    /// # Errors
    /// [`TextError::BadTemplate`] when the template is no valid Jinja.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TextError> {
        let texts = [("bos_token", bos), ("eos_token", eos)];
        let texts =
            texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.to_owned())));
        let special = SpecialTokens { texts: texts.collect(), ..Default::default() };
        Self::with_special_tokens(source, &special)
    }

    /// As [`ChatTemplate::new`], with all special tokens as variables.
    ///
    /// # Errors
    /// The same.
    pub fn with_special_tokens(source: &str, special: &SpecialTokens) -> Result<Self, TextError> {
        let sources = BTreeMap::from([(DEFAULT.to_owned(), source.to_owned())]);
        Self::compile(&sources, special.texts.clone())?
            .ok_or_else(|| TextError::BadTemplate { message: "there is none".to_owned() })
    }

    /// From the metadata of a GGUF file; `None` when it has no template.
    ///
    /// # Errors
    /// When a key has the wrong type, or the template is no valid Jinja.
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>, TextError> {
        let metadata = file.metadata();
        let mut sources = BTreeMap::new();
        for (name, key) in
            [(DEFAULT, "tokenizer.chat_template"), (TOOL_USE, "tokenizer.chat_template.tool_use")]
        {
            if let Some(source) = metadata.get_str(key)? {
                sources.insert(name.to_owned(), source.to_owned());
            }
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::from_gguf_metadata(metadata)?;
        Self::compile(&sources, tokenizer.special_tokens().texts.clone())
    }

    /// From chat_template.jinja, chat_template.json or tokenizer_config.json of a Hugging Face
    /// directory; `None` when none of them has a template.
    ///
    /// # Errors
    /// When a file cannot be read, or the template is no valid Jinja.
    pub fn from_hf_dir(dir: &Path) -> Result<Option<Self>, TextError> {
        let config = read_json(dir, "tokenizer_config.json")?;
        let mut sources = named_sources(&config["chat_template"]);
        sources.extend(named_sources(&read_json(dir, "chat_template.json")?["chat_template"]));
        let files = [
            (DEFAULT, "chat_template.jinja"),
            (TOOL_USE, "additional_chat_templates/tool_use.jinja"),
        ];
        for (name, file) in files {
            let path = dir.join(file);
            match std::fs::read_to_string(&path) {
                Ok(source) => drop(sources.insert(name.to_owned(), source)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(TextError::BadFile { path, reason: error.to_string() }),
            }
        }
        Self::compile(&sources, special_texts(dir, &config)?)
    }

    fn compile(
        sources: &BTreeMap<String, String>,
        special_texts: BTreeMap<String, String>,
    ) -> Result<Option<Self>, TextError> {
        let compiled = |name| sources.get(name).map(|source| environment::Compiled::new(source));
        let Some(default) = compiled(DEFAULT).transpose()? else { return Ok(None) };
        let tool_use = compiled(TOOL_USE).transpose()?;
        Ok(Some(Self(Arc::new(Inner { default, tool_use, special_texts }))))
    }

    /// The prompt.
    ///
    /// # Errors
    /// When the template refuses the messages or fails on them, or writes without end.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<String, TextError> {
        if let Some(key) = RESERVED.iter().find(|key| input.kwargs.contains_key(**key)) {
            return Err(TextError::ReservedKwarg { key: (*key).to_owned() });
        }
        let template = match &self.0.tool_use {
            Some(tool_use) if input.tools.is_some() => tool_use,
            _ => &self.0.default,
        };
        let messages = input.messages.iter().map(with_reasoning).collect::<Result<Vec<_>, _>>()?;
        if !input.continue_final_message {
            return template.render(&self.variables(input, &messages));
        }
        let (messages, ending) = continuation::mark(messages, template.source())?;
        let rendered = template.render(&self.variables(input, &messages))?;
        continuation::cut(rendered, &ending)
    }

    /// Later ones win: special tokens, then the client's, then ours.
    fn variables(&self, input: &RenderInput<'_>, messages: &[Value]) -> Map<String, Value> {
        let texts = self.0.special_texts.iter();
        let mut variables: Map<String, Value> =
            texts.map(|(name, text)| (name.clone(), Value::from(text.as_str()))).collect();
        variables.insert("documents".to_owned(), Value::Null);
        variables.extend(input.kwargs.clone());
        variables.insert("messages".to_owned(), Value::from(messages));
        let tools = input.tools.map_or(Value::Null, Value::from);
        variables.insert("tools".to_owned(), tools);
        variables.insert("add_generation_prompt".to_owned(), input.add_generation_prompt.into());
        variables
    }
}

/// A source, or a list of `{"name", "template"}`.
fn named_sources(value: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named = |entry: &Value| Some((text(&entry["name"])?, text(&entry["template"])?));
    match value {
        Value::String(source) => BTreeMap::from([(DEFAULT.to_owned(), source.clone())]),
        Value::Array(entries) => entries.iter().filter_map(named).collect(),
        _ => BTreeMap::new(),
    }
}

/// A model's reasoning goes under several names; templates read `reasoning_content` or `thinking`.
fn with_reasoning(message: &Value) -> Result<Value, TextError> {
    let Value::Object(fields) = message else {
        let message = format!("a message must be an object, not {message}");
        return Err(TextError::Render { message: message.chars().take(200).collect() });
    };
    let mut names = ["reasoning_content", "thinking", "reasoning"].into_iter();
    let reasoning = names.find_map(|name| fields.get(name).filter(|value| !value.is_null()));
    let fields = match reasoning {
        None => Cow::Borrowed(fields),
        Some(reasoning) => {
            let mut aliased = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
            aliased.extend(fields.clone());
            aliased.insert("reasoning_content".to_owned(), reasoning.clone());
            Cow::Owned(aliased)
        }
    };
    Ok(Value::Object(fields.into_owned()))
}
