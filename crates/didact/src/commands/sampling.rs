//! The options that say how tokens are chosen and when an answer ends.

use crate::output::usage;
use clap::Args;
use didact_core::files;
use didact_core::generate::{Constraint, Sampling};
use didact_data::tokenizer::Tokenizer;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Options of commands that generate text.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = SAMPLING)]
    temperature: f32,
    /// Draw from this many likeliest tokens
    #[arg(long, value_name = "K", help_heading = SAMPLING)]
    top_k: Option<u32>,
    /// Draw from the likeliest tokens whose probabilities sum to this
    #[arg(long, value_name = "P", help_heading = SAMPLING)]
    top_p: Option<f32>,
    /// Draw from tokens at least this share as likely as the likeliest
    #[arg(long, value_name = "P", help_heading = SAMPLING)]
    min_p: Option<f32>,
    /// Divide the scores of tokens that prompt or answer have (1: no penalty)
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = SAMPLING)]
    repetition_penalty: f32,
    /// Lower the scores of tokens that the answer has
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    presence_penalty: f32,
    /// Lower the scores of tokens by how often the answer has them
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    frequency_penalty: f32,
    /// Add to a token's score, from -100 to 100; may be given several times
    #[arg(long, value_name = "TOKEN=X", help_heading = SAMPLING)]
    logit_bias: Vec<String>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = ENDS)]
    stop: Vec<String>,
    /// End before this token (as the vocabulary spells it, or its id); may be given several times
    #[arg(long, value_name = "TOKEN", help_heading = ENDS)]
    stop_token: Vec<String>,
    /// Let no answer end before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = ENDS)]
    min_tokens: usize,
    /// Go on after the model's own end-of-turn tokens
    #[arg(long, help_heading = ENDS)]
    ignore_eos: bool,
    /// Answer with JSON that this JSON schema accepts
    #[arg(long, value_name = "FILE", group = "constraint", help_heading = SHAPE)]
    json_schema: Option<PathBuf>,
    /// Answer with a JSON object
    #[arg(long, group = "constraint", help_heading = SHAPE)]
    json_object: bool,
    /// Answer with text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX", group = "constraint", help_heading = SHAPE)]
    regex: Option<String>,
    /// Answer with text of this grammar (Lark)
    #[arg(long, value_name = "FILE", group = "constraint", help_heading = SHAPE)]
    grammar: Option<PathBuf>,
}

const SAMPLING: &str = "Choosing tokens";
const ENDS: &str = "Ending answers";
const SHAPE: &str = "What an answer must be";

impl SamplingArgs {
    /// The settings of a request for `n` answers. Ranges are not checked. Without a tokenizer, a server's, tokens go by id.
    pub(crate) fn sampling(&self, tokenizer: Option<&Tokenizer>, n: usize, seed: u64) -> anyhow::Result<Sampling> {
        let bias = |text: &String| {
            let parsed = text.rsplit_once('=').and_then(|(token, bias)| Some((token, bias.parse::<f32>().ok()?)));
            let Some((token, bias)) = parsed else {
                return Err(usage(
                    format!("--logit-bias {text}: expected TOKEN=NUMBER"),
                    "for example ' yes=5' or 42=-100",
                ));
            };
            Ok((token_id(tokenizer, "--logit-bias", token)?, bias))
        };
        Ok(Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().map(bias).collect::<anyhow::Result<_>>()?,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids(tokenizer)?,
            ignore_eos: self.ignore_eos,
            n,
            seed,
            constraint: self.constraint()?,
            ..Sampling::default()
        })
    }

    /// Tokens that `--stop-token` names.
    pub(crate) fn stop_token_ids(&self, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<u32>> {
        self.stop_token.iter().map(|token| token_id(tokenizer, "--stop-token", token)).collect()
    }

    /// Most new tokens of an answer.
    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn constraint(&self) -> anyhow::Result<Option<Constraint>> {
        Ok(if let Some(path) = &self.json_schema {
            let text = files::read_to_string(path)?;
            let schema = serde_json::from_str(&text);
            let wrong =
                |error| usage(format!("`{}`: {error}", path.display()), "give a JSON schema as a JSON document");
            Some(Constraint::JsonSchema(schema.map_err(wrong)?))
        } else if self.json_object {
            Some(Constraint::Json)
        } else if let Some(path) = &self.grammar {
            Some(Constraint::Grammar(files::read_to_string(path)?))
        } else {
            self.regex.clone().map(Constraint::Regex)
        })
    }
}

/// A token by its spelling, by the text it stands for, or by its id.
fn token_id(tokenizer: Option<&Tokenizer>, option: &str, token: &str) -> anyhow::Result<u32> {
    let Some(tokenizer) = tokenizer else {
        let message = format!("{option} {token}: the tokens of a server's model are not known here");
        return token.parse().map_err(|_| usage(message, "give the token's id"));
    };
    if let Some(id) = tokenizer.token_id(token) {
        return Ok(id);
    }
    if let Ok([id]) = tokenizer.encode(token).as_deref() {
        return Ok(*id);
    }
    match token.parse() {
        Ok(id) if tokenizer.token(id).is_some() => Ok(id),
        _ => {
            let message = format!("{option} {token}: the model has no such token");
            Err(usage(
                message,
                "give a token as the vocabulary spells it, or its id; `didact data inspect` shows tokens",
            ))
        }
    }
}

/// Settings with those of a row's `sampling` in their place.
pub(crate) fn with_row(base: &Sampling, row: &Map<String, Value>) -> Result<Sampling, String> {
    let overrides = match row.get("sampling") {
        None => return Ok(base.clone()),
        Some(Value::Object(overrides)) => overrides,
        Some(_) => return Err("`sampling` is no object of settings".to_owned()),
    };
    let Ok(Value::Object(mut settings)) = serde_json::to_value(base) else { return Err("settings".to_owned()) };
    settings.extend(overrides.clone());
    serde_json::from_value(Value::Object(settings)).map_err(|error| format!("`sampling`: {error}"))
}

/// The rows of a JSON lines file, with their numbers from 1.
pub(crate) fn rows(path: &Path, hint: &str) -> anyhow::Result<Vec<(usize, Map<String, Value>)>> {
    let text = files::read_to_string(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows: Vec<_> = lines
        .map(|(number, line)| match serde_json::from_str(line) {
            Ok(row) => Ok((number + 1, row)),
            Err(error) => Err(bad_row(path, number + 1, &error.to_string(), hint)),
        })
        .collect::<anyhow::Result<_>>()?;
    if rows.is_empty() {
        return Err(usage(format!("`{}` has no rows", path.display()), hint));
    }
    Ok(rows)
}

/// The error that a row cannot be used.
pub(crate) fn bad_row(path: &Path, number: usize, message: &str, hint: &str) -> anyhow::Error {
    usage(format!("`{}`, row {number}: {message}", path.display()), hint)
}
