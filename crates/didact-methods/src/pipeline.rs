//! From a recipe to its stages. Each method's list of stages is one function below.

use crate::env::Env;
use crate::error::MethodError;
use crate::meter::Meter;
use crate::mixed::{DATA, Mixed, Reading, SourceSpec};
use crate::model_source::ModelHandle;
use crate::recipe::{
    Common, DataRecipeSettings, DataSettings, HyperfitTable, HyperfittingSettings, ItertlSettings, QuickstartSettings,
    Recipe, RoundsTable, Settings, SourcesTable, TasksTable, ToolaceSettings, VerifyTable,
};
use crate::rounds::checker::Checker;
use crate::rounds::stages::{Lessons, RoundPlan};
use crate::stages::diversity::DiversityStage;
use crate::stages::evaluate::{AFTER, BEFORE, EvaluateStage, Requests};
use crate::stages::export::{ExportStage, Exported};
use crate::stages::graph::GraphStage;
use crate::stages::prepare::{PrepareStage, RowSource};
use crate::stages::rows::Rows;
use crate::stages::sources::SourcesStage;
use crate::stages::tasks::AskedTasks;
use crate::stages::toolworld::ToolworldStage;
use crate::stages::train::TrainStage;
use didact_core::hash::{Hasher, hash_dir, hash_file, hash_json};
use didact_core::run::{Environment, FORMAT, RunIdentity};
use didact_core::seed::Streams;
use didact_core::stage::Stage;
use didact_data::schema::Schema;
use didact_train::PreferenceTable;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// A recipe's stages, with its model found and its inputs hashed; nothing is loaded yet.
pub struct Pipeline {
    /// The model.
    pub model: ModelHandle,
    /// What is read.
    pub prepare: Preparation,
    /// What is made before anything is read, if anything.
    pub toolworld: Option<ToolworldStage>,
    /// All stages, in order.
    pub stages: Vec<Box<dyn Stage>>,
    /// Predictions and measurements.
    pub meter: Arc<Meter>,
    /// Label to content hash of everything from outside.
    pub inputs: BTreeMap<String, String>,
}

/// The stage `prepare` of a recipe.
#[derive(Debug, Clone)]
pub enum Preparation {
    /// Rows become one store.
    Rows(Box<PrepareStage>),
    /// Named sources become corpora.
    Sources(Box<SourcesStage>),
    /// Tasks are asked in rounds.
    Rounds(Rc<RoundPlan>),
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
        let tasks = Arc::new(AskedTasks::new(common.eval)?);
        let parts = Parts { model, meter, common, preference: None, tasks };
        match recipe.typed() {
            Settings::Quickstart(settings) => Ok(quickstart(parts, settings)),
            Settings::Sft(settings) => data_recipe(parts, settings, None),
            Settings::ContinuePretrainingText(settings) | Settings::FewShot(settings) => {
                data_recipe(parts, settings, Some(recipe.method()))
            }
            Settings::Dpo(settings) => {
                let mut parts = parts;
                parts.preference = Some(settings.preference.clone());
                // Rows of any other schema are refused where they stand.
                let data = DataSettings { schema: Some(Schema::Preference), ..settings.data.clone() };
                rows_recipe(parts, &data, None, None)
            }
            Settings::Hyperfitting(settings) => {
                let HyperfittingSettings { data, hyperfit, .. } = settings.as_ref();
                rows_recipe(parts, data, Some(recipe.method()), Some(hyperfit))
            }
            Settings::Continual(settings) => {
                let mut sources = match &settings.data.old {
                    None => Vec::new(),
                    Some(SourcesTable::One(old)) => vec![SourceSpec::new("old", old.data())],
                    Some(SourcesTable::Named(all)) => {
                        all.iter().map(|(name, old)| SourceSpec::new(name, old.data())).collect()
                    }
                };
                sources.extend(settings.data.new.iter().map(|new| SourceSpec::new("new", new.data())));
                mixed_recipe(parts, recipe.method(), sources, Reading::Replay(settings.continual.clone()))
            }
            Settings::Decomposition(settings) => {
                let sources = vec![SourceSpec::new(DATA, settings.data.clone())];
                mixed_recipe(parts, recipe.method(), sources, Reading::Length(settings.decomposition.clone()))
            }
            Settings::SkillIt(settings) => {
                let sources = vec![SourceSpec::new(DATA, settings.data.clone())];
                mixed_recipe(parts, recipe.method(), sources, Reading::Skills(settings.skills.clone()))
            }
            Settings::Itertl(settings) => {
                let ItertlSettings { tasks, verify, rounds, itertl, data, .. } = settings.as_ref();
                rounds_recipe(parts, env, (tasks, verify, rounds, data), Lessons::Itertl(itertl.clone()))
            }
            Settings::Toolace(settings) => {
                let ToolaceSettings { tasks, verify, rounds, toolace, data, .. } = settings.as_ref();
                rounds_recipe(parts, env, (tasks, verify, rounds, data), Lessons::Toolace(toolace.clone()))
            }
            Settings::Mixture(settings) => {
                let sources = settings.sources.iter().map(|(name, source)| SourceSpec::new(name, source.data()));
                let sources = sources.collect();
                mixed_recipe(parts, recipe.method(), sources, Reading::Curriculum(settings.curriculum.clone()))
            }
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
    /// The loss over pairs, for recipes that learn from them.
    preference: Option<PreferenceTable>,
    /// Tasks that are asked before and after.
    tasks: Arc<AskedTasks>,
}

impl Parts<'_> {
    fn evaluate(&self, name: &'static str, requests: Requests, mixed: Option<&Mixed>) -> Box<dyn Stage> {
        Box::new(EvaluateStage {
            name,
            model: self.model.clone(),
            requests,
            generate: self.common.generate.clone(),
            eval: self.common.eval.clone(),
            row_len: self.common.train.max_seq_len,
            mixed: mixed.cloned(),
            preference: self.preference.clone(),
            tasks: Arc::clone(&self.tasks),
            meter: Arc::clone(&self.meter),
        })
    }

