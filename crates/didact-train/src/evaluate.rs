//! Loss on data that is not trained on.

use std::collections::BTreeMap;

use didact_core::cancel::Cancel;
use didact_data::batch::{Batch, TrainingSet};
use didact_model::{Decoder, DecoderInput, ForwardMode, loss};
use serde::{Deserialize, Serialize};

use crate::error::{NonFiniteWhat, TrainError};
use crate::preference::PairSum;
use crate::source::Measured;

/// A loss over many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvalLoss {
    /// Weighted mean of the tokens' negative log-likelihood, in nats.
    pub nats_per_token: f64,
    /// The same with the mean taken over each sequence first, so that long ones count no more than short ones.
    pub mean_of_examples: f64,
    /// Tokens with a weight.
    pub tokens: u64,
    /// Their total weight.
    pub weight: f64,
    /// Sequences that hold one.
    pub examples: u64,
}

impl EvalLoss {
    /// `e` to the mean loss.
    pub fn perplexity(&self) -> f64 {
        self.nats_per_token.exp()
    }
}

/// How a model rates one token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// Number of its sequence in the set.
    pub sequence: u32,
    /// Its index within the sequence.
    pub position: u32,
    /// Its negative log-likelihood, in nats.
    pub nll: f32,
    /// Whether greedy decoding would give it.
    pub is_greedy: bool,
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
    let Some(sum) = measure(decoder, set, parts, cancel)? else { return Ok(None) };
    sum.mean().map(Some).ok_or(TrainError::NothingToEvaluate)
}

/// The mean losses of several sets: over all of them, and of each by its name.
pub(crate) fn evaluate_sets(
    decoder: &Decoder,
    measured: &[Measured<'_>],
    parts: usize,
    cancel: &Cancel,
) -> Result<Option<(EvalLoss, BTreeMap<String, EvalLoss>)>, TrainError> {
    let (mut all, mut sets) = (Examples::default(), BTreeMap::new());
    for Measured { name, set } in measured {
        let Some(sum) = measure(decoder, set, parts, cancel)? else { return Ok(None) };
        sets.insert(name.clone(), sum.mean().ok_or(TrainError::NothingToEvaluate)?);
        all.add(&sum);
    }
    let all = all.mean().ok_or(TrainError::NothingToEvaluate)?;
    Ok(Some((all, sets)))
}

/// How the model rates every token of `set` that has a weight, in the order of the set's rows.
///
/// `None` if `cancel` was raised before the end.
///
/// # Errors
/// When a batch cannot be made or does not fit the model.
pub fn evaluate_tokens(
    decoder: &Decoder,
    set: &TrainingSet,
    parts: usize,
    cancel: &Cancel,
) -> Result<Option<Vec<TokenScore>>, TrainError> {
    let mut all = Vec::new();
    for step in 0..set.batches_per_epoch() {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        for batch in set.micro_batches(step, parts)? {
            let input = input(&batch);
            input.check(decoder.config())?;
            let scores = loss::scores(decoder, &input, &batch.targets, &batch.weight);
            let mut places = Places::new(&batch);
            let tokens = scores.at.iter().zip(&scores.per_token).zip(&scores.is_greedy);
            all.extend(tokens.map(|((&at, &nll), &is_greedy)| {
                let (sequence, position) = places.of(at as usize);
                TokenScore { sequence, position, nll, is_greedy }
            }));
        }
    }
    Ok(Some(all))
}

fn measure(
    decoder: &Decoder,
    set: &TrainingSet,
    parts: usize,
    cancel: &Cancel,
) -> Result<Option<Examples>, TrainError> {
    let mut examples = Examples::default();
    for step in 0..set.batches_per_epoch() {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        for batch in set.micro_batches(step, parts)? {
            let input = input(&batch);
            input.check(decoder.config())?;
            let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &ForwardMode::Eval);
            examples.sum.add(&batch, &result, step, |_, sequence| set.origin(sequence).to_string())?;
            examples.note(&batch, &result);
        }
    }
    Ok(Some(examples))
}

/// A batch as the decoder takes it.
pub(crate) fn input(batch: &Batch) -> DecoderInput<'_> {
    let Batch { ids, segment, position, rows, len, .. } = batch;
    DecoderInput { ids, segments: segment, positions: position, rows: *rows, len: *len }
}

/// Says which token of which sequence a target is; to be asked for targets in their order.
struct Places<'b> {
    batch: &'b Batch,
    row: usize,
    piece: usize,
    /// Tokens of the row before the piece.
    before: usize,
}

impl<'b> Places<'b> {
    fn new(batch: &'b Batch) -> Self {
        Self { batch, row: 0, piece: 0, before: 0 }
    }

