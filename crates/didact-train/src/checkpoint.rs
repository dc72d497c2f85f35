//! Checkpoints: everything that training needs to go on from a step as if it had never stopped.
//!
//! ```text
//! checkpoint-<step>/
//!   model.safetensors      trainable parameters
//!   optimizer.safetensors  <parameter>.exp_avg and <parameter>.exp_avg_sq, PyTorch's names for Adam's moments
//!   state.json             the rest, with digests of the two files and of itself
//! ```
//!
//! The directory is written under a temporary name, synced, and renamed: it is there whole or not at all. Digests find
//! what happens to it later; a damaged checkpoint is passed over and the one before it used. There is no `config.json`
//! in it, so that no loader takes it for a finished model.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use didact_core::files::{self, AtomicFile, FileError};
use didact_core::hash::{self, Digest};
use didact_core::mmap::Mmap;
use didact_core::progress::{Level, Reporter};
use didact_data::curriculum::CurriculumState;
use didact_model::ParameterSet;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::TrainError;
use crate::evaluate::EvalLoss;
use crate::optimizer::AdamW;

/// Version of the layout; raised when an older program could not read it.
pub const FORMAT: u32 = 2;

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const PREFIX: &str = "checkpoint-";
/// Prefix of a checkpoint that is being written.
const UNFINISHED: &str = ".unfinished-checkpoint-";

/// An evaluation and the step after which it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// What was measured, over all sets.
    pub loss: EvalLoss,
    /// The same of each set by its name.
    pub sets: BTreeMap<String, EvalLoss>,
}

/// What was read of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolTotals {
    /// Rows.
    pub rows: u64,
    /// Their targets.
    pub targets: u64,
    /// Targets since shares were last recorded.
    pub since: u64,
}

/// Sums over the steps done so far.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens, padding left out.
    pub tokens: u64,
    /// Tokens with a weight.
    pub trained_tokens: u64,
    /// Weight.
    pub weight: f64,
    /// Weight since the epoch began.
    pub epoch_weight: f64,
    /// Updates skipped because no token of the step had a weight.
    pub empty_steps: u64,
}

/// Where training stands.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Updates done: steps without the empty ones.
    pub updates: u64,
    /// Sums.
    pub totals: Totals,
    /// Mean loss of the first step that had one, nats per unit of weight.
    pub first_loss: Option<f64>,
    /// Mean losses of the last steps, oldest first.
    pub recent_losses: Vec<f64>,
    /// Evaluations made.
    pub evaluations: Vec<Evaluation>,
    /// The best of them: the earliest of the lowest loss.
    pub best: Option<Evaluation>,
    /// Steps of the checkpoints that belong to the plan and are kept.
    pub kept: Vec<u64>,
    /// State of each hook by name.
    pub hooks: BTreeMap<String, Value>,
    /// Where the curriculum stands, if there is one.
    pub curriculum: Option<CurriculumState>,
    /// What the curriculum read of each pool, by the pool's name.
    pub pools: BTreeMap<String, PoolTotals>,
    /// The curriculum's weights as last recorded.
    pub weights: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    files: BTreeMap<String, Digest>,
    state: State,
}

/// The directory in which a training stage keeps its checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    root: PathBuf,
}

impl CheckpointStore {
    /// Checkpoints below `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where the checkpoint of a step is.
    pub fn path(&self, step: u64) -> PathBuf {
        self.root.join(format!("{PREFIX}{step}"))
    }

