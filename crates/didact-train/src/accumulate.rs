//! Gradients of a step: sums over its micro-batches, in their order, divided by the step's total weight.
//!
//! Averages of averages would give a token of a lightly masked micro-batch more say than one of a heavily masked one;
//! sums over the total weight make any split of the same rows the same step.

use burn::tensor::Gradients;
use didact_kernels::adamw::Gradient;
use didact_kernels::{reduce, vector};
use didact_model::gradients::{GradientBuffer, GradientDtype, record};
use didact_model::profile::{Operator, Pass, scope};
use didact_model::{ParameterId, ParameterSet};

/// The gradient of every trainable parameter, in the order of the model's list.
#[derive(Debug)]
pub struct GradientBuffers {
    ids: Vec<ParameterId>,
    names: Vec<String>,
    buffers: Vec<GradientBuffer>,
    /// Whether the memory is given back between steps.
    is_released: bool,
    /// What the sums are still to be multiplied with.
    factor: f32,
    /// Weight of the tokens that were added.
    total_weight: f64,
}

impl GradientBuffers {
    /// Buffers for the trainable parameters, in `f32`. Nothing is allocated before the first gradients arrive.
    pub fn new(parameters: &ParameterSet) -> Self {
        Self::with_dtype(parameters, GradientDtype::F32)
    }

    /// As [`new`](Self::new), summing in `dtype`.
    pub fn with_dtype(parameters: &ParameterSet, dtype: GradientDtype) -> Self {
        let (ids, names): (Vec<_>, Vec<_>) =
            parameters.trainable().map(|(id, parameter)| (id, parameter.name().to_owned())).unzip();
        let buffers = ids.iter().map(|&id| GradientBuffer::new(parameters.get(id).elements(), dtype)).collect();
        Self { ids, names, buffers, is_released: false, factor: 1.0, total_weight: 0.0 }
    }

    /// Gives the memory back after every step instead of keeping it for the next: less of it while activations exist,
    /// and some more time.
    pub fn release_between_steps(&mut self, is_released: bool) {
        self.is_released = is_released;
    }

    /// Adds a micro-batch. `pass` does its forward and backward pass on this thread and returns, with whatever else it
    /// has to say, the gradients of its **sum** of losses and its weight; nothing is added when there are none.
    ///
    /// Gradients that arrive through `pass`'s own operators are written straight into the buffers.
    pub fn add<R>(&mut self, parameters: &ParameterSet, pass: impl FnOnce() -> (R, Option<(Gradients, f64)>)) -> R {
        let (result, gradients) = record(parameters, &self.ids, &mut self.buffers, pass);
        let Some((mut gradients, weight)) = gradients else { return result };
        let _time = scope(Operator::Optimizer, Pass::Backward);
        for (id, buffer) in self.ids.iter().zip(&mut self.buffers) {
            // What took another way than our operators.
            if let Some(gradient) = parameters.take_gradient(&mut gradients, *id) {
                buffer.add(&gradient);
            }
            // The loss may not depend on the parameter.
            if !buffer.is_filled() {
                buffer.values();
            }
        }
        self.total_weight += weight;
        result
    }

    /// Turns the sums into the gradient of the mean loss per unit of weight. Does nothing when the weight is 0.
    pub fn divide_by_weight(&mut self) {
        if self.total_weight != 0.0 {
            self.factor *= (1.0 / self.total_weight) as f32;
        }
    }

    /// The weight of everything added since the last [`clear`](Self::clear).
    pub fn total_weight(&self) -> f64 {
        self.total_weight
    }

    /// L2 norm over all parameters: an f64 sum of squares in a fixed order.
    pub fn norm(&self) -> f64 {
        let _time = scope(Operator::Optimizer, Pass::Backward);
        let gradients: Vec<Gradient<'_>> = self.buffers.iter().map(GradientBuffer::as_kernel).collect();
        reduce::global_norm(&gradients) * f64::from(self.factor)
    }

    /// What the numbers in the buffers are still to be multiplied with: the optimiser does it on the way.
    pub(crate) fn factor(&self) -> f32 {
        self.factor
    }

    /// The first parameter with a number that is NaN or infinite.
    pub fn first_non_finite(&self) -> Option<&str> {
        let at = self.buffers.iter().position(|b| !reduce::global_norm(&[b.as_kernel()]).is_finite())?;
        Some(&self.names[at])
    }

    /// Id and name of each parameter, and its gradient but for the [`factor`](Self::factor).
    pub(crate) fn buffers(&self) -> impl Iterator<Item = (ParameterId, &str, Gradient<'_>)> {
        let names = self.names.iter().map(String::as_str);
        self.ids.iter().copied().zip(names).zip(&self.buffers).map(|((id, name), b)| (id, name, b.as_kernel()))
    }

    /// Lets `change` work on the name and gradient of each parameter, in order: for hooks that look, project or
    /// penalise.
    pub fn for_each(&mut self, mut change: impl FnMut(&str, &mut [f32])) {
        let factor = std::mem::replace(&mut self.factor, 1.0);
        for (name, buffer) in self.names.iter().zip(&mut self.buffers) {
            buffer.change(|values| {
                if factor != 1.0 {
                    vector::scale(values, factor);
                }
                change(name, values);
            });
        }
    }

    /// Forgets the sums; the next [`add`](Self::add) begins a step.
    pub fn clear(&mut self) {
        let _time = scope(Operator::Optimizer, Pass::Backward);
        self.total_weight = 0.0;
        self.factor = 1.0;
        for buffer in &mut self.buffers {
            if self.is_released { buffer.release() } else { buffer.clear() }
        }
    }
}
