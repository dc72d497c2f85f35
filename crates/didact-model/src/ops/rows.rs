//! Row arithmetic that several operators share: dot products with a fixed order and sums over rows.
#![expect(
    clippy::inline_always,
    reason = "the loops that call these are compiled for vectors only where they are inlined"
)]

use std::ops::Range;

use rayon::prelude::*;

use super::real::Real;
use super::vector::vectorized;

/// Independent partial sums in [`dot`]; their number, not the machine's vector width, fixes the order of addition.
const LANES: usize = 16;

/// `Σ a_i · b_i`, added in an order that depends on the length only.
#[inline(always)]
pub(crate) fn dot<E: Real>(a: &[E], b: &[E]) -> E {
    let mut lanes = [E::ZERO; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_blocks.remainder(), b_blocks.remainder());
    for (a, b) in a_blocks.zip(b_blocks) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l];
        }
    }
    let mut sum = E::ZERO;
    for (&a, &b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    fold(lanes) + sum
}

/// `Σ a_i`, in the same order as [`dot`].
#[inline(always)]
pub(crate) fn sum<E: Real>(a: &[E]) -> E {
    let mut lanes = [E::ZERO; LANES];
    let blocks = a.chunks_exact(LANES);
    let rest = blocks.remainder();
    for a in blocks {
        for l in 0..LANES {
            lanes[l] += a[l];
        }
    }
    let mut sum = E::ZERO;
    for &a in rest {
        sum += a;
    }
    fold(lanes) + sum
}

#[inline(always)]
fn fold<E: Real>(mut lanes: [E; LANES]) -> E {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            let other = lanes[l + width];
            lanes[l] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// Rows that one task of a sum over rows takes. Fixed, so that the result does not depend on the number of threads.
pub(crate) const ROW_BLOCK: usize = 64;

/// Adds the vectors that `partial(first_row, rows)` gives for blocks of [`ROW_BLOCK`] rows, in the order of the rows.
pub(crate) fn sum_over_blocks<E: Real>(
    rows: usize,
    width: usize,
    partial: impl Fn(usize, usize) -> Vec<E> + Sync,
) -> Vec<E> {
    let partials: Vec<Vec<E>> = (0..rows.div_ceil(ROW_BLOCK))
        .into_par_iter()
        .map(|block| {
            let first = block * ROW_BLOCK;
            partial(first, ROW_BLOCK.min(rows - first))
        })
        .collect();
    let mut total = vec![E::ZERO; width];
    for partial in partials {
        total.iter_mut().zip(partial).for_each(|(t, p)| *t += p);
    }
    total
}

/// The sum over `rows` rows of the first `width` columns of a matrix whose rows are `stride` apart.
pub(crate) fn column_sums<E: Real>(data: &[E], rows: usize, width: usize, stride: usize) -> Vec<E> {
    sum_over_blocks(rows, width, |first, count| sum_rows(data, first..first + count, width, stride))
}

vectorized! {
    fn sum_rows<'a, E: Real>(data: &'a [E], rows: Range<usize>, width: usize, stride: usize) -> Vec<E> {
        let mut total = vec![E::ZERO; width];
        for row in rows {
            let row = &data[row * stride..row * stride + width];
            total.iter_mut().zip(row).for_each(|(t, &v)| *t += v);
        }
        total
    }
}
