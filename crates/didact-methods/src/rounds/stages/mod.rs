//! The stages of rounds: `tasks`, `evaluate-0`, then for each round `sample-N`, `verify-N`, `select-N`, `train-N` and
//! `evaluate-N`. All files are JSON or JSON lines.
//!
//! | stage | writes |
//! |---|---|
//! | `tasks` | `train.jsonl`, `held_out.jsonl`, `notes.json` |
//! | `sample-N` | `prompts.jsonl` (the tasks asked), `samples.jsonl` |
//! | `verify-N` | `verdicts.jsonl` |
//! | `select-N` | `training.jsonl` (groups), `history.jsonl`, `selection.json` |
//! | `train-N` | `adapter/` or `model/`, `outcome.json`; neither where there was nothing to learn |
//! | `evaluate-N` | `answers.jsonl`, `solved.json`, `metrics.json`, `samples.json`, `decision.json` |
//!
//! The stages of a round that is not begun, because an earlier one was the last, write `stopped.json` and nothing else.

mod learn;
mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use didact_core::cancel::Cancel;
use didact_core::files;
use didact_core::generate::{Generator, Sampling};
use didact_core::hash::{Digest, hash_bytes};
use didact_core::progress::Level;
use didact_core::seed::Streams;
use didact_core::stage::{Stage, StageContext, StageError, StageInput};
use didact_infer::{CachedGenerator, EngineWeights, LocalGenerator, Options};
use didact_model::Decoder;
use didact_train::TrainConfig;
use didact_verify::cached::Cached;
use serde_json::{Value, json};

use super::ask::{self, Judged, Known, Sample};
use super::checker::Checker;
use super::progress::Decision;
use super::select::{self, Group, History, OWN, Selection};
use super::solvable;
use super::tasks::{self, Task, TaskSet};
use crate::error::MethodError;
use crate::meter::Meter;
use crate::model_source::ModelHandle;
use crate::recipe::{
    DataSettings, GenerateSettings, ItertlTable, Lesson, RoundsTable, Target, TasksTable, ToolaceTable,
};
use crate::stages::evaluate::STREAMS;
use crate::stages::{read_json, read_jsonl, train, write_json, write_jsonl};

pub use learn::RowsOfData;

/// Tasks to learn from.
pub const TRAIN: &str = "train.jsonl";
/// Tasks to measure on.
pub const HELD_OUT: &str = "held_out.jsonl";
/// What was found while reading the tasks.
pub const NOTES: &str = "notes.json";
/// The tasks that a round asks.
pub const PROMPTS: &str = "prompts.jsonl";
/// A round's answers.
pub const SAMPLES: &str = "samples.jsonl";
/// The same, judged.
pub const VERDICTS: &str = "verdicts.jsonl";
/// What is learned of them.
pub const TRAINING: &str = "training.jsonl";
/// What became of each task so far.
pub const HISTORY: &str = "history.jsonl";
/// What was chosen, counted.
pub const SELECTION: &str = "selection.json";
/// How well held-out tasks are solved.
pub const SOLVED: &str = "solved.json";
/// Whether to go on.
pub const DECISION: &str = "decision.json";
/// In place of everything else: why the round was not begun.
pub const STOPPED: &str = "stopped.json";
/// Answers as they come, while a stage works.
const ANSWER_LOG: &str = "answers.log";
/// Verdicts as they come, while a stage works.
const VERDICT_LOG: &str = "verdicts.log";

/// The method of the rounds: what is learned of answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Lessons {
    /// Candidates are ranked, or the best imitated.
    Itertl(ItertlTable),
    /// What can just about be solved is imitated, and own attempts are looked at again.
    Toolace(ToolaceTable),
}

/// Everything that the stages of rounds share.
#[derive(Debug)]
pub struct RoundPlan {
    /// The model as it came.
    pub model: ModelHandle,
    /// What is asked.
    pub tasks: TasksTable,
    /// Who judges.
    pub checker: Checker,
    /// How rounds go.
    pub rounds: RoundsTable,
    /// What is learned.
    pub lessons: Lessons,
    /// Rows to mix in.
    pub data: DataSettings,
    /// Hashes of the files of tasks and rows, by their names.
    pub digests: BTreeMap<String, String>,
    /// How to train.
    pub train: TrainConfig,
    /// How long answers may be.
    pub generate: GenerateSettings,
    /// Refuses what does not fit in memory.
    pub meter: Arc<Meter>,
    /// Randomness that is the same in all stages.
    pub streams: Streams,
}

