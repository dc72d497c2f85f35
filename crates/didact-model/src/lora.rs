//! Low-rank adaptation: which layers get a branch, how it starts, and how it is folded into the weights.
//!
//! `W + s · B · A` with `A [R, I]`, `B [O, R]` and `s = alpha / R`, or `alpha / √R` for rank-stabilised LoRA.
//!
//! # Reference
//! Hu et al., 2021, arXiv:2106.09685; Kalajdzievski, 2023, arXiv:2312.03732. Names, start values and the choice of
//! layers are PEFT's.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::error::ModelError;
use crate::ops::WeightLayout;
use crate::parameters::ParameterId;
use crate::shapes::expected_parameters;

/// Which linear layers get a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum TargetModules {
    /// Every linear layer of the blocks (`"all-linear"`), not the output projection.
    AllLinear,
    /// The layers whose path is one of these or ends in `.` and one of these.
    Named(Vec<String>),
}

/// How [`TargetModules`] is written: one name or a list.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Many(Vec<String>),
}

impl From<Written> for TargetModules {
    fn from(written: Written) -> Self {
        match written {
            Written::One(name) if name == ALL_LINEAR => Self::AllLinear,
            Written::One(name) => Self::Named(vec![name]),
            Written::Many(names) if names.iter().any(|n| n == ALL_LINEAR) => Self::AllLinear,
            Written::Many(names) => Self::Named(names),
        }
    }
}

impl From<TargetModules> for Written {
    fn from(target: TargetModules) -> Self {
        match target {
            TargetModules::AllLinear => Self::One(ALL_LINEAR.into()),
            TargetModules::Named(names) => Self::Many(names),
        }
    }
}

const ALL_LINEAR: &str = "all-linear";

/// The settings of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank, R.
    pub rank: usize,
    /// Numerator of the branch's scale.
    pub alpha: f64,
    /// Probability that an element of the branch's input is dropped while training, in `[0, 1)`.
    pub dropout: f64,
    /// The layers.
    pub target_modules: TargetModules,
    /// Scale by `alpha / √R` instead of `alpha / R`.
    pub use_rslora: bool,
}

impl LoraConfig {
    /// What the branch is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Checks ranges.
    ///
    /// # Errors
    /// [`ModelError::LoraSetting`] naming the setting.
    pub fn validate(&self) -> Result<(), ModelError> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(ModelError::LoraSetting { key: key.into(), found, expected: expected.into() })
        };
        if self.rank == 0 || self.rank > 1 << 16 {
            return refuse("rank", self.rank.to_string(), "a whole number from 1 to 65536");
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return refuse("alpha", self.alpha.to_string(), "a number above 0");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", self.dropout.to_string(), "a number from 0 up to, not including, 1");
        }
        if matches!(&self.target_modules, TargetModules::Named(names) if names.is_empty()) {
            return refuse("target_modules", "an empty list".into(), "\"all-linear\" or names of linear layers");
        }
        Ok(())
    }
}

/// A linear layer that can be adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLayer {
    /// Its path in the model, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Input size, I.
    pub inputs: usize,
    /// Output size, O.
    pub outputs: usize,
    /// How its weight lies.
    pub layout: WeightLayout,
}

/// The linear layers of the blocks, in the order of the forward pass. The embedding, learned positions and the output
/// projection are none of them.
pub fn linear_layers(config: &ModelConfig) -> Vec<LinearLayer> {
    let layout = weight_layout(config);
    expected_parameters(config)
        .into_iter()
        .filter_map(|spec| {
            let path = spec.name.strip_suffix(".weight")?;
            let in_block = path.starts_with("model.layers.") || path.starts_with("transformer.h.");
            let (true, [first, second]) = (in_block, spec.shape.as_slice()) else { return None };
            let (outputs, inputs) = match layout {
                WeightLayout::OutIn => (*first, *second),
                WeightLayout::InOut => (*second, *first),
            };
            Some(LinearLayer { path: path.to_owned(), inputs, outputs, layout })
        })
        .collect()
}

/// How the architecture keeps the weights of its blocks.
pub(crate) fn weight_layout(config: &ModelConfig) -> WeightLayout {
    match config.model_type {
        crate::config::Architecture::Gpt2 => WeightLayout::InOut,
        _ => WeightLayout::OutIn,
    }
}

/// The layers that `targets` chooses.
///
/// # Errors
/// [`ModelError::LoraTarget`] for a name that chooses none, listing the names that would.
pub fn target_layers(config: &ModelConfig, targets: &TargetModules) -> Result<Vec<LinearLayer>, ModelError> {
    let layers = linear_layers(config);
    let TargetModules::Named(names) = targets else { return Ok(layers) };
    let chooses =
        |name: &str, path: &str| path == name || path.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
    for name in names {
        if !layers.iter().any(|layer| chooses(name, &layer.path)) {
            let mut known: Vec<&str> = Vec::new();
            for layer in &layers {
                let last = layer.path.rsplit('.').next().unwrap_or(&layer.path);
                if !known.contains(&last) {
                    known.push(last);
                }
            }
            return Err(ModelError::LoraTarget {
                target: name.clone(),
                model_type: config.model_type.model_type().into(),
                known: known.join(" "),
            });
        }
    }
    Ok(layers.into_iter().filter(|layer| names.iter().any(|name| chooses(name, &layer.path))).collect())
}

/// PEFT's name for a branch's `A`.
pub fn lora_a_name(path: &str) -> String {
    format!("base_model.model.{path}.lora_A.weight")
}

/// PEFT's name for a branch's `B`.
pub fn lora_b_name(path: &str) -> String {
    format!("base_model.model.{path}.lora_B.weight")
}

/// An adapter that a decoder carries.
#[derive(Debug, Clone)]
pub struct LoraState {
    /// Its settings.
    pub config: LoraConfig,
    /// Its branches, in the order of the layers.
    pub branches: Vec<LoraBranchIds>,
}

/// Where one branch's matrices are in the decoder's parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraBranchIds {
    /// The layer's path.
    pub path: String,
    /// `A`: `[R, I]`.
    pub a: ParameterId,
    /// `B`: `[O, R]`.
    pub b: ParameterId,
}

impl LoraState {
    /// The branch of the layer at `path`.
    pub fn branch(&self, path: &str) -> Option<&LoraBranchIds> {
        self.branches.iter().find(|b| b.path == path)
    }
}

/// `w += scale · B · A` (or its transpose, as the weight lies), in full precision.
///
/// # Panics
/// If the lengths do not fit the layer and rank.
pub fn merge_branch(w: &mut [f32], a: &[f32], b: &[f32], layer: &LinearLayer, rank: usize, scale: f64) {
    use crate::ops::real::{Real, View};
    let LinearLayer { inputs, outputs, layout, .. } = *layer;
    assert_eq!(
        [w.len(), a.len(), b.len()],
        [inputs * outputs, rank * inputs, outputs * rank],
        "adapter of `{}` does not fit a layer of {inputs} inputs and {outputs} outputs at rank {rank}",
        layer.path
    );
    let b: Vec<f32> = b.iter().map(|&v| (f64::from(v) * scale) as f32).collect();
    let precision = didact_kernels::Precision::F32;
    match layout {
        WeightLayout::OutIn => {
            let (b, a) = (View::rows(&b, rank), View::rows(a, inputs));
            f32::gemm(w, inputs, [outputs, inputs, rank], b, a, true, precision);
        }
        WeightLayout::InOut => {
            let (a, b) = (View::columns(a, inputs), View::columns(&b, rank));
            f32::gemm(w, outputs, [inputs, outputs, rank], a, b, true, precision);
        }
    }
}
