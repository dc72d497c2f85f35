//! The loop.
//!
//! One step: its rows, in micro-batches, forward and backward; the sum of their gradients over the sum of their weights;
//! hooks; clipping; one update; the record of it. What follows a step (evaluation, checkpoint) is a function of how many
//! steps are done, so that a resumed run does exactly what the uninterrupted one did.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use didact_core::cancel::Cancel;
use didact_core::files::{self, FileError};
use didact_core::metrics::Metrics;
use didact_core::progress::{Level, Reporter, StepReport};
use didact_core::seed::Streams;
use didact_core::stage::StageContext;
use didact_data::batch::{Batch, WeightAccount};
use didact_data::curriculum::{Feedback, Progress as CurriculumProgress};
use didact_kernels::reduce;
use didact_model::{Decoder, ForwardMode, loss, work};

use crate::accumulate::GradientBuffers;
use crate::checkpoint::{CheckpointStore, Evaluation, PoolTotals, State};
use crate::config::TrainConfig;
use crate::error::{ConfigError, NonFiniteWhat, TrainError};
use crate::evaluate::{EvalLoss, Sum, evaluate_sets, input, origins};
use crate::hook::{Hook, HookResult, StepPlan, StepResult};
use crate::optimizer::{AdamW, AdamWSettings, clip_factor};
use crate::preference::{self, Objective};
use crate::schedule::LearningRate;
use crate::source::{Feed, Measured, Source, StepBatches};
use crate::timing::Pace;

/// Directory of the checkpoints, inside the stage's work directory.
pub const CHECKPOINTS: &str = "checkpoints";
/// The log of what a curriculum was told, inside the stage's work directory.
pub const FEEDBACK: &str = "feedback.log";
/// Steps between two records of how much of each pool was read, where nothing is evaluated along the way.
const SHARES_EVERY: u64 = 10;
/// Sets whose losses are shown one by one.
const SHOWN_SETS: usize = 6;
/// Change of a pool's weight that is worth a record.
const WEIGHT_CHANGE: f64 = 1e-3;
/// Steps whose losses make up [`TrainOutcome::final_loss`], and are compared with [`TrainConfig::target_loss`].
const RECENT: usize = 20;
/// Rounding of a sum of weights taken in two orders, relative to the sum.
const SAME_WEIGHT: f64 = 1e-9;

/// Where a training belongs: what [`StageContext`] says, or a test.
#[derive(Clone)]
pub struct Session<'a> {
    /// Root of the run directory, for the metrics.
    pub run_root: PathBuf,
    /// The stage's name.
    pub stage: String,
    /// Directory of the checkpoints.
    pub checkpoints: PathBuf,
    /// The log of what a curriculum was told.
    pub feedback: PathBuf,
    /// Randomness.
    pub streams: Streams,
    /// Asks for a stop.
    pub cancel: Cancel,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}

impl<'a> From<&'a StageContext<'_>> for Session<'a> {
    fn from(context: &'a StageContext<'_>) -> Self {
        Self {
            run_root: context.run.root().to_owned(),
            stage: context.name.clone(),
            checkpoints: context.work_dir.join(CHECKPOINTS),
            feedback: context.work_dir.join(FEEDBACK),
            streams: context.streams,
            cancel: context.cancel.clone(),
            reporter: context.reporter,
        }
    }
}

/// What came of a training.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// Where it ended: steps, losses, evaluations, totals. The same for a run that was interrupted and one that was not.
    pub state: State,
    /// Mean loss of the last steps (20 of them, when there were as many), nats per unit of weight.
    pub final_loss: Option<f64>,
    /// Step whose weights the model has now: the last, or the best one.
    pub weights_of_step: u64,
    /// Step of the checkpoint before the final decay of the learning rate, from which another training may go on.
    pub trunk_step: Option<u64>,
    /// Steps that an earlier process had done.
    pub resumed_from: Option<u64>,
    /// Seconds this process spent here.
    pub seconds: f64,
    /// Seconds for the whole of this process's steps, as predicted after the first few of them.
    pub predicted_seconds: Option<f64>,
    /// Tokens per second, over this process's steps; 0 without any.
    pub tokens_per_s: f64,
    /// The same by the length of the longest row of a step in targets, without the first step of each length.
    pub tokens_per_s_by_length: BTreeMap<usize, f64>,
}