/// What a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Reads the tasks.
    Tasks,
    /// Asks.
    Sample(u64),
    /// Judges.
    Verify(u64),
    /// Chooses.
    Select(u64),
    /// Learns.
    Train(u64),
    /// Measures; round 0 is the model as it came.
    Evaluate(u64),
}

impl Step {
    /// The stage's name.
    pub fn name(self) -> String {
        match self {
            Self::Tasks => "tasks".to_owned(),
            Self::Sample(round) => format!("sample-{round}"),
            Self::Verify(round) => format!("verify-{round}"),
            Self::Select(round) => format!("select-{round}"),
            Self::Train(round) => format!("train-{round}"),
            Self::Evaluate(round) => format!("evaluate-{round}"),
        }
    }

    /// Other recipes have stages `train` and `evaluate`, which write other files.
    fn kind(self) -> &'static str {
        match self {
            Self::Tasks => "tasks",
            Self::Sample(_) => "sample",
            Self::Verify(_) => "verify",
            Self::Select(_) => "select",
            Self::Train(_) => "round-train",
            Self::Evaluate(_) => "round-evaluate",
        }
    }

    fn round(self) -> u64 {
        match self {
            Self::Tasks => 0,
            Self::Sample(round)
            | Self::Verify(round)
            | Self::Select(round)
            | Self::Train(round)
            | Self::Evaluate(round) => round,
        }
    }
}

/// One step of one round.
#[derive(Debug, Clone)]
pub struct RoundStage {
    plan: Rc<RoundPlan>,
    step: Step,
    name: String,
}

impl RoundPlan {
    /// All stages, in order.
    pub fn stages(self: &Rc<Self>) -> Vec<Box<dyn Stage>> {
        let mut steps = vec![Step::Tasks, Step::Evaluate(0)];
        for round in 1..=self.rounds.count {
            steps.extend([
                Step::Sample(round),
                Step::Verify(round),
                Step::Select(round),
                Step::Train(round),
                Step::Evaluate(round),
            ]);
        }
        let stage = |step: Step| Box::new(RoundStage { plan: Rc::clone(self), step, name: step.name() });
        steps.into_iter().map(|step| stage(step) as Box<dyn Stage>).collect()
    }

    /// The tasks, as the stage `tasks` reads them.
    ///
    /// # Errors
    /// As [`tasks::read`].
    pub fn read_tasks(&self) -> Result<TaskSet, MethodError> {
        tasks::read(&self.tasks, self.model.tokenizer().template().is_some(), &self.streams)
    }

    /// Whether each task's own answer is judged, too.
    fn judges_own(&self) -> bool {
        match &self.lessons {
            Lessons::Itertl(table) => table.filter || table.target == Target::Best,
            Lessons::Toolace(_) => false,
        }
    }

    /// The generator of a model.
    fn generator(&self, decoder: &Decoder) -> Result<LocalGenerator, MethodError> {
        let longest = self.train.max_seq_len + self.generate.max_tokens;
        self.meter.check_running(self.model.config(), STREAMS, longest)?;
        let options = Options { precision: self.model.precision(), max_streams: STREAMS, ..Options::default() };
        let weights = EngineWeights::from_decoder(decoder);
        Ok(LocalGenerator::new(weights, Arc::clone(self.model.tokenizer()), options)?)
    }
}

/// Where the newest model is that rounds up to `round` have trained; `None` if that is still the one that came.
pub(crate) fn newest<'a>(context: &'a StageContext<'_>, round: u64) -> Option<&'a Path> {
    let trained = |round| context.input(&Step::Train(round).name());
    let is_there = |dir: &&Path| [train::ADAPTER, train::MODEL].iter().any(|name| dir.join(name).is_dir());
    (1..=round).rev().map(trained).find(is_there)
}

/// Where a step of this run left its work.
fn input<'a>(context: &'a StageContext<'_>, step: Step) -> &'a Path {
    context.input(&step.name())
}

/// The tasks of a file that the stage `tasks` wrote.
fn tasks_of(context: &StageContext<'_>, file: &str) -> Result<Vec<Task>, MethodError> {
    read_jsonl(&input(context, Step::Tasks).join(file))
}

/// Answers sampled to learn from, up to a round.
fn spent(context: &StageContext<'_>, round: u64) -> Result<u64, MethodError> {
    let sampled = |round| -> Result<u64, MethodError> {
        let selection: Selection = read_json(&input(context, Step::Select(round)).join(SELECTION))?;
        Ok(selection.sampled as u64)
    };
    (1..=round).try_fold(0, |sum, round| Ok(sum + sampled(round)?))
}

