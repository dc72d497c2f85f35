//! Causal self-attention over ragged sequences, with the rotary embedding of queries and keys inside.
//!
//! The unit of work is one sequence and one key/value head with the query heads that share it. Scores exist for one block of
//! `QUERY_BLOCK` queries of one head at a time, so memory grows with `T`, not with `T²`; the backward pass makes them
//! again from the saved log-sum-exp (Dao et al., 2022, arXiv:2205.14135, without the online softmax, since a block sees
//! all its keys).

use std::ops::Range;
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
use super::rows::{dot, max, sum};
use super::storage::{contiguous, dims2, on_flex, tensor, values, with_real};
use super::vector::vectorized;
use crate::rotary::RotaryTable;

/// Queries whose scores exist at a time.
const QUERY_BLOCK: usize = 64;

/// Everything that attention is told beside its input. One plan serves all layers of a forward pass.
#[derive(Debug, Clone)]
pub struct AttentionPlan {
    /// Where each sequence's tokens are: consecutive, from 0 to N. A query sees the keys of its own sequence up to
    /// itself.
    pub sequences: Vec<Range<usize>>,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads, K; divides H, and query head `h` reads key head `h / (H / K)`.
    pub kv_heads: usize,
    /// Head size, D.
    pub head_dim: usize,
    /// Rotations of the N tokens' positions; `None` where positions are learned vectors.
    pub rotary: Option<RotaryTable>,
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
        let mut tokens = 0;
        for sequence in &self.sequences {
            assert_eq!(sequence.start, tokens, "attention: sequences {:?} are not consecutive", self.sequences);
            tokens = sequence.end;
        }
        assert_eq!(
            dims,
            [tokens, self.width()],
            "attention: the input does not fit {tokens} tokens, {} heads, {} key/value heads of size {}",
            self.heads,
            self.kv_heads,
            self.head_dim
        );
    }

    /// Cuts a matrix of `width` columns into the rows of each sequence.
    fn split_mut<'a, E>(&self, mut data: &'a mut [E], width: usize) -> Vec<&'a mut [E]> {
        let mut parts = Vec::with_capacity(self.sequences.len());
        for sequence in &self.sequences {
            let (part, rest) = data.split_at_mut(sequence.len() * width);
            parts.push(part);
            data = rest;
        }
        parts
    }
}

/// `softmax(rot(Q) · rot(K)ᵀ / √D) · V` within each sequence, causally.
///
/// # Shapes
/// - `qkv`: `[N, (H + 2K)·D]`: queries, keys, values side by side
/// - returns: `[N, H·D]`
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
    let outputs = plan.sequences.iter().map(|sequence| sequence_composed(&qkv, plan, sequence)).collect();
    Tensor::cat(outputs, 0)
}

fn sequence_composed(qkv: &Tensor<2>, plan: &AttentionPlan, sequence: &Range<usize>) -> Tensor<2> {
    let AttentionPlan { heads: h, kv_heads: k, head_dim: d, .. } = *plan;
    let t = sequence.len();
    let (device, dtype) = (qkv.device(), qkv.dtype());
    // [count, T, D]
    let part = |first: usize, count: usize| -> Tensor<3> {
        let part = qkv.clone().slice([sequence.clone(), first * d..(first + count) * d]);
        part.reshape([t, count, d]).swap_dims(0, 1)
    };
    let rotate = |x: Tensor<3>| -> Tensor<3> {
        let Some(table) = &plan.rotary else { return x };
        let half = d / 2;
        let [count, _, _] = x.dims();
        let values = |v: &[f32]| {
            let v = v[sequence.start * half..sequence.end * half].to_vec();
            Tensor::<3>::from_data(TensorData::new(v, [1, t, half]), (&device, dtype))
        };
        let (cos, sin) = (values(&table.cos), values(&table.sin));
        let low = x.clone().slice([0..count, 0..t, 0..half]);
        let high = x.slice([0..count, 0..t, half..d]);
        Tensor::cat(vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin], 2)
    };
    let query = rotate(part(0, h)).reshape([k, (h / k) * t, d]);
    let key = rotate(part(h, k));
    let value = part(h + k, k);
    let scores = query.matmul(key.swap_dims(1, 2)).mul_scalar(plan.scale()).reshape([h, t, t]);
    let hidden: Vec<bool> = (0..t * t).map(|i| i % t > i / t).collect();
    let hidden = Tensor::<3, Bool>::from_data(TensorData::new(hidden, [1, t, t]), &device);
    let scores = scores.mask_fill(hidden.expand([h, t, t]), f64::NEG_INFINITY);
    let weights = activation::softmax(scores, 2).reshape([k, (h / k) * t, t]);
    weights.matmul(value).reshape([h, t, d]).swap_dims(0, 1).reshape([t, h * d])
}

