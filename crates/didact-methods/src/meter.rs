//! What a run takes, predicted and measured. Nothing that is trained depends on it.

use crate::error::MethodError;
use crate::stages::{evaluate, export, train};
use didact_core::files;
use didact_model::ModelConfig;
use didact_model::memory::{TrainingShape, to_run, to_train};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// File of the readings, in the run directory; exempt from what is promised of artifacts, since it holds a clock's.
const FILE: &str = "timing.json";

/// Copies of the weights that exist while a decoder's are packed for generation.
const COPIES_TO_EVALUATE: u64 = 3;

/// Predictions and measurements, over all processes that worked on a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Readings {
    /// Predicted peak, in bytes.
    pub predicted_memory_bytes: Option<u64>,
    /// Measured peak of the process's resident set, in bytes.
    pub peak_memory_bytes: Option<u64>,
    /// Seconds of training as predicted after its first steps.
    pub predicted_train_s: Option<f64>,
    /// Seconds of training in the process that finished it.
    pub train_s: Option<f64>,
    /// Seconds of all stages as predicted after the first steps of training: those before it as measured, and measuring
    /// afterwards as long as before.
    pub predicted_s: Option<f64>,
    /// Tokens per second while training.
    pub train_tokens_per_s: Option<f64>,
    /// The same by the length of a step's rows, where steps differ in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub train_tokens_per_s_by_length: BTreeMap<usize, f64>,
    /// Seconds of each stage in the process that finished it.
    pub stages: BTreeMap<String, f64>,
}

/// Watches memory and time of a run.
#[derive(Debug)]
pub struct Meter {
    free: Option<u64>,
    force: bool,
    readings: Mutex<Readings>,
}

impl Meter {
    /// `free`: bytes that this process may still use, if that is known; with `force`, too little is not refused.
    pub fn new(free: Option<u64>, force: bool) -> Self {
        Self { free, force, readings: Mutex::default() }
    }

