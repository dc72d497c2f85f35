//! `didact generate`: prompts in, text out.

use super::local::{DEFAULT_CACHE_MIB, ModelFiles, NamedAdapter, mebibytes};
use super::remote::RemoteArgs;
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
use didact_infer::remote::Bill;
use didact_infer::{Beam, BeamSearch, LocalGenerator, LocalModel, Options, beam_search};
use didact_methods::refine::{Ending, INSTRUCTION, Refined, Refinement, canonical_calls, followed, refine};
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
    /// A LoRA adapter (PEFT's layout) that answers, used beside the weights without merging; may be given several times,
    /// and a row of --input may choose another than the first by its name: {"adapter": "NAME"} in its `sampling`
    #[arg(long, value_name = "[NAME=]DIR", conflicts_with = "endpoint")]
    adapter: Vec<NamedAdapter>,
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
    /// Let the model look at its answer again and write it anew, until it stays the same, this many times at most: for models
    /// that were taught to (recipe `toolace-r`). Calls of tools are the same whatever the order of their arguments
    #[arg(
        long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "5",
        value_parser = clap::value_parser!(u32).range(1..=100), help_heading = REFINING, conflicts_with_all = ["beams", "n"]
    )]
    refine: Option<u32>,
    /// What the model is asked after its answer, instead of the words that `toolace-r` trains
    #[arg(long, value_name = "TEXT", requires = "refine", help_heading = REFINING)]
    refine_instruction: Option<String>,
    /// Search for the likeliest answers with this many beams
    #[arg(
        long, value_name = "N", help_heading = BEAMS,
        conflicts_with_all = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
            "frequency_penalty", "logit_bias", "stop", "min_tokens", "ignore_eos", "constraint", "top_logprobs", "endpoint",
            "adapter"]
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
    /// Most memory for keys and values, in MiB; prompts wait for it
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_CACHE_MIB, value_parser = clap::value_parser!(u64).range(1..))]
    max_cache_mib: u64,
    #[command(flatten)]
    remote: RemoteArgs,
}

const BEAMS: &str = "Beam search";
const REFINING: &str = "Refining answers";

#[derive(Serialize)]
struct Report {
    completions: Vec<CompletionRow>,
    failed: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// New tokens per second, prompts read included in the time.
    tokens_per_s: f64,
    /// What a server was asked for and what came from the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    bill: Option<Bill>,
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
    /// What refining did.
    #[serde(skip_serializing_if = "Option::is_none")]
    refined: Option<RefinedRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What refining did to an answer.
#[derive(Clone, Serialize)]
struct RefinedRow {
    /// The answer before.
    first: String,
    /// How often the model was asked.
    calls: usize,
    /// Tokens written in all.
    tokens: usize,
    ending: Ending,
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
    /// Of refining.
    refined: Option<RefinedRow>,
}

/// A prompt and how to continue it.
struct Row {
    prompt: Prompt,
    /// The prompt as a conversation, if it is one.
    chat: Option<Prompt>,
    /// The prompt for people.
    shown: String,
    sampling: Sampling,
}

pub(crate) fn run(args: &GenerateArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    let seed = global.seed.unwrap_or_default();
    let with_log_probs = args.logprobs || args.top_logprobs > 0;
    let see_help = |error: RequestError| usage(error.to_string(), "see `didact generate --help`");
    if let Some(generator) = args.remote.generator(&args.model, with_log_probs, seed)? {
        let base = Sampling { top_log_probs: args.top_logprobs, ..args.sampling.sampling(None, args.n, seed)? };
        didact_infer::check(&base).map_err(see_help)?;
        let rows = prompts(args, None, &base)?;
        let (cancel, started) = (Cancel::new(), Instant::now());
        signals::watch(&cancel)?;
        let mut printer = Printer::new(args, &rows, None, output);
        answer(args, &generator, &mut printer, &cancel)?;
        return conclude(printer, started, Some(generator.bill()), &cancel);
    }
    let files = ModelFiles::open(&args.model, output)?;
    let base = Sampling {
        top_log_probs: args.top_logprobs,
        adapter: args.adapter.first().map(|adapter| adapter.name.clone()),
        ..args.sampling.sampling(Some(files.tokenizer()), args.n, seed)?
    };
    if args.beams.is_none() {
        didact_infer::check(&base).map_err(see_help)?;
    }
    let rows = prompts(args, Some(files.tokenizer()), &base)?;
    let model = files.load_beside(&args.adapter, global)?;
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let started = Instant::now();
    let mut printer = Printer::new(args, &rows, Some(&model), output);
    if let Some(beams) = args.beams {
        search(args, beams, &model, &mut printer, &cancel)?;
    } else {
        // What is wrong with the command line is said once.
        model.samplers().prepare(&base).map_err(see_help)?;
        let options = Options { max_cache_bytes: mebibytes(args.max_cache_mib), ..Options::default() };
        let generator = LocalGenerator::with_model(model.clone(), options)?;
        answer(args, &generator, &mut printer, &cancel)?;
    }
    conclude(printer, started, None, &cancel)
}

/// Answers everything, refined if that was asked for.
fn answer(
    args: &GenerateArgs,
    generator: &impl Generator,
    printer: &mut Printer<'_>,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    match args.refine {
        None => generate(generator, printer, cancel),
        Some(steps) => refined(args, steps as usize, generator, printer, cancel),
    }
}

