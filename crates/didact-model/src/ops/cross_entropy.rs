//! The output projection and the cross-entropy over it, a block of positions at a time, so that the logits of a whole
//! batch never exist together.
//!
//! Gradients are computed on the way forward, while a block's probabilities are at hand: the loss is a weighted sum, so
//! the backward pass only multiplies them by the gradient of that one number.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData, activation};
use burn_autodiff::NodeId;
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use rayon::prelude::*;

use super::real::{Losses, Real};
use super::storage::{Tracked, contiguous, dims2, on_flex, tensor, values, with_real};
use crate::gradients::Sum;
use crate::profile::{Operator, Pass, scope};

/// `Σ_i weights[i] · nll_i` and the `nll_i` themselves, where `nll_i = -log softmax(hidden_i · Wᵀ)[targets[i]]`.
///
/// # Shapes
/// - `hidden`: `[M, E]`, `weight`: `[V, E]`, `targets`, `weights`: `M`
/// - returns: the weighted sum in nats `[1]`, added in `f64` in the order of the positions; and `[M]`, detached
///
/// # Panics
/// If the lengths differ or a target is not below V.
pub fn linear_cross_entropy(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[u32],
    weights: &[f32],
    precision: Precision,
) -> (Tensor<1>, Tensor<1>) {
    let [m, _] = hidden.dims();
    let [vocabulary, _] = weight.dims();
    assert_eq!([targets.len(), weights.len()], [m, m], "cross-entropy: one target and one weight per position");
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocabulary) {
        panic!("cross-entropy: target {target} in a vocabulary of {vocabulary}");
    }
    if !on_flex(&hidden) {
        return linear_cross_entropy_composed(hidden, weight, targets, weights);
    }
    let plan = Arc::new(Plan { targets: targets.into(), weights: weights.into(), precision });
    let loss =
        <Dispatch as CrossEntropyOps>::linear_cross_entropy(hidden.into_dispatch(), weight.into_dispatch(), plan);
    (Tensor::from_dispatch(loss.sum), Tensor::<1>::from_dispatch(loss.per_token).detach())
}

/// [`linear_cross_entropy`] from Burn's own functions.
pub(crate) fn linear_cross_entropy_composed(
    hidden: Tensor<2>,
    weight: Tensor<2>,
    targets: &[u32],
    weights: &[f32],
) -> (Tensor<1>, Tensor<1>) {
    let m = targets.len();
    let (device, dtype) = (hidden.device(), hidden.dtype());
    let log_probs = activation::log_softmax(hidden.matmul(weight.transpose()), 1);
    let targets: Vec<i64> = targets.iter().map(|&t| i64::from(t)).collect();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [m, 1]), &device);
    let per_token = log_probs.gather(1, targets).neg().reshape([m]);
    let weights = Tensor::<1>::from_data(TensorData::new(weights.to_vec(), [m]), (&device, dtype));
    ((per_token.clone() * weights).sum(), per_token.detach())
}

/// The two results of the operator.
#[derive(ExtensionType, Debug, Clone)]
pub struct Loss<B: burn::backend::Backend> {
    /// `[1]`.
    pub sum: FloatTensor<B>,
    /// `[M]`.
    pub per_token: FloatTensor<B>,
}

