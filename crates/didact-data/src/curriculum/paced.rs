//! Easy first: only the easiest share of the rows may be read, and that share grows.

use std::collections::BTreeSet;

use didact_core::hash::Digest;
use didact_core::seed::Streams;
use serde::{Deserialize, Serialize};

use super::pool::shuffled;
use super::{
    Curriculum, CurriculumError, CurriculumState, Feedback, Pool, Pools, Progress, RowRef, StepRows, identity,
    in_order, next_unit, setting,
};

/// How a share grows over training.
///
/// Up to the progress `start` it is `from`, from `end` on it is `to`; with `u` the way between them, from 0 to 1:
///
/// | shape | share |
/// |---|---|
/// | `linear` | `from + (to - from) u` |
/// | `quadratic` | `from + (to - from) u²` |
/// | `root` | `from + (to - from) √u` |
/// | `log` | `from + (to - from) (1 + ln(u + e^-10) / 10)` |
/// | `exp` | `from + (to - from) (e^(10 u) - 1) / (e^10 - 1)` |
/// | `step` | `from` until `end` |
/// | `none` | 1 throughout |
///
/// # Reference
/// Diehl Martinez et al., "CLIMB: Curriculum Learning for Infant-inspired Model Building", CoNLL 2023. `root` is the
/// competence function of Platanios et al., NAACL 2019.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pacing {
    /// The form of growth.
    pub shape: PacingShape,
    /// Progress at which growth begins.
    pub start: f64,
    /// Progress at which it ends.
    pub end: f64,
    /// The share before.
    pub from: f64,
    /// The share after.
    pub to: f64,
}

/// The form of growth of a [`Pacing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the table of `Pacing` says what each is")]
pub enum PacingShape {
    Linear,
    Quadratic,
    Root,
    Log,
    Exp,
    Step,
    None,
}

impl Default for Pacing {
    /// From a tenth to all, along a line, between a sixteenth and seven eighths of training.
    fn default() -> Self {
        Self { shape: PacingShape::Linear, start: 0.0625, end: 0.875, from: 0.1, to: 1.0 }
    }
}

/// Steepness of `log` and `exp`.
const STEEPNESS: f64 = 10.0;

impl Pacing {
    /// The share at a progress from 0 to 1.
    pub fn at(&self, progress: f64) -> f64 {
        let Self { shape, start, end, from, to } = *self;
        if shape == PacingShape::None {
            return 1.0;
        }
        if progress < start {
            return from;
        }
        if progress >= end {
            return to;
        }
        let u = (progress - start) / (end - start);
        let way = match shape {
            PacingShape::Linear => u,
            PacingShape::Quadratic => u * u,
            PacingShape::Root => u.sqrt(),
            PacingShape::Log => 1.0 + (u + (-STEEPNESS).exp()).ln() / STEEPNESS,
            PacingShape::Exp => (STEEPNESS * u).exp_m1() / STEEPNESS.exp_m1(),
            PacingShape::Step | PacingShape::None => 0.0,
        };
        (from + (to - from) * way).min(from.max(to))
    }

    fn check(&self) -> Result<(), CurriculumError> {
        for (key, value) in [("start", self.start), ("end", self.end), ("from", self.from), ("to", self.to)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(setting(&format!("pacing.{key}"), value, "from 0 to 1"));
            }
        }
        if self.start > self.end {
            return Err(setting("pacing.start", self.start, format!("at most `pacing.end`, which is {}", self.end)));
        }
        Ok(())
    }
}

/// How rows are drawn from those that may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Drawing {
    /// Each batch on its own, no row twice in it.
    #[default]
    Independent,
    /// In rounds of this many steps, no row twice in a round. The share allowed is that at the round's last step, or as
    /// many rows as the round needs.
    Rounds(u64),
}

/// How easy rows come first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacedSettings {
    /// Rows of a batch.
    pub batch_size: usize,
    /// The share of rows that may be read.
    pub pacing: Pacing,
    /// Hard rows first.
    #[serde(default)]
    pub descending: bool,
    /// How rows are drawn.
    #[serde(default)]
    pub drawing: Drawing,
}

/// Rows of one pool, easy ones first.
#[derive(Debug)]
pub struct Paced {
    pools: Pools,
    settings: PacedSettings,
    streams: Streams,
    /// Rows by their scores, those that come first in front; equal ones as they lie.
    ranked: Vec<u32>,
    scores: Vec<f64>,
    identity: Digest,
    step: u64,
    observed: u64,
    /// The order of the round last asked for: it, its number, and from how many rows it was made.
    round: Option<(u64, usize, Vec<u32>)>,
}

const KIND: &str = "paced";

