//! Asking a model for text, whoever runs the model.

use crate::cancel::Cancel;
use serde::{Deserialize, Serialize};

/// What to continue: token ids (exact) or text (tokenised by the generator, with special tokens recognised).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Text, already rendered by the chat template where one applies.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// How to choose the next token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// 0 is greedy decoding.
    pub temperature: f32,
    /// Keep the most likely tokens whose probabilities sum to at least this. `None` keeps all.
    pub top_p: Option<f32>,
    /// Keep this many most likely tokens. `None` keeps all.
    pub top_k: Option<u32>,
    /// Most new tokens.
    pub max_tokens: usize,
    /// Stop before any of these strings; they are not part of the text.
    pub stop: Vec<String>,
    /// Number of answers.
    pub n: usize,
    /// Seed of this request. The same request gives the same text whatever else is in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: None, top_k: None, max_tokens: 128, stop: Vec::new(), n: 1, seed: 0 }
    }
}

/// One prompt and how to continue it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub sampling: Sampling,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end-of-turn token or a stop string.
    Stop,
    /// `max_tokens`, or the model's context, was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The new text, without the stop string.
    pub text: String,
    /// The new tokens, without the end-of-turn token.
    pub ids: Vec<u32>,
    /// Log-probability (nats, under the model before temperature and cut-offs) of each of `ids`.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// The answers to one [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `n` answers.
    pub answers: Vec<Answer>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// Log-probabilities of a given continuation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogProbs {
    /// The continuation's tokens.
    pub ids: Vec<u32>,
    /// Log-probability of each, in nats.
    pub log_probs: Vec<f32>,
    /// Whether greedy decoding would have produced the continuation.
    pub is_greedy: bool,
}

/// Why one request could not be answered; the others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RequestError {
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, the model's context is {context}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty after tokenisation")]
    EmptyPrompt,
    /// A setting is out of range.
    #[error("`{name}` is {value}: {expected}")]
    Setting {
        /// Which.
        name: String,
        /// What was given.
        value: String,
        /// What would do.
        expected: String,
    },
    /// The text could not be tokenised.
    #[error("cannot tokenise the prompt: {0}")]
    Tokenizer(String),
}

/// The generator itself is broken; nothing more can be asked of it.
#[derive(Debug, thiserror::Error)]
#[error("generation failed: {message}")]
pub struct GenerateError {
    /// What happened.
    pub message: String,
    /// What caused it.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Something that continues prompts: a model in this process, or a server.
///
/// Answers arrive one by one, as they finish, with the index of their request. One bad request does not stop the others.
pub trait Generator {
    /// Continues each request.
    ///
    /// # Errors
    /// When the generator itself is broken.
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError>;

    /// Scores each continuation given its prompt.
    ///
    /// # Errors
    /// When the generator itself is broken.
    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError>;

    /// [`Generator::generate`], collected in the order of the requests.
    ///
    /// # Errors
    /// When the generator itself is broken. Requests that were cancelled before they began are left out as `None`.
    fn generate_all(
        &self,
        requests: &[Request],
        cancel: &Cancel,
    ) -> Result<Vec<Option<Result<Completion, RequestError>>>, GenerateError> {
        let mut answers: Vec<_> = requests.iter().map(|_| None).collect();
        self.generate(requests, &mut |index, answer| answers[index] = Some(answer), cancel)?;
        Ok(answers)
    }
}
