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
use didact_kernels::gemm::{MatRef, gemm};
use didact_kernels::low_rank;

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
    /// `x [N, K] · m [K, R]` for a small R, in full precision.
    fn low_rank_project(x: Rows<'_, Self>, m: &[Self], rank: usize) -> Vec<Self>;
    /// `y [N, K] += h [N, R] · m [R, K]` for a small R, in full precision; rows of `y` are `stride` apart.
    fn low_rank_update(y: &mut [Self], stride: usize, width: usize, h: &[Self], m: &[Self], rank: usize);
    /// `xᵀ [K, N] · h [N, R]` for a small R, in full precision.
    fn low_rank_outer(x: Rows<'_, Self>, h: &[Self], rank: usize) -> Vec<Self>;
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
