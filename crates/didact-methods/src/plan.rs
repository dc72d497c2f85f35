//! What running a recipe would do: for `--dry-run`.

use crate::env::RunOptions;
use crate::error::{MethodError, gigabytes};
use crate::meter::Readings;
use crate::pipeline::{Pipeline, Preparation};
use crate::recipe::Recipe;
use crate::rounds::stages::RoundPlan;
use crate::stages::sources::SourcesStage;
use crate::stages::{prepare, toolworld, train};
use didact_core::cancel::Cancel;
use didact_core::files;
use didact_core::progress::{Silent, Table};
use didact_core::run::{IDENTITY, RunDir, RunError};
use didact_core::seed::Streams;
use didact_core::stage::preview;
use didact_train::{TrainError, measure_steps};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Tokens of a step beyond which its speed is measured on one part of it.
const CALIBRATION_STEPS: u64 = 2;
/// A forward pass alone, as a share of forward and backward together.
const FORWARD_SHARE: f64 = 1.0 / 3.0;

/// One stage of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedStage {
    /// Its name.
    pub name: String,
    /// Whether its artifact is there already.
    pub skipped: bool,
}

/// What running a recipe would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// Where.
    pub run_dir: PathBuf,
    /// Whether a finished run is there.
    pub finished: bool,
    /// The method.
    pub recipe: String,
    /// Every setting, defaults filled in.
    pub settings: Value,
    /// The stages, in order.
    pub stages: Vec<PlannedStage>,
    /// What would be trained.
    pub ledger: Value,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens per epoch, padding not counted.
    pub tokens_per_epoch: u64,
    /// Predicted peak memory, in bytes.
    pub predicted_memory_bytes: u64,
    /// Free memory, in bytes.
    pub free_memory_bytes: Option<u64>,
    /// Predicted seconds of training.
    pub predicted_train_s: f64,
    /// Predicted seconds of everything.
    pub predicted_s: f64,
    /// What the prediction of time rests on.
    pub time_source: String,
    #[serde(skip)]
    ledger_tables: Vec<Table>,
}

impl Plan {
    /// The plan as tables.
    pub fn tables(&self) -> Vec<Table> {
        let column = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let stages = self.stages.iter().map(|stage| {
            vec![stage.name.clone(), if stage.skipped { "skipped: done already".into() } else { "runs".into() }]
        });
        let free = self.free_memory_bytes.map_or_else(|| "unknown".to_owned(), gigabytes);
        let cost = vec![
            vec!["optimiser steps".into(), self.steps.to_string()],
            vec!["tokens per epoch".into(), self.tokens_per_epoch.to_string()],
            vec!["peak memory".into(), format!("{} of {free} free", gigabytes(self.predicted_memory_bytes))],
            vec!["training".into(), format!("about {:.0} s", self.predicted_train_s)],
            vec!["everything".into(), format!("about {:.0} s ({})", self.predicted_s, self.time_source)],
        ];
        let mut tables = vec![Table {
            title: format!("plan: {} in `{}`", self.recipe, self.run_dir.display()),
            columns: column(&["stage", ""]),
            rows: stages.collect(),
        }];
        tables.extend(self.ledger_tables.iter().cloned());
        tables.push(Table { title: "predicted".into(), columns: column(&["", ""]), rows: cost });
        tables
    }
}

