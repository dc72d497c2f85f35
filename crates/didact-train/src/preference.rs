//! Losses over two answers to one prompt, the first of which is better.
//!
//! Every one of them is a function of two numbers per pair: `l⁺` and `l⁻`, the sums of the answers' token
//! log-probabilities (with the loss weight of each token), whose gradients with respect to the parameters are weighted
//! next-token gradients. So a step needs nothing but two forward passes and one backward pass: the first gives the sums,
//! [`PreferenceTable::of`] the loss and its derivatives `dL/dl⁺` and `dL/dl⁻`, and the second is trained as next tokens
//! with each token's weight multiplied by minus its derivative. Nothing of the first pass is kept.

use didact_core::cancel::Cancel;
use didact_data::batch::{Batch, TrainingSet};
use didact_model::{Decoder, DecoderInput, ForwardMode, loss};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::evaluate::{Sum, input};
use crate::ranking::{RankedGroup, Ranking};

/// Which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceLoss {
    /// `-log σ(β[(l⁺ - r⁺) - (l⁻ - r⁻)])`, `r` being the reference's sums (Rafailov et al. 2023).
    #[default]
    Dpo,
    /// `((l⁺ - r⁺)/|y⁺| - (l⁻ - r⁻)/|y⁻| - 1/(2β))²` (Azar et al. 2023, per token).
    Ipo,
    /// `-log σ(β l⁺/|y⁺| - β l⁻/|y⁻| - γ)`, without a reference (Meng et al. 2024).
    Simpo,
    /// `-ā⁺ - β log σ(log odds(ā⁺) - log odds(ā⁻))` with `ā = l/|y|` and `odds(a) = eᵃ/(1 - eᵃ)`, without a reference (Hong
    /// et al. 2024, whose λ is β here).
    Orpo,
}

/// A preference loss and its settings: the table `[preference]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PreferenceTable {
    /// Which loss.
    pub loss: PreferenceLoss,
    /// How strongly: the inverse temperature β of `dpo`, `ipo` and `simpo`, the weight of the odds ratio of `orpo`.
    pub beta: f64,
    /// The margin γ of `simpo`.
    pub gamma: f64,
    /// `dpo`: the share of pairs that are taken to be the wrong way round (Mitchell 2023).
    pub label_smoothing: f64,
    /// Added to any loss: this times `-l⁺/|y⁺|`, so that the better answer does not become unlikely, too.
    pub nll_weight: f64,
}

impl Default for PreferenceTable {
    fn default() -> Self {
        Self { loss: PreferenceLoss::Dpo, beta: 0.1, gamma: 0.5, label_smoothing: 0.0, nll_weight: 0.0 }
    }
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`preference.{key}` is {found}, expected {expected}")]
pub struct PreferenceError {
    /// Which.
    pub key: &'static str,
    /// What was given.
    pub found: f64,
    /// What would do.
    pub expected: &'static str,
}

/// What a model says of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct AnswerLogProb {
    /// Sum of its tokens' log-probabilities in nats, each times its weight.
    pub log_prob: f64,
    /// Sum of the weights: how many tokens it has.
    pub weight: f64,
}

impl AnswerLogProb {
    /// The mean over its tokens.
    pub fn mean(&self) -> f64 {
        self.log_prob / self.weight
    }
}

/// What a model says of both answers of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct PairLogProb {
    /// The better one.
    pub chosen: AnswerLogProb,
    /// The worse one.
    pub rejected: AnswerLogProb,
}

/// A pair's loss, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub loss: f64,
    /// `dL/dl⁺`.
    pub d_chosen: f64,
    /// `dL/dl⁻`.
    pub d_rejected: f64,
    /// By how much the better answer leads, in the loss's own measure; the pair is ordered rightly when it is above 0.
    pub margin: f64,
}

/// `log(1 + eˣ)` without overflow; `-log σ(x)` is `softplus(-x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Mean log-probabilities of `orpo` stay below this: the odds of certainty are infinite.
const SURE: f64 = -1e-6;

