//! Fresh weights: for a model from scratch and for an adapter.
//!
//! Every parameter has its own random stream, named after it, so that adding one does not move the others.

use didact_core::seed::Streams;
use didact_kernels::random::{fill_normal, fill_uniform};

use crate::config::{Architecture, ModelConfig};
use crate::shapes::ParameterSpec;

/// The first values of one parameter of a model from scratch: matrices `N(0, initializer_range²)`, gains 1, biases 0.
/// GPT-2's projections into the residual stream are narrower by `√(2 · layers)`.
///
/// # Reference
/// `_init_weights` of the Python library; Radford et al., 2019 ("Language Models are Unsupervised Multitask Learners"),
/// section 2.3, for the residual projections.
pub fn initial_values(config: &ModelConfig, spec: &ParameterSpec, streams: &Streams) -> Vec<f32> {
    let mut values = vec![0.0; spec.elements()];
    if spec.shape.len() < 2 {
        if spec.name.ends_with(".weight") {
            values.fill(1.0);
        }
        return values;
    }
    let mut deviation = config.initializer_range;
    if config.model_type == Architecture::Gpt2 && spec.name.ends_with("c_proj.weight") {
        deviation /= (2.0 * config.num_hidden_layers as f64).sqrt();
    }
    fill_normal(streams.key("init", &[name_index(&spec.name)]), deviation as f32, &mut values);
    values
}

/// The first values of an adapter's `A`: uniform in `±1/√I`, as PyTorch's Kaiming-uniform with `a = √5` gives.
pub fn initial_lora_a(path: &str, rank: usize, inputs: usize, streams: &Streams) -> Vec<f32> {
    let mut values = vec![0.0; rank * inputs];
    let bound = (1.0 / (inputs as f64).sqrt()) as f32;
    fill_uniform(streams.key("init-lora", &[name_index(path)]), -bound, bound, &mut values);
    values
}

/// A number for a parameter's name (FNV-1a), the index of its stream.
fn name_index(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
