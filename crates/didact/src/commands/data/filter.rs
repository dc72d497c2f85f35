//! `didact data filter`: rows that are left out, and why.

use super::SchemaOption;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::{Args, ValueEnum};
use didact_core::cancel::Cancel;
use didact_core::files::{AtomicFile, FileError};
use didact_data::filter::contamination::ContaminationSettings;
use didact_data::filter::near::NearSettings;
use didact_data::filter::quality::QualitySet;
use didact_data::filter::{Decision, Filter, FilterReport, FilterSettings, filter};
use didact_data::reader::{OnBadRow, SourceConfig, resolve};
use serde::Serialize;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Options of `data filter`.
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Files, folders or globs
    #[arg(required = true)]
    input: Vec<String>,
    /// The JSONL file of the rows that stay
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// A JSONL file that lists the rows left out: file, row, rule, and what was found
    #[arg(long, value_name = "FILE")]
    dropped: Option<PathBuf>,
    /// How rows are laid out [default: recognised from the first row]
    #[arg(long)]
    schema: Option<SchemaOption>,
    /// Leave out rows that cannot be used, count and list them
    #[arg(long)]
    skip_bad_rows: bool,
    /// Least characters
    #[arg(long, value_name = "N")]
    min_chars: Option<u64>,
    /// Most characters
    #[arg(long, value_name = "N")]
    max_chars: Option<u64>,
    /// Least words
    #[arg(long, value_name = "N")]
    min_words: Option<u64>,
    /// Most words
    #[arg(long, value_name = "N")]
    max_words: Option<u64>,
    /// Sets of heuristics, such as gopher,repetition
    #[arg(long, value_name = "SETS", value_delimiter = ',')]
    quality: Vec<QualityOption>,
    /// Leave out rows that repeat an earlier one exactly
    #[arg(long)]
    exact: bool,
    /// Leave out rows that nearly repeat an earlier one
    #[arg(long)]
    near: bool,
    /// Least similarity of a near repetition [default: 0.8]
    #[arg(long, value_name = "SHARE", requires = "near")]
    near_threshold: Option<f64>,
    /// Evaluation data: rows that share a run of words with them are left out; may be given several times
    #[arg(long, value_name = "FILE")]
    against: Vec<String>,
    /// Words of a run [default: 13]
    #[arg(long, value_name = "N", requires = "against")]
    against_words: Option<usize>,
}

/// `--quality`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum QualityOption {
    /// Numbers, lengths and kinds of words and lines
    Gopher,
    /// Lines, paragraphs and runs of words that repeat within a row
    Repetition,
    /// Lines that are no sentences are taken out; what is left must be three sentences, without code
    C4,
}

impl From<QualityOption> for QualitySet {
    fn from(option: QualityOption) -> Self {
        match option {
            QualityOption::Gopher => Self::Gopher,
            QualityOption::Repetition => Self::Repetition,
            QualityOption::C4 => Self::C4,
        }
    }
}

#[derive(Serialize)]
struct Document {
    path: PathBuf,
    #[serde(flatten)]
    report: FilterReport,
    /// Rows and texts of the evaluation data, when there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Evaluation>,
}

#[derive(Serialize)]
struct Evaluation {
    rows: u64,
    too_short: u64,
}

pub(super) fn run(args: FilterArgs, output: &Output) -> anyhow::Result<Status> {
    let settings = FilterSettings {
        min_chars: args.min_chars,
        max_chars: args.max_chars,
        min_words: args.min_words,
        max_words: args.max_words,
        quality: args.quality.into_iter().map(Into::into).collect(),
        exact: args.exact,
        near: args.near.then(|| {
            let default = NearSettings::default();
            NearSettings { threshold: args.near_threshold.unwrap_or(default.threshold), ..default }
        }),
        contamination: (!args.against.is_empty()).then(|| {
            let usual = ContaminationSettings::new(args.against);
            ContaminationSettings { words: args.against_words.unwrap_or(usual.words), ..usual }
        }),
    };
    if settings.is_empty() {
        let hint = "add --min-chars, --quality, --exact, --near or --against; see `didact data filter --help`";
        return Err(usage("no rule says what is to be left out", hint));
    }
    let mut source = SourceConfig::new("");
    source.path = args.input;
    source.schema = args.schema.map(Into::into);
    source.on_bad_row = if args.skip_bad_rows { OnBadRow::Skip } else { OnBadRow::Stop };
    for path in [Some(&args.to), args.dropped.as_ref()].into_iter().flatten() {
        if resolve(&source)?.iter().any(|file| is_same(&file.path, path)) {
            return Err(usage(format!("`{}` is one of the files read", path.display()), "name another file"));
        }
    }
    let mut rules = Filter::new(settings)?;
    let mut kept = AtomicFile::create(&args.to)?;
    let mut listed = args.dropped.as_ref().map(AtomicFile::create).transpose()?;
    // What text is called in these rows.
    let key = source.fields.text.clone().unwrap_or_else(|| "text".to_owned());
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let progress = Progress::new(output);
    let done =
        filter::<anyhow::Error>(&source, &mut rules, &cancel, &progress, |row, mut raw, decision| match decision {
            Decision::Keep(edited) => {
                if let Some(text) = edited {
                    raw.insert(key.clone(), text.into());
                }
                line(&mut kept, &args.to, &raw)
            }
            Decision::Drop(why) => match (&mut listed, &args.dropped) {
                (Some(file), Some(path)) => {
                    let entry = json!({"path": row.path, "row": row.row, "rule": why.rule, "found": why.found});
                    line(file, path, &entry)
                }
                _ => Ok(()),
            },
        })?;
    drop(progress);
    if done.is_cancelled {
        output.note("stopped; nothing was written");
        return Ok(Status::Stopped);
    }
    kept.commit()?;
    listed.map(AtomicFile::commit).transpose()?;
    let evaluation = rules.contamination().map(|c| Evaluation { rows: c.rows, too_short: c.too_short });
    let document = Document { path: args.to, report: done.report, evaluation };
    if done.bad_rows.count > 0 {
        output.piece(&output.table(&done.bad_rows.table()));
    }
    output.result(&document, || format!("{}\n{}", document.path.display(), output.table(&document.report.table())))?;
    Ok(Status::Done)
}

fn line(file: &mut AtomicFile, path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    Ok(file.write_all(&text).map_err(FileError::at("write", path))?)
}

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
