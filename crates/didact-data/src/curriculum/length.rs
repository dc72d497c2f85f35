//! Rows of one length per step, in cycles from short to long.
//!
//! Every step holds the same number of targets, so that a step of rows of length `n` has `b / n` of them. Short lengths have
//! the larger odds and run out first: within a cycle lengths drift upwards, and the next cycle begins with short ones again.
//!
//! # Reference
//! Pouransari et al., "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum", NeurIPS 2024;
//! the deterministic order is that of the `OLMo-core` library.

use std::collections::VecDeque;

use didact_core::hash::Digest;
use didact_core::seed::Streams;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::pool::shuffled;
use super::{
    Curriculum, CurriculumError, CurriculumState, Feedback, Pool, Pools, Progress, RowRef, StepRows, identity,
    in_order, next_unit, setting,
};

/// Odds of the lengths, shortest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Odds {
    /// All alike.
    Uniform,
    /// B, B - 1, …, 1 for B lengths.
    GrowLinear,
    /// Powers of this base, the shortest length's the highest: 2 is the paper's recommendation, 100 nearly sorts.
    Grow(f64),
    /// The same with the longest length's the highest.
    Shrink(f64),
    /// As given.
    Given(Vec<f64>),
}

/// In which order the steps of a cycle come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CycleOrder {
    /// The length of each step is drawn by the odds among those that have rows left.
    #[default]
    Drawn,
    /// As `Drawn`, the odds multiplied by the number of steps that the length has in the cycle.
    DrawnBySteps,
    /// As many parts as there are lengths, the steps of each shared out by a fixed pattern and shuffled. The odds' kind
    /// (linear, or powers) sets the pattern.
    Parts,
}

/// How many targets of each length are read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthMix {
    /// All there are.
    #[default]
    Natural,
    /// As many of each as the length that has least.
    Equal,
    /// At most so many, shortest first.
    Targets(Vec<u64>),
}

/// How lengths follow each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthSettings {
    /// Targets of a step; a multiple of the longest length.
    pub tokens_per_step: usize,
    /// Odds of the lengths.
    pub odds: Odds,
    /// Cycles of an epoch. Fewer are made when a length has not a step for each.
    pub cycles: usize,
    /// The order of the steps of a cycle.
    #[serde(default)]
    pub order: CycleOrder,
    /// How much of each length.
    #[serde(default)]
    pub mix: LengthMix,
    /// The very first step is one of the longest length, so that too little memory shows at once.
    #[serde(default)]
    pub longest_first: bool,
    /// Rows that fill no step at the end of an epoch become smaller steps instead of being left out.
    #[serde(default)]
    pub keep_incomplete: bool,
}

/// What became of the rows of an epoch.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LengthAccount {
    /// Steps of each length.
    pub steps: Vec<u64>,
    /// Targets read of each length.
    pub targets: Vec<u64>,
    /// Targets left out because they fill no step.
    pub incomplete: u64,
    /// Targets left out because the mix asks for fewer.
    pub unmixed: u64,
    /// Cycles made.
    pub cycles: usize,
}

/// Rows of one length per step.
#[derive(Debug)]
pub struct Length {
    pools: Pools,
    settings: LengthSettings,
    streams: Streams,
    odds: Vec<f64>,
    identity: Digest,
    /// The epoch whose steps are at hand, how many steps came before it, and the steps.
    epoch: u64,
    before: u64,
    steps: Vec<StepRows>,
    account: LengthAccount,
    step: u64,
    observed: u64,
}

const KIND: &str = "length";

#[derive(Serialize, Deserialize)]
struct Body {
    epoch: u64,
    before: u64,
}

impl Length {
    /// Steps over pools of rising row lengths, as [`Pool::buckets`] makes them.
    ///
    /// # Errors
    /// When the settings make no sense, or there are not enough rows for a single step.
    pub fn new(pools: Vec<Pool>, settings: LengthSettings, streams: Streams) -> Result<Self, CurriculumError> {
        let n = pools.len();
        let Some(longest) = pools.last().map(|pool| pool.plan().row_len()) else {
            return Err(setting("pools", 0, "at least 1"));
        };
        if settings.tokens_per_step == 0
            || pools.iter().any(|p| !settings.tokens_per_step.is_multiple_of(p.plan().row_len()))
        {
            let expected = format!("a multiple of every row length, the longest being {longest}");
            return Err(setting("tokens_per_step", settings.tokens_per_step, expected));
        }
        if settings.cycles == 0 {
            return Err(setting("cycles", 0, "at least 1"));
        }
        let power = |base: f64, exponent: usize| base.powi(exponent as i32);
        let odds: Vec<f64> = match &settings.odds {
            Odds::Uniform => vec![1.0; n],
            Odds::GrowLinear => (0..n).map(|i| (n - i) as f64).collect(),
            Odds::Grow(base) => (0..n).map(|i| power(*base, n - 1 - i)).collect(),
            Odds::Shrink(base) => (0..n).map(|i| power(*base, i)).collect(),
            Odds::Given(odds) => odds.clone(),
        };
        if odds.len() != n || odds.iter().any(|odds| !(odds.is_finite() && *odds > 0.0)) {
            return Err(setting("odds", format!("{odds:?}"), format!("{n} numbers above 0, one per length")));
        }
        if let LengthMix::Targets(targets) = &settings.mix
            && targets.len() != n
        {
            return Err(setting("mix", targets.len(), format!("{n} numbers, one per length")));
        }
        if let (Odds::Given(_), Some(pool)) = (&settings.odds, pools.iter().find(|pool| pool.rows() == 0)) {
            return Err(CurriculumError::EmptyPool { name: pool.name().to_owned(), row_len: pool.plan().row_len() });
        }
        let identity = identity(&settings, &pools, streams);
        let mut length = Self {
            pools: pools.into(),
            settings,
            streams,
            odds,
            identity,
            epoch: 0,
            before: 0,
            steps: Vec::new(),
            account: LengthAccount::default(),
            step: 0,
            observed: 0,
        };
        length.plan(0);
        if length.steps.is_empty() {
            let expected = "few enough that some length has rows for one step";
            return Err(setting("tokens_per_step", length.settings.tokens_per_step, expected));
        }
        Ok(length)
    }