/// Removes the logs of a stage whose work is written down.
fn tidy(context: &StageContext<'_>, logs: &[&str]) -> Result<(), MethodError> {
    for log in logs {
        let path: PathBuf = context.work_dir.join(log);
        if path.exists() {
            files::remove_file(path)?;
        }
    }
    Ok(())
}

fn stopped(context: &StageContext<'_>) -> MethodError {
    MethodError::Stopped { run_dir: context.run.root().to_owned() }
}

fn content(label: &str, digest: Digest) -> StageInput {
    StageInput::Content { label: label.to_owned(), digest }
}

impl RoundStage {
    /// Why this round is not begun, if so.
    fn why_not(&self, context: &StageContext<'_>) -> Result<Option<Decision>, MethodError> {
        let Some(before) = self.step.round().checked_sub(1) else { return Ok(None) };
        let decision: Decision = read_json(&input(context, Step::Evaluate(before)).join(DECISION))?;
        Ok(decision.stop.is_some().then_some(decision))
    }

    fn work(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        if let Some(decision) = self.why_not(context)? {
            write_json(&context.work_dir.join(STOPPED), &json!({ "after": decision.round, "why": decision.stop }))?;
            if matches!(self.step, Step::Evaluate(_)) {
                write_json(&context.work_dir.join(DECISION), &decision)?;
            }
            return Ok(());
        }
        match self.step {
            Step::Tasks => self.read(context),
            Step::Sample(round) => self.sample(context, round),
            Step::Verify(round) => self.verify(context, round),
            Step::Select(round) => self.select(context, round),
            Step::Train(round) => self.learn(context, round),
            Step::Evaluate(round) => self.measure(context, round),
        }
    }

    fn read(&self, context: &StageContext<'_>) -> Result<(), MethodError> {
        let TaskSet { train, held_out, notes } = self.plan.read_tasks()?;
        write_jsonl(&context.work_dir.join(TRAIN), &train)?;
        write_jsonl(&context.work_dir.join(HELD_OUT), &held_out)?;
        write_json(&context.work_dir.join(NOTES), &notes)?;
        if notes.duplicates > 0 {
            let text = format!("{} of {} tasks repeat another one's prompt: left out", notes.duplicates, notes.rows);
            context.reporter.message(Level::Warning, &text);
        }
        Ok(())
    }

    /// Asks the tasks of this round. Answers are on disk one by one.
    fn sample(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let all = tasks_of(context, TRAIN)?;
        let chosen = tasks::dealt(all.len(), self.plan.rounds.tasks, round, &self.plan.streams);
        let asked: Vec<&Task> = chosen.iter().map(|&task| &all[task]).collect();
        write_jsonl(&context.work_dir.join(PROMPTS), &asked)?;
        let decoder = match newest(context, round - 1) {
            Some(dir) => self.plan.model.trained(dir)?,
            None => self.plan.model.decoder()?,
        };
        let RoundsTable { samples, temperature, top_p, .. } = self.plan.rounds;
        let seeds = self.plan.streams.child("samples", &[round]);
        let sampling = |task: usize, number: usize| Sampling {
            temperature,
            top_p: Some(top_p),
            max_tokens: self.plan.generate.max_tokens,
            log_probs: false,
            seed: seeds.key("answer", &[chosen[task] as u64, number as u64]),
            ..Sampling::default()
        };
        let generator = self.asking(context, &decoder)?;
        drop(decoder);
        let found = self.answers(context, &generator, &asked, samples, sampling)?;
        write_jsonl(&context.work_dir.join(SAMPLES), &found)?;
        tidy(context, &[ANSWER_LOG])
    }

    /// A model to ask, whose answers are on disk one by one.
    fn asking(
        &self,
        context: &StageContext<'_>,
        decoder: &Decoder,
    ) -> Result<CachedGenerator<LocalGenerator>, MethodError> {
        let generator = self.plan.generator(decoder)?;
        // The stage's key says which model it is: its work directory is emptied when that changes.
        let log = context.work_dir.join(ANSWER_LOG);
        Ok(CachedGenerator::new(generator, hash_bytes(b"model")).with_file(&log, 1)?)
    }

    /// Answers to tasks, in their order.
    fn answers(
        &self,
        context: &StageContext<'_>,
        generator: &dyn Generator,
        asked: &[&Task],
        samples: usize,
        sampling: impl Fn(usize, usize) -> Sampling,
    ) -> Result<Vec<Sample>, MethodError> {
        let total = (asked.len() * samples) as u64;
        let mut heard = |done| context.reporter.count(&self.name, "answers", done, Some(total));
        let found = ask::ask(generator, &self.name, asked, samples, sampling, &context.cancel, &mut heard)?;
        found.ok_or_else(|| stopped(context))
    }