/// Checks everything that running would check, and says what would be done. Writes nothing that stays.
///
/// # Errors
/// What running would be refused for, the memory included unless forced.
pub fn plan(recipe: &Recipe, options: &RunOptions<'_>) -> Result<Plan, MethodError> {
    let RunOptions { env, cancel, .. } = options;
    let pipeline = Pipeline::build(recipe, env, options.force)?;
    let run_dir = options.run_dir.clone().unwrap_or_else(|| pipeline.default_run_dir(recipe));
    let identity = pipeline.identity(recipe, env);
    let mut stages: Vec<PlannedStage> =
        pipeline.stages.iter().map(|s| PlannedStage { name: s.name().to_owned(), skipped: false }).collect();
    let mut finished = false;
    if run_dir.join(IDENTITY).exists() && !options.fresh {
        let run = RunDir::load_readonly(&run_dir)?;
        let old = run.identity();
        let keys: Vec<String> = [
            ("recipe", old.recipe != identity.recipe),
            ("seed", old.seed != identity.seed),
            ("settings", old.settings != identity.settings),
            ("inputs", old.inputs != identity.inputs),
        ]
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| key.to_owned())
        .collect();
        if !keys.is_empty() {
            return Err(RunError::Different { path: run_dir, keys }.into());
        }
        finished = run.report()?.is_some();
        for (stage, (_, is_there)) in stages.iter_mut().zip(preview(&run, &pipeline.stages)?) {
            stage.skipped = is_there;
        }
    }

    // The same work as the stages do, in a directory that is gone afterwards.
    let scratch = tempfile::tempdir()
        .map_err(|source| files::FileError::at("create a directory in", &std::env::temp_dir())(source))?;
    let streams = Streams::new(recipe.seed());
    if let Some(stage) = &pipeline.toolworld {
        toolworld::write(scratch.path(), &stage.settings, streams.child(toolworld::NAME, &[]))?;
    }
    let common = recipe.typed().common();
    let config = pipeline.model.config();
    let longest = common.train.max_seq_len + common.generate.max_tokens;
    let look = match &pipeline.prepare {
        Preparation::Rows(stage) => {
            let prepared = stage.write(
                scratch.path(),
                pipeline.toolworld.as_ref().map(|_| scratch.path()),
                streams.child(prepare::NAME, &[]),
                cancel,
                &Silent,
            )?;
            let set = prepare::training_set(scratch.path(), common.train, streams.child(train::NAME, &[]))?;
            pipeline.meter.check_training(config, &train::shape(common.train, &set, pipeline.model.precision()))?;
            let (train_s, per_token) = calibrate(&pipeline, recipe, &set)?;
            Look {
                ledger: serde_json::to_value(&prepared.ledger).expect("a ledger is plain data"),
                tables: vec![prepared.ledger.table(), prepared.ledger.exceptions_table()],
                steps: common.train.total_steps(set.batches_per_epoch()),
                tokens_per_epoch: set.sequences().tokens(),
                train_s,
                per_token,
            }
        }
        Preparation::Sources(stage) => look_at_sources(&pipeline, recipe, stage, scratch.path(), cancel)?,
        Preparation::Rounds(plan) => look_at_rounds(&pipeline, recipe, plan, scratch.path())?,
    };
    pipeline.meter.check_running(config, crate::stages::evaluate::STREAMS, longest)?;
    let Readings { predicted_memory_bytes, .. } = pipeline.meter.readings();
    let measured = measured_tokens(scratch.path(), common.generate.max_tokens, &pipeline)?;
    Ok(Plan {
        run_dir,
        finished,
        recipe: recipe.method().to_owned(),
        settings: recipe.settings().clone(),
        stages,
        ledger: look.ledger,
        steps: look.steps,
        tokens_per_epoch: look.tokens_per_epoch,
        predicted_memory_bytes: predicted_memory_bytes.unwrap_or_default(),
        free_memory_bytes: (env.free_memory)(),
        predicted_train_s: look.train_s,
        predicted_s: look.train_s + 2.0 * measured * look.per_token * FORWARD_SHARE,
        time_source: "measured on the first steps of this training, on this machine, just now".into(),
        ledger_tables: look.tables,
    })
}

/// What a look at the data says.
struct Look {
    ledger: Value,
    tables: Vec<Table>,
    steps: u64,
    tokens_per_epoch: u64,
    /// Seconds of training, and per token of it.
    train_s: f64,
    per_token: f64,
}

/// Reads the tasks and times the first steps of a round's training. What the model will answer is not known: the tasks' own
/// answers, or their prompts, stand in for it.
fn look_at_rounds(pipeline: &Pipeline, recipe: &Recipe, plan: &RoundPlan, scratch: &Path) -> Result<Look, MethodError> {
    let common = recipe.typed().common();
    let tasks = plan.read_tasks()?;
    let (set, groups) = plan.stand_ins(&tasks, scratch)?;
    pipeline
        .meter
        .check_training(pipeline.model.config(), &train::shape(common.train, &set, pipeline.model.precision()))?;
    let (train_s, per_token) = calibrate(pipeline, recipe, &set)?;
    let steps = common.train.total_steps(groups.div_ceil(common.train.batch_size) as u64);
    let all_steps = steps * plan.rounds.count;
    let per_step = train_s / common.train.total_steps(set.batches_per_epoch()).max(1) as f64;
    let notes = tasks.notes;
    let rows = [
        ("tasks to learn from", notes.train),
        ("of these with an answer of their own", notes.with_answer),
        ("tasks to measure on", notes.held_out),
        ("tasks that repeat another one's prompt, left out", notes.duplicates),
        ("answers sampled in a round, at most", groups * plan.rounds.samples),
    ];
    let table = Table {
        title: "tasks".into(),
        columns: vec![String::new(), String::new()],
        rows: rows.map(|(name, count)| vec![name.to_owned(), count.to_string()]).to_vec(),
    };
    Ok(Look {
        ledger: serde_json::to_value(notes).expect("plain data"),
        tables: vec![table],
        steps: all_steps,
        tokens_per_epoch: set.sequences().tokens(),
        train_s: per_step * all_steps as f64,
        per_token,
    })
}

