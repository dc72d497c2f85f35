//! Stages: the steps of a run, each of which reads artifacts, writes one artifact, and is skipped when nothing it depends
//! on has changed.
//!
//! A stage's **key** is the hash of its kind and version, its settings, and the keys or digests of its inputs, plus
//! precision and kernel level where bits depend on them. Work happens in `stages/NN-name.work/`, which survives a kill and
//! is handed back to the same stage; the finished directory is published as `stages/NN-name/` with an `artifact.json`.

use crate::cancel::Cancel;
use crate::fault::{Classify, Fault};
use crate::files::{self, FileError};
use crate::hash::{self, Digest, Hasher};
use crate::metrics::Metrics;
use crate::progress::Reporter;
use crate::run::RunDir;
use crate::seed::Streams;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The record of a published artifact, inside its directory.
pub const ARTIFACT: &str = "artifact.json";
/// In a work directory: the key of the stage that works there.
const KEY: &str = ".key";

/// Something a stage reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StageInput {
    /// The artifact of an earlier stage of the same run, by name.
    Stage(String),
    /// Anything else, by content: a model, a data file.
    Content {
        /// What it is, for people.
        label: String,
        /// Its content.
        digest: Digest,
    },
}

/// One step of a run.
pub trait Stage {
    /// Unique within the run; part of the directory's name.
    fn name(&self) -> &str;
    /// What kind of step it is, such as `train`.
    fn kind(&self) -> &'static str;
    /// Raised whenever the same settings and inputs give another output than before.
    fn version(&self) -> u32;
    /// Everything that the output depends on, apart from the inputs.
    fn settings(&self) -> Value;
    /// What it reads.
    fn inputs(&self) -> Vec<StageInput>;
    /// Whether the output's bits depend on precision and CPU kernel level.
    fn depends_on_arithmetic(&self) -> bool {
        true
    }
    /// Does the work, writing into `context.work_dir` only.
    ///
    /// # Errors
    /// What went wrong, or [`StageError::Cancelled`] after everything was saved.
    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError>;
}

/// What a stage is given.
pub struct StageContext<'a> {
    /// The run it belongs to.
    pub run: &'a RunDir,
    /// The stage's name.
    pub name: String,
    /// Where to write. Holds what an interrupted attempt with the same key left.
    pub work_dir: PathBuf,
    /// Randomness, independent of other stages'.
    pub streams: Streams,
    /// Asks for a stop.
    pub cancel: Cancel,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
    published: &'a BTreeMap<String, PathBuf>,
}

impl StageContext<'_> {
    /// The published directory of an earlier stage.
    ///
    /// # Panics
    /// If there is no such stage before this one: a mistake in the method, not in its use.
    pub fn input(&self, stage: &str) -> &Path {
        self.published.get(stage).unwrap_or_else(|| panic!("stage `{}` has no input `{stage}`", self.name))
    }

    /// Opens this stage's metrics; see [`Metrics::open`].
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn metrics(&self, resume_from_step: Option<u64>) -> Result<Metrics, FileError> {
        Metrics::open(self.run.root(), &self.name, resume_from_step)
    }
}

/// Why a stage ended early.
#[derive(Debug)]
#[non_exhaustive]
pub enum StageError {
    /// The user asked for a stop; everything is saved.
    Cancelled,
    /// Something went wrong.
    Failed(Box<dyn Classify>),
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("stopped; everything is saved"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

/// Transparent: the causes are those of the error inside. By hand, since [`StageError`] converts from every [`Classify`]
/// error and must therefore not be one itself.
impl std::error::Error for StageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Cancelled => None,
            Self::Failed(error) => error.source(),
        }
    }
}

impl<E: Classify> From<E> for StageError {
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error))
    }
}

impl StageError {
    /// Whose move it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Cancelled => Fault::Stopped,
            Self::Failed(error) => error.fault(),
        }
    }

    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Cancelled => None,
            Self::Failed(error) => error.hint(),
        }
    }
}

/// A published artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// The stage's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its version.
    pub version: u32,
    /// Hash of everything the output depends on.
    pub key: Digest,
    /// Hash of the output.
    pub content: Digest,
}

/// What happened to one stage of [`execute`].
#[derive(Debug, Clone, PartialEq)]
pub struct StageOutcome {
    /// Its artifact.
    pub record: StageRecord,
    /// Where that is.
    pub directory: PathBuf,
    /// Whether it was there already.
    pub is_skipped: bool,
    /// Seconds this process spent on it.
    pub seconds: f64,
}