    fn train(&self, mixed: Option<&Mixed>) -> Box<dyn Stage> {
        Box::new(TrainStage {
            model: self.model.clone(),
            train: self.common.train.clone(),
            mixed: mixed.cloned(),
            preference: self.preference.clone(),
            // Measured by the stages around it; along the way only when asked for.
            evaluate: self.common.train.eval_steps.is_some() || self.common.train.load_best,
            eval_batch: self.common.eval.batch_size,
            meter: Arc::clone(&self.meter),
        })
    }

    fn export(&self) -> Box<dyn Stage> {
        self.export_of(Exported::Trained)
    }

    fn export_of(&self, exported: Exported) -> Box<dyn Stage> {
        Box::new(ExportStage { model: self.model.clone(), exported, settings: self.common.export.clone() })
    }

    fn prepare(&self, source: RowSource) -> PrepareStage {
        PrepareStage {
            model: self.model.clone(),
            source,
            train: self.common.train.clone(),
            plain_text: self.common.eval.plain_text,
            snippets: None,
        }
    }

    fn inputs(&self) -> BTreeMap<String, String> {
        let mut inputs = BTreeMap::from([
            ("model".to_owned(), self.model.digest().to_string()),
            ("tokenizer".to_owned(), self.model.tokenizer_digest().to_string()),
        ]);
        inputs.extend(self.tasks.digest().map(|digest| ("tasks".to_owned(), digest.to_string())));
        inputs
    }
}

/// Read named sources; measure each; learn a graph where the method has one; train on what a curriculum chooses; measure
/// again.
fn mixed_recipe(
    parts: Parts<'_>,
    method: &str,
    sources: Vec<SourceSpec>,
    reading: Reading,
) -> Result<Pipeline, MethodError> {
    let mut inputs = parts.inputs();
    let mut digests = BTreeMap::new();
    for source in &sources {
        digests.extend(source.digests()?);
    }
    inputs.extend(digests.iter().map(|(path, digest)| (path.clone(), digest.clone())));
    let mixed = Mixed { method: method.to_owned(), sources, reading };
    let plain_text = parts.common.eval.plain_text;
    let prepare = SourcesStage { model: parts.model.clone(), mixed: mixed.clone(), digests, plain_text };
    let mut stages: Vec<Box<dyn Stage>> =
        vec![Box::new(prepare.clone()), parts.evaluate(BEFORE, Requests::Rows, Some(&mixed))];
    if let Reading::Skills(skills) = &mixed.reading {
        let file = match &skills.graph.path {
            None => None,
            Some(path) => {
                let digest = hash_file(Path::new(path))?;
                inputs.insert(path.clone(), digest.to_string());
                Some(digest)
            }
        };
        stages.push(Box::new(GraphStage {
            model: parts.model.clone(),
            mixed: mixed.clone(),
            skills: skills.clone(),
            train: parts.common.train.clone(),
            eval_batch: parts.common.eval.batch_size,
            file,
            meter: Arc::clone(&parts.meter),
        }));
    }
    stages.extend([parts.train(Some(&mixed)), parts.export(), parts.evaluate(AFTER, Requests::Rows, Some(&mixed))]);
    let prepare = Preparation::Sources(Box::new(prepare));
    Ok(Pipeline { model: parts.model, prepare, toolworld: None, stages, meter: parts.meter, inputs })
}

