//! Root-mean-square and layer normalisation of rows.

mod backward;

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

pub use backward::{layer_norm_backward, rms_norm_backward};

/// Floats below which a second thread is not worth it.
const PARALLEL: usize = 32 << 10;

/// `y = x / √(mean(x²) + eps) · gain`, row by row.
///
/// # Shapes
/// - `y`, `x`: `rows × gain.len()`
///
/// # Panics
/// If `y` and `x` differ in length or are not whole rows.
pub fn rms_norm(y: &mut [f32], x: &[f32], gain: &[f32], eps: f32) {
    norm_at(level(), y, x, gain, None, eps);
}

/// `y = (x − mean(x)) / √(variance(x) + eps) · gain + bias`, row by row; the variance divides by the width.
///
/// # Shapes
/// - `y`, `x`: `rows × gain.len()`; `bias`: as `gain`
///
/// # Panics
/// If `y` and `x` differ in length or are not whole rows, or `gain` and `bias` differ in length.
pub fn layer_norm(y: &mut [f32], x: &[f32], gain: &[f32], bias: &[f32], eps: f32) {
    norm_at(level(), y, x, gain, Some(bias), eps);
}

/// `x += residual`, then `y` = [`rms_norm`] of `x`, in one pass.
///
/// # Shapes
/// - `y`, `x`, `residual`: `rows × gain.len()`
///
/// # Panics
/// As [`rms_norm`].
pub fn add_rms_norm(y: &mut [f32], x: &mut [f32], residual: &[f32], gain: &[f32], eps: f32) {
    add_norm_at(level(), y, x, residual, gain, None, eps);
}

/// `x += residual`, then `y` = [`layer_norm`] of `x`, in one pass.
///
/// # Shapes
/// - `y`, `x`, `residual`: `rows × gain.len()`; `bias`: as `gain`
///
/// # Panics
/// As [`layer_norm`].
pub fn add_layer_norm(y: &mut [f32], x: &mut [f32], residual: &[f32], gain: &[f32], bias: &[f32], eps: f32) {
    add_norm_at(level(), y, x, residual, gain, Some(bias), eps);
}

fn add_norm_at(
    level: Level,
    y: &mut [f32],
    x: &mut [f32],
    residual: &[f32],
    gain: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
) {
    let width = gain.len();
    assert!(y.len() == x.len() && residual.len() == x.len(), "norm: y, x and the residual differ in length");
    assert!(width > 0 && x.len().is_multiple_of(width), "norm: {} floats in rows of {width}", x.len());
    assert!(bias.is_none_or(|b| b.len() == width), "norm: gain and bias differ in length");
    let piece = (PARALLEL / width).max(1) * width;
    y.par_chunks_mut(piece).zip(x.par_chunks_mut(piece)).zip(residual.par_chunks(piece)).for_each(
        |((y, x), residual)| {
            // Row by row, while the row is in the nearest cache.
            for ((y, x), residual) in y.chunks_mut(width).zip(x.chunks_mut(width)).zip(residual.chunks(width)) {
                dispatch(level, AddNorm { y, x, residual, gain, bias, eps });
            }
        },
    );
}

struct AddNorm<'a> {
    y: &'a mut [f32],
    x: &'a mut [f32],
    residual: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { y, x, residual, gain, bias, eps } = self;
        x.iter_mut().zip(residual).for_each(|(x, r)| *x += r);
        Norm { y, x, gain, bias, eps }.run(simd);
    }
}

fn norm_at(level: Level, y: &mut [f32], x: &[f32], gain: &[f32], bias: Option<&[f32]>, eps: f32) {
    let width = gain.len();
    assert_eq!(y.len(), x.len(), "norm: y and x differ in length");
    assert!(width > 0 && x.len().is_multiple_of(width), "norm: {} floats in rows of {width}", x.len());
    assert!(bias.is_none_or(|b| b.len() == width), "norm: gain and bias differ in length");
    let rows_at_a_time = (PARALLEL / width).max(1);
    let piece = rows_at_a_time * width;
    let run = |y: &mut [f32], x: &[f32]| dispatch(level, Norm { y, x, gain, bias, eps });
    if x.len() <= piece {
        run(y, x);
    } else {
        y.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(|(y, x)| run(y, x));
    }
}

struct Norm<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