    /// Steps of all checkpoints there, ascending.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn steps(&self) -> Result<Vec<u64>, FileError> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let entries = files::list_dir(&self.root)?;
        let mut steps: Vec<u64> = entries.iter().filter_map(|path| step_of(path)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Saves a checkpoint. It appears whole, or not at all.
    ///
    /// # Errors
    /// When a file operation fails; older checkpoints are untouched.
    pub fn save(&self, state: &State, parameters: &ParameterSet, optimizer: &AdamW) -> Result<(), FileError> {
        let path = self.path(state.step);
        let point = |name: &str| files::fail::point(name).map_err(FileError::at("save checkpoint", &path));
        point("checkpoint.begin")?;
        let work = self.root.join(format!("{UNFINISHED}{}", state.step));
        files::remove_dir_all(&work)?;
        files::create_dir_all(&work)?;

        let ids: Vec<_> = parameters.trainable().map(|(id, parameter)| (id, parameter.shape())).collect();
        let names: Vec<_> = parameters.trainable().map(|(_, parameter)| parameter.name().to_owned()).collect();
        let model: Vec<_> = names.iter().cloned().zip(ids.iter().map(|(_, shape)| shape.clone())).collect();
        let model_digest =
            write_tensors(&work.join(MODEL), &model, |index, sink| parameters.with_data(ids[index].0, sink))?;

        let moments = optimizer.moments();
        let listed: Vec<_> = moments
            .iter()
            .flat_map(|m| [first_name(m.name()), second_name(m.name())].map(|name| (name, m.shape().to_vec())))
            .collect();
        let optimizer_digest = write_tensors(&work.join(OPTIMIZER), &listed, |index, sink| {
            let of = &moments[index / 2];
            sink(if index % 2 == 0 { of.first() } else { of.second() });
        })?;

        let files = BTreeMap::from([(MODEL.to_owned(), model_digest), (OPTIMIZER.to_owned(), optimizer_digest)]);
        let written = Written { format: FORMAT, files, state: state.clone() };
        let content = serde_json::to_value(&written).expect("plain data");
        let sealed = json!({"digest": hash::hash_json(&content), "content": content});
        files::write_atomic(work.join(STATE), &serde_json::to_vec_pretty(&sealed).expect("plain data"))?;

        point("checkpoint.before_publish")?;
        // Only a damaged checkpoint that was passed over can be in the way.
        files::remove_dir_all(&path)?;
        files::publish_dir(&work, &path)?;
        point("checkpoint.after_publish")
    }

    /// Restores the newest intact checkpoint, if there is one. Damaged ones are passed over, each with a message.
    ///
    /// # Errors
    /// When the directory cannot be listed or cleaned.
    pub fn restore_newest(
        &self,
        parameters: &mut ParameterSet,
        optimizer: &mut AdamW,
        reporter: &dyn Reporter,
    ) -> Result<Option<State>, FileError> {
        self.remove_unfinished()?;
        for step in self.steps()?.into_iter().rev() {
            match self.open(step) {
                Ok(checkpoint) => match checkpoint.restore(parameters, optimizer) {
                    Ok(state) => return Ok(Some(state)),
                    Err(error) => passed_over(reporter, &error),
                },
                Err(error) => passed_over(reporter, &error),
            }
        }
        Ok(None)
    }

    /// Restores the parameters of one checkpoint, leaving the optimiser alone.
    ///
    /// # Errors
    /// When it is not there, damaged, or of another model.
    pub fn restore_parameters(&self, step: u64, parameters: &mut ParameterSet) -> Result<State, TrainError> {
        let checkpoint = self.open(step)?;
        let model = checkpoint.file(MODEL)?;
        let tensors = checkpoint.tensors(MODEL, &model)?;
        let values = checkpoint.values(&tensors, MODEL, &expected_parameters(parameters))?;
        copy_parameters(parameters, &values);
        Ok(checkpoint.written.state)
    }

    /// Removes every checkpoint whose step is not in `kept`.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn retain(&self, kept: &[u64]) -> Result<(), FileError> {
        for step in self.steps()? {
            if !kept.contains(&step) {
                files::remove_dir_all(self.path(step))?;
            }
        }
        Ok(())
    }

    /// Removes what a killed process was writing.
    fn remove_unfinished(&self) -> Result<(), FileError> {
        if !self.root.is_dir() {
            return Ok(());
        }
        for entry in files::list_dir(&self.root)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(UNFINISHED) {
                files::remove_dir_all(&entry)?;
            }
        }
        Ok(())
    }

    /// Reads a checkpoint's state and checks its digest.
    fn open(&self, step: u64) -> Result<Opened, TrainError> {
        let directory = self.path(step);
        let path = directory.join(STATE);
        let damaged = |reason: String| TrainError::Checkpoint { path: path.clone(), reason };
        let sealed: Value = serde_json::from_slice(&files::read(&path)?)
            .map_err(|error| damaged(format!("it is not JSON: {error}")))?;
        let content = sealed.get("content").cloned().unwrap_or_default();
        let stated = sealed.get("digest").and_then(Value::as_str).unwrap_or_default();
        if hash::hash_json(&content).to_string() != stated {
            return Err(damaged("its content does not fit its digest".to_owned()));
        }
        let format = content.get("format").and_then(Value::as_u64).unwrap_or_default();
        if format != u64::from(FORMAT) {
            return Err(damaged(format!("it has format {format}, this program reads {FORMAT}")));
        }
        let written: Written = serde_json::from_value(content).map_err(|error| damaged(error.to_string()))?;
        if written.state.step != step {
            return Err(damaged(format!("it is of step {}", written.state.step)));
        }
        Ok(Opened { directory, written })
    }
}

/// A checkpoint whose state is intact.
struct Opened {
    directory: PathBuf,
    written: Written,
}

/// Name and shape of a tensor.
type Listed = (String, Vec<usize>);

impl Opened {
    fn damaged(&self, file: &str, reason: String) -> TrainError {
        TrainError::Checkpoint { path: self.directory.join(file), reason }
    }

