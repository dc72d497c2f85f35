//! Runs the arms of a method and decides its claim.

use super::error::ReproduceError;
use super::lab::{OUTCOME, read_outcome, stage_name};
use super::record::Record;
use super::{Arm, Lab, Outcome, Reproduction, Results, Size, plot};
use crate::error::MethodError;
use crate::methods::Method;
use didact_core::cancel::Cancel;
use didact_core::files::{self, FileError};
use didact_core::progress::{Level, Reporter, StepReport, Table, duration};
use didact_core::run::{Environment, FORMAT, RunDir, RunIdentity};
use didact_core::seed::Streams;
use didact_core::stage::{Stage, StageContext, StageError, StageInput, execute};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Seeds when none are given.
pub const DEFAULT_SEEDS: [u64; 5] = [1, 2, 3, 4, 5];
/// The plot, inside the run directory.
pub const PLOT: &str = "plot.svg";
/// How long each arm took, inside the run directory.
const TIMES: &str = "times.json";
/// What marks a directory of training checkpoints, which nobody needs once the arm is done.
const CHECKPOINTS: &str = "train";
/// Arms that take longer than this show their steps.
const SHORT_S: f64 = 3.0;

/// How to run a reproduction.
#[derive(Clone)]
pub struct ReproduceOptions<'a> {
    /// One run of every arm for each of these.
    pub seeds: Vec<u64>,
    /// How large.
    pub size: Size,
    /// The run directory; when not given, `runs/reproduce-<slug>-<size>`.
    pub run_dir: Option<PathBuf>,
    /// Start over; an older run there is renamed.
    pub fresh: bool,
    /// Didact's version, with the commit where it is known.
    pub version: &'a str,
    /// Threads of the process; results do not depend on it.
    pub threads: usize,
    /// The machine, for people.
    pub machine: &'a str,
    /// The command line, for people.
    pub command: &'a str,
    /// Asks for a stop.
    pub cancel: Cancel,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}

/// Where a reproduction is kept when nothing else was said.
pub fn default_run_dir(slug: &str, size: Size) -> PathBuf {
    Path::new("runs").join(format!("reproduce-{slug}-{}", size.as_str()))
}

/// Runs every arm at every seed, or what is missing of them, and decides the claim. The plot and the record are in the run
/// directory afterwards.
///
/// # Errors
/// [`MethodError`]; after [`MethodError::Stopped`] the same call continues.
pub fn run(method: &Method, options: &ReproduceOptions<'_>) -> Result<Record, MethodError> {
    let ReproduceOptions { seeds, size, cancel, reporter, .. } = options;
    let distinct: BTreeSet<u64> = seeds.iter().copied().collect();
    if seeds.is_empty() || distinct.len() != seeds.len() {
        return Err(ReproduceError::Seeds { found: format!("{seeds:?}") }.into());
    }
    let reproduction = method.reproduction;
    let root = options.run_dir.clone().unwrap_or_else(|| default_run_dir(method.slug, *size));
    let run = RunDir::open(&root, identity(reproduction, options), options.fresh)?;
    for change in &run.environment_changes {
        let text = format!("this run began elsewhere, its bits may differ from here on: {change}");
        reporter.message(Level::Warning, &text);
    }
    let arms = reproduction.arms(*size);
    let settings = reproduction.settings(*size);
    // Seed by seed, so that more seeds only add to what is there.
    let stages: Vec<Box<dyn Stage>> = seeds
        .iter()
        .flat_map(|&seed| arms.iter().map(move |arm| (seed, *arm)))
        .map(|(seed, arm)| Box::new(ArmStage::new(reproduction, arm, seed, *size, &settings)) as Box<dyn Stage>)
        .collect();
    let pace = Pace::new(&root, stages.iter().map(|stage| stage.name().to_owned()).collect(), *reporter)?;
    // The streams of stages are not used by arms: see `Lab::streams`.
    let result = execute(&run, &stages, Streams::new(0), cancel, &pace);
    let (times, current) = pace.finish()?;
    let outcomes = result.map_err(|error| match error {
        StageError::Cancelled => MethodError::Stopped { run_dir: root.clone() },
        StageError::Failed(cause) => MethodError::Stage { stage: current.unwrap_or_else(|| "start".into()), cause },
        other => MethodError::Artifact { path: root.clone(), reason: other.to_string() },
    })?;

    let mut by_arm: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
    for (index, outcome) in outcomes.iter().enumerate() {
        let arm = arms[index % arms.len()].name;
        by_arm.entry(arm.to_owned()).or_default().push(read_outcome(&outcome.directory)?);
    }
    let results = Results::new(seeds.clone(), by_arm);
    let record = Record::new(method, options, &arms, &results, &times)?;
    files::write_atomic(root.join(PLOT), plot::svg(&record)?.as_bytes())?;
    run.finish(&serde_json::to_value(&record).expect("a record is plain data"))?;
    Ok(record)
}

