//! A model that text can be asked of: the engine and the tokenizer that belongs to it.

use crate::adapter::EngineAdapter;
use crate::engine::Engine;
use crate::error::InferError;
use crate::rule::ScoreRule;
use crate::sampler::Samplers;
use crate::weights::EngineWeights;
use didact_core::generate::{Prompt, RequestError};
use didact_core::message::{Message, Tool};
use didact_data::template::RenderOptions;
use didact_data::tokenizer::Tokenizer;
use didact_kernels::Precision;
use didact_model::peft::Adapter;
use std::sync::Arc;

/// An [`Engine`], its tokenizer, the tokens that end an answer, and adapters that requests may name.
#[derive(Debug)]
pub struct LocalModel {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    eos: Vec<u32>,
    samplers: Samplers,
    /// By name, in the order in which they were added.
    adapters: Vec<(String, Arc<EngineAdapter>)>,
}

impl LocalModel {
    /// Packs the weights for generation.
    ///
    /// # Errors
    /// When the tokenizer does not belong to the model.
    pub fn new(weights: EngineWeights, tokenizer: Arc<Tokenizer>, precision: Precision) -> Result<Self, InferError> {
        let (tokens, rows) = (tokenizer.vocab_size(), weights.config().vocab_size);
        if tokens > rows {
            return Err(InferError::Vocabulary { tokenizer: tokens, model: rows });
        }
        let mut eos = tokenizer.eos_ids().to_vec();
        if eos.is_empty() {
            eos.clone_from(&weights.config().eos_token_ids);
        }
        let samplers = Samplers::new(Arc::clone(&tokenizer), eos.clone(), rows);
        Ok(Self { engine: Engine::new(weights, precision), tokenizer, eos, samplers, adapters: Vec::new() })
    }

    /// The same model with a rule over what comes next; one given before is replaced.
    #[must_use]
    pub fn with_rule(mut self, rule: Arc<dyn ScoreRule>) -> Self {
        self.samplers.set_rule(rule);
        self
    }

    /// Adds a LoRA adapter, used beside the weights by the requests that name it; one of the same name is replaced.
    ///
    /// # Errors
    /// When it does not fit the model.
    pub fn add_adapter(&mut self, name: &str, adapter: &Adapter) -> Result<(), InferError> {
        let adapter = self.engine.adapter(adapter)?;
        match self.adapters.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = adapter,
            None => self.adapters.push((name.to_owned(), adapter)),
        }
        Ok(())
    }

    /// The names of the adapters.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|(name, _)| &**name)
    }

    /// The adapter that a request names, and its number; `None` if it names none.
    pub(crate) fn adapter(&self, name: Option<&str>) -> Result<Option<(usize, &Arc<EngineAdapter>)>, RequestError> {
        let Some(name) = name else { return Ok(None) };
        let found = self.adapters.iter().position(|(known, _)| known == name);
        let found = found.ok_or_else(|| RequestError::Setting {
            name: "adapter".into(),
            value: format!("`{name}`"),
            expected: match self.adapters.len() {
                0 => "the model was loaded without adapters".into(),
                _ => format!("expected one of {}", self.adapters().collect::<Vec<_>>().join(", ")),
            },
        })?;
        Ok(Some((found, &self.adapters[found].1)))
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// What checks requests' settings and makes their samplers.
    pub fn samplers(&self) -> &Samplers {
        &self.samplers
    }

    /// Most tokens of prompt and answer together.
    pub fn context(&self) -> usize {
        self.engine.config().max_position_embeddings
    }

    /// A prompt's tokens.
    ///
    /// # Errors
    /// When the text cannot be tokenised, the conversation not be rendered, or an id is not in the vocabulary.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, RequestError> {
        match prompt {
            Prompt::Messages { messages, tools } => self.encode(&Prompt::Text(self.render(messages, tools)?)),
            Prompt::Text(text) => {
                let mut ids = self.tokenizer.encode(text).map_err(|e| RequestError::Tokenizer(e.to_string()))?;
                // A rendered chat template writes the first token itself.
                if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos())
                    && ids.first() != Some(&bos)
                {
                    ids.insert(0, bos);
                }
                Ok(ids)
            }
            Prompt::Ids(ids) => {
                let limit = self.engine.config().vocab_size;
                match ids.iter().find(|&&id| id as usize >= limit) {
                    Some(id) => Err(RequestError::Setting {
                        name: "prompt".into(),
                        value: format!("token {id}"),
                        expected: format!("expected ids below {limit}, the model's vocabulary"),
                    }),
                    None => Ok(ids.clone()),
                }
            }
        }
    }

    /// A conversation as the model's chat template writes it, up to where the assistant's turn begins.
    ///
    /// # Errors
    /// When the model has no template, or it refuses the conversation.
    pub(crate) fn render(&self, messages: &[Message], tools: &[Tool]) -> Result<String, RequestError> {
        let template = self.tokenizer.template();
        let template = template.ok_or_else(|| RequestError::Template("the model has no chat template".into()))?;
        let options = RenderOptions::default().with_generation_prompt();
        template.render(messages, tools, &options).map_err(|e| RequestError::Template(e.to_string()))
    }

    /// A prompt's tokens, if an answer of at least one token fits behind them.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and when the prompt is empty or fills the context.
    pub fn encode_to_continue(&self, prompt: &Prompt) -> Result<Vec<u32>, RequestError> {
        let ids = self.encode(prompt)?;
        if ids.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if ids.len() >= self.context() {
            return Err(RequestError::PromptTooLong { tokens: ids.len(), context: self.context() });
        }
        Ok(ids)
    }
}