/// What the operator is told beside its tensors.
#[derive(Debug)]
pub struct Plan {
    targets: Vec<u32>,
    weights: Vec<f32>,
    precision: Precision,
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait CrossEntropyOps: burn::backend::Backend {
    /// See [`linear_cross_entropy`].
    fn linear_cross_entropy(hidden: FloatTensor<Self>, weight: FloatTensor<Self>, plan: Arc<Plan>) -> Loss<Self>;
}

struct Forward<E: Real> {
    sum: FlexTensor,
    per_token: FlexTensor,
    gradients: Gradient<E>,
}

/// Gradients of the sum, until the backward pass asks for them.
#[derive(Debug, Clone)]
struct Gradient<E: Real> {
    hidden: Option<FlexTensor>,
    weight: Option<(Sum<E>, [usize; 2])>,
}

fn forward<E: Real>(
    hidden: &FlexTensor,
    weight: &FlexTensor,
    plan: &Plan,
    needs_hidden: bool,
    weight_node: Option<NodeId>,
) -> Forward<E> {
    let [m, width] = dims2(hidden);
    let [vocabulary, _] = dims2(weight);
    let (h, w) = (values::<E>(hidden), values::<E>(weight));
    let mut per_token = vec![E::ZERO; m];
    let mut d_hidden = needs_hidden.then(|| vec![E::ZERO; m * width]);
    let mut d_weight = weight_node.map(|node| Sum::<E>::begin(Some(node), vocabulary * width, true));
    let results = Losses {
        nll: &mut per_token,
        d_hidden: d_hidden.as_deref_mut(),
        d_weight: d_weight.as_mut().map(|sum| sum.next().0),
    };
    let sum = E::linear_cross_entropy(&plan.targets, &plan.weights, h, w, width, plan.precision, results);
    Forward {
        sum: tensor(vec![E::of(sum)], [1]),
        per_token: tensor(per_token, [m]),
        gradients: Gradient {
            hidden: d_hidden.map(|d| tensor(d, [m, width])),
            weight: d_weight.map(|d| (d, [vocabulary, width])),
        },
    }
}

/// `gradient *= factor`.
fn scale<E: Real>(gradient: &mut [E], factor: E) {
    if factor != E::ONE {
        gradient.par_chunks_mut(1 << 14).for_each(|part| part.iter_mut().for_each(|v| *v = *v * factor));
    }
}

impl CrossEntropyOps for Flex {
    fn linear_cross_entropy(hidden: FlexTensor, weight: FlexTensor, plan: Arc<Plan>) -> Loss<Self> {
        let (hidden, weight) = (contiguous(&hidden), contiguous(&weight));
        with_real!(&hidden, E => {
            let forward = forward::<E>(&hidden, &weight, &plan, false, None);
            Loss { sum: forward.sum, per_token: forward.per_token }
        })
    }
}

#[derive(Debug)]
struct CrossEntropyBackward<E>(PhantomData<E>);

impl<E: Real> Backward<Flex, 2> for CrossEntropyBackward<E> {
    type State = Gradient<E>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let _time = scope(Operator::CrossEntropy, Pass::Backward);
        let upstream = contiguous(&grads.consume::<Flex>(&ops.node));
        let factor = values::<E>(&upstream)[0];
        let [hidden, weight] = ops.parents;
        if let (Some(parent), Some(mut gradient)) = (hidden, ops.state.hidden) {
            scale(gradient.storage_mut::<E>(), factor);
            grads.register::<Flex>(parent.id, gradient);
        }
        if let (Some(parent), Some((mut gradient, shape))) = (weight, ops.state.weight) {
            scale(gradient.values(), factor);
            gradient.finish(grads, parent.id, shape);
        }
    }
}

fn tracked<E: Real, C: CheckpointStrategy>(hidden: Tracked, weight: Tracked, plan: &Plan) -> Loss<Autodiff<Flex, C>> {
    let nodes = [hidden.node(), weight.node()];
    let needs_hidden = hidden.is_tracked();
    let weight_node = weight.is_tracked().then(|| weight.id());
    let [hidden, weight] = [hidden, weight].map(|t| contiguous(t.primitive()));
    let forward = forward::<E>(&hidden, &weight, plan, needs_hidden, weight_node);
    let sum = match CrossEntropyBackward::<E>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(forward.gradients, forward.sum),
        OpsKind::UnTracked(prep) => prep.finish(forward.sum),
    };
    Loss { sum, per_token: Tracked::new(forward.per_token) }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn linear_cross_entropy(hidden: FloatTensor<Self>, weight: FloatTensor<Self>, plan: Arc<Plan>) -> Loss<Self> {
        let _time = scope(Operator::CrossEntropy, Pass::Forward);
        with_real!(hidden.primitive(), E => tracked::<E, C>(hidden, weight, &plan))
    }
}
