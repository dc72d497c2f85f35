//! `didact data`: shows data as the model will see it, and checks it.

use super::model::locate;
use crate::output::{Output, Status};
use clap::{Args, Subcommand, ValueEnum};
use didact_core::example::Example;
use didact_core::progress::Table;
use didact_data::check::{CheckReport, check};
use didact_data::encode::{EncodeOptions, Encoded, Encoder, TokenRole, TrainOn};
use didact_data::ledger::LossLedger;
use didact_data::reader::{self, SourceConfig};
use didact_data::schema::Schema;
use didact_data::tokenizer::Tokenizer;
use serde::Serialize;

mod filter;
mod tokenize;

/// `didact data ...`
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Show examples as the model will see them: rendered template, tokens, the loss weight of each
    #[command(after_help = "Example:\n  didact data inspect mine.jsonl --model smollm2-135m-instruct -n 3")]
    Inspect(InspectArgs),
    /// Turn text into a tokenised corpus; the same command continues an interrupted one
    #[command(
        after_help = "Examples:\n  didact data tokenize books/*.jsonl.zst --tokenizer smollm2-135m-instruct --to corpus\n  \
                      didact data tokenize lego.jsonl --tokenizer my-tokenizer --keep skill,level --to lego"
    )]
    Tokenize(tokenize::TokenizeArgs),
    /// Leave rows out: by length and quality, repetitions, and what models will be tested on; says what and why
    #[command(
        after_help = "Examples:\n  didact data filter web.jsonl --to clean.jsonl --quality gopher,repetition --exact --near\n  \
                      didact data filter train.jsonl --to clean.jsonl --against test.jsonl --dropped dropped.jsonl"
    )]
    Filter(filter::FilterArgs),
    /// Check files: schema, rows that cannot be used, empty targets, lengths, duplicates
    #[command(after_help = "Example:\n  didact data check mine.jsonl\n\nExit code 3 when a row cannot be used.")]
    Check {
        /// Files, folders or globs
        #[arg(required = true)]
        file: Vec<String>,
        /// How rows are laid out [default: recognised from the first row]
        #[arg(long)]
        schema: Option<SchemaOption>,
    },
}

/// Options of `data inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A file, folder or glob
    file: String,
    /// The model whose tokenizer and template are used: a directory, a .gguf file, or a name that `model pull` knows;
    /// without it the rows are shown as they were understood
    #[arg(long, value_name = "PATH")]
    model: Option<String>,
    /// How many examples
    #[arg(short, value_name = "N", default_value_t = 3)]
    n: usize,
    /// How rows are laid out [default: recognised from the first row]
    #[arg(long)]
    schema: Option<SchemaOption>,
    /// What is trained
    #[arg(long, default_value = "assistant")]
    train_on: TrainOnOption,
    /// Most targets of a sequence; what is longer is cut, as in training
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
}

/// `--schema`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SchemaOption {
    Messages,
    Sharegpt,
    PromptCompletion,
    Alpaca,
    Text,
}

impl From<SchemaOption> for Schema {
    fn from(option: SchemaOption) -> Self {
        match option {
            SchemaOption::Messages => Self::Messages,
            SchemaOption::Sharegpt => Self::ShareGpt,
            SchemaOption::PromptCompletion => Self::PromptCompletion,
            SchemaOption::Alpaca => Self::Alpaca,
            SchemaOption::Text => Self::Text,
        }
    }
}

/// `--train-on`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TrainOnOption {
    /// Every assistant turn, every completion, all running text
    Assistant,
    /// The last assistant turn of each conversation
    LastAssistant,
    /// Every token
    All,
}

impl From<TrainOnOption> for TrainOn {
    fn from(option: TrainOnOption) -> Self {
        match option {
            TrainOnOption::Assistant => Self::Assistant,
            TrainOnOption::LastAssistant => Self::LastAssistant,
            TrainOnOption::All => Self::All,
        }
    }
}

pub(crate) fn run(command: DataCommand, output: &Output) -> anyhow::Result<Status> {
    match command {
        DataCommand::Inspect(args) => inspect(&args, output),
        DataCommand::Filter(args) => filter::run(args, output),
        DataCommand::Tokenize(args) => tokenize::run(args, output),
        DataCommand::Check { file, schema } => check_files(file, schema, output),
    }
}

#[derive(Serialize)]
struct Inspection {
    schema: Vec<String>,
    examples: Vec<Inspected>,
}

/// One sequence, or a row when no model was named.
#[derive(Serialize)]
struct Inspected {
    path: String,
    row: u64,
    example: Example,
    #[serde(flatten)]
    sequence: Option<InspectedSequence>,
}

#[derive(Serialize)]
struct InspectedSequence {
    /// Number of the sequence within its example, from 0, and how many the example became.
    part: (u32, u32),
    text: String,
    ids: Vec<u32>,
    tokens: Vec<String>,
    weights: Vec<f32>,
    roles: Vec<TokenRole>,
    trained_tokens: usize,
    /// For people: pieces of text of equal weight.
    #[serde(skip)]
    shown: String,
}