    /// Maps a file and compares its digest.
    fn file(&self, name: &str) -> Result<Mmap, TrainError> {
        let data = Mmap::open(self.directory.join(name))?;
        let Some(expected) = self.written.files.get(name) else {
            return Err(self.damaged(name, format!("{STATE} does not list it")));
        };
        if hash::hash_bytes(&data) != *expected {
            return Err(self.damaged(name, "its content does not fit its digest".to_owned()));
        }
        Ok(data)
    }

    fn tensors<'a>(&self, name: &str, data: &'a Mmap) -> Result<SafeTensors<'a>, TrainError> {
        SafeTensors::deserialize(data).map_err(|error| self.damaged(name, error.to_string()))
    }

    /// The bytes of exactly these tensors, in this order.
    fn values<'a>(
        &self,
        tensors: &SafeTensors<'a>,
        file: &str,
        listed: &[Listed],
    ) -> Result<Vec<&'a [u8]>, TrainError> {
        if tensors.len() != listed.len() {
            let reason = format!("it has {} tensors, the model trains {}", tensors.len(), listed.len());
            return Err(self.damaged(file, reason));
        }
        let mut values = Vec::with_capacity(listed.len());
        for (name, shape) in listed {
            let tensor = tensors.tensor(name).map_err(|error| self.damaged(file, format!("`{name}`: {error}")))?;
            if tensor.shape() != shape.as_slice() || tensor.dtype() != safetensors::Dtype::F32 {
                let (found, kind) = (tensor.shape(), tensor.dtype());
                let reason = format!("`{name}` has shape {found:?} of {kind:?}, the model expects {shape:?} of F32");
                return Err(self.damaged(file, reason));
            }
            values.push(tensor.data());
        }
        Ok(values)
    }

    /// Checks everything, then takes it over.
    fn restore(self, parameters: &mut ParameterSet, optimizer: &mut AdamW) -> Result<State, TrainError> {
        let (model, moments) = (self.file(MODEL)?, self.file(OPTIMIZER)?);
        let (model, moments) = (self.tensors(MODEL, &model)?, self.tensors(OPTIMIZER, &moments)?);
        let listed: Vec<Listed> = optimizer
            .moments()
            .iter()
            .flat_map(|m| [first_name(m.name()), second_name(m.name())].map(|name| (name, m.shape().to_vec())))
            .collect();
        let model = self.values(&model, MODEL, &expected_parameters(parameters))?;
        let moments = self.values(&moments, OPTIMIZER, &listed)?;
        copy_parameters(parameters, &model);
        for (to, from) in optimizer.restore(self.written.state.updates).iter_mut().zip(moments.chunks_exact(2)) {
            let (first, second) = to.both_mut();
            decode(from[0], first);
            decode(from[1], second);
        }
        Ok(self.written.state)
    }
}

fn passed_over(reporter: &dyn Reporter, error: &TrainError) {
    reporter.message(Level::Warning, &format!("checkpoint passed over: {error}"));
}

fn expected_parameters(parameters: &ParameterSet) -> Vec<Listed> {
    parameters.trainable().map(|(_, parameter)| (parameter.name().to_owned(), parameter.shape())).collect()
}

fn copy_parameters(parameters: &mut ParameterSet, values: &[&[u8]]) {
    let ids: Vec<_> = parameters.trainable().map(|(id, _)| id).collect();
    for (id, bytes) in ids.into_iter().zip(values) {
        parameters.data_mut(id, |data| decode(bytes, data));
    }
}

fn decode(bytes: &[u8], into: &mut [f32]) {
    for (value, bytes) in into.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

fn first_name(parameter: &str) -> String {
    format!("{parameter}.exp_avg")
}

fn second_name(parameter: &str) -> String {
    format!("{parameter}.exp_avg_sq")
}

fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Writes f32 tensors in the order given, one at a time, and returns the file's digest. `with` hands the numbers of the
/// tensor at an index to the sink.
fn write_tensors(
    path: &Path,
    tensors: &[Listed],
    mut with: impl FnMut(usize, &mut dyn FnMut(&[f32])),
) -> Result<Digest, FileError> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The format wants the numbers aligned to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut file = AtomicFile::create(path)?;
    let at = || FileError::at("write", path);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(at())?;
    file.write_all(&header).map_err(at())?;
    let mut bytes = Vec::with_capacity(CHUNK * 4);
    for index in 0..tensors.len() {
        let mut result = Ok(());
        with(index, &mut |values: &[f32]| {
            for chunk in values.chunks(CHUNK) {
                bytes.clear();
                bytes.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
                if result.is_ok() {
                    result = file.write_all(&bytes);
                }
            }
        });
        result.map_err(at())?;
    }
    file.commit()?;
    hash::hash_file(path)
}

/// Numbers turned into bytes at a time.
const CHUNK: usize = 1 << 14;