impl TrainOutcome {
    /// The last evaluation.
    pub fn last_evaluation(&self) -> Option<&Evaluation> {
        self.state.evaluations.last()
    }
}

/// Trains a decoder on what a source gives, measuring the loss of some sets along the way; to be run once. Continues from
/// what an interrupted attempt left in the session's directories. Hooks and another objective are given before it runs.
pub struct Trainer<'a> {
    decoder: &'a mut Decoder,
    /// Taken when training begins.
    source: Option<Source<'a>>,
    measured: Vec<Measured<'a>>,
    config: &'a TrainConfig,
    session: Session<'a>,
    hooks: Vec<Box<dyn Hook + 'a>>,
    objective: Objective<'a>,
    store: CheckpointStore,
}

/// What changes while training.
struct Progress<'a> {
    state: State,
    feed: Feed<'a>,
    optimizer: AdamW,
    gradients: GradientBuffers,
    schedule: LearningRate,
    metrics: Metrics,
    total_steps: u64,
    last_checkpoint: Option<u64>,
    pace: Pace,
}

impl<'a> Trainer<'a> {
    /// A training of everything in `decoder` that is trainable.
    pub fn new(
        decoder: &'a mut Decoder,
        source: impl Into<Source<'a>>,
        measured: Vec<Measured<'a>>,
        config: &'a TrainConfig,
        session: Session<'a>,
    ) -> Self {
        let store = CheckpointStore::new(&session.checkpoints);
        let source = Some(source.into());
        Self { decoder, source, measured, config, session, hooks: Vec::new(), objective: Objective::NextToken, store }
    }

    /// Adds a hook; they are called in the order in which they were added.
    #[must_use]
    pub fn with_hook(mut self, hook: impl Hook + 'a) -> Self {
        self.hooks.push(Box::new(hook));
        self
    }

    /// Minimises something else than the loss of next tokens.
    #[must_use]
    pub fn with_objective(mut self, objective: Objective<'a>) -> Self {
        self.objective = objective;
        self
    }

    /// Trains to the end, or to an error, or until a stop is asked for.
    ///
    /// # Errors
    /// See [`TrainError`].
    pub fn run(mut self) -> Result<TrainOutcome, TrainError> {
        let started = Instant::now();
        self.config.validate()?;
        let mut progress = self.begin()?;
        let resumed_from = progress.last_checkpoint;
        loop {
            if self.after_step(&mut progress)?.is_none() {
                return Err(self.stop(&mut progress)?);
            }
            if progress.state.step >= progress.total_steps {
                break;
            }
            if let Some(target) = self.reached(&progress.state) {
                let State { step, .. } = progress.state;
                let text = format!("the loss has fallen to {target}: training ends after step {step}");
                self.session.reporter.message(Level::Info, &text);
                break;
            }
            if self.session.cancel.is_cancelled() {
                return Err(self.stop(&mut progress)?);
            }
            self.step(&mut progress)?;
        }
        progress.metrics.sync()?;
        didact_model::release_spare_memory();
        // What a stop or a kill left beside the checkpoints that belong to the plan.
        self.store.retain(&progress.state.kept)?;
        let weights_of_step = self.choose_weights(&progress.state)?;
        let trunk_step = progress.schedule.trunk_step().filter(|step| progress.state.kept.contains(step));
        let Progress { state, pace, .. } = progress;
        Ok(TrainOutcome {
            final_loss: recent_loss(&state),
            weights_of_step,
            trunk_step,
            resumed_from,
            seconds: started.elapsed().as_secs_f64(),
            predicted_seconds: pace.predicted_seconds(),
            tokens_per_s: pace.tokens_per_s(),
            tokens_per_s_by_length: pace.tokens_per_s_by_length(),
            state,
        })
    }