    /// Verdicts of answers, those that an interrupted attempt or an earlier round left not made again.
    fn verdicts(
        &self,
        context: &StageContext<'_>,
        tasks: &[&Task],
        samples: Vec<Sample>,
        known: &Known,
        cancel: &Cancel,
    ) -> Result<Vec<Judged>, MethodError> {
        let checker = self.plan.checker.clone();
        let (fingerprint, volatile) = (checker.fingerprint(), checker.volatile);
        let cached = Cached::new(checker, fingerprint, volatile, Some(&context.work_dir.join(VERDICT_LOG)))?;
        let total = samples.len() as u64;
        let mut heard = |done| context.reporter.count(&self.name, "verdicts", done, Some(total));
        ask::judge(&cached, tasks, samples, known, cancel, &mut heard)?.ok_or_else(|| stopped(context))
    }

    /// Judges the round's answers.
    fn verify(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let sampled = input(context, Step::Sample(round));
        let asked: Vec<Task> = read_jsonl(&sampled.join(PROMPTS))?;
        let asked: Vec<&Task> = asked.iter().collect();
        let mut samples: Vec<Sample> = read_jsonl(&sampled.join(SAMPLES))?;
        if self.plan.judges_own() {
            let own = asked.iter().filter_map(|task| {
                let (id, text) = (task.id.clone(), task.answer.clone()?);
                Some(Sample { id, number: OWN, text, tokens: 0, complete: true })
            });
            samples.extend(own);
        }
        let mut known = Known::new();
        for earlier in 1..round {
            let judged: Vec<Judged> = read_jsonl(&input(context, Step::Verify(earlier)).join(VERDICTS))?;
            let lasting = judged.into_iter().filter(|answer| {
                answer.verdict.score.is_some()
                    && !self.plan.checker.volatile.contains(&answer.verdict.category.as_str())
            });
            known.extend(lasting.map(|answer| ((answer.sample.id, answer.sample.text), answer.verdict)));
        }
        let judged = self.verdicts(context, &asked, samples, &known, &context.cancel)?;
        write_jsonl(&context.work_dir.join(VERDICTS), &judged)?;
        tidy(context, &[VERDICT_LOG])
    }

    /// Chooses what is learned.
    fn select(&self, context: &StageContext<'_>, round: u64) -> Result<(), MethodError> {
        let asked: Vec<Task> = read_jsonl(&input(context, Step::Sample(round)).join(PROMPTS))?;
        let asked: Vec<&Task> = asked.iter().collect();
        let judged: Vec<Judged> = read_jsonl(&input(context, Step::Verify(round)).join(VERDICTS))?;
        let streams = self.plan.streams.child("selection", &[round]);
        let (mut groups, mut selection) = match &self.plan.lessons {
            Lessons::Itertl(table) => select::itertl(table, &asked, &judged, round),
            Lessons::Toolace(table) => {
                let (groups, selection, note) = solvable::chosen(table, &asked, &judged, round, &streams);
                if let Some(note) = note {
                    context.reporter.message(Level::Warning, &note);
                }
                (groups, selection)
            }
        };
        let mut earlier: Vec<Group> = Vec::new();
        let mut history: Vec<History> = Vec::new();
        for before in 1..round {
            let dir = input(context, Step::Select(before));
            if self.plan.rounds.replay > 0.0 {
                earlier.extend(read_jsonl::<Group>(&dir.join(TRAINING))?);
            }
            if before + 1 == round {
                history = read_jsonl(&dir.join(HISTORY))?;
            }
        }
        let history = select::remembered(history, &judged, &groups, round);
        let replayed = select::replayed(earlier, &groups, self.plan.rounds.replay, &streams);
        selection.replayed = replayed.len();
        groups.extend(replayed);
        let wanted = (self.plan.rounds.mix * selection.kept as f64).round() as usize;
        if wanted > 0 {
            let rows = RowsOfData { settings: &self.plan.data, streams: &self.plan.streams };
            let rows = rows.drawn(wanted, round)?;
            selection.mixed = rows.len();
            groups.extend(rows);
        }
        selection.trained = groups.len();
        context.reporter.table(&selection.table(round));
        write_jsonl(&context.work_dir.join(TRAINING), &groups)?;
        write_jsonl(&context.work_dir.join(HISTORY), &history)?;
        write_json(&context.work_dir.join(SELECTION), &selection)
    }
}

