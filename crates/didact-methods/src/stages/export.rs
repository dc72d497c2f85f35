//! Stage `export`: what is taken elsewhere. `model/` is a directory that Python's `transformers` loads, `adapter/` one that
//! `peft` loads, `trunk/` (where the learning rate ends with a decay) the whole model before that decay, in f32, to train on
//! from; all carry the tokenizer.

use super::{read_json, train};
use crate::error::MethodError;
use crate::model_source::ModelHandle;
use crate::recipe::{ExportDtype, ExportSettings};
use crate::rounds::progress::Decision;
use crate::rounds::stages::{DECISION, Step, newest};
use didact_core::files;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_model::Dtype;
use didact_model::export::save_model;
use serde_json::Value;
use std::path::Path;

/// Name and kind of the stage.
pub const NAME: &str = "export";
/// The whole model.
pub const MODEL: &str = "model";
/// The whole model before the final decay of the learning rate.
pub const TRUNK: &str = "trunk";
/// The adapter alone.
pub const ADAPTER: &str = "adapter";

/// Which model is taken elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exported {
    /// That of the stage [`train`].
    Trained,
    /// That of the best of so many rounds, which is the model as it came if none was better.
    BestRound(u64),
}

/// Writes the trained model for use elsewhere.
#[derive(Debug, Clone)]
pub struct ExportStage {
    /// The model before training.
    pub model: ModelHandle,
    /// Which one is written.
    pub exported: Exported,
    /// What to write.
    pub settings: ExportSettings,
}

/// Where the model of the best round is; `None` if no round was better than the model as it came.
fn best_round<'a>(context: &'a StageContext<'_>, rounds: u64) -> Result<Option<&'a Path>, MethodError> {
    let decision: Decision = read_json(&context.input(&Step::Evaluate(rounds).name()).join(DECISION))?;
    Ok(newest(context, decision.best))
}

impl ExportStage {
    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        let trained = match self.exported {
            Exported::Trained => Some(context.input(train::NAME)),
            Exported::BestRound(rounds) => best_round(context, rounds)?,
        };
        if self.settings.model {
            let decoder = match trained {
                Some(trained) => self.model.trained(trained)?,
                None => self.model.decoder()?,
            };
            let dtype = match self.settings.dtype {
                ExportDtype::F32 => Dtype::F32,
                ExportDtype::Bf16 => Dtype::Bf16,
                ExportDtype::F16 => Dtype::F16,
            };
            let dir = context.work_dir.join(MODEL);
            save_model(&dir, self.model.config(), decoder.merged(), dtype)?;
            self.model.tokenizer().save(&dir)?;
        }
        let Some(trained) = trained else { return Ok(()) };
        let trunk = trained.join(train::TRUNK);
        if trunk.is_dir() {
            let dir = context.work_dir.join(TRUNK);
            save_model(&dir, self.model.config(), self.model.trained(&trunk)?.merged(), Dtype::F32)?;
            self.model.tokenizer().save(&dir)?;
        }
        let adapter = trained.join(train::ADAPTER);
        if self.settings.adapter && adapter.is_dir() {
            let dir = context.work_dir.join(ADAPTER);
            files::create_dir_all(&dir)?;
            for file in files::list_dir(&adapter)? {
                files::copy_atomic(&file, dir.join(file.file_name().unwrap_or_default()))?;
            }
            self.model.tokenizer().save(&dir)?;
        }
        Ok(())
    }
}

impl Stage for ExportStage {
    fn name(&self) -> &str {
        NAME
    }

    fn kind(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        serde_json::to_value(&self.settings).expect("settings are plain data")
    }

    fn inputs(&self) -> Vec<StageInput> {
        let mut inputs = match self.exported {
            Exported::Trained => vec![StageInput::Stage(train::NAME.into())],
            Exported::BestRound(rounds) => {
                let steps = (1..=rounds).map(Step::Train).chain([Step::Evaluate(rounds)]);
                steps.map(|step| StageInput::Stage(step.name())).collect()
            }
        };
        inputs.extend([
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
            StageInput::Content { label: "tokenizer".into(), digest: self.model.tokenizer_digest() },
        ]);
        inputs
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
