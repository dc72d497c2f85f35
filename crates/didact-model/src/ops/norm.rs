//! Normalisation over the last dimension: RMS norm, layer norm, and the RMS norm of query and key heads.
#![expect(
    clippy::inline_always,
    reason = "the loops that call these are compiled for vectors only where they are inlined"
)]

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::real::Real;
use super::rows::{ROW_BLOCK, dot, sum};
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;
use crate::gradients::deliver;
use crate::profile::{Operator, Pass, scope};

/// RMS norm of every row: `y = x / sqrt(mean(x²) + eps) · gain`.
///
/// # Shapes
/// - `x`: `[N, E]`, `gain`: `[E]`
/// - returns: `[N, E]`
///
/// # Panics
/// If the widths differ.
///
/// # Reference
/// Zhang and Sennrich, 2019, arXiv:1910.07467.
pub fn rms_norm(x: Tensor<2>, gain: Tensor<1>, eps: f64) -> Tensor<2> {
    if !on_flex(&x) {
        return rms_norm_composed(x, gain, eps);
    }
    let plan = Plan::rms(gain.dims()[0], eps);
    let (x, gain) = (x.into_dispatch(), gain.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NormOps>::norm(x, gain.clone(), gain, plan))
}

/// Layer norm of every row: `y = (x - mean(x)) / sqrt(var(x) + eps) · gain + bias`, the variance being the biased one.
///
/// # Shapes
/// - `x`: `[N, E]`, `gain`, `bias`: `[E]`
/// - returns: `[N, E]`
///
/// # Panics
/// If the widths differ.
///
/// # Reference
/// Ba, Kiros and Hinton, 2016, arXiv:1607.06450.
pub fn layer_norm(x: Tensor<2>, gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    if !on_flex(&x) {
        return layer_norm_composed(x, gain, bias, eps);
    }
    let plan = Plan::layer(gain.dims()[0], eps);
    let (x, gain, bias) = (x.into_dispatch(), gain.into_dispatch(), bias.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NormOps>::norm(x, gain, bias, plan))
}

/// RMS norm of each query head and each key head in rows of queries, keys and values side by side; values pass.
///
/// # Shapes
/// - `qkv`: `[N, (H + 2K)·D]`, `query_gain`, `key_gain`: `[D]`
/// - returns: `[N, (H + 2K)·D]`
///
/// # Panics
/// If the widths do not fit.
///
/// # Reference
/// Qwen3 technical report, 2025, arXiv:2505.09388.
pub fn head_norm(
    qkv: Tensor<2>,
    query_gain: Tensor<1>,
    key_gain: Tensor<1>,
    heads: usize,
    kv_heads: usize,
    eps: f64,
) -> Tensor<2> {
    if !on_flex(&qkv) {
        return head_norm_composed(qkv, query_gain, key_gain, heads, kv_heads, eps);
    }
    let plan = Plan::heads(query_gain.dims()[0], heads, kv_heads, eps);
    let (x, q, k) = (qkv.into_dispatch(), query_gain.into_dispatch(), key_gain.into_dispatch());
    Tensor::from_dispatch(<Dispatch as NormOps>::norm(x, q, k, plan))
}

/// [`rms_norm`] from Burn's own functions.
pub(crate) fn rms_norm_composed(x: Tensor<2>, gain: Tensor<1>, eps: f64) -> Tensor<2> {
    let rms = x.clone().powi_scalar(2).mean_dim(1).add_scalar(eps).sqrt();
    x / rms * gain.unsqueeze::<2>()
}

/// [`layer_norm`] from Burn's own functions.
pub(crate) fn layer_norm_composed(x: Tensor<2>, gain: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let deviation = centred.clone().powi_scalar(2).mean_dim(1).add_scalar(eps).sqrt();
    centred / deviation * gain.unsqueeze::<2>() + bias.unsqueeze::<2>()
}

