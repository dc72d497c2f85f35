//! Causal self-attention over packed rows, with the rotary embedding of queries and keys inside.
//!
//! The unit of work is one row and one key/value head with the query heads that share it. Scores exist for one block of
//! [`QUERY_BLOCK`] queries of one head at a time, so memory grows with `T`, not with `T²`; the backward pass makes them
//! again from the saved log-sum-exp (Dao et al., 2022, arXiv:2205.14135, without the online softmax, since a block sees
//! all its keys).

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, Flex, backend_extension};
use burn::tensor::{Bool, Tensor, TensorData, activation};
use burn_flex::FlexTensor;
use didact_kernels::Precision;
use rayon::prelude::*;

use super::real::{Real, View};
use super::rows::dot;
use super::storage::{contiguous, on_flex, tensor, values, with_real};
use crate::rotary::RotaryTable;

/// Queries whose scores exist at a time.
const QUERY_BLOCK: usize = 64;

/// Everything that attention is told beside its input. One plan serves all layers of a forward pass.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    /// Rows, B.
    pub rows: usize,
    /// Tokens per row, T.
    pub len: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads, K; divides H, and query head `h` reads key head `h / (H / K)`.
    pub kv_heads: usize,
    /// Head size, D.
    pub head_dim: usize,
    /// Rotations of the `B·T` positions; `None` where positions are learned vectors.
    pub rotary: Option<RotaryTable>,
    /// `[B·T]`: a query sees the keys of its own row and segment up to itself.
    pub segments: Vec<u32>,
    /// Arithmetic of the matrix products; the softmax is always in full precision.
    pub precision: Precision,
}

impl AttentionPlan {
    /// What scores are multiplied with, `1 / √D`.
    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Columns of the input: queries, keys, values.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self, dims: [usize; 2]) {
        assert_eq!(
            dims,
            [self.rows * self.len, self.width()],
            "attention: the input does not fit {} rows of {} tokens, {} heads, {} key/value heads of size {}",
            self.rows,
            self.len,
            self.heads,
            self.kv_heads,
            self.head_dim
        );
        assert_eq!(self.segments.len(), dims[0], "attention: one segment per token is needed");
    }
}

/// `softmax(rot(Q) · rot(K)ᵀ / √D) · V` within each segment, causally.
///
/// # Shapes
/// - `qkv`: `[B·T, (H + 2K)·D]`: queries, keys, values side by side
/// - returns: `[B·T, H·D]`
///
/// # Panics
/// If the input does not fit the plan.
pub fn attention(qkv: Tensor<2>, plan: &Arc<AttentionPlan>) -> Tensor<2> {
    plan.check(qkv.dims());
    if !on_flex(&qkv) {
        return attention_composed(qkv, plan);
    }
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attention(qkv.into_dispatch(), Arc::clone(plan)))
}

/// [`attention`] from Burn's own functions.
pub(crate) fn attention_composed(qkv: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
    let AttentionPlan { rows: b, len: t, heads: h, kv_heads: k, head_dim: d, .. } = *plan;
    let (device, dtype) = (qkv.device(), qkv.dtype());
    let part = |first: usize, count: usize| -> Tensor<4> {
        let part = qkv.clone().slice([0..b * t, first * d..(first + count) * d]);
        part.reshape([b, t, count, d]).swap_dims(1, 2)
    };
    let rotate = |x: Tensor<4>| -> Tensor<4> {
        let Some(table) = &plan.rotary else { return x };
        let half = d / 2;
        let [_, count, _, _] = x.dims();
        let values = |v: &[f32]| {
            Tensor::<4>::from_data(TensorData::new(v.to_vec(), [b, 1, t, half]), (&device, dtype))
        };
        let (cos, sin) = (values(&table.cos), values(&table.sin));
        let low = x.clone().slice([0..b, 0..count, 0..t, 0..half]);
        let high = x.slice([0..b, 0..count, 0..t, half..d]);
        Tensor::cat(
            vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin],
            3,
        )
    };
    let query = rotate(part(0, h)).reshape([b, k, (h / k) * t, d]);
    let key = rotate(part(h, k));
    let value = part(h + k, k);
    let scores = query.matmul(key.swap_dims(2, 3)).mul_scalar(plan.scale()).reshape([b, h, t, t]);
    let mut hidden = Vec::with_capacity(b * t * t);
    for row in plan.segments.chunks(t) {
        for query in 0..t {
            hidden.extend((0..t).map(|key| key > query || row[key] != row[query]));
        }
    }
    let hidden = Tensor::<4, Bool>::from_data(TensorData::new(hidden, [b, 1, t, t]), &device);
    let scores = scores.mask_fill(hidden.expand([b, h, t, t]), f64::NEG_INFINITY);
    let weights = activation::softmax(scores, 3).reshape([b, k, (h / k) * t, t]);
    weights.matmul(value).reshape([b, h, t, d]).swap_dims(1, 2).reshape([b * t, h * d])
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait AttentionOps: burn::backend::Backend {
    /// See [`attention`].
    fn attention(qkv: FloatTensor<Self>, plan: Arc<AttentionPlan>) -> FloatTensor<Self>;
}

