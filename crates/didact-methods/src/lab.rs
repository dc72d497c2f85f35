//! What reproductions share: small models from scratch, stores of made-up sequences, and trainings inside an arm.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use didact_core::files;
use didact_core::generate::{FinishReason, Generator, Prompt, Request, Sampling};
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::{Batch, TrainingSet};
use didact_data::packing::Packing;
use didact_data::store::{Origin, SequenceStore, SequenceWriter};
use didact_data::train::{TokenizerKind, TokenizerSettings, train_tokenizer};
use didact_infer::{EngineWeights, LocalGenerator, LocalModel, Options, ScoreRule};
use didact_kernels::Precision;
use didact_model::export::save_model;
use didact_model::{Checkpoint, Decoder, Dtype, ModelConfig};
use didact_train::{
    CheckpointStore, EvalLoss, Hook, HookResult, Measured, Objective, Session, Source, StepPlan, TokenScore,
    TrainConfig, TrainOutcome, Trainer, evaluate_loss, evaluate_tokens,
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

/// What an arm says when it was stopped.
pub fn stopped(lab: &Lab<'_>) -> MethodError {
    MethodError::Stopped { run_dir: lab.context().run.root().to_owned() }
}

/// A generator over a made-up language, to be asked by token ids; `rule` says what may not come next. Answers end at
/// `max_tokens` only, if `ignore_eos` is set.
///
/// # Errors
/// As [`LocalModel::new`].
pub fn generator(weights: EngineWeights, rule: Option<Arc<dyn ScoreRule>>) -> Result<LocalGenerator, MethodError> {
    // Nobody reads the text of the answers: any tokenizer will do that is no larger than the model.
    let settings = TokenizerSettings { min_frequency: 1, ..TokenizerSettings::new(TokenizerKind::Word, 3) };
    let tokenizer = Arc::new(train_tokenizer(std::iter::once("word".to_owned()), &settings)?);
    let options = Options { precision: Precision::F32, ..Options::default() };
    let mut model = LocalModel::new(weights, tokenizer, options.precision)?;
    if let Some(rule) = rule {
        model = model.with_rule(rule);
    }
    Ok(LocalGenerator::with_model(Arc::new(model), options)?)
}

/// The answers of a model to prompts of token ids, each with its tokens and whether it ended by itself; `sampling` by the
/// prompt's place.
///
/// # Errors
/// When a prompt cannot be continued; `set` names them in the message. [`MethodError::Stopped`] when cancelled.
pub fn answers(
    lab: &Lab<'_>,
    generator: &LocalGenerator,
    set: &str,
    prompts: &[Vec<u32>],
    sampling: impl Fn(usize) -> Sampling,
) -> Result<Vec<(Vec<u32>, bool)>, MethodError> {
    let requests: Vec<Request> = prompts
        .iter()
        .enumerate()
        .map(|(number, ids)| Request { prompt: Prompt::Ids(ids.clone()), sampling: sampling(number) })
        .collect();
    let cancel = &lab.context().cancel;
    let mut found = Vec::with_capacity(requests.len());
    for (number, answer) in generator.generate_all(&requests, cancel)?.into_iter().enumerate() {
        let Some(answer) = answer.filter(|_| !cancel.is_cancelled()) else { return Err(stopped(lab)) };
        let completion =
            answer.map_err(|source| MethodError::Request { set: set.to_owned(), index: number + 1, source })?;
        let first = completion.answers.into_iter().next();
        found.push(first.map(|answer| (answer.ids, answer.finish_reason == FinishReason::Stop)).unwrap_or_default());
    }
    Ok(found)
}

/// One answer after a prompt, trained on the answer and the token that ends it.
pub fn answered(prompt: &[u32], answer: &[u32], end: u32) -> Sequence {
    let ids = [prompt, answer, &[end]].concat();
    let weight = (0..ids.len()).map(|at| if at < prompt.len() { 0.0 } else { 1.0 }).collect();
    Sequence::single(ids, weight)
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
    train_for(lab, decoder, training, Objective::NextToken)
}

/// The same, minimising something else than the loss of next tokens.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train_for<'a>(
    lab: &'a Lab<'_>,
    decoder: &'a mut Decoder,
    training: Training<'a>,
    objective: Objective<'a>,
) -> Result<TrainOutcome, MethodError> {
    let Training { name, source, measured, config, without_borders } = training;
    let context = lab.context();
    let dir = lab.dir().join(format!("{name}.train"));
    files::create_dir_all(&dir)?;
    let session = Session {
        stage: format!("{}/{name}", context.name),
        checkpoints: checkpoints(lab, name),
        feedback: dir.join("feedback.log"),
        streams: lab.streams().child("training", &[]),
        ..Session::from(context)
    };
    let trainer = Trainer::new(decoder, source, measured, config, session).with_objective(objective);
    let trainer = if without_borders { trainer.with_hook(WithoutBorders) } else { trainer };
    Ok(trainer.run()?)
}

/// Keeps a model as a part of the arm's result, for arms that need this one.
///
/// # Errors
/// When it cannot be written.
pub fn save(lab: &Lab<'_>, name: &str, decoder: &Decoder) -> Result<(), MethodError> {
    save_model(&lab.dir().join(name), decoder.config(), decoder.merged(), Dtype::F32)?;
    Ok(())
}

/// A model that an arm that this one needs has kept.
///
/// # Errors
/// When it cannot be read.
pub fn load(lab: &Lab<'_>, arm: &str, name: &str) -> Result<Decoder, MethodError> {
    let checkpoint = Checkpoint::open(lab.arm(arm).join(name))?;
    let mut decoder = Decoder::load(&checkpoint, &Device::default())?;
    decoder.set_precision(Precision::F32);
    Ok(decoder)
}

/// Gives a model the weights that a training of this arm had before the final decay of its learning rate.
///
/// # Errors
/// When there are none: the schedule has no such decay, or the training is not finished.
pub fn restore_trunk(
    lab: &Lab<'_>,
    name: &str,
    outcome: &TrainOutcome,
    decoder: &mut Decoder,
) -> Result<(), MethodError> {
    let checkpoints = checkpoints(lab, name);
    let step = outcome.trunk_step.ok_or_else(|| MethodError::Artifact {
        path: checkpoints.clone(),
        reason: "there is no checkpoint before the final decay of the learning rate".to_owned(),
    })?;
    CheckpointStore::new(checkpoints).restore_parameters(step, decoder.parameters_mut())?;
    Ok(())
}

/// Where a training of an arm keeps its checkpoints.
fn checkpoints(lab: &Lab<'_>, name: &str) -> PathBuf {
    lab.dir().join(format!("{name}.train")).join("checkpoints")
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
