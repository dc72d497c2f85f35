//! The tensors that an engine is built from.

use crate::error::InferError;
use didact_core::seed::Streams;
use didact_model::init::initial_values;
use didact_model::{Checkpoint, Decoder, ModelConfig, expected_parameters};
use std::collections::BTreeMap;

/// A model's configuration and its tensors in f32, by Hugging Face's names.
#[derive(Debug, Clone)]
pub struct EngineWeights {
    config: ModelConfig,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl EngineWeights {
    /// A copy of a decoder's weights as they are now, with an adapter folded in.
    pub fn from_decoder(decoder: &Decoder) -> Self {
        let tensors = decoder.merged().map(|(name, shape, values)| (name, (shape, values))).collect();
        Self { config: decoder.config().clone(), tensors }
    }

    /// The weights of a model on disk, without building a decoder first.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self, InferError> {
        let config = checkpoint.config().clone();
        let mut tensors = BTreeMap::new();
        for spec in expected_parameters(&config) {
            let values = checkpoint.tensor_f32(&spec.name)?;
            tensors.insert(spec.name, (spec.shape, values));
        }
        Ok(Self { config, tensors })
    }

    /// Fresh weights, as a model from scratch begins.
    pub fn init(config: &ModelConfig, streams: &Streams) -> Self {
        let tensors = expected_parameters(config).into_iter().map(|spec| {
            let values = initial_values(config, &spec, streams);
            (spec.name, (spec.shape, values))
        });
        Self { config: config.clone(), tensors: tensors.collect() }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A tensor's values, to change before an engine is built.
    pub fn tensor_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        self.tensors.get_mut(name).map(|(_, values)| &mut values[..])
    }

    /// Gives up a tensor.
    ///
    /// # Panics
    /// If it is not there or was taken before: both sources hold all of [`expected_parameters`].
    pub(crate) fn take(&mut self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.tensors.remove(name).unwrap_or_else(|| panic!("the model has no tensor `{name}`"))
    }

    /// Gives up a tensor that not every model has.
    pub(crate) fn take_optional(&mut self, name: &str) -> Option<Vec<f32>> {
        self.tensors.remove(name).map(|(_, values)| values)
    }
}