/// Answers everything, lets the model look at each answer again until it stays the same, and prints what came of it.
fn refined(
    args: &GenerateArgs,
    max_steps: usize,
    generator: &impl Generator,
    printer: &mut Printer<'_>,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    let rows = printer.rows;
    let requests: Vec<Request> =
        rows.iter().map(|row| Request { prompt: row.prompt.clone(), sampling: row.sampling.clone() }).collect();
    let instruction = args.refine_instruction.as_deref().unwrap_or(INSTRUCTION);
    let again = |index: usize, last: &Answer| {
        let row = &rows[index];
        followed(row.chat.as_ref().unwrap_or(&row.prompt), &last.text, instruction)
    };
    let canonical = |answer: &Answer| canonical_calls(&answer.text);
    let refinement = Refinement { max_steps, adaptive: true, again: &again, canonical: &canonical };
    for (index, found) in refine(generator, &requests, &refinement, cancel)?.into_iter().enumerate() {
        let Some(found) = found else { continue };
        printer.add(
            index,
            found.map(|Refined { answer, first, calls, tokens, prompt_tokens, ending }| Answers {
                completion: Completion { answers: vec![answer], prompt_tokens },
                scores: Vec::new(),
                refined: Some(RefinedRow { first: first.text, calls, tokens, ending }),
            }),
        );
    }
    Ok(())
}

/// Asks for everything and prints it as it comes.
fn generate(generator: &impl Generator, printer: &mut Printer<'_>, cancel: &Cancel) -> anyhow::Result<()> {
    let request = |row: &Row| Request { prompt: row.prompt.clone(), sampling: row.sampling.clone() };
    let requests: Vec<Request> = printer.rows.iter().map(request).collect();
    let mut sink = |index: usize, answer: Result<Completion, RequestError>| {
        let answers = |completion| Answers { completion, scores: Vec::new(), refined: None };
        printer.add(index, answer.map(answers));
    };
    Ok(generator.generate(&requests, &mut sink, cancel)?)
}

/// Prints what is left, and says how it went.
fn conclude(printer: Printer<'_>, started: Instant, bill: Option<Bill>, cancel: &Cancel) -> anyhow::Result<Status> {
    let (output, rows) = (printer.output, printer.rows);
    let report = printer.finish(started.elapsed().as_secs_f64(), bill);
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
        if let Some(Bill { paid, kept, retries, .. }) = report.bill {
            let cost = paid.cost.map_or_else(String::new, |cost| format!(", costing {cost:.4}"));
            output.note(&format!(
                "{} responses asked for ({} + {} tokens{cost}), {} from the journal, {retries} attempts repeated",
                paid.responses, paid.prompt_tokens, paid.completion_tokens, kept.responses
            ));
        }
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
fn search(
    args: &GenerateArgs,
    beams: usize,
    model: &LocalModel,
    printer: &mut Printer<'_>,
    cancel: &Cancel,
) -> anyhow::Result<()> {
    let search = BeamSearch {
        beams,
        n: args.n,
        max_tokens: args.sampling.max_tokens(),
        length_penalty: args.length_penalty,
        stop_token_ids: args.sampling.stop_token_ids(Some(model.tokenizer()))?,
        ..BeamSearch::default()
    };
    for (index, row) in printer.rows.iter().enumerate() {
        if cancel.is_cancelled() {
            break;
        }
        let found = match beam_search(model, &row.prompt, &search, cancel)? {
            Ok(beams) => {
                let (answers, scores) = beams.into_iter().map(|Beam { answer, score }| (answer, score)).unzip();
                let prompt_tokens = model.encode(&row.prompt).map_or(0, |ids| ids.len());
                Ok(Answers { completion: Completion { answers, prompt_tokens }, scores, refined: None })
            }
            Err(error) => Err(error),
        };
        printer.add(index, found);
    }
    Ok(())
}

/// What to continue, each with its settings. Chats are rendered by the model's template; a server renders them itself.
fn prompts(args: &GenerateArgs, tokenizer: Option<&Tokenizer>, base: &Sampling) -> anyhow::Result<Vec<Row>> {
    let chat = |messages: Vec<Message>, tools: Vec<Tool>| -> anyhow::Result<(Prompt, Option<Prompt>, String)> {
        let Some(tokenizer) = tokenizer else {
            let shown = messages.last().map_or_else(String::new, |message| message.content.clone());
            let prompt = Prompt::Messages { messages, tools };
            return Ok((prompt.clone(), Some(prompt), shown));
        };
        match tokenizer.template() {
            Some(template) => {
                let text = template.render(&messages, &tools, &RenderOptions::default().with_generation_prompt())?;
                Ok((Prompt::Text(text.clone()), Some(Prompt::Messages { messages, tools }), text))
            }
            None => Err(usage(format!("`{}` has no chat template", args.model), "give plain prompts, without --chat")),
        }
    };
    let user = |text: String| -> anyhow::Result<(Prompt, Option<Prompt>, String)> {
        if args.chat {
            chat(vec![Message::new(Role::User, text)], Vec::new())
        } else {
            Ok((Prompt::Text(text.clone()), None, text))
        }
    };
    if let Some(prompt) = &args.prompt {
        let (prompt, chat, shown) = user(prompt.clone())?;
        return Ok(vec![Row { prompt, chat, shown, sampling: base.clone() }]);
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
        let (prompt, chat, shown) = match (row.get("prompt"), row.contains_key("messages")) {
            (Some(Value::String(prompt)), false) => user(prompt.clone())?,
            (Some(_), false) => return Err(at("`prompt` is not a string".to_owned())),
            (None, true) => match convert(Schema::Messages, &row, &FieldNames::default()) {
                Ok(Example::Chat { messages, tools }) => chat(messages, tools)?,
                Ok(_) => return Err(at("it is no conversation".to_owned())),
                Err(Misfit { key: Some(key), cause }) => return Err(at(format!("`{key}`: {cause}"))),
                Err(Misfit { key: None, cause }) => return Err(at(cause.to_string())),
            },
            (Some(_), true) => return Err(at("it has both `prompt` and `messages`".to_owned())),
            (None, false) => return Err(at("it has neither `prompt` nor `messages`".to_owned())),
        };
        prompts.push(Row { prompt, chat, shown, sampling });
    }
    Ok(prompts)
}

/// Prints answers in the order of the prompts, each as soon as those before it are there.
struct Printer<'a> {
    output: &'a Output,
    /// `None` for a server's.
    model: Option<&'a LocalModel>,
    /// JSON lines, rather than bare text.
    is_lines: bool,
    with_log_probs: bool,
    rows: &'a [Row],
    next: usize,
    answers: Vec<Option<Result<Answers, RequestError>>>,
}

