//! Stage `train`: next-token training of an adapter or of every parameter.
//!
//! Writes `adapter/` in PEFT's layout or `model/` in f32, `trunk/` likewise where the schedule ends with a decay,
//! `outcome.json`, and the checkpoints that were kept.

use super::{graph, prepare, read_json, write_json};
use crate::error::MethodError;
use crate::meter::Meter;
use crate::mixed::{Mixed, Reading};
use crate::model_source::ModelHandle;
use didact_core::fault::{Classify, Fault};
use didact_core::progress::Level;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::batch::TrainingSet;
use didact_kernels::Precision;
use didact_model::export::save_model;
use didact_model::memory::{Trained, TrainingShape};
use didact_model::peft::{Adapter, save_adapter};
use didact_model::{Decoder, Dtype};
use didact_train::trainer::CHECKPOINTS;
use didact_train::{
    CheckpointStore, Evaluation, Hook, HookResult, Measured, Objective, PairLogProb, PoolTotals, PreferenceTable,
    Session, StepResult, TrainConfig, TrainOutcome, Trainer, pair_log_probs,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Name and kind of the stage.
pub const NAME: &str = "train";
/// The trained adapter.
pub const ADAPTER: &str = "adapter";
/// The trained model, when every parameter was trained.
pub const MODEL: &str = "model";
/// A directory with the same as it was before the final decay of the learning rate, where the schedule has one.
pub const TRUNK: &str = "trunk";
/// What came of it.
pub const OUTCOME: &str = "outcome.json";

/// What the model as it came says of each pair, with a preference loss that compares with it.
pub const REFERENCE: &str = "reference.json";
/// What was said about the curriculum.
pub const NOTES: &str = "notes.json";
/// What was measured along the way, with a curriculum.
pub const LOSSES: &str = "losses.json";

/// What came of training; the same for a run that was interrupted and one that was not.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Optimiser steps.
    pub steps: u64,
    /// Step whose weights are kept.
    pub weights_of_step: u64,
    /// Mean loss of the first step, nats per unit of weight.
    pub first_loss: Option<f64>,
    /// Mean loss of the last steps.
    pub final_loss: Option<f64>,
    /// Tokens read.
    pub tokens: u64,
    /// Tokens with a loss.
    pub trained_tokens: u64,
    /// Numbers that training changed.
    pub trained_parameters: u64,
    /// What was read of each pool, with a curriculum.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, PoolTotals>,
}

/// Steps of a loss far above the first one after which training is given up.
const PATIENCE: u64 = 20;

/// Ends a training whose loss has been more than twice the first one for a while: the learning rate is too high.
#[derive(Debug, Default)]
struct Divergence {
    first: Option<f64>,
    above: u64,
}

/// A training that went astray.
#[derive(Debug, thiserror::Error)]
#[error(
    "the loss has been more than twice its first value ({first:.3}) for {} steps; the learning rate is {learning_rate:.2e} in \
     step {step}",
    PATIENCE
)]
struct Diverged {
    first: f64,
    step: u64,
    learning_rate: f64,
}

impl Classify for Diverged {
    fn fault(&self) -> Fault {
        Fault::Running
    }

    fn hint(&self) -> Option<String> {
        Some("lower `train.learning_rate`, or lengthen the warm-up".to_owned())
    }
}

impl Hook for Divergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn after_step(&mut self, result: &StepResult, _: &mut Decoder) -> HookResult {
        let Some(loss) = result.loss else { return Ok(()) };
        let first = *self.first.get_or_insert(loss);
        self.above = if loss > 2.0 * first { self.above + 1 } else { 0 };
        if self.above >= PATIENCE {
            let StepResult { step, learning_rate, .. } = *result;
            return Err(Box::new(Diverged { first, step, learning_rate }));
        }
        Ok(())
    }

    fn state(&self) -> Value {
        json!({ "first": self.first, "above": self.above })
    }

    fn restore(&mut self, state: &Value) -> HookResult {
        self.first = state["first"].as_f64();
        self.above = state["above"].as_u64().unwrap_or_default();
        Ok(())
    }
}

/// Trains the model.
#[derive(Debug, Clone)]
pub struct TrainStage {
    /// The model.
    pub model: ModelHandle,
    /// How.
    pub train: TrainConfig,
    /// Sources and what is read of them, or `None` for the store that the stage [`prepare`] wrote.
    pub mixed: Option<Mixed>,
    /// The loss over pairs of answers, or `None` for that of next tokens.
    pub preference: Option<PreferenceTable>,
    /// Whether held-out loss is measured along the way.
    pub evaluate: bool,
    /// Rows measured at a time.
    pub eval_batch: usize,
    /// Refuses what does not fit in memory, and is told how long training took.
    pub meter: Arc<Meter>,
}