/// What the run directory is a run of. The seeds are no part of it: more of them continue the run.
fn identity(reproduction: &dyn Reproduction, options: &ReproduceOptions<'_>) -> RunIdentity {
    let size = options.size;
    RunIdentity {
        format: FORMAT,
        recipe: format!("reproduce {}", reproduction.slug()),
        seed: 0,
        settings: json!({
            "size": size,
            "version": reproduction.version(),
            "settings": reproduction.settings(size),
        }),
        inputs: BTreeMap::new(),
        environment: Environment {
            version: options.version.to_owned(),
            precision: didact_kernels::Precision::F32.as_str().to_owned(),
            cpu_level: didact_kernels::level().as_str().to_owned(),
            threads: options.threads,
            device: "cpu".to_owned(),
        },
    }
}

/// One arm at one seed.
struct ArmStage {
    reproduction: &'static dyn Reproduction,
    arm: Arm,
    seed: u64,
    size: Size,
    name: String,
    settings: Value,
}

impl ArmStage {
    fn new(reproduction: &'static dyn Reproduction, arm: Arm, seed: u64, size: Size, settings: &Value) -> Self {
        let name = stage_name(arm.name, seed);
        let settings = json!({
            "method": reproduction.slug(),
            "arm": arm.name,
            "seed": seed,
            "size": size,
            "settings": settings,
        });
        Self { reproduction, arm, seed, size, name, settings }
    }

    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        let path = context.work_dir.join(OUTCOME);
        // It is written last: an attempt that was killed after it has nothing left to do but to tidy up.
        if !path.is_file() {
            let lab = Lab::new(context, self.reproduction.slug(), self.seed, self.size);
            let outcome = self.reproduction.run(self.arm.name, &lab)?;
            for (metric, &value) in &outcome.values {
                if !value.is_finite() {
                    let (arm, seed, metric) = (self.arm.name.to_owned(), self.seed, metric.clone());
                    return Err(ReproduceError::NotANumber { arm, seed, metric, value }.into());
                }
            }
            files::write_atomic(&path, &serde_json::to_vec(&outcome).expect("an outcome is plain data"))?;
        }
        for entry in files::list_dir(&context.work_dir)? {
            if entry.is_dir() && entry.extension().is_some_and(|end| end == CHECKPOINTS) {
                files::remove_dir_all(&entry)?;
            }
        }
        Ok(())
    }
}

impl Stage for ArmStage {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "arm"
    }

    fn version(&self) -> u32 {
        self.reproduction.version()
    }

    fn settings(&self) -> Value {
        self.settings.clone()
    }

    fn inputs(&self) -> Vec<StageInput> {
        self.arm.needs.iter().map(|name| StageInput::Stage(stage_name(name, self.seed))).collect()
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}

/// Seconds spent on an arm, by all processes that worked on it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Time {
    seconds: f64,
    is_done: bool,
}

/// Seconds by stage.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Times(BTreeMap<String, Time>);

impl Times {
    pub(super) fn of(&self, arm: &str, seed: u64) -> f64 {
        self.0.get(&stage_name(arm, seed)).map_or(0.0, |time| time.seconds)
    }

    /// Seconds that these stages will take, from what others took: those of the same arm where there are any.
    fn expected<'s>(&self, stages: impl Iterator<Item = &'s str>) -> Option<f64> {
        let arm_of = |stage: &str| stage.rsplit_once('.').map_or(stage, |(arm, _)| arm).to_owned();
        let mut by_arm: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for (stage, time) in self.0.iter().filter(|(_, time)| time.is_done) {
            let (sum, count) = by_arm.entry(arm_of(stage)).or_default();
            *sum += time.seconds;
            *count += 1.0;
        }
        let (sum, count) = by_arm.values().fold((0.0, 0.0), |(s, c), (sum, count)| (s + sum / count, c + 1.0));
        let any = (count > 0.0).then(|| sum / count)?;
        Some(stages.map(|stage| by_arm.get(&arm_of(stage)).map_or(any, |(sum, count)| sum / count)).sum())
    }
}

