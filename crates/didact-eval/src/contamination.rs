//! Which questions of a task stand in training text, and what the score is without them.
//!
//! A question is *dirty* if some run of N of its words, in lower case and without punctuation, stands in a training
//! document, else *clean*. N is the length that 95 % of the task's texts reach, but at least 8 and at most 13 words
//! (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C). Runs are compared by 64-bit hashes and not
//! again word by word: of a million runs looked for in a billion, two different ones share a hash with a chance of 5 in 100 000.

use crate::error::EvalError;
use crate::harness::TaskResult;
use crate::measure::{Aggregation, Measured};
use crate::metrics::statistics::{mean, standard_error};
use crate::task::Task;
use didact_core::cancel::Cancel;
use didact_core::progress::{Reporter, Table};
use didact_data::filter::contamination::texts;
use didact_data::filter::words::{normalised, runs};
use didact_data::reader::{self, SourceConfig};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};

/// Least and most words of a run.
const LEAST: usize = 8;
const MOST: usize = 13;
/// Clean questions below which their score says nothing.
const ENOUGH: usize = 30;
/// Training documents that are looked at together.
const CHUNK: usize = 1024;

/// A task's questions and training text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// Words of a run.
    pub words: usize,
    /// Questions.
    pub total: usize,
    /// Numbers of the documents that are dirty.
    pub dirty: Vec<usize>,
    /// Questions too short to be looked for.
    pub too_short: usize,
    /// Scores by metric.
    pub scores: Vec<CleanScore>,
}

/// A metric with and without the dirty questions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CleanScore {
    /// The metric's key.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// Of all, with its standard error.
    pub all: (f64, Option<f64>),
    /// Of the clean ones; `None` if they are too few to say anything.
    pub clean: Option<(f64, Option<f64>)>,
    /// Of the dirty ones; `None` if there are none.
    pub dirty: Option<(f64, Option<f64>)>,
    /// `(clean - all) / all`.
    pub change: Option<f64>,
}

/// A task's runs of words.
struct Index {
    words: usize,
    /// Documents by run. Only looked up, never walked.
    documents: HashMap<u64, Vec<usize>>,
    too_short: usize,
}

/// Looks for the questions of tasks in training text: files, folders and globs as recipes take them.
///
/// # Errors
/// When the text cannot be read.
pub fn look(
    tasks: &[Task],
    results: &[TaskResult],
    training: &[String],
    reporter: &dyn Reporter,
    cancel: &Cancel,
) -> Result<Vec<Report>, EvalError> {
    let indices = tasks.iter().zip(results).map(|(task, result)| index(task, result)).collect::<Result<Vec<_>, _>>()?;
    let mut dirty: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); tasks.len()];
    let source = SourceConfig { path: training.to_vec(), ..SourceConfig::new("") };
    let mut rows = reader::open(&source).map_err(didact_data::DataError::from)?;
    let mut seen = 0;
    loop {
        let chunk: Vec<_> =
            rows.by_ref().take(CHUNK).collect::<Result<_, _>>().map_err(didact_data::DataError::from)?;
        if chunk.is_empty() {
            break;
        }
        if cancel.is_cancelled() {
            return Err(EvalError::Stopped);
        }
        let found: Vec<(usize, usize)> = chunk
            .par_iter()
            .flat_map_iter(|row| {
                let mut found = Vec::new();
                for text in texts(&row.example) {
                    let words = normalised(text);
                    for (number, index) in indices.iter().enumerate() {
                        let hits = runs(&words, index.words).filter_map(|run| index.documents.get(&run));
                        found.extend(hits.flatten().map(|&document| (number, document)));
                    }
                }
                found
            })
            .collect();
        for (number, document) in found {
            dirty[number].insert(document);
        }
        seen += chunk.len() as u64;
        reporter.count("contamination", "training documents", seen, None);
    }
    Ok(indices.iter().zip(dirty).zip(results).map(|((index, dirty), result)| report(index, &dirty, result)).collect())
}