/// Which keys the queries of one row see.
struct Visible<'a> {
    segments: &'a [u32],
    /// For each query the first key of its segment.
    first: Vec<usize>,
    /// Whether some segment comes back after another one began, so that keys in between must be masked one by one.
    is_mixed: bool,
}

impl<'a> Visible<'a> {
    fn new(segments: &'a [u32]) -> Self {
        let mut first: Vec<usize> = Vec::with_capacity(segments.len());
        let mut is_mixed = false;
        for (t, segment) in segments.iter().enumerate() {
            let start = match t.checked_sub(1) {
                Some(before) if segments[before] == *segment => first[before],
                _ => segments[..t].iter().position(|s| s == segment).map_or(t, |found| {
                    is_mixed = true;
                    first[found]
                }),
            };
            first.push(start);
        }
        Self { segments, first, is_mixed }
    }

    /// Keys that a block of queries needs: from the first key that any of them sees to the last query.
    fn keys(&self, begin: usize, end: usize) -> (usize, usize) {
        let low = self.first[begin..end].iter().copied().min().unwrap_or(begin);
        (low, end)
    }

    /// Hides from query `t` the keys of other segments; `scores[0]` belongs to `first[t]`.
    fn hide<E: Real>(&self, t: usize, scores: &mut [E], hidden: E) {
        if self.is_mixed {
            for (score, segment) in scores.iter_mut().zip(&self.segments[self.first[t]..=t]) {
                if *segment != self.segments[t] {
                    *score = hidden;
                }
            }
        }
    }
}

/// One row and one key/value head.
struct Unit<'a> {
    plan: &'a AttentionPlan,
    row: usize,
    group: usize,
}

impl<'a> Unit<'a> {
    fn all(plan: &'a AttentionPlan) -> impl IndexedParallelIterator<Item = Self> {
        (0..plan.rows * plan.kv_heads).into_par_iter().map(move |index| Self {
            plan,
            row: index / plan.kv_heads,
            group: index % plan.kv_heads,
        })
    }

    /// Query heads that share the key head, G.
    fn queries(&self) -> usize {
        self.plan.heads / self.plan.kv_heads
    }

    fn query_head(&self, index: usize) -> usize {
        self.group * self.queries() + index
    }

    fn key_head(&self) -> usize {
        self.plan.heads + self.group
    }

    fn value_head(&self) -> usize {
        self.plan.heads + self.plan.kv_heads + self.group
    }