/// The shape of a micro-batch of this set, for predicting memory.
pub fn shape(train: &TrainConfig, set: &TrainingSet, precision: Precision) -> TrainingShape {
    let width = |row: u32| -> usize {
        let pieces = set.plan().row(row as usize);
        pieces.iter().map(|p| p.len as usize).sum::<usize>().saturating_sub(1)
    };
    let longest = (0..set.rows() as u32).map(width).max().unwrap_or(0);
    let mut shape = shape_of(train, train.batch_size, longest, precision);
    shape.rows = shape.rows.min(set.rows().max(1));
    shape
}

/// The shape of a micro-batch of steps of `rows` rows of `len` targets, for predicting memory.
pub fn shape_of(train: &TrainConfig, rows: usize, len: usize, precision: Precision) -> TrainingShape {
    TrainingShape {
        rows: rows.div_ceil(train.gradient_accumulation_steps),
        len: len.next_multiple_of(8),
        precision,
        activation_checkpointing: train.activation_checkpointing,
        gradient_dtype: train.gradient_dtype.to_model(),
        trained: match &train.lora {
            None => Trained::Full,
            Some(lora) => {
                let lora = lora.to_model();
                Trained::Lora { rank: lora.rank, target_modules: lora.target_modules, dropout: lora.dropout > 0.0 }
            }
        },
    }
}

impl TrainStage {
    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        if let Some(mixed) = &self.mixed {
            return self.work_mixed(mixed, context);
        }
        let prepared = context.input(prepare::NAME);
        let set = prepare::training_set(prepared, &self.train, context.streams)?;
        self.meter.check_training(self.model.config(), &shape(&self.train, &set, self.model.precision()))?;
        let held_out = if self.evaluate {
            prepare::measuring_set(prepared.join(prepare::HELD_OUT), self.train.max_seq_len, self.eval_batch)?
        } else {
            None
        };
        let mut decoder = self.decoder(context)?;
        let measured = held_out.iter().map(Measured::from).collect();
        let reference = match &self.preference {
            Some(table) if table.needs_reference() => self.reference(context, &decoder)?,
            _ => Vec::new(),
        };
        let objective = match &self.preference {
            Some(table) => Objective::Preference { table, reference: &reference },
            None => Objective::NextToken,
        };
        let trainer = Trainer::new(&mut decoder, &set, measured, &self.train, Session::from(context));
        let outcome = trainer.with_objective(objective).run()?;
        keep(&self.model, &self.meter, context, decoder, &outcome)
    }

    /// What the model as it came says of every pair. `decoder` is that model: an adapter that was not trained yet changes
    /// nothing. Computed once and kept, since the decoder that trains on does not know it any more.
    fn reference(&self, context: &StageContext<'_>, decoder: &Decoder) -> Result<Vec<PairLogProb>, MethodError> {
        let path = context.work_dir.join(REFERENCE);
        if path.is_file() {
            return read_json(&path);
        }
        let store = context.input(prepare::NAME).join(prepare::TRAIN);
        let set = prepare::measuring_set(store, self.train.max_seq_len, self.eval_batch)?;
        let pairs = match &set {
            Some(set) => pair_log_probs(decoder, set, 1, &context.cancel)?,
            None => Some(Vec::new()),
        };
        let pairs = pairs.ok_or_else(|| MethodError::Stopped { run_dir: context.run.root().to_owned() })?;
        write_json(&path, &pairs)?;
        Ok(pairs)
    }

    /// Trains on what a curriculum over named sources gives.
    fn work_mixed(&self, mixed: &Mixed, context: &StageContext<'_>) -> Result<(), MethodError> {
        let opened = mixed.open(context.input(prepare::NAME))?;
        let graph = match &mixed.reading {
            Reading::Skills(_) => Some(graph::read(context.input(graph::NAME))?),
            _ => None,
        };
        let built = mixed.build(&opened, &self.train, self.model.config(), graph.as_ref(), context.streams)?;
        for table in &built.notes.tables {
            context.reporter.table(table);
        }
        for warning in &built.notes.warnings {
            context.reporter.message(Level::Warning, warning);
        }
        let (rows, len) = built.shape;
        self.meter.check_training(self.model.config(), &shape_of(&built.train, rows, len, self.model.precision()))?;
        let row_len = len.min(self.model.config().max_position_embeddings);
        let along = self.evaluate || built.curriculum.needs_feedback();
        let sets = if along { mixed.measuring_sets(&opened, row_len, self.eval_batch)? } else { Vec::new() };
        let measured = sets.iter().map(|(name, set)| Measured::new(name, set)).collect();
        let mut decoder = self.decoder(context)?;
        let trainer = Trainer::new(&mut decoder, built.curriculum, measured, &built.train, Session::from(context));
        let outcome = trainer.with_hook(Divergence::default()).run()?;
        if let Reading::Length(_) = &mixed.reading {
            self.meter.by_length(&outcome.tokens_per_s_by_length);
        }
        write_json(&context.work_dir.join(NOTES), &built.notes)?;
        let losses = |evaluation: &Evaluation| -> BTreeMap<String, f64> {
            evaluation.sets.iter().map(|(name, loss)| (name.clone(), loss.mean_of_examples)).collect()
        };
        let along: Vec<Value> = outcome
            .state
            .evaluations
            .iter()
            .map(|e| json!({ "step": e.step, "loss": e.loss.nats_per_token, "losses": losses(e) }))
            .collect();
        write_json(&context.work_dir.join(LOSSES), &along)?;
        keep(&self.model, &self.meter, context, decoder, &outcome)
    }

    fn decoder(&self, context: &StageContext<'_>) -> Result<Decoder, MethodError> {
        let mut decoder = self.model.decoder()?;
        if let Some(lora) = &self.train.lora {
            decoder.add_lora(&lora.to_model(), &context.streams)?;
        }
        Ok(decoder)
    }
}