    /// What becomes of the rows of the epoch at hand.
    pub fn account(&self) -> &LengthAccount {
        &self.account
    }

    /// The steps of the epoch at hand.
    pub fn steps(&self) -> &[StepRows] {
        &self.steps
    }

    fn rows_per_step(&self, length: usize) -> usize {
        self.settings.tokens_per_step / self.pools[length].plan().row_len()
    }

    /// Rows of each length that the mix takes.
    fn mixed(&self) -> Vec<usize> {
        let rows = |i: usize| self.pools[i].rows();
        let of = |i: usize, targets: u64| rows(i).min(targets as usize / self.pools[i].plan().row_len());
        match &self.settings.mix {
            LengthMix::Natural => (0..self.pools.len()).map(rows).collect(),
            LengthMix::Targets(targets) => targets.iter().enumerate().map(|(i, &t)| of(i, t)).collect(),
            LengthMix::Equal => {
                let targets = |i: usize| (rows(i) * self.pools[i].plan().row_len()) as u64;
                let least = (0..self.pools.len()).map(targets).min().unwrap_or(0);
                (0..self.pools.len()).map(|i| of(i, least)).collect()
            }
        }
    }

    /// Lays out the steps of an epoch.
    fn plan(&mut self, epoch: u64) {
        let n = self.pools.len();
        let wanted = self.mixed();
        let per_step: Vec<usize> = (0..n).map(|i| self.rows_per_step(i)).collect();
        // A cycle without a step of some length would not be one.
        let most = (0..n).filter(|&i| wanted[i] >= per_step[i]).map(|i| wanted[i] / per_step[i]).min().unwrap_or(1);
        let cycles = self.settings.cycles.min(most).max(1);
        let mut account = LengthAccount { steps: vec![0; n], targets: vec![0; n], cycles, ..LengthAccount::default() };
        let mut rows: Vec<VecDeque<u32>> = (0..n)
            .map(|i| {
                let mut order = shuffled(self.pools[i].rows(), self.streams, "length", &[epoch, i as u64]);
                for row in order.drain(wanted[i]..) {
                    account.unmixed += targets(&self.pools[i], row);
                }
                order.into()
            })
            .collect();
        let mut rng = self.streams.rng("lengths", &[epoch]);
        let mut steps = Vec::new();
        let mut emit = |i: usize, taken: Vec<u32>, account: &mut LengthAccount| {
            account.steps[i] += 1;
            account.targets[i] += taken.iter().map(|&row| targets(&self.pools[i], row)).sum::<u64>();
            let rows = taken.into_iter().map(|row| RowRef { pool: i as u32, row }).collect();
            steps.push(StepRows { part: 0, row_len: self.pools[i].plan().row_len(), rows });
        };
        for cycle in 0..cycles {
            // What earlier cycles did not fill a step with is part of this one's share.
            let share: Vec<usize> = (0..n)
                .map(|i| {
                    let through = |cycle: usize| wanted[i] * cycle / cycles;
                    let carried = through(cycle) % per_step[i];
                    (through(cycle + 1) - through(cycle) + carried) / per_step[i]
                })
                .collect();
            for i in self.order(&share, &mut rng) {
                let taken = rows[i].drain(..per_step[i]).collect();
                emit(i, taken, &mut account);
            }
        }
        for (i, left) in rows.into_iter().enumerate() {
            if self.settings.keep_incomplete && !left.is_empty() {
                emit(i, left.into(), &mut account);
            } else {
                account.incomplete += left.into_iter().map(|row| targets(&self.pools[i], row)).sum::<u64>();
            }
        }
        if epoch == 0
            && self.settings.longest_first
            && let Some(at) = steps.iter().enumerate().max_by_key(|(i, step)| (step.row_len, std::cmp::Reverse(*i)))
        {
            let at = at.0;
            steps[..=at].rotate_right(1);
        }
        (self.epoch, self.steps, self.account) = (epoch, steps, account);
    }

