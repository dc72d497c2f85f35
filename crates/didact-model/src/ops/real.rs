//! The number type an operator is written over: `f32` on the fast kernels, `f64` as the reference.
//!
//! Every hand-written forward and backward in this module is generic over [`Real`], so that the very code that trains
//! can be run in `f64` and held against the operator composed from Burn's own tensor functions.
#![expect(
    clippy::inline_always,
    reason = "the loops that call these are compiled for vectors only where they are inlined"
)]

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use burn_backend::Element;
use didact_kernels::Precision;
use didact_kernels::cross_entropy::{self, OutputWeight};
use didact_kernels::gemm::{MatRef, PackedB, gemm, gemm_packed};
use didact_kernels::{low_rank, sdpa};
use half::bf16;
use rayon::prelude::*;

use super::pool::{Packed, Pool};
use super::vector::vectorized;

/// A matrix seen through strides: `[i, j]` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a, E> {
    /// The elements, from `[0, 0]` on.
    pub(crate) data: &'a [E],
    /// Distance between rows.
    pub(crate) row_stride: usize,
    /// Distance between columns.
    pub(crate) col_stride: usize,
}

impl<'a, E> View<'a, E> {
    /// Rows of `width` contiguous elements.
    pub(crate) fn rows(data: &'a [E], width: usize) -> Self {
        Self { data, row_stride: width, col_stride: 1 }
    }

    /// The transpose of [`View::rows`].
    pub(crate) fn columns(data: &'a [E], width: usize) -> Self {
        Self { data, row_stride: 1, col_stride: width }
    }
}

impl View<'_, f64> {
    fn at(&self, row: usize, column: usize) -> f64 {
        self.data[row * self.row_stride + column * self.col_stride]
    }
}

fn for_kernel<'a>(parts: &[(View<'a, f32>, usize)]) -> Vec<(MatRef<'a>, usize)> {
    let matrix = |v: &View<'a, f32>| MatRef { data: v.data, row_stride: v.row_stride, col_stride: v.col_stride };
    parts.iter().map(|(view, size)| (matrix(view), *size)).collect()
}

/// Queries, keys and values in one matrix.
fn heads_of<'a>(plan: &sdpa::Attention<'_>, qkv: &'a [f64]) -> [sdpa::Heads<'a, f64>; 3] {
    let stride = (plan.heads + 2 * plan.kv_heads) * plan.head_dim;
    [0, plan.heads, plan.heads + plan.kv_heads]
        .map(|first| sdpa::Heads { data: &qkv[(first * plan.head_dim).min(qkv.len())..], stride })
}

/// Elements that one thread converts at a time.
const PIECE: usize = 1 << 14;

vectorized! {
    /// Rounds to nearest, ties to even, as the processor's own conversion; NaN stays NaN.
    fn narrow_piece<'a, E: Real>(from: &'a [f32], to: &'a mut [bf16]) -> () {
        for (to, x) in to.iter_mut().zip(from) {
            let bits = x.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *to = bf16::from_bits(if x.is_nan() { quiet } else { rounded } as u16);
        }
    }
}

vectorized! {
    fn widen_piece<'a, E: Real>(from: &'a [bf16], to: &'a mut [f32]) -> () {
        for (to, x) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(x.to_bits()) << 16);
        }
    }
}

