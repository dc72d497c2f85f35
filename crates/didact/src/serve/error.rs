//! Errors in the shape of the API.

use didact_core::generate::RequestError;
use serde_json::{Value, json};

/// An error that a client is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    /// The HTTP status.
    pub(super) status: u16,
    /// The class of error, as the API names it.
    pub(super) kind: &'static str,
    pub(super) message: String,
    /// The field that is wrong.
    pub(super) param: Option<String>,
    pub(super) code: Option<&'static str>,
    /// Seconds after which it may be worth asking again.
    pub(super) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request is wrong.
    pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(400, "invalid_request_error", message) }
    }

    /// The request as a whole is wrong.
    pub(super) fn malformed(status: u16, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", message)
    }

    /// A field that the API does not have, or not here.
    pub(super) fn unknown(param: &str, hint: &str) -> Self {
        let message = format!("unknown field `{param}`{hint}");
        Self { code: Some("unknown_parameter"), ..Self::invalid(param, message) }
    }

    /// Something of the API that this server does not do.
    pub(super) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_value"), ..Self::invalid(param, message) }
    }

    pub(super) fn no_such_model<'a>(asked: &str, served: impl Iterator<Item = &'a str>) -> Self {
        let served: Vec<String> = served.map(|name| format!("`{name}`")).collect();
        let message = format!("there is no model `{asked}`; this server has {}", served.join(", "));
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(404, "invalid_request_error", message)
        }
    }

    pub(super) fn no_such_path(message: String) -> Self {
        Self { code: Some("unknown_url"), ..Self::new(404, "invalid_request_error", message) }
    }

    /// No key, or a wrong one.
    pub(super) fn key() -> Self {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        Self { code: Some("invalid_api_key"), ..Self::new(401, "authentication_error", message) }
    }

    /// Too much is waiting.
    pub(super) fn busy(retry_after: u64) -> Self {
        let message = "too many requests are waiting; come back later";
        Self {
            code: Some("rate_limit_exceeded"),
            retry_after: Some(retry_after),
            ..Self::new(429, "rate_limit_error", message)
        }
    }

    /// The time for a request is up.
    pub(super) fn timeout(seconds: f64) -> Self {
        let message = format!("the request took longer than the {seconds} seconds that this server gives one");
        Self { code: Some("timeout"), ..Self::new(504, "timeout_error", message) }
    }

    pub(super) fn stopping() -> Self {
        Self { code: Some("shutting_down"), ..Self::new(503, "server_error", "the server is stopping") }
    }

    /// A fault of the server's.
    pub(super) fn server(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", message)
    }

    /// Why a request cannot be answered; `prompt` is what the endpoint calls the text to continue.
    pub(super) fn of_request(error: &RequestError, prompt: &str) -> Self {
        let message = error.to_string();
        match error {
            RequestError::PromptTooLong { .. } => {
                Self { code: Some("context_length_exceeded"), ..Self::invalid(prompt, message) }
            }
            RequestError::EmptyPrompt | RequestError::Tokenizer(_) | RequestError::Template(_) => {
                Self::invalid(prompt, message)
            }
            RequestError::Setting { name, .. } => {
                let name = if name == "top_log_probs" { "top_logprobs" } else { name };
                Self::invalid(name, message)
            }
            RequestError::Constraint { .. } => Self::invalid("response_format", message),
            RequestError::NotFinite { .. } => Self::server(message),
            _ => Self::malformed(400, message),
        }
    }

    /// The API's error object.
    pub(super) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}
