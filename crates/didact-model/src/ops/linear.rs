//! Linear layers: up to three projections of one input in one operator, each with an optional bias and an optional
//! low-rank (LoRA) branch.
//!
//! `y_p = x · W_p + b_p + s_p · (dropout_p(x) · A_pᵀ) · B_pᵀ`, the outputs side by side in one matrix, as queries, keys
//! and values or the two halves of a gated unit are needed. Taking them together gives one gradient buffer for `x`
//! instead of one per projection and a sum. A weight that is not trained costs no gradient product; an input that needs
//! no gradient costs none either. The low-rank branches are computed in full precision whatever the precision of the
//! weights' products: their share of the arithmetic is small, and their kernels read the long operand once.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, ExtensionType, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_autodiff::NodeId;
use burn_backend::{DType, Shape};
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use didact_kernels::random::dropout_mask;

use super::group::{Group, Hidden, LowRank, Member, Nodes, Own};
use super::real::Real;
use super::storage::{Tracked, contiguous, dims2, on_flex, tensor, values, with_real};
use crate::profile::{Operator, Pass, scope};

/// How a weight matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[O, I]`, one row per output, as PyTorch's `Linear` keeps it.
    OutIn,
    /// `[I, O]`, one row per input, as GPT-2's `Conv1D` keeps it.
    InOut,
}

/// Dropout whose mask is a pure function of a key, so that the backward pass makes it again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Names the mask: step, micro-batch, layer and module are mixed into it.
    pub key: u64,
    /// Probability that an element is kept, in `(0, 1]`; kept elements are divided by it.
    pub keep: f32,
}

/// The low-rank branch of a projection.
#[derive(Debug, Clone)]
pub struct LoraBranch {
    /// `A`: `[R, I]`.
    pub a: Tensor<2>,
    /// `B`: `[O, R]`.
    pub b: Tensor<2>,
    /// What the branch is multiplied with.
    pub scale: f64,
    /// Dropout on the branch's input; `None` when evaluating.
    pub dropout: Option<Dropout>,
}

/// One projection of the shared input.
#[derive(Debug, Clone)]
pub struct Projection {
    /// The weight, laid out as `layout` says.
    pub weight: Tensor<2>,
    /// The orientation of `weight`.
    pub layout: WeightLayout,
    /// `[O]`.
    pub bias: Option<Tensor<1>>,
    /// The low-rank branch.
    pub lora: Option<LoraBranch>,
}

impl Projection {
    /// A projection without a low-rank branch.
    pub fn new(weight: Tensor<2>, layout: WeightLayout, bias: Option<Tensor<1>>) -> Self {
        Self { weight, layout, bias, lora: None }
    }
}

/// Projections that one operator takes at most.
const SLOTS: usize = 3;

/// Projects `x` with every member of `projections`, the outputs side by side.
///
/// # Shapes
/// - `x`: `[N, I]`
/// - returns: `[N, O_0 + O_1 + ..]`
///
/// Products are computed in `precision`; sums, the bias and everything stored are `f32`.
///
/// # Panics
/// If there are no projections or more than three, or a shape does not fit.
pub fn project(x: Tensor<2>, projections: Vec<Projection>, precision: Precision) -> Tensor<2> {
    assert!(
        (1..=SLOTS).contains(&projections.len()),
        "project: {} projections, one to {SLOTS} are possible",
        projections.len()
    );
    if !on_flex(&x) {
        return project_composed(x, projections);
    }
    let mut plan = Plan { branches: [None; SLOTS], precision };
    let mut slots: [Slots<Dispatch>; SLOTS] = std::array::from_fn(|_| Slots::empty());
    for (index, projection) in projections.into_iter().enumerate() {
        let lora = projection.lora.as_ref();
        plan.branches[index] = Some(Branch {
            layout: projection.layout,
            scale: lora.map_or(1.0, |l| l.scale),
            dropout: lora.and_then(|l| l.dropout),
        });
        slots[index] = Slots {
            weight: Slot::Filled(projection.weight.into_dispatch()),
            bias: projection.bias.map_or(Slot::Empty, |b| Slot::Filled(b.into_dispatch())),
            a: lora.map_or(Slot::Empty, |l| Slot::Filled(l.a.clone().into_dispatch())),
            b: lora.map_or(Slot::Empty, |l| Slot::Filled(l.b.clone().into_dispatch())),
        };
    }
    let [first, second, third] = slots;
    Tensor::from_dispatch(<Dispatch as ProjectOps>::project(x.into_dispatch(), first, second, third, plan))
}

/// `x · Wᵀ + b` with `w` as `[O, I]`: [`project`] with one plain projection.
///
/// # Shapes
/// - `x`: `[N, I]`, `w`: `[O, I]`, `bias`: `[O]`
/// - returns: `[N, O]`
pub fn linear(x: Tensor<2>, w: Tensor<2>, bias: Option<Tensor<1>>, precision: Precision) -> Tensor<2> {
    project(x, vec![Projection::new(w, WeightLayout::OutIn, bias)], precision)
}

