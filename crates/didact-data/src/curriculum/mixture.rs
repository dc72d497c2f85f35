//! Rows from several pools by weights; replay of old data.

use didact_core::hash::Digest;
use didact_core::seed::Streams;
use serde::{Deserialize, Serialize};

use super::pool::{Orders, ReadOrder};
use super::weights::{Memory, Weights};
use super::{
    Curriculum, CurriculumError, CurriculumState, Feedback, Pool, Pools, Progress, RowRef, StepRows, identity,
    in_order, setting, unit,
};

/// How the pool of each row is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// As evenly as can be: every pool's count stays close to its weight times the rows so far, however small the weight
    /// and the batch.
    #[default]
    Even,
    /// Drawn, each row on its own.
    Drawn,
}

/// How one pool of a mixture is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The order of its rows.
    pub order: ReadOrder,
    /// How often it may be read; then its weight goes to the others. Any number of times when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_epochs: Option<u64>,
}

impl Default for Reading {
    fn default() -> Self {
        Self { order: ReadOrder::Shuffled, max_epochs: None }
    }
}

/// How a mixture is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureSettings {
    /// Rows of a batch.
    pub batch_size: usize,
    /// How much of each pool.
    pub weights: Weights,
    /// How the pool of each row is chosen.
    #[serde(default)]
    pub choice: Choice,
    /// How each pool is read, in the order of the pools.
    pub readings: Vec<Reading>,
}

/// How the share of replay is divided among several old sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OldShares {
    /// By their numbers of targets.
    #[default]
    BySize,
    /// Equally.
    Equal,
}

impl MixtureSettings {
    /// New data with a share of `share` of old data in every batch, the batches staying as large: the last of the pools is
    /// new and shuffled, the others old and read as they lie, from row `offset` on.
    ///
    /// # Errors
    /// When `share` is not in [0, 1), or there is no old pool to take it from.
    ///
    /// # Reference
    /// Ibrahim et al., "Simple and Scalable Strategies to Continually Pre-train Large Language Models", TMLR 2024.
    pub fn replay(
        pools: &[Pool],
        batch_size: usize,
        share: f64,
        shares: OldShares,
        offset: u64,
    ) -> Result<Self, CurriculumError> {
        if !(0.0..1.0).contains(&share) {
            return Err(setting("replay", share, "a share from 0 to below 1"));
        }
        let Some((_, old)) = pools.split_last() else {
            return Err(setting("pools", 0, "the new data, and old data before it"));
        };
        let size = |pool: &Pool| match shares {
            OldShares::BySize => pool.plan().stats().targets as f64,
            OldShares::Equal => f64::from(u8::from(pool.rows() > 0)),
        };
        let all: f64 = old.iter().map(size).sum();
        if share > 0.0 && all == 0.0 {
            let name = old.first().map_or("old data", Pool::name).to_owned();
            return Err(CurriculumError::EmptyPool { name, row_len: pools[0].plan().row_len() });
        }
        let of = |pool: &Pool| if share == 0.0 { 0.0 } else { share * size(pool) / all };
        let weights = old.iter().map(of).chain([1.0 - share]).collect();
        let mut readings = vec![Reading { order: ReadOrder::Stored { offset }, max_epochs: None }; old.len()];
        readings.push(Reading::default());
        Ok(Self { batch_size, weights: Weights::Fixed(weights), choice: Choice::Even, readings })
    }
}

/// What has been read of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Taken {
    /// Rows.
    pub rows: u64,
    /// Targets of those.
    pub targets: u64,
    /// Times round, with the part of the last one.
    pub epochs: f64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    step: u64,
    observed: u64,
    taken: Vec<u64>,
    targets: Vec<u64>,
    /// How far each pool is behind its share, in rows.
    credit: Vec<f64>,
    memory: Memory,
}

