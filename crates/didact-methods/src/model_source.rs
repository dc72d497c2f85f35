//! The model of a recipe, wherever it comes from.

use crate::env::Env;
use crate::error::MethodError;
use crate::recipe::{ModelSource, PrecisionChoice};
use burn::tensor::Device;
use didact_core::hash::{Digest, Hasher, hash_json};
use didact_core::seed::Streams;
use didact_data::tokenizer::Tokenizer;
use didact_kernels::{Level, Precision};
use didact_model::peft::Adapter;
use didact_model::{Checkpoint, Decoder, DeviceError, DeviceName, ModelConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that is found and understood but not loaded.
#[derive(Debug, Clone)]
pub struct ModelHandle {
    name: String,
    origin: Origin,
    config: ModelConfig,
    tokenizer: Arc<Tokenizer>,
    tokenizer_digest: Digest,
    precision: Precision,
    device: Device,
    seed: u64,
    digest: Digest,
}

#[derive(Debug, Clone)]
enum Origin {
    Files(PathBuf),
    Scratch,
}

impl ModelHandle {
    /// Finds the model: a path that exists, else a name that the program knows how to get, or a configuration.
    ///
    /// # Errors
    /// When there is no such model, or its configuration or tokenizer cannot be used.
    pub fn open(
        source: &ModelSource,
        precision: PrecisionChoice,
        seed: u64,
        env: &Env<'_>,
    ) -> Result<Self, MethodError> {
        let device = env.device.open()?;
        let precision = resolve_precision(precision, env.device)?;
        if let Some(name) = &source.path {
            let path = if Path::new(name).exists() {
                PathBuf::from(name)
            } else {
                (env.resolve_model)(name).map_err(|cause| MethodError::Resolve { name: name.clone(), cause })?
            };
            let checkpoint = Checkpoint::open(&path)?;
            let tokenizer = Arc::new(Tokenizer::open(&path)?);
            let config = checkpoint.config().clone();
            let digest = checkpoint.source_digest()?;
            let origin = Origin::Files(path);
            let tokenizer_digest = tokenizer.digest()?;
            return Ok(Self {
                name: name.clone(),
                origin,
                config,
                tokenizer,
                tokenizer_digest,
                precision,
                device,
                seed,
                digest,
            });
        }
        let map = source.config.clone().unwrap_or_default();
        let mut hasher = Hasher::new();
        hasher.field("config", hash_json(&Value::Object(map.clone())).to_string().as_bytes());
        let config = ModelConfig::from_value(Path::new("model.config"), map)?;
        let tokenizer = Arc::new(Tokenizer::open(Path::new(source.tokenizer.as_deref().unwrap_or_default()))?);
        let tokenizer_digest = tokenizer.digest()?;
        hasher.field("tokenizer", tokenizer_digest.to_string().as_bytes());
        let (name, origin, digest) = ("from scratch".into(), Origin::Scratch, hasher.finish());
        Ok(Self { name, origin, config, tokenizer, tokenizer_digest, precision, device, seed, digest })
    }

    /// As the recipe names it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are; `None` for a model from scratch.
    pub fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Files(path) => Some(path),
            Origin::Scratch => None,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Hash of its tokenizer and template.
    pub fn tokenizer_digest(&self) -> Digest {
        self.tokenizer_digest
    }

    /// Arithmetic of matrix products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Hash of everything it is made from.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Loads it, or draws it from the seed.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn decoder(&self) -> Result<Decoder, MethodError> {
        let mut decoder = match &self.origin {
            Origin::Files(path) => Decoder::load(&Checkpoint::open(path)?, &self.device)?,
            Origin::Scratch => Decoder::init(&self.config, &Streams::new(self.seed).child("model", &[]), &self.device),
        };
        decoder.set_precision(self.precision);
        Ok(decoder)
    }

    /// Loads it as training left it in the artifact of a `train` stage.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn trained(&self, artifact: &Path) -> Result<Decoder, MethodError> {
        let adapter = artifact.join(crate::stages::train::ADAPTER);
        if adapter.is_dir() {
            let mut decoder = self.decoder()?;
            Adapter::read(&adapter, &self.config)?.attach(&mut decoder)?;
            return Ok(decoder);
        }
        let checkpoint = Checkpoint::open(artifact.join(crate::stages::train::MODEL))?;
        let mut decoder = Decoder::load(&checkpoint, &self.device)?;
        decoder.set_precision(self.precision);
        Ok(decoder)
    }
}

/// What `auto` means on this machine; other devices than the CPU know f32 only.
fn resolve_precision(choice: PrecisionChoice, device: DeviceName) -> Result<Precision, DeviceError> {
    match choice {
        PrecisionChoice::Bf16 if !device.is_cpu() => Err(DeviceError::Precision { name: device }),
        PrecisionChoice::Bf16 => Ok(Precision::Bf16),
        PrecisionChoice::Auto if device.is_cpu() && didact_kernels::level() == Level::Avx512Bf16 => Ok(Precision::Bf16),
        PrecisionChoice::F32 | PrecisionChoice::Auto => Ok(Precision::F32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_devices_compute_in_f32() {
        let gpu: DeviceName = "cuda:1".parse().expect("a device's name");
        assert_eq!(resolve_precision(PrecisionChoice::Auto, gpu), Ok(Precision::F32));
        assert_eq!(resolve_precision(PrecisionChoice::Bf16, gpu), Err(DeviceError::Precision { name: gpu }));
        assert_eq!(resolve_precision(PrecisionChoice::Bf16, DeviceName::default()), Ok(Precision::Bf16));
    }
}