/// Read tasks; measure; in each round ask, judge, choose, train and measure; keep the best.
fn rounds_recipe(
    parts: Parts<'_>,
    env: &Env<'_>,
    (tasks, verify, rounds, data): (&TasksTable, &VerifyTable, &RoundsTable, &DataSettings),
    lessons: Lessons,
) -> Result<Pipeline, MethodError> {
    let mut digests = BTreeMap::new();
    for path in [&tasks.path, &tasks.held_out_path].into_iter().flatten() {
        let file = Path::new(path);
        let digest = if file.is_dir() { hash_dir(file, |_| false)? } else { hash_file(file)? };
        digests.insert(path.clone(), digest.to_string());
    }
    let streams = Streams::new(parts.common.seed);
    if rounds.mix > 0.0 {
        digests.extend(Rows::new(data, None, streams).digests()?);
    }
    let checker = Checker::new(verify, env)?;
    let mut inputs = parts.inputs();
    inputs.extend(digests.iter().map(|(path, digest)| (path.clone(), digest.clone())));
    if let Some(described) = &checker.described {
        inputs.insert("checker".to_owned(), described.clone());
    }
    let plan = Rc::new(RoundPlan {
        model: parts.model.clone(),
        tasks: tasks.clone(),
        checker,
        rounds: rounds.clone(),
        lessons,
        data: data.clone(),
        digests,
        train: parts.common.train.clone(),
        generate: parts.common.generate.clone(),
        meter: Arc::clone(&parts.meter),
        streams: streams.child("rounds", &[]),
    });
    let mut stages = plan.stages();
    stages.push(parts.export_of(Exported::BestRound(rounds.count)));
    let prepare = Preparation::Rounds(plan);
    Ok(Pipeline { model: parts.model, prepare, toolworld: None, stages, meter: parts.meter, inputs })
}

/// Make requests and calls; measure; teach; measure again.
fn quickstart(parts: Parts<'_>, settings: &QuickstartSettings) -> Pipeline {
    let toolworld = ToolworldStage { settings: settings.toolworld.clone() };
    let prepare = parts.prepare(RowSource::Toolworld);
    let stages: Vec<Box<dyn Stage>> = vec![
        Box::new(toolworld.clone()),
        Box::new(prepare.clone()),
        parts.evaluate(BEFORE, Requests::Tools, None),
        parts.train(None),
        parts.export(),
        parts.evaluate(AFTER, Requests::Tools, None),
    ];
    let inputs = parts.inputs();
    let prepare = Preparation::Rows(Box::new(prepare));
    Pipeline { model: parts.model, prepare, toolworld: Some(toolworld), stages, meter: parts.meter, inputs }
}

/// Read the user's rows; measure; train; measure again.
fn data_recipe(
    parts: Parts<'_>,
    settings: &DataRecipeSettings,
    text_only: Option<&'static str>,
) -> Result<Pipeline, MethodError> {
    rows_recipe(parts, &settings.data, text_only, None)
}

/// The same; with `hyperfit` on few documents of one length, whose effect on what the model writes is compared at the end.
fn rows_recipe(
    parts: Parts<'_>,
    data: &DataSettings,
    text_only: Option<&'static str>,
    hyperfit: Option<&HyperfitTable>,
) -> Result<Pipeline, MethodError> {
    let rows = Rows::new(data, text_only, Streams::new(parts.common.seed));
    let digests = rows.digests()?;
    let mut inputs = parts.inputs();
    inputs.extend(digests.iter().map(|(path, digest)| (path.clone(), digest.clone())));
    let source = RowSource::Data { settings: Box::new(data.clone()), text_only, digests };
    let prepare = PrepareStage { snippets: hyperfit.cloned(), ..parts.prepare(source) };
    let mut stages: Vec<Box<dyn Stage>> = vec![
        Box::new(prepare.clone()),
        parts.evaluate(BEFORE, Requests::Rows, None),
        parts.train(None),
        parts.export(),
        parts.evaluate(AFTER, Requests::Rows, None),
    ];
    if let Some(table) = hyperfit {
        let (model, meter) = (parts.model.clone(), Arc::clone(&parts.meter));
        stages.push(Box::new(DiversityStage { model, table: table.clone(), meter }));
    }
    let prepare = Preparation::Rows(Box::new(prepare));
    Ok(Pipeline { model: parts.model, prepare, toolworld: None, stages, meter: parts.meter, inputs })
}