/// The extension point through which Burn reaches this operator.
#[backend_extension(Flex, Autodiff)]
pub trait AttentionOps: burn::backend::Backend {
    /// See [`attention`].
    fn attention(qkv: FloatTensor<Self>, plan: Arc<AttentionPlan>) -> FloatTensor<Self>;
}

/// One sequence and one key/value head.
struct Unit<'a> {
    plan: &'a AttentionPlan,
    start: usize,
    len: usize,
    group: usize,
}

impl<'a> Unit<'a> {
    fn all(plan: &'a AttentionPlan) -> impl IndexedParallelIterator<Item = Self> {
        (0..plan.sequences.len() * plan.kv_heads).into_par_iter().map(move |index| {
            let sequence = &plan.sequences[index / plan.kv_heads];
            Self { plan, start: sequence.start, len: sequence.len(), group: index % plan.kv_heads }
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

    /// The unit's log-sum-exps `[G, T]` among those of all, which lie as `[H, T]` sequence after sequence.
    fn log_sums<'b, E>(&self, all: &'b [E]) -> &'b [E] {
        let begin = self.start * self.plan.heads + self.group * self.queries() * self.len;
        &all[begin..begin + self.queries() * self.len]
    }

    /// `[T, D]`: one head's columns, rotated and multiplied by `scale`.
    fn load<E: Real>(&self, data: &[E], width: usize, head: usize, rotated: bool, scale: f64) -> Vec<E> {
        let mut out = vec![E::ZERO; self.len * self.plan.head_dim];
        load_head(self, &mut out, data, width, head, rotated, E::of(scale));
        out
    }

    /// `[T, G·D]` and the log-sum-exp of the scores `[G, T]`.
    fn forward<E: Real>(&self, qkv: &[E]) -> (Vec<E>, Vec<E>) {
        let (len, queries) = (self.len, self.queries());
        let AttentionPlan { head_dim: d, precision, .. } = *self.plan;
        let width = self.plan.width();
        let key = self.load(qkv, width, self.key_head(), true, 1.0);
        let value = self.load(qkv, width, self.value_head(), false, 1.0);
        let mut out = vec![E::ZERO; len * queries * d];
        let mut log_sums = vec![E::ZERO; queries * len];
        let mut scores = vec![E::ZERO; QUERY_BLOCK.min(len) * len];
        for head in 0..queries {
            let query = self.load(qkv, width, self.query_head(head), true, self.plan.scale());
            for begin in (0..len).step_by(QUERY_BLOCK) {
                let end = len.min(begin + QUERY_BLOCK);
                let (query, key) = (View::rows(&query[begin * d..], d), View::columns(&key, d));
                E::gemm(&mut scores, end, [end - begin, end, d], query, key, false, precision);
                let log_sums = &mut log_sums[head * len + begin..head * len + end];
                softmax(&mut scores, end, begin + 1, log_sums);
                let out = &mut out[begin * queries * d + head * d..];
                let (weights, value) = (View::rows(&scores, end), View::rows(&value, d));
                E::gemm(out, queries * d, [end - begin, d, end], weights, value, false, precision);
            }
        }
        (out, log_sums)
    }

    /// `[T, (G + 2)·D]`: gradients of the unit's queries, of its key and of its value.
    fn backward<E: Real>(&self, qkv: &[E], out: &[E], log_sums: &[E], dout: &[E]) -> Vec<E> {
        let (len, queries) = (self.len, self.queries());
        let AttentionPlan { heads, head_dim: d, precision, .. } = *self.plan;
        let width = self.plan.width();
        let log_sums = self.log_sums(log_sums);
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
                let rows = end - begin;
                let (query, d_out) = (&query[begin * d..end * d], &d_out[begin * d..end * d]);
                let columns = View::columns(&key, d);
                E::gemm(&mut weights, end, [rows, end, d], View::rows(query, d), columns, false, precision);
                let columns = View::columns(&value, d);
                E::gemm(&mut d_scores, end, [rows, end, d], View::rows(d_out, d), columns, false, precision);
                let log_sums = &log_sums[head * len + begin..head * len + end];
                let output = &output[begin * d..end * d];
                softmax_backward(&mut weights, &mut d_scores, end, begin + 1, log_sums, d_out, output);
                let columns = View::columns(&weights, end);
                E::gemm(&mut d_value, d, [end, d, rows], columns, View::rows(d_out, d), true, precision);
                let columns = View::columns(&d_scores, end);
                E::gemm(&mut d_key, d, [end, d, rows], columns, View::rows(query, d), true, precision);
                let (d_scores, key) = (View::rows(&d_scores, end), View::rows(&key, d));
                E::gemm(&mut d_query[begin * d..], d, [rows, d, end], d_scores, key, false, precision);
            }
            self.store(&mut result, columns, head, &d_query, true, self.plan.scale());
        }
        self.store(&mut result, columns, queries, &d_key, true, 1.0);
        self.store(&mut result, columns, queries + 1, &d_value, false, 1.0);
        result
    }

    /// Rotates back and writes one head's gradient into its columns.
    fn store<E: Real>(&self, out: &mut [E], columns: usize, place: usize, data: &[E], rotated: bool, scale: f64) {
        store_head(self, out, columns, place, data, rotated, E::of(scale));
    }
}

