//! What an arm is given.

use super::{Outcome, Size};
use crate::error::MethodError;
use didact_core::files;
use didact_core::seed::Streams;
use didact_core::stage::StageContext;
use std::path::{Path, PathBuf};

/// What an arm measured, inside its directory.
pub(super) const OUTCOME: &str = "outcome.json";

/// Where one arm works at one seed.
pub struct Lab<'a> {
    context: &'a StageContext<'a>,
    seed: u64,
    size: Size,
    streams: Streams,
}

impl<'a> Lab<'a> {
    pub(super) fn new(context: &'a StageContext<'a>, slug: &str, seed: u64, size: Size) -> Self {
        Self { context, seed, size, streams: Streams::new(seed).child(slug, &[]) }
    }

    /// The stage that this arm is: progress, cancellation, metrics. Its streams differ from arm to arm: use
    /// [`Self::streams`].
    pub fn context(&self) -> &StageContext<'a> {
        self.context
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// How large the reproduction is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Randomness from the method's name and the seed alone: the same in every arm, so that arms see the same data and
    /// start from the same weights where they ask for them by the same names.
    pub fn streams(&self) -> Streams {
        self.streams
    }

    /// The published directory of an arm that this one needs, at the same seed.
    ///
    /// # Panics
    /// If this arm does not say that it needs it.
    pub fn arm(&self, name: &str) -> &Path {
        self.context.input(&stage_name(name, self.seed))
    }

    /// What an arm that this one needs measured at the same seed.
    ///
    /// # Errors
    /// When that cannot be read.
    ///
    /// # Panics
    /// If this arm does not say that it needs it.
    pub fn outcome(&self, name: &str) -> Result<Outcome, MethodError> {
        read_outcome(self.arm(name))
    }

    /// Where this arm may write. What an interrupted attempt left is there; what is there at the end is what
    /// [`Self::arm`] gives others. Directories that end in `.train` are gone by then.
    pub fn dir(&self) -> &Path {
        &self.context.work_dir
    }
}

/// The stage of an arm at a seed.
pub(super) fn stage_name(arm: &str, seed: u64) -> String {
    format!("{arm}.s{seed}")
}

pub(super) fn outcome_path(dir: &Path) -> PathBuf {
    dir.join(OUTCOME)
}

pub(super) fn read_outcome(dir: &Path) -> Result<Outcome, MethodError> {
    let path = outcome_path(dir);
    serde_json::from_slice(&files::read(&path)?)
        .map_err(|error| MethodError::Artifact { path, reason: error.to_string() })
}
