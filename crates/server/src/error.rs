//! In: everything that can go wrong with a request. Out: a status and OpenAI's error object.
//!
//! The only file that knows HTTP status codes. Messages are for the person who wrote the request:
//! no paths of the server, no Rust errors.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use weft_adapters::AdapterError;
use weft_engine::{AddError, SubmitError};
use weft_text::TextError;

/// Seconds after which a client that met a full queue should come back, if nothing better is known.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What went wrong, as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after_s: Option<u64>,
}

/// The `error` object of OpenAI's API. `type` is one of vLLM's names, `code` one of OpenAI's.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

/// `{"error": {…}}`
#[derive(Debug, Serialize)]
pub(crate) struct ErrorEnvelope<'a> {
    error: ErrorBody<'a>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, kind, message, param: None, code: None, retry_after_s: None }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The same fault of another field.
    pub(crate) fn of_param(self, param: &str) -> Self {
        self.param(param)
    }

    /// A value that cannot be honoured, at `param` (`messages[0].role`).
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param).code("invalid_value")
    }

    /// A field that must be there and is not.
    pub(crate) fn missing(param: &str) -> Self {
        Self::bad_request(format!("`{param}` is required"))
            .param(param)
            .code("missing_required_parameter")
    }

    /// A field that we know and do not support.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param).code("unsupported_parameter")
    }

    /// A request that is wrong as a whole.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// The prompt, or the prompt and what is asked for, is longer than the context.
    pub(crate) fn context_exceeded(param: &'static str, message: impl Into<String>) -> Self {
        Self::bad_request(message).param(param).code("context_length_exceeded")
    }

    /// The same in vLLM's class for bodies of the adapter routes.
    pub(crate) fn into_invalid_user_input(self) -> Self {
        Self { kind: "InvalidUserInput", ..self }
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    /// `model` names neither the base nor an adapter.
    pub(crate) fn unknown_model(name: &str) -> Self {
        Self::not_found(format!("The model `{name}` does not exist."))
            .param("model")
            .code("model_not_found")
    }

    /// No adapter of this name is there to be unloaded; vLLM's text.
    pub(crate) fn unknown_adapter(name: &str) -> Self {
        Self::not_found(format!("The lora adapter '{name}' cannot be found."))
            .param("lora_name")
            .code("adapter_not_found")
    }

    /// No adapter lies where the client says; vLLM's text.
    pub(crate) fn no_adapter_at(name: &str, path: &str) -> Self {
        Self::not_found(format!("Loading lora {name} failed: No adapter found for {path}"))
            .param("lora_path")
            .code("adapter_not_found")
    }

    /// No such route.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        Self::not_found(format!(
            "there is no route {method} {path}; the routes are /v1/chat/completions, \
             /v1/completions, /v1/models, /v1/adapters, /tokenize, /detokenize, /health and /metrics"
        ))
        .code("unknown_url")
    }

    /// The route is there, but not for this method.
    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowedError",
            format!("{path} does not accept {method}; the `allow` header lists what it accepts"),
        )
        .code("method_not_allowed")
    }

    /// The body exceeds the limit.
    fn body_too_large(max_body_bytes: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestTooLargeError",
            format!("the body is larger than this server's limit of {max_body_bytes} bytes"),
        )
        .code("request_too_large")
    }

    /// The body could not be read: it exceeds the limit, or its sender is gone.
    pub(crate) fn from_body(rejection: &BytesRejection, max_body_bytes: usize) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::body_too_large(max_body_bytes);
        }
        Self::bad_request("the body could not be read to its end")
    }

    /// The body is not declared to be JSON.
    pub(crate) fn not_json(content_type: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaTypeError",
            format!(
                "the body must be JSON, sent with the header `content-type: application/json`, \
                 but the content type is `{content_type}`"
            ),
        )
        .code("unsupported_media_type")
    }

    /// A route that the operator has not opened.
    pub(crate) fn runtime_adapters_disabled() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "PermissionDeniedError",
            "adapters cannot be loaded or unloaded while this server runs; \
             start it with --allow-runtime-adapters to allow that",
        )
        .code("runtime_adapters_disabled")
    }

    /// A source of adapters that requests may not name.
    fn source_not_allowed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message)
            .param("lora_path")
            .code("adapter_source_not_allowed")
    }

    /// Too many requests wait; come back soon.
    pub(crate) fn overloaded(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message)
            .code("overloaded")
            .retry_after(RETRY_AFTER_SECONDS)
    }

    /// This client asks for more than it can get now.
    pub(crate) fn too_many(message: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "RateLimitError", message)
            .code("rate_limit_exceeded")
            .retry_after(retry_after_s)
    }

    /// A sequence did not begin to run in the time that it might wait.
    pub(crate) fn expired() -> Self {
        let message = "the request waited longer than it may (`queue_timeout`): try again later";
        Self::too_many(message, RETRY_AFTER_SECONDS)
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Our own failure.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
            .code("internal_error")
    }

    /// The object that bodies and streams carry.
    pub(crate) fn envelope(&self) -> ErrorEnvelope<'_> {
        ErrorEnvelope {
            error: ErrorBody {
                message: &self.message,
                r#type: self.kind,
                param: self.param.as_deref(),
                code: self.code,
            },
        }
    }

    /// The engine refused a prompt; `prompt_param` is the field that holds it.
    pub(crate) fn from_submit(error: &SubmitError, prompt_param: &'static str) -> Self {
        match error {
            SubmitError::QueueFull { .. } => Self::overloaded(error.to_string()),
            SubmitError::TenantQueueFull { .. } => {
                Self::too_many(error.to_string(), RETRY_AFTER_SECONDS)
            }
            SubmitError::TooLate { wait_s } => Self::too_many(error.to_string(), *wait_s),
            SubmitError::DoesNotFit(AddError::AdapterTooLarge { .. }) => {
                Self::invalid("model", error.to_string())
            }
            SubmitError::Stopped => Self::overloaded("the server is shutting down"),
            SubmitError::DoesNotFit(AddError::PromptTooLong { .. }) => {
                Self::context_exceeded(prompt_param, error.to_string())
            }
            _ => Self::invalid(prompt_param, error.to_string()),
        }
    }
}