/// Writes what was trained into the stage's work directory: the adapter or the model, the trunk, and the outcome.
///
/// # Errors
/// When something cannot be written.
pub(crate) fn keep(
    model: &ModelHandle,
    meter: &Meter,
    context: &StageContext<'_>,
    mut decoder: Decoder,
    outcome: &TrainOutcome,
) -> Result<(), MethodError> {
    meter.training(outcome.seconds, outcome.predicted_seconds, outcome.tokens_per_s);
    let name = if decoder.lora().is_some() { ADAPTER } else { MODEL };
    export(model, &decoder, &context.work_dir.join(name))?;
    if let Some(step) = outcome.trunk_step {
        let checkpoints = CheckpointStore::new(context.work_dir.join(CHECKPOINTS));
        checkpoints.restore_parameters(step, decoder.parameters_mut())?;
        export(model, &decoder, &context.work_dir.join(TRUNK).join(name))?;
    }
    let record = Outcome {
        steps: outcome.state.step,
        weights_of_step: outcome.weights_of_step,
        first_loss: outcome.state.first_loss,
        final_loss: outcome.final_loss,
        tokens: outcome.state.totals.tokens,
        trained_tokens: outcome.state.totals.trained_tokens,
        trained_parameters: decoder.parameters().trainable_elements() as u64,
        pools: outcome.state.pools.clone(),
    };
    write_json(&context.work_dir.join(OUTCOME), &record)
}

/// Writes the adapter, or the model when every parameter was trained.
fn export(model: &ModelHandle, decoder: &Decoder, dir: &Path) -> Result<(), MethodError> {
    match Adapter::from_decoder(decoder, Some(model.name().to_owned())) {
        Some(adapter) => {
            save_adapter(dir, model.config(), &adapter.config, adapter.pairs)?;
        }
        None => {
            save_model(dir, model.config(), decoder.merged(), Dtype::F32)?;
        }
    }
    Ok(())
}

impl Stage for TrainStage {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        3
    }

    fn settings(&self) -> Value {
        let mut settings = json!({ "train": self.train, "evaluate": self.evaluate, "eval_batch": self.eval_batch });
        if let Some(mixed) = &self.mixed {
            settings["reading"] = json!(mixed.reading);
        }
        if let Some(preference) = &self.preference {
            settings["preference"] = json!(preference);
        }
        settings
    }

    fn inputs(&self) -> Vec<StageInput> {
        let mut inputs = vec![
            StageInput::Stage(prepare::NAME.into()),
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
        ];
        if matches!(&self.mixed, Some(Mixed { reading: Reading::Skills(_), .. })) {
            inputs.push(StageInput::Stage(graph::NAME.into()));
        }
        inputs
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