impl PreferenceTable {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`PreferenceError`] for the first that makes no sense.
    pub fn validate(&self) -> Result<(), PreferenceError> {
        let refuse = |key, found, expected| Err(PreferenceError { key, found, expected });
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return refuse("beta", self.beta, "a number above 0");
        }
        if !(self.gamma >= 0.0 && self.gamma.is_finite()) {
            return refuse("gamma", self.gamma, "a number from 0 up");
        }
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return refuse("label_smoothing", self.label_smoothing, "a share from 0 to below 0.5");
        }
        if self.label_smoothing != 0.0 && self.loss != PreferenceLoss::Dpo {
            return refuse("label_smoothing", self.label_smoothing, "0 with any loss but `dpo`");
        }
        if !(self.nll_weight >= 0.0 && self.nll_weight.is_finite()) {
            return refuse("nll_weight", self.nll_weight, "a number from 0 up");
        }
        Ok(())
    }

    /// Whether the loss compares with a reference model.
    pub fn needs_reference(&self) -> bool {
        matches!(self.loss, PreferenceLoss::Dpo | PreferenceLoss::Ipo)
    }

    /// The loss of a pair; `reference` is not read by losses without one. Both answers must have tokens.
    pub fn of(&self, policy: &PairLogProb, reference: &PairLogProb) -> PairLoss {
        let PairLogProb { chosen, rejected } = *policy;
        let beta = self.beta;
        let lead = (chosen.log_prob - reference.chosen.log_prob, rejected.log_prob - reference.rejected.log_prob);
        let mut pair = match self.loss {
            PreferenceLoss::Dpo => {
                let margin = beta * (lead.0 - lead.1);
                let smoothing = self.label_smoothing;
                let slope = beta * (smoothing * sigmoid(margin) - (1.0 - smoothing) * sigmoid(-margin));
                let loss = (1.0 - smoothing) * softplus(-margin) + smoothing * softplus(margin);
                PairLoss { loss, d_chosen: slope, d_rejected: -slope, margin }
            }
            PreferenceLoss::Ipo => {
                let margin = lead.0 / chosen.weight - lead.1 / rejected.weight;
                let off = margin - 1.0 / (2.0 * beta);
                PairLoss {
                    loss: off * off,
                    d_chosen: 2.0 * off / chosen.weight,
                    d_rejected: -2.0 * off / rejected.weight,
                    margin,
                }
            }
            PreferenceLoss::Simpo => {
                let margin = beta * (chosen.mean() - rejected.mean());
                let slope = -beta * sigmoid(self.gamma - margin);
                PairLoss {
                    loss: softplus(self.gamma - margin),
                    d_chosen: slope / chosen.weight,
                    d_rejected: -slope / rejected.weight,
                    margin,
                }
            }
            PreferenceLoss::Orpo => {
                let (a, b) = (chosen.mean().min(SURE), rejected.mean().min(SURE));
                // log(1 - eᵃ), exact for a near 0.
                let log_rest = |a: f64| (-a.exp_m1()).ln();
                let margin = (a - log_rest(a)) - (b - log_rest(b));
                let slope = -beta * sigmoid(-margin);
                PairLoss {
                    loss: -chosen.mean() + beta * softplus(-margin),
                    // d log odds(a) / da = 1/(1 - eᵃ).
                    d_chosen: (-1.0 + slope / -a.exp_m1()) / chosen.weight,
                    d_rejected: -slope / -b.exp_m1() / rejected.weight,
                    margin,
                }
            }
        };
        pair.loss -= self.nll_weight * chosen.mean();
        pair.d_chosen -= self.nll_weight / chosen.weight;
        pair
    }
}

/// What a training minimises.
#[derive(Debug, Clone, Copy, Default)]
pub enum Objective<'a> {
    /// `-log p` of the weighted tokens.
    #[default]
    NextToken,
    /// A preference loss over pairs: each sequence has two segments, the better answer and the worse one.
    Preference {
        /// Which loss.
        table: &'a PreferenceTable,
        /// What the reference says of each sequence of the set, by its number; not read by losses without one.
        reference: &'a [PairLogProb],
    },
    /// The ranking loss over groups: each sequence has one segment for each answer of its group, in the same order.
    Ranking {
        /// The loss.
        ranking: &'a Ranking,
        /// The scores of each sequence's answers, by its number.
        groups: &'a [RankedGroup],
    },
}

