//! Loss on data that is not trained on.

use didact_core::cancel::Cancel;
use didact_data::batch::{Batch, TrainingSet};
use didact_data::packing::Piece;
use didact_model::{Decoder, DecoderInput, ForwardMode, loss};
use serde::{Deserialize, Serialize};

use crate::error::{NonFiniteWhat, TrainError};

/// A loss over many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalLoss {
    /// Weighted mean of the tokens' negative log-likelihood, in nats.
    pub nats_per_token: f64,
    /// Tokens with a weight.
    pub tokens: u64,
    /// Their total weight.
    pub weight: f64,
}

impl EvalLoss {
    /// `e` to the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token.exp()
    }
}

/// The mean loss over one pass of `set`, each step of it in `parts` parts to save memory.
///
/// `None` if `cancel` was raised before the end.
///
/// # Errors
/// When a batch cannot be made or does not fit the model, when a loss is not finite, or when no token has a weight.
pub fn evaluate_loss(
    decoder: &Decoder,
    set: &TrainingSet,
    parts: usize,
    cancel: &Cancel,
) -> Result<Option<EvalLoss>, TrainError> {
    let mut sum = Sum::default();
    for step in 0..set.batches_per_epoch() {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        for batch in set.micro_batches(step, parts)? {
            let input = input(&batch);
            input.check(decoder.config())?;
            let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &ForwardMode::Eval);
            sum.add(set, &batch, &result, step)?;
        }
    }
    sum.mean().map(Some).ok_or(TrainError::NothingToEvaluate)
}

/// A batch as the decoder takes it.
pub(crate) fn input(batch: &Batch) -> DecoderInput<'_> {
    let Batch { ids, segment, position, rows, len, .. } = batch;
    DecoderInput { ids, segments: segment, positions: position, rows: *rows, len: *len }
}

/// Weighted losses, added in f64 and in the order of the tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) loss: f64,
    pub(crate) weight: f64,
    pub(crate) tokens: u64,
}

impl Sum {
    /// Adds a batch's losses.
    ///
    /// # Errors
    /// When one is not finite, naming the rows.
    pub(crate) fn add(
        &mut self,
        set: &TrainingSet,
        batch: &Batch,
        result: &loss::LossSum,
        step: u64,
    ) -> Result<(), TrainError> {
        let mut rows: Vec<usize> = Vec::new();
        for (&at, &nll) in result.at.iter().zip(&result.per_token) {
            let at = at as usize;
            if !nll.is_finite() && rows.last() != Some(&(at / batch.len)) {
                rows.push(at / batch.len);
            }
            self.loss += f64::from(batch.weight[at]) * f64::from(nll);
        }
        if !rows.is_empty() {
            return Err(TrainError::NonFinite {
                what: NonFiniteWhat::Loss,
                step: step + 1,
                rows: origins(set, rows.iter().flat_map(|&row| &batch.examples[row])),
                parameter: None,
                checkpoint: None,
            });
        }
        self.weight += result.total_weight;
        self.tokens += result.per_token.len() as u64;
        Ok(())
    }

    pub(crate) fn mean(&self) -> Option<EvalLoss> {
        (self.weight > 0.0).then(|| EvalLoss {
            nats_per_token: self.loss / self.weight,
            tokens: self.tokens,
            weight: self.weight,
        })
    }
}

/// Where some examples come from; of very many the first ones.
pub(crate) fn origins<'a>(set: &TrainingSet, pieces: impl IntoIterator<Item = &'a Piece>) -> Vec<String> {
    const SHOWN: usize = 16;
    let mut sequences: Vec<u32> = pieces.into_iter().map(|piece| piece.sequence).collect();
    sequences.dedup();
    let more = sequences.len().saturating_sub(SHOWN);
    let mut names: Vec<String> = sequences.iter().take(SHOWN).map(|&s| set.origin(s).to_string()).collect();
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names
}
