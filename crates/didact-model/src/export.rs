//! Models out: a directory in Hugging Face's layout that the Python libraries load unchanged.
//!
//! Tensors are written as they come, each at its place, so that no more than one is in memory at a time.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use didact_core::files::{self, AtomicFile};
use serde_json::{Map, Value, json};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::shapes::{ParameterSpec, expected_parameters};
use crate::weights::Dtype;

/// Largest shard, in bytes of tensor data, as in the Python library.
const SHARD_BYTES: u64 = 5_000_000_000;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Names of the weights files.
    pub files: Vec<String>,
}

/// Writes `config.json`, `generation_config.json` and `model.safetensors` (above 5 GB: shards and their index) into
/// `dir`, which is made if absent. Each file appears only when complete, `config.json` last, so that a directory that
/// was not finished is not taken for a model.
///
/// `tensors` yields (name, shape, numbers) for every parameter of the configuration, in any order; numbers are rounded
/// to `dtype` (nearest, ties to even).
///
/// # Errors
/// [`ModelError::Write`] if a tensor is missing, not part of the model, of the wrong shape, given twice, or holds a
/// number that is not finite in `dtype`; [`ModelError::File`] if writing fails.
pub fn save_model(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, Vec<f32>)>,
    dtype: Dtype,
) -> Result<Written, ModelError> {
    save_sharded(dir, config, tensors.into_iter().map(Ok), dtype, SHARD_BYTES)
}

/// As [`save_model`], for tensors whose reading may fail.
///
/// # Errors
/// As [`save_model`], or the first error of the iterator.
pub fn try_save_model(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = Result<(String, Vec<usize>, Vec<f32>), ModelError>>,
    dtype: Dtype,
) -> Result<Written, ModelError> {
    save_sharded(dir, config, tensors, dtype, SHARD_BYTES)
}

pub(crate) fn save_sharded(
    dir: &Path,
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = Result<(String, Vec<usize>, Vec<f32>), ModelError>>,
    dtype: Dtype,
    shard_bytes: u64,
) -> Result<Written, ModelError> {
    let expected = expected_parameters(config);
    let shards = plan(&expected, dtype, shard_bytes);
    let problem = |problem: String| ModelError::Write { path: dir.to_owned(), problem };
    files::create_dir_all(dir)?;
    let mut place: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (s, shard) in shards.iter().enumerate() {
        for (p, spec) in shard.iter().enumerate() {
            place.insert(&spec.name, (s, p));
        }
    }
    let names = shard_names(shards.len());
    let mut writers = Vec::with_capacity(shards.len());
    for (shard, name) in shards.iter().zip(&names) {
        writers.push(TensorWriter::create(&dir.join(name), shard, dtype, &[("format", "pt")])?);
    }
    for item in tensors {
        let (name, shape, values) = item?;
        let Some(&(s, p)) = place.get(name.as_str()) else {
            return Err(problem(format!("`{name}` is no parameter of a {} model", config.model_type.model_type())));
        };
        writers[s].write(p, &shape, &values)?;
    }
    let mut bytes = 0;
    for writer in writers {
        bytes += writer.finish()?;
    }
    if shards.len() > 1 {
        let mut map = Map::new();
        for (shard, name) in shards.iter().zip(&names) {
            map.extend(shard.iter().map(|spec| (spec.name.clone(), json!(name))));
        }
        let total: u64 = expected.iter().map(|p| (p.elements() * dtype.bytes()) as u64).sum();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        bytes += write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    bytes += write_json(&dir.join("generation_config.json"), &generation_config(config))?;
    let mut config = config.clone();
    config.state_dtype(dtype.torch_name());
    bytes += write_json(&dir.join("config.json"), &config.to_json())?;
    Ok(Written { tensors: expected.len(), bytes, files: names })
}

/// Distributes the parameters, in order, over as few files of at most `shard_bytes` as that order allows.
fn plan(expected: &[ParameterSpec], dtype: Dtype, shard_bytes: u64) -> Vec<Vec<ParameterSpec>> {
    let mut shards: Vec<Vec<ParameterSpec>> = vec![Vec::new()];
    let mut filled = 0u64;
    for spec in expected {
        let bytes = (spec.elements() * dtype.bytes()) as u64;
        if filled > 0 && filled + bytes > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("there is at least one").push(spec.clone());
    }
    shards
}

fn shard_names(count: usize) -> Vec<String> {
    if count == 1 {
        return vec!["model.safetensors".into()];
    }
    (1..=count).map(|i| format!("model-{i:05}-of-{count:05}.safetensors")).collect()
}

/// What `transformers` would write for a model of this configuration.
fn generation_config(config: &ModelConfig) -> Value {
    let mut out = Map::new();
    out.insert("_from_model_config".into(), json!(true));
    if let Some(id) = config.bos_token_id {
        out.insert("bos_token_id".into(), json!(id));
    }
    match config.eos_token_ids.as_slice() {
        [] => {}
        [one] => drop(out.insert("eos_token_id".into(), json!(one))),
        many => drop(out.insert("eos_token_id".into(), json!(many))),
    }
    if let Some(id) = config.pad_token_id {
        out.insert("pad_token_id".into(), json!(id));
    }
    Value::Object(out)
}

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<u64, ModelError> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    files::write_atomic(path, text.as_bytes())?;
    Ok(text.len() as u64)
}