/// Prepares named sources, builds their curriculum and times its first steps.
fn look_at_sources(
    pipeline: &Pipeline,
    recipe: &Recipe,
    stage: &SourcesStage,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Look, MethodError> {
    let common = recipe.typed().common();
    let (streams, config) = (Streams::new(recipe.seed()), pipeline.model.config());
    let records = stage.write(scratch, streams.child(prepare::NAME, &[]), cancel, &Silent)?;
    let opened = stage.mixed.open(scratch)?;
    let built = stage.mixed.build(&opened, common.train, config, None, streams.child(train::NAME, &[]))?;
    let (rows, len) = built.shape;
    let shape = train::shape_of(&built.train, rows, len, pipeline.model.precision());
    pipeline.meter.check_training(config, &shape)?;
    let mut decoder = pipeline.model.decoder()?;
    if let Some(lora) = &common.train.lora {
        decoder.add_lora(&lora.to_model(), &streams)?;
    }
    decoder.set_activation_checkpointing(common.train.activation_checkpointing);
    let steps = built.train.total_steps_of(built.curriculum.steps_per_epoch()).map_err(TrainError::from)?;
    let time = measure_steps(&decoder, built.curriculum, &built.train, CALIBRATION_STEPS)?;
    let warnings = built.notes.warnings.iter().map(|warning| vec![warning.clone()]).collect::<Vec<_>>();
    let mut tables = vec![crate::stages::sources::table(&records)];
    tables.extend(built.notes.tables);
    if !warnings.is_empty() {
        tables.push(Table { title: "warnings".into(), columns: vec![String::new()], rows: warnings });
    }
    Ok(Look {
        ledger: serde_json::to_value(&records).expect("plain data"),
        tables,
        steps,
        tokens_per_epoch: records.iter().map(|record| record.tokens).sum(),
        train_s: time.seconds_per_step * steps as f64,
        per_token: if time.tokens_per_s > 0.0 { 1.0 / time.tokens_per_s } else { 0.0 },
    })
}

/// Seconds of training, and per token of it, from a few parts of steps.
fn calibrate(
    pipeline: &Pipeline,
    recipe: &Recipe,
    set: &didact_data::batch::TrainingSet,
) -> Result<(f64, f64), MethodError> {
    let common = recipe.typed().common();
    let mut decoder = pipeline.model.decoder()?;
    let streams = Streams::new(recipe.seed());
    if let Some(lora) = &common.train.lora {
        decoder.add_lora(&lora.to_model(), &streams)?;
    }
    decoder.set_activation_checkpointing(common.train.activation_checkpointing);
    // One micro-batch stands for all of its step.
    let parts = common.train.gradient_accumulation_steps;
    let mut part = common.train.clone();
    part.batch_size = (part.batch_size / parts).max(1);
    part.gradient_accumulation_steps = 1;
    let store = didact_data::store::SequenceStore::open(set.sequences().path())?;
    let one = didact_data::batch::TrainingSet::new(store, part.max_seq_len, part.packing, part.batch_size, streams);
    let time = measure_steps(&decoder, &one, &part, CALIBRATION_STEPS)?;
    let steps = common.train.total_steps(set.batches_per_epoch());
    let seconds = time.seconds_per_step * parts as f64 * steps as f64;
    Ok((seconds, if time.tokens_per_s > 0.0 { 1.0 / time.tokens_per_s } else { 0.0 }))
}

/// Tokens that one evaluation reads and writes.
fn measured_tokens(dir: &std::path::Path, max_tokens: usize, pipeline: &Pipeline) -> Result<f64, MethodError> {
    let mut tokens = 0.0;
    for name in [prepare::HELD_OUT, prepare::PLAIN_TEXT] {
        if dir.join(name).is_dir() {
            tokens += didact_data::store::SequenceStore::open(dir.join(name))?.summary().tokens as f64;
        }
    }
    if let Some(stage) = &pipeline.toolworld {
        // Each held-out request is read once more to be answered, and so is each request for a trained tool.
        let requests = 2.0 * stage.settings.test_examples as f64;
        tokens += 2.0 * tokens + requests * max_tokens as f64;
    }
    Ok(tokens)
}
