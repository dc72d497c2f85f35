//! Probabilities from scores.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// `x ← x − log Σ eˣ`, row by row, in place: log-probabilities in nats.
///
/// The row's largest score is taken off first, so nothing overflows. A row with a NaN becomes NaN.
///
/// # Panics
/// If `x` is not whole rows of `width`.
pub fn log_softmax_rows(x: &mut [f32], width: usize) {
    log_softmax_rows_at(level(), x, width);
}

fn log_softmax_rows_at(level: Level, x: &mut [f32], width: usize) {
    assert!(width > 0 && x.len().is_multiple_of(width), "log_softmax: {} floats in rows of {width}", x.len());
    x.par_chunks_mut(width).for_each(|row| {
        let shift = dispatch(level, LogSumExp(row));
        dispatch(level, Subtract(row, shift));
    });
}

/// `log Σ eˣ` of a row, in f64 as far as the sum and its logarithm go.
pub fn log_sum_exp(x: &[f32]) -> f64 {
    dispatch(level(), LogSumExp(x))
}

/// Takes the same from each element.
struct Subtract<'a>(&'a mut [f32], f64);

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.0 {
            *x = (f64::from(*x) - self.1) as f32;
        }
    }
}

/// Index of each row's largest element, the first of equal ones; `None` if none is above -∞. NaN is passed over.
///
/// # Panics
/// If `x` is not whole rows of `width`.
pub fn largest_rows(x: &[f32], width: usize) -> Vec<Option<usize>> {
    assert!(width > 0 && x.len().is_multiple_of(width), "largest: {} floats in rows of {width}", x.len());
    x.par_chunks(width).map(largest).collect()
}

/// [`largest_rows`] of one row.
pub fn largest(x: &[f32]) -> Option<usize> {
    dispatch(level(), Largest(x))
}

struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Option<usize> {
        // The largest of a block first, so that only one block is searched element by element.
        const BLOCK: usize = 64 * LANES;
        let mut best = (f32::NEG_INFINITY, None);
        for (i, block) in self.0.chunks(BLOCK).enumerate() {
            let (lines, rest) = block.as_chunks::<LANES>();
            let mut largest = simd.splat(f32::NEG_INFINITY);
            for line in lines {
                largest = simd.max(simd.load(line), largest);
            }
            largest = simd.max(simd.load_or(rest, f32::NEG_INFINITY), largest);
            let largest = simd.largest(largest);
            if largest > best.0 {
                best = (largest, Some(i * BLOCK));
            }
        }
        let (largest, first) = best;
        first.and_then(|first| Some(first + self.0[first..].iter().position(|&x| x == largest)?))
    }
}

struct LogSumExp<'a>(&'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let (lines, rest) = self.0.as_chunks::<LANES>();
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for line in lines {
            largest = simd.max(simd.load(line), largest);
        }
        largest = simd.max(simd.load_or(rest, f32::NEG_INFINITY), largest);
        let largest = simd.largest(largest);
        if largest == f32::NEG_INFINITY {
            // All are -∞ or NaN (or there are none): the sum is 0 or NaN.
            return self.0.iter().fold(f64::NEG_INFINITY, |a, &x| if x.is_nan() { f64::NAN } else { a });
        }
        let shift = simd.splat(largest);
        // Sums of a few hundred terms in f32, summed up in f64.
        let mut sum = 0.0f64;
        for block in lines.chunks(16) {
            let mut part = simd.splat(0.0);
            for line in block {
                part = simd.add(part, simd.exp(simd.sub(simd.load(line), shift)));
            }
            sum += f64::from(simd.sum(part));
        }
        if !rest.is_empty() {
            sum += f64::from(simd.sum(simd.exp(simd.sub(simd.load_or(rest, f32::NEG_INFINITY), shift))));
        }
        f64::from(largest) + sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;
    use crate::tolerance::assert_within;

    #[test]
    fn rows_agree_with_the_formula_at_every_level() {
        for level in Level::available() {
            for (rows, width) in [(0, 3), (1, 1), (3, 15), (2, 16), (4, 33), (2, 49_152)] {
                let mut x = vec![0.0; rows * width];
                fill_normal(1, 10.0, &mut x);
                let want: Vec<f64> = x
                    .chunks(width)
                    .flat_map(|x| {
                        let largest = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                        let sum: f64 = x.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
                        x.iter().map(move |&x| f64::from(x) - largest - sum.ln())
                    })
                    .collect();
                log_softmax_rows_at(level, &mut x, width);
                // The sum's relative error is an absolute one of its logarithm.
                let within = want.iter().map(|&w| (w, 1e-6 * w.abs().max(1.0)));
                assert_within(&format!("{level} {rows} x {width}"), &x, within);
            }
        }
    }

    #[test]
    fn the_first_of_the_largest_is_found_at_every_level() {
        for level in Level::available() {
            for width in [1, 15, 16, 1023, 1024, 1025, 49_152] {
                let mut x = vec![0.0; width];
                fill_normal(3, 1.0, &mut x);
                // Equal ones: the first counts.
                for at in [width - 1, width / 2, width / 3] {
                    x[at] = 9.0;
                    assert_eq!(dispatch(level, Largest(&x)), Some(at), "{level} {width}");
                }
                if width > 1 {
                    x[0] = f32::NAN;
                    assert_eq!(dispatch(level, Largest(&x)), Some((width / 3).max(1)), "{level} {width}");
                }
            }
            assert_eq!(dispatch(level, Largest(&[])), None);
            assert_eq!(dispatch(level, Largest(&[f32::NAN, f32::NEG_INFINITY])), None);
        }
        assert_eq!(largest_rows(&[1.0, 2.0, 4.0, 3.0], 2), [Some(1), Some(0)]);
    }

    #[test]
    fn the_ends_are_kept() {
        for level in Level::available() {
            let mut x = [1000.0, -1000.0, f32::NEG_INFINITY, 1.0, f32::NAN, 1.0];
            log_softmax_rows_at(level, &mut x, 3);
            assert_eq!(x[..3], [0.0, -2000.0, f32::NEG_INFINITY], "{level}");
            assert!(x[3..].iter().all(|x| x.is_nan()), "{level}");
        }
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert!(log_sum_exp(&[f32::NAN]).is_nan());
    }
}