    fn visible(&self) -> Visible<'a> {
        Visible::new(&self.plan.segments[self.row * self.plan.len..(self.row + 1) * self.plan.len])
    }

    /// `[T, D]`: one head's columns, rotated and multiplied by `scale`.
    fn load<E: Real>(&self, data: &[E], width: usize, head: usize, rotated: bool, scale: f64) -> Vec<E> {
        let AttentionPlan { len, head_dim: d, .. } = *self.plan;
        let mut out = vec![E::ZERO; len * d];
        let scale = E::of(scale);
        for (t, out) in out.chunks_exact_mut(d).enumerate() {
            let at = (self.row * len + t) * width + head * d;
            let x = &data[at..at + d];
            match &self.plan.rotary {
                Some(table) if rotated => table.rotate(self.row * len + t, x, out, scale),
                _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = x * scale),
            }
        }
        out
    }

    /// `[T, G·D]` and the log-sum-exp of the scores `[G·T]`.
    fn forward<E: Real>(&self, qkv: &[E]) -> (Vec<E>, Vec<E>) {
        let AttentionPlan { len, head_dim: d, precision, .. } = *self.plan;
        let (width, queries) = (self.plan.width(), self.queries());
        let visible = self.visible();
        let key = self.load(qkv, width, self.key_head(), true, 1.0);
        let value = self.load(qkv, width, self.value_head(), false, 1.0);
        let mut out = vec![E::ZERO; len * queries * d];
        let mut log_sums = vec![E::ZERO; queries * len];
        let mut scores = vec![E::ZERO; QUERY_BLOCK.min(len) * len];
        for head in 0..queries {
            let query = self.load(qkv, width, self.query_head(head), true, self.plan.scale());
            for begin in (0..len).step_by(QUERY_BLOCK) {
                let end = len.min(begin + QUERY_BLOCK);
                let (low, high) = visible.keys(begin, end);
                let keys = high - low;
                E::gemm(
                    &mut scores,
                    keys,
                    [end - begin, keys, d],
                    View::rows(&query[begin * d..], d),
                    View::columns(&key[low * d..], d),
                    false,
                    precision,
                );
                for t in begin..end {
                    let row = &mut scores[(t - begin) * keys..(t - begin + 1) * keys];
                    log_sums[head * len + t] = softmax(row, visible.first[t] - low, t + 1 - low, t, &visible);
                }
                E::gemm(
                    &mut out[begin * queries * d + head * d..],
                    queries * d,
                    [end - begin, d, keys],
                    View::rows(&scores, keys),
                    View::rows(&value[low * d..], d),
                    false,
                    precision,
                );
            }
        }
        (out, log_sums)
    }

    /// `[T, (G + 2)·D]`: gradients of the unit's queries, of its key and of its value.
    fn backward<E: Real>(&self, qkv: &[E], out: &[E], log_sums: &[E], dout: &[E]) -> Vec<E> {
        let AttentionPlan { len, heads, head_dim: d, precision, .. } = *self.plan;
        let (width, queries) = (self.plan.width(), self.queries());
        let visible = self.visible();
        let key = self.load(qkv, width, self.key_head(), true, 1.0);
        let value = self.load(qkv, width, self.value_head(), false, 1.0);
        let mut d_key = vec![E::ZERO; len * d];
        let mut d_value = vec![E::ZERO; len * d];
        let columns = (queries + 2) * d;
        let mut result = vec![E::ZERO; len * columns];
        let mut d_query = vec![E::ZERO; len * d];
        let mut weights = vec![E::ZERO; QUERY_BLOCK.min(len) * len];
        let mut d_scores = weights.clone();
        for head in 0..queries {
            let query = self.load(qkv, width, self.query_head(head), true, self.plan.scale());
            let d_out = self.load(dout, heads * d, self.query_head(head), false, 1.0);
            let output = self.load(out, heads * d, self.query_head(head), false, 1.0);
            for begin in (0..len).step_by(QUERY_BLOCK) {
                let end = len.min(begin + QUERY_BLOCK);
                let (low, high) = visible.keys(begin, end);
                let (rows, keys) = (end - begin, high - low);
                let query = &query[begin * d..end * d];
                let d_out = &d_out[begin * d..end * d];
                let key = &key[low * d..high * d];
                let value = &value[low * d..high * d];
                E::gemm(
                    &mut weights,
                    keys,
                    [rows, keys, d],
                    View::rows(query, d),
                    View::columns(key, d),
                    false,
                    precision,
                );
                E::gemm(
                    &mut d_scores,
                    keys,
                    [rows, keys, d],
                    View::rows(d_out, d),
                    View::columns(value, d),
                    false,
                    precision,
                );
                for t in begin..end {
                    let at = (t - begin) * keys..(t - begin + 1) * keys;
                    let delta = dot(&d_out[(t - begin) * d..(t - begin + 1) * d], &output[t * d..(t + 1) * d]);
                    let span = (visible.first[t] - low, t + 1 - low);
                    softmax_backward(
                        &mut weights[at.clone()],
                        &mut d_scores[at],
                        span,
                        log_sums[(self.query_head(head) * self.plan.rows + self.row) * len + t],
                        delta,
                        t,
                        &visible,
                    );
                }
                E::gemm(
                    &mut d_value[low * d..],
                    d,
                    [keys, d, rows],
                    View::columns(&weights, keys),
                    View::rows(d_out, d),
                    true,
                    precision,
                );
                E::gemm(
                    &mut d_key[low * d..],
                    d,
                    [keys, d, rows],
                    View::columns(&d_scores, keys),
                    View::rows(query, d),
                    true,
                    precision,
                );
                E::gemm(
                    &mut d_query[begin * d..],
                    d,
                    [rows, d, keys],
                    View::rows(&d_scores, keys),
                    View::rows(key, d),
                    false,
                    precision,
                );
            }
            self.store(&mut result, columns, head, &d_query, true, self.plan.scale());
        }
        self.store(&mut result, columns, queries, &d_key, true, 1.0);
        self.store(&mut result, columns, queries + 1, &d_value, false, 1.0);
        result
    }

    /// Rotates back and writes one head's gradient into its columns.
    fn store<E: Real>(&self, out: &mut [E], columns: usize, place: usize, data: &[E], rotated: bool, scale: f64) {
        let AttentionPlan { len, head_dim: d, .. } = *self.plan;
        let scale = E::of(scale);
        for (t, (out, x)) in out.chunks_exact_mut(columns).zip(data.chunks_exact(d)).enumerate() {
            let out = &mut out[place * d..(place + 1) * d];
            match &self.plan.rotary {
                Some(table) if rotated => table.rotate_back(self.row * len + t, x, out, scale),
                _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = x * scale),
            }
        }
    }
}

