//! The gradients of both norms.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// Rows of a piece of work. Fixed, so that sums over rows do not depend on threads.
const ROWS: usize = 64;

/// The gradients of [`super::rms_norm`].
///
/// With `n = x / √(mean(x²) + eps)` and `w = dy · gain`: `dx = (w − n · mean(w · n)) / √(…)` and `d_gain = Σ dy · n`.
///
/// # Shapes
/// - `dx`, `x`, `dy`, `residual`: `rows × gain.len()`; `residual` is added to `dx`: the gradient that reaches `x` past the
///   norm
/// - `d_gain`: as `gain`, overwritten
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_backward(
    dx: &mut [f32],
    d_gain: &mut [f32],
    x: &[f32],
    dy: &[f32],
    residual: Option<&[f32]>,
    gain: &[f32],
    eps: f32,
) {
    backward_at(level(), dx, d_gain, None, x, dy, residual, gain, eps);
}

/// The gradients of [`super::layer_norm`]: as [`rms_norm_backward`] with `n = (x − mean(x)) / √(…)`, where `dx` also loses
/// `mean(w)`, and `d_bias = Σ dy`.
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm_backward(
    dx: &mut [f32],
    d_gain: &mut [f32],
    d_bias: &mut [f32],
    x: &[f32],
    dy: &[f32],
    residual: Option<&[f32]>,
    gain: &[f32],
    eps: f32,
) {
    backward_at(level(), dx, d_gain, Some(d_bias), x, dy, residual, gain, eps);
}

fn backward_at(
    level: Level,
    dx: &mut [f32],
    d_gain: &mut [f32],
    d_bias: Option<&mut [f32]>,
    x: &[f32],
    dy: &[f32],
    residual: Option<&[f32]>,
    gain: &[f32],
    eps: f32,
) {
    let width = gain.len();
    assert!(
        dx.len() == x.len() && dy.len() == x.len() && residual.is_none_or(|r| r.len() == x.len()),
        "norm: dx, x, dy and the residual differ in length"
    );
    assert!(width > 0 && x.len().is_multiple_of(width), "norm: {} floats in rows of {width}", x.len());
    assert!(
        d_gain.len() == width && d_bias.as_ref().is_none_or(|b| b.len() == width),
        "norm: the gain and its gradient differ in length"
    );
    let piece = ROWS * width;
    let centred = d_bias.is_some();
    let sums = if centred { 2 * width } else { width };
    let mut partial = vec![0.0; x.len().div_ceil(piece) * sums];
    dx.par_chunks_mut(piece).zip(partial.par_chunks_mut(sums)).enumerate().for_each(|(i, (dx, sums))| {
        let range = i * piece..i * piece + dx.len();
        let residual = residual.map(|r| &r[range.clone()]);
        let (x, dy) = (&x[range.clone()], &dy[range]);
        dispatch(level, Backward { dx, sums, x, dy, residual, gain, eps, centred });
    });
    let total = |to: &mut [f32], offset: usize| {
        to.fill(0.0);
        for sums in partial.chunks_exact(sums) {
            to.iter_mut().zip(&sums[offset..]).for_each(|(t, s)| *t += s);
        }
    };
    total(d_gain, 0);
    if let Some(d_bias) = d_bias {
        total(d_bias, width);
    }
}

struct Backward<'a> {
    dx: &'a mut [f32],
    /// The sums of these rows for the gain and, where a mean is taken off, the bias.
    sums: &'a mut [f32],
    x: &'a [f32],
    dy: &'a [f32],
    residual: Option<&'a [f32]>,
    gain: &'a [f32],
    eps: f32,
    centred: bool,
}

/// Vector `at` of a row, its missing lanes being `fill`.
#[inline(always)]
fn get<S: Simd>(simd: S, x: &[f32], at: usize, fill: f32) -> S::V {
    match x[at..].first_chunk::<LANES>() {
        Some(line) => simd.load(line),
        None => simd.load_or(&x[at..], fill),
    }
}

