//! Gradients of a step: sums over its micro-batches, in their order, divided by the step's total weight.
//!
//! Averages of averages would give a token of a lightly masked micro-batch more say than one of a heavily masked one;
//! sums over the total weight make any split of the same rows the same step.

use burn::tensor::Gradients;
use didact_kernels::{reduce, vector};
use didact_model::{ParameterId, ParameterSet};

/// The gradient of every trainable parameter, in the order of the model's list.
#[derive(Debug)]
pub struct GradientBuffers {
    ids: Vec<ParameterId>,
    names: Vec<String>,
    /// Row-major, one per parameter.
    buffers: Vec<Vec<f32>>,
    /// Weight of the tokens that were added.
    total_weight: f64,
    micro_batches: usize,
}

impl GradientBuffers {
    /// Buffers for the trainable parameters. Nothing is allocated before the first gradients arrive.
    pub fn new(parameters: &ParameterSet) -> Self {
        let (ids, names): (Vec<_>, Vec<_>) =
            parameters.trainable().map(|(id, parameter)| (id, parameter.name().to_owned())).unzip();
        let buffers = vec![Vec::new(); ids.len()];
        Self { ids, names, buffers, total_weight: 0.0, micro_batches: 0 }
    }

    /// Adds a micro-batch: the gradients of its **sum** of losses, and its weight. The first one's buffers are taken
    /// over, later ones are added to them.
    pub fn add(&mut self, parameters: &ParameterSet, mut gradients: Gradients, weight: f64) {
        for (id, buffer) in self.ids.iter().zip(&mut self.buffers) {
            let gradient = parameters.take_gradient(&mut gradients, *id);
            match (self.micro_batches, gradient) {
                (0, Some(gradient)) => *buffer = gradient,
                (0, None) => {
                    buffer.clear();
                    buffer.resize(parameters.get(*id).elements(), 0.0);
                }
                (_, Some(gradient)) => vector::add(buffer, &gradient),
                // The loss does not depend on the parameter.
                (_, None) => {}
            }
        }
        self.total_weight += weight;
        self.micro_batches += 1;
    }

    /// Turns the sums into the gradient of the mean loss per unit of weight. Does nothing when the weight is 0.
    pub fn divide_by_weight(&mut self) {
        if self.total_weight == 0.0 {
            return;
        }
        let factor = (1.0 / self.total_weight) as f32;
        for buffer in &mut self.buffers {
            vector::scale(buffer, factor);
        }
    }

    /// The weight of everything added since the last [`clear`](Self::clear).
    pub fn total_weight(&self) -> f64 {
        self.total_weight
    }

    /// L2 norm over all parameters: an f64 sum of squares in a fixed order.
    pub fn norm(&self) -> f64 {
        self.buffers.iter().map(|buffer| reduce::sum_of_squares(buffer)).sum::<f64>().sqrt()
    }

    /// The first parameter with a number that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<&str> {
        let at = self.buffers.iter().position(|buffer| reduce::first_non_finite(buffer).is_some())?;
        Some(&self.names[at])
    }

    /// Id, name and gradient of each parameter.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &str, &[f32])> {
        let names = self.names.iter().map(String::as_str);
        self.ids.iter().copied().zip(names).zip(&self.buffers).map(|((id, name), b)| (id, name, b.as_slice()))
    }

    /// Name and gradient of each parameter, to be changed: for hooks that project or penalise.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut [f32])> {
        self.names.iter().map(String::as_str).zip(self.buffers.iter_mut().map(Vec::as_mut_slice))
    }

    /// Forgets the sums; the next [`add`](Self::add) begins a step.
    pub fn clear(&mut self) {
        self.total_weight = 0.0;
        self.micro_batches = 0;
        // The first micro-batch brings its own buffers; holding these until then would keep two of each in memory.
        self.buffers.iter_mut().for_each(|buffer| *buffer = Vec::new());
    }
}
