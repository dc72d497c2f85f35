//! Scaled dot-product attention for training: forward and backward, without a matrix of all queries by all keys.
//!
//! Decoding over a cache is [`crate::attention`]. Here all queries and keys of a batch are at hand: ragged sequences as
//! [`Segment`]s, causal or not, with a sliding window, grouped queries, padding (rows in no segment's keys), or queries
//! and keys of different inputs (cross-attention). The rotary embedding can be applied on the way in and out.
//!
//! # How
//! The unit of work is a segment and a query head. Scores exist for 32 queries at a time, transposed: one line of 32
//! queries for each key, so that everything about a query stays in its lane. The softmax sees all keys of a query at
//! once. The backward pass makes the scores again from the saved log-sum-exp (Dao et al., 2022, arXiv:2205.14135).
//!
//! A query's output has the same bits whatever its place in its block, and results do not depend on threads.

mod arithmetic;
mod backward;
mod block;
mod forward;
pub mod reference;
#[cfg(test)]
mod tests;

use crate::level::{Level, Precision, level};
use std::ops::Range;

/// Rows of heads: head `h` of row `t` is `data[t * stride + h * D..][..D]`.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, E = f32> {
    /// What holds them.
    pub data: &'a [E],
    /// Distance between rows.
    pub stride: usize,
}

/// [`Heads`] to be written: what lies between the heads of a row and the next is left alone.
#[derive(Debug)]
pub struct HeadsMut<'a, E = f32> {
    /// What holds them.
    pub data: &'a mut [E],
    /// Distance between rows.
    pub stride: usize,
}

/// One sequence: queries that look at keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Its rows among the queries.
    pub queries: Range<usize>,
    /// Its rows among the keys and values. Padding at an end is left out of it.
    pub keys: Range<usize>,
    /// The number, among the segment's keys, of the key at the first query's own position: 0 for self-attention, the
    /// length of what went before where `queries` is the end of a sequence. Only [`Attention::causal`] and
    /// [`Attention::window`] look at it.
    pub first: usize,
}

impl Segment {
    /// A sequence that attends to itself.
    pub fn whole(rows: Range<usize>) -> Self {
        Self { queries: rows.clone(), keys: rows, first: 0 }
    }

    /// A sequence that attends to another.
    pub fn cross(queries: Range<usize>, keys: Range<usize>) -> Self {
        Self { queries, keys, first: 0 }
    }
}

/// Rotations of rows: `cos` and `sin` of row `t` are at `t * D / 2`.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// `[N, D/2]`.
    pub cos: &'a [f32],
    /// `[N, D/2]`.
    pub sin: &'a [f32],
}

/// Everything that attention is told beside queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// The sequences. Neither their queries nor their keys may overlap; rows in none are not read and not written.
    pub segments: &'a [Segment],
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads, K; divides H, and query head `h` reads key head `h / (H / K)`.
    pub kv_heads: usize,
    /// Head size, D.
    pub head_dim: usize,
    /// What scores are multiplied with, mostly `1 / √D`.
    pub scale: f32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
    /// Whether a query sees only keys less than so many positions away.
    pub window: Option<usize>,
    /// Rotations of the queries' and keys' rows, which then are the same rows.
    pub rotary: Option<Rotary<'a>>,
    /// How products are computed. The softmax is always in f32.
    pub precision: Precision,
}

impl Attention<'_> {
    /// The keys of a segment, from 0, that its query `index` sees.
    pub(crate) fn visible(&self, segment: &Segment, index: usize) -> Range<usize> {
        let keys = segment.keys.len();
        let at = segment.first + index;
        let end = if self.causal { keys.min(at + 1) } else { keys };
        match self.window {
            None => 0..end,
            Some(window) => (at + 1).saturating_sub(window).min(end)..end.min(at + window),
        }
    }

    fn check<E>(&self, q: Heads<E>, k: Heads<E>, v: Heads<E>, log_sums: usize) -> usize {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        assert!(
            head_dim > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: {heads} heads of size {head_dim} over {kv_heads} key/value heads"
        );
        assert!(self.window != Some(0), "attention: a window of no keys");
        let ends = |of: fn(&Segment) -> &Range<usize>, what: &str| {
            let mut ranges: Vec<_> = self.segments.iter().map(of).filter(|r| !r.is_empty()).collect();
            ranges.sort_by_key(|r| r.start);
            for pair in ranges.windows(2) {
                assert!(pair[0].end <= pair[1].start, "attention: {what} {:?} and {:?} overlap", pair[0], pair[1]);
            }
            ranges.last().map_or(0, |r| r.end)
        };
        let queries = ends(|s| &s.queries, "queries");
        let keys = ends(|s| &s.keys, "keys");
        holds("queries", q.data.len(), q.stride, queries, heads * head_dim);
        holds("keys", k.data.len(), k.stride, keys, kv_heads * head_dim);
        holds("values", v.data.len(), v.stride, keys, kv_heads * head_dim);
        assert!(
            log_sums.is_multiple_of(heads) && log_sums >= heads * queries,
            "attention: {log_sums} log-sum-exps for {heads} heads of {queries} queries"
        );
        if let Some(rotary) = self.rotary {
            let rows = queries.max(keys);
            assert!(
                head_dim.is_multiple_of(2) && rotary.cos.len().min(rotary.sin.len()) >= rows * head_dim / 2,
                "attention: rotations of {} and {} floats for {rows} rows and heads of {head_dim}",
                rotary.cos.len(),
                rotary.sin.len()
            );
        }
        queries
    }
}

