//! The output projection and the cross-entropy over it, a block of positions at a time, so that the logits of a whole
//! batch never exist together.
//!
//! Gradients are computed on the way forward, while a block's probabilities are at hand: the loss is a weighted sum, so
//! the backward pass only multiplies them by the gradient of that one number.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Int, Tensor, TensorData, activation};
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use rayon::prelude::*;

use super::real::{Real, View};
use super::rows::{max, sum};
use super::storage::{Tracked, contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;

/// Logits that exist at a time (32 MB in `f32`), at least one position's.
const LOGITS_AT_A_TIME: usize = 1 << 23;

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

struct Forward {
    sum: FlexTensor,
    per_token: FlexTensor,
    d_hidden: Option<FlexTensor>,
    d_weight: Option<FlexTensor>,
}

vectorized! {
    /// One position's loss. With `gradient`, turns its logits into `weight · (softmax - onehot)`.
    fn position<'a, E: Real>(logits: &'a mut [E], target: usize, weight: E, gradient: bool) -> E {
        let largest = max(logits);
        let at_target = logits[target] - largest;
        for logit in logits.iter_mut() {
            *logit = (*logit - largest).exp();
        }
        let total = sum(logits);
        if gradient {
            let scale = weight / total;
            for logit in logits.iter_mut() {
                *logit = *logit * scale;
            }
            logits[target] = logits[target] - weight;
        }
        E::of(total.wide().ln()) - at_target
    }
}

fn forward<E: Real>(
    hidden: &FlexTensor,
    weight: &FlexTensor,
    plan: &Plan,
    needs_hidden: bool,
    needs_weight: bool,
) -> Forward {
    let [m, width] = dims2(hidden);
    let [vocabulary, _] = dims2(weight);
    let (h, w) = (values::<E>(hidden), values::<E>(weight));
    let mut per_token = vec![E::ZERO; m];
    let mut d_hidden = needs_hidden.then(|| vec![E::ZERO; m * width]);
    let mut d_weight = needs_weight.then(|| vec![E::ZERO; vocabulary * width]);
    let block = (LOGITS_AT_A_TIME / vocabulary).max(1);
    let mut logits = vec![E::ZERO; block.min(m) * vocabulary];
    for begin in (0..m).step_by(block) {
        let end = m.min(begin + block);
        let rows = end - begin;
        let h = View::rows(&h[begin * width..end * width], width);
        let logits = &mut logits[..rows * vocabulary];
        let shape = [rows, vocabulary, width];
        E::gemm(logits, vocabulary, shape, h, View::columns(w, width), false, plan.precision);
        logits.par_chunks_mut(vocabulary).zip(&mut per_token[begin..end]).enumerate().for_each(|(i, (row, nll))| {
            let (target, weight) = (plan.targets[begin + i] as usize, E::of(f64::from(plan.weights[begin + i])));
            *nll = position(row, target, weight, needs_hidden || needs_weight);
        });
        if let Some(d_hidden) = &mut d_hidden {
            let (logits, w) = (View::rows(logits, vocabulary), View::rows(w, width));
            let d_hidden = &mut d_hidden[begin * width..end * width];
            E::gemm(d_hidden, width, [rows, width, vocabulary], logits, w, false, plan.precision);
        }
        if let Some(d_weight) = &mut d_weight {
            let logits = View::columns(logits, vocabulary);
            E::gemm(d_weight, width, [vocabulary, width, rows], logits, h, true, plan.precision);
        }
    }
    let sum: f64 = per_token.iter().zip(&plan.weights).map(|(nll, &w)| nll.wide() * f64::from(w)).sum();
    Forward {
        sum: tensor(vec![E::of(sum)], [1]),
        per_token: tensor(per_token, [m]),
        d_hidden: d_hidden.map(|d| tensor(d, [m, width])),
        d_weight: d_weight.map(|d| tensor(d, [vocabulary, width])),
    }
}

/// `gradient · factor`, in place where nobody else holds the buffer.
fn scaled<E: Real>(mut gradient: FlexTensor, factor: E) -> FlexTensor {
    if factor == E::ONE {
        return gradient;
    }
    gradient.storage_mut::<E>().par_chunks_mut(1 << 14).for_each(|part| {
        for v in part {
            *v = *v * factor;
        }
    });
    gradient
}

impl CrossEntropyOps for Flex {
    fn linear_cross_entropy(hidden: FlexTensor, weight: FlexTensor, plan: Arc<Plan>) -> Loss<Self> {
        let (hidden, weight) = (contiguous(&hidden), contiguous(&weight));
        let forward = with_real!(&hidden, E => forward::<E>(&hidden, &weight, &plan, false, false));
        Loss { sum: forward.sum, per_token: forward.per_token }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

impl Backward<Flex, 2> for CrossEntropyBackward {
    type State = [Option<FlexTensor>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let upstream = contiguous(&grads.consume::<Flex>(&ops.node));
        for (parent, gradient) in ops.parents.into_iter().zip(ops.state) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                let gradient = with_real!(&upstream, E => scaled::<E>(gradient, values::<E>(&upstream)[0]));
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

impl<C: CheckpointStrategy> CrossEntropyOps for Autodiff<Flex, C> {
    fn linear_cross_entropy(hidden: FloatTensor<Self>, weight: FloatTensor<Self>, plan: Arc<Plan>) -> Loss<Self> {
        let nodes = [hidden.node(), weight.node()];
        let needs = [hidden.is_tracked(), weight.is_tracked()];
        let [hidden, weight] = [hidden, weight].map(|t| contiguous(t.primitive()));
        let forward = with_real!(&hidden, E => forward::<E>(&hidden, &weight, &plan, needs[0], needs[1]));
        let sum = match CrossEntropyBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([forward.d_hidden, forward.d_weight], forward.sum),
            OpsKind::UnTracked(prep) => prep.finish(forward.sum),
        };
        Loss { sum, per_token: Tracked::new(forward.per_token) }
    }
}
