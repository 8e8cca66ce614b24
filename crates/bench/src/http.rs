//! The target for any OpenAI-compatible server. In: requests. Out: token times read off the event
//! stream. Speaks plain HTTP; knows nothing of how the server works.

use crate::drive::{Target, TokenClock, TokenCounts};
use crate::sse::EventReader;
use crate::workload::BenchRequest;
use futures::StreamExt;
use serde_json::{Value, json};

mod prompt;

use prompt::Wording;

/// Which route is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// How prompts travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptStyle {
    /// As token ids: exact lengths, no tokenizer in the way. Completions only.
    TokenIds,
    /// As words of about the right number of tokens.
    Text,
}

/// How a request says which adapter it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterNaming {
    /// As its `model`: Weft, vLLM, SGLang and others.
    Model,
    /// By its number in the field `lora`: llama-server, started with the adapters in this order.
    LoraId,
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// `http://host:port`, with or without `/v1`.
    pub url: String,
    /// Which route is measured.
    pub endpoint: Endpoint,
    /// How prompts travel; chat is always text.
    pub prompt_style: PromptStyle,
    /// How a request says which adapter it wants.
    pub adapter_naming: AdapterNaming,
    /// A connection for each request, for servers that close those that were used.
    pub new_connections: bool,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
    /// Sent as each request's `user`: who is asking, for servers that are fair to their users.
    pub user: Option<String>,
}

/// Why a server cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not plain HTTP.
    #[error("--url {0} does not start with http://; this client speaks plain HTTP only")]
    Url(String),
    /// Nobody answers.
    #[error("no answer from {url}: {reason}; is the server running?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// An answer that is not OpenAI's.
    #[error("{url} answered {status}, not a list of models")]
    NotOpenAi {
        /// What was asked.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The client could not be built.
    #[error("the HTTP client did not start: {0}")]
    Client(String),
}

/// A model as `/v1/models` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelCard {
    /// The name to ask for.
    pub id: String,
    /// The base of an adapter.
    pub parent: Option<String>,
}

/// An OpenAI-compatible server.
#[derive(Debug)]
pub struct HttpTarget {
    client: reqwest::Client,
    root: String,
    endpoint: Endpoint,
    adapter_naming: AdapterNaming,
    api_key: Option<String>,
    user: Option<String>,
    /// `None` sends token ids.
    wording: Option<Wording>,
}