    fn change(&self, change: impl FnOnce(&mut Readings)) {
        change(&mut self.readings.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Predicts the memory of training, before anything is loaded.
    ///
    /// # Errors
    /// [`MethodError::Memory`] when it is more than there is.
    pub fn check_training(&self, config: &ModelConfig, shape: &TrainingShape) -> Result<(), MethodError> {
        let advice = "raise `train.gradient_accumulation_steps`, lower `train.max_seq_len`, set \
                      `train.activation_checkpointing = true`, or train an adapter (`train.lora`)";
        self.check("training", to_train(config, shape).total(), advice)
    }

    /// Predicts the memory of measuring and generating, before anything is loaded.
    ///
    /// # Errors
    /// [`MethodError::Memory`] when it is more than there is.
    pub fn check_running(&self, config: &ModelConfig, streams: usize, context: usize) -> Result<(), MethodError> {
        let estimate = to_run(config, streams, context.min(config.max_position_embeddings));
        let needed = estimate.total() + (COPIES_TO_EVALUATE - 1) * estimate.weights;
        self.check("evaluation", needed, "lower `eval.batch_size` and `generate.max_tokens`")
    }

    fn check(&self, what: &str, needed: u64, advice: &str) -> Result<(), MethodError> {
        self.change(|readings| {
            readings.predicted_memory_bytes = Some(readings.predicted_memory_bytes.unwrap_or(0).max(needed));
        });
        match self.free {
            Some(free) if needed > free && !self.force => {
                Err(MethodError::Memory { what: what.into(), needed, free, advice: advice.into() })
            }
            _ => Ok(()),
        }
    }

    /// Notes how long training took.
    pub fn training(&self, seconds: f64, predicted: Option<f64>, tokens_per_s: f64) {
        self.change(|readings| {
            readings.train_s = Some(seconds);
            readings.predicted_train_s = predicted;
            readings.train_tokens_per_s = Some(tokens_per_s);
        });
    }

    /// Notes the speed of steps by the length of their rows.
    pub fn by_length(&self, tokens_per_s: &BTreeMap<usize, f64>) {
        self.change(|readings| readings.train_tokens_per_s_by_length.clone_from(tokens_per_s));
    }

    /// Notes how long a stage took.
    pub fn stage(&self, name: &str, seconds: f64) {
        self.change(|readings| {
            readings.stages.insert(name.to_owned(), seconds);
        });
    }

    /// Notes the process's peak.
    pub fn peak(&self, bytes: Option<u64>) {
        self.change(|readings| readings.peak_memory_bytes = readings.peak_memory_bytes.max(bytes));
    }

    /// All readings so far.
    pub fn readings(&self) -> Readings {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds the readings to those of earlier processes, in the run directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, run_root: &Path) -> Result<Readings, MethodError> {
        let path = run_root.join(FILE);
        let old: Readings = files::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
        let new = self.readings();
        let mut stages = old.stages;
        stages.extend(new.stages);
        let predicted_train_s = new.predicted_train_s.or(old.predicted_train_s);
        let all = Readings {
            predicted_s: predicted_train_s.and_then(|train| whole(train, &stages)),
            predicted_memory_bytes: new.predicted_memory_bytes.max(old.predicted_memory_bytes),
            peak_memory_bytes: new.peak_memory_bytes.max(old.peak_memory_bytes),
            predicted_train_s,
            train_s: new.train_s.or(old.train_s),
            train_tokens_per_s: new.train_tokens_per_s.or(old.train_tokens_per_s),
            train_tokens_per_s_by_length: match new.train_tokens_per_s_by_length {
                new if new.is_empty() => old.train_tokens_per_s_by_length,
                new => new,
            },
            stages,
        };
        files::write_atomic(&path, &serde_json::to_vec_pretty(&all).expect("readings are plain data"))?;
        Ok(all)
    }
}

/// Seconds of all stages, predicted from those of training and of the stages before it.
fn whole(train_s: f64, stages: &BTreeMap<String, f64>) -> Option<f64> {
    let measuring = stages.get(evaluate::BEFORE)?;
    let before: f64 = stages
        .iter()
        .filter(|(name, _)| ![train::NAME, export::NAME, evaluate::AFTER].contains(&name.as_str()))
        .map(|(_, s)| s)
        .sum();
    Some(before + train_s + measuring)
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_model::memory::Trained;
    use serde_json::json;

    fn config() -> ModelConfig {
        let map = json!({"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true});
        let serde_json::Value::Object(map) = map else { unreachable!("an object") };
        ModelConfig::from_value(Path::new("test"), map).expect("a valid configuration")
    }

    #[test]
    fn too_little_memory_is_refused_unless_forced() {
        let shape = TrainingShape::new(2, 32, Trained::Full);
        let needed = to_train(&config(), &shape).total();
        assert!(Meter::new(Some(needed), false).check_training(&config(), &shape).is_ok());
        assert!(Meter::new(None, false).check_training(&config(), &shape).is_ok());
        assert!(Meter::new(Some(needed - 1), true).check_training(&config(), &shape).is_ok());
        let error = Meter::new(Some(needed - 1), false).check_training(&config(), &shape).expect_err("refused");
        assert!(error.to_string().starts_with("training needs about "), "{error}");
        use didact_core::fault::{Classify, Fault};
        assert_eq!(error.fault(), Fault::Input);
        assert!(error.hint().expect("advice").contains("--force"));
    }

    #[test]
    fn readings_of_several_processes_add_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Meter::new(None, false);
        first.stage("prepare", 1.0);
        first.training(10.0, Some(11.0), 500.0);
        first.peak(Some(7));
        first.save(dir.path()).expect("writable");
        first.stage("evaluate-before", 3.0);
        first.stage("train", 10.0);
        assert_eq!(first.save(dir.path()).expect("writable").predicted_s, Some(1.0 + 3.0 + 11.0 + 3.0));
        let second = Meter::new(None, false);
        second.stage("export", 2.0);
        second.peak(Some(5));
        let all = second.save(dir.path()).expect("writable");
        assert_eq!((all.train_s, all.peak_memory_bytes), (Some(10.0), Some(7)));
        assert_eq!(all.stages.len(), 4);
    }
}