fn index(task: &Task, result: &TaskResult) -> Result<Index, EvalError> {
    let text = |doc: usize| task.query(&task.documents[doc]).map_err(|message| task.at(doc, message));
    let asked: Vec<(usize, Vec<u64>)> = result
        .samples
        .iter()
        .map(|sample| Ok((sample.doc, normalised(&text(sample.doc)?))))
        .collect::<Result<_, EvalError>>()?;
    let mut lengths: Vec<usize> = asked.iter().map(|(_, words)| words.len()).collect();
    lengths.sort_unstable();
    let least = task.file.contamination_least_words.unwrap_or(LEAST).clamp(1, MOST);
    let words = lengths.get(lengths.len() / 20).copied().unwrap_or(MOST).clamp(least, MOST);
    let mut documents: HashMap<u64, Vec<usize>> = HashMap::new();
    let mut too_short = 0;
    for (document, own) in &asked {
        too_short += usize::from(own.len() < words);
        for run in runs(own, words) {
            documents.entry(run).or_default().push(*document);
        }
    }
    Ok(Index { words, documents, too_short })
}

fn report(index: &Index, dirty: &BTreeSet<usize>, result: &TaskResult) -> Report {
    let mut scores = Vec::new();
    for score in result.scores.iter().filter(|score| score.metric.aggregation == Aggregation::Mean) {
        let values = |wanted: &dyn Fn(usize) -> bool| -> Vec<f64> {
            let pairs = result.samples.iter().zip(&score.values).filter(|(sample, _)| wanted(sample.doc));
            pairs.filter_map(|(_, value)| if let Measured::Number(x) = value { Some(*x) } else { None }).collect()
        };
        let with_error = |values: &[f64]| (mean(values), standard_error(values));
        let clean = values(&|doc| !dirty.contains(&doc));
        let soiled = values(&|doc| dirty.contains(&doc));
        let clean = (clean.len() >= ENOUGH).then(|| with_error(&clean));
        scores.push(CleanScore {
            metric: score.name.clone(),
            filter: score.filter.clone(),
            all: (score.value, score.error),
            clean,
            dirty: (!soiled.is_empty()).then(|| with_error(&soiled)),
            change: clean.map(|(clean, _)| (clean - score.value) / score.value).filter(|change| change.is_finite()),
        });
    }
    Report {
        task: result.task.clone(),
        words: index.words,
        total: result.samples.len(),
        dirty: dirty.iter().copied().collect(),
        too_short: index.too_short,
        scores,
    }
}

/// The reports for people.
pub fn table(reports: &[Report]) -> Table {
    let columns = ["task", "run of words", "dirty", "too short", "metric", "all", "clean", "dirty ones", "change"];
    let shown = |value: Option<(f64, Option<f64>)>, none: &str| {
        value.map_or(none.to_owned(), |(value, error)| {
            let error = error.map_or(String::new(), |error| format!(" ± {error:.4}"));
            format!("{value:.4}{error}")
        })
    };
    let mut rows = Vec::new();
    for report in reports {
        for (i, score) in report.scores.iter().enumerate() {
            let head = |text: String| if i == 0 { text } else { String::new() };
            let share = 100.0 * report.dirty.len() as f64 / report.total.max(1) as f64;
            rows.push(vec![
                head(report.task.clone()),
                head(report.words.to_string()),
                head(format!("{} of {} ({share:.1} %)", report.dirty.len(), report.total)),
                head(report.too_short.to_string()),
                score.metric.clone(),
                shown(Some(score.all), ""),
                shown(score.clean, "not enough"),
                shown(score.dirty, "none"),
                score.change.map_or("-".into(), |change| format!("{:+.1} %", 100.0 * change)),
            ]);
        }
    }
    Table { title: "Questions found in training text".into(), columns: columns.map(str::to_owned).to_vec(), rows }
}