impl HttpTarget {
    /// Makes a client; connects to nothing yet.
    ///
    /// # Errors
    /// If the URL is not plain HTTP.
    pub fn new(config: HttpConfig) -> Result<Self, HttpError> {
        if !config.url.starts_with("http://") {
            return Err(HttpError::Url(config.url));
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(if config.new_connections { 0 } else { usize::MAX })
            .build()
            .map_err(|error| HttpError::Client(error.to_string()))?;
        let trimmed = config.url.trim_end_matches('/');
        let root = trimmed.strip_suffix("/v1").unwrap_or(trimmed).to_owned();
        let is_text = config.prompt_style == PromptStyle::Text || config.endpoint == Endpoint::Chat;
        let wording = is_text.then(Wording::default);
        let HttpConfig { endpoint, adapter_naming, api_key, user, .. } = config;
        Ok(Self { client, root, endpoint, adapter_naming, api_key, user, wording })
    }

    /// The models that the server lists.
    ///
    /// # Errors
    /// If nobody answers, or not with a list.
    pub async fn models(&self) -> Result<Vec<ModelCard>, HttpError> {
        let url = format!("{}/v1/models", self.root);
        let unreachable = |error: reqwest::Error| HttpError::Unreachable {
            url: url.clone(),
            reason: sentence(&error),
        };
        let response = self.authorized(self.client.get(&url)).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap_or_default();
        let Some(list) = body["data"].as_array() else {
            return Err(HttpError::NotOpenAi { url, status });
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(list
            .iter()
            .filter_map(|card| {
                Some(ModelCard { id: text(&card["id"])?, parent: text(&card["parent"]) })
            })
            .collect())
    }

    /// Where prompts travel as text: asks the server's `/tokenize`, if it has one, how many tokens
    /// a word is, so that prompts come out near their length. Without one, a word is a token.
    pub async fn calibrate(&mut self, model: &str) {
        let Some(wording) = &self.wording else { return };
        let sample = wording.sample();
        // vLLM's and Weft's field is `prompt`, llama-server's is `content`.
        let body = json!({"model": model, "prompt": sample, "content": sample});
        let request = self.client.post(format!("{}/tokenize", self.root)).json(&body);
        let Ok(response) = self.authorized(request).send().await else { return };
        let answer: Value = response.json().await.unwrap_or_default();
        if let Some(tokens) = answer["tokens"].as_array() {
            self.wording = Some(wording.calibrated(tokens.len()));
        }
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    fn body(&self, request: &BenchRequest) -> Value {
        let mut body = json!({
            "model": request.model,
            "max_tokens": request.output_len,
            "temperature": 0.0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.adapter_naming == AdapterNaming::LoraId {
            // Without the field llama-server applies every adapter that it was started with.
            let (id, scale) = request.adapter.map_or((0, 0.0), |adapter| (adapter, 1.0));
            body["lora"] = json!([{"id": id, "scale": scale}]);
        }
        if let Some(user) = &self.user {
            body["user"] = user.as_str().into();
        }
        match (&self.wording, self.endpoint) {
            (Some(wording), Endpoint::Chat) => {
                let content = wording.text(&request.prompt);
                body["messages"] = json!([{"role": "user", "content": content}]);
            }
            (Some(wording), Endpoint::Completions) => {
                body["prompt"] = wording.text(&request.prompt).into();
            }
            (None, _) => body["prompt"] = json!(request.prompt),
        }
        body
    }
}

impl Target for HttpTarget {
    async fn answer(
        &self,
        request: &BenchRequest,
        clock: &mut TokenClock,
    ) -> Result<TokenCounts, String> {
        let route = match self.endpoint {
            Endpoint::Completions => "completions",
            Endpoint::Chat => "chat/completions",
        };
        let url = format!("{}/v1/{route}", self.root);
        let post = self.authorized(self.client.post(url).json(&self.body(request)));
        let response = post.send().await.map_err(|error| sentence(&error))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            return Err(format!("{}: {}", status.as_u16(), error_message(&text)));
        }
        let mut answer = Answer::default();
        let mut reader = EventReader::default();
        let mut bytes = response.bytes_stream();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|error| sentence(&error))?;
            reader.push(&piece, |data| answer.read(data, clock));
        }
        answer.finish()
    }
}

/// What the event stream has said so far.
#[derive(Debug, Default)]
struct Answer {
    counts: TokenCounts,
    is_finished: bool,
    error: Option<String>,
}

impl Answer {
    fn read(&mut self, data: &str, clock: &mut TokenClock) {
        if data == "[DONE]" {
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            self.error.get_or_insert_with(|| format!("an event is not JSON: {data:.80}"));
            return;
        };
        if !event["error"].is_null() {
            self.error.get_or_insert_with(|| error_message(data));
            return;
        }
        if let Some(usage) = event["usage"].as_object() {
            let count = |key: &str| usage.get(key)?.as_u64().map(|count| count as usize);
            self.counts.prompt_tokens = count("prompt_tokens").or(self.counts.prompt_tokens);
            self.counts.completion_tokens =
                count("completion_tokens").or(self.counts.completion_tokens);
        }
        let choice = &event["choices"][0];
        if choice.is_null() {
            return;
        }
        let is_last = !choice["finish_reason"].is_null();
        let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        let has_text = text(&choice["text"])
            || text(&choice["delta"]["content"])
            || text(&choice["delta"]["reasoning_content"]);
        // The first chat event only announces the role. Later events without text stand for
        // tokens that show nothing (half a character); a last one without text stands for none.
        let is_preamble = !choice["delta"]["role"].is_null();
        if has_text || !(is_preamble || is_last) {
            clock.tick();
        }
        self.is_finished |= is_last;
    }

    fn finish(self) -> Result<TokenCounts, String> {
        match self.error {
            Some(error) => Err(error),
            None if !self.is_finished => Err("the stream ended without a finish_reason".into()),
            None => Ok(self.counts),
        }
    }
}

/// The message of an error body in OpenAI's shape, or the start of whatever it is.
fn error_message(body: &str) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let message = json["error"]["message"].as_str().or(json["message"].as_str());
    message.map_or_else(|| body.chars().take(200).collect(), str::to_owned)
}

/// An error with its causes: reqwest's own text leaves out what matters ("connection refused").
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