/// Scores outside every softmax; far below any score, and finite so that differences stay numbers.
const HIDDEN: f64 = -1e30;

/// Turns the scores of query `t` into weights: softmax over `[from, to)` of `row`, zero elsewhere. Returns log-sum-exp.
#[inline(always)]
fn softmax<E: Real>(row: &mut [E], from: usize, to: usize, t: usize, visible: &Visible<'_>) -> E {
    row[..from].fill(E::ZERO);
    row[to..].fill(E::ZERO);
    let span = &mut row[from..to];
    visible.hide(t, span, E::of(HIDDEN));
    let mut largest = span[0];
    for &score in span.iter() {
        largest = if score > largest { score } else { largest };
    }
    for score in span.iter_mut() {
        *score = (*score - largest).exp();
    }
    visible.hide(t, span, E::ZERO);
    let sum = super::rows::sum(span);
    let inverse = E::ONE / sum;
    for score in span.iter_mut() {
        *score = *score * inverse;
    }
    largest + E::of(sum.wide().ln())
}

/// Turns scores into weights and the weights' gradient into the scores' gradient, for query `t`.
#[inline(always)]
fn softmax_backward<E: Real>(
    weights: &mut [E],
    gradient: &mut [E],
    (from, to): (usize, usize),
    log_sum: E,
    delta: E,
    t: usize,
    visible: &Visible<'_>,
) {
    for part in [&mut *weights, &mut *gradient] {
        part[..from].fill(E::ZERO);
        part[to..].fill(E::ZERO);
    }
    let (weights, gradient) = (&mut weights[from..to], &mut gradient[from..to]);
    for weight in weights.iter_mut() {
        *weight = (*weight - log_sum).exp();
    }
    visible.hide(t, weights, E::ZERO);
    for (gradient, &weight) in gradient.iter_mut().zip(weights.iter()) {
        *gradient = weight * (*gradient - delta);
    }
}