/// [`head_norm`] from Burn's own functions.
pub(crate) fn head_norm_composed(
    qkv: Tensor<2>,
    query_gain: Tensor<1>,
    key_gain: Tensor<1>,
    heads: usize,
    kv_heads: usize,
    eps: f64,
) -> Tensor<2> {
    let [n, width] = qkv.dims();
    let d = query_gain.dims()[0];
    let part = |first: usize, count: usize| qkv.clone().slice([0..n, first * d..(first + count) * d]);
    let norm = |x: Tensor<2>, count: usize, gain: Tensor<1>| {
        rms_norm_composed(x.reshape([n * count, d]), gain, eps).reshape([n, count * d])
    };
    let q = norm(part(0, heads), heads, query_gain);
    let k = norm(part(heads, kv_heads), kv_heads, key_gain);
    let v = qkv.clone().slice([0..n, (heads + kv_heads) * d..width]);
    Tensor::cat(vec![q, k, v], 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The two vectors are the gains of the first and of the second groups.
    Rms,
    /// The two vectors are the gain and the bias.
    Layer,
}

/// How a row is divided: `first` groups of `width` elements scaled by the first gain, then `second` groups scaled by
/// the second, then `rest` groups that pass unchanged.
#[derive(Debug, Clone, Copy)]
struct Groups {
    width: usize,
    first: usize,
    second: usize,
    rest: usize,
}

/// What the operator is told beside its tensors.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    kind: Kind,
    groups: Groups,
    eps: f64,
}

impl Plan {
    /// RMS norm of rows of `width`.
    pub(super) fn rms(width: usize, eps: f64) -> Self {
        Self { kind: Kind::Rms, groups: Groups { width, first: 1, second: 0, rest: 0 }, eps }
    }

    /// Layer norm of rows of `width`.
    pub(super) fn layer(width: usize, eps: f64) -> Self {
        Self { kind: Kind::Layer, groups: Groups { width, first: 1, second: 0, rest: 0 }, eps }
    }

    /// RMS norm of query and key heads of `width` elements.
    pub(super) fn heads(width: usize, heads: usize, kv_heads: usize, eps: f64) -> Self {
        Self { kind: Kind::Rms, groups: Groups { width, first: heads, second: kv_heads, rest: kv_heads }, eps }
    }
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait NormOps: burn::backend::Backend {
    /// See [`rms_norm`], [`layer_norm`] and [`head_norm`].
    fn norm(x: FloatTensor<Self>, first: FloatTensor<Self>, second: FloatTensor<Self>, plan: Plan)
    -> FloatTensor<Self>;
}

/// The mean that is taken off (0 for RMS norm) and what the rest is multiplied with.
#[inline(always)]
fn moments<E: Real>(x: &[E], kind: Kind, eps: E) -> (E, E) {
    let width = E::of(x.len() as f64);
    match kind {
        Kind::Rms => (E::ZERO, E::ONE / (dot(x, x) / width + eps).sqrt()),
        Kind::Layer => {
            let mean = sum(x) / width;
            let mut squares = E::ZERO;
            for block in x.chunks(64) {
                let mut centred = [E::ZERO; 64];
                centred.iter_mut().zip(block).for_each(|(c, &v)| *c = v - mean);
                squares += dot(&centred, &centred);
            }
            (mean, E::ONE / (squares / width + eps).sqrt())
        }
    }
}

/// The norm of rows of `columns` numbers. With `added`, of `x + added`, which is written to the second of the pair.
pub(super) fn forward_slice<E: Real>(
    y: &mut [E],
    x: &[E],
    added: Option<(&[E], &mut [E])>,
    [first, second]: [&[E]; 2],
    columns: usize,
    plan: Plan,
) {
    let Groups { width, first: count, second: more, rest } = plan.groups;
    assert_eq!(columns, width * (count + more + rest), "norm: rows of {columns} do not divide as {:?}", plan.groups);
    let block = columns * ROW_BLOCK;
    match added {
        None => y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| {
            forward_rows(y, x, first, second, columns, plan);
        }),
        Some((added, sum)) => {
            let inputs = x.par_chunks(block).zip(added.par_chunks(block));
            y.par_chunks_mut(block).zip(sum.par_chunks_mut(block)).zip(inputs).for_each(|((y, sum), (x, added))| {
                sum_rows(sum, x, added);
                forward_rows(y, sum, first, second, columns, plan);
            });
        }
    }
}