impl Stage for RoundStage {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.step.kind()
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        let plan = &self.plan;
        let rounds = &plan.rounds;
        let lessons = match &plan.lessons {
            Lessons::Itertl(table) => json!({ "itertl": table }),
            Lessons::Toolace(table) => json!({ "toolace": table }),
        };
        match self.step {
            Step::Tasks => json!({ "tasks": plan.tasks }),
            Step::Sample(round) => json!({
                "round": round,
                "tasks": rounds.tasks,
                "samples": rounds.samples,
                "temperature": rounds.temperature,
                "top_p": rounds.top_p,
                "max_tokens": plan.generate.max_tokens,
            }),
            Step::Verify(_) => json!({ "own": plan.judges_own() }),
            Step::Select(round) => json!({
                "round": round,
                "lessons": lessons,
                "replay": rounds.replay,
                "mix": rounds.mix,
                "data": if rounds.mix > 0.0 { json!(plan.data) } else { Value::Null },
            }),
            Step::Train(_) => json!({
                "lessons": lessons,
                "start": rounds.start,
                "train": plan.train,
                "train_on": plan.data.train_on,
            }),
            Step::Evaluate(round) => json!({
                "round": round,
                "samples": rounds.eval_samples,
                "temperature": rounds.eval_temperature,
                "top_p": rounds.top_p,
                "max_tokens": plan.generate.max_tokens,
                "shown": plan.generate.samples,
                "refine": match &plan.lessons {
                    Lessons::Toolace(table) => json!([table.refine_steps, table.instruction]),
                    Lessons::Itertl(_) => Value::Null,
                },
                "patience": rounds.patience,
                "max_answers": rounds.max_answers,
                "tasks": rounds.tasks,
                "answers": rounds.samples,
            }),
        }
    }

    fn inputs(&self) -> Vec<StageInput> {
        let plan = &self.plan;
        let stage = |step: Step| StageInput::Stage(step.name());
        let digests = || plan.digests.iter().map(|(label, digest)| content(label, hash_bytes(digest.as_bytes())));
        let model =
            || [content("model", plan.model.digest()), content("tokenizer", plan.model.tokenizer_digest())].into_iter();
        let checker = || content("checker", plan.checker.fingerprint());
        let round = self.step.round();
        let mut inputs = match self.step {
            Step::Tasks => digests().chain([content("tokenizer", plan.model.tokenizer_digest())]).collect(),
            Step::Sample(_) => {
                let mut inputs = vec![stage(Step::Tasks)];
                inputs.extend((1..round).map(|round| stage(Step::Train(round))));
                inputs.extend(model());
                inputs
            }
            Step::Verify(_) => {
                let mut inputs = vec![stage(Step::Sample(round)), checker()];
                inputs.extend((1..round).map(|round| stage(Step::Verify(round))));
                inputs
            }
            Step::Select(_) => {
                let mut inputs = vec![stage(Step::Sample(round)), stage(Step::Verify(round))];
                inputs.extend((1..round).map(|round| stage(Step::Select(round))));
                inputs.extend(digests());
                inputs
            }
            Step::Train(_) => {
                let mut inputs = vec![stage(Step::Select(round))];
                inputs.extend((1..round).map(|round| stage(Step::Train(round))));
                inputs.extend(model());
                inputs
            }
            Step::Evaluate(_) => {
                let mut inputs = vec![stage(Step::Tasks), checker()];
                inputs.extend((1..=round).flat_map(|round| [stage(Step::Select(round)), stage(Step::Train(round))]));
                inputs.extend((0..round).map(|round| stage(Step::Evaluate(round))));
                inputs.extend(model());
                inputs
            }
        };
        if let (false, Some(before)) = (matches!(self.step, Step::Tasks | Step::Evaluate(_)), round.checked_sub(1)) {
            inputs.push(stage(Step::Evaluate(before)));
        }
        inputs
    }

    fn depends_on_arithmetic(&self) -> bool {
        !matches!(self.step, Step::Tasks | Step::Verify(_) | Step::Select(_))
    }

    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.work(context).map_err(MethodError::into_stage_error)
    }
}

/// Whether a lesson is learned by next tokens alone.
pub(crate) fn imitates(lessons: &Lessons) -> bool {
    match lessons {
        Lessons::Itertl(table) => table.lesson == Lesson::Best,
        Lessons::Toolace(_) => true,
    }
}
