//! How fast steps go. Measures only: nothing that is trained depends on it.

use std::time::{Duration, Instant};

use didact_data::batch::{Batch, TrainingSet};
use didact_model::{Decoder, ForwardMode, loss};

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::evaluate::input;

/// Weight of the newest step in the running speed: about the last ten steps count.
const NEWEST: f64 = 0.2;
/// Steps after which the whole time is predicted.
const PREDICT_AFTER: u64 = 3;

/// The speed of the steps of this process.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Steps this process has to do.
    planned: u64,
    done: u64,
    seconds: f64,
    tokens: u64,
    recent_step: f64,
    recent_tokens: f64,
    predicted: Option<f64>,
}

impl Pace {
    pub(crate) fn new(planned: u64) -> Self {
        Self { planned, done: 0, seconds: 0.0, tokens: 0, recent_step: 0.0, recent_tokens: 0.0, predicted: None }
    }

    pub(crate) fn step(&mut self, tokens: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        self.done += 1;
        self.seconds += seconds;
        self.tokens += tokens;
        let newest = if self.done == 1 { 1.0 } else { NEWEST };
        self.recent_step += newest * (seconds - self.recent_step);
        self.recent_tokens += newest * (tokens as f64 - self.recent_tokens);
        if self.done == PREDICT_AFTER.min(self.planned) {
            self.predicted = Some(self.seconds / self.done as f64 * self.planned as f64);
        }
    }

    /// Recent speed.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        if self.recent_step > 0.0 { self.recent_tokens / self.recent_step } else { 0.0 }
    }

    pub(crate) fn seconds_left(&self, steps: u64) -> f64 {
        self.recent_step * steps as f64
    }

    pub(crate) fn predicted_seconds(&self) -> Option<f64> {
        self.predicted
    }
}

/// What a few steps took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    /// Seconds per optimiser step, without evaluation and checkpoints.
    pub seconds_per_step: f64,
    /// Tokens per second, padding not counted.
    pub tokens_per_s: f64,
    /// Seconds for all steps of the training.
    pub total_seconds: f64,
}

/// Works through the first `steps` steps forward and backward, changing nothing, to predict how long training will take.
/// The first step warms caches up and is not counted when there are others.
///
/// # Errors
/// When a batch cannot be made or does not fit the model, or there is no data.
pub fn measure_steps(
    decoder: &Decoder,
    train: &TrainingSet,
    config: &TrainConfig,
    steps: u64,
) -> Result<StepTime, TrainError> {
    if train.is_empty() {
        return Err(TrainError::NoData);
    }
    let total_steps = config.total_steps(train.batches_per_epoch());
    let steps = steps.clamp(1, total_steps);
    let (mut seconds, mut tokens, mut counted) = (0.0, 0, 0);
    for step in 0..steps {
        let begun = Instant::now();
        let batches = train.micro_batches(step, config.gradient_accumulation_steps)?;
        for batch in &batches {
            let input = input(batch);
            input.check(decoder.config())?;
            let mode = ForwardMode::Train { dropout_key: step };
            let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &mode);
            drop(result.loss_sum.backward());
        }
        if step > 0 || steps == 1 {
            seconds += begun.elapsed().as_secs_f64();
            tokens += batches.iter().map(Batch::tokens).sum::<u64>();
            counted += 1;
        }
    }
    let seconds_per_step = seconds / f64::from(counted.max(1));
    Ok(StepTime {
        seconds_per_step,
        tokens_per_s: if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
        total_seconds: seconds_per_step * total_steps as f64,
    })
}
