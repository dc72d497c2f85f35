//! A tiny model, made-up data, and a place to train.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::tensor::Device;
use didact_core::cancel::Cancel;
use didact_core::fault::{Classify, Fault};
use didact_core::hash::{Digest, hash_dir};
use didact_core::metrics::METRICS;
use didact_core::progress::{Level, Reporter};
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_data::store::{Origin, SequenceStore, SequenceWriter};
use didact_model::{Decoder, ModelConfig};
use didact_train::{
    Hook, HookResult, LoraTable, Measured, Session, StepResult, TrainConfig, TrainError, TrainOutcome, Trainer,
};

pub(crate) const VOCABULARY: u32 = 61;

/// A llama of two layers with two query heads on one key head.
pub(crate) fn model_config(is_tied: bool) -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "llama", "vocab_size": {VOCABULARY}, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "initializer_range": 0.2, "tie_word_embeddings": {is_tied}}}"#
    );
    ModelConfig::from_json(Path::new("built in"), &json).expect("a complete configuration")
}

pub(crate) fn decoder() -> Decoder {
    Decoder::init(&model_config(false), &Streams::new(1), &Device::flex())
}

/// With an adapter that drops inputs.
pub(crate) fn adapted_decoder() -> Decoder {
    let mut decoder = decoder();
    let lora = LoraTable { rank: 3, dropout: 0.25, ..LoraTable::default() }.to_model();
    decoder.add_lora(&lora, &Streams::new(2)).expect("valid settings");
    decoder
}

/// Sequences of 4 to 23 tokens. The share that is trained, and the weights, differ much from one to the next.
pub(crate) fn sequences(count: u32, seed: u32) -> Vec<Sequence> {
    (0..count)
        .map(|n| {
            let len = 4 + (n * 7 + seed) % 20;
            let ids = (0..len).map(|i| (n * 13 + seed * 29 + i * i * 5 + i * 3) % VOCABULARY).collect();
            let context = len * (n % 4) / 4;
            let weight = (0..len)
                .map(|i| if i < context { 0.0 } else { [1.0, 0.5, 1.0, 3.0][((i + n) % 4) as usize] })
                .collect();
            Sequence::single(ids, weight)
        })
        .collect()
}

/// The sequences in a store; sequence `n` comes from row `n + 1` of `made-up.jsonl`.
pub(crate) fn store(directory: &Path, sequences: &[Sequence]) -> SequenceStore {
    let mut writer = SequenceWriter::create(directory).expect("a store can be created");
    for (n, sequence) in sequences.iter().enumerate() {
        let origin = Origin { source: "made-up", path: "made-up.jsonl", row: n as u64 + 1 };
        writer.push(sequence, origin).expect("a sequence can be written");
    }
    writer.finish().expect("a store can be finished");
    SequenceStore::open(directory).expect("a store can be opened")
}

/// A directory with training and held-out data, and a run in it.
pub(crate) struct Place {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) train: Vec<Sequence>,
    pub(crate) eval: Vec<Sequence>,
    pub(crate) packing: Packing,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { directory, train: sequences(20, 0), eval: sequences(6, 5), packing: Packing::BestFit }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.root().join("checkpoints")
    }

    pub(crate) fn train_set(&self, config: &TrainConfig) -> TrainingSet {
        let store = store(&self.directory.path().join("train"), &self.train);
        TrainingSet::new(store, config.max_seq_len, self.packing, config.batch_size, Streams::new(7))
    }

    pub(crate) fn eval_set(&self, config: &TrainConfig) -> TrainingSet {
        let store = store(&self.directory.path().join("eval"), &self.eval);
        TrainingSet::in_order(store, config.max_seq_len, self.packing, config.batch_size)
    }

    pub(crate) fn session<'a>(&self, cancel: &Cancel, reporter: &'a dyn Reporter) -> Session<'a> {
        didact_core::files::create_dir_all(self.root()).expect("a directory can be created");
        Session {
            run_root: self.root(),
            stage: "train".to_owned(),
            checkpoints: self.checkpoints(),
            feedback: self.root().join("feedback.log"),
            streams: Streams::new(3),
            cancel: cancel.clone(),
            reporter,
        }
    }

    /// Trains `decoder`; `probe` watches and may interfere.
    pub(crate) fn run(
        &self,
        decoder: &mut Decoder,
        config: &TrainConfig,
        probe: Probe,
        notes: &Notes,
    ) -> Result<TrainOutcome, TrainError> {
        let (train, eval) = (self.train_set(config), self.eval_set(config));
        let cancel = probe.cancel.clone();
        Trainer::new(decoder, &train, vec![Measured::from(&eval)], config, self.session(&cancel, notes))
            .with_hook(probe)
            .run()
    }

    /// Everything that must repeat: all bits of the checkpoints, and the metrics.
    pub(crate) fn bits(&self) -> (Digest, Vec<u8>) {
        let checkpoints = hash_dir(self.checkpoints(), |_| false).expect("checkpoints can be read");
        (checkpoints, std::fs::read(self.root().join(METRICS)).expect("metrics can be read"))
    }
}

/// All numbers of a model, by name.
pub(crate) fn weights(decoder: &Decoder) -> Vec<(String, Vec<f32>)> {
    decoder.parameters().iter().map(|(_, parameter)| (parameter.name().to_owned(), parameter.to_vec())).collect()
}

/// Keeps what a reporter is told.
#[derive(Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic while it was held").clone()
    }
}

impl Reporter for Notes {
    fn message(&self, _level: Level, text: &str) {
        self.0.lock().expect("no panic while it was held").push(text.to_owned());
    }
}

/// What a probe does after its step.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Deed {
    /// Raises the flag, as Ctrl-C does.
    Cancel,
    /// Fails, which saves nothing: as a kill does, but within a test.
    Fail,
}

/// A hook that stops a training after some step, and otherwise counts.
pub(crate) struct Probe {
    pub(crate) cancel: Cancel,
    deed: Option<(u64, Deed)>,
    seen: u64,
}

impl Probe {
    pub(crate) fn idle() -> Self {
        Self { cancel: Cancel::new(), deed: None, seen: 0 }
    }

    pub(crate) fn after(step: u64, deed: Deed) -> Self {
        Self { deed: Some((step, deed)), ..Self::idle() }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a deliberate failure")]
pub(crate) struct Deliberate;

impl Classify for Deliberate {
    fn fault(&self) -> Fault {
        Fault::Running
    }
}

impl Hook for Probe {
    fn name(&self) -> &'static str {
        "probe"
    }

    fn after_step(&mut self, result: &StepResult, _decoder: &mut Decoder) -> HookResult {
        self.seen += 1;
        match self.deed {
            Some((step, Deed::Cancel)) if step == result.step => self.cancel.cancel(),
            Some((step, Deed::Fail)) if step == result.step => return Err(Box::new(Deliberate)),
            _ => {}
        }
        Ok(())
    }

    fn state(&self) -> serde_json::Value {
        self.seen.into()
    }

    fn restore(&mut self, state: &serde_json::Value) -> HookResult {
        self.seen = state.as_u64().expect("what `state` gave");
        Ok(())
    }
}
