//! Where the rows of a step come from: one set, or a curriculum over pools.

use std::path::Path;

use didact_data::batch::{Batch, TrainingSet};
use didact_data::curriculum::feedback::Recorded;
use didact_data::curriculum::{Curriculum, CurriculumState, Feedback, Progress, StepRows};

use crate::config::TrainConfig;
use crate::error::{ConfigError, TrainError};

/// What a training reads.
pub enum Source<'a> {
    /// One set, epoch after epoch.
    Set(&'a TrainingSet),
    /// What a curriculum chooses.
    Curriculum(Box<dyn Curriculum + 'a>),
}

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set(set) => f.debug_tuple("Set").field(&set.sequences().path()).finish(),
            Self::Curriculum(curriculum) => f.debug_tuple("Curriculum").field(&curriculum.state()).finish(),
        }
    }
}

impl<'a> From<&'a TrainingSet> for Source<'a> {
    fn from(set: &'a TrainingSet) -> Self {
        Self::Set(set)
    }
}

impl<'a> From<Box<dyn Curriculum + 'a>> for Source<'a> {
    fn from(curriculum: Box<dyn Curriculum + 'a>) -> Self {
        Self::Curriculum(curriculum)
    }
}

/// A set that is measured along the way.
#[derive(Debug, Clone)]
pub struct Measured<'a> {
    /// What it is called in metrics, in feedback and in reports.
    pub name: String,
    /// The set.
    pub set: &'a TrainingSet,
}

impl<'a> Measured<'a> {
    /// A set under a name.
    pub fn new(name: impl Into<String>, set: &'a TrainingSet) -> Self {
        Self { name: name.into(), set }
    }
}

impl<'a> From<&'a TrainingSet> for Measured<'a> {
    /// Under the name `held_out`.
    fn from(set: &'a TrainingSet) -> Self {
        Self::new("held_out", set)
    }
}

/// A source at work: a curriculum's feedback is recorded.
pub(crate) enum Feed<'a> {
    Set(&'a TrainingSet),
    Curriculum(Recorded<Box<dyn Curriculum + 'a>>),
    /// For a look at the first steps: nothing is recorded.
    Silent(Box<dyn Curriculum + 'a>),
}

/// A step's micro-batches.
#[derive(Debug, Default)]
pub(crate) struct StepBatches {
    pub(crate) batches: Vec<Batch>,
    /// The rows of each, as a curriculum gave them; empty with a set.
    parts: Vec<StepRows>,
}

impl<'a> Feed<'a> {
    /// Begins to read, or goes on where `state` stood.
    pub(crate) fn open(
        source: Source<'a>,
        feedback: &Path,
        state: Option<&CurriculumState>,
    ) -> Result<Self, TrainError> {
        Ok(match source {
            Source::Set(set) if set.is_empty() => return Err(TrainError::NoData),
            Source::Set(set) => Self::Set(set),
            Source::Curriculum(curriculum) => Self::Curriculum(Recorded::open(curriculum, feedback, state)?),
        })
    }

    /// Begins to read without a log.
    pub(crate) fn silent(source: Source<'a>) -> Result<Self, TrainError> {
        Ok(match source {
            Source::Set(set) if set.is_empty() => return Err(TrainError::NoData),
            Source::Set(set) => Self::Set(set),
            Source::Curriculum(curriculum) => Self::Silent(curriculum),
        })
    }

    fn curriculum(&self) -> Option<&(dyn Curriculum + 'a)> {
        match self {
            Self::Set(_) => None,
            Self::Curriculum(curriculum) => Some(curriculum),
            Self::Silent(curriculum) => Some(curriculum.as_ref()),
        }
    }

    fn curriculum_mut(&mut self) -> Option<&mut (dyn Curriculum + 'a)> {
        match self {
            Self::Set(_) => None,
            Self::Curriculum(curriculum) => Some(curriculum),
            Self::Silent(curriculum) => Some(curriculum.as_mut()),
        }
    }

    /// Steps of one pass over everything, where that is known.
    pub(crate) fn steps_per_epoch(&self) -> Option<u64> {
        match self {
            Self::Set(set) => Some(set.batches_per_epoch()),
            other => other.curriculum().and_then(Curriculum::steps_per_epoch),
        }
    }

    pub(crate) fn total_steps(&self, config: &TrainConfig) -> Result<u64, ConfigError> {
        config.total_steps_of(self.steps_per_epoch())
    }

    pub(crate) fn needs_feedback(&self) -> bool {
        self.curriculum().is_some_and(Curriculum::needs_feedback)
    }

    pub(crate) fn observe(&mut self, feedback: &Feedback) -> Result<(), TrainError> {
        self.curriculum_mut().map_or(Ok(()), |curriculum| Ok(curriculum.observe(feedback)?))
    }

    pub(crate) fn state(&self) -> Option<CurriculumState> {
        self.curriculum().map(Curriculum::state)
    }

    /// The shares of the pools in the step last given, where the curriculum works with shares.
    pub(crate) fn weights(&self) -> Option<Vec<(String, f64)>> {
        self.curriculum().and_then(Curriculum::weights)
    }

    /// The batches of the next step, in at most `parts` parts; `None` when a curriculum has nothing left.
    pub(crate) fn next(&mut self, progress: &Progress, parts: usize) -> Result<Option<StepBatches>, TrainError> {
        if let Self::Set(set) = self {
            let batches = set.micro_batches(progress.step, parts)?;
            return Ok(Some(StepBatches { batches, parts: Vec::new() }));
        }
        let Some(curriculum) = self.curriculum_mut() else { return Ok(None) };
        let Some(step) = curriculum.next_step(progress)? else { return Ok(None) };
        let parts = step.parts(parts);
        let batches = parts.iter().map(|part| curriculum.read(part)).collect::<Result<_, _>>()?;
        Ok(Some(StepBatches { batches, parts }))
    }

    /// Where a sequence in row `row` of micro-batch `batch` came from.
    pub(crate) fn origin(&self, step: &StepBatches, batch: usize, row: usize, sequence: u32) -> String {
        let unknown = || "a row of unknown origin".to_owned();
        let Some(curriculum) = self.curriculum() else {
            let Self::Set(set) = self else { return unknown() };
            return set.origin(sequence).to_string();
        };
        // A hook may have put other rows there.
        let place = step.parts.get(batch).and_then(|part| Some((part, part.rows.get(row)?)));
        let Some((part, place)) = place else { return unknown() };
        let pool = &curriculum.pools(part.part)[place.pool as usize];
        if (sequence as usize) >= pool.sequences().len() {
            return unknown();
        }
        format!("{} (`{}`)", pool.sequences().origin(sequence as usize), pool.name())
    }

    /// Targets of each row of a step with the name of its pool; nothing with a set.
    pub(crate) fn pools_of<'s>(&'s self, step: &'s StepBatches) -> impl Iterator<Item = (&'s str, u64)> {
        let of_part = move |part: &'s StepRows| {
            let pools = self.curriculum().map_or(&[][..], |curriculum| curriculum.pools(part.part));
            part.rows.iter().filter_map(move |row| {
                let pool = pools.get(row.pool as usize)?;
                let pieces = pool.plan().row(row.row as usize);
                Some((pool.name(), pieces.iter().map(|piece| u64::from(piece.len) - 1).sum()))
            })
        };
        step.parts.iter().flat_map(of_part)
    }
}
