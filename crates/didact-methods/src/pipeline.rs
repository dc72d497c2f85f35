//! From a recipe to its stages. Each method's list of stages is one function below.

use crate::env::Env;
use crate::error::MethodError;
use crate::meter::Meter;
use crate::model_source::ModelHandle;
use crate::recipe::{Common, DataRecipeSettings, QuickstartSettings, Recipe, Settings};
use crate::stages::evaluate::{AFTER, BEFORE, EvaluateStage, Requests};
use crate::stages::export::ExportStage;
use crate::stages::prepare::{PrepareStage, RowSource};
use crate::stages::rows::Rows;
use crate::stages::toolworld::ToolworldStage;
use crate::stages::train::TrainStage;
use didact_core::hash::{Hasher, hash_json};
use didact_core::run::{Environment, FORMAT, RunIdentity};
use didact_core::seed::Streams;
use didact_core::stage::Stage;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A recipe's stages, with its model found and its inputs hashed; nothing is loaded yet.
pub struct Pipeline {
    /// The model.
    pub model: ModelHandle,
    /// What is read.
    pub prepare: PrepareStage,
    /// What is made before anything is read, if anything.
    pub toolworld: Option<ToolworldStage>,
    /// All stages, in order.
    pub stages: Vec<Box<dyn Stage>>,
    /// Predictions and measurements.
    pub meter: Arc<Meter>,
    /// Label to content hash of everything from outside.
    pub inputs: BTreeMap<String, String>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.stages.iter().map(|stage| stage.name()).collect();
        f.debug_struct("Pipeline").field("model", &self.model.name()).field("stages", &names).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Finds the model and data, and lays out the stages.
    ///
    /// # Errors
    /// When the model or the data cannot be found or understood.
    pub fn build(recipe: &Recipe, env: &Env<'_>, force: bool) -> Result<Self, MethodError> {
        let common = recipe.typed().common();
        let model = ModelHandle::open(common.model, common.precision, common.seed, env)?;
        let (found, context) = (common.train.max_seq_len, model.config().max_position_embeddings);
        if found > context {
            return Err(MethodError::Context { model: model.name().to_owned(), found, context });
        }
        let meter = Arc::new(Meter::new((env.free_memory)(), force));
        let parts = Parts { model, meter, common };
        match recipe.typed() {
            Settings::Quickstart(settings) => Ok(quickstart(parts, settings)),
            Settings::Sft(settings) => data_recipe(parts, settings, None),
            Settings::ContinuePretrainingText(settings) => data_recipe(parts, settings, Some(recipe.method())),
        }
    }

    /// What makes this run this run and no other.
    pub fn identity(&self, recipe: &Recipe, env: &Env<'_>) -> RunIdentity {
        RunIdentity {
            format: FORMAT,
            recipe: recipe.method().to_owned(),
            seed: recipe.seed(),
            settings: recipe.settings().clone(),
            inputs: self.inputs.clone(),
            environment: Environment {
                version: env.version.to_owned(),
                precision: self.model.precision().as_str().to_owned(),
                cpu_level: didact_kernels::level().as_str().to_owned(),
                threads: env.threads,
                device: env.device.to_string(),
            },
        }
    }

    /// Where the run goes when nobody says: `runs/<name>-<hash of settings and inputs>`.
    pub fn default_run_dir(&self, recipe: &Recipe) -> PathBuf {
        let mut hasher = Hasher::new();
        hasher.field("settings", hash_json(recipe.settings()).to_string().as_bytes());
        for (label, digest) in &self.inputs {
            hasher.field(label, digest.as_bytes());
        }
        PathBuf::from("runs").join(format!("{}-{}", recipe.name(), hasher.finish().short()))
    }
}

/// What every list of stages is made from.
struct Parts<'a> {
    model: ModelHandle,
    meter: Arc<Meter>,
    common: Common<'a>,
}

impl Parts<'_> {
    fn evaluate(&self, name: &'static str, requests: Requests) -> Box<dyn Stage> {
        Box::new(EvaluateStage {
            name,
            model: self.model.clone(),
            requests,
            generate: self.common.generate.clone(),
            eval: self.common.eval.clone(),
            row_len: self.common.train.max_seq_len,
            meter: Arc::clone(&self.meter),
        })
    }

    fn train(&self) -> Box<dyn Stage> {
        Box::new(TrainStage {
            model: self.model.clone(),
            train: self.common.train.clone(),
            // Measured by the stages around it; along the way only when asked for.
            evaluate: self.common.train.eval_steps.is_some() || self.common.train.load_best,
            eval_batch: self.common.eval.batch_size,
            meter: Arc::clone(&self.meter),
        })
    }

    fn export(&self) -> Box<dyn Stage> {
        Box::new(ExportStage { model: self.model.clone(), settings: self.common.export.clone() })
    }

    fn prepare(&self, source: RowSource) -> PrepareStage {
        PrepareStage {
            model: self.model.clone(),
            source,
            train: self.common.train.clone(),
            plain_text: self.common.eval.plain_text,
        }
    }

    fn inputs(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("model".to_owned(), self.model.digest().to_string()),
            ("tokenizer".to_owned(), self.model.tokenizer_digest().to_string()),
        ])
    }
}

/// Make requests and calls; measure; teach; measure again.
fn quickstart(parts: Parts<'_>, settings: &QuickstartSettings) -> Pipeline {
    let toolworld = ToolworldStage { settings: settings.toolworld.clone() };
    let prepare = parts.prepare(RowSource::Toolworld);
    let stages: Vec<Box<dyn Stage>> = vec![
        Box::new(toolworld.clone()),
        Box::new(prepare.clone()),
        parts.evaluate(BEFORE, Requests::Tools),
        parts.train(),
        parts.export(),
        parts.evaluate(AFTER, Requests::Tools),
    ];
    let inputs = parts.inputs();
    Pipeline { model: parts.model, prepare, toolworld: Some(toolworld), stages, meter: parts.meter, inputs }
}

/// Read the user's rows; measure; train; measure again.
fn data_recipe(
    parts: Parts<'_>,
    settings: &DataRecipeSettings,
    text_only: Option<&'static str>,
) -> Result<Pipeline, MethodError> {
    let rows = Rows::new(&settings.data, text_only, Streams::new(settings.seed));
    let digests = rows.digests()?;
    let mut inputs = parts.inputs();
    inputs.extend(digests.iter().map(|(path, digest)| (path.clone(), digest.clone())));
    let source = RowSource::Data { settings: Box::new(settings.data.clone()), text_only, digests };
    let prepare = parts.prepare(source);
    let stages: Vec<Box<dyn Stage>> = vec![
        Box::new(prepare.clone()),
        parts.evaluate(BEFORE, Requests::Rows),
        parts.train(),
        parts.export(),
        parts.evaluate(AFTER, Requests::Rows),
    ];
    Ok(Pipeline { model: parts.model, prepare, toolworld: None, stages, meter: parts.meter, inputs })
}
