//! Stage `graph`: how much training on one skill lowers the loss of others, from short trainings of the same base model.
//!
//! Writes `graph.json` and `losses.json`. What a training found is written as soon as it is done, so that an interrupted
//! stage goes on with the one it was at.

use std::path::Path;
use std::sync::Arc;

use didact_core::files;
use didact_core::hash::Digest;
use didact_core::progress::Level;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_data::curriculum::Curriculum;
use didact_data::curriculum::Pool;
use didact_data::curriculum::mixture::{Choice, Mixture, MixtureSettings, Reading as PoolReading};
use didact_data::curriculum::weights::Weights;
use didact_train::trainer::CHECKPOINTS;
use didact_train::{Measured, Session, TrainConfig, Trainer, evaluate_loss};
use serde_json::{Value, json};

use super::{prepare, read_json, train, write_json};
use crate::curricula::graph_table;
use crate::error::MethodError;
use crate::meter::Meter;
use crate::mixed::{Mixed, Opened};
use crate::model_source::ModelHandle;
use crate::recipe::{GraphMode, SkillsSetting, SkillsTable};
use crate::skills::{Drops, SkillsError, SkillsGraph};

/// Name and kind of the stage.
pub const NAME: &str = "graph";
/// The graph.
pub const GRAPH: &str = "graph.json";
/// The losses it was learned from.
pub const LOSSES: &str = "losses.json";

/// Learns, reads or makes the skills graph.
#[derive(Debug, Clone)]
pub struct GraphStage {
    /// The base model.
    pub model: ModelHandle,
    /// The sources.
    pub mixed: Mixed,
    /// How skills are chosen.
    pub skills: SkillsTable,
    /// How to train.
    pub train: TrainConfig,
    /// Rows measured at a time.
    pub eval_batch: usize,
    /// Hash of the graph's file, when it is read from one.
    pub file: Option<Digest>,
    /// Refuses what does not fit in memory.
    pub meter: Arc<Meter>,
}

