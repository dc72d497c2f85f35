//! What the model reads next: curricula choose the rows of each step from pools of rows.
//!
//! - [`pool`]: rows of one source, packed on its own so that no row mixes sources, and read in an order that is a pure
//!   function of the seed and of how many were read;
//! - [`mixture`]: rows from several pools by weights that stand still, follow the progress of training, or follow what
//!   evaluations found ([`weights`]); replay of old data is a mixture too;
//! - [`paced`]: easy rows first, by a score per row;
//! - [`length`]: rows of one length per step, in cycles from short to long;
//! - [`staged`]: one curriculum after the other;
//! - [`feedback`]: what a curriculum was told, as a log that is replayed.
//!
//! The rows of a step are a pure function of the seed, the step and the feedback recorded before it. Sums are taken in a
//! fixed order, draws by counter: neither threads, nor interruptions, nor the number of workers change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::hash::{Digest, hash_json};
use didact_core::seed::Streams;
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::batch::Batch;
use crate::store::StoreError;

pub mod feedback;
pub mod length;
pub mod mixture;
pub mod paced;
pub mod pool;
pub mod staged;
pub mod weights;

pub use pool::Pool;

/// Why a curriculum cannot be made, restored or asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CurriculumError {
    /// A sequence cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log of feedback cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A setting that makes no sense.
    #[error("`{key}` is {found}, expected {expected}")]
    Setting {
        /// The setting.
        key: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A pool that is to be read holds nothing.
    #[error("`{name}` is to be read, but holds no row of {row_len} targets")]
    EmptyPool {
        /// The pool.
        name: String,
        /// Targets of a row.
        row_len: usize,
    },
    /// A measurement that is needed is missing, or no number.
    #[error("the evaluation at step {step} {what} for `{name}`")]
    Feedback {
        /// Steps done when it was measured.
        step: u64,
        /// What is wrong with it.
        what: String,
        /// What was to be measured.
        name: String,
    },
    /// A saved state of another curriculum, or of other data.
    #[error("the saved state is of {found}, this curriculum is {expected}")]
    OtherState {
        /// What the state says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// A step was asked for out of order.
    #[error("the curriculum stands before step {stands}, it was asked for step {asked}")]
    OutOfOrder {
        /// The step it would give next.
        stands: u64,
        /// The step asked for.
        asked: u64,
    },
}

impl Classify for CurriculumError {
    fn fault(&self) -> Fault {
        match self {
            Self::Store(error) => error.fault(),
            Self::File(error) => error.fault(),
            Self::Setting { .. } | Self::EmptyPool { .. } => Fault::Input,
            _ => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::File(error) => error.hint(),
            _ => None,
        }
    }
}

pub(crate) fn setting(key: &str, found: impl ToString, expected: impl ToString) -> CurriculumError {
    CurriculumError::Setting { key: key.to_owned(), found: found.to_string(), expected: expected.to_string() }
}

/// A number in [0, 1) that is a pure function of its arguments.
pub(crate) fn unit(streams: Streams, name: &str, index: &[u64]) -> f64 {
    (streams.key(name, index) >> 11) as f64 * 0.5_f64.powi(53)
}

/// The next number in [0, 1) of a stream.
pub(crate) fn next_unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * 0.5_f64.powi(53)
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
}

impl Progress {
    /// The share that is done, from 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.total_steps == 0 { 1.0 } else { (self.step as f64 / self.total_steps as f64).min(1.0) }
    }
}

/// A row of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RowRef {
    /// Number of the pool.
    pub pool: u32,
    /// Number of the row within it.
    pub row: u32,
}

/// What a step reads.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepRows {
    /// Which of several curricula it comes from; 0 where there is one.
    pub part: u32,
    /// Most targets of a row.
    pub row_len: usize,
    /// The rows, in order.
    pub rows: Vec<RowRef>,
}

impl StepRows {
    /// The part of it that worker `rank` of `workers` reads. All workers' parts in the order of their ranks are the whole.
    ///
    /// # Panics
    /// If `rank` is not below `workers`.
    #[must_use]
    pub fn shard(&self, rank: usize, workers: usize) -> Self {
        assert!(rank < workers, "worker {rank} of {workers}");
        let n = self.rows.len();
        let rows = self.rows[rank * n / workers..(rank + 1) * n / workers].to_vec();
        Self { rows, ..*self }
    }

    /// The same rows in at most `parts` parts, as even as can be, none of them empty.
    pub fn parts(&self, parts: usize) -> Vec<Self> {
        let parts = parts.min(self.rows.len());
        (0..parts).map(|i| self.shard(i, parts)).collect()
    }