/// Runs the stages in order, skipping those whose artifact is there already. A stage that needs another one names it as
/// an input; the order of `stages` must respect that.
///
/// # Errors
/// The first stage's error; what is finished stays.
pub fn execute(
    run: &RunDir,
    stages: &[Box<dyn Stage>],
    streams: Streams,
    cancel: &Cancel,
    reporter: &dyn Reporter,
) -> Result<Vec<StageOutcome>, StageError> {
    let mut published = BTreeMap::new();
    let mut keys = BTreeMap::new();
    let mut outcomes = Vec::with_capacity(stages.len());
    for (index, stage) in stages.iter().enumerate() {
        files::fail::point("stage.begin").map_err(FileError::at("begin stage in", run.root()))?;
        let key = key_of(stage.as_ref(), &keys, run);
        let directory = run.stage_dir(index, stage.name());
        let work_dir = with_suffix(&directory, ".work");
        let outcome = if let Some(record) = existing(&directory, &key)? {
            reporter.stage_skipped(stage.name(), "nothing it depends on has changed");
            StageOutcome { record, directory, is_skipped: true, seconds: 0.0 }
        } else {
            if cancel.is_cancelled() {
                return Err(StageError::Cancelled);
            }
            reporter.stage_started(stage.name(), index, stages.len());
            let started = Instant::now();
            prepare_work_dir(&work_dir, &key)?;
            if !is_complete(&work_dir, &key)? {
                let context = StageContext {
                    run,
                    name: stage.name().to_owned(),
                    work_dir: work_dir.clone(),
                    streams: streams.child(stage.name(), &[]),
                    cancel: cancel.clone(),
                    reporter,
                    published: &published,
                };
                stage.run(&context)?;
            }
            let record = publish(stage.as_ref(), key, &work_dir, &directory)?;
            let seconds = started.elapsed().as_secs_f64();
            reporter.stage_finished(stage.name(), seconds);
            StageOutcome { record, directory, is_skipped: false, seconds }
        };
        files::fail::point("stage.end").map_err(FileError::at("end stage in", run.root()))?;
        keys.insert(stage.name().to_owned(), outcome.record.key);
        published.insert(stage.name().to_owned(), outcome.directory.clone());
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Which stages would be skipped, without running any: for `--dry-run`.
///
/// # Errors
/// When an artifact's record cannot be read.
pub fn preview(run: &RunDir, stages: &[Box<dyn Stage>]) -> Result<Vec<(String, bool)>, FileError> {
    let mut keys = BTreeMap::new();
    let mut rows = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let key = key_of(stage.as_ref(), &keys, run);
        let is_there = existing(&run.stage_dir(index, stage.name()), &key)?.is_some();
        keys.insert(stage.name().to_owned(), key);
        rows.push((stage.name().to_owned(), is_there));
    }
    Ok(rows)
}

fn key_of(stage: &dyn Stage, keys: &BTreeMap<String, Digest>, run: &RunDir) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field("kind", stage.kind().as_bytes());
    hasher.field("version", &stage.version().to_le_bytes());
    hasher.field("settings", hash::hash_json(&stage.settings()).to_string().as_bytes());
    for input in stage.inputs() {
        match input {
            StageInput::Stage(name) => {
                let key =
                    keys.get(&name).unwrap_or_else(|| panic!("stage `{}` needs `{name}` before it", stage.name()));
                hasher.field("stage", key.to_string().as_bytes());
            }
            StageInput::Content { digest, .. } => {
                hasher.field("content", digest.to_string().as_bytes());
            }
        }
    }
    hasher.field("seed", &run.identity().seed.to_le_bytes());
    if stage.depends_on_arithmetic() {
        hasher.field("precision", run.identity().environment.precision.as_bytes());
        hasher.field("cpu", run.identity().environment.cpu_level.as_bytes());
    }
    hasher.finish()
}

/// The record of the artifact in `directory`, if it is this stage's.
fn existing(directory: &Path, key: &Digest) -> Result<Option<StageRecord>, FileError> {
    let path = directory.join(ARTIFACT);
    if !path.is_file() {
        return Ok(None);
    }
    // A record that does not parse belongs to another version of this program: the stage is done again.
    let record: Option<StageRecord> = serde_json::from_slice(&files::read(&path)?).ok();
    Ok(record.filter(|record| record.key == *key))
}

fn prepare_work_dir(work_dir: &Path, key: &Digest) -> Result<(), FileError> {
    let path = work_dir.join(KEY);
    if path.is_file() && files::read_to_string(&path)? == key.to_string() {
        return files::sweep(work_dir);
    }
    files::discard_dir(work_dir)?;
    files::create_dir_all(work_dir)?;
    files::write_atomic(&path, key.to_string().as_bytes())
}

/// Whether an earlier process finished the work and died before it was published.
fn is_complete(work_dir: &Path, key: &Digest) -> Result<bool, FileError> {
    match existing(work_dir, key)? {
        Some(record) => Ok(content_of(work_dir)? == record.content),
        None => Ok(false),
    }
}

fn content_of(directory: &Path) -> Result<Digest, FileError> {
    hash::hash_dir(directory, |path| path == Path::new(KEY) || path == Path::new(ARTIFACT))
}

fn publish(stage: &dyn Stage, key: Digest, work_dir: &Path, directory: &Path) -> Result<StageRecord, FileError> {
    let record = StageRecord {
        name: stage.name().to_owned(),
        kind: stage.kind().to_owned(),
        version: stage.version(),
        key,
        content: content_of(work_dir)?,
    };
    let json = serde_json::to_vec_pretty(&record).expect("a record is plain data");
    files::write_atomic(work_dir.join(ARTIFACT), &json)?;
    files::fail::point("stage.before_publish").map_err(FileError::at("publish", directory))?;
    files::discard_dir(directory)?;
    files::publish_dir(work_dir, directory)?;
    Ok(record)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests;