impl<'a> Printer<'a> {
    fn new(args: &GenerateArgs, rows: &'a [Row], model: Option<&'a LocalModel>, output: &'a Output) -> Self {
        let with_log_probs = args.logprobs || args.top_logprobs > 0;
        let answers = rows.iter().map(|_| None).collect();
        Self { output, model, is_lines: args.input.is_some(), with_log_probs, rows, next: 0, answers }
    }

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
            prompt: self.rows[index].shown.clone(),
            text: None,
            tokens: 0,
            ids: Vec::new(),
            finish_reason: None,
            sum_logprob: None,
            score: None,
            logprobs: None,
            refined: None,
            error: None,
        };
        match &self.answers[index] {
            None => Vec::new(),
            Some(Err(error)) => vec![CompletionRow { error: Some(error.to_string()), ..empty() }],
            Some(Ok(Answers { completion, scores, refined })) => completion
                .answers
                .iter()
                .enumerate()
                .map(|(number, answer)| CompletionRow {
                    text: Some(answer.text.clone()),
                    // A server names no ids.
                    tokens: answer.ids.len().max(answer.log_probs.len()),
                    ids: answer.ids.clone(),
                    finish_reason: Some(answer.finish_reason),
                    sum_logprob: (self.model.is_some() || !answer.log_probs.is_empty())
                        .then(|| answer.log_probs.iter().fold(0.0, |sum, &p| sum + f64::from(p))),
                    score: scores.get(number).copied(),
                    logprobs: self.with_log_probs.then(|| self.tokens(answer)),
                    refined: refined.clone(),
                    ..empty()
                })
                .collect(),
        }
    }

    fn tokens(&self, answer: &Answer) -> Vec<TokenRow> {
        let row = |id: u32, logprob: f32, top: Vec<TokenRow>| {
            // What the token stands for in text; a part of a character shows as U+FFFD.
            let token = self.model.and_then(|model| model.tokenizer().decode(&[id], false).ok()).unwrap_or_default();
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
    fn finish(self, seconds: f64, bill: Option<Bill>) -> Report {
        for index in self.next..self.rows.len() {
            self.print(index);
        }
        let completions: Vec<_> = (0..self.rows.len()).flat_map(|index| self.rows(index)).collect();
        let counted = bill.map(|bill| bill.paid.completion_tokens + bill.kept.completion_tokens);
        let new_tokens = counted.map_or_else(|| completions.iter().map(|row| row.tokens).sum(), |n| n as usize);
        let answered = self.answers.iter().flatten();
        Report {
            failed: completions.iter().filter(|row| row.error.is_some()).count(),
            prompt_tokens: answered.filter_map(|answer| Some(answer.as_ref().ok()?.completion.prompt_tokens)).sum(),
            new_tokens,
            tokens_per_s: if seconds > 0.0 { new_tokens as f64 / seconds } else { 0.0 },
            completions,
            bill,
        }
    }
}