vectorized! {
    /// See [`Unit::load`].
    fn load_head<'a, E: Real>(
        unit: &'a Unit<'a>,
        out: &'a mut [E],
        data: &'a [E],
        width: usize,
        head: usize,
        rotated: bool,
        scale: E,
    ) -> () {
        let d = unit.plan.head_dim;
        for (t, out) in out.chunks_exact_mut(d).enumerate() {
            let at = (unit.start + t) * width + head * d;
            let x = &data[at..at + d];
            match &unit.plan.rotary {
                Some(table) if rotated => table.rotate(unit.start + t, x, out, scale),
                _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = x * scale),
            }
        }
    }
}

vectorized! {
    /// See [`Unit::store`].
    fn store_head<'a, E: Real>(
        unit: &'a Unit<'a>,
        out: &'a mut [E],
        columns: usize,
        place: usize,
        data: &'a [E],
        rotated: bool,
        scale: E,
    ) -> () {
        let d = unit.plan.head_dim;
        for (t, (out, x)) in out.chunks_exact_mut(columns).zip(data.chunks_exact(d)).enumerate() {
            let out = &mut out[place * d..(place + 1) * d];
            match &unit.plan.rotary {
                Some(table) if rotated => table.rotate_back(unit.start + t, x, out, scale),
                _ => out.iter_mut().zip(x).for_each(|(o, &x)| *o = x * scale),
            }
        }
    }
}

vectorized! {
    /// Turns the scores of a block of queries into weights: in row `i`, softmax over the first `seen + i`, zero after.
    /// Writes each row's log-sum-exp.
    fn softmax<'a, E: Real>(scores: &'a mut [E], keys: usize, seen: usize, log_sums: &'a mut [E]) -> () {
        for (i, (row, log_sum)) in scores.chunks_exact_mut(keys).zip(log_sums).enumerate() {
            let (row, rest) = row.split_at_mut(seen + i);
            rest.fill(E::ZERO);
            let largest = max(row);
            for score in row.iter_mut() {
                *score = (*score - largest).exp();
            }
            let total = sum(row);
            let inverse = E::ONE / total;
            for score in row.iter_mut() {
                *score = *score * inverse;
            }
            *log_sum = largest + E::of(total.wide().ln());
        }
    }
}

