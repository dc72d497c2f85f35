//! What running work tells the person waiting for it. Libraries never print: they tell a [`Reporter`].

use serde::{Deserialize, Serialize};

/// A table for people; numbers are already formatted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Column heads.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<String>>,
}

/// One step of training.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The stage.
    pub stage: String,
    /// Steps done, from 1.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Mean loss of the step, nats per unit of weight.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Speed, averaged over recent steps.
    pub tokens_per_s: f64,
    /// The matrix work done in that time as a share of what this machine does at most; `None` as long as that was not
    /// measured.
    pub share_of_peak: Option<f64>,
    /// Seconds left, estimated.
    pub eta_s: f64,
    /// Anything else worth a word, such as an evaluation.
    pub note: Option<String>,
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// The user should act on it, or know that something was lost.
    Warning,
}

/// Whoever shows progress: a terminal, a log, nobody.
pub trait Reporter: Sync {
    /// A stage begins; `index` from 0 of `total`.
    fn stage_started(&self, _name: &str, _index: usize, _total: usize) {}
    /// A stage need not run.
    fn stage_skipped(&self, _name: &str, _why: &str) {}
    /// A stage is done.
    fn stage_finished(&self, _name: &str, _seconds: f64) {}
    /// A training step is done.
    fn step(&self, _report: &StepReport) {}
    /// `done` of `total` things (`what`: rows, requests, batches) are through.
    fn count(&self, _stage: &str, _what: &str, _done: u64, _total: Option<u64>) {}
    /// A result as a table.
    fn table(&self, _table: &Table) {}
    /// A sentence.
    fn message(&self, _level: Level, _text: &str) {}
}

/// Seconds for people.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Reporter for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let texts = [0.04, 9.4, 12.3, 75.0, 3725.0, f64::NAN].map(duration);
        assert_eq!(texts, ["0.0 s", "9.4 s", "12 s", "1 min 15 s", "1 h 02 min", "?"]);
    }
}