/// `sum = x + added`.
pub(super) fn sum_slice<E: Real>(sum: &mut [E], x: &[E], added: &[E]) {
    let block = 1 << 14;
    sum.par_chunks_mut(block).zip(x.par_chunks(block).zip(added.par_chunks(block))).for_each(|(sum, (x, added))| {
        sum_rows(sum, x, added);
    });
}

vectorized! {
    fn sum_rows<'a, E: Real>(sum: &'a mut [E], x: &'a [E], added: &'a [E]) -> () {
        for (sum, (&x, &added)) in sum.iter_mut().zip(x.iter().zip(added)) {
            *sum = x + added;
        }
    }
}

vectorized! {
    fn forward_rows<'a, E: Real>(
        y: &'a mut [E],
        x: &'a [E],
        first: &'a [E],
        second: &'a [E],
        columns: usize,
        plan: Plan,
    ) -> () {
        let Groups { width, first: count, second: more, .. } = plan.groups;
        let eps = E::of(plan.eps);
        for (y, x) in y.chunks_mut(columns).zip(x.chunks(columns)) {
            for (group, (y, x)) in y.chunks_mut(width).zip(x.chunks(width)).enumerate() {
                if group >= count + more {
                    y.copy_from_slice(x);
                    continue;
                }
                let (mean, inverse) = moments(x, plan.kind, eps);
                match plan.kind {
                    Kind::Rms => {
                        let gain = if group < count { first } else { second };
                        for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
                            *y = x * inverse * g;
                        }
                    }
                    Kind::Layer => {
                        for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(first).zip(second) {
                            *y = (x - mean) * inverse * g + b;
                        }
                    }
                }
            }
        }
    }
}

/// Adds the gradient of the input to `dx`, and gives the gradients of both vectors, one after the other.
pub(super) fn backward_slice<E: Real>(
    dx: Option<&mut [E]>,
    x: &[E],
    dy: &[E],
    [first, second]: [&[E]; 2],
    columns: usize,
    plan: Plan,
) -> Vec<E> {
    let block = columns * ROW_BLOCK;
    let inputs = x.par_chunks(block).zip(dy.par_chunks(block));
    let partials: Vec<Vec<E>> = match dx {
        Some(dx) => dx
            .par_chunks_mut(block)
            .zip(inputs)
            .map(|(dx, (x, dy))| backward_rows(dx, x, dy, first, second, columns, plan))
            .collect(),
        None => inputs.map(|(x, dy)| backward_rows(&mut [], x, dy, first, second, columns, plan)).collect(),
    };
    let mut total = vec![E::ZERO; 2 * plan.groups.width];
    for partial in partials {
        total.iter_mut().zip(partial).for_each(|(t, p)| *t += p);
    }
    total
}

