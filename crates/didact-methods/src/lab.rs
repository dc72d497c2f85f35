//! What reproductions share: small models from scratch, stores of made-up sequences, and trainings inside an arm.

use std::path::Path;

use burn::tensor::Device;
use didact_core::files;
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::{Batch, TrainingSet};
use didact_data::packing::Packing;
use didact_data::store::{Origin, SequenceStore, SequenceWriter};
use didact_kernels::Precision;
use didact_model::{Decoder, ModelConfig};
use didact_train::{
    EvalLoss, Hook, HookResult, Measured, Session, Source, StepPlan, TokenScore, TrainConfig, TrainOutcome, Trainer,
    evaluate_loss, evaluate_tokens,
};
use serde_json::{Value, json};

use crate::error::MethodError;
use crate::reproduce::Lab;

/// Rows measured at a time.
const EVAL_ROWS: usize = 256;

/// The shape of a small Llama with tied embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Shape {
    /// Tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; divides the width.
    pub heads: usize,
    /// Width of the gated feed-forward layers.
    pub ffn: usize,
    /// Longest row.
    pub context: usize,
}

impl Shape {
    /// The model's configuration.
    ///
    /// # Errors
    /// When the numbers do not fit together.
    pub fn config(&self) -> Result<ModelConfig, MethodError> {
        let json = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": true,
        });
        let Value::Object(map) = json else { unreachable!("an object was written") };
        Ok(ModelConfig::from_value(Path::new("reproduction"), map)?)
    }

    /// The model, its weights drawn from the streams.
    ///
    /// # Errors
    /// As [`Shape::config`].
    pub fn decoder(&self, streams: Streams) -> Result<Decoder, MethodError> {
        let mut decoder = Decoder::init(&self.config()?, &streams.child("model", &[]), &Device::default());
        decoder.set_precision(Precision::F32);
        Ok(decoder)
    }
}

/// Writes sequences into a store, or opens it when an interrupted attempt wrote it.
///
/// # Errors
/// When it cannot be written or read.
pub fn store(dir: &Path, sequences: impl IntoIterator<Item = Sequence>) -> Result<SequenceStore, MethodError> {
    if let Ok(store) = SequenceStore::open(dir) {
        return Ok(store);
    }
    let mut writer = SequenceWriter::create(dir)?;
    for (row, sequence) in (1..).zip(sequences) {
        writer.push(&sequence, Origin { source: "made up", path: "reproduction", row })?;
    }
    writer.finish()?;
    Ok(SequenceStore::open(dir)?)
}

/// A set to measure on: every sequence in a row of its own, in order.
pub fn measuring(store: SequenceStore, row_len: usize) -> TrainingSet {
    TrainingSet::in_order(store, row_len, Packing::None, EVAL_ROWS)
}

/// The mean loss over a set, nats per token with a weight.
///
/// # Errors
/// As [`evaluate_loss`].
pub fn loss(lab: &Lab<'_>, decoder: &Decoder, set: &TrainingSet) -> Result<EvalLoss, MethodError> {
    let cancel = &lab.context().cancel;
    evaluate_loss(decoder, set, 1, cancel)?.ok_or_else(|| stopped(lab))
}

/// The scores of a set's tokens with a weight, in the order of its rows.
///
/// # Errors
/// As [`evaluate_tokens`].
pub fn token_scores(lab: &Lab<'_>, decoder: &Decoder, set: &TrainingSet) -> Result<Vec<TokenScore>, MethodError> {
    evaluate_tokens(decoder, set, 1, &lab.context().cancel)?.ok_or_else(|| stopped(lab))
}

fn stopped(lab: &Lab<'_>) -> MethodError {
    MethodError::Stopped { run_dir: lab.context().run.root().to_owned() }
}

/// A training inside an arm.
pub struct Training<'a> {
    /// Its name, unique within the arm: part of its metrics' stage and of its checkpoints' directory.
    pub name: &'a str,
    /// What it reads.
    pub source: Source<'a>,
    /// What is measured along the way.
    pub measured: Vec<Measured<'a>>,
    /// How it is done.
    pub config: &'a TrainConfig,
    /// Whether what lies in one row sees everything before it, across documents.
    pub without_borders: bool,
}

/// Trains; a training that an interrupted attempt began goes on.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train(lab: &Lab<'_>, decoder: &mut Decoder, training: Training<'_>) -> Result<TrainOutcome, MethodError> {
    let Training { name, source, measured, config, without_borders } = training;
    let context = lab.context();
    let dir = lab.dir().join(format!("{name}.train"));
    files::create_dir_all(&dir)?;
    let session = Session {
        stage: format!("{}/{name}", context.name),
        checkpoints: dir.join("checkpoints"),
        feedback: dir.join("feedback.log"),
        streams: lab.streams().child("training", &[]),
        ..Session::from(context)
    };
    let trainer = Trainer::new(decoder, source, measured, config, session);
    let trainer = if without_borders { trainer.with_hook(WithoutBorders) } else { trainer };
    Ok(trainer.run()?)
}

/// Rows as concatenate-and-chunk has them: what lies in one row sees everything before it.
struct WithoutBorders;

impl Hook for WithoutBorders {
    fn name(&self) -> &'static str {
        "without_borders"
    }

    fn before_step(&mut self, _plan: &StepPlan, _decoder: &Decoder, batches: &mut Vec<Batch>) -> HookResult {
        for batch in batches {
            *batch = std::mem::take(batch).without_borders();
        }
        Ok(())
    }
}
