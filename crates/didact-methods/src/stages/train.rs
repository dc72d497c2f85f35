//! Stage `train`: next-token training of an adapter or of every parameter.
//!
//! Writes `adapter/` in PEFT's layout or `model/` in f32, `trunk/` likewise where the schedule ends with a decay,
//! `outcome.json`, and the checkpoints that were kept.

use super::{prepare, write_json};
use crate::error::MethodError;
use crate::meter::Meter;
use crate::model_source::ModelHandle;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::batch::TrainingSet;
use didact_kernels::Precision;
use didact_model::export::save_model;
use didact_model::memory::{Trained, TrainingShape};
use didact_model::peft::{Adapter, save_adapter};
use didact_model::{Decoder, Dtype};
use didact_train::trainer::CHECKPOINTS;
use didact_train::{CheckpointStore, Measured, TrainConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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

/// What came of training; the same for a run that was interrupted and one that was not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}

/// Trains the model.
#[derive(Debug, Clone)]
pub struct TrainStage {
    /// The model.
    pub model: ModelHandle,
    /// How.
    pub train: TrainConfig,
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
    TrainingShape {
        rows: train.batch_size.div_ceil(train.gradient_accumulation_steps).min(set.rows().max(1)),
        len: longest.next_multiple_of(8),
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
        let prepared = context.input(prepare::NAME);
        let set = prepare::training_set(prepared, &self.train, context.streams)?;
        self.meter.check_training(self.model.config(), &shape(&self.train, &set, self.model.precision()))?;
        let held_out = if self.evaluate {
            prepare::measuring_set(prepared.join(prepare::HELD_OUT), self.train.max_seq_len, self.eval_batch)?
        } else {
            None
        };
        let mut decoder = self.model.decoder()?;
        if let Some(lora) = &self.train.lora {
            decoder.add_lora(&lora.to_model(), &context.streams)?;
        }
        let measured = held_out.iter().map(Measured::from).collect();
        let outcome = didact_train::train(&mut decoder, &set, measured, &self.train, context)?;
        self.meter.training(outcome.seconds, outcome.predicted_seconds, outcome.tokens_per_s);
        let name = if decoder.lora().is_some() { ADAPTER } else { MODEL };
        self.export(&decoder, &context.work_dir.join(name))?;
        if let Some(step) = outcome.trunk_step {
            let checkpoints = CheckpointStore::new(context.work_dir.join(CHECKPOINTS));
            checkpoints.restore_parameters(step, decoder.parameters_mut())?;
            self.export(&decoder, &context.work_dir.join(TRUNK).join(name))?;
        }
        let record = Outcome {
            steps: outcome.state.step,
            weights_of_step: outcome.weights_of_step,
            first_loss: outcome.state.first_loss,
            final_loss: outcome.final_loss,
            tokens: outcome.state.totals.tokens,
            trained_tokens: outcome.state.totals.trained_tokens,
            trained_parameters: decoder.parameters().trainable_elements() as u64,
        };
        write_json(&context.work_dir.join(OUTCOME), &record)
    }

    /// Writes the adapter, or the model when every parameter was trained.
    fn export(&self, decoder: &Decoder, dir: &Path) -> Result<(), MethodError> {
        match Adapter::from_decoder(decoder, Some(self.model.name().to_owned())) {
            Some(adapter) => {
                save_adapter(dir, self.model.config(), &adapter.config, adapter.pairs)?;
            }
            None => {
                save_model(dir, self.model.config(), decoder.merged(), Dtype::F32)?;
            }
        }
        Ok(())
    }
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
        json!({ "train": self.train, "evaluate": self.evaluate, "eval_batch": self.eval_batch })
    }

    fn inputs(&self) -> Vec<StageInput> {
        vec![
            StageInput::Stage(prepare::NAME.into()),
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
        ]
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
