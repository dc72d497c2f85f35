//! The rounds of a run, read back.

use std::path::{Path, PathBuf};

use didact_core::files;
use didact_core::progress::Table;
use serde::{Deserialize, Serialize};

use super::progress::Decision;
use super::select::Selection;
use super::stages::{DECISION, SELECTION, STOPPED, Step};
use crate::error::MethodError;
use crate::stages::read_json;
use crate::stages::train::{OUTCOME, Outcome};

/// One round, as far as it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundRow {
    /// The round, from 1.
    pub round: u64,
    /// Answers.
    pub sampled: Option<usize>,
    /// Right ones.
    pub passed: Option<usize>,
    /// Tasks that something was learned from.
    pub kept: Option<usize>,
    /// Groups or rows that were trained on, those of earlier rounds and of the user's data included.
    pub trained: Option<usize>,
    /// Optimiser steps.
    pub steps: Option<u64>,
    /// Share of held-out answers that were right before the round.
    pub before: Option<f64>,
    /// And after it.
    pub after: Option<f64>,
    /// The gain since the last one that was shown, and its 95 % interval.
    pub gain: Option<[f64; 3]>,
    /// Why it was the last, if it was.
    pub stop: Option<String>,
}

/// The directory of a stage, if it is published.
fn stage(root: &Path, name: &str) -> Option<PathBuf> {
    let all = files::list_dir(root.join("stages")).ok()?;
    let is_it = |path: &PathBuf| {
        path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split_once('-')).is_some_and(|(_, rest)| rest == name)
    };
    all.into_iter().find(is_it)
}

fn decision(root: &Path, round: u64) -> Result<Option<Decision>, MethodError> {
    stage(root, &Step::Evaluate(round).name())
        .map(|dir| dir.join(DECISION))
        .filter(|path| path.is_file())
        .map(|path| read_json(&path))
        .transpose()
}

/// The rounds of a run; none if it has none, or none is begun.
///
/// # Errors
/// When an artifact is damaged.
pub fn rows(root: &Path) -> Result<Vec<RoundRow>, MethodError> {
    let mut rows = Vec::new();
    for round in 1.. {
        let Some(sampled) = stage(root, &Step::Sample(round).name()) else { break };
        if sampled.join(STOPPED).is_file() {
            break;
        }
        let before = decision(root, round - 1)?;
        let after = decision(root, round)?;
        let selected = stage(root, &Step::Select(round).name()).map(|dir| dir.join(SELECTION));
        let selection: Option<Selection> = selected.map(|path| read_json(&path)).transpose()?;
        let outcome = stage(root, &Step::Train(round).name()).map(|dir| dir.join(OUTCOME));
        let outcome: Option<Outcome> =
            outcome.filter(|path| path.is_file()).map(|path| read_json(&path)).transpose()?;
        rows.push(RoundRow {
            round,
            sampled: selection.as_ref().map(|s| s.sampled),
            passed: selection.as_ref().map(|s| s.passed),
            kept: selection.as_ref().map(|s| s.kept),
            trained: selection.as_ref().map(|s| s.trained),
            steps: outcome.map(|outcome| outcome.steps),
            before: before.map(|decision| decision.score),
            after: after.as_ref().map(|decision| decision.score),
            gain: after.as_ref().and_then(|decision| decision.gain),
            stop: after.and_then(|decision| decision.stop),
        });
    }
    Ok(rows)
}

/// The rounds as a table.
pub fn table(rows: &[RoundRow]) -> Table {
    let percent = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let number = |count: Option<usize>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let row = |row: &RoundRow| {
        let gain = row.gain.map_or_else(
            || "-".to_owned(),
            |[gain, low, high]| format!("{:+.1} ({:+.1} to {:+.1})", 100.0 * gain, 100.0 * low, 100.0 * high),
        );
        vec![
            row.round.to_string(),
            number(row.sampled),
            number(row.passed),
            number(row.kept),
            number(row.trained),
            percent(row.before),
            percent(row.after),
            gain,
            row.stop.clone().unwrap_or_default(),
        ]
    };
    let columns = ["round", "sampled", "passed", "kept", "trained", "before", "after", "gain (95 %)", ""];
    Table {
        title: "rounds; before and after: right answers to held-out tasks".into(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.iter().map(row).collect(),
    }
}
