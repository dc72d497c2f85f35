//! A model of this machine, as commands that ask it for text want it.

use super::model::locate;
use crate::cli::{Global, PrecisionOption};
use crate::output::{Output, usage};
use burn::tensor::Device;
use didact_core::hash::{Digest, Hasher, hash_dir};
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalModel};
use didact_kernels::Precision;
use didact_model::peft::Adapter;
use didact_model::{Checkpoint, Decoder};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// A model's files, opened and checked; its weights are not read yet.
pub(crate) struct ModelFiles {
    checkpoint: Checkpoint,
    tokenizer: Arc<Tokenizer>,
}

impl ModelFiles {
    /// Opens a model directory, a GGUF file, or a model by the name that `model pull` knows.
    pub(crate) fn open(name: &str, output: &Output) -> anyhow::Result<Self> {
        let path = locate(name, output)?;
        let checkpoint = Checkpoint::open(&path)?;
        let tokenizer = Arc::new(Tokenizer::open(&path)?);
        Ok(Self { checkpoint, tokenizer })
    }

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Of all that its text depends on: weights, tokenizer, template, and in what it computes.
    pub(crate) fn digest(&self, adapter: Option<&Path>, global: &Global) -> anyhow::Result<Digest> {
        let mut hasher = Hasher::new();
        hasher.field("weights", self.checkpoint.source_digest()?.to_string().as_bytes());
        hasher.field("tokenizer", self.tokenizer.digest()?.to_string().as_bytes());
        hasher.field("precision", precision(global).as_str().as_bytes());
        if let Some(directory) = adapter {
            hasher.field("adapter", hash_dir(directory, |_| false)?.to_string().as_bytes());
        }
        Ok(hasher.finish())
    }

    /// Reads the weights, with a LoRA adapter folded in if one is given, and packs them: as bf16 if `--precision` says so,
    /// else as f32.
    pub(crate) fn load(&self, adapter: Option<&Path>, global: &Global) -> anyhow::Result<Arc<LocalModel>> {
        let weights = if let Some(directory) = adapter {
            let adapter = Adapter::read(directory, self.checkpoint.config())?;
            let mut decoder = Decoder::load(&self.checkpoint, &Device::flex())?;
            adapter.attach(&mut decoder)?;
            EngineWeights::from_decoder(&decoder)
        } else {
            EngineWeights::from_checkpoint(&self.checkpoint)?
        };
        Ok(Arc::new(LocalModel::new(weights, Arc::clone(&self.tokenizer), precision(global))?))
    }

    /// As [`load`](Self::load), with adapters beside the weights that requests may name.
    pub(crate) fn load_beside(&self, adapters: &[NamedAdapter], global: &Global) -> anyhow::Result<Arc<LocalModel>> {
        // What is wrong with an adapter is said before the weights are read.
        for (i, NamedAdapter { name, .. }) in adapters.iter().enumerate() {
            if adapters[..i].iter().any(|other| other.name == *name) {
                let message = format!("two adapters are called `{name}`");
                return Err(usage(message, "give each a name of its own: --adapter NAME=DIR"));
            }
        }
        let read = |named: &NamedAdapter| Adapter::read(&named.directory, self.checkpoint.config());
        let read = adapters.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let weights = EngineWeights::from_checkpoint(&self.checkpoint)?;
        let mut model = LocalModel::new(weights, Arc::clone(&self.tokenizer), precision(global))?;
        for (named, adapter) in adapters.iter().zip(&read) {
            model.add_adapter(&named.name, adapter)?;
        }
        Ok(Arc::new(model))
    }
}

/// An adapter's directory and the name that requests call it by: `NAME=DIR`, or `DIR` for one named after the directory.
#[derive(Debug, Clone)]
pub(crate) struct NamedAdapter {
    pub(crate) name: String,
    /// Whether the user has named it.
    pub(crate) is_named: bool,
    directory: PathBuf,
}

impl FromStr for NamedAdapter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given = text.split_once('=');
        let (name, directory) = if let Some((name, directory)) = given {
            (name.to_owned(), PathBuf::from(directory))
        } else {
            let directory = PathBuf::from(text);
            let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
            (name.unwrap_or_else(|| text.to_owned()), directory)
        };
        if name.is_empty() || directory.as_os_str().is_empty() {
            return Err("expected DIR or NAME=DIR".to_owned());
        }
        Ok(Self { name, is_named: given.is_some(), directory })
    }
}

/// Default of `--max-cache-mib`.
pub(crate) const DEFAULT_CACHE_MIB: u64 = 2048;

/// So many MiB in bytes.
pub(crate) fn mebibytes(count: u64) -> usize {
    usize::try_from(count.saturating_mul(1 << 20)).unwrap_or(usize::MAX)
}

/// In what a model computes that is asked for text.
pub(crate) fn precision(global: &Global) -> Precision {
    match global.precision {
        Some(PrecisionOption::Bf16) => Precision::Bf16,
        _ => Precision::F32,
    }
}