vectorized! {
    /// Turns a block's scores into weights and its weights' gradients into its scores' gradients. Row `i` sees the first
    /// `seen + i` keys; `d_out` and `out` are the rows' outputs with their gradients.
    fn softmax_backward<'a, E: Real>(
        weights: &'a mut [E],
        gradient: &'a mut [E],
        keys: usize,
        seen: usize,
        log_sums: &'a [E],
        d_out: &'a [E],
        out: &'a [E],
    ) -> () {
        let d = out.len() / log_sums.len();
        let rows = weights.chunks_exact_mut(keys).zip(gradient.chunks_exact_mut(keys));
        let outputs = out.chunks_exact(d).zip(d_out.chunks_exact(d));
        for (i, (((weights, gradient), (out, d_out)), &log_sum)) in rows.zip(outputs).zip(log_sums).enumerate() {
            let seen = seen + i;
            weights[seen..].fill(E::ZERO);
            gradient[seen..].fill(E::ZERO);
            let delta = dot(out, d_out);
            for (weight, gradient) in weights[..seen].iter_mut().zip(&mut gradient[..seen]) {
                *weight = (*weight - log_sum).exp();
                *gradient = *weight * (*gradient - delta);
            }
        }
    }
}

/// `[N, H·D]` and the log-sum-exps, `[H, T]` of each sequence.
fn forward<E: Real>(qkv: &FlexTensor, plan: &AttentionPlan) -> (FlexTensor, FlexTensor) {
    let AttentionPlan { heads, kv_heads, head_dim: d, .. } = *plan;
    let [n, _] = dims2(qkv);
    let qkv = values::<E>(qkv);
    let units: Vec<(Vec<E>, Vec<E>)> = Unit::all(plan).map(|unit| unit.forward(qkv)).collect();
    let part = heads / kv_heads * d;
    let mut out = vec![E::ZERO; n * heads * d];
    plan.split_mut(&mut out, heads * d).into_par_iter().enumerate().for_each(|(sequence, out)| {
        for group in 0..kv_heads {
            let unit = &units[sequence * kv_heads + group].0;
            for (out, unit) in out.chunks_exact_mut(heads * d).zip(unit.chunks_exact(part)) {
                out[group * part..(group + 1) * part].copy_from_slice(unit);
            }
        }
    });
    let mut log_sums = Vec::with_capacity(n * heads);
    for (_, unit) in &units {
        log_sums.extend_from_slice(unit);
    }
    (tensor(out, [n, heads * d]), tensor(log_sums, [n * heads]))
}

fn backward<E: Real>(
    qkv: &FlexTensor,
    out: &FlexTensor,
    log_sums: &FlexTensor,
    dout: &FlexTensor,
    plan: &AttentionPlan,
) -> FlexTensor {
    let AttentionPlan { heads, kv_heads, head_dim: d, .. } = *plan;
    let [n, width] = dims2(qkv);
    let (qkv, out, log_sums, dout) = (values::<E>(qkv), values::<E>(out), values::<E>(log_sums), values::<E>(dout));
    let units: Vec<Vec<E>> = Unit::all(plan).map(|unit| unit.backward(qkv, out, log_sums, dout)).collect();
    let queries = heads / kv_heads;
    let mut dqkv = vec![E::ZERO; n * width];
    plan.split_mut(&mut dqkv, width).into_par_iter().enumerate().for_each(|(sequence, dqkv)| {
        for group in 0..kv_heads {
            let unit = &units[sequence * kv_heads + group];
            for (dqkv, unit) in dqkv.chunks_exact_mut(width).zip(unit.chunks_exact((queries + 2) * d)) {
                let (query, rest) = unit.split_at(queries * d);
                let (key, value) = rest.split_at(d);
                dqkv[group * queries * d..(group + 1) * queries * d].copy_from_slice(query);
                dqkv[(heads + group) * d..(heads + group + 1) * d].copy_from_slice(key);
                dqkv[(heads + kv_heads + group) * d..(heads + kv_heads + group + 1) * d].copy_from_slice(value);
            }
        }
    });
    tensor(dqkv, [n, width])
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