    /// Takes up the newest intact checkpoint, or begins at step 0.
    fn begin(&mut self) -> Result<Progress<'a>, TrainError> {
        let parameters = self.decoder.parameters_mut();
        let mut optimizer = AdamW::new(parameters, AdamWSettings::new(self.config));
        let restored = self.store.restore_newest(parameters, &mut optimizer, self.session.reporter)?;
        let last_checkpoint = restored.as_ref().map(|state| state.step);
        let source = self.source.take().ok_or(TrainError::NoData)?;
        let curriculum = restored.as_ref().and_then(|state| state.curriculum.as_ref());
        let feed = Feed::open(source, &self.session.feedback, curriculum)?;
        let total_steps = feed.total_steps(self.config)?;
        let schedule = LearningRate::new(self.config, total_steps)?;
        if feed.needs_feedback() {
            if self.measured.is_empty() {
                return Err(TrainError::NoFeedback);
            }
            if self.config.eval_steps.is_none() {
                let reason = "a curriculum that follows what is measured".to_owned();
                return Err(ConfigError::Missing { key: "eval_steps".to_owned(), reason }.into());
            }
        }
        if let Some(step) = last_checkpoint {
            let text = format!("continuing after step {step} of {total_steps}");
            self.session.reporter.message(Level::Info, &text);
        }
        let state = restored.unwrap_or_default();
        for hook in &mut self.hooks {
            if let Some(saved) = state.hooks.get(hook.name()) {
                let result = hook.restore(saved);
                named(hook.as_ref(), result)?;
            }
        }
        let metrics = Metrics::open(&self.session.run_root, &self.session.stage, last_checkpoint)?;
        self.decoder.set_activation_checkpointing(self.config.activation_checkpointing);
        let mut gradients =
            GradientBuffers::with_dtype(self.decoder.parameters(), self.config.gradient_dtype.to_model());
        gradients.release_between_steps(self.config.saves_memory());
        Ok(Progress {
            feed,
            gradients,
            schedule,
            pace: Pace::new(total_steps - state.step.min(total_steps)),
            state,
            optimizer,
            metrics,
            total_steps,
            last_checkpoint,
        })
    }

    /// One optimiser step.
    fn step(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let begun = Instant::now();
        let step = progress.state.step;
        let learning_rate = progress.schedule.at(step);
        let plan = StepPlan { step, total_steps: progress.total_steps, learning_rate };
        let asked = CurriculumProgress { step, total_steps: progress.total_steps };
        let Some(mut read) = progress.feed.next(&asked, self.config.gradient_accumulation_steps)? else {
            return self.run_dry(progress);
        };
        for hook in &mut self.hooks {
            let result = hook.before_step(&plan, self.decoder, &mut read.batches);
            named(hook.as_ref(), result)?;
        }

        let sum = self.accumulate(step, &read, progress)?;
        let gradients = &mut progress.gradients;
        gradients.divide_by_weight();
        let mut grad_norm = 0.0;
        if sum.weight > 0.0 {
            for hook in &mut self.hooks {
                let result = hook.after_gradients(&plan, self.decoder, gradients);
                named(hook.as_ref(), result)?;
            }
            grad_norm = gradients.norm();
            if !grad_norm.is_finite() {
                let feed = &progress.feed;
                let examples = read.batches.iter().enumerate().flat_map(|(i, batch)| {
                    let rows = batch.examples.iter().enumerate();
                    rows.flat_map(move |(row, pieces)| pieces.iter().map(move |piece| ((i, row), piece.sequence)))
                });
                let rows = origins(examples, |(i, row), sequence| feed.origin(&read, i, row, sequence));
                return Err(TrainError::NonFinite {
                    what: NonFiniteWhat::Gradient,
                    step: step + 1,
                    rows,
                    parameter: gradients.first_non_finite().map(str::to_owned),
                    checkpoint: progress.last_checkpoint,
                });
            }
        }
        point("train.step", &self.session.checkpoints)?;
        if sum.weight > 0.0 {
            let scale = clip_factor(self.config.max_grad_norm, grad_norm);
            progress.optimizer.update(self.decoder.parameters_mut(), gradients, learning_rate, scale);
        }
        gradients.clear();

        let result = StepResult { step: step + 1, loss: sum.mean(), grad_norm, learning_rate, weight: sum.weight };
        self.record(&result, &sum, &read, progress)?;
        for hook in &mut self.hooks {
            let outcome = hook.after_step(&result, self.decoder);
            named(hook.as_ref(), outcome)?;
        }
        let tokens = read.batches.iter().map(Batch::tokens).sum();
        let is_adapter = self.decoder.lora().is_some();
        let work = work::of_training(self.decoder.config(), amount(&read.batches), is_adapter);
        let len = read.batches.iter().map(|batch| batch.len).max().unwrap_or_default();
        progress.pace.step(tokens, len, work, begun.elapsed());
        self.report(&result, progress)
    }

    /// The loss that ends this training, if it is reached.
    fn reached(&self, state: &State) -> Option<f64> {
        let is_full = state.recent_losses.len() == RECENT;
        self.config.target_loss.filter(|&target| is_full && recent_loss(state).is_some_and(|loss| loss <= target))
    }

    /// The curriculum has nothing left: training ends here.
    fn run_dry(&self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let step = progress.state.step;
        if step == 0 {
            return Err(TrainError::NoData);
        }
        let planned = progress.total_steps;
        let text = format!(
            "the curriculum has nothing left after step {step} of {planned}: training ends here, with the learning rate \
             where it is"
        );
        self.session.reporter.message(Level::Warning, &text);
        progress.total_steps = step;
        Ok(())
    }

    /// Forward and backward over the micro-batches of a step, in order.
    fn accumulate(&self, step: u64, read: &StepBatches, progress: &mut Progress<'a>) -> Result<Sum, TrainError> {
        let mut sum = Sum::default();
        let Progress { feed, gradients, .. } = progress;
        let mut failed = None;
        for (number, batch) in read.batches.iter().enumerate() {
            if batch.weight.iter().any(|&weight| weight != 0.0) {
                let input = input(batch);
                input.check(self.decoder.config())?;
                let dropout_key = self.session.streams.key("dropout", &[step, number as u64]);
                let mode = ForwardMode::Train { dropout_key };
                let origin = |row: usize, sequence: u32| feed.origin(read, number, row, sequence);
                // Without dropout both modes give the same numbers, and this one keeps nothing for a backward pass.
                let has_dropout = self.config.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0);
                let first_mode = if has_dropout { mode } else { ForwardMode::Eval };
                let weighed = match preference::weigh(self.decoder, &input, batch, &self.objective, &first_mode)? {
                    None => None,
                    Some((first, weighed)) => {
                        if let Err(error) = sum.add_pairs(batch, &first, &weighed.sum, step, origin) {
                            failed = Some(error);
                            break;
                        }
                        Some(weighed)
                    }
                };
                let added = gradients.add(self.decoder.parameters(), || {
                    let weight = weighed.as_ref().map_or(&batch.weight, |weighed| &weighed.weight);
                    let result = loss::next_token(self.decoder, &input, &batch.targets, weight, &mode);
                    let of = match &weighed {
                        None => {
                            if let Err(error) = sum.add(batch, &result, step, origin) {
                                return (Err(error), None);
                            }
                            result.total_weight
                        }
                        Some(weighed) => weighed.sum.pairs as f64,
                    };
                    (Ok(()), Some((result.loss_sum.backward(), of)))
                });
                if let Err(error) = added {
                    failed = Some(error);
                    break;
                }
            }
            point("train.micro_step", &self.session.checkpoints)?;
        }
        match failed {
            Some(error) => Err(self.with_parameter(error, progress)),
            None => Ok(sum),
        }
    }

    /// Adds to a report of a non-finite loss which parameter is not finite, if one is, and what is saved.
    fn with_parameter(&self, error: TrainError, progress: &Progress<'a>) -> TrainError {
        match error {
            TrainError::NonFinite { what, step, rows, .. } => {
                let parameters = self.decoder.parameters();
                let is_broken = |id| parameters.with_data(id, |data| reduce::first_non_finite(data).is_some());
                let broken = parameters.iter().find(|(id, _)| is_broken(*id));
                let parameter = broken.map(|(_, parameter)| parameter.name().to_owned());
                TrainError::NonFinite { what, step, rows, parameter, checkpoint: progress.last_checkpoint }
            }
            other => other,
        }
    }

    /// Writes a step's numbers down, and balances the books at the end of an epoch.
    fn record(
        &self,
        result: &StepResult,
        sum: &Sum,
        read: &StepBatches,
        progress: &mut Progress<'a>,
    ) -> Result<(), TrainError> {
        let state = &mut progress.state;
        state.step = result.step;
        state.updates = progress.optimizer.step();
        state.totals.tokens += read.batches.iter().map(Batch::tokens).sum::<u64>();
        state.totals.trained_tokens += sum.tokens;
        state.totals.weight += sum.weight;
        state.totals.epoch_weight += sum.weight;
        for (pool, targets) in progress.feed.pools_of(read) {
            let total = state.pools.entry(pool.to_owned()).or_default();
            total.rows += 1;
            total.targets += targets;
            total.since += targets;
        }
        let mut values = Vec::new();
        if let Some(loss) = result.loss {
            state.first_loss.get_or_insert(loss);
            state.recent_losses.push(loss);
            if state.recent_losses.len() > RECENT {
                state.recent_losses.remove(0);
            }
            values.extend([("train/loss", loss), ("train/grad_norm", result.grad_norm)]);
            if sum.pairs.pairs > 0 {
                let share = |part: f64| part / sum.pairs.pairs as f64;
                values.extend([
                    ("train/rewards/accuracies", share(sum.pairs.right as f64)),
                    ("train/rewards/margins", share(sum.pairs.margin)),
                ]);
            }
        }
        values.push(("train/learning_rate", result.learning_rate));
        let per_epoch = progress.feed.steps_per_epoch();
        if let Some(per_epoch) = per_epoch {
            values.push(("train/epoch", result.step as f64 / per_epoch as f64));
        }
        if result.loss.is_some() {
            values.push(("train/num_input_tokens_seen", state.totals.tokens as f64));
        } else {
            state.totals.empty_steps += 1;
            let text = format!("step {} has no token with a weight: nothing was updated", result.step);
            self.session.reporter.message(Level::Warning, &text);
        }
        progress.metrics.log(result.step, &values)?;
        self.log_shares(progress)?;
        let state = &mut progress.state;
        if let (Feed::Set(set), Some(per_epoch)) = (&progress.feed, per_epoch)
            && result.step.is_multiple_of(per_epoch)
        {
            let account = set.weight_account();
            let trained = std::mem::take(&mut state.totals.epoch_weight);
            // Hooks may change batches, and with them the weight.
            if self.hooks.is_empty() {
                balance(result.step / per_epoch, &account, trained)?;
            }
        }
        Ok(())
    }

    /// Records how much of what is read comes from each pool: the curriculum's weights when they change, or else, now and
    /// then, the share of the targets read since the last record.
    fn log_shares(&self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let state = &mut progress.state;
        let shares = if let Some(weights) = progress.feed.weights() {
            let is_near = |(name, weight): &(String, f64)| {
                state.weights.get(name).is_some_and(|logged| (logged - weight).abs() < WEIGHT_CHANGE)
            };
            if weights.len() == state.weights.len() && weights.iter().all(is_near) {
                return Ok(());
            }
            state.weights = weights.iter().cloned().collect();
            weights
        } else {
            let every = self.config.eval_steps.unwrap_or(SHARES_EVERY);
            let is_due = state.step.is_multiple_of(every) || state.step == progress.total_steps;
            let all: u64 = state.pools.values().map(|pool| pool.since).sum();
            if !is_due || all == 0 {
                return Ok(());
            }
            let share = |(name, pool): (&String, &mut PoolTotals)| {
                (name.clone(), std::mem::take(&mut pool.since) as f64 / all as f64)
            };
            state.pools.iter_mut().map(share).collect()
        };
        let named: Vec<(String, f64)> =
            shares.into_iter().map(|(name, share)| (format!("curriculum/{name}"), share)).collect();
        let values: Vec<(&str, f64)> = named.iter().map(|(name, share)| (name.as_str(), *share)).collect();
        Ok(progress.metrics.log(state.step, &values)?)
    }

    fn report(&self, result: &StepResult, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let tokens_per_s = progress.pace.tokens_per_s();
        progress.metrics.timing(result.step, &[("perf/tokens_per_s", tokens_per_s)])?;
        self.session.reporter.step(&StepReport {
            stage: self.session.stage.clone(),
            step: result.step,
            total_steps: progress.total_steps,
            loss: result.loss.unwrap_or(f64::NAN),
            learning_rate: result.learning_rate,
            tokens_per_s,
            share_of_peak: progress
                .pace
                .share_of_peak(self.decoder.precision())
                .filter(|_| self.decoder.parameters().is_on_cpu()),
            eta_s: progress.pace.seconds_left(progress.total_steps - result.step),
            note: None,
        });
        Ok(())
    }

    /// What is due after the steps done so far, and not done yet: evaluation, then checkpoint. `None` if a stop was asked
    /// for in between; what is still due is then done on resuming.
    fn after_step(&mut self, progress: &mut Progress<'a>) -> Result<Option<()>, TrainError> {
        let step = progress.state.step;
        let is_last = step > 0 && (step == progress.total_steps || self.reached(&progress.state).is_some());
        let is_due = match (step, self.config.eval_steps) {
            (0, _) => self.config.eval_on_start || progress.feed.needs_feedback(),
            (_, Some(every)) => is_last || step.is_multiple_of(every),
            (_, None) => is_last,
        };
        let is_done = progress.state.evaluations.last().is_some_and(|evaluation| evaluation.step == step);
        if !self.measured.is_empty() && is_due && !is_done {
            let parts = self.config.gradient_accumulation_steps;
            let found = evaluate_sets(self.decoder, &self.measured, parts, &self.session.cancel)?;
            let Some((loss, sets)) = found else { return Ok(None) };
            if progress.feed.needs_feedback() {
                // Every sequence counts the same, as the method that is fed has it.
                let losses = sets.iter().map(|(name, loss)| (name.clone(), loss.mean_of_examples)).collect();
                progress.feed.observe(&Feedback { step, losses })?;
            }
            self.note_evaluation(Evaluation { step, loss, sets }, progress)?;
        }
        if step == 0 {
            return Ok(Some(()));
        }
        let is_best = progress.state.best.as_ref().is_some_and(|best| best.step == step);
        let trunk = progress.schedule.trunk_step();
        let is_planned = is_last || is_best || trunk == Some(step) || step.is_multiple_of(self.config.save_steps);
        if is_planned && !progress.state.kept.contains(&step) {
            progress.state.kept.push(step);
            let always: Vec<u64> = progress.state.best.iter().map(|best| best.step).chain(trunk).collect();
            progress.state.kept = retained(&progress.state.kept, &always, self.config.save_total_limit);
            self.save(progress)?;
            self.store.retain(&progress.state.kept)?;
        }
        Ok(Some(()))
    }

    fn note_evaluation(&self, evaluation: Evaluation, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let Evaluation { step, loss, sets } = &evaluation;
        let (step, EvalLoss { nats_per_token, tokens, .. }) = (*step, *loss);
        let mut values =
            vec![("eval/loss".to_owned(), nats_per_token), ("eval/perplexity".to_owned(), loss.perplexity())];
        if sets.len() > 1 {
            values.extend(sets.iter().map(|(name, loss)| (format!("eval/{name}/loss"), loss.nats_per_token)));
        }
        let values: Vec<(&str, f64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        progress.metrics.log(step, &values)?;
        // What was there before training is no result of it.
        let is_better =
            step > 0 && progress.state.best.as_ref().is_none_or(|best| nats_per_token < best.loss.nats_per_token);
        let mark = if is_better { ", the best so far" } else { "" };
        let each = if sets.len() > 1 {
            let each: Vec<String> =
                sets.iter().take(SHOWN_SETS).map(|(name, loss)| format!("{name} {:.4}", loss.nats_per_token)).collect();
            let more = if sets.len() > SHOWN_SETS { ", …" } else { "" };
            format!(" ({}{more})", each.join(", "))
        } else {
            String::new()
        };
        let text = format!("step {step}: held-out loss {nats_per_token:.4}{each} over {tokens} tokens{mark}");
        self.session.reporter.message(Level::Info, &text);
        if is_better {
            progress.state.best = Some(evaluation.clone());
        }
        progress.state.evaluations.push(evaluation);
        Ok(())
    }

    /// Saves the present state. The metrics become durable first, so that a checkpoint never knows of steps they lack.
    fn save(&mut self, progress: &mut Progress<'a>) -> Result<(), TrainError> {
        let step = progress.state.step;
        for hook in &mut self.hooks {
            let result = hook.on_checkpoint(step);
            named(hook.as_ref(), result)?;
        }
        progress.state.curriculum = progress.feed.state();
        progress.state.hooks = self.hooks.iter().map(|hook| (hook.name().to_owned(), hook.state())).collect();
        progress.metrics.sync()?;
        self.store.save(&progress.state, self.decoder.parameters(), &progress.optimizer)?;
        progress.last_checkpoint = Some(step);
        Ok(())
    }

    /// Saves for a later process, beside the checkpoints that belong to the plan, and says so.
    fn stop(&mut self, progress: &mut Progress<'a>) -> Result<TrainError, TrainError> {
        let step = progress.state.step;
        if step > 0 && progress.last_checkpoint != Some(step) {
            self.save(progress)?;
            let mut kept = progress.state.kept.clone();
            kept.push(step);
            self.store.retain(&kept)?;
        }
        progress.metrics.sync()?;
        Ok(TrainError::Cancelled { step, total_steps: progress.total_steps })
    }

    /// Goes back to the best weights if that was asked for.
    fn choose_weights(&mut self, state: &State) -> Result<u64, TrainError> {
        match &state.best {
            Some(best) if self.config.load_best && best.step != state.step => {
                let restored = self.store.restore_parameters(best.step, self.decoder.parameters_mut());
                restored.map_err(|error| TrainError::BestCheckpoint { reason: error.to_string() })?;
                Ok(best.step)
            }
            _ => Ok(state.step),
        }
    }
}

