//! Numbers of a run over its steps: JSON lines for scripts, event files for TensorBoard.
//!
//! `metrics.jsonl` holds no clock: it is the same file, byte for byte, for a run that was killed and resumed. Speed and
//! time go to `timing.jsonl`, and both to the TensorBoard files, which are exempt.

use crate::files::{AppendLog, FileError, create_dir_all};
use serde_json::{Map, Value};
use std::path::Path;

mod tensorboard;

use tensorboard::EventFile;

/// File of the numbers that must repeat.
pub const METRICS: &str = "metrics.jsonl";
/// File of speed and time.
pub const TIMING: &str = "timing.jsonl";
/// Directory of the TensorBoard event files.
pub const TENSORBOARD: &str = "tensorboard";

/// Writes the metrics of one stage.
#[derive(Debug)]
pub struct Metrics {
    stage: String,
    repeatable: AppendLog,
    timing: AppendLog,
    events: EventFile,
}

/// One record of `metrics.jsonl` or `timing.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The stage that wrote it.
    pub stage: String,
    /// The step it belongs to.
    pub step: u64,
    /// Names and values, in the order in which they were written.
    pub values: Vec<(String, f64)>,
}

impl Metrics {
    /// Opens the metrics of `stage` in a run directory. Records of this stage after `resume_from_step` (all of them when
    /// it is `None`) are cut: they belong to steps that will be done again.
    ///
    /// # Errors
    /// When a file cannot be opened, read or cut.
    pub fn open(run_root: &Path, stage: &str, resume_from_step: Option<u64>) -> Result<Self, FileError> {
        let is_cut = |record: &Map<String, Value>| {
            record.get("stage").and_then(Value::as_str) == Some(stage)
                && resume_from_step.is_none_or(|last| record.get("step").and_then(Value::as_u64) > Some(last))
        };
        let mut logs = [METRICS, TIMING].into_iter().map(|name| {
            let path = run_root.join(name);
            AppendLog::remove_where(&path, is_cut)?;
            Ok(AppendLog::open(&path)?.0)
        });
        let (Some(metrics), Some(timing)) = (logs.next(), logs.next()) else { unreachable!("two names, two logs") };
        // A directory per stage: TensorBoard shows each as a curve of its own, and forgetting steps stays within one.
        let directory = run_root.join(TENSORBOARD).join(stage);
        create_dir_all(&directory)?;
        Ok(Self {
            stage: stage.to_owned(),
            repeatable: metrics?,
            timing: timing?,
            events: EventFile::create(&directory, resume_from_step.map_or(0, |step| step + 1))?,
        })
    }

    /// Records numbers that a resumed run must repeat. Tags are those of the Hugging Face trainer: `train/loss`,
    /// `train/learning_rate`, `train/grad_norm`, `eval/loss`.
    ///
    /// # Errors
    /// When a write fails.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), FileError> {
        self.repeatable.append(&record(&self.stage, step, values))?;
        self.events.scalars(step, values)
    }

    /// Records speed and time.
    ///
    /// # Errors
    /// When a write fails.
    pub fn timing(&mut self, step: u64, values: &[(&str, f64)]) -> Result<(), FileError> {
        self.timing.append(&record(&self.stage, step, values))?;
        self.events.scalars(step, values)
    }

    /// Makes everything recorded so far durable.
    ///
    /// # Errors
    /// When a sync fails.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.repeatable.sync()?;
        self.timing.sync()?;
        self.events.sync()
    }
}

fn record(stage: &str, step: u64, values: &[(&str, f64)]) -> Map<String, Value> {
    let mut record = Map::new();
    record.insert("stage".into(), stage.into());
    record.insert("step".into(), step.into());
    for (name, value) in values {
        // JSON has no NaN and no infinity; they are written as text, so that they are seen.
        let value = serde_json::Number::from_f64(*value).map_or_else(|| value.to_string().into(), Value::Number);
        record.insert((*name).to_owned(), value);
    }
    record
}