/// [`project`] from Burn's own functions: what other devices run, and what the hand-written backward is held against.
pub(crate) fn project_composed(x: Tensor<2>, projections: Vec<Projection>) -> Tensor<2> {
    let outputs = projections
        .into_iter()
        .map(|p| {
            let weight = match p.layout {
                WeightLayout::OutIn => p.weight.transpose(),
                WeightLayout::InOut => p.weight,
            };
            let mut y = x.clone().matmul(weight);
            if let Some(bias) = p.bias {
                y = y + bias.unsqueeze::<2>();
            }
            if let Some(lora) = p.lora {
                let input = match lora.dropout {
                    None => x.clone(),
                    Some(dropout) => {
                        let dims = x.dims();
                        let mut mask = vec![0.0f32; dims[0] * dims[1]];
                        dropout_mask(dropout.key, 0, dropout.keep, &mut mask);
                        let mask = TensorData::new(mask, dims);
                        x.clone() * Tensor::from_data(mask, (&x.device(), x.dtype()))
                    }
                };
                let h = input.matmul(lora.a.transpose());
                y = y + h.matmul(lora.b.transpose()).mul_scalar(lora.scale);
            }
            y
        })
        .collect();
    Tensor::cat(outputs, 1)
}

/// A tensor that may be missing.
#[derive(ExtensionType, Debug, Clone)]
pub enum Slot<B: burn::backend::Backend> {
    /// Nothing there.
    Empty,
    /// A tensor.
    Filled(FloatTensor<B>),
}

/// The tensors of one projection.
#[derive(ExtensionType, Debug, Clone)]
pub struct Slots<B: burn::backend::Backend> {
    /// The weight; empty when there is no such projection.
    #[extension_type]
    pub weight: Slot<B>,
    /// The bias.
    #[extension_type]
    pub bias: Slot<B>,
    /// LoRA's `A`.
    #[extension_type]
    pub a: Slot<B>,
    /// LoRA's `B`.
    #[extension_type]
    pub b: Slot<B>,
}

impl<B: burn::backend::Backend> Slots<B> {
    fn empty() -> Self {
        Self { weight: Slot::Empty, bias: Slot::Empty, a: Slot::Empty, b: Slot::Empty }
    }
}

/// What a projection is beyond its tensors.
#[derive(Debug, Clone, Copy)]
pub struct Branch {
    layout: WeightLayout,
    scale: f64,
    dropout: Option<Dropout>,
}

/// What the operator is told beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    branches: [Option<Branch>; SLOTS],
    precision: Precision,
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait ProjectOps: burn::backend::Backend {
    /// See [`project`].
    fn project(
        x: FloatTensor<Self>,
        #[extension_type] first: Slots<Self>,
        #[extension_type] second: Slots<Self>,
        #[extension_type] third: Slots<Self>,
        plan: Plan,
    ) -> FloatTensor<Self>;
}

/// One projection with its tensors made contiguous.
#[derive(Debug, Clone)]
struct Weights {
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    lora: Option<(FlexTensor, FlexTensor)>,
    branch: Branch,
    outputs: usize,
}

impl Weights {
    fn gather(tensors: [Option<&FlexTensor>; 4], branch: Option<Branch>, inputs: usize) -> Option<Self> {
        let [weight, bias, a, b] = tensors.map(|t| t.map(contiguous));
        let (weight, branch) = (weight?, branch?);
        let dims = dims2(&weight);
        let [outputs, found] = match branch.layout {
            WeightLayout::OutIn => dims,
            WeightLayout::InOut => [dims[1], dims[0]],
        };
        assert_eq!(found, inputs, "project: the input has {inputs} columns, the weight {dims:?} takes {found}");
        Some(Self { weight, bias, lora: a.zip(b), branch, outputs })
    }

    fn member<E: Real>(&self) -> Member<'_, E> {
        Member {
            weight: values(&self.weight),
            layout: self.branch.layout,
            bias: self.bias.as_ref().map(values),
            low_rank: self.lora.as_ref().map(|(a, b)| LowRank {
                a: values(a),
                b: values(b),
                rank: dims2(a)[0],
                scale: self.branch.scale,
                dropout: self.branch.dropout,
            }),
            outputs: self.outputs,
        }
    }
}

/// The projections as the arithmetic takes them.
fn group<E: Real>(weights: &[Weights], inputs: usize, precision: Precision) -> Group<'_, E> {
    Group { members: weights.iter().map(Weights::member).collect(), inputs, precision }
}

fn forward<E: Real>(
    x: &FlexTensor,
    weights: &[Weights],
    precision: Precision,
) -> (FlexTensor, Vec<Option<FlexTensor>>) {
    let [n, inputs] = dims2(x);
    let group = group::<E>(weights, inputs, precision);
    let mut y = vec![E::ZERO; n * group.width()];
    let mut hidden: Vec<Hidden<E>> = vec![None; weights.len()];
    group.forward(None, 0, values(x), &mut y, &mut hidden);
    let hidden = hidden.into_iter().zip(&group.members).map(|(hidden, member)| {
        let rank = member.low_rank.as_ref().map_or(0, |branch| branch.rank);
        hidden.map(|h| tensor(h, [n, rank]))
    });
    (tensor(y, [n, group.width()]), hidden.collect())
}