fn inspect(args: &InspectArgs, output: &Output) -> anyhow::Result<Status> {
    let tokenizer = match &args.model {
        Some(model) => Some(Tokenizer::open(locate(model, output)?)?),
        None => None,
    };
    let options =
        EncodeOptions { train_on: args.train_on.into(), max_seq_len: args.max_seq_len, ..EncodeOptions::default() };
    let encoder = tokenizer.as_ref().map(|tokenizer| Encoder::new(tokenizer, options)).transpose()?;
    let mut ledger = LossLedger::new(args.train_on.into());
    let mut config = SourceConfig::new(args.file.clone());
    config.schema = args.schema.map(Into::into);
    let mut rows = reader::open(&config)?;
    let mut examples = Vec::new();
    for sourced in rows.by_ref().take(args.n) {
        let sourced = sourced?;
        let (path, row, example) = (sourced.path.clone(), sourced.row, sourced.example.clone());
        let Some(encoder) = &encoder else {
            examples.push(Inspected { path, row, example, sequence: None });
            continue;
        };
        for encoded in encoder.encode(&sourced)? {
            // A sequence that trains nothing is what one wants to see here.
            let _ = ledger.add(&encoded);
            let sequence = Some(sequence(&encoded, encoder.tokenizer(), output)?);
            examples.push(Inspected { path: path.clone(), row, example: example.clone(), sequence });
        }
    }
    let schema = rows.detections().iter().map(ToString::to_string).collect();
    let report = Inspection { schema, examples };
    output.result(&report, || {
        let mut parts = report.schema.clone();
        parts.extend(report.examples.iter().map(describe));
        if encoder.is_some() {
            parts.push(output.table(&ledger.table()));
            parts.extend(ledger.warnings());
        }
        parts.join("\n\n")
    })?;
    Ok(Status::Done)
}

fn sequence(encoded: &Encoded, tokenizer: &Tokenizer, output: &Output) -> anyhow::Result<InspectedSequence> {
    let ids = encoded.sequence.ids.clone();
    let tokens = ids.iter().map(|&id| Ok(tokenizer.decode(&[id], false)?)).collect::<anyhow::Result<_>>()?;
    Ok(InspectedSequence {
        part: encoded.part,
        text: tokenizer.decode(&ids, false)?,
        tokens,
        weights: encoded.sequence.weight.clone(),
        roles: encoded.role.clone(),
        trained_tokens: encoded.trained_tokens(),
        ids,
        shown: shown(encoded, tokenizer, output)?,
    })
}

/// The text with what is trained marked: in green, or between brackets where there are no colours.
fn shown(encoded: &Encoded, tokenizer: &Tokenizer, output: &Output) -> anyhow::Result<String> {
    let mut text = String::new();
    for piece in encoded.pieces(tokenizer)? {
        let weight = if piece.weight == 1.0 { String::new() } else { format!("{}×", piece.weight) };
        match (piece.weight != 0.0, output.is_colored()) {
            (false, true) => text.extend(["\x1b[2m", &piece.text, "\x1b[0m"]),
            (false, false) => text.push_str(&piece.text),
            (true, true) => text.extend(["\x1b[32m", &weight, &piece.text, "\x1b[0m"]),
            (true, false) => text.extend(["⟦", &weight, &piece.text, "⟧"]),
        }
    }
    Ok(text)
}

fn describe(inspected: &Inspected) -> String {
    let place = format!("{}, row {}", inspected.path, inspected.row);
    let Some(sequence) = &inspected.sequence else {
        let row = serde_json::to_string_pretty(&inspected.example).unwrap_or_default();
        return format!("── {place}\n{row}");
    };
    let part = match sequence.part {
        (_, 1) => String::new(),
        (part, parts) => format!(", part {} of {parts}", part + 1),
    };
    let (count, trained) = (sequence.ids.len(), sequence.trained_tokens);
    format!("── {place}{part}: {count} tokens, {trained} trained (marked)\n{}", sequence.shown)
}

fn check_files(paths: Vec<String>, schema: Option<SchemaOption>, output: &Output) -> anyhow::Result<Status> {
    let mut config = SourceConfig::new("");
    config.path = paths;
    config.schema = schema.map(Into::into);
    let report = check(&config)?;
    output.result(&report, || check_text(&report, output))?;
    Ok(if report.is_clean() { Status::Done } else { Status::NotSo })
}

fn check_text(report: &CheckReport, output: &Output) -> String {
    let mut parts: Vec<String> = report.schema.iter().map(ToString::to_string).collect();
    let lengths = &report.characters;
    parts.push(format!(
        "{} rows in {} files: {} cannot be used, {} with nothing to learn, {} repeat an earlier one\n\
         characters per row: {} at least, {} in the middle, {} in nine of ten, {} at most",
        report.rows,
        report.files,
        report.problem_count,
        report.empty_target_count,
        report.duplicate_count,
        lengths.min,
        lengths.p50,
        lengths.p90,
        lengths.max
    ));
    let mut table = |title: &str, count: u64, columns: &[&str], rows: Vec<Vec<String>>| {
        if count > 0 {
            let hidden = count.saturating_sub(rows.len() as u64);
            let more = if hidden > 0 { format!(" (and {hidden} more)") } else { String::new() };
            parts.push(output.table(&Table {
                title: format!("{title}{more}"),
                columns: columns.iter().map(|name| (*name).to_owned()).collect(),
                rows,
            }));
        }
    };
    let problems = report.problems.iter().take(SHOWN).map(|problem| {
        let key = problem.key.clone().unwrap_or_default();
        vec![problem.path.clone(), problem.row.to_string(), key, problem.message.clone()]
    });
    table("rows that cannot be used", report.problem_count, &["file", "row", "key", "why"], problems.collect());
    let empty = report.empty_targets.iter().take(SHOWN).map(|place| vec![place.path.clone(), place.row.to_string()]);
    table("rows with nothing to learn", report.empty_target_count, &["file", "row"], empty.collect());
    let duplicates = report.duplicates.iter().take(SHOWN).map(|duplicate| {
        let first = format!("{}, row {}", duplicate.first.path, duplicate.first.row);
        vec![duplicate.path.clone(), duplicate.row.to_string(), first]
    });
    table("rows that repeat an earlier one", report.duplicate_count, &["file", "row", "same as"], duplicates.collect());
    parts.join("\n\n")
}

/// Rows of a table of findings for people; `--json` has more.
const SHOWN: usize = 20;
