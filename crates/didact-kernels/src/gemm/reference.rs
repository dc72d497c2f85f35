//! The definition of correct: a plain loop in f64.

use super::MatRef;
use crate::level::Precision;

/// What bf16 makes of it.
pub(super) fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Element `(i, j)` of `A·B`, and the sum of the absolute terms, which rounding errors are measured against.
pub(super) fn element(a: MatRef, b: MatRef, i: usize, j: usize, k: usize, precision: Precision) -> (f64, f64) {
    let (mut sum, mut size) = (0.0, 0.0);
    for p in 0..k {
        let (mut x, mut y) = (a.data[i * a.row_stride + p * a.col_stride], b.data[p * b.row_stride + j * b.col_stride]);
        if precision == Precision::Bf16 {
            (x, y) = (bf16(x), bf16(y));
        }
        let term = f64::from(x) * f64::from(y);
        sum += term;
        size += term.abs();
    }
    (sum, size)
}