/// The mean loss of the last steps.
fn recent_loss(state: &State) -> Option<f64> {
    let recent = &state.recent_losses;
    (!recent.is_empty()).then(|| recent.iter().sum::<f64>() / recent.len() as f64)
}

/// What a step's batches are to work on, padding left out.
fn amount(batches: &[Batch]) -> work::Amount {
    let tokens = batches.iter().map(Batch::tokens).sum();
    let lengths = batches.iter().flat_map(|batch| batch.examples.iter().flatten()).map(|piece| u64::from(piece.len));
    work::Amount { tokens, pairs: lengths.map(|len| len * (len + 1) / 2).sum() }
}

fn named(hook: &(dyn Hook + '_), result: HookResult) -> Result<(), TrainError> {
    result.map_err(|cause| TrainError::Hook { hook: hook.name().to_owned(), cause })
}

fn point(name: &str, at: &Path) -> Result<(), FileError> {
    files::fail::point(name).map_err(FileError::at("train in", at))
}

/// Checks at the end of an epoch that its weight was trained or reported as dropped.
fn balance(epoch: u64, account: &WeightAccount, trained: f64) -> Result<(), TrainError> {
    let WeightAccount { built, dropped, .. } = *account;
    if (built - dropped - trained).abs() <= SAME_WEIGHT * built {
        return Ok(());
    }
    Err(TrainError::WeightLost { epoch, built, trained, dropped })
}

/// Which of the checkpoints `steps` (ascending) to keep: those of `always` (the best, the trunk) and the last in any case, and
/// the newest others up to `limit` in all.
fn retained(steps: &[u64], always: &[u64], limit: Option<usize>) -> Vec<u64> {
    let Some(limit) = limit else { return steps.to_vec() };
    let mut kept: Vec<u64> = steps.iter().copied().filter(|step| always.contains(step)).collect();
    for &step in steps.iter().rev() {
        let is_last = Some(&step) == steps.last();
        if !kept.contains(&step) && (is_last || kept.len() < limit) {
            kept.push(step);
        }
    }
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_and_the_last_checkpoint_are_kept_whatever_the_limit() {
        assert_eq!(retained(&[1, 2, 3, 4], &[2], Some(1)), [2, 4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[2], Some(2)), [2, 4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[2], Some(3)), [2, 3, 4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[4], Some(1)), [4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[], Some(2)), [3, 4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[], None), [1, 2, 3, 4]);
        assert_eq!(retained(&[3, 4], &[1], Some(2)), [3, 4]);
        assert_eq!(retained(&[1, 2, 3, 4], &[1, 2], Some(2)), [1, 2, 4], "the best and the trunk");
    }

    #[test]
    fn weight_that_is_neither_trained_nor_dropped_is_an_error() {
        let account = WeightAccount { built: 100.0, dropped: 10.0, ..WeightAccount::default() };
        balance(1, &account, 90.0 + 1e-9).expect("the rest is rounding");
        let error = balance(2, &account, 89.5).expect_err("half a token is gone");
        assert_eq!(
            error.to_string(),
            "epoch 2 trained a weight of 89.5, but the data holds 100, of which 10 were reported as dropped"
        );
    }
}