fn holds(what: &str, len: usize, stride: usize, rows: usize, width: usize) {
    assert!(stride >= width, "attention: rows of {what} are {stride} apart, too near for {width} floats");
    let needed = rows.checked_sub(1).map_or(0, |last| last * stride + width);
    assert!(len >= needed, "attention: {len} floats of {what}, too few for {rows} rows {stride} apart");
}

/// `out = softmax(scale · rot(Q)·rot(K)ᵀ) · V` for every segment and head.
///
/// # Shapes
/// - `q`, `out`: `[N, H·D]`; `k`, `v`: `[S, K·D]`; rows as far apart as their strides say
/// - `log_sums`: `[H, N]`, receives the log-sum-exp of each query's scores, which [`backward`] needs
///
/// A query that sees no key gets zeros.
///
/// # Panics
/// If a slice is too short, ranges overlap, or the heads do not fit.
pub fn forward(a: &Attention, q: Heads, k: Heads, v: Heads, out: HeadsMut, log_sums: &mut [f32]) {
    forward_at(level(), a, q, k, v, out, log_sums);
}

fn forward_at(level: Level, a: &Attention, q: Heads, k: Heads, v: Heads, out: HeadsMut, log_sums: &mut [f32]) {
    let queries = a.check(q, k, v, log_sums.len());
    holds("outputs", out.data.len(), out.stride, queries, a.heads * a.head_dim);
    forward::run(level, a, q, k, v, out, log_sums);
}

/// [`forward`] for self-attention from one matrix that holds queries, keys and values side by side.
///
/// # Shapes
/// - `qkv`: `[N, (H + 2K)·D]`; `out`: `[N, H·D]`; `log_sums`: `[H, N]`
pub fn forward_packed(a: &Attention, qkv: &[f32], out: &mut [f32], log_sums: &mut [f32]) {
    let [q, k, v] = split(a, qkv);
    forward(a, q, k, v, HeadsMut { data: out, stride: a.heads * a.head_dim }, log_sums);
}

/// Queries, keys and values in one matrix.
fn split<'a>(a: &Attention, qkv: &'a [f32]) -> [Heads<'a>; 3] {
    let Attention { heads, kv_heads, head_dim, .. } = *a;
    let stride = (heads + 2 * kv_heads) * head_dim;
    [0, heads, heads + kv_heads].map(|first| Heads { data: qkv.get(first * head_dim..).unwrap_or(&[]), stride })
}

/// The gradients of queries, keys and values from that of the output.
///
/// # Shapes
/// - `out`, `log_sums`: what [`forward`] gave; `d_out`: as `out`
/// - `d_q`, `d_k`, `d_v`: as `q`, `k`, `v`; the segments' rows are overwritten
///
/// # Panics
/// As [`forward`].
pub fn backward(
    a: &Attention,
    [q, k, v]: [Heads; 3],
    out: Heads,
    log_sums: &[f32],
    d_out: Heads,
    [d_q, d_k, d_v]: [HeadsMut; 3],
) {
    let gradients = [d_q, d_k, d_v].map(block::Target::new);
    backward_at(level(), a, [q, k, v], out, log_sums, d_out, gradients);
}

/// [`backward`] for [`forward_packed`].
///
/// # Shapes
/// - `qkv`, `d_qkv`: `[N, (H + 2K)·D]`; `out`, `d_out`: `[N, H·D]`; `log_sums`: `[H, N]`
pub fn backward_packed(a: &Attention, qkv: &[f32], out: &[f32], log_sums: &[f32], d_out: &[f32], d_qkv: &mut [f32]) {
    let Attention { heads, kv_heads, head_dim, .. } = *a;
    let stride = (heads + 2 * kv_heads) * head_dim;
    let whole = block::Target::new(HeadsMut { data: d_qkv, stride });
    let gradients = [0, heads, heads + kv_heads].map(|first| whole.columns_from(first * head_dim));
    let rows = |data| Heads { data, stride: heads * head_dim };
    backward_at(level(), a, split(a, qkv), rows(out), log_sums, rows(d_out), gradients);
}

fn backward_at(
    level: Level,
    a: &Attention,
    inputs: [Heads; 3],
    out: Heads,
    log_sums: &[f32],
    d_out: Heads,
    gradients: [block::Target; 3],
) {
    let [q, k, v] = inputs;
    let queries = a.check(q, k, v, log_sums.len());
    holds("outputs", out.data.len(), out.stride, queries, a.heads * a.head_dim);
    holds("gradients", d_out.data.len(), d_out.stride, queries, a.heads * a.head_dim);
    let keys = a.segments.iter().map(|s| s.keys.end).max().unwrap_or(0);
    gradients[0].check("gradients of queries", queries, a.heads * a.head_dim);
    gradients[1].check("gradients of keys", keys, a.kv_heads * a.head_dim);
    gradients[2].check("gradients of values", keys, a.kv_heads * a.head_dim);
    backward::run(level, a, inputs, out, log_sums, d_out, gradients);
}