/// Writes one safetensors file whose tensors are known beforehand and arrive in any order.
pub(crate) struct TensorWriter {
    path: PathBuf,
    file: AtomicFile,
    specs: Vec<ParameterSpec>,
    offsets: Vec<u64>,
    done: Vec<bool>,
    dtype: Dtype,
    size: u64,
}

impl TensorWriter {
    pub(crate) fn create(
        path: &Path,
        specs: &[ParameterSpec],
        dtype: Dtype,
        metadata: &[(&str, &str)],
    ) -> Result<Self, ModelError> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            let map: Map<String, Value> = metadata.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
            header.insert("__metadata__".into(), Value::Object(map));
        }
        let mut offsets = Vec::with_capacity(specs.len());
        let mut at = 0u64;
        for spec in specs {
            offsets.push(at);
            let end = at + (spec.elements() * dtype.bytes()) as u64;
            let entry = json!({ "dtype": dtype.name(), "shape": spec.shape, "data_offsets": [at, end] });
            header.insert(spec.name.clone(), entry);
            at = end;
        }
        let mut text = serde_json::to_vec(&Value::Object(header)).expect("a JSON value can be written");
        // The data section starts at a multiple of eight, which other readers rely on for alignment.
        text.resize(text.len().next_multiple_of(8), b' ');
        let start = 8 + text.len() as u64;
        let offsets = offsets.into_iter().map(|o| o + start).collect();
        let mut this = Self {
            path: path.to_owned(),
            file: AtomicFile::create(path)?,
            specs: specs.to_vec(),
            offsets,
            done: vec![false; specs.len()],
            dtype,
            size: start + at,
        };
        let prefix = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        this.put(0, &prefix)?;
        Ok(this)
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ModelError> {
        let written = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        Ok(written.map_err(files::FileError::at("write", &self.path))?)
    }

    /// Writes tensor number `index` of the list given at creation.
    pub(crate) fn write(&mut self, index: usize, shape: &[usize], values: &[f32]) -> Result<(), ModelError> {
        let spec = &self.specs[index];
        let problem = |problem: String| Err(ModelError::Write { path: self.path.clone(), problem });
        if spec.shape != shape || spec.elements() != values.len() {
            return problem(format!(
                "tensor `{}` has shape {shape:?} and {} numbers, expected shape {:?}",
                spec.name,
                values.len(),
                spec.shape
            ));
        }
        if self.done[index] {
            return problem(format!("tensor `{}` was given twice", spec.name));
        }
        let limit = self.dtype.overflow_at();
        if let Some(i) = values.iter().position(|x| !x.is_finite() || limit.is_some_and(|l| x.abs() >= l)) {
            return problem(format!(
                "tensor `{}` holds {} at index {i}, which is not a finite number in {}",
                spec.name, values[i], self.dtype
            ));
        }
        let bytes = self.dtype.encode(values);
        self.put(self.offsets[index], &bytes)?;
        self.done[index] = true;
        Ok(())
    }

    /// Publishes the file; returns its size in bytes.
    pub(crate) fn finish(self) -> Result<u64, ModelError> {
        let missing: Vec<_> = self.specs.iter().zip(&self.done).filter(|(_, done)| !**done).collect();
        if let Some((first, _)) = missing.first() {
            let problem = format!("{} tensors were not given, the first is `{}`", missing.len(), first.name);
            return Err(ModelError::Write { path: self.path, problem });
        }
        self.file.commit()?;
        Ok(self.size)
    }
}
