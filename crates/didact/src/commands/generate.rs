//! `didact generate`: prompts in, text out.

use super::model::locate;
use crate::cli::{Global, PrecisionOption};
use crate::output::{Output, Status, usage};
use crate::signals;
use burn::tensor::Device;
use clap::Args;
use didact_core::cancel::Cancel;
use didact_core::example::Example;
use didact_core::files;
use didact_core::generate::{Completion, FinishReason, Generator, Prompt, Request, RequestError, Sampling};
use didact_core::message::{Message, Role, Tool};
use didact_data::schema::{FieldNames, Misfit, Schema, convert};
use didact_data::template::RenderOptions;
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalGenerator, Options};
use didact_kernels::Precision;
use didact_model::{Checkpoint, Decoder};
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Options of `didact generate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("prompts").required(true).args(["prompt", "input"]))]
pub(crate) struct GenerateArgs {
    /// A model directory, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH")]
    model: String,
    /// Text to continue
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Rows with `prompt` (text to continue) or `messages` (a chat, rendered by the model's template; `tools` too)
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
    /// Take the prompts as what a user says, and render them by the model's chat template
    #[arg(long)]
    chat: bool,
    /// Most new tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the likeliest tokens whose probabilities sum to this
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from this many likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Answers per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
}

#[derive(Serialize)]
struct Report {
    completions: Vec<CompletionRow>,
    failed: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// New tokens per second, prompts read included in the time.
    tokens_per_s: f64,
}

#[derive(Serialize)]
struct CompletionRow {
    /// Number of the prompt, from 0.
    index: usize,
    prompt: String,
    text: Option<String>,
    /// How many new tokens.
    tokens: usize,
    ids: Vec<u32>,
    finish_reason: Option<FinishReason>,
    sum_logprob: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(args: &GenerateArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    let path = locate(&args.model, output)?;
    let checkpoint = Checkpoint::open(&path)?;
    let tokenizer = Arc::new(Tokenizer::open(&path)?);
    let prompts = prompts(args, &tokenizer)?;
    let requests = requests(args, global, &prompts);
    if let Some(Err(error)) = requests.first().map(|request| didact_infer::check(&request.sampling)) {
        return Err(usage(error.to_string(), "see `didact generate --help`"));
    }
    let precision = match global.precision {
        Some(PrecisionOption::Bf16) => Precision::Bf16,
        _ => Precision::F32,
    };
    let decoder = Decoder::load(&checkpoint, &Device::flex())?;
    let weights = EngineWeights::from_decoder(&decoder);
    drop(decoder);
    let options = Options { precision, ..Options::default() };
    let generator = LocalGenerator::new(weights, Arc::clone(&tokenizer), options)?;

    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let started = Instant::now();
    let mut printer =
        Printer { output, is_lines: args.input.is_some(), prompts: &prompts, next: 0, answers: Vec::new() };
    printer.answers.resize_with(prompts.len(), || None);
    generator.generate(&requests, &mut |index, answer| printer.add(index, answer), &cancel)?;
    let seconds = started.elapsed().as_secs_f64();
    let report = printer.finish(seconds);
    let reasons: Vec<&String> = report.completions.iter().filter_map(|row| row.error.as_ref()).collect();
    if let (Some(reason), true) = (reasons.first(), reasons.len() == prompts.len()) {
        return Err(usage(format!("no prompt could be answered: {reason}"), "give shorter prompts, or see --help"));
    }
    for (index, reason) in report.completions.iter().filter_map(|row| Some((row.index, row.error.as_ref()?))) {
        output.warn(&format!("prompt {} was not answered: {reason}", index + 1));
    }
    if output.is_json() {
        output.result(&report, String::new)?;
    } else {
        output.note(&format!("{} new tokens, {:.1} per second", report.new_tokens, report.tokens_per_s));
    }
    Ok(if cancel.is_cancelled() {
        output.note("stopped; the answers so far are printed");
        Status::Stopped
    } else if report.failed > 0 {
        Status::Partly
    } else {
        Status::Done
    })
}

fn requests(args: &GenerateArgs, global: &Global, prompts: &[String]) -> Vec<Request> {
    let requests = prompts.iter().enumerate().map(|(index, prompt)| Request {
        prompt: Prompt::Text(prompt.clone()),
        sampling: Sampling {
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            max_tokens: args.max_tokens,
            stop: args.stop.clone(),
            n: args.n,
            // Equal prompts are drawn independently, and the first one as if it were alone.
            seed: global.seed.unwrap_or_default().wrapping_add(index as u64),
            ..Sampling::default()
        },
    });
    requests.collect()
}

/// The texts to continue, templates rendered.
fn prompts(args: &GenerateArgs, tokenizer: &Tokenizer) -> anyhow::Result<Vec<String>> {
    let render = |messages: &[Message], tools: &[Tool]| -> anyhow::Result<String> {
        match tokenizer.template() {
            Some(template) => {
                Ok(template.render(messages, tools, &RenderOptions::default().with_generation_prompt())?)
            }
            None => Err(usage(format!("`{}` has no chat template", args.model), "give plain prompts, without --chat")),
        }
    };
    let user = |text: String| -> anyhow::Result<String> {
        if args.chat { render(&[Message::new(Role::User, text)], &[]) } else { Ok(text) }
    };
    if let Some(prompt) = &args.prompt {
        return Ok(vec![user(prompt.clone())?]);
    }
    let Some(path) = &args.input else { return Ok(Vec::new()) };
    let text = files::read_to_string(path)?;
    let mut prompts = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |message: String| {
            let hint = "a row is {\"prompt\": \"...\"} or {\"messages\": [...]}";
            usage(format!("`{}`, row {}: {message}", path.display(), number + 1), hint)
        };
        // Other keys pass: files of data often carry more than the prompt.
        let row: Map<String, Value> = serde_json::from_str(line).map_err(|error| at(error.to_string()))?;
        prompts.push(match (row.get("prompt"), row.contains_key("messages")) {
            (Some(Value::String(prompt)), false) => user(prompt.clone())?,
            (Some(_), false) => return Err(at("`prompt` is not a string".to_owned())),
            (None, true) => match convert(Schema::Messages, &row, &FieldNames::default()) {
                Ok(Example::Chat { messages, tools }) => render(&messages, &tools)?,
                Ok(_) => return Err(at("it is no conversation".to_owned())),
                Err(Misfit { key: Some(key), cause }) => return Err(at(format!("`{key}`: {cause}"))),
                Err(Misfit { key: None, cause }) => return Err(at(cause.to_string())),
            },
            (Some(_), true) => return Err(at("it has both `prompt` and `messages`".to_owned())),
            (None, false) => return Err(at("it has neither `prompt` nor `messages`".to_owned())),
        });
    }
    if prompts.is_empty() {
        return Err(usage(format!("`{}` has no rows", path.display()), "give at least one prompt"));
    }
    Ok(prompts)
}

/// Prints answers in the order of the prompts, each as soon as those before it are there.
struct Printer<'a> {
    output: &'a Output,
    /// JSON lines, rather than bare text.
    is_lines: bool,
    prompts: &'a [String],
    next: usize,
    answers: Vec<Option<Result<Completion, RequestError>>>,
}

impl Printer<'_> {
    fn add(&mut self, index: usize, answer: Result<Completion, RequestError>) {
        self.answers[index] = Some(answer);
        while let Some(Some(_)) = self.answers.get(self.next) {
            self.print(self.next);
            self.next += 1;
        }
    }

    fn print(&self, index: usize) {
        for row in self.rows(index) {
            if self.is_lines && row.error.is_none() {
                self.output.piece(&Value::to_string(&serde_json::to_value(&row).unwrap_or_default()));
            } else if let Some(text) = &row.text {
                self.output.piece(text);
            }
        }
    }

    fn rows(&self, index: usize) -> Vec<CompletionRow> {
        let prompt = &self.prompts[index];
        let empty = || CompletionRow {
            index,
            prompt: prompt.clone(),
            text: None,
            tokens: 0,
            ids: Vec::new(),
            finish_reason: None,
            sum_logprob: None,
            error: None,
        };
        match &self.answers[index] {
            None => Vec::new(),
            Some(Err(error)) => vec![CompletionRow { error: Some(error.to_string()), ..empty() }],
            Some(Ok(completion)) => completion
                .answers
                .iter()
                .map(|answer| CompletionRow {
                    text: Some(answer.text.clone()),
                    tokens: answer.ids.len(),
                    ids: answer.ids.clone(),
                    finish_reason: Some(answer.finish_reason),
                    sum_logprob: Some(answer.log_probs.iter().map(|&p| f64::from(p)).sum()),
                    ..empty()
                })
                .collect(),
        }
    }

    /// What is left to print (after a stop some prompts have no answer), and the whole.
    fn finish(self, seconds: f64) -> Report {
        for index in self.next..self.prompts.len() {
            self.print(index);
        }
        let completions: Vec<_> = (0..self.prompts.len()).flat_map(|index| self.rows(index)).collect();
        let new_tokens = completions.iter().map(|row| row.tokens).sum::<usize>();
        let answered = self.answers.iter().flatten();
        Report {
            failed: completions.iter().filter(|row| row.error.is_some()).count(),
            prompt_tokens: answered.filter_map(|answer| Some(answer.as_ref().ok()?.prompt_tokens)).sum(),
            new_tokens,
            tokens_per_s: if seconds > 0.0 { new_tokens as f64 / seconds } else { 0.0 },
            completions,
        }
    }
}
