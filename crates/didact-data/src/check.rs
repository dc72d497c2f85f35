//! What `didact data check` finds out about a data set without a model.

use std::collections::HashMap;

use didact_core::example::Example;
use didact_core::hash::{Digest, hash_bytes};
use didact_core::message::Role;
use serde::Serialize;

use crate::reader::{Problem, ReadError, SourceConfig, open_reporting};
use crate::schema::Detection;

/// Problems and findings that are listed one by one; more are only counted.
const LISTED: usize = 1000;

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CheckReport {
    /// Files read.
    pub files: u64,
    /// Rows read, good and bad.
    pub rows: u64,
    /// The schemas found, and what they were recognised from.
    pub schema: Vec<Detection>,
    /// Rows (or files, row 0) that cannot be used: the first thousand.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problem_count: u64,
    /// Rows in which there is nothing to learn: an empty text, completion or answer, or no turn that is trained.
    pub empty_targets: Vec<Place>,
    /// How many there are.
    pub empty_target_count: u64,
    /// Rows that repeat an earlier one exactly.
    pub duplicates: Vec<Duplicate>,
    /// How many there are.
    pub duplicate_count: u64,
    /// Lengths of the good rows, in characters of all their text.
    pub characters: Distribution,
}

impl CheckReport {
    /// Whether every row can be used.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file.
    pub path: String,
    /// The row, from 1.
    pub row: u64,
}

/// A row and the earlier one that it repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// The file.
    pub path: String,
    /// The row, from 1.
    pub row: u64,
    /// The earlier row.
    pub first: Place,
}

/// How a quantity is distributed. Quantiles are values that occur (nearest rank).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Distribution {
    /// Number of values.
    pub count: u64,
    /// The least.
    pub min: u64,
    /// Half are not above it.
    pub p50: u64,
    /// Nine in ten are not above it.
    pub p90: u64,
    /// 99 in a hundred are not above it.
    pub p99: u64,
    /// The greatest.
    pub max: u64,
    /// The mean.
    pub mean: f64,
    /// The sum.
    pub sum: u64,
}

impl Distribution {
    /// Of some values, in any order.
    pub fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else { return Self::default() };
        let count = values.len();
        let quantile = |percent: usize| values[(count * percent).div_ceil(100).max(1) - 1];
        let sum: u64 = values.iter().sum();
        Self {
            count: count as u64,
            min,
            p50: quantile(50),
            p90: quantile(90),
            p99: quantile(99),
            max,
            mean: sum as f64 / count as f64,
            sum,
        }
    }
}

/// Reads a source from beginning to end. Memory: about 80 bytes per row, for lengths and digests.
///
/// # Errors
/// When the source leads to no file. What is wrong inside the files is in the report.
pub fn check(config: &SourceConfig) -> Result<CheckReport, ReadError> {
    let mut stream = open_reporting(config)?;
    let mut report = CheckReport { files: stream.files() as u64, ..CheckReport::default() };
    let mut lengths = Vec::new();
    // Only looked up, never walked: its order cannot show.
    let mut seen: HashMap<Digest, (u32, u64)> = HashMap::new();
    let mut paths: Vec<String> = Vec::new();
    for item in &mut stream {
        let row = match item {
            Ok(row) => row,
            Err(error) => {
                report.problem_count += 1;
                if report.problems.len() < LISTED {
                    report.problems.push((&error).into());
                }
                continue;
            }
        };
        lengths.push(text_size(&row.example, |text| text.chars().count()) as u64);
        if paths.last() != Some(&row.path) {
            paths.push(row.path.clone());
        }
        let place = Place { path: row.path, row: row.row };
        let text = serde_json::to_vec(&row.example).unwrap_or_default();
        let digest = hash_bytes(&text);
        match seen.get(&digest) {
            Some(&(path, first)) => {
                report.duplicate_count += 1;
                if report.duplicates.len() < LISTED {
                    let first = Place { path: paths[path as usize].clone(), row: first };
                    report.duplicates.push(Duplicate { path: place.path.clone(), row: place.row, first });
                }
            }
            None => {
                seen.insert(digest, (paths.len() as u32 - 1, place.row));
            }
        }
        if has_nothing_to_learn(&row.example) {
            report.empty_target_count += 1;
            if report.empty_targets.len() < LISTED {
                report.empty_targets.push(place);
            }
        }
    }
    report.rows = stream.rows();
    report.schema = stream.detections().to_vec();
    report.characters = Distribution::of(lengths);
    Ok(report)
}

fn has_nothing_to_learn(example: &Example) -> bool {
    match example {
        Example::Text { text } => text.trim().is_empty(),
        Example::Completion { completion, .. } => completion.trim().is_empty(),
        Example::Chat { messages, .. } => !messages.iter().any(|message| {
            let says_something = !message.content.trim().is_empty()
                || !message.tool_calls.is_empty()
                || message.reasoning_content.as_ref().is_some_and(|text| !text.trim().is_empty());
            let is_trained = message.weight.map_or(message.role == Role::Assistant, |weight| weight > 0.0);
            says_something && is_trained
        }),
        Example::Preference { chosen, rejected } => has_nothing_to_learn(chosen) || has_nothing_to_learn(rejected),
    }
}

/// What `measure` says of each text of an example, summed: tool calls and tool descriptions as compact JSON.
pub(crate) fn text_size(example: &Example, measure: impl Fn(&str) -> usize) -> usize {
    size_of(example, &measure)
}

fn size_of(example: &Example, measure: &dyn Fn(&str) -> usize) -> usize {
    match example {
        Example::Preference { chosen, rejected } => size_of(chosen, measure) + size_of(rejected, measure),
        Example::Text { text } => measure(text),
        Example::Completion { prompt, completion } => measure(prompt) + measure(completion),
        Example::Chat { messages, tools } => {
            let mut size = 0;
            for message in messages {
                size += measure(&message.content) + message.reasoning_content.as_deref().map_or(0, measure);
                for call in &message.tool_calls {
                    let arguments = serde_json::to_string(&call.arguments).unwrap_or_default();
                    size += measure(&call.name) + measure(&arguments);
                }
            }
            size + tools.iter().map(|tool| measure(&tool.0.to_string())).sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests;