    /// The lengths of a cycle's steps, `left` of each.
    fn order(&self, left: &[usize], rng: &mut impl rand::Rng) -> Vec<usize> {
        let by_steps = self.settings.order == CycleOrder::DrawnBySteps;
        if self.settings.order == CycleOrder::Parts {
            return self.parts(left, rng);
        }
        let odds: Vec<f64> =
            self.odds.iter().zip(left).map(|(odds, &n)| if by_steps { odds * n as f64 } else { *odds }).collect();
        let mut left = left.to_vec();
        let mut order = Vec::with_capacity(left.iter().sum());
        loop {
            let open: Vec<usize> = (0..left.len()).filter(|&i| left[i] > 0).collect();
            let Some(&last) = open.last() else { return order };
            let mut roll = next_unit(rng) * open.iter().map(|&i| odds[i]).sum::<f64>();
            let found = open.iter().find(|&&i| {
                roll -= odds[i];
                roll < 0.0
            });
            let chosen = found.copied().unwrap_or(last);
            left[chosen] -= 1;
            order.push(chosen);
        }
    }

    fn parts(&self, left: &[usize], rng: &mut impl rand::Rng) -> Vec<usize> {
        let n = left.len();
        let weight = |exponent: usize| match self.settings.odds {
            Odds::Grow(base) => base.powi(exponent as i32 - 1),
            Odds::Shrink(base) => base.powi(1 - exponent as i32),
            Odds::GrowLinear => exponent as f64,
            Odds::Uniform | Odds::Given(_) => 1.0,
        };
        let mut parts: Vec<Vec<usize>> = vec![Vec::new(); n];
        for (i, &steps) in left.iter().enumerate() {
            let weights: Vec<f64> = (0..n).map(|part| weight(exponent(n, i, part))).collect();
            for (part, count) in largest_remainder(&weights, steps).into_iter().enumerate() {
                parts[part].extend(std::iter::repeat_n(i, count));
            }
        }
        for part in &mut parts {
            part.shuffle(rng);
        }
        parts.concat()
    }
}

/// How much of length `i` (of `n`, shortest 0) part `part` of a cycle has: rising to `n`, then falling. For six lengths the
/// shortest has 6 5 4 3 2 1, the third 4 5 6 3 2 1, the longest 1 2 3 4 5 6.
fn exponent(n: usize, i: usize, part: usize) -> usize {
    let rising = n - i + part;
    if rising <= n { rising } else { n - part }
}

/// `total` divided by weights, as whole numbers: rounded down, what is left to the largest remainders, of equal ones to the
/// first.
fn largest_remainder(weights: &[f64], total: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|w| w / sum * total as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|x| x.floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()).then(a.cmp(&b)));
    let left = total.saturating_sub(counts.iter().sum());
    for i in by_remainder.into_iter().cycle().take(left) {
        counts[i] += 1;
    }
    counts
}

fn targets(pool: &Pool, row: u32) -> u64 {
    pool.plan().row(row as usize).iter().map(|piece| u64::from(piece.len) - 1).sum()
}

impl Curriculum for Length {
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        in_order(self.step, progress)?;
        if self.step - self.before >= self.steps.len() as u64 {
            self.before += self.steps.len() as u64;
            self.plan(self.epoch + 1);
        }
        let step = self.steps[(self.step - self.before) as usize].clone();
        self.step += 1;
        Ok(Some(step))
    }

    fn steps_per_epoch(&self) -> Option<u64> {
        // Counts do not depend on the shuffle: every epoch has as many.
        Some(self.steps.len() as u64)
    }

    fn observe(&mut self, _: &Feedback) -> Result<(), CurriculumError> {
        self.observed += 1;
        Ok(())
    }

    fn pools(&self, _: u32) -> &[Pool] {
        &self.pools
    }

    fn state(&self) -> CurriculumState {
        let body = Body { epoch: self.epoch, before: self.before };
        CurriculumState {
            kind: KIND.to_owned(),
            identity: self.identity,
            step: self.step,
            observed: self.observed,
            body: serde_json::to_value(body).expect("plain data"),
        }
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        let Body { epoch, before } = state.of(KIND, self.identity)?;
        if epoch != self.epoch {
            self.plan(epoch);
        }
        (self.before, self.step, self.observed) = (before, state.step, state.observed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_cycle_follow_the_pattern() {
        let of = |i: usize| (0..6).map(|part| exponent(6, i, part)).collect::<Vec<_>>();
        assert_eq!(of(0), [6, 5, 4, 3, 2, 1]);
        assert_eq!(of(2), [4, 5, 6, 3, 2, 1]);
        assert_eq!(of(5), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn shares_are_whole_and_sum_up() {
        assert_eq!(largest_remainder(&[1.0, 1.0, 1.0], 10), [4, 3, 3]);
        assert_eq!(largest_remainder(&[0.5, 0.25, 0.25], 3), [1, 1, 1]);
        assert_eq!(largest_remainder(&[3.0, 1.0], 0), [0, 0]);
    }
}
