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
use burn_backend::{DType, Shape};
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use didact_kernels::random::dropout_mask;
use rayon::prelude::*;

use super::real::{Real, Rows, View};
use super::storage::{Tracked, contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;

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
    inputs: usize,
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
        Some(Self { weight, bias, lora: a.zip(b), branch, inputs, outputs })
    }

    /// `W` as the right factor of `x · W`: `[I, O]`.
    fn forward_view<E: Real>(&self) -> View<'_, E> {
        match self.branch.layout {
            WeightLayout::OutIn => View::columns(values(&self.weight), self.inputs),
            WeightLayout::InOut => View::rows(values(&self.weight), self.outputs),
        }
    }

    /// `Wᵀ` as the right factor of `dy · Wᵀ`: `[O, I]`.
    fn backward_view<E: Real>(&self) -> View<'_, E> {
        match self.branch.layout {
            WeightLayout::OutIn => View::rows(values(&self.weight), self.inputs),
            WeightLayout::InOut => View::columns(values(&self.weight), self.outputs),
        }
    }

    fn rank(&self) -> usize {
        self.lora.as_ref().map_or(0, |(a, _)| dims2(a)[0])
    }
}

/// Elements whose dropout mask is made at a time; a multiple of every block the mask's generator works in.
const MASK_CHUNK: usize = 1 << 14;

/// `target = source · mask` when `replace`, else `target += source · mask`.
fn apply_dropout<E: Real>(target: &mut [E], source: &[E], dropout: Dropout, replace: bool) {
    target.par_chunks_mut(MASK_CHUNK).zip(source.par_chunks(MASK_CHUNK)).enumerate().for_each(|(index, (t, s))| {
        let mut mask = vec![0.0f32; t.len()];
        dropout_mask(dropout.key, (index * MASK_CHUNK) as u64, dropout.keep, &mut mask);
        masked(t, s, &mask, replace);
    });
}

vectorized! {
    fn masked<'a, E: Real>(target: &'a mut [E], source: &'a [E], mask: &'a [f32], replace: bool) -> () {
        for ((t, &s), &m) in target.iter_mut().zip(source).zip(mask) {
            let kept = s * E::of(f64::from(m));
            *t = if replace { kept } else { *t + kept };
        }
    }
}

/// The transpose of a small matrix of `columns` columns.
fn transposed<E: Real>(m: &[E], columns: usize) -> Vec<E> {
    let rows = m.len() / columns;
    let mut out = vec![E::ZERO; m.len()];
    for (i, row) in m.chunks_exact(columns).enumerate() {
        for (j, &v) in row.iter().enumerate() {
            out[j * rows + i] = v;
        }
    }
    out
}

fn forward<E: Real>(
    x: &FlexTensor,
    weights: &[Option<Weights>; SLOTS],
    precision: Precision,
) -> (FlexTensor, [Option<FlexTensor>; SLOTS]) {
    let [n, inputs] = dims2(x);
    let width: usize = weights.iter().flatten().map(|w| w.outputs).sum();
    let x = values::<E>(x);
    let mut y = vec![E::ZERO; n * width];
    let mut hidden = [None, None, None];
    let mut offset = 0;
    for (index, w) in weights.iter().enumerate() {
        let Some(w) = w else { continue };
        let outputs = w.outputs;
        if let Some(bias) = &w.bias {
            let bias = values::<E>(bias);
            y.par_chunks_mut(width).for_each(|row| row[offset..offset + outputs].copy_from_slice(bias));
        }
        let shape = [n, outputs, inputs];
        E::gemm(&mut y[offset..], width, shape, View::rows(x, inputs), w.forward_view(), w.bias.is_some(), precision);
        if let Some((a, b)) = &w.lora {
            let rank = w.rank();
            let dropped = w.branch.dropout.map(|dropout| {
                let mut dropped = vec![E::ZERO; x.len()];
                apply_dropout(&mut dropped, x, dropout, true);
                dropped
            });
            let input = Rows { data: dropped.as_deref().unwrap_or(x), count: n, width: inputs, stride: inputs };
            let mut h = E::low_rank_project(input, &transposed(values(a), inputs), rank);
            let scale = E::of(w.branch.scale);
            for v in &mut h {
                *v = *v * scale;
            }
            E::low_rank_update(&mut y[offset..], width, outputs, &h, &transposed(values(b), rank), rank);
            hidden[index] = Some(tensor(h, [n, rank]));
        }
        offset += outputs;
    }
    (tensor(y, [n, width]), hidden)
}

/// The gradients of one projection's own tensors: weight, bias, `A`, `B`.
type OwnGradients = [Option<FlexTensor>; 4];

/// Which of one projection's tensors (weight, bias, `A`, `B`) need a gradient.
type Needs = [bool; 4];