vectorized! {
    /// Adds to `dx`, unless it is empty; gives what the rows add to the vectors' gradients.
    fn backward_rows<'a, E: Real>(
        dx: &'a mut [E],
        x: &'a [E],
        dy: &'a [E],
        first: &'a [E],
        second: &'a [E],
        columns: usize,
        plan: Plan,
    ) -> Vec<E> {
        let Groups { width, first: count, second: more, .. } = plan.groups;
        let (eps, scale) = (E::of(plan.eps), E::ONE / E::of(width as f64));
        let mut weighted = vec![E::ZERO; width];
        let mut normal = vec![E::ZERO; width];
        let mut total = vec![E::ZERO; 2 * width];
        let (gain_1, gain_2) = total.split_at_mut(width);
        let mut rest = dx;
        for (x, dy) in x.chunks(columns).zip(dy.chunks(columns)) {
            let (dx, others) = rest.split_at_mut(columns.min(rest.len()));
            rest = others;
            for (group, (x, dy)) in x.chunks(width).zip(dy.chunks(width)).enumerate() {
                let dx = if dx.is_empty() { &mut [][..] } else { &mut dx[group * width..(group + 1) * width] };
                if group >= count + more {
                    dx.iter_mut().zip(dy).for_each(|(dx, &dy)| *dx += dy);
                    continue;
                }
                let gain = if group < count { first } else { second };
                let d_gain = if group < count { &mut *gain_1 } else { &mut *gain_2 };
                let (mean, inverse) = moments(x, plan.kind, eps);
                for ((n, &x), (t, &dy)) in normal.iter_mut().zip(x).zip(d_gain.iter_mut().zip(dy)) {
                    *n = (x - mean) * inverse;
                    *t += dy * *n;
                }
                if plan.kind == Kind::Layer {
                    gain_2.iter_mut().zip(dy).for_each(|(t, &dy)| *t += dy);
                }
                if dx.is_empty() {
                    continue;
                }
                for (w, (&dy, &g)) in weighted.iter_mut().zip(dy.iter().zip(gain)) {
                    *w = dy * g;
                }
                // dx = inverse · (w - mean(w) - n · mean(w · n)); the middle term only where a mean was taken off.
                let along = dot(&weighted, &normal) * scale;
                let level = if plan.kind == Kind::Layer { sum(&weighted) * scale } else { E::ZERO };
                for ((dx, &w), &n) in dx.iter_mut().zip(&weighted).zip(&normal) {
                    *dx += inverse * (w - level - n * along);
                }
            }
        }
        total
    }
}

fn forward<E: Real>(x: &FlexTensor, first: &FlexTensor, second: &FlexTensor, plan: Plan) -> FlexTensor {
    let [n, columns] = dims2(x);
    let mut y = vec![E::ZERO; n * columns];
    forward_slice(&mut y, values::<E>(x), None, [values(first), values(second)], columns, plan);
    tensor(y, [n, columns])
}

impl NormOps for Flex {
    fn norm(x: FlexTensor, first: FlexTensor, second: FlexTensor, plan: Plan) -> FlexTensor {
        let (x, first, second) = (contiguous(&x), contiguous(&first), contiguous(&second));
        with_real!(&x, E => forward::<E>(&x, &first, &second, plan))
    }
}

#[derive(Debug)]
struct NormBackward;

impl Backward<Flex, 3> for NormBackward {
    type State = (FlexTensor, FlexTensor, FlexTensor, Plan);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = contiguous(&grads.consume::<Flex>(&ops.node));
        let _time = scope(Operator::Norm, Pass::Backward);
        let (x, first, second, plan) = ops.state;
        let [n, columns] = dims2(&x);
        let [parent_x, parent_first, parent_second] = ops.parents;
        with_real!(&x, E => {
            let mut dx = parent_x.is_some().then(|| vec![E::ZERO; n * columns]);
            let vectors = [values::<E>(&first), values::<E>(&second)];
            let mut both = backward_slice(dx.as_deref_mut(), values(&x), values(&dy), vectors, columns, plan);
            if let (Some(parent), Some(dx)) = (parent_x, dx) {
                grads.register::<Flex>(parent.id, tensor(dx, [n, columns]));
            }
            if parent_first.is_some() || parent_second.is_some() {
                let width = plan.groups.width;
                let after = both.split_off(width);
                if let Some(parent) = parent_first {
                    deliver(grads, parent.id, both, [width]);
                }
                // A plain RMS norm passes its one gain twice; only the first counts.
                let one_gain = plan.kind == Kind::Rms && plan.groups.second == 0;
                if let Some(parent) = parent_second.filter(|_| !one_gain) {
                    deliver(grads, parent.id, after, [width]);
                }
            }
        });
    }
}

impl<C: CheckpointStrategy> NormOps for Autodiff<Flex, C> {
    fn norm(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        plan: Plan,
    ) -> FloatTensor<Self> {
        let nodes = [x.node(), first.node(), second.node()];
        let _time = scope(Operator::Norm, Pass::Forward);
        let [x, first, second] = [x, first, second].map(|t| contiguous(t.primitive()));
        let y = with_real!(&x, E => forward::<E>(&x, &first, &second, plan));
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, first, second, plan), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