/// What came of the pairs of some batches.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairSum {
    /// Pairs.
    pub pairs: u64,
    /// Sum of their losses.
    pub loss: f64,
    /// Sum of their margins.
    pub margin: f64,
    /// Pairs with a margin above 0.
    pub right: u64,
}

impl PairSum {
    pub(crate) fn add_sum(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.loss += other.loss;
        self.margin += other.margin;
        self.right += other.right;
    }

    fn add(&mut self, pair: &PairLoss) {
        self.pairs += 1;
        self.loss += pair.loss;
        self.margin += pair.margin;
        self.right += u64::from(pair.margin > 0.0);
    }
}

/// Where the answers of a batch lie, and what a model says of them. Every answer is a segment.
struct Answers {
    /// Number of each sequence, and the place of its first answer in `found`; in the order of rows and pieces.
    sequences: Vec<(u32, usize)>,
    found: Vec<AnswerLogProb>,
    /// First entry of each row in `found`.
    first: Vec<usize>,
}

impl Answers {
    /// `answers` says how many a sequence has.
    fn new(batch: &Batch, result: &loss::LossSum, answers: impl Fn(u32) -> usize) -> Self {
        let (mut sequences, mut first, mut count) = (Vec::new(), Vec::new(), 0);
        for row in &batch.examples {
            first.push(count);
            for piece in row {
                sequences.push((piece.sequence, count));
                count += answers(piece.sequence);
            }
        }
        let mut all = Self { sequences, found: vec![AnswerLogProb::default(); count], first };
        for (&at, &nll) in result.at.iter().zip(&result.per_token) {
            let answer = all.place(batch, at as usize);
            let weight = f64::from(batch.weight[at as usize]);
            let answer = &mut all.found[answer];
            answer.log_prob -= weight * f64::from(nll);
            answer.weight += weight;
        }
        all
    }

    /// Which answer a target belongs to: segments are numbered along a row.
    fn place(&self, batch: &Batch, at: usize) -> usize {
        self.first[at / batch.len] + batch.segment[at] as usize
    }

    /// The answers of each sequence.
    fn groups(&self) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> + '_ {
        let ends = self.sequences.iter().skip(1).map(|(_, first)| *first).chain([self.found.len()]);
        self.sequences.iter().zip(ends).map(|(&(sequence, first), end)| (sequence, first..end))
    }
}

/// Answers of a sequence that holds a pair.
const PAIR: usize = 2;

fn pair_of(answers: &[AnswerLogProb]) -> PairLogProb {
    match answers {
        [chosen, rejected] => PairLogProb { chosen: *chosen, rejected: *rejected },
        _ => PairLogProb::default(),
    }
}

/// A batch's loss over answers as weights of a next-token pass.
pub(crate) struct Weighed {
    /// Weight of each target: minus the derivative of the loss by the answer's log-probability, times the token's own weight.
    pub(crate) weight: Vec<f32>,
    /// What came of the pairs or groups.
    pub(crate) sum: PairSum,
}