/// Tells how far all arms are, and keeps their times.
struct Pace<'a> {
    inner: &'a dyn Reporter,
    path: PathBuf,
    stages: Vec<String>,
    state: Mutex<PaceState>,
}

#[derive(Default)]
struct PaceState {
    times: Times,
    current: Option<(String, usize, Instant)>,
    skipped: usize,
    failure: Option<FileError>,
}

impl<'a> Pace<'a> {
    fn new(root: &Path, stages: Vec<String>, inner: &'a dyn Reporter) -> Result<Self, MethodError> {
        let path = root.join(TIMES);
        // Times that cannot be read are only times: the work counts from here on.
        let times = if path.is_file() {
            serde_json::from_slice(&files::read(&path)?).unwrap_or_default()
        } else {
            Times::default()
        };
        Ok(Self { inner, path, stages, state: Mutex::new(PaceState { times, ..PaceState::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, PaceState> {
        // A panic elsewhere is no reason to lose the times.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, state: &mut PaceState) {
        let json = serde_json::to_vec(&state.times).expect("times are plain data");
        if let Err(error) = files::write_atomic(&self.path, &json) {
            state.failure = Some(error);
        }
    }

    /// The times of all arms, and the arm that was at work.
    fn finish(self) -> Result<(Times, Option<String>), FileError> {
        let mut state = std::mem::take(&mut *self.state());
        let current = state.current.take().map(|(name, _, started)| {
            state.times.0.entry(name.clone()).or_default().seconds += started.elapsed().as_secs_f64();
            name
        });
        self.save(&mut state);
        match state.failure {
            Some(error) => Err(error),
            None => Ok((state.times, current)),
        }
    }
}

impl Reporter for Pace<'_> {
    fn stage_started(&self, name: &str, index: usize, total: usize) {
        let mut state = self.state();
        let skipped = std::mem::take(&mut state.skipped);
        state.current = Some((name.to_owned(), index, Instant::now()));
        let time = state.times.0.entry(name.to_owned()).or_default();
        if time.is_done {
            *time = Time::default();
        }
        drop(state);
        if skipped > 0 {
            self.inner.message(Level::Info, &format!("{skipped} of {total} arms are there already"));
        }
    }

    fn stage_skipped(&self, _: &str, _: &str) {
        self.state().skipped += 1;
    }

    fn stage_finished(&self, name: &str, seconds: f64) {
        let mut state = self.state();
        let index = state.current.take().map_or(0, |(_, index, _)| index);
        let time = state.times.0.entry(name.to_owned()).or_default();
        time.seconds += seconds;
        time.is_done = true;
        let left = state.times.expected(self.stages[index + 1..].iter().map(String::as_str)).unwrap_or(0.0);
        self.save(&mut state);
        drop(state);
        let (done, total) = (index + 1, self.stages.len());
        let left = if done == total { String::new() } else { format!(", about {} left", duration(left)) };
        self.inner.message(Level::Info, &format!("[{done}/{total}] {name}: {}{left}", duration(seconds)));
    }

    fn step(&self, report: &StepReport) {
        let is_long = self.state().current.as_ref().is_some_and(|(_, _, at)| at.elapsed().as_secs_f64() > SHORT_S);
        if is_long {
            // Evaluations go into the curves; a line for each of them, times all arms, would be too much.
            self.inner.step(&StepReport { note: None, ..report.clone() });
        }
    }

    fn count(&self, stage: &str, what: &str, done: u64, total: Option<u64>) {
        self.inner.count(stage, what, done, total);
    }

    fn table(&self, table: &Table) {
        self.inner.table(table);
    }

    fn message(&self, level: Level, text: &str) {
        // Every evaluation of every arm is a sentence.
        if level == Level::Warning {
            self.inner.message(level, text);
        }
    }
}

#[cfg(test)]
mod tests;
