//! Asking a model for text, whoever runs the model.

use crate::cancel::Cancel;
use crate::message::{Message, Tool};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What to continue: token ids (exact), text (tokenised by the generator, with special tokens recognised), or a
/// conversation (rendered by the template of whichever model answers, which for a server is the server's).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Text, already rendered by the chat template where one applies.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// A conversation; the answer is the assistant's next turn.
    Messages {
        /// The turns so far.
        messages: Vec<Message>,
        /// Tools that may be called.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tools: Vec<Tool>,
    },
}

/// How to choose the next token, and when to stop.
///
/// What a setting means is the same for every generator; one that cannot do it (a server that lacks it) refuses the
/// request. The scores of a step go through, in this order: [`constraint`](Self::constraint),
/// [`logit_bias`](Self::logit_bias), [`min_tokens`](Self::min_tokens), the penalties (repetition, then frequency, then
/// presence), temperature, top-k, top-p (over what top-k left), min-p.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Scores are divided by it. 0 is greedy decoding.
    pub temperature: f32,
    /// Keep this many most likely tokens. `None` keeps all.
    pub top_k: Option<u32>,
    /// Keep the most likely tokens whose probabilities sum to at least this. `None` keeps all.
    pub top_p: Option<f32>,
    /// Keep tokens at least this share as likely as the likeliest one. `None` keeps all.
    pub min_p: Option<f32>,
    /// Divides the positive scores of tokens of the prompt or the answer, and multiplies their negative ones (Keskar et
    /// al., "CTRL", 2019, as `transformers` has it). 1 is none, more discourages repetition.
    pub repetition_penalty: f32,
    /// Taken off the score of every token that the answer has already (OpenAI's definition). 0 is none.
    pub presence_penalty: f32,
    /// Taken off a token's score once for each time the answer has it already (OpenAI's definition). 0 is none.
    pub frequency_penalty: f32,
    /// Added to the scores of these tokens.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// Most new tokens.
    pub max_tokens: usize,
    /// Until the answer has this many tokens nothing but a [`constraint`](Self::constraint) that is fulfilled ends it.
    pub min_tokens: usize,
    /// Stop before any of these strings; they are not part of the text.
    pub stop: Vec<String>,
    /// Stop before any of these tokens, beside the model's own end-of-turn tokens.
    pub stop_token_ids: Vec<u32>,
    /// Go on after the model's own end-of-turn tokens, which then are part of the answer.
    pub ignore_eos: bool,
    /// Number of answers.
    pub n: usize,
    /// Seed of this request. The same request gives the same text whatever else is in the batch.
    pub seed: u64,
    /// Whether answers carry the log-probabilities of their tokens; going without is a little faster.
    pub log_probs: bool,
    /// Alternatives to report beside each token, the likeliest ones.
    pub top_log_probs: usize,
    /// What the text of the answer must be.
    pub constraint: Option<Constraint>,
    /// The adapter of the model that answers, by the name that it was loaded under. `None` is the model itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            max_tokens: 128,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            n: 1,
            seed: 0,
            log_probs: true,
            top_log_probs: 0,
            constraint: None,
            adapter: None,
        }
    }
}

/// What the text of an answer must be. Tokens that would break it are never chosen; an answer that ends by itself is
/// complete, one that runs into `max_tokens` is the beginning of one that would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// A JSON object, whatever its keys.
    Json,
    /// A JSON document that this schema (JSON Schema, 2020-12) accepts.
    JsonSchema(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A text of this grammar, in the notation of the Python library Lark.
    Grammar(String),
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
    /// Log-probability (nats, under the model before any setting changed its scores) of each of `ids`; empty unless
    /// [`Sampling::log_probs`].
    pub log_probs: Vec<f32>,
    /// For each of `ids` the [`Sampling::top_log_probs`] likeliest tokens in its place, likeliest first; empty if none
    /// were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_log_probs: Vec<Vec<TokenLogProb>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A token and how likely it was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenLogProb {
    /// The token.
    pub id: u32,
    /// Its log-probability in nats, as in [`Answer::log_probs`].
    pub log_prob: f32,
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
    /// The constraint is no valid one, or cannot be kept.
    #[error("`constraint` ({kind}): {message}")]
    Constraint {
        /// Of which kind: a JSON schema, a regular expression, ...
        kind: String,
        /// What is wrong with it.
        message: String,
    },
    /// The model gives no numbers.
    #[error("the model's scores are not finite after {tokens} tokens: its weights are damaged or training diverged")]
    NotFinite {
        /// Tokens of prompt and answer so far.
        tokens: usize,
    },
    /// The conversation could not be rendered by the model's chat template.
    #[error("cannot render the conversation: {0}")]
    Template(String),
    /// This generator cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A server would not answer this request; asking again would not help.
    #[error("the server refused the request with status {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// A server gave no usable answer to this request, however often it was asked.
    #[error("no answer after {attempts} attempts: {message}")]
    Unanswered {
        /// How often it was asked.
        attempts: u32,
        /// What happened last.
        message: String,
    },
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

impl<G: Generator + ?Sized> Generator for &G {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        (**self).generate(requests, sink, cancel)
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        (**self).score(pairs, sink, cancel)
    }
}
