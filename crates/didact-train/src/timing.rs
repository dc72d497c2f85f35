//! How fast steps go. Measures only: nothing that is trained depends on it.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use didact_data::batch::Batch;
use didact_data::curriculum::Progress;
use didact_kernels::Precision;
use didact_kernels::gemm::{MatRef, gemm};
use didact_model::{Decoder, ForwardMode, loss};

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::evaluate::input;
use crate::source::{Feed, Source};

/// Seconds of training after which the machine's peak is measured: short runs are not slowed down.
const MEASURE_PEAK_AFTER: f64 = 30.0;
/// Edge of the product that is measured, and of the one tried first.
const PEAK_SIZE: usize = 2048;
const TRIAL_SIZE: usize = 512;
/// Seconds that measuring may take, about.
const PEAK_SECONDS: f64 = 0.25;

/// Floating-point operations per second of this machine's matrix products, measured once per process and precision. For
/// showing only.
fn peak(precision: Precision) -> f64 {
    static PEAKS: [OnceLock<f64>; 2] = [const { OnceLock::new() }; 2];
    *PEAKS[usize::from(precision == Precision::Bf16)].get_or_init(|| {
        let trial = product_rate(TRIAL_SIZE, precision);
        let seconds = 2.0 * (PEAK_SIZE as f64).powi(3) / trial;
        if 2.0 * seconds > PEAK_SECONDS {
            return trial;
        }
        product_rate(PEAK_SIZE, precision).max(product_rate(PEAK_SIZE, precision)).max(trial)
    })
}

fn product_rate(size: usize, precision: Precision) -> f64 {
    let (a, b) = (vec![0.5f32; size * size], vec![0.25f32; size * size]);
    let mut c = vec![0.0; size * size];
    let mut best = f64::INFINITY;
    // The first time touches the pages.
    for _ in 0..2 {
        let begun = Instant::now();
        let (a, b) = (MatRef::rows(&a, size), MatRef::transposed(&b, size));
        gemm(&mut c, size, size, size, size, a, b, false, precision);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    2.0 * (size as f64).powi(3) / best
}

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
    recent_work: f64,
    predicted: Option<f64>,
    /// Tokens and seconds of the steps of each length of rows but the first, in which memory is asked for.
    by_length: BTreeMap<usize, (u64, f64)>,
}

impl Pace {
    pub(crate) fn new(planned: u64) -> Self {
        Self {
            planned,
            done: 0,
            seconds: 0.0,
            tokens: 0,
            recent_step: 0.0,
            recent_tokens: 0.0,
            recent_work: 0.0,
            predicted: None,
            by_length: BTreeMap::new(),
        }
    }

    /// A step of so many tokens and floating-point operations in rows of at most `len` targets is done.
    pub(crate) fn step(&mut self, tokens: u64, len: usize, work: f64, took: Duration) {
        let seconds = took.as_secs_f64();
        self.by_length
            .entry(len)
            .and_modify(|(all, sum)| {
                *all += tokens;
                *sum += seconds;
            })
            .or_default();
        self.done += 1;
        self.seconds += seconds;
        self.tokens += tokens;
        let newest = if self.done == 1 { 1.0 } else { NEWEST };
        self.recent_step += newest * (seconds - self.recent_step);
        self.recent_tokens += newest * (tokens as f64 - self.recent_tokens);
        self.recent_work += newest * (work - self.recent_work);
        if self.done == PREDICT_AFTER.min(self.planned) {
            self.predicted = Some(self.seconds / self.done as f64 * self.planned as f64);
        }
    }

    /// Recent speed.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        if self.recent_step > 0.0 { self.recent_tokens / self.recent_step } else { 0.0 }
    }

    /// Recent work as a share of what the machine does at most; `None` before it is worth measuring.
    pub(crate) fn share_of_peak(&self, precision: Precision) -> Option<f64> {
        (self.seconds > MEASURE_PEAK_AFTER && self.recent_step > 0.0)
            .then(|| self.recent_work / self.recent_step / peak(precision))
    }

    /// Tokens per second by the length of rows, where a length had more than one step.
    pub(crate) fn tokens_per_s_by_length(&self) -> BTreeMap<usize, f64> {
        let measured = self.by_length.iter().filter(|(_, (_, seconds))| *seconds > 0.0);
        measured.map(|(&len, &(tokens, seconds))| (len, tokens as f64 / seconds)).collect()
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
pub fn measure_steps<'a>(
    decoder: &Decoder,
    source: impl Into<Source<'a>>,
    config: &TrainConfig,
    steps: u64,
) -> Result<StepTime, TrainError> {
    let mut feed = Feed::silent(source.into())?;
    let total_steps = feed.total_steps(config)?;
    let steps = steps.clamp(1, total_steps);
    let (mut seconds, mut tokens, mut counted) = (0.0, 0, 0);
    for step in 0..steps {
        let begun = Instant::now();
        let Some(read) = feed.next(&Progress { step, total_steps }, config.gradient_accumulation_steps)? else {
            break;
        };
        for batch in &read.batches {
            time_batch(decoder, batch)?;
        }
        if step > 0 || steps == 1 {
            seconds += begun.elapsed().as_secs_f64();
            tokens += read.batches.iter().map(Batch::tokens).sum::<u64>();
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

/// Works through one batch forward and backward, changing nothing, and says how long it took.
///
/// # Errors
/// When it does not fit the model.
pub fn time_batch(decoder: &Decoder, batch: &Batch) -> Result<Duration, TrainError> {
    let begun = Instant::now();
    let input = input(batch);
    input.check(decoder.config())?;
    let mode = ForwardMode::Train { dropout_key: 0 };
    let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &mode);
    drop(result.loss_sum.backward());
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_peak_is_measured_late_and_once() {
        let mut pace = Pace::new(2);
        pace.step(10, 8, 1e9, Duration::from_secs(1));
        assert_eq!(pace.share_of_peak(Precision::F32), None);
        pace.step(10, 8, 1e9, Duration::from_mins(1));
        let share = pace.share_of_peak(Precision::F32).expect("half a minute has passed");
        assert!(share > 0.0 && share.is_finite());
        assert_eq!(pace.share_of_peak(Precision::F32), Some(share));
    }

    #[test]
    fn speeds_by_length_leave_the_first_step_of_each_out() {
        let mut pace = Pace::new(6);
        for (len, seconds) in [(64, 60), (64, 2), (8, 60), (64, 3), (8, 1), (512, 1)] {
            pace.step(100, len, 1e9, Duration::from_secs(seconds));
        }
        assert_eq!(pace.tokens_per_s_by_length(), BTreeMap::from([(8, 100.0), (64, 40.0)]));
    }
}
