//! A model of this machine, as commands that ask it for text want it.

use super::model::locate;
use crate::cli::{Global, PrecisionOption};
use crate::output::Output;
use burn::tensor::Device;
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalModel};
use didact_kernels::Precision;
use didact_model::{Checkpoint, Decoder};
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

    /// Reads the weights and packs them, as bf16 if `--precision` says so, else as f32.
    pub(crate) fn load(&self, global: &Global) -> anyhow::Result<Arc<LocalModel>> {
        let decoder = Decoder::load(&self.checkpoint, &Device::flex())?;
        let weights = EngineWeights::from_decoder(&decoder);
        drop(decoder);
        Ok(Arc::new(LocalModel::new(weights, Arc::clone(&self.tokenizer), precision(global))?))
    }
}

/// In what a model computes that is asked for text.
pub(crate) fn precision(global: &Global) -> Precision {
    match global.precision {
        Some(PrecisionOption::Bf16) => Precision::Bf16,
        _ => Precision::F32,
    }
}
