//! `didact data tokenize`: text to a tokenised corpus.

use super::{SchemaOption, TrainOnOption};
use crate::commands::model::locate;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::{Args, ValueEnum};
use didact_core::cancel::Cancel;
use didact_core::progress::duration;
use didact_data::corpus::{CorpusOptions, tokenize};
use didact_data::reader::{OnBadRow, SourceConfig, TextUnit};
use didact_data::tokenizer::Tokenizer;
use serde::Serialize;
use std::path::PathBuf;

/// Options of `data tokenize`.
#[derive(Debug, Args)]
pub(crate) struct TokenizeArgs {
    /// Files, folders or globs
    #[arg(required = true)]
    input: Vec<String>,
    /// The tokenizer: a directory, a tokenizer.json, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH")]
    tokenizer: String,
    /// The directory of the corpus
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Fields of each row to keep beside its tokens, such as skill,level
    #[arg(long, value_name = "KEYS", value_delimiter = ',')]
    keep: Vec<String>,
    /// How rows are laid out [default: recognised from the first row]
    #[arg(long)]
    schema: Option<SchemaOption>,
    /// What one document of a plain-text file is
    #[arg(long, default_value = "file")]
    text_unit: TextUnitOption,
    /// What is trained in conversations and completions
    #[arg(long, default_value = "assistant")]
    train_on: TrainOnOption,
    /// Do not end documents with the end-of-sequence token
    #[arg(long)]
    no_eos: bool,
    /// Leave out rows that cannot be used, count and list them
    #[arg(long)]
    skip_bad_rows: bool,
    /// Tokens after which a file of the corpus is closed; an interrupted run does at most this much again
    #[arg(long, value_name = "N", default_value_t = CorpusOptions::default().shard_tokens)]
    shard_tokens: u64,
    /// Add to the corpus that is there
    #[arg(long, conflicts_with = "fresh")]
    append: bool,
    /// Remove the corpus that is there and begin anew
    #[arg(long)]
    fresh: bool,
}

/// `--text-unit`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum TextUnitOption {
    /// The whole file
    File,
    /// What stands between blank lines
    Paragraph,
    /// Each line that is not blank
    Line,
}

impl From<TextUnitOption> for TextUnit {
    fn from(option: TextUnitOption) -> Self {
        match option {
            TextUnitOption::File => Self::File,
            TextUnitOption::Paragraph => Self::Paragraph,
            TextUnitOption::Line => Self::Line,
        }
    }
}

#[derive(Serialize)]
struct TokenizeReport {
    path: PathBuf,
    documents: u64,
    tokens: u64,
    /// Of text.
    bytes: u64,
    /// Over what this call did; null when all was done before.
    tokens_per_s: Option<f64>,
    new_tokens: u64,
    wall_s: f64,
    longest: u32,
    empty_rows: u64,
    bad_rows: u64,
    schema: Vec<String>,
}

pub(super) fn run(args: TokenizeArgs, output: &Output) -> anyhow::Result<Status> {
    if args.to.exists() && !args.to.is_dir() {
        return Err(usage(format!("`{}` is a file", args.to.display()), "name a directory with --to"));
    }
    let tokenizer = Tokenizer::open(locate(&args.tokenizer, output)?)?;
    let mut source = SourceConfig::new("");
    source.path = args.input;
    source.schema = args.schema.map(Into::into);
    source.text_unit = args.text_unit.into();
    source.on_bad_row = if args.skip_bad_rows { OnBadRow::Skip } else { OnBadRow::Stop };
    let options = CorpusOptions {
        keep: args.keep,
        train_on: args.train_on.into(),
        add_bos: None,
        add_eos: args.no_eos.then_some(false),
        shard_tokens: args.shard_tokens,
        append: args.append,
        fresh: args.fresh,
    };
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let progress = Progress::new(output);
    let done = tokenize(&source, &tokenizer, &args.to, &options, &cancel, &progress)?;
    drop(progress);
    if done.is_cancelled {
        output.note("stopped; the same command goes on where it was");
        return Ok(Status::Stopped);
    }
    let summary = done.summary;
    let report = TokenizeReport {
        path: args.to,
        documents: summary.documents,
        tokens: summary.tokens,
        bytes: summary.text_bytes,
        tokens_per_s: (done.new_tokens > 0).then(|| done.new_tokens as f64 / done.seconds.max(1e-9)),
        new_tokens: done.new_tokens,
        wall_s: done.seconds,
        longest: summary.longest,
        empty_rows: summary.empty_rows,
        bad_rows: summary.bad_rows,
        schema: done.detections.iter().map(ToString::to_string).collect(),
    };
    if done.bad_rows.count > 0 {
        output.piece(&output.table(&done.bad_rows.table()));
    }
    output.result(&report, || describe(&report))?;
    Ok(Status::Done)
}

fn describe(report: &TokenizeReport) -> String {
    let TokenizeReport { documents, tokens, bytes, longest, .. } = report;
    let mut lines = report.schema.clone();
    lines.push(report.path.display().to_string());
    lines.push(format!("{documents} documents, {tokens} tokens of {bytes} bytes of text; the longest has {longest}"));
    lines.push(match report.tokens_per_s {
        Some(speed) => format!("{:.2} million tokens/s, {}", speed / 1e6, duration(report.wall_s)),
        None => "all of it was there already".to_owned(),
    });
    for (count, what) in [(report.empty_rows, "rows without text"), (report.bad_rows, "rows that could not be used")] {
        if count > 0 {
            lines.push(format!("{count} {what} are left out"));
        }
    }
    lines.join("\n")
}