#[inline(always)]
fn put<S: Simd>(simd: S, x: &mut [f32], at: usize, v: S::V) {
    match x[at..].first_chunk_mut::<LANES>() {
        Some(line) => simd.store(line, v),
        None => simd.store_first(&mut x[at..], v),
    }
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { dx, sums, x, dy, residual, gain, eps, centred } = self;
        let width = gain.len();
        let (d_gain, d_bias) = sums.split_at_mut(width);
        let zero = simd.splat(0.0);
        for (row, (dx, (x, dy))) in
            dx.chunks_exact_mut(width).zip(x.chunks_exact(width).zip(dy.chunks_exact(width))).enumerate()
        {
            let mut mean = 0.0;
            if centred {
                let mut sum = zero;
                for at in (0..width).step_by(LANES) {
                    sum = simd.add(sum, get(simd, x, at, 0.0));
                }
                mean = simd.sum(sum) / width as f32;
            }
            let middle = simd.splat(mean);
            // Σ (x − mean)², Σ w (x − mean), Σ w; lanes past the end are at the mean and have no gradient.
            let (mut squares, mut along, mut level) = (zero, zero, zero);
            for at in (0..width).step_by(LANES) {
                let away = simd.sub(get(simd, x, at, mean), middle);
                let w = simd.mul(get(simd, dy, at, 0.0), get(simd, gain, at, 0.0));
                squares = simd.mul_add(away, away, squares);
                along = simd.mul_add(w, away, along);
                level = simd.add(level, w);
            }
            let inverse = 1.0 / (simd.sum(squares) / width as f32 + eps).sqrt();
            let scale = simd.splat(inverse);
            // n · mean(w · n) = (x − mean) · inverse² · Σ w (x − mean) / width
            let along = simd.splat(simd.sum(along) / width as f32 * inverse * inverse);
            let level = if centred { simd.splat(simd.sum(level) / width as f32) } else { zero };
            for at in (0..width).step_by(LANES) {
                let away = simd.sub(get(simd, x, at, mean), middle);
                let dy = get(simd, dy, at, 0.0);
                let w = simd.sub(simd.mul(dy, get(simd, gain, at, 0.0)), level);
                let mut d = simd.mul(scale, simd.sub(w, simd.mul(away, along)));
                if let Some(residual) = residual {
                    d = simd.add(d, get(simd, &residual[row * width..][..width], at, 0.0));
                }
                put(simd, dx, at, d);
                let sum = simd.mul_add(dy, simd.mul(away, scale), get(simd, d_gain, at, 0.0));
                put(simd, d_gain, at, sum);
                if centred {
                    let sum = simd.add(dy, get(simd, d_bias, at, 0.0));
                    put(simd, d_bias, at, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    fn normal(key: u64, len: usize) -> Vec<f32> {
        let mut x = vec![0.0; len];
        fill_normal(key, 1.0, &mut x);
        x
    }

    /// `dx`, `d_gain` and `d_bias`, in f64.
    fn reference(
        x: &[f32],
        dy: &[f32],
        residual: Option<&[f32]>,
        gain: &[f32],
        eps: f32,
        centred: bool,
    ) -> [Vec<f64>; 3] {
        let width = gain.len();
        let (mut dx, mut d_gain, mut d_bias) = (vec![], vec![0.0; width], vec![0.0; width]);
        for (row, (x, dy)) in x.chunks(width).zip(dy.chunks(width)).enumerate() {
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (x, dy) = (wide(x), wide(dy));
            let count = width as f64;
            let mean = if centred { x.iter().sum::<f64>() / count } else { 0.0 };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
            let n: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
            let w: Vec<f64> = dy.iter().zip(gain).map(|(dy, g)| dy * f64::from(*g)).collect();
            let along = w.iter().zip(&n).map(|(w, n)| w * n).sum::<f64>() / count;
            let level = if centred { w.iter().sum::<f64>() / count } else { 0.0 };
            for i in 0..width {
                let past = residual.map_or(0.0, |r| f64::from(r[row * width + i]));
                dx.push(inverse * (w[i] - level - n[i] * along) + past);
                d_gain[i] += dy[i] * n[i];
                d_bias[i] += dy[i];
            }
        }
        [dx, d_gain, d_bias]
    }

    #[test]
    fn gradients_follow_the_formula_at_every_level() {
        for level in Level::available() {
            for (rows, width) in [(0, 4), (1, 1), (3, 5), (65, 16), (5, 33), (130, 577)] {
                let (x, dy, r) = (normal(1, rows * width), normal(2, rows * width), normal(4, rows * width));
                let gain = normal(3, width);
                for centred in [false, true] {
                    for residual in [None, Some(&r[..])] {
                        let (mut dx, mut d_gain, mut d_bias) = (vec![9.0; x.len()], vec![9.0; width], vec![9.0; width]);
                        let bias = centred.then_some(&mut d_bias[..]);
                        backward_at(level, &mut dx, &mut d_gain, bias, &x, &dy, residual, &gain, 1e-5);
                        let [want, want_gain, want_bias] = reference(&x, &dy, residual, &gain, 1e-5, centred);
                        let what = format!("{level} {rows} x {width} centred {centred}");
                        let check = |got: &[f32], want: &[f64]| {
                            // A row of one number has a variance of 0, whose inverse root is 316; sums of up to 577.
                            let largest = want.iter().fold(1.0f64, |a, w| a.max(w.abs()));
                            let size = if width == 1 { 316.0 } else { largest };
                            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                                let error = (f64::from(*got) - want).abs();
                                assert!(error <= 4e-6 * size, "{what}: element {i} is {got}, expected {want}");
                            }
                        };
                        check(&dx, &want);
                        check(&d_gain, &want_gain);
                        if centred {
                            check(&d_bias, &want_bias);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_show_and_a_bad_element_spoils_its_row() {
        let (rows, width) = (300, 40);
        let (mut x, dy, gain) = (normal(1, rows * width), normal(2, rows * width), normal(3, width));
        let run = |x: &[f32], threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let (mut dx, mut d_gain) = (vec![0.0; x.len()], vec![0.0; width]);
                rms_norm_backward(&mut dx, &mut d_gain, x, &dy, None, &gain, 1e-6);
                (dx, d_gain)
            })
        };
        assert!(run(&x, 1) == run(&x, 3));
        x[7 * width + 3] = f32::NAN;
        let (dx, _) = run(&x, 2);
        for (row, dx) in dx.chunks(width).enumerate() {
            assert_eq!(dx.iter().all(|d| d.is_finite()), row != 7);
        }
    }
}