    /// Rows of each pool.
    pub fn count(&self, pool: usize) -> usize {
        self.rows.iter().filter(|row| row.pool as usize == pool).count()
    }
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Feedback {
    /// Steps done when it was measured.
    pub step: u64,
    /// Losses by name: per skill, per source, per bucket.
    pub losses: BTreeMap<String, f64>,
}

/// Where a curriculum stands, for checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurriculumState {
    /// Which kind of curriculum.
    pub kind: String,
    /// Digest of its settings and data.
    pub identity: Digest,
    /// Steps given.
    pub step: u64,
    /// Reports of feedback taken in.
    pub observed: u64,
    /// What else it knows.
    pub body: Value,
}

impl CurriculumState {
    /// The state's own part, after a look at whose it is.
    pub(crate) fn of<T: serde::de::DeserializeOwned>(
        &self,
        kind: &str,
        identity: Digest,
    ) -> Result<T, CurriculumError> {
        let other = |found: String, expected: String| CurriculumError::OtherState { found, expected };
        if self.kind != kind {
            return Err(other(format!("kind `{}`", self.kind), format!("of kind `{kind}`")));
        }
        if self.identity != identity {
            let found = format!("other settings or data ({})", self.identity.short());
            return Err(other(found, identity.short()));
        }
        serde_json::from_value(self.body.clone()).map_err(|error| other(error.to_string(), format!("of kind `{kind}`")))
    }
}

/// A digest of settings and of the data they are applied to.
pub(crate) fn identity(settings: &impl Serialize, pools: &[Pool], streams: Streams) -> Digest {
    let pools: Vec<_> = pools.iter().map(|pool| (pool.name(), pool.sequences().digest(), pool.rows())).collect();
    let value = serde_json::to_value((settings, pools, streams.root())).expect("settings are plain data");
    hash_json(&value)
}

/// Chooses what is read next.
pub trait Curriculum: Send {
    /// The rows of the next step, which must be `progress.step`; `None` when there is nothing left.
    ///
    /// # Errors
    /// When another step was asked for, or feedback that is needed is missing.
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError>;

    /// Takes in what an evaluation found. It counts from the next step on.
    ///
    /// # Errors
    /// When what is needed is missing or no number.
    fn observe(&mut self, feedback: &Feedback) -> Result<(), CurriculumError>;

    /// The pools that the rows of part `part` are numbers in.
    ///
    /// # Panics
    /// If there is no such part.
    fn pools(&self, part: u32) -> &[Pool];

    /// Where it stands.
    fn state(&self) -> CurriculumState;

    /// Goes back, or on, to where it stood.
    ///
    /// # Errors
    /// When the state is of another curriculum.
    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError>;

    /// Reads the rows of a step, of a worker's shard, or of a micro-batch.
    ///
    /// # Errors
    /// When a sequence is damaged.
    fn read(&self, step: &StepRows) -> Result<Batch, CurriculumError> {
        Ok(pool::read(self.pools(step.part), step)?)
    }

    /// The batch of the next step, as [`Self::next_step`].
    ///
    /// # Errors
    /// As [`Self::next_step`] and [`Self::read`].
    fn next_batch(&mut self, progress: &Progress) -> Result<Option<Batch>, CurriculumError> {
        self.next_step(progress)?.map(|step| self.read(&step)).transpose()
    }

    /// Whether what it chooses depends on what evaluations find, which it must then be told through [`Self::observe`].
    fn needs_feedback(&self) -> bool {
        false
    }

    /// Steps after which it has given everything once, where it knows.
    fn steps_per_epoch(&self) -> Option<u64> {
        None
    }

    /// The share of each pool that the last step given was made by, where the curriculum works with shares.
    fn weights(&self) -> Option<Vec<(String, f64)>> {
        None
    }
}

impl<C: Curriculum + ?Sized> Curriculum for Box<C> {
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        (**self).next_step(progress)
    }

    fn observe(&mut self, feedback: &Feedback) -> Result<(), CurriculumError> {
        (**self).observe(feedback)
    }

    fn pools(&self, part: u32) -> &[Pool] {
        (**self).pools(part)
    }

    fn state(&self) -> CurriculumState {
        (**self).state()
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        (**self).restore(state)
    }

    fn read(&self, step: &StepRows) -> Result<Batch, CurriculumError> {
        (**self).read(step)
    }

    fn next_batch(&mut self, progress: &Progress) -> Result<Option<Batch>, CurriculumError> {
        (**self).next_batch(progress)
    }

    fn needs_feedback(&self) -> bool {
        (**self).needs_feedback()
    }

    fn steps_per_epoch(&self) -> Option<u64> {
        (**self).steps_per_epoch()
    }

    fn weights(&self) -> Option<Vec<(String, f64)>> {
        (**self).weights()
    }
}

/// Checks that the step asked for is the next one.
pub(crate) fn in_order(stands: u64, progress: &Progress) -> Result<(), CurriculumError> {
    if stands == progress.step { Ok(()) } else { Err(CurriculumError::OutOfOrder { stands, asked: progress.step }) }
}

/// Pools, shared.
pub(crate) type Pools = Arc<[Pool]>;

#[cfg(test)]
pub(crate) mod tests;
