//! AdamW over a model's list of parameters, in place.

use didact_kernels::adamw::{AdamWStep, AdamWTensor, adamw_update_all};
use didact_model::profile::{Operator, Pass, scope};
use didact_model::{ParameterId, ParameterSet};

use crate::accumulate::GradientBuffers;
use crate::config::TrainConfig;

/// Settings of AdamW that do not change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay of the parameters that decay.
    pub weight_decay: f64,
}

impl AdamWSettings {
    /// The settings of a configuration.
    pub fn new(config: &TrainConfig) -> Self {
        Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
        }
    }
}

/// What `torch.nn.utils.clip_grad_norm_` adds to the norm.
const CLIP_EPSILON: f64 = 1e-6;

/// What gradients of the L2 norm `norm` are multiplied with, so that it is at most `limit`.
pub fn clip_factor(limit: Option<f64>, norm: f64) -> f64 {
    limit.map_or(1.0, |limit| (limit / (norm + CLIP_EPSILON)).min(1.0))
}

/// A parameter's moments.
#[derive(Debug)]
pub struct Moments {
    id: ParameterId,
    name: String,
    shape: Vec<usize>,
    decays: bool,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Moments {
    /// The parameter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameter's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Running mean of the gradient.
    pub fn first(&self) -> &[f32] {
        &self.first
    }

    /// Running mean of the squared gradient.
    pub fn second(&self) -> &[f32] {
        &self.second
    }

    /// Both moments, to be restored.
    pub fn both_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.first, &mut self.second)
    }
}

/// AdamW with PyTorch's semantics. Matrices decay (embeddings included, as in the Hugging Face Trainer), norms and
/// biases do not: [`didact_model::Parameter::decays`] says which. The moments are allocated once; a step allocates
/// nothing.
///
/// # Reference
/// Loshchilov and Hutter, 2019, arXiv:1711.05101. Compared with `torch.optim.AdamW` in `golden/train/`.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
    step: u64,
}

impl AdamW {
    /// Moments of 0 for the trainable parameters.
    pub fn new(parameters: &ParameterSet, settings: AdamWSettings) -> Self {
        let moments = parameters
            .trainable()
            .map(|(id, parameter)| Moments {
                id,
                name: parameter.name().to_owned(),
                shape: parameter.shape(),
                decays: parameter.decays(),
                first: vec![0.0; parameter.elements()],
                second: vec![0.0; parameter.elements()],
            })
            .collect();
        Self { settings, moments, step: 0 }
    }

    /// Updates done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The moments, in the order of the model's list.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Takes up the state of a checkpoint: updates done, with the moments to be filled in.
    pub fn restore(&mut self, step: u64) -> &mut [Moments] {
        self.step = step;
        &mut self.moments
    }

    /// One update of every trainable parameter. `grad_scale` multiplies the gradients first: clipping.
    ///
    /// # Panics
    /// If the gradients are of another set of parameters.
    pub fn update(
        &mut self,
        parameters: &mut ParameterSet,
        gradients: &GradientBuffers,
        learning_rate: f64,
        grad_scale: f64,
    ) {
        let _time = scope(Operator::Optimizer, Pass::Backward);
        self.step += 1;
        let AdamWSettings { beta1, beta2, epsilon: eps, weight_decay } = self.settings;
        let grad_scale = grad_scale * f64::from(gradients.factor());
        let step = AdamWStep { learning_rate, beta1, beta2, eps, weight_decay, step: self.step, grad_scale };
        let mut gradients = gradients.buffers();
        for moments in &mut self.moments {
            let (id, name, grad) = gradients.next().expect("one gradient per trainable parameter");
            assert_eq!(id, moments.id, "gradient of `{name}` where that of `{}` is needed", moments.name);
            let Moments { first: m, second: v, decays, .. } = moments;
            parameters.data_mut(id, |param| {
                adamw_update_all(&mut [AdamWTensor { param, grad, m, v, decays: *decays }], &step);
            });
        }
    }
}