fn backward<E: Real>(state: &State, dy: &FlexTensor, parents: &[Option<NodeId>; PARENTS], grads: &mut Gradients) {
    let [n, inputs] = dims2(&state.x);
    let group = group::<E>(&state.weights, inputs, state.precision);
    let (x, dy) = (values::<E>(&state.x), values::<E>(dy));
    let hidden: Vec<Hidden<E>> = state.hidden.iter().map(|h| h.as_ref().map(|h| values::<E>(h).to_vec())).collect();
    let nodes: Vec<Nodes> = (0..group.members.len()).map(|i| std::array::from_fn(|j| parents[1 + 4 * i + j])).collect();
    let mut dx = parents[0].is_some().then(|| vec![E::ZERO; n * inputs]);
    let through = group.backward_input(None, 0, dy, dx.as_deref_mut());
    let mut own: Vec<Own<E>> = nodes.iter().zip(&group.members).map(|(n, m)| Own::new(n, m)).collect();
    group.backward_own(0, x, dy, &through, &hidden, &nodes, &mut own);
    for ((own, nodes), member) in own.into_iter().zip(&nodes).zip(&group.members) {
        own.finish(grads, nodes, member, inputs);
    }
    if let (Some(dx), Some(parent)) = (dx, parents[0]) {
        grads.register::<Flex>(parent, tensor(dx, [n, inputs]));
    }
}

fn gather_all(x: &FlexTensor, slots: &[[Option<FlexTensor>; 4]; SLOTS], plan: &Plan) -> Vec<Weights> {
    let [_, inputs] = dims2(x);
    // The projections come first, then the empty places.
    let gather = |(slot, branch): (&[Option<FlexTensor>; 4], &Option<Branch>)| {
        Weights::gather(slot.each_ref().map(Option::as_ref), *branch, inputs)
    };
    slots.iter().zip(&plan.branches).filter_map(gather).collect()
}

impl ProjectOps for Flex {
    fn project(x: FlexTensor, first: Slots<Self>, second: Slots<Self>, third: Slots<Self>, plan: Plan) -> FlexTensor {
        let slots = [first, second, third].map(|s| {
            [s.weight, s.bias, s.a, s.b].map(|slot| match slot {
                Slot::Empty => None,
                Slot::Filled(t) => Some(t),
            })
        });
        let x = contiguous(&x);
        let weights = gather_all(&x, &slots, &plan);
        with_real!(&x, E => forward::<E>(&x, &weights, plan.precision)).0
    }
}

#[derive(Debug)]
struct ProjectBackward;

#[derive(Debug, Clone)]
struct State {
    x: FlexTensor,
    weights: Vec<Weights>,
    hidden: Vec<Option<FlexTensor>>,
    precision: Precision,
}

/// Parents of the operator's node: `x` and four tensors per projection.
const PARENTS: usize = 1 + 4 * SLOTS;

impl Backward<Flex, PARENTS> for ProjectBackward {
    type State = State;

    fn backward(self, ops: Ops<State, PARENTS>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = contiguous(&grads.consume::<Flex>(&ops.node));
        let _time = scope(Operator::Projection, Pass::Backward);
        let Ops { parents, state, .. } = ops;
        let parents = parents.map(|parent| parent.map(|node| node.id));
        with_real!(&state.x, E => backward::<E>(&state, &dy, &parents, grads));
    }
}

impl<C: CheckpointStrategy> ProjectOps for Autodiff<Flex, C> {
    fn project(
        x: FloatTensor<Self>,
        first: Slots<Self>,
        second: Slots<Self>,
        third: Slots<Self>,
        plan: Plan,
    ) -> FloatTensor<Self> {
        let slots = [first, second, third].map(|s| {
            [s.weight, s.bias, s.a, s.b].map(|slot| match slot {
                Slot::Empty => None,
                Slot::Filled(t) => Some(t),
            })
        });
        // A parent for the places where there is no tensor; it never asks for a gradient.
        let _time = scope(Operator::Projection, Pass::Forward);
        let absent = Tracked::new(FlexTensor::zeros(Shape::from(vec![1]), DType::F32));
        let nodes = std::array::from_fn(|i| match i.checked_sub(1).map(|j| &slots[j / 4][j % 4]) {
            None => x.node(),
            Some(Some(tensor)) => tensor.node(),
            Some(None) => absent.node(),
        });
        let slots = slots.map(|s| s.map(|t| t.map(Tracked::into_primitive)));
        let x = contiguous(x.primitive());
        let weights = gather_all(&x, &slots, &plan);
        let (y, hidden) = with_real!(&x, E => forward::<E>(&x, &weights, plan.precision));
        match ProjectBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(State { x, weights, hidden, precision: plan.precision }, y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
