//! `didact tokenizer`: makes a tokenizer from texts.

use crate::output::{Output, Status, usage};
use clap::{Subcommand, ValueEnum};
use didact_core::files;
use didact_data::reader::SourceConfig;
use didact_data::train::{TokenizerKind, TokenizerSettings, train_tokenizer_on};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `didact tokenizer ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenizerCommand {
    /// Train a tokenizer on text, JSONL or Parquet files, folders or globs
    #[command(after_help = "Example:\n  didact tokenizer train corpus.txt --kind bpe --vocab 4096 --to my-tokenizer")]
    Train {
        /// Files, folders or globs
        #[arg(required = true)]
        input: Vec<String>,
        /// bpe: byte-level BPE; word: whole words
        #[arg(long, default_value = "bpe")]
        kind: Kind,
        /// Most tokens, special ones included
        #[arg(long, value_name = "N")]
        vocab: usize,
        /// The directory to make, or to put the tokenizer's files into
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// A special token beside the usual ones (`<|endoftext|>`, for words `<unk>`); may be given several times
        #[arg(long, value_name = "TOKEN")]
        special: Vec<String>,
        /// Which special token ends a text or turn
        #[arg(long, value_name = "TOKEN", default_value = "<|endoftext|>")]
        eos: String,
        /// A chat template (Jinja) to go with it
        #[arg(long, value_name = "FILE")]
        chat_template: Option<PathBuf>,
    },
}

/// `--kind`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    Bpe,
    Word,
}

#[derive(Serialize)]
struct TrainReport<'a> {
    vocab: usize,
    path: PathBuf,
    kind: TokenizerKind,
    special_tokens: &'a [String],
}

pub(crate) fn run(command: TokenizerCommand, output: &Output) -> anyhow::Result<Status> {
    let TokenizerCommand::Train { input, kind, vocab, to, special, eos, chat_template } = command;
    let kind = match kind {
        Kind::Bpe => TokenizerKind::Bpe,
        Kind::Word => TokenizerKind::Word,
    };
    let mut settings = TokenizerSettings::new(kind, vocab);
    for token in special.into_iter().chain([eos.clone()]) {
        if !settings.special_tokens.contains(&token) {
            settings.special_tokens.push(token);
        }
    }
    settings.eos_token = Some(eos);
    if to.exists() && !to.is_dir() {
        return Err(usage(format!("`{}` is a file", to.display()), "name a directory with --to"));
    }
    let template = chat_template.as_deref().map(files::read_to_string).transpose()?;
    let mut source = SourceConfig::new("");
    source.path = input;
    let mut tokenizer = train_tokenizer_on(&source, &settings)?;
    if let (Some(text), Some(path)) = (&template, &chat_template) {
        tokenizer = tokenizer.with_template(text, &path.display().to_string())?;
    }
    files::create_dir_all(&to)?;
    tokenizer.save(&to)?;
    let report = TrainReport {
        vocab: tokenizer.vocab_size(),
        path: to.join("tokenizer.json"),
        kind,
        special_tokens: &settings.special_tokens,
    };
    output.result(&report, || describe(&report, vocab, &to))?;
    Ok(Status::Done)
}

fn describe(report: &TrainReport<'_>, asked: usize, to: &Path) -> String {
    let fewer =
        if report.vocab < asked { format!(" (the texts gave no more; asked for {asked})") } else { String::new() };
    format!("{}\n{} tokens{fewer}", to.display(), report.vocab)
}