    /// Sequence and position of the target at `at`.
    fn of(&mut self, at: usize) -> (u32, u32) {
        // Target `i` of a row is token `i + 1` of the pieces laid end to end.
        let (row, token) = (at / self.batch.len, at % self.batch.len + 1);
        if row != self.row {
            (self.row, self.piece, self.before) = (row, 0, 0);
        }
        let pieces = &self.batch.examples[row];
        while token >= self.before + pieces[self.piece].len as usize {
            self.before += pieces[self.piece].len as usize;
            self.piece += 1;
        }
        let piece = &pieces[self.piece];
        (piece.sequence, piece.start + (token - self.before) as u32)
    }
}

/// Weighted losses, in all and by sequence.
#[derive(Debug, Default)]
struct Examples {
    sum: Sum,
    /// Loss and weight of each sequence; a long one may lie in several rows.
    of: BTreeMap<u32, (f64, f64)>,
    /// Means of sequences of other sets, and how many they are.
    others: (f64, u64),
}

impl Examples {
    fn note(&mut self, batch: &Batch, result: &loss::LossSum) {
        let mut places = Places::new(batch);
        for (&at, &nll) in result.at.iter().zip(&result.per_token) {
            let weight = f64::from(batch.weight[at as usize]);
            let (loss, total) = self.of.entry(places.of(at as usize).0).or_default();
            *loss += weight * f64::from(nll);
            *total += weight;
        }
    }

    /// The sum of the sequences' means, and how many they are.
    fn means(&self) -> (f64, u64) {
        let own: f64 = self.of.values().map(|(loss, weight)| loss / weight).sum();
        (self.others.0 + own, self.others.1 + self.of.len() as u64)
    }

    fn add(&mut self, other: &Self) {
        self.sum.loss += other.sum.loss;
        self.sum.weight += other.sum.weight;
        self.sum.tokens += other.sum.tokens;
        let (means, count) = other.means();
        self.others.0 += means;
        self.others.1 += count;
    }

    fn mean(&self) -> Option<EvalLoss> {
        let (means, examples) = self.means();
        self.sum.mean().map(|nats_per_token| EvalLoss {
            nats_per_token,
            mean_of_examples: means / examples as f64,
            tokens: self.sum.tokens,
            weight: self.sum.weight,
            examples,
        })
    }
}

/// Weighted losses, added in f64 and in the order of the tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) loss: f64,
    pub(crate) weight: f64,
    pub(crate) tokens: u64,
    /// What came of the pairs, with a preference loss.
    pub(crate) pairs: PairSum,
}

impl Sum {
    /// Adds what came of a batch's pairs.
    ///
    /// # Errors
    /// When a token's log-probability is not finite, naming the rows.
    pub(crate) fn add_pairs(
        &mut self,
        batch: &Batch,
        result: &loss::LossSum,
        pairs: &PairSum,
        step: u64,
        origin: impl Fn(usize, u32) -> String,
    ) -> Result<(), TrainError> {
        self.add(batch, result, step, origin)?;
        self.pairs.add_sum(pairs);
        Ok(())
    }

    /// Adds a batch's losses; `origin` names what is in a row of the batch.
    ///
    /// # Errors
    /// When one is not finite, naming the rows.
    pub(crate) fn add(
        &mut self,
        batch: &Batch,
        result: &loss::LossSum,
        step: u64,
        origin: impl Fn(usize, u32) -> String,
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
            let named = rows.iter().flat_map(|&row| batch.examples[row].iter().map(move |piece| (row, piece.sequence)));
            return Err(TrainError::NonFinite {
                what: NonFiniteWhat::Loss,
                step: step + 1,
                rows: origins(named, origin),
                parameter: None,
                checkpoint: None,
            });
        }
        self.weight += result.total_weight;
        self.tokens += result.per_token.len() as u64;
        Ok(())
    }

    /// The mean: in nats per unit of weight, or the mean loss of the pairs where there are pairs.
    pub(crate) fn mean(&self) -> Option<f64> {
        if self.pairs.pairs > 0 {
            return Some(self.pairs.loss / self.pairs.pairs as f64);
        }
        (self.weight > 0.0).then(|| self.loss / self.weight)
    }
}

/// Where some examples come from, given by row and sequence; of very many the first ones.
pub(crate) fn origins<R>(
    examples: impl IntoIterator<Item = (R, u32)>,
    origin: impl Fn(R, u32) -> String,
) -> Vec<String> {
    const SHOWN: usize = 16;
    let mut names: Vec<String> = examples.into_iter().map(|(row, sequence)| origin(row, sequence)).collect();
    names.dedup();
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 {
        names.truncate(SHOWN);
        names.push(format!("and {more} more"));
    }
    names
}
