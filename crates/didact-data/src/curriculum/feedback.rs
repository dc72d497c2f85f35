//! What a curriculum was told, as an artifact: an append log of checksummed records that is replayed on resume.

use std::path::{Path, PathBuf};

use didact_core::files::AppendLog;
use serde_json::Value;

use super::{Curriculum, CurriculumError, CurriculumState, Feedback, Pool, Progress, StepRows};
use crate::batch::Batch;

/// A curriculum whose feedback is written down before it counts.
///
/// A checkpoint keeps the curriculum's state, which says how many reports it had taken in. On resume, reports after those
/// are cut from the log: they are made again by the evaluations that are done again.
#[derive(Debug)]
pub struct Recorded<C> {
    inner: C,
    log: AppendLog,
    path: PathBuf,
}

impl<C: Curriculum> Recorded<C> {
    /// Records to the log at `path`: anew without a state, or from that state on.
    ///
    /// # Errors
    /// When the log cannot be read or written, holds fewer reports than the state has taken in, or the state is of another
    /// curriculum.
    pub fn open(
        mut inner: C,
        path: impl AsRef<Path>,
        state: Option<&CurriculumState>,
    ) -> Result<Self, CurriculumError> {
        let path = path.as_ref().to_owned();
        let wanted = state.map_or(0, |state| state.observed);
        if let Some(state) = state {
            inner.restore(state)?;
        }
        let mut number = 0;
        AppendLog::remove_where(&path, |_| {
            number += 1;
            number > wanted
        })?;
        let (log, recovered) = AppendLog::open(&path)?;
        let found = recovered.records.len() as u64;
        if found < wanted {
            return Err(CurriculumError::OtherState {
                found: format!("{wanted} reports of feedback, of which `{}` holds {found}", path.display()),
                expected: "with all of them".to_owned(),
            });
        }
        Ok(Self { inner, log, path })
    }

    /// The curriculum.
    pub fn inner(&self) -> &C {
        &self.inner
    }

    /// The log.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<C: Curriculum> Curriculum for Recorded<C> {
    fn next_step(&mut self, progress: &Progress) -> Result<Option<StepRows>, CurriculumError> {
        self.inner.next_step(progress)
    }

    fn observe(&mut self, feedback: &Feedback) -> Result<(), CurriculumError> {
        self.inner.observe(feedback)?;
        let Ok(Value::Object(record)) = serde_json::to_value(feedback) else { unreachable!("a struct is an object") };
        self.log.append(&record)?;
        // A checkpoint that counts this report may follow at once.
        Ok(self.log.sync()?)
    }

    fn pools(&self, part: u32) -> &[Pool] {
        self.inner.pools(part)
    }

    fn state(&self) -> CurriculumState {
        self.inner.state()
    }

    fn restore(&mut self, state: &CurriculumState) -> Result<(), CurriculumError> {
        self.inner.restore(state)
    }

    fn read(&self, step: &StepRows) -> Result<Batch, CurriculumError> {
        self.inner.read(step)
    }

    fn needs_feedback(&self) -> bool {
        self.inner.needs_feedback()
    }

    fn steps_per_epoch(&self) -> Option<u64> {
        self.inner.steps_per_epoch()
    }

    fn weights(&self) -> Option<Vec<(String, f64)>> {
        self.inner.weights()
    }
}

/// The reports of a log.
///
/// # Errors
/// When it cannot be read, or a record is no report.
pub fn read_log(path: impl AsRef<Path>) -> Result<Vec<Feedback>, CurriculumError> {
    let path = path.as_ref();
    let records = AppendLog::read(path)?.records;
    let report = |record| {
        serde_json::from_value(Value::Object(record)).map_err(|error| CurriculumError::OtherState {
            found: format!("a record of `{}` that is no report: {error}", path.display()),
            expected: "a list of reports".to_owned(),
        })
    };
    records.into_iter().map(report).collect()
}

/// Brings a new curriculum to where it stood before step `steps` of `total_steps`, from the reports alone: the proof that
/// its order is a pure function of seed, step and feedback, and a way back without a checkpoint.
///
/// # Errors
/// As the curriculum's own.
pub fn replay(
    curriculum: &mut dyn Curriculum,
    reports: &[Feedback],
    steps: u64,
    total_steps: u64,
) -> Result<(), CurriculumError> {
    let mut reports = reports.iter().peekable();
    for step in 0..steps {
        while let Some(report) = reports.next_if(|report| report.step <= step) {
            curriculum.observe(report)?;
        }
        if curriculum.next_step(&Progress { step, total_steps })?.is_none() {
            break;
        }
    }
    while let Some(report) = reports.next_if(|report| report.step <= steps) {
        curriculum.observe(report)?;
    }
    Ok(())
}
