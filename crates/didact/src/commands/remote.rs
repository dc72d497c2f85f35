//! A server as the source of text, for commands that can ask one.

use crate::output::usage;
use clap::Args;
use didact_infer::remote::{Prices, RemoteGenerator, RemoteOptions};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Options of commands that can ask a server.
#[derive(Debug, Args)]
pub(crate) struct RemoteArgs {
    /// Ask the OpenAI-compatible server at this address, such as http://127.0.0.1:8080/v1; --model is then its name there
    #[arg(long, value_name = "URL", help_heading = REMOTE)]
    pub(crate) endpoint: Option<String>,
    /// The environment variable that holds the API key
    #[arg(long, value_name = "VAR", requires = "endpoint", help_heading = REMOTE)]
    api_key_env: Option<String>,
    /// Keep every answer in this file; none that is there is asked for again
    #[arg(long, value_name = "FILE", requires = "endpoint", help_heading = REMOTE)]
    journal: Option<PathBuf>,
    /// Requests that are on their way at a time
    #[arg(long, value_name = "N", default_value = "16", requires = "endpoint", help_heading = REMOTE)]
    concurrency: NonZeroUsize,
    /// Attempts at a request before it counts as unanswered
    #[arg(long, value_name = "N", default_value_t = 8, requires = "endpoint", help_heading = REMOTE)]
    attempts: u32,
    /// Longest wait for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "endpoint", help_heading = REMOTE)]
    request_timeout: u64,
    /// Price of a million tokens of prompts
    #[arg(long, value_name = "PRICE", requires_all = ["endpoint", "price_completion"], help_heading = REMOTE)]
    price_prompt: Option<f64>,
    /// Price of a million generated tokens
    #[arg(long, value_name = "PRICE", requires_all = ["endpoint", "price_prompt"], help_heading = REMOTE)]
    price_completion: Option<f64>,
}

const REMOTE: &str = "Asking a server";

impl RemoteArgs {
    /// The server, if one is to be asked.
    pub(crate) fn generator(&self, model: &str, log_probs: bool, seed: u64) -> anyhow::Result<Option<RemoteGenerator>> {
        let Some(endpoint) = &self.endpoint else { return Ok(None) };
        if self.attempts == 0 || self.request_timeout == 0 {
            return Err(usage("--attempts and --request-timeout begin at 1", "see --help"));
        }
        let prices = self.price_prompt.zip(self.price_completion);
        let options = RemoteOptions {
            api_key_env: self.api_key_env.clone(),
            concurrency: self.concurrency.get(),
            max_attempts: self.attempts,
            timeout: Duration::from_secs(self.request_timeout),
            // Not every server gives them: they are asked for when they are wanted.
            has_log_probs: log_probs,
            prices: prices
                .map(|(prompt, completion)| Prices { prompt_per_million: prompt, completion_per_million: completion }),
            journal: self.journal.clone(),
            seed,
            ..RemoteOptions::new(endpoint, model)
        };
        Ok(Some(RemoteGenerator::new(options)?))
    }
}