/// Text that cannot be made into tokens, or messages that the template refuses.
impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Self::bad_request(error.to_string()).code("invalid_value")
    }
}

impl ApiError {
    /// An adapter that was asked for as `model` cannot be served.
    pub(crate) fn from_resolve(error: &AdapterError, model: &str) -> Self {
        let reason = match error {
            AdapterError::NotFound { .. }
            | AdapterError::InvalidName { .. }
            | AdapterError::NameIsBase { .. }
            | AdapterError::NotInSource { .. }
            | AdapterError::PathNotFound { .. } => return Self::unknown_model(model),
            AdapterError::MissingPart { .. } => {
                return Self::not_found(error.to_string()).param("model").code("model_not_found");
            }
            // Of a composition, it may be a part.
            AdapterError::Fetch { name, passes: true, .. } => {
                tracing::warn!(%error, "an adapter's source does not answer");
                return Self::overloaded(format!(
                    "the adapter `{name}` cannot be fetched now: its source does not answer"
                ));
            }
            AdapterError::Fetch { name, passes: false, .. } => {
                tracing::warn!(%error, "an adapter cannot be fetched");
                if name == model {
                    "its source does not give it".to_owned()
                } else {
                    format!("the source of `{name}` does not give it")
                }
            }
            AdapterError::Interrupted { .. } | AdapterError::HostMemoryFull { .. } => {
                return Self::overloaded(error.to_string());
            }
            AdapterError::HostMemoryTooSmall { .. } | AdapterError::Composition { .. } => {
                return Self::invalid("model", error.to_string());
            }
            // A part of what was asked for.
            AdapterError::Rejected { name, .. } if name != model => {
                return Self::invalid("model", error.to_string());
            }
            AdapterError::Rejected { reason, .. } => format!("it {reason}"),
            _ => {
                tracing::warn!(%error, "an adapter cannot be read");
                "its files cannot be read".to_owned()
            }
        };
        let message = format!("the adapter `{model}` was found but could not be loaded: {reason}");
        Self::invalid("model", message)
    }

    /// An adapter could not be loaded from the path that the client gave; vLLM's texts where it
    /// has them.
    pub(crate) fn from_load(error: &AdapterError, name: &str, path: &str) -> Self {
        match error {
            AdapterError::AlreadyLoaded { .. } => Self::bad_request(format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the \
                 adapter in place, set 'load_inplace' to True."
            ))
            .param("lora_name")
            .code("adapter_already_loaded")
            .into_invalid_user_input(),
            AdapterError::NameIsBase { .. } | AdapterError::InvalidName { .. } => {
                Self::invalid("lora_name", error.to_string()).into_invalid_user_input()
            }
            AdapterError::PathNotFound { .. } => Self::no_adapter_at(name, path),
            AdapterError::NotInSource { reason, .. } => {
                tracing::info!(adapter = name, reason, "no adapter there");
                Self::no_adapter_at(name, path)
            }
            AdapterError::NotAllowed { reason, .. } => Self::source_not_allowed(reason),
            AdapterError::Fetch { passes: true, .. } => Self::overloaded(error.to_string()),
            AdapterError::NotFound { .. } => {
                Self::overloaded(format!("the adapter '{name}' was unloaded while it was loading"))
            }
            AdapterError::Interrupted { .. } | AdapterError::HostMemoryFull { .. } => {
                Self::overloaded(error.to_string())
            }
            AdapterError::Rejected { .. }
            | AdapterError::Composition { .. }
            | AdapterError::MissingPart { .. }
            | AdapterError::HostMemoryTooSmall { .. }
            | AdapterError::Fetch { .. }
            | AdapterError::Io { .. }
            | AdapterError::Directory { .. } => Self::invalid("lora_path", error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.envelope())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