/// `[N, H·D]` and the log-sum-exps as `[H, B, T]`.
fn forward<E: Real>(qkv: &FlexTensor, plan: &AttentionPlan) -> (FlexTensor, FlexTensor) {
    let AttentionPlan { rows, len, heads, kv_heads, head_dim: d, .. } = *plan;
    let qkv = values::<E>(qkv);
    let units: Vec<(Vec<E>, Vec<E>)> = Unit::all(plan).map(|unit| unit.forward(qkv)).collect();
    let part = heads / kv_heads * d;
    let mut out = vec![E::ZERO; rows * len * heads * d];
    out.par_chunks_mut(len * heads * d).enumerate().for_each(|(row, out)| {
        for group in 0..kv_heads {
            let unit = &units[row * kv_heads + group].0;
            for (out, unit) in out.chunks_exact_mut(heads * d).zip(unit.chunks_exact(part)) {
                out[group * part..(group + 1) * part].copy_from_slice(unit);
            }
        }
    });
    let mut log_sums = vec![E::ZERO; heads * rows * len];
    for (index, (_, unit)) in units.iter().enumerate() {
        let (row, group) = (index / kv_heads, index % kv_heads);
        for (head, sums) in unit.chunks_exact(len).enumerate() {
            let at = ((group * (heads / kv_heads) + head) * rows + row) * len;
            log_sums[at..at + len].copy_from_slice(sums);
        }
    }
    (tensor(out, [rows * len, heads * d]), tensor(log_sums, [heads * rows * len]))
}

fn backward<E: Real>(
    qkv: &FlexTensor,
    out: &FlexTensor,
    log_sums: &FlexTensor,
    dout: &FlexTensor,
    plan: &AttentionPlan,
) -> FlexTensor {
    let AttentionPlan { rows, len, heads, kv_heads, head_dim: d, .. } = *plan;
    let width = plan.width();
    let (qkv, out, log_sums, dout) =
        (values::<E>(qkv), values::<E>(out), values::<E>(log_sums), values::<E>(dout));
    let units: Vec<Vec<E>> = Unit::all(plan).map(|unit| unit.backward(qkv, out, log_sums, dout)).collect();
    let queries = heads / kv_heads;
    let mut dqkv = vec![E::ZERO; rows * len * width];
    dqkv.par_chunks_mut(len * width).enumerate().for_each(|(row, dqkv)| {
        for group in 0..kv_heads {
            let unit = &units[row * kv_heads + group];
            for (dqkv, unit) in dqkv.chunks_exact_mut(width).zip(unit.chunks_exact((queries + 2) * d)) {
                let (query, rest) = unit.split_at(queries * d);
                let (key, value) = rest.split_at(d);
                dqkv[group * queries * d..(group + 1) * queries * d].copy_from_slice(query);
                dqkv[(heads + group) * d..(heads + group + 1) * d].copy_from_slice(key);
                dqkv[(heads + kv_heads + group) * d..(heads + kv_heads + group + 1) * d].copy_from_slice(value);
            }
        }
    });
    tensor(dqkv, [rows * len, width])
}

impl AttentionOps for Flex {
    fn attention(qkv: FlexTensor, plan: Arc<AttentionPlan>) -> FlexTensor {
        let qkv = contiguous(&qkv);
        with_real!(&qkv, E => forward::<E>(&qkv, &plan)).0
    }
}

#[derive(Debug)]
struct AttentionBackward;

#[derive(Debug, Clone)]
struct State {
    qkv: FlexTensor,
    out: FlexTensor,
    log_sums: FlexTensor,
    plan: Arc<AttentionPlan>,
}

impl Backward<Flex, 1> for AttentionBackward {
    type State = State;

    fn backward(self, ops: Ops<State, 1>, grads: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dout = contiguous(&grads.consume::<Flex>(&ops.node));
        let State { qkv, out, log_sums, plan } = ops.state;
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            let dqkv = with_real!(&qkv, E => backward::<E>(&qkv, &out, &log_sums, &dout, &plan));
            grads.register::<Flex>(parent.id, dqkv);
        }
    }
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<Flex, C> {
    fn attention(qkv: FloatTensor<Self>, plan: Arc<AttentionPlan>) -> FloatTensor<Self> {
        let nodes = [qkv.node()];
        let qkv = contiguous(qkv.primitive());
        let (out, log_sums) = with_real!(&qkv, E => forward::<E>(&qkv, &plan));
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(State { qkv, out: out.clone(), log_sums, plan }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}