/// Rows from several pools by weights.
#[derive(Debug)]
pub struct Mixture {
    pools: Pools,
    settings: MixtureSettings,
    streams: Streams,
    orders: Orders,
    identity: Digest,
    state: State,
    /// The weights of the last step given.
    given: Option<Vec<f64>>,
}

const KIND: &str = "mixture";

impl Mixture {
    /// A mixture of pools whose rows are all of one length.
    ///
    /// # Errors
    /// When the settings make no sense, or a pool with a weight holds nothing.
    pub fn new(pools: Vec<Pool>, settings: MixtureSettings, streams: Streams) -> Result<Self, CurriculumError> {
        let n = pools.len();
        if n == 0 || settings.batch_size == 0 {
            return Err(setting("pools or batch_size", 0, "at least 1"));
        }
        if settings.readings.len() != n {
            return Err(setting("readings", settings.readings.len(), format!("{n}, one per pool")));
        }
        settings.weights.check(n)?;
        let row_len = pools[0].plan().row_len();
        if let Some(other) = pools.iter().find(|pool| pool.plan().row_len() != row_len) {
            let found = format!("{} for `{}`", other.plan().row_len(), other.name());
            return Err(setting("row length", found, format!("{row_len}, as `{}` has", pools[0].name())));
        }
        let can_be_read = |i: usize| match &settings.weights {
            Weights::Fixed(weights) => weights[i] > 0.0,
            Weights::Path { points, .. } => points.iter().any(|(_, weights)| weights[i] > 0.0),
            Weights::Graph(_) => true,
        };
        if let Some(i) = (0..n).find(|&i| pools[i].rows() == 0 && can_be_read(i)) {
            return Err(CurriculumError::EmptyPool { name: pools[i].name().to_owned(), row_len });
        }
        let identity = identity(&settings, &pools, streams);
        let orders = Orders::new(streams, settings.readings.iter().map(|reading| reading.order).collect());
        let state = State { taken: vec![0; n], targets: vec![0; n], credit: vec![0.0; n], ..State::default() };
        Ok(Self { pools: pools.into(), settings, streams, orders, identity, state, given: None })
    }

    /// The weights of the step to come, before pools that are used up are left out.
    pub fn next_weights(&mut self, progress: &Progress) -> Vec<f64> {
        self.settings.weights.at(progress, &mut self.state.memory)
    }

    /// What has been read of each pool.
    pub fn taken(&self) -> Vec<Taken> {
        let of = |i: usize| Taken {
            rows: self.state.taken[i],
            targets: self.state.targets[i],
            epochs: self.state.taken[i] as f64 / self.pools[i].rows().max(1) as f64,
        };
        (0..self.pools.len()).map(of).collect()
    }

    /// What is read of each pool in a training of so many steps, before any of it is. Weights that follow evaluations are
    /// taken as they are before the first one.
    pub fn expected(&self, total_steps: u64) -> Vec<Taken> {
        let most = |i: usize| {
            let rows = self.pools[i].rows() as f64;
            self.settings.readings[i].max_epochs.map_or(f64::INFINITY, |epochs| epochs as f64 * rows)
        };
        let mut left: Vec<f64> = (0..self.pools.len()).map(most).collect();
        let mut rows = vec![0.0; self.pools.len()];
        let mut memory = Memory::default();
        for step in 0..total_steps {
            let mut weights = self.settings.weights.at(&Progress { step, total_steps }, &mut memory);
            let mut wanted = self.settings.batch_size as f64;
            // What a pool that runs out cannot give comes from the others.
            while wanted > 0.0 {
                let sum: f64 = weights.iter().sum();
                if sum <= 0.0 {
                    return self.taken_of(&rows);
                }
                let mut missing = 0.0;
                for i in 0..rows.len() {
                    let share = wanted * weights[i] / sum;
                    let given = share.min(left[i]);
                    rows[i] += given;
                    left[i] -= given;
                    if given < share {
                        missing += share - given;
                        weights[i] = 0.0;
                    }
                }
                wanted = missing;
            }
        }
        self.taken_of(&rows)
    }

