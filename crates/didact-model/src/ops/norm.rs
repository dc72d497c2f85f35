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
use super::rows::{ROW_BLOCK, dot, sum, sum_over_blocks};
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;

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
    let width = gain.dims()[0];
    let plan = Plan { kind: Kind::Rms, groups: Groups { width, first: 1, second: 0, rest: 0 }, eps };
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
    let width = gain.dims()[0];
    let plan = Plan { kind: Kind::Layer, groups: Groups { width, first: 1, second: 0, rest: 0 }, eps };
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
    let width = query_gain.dims()[0];
    let groups = Groups { width, first: heads, second: kv_heads, rest: kv_heads };
    let plan = Plan { kind: Kind::Rms, groups, eps };
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

fn forward<E: Real>(x: &FlexTensor, first: &FlexTensor, second: &FlexTensor, plan: Plan) -> FlexTensor {
    let [n, columns] = dims2(x);
    let (x, first, second) = (values::<E>(x), values::<E>(first), values::<E>(second));
    let Groups { width, first: count, second: more, rest } = plan.groups;
    assert_eq!(columns, width * (count + more + rest), "norm: rows of {columns} do not divide as {:?}", plan.groups);
    let mut y = vec![E::ZERO; x.len()];
    y.par_chunks_mut(columns * ROW_BLOCK).zip(x.par_chunks(columns * ROW_BLOCK)).for_each(|(y, x)| {
        forward_rows(y, x, first, second, columns, plan);
    });
    tensor(y, [n, columns])
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

fn backward_input<E: Real>(x: &[E], dy: &[E], first: &[E], second: &[E], columns: usize, plan: Plan) -> Vec<E> {
    let mut dx = vec![E::ZERO; x.len()];
    let block = columns * ROW_BLOCK;
    dx.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block)).for_each(|((dx, x), dy)| {
        backward_rows(dx, x, dy, first, second, columns, plan);
    });
    dx
}

vectorized! {
    fn backward_rows<'a, E: Real>(
        dx: &'a mut [E],
        x: &'a [E],
        dy: &'a [E],
        first: &'a [E],
        second: &'a [E],
        columns: usize,
        plan: Plan,
    ) -> () {
        let Groups { width, first: count, second: more, .. } = plan.groups;
        let (eps, scale) = (E::of(plan.eps), E::ONE / E::of(width as f64));
        let mut weighted = vec![E::ZERO; width];
        let mut normal = vec![E::ZERO; width];
        for ((dx, x), dy) in dx.chunks_mut(columns).zip(x.chunks(columns)).zip(dy.chunks(columns)) {
            for (group, ((dx, x), dy)) in dx.chunks_mut(width).zip(x.chunks(width)).zip(dy.chunks(width)).enumerate() {
                if group >= count + more {
                    dx.copy_from_slice(dy);
                    continue;
                }
                let gain = if group < count { first } else { second };
                let (mean, inverse) = moments(x, plan.kind, eps);
                for (((w, n), (&dy, &x)), &g) in weighted.iter_mut().zip(&mut normal).zip(dy.iter().zip(x)).zip(gain) {
                    *w = dy * g;
                    *n = (x - mean) * inverse;
                }
                // dx = inverse · (w - mean(w) - n · mean(w · n)); the middle term only where a mean was taken off.
                let along = dot(&weighted, &normal) * scale;
                let level = if plan.kind == Kind::Layer { sum(&weighted) * scale } else { E::ZERO };
                for ((dx, &w), &n) in dx.iter_mut().zip(&weighted).zip(&normal) {
                    *dx = inverse * (w - level - n * along);
                }
            }
        }
    }
}

/// Gradients of both vectors at once, one after the other in the result.
fn backward_vectors<E: Real>(x: &[E], dy: &[E], columns: usize, plan: Plan) -> Vec<E> {
    sum_over_blocks(x.len() / columns, 2 * plan.groups.width, |first_row, rows| {
        let range = first_row * columns..(first_row + rows) * columns;
        backward_vectors_rows(&x[range.clone()], &dy[range], columns, plan)
    })
}

vectorized! {
    fn backward_vectors_rows<'a, E: Real>(x: &'a [E], dy: &'a [E], columns: usize, plan: Plan) -> Vec<E> {
        let Groups { width, first: count, second: more, .. } = plan.groups;
        let eps = E::of(plan.eps);
        let mut total = vec![E::ZERO; 2 * width];
        let (gain_1, gain_2) = total.split_at_mut(width);
        for (x, dy) in x.chunks(columns).zip(dy.chunks(columns)) {
            for (group, (x, dy)) in x.chunks(width).zip(dy.chunks(width)).enumerate().take(count + more) {
                let (mean, inverse) = moments(x, plan.kind, eps);
                let gain = if group < count { &mut *gain_1 } else { &mut *gain_2 };
                for ((t, &x), &dy) in gain.iter_mut().zip(x).zip(dy) {
                    *t += dy * ((x - mean) * inverse);
                }
                if plan.kind == Kind::Layer {
                    gain_2.iter_mut().zip(dy).for_each(|(t, &dy)| *t += dy);
                }
            }
        }
        total
    }
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
        let (x, first, second, plan) = ops.state;
        let [n, columns] = dims2(&x);
        let [parent_x, parent_first, parent_second] = ops.parents;
        with_real!(&x, E => {
            let (xs, dys) = (values::<E>(&x), values::<E>(&dy));
            if let Some(parent) = parent_x {
                let dx = backward_input(xs, dys, values::<E>(&first), values::<E>(&second), columns, plan);
                grads.register::<Flex>(parent.id, tensor(dx, [n, columns]));
            }
            if parent_first.is_some() || parent_second.is_some() {
                let mut both = backward_vectors(xs, dys, columns, plan);
                let width = plan.groups.width;
                let after = both.split_off(width);
                if let Some(parent) = parent_first {
                    grads.register::<Flex>(parent.id, tensor(both, [width]));
                }
                // A plain RMS norm passes its one gain twice; only the first counts.
                let one_gain = plan.kind == Kind::Rms && plan.groups.second == 0;
                if let Some(parent) = parent_second.filter(|_| !one_gain) {
                    grads.register::<Flex>(parent.id, tensor(after, [width]));
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
        let [x, first, second] = [x, first, second].map(|t| contiguous(t.primitive()));
        let y = with_real!(&x, E => forward::<E>(&x, &first, &second, plan));
        match NormBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, first, second, plan), y),
            OpsKind::UnTracked(prep) => prep.finish(y),
        }
    }
}