fn backward<E: Real>(
    x: &FlexTensor,
    weights: &[Option<Weights>; SLOTS],
    hidden: &[Option<FlexTensor>; SLOTS],
    dy: &FlexTensor,
    needs_x: bool,
    needs: &[Needs; SLOTS],
    precision: Precision,
) -> (Option<FlexTensor>, [OwnGradients; SLOTS]) {
    let [n, width] = dims2(dy);
    let [_, inputs] = dims2(x);
    let (x, dy) = (values::<E>(x), values::<E>(dy));
    let mut dx = needs_x.then(|| vec![E::ZERO; n * inputs]);
    let mut own: [OwnGradients; SLOTS] = Default::default();
    let mut offset = 0;
    for (index, w) in weights.iter().enumerate() {
        let Some(w) = w else { continue };
        let outputs = w.outputs;
        let dy = &dy[offset..];
        let dy_rows = View { data: dy, row_stride: width, col_stride: 1 };
        let dy_columns = View { data: dy, row_stride: 1, col_stride: width };
        let [needs_weight, needs_bias, needs_a, needs_b] = needs[index];
        if let Some(dx) = &mut dx {
            let accumulate = offset > 0;
            E::gemm(dx, inputs, [n, inputs, outputs], dy_rows, w.backward_view(), accumulate, precision);
        }
        if needs_weight {
            let mut gradient = vec![E::ZERO; outputs * inputs];
            let dims = match w.branch.layout {
                WeightLayout::OutIn => {
                    let x = View::rows(x, inputs);
                    E::gemm(&mut gradient, inputs, [outputs, inputs, n], dy_columns, x, false, precision);
                    [outputs, inputs]
                }
                WeightLayout::InOut => {
                    let x = View::columns(x, inputs);
                    E::gemm(&mut gradient, outputs, [inputs, outputs, n], x, dy_rows, false, precision);
                    [inputs, outputs]
                }
            };
            own[index][0] = Some(tensor(gradient, dims));
        }
        if needs_bias {
            own[index][1] = Some(tensor(super::rows::column_sums(dy, n, outputs, width), [outputs]));
        }
        if let Some((a, b)) = &w.lora {
            let rank = w.rank();
            let h = values::<E>(hidden[index].as_ref().expect("the forward pass keeps a branch's hidden values"));
            let dy = Rows { data: dy, count: n, width: outputs, stride: width };
            if needs_b {
                own[index][3] = Some(tensor(E::low_rank_outer(dy, h, rank), [outputs, rank]));
            }
            let mut dh = E::low_rank_project(dy, values(b), rank);
            let scale = E::of(w.branch.scale);
            for v in &mut dh {
                *v = *v * scale;
            }
            if needs_a {
                let dropped = w.branch.dropout.map(|dropout| {
                    let mut dropped = vec![E::ZERO; x.len()];
                    apply_dropout(&mut dropped, x, dropout, true);
                    dropped
                });
                let input = Rows { data: dropped.as_deref().unwrap_or(x), count: n, width: inputs, stride: inputs };
                let gradient = transposed(&E::low_rank_outer(input, &dh, rank), rank);
                own[index][2] = Some(tensor(gradient, [rank, inputs]));
            }
            if let Some(dx) = &mut dx {
                match w.branch.dropout {
                    None => E::low_rank_update(dx, inputs, inputs, &dh, values(a), rank),
                    Some(dropout) => {
                        let mut through = vec![E::ZERO; n * inputs];
                        E::low_rank_update(&mut through, inputs, inputs, &dh, values(a), rank);
                        apply_dropout(dx, &through, dropout, false);
                    }
                }
            }
        }
        offset += outputs;
    }
    (dx.map(|dx| tensor(dx, [n, inputs])), own)
}

fn gather_all(x: &FlexTensor, slots: &[[Option<FlexTensor>; 4]; SLOTS], plan: &Plan) -> [Option<Weights>; SLOTS] {
    let [_, inputs] = dims2(x);
    std::array::from_fn(|i| Weights::gather(slots[i].each_ref().map(Option::as_ref), plan.branches[i], inputs))
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
    weights: [Option<Weights>; SLOTS],
    hidden: [Option<FlexTensor>; SLOTS],
    precision: Precision,
}

/// Parents of the operator's node: `x` and four tensors per projection.
const PARENTS: usize = 1 + 4 * SLOTS;

impl Backward<Flex, PARENTS> for ProjectBackward {
    type State = State;

    fn backward(self, ops: Ops<State, PARENTS>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = contiguous(&grads.consume::<Flex>(&ops.node));
        let State { x, weights, hidden, precision } = ops.state;
        let needs: [Needs; SLOTS] =
            std::array::from_fn(|i| std::array::from_fn(|j| ops.parents[1 + 4 * i + j].is_some()));
        let needs_x = ops.parents[0].is_some();
        let (dx, own) = with_real!(&x, E => backward::<E>(&x, &weights, &hidden, &dy, needs_x, &needs, precision));
        let gradients = std::iter::once(dx).chain(own.into_iter().flatten());
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
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
