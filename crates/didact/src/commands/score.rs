//! `didact score`: how likely given texts are.

use super::local::ModelFiles;
use super::remote::RemoteArgs;
use super::sampling::{bad_row, rows};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use crate::signals;
use clap::Args;
use didact_core::cancel::Cancel;
use didact_core::generate::{Generator, Prompt, RequestError, TokenLogProbs};
use didact_infer::remote::Bill;
use didact_infer::{LocalGenerator, Options};
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Options of `didact score`.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// A model directory, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH")]
    model: String,
    /// A LoRA adapter's directory, folded in while loading
    #[arg(long, value_name = "DIR", conflicts_with = "endpoint")]
    adapter: Option<PathBuf>,
    /// Rows with `prompt` and `continuation`, both texts
    #[arg(long, value_name = "FILE.jsonl")]
    input: PathBuf,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Serialize)]
struct Report {
    results: Vec<ScoreRow>,
    failed: usize,
    /// What a server was asked for and what came from the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    bill: Option<Bill>,
}

#[derive(Serialize)]
struct ScoreRow {
    /// Number of the row, from 0.
    index: usize,
    /// Sum of the log-probabilities of the continuation's tokens, in nats.
    sum_logprob: Option<f64>,
    /// How many tokens the continuation has.
    tokens: usize,
    /// Whether greedy decoding would have written the continuation.
    greedy: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl ScoreRow {
    fn new(index: usize, scored: Result<&TokenLogProbs, &RequestError>) -> Self {
        let (sum_logprob, tokens, greedy, error) = match scored {
            Ok(scored) => {
                let sum = scored.log_probs.iter().fold(0.0, |sum, &p| sum + f64::from(p));
                (Some(sum), scored.log_probs.len(), Some(scored.is_greedy), None)
            }
            Err(error) => (None, 0, None, Some(error.to_string())),
        };
        Self { index, sum_logprob, tokens, greedy, error }
    }
}

const ROW: &str = "a row is {\"prompt\": \"...\", \"continuation\": \"...\"}";

pub(crate) fn run(args: &ScoreArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    let mut pairs = Vec::new();
    for (number, row) in rows(&args.input, ROW)? {
        let text = |key: &str| match row.get(key) {
            Some(Value::String(text)) => Ok(Prompt::Text(text.clone())),
            Some(_) => Err(bad_row(&args.input, number, &format!("`{key}` is not a string"), ROW)),
            None => Err(bad_row(&args.input, number, &format!("it has no `{key}`"), ROW)),
        };
        pairs.push((text("prompt")?, text("continuation")?));
    }
    let cancel = Cancel::new();
    if let Some(generator) = args.remote.generator(&args.model, true, global.seed.unwrap_or_default())? {
        signals::watch(&cancel)?;
        return score(&generator, &pairs, || Some(generator.bill()), &cancel, output);
    }
    let model = ModelFiles::open(&args.model, output)?.load(args.adapter.as_deref(), global)?;
    signals::watch(&cancel)?;
    let generator = LocalGenerator::with_model(model, Options::default())?;
    score(&generator, &pairs, || None, &cancel, output)
}

/// Scores the pairs and prints what comes.
fn score(
    generator: &impl Generator,
    pairs: &[(Prompt, Prompt)],
    bill: impl FnOnce() -> Option<Bill>,
    cancel: &Cancel,
    output: &Output,
) -> anyhow::Result<Status> {
    let mut scored = vec![None; pairs.len()];
    let mut printed = 0;
    let mut sink = |index: usize, result: Result<TokenLogProbs, RequestError>| {
        scored[index] = Some(result);
        // In the order of the rows, each as soon as those before it are there.
        while let Some(Some(result)) = scored.get(printed) {
            let row = ScoreRow::new(printed, result.as_ref());
            output.piece(&serde_json::to_value(row).unwrap_or_default().to_string());
            printed += 1;
        }
    };
    generator.score(pairs, &mut sink, cancel)?;
    let there = scored.iter().enumerate().filter_map(|(index, result)| Some((index, result.as_ref()?)));
    let results: Vec<ScoreRow> = there.map(|(index, result)| ScoreRow::new(index, result.as_ref())).collect();
    let failed = results.iter().filter(|row| row.error.is_some()).count();
    let reasons = results.iter().filter_map(|row| Some((row.index, row.error.clone()?)));
    let reasons: Vec<(usize, String)> = reasons.collect();
    if let (Some((_, reason)), true) = (reasons.first(), failed == pairs.len()) {
        return Err(usage(format!("no row could be scored: {reason}"), "see `didact score --help`"));
    }
    for (index, reason) in reasons {
        output.warn(&format!("row {} was not scored: {reason}", index + 1));
    }
    if output.is_json() {
        output.result(&Report { results, failed, bill: bill() }, String::new)?;
    }
    Ok(if cancel.is_cancelled() {
        output.note("stopped; the scores so far are printed");
        Status::Stopped
    } else if failed > 0 {
        Status::Partly
    } else {
        Status::Done
    })
}