impl GraphStage {
    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        let opened = self.mixed.open(context.input(prepare::NAME))?;
        let trained: Vec<String> =
            opened.iter().filter(|pool| pool.train.is_some()).map(|pool| pool.name.clone()).collect();
        let measured: Vec<String> = self.mixed.measured(&opened).into_iter().map(|(name, _)| name.to_owned()).collect();
        let graph = match self.skills.graph.mode {
            GraphMode::Identity => SkillsGraph::identity(trained, measured),
            GraphMode::File => {
                let path = self.skills.graph.path.as_deref().unwrap_or_default();
                let graph = SkillsGraph::read(Path::new(path))?;
                let graph =
                    if self.skills.setting == SkillsSetting::Cpt { graph } else { graph.for_targets(&measured)? };
                graph.for_skills(&trained, &measured)?
            }
            GraphMode::Approx | GraphMode::Brute => self.learn(context, &opened, trained, measured)?,
        };
        context.reporter.table(&graph_table(&graph));
        for warning in graph.warnings() {
            context.reporter.message(Level::Warning, &warning);
        }
        graph.write(&context.work_dir.join(GRAPH))?;
        Ok(())
    }

    fn learn(
        &self,
        context: &StageContext<'_>,
        opened: &[Opened],
        trained: Vec<String>,
        measured: Vec<String>,
    ) -> Result<SkillsGraph, MethodError> {
        let (k, table) = (trained.len(), &self.skills.graph);
        let shape = train::shape_of(&self.train, self.train.batch_size, self.train.max_seq_len, self.model.precision());
        self.meter.check_training(self.model.config(), &shape)?;
        let pairs: Vec<(usize, usize)> = match table.mode {
            // A pair says how one skill helps another one that is measured.
            GraphMode::Brute => (0..k)
                .flat_map(|i| (0..k).map(move |j| (i, j)))
                .filter(|&(i, j)| i != j && measured.contains(&trained[j]))
                .collect(),
            _ => Vec::new(),
        };
        let trainings = (k + pairs.len()) as u64 * table.seeds;
        let text = format!(
            "the graph takes {trainings} trainings of {} steps: {} steps of {} rows beside the training itself",
            table.steps,
            trainings * table.steps,
            self.train.batch_size
        );
        context.reporter.message(Level::Info, &text);
        let mut repetitions = Vec::new();
        for seed in 0..table.seeds.max(1) {
            let losses = |name: String, skills: &[usize]| self.losses(context, opened, &trained, &name, skills, seed);
            let base = losses(format!("base-{seed}"), &[])?;
            let alone = (0..k).map(|i| losses(format!("alone-{i}-{seed}"), &[i])).collect::<Result<Vec<_>, _>>()?;
            let mut both = None;
            if table.mode == GraphMode::Brute {
                let column = |j: usize| measured.iter().position(|name| *name == trained[j]);
                let mut of = alone.clone();
                for &(i, j) in &pairs {
                    if let Some(column) = column(j) {
                        of[i][column] = losses(format!("pair-{i}-{j}-{seed}"), &[i, j])?[column];
                    }
                }
                both = Some(of);
            }
            repetitions.push(Drops { base, alone, pairs: both });
        }
        write_json(&context.work_dir.join(LOSSES), &repetitions)?;
        Ok(SkillsGraph::learn(trained, measured, &repetitions, table.normalise)?)
    }

    /// The losses of the measured skills after a short training on some skills, or of the base model.
    fn losses(
        &self,
        context: &StageContext<'_>,
        opened: &[Opened],
        trained: &[String],
        name: &str,
        skills: &[usize],
        seed: u64,
    ) -> Result<Vec<f64>, MethodError> {
        let path = context.work_dir.join("trainings").join(format!("{name}.json"));
        let work = context.work_dir.join(format!("training-{name}"));
        if path.is_file() {
            files::remove_dir_all(&work)?;
            return read_json(&path);
        }
        let row_len = self.train.max_seq_len.min(self.model.config().max_position_embeddings);
        let sets = self.mixed.measuring_sets(opened, row_len, self.eval_batch)?;
        let mut decoder = self.model.decoder()?;
        if let Some(lora) = &self.train.lora {
            decoder.add_lora(&lora.to_model(), &context.streams)?;
        }
        if !skills.is_empty() {
            let pool = |skill: &usize| -> Result<Pool, MethodError> {
                let pool = opened.iter().find(|pool| pool.name == trained[*skill]);
                let sequences = pool.and_then(|pool| pool.train.clone()).ok_or_else(|| MethodError::Sources {
                    reason: format!("skill `{}` has no row to train on", trained[*skill]),
                })?;
                Ok(Pool::new(&trained[*skill], sequences, self.train.max_seq_len, self.train.packing)?)
            };
            let pools: Vec<Pool> = skills.iter().map(pool).collect::<Result<_, MethodError>>()?;
            let settings = MixtureSettings {
                batch_size: self.train.batch_size,
                weights: Weights::Fixed(vec![1.0; pools.len()]),
                choice: Choice::Even,
                readings: vec![PoolReading::default(); pools.len()],
            };
            // All trainings of a repetition draw alike, so that their noise is shared.
            let streams = context.streams.child("graph", &[seed]);
            let curriculum: Box<dyn Curriculum> = Box::new(Mixture::new(pools, settings, streams)?);
            let config = TrainConfig {
                max_steps: Some(self.skills.graph.steps),
                eval_steps: None,
                warmup_steps: self.train.warmup_steps.map(|steps| steps.min(self.skills.graph.steps / 2)),
                decay_steps: None,
                cooldown_steps: None,
                load_best: false,
                ..self.train.clone()
            };
            files::create_dir_all(&work)?;
            let session = Session {
                stage: format!("{NAME}-{name}"),
                checkpoints: work.join(CHECKPOINTS),
                feedback: work.join("feedback.log"),
                streams,
                ..Session::from(context)
            };
            Trainer::new(&mut decoder, curriculum, Vec::<Measured<'_>>::new(), &config, session).run()?;
        }
        let mut losses = Vec::new();
        for (name, set) in &sets {
            let Some(loss) = evaluate_loss(&decoder, set, 1, &context.cancel)? else {
                return Err(MethodError::Stopped { run_dir: context.run.root().to_owned() });
            };
            let loss = loss.mean_of_examples;
            if !loss.is_finite() {
                return Err(SkillsError::NonFinite { skill: name.clone(), loss }.into());
            }
            losses.push(loss);
        }
        if let Some(parent) = path.parent() {
            files::create_dir_all(parent)?;
        }
        write_json(&path, &losses)?;
        files::remove_dir_all(&work)?;
        Ok(losses)
    }
}

/// Reads the graph of this stage's artifact.
///
/// # Errors
/// When it is not there or damaged.
pub fn read(artifact: &Path) -> Result<SkillsGraph, MethodError> {
    read_json(&artifact.join(GRAPH))
}

impl Stage for GraphStage {
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
        json!({ "skills": self.skills, "train": self.train, "eval_batch": self.eval_batch })
    }

    fn inputs(&self) -> Vec<StageInput> {
        [
            StageInput::Stage(prepare::NAME.into()),
            StageInput::Content { label: "model".into(), digest: self.model.digest() },
        ]
        .into_iter()
        .chain(self.file.map(|digest| StageInput::Content { label: "graph".into(), digest }))
        .collect()
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}