/// The first pass over a batch of pairs or groups; `None` where the objective needs no such pass. Dropout, where there is
/// any, is the same as in the pass that follows.
///
/// # Errors
/// When a group cannot be ranked.
pub(crate) fn weigh(
    decoder: &Decoder,
    input: &DecoderInput<'_>,
    batch: &Batch,
    objective: &Objective<'_>,
    mode: &ForwardMode,
) -> Result<Option<(loss::LossSum, Weighed)>, TrainError> {
    if matches!(objective, Objective::NextToken) {
        return Ok(None);
    }
    let first = loss::next_token(decoder, input, &batch.targets, &batch.weight, mode);
    let nothing = PairLogProb::default();
    let answers = Answers::new(batch, &first, |sequence| match objective {
        Objective::Ranking { groups, .. } => groups.get(sequence as usize).map_or(0, |group| group.scores.len()),
        _ => PAIR,
    });
    let mut sum = PairSum::default();
    let mut slopes = vec![0.0; answers.found.len()];
    for (sequence, range) in answers.groups() {
        let found = &answers.found[range.clone()];
        match objective {
            Objective::NextToken => {}
            Objective::Preference { table, reference } => {
                let pair = table.of(&pair_of(found), reference.get(sequence as usize).unwrap_or(&nothing));
                sum.add(&pair);
                slopes[range].copy_from_slice(&[pair.d_chosen, pair.d_rejected]);
            }
            Objective::Ranking { ranking, groups } => {
                let group = &groups[sequence as usize];
                let means: Vec<f64> = found.iter().map(AnswerLogProb::mean).collect();
                // What is not finite in the model's numbers is reported with the rows it came from.
                if found.iter().any(|answer| !answer.log_prob.is_finite()) {
                    continue;
                }
                let loss = ranking
                    .of(&means, &group.scores, group.reference)
                    .map_err(|source| TrainError::Ranking { sequence, source })?;
                sum.add(&PairLoss { loss: loss.loss, d_chosen: 0.0, d_rejected: 0.0, margin: group.lead(&means) });
                for (slope, (c, answer)) in slopes[range].iter_mut().zip(loss.coefficients.iter().zip(found)) {
                    // p is a mean over the answer's tokens.
                    *slope = c / answer.weight;
                }
            }
        }
    }
    let mut weight = vec![0.0; batch.weight.len()];
    for &at in &first.at {
        let at = at as usize;
        weight[at] = (-slopes[answers.place(batch, at)] * f64::from(batch.weight[at])) as f32;
    }
    Ok(Some((first, Weighed { weight, sum })))
}