/// Reads `metrics.jsonl` of a run; nothing when it is not there.
///
/// # Errors
/// When it cannot be read.
pub fn read(run_root: &Path) -> Result<Vec<Record>, FileError> {
    read_log(&run_root.join(METRICS))
}

/// Reads `timing.jsonl` of a run; nothing when it is not there.
///
/// # Errors
/// When it cannot be read.
pub fn read_timing(run_root: &Path) -> Result<Vec<Record>, FileError> {
    read_log(&run_root.join(TIMING))
}

fn read_log(path: &Path) -> Result<Vec<Record>, FileError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    let records = AppendLog::read(path)?.records.into_iter().map(|map| Record {
        stage: map.get("stage").and_then(Value::as_str).unwrap_or_default().to_owned(),
        step: map.get("step").and_then(Value::as_u64).unwrap_or_default(),
        values: map
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "stage" | "step"))
            .filter_map(|(name, value)| Some((name.clone(), number(value)?)))
            .collect(),
    });
    Ok(records.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(loss: f64) -> Vec<(String, f64)> {
        vec![("train/loss".to_owned(), loss)]
    }

    #[test]
    fn records_after_the_resumed_step_are_cut_and_other_stages_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut first = Metrics::open(dir.path(), "warm", None).expect("opens");
        first.log(9, &[("train/loss", 9.0)]).expect("logs");
        let mut metrics = Metrics::open(dir.path(), "train", None).expect("opens");
        for step in 1..=5 {
            metrics.log(step, &[("train/loss", step as f64)]).expect("logs");
            metrics.timing(step, &[("train/tokens_per_s", 1.0)]).expect("logs");
        }
        metrics.sync().expect("syncs");
        let whole = std::fs::read(dir.path().join(METRICS)).expect("reads");
        drop(metrics);
        let mut metrics = Metrics::open(dir.path(), "train", Some(3)).expect("opens");
        let kept: Vec<_> = read(dir.path()).expect("reads").into_iter().map(|r| (r.stage, r.step, r.values)).collect();
        let train = |step: u64| ("train".to_owned(), step, values(step as f64));
        assert_eq!(kept, [("warm".to_owned(), 9, values(9.0)), train(1), train(2), train(3)]);
        assert_eq!(read_timing(dir.path()).expect("reads").len(), 3);
        for step in 4..=5 {
            metrics.log(step, &[("train/loss", step as f64)]).expect("logs");
        }
        assert_eq!(std::fs::read(dir.path().join(METRICS)).expect("reads"), whole, "the same bytes as uninterrupted");
    }

    #[test]
    fn a_stage_begun_again_loses_all_its_records() {
        let dir = tempfile::tempdir().expect("a directory");
        Metrics::open(dir.path(), "train", None).expect("opens").log(0, &[("train/loss", 1.0)]).expect("logs");
        Metrics::open(dir.path(), "train", None).expect("opens");
        assert_eq!(read(dir.path()).expect("reads"), []);
    }

    #[test]
    fn numbers_that_json_lacks_are_written_and_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut metrics = Metrics::open(dir.path(), "train", None).expect("opens");
        metrics.log(1, &[("a", f64::NAN), ("b", f64::INFINITY), ("c", 0.1)]).expect("logs");
        let values = &read(dir.path()).expect("reads")[0].values;
        assert!(values[0].1.is_nan());
        assert_eq!(values[1..], [("b".to_owned(), f64::INFINITY), ("c".to_owned(), 0.1)]);
    }

    #[test]
    fn the_metrics_file_holds_no_clock() {
        let dir = tempfile::tempdir().expect("a directory");
        Metrics::open(dir.path(), "train", None).expect("opens").log(1, &[("train/loss", 2.5)]).expect("logs");
        let text = std::fs::read_to_string(dir.path().join(METRICS)).expect("reads");
        let crc = crc32c::crc32c(br#"{"stage":"train","step":1,"train/loss":2.5}"#);
        assert_eq!(text, format!("{{\"stage\":\"train\",\"step\":1,\"train/loss\":2.5,\"crc\":\"{crc:08x}\"}}\n"));
    }
}