/// `Σ f(xᵢ)`, with the missing lanes of a last short vector left out.
#[inline(always)]
fn sum_of<S: Simd>(simd: S, x: &[f32], f: impl Fn(S::V, S::V) -> S::V, neutral: f32) -> f32 {
    let (lines, rest) = x.as_chunks::<LANES>();
    let mut sum = simd.splat(0.0);
    for line in lines {
        sum = f(simd.load(line), sum);
    }
    if !rest.is_empty() {
        sum = f(simd.load_or(rest, neutral), sum);
    }
    simd.sum(sum)
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { y, x, gain, bias, eps } = self;
        let width = gain.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let mean = match bias {
                Some(_) => sum_of(simd, x, |x, sum| simd.add(sum, x), 0.0) / width as f32,
                None => 0.0,
            };
            let middle = simd.splat(mean);
            let squares = sum_of(
                simd,
                x,
                |x, sum| {
                    let d = simd.sub(x, middle);
                    simd.mul_add(d, d, sum)
                },
                mean,
            );
            let scale = simd.splat(1.0 / (squares / width as f32 + eps).sqrt());
            let normalise =
                |x: S::V, gain: S::V, bias: S::V| simd.add(simd.mul(simd.mul(simd.sub(x, middle), scale), gain), bias);
            let zeros = [0.0; LANES];
            let mut bias_lines = bias.unwrap_or(&[]).as_chunks::<LANES>().0.iter();
            let (y_lines, y_rest) = y.as_chunks_mut::<LANES>();
            let (x_lines, x_rest) = x.as_chunks::<LANES>();
            let (gain_lines, gain_rest) = gain.as_chunks::<LANES>();
            for ((y, x), gain) in y_lines.iter_mut().zip(x_lines).zip(gain_lines) {
                let bias = simd.load(bias_lines.next().unwrap_or(&zeros));
                simd.store(y, normalise(simd.load(x), simd.load(gain), bias));
            }
            if !y_rest.is_empty() {
                let bias = simd.load_or(bias.map_or(&[], |b| b.as_chunks::<LANES>().1), 0.0);
                let new = normalise(simd.load_or(x_rest, 0.0), simd.load_or(gain_rest, 0.0), bias);
                simd.store_first(y_rest, new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;
    use crate::tolerance::assert_within;

    fn normal(key: u64, len: usize) -> Vec<f32> {
        let mut x = vec![0.0; len];
        fill_normal(key, 1.0, &mut x);
        x
    }

    #[test]
    fn rows_agree_with_the_formula_at_every_level() {
        for level in Level::available() {
            for (rows, width) in [(0, 4), (1, 1), (3, 5), (2, 16), (5, 17), (7, 64), (100, 576)] {
                let (x, gain, bias) = (normal(1, rows * width), normal(2, width), normal(3, width));
                for bias in [None, Some(&bias[..])] {
                    let mut y = vec![9.0; x.len()];
                    norm_at(level, &mut y, &x, &gain, bias, 1e-5);
                    let want = x.chunks(width).flat_map(|x| {
                        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                        let mean = if bias.is_some() { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
                        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                        let scale = 1.0 / (square + f64::from(1e-5f32)).sqrt();
                        let b = |i: usize| bias.map_or(0.0, |b| f64::from(b[i]));
                        // The mean is known to an ulp of the row's size, which is about 1.
                        let of = |(i, x)| (x - mean) * scale * f64::from(gain[i]) + b(i);
                        x.clone()
                            .into_iter()
                            .enumerate()
                            .map(of)
                            .map(|w| (w, 2e-6 * w.abs().max(scale)))
                            .collect::<Vec<_>>()
                    });
                    assert_within(&format!("{level} {rows} x {width}"), &y, want.collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn adding_first_gives_the_bits_of_both_steps() {
        for level in Level::available() {
            for (rows, width) in [(0, 3), (1, 1), (70, 577)] {
                let (x, residual) = (normal(1, rows * width), normal(2, rows * width));
                let (gain, bias) = (normal(3, width), normal(4, width));
                for bias in [None, Some(&bias[..])] {
                    let sum: Vec<f32> = x.iter().zip(&residual).map(|(x, r)| x + r).collect();
                    let (mut want, mut y, mut added) = (vec![0.0; x.len()], vec![9.0; x.len()], x.clone());
                    norm_at(level, &mut want, &sum, &gain, bias, 1e-5);
                    add_norm_at(level, &mut y, &mut added, &residual, &gain, bias, 1e-5);
                    assert!(added == sum && y == want, "{level} {rows} x {width}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (rows, width) = (200, 577);
        let (x, gain) = (normal(1, rows * width), normal(2, width));
        let (mut all, mut one) = (vec![0.0; x.len()], vec![0.0; width]);
        rms_norm(&mut all, &x, &gain, 1e-6);
        rms_norm(&mut one, &x[123 * width..124 * width], &gain, 1e-6);
        assert_eq!(one, all[123 * width..124 * width]);
    }

    #[test]
    fn a_bad_element_spoils_its_row_only() {
        let mut x = normal(1, 3 * 20);
        x[25] = f32::NAN;
        let mut y = vec![0.0; x.len()];
        rms_norm(&mut y, &x, &[1.0; 20], 1e-6);
        assert!(y[20..40].iter().all(|y| y.is_nan()));
        assert!(y[..20].iter().chain(&y[40..]).all(|y| y.is_finite()));
    }
}