/// A floating point number with the few functions that the operators need.
pub(crate) trait Real:
    Element
    + bytemuck::Pod
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest value.
    fn of(value: f64) -> Self;
    /// The same value in double precision.
    fn wide(self) -> f64;
    /// `e` to the power of `self`.
    fn exp(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// `c[m, n] (+)= a[m, k] · b[k, n]`, rows of `c` being `ldc` apart.
    fn gemm(
        c: &mut [Self],
        ldc: usize,
        shape: [usize; 3],
        a: View<'_, Self>,
        b: View<'_, Self>,
        accumulate: bool,
        precision: Precision,
    );
    /// A right-hand factor prepared for many products.
    type Packed: Send + Sync + std::fmt::Debug + Clone;
    /// Prepares the right-hand factors `parts`, each `[k, n]` with its `n`, to be multiplied as one `[k, Σ n]`.
    fn pack_beside(parts: &[(View<'_, Self>, usize)], k: usize, precision: Precision) -> Self::Packed;
    /// Prepares the right-hand factors `parts`, each `[k, n]` with its `k`, to be multiplied as one `[Σ k, n]`.
    fn pack_above(parts: &[(View<'_, Self>, usize)], n: usize, precision: Precision) -> Self::Packed;
    /// [`gemm`](Self::gemm) with a prepared factor: the same bits.
    fn gemm_packed(c: &mut [Self], ldc: usize, m: usize, a: View<'_, Self>, b: &Self::Packed, accumulate: bool);
    /// Self-attention from queries, keys and values side by side; see [`sdpa::forward_packed`].
    fn attention(plan: &sdpa::Attention<'_>, qkv: &[Self], out: &mut [Self], log_sums: &mut [Self]);
    /// Its gradient; see [`sdpa::backward_packed`].
    fn attention_backward(
        plan: &sdpa::Attention<'_>,
        qkv: &[Self],
        out: &[Self],
        log_sums: &[Self],
        d_out: &[Self],
        d_qkv: &mut [Self],
    );
    /// `Σ weights[i] · nll_i` over the output projection `weight`, `[V, width]`; see
    /// [`cross_entropy::linear_cross_entropy`].
    fn linear_cross_entropy(
        targets: &[u32],
        weights: &[f32],
        hidden: &[Self],
        weight: &[Self],
        width: usize,
        precision: Precision,
        results: Losses<'_, Self>,
    ) -> f64;
    /// Where large buffers of this type are kept.
    fn pool() -> Option<&'static Pool<Self>>;
    /// Whether [`narrow`](Self::narrow) and [`widen`](Self::widen) exist.
    const HAS_BF16: bool;
    /// Rounds to bf16.
    fn narrow(from: &[Self], to: &mut [bf16]);
    /// Exact.
    fn widen(from: &[bf16], to: &mut [Self]);
    /// `x [N, K] · m [K, R]` for a small R, in full precision.
    fn low_rank_project(x: Rows<'_, Self>, m: &[Self], rank: usize) -> Vec<Self>;
    /// `y [N, K] += h [N, R] · m [R, K]` for a small R, in full precision; rows of `y` are `stride` apart.
    fn low_rank_update(y: &mut [Self], stride: usize, width: usize, h: &[Self], m: &[Self], rank: usize);
    /// `xᵀ [K, N] · h [N, R]` for a small R, in full precision.
    fn low_rank_outer(x: Rows<'_, Self>, h: &[Self], rank: usize) -> Vec<Self>;
}

/// What [`Real::linear_cross_entropy`] writes, overwriting all of it.
#[derive(Debug)]
pub(crate) struct Losses<'a, E> {
    /// `[M]`.
    pub(crate) nll: &'a mut [E],
    /// `[M, width]`: the gradient of the sum with respect to the hidden values.
    pub(crate) d_hidden: Option<&'a mut [E]>,
    /// `[V, width]`: the gradient with respect to the weight.
    pub(crate) d_weight: Option<&'a mut [E]>,
}

/// `count` rows of `width` elements, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, E> {
    /// What holds them.
    pub(crate) data: &'a [E],
    /// How many there are.
    pub(crate) count: usize,
    /// Elements of a row.
    pub(crate) width: usize,
    /// Distance between rows.
    pub(crate) stride: usize,
}

impl<'a> Rows<'a, f32> {
    fn for_kernel(self) -> low_rank::Rows<'a> {
        let Self { data, count, width, stride } = self;
        low_rank::Rows { data, count, width, stride }
    }
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }

    /// Branch-free, so that loops over it become vector code; within 2 ulp for results that are normal numbers, and
    /// results below the smallest normal number come out as about that number.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits of the mantissa.
        const SHIFT: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // Written so that what is not a number stays so and reaches the check of the loss.
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let shifted = x * std::f32::consts::LOG2_E + SHIFT;
        let n = shifted - SHIFT;
        let r = (x - n * LN2_HIGH) - n * LN2_LOW;
        let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r
            + 1.666_666_5e-1)
            * r
            + 0.5;
        let p = p * r * r + r + 1.0;
        let exponent = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
        p * f32::from_bits(exponent)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    fn gemm(
        c: &mut [Self],
        ldc: usize,
        [m, n, k]: [usize; 3],
        a: View<'_, Self>,
        b: View<'_, Self>,
        accumulate: bool,
        precision: Precision,
    ) {
        let a = MatRef { data: a.data, row_stride: a.row_stride, col_stride: a.col_stride };
        let b = MatRef { data: b.data, row_stride: b.row_stride, col_stride: b.col_stride };
        gemm(c, ldc, m, n, k, a, b, accumulate, precision);
    }

    type Packed = Packed;

    fn pack_beside(parts: &[(View<'_, Self>, usize)], k: usize, precision: Precision) -> Packed {
        let words: usize = parts.iter().map(|(_, n)| n * k).sum();
        Packed::new(words, precision, |memory| PackedB::beside(memory, &for_kernel(parts), k, precision))
    }

    fn pack_above(parts: &[(View<'_, Self>, usize)], n: usize, precision: Precision) -> Packed {
        let words: usize = parts.iter().map(|(_, k)| n * k).sum();
        Packed::new(words, precision, |memory| PackedB::above(memory, &for_kernel(parts), n, precision))
    }

    fn gemm_packed(c: &mut [Self], ldc: usize, m: usize, a: View<'_, Self>, b: &Packed, accumulate: bool) {
        let a = MatRef { data: a.data, row_stride: a.row_stride, col_stride: a.col_stride };
        gemm_packed(c, ldc, m, a, b.get(), accumulate);
    }

    fn attention(plan: &sdpa::Attention<'_>, qkv: &[Self], out: &mut [Self], log_sums: &mut [Self]) {
        sdpa::forward_packed(plan, qkv, out, log_sums);
    }

    fn attention_backward(
        plan: &sdpa::Attention<'_>,
        qkv: &[Self],
        out: &[Self],
        log_sums: &[Self],
        d_out: &[Self],
        d_qkv: &mut [Self],
    ) {
        sdpa::backward_packed(plan, qkv, out, log_sums, d_out, d_qkv);
    }

    fn linear_cross_entropy(
        targets: &[u32],
        weights: &[f32],
        hidden: &[Self],
        weight: &[Self],
        width: usize,
        precision: Precision,
        Losses { nll, d_hidden, d_weight }: Losses<'_, Self>,
    ) -> f64 {
        let vocabulary = weight.len() / width;
        let forward = Self::pack_beside(&[(View::columns(weight, width), vocabulary)], width, precision).take();
        let backward = d_hidden
            .is_some()
            .then(|| Self::pack_above(&[(View::rows(weight, width), vocabulary)], width, precision).take());
        let weight = OutputWeight::from_packed(forward, backward);
        let results = cross_entropy::Results { nll, d_hidden, d_weight, accumulate: false };
        let loss = cross_entropy::Loss::new(targets, weights);
        let sum = cross_entropy::linear_cross_entropy(&loss, hidden, &weight, results);
        let (forward, backward) = weight.into_packed();
        drop((Packed::from(forward), backward.map(Packed::from)));
        sum
    }

    fn pool() -> Option<&'static Pool<Self>> {
        static POOL: Pool<f32> = Pool::new();
        Some(&POOL)
    }

    const HAS_BF16: bool = true;

    fn narrow(from: &[Self], to: &mut [bf16]) {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| narrow_piece::<f32>(from, to));
    }

    fn widen(from: &[bf16], to: &mut [Self]) {
        to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| widen_piece::<f32>(from, to));
    }

    fn low_rank_project(x: Rows<'_, Self>, m: &[Self], rank: usize) -> Vec<Self> {
        let mut out = vec![0.0; x.count * rank];
        low_rank::project(&mut out, x.for_kernel(), m, rank);
        out
    }

    fn low_rank_update(y: &mut [Self], stride: usize, width: usize, h: &[Self], m: &[Self], rank: usize) {
        low_rank::update(y, stride, width, h, m, rank);
    }

    fn low_rank_outer(x: Rows<'_, Self>, h: &[Self], rank: usize) -> Vec<Self> {
        let mut out = vec![0.0; x.width * rank];
        low_rank::outer(&mut out, x.for_kernel(), h, rank);
        out
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;

    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn gemm(
        c: &mut [Self],
        ldc: usize,
        [m, n, k]: [usize; 3],
        a: View<'_, Self>,
        b: View<'_, Self>,
        accumulate: bool,
        _precision: Precision,
    ) {
        for i in 0..m {
            for j in 0..n {
                let mut sum = if accumulate { c[i * ldc + j] } else { 0.0 };
                for p in 0..k {
                    sum += a.data[i * a.row_stride + p * a.col_stride] * b.data[p * b.row_stride + j * b.col_stride];
                }
                c[i * ldc + j] = sum;
            }
        }
    }

    /// Row-major, with the number of columns.
    type Packed = (Vec<f64>, usize);

    fn pack_beside(parts: &[(View<'_, Self>, usize)], k: usize, _precision: Precision) -> Self::Packed {
        let n = parts.iter().map(|(_, n)| n).sum();
        let row = |i: usize| parts.iter().flat_map(move |(part, n)| (0..*n).map(move |j| part.at(i, j)));
        ((0..k).flat_map(row).collect(), n)
    }

    fn pack_above(parts: &[(View<'_, Self>, usize)], n: usize, _precision: Precision) -> Self::Packed {
        let part =
            |(part, k): &(View<'_, Self>, usize)| -> Vec<f64> { (0..k * n).map(|i| part.at(i / n, i % n)).collect() };
        (parts.iter().flat_map(part).collect(), n)
    }

    fn gemm_packed(c: &mut [Self], ldc: usize, m: usize, a: View<'_, Self>, b: &Self::Packed, accumulate: bool) {
        let (b, n) = (&b.0, b.1);
        Self::gemm(c, ldc, [m, n, b.len() / n], a, View::rows(b, n), accumulate, Precision::F32);
    }

    fn attention(plan: &sdpa::Attention<'_>, qkv: &[Self], out: &mut [Self], log_sums: &mut [Self]) {
        let rows = out.len() / (plan.heads * plan.head_dim);
        let (values, sums) = sdpa::reference::forward(plan, rows, heads_of(plan, qkv));
        out.copy_from_slice(&values);
        log_sums.copy_from_slice(&sums);
    }

    fn attention_backward(
        plan: &sdpa::Attention<'_>,
        qkv: &[Self],
        out: &[Self],
        _log_sums: &[Self],
        d_out: &[Self],
        d_qkv: &mut [Self],
    ) {
        let rows = out.len() / (plan.heads * plan.head_dim);
        let (d_q, d_k, d_v) = sdpa::reference::backward(plan, rows, rows, heads_of(plan, qkv), d_out);
        let [q_width, kv_width] = [plan.heads, plan.kv_heads].map(|heads| heads * plan.head_dim);
        for (row, d) in d_qkv.chunks_exact_mut(q_width + 2 * kv_width).enumerate() {
            let (q, rest) = d.split_at_mut(q_width);
            let (k, v) = rest.split_at_mut(kv_width);
            q.copy_from_slice(&d_q[row * q_width..][..q_width]);
            k.copy_from_slice(&d_k[row * kv_width..][..kv_width]);
            v.copy_from_slice(&d_v[row * kv_width..][..kv_width]);
        }
    }

    fn linear_cross_entropy(
        targets: &[u32],
        weights: &[f32],
        hidden: &[Self],
        weight: &[Self],
        width: usize,
        _precision: Precision,
        Losses { nll, mut d_hidden, mut d_weight }: Losses<'_, Self>,
    ) -> f64 {
        let mut sum = 0.0;
        if let Some(d_weight) = &mut d_weight {
            d_weight.fill(0.0);
        }
        for (i, x) in hidden.chunks_exact(width).enumerate() {
            let (target, scale) = (targets[i] as usize, f64::from(weights[i]));
            let logit = |row: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let logits: Vec<f64> = weight.chunks_exact(width).map(logit).collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln();
            nll[i] = log_sum - logits[target];
            sum += scale * nll[i];
            if let Some(d_hidden) = &mut d_hidden {
                d_hidden[i * width..][..width].fill(0.0);
            }
            for (v, row) in weight.chunks_exact(width).enumerate() {
                let d = scale * ((logits[v] - log_sum).exp() - f64::from(u8::from(v == target)));
                if let Some(d_hidden) = &mut d_hidden {
                    d_hidden[i * width..][..width].iter_mut().zip(row).for_each(|(t, w)| *t += d * w);
                }
                if let Some(d_weight) = &mut d_weight {
                    d_weight[v * width..][..width].iter_mut().zip(x).for_each(|(t, x)| *t += d * x);
                }
            }
        }
        sum
    }

    fn pool() -> Option<&'static Pool<Self>> {
        None
    }

    const HAS_BF16: bool = false;

    fn narrow(_from: &[Self], _to: &mut [bf16]) {
        unreachable!("f64 is kept in full");
    }

    fn widen(_from: &[bf16], _to: &mut [Self]) {
        unreachable!("f64 is kept in full");
    }

    fn low_rank_project(x: Rows<'_, Self>, m: &[Self], rank: usize) -> Vec<Self> {
        let mut out = vec![0.0; x.count * rank];
        let rows = View { data: x.data, row_stride: x.stride, col_stride: 1 };
        Self::gemm(&mut out, rank, [x.count, rank, x.width], rows, View::rows(m, rank), false, Precision::F32);
        out
    }

    fn low_rank_update(y: &mut [Self], stride: usize, width: usize, h: &[Self], m: &[Self], rank: usize) {
        let shape = [h.len() / rank, width, rank];
        Self::gemm(y, stride, shape, View::rows(h, rank), View::rows(m, width), true, Precision::F32);
    }

    fn low_rank_outer(x: Rows<'_, Self>, h: &[Self], rank: usize) -> Vec<Self> {
        let mut out = vec![0.0; x.width * rank];
        let columns = View { data: x.data, row_stride: 1, col_stride: x.stride };
        Self::gemm(&mut out, rank, [x.width, rank, x.count], columns, View::rows(h, rank), false, Precision::F32);
        out
    }
}