impl Paced {
    /// The rows of `pool` by `scores`, one per row, small ones easy.
    ///
    /// # Errors
    /// When the settings make no sense, a score is no number, or the pool is empty.
    pub fn new(
        pool: Pool,
        scores: Vec<f64>,
        settings: PacedSettings,
        streams: Streams,
    ) -> Result<Self, CurriculumError> {
        settings.pacing.check()?;
        if settings.batch_size == 0 || settings.drawing == Drawing::Rounds(0) {
            return Err(setting("batch_size or rounds", 0, "at least 1"));
        }
        if pool.rows() == 0 {
            return Err(CurriculumError::EmptyPool { name: pool.name().to_owned(), row_len: pool.plan().row_len() });
        }
        if scores.len() != pool.rows() {
            return Err(setting("scores", scores.len(), format!("{}, one per row", pool.rows())));
        }
        if let Some(row) = scores.iter().position(|score| !score.is_finite()) {
            return Err(setting(&format!("scores[{row}]"), scores[row], "a number"));
        }
        let sign = if settings.descending { -1.0 } else { 1.0 };
        let scores: Vec<f64> = scores.into_iter().map(|score| sign * score).collect();
        let mut ranked: Vec<u32> = (0..scores.len() as u32).collect();
        ranked.sort_by(|&a, &b| scores[a as usize].total_cmp(&scores[b as usize]).then(a.cmp(&b)));
        let pools: Pools = vec![pool].into();
        let bits: Vec<u64> = scores.iter().map(|score| score.to_bits()).collect();
        let identity = identity(&(settings, bits), &pools, streams);
        Ok(Self { pools, settings, streams, ranked, scores, identity, step: 0, observed: 0, round: None })
    }

    /// How many rows may be read at a progress: those up to the score at its share, and as many as a batch needs.
    pub fn allowed(&self, progress: f64) -> usize {
        let n = self.ranked.len();
        let rank = (self.settings.pacing.at(progress) * n as f64).ceil().max(1.0) as usize;
        let limit = self.scores[self.ranked[rank.min(n) - 1] as usize];
        // Rows of one score are equally easy: all of them may be read.
        self.ranked.partition_point(|&row| self.scores[row as usize] <= limit)
    }

    fn in_round(&mut self, steps: u64, progress: &Progress) -> Vec<u32> {
        let (number, place) = (progress.step / steps, (progress.step % steps) as usize);
        let last = Progress { step: (number + 1) * steps, ..*progress };
        let size = self.settings.batch_size;
        let allowed = self.allowed(last.fraction()).max(steps as usize * size).min(self.ranked.len());
        let is_other = self.round.as_ref().is_none_or(|(of, n, _)| (*of, *n) != (number, allowed));
        if is_other {
            self.round = Some((number, allowed, shuffled(allowed, self.streams, "round", &[number])));
        }
        let order = self.round.as_ref().map_or(&[][..], |(_, _, order)| order);
        // A round longer than all rows begins them again.
        (0..size.min(allowed)).map(|i| self.ranked[order[(place * size + i) % allowed] as usize]).collect()
    }

    fn drawn(&self, progress: &Progress) -> Vec<u32> {
        let size = self.settings.batch_size.min(self.ranked.len());
        let allowed = self.allowed(progress.fraction()).max(size);
        // Floyd's draw without repetition: one number per row, whatever the number of rows.
        let mut rng = self.streams.rng("paced", &[progress.step]);
        let (mut seen, mut chosen) = (BTreeSet::new(), Vec::with_capacity(size));
        for highest in allowed - size..allowed {
            let drawn = ((next_unit(&mut rng) * (highest + 1) as f64) as usize).min(highest);
            let rank = if seen.insert(drawn) { drawn } else { highest };
            seen.insert(rank);
            chosen.push(self.ranked[rank]);
        }
        chosen
    }
}

impl Curriculum for Paced {
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        in_order(self.step, progress)?;
        let rows = match self.settings.drawing {
            Drawing::Independent => self.drawn(progress),
            Drawing::Rounds(steps) => self.in_round(steps, progress),
        };
        self.step += 1;
        let rows = rows.into_iter().map(|row| RowRef { pool: 0, row }).collect();
        Ok(Some(StepRows { part: 0, row_len: self.pools[0].plan().row_len(), rows }))
    }

    fn observe(&mut self, _: &Feedback) -> Result<(), CurriculumError> {
        self.observed += 1;
        Ok(())
    }

    fn pools(&self, _: u32) -> &[Pool] {
        &self.pools
    }

    fn state(&self) -> CurriculumState {
        CurriculumState {
            kind: KIND.to_owned(),
            identity: self.identity,
            step: self.step,
            observed: self.observed,
            body: serde_json::Value::Null,
        }
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        state.of::<()>(KIND, self.identity)?;
        (self.step, self.observed) = (state.step, state.observed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pacing_has_the_values_of_its_reference() {
        let of = |shape, step: f64| Pacing { shape, ..Pacing::default() }.at(step / 400_000.0);
        // To the three digits that the values are given with.
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 6e-4, "{found} against {expected}");
        let log = [(25_000, 0.1), (26_000, 0.481), (50_000, 0.769), (100_000, 0.868), (200_000, 0.944), (350_000, 1.0)];
        for (step, expected) in log {
            near(of(PacingShape::Log, f64::from(step)), expected);
        }
        near(of(PacingShape::Exp, 200_000.0), 0.109);
        near(of(PacingShape::Exp, 300_000.0), 0.293);
        near(of(PacingShape::Linear, 187_500.0), 0.55);
        near(of(PacingShape::Quadratic, 187_500.0), 0.325);
        near(of(PacingShape::Root, 187_500.0), 0.1 + 0.9 * 0.5_f64.sqrt());
        assert_eq!((of(PacingShape::Step, 349_999.0), of(PacingShape::Step, 350_000.0)), (0.1, 1.0));
        assert_eq!(of(PacingShape::None, 0.0), 1.0);
        for shape in [PacingShape::Linear, PacingShape::Log, PacingShape::Exp, PacingShape::Root] {
            let shares: Vec<f64> = (0..=100).map(|i| of(shape, f64::from(i) * 4000.0)).collect();
            assert!(shares.windows(2).all(|two| two[0] <= two[1]), "{shape:?} grows");
        }
    }
}
