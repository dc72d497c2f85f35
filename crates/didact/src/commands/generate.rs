//! `didact generate`: prompts in, text out.

use super::local::ModelFiles;
use super::sampling::{SamplingArgs, bad_row, rows, with_row};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use crate::signals;
use clap::Args;
use didact_core::cancel::Cancel;
use didact_core::example::Example;
use didact_core::generate::{
    Answer, Completion, FinishReason, Generator, Prompt, Request, RequestError, Sampling, TokenLogProb,
};
use didact_core::message::{Message, Role, Tool};
use didact_data::schema::{FieldNames, Misfit, Schema, convert};
use didact_data::template::RenderOptions;
use didact_data::tokenizer::Tokenizer;
use didact_infer::{Beam, BeamSearch, LocalGenerator, LocalModel, Options, beam_search};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;
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
    /// Rows with `prompt` (text to continue) or `messages` (a chat, rendered by the model's template; `tools` too), and
    /// perhaps `sampling`, an object of settings for this row such as {"temperature": 1, "max_tokens": 9}
    #[arg(long, value_name = "FILE.jsonl")]
    input: Option<PathBuf>,
    /// Take the prompts as what a user says, and render them by the model's chat template
    #[arg(long)]
    chat: bool,
    /// Answers per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    n: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Search for the likeliest answers with this many beams
    #[arg(
        long, value_name = "N", help_heading = BEAMS,
        conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
            "frequency_penalty", "logit_bias", "stop", "min_tokens", "ignore_eos", "constraint", "top_logprobs"]
    )]
    beams: Option<usize>,
    /// Favour longer answers: scores are divided by length to the power of this
    #[arg(
        long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, requires = "beams",
        help_heading = BEAMS
    )]
    length_penalty: f32,
    /// Report the log-probability of each token
    #[arg(long)]
    logprobs: bool,
    /// Report as many likeliest alternatives of each token, too
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_logprobs: usize,
}

const BEAMS: &str = "Beam search";

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
    /// By what beam search ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A token and how likely it was.
#[derive(Serialize)]
struct TokenRow {
    id: u32,
    token: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<TokenRow>,
}

/// What one prompt is answered.
struct Answers {
    completion: Completion,
    /// Of beam search.
    scores: Vec<f64>,
}

/// A prompt and how to continue it.
struct Row {
    prompt: String,
    sampling: Sampling,
}

pub(crate) fn run(args: &GenerateArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    let files = ModelFiles::open(&args.model, output)?;
    let base = Sampling {
        top_log_probs: args.top_logprobs,
        ..args.sampling.sampling(files.tokenizer(), args.n, global.seed.unwrap_or_default())?
    };
    let see_help = |error: RequestError| usage(error.to_string(), "see `didact generate --help`");
    if args.beams.is_none() {
        didact_infer::check(&base).map_err(see_help)?;
    }
    let rows = prompts(args, files.tokenizer(), &base)?;
    let model = files.load(global)?;
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let started = Instant::now();
    let (is_lines, with_log_probs) = (args.input.is_some(), args.logprobs || args.top_logprobs > 0);
    let mut printer =
        Printer { output, model: &model, is_lines, with_log_probs, rows: &rows, next: 0, answers: Vec::new() };
    printer.answers.resize_with(rows.len(), || None);
    if let Some(beams) = args.beams {
        search(args, beams, &mut printer, &cancel)?;
    } else {
        // What is wrong with the command line is said once.
        model.samplers().prepare(&base).map_err(see_help)?;
        let requests = rows
            .iter()
            .map(|row| Request { prompt: Prompt::Text(row.prompt.clone()), sampling: row.sampling.clone() })
            .collect::<Vec<_>>();
        let generator = LocalGenerator::with_model(model.clone(), Options::default())?;
        let mut sink = |index: usize, answer: Result<Completion, RequestError>| {
            printer.add(index, answer.map(|completion| Answers { completion, scores: Vec::new() }));
        };
        generator.generate(&requests, &mut sink, &cancel)?;
    }
    let report = printer.finish(started.elapsed().as_secs_f64());
    let reasons: Vec<&String> = report.completions.iter().filter_map(|row| row.error.as_ref()).collect();
    if let (Some(reason), true) = (reasons.first(), reasons.len() == rows.len()) {
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

/// Beam search, prompt by prompt.
fn search(args: &GenerateArgs, beams: usize, printer: &mut Printer<'_>, cancel: &Cancel) -> anyhow::Result<()> {
    let model = printer.model;
    let search = BeamSearch {
        beams,
        n: args.n,
        max_tokens: args.sampling.max_tokens(),
        length_penalty: args.length_penalty,
        stop_token_ids: args.sampling.stop_token_ids(model.tokenizer())?,
        ..BeamSearch::default()
    };
    for (index, row) in printer.rows.iter().enumerate() {
        if cancel.is_cancelled() {
            break;
        }
        let prompt = Prompt::Text(row.prompt.clone());
        let found = match beam_search(model, &prompt, &search, cancel)? {
            Ok(beams) => {
                let (answers, scores) = beams.into_iter().map(|Beam { answer, score }| (answer, score)).unzip();
                let prompt_tokens = model.encode(&prompt).map_or(0, |ids| ids.len());
                Ok(Answers { completion: Completion { answers, prompt_tokens }, scores })
            }
            Err(error) => Err(error),
        };
        printer.add(index, found);
    }
    Ok(())
}

/// The texts to continue, templates rendered, each with its settings.
fn prompts(args: &GenerateArgs, tokenizer: &Tokenizer, base: &Sampling) -> anyhow::Result<Vec<Row>> {
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
        return Ok(vec![Row { prompt: user(prompt.clone())?, sampling: base.clone() }]);
    }
    let Some(path) = &args.input else { return Ok(Vec::new()) };
    let hint =
        "a row is {\"prompt\": \"...\"} or {\"messages\": [...]}, with {\"sampling\": {...}} if it needs its own";
    let mut prompts = Vec::new();
    for (index, (number, row)) in rows(path, hint)?.into_iter().enumerate() {
        let at = |message: String| bad_row(path, number, &message, hint);
        // Equal prompts are drawn independently, and the first one as if it were alone. Other keys pass: files of data
        // often carry more than the prompt.
        let own = Sampling { seed: base.seed.wrapping_add(index as u64), ..base.clone() };
        let sampling = with_row(&own, &row).map_err(at)?;
        if args.beams.is_some() && row.contains_key("sampling") {
            return Err(at("`sampling` has no effect on --beams".to_owned()));
        }
        let prompt = match (row.get("prompt"), row.contains_key("messages")) {
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
        };
        prompts.push(Row { prompt, sampling });
    }
    Ok(prompts)
}

/// Prints answers in the order of the prompts, each as soon as those before it are there.
struct Printer<'a> {
    output: &'a Output,
    model: &'a LocalModel,
    /// JSON lines, rather than bare text.
    is_lines: bool,
    with_log_probs: bool,
    rows: &'a [Row],
    next: usize,
    answers: Vec<Option<Result<Answers, RequestError>>>,
}

