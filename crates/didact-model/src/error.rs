//! What can go wrong between a model's files and its mathematics.

use std::path::PathBuf;

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::gguf::GgufError;

/// Why a model cannot be read, built, written or used. Every variant names the file, tensor or key at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Nothing that looks like a model is at the path.
    #[error("no model at `{}`: {why}", path.display())]
    NoModel {
        /// The path given.
        path: PathBuf,
        /// What was looked for and not found.
        why: String,
    },
    /// A file that should hold JSON does not.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and cause.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration lacks a key.
    #[error("`{}`: key `{key}` is missing, which a model of type {model_type} needs", path.display())]
    MissingKey {
        /// The configuration file.
        path: PathBuf,
        /// The missing key.
        key: String,
        /// The `model_type`.
        model_type: String,
    },
    /// A configuration key has a value that cannot be right.
    #[error("`{}`: key `{key}` is {found}, expected {expected}", path.display())]
    KeyValue {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value found.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A configuration asks for something that changes results and that Didact does not do.
    #[error("`{}`: `{key}` = {value} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is supported instead.
        supported: String,
    },
    /// A safetensors file is damaged.
    #[error("`{}` is not a valid safetensors file of {size} bytes; it may be cut off or damaged", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The cause.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// An index names a shard that is not there.
    #[error("`{}` names the shard `{shard}`, which is not in the directory; tensor `{tensor}` should be in it", path.display())]
    MissingShard {
        /// The index file.
        path: PathBuf,
        /// The shard's file name.
        shard: String,
        /// The first tensor assigned to it.
        tensor: String,
    },
    /// A tensor is not in the shard that the index says, or is in two.
    #[error("`{}`: tensor `{tensor}` is {found}, but the index says {expected}", path.display())]
    ShardContent {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where it was found.
        found: String,
        /// Where the index puts it.
        expected: String,
    },
    /// A tensor's numbers are of a type that is not read.
    #[error("`{}`: tensor `{tensor}` has dtype {found}, expected one of {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype found.
        found: String,
        /// The dtypes that are read.
        expected: String,
    },
    /// A tensor's shape does not fit the configuration.
    #[error("`{}`: tensor `{tensor}` has shape {found:?}, the configuration says {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape by the configuration.
        expected: Vec<usize>,
    },
    /// Tensors that the configuration calls for are absent.
    #[error("`{}`: {missing} of {total} tensors are missing, the first is `{first}`", path.display())]
    MissingTensors {
        /// The file or directory.
        path: PathBuf,
        /// How many are missing.
        missing: usize,
        /// How many the configuration calls for.
        total: usize,
        /// The first missing one.
        first: String,
    },
    /// The file holds tensors that the configuration has no place for.
    #[error("`{}`: {count} tensors have no place in a model of type {model_type}, the first is `{first}`", path.display())]
    UnexpectedTensors {
        /// The file or directory.
        path: PathBuf,
        /// How many.
        count: usize,
        /// The first.
        first: String,
        /// The `model_type`.
        model_type: String,
    },
    /// A tensor asked for by name is not in the model.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    NoTensor {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// A weight is infinite or not a number.
    #[error("`{}`: tensor `{tensor}` holds {value} at index {index}", path.display())]
    NonFinite {
        /// The file or directory.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat index, row-major.
        index: usize,
        /// The value.
        value: f32,
    },
    /// What is being written is not what the configuration calls for.
    #[error("cannot write `{}`: {problem}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An adapter does not fit its base model or asks for something that is not done.
    #[error("adapter `{}`: {problem}", path.display())]
    Adapter {
        /// The adapter's file or directory.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A LoRA target names no linear layer of the model.
    #[error("`{target}` is no linear layer of a {model_type} model; its linear layers are {known}")]
    LoraTarget {
        /// The name given.
        target: String,
        /// The `model_type`.
        model_type: String,
        /// The layers there are.
        known: String,
    },
    /// A LoRA setting is out of range.
    #[error("lora setting `{key}` is {found}, expected {expected}")]
    LoraSetting {
        /// The setting.
        key: String,
        /// The value found.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A batch does not fit the model.
    #[error("a batch's {what} is {found}, the model expects {limit} (at most, for an id or position)")]
    BatchInput {
        /// What was looked at.
        what: &'static str,
        /// What was found.
        found: usize,
        /// What is right, or the most that is.
        limit: usize,
    },
}

impl Classify for ModelError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(e) => e.fault(),
            Self::Gguf(e) => e.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(e) => e.hint(),
            Self::Gguf(e) => e.hint(),
            Self::NoModel { .. } => Some(
                "give a directory with config.json and model.safetensors, a .gguf file, or a name that `didact model pull` knows"
                    .into(),
            ),
            Self::Safetensors { .. } | Self::MissingShard { .. } => {
                Some("compare the files' sizes and hashes with their source, and download them again".into())
            }
            _ => None,
        }
    }
}