    /// So many rows of each pool, with as many targets as its rows have in the mean.
    fn taken_of(&self, rows: &[f64]) -> Vec<Taken> {
        let of = |(pool, &rows): (&Pool, &f64)| {
            let epochs = rows / pool.rows().max(1) as f64;
            let targets = (epochs * pool.plan().stats().targets as f64).round() as u64;
            Taken { rows: rows.round() as u64, targets, epochs }
        };
        self.pools.iter().zip(rows).map(of).collect()
    }

    fn is_used_up(&self, pool: usize) -> bool {
        let rows = self.pools[pool].rows() as u64;
        rows == 0 || self.settings.readings[pool].max_epochs.is_some_and(|most| self.state.taken[pool] >= most * rows)
    }

    /// The pool of the next row, or `None` when all that have a weight are used up.
    fn choose(&mut self, weights: &[f64], place: u64) -> Option<usize> {
        let open: Vec<usize> = (0..weights.len()).filter(|&i| weights[i] > 0.0 && !self.is_used_up(i)).collect();
        let sum: f64 = open.iter().map(|&i| weights[i]).sum();
        let (&first, rest) = open.split_first()?;
        match self.settings.choice {
            Choice::Even => {
                for &i in &open {
                    self.state.credit[i] += weights[i] / sum;
                }
                // The one furthest behind; of equal ones the first.
                let credit = &self.state.credit;
                let chosen = rest.iter().fold(first, |best, &i| if credit[i] > credit[best] { i } else { best });
                self.state.credit[chosen] -= 1.0;
                Some(chosen)
            }
            Choice::Drawn => {
                let mut left = unit(self.streams, "choice", &[self.state.step, place]) * sum;
                let found = open.iter().find(|&&i| {
                    left -= weights[i];
                    left < 0.0
                });
                found.or(open.last()).copied()
            }
        }
    }
}

impl Curriculum for Mixture {
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        in_order(self.state.step, progress)?;
        let weights = self.next_weights(progress);
        let mut step = StepRows { part: 0, row_len: self.pools[0].plan().row_len(), rows: Vec::new() };
        for place in 0..self.settings.batch_size as u64 {
            let Some(i) = self.choose(&weights, place) else { break };
            let pool = &self.pools[i];
            let row = self.orders.row(i, pool.rows(), self.state.taken[i]);
            self.state.taken[i] += 1;
            let pieces = pool.plan().row(row as usize);
            self.state.targets[i] += pieces.iter().map(|piece| u64::from(piece.len) - 1).sum::<u64>();
            step.rows.push(RowRef { pool: i as u32, row });
        }
        if step.rows.is_empty() {
            return Ok(None);
        }
        self.state.step += 1;
        self.given = Some(weights);
        Ok(Some(step))
    }

    fn needs_feedback(&self) -> bool {
        matches!(self.settings.weights, Weights::Graph(_))
    }

    fn weights(&self) -> Option<Vec<(String, f64)>> {
        let given = self.given.as_ref()?;
        Some(self.pools.iter().zip(given).map(|(pool, weight)| (pool.name().to_owned(), *weight)).collect())
    }

    fn observe(&mut self, feedback: &Feedback) -> Result<(), CurriculumError> {
        self.settings.weights.observe(feedback, &mut self.state.memory)?;
        self.state.observed += 1;
        Ok(())
    }

    fn pools(&self, _: u32) -> &[Pool] {
        &self.pools
    }

    fn state(&self) -> CurriculumState {
        CurriculumState {
            kind: KIND.to_owned(),
            identity: self.identity,
            step: self.state.step,
            observed: self.state.observed,
            body: serde_json::to_value(&self.state).expect("plain data"),
        }
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        self.state = state.of(KIND, self.identity)?;
        Ok(())
    }
}