/// What a model says of every pair of a set, by the number of its sequence; sequences that no row holds keep zeros.
///
/// `None` if `cancel` was raised before the end.
///
/// # Errors
/// When a batch cannot be made or does not fit the model, or when a log-probability is not finite.
pub fn pair_log_probs(
    decoder: &Decoder,
    set: &TrainingSet,
    parts: usize,
    cancel: &Cancel,
) -> Result<Option<Vec<PairLogProb>>, TrainError> {
    let mut all = vec![PairLogProb::default(); set.sequences().len()];
    for step in 0..set.batches_per_epoch() {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        for batch in set.micro_batches(step, parts)? {
            let input = input(&batch);
            input.check(decoder.config())?;
            let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &ForwardMode::Eval);
            Sum::default().add(&batch, &result, step, |_, sequence| set.origin(sequence).to_string())?;
            let answers = Answers::new(&batch, &result, |_| PAIR);
            for (sequence, range) in answers.groups() {
                all[sequence as usize] = pair_of(&answers.found[range]);
            }
        }
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: (f64, f64), rejected: (f64, f64)) -> PairLogProb {
        let side = |(log_prob, weight)| AnswerLogProb { log_prob, weight };
        PairLogProb { chosen: side(chosen), rejected: side(rejected) }
    }

    fn table(loss: PreferenceLoss, beta: f64, gamma: f64) -> PreferenceTable {
        PreferenceTable { loss, beta, gamma, ..PreferenceTable::default() }
    }

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }

    #[test]
    fn values_are_those_computed_by_hand() {
        let policy = pair((-4.0, 2.0), (-9.0, 3.0));
        let reference = pair((-5.0, 2.0), (-8.0, 3.0));
        let of = |table: PreferenceTable| table.of(&policy, &reference);
        // β[(−4+5) − (−9+8)] = 0.5·2 = 1: log(1 + e⁻¹).
        let dpo = of(table(PreferenceLoss::Dpo, 0.5, 0.0));
        near(dpo.loss, 0.313_261_687_518, 1e-11);
        near(dpo.margin, 1.0, 1e-15);
        near(dpo.d_chosen, -0.5 * 0.268_941_421_370, 1e-11);
        // 1/2 + 1/3 − 1/(2·1) = 1/3, squared.
        near(of(table(PreferenceLoss::Ipo, 1.0, 0.0)).loss, 1.0 / 9.0, 1e-15);
        // The check value of iTool's specification: means −0.20 and −0.35, β 2.5, γ 0.5.
        let simpo = table(PreferenceLoss::Simpo, 2.5, 0.5).of(&pair((-0.8, 4.0), (-0.7, 2.0)), &PairLogProb::default());
        near(simpo.loss, 0.757_60, 5e-6);
        // Means −ln 2 and −ln 4: odds 1 and 1/3, log odds ratio ln 3, σ = 3/4.
        let (two, four) = (std::f64::consts::LN_2, 4.0_f64.ln());
        let orpo =
            table(PreferenceLoss::Orpo, 0.1, 0.0).of(&pair((-3.0 * two, 3.0), (-four, 1.0)), &PairLogProb::default());
        near(orpo.loss, two + 0.1 * (4.0_f64 / 3.0).ln(), 1e-12);
        near(orpo.margin, 3.0_f64.ln(), 1e-12);
        near(orpo.d_chosen, (-1.0 - 0.1 * 0.25 * 2.0) / 3.0, 1e-12);
        near(orpo.d_rejected, 0.1 * 0.25 * 4.0 / 3.0, 1e-12);
        // A policy that is its reference: ln 2, whatever the answers.
        near(table(PreferenceLoss::Dpo, 0.1, 0.0).of(&policy, &policy).loss, two, 1e-15);
    }

    #[test]
    fn derivatives_are_those_of_finite_differences() {
        let reference = pair((-5.0, 2.0), (-8.0, 3.0));
        let h = 1e-6;
        for loss in [PreferenceLoss::Dpo, PreferenceLoss::Ipo, PreferenceLoss::Simpo, PreferenceLoss::Orpo] {
            for (nll_weight, smoothing) in [(0.0, 0.0), (0.3, 0.1)] {
                let label_smoothing = if loss == PreferenceLoss::Dpo { smoothing } else { 0.0 };
                let table = PreferenceTable { loss, beta: 0.7, gamma: 0.4, label_smoothing, nll_weight };
                for (chosen, rejected) in [(-4.0, -9.0), (-12.0, -0.6), (-0.01, -40.0)] {
                    let at = |a: f64, b: f64| table.of(&pair((a, 2.0), (b, 3.0)), &reference);
                    let found = at(chosen, rejected);
                    let d_chosen = (at(chosen + h, rejected).loss - at(chosen - h, rejected).loss) / (2.0 * h);
                    let d_rejected = (at(chosen, rejected + h).loss - at(chosen, rejected - h).loss) / (2.0 * h);
                    near(found.d_chosen, d_chosen, 1e-6 * (1.0 + d_chosen.abs()));
                    near(found.d_rejected, d_rejected, 1e-6 * (1.0 + d_rejected.abs()));
                }
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        for loss in [PreferenceLoss::Dpo, PreferenceLoss::Ipo, PreferenceLoss::Simpo, PreferenceLoss::Orpo] {
            for policy in [pair((0.0, 1.0), (-1e5, 1.0)), pair((-1e5, 1.0), (0.0, 1.0)), pair((0.0, 1.0), (0.0, 1.0))] {
                let found = table(loss, 2.0, 0.5).of(&policy, &pair((-1.0, 1.0), (-1.0, 1.0)));
                assert!(
                    found.loss.is_finite() && found.d_chosen.is_finite() && found.d_rejected.is_finite(),
                    "{loss:?} {found:?}"
                );
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        let ok = PreferenceTable::default();
        assert_eq!(ok.validate(), Ok(()));
        for (table, key) in [
            (PreferenceTable { beta: 0.0, ..ok.clone() }, "beta"),
            (PreferenceTable { gamma: -1.0, ..ok.clone() }, "gamma"),
            (PreferenceTable { label_smoothing: 0.5, ..ok.clone() }, "label_smoothing"),
            (PreferenceTable { loss: PreferenceLoss::Ipo, label_smoothing: 0.1, ..ok.clone() }, "label_smoothing"),
            (PreferenceTable { nll_weight: f64::NAN, ..ok.clone() }, "nll_weight"),
        ] {
            assert_eq!(table.validate().expect_err("refused").key, key);
        }
    }
}