impl Printer<'_> {
    fn add(&mut self, index: usize, answer: Result<Answers, RequestError>) {
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
        let empty = || CompletionRow {
            index,
            prompt: self.rows[index].prompt.clone(),
            text: None,
            tokens: 0,
            ids: Vec::new(),
            finish_reason: None,
            sum_logprob: None,
            score: None,
            logprobs: None,
            error: None,
        };
        match &self.answers[index] {
            None => Vec::new(),
            Some(Err(error)) => vec![CompletionRow { error: Some(error.to_string()), ..empty() }],
            Some(Ok(Answers { completion, scores })) => completion
                .answers
                .iter()
                .enumerate()
                .map(|(number, answer)| CompletionRow {
                    text: Some(answer.text.clone()),
                    tokens: answer.ids.len(),
                    ids: answer.ids.clone(),
                    finish_reason: Some(answer.finish_reason),
                    sum_logprob: Some(answer.log_probs.iter().map(|&p| f64::from(p)).sum()),
                    score: scores.get(number).copied(),
                    logprobs: self.with_log_probs.then(|| self.tokens(answer)),
                    ..empty()
                })
                .collect(),
        }
    }

    fn tokens(&self, answer: &Answer) -> Vec<TokenRow> {
        let row = |id: u32, logprob: f32, top: Vec<TokenRow>| {
            let tokenizer = self.model.tokenizer();
            // What the token stands for in text; a part of a character shows as U+FFFD.
            let token = tokenizer.decode(&[id], false).unwrap_or_default();
            TokenRow { id, token, logprob, top }
        };
        let alternatives = |number: usize| -> Vec<TokenRow> {
            let top = answer.top_log_probs.get(number).into_iter().flatten();
            top.map(|&TokenLogProb { id, log_prob }| row(id, log_prob, Vec::new())).collect()
        };
        let tokens = answer.ids.iter().zip(&answer.log_probs).enumerate();
        tokens.map(|(number, (&id, &log_prob))| row(id, log_prob, alternatives(number))).collect()
    }

    /// What is left to print (after a stop some prompts have no answer), and the whole.
    fn finish(self, seconds: f64) -> Report {
        for index in self.next..self.rows.len() {
            self.print(index);
        }
        let completions: Vec<_> = (0..self.rows.len()).flat_map(|index| self.rows(index)).collect();
        let new_tokens = completions.iter().map(|row| row.tokens).sum::<usize>();
        let answered = self.answers.iter().flatten();
        Report {
            failed: completions.iter().filter(|row| row.error.is_some()).count(),
            prompt_tokens: answered.filter_map(|answer| Some(answer.as_ref().ok()?.completion.prompt_tokens)).sum(),
            new_tokens,
            tokens_per_s: if seconds > 0.0 { new_tokens as f64 / seconds } else { 0.0 },
            completions,
        }
    }
}
