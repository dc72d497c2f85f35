//! Activation functions of feed-forward blocks, plain and gated, with their gradients.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// Rows (or pieces of a long vector) are handed to threads in about this many floats.
const PIECE: usize = 16 << 10;

/// A non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`, as in SwiGLU (Shazeer, 2020, arXiv:2002.05202).
    Silu,
    /// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`: GPT-2's `gelu_new` (Hendrycks and Gimpel, 2016, arXiv:1606.08415).
    GeluTanh,
    /// `x Φ(x)` with the normal distribution function (the same paper).
    Gelu,
}

/// `y = act(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate(kind: Activation, y: &mut [f32], x: &[f32]) {
    activate_at(level(), kind, y, x);
}

fn activate_at(level: Level, kind: Activation, y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "activation: y and x differ in length");
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| dispatch(level, Plain { kind, y, x }));
}

/// `dx = dy · act'(x)`.
///
/// # Panics
/// If the lengths differ.
pub fn activate_backward(kind: Activation, dx: &mut [f32], x: &[f32], dy: &[f32]) {
    activate_backward_at(level(), kind, dx, x, dy);
}

fn activate_backward_at(level: Level, kind: Activation, dx: &mut [f32], x: &[f32], dy: &[f32]) {
    assert!(dx.len() == x.len() && dy.len() == x.len(), "activation: dx, x and dy differ in length");
    dx.par_chunks_mut(PIECE)
        .zip(x.par_chunks(PIECE).zip(dy.par_chunks(PIECE)))
        .for_each(|(dx, (x, dy))| dispatch(level, PlainBackward { kind, dx, x, dy }));
}

/// `y = act(gate) · up`, where each row of `x` is `gate` then `up`.
///
/// # Shapes
/// - `y`: `rows × width`; `x`: `rows × 2·width`
///
/// # Panics
/// If the lengths do not fit each other.
pub fn gated(kind: Activation, y: &mut [f32], x: &[f32], width: usize) {
    gated_at(level(), kind, y, x, width);
}

fn gated_at(level: Level, kind: Activation, y: &mut [f32], x: &[f32], width: usize) {
    assert_eq!(2 * y.len(), x.len(), "gated: x is not twice as long as y");
    assert!(width > 0 && y.len().is_multiple_of(width), "gated: {} floats in rows of {width}", y.len());
    let piece = (PIECE / width).max(1) * width;
    y.par_chunks_mut(piece).zip(x.par_chunks(2 * piece)).for_each(|(y, x)| {
        dispatch(level, Gated { kind, y, x, width });
    });
}

/// The gradients of `gate` and `up` from that of `y`, laid out as [`gated`]'s `x`.
///
/// # Shapes
/// - `dx`, `x`: `rows × 2·width`; `dy`: `rows × width`
///
/// # Panics
/// If the lengths do not fit each other.
pub fn gated_backward(kind: Activation, dx: &mut [f32], x: &[f32], dy: &[f32], width: usize) {
    gated_backward_at(level(), kind, dx, x, dy, width);
}

fn gated_backward_at(level: Level, kind: Activation, dx: &mut [f32], x: &[f32], dy: &[f32], width: usize) {
    assert!(dx.len() == x.len() && 2 * dy.len() == x.len(), "gated: dx, x and dy do not fit each other");
    assert!(width > 0 && dy.len().is_multiple_of(width), "gated: {} floats in rows of {width}", dy.len());
    let piece = (PIECE / width).max(1) * width;
    dx.par_chunks_mut(2 * piece)
        .zip(x.par_chunks(2 * piece).zip(dy.par_chunks(piece)))
        .for_each(|(dx, (x, dy))| dispatch(level, GatedBackward { kind, dx, x, dy, width }));
}

/// [`gated`] with [`Activation::Silu`].
pub fn silu_mul(y: &mut [f32], x: &[f32], width: usize) {
    gated(Activation::Silu, y, x, width);
}

/// [`Activation::GeluTanh`], in place.
pub fn gelu_tanh(x: &mut [f32]) {
    in_place(level(), Activation::GeluTanh, x);
}

/// [`Activation::Gelu`], in place.
pub fn gelu_erf(x: &mut [f32]) {
    in_place(level(), Activation::Gelu, x);
}

fn in_place(level: Level, kind: Activation, x: &mut [f32]) {
    x.par_chunks_mut(PIECE).for_each(|x| dispatch(level, InPlace { kind, x }));
}

/// A curve: its value and slope at 16 points.
trait Curve {
    fn value<S: Simd>(simd: S, x: S::V) -> S::V;
    fn value_and_slope<S: Simd>(simd: S, x: S::V) -> (S::V, S::V);
}

/// `1 / (1 + e⁻ᶻ)`.
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, z: S::V) -> S::V {
    times_sigmoid(simd, simd.splat(1.0), z)
}

/// `x / (1 + e⁻ᶻ)`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::V, z: S::V) -> S::V {
    let e = simd.exp(simd.sub(simd.splat(0.0), z));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(simd: S, x: S::V) -> S::V {
        times_sigmoid(simd, x, x)
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
        let s = sigmoid(simd, x);
        let value = simd.mul(x, s);
        // s (1 + x (1 − s)) = s + x s (1 − s)
        (value, simd.mul_add(value, simd.sub(simd.splat(1.0), s), s))
    }
}

struct GeluTanh;

/// 2·√(2/π).
const SLOPE: f32 = 1.595_769;
const CUBIC: f32 = 0.044_715;

impl Curve for GeluTanh {
    /// Computed as `x / (1 + e^(−2u))`, which is the same and loses nothing for negative `x`.
    #[inline(always)]
    fn value<S: Simd>(simd: S, x: S::V) -> S::V {
        let slope = simd.mul_add(simd.splat(CUBIC * SLOPE), simd.mul(x, x), simd.splat(SLOPE));
        times_sigmoid(simd, x, simd.mul(x, slope))
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
        let x2 = simd.mul(x, x);
        let slope = simd.mul_add(simd.splat(CUBIC * SLOPE), x2, simd.splat(SLOPE));
        let s = sigmoid(simd, simd.mul(x, slope));
        let value = simd.mul(x, s);
        // With z = 2u and s = sigmoid(z): s + x s (1 − s) z'
        let z_slope = simd.mul_add(simd.splat(3.0 * CUBIC * SLOPE), x2, simd.splat(SLOPE));
        (value, simd.mul_add(simd.mul(value, simd.sub(simd.splat(1.0), s)), z_slope, s))
    }
}

struct Gelu;

/// `Φ(x)`, and `e^(−x²/2)`.
///
/// `erfc(z) = t · exp(−z² + P(t))` with `t = 1 / (1 + z/2)` (Press et al., Numerical Recipes, `erfcc`), whose relative
/// error is 1.2e-7, so the left tail keeps its digits.
#[inline(always)]
fn normal_distribution<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
    let zero = simd.splat(0.0);
    // x stands second, so that NaN passes.
    let size = simd.max(simd.sub(zero, x), x);
    let z = simd.mul(size, simd.splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.div(simd.splat(1.0), simd.mul_add(z, simd.splat(0.5), simd.splat(1.0)));
    let mut p = simd.splat(0.170_872_77);
    for c in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = simd.mul_add(p, t, simd.splat(c));
    }
    let square = simd.mul(simd.mul(x, x), simd.splat(-0.5));
    let density = simd.exp(square);
    let tail = simd.mul(simd.mul(simd.splat(0.5), t), simd.mul(density, simd.exp(p)));
    // The tail where x is negative, else 1 − tail: 0 or 1 by the sign, without a branch.
    let side = simd.min(simd.splat(1.0), simd.max(zero, simd.mul(x, simd.splat(f32::MAX))));
    let sign = simd.sub(simd.splat(1.0), simd.add(side, side));
    (simd.mul_add(sign, tail, side), density)
}

impl Curve for Gelu {
    #[inline(always)]
    fn value<S: Simd>(simd: S, x: S::V) -> S::V {
        let (phi, _) = normal_distribution(simd, x);
        simd.mul(x, phi)
    }

    #[inline(always)]
    fn value_and_slope<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
        let (phi, density) = normal_distribution(simd, x);
        // 1 / √(2π)
        let density = simd.mul(density, simd.splat(0.398_942_3));
        (simd.mul(x, phi), simd.mul_add(x, density, phi))
    }
}

/// Calls `$body` with `$C` standing for the curve of `$kind`.
macro_rules! with_curve {
    ($kind:expr, $C:ident => $body:expr) => {
        match $kind {
            Activation::Silu => {
                type $C = Silu;
                $body
            }
            Activation::GeluTanh => {
                type $C = GeluTanh;
                $body
            }
            Activation::Gelu => {
                type $C = Gelu;
                $body
            }
        }
    };
}

/// The vectors of a slice from `at` on, the last one filled up with zeros.
#[inline(always)]
fn get<S: Simd>(simd: S, x: &[f32], at: usize) -> S::V {
    match x[at..].first_chunk::<LANES>() {
        Some(line) => simd.load(line),
        None => simd.load_or(&x[at..], 0.0),
    }
}

/// Stores what [`get`] would load.
#[inline(always)]
fn put<S: Simd>(simd: S, x: &mut [f32], at: usize, v: S::V) {
    match x[at..].first_chunk_mut::<LANES>() {
        Some(line) => simd.store(line, v),
        None => simd.store_first(&mut x[at..], v),
    }
}

struct InPlace<'a> {
    kind: Activation,
    x: &'a mut [f32],
}

impl Kernel for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_curve!(self.kind, C => for at in (0..self.x.len()).step_by(LANES) {
            let y = C::value(simd, get(simd, self.x, at));
            put(simd, self.x, at, y);
        });
    }
}

struct Plain<'a> {
    kind: Activation,
    y: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Plain<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_curve!(self.kind, C => for at in (0..self.x.len()).step_by(LANES) {
            put(simd, self.y, at, C::value(simd, get(simd, self.x, at)));
        });
    }
}

struct PlainBackward<'a> {
    kind: Activation,
    dx: &'a mut [f32],
    x: &'a [f32],
    dy: &'a [f32],
}

impl Kernel for PlainBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        with_curve!(self.kind, C => for at in (0..self.x.len()).step_by(LANES) {
            let (_, slope) = C::value_and_slope(simd, get(simd, self.x, at));
            put(simd, self.dx, at, simd.mul(get(simd, self.dy, at), slope));
        });
    }
}

struct Gated<'a> {
    kind: Activation,
    y: &'a mut [f32],
    x: &'a [f32],
    width: usize,
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.width;
        for (y, x) in self.y.chunks_exact_mut(width).zip(self.x.chunks_exact(2 * width)) {
            let (gate, up) = x.split_at(width);
            with_curve!(self.kind, C => for at in (0..width).step_by(LANES) {
                let value = C::value(simd, get(simd, gate, at));
                put(simd, y, at, simd.mul(value, get(simd, up, at)));
            });
        }
    }
}

struct GatedBackward<'a> {
    kind: Activation,
    dx: &'a mut [f32],
    x: &'a [f32],
    dy: &'a [f32],
    width: usize,
}

impl Kernel for GatedBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.width;
        let rows = self.dx.chunks_exact_mut(2 * width).zip(self.x.chunks_exact(2 * width));
        for ((dx, x), dy) in rows.zip(self.dy.chunks_exact(width)) {
            let (gate, up) = x.split_at(width);
            let (d_gate, d_up) = dx.split_at_mut(width);
            with_curve!(self.kind, C => for at in (0..width).step_by(LANES) {
                let (value, slope) = C::value_and_slope(simd, get(simd, gate, at));
                let dy = get(simd, dy, at);
                put(simd, d_gate, at, simd.mul(simd.mul(dy, get(simd, up, at)), slope));
                put(simd, d_up, at, simd.mul(dy, value));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::{assert_elementwise, assert_within};

    const KINDS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

    /// Values of every size and sign, and an odd number of them.
    fn values() -> Vec<f32> {
        (0..4001).map(|i| (i as f32 - 2000.0) / 2000.0 * 12.0).collect()
    }

    /// Value and slope by the formula, in f64, with the tolerance of each.
    fn reference(kind: Activation, x: f32) -> [(f64, f64); 2] {
        let x = f64::from(x);
        let eps = f64::from(f32::EPSILON);
        match kind {
            Activation::Silu => {
                let s = 1.0 / (1.0 + (-x).exp());
                // A few ulp; the slope is a sum of two terms.
                [(x * s, 1e-6 * (x * s).abs()), (s + x * s * (1.0 - s), 1e-6 * (s + (x * s * (1.0 - s)).abs()))]
            }
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                let s = 1.0 / (1.0 + (-2.0 * u).exp());
                let slope = 2.0 * (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
                let more = x * s * (1.0 - s) * slope;
                // An ulp of the exponent is as many of the result as the exponent is large.
                let error = 4.0 * eps * (1.0 + 2.0 * u.abs());
                [(x * s, error * (x * s).abs()), (s + more, error * (s + more.abs()))]
            }
            Activation::Gelu => {
                let phi = 0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
                let more = x * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                // The formula's own 1.2e-7 and, as above, an exponent of x²/2.
                let error = 5e-7 + 2.0 * eps * x * x;
                [(x * phi, error * (x * phi).abs()), (phi + more, error * (phi + more.abs()))]
            }
        }
    }

    #[test]
    fn curves_and_slopes_agree_with_the_formula_at_every_level() {
        // exp underflows gradually beyond, which the relative tolerance does not allow for.
        let x: Vec<f32> = values().into_iter().filter(|x| x.abs() < 4.5).collect();
        let dy: Vec<f32> = (0..x.len()).map(|i| (i as f32 * 0.7).sin()).collect();
        for level in Level::available() {
            for kind in KINDS {
                let (mut y, mut dx, mut same) = (vec![9.0; x.len()], vec![9.0; x.len()], x.clone());
                activate_at(level, kind, &mut y, &x);
                assert_within(&format!("{level} {kind:?}"), &y, x.iter().map(|&x| reference(kind, x)[0]));
                in_place(level, kind, &mut same);
                assert_eq!(same, y, "{level} {kind:?}");
                activate_backward_at(level, kind, &mut dx, &x, &dy);
                let want = x.iter().zip(&dy).map(|(&x, &dy)| {
                    let (slope, error) = reference(kind, x)[1];
                    (slope * f64::from(dy), (error + 1e-7 * slope.abs()) * f64::from(dy.abs()))
                });
                assert_within(&format!("{level} {kind:?} slope"), &dx, want);
            }
        }
    }

    #[test]
    fn gates_agree_with_the_formula_at_every_level() {
        for level in Level::available() {
            for kind in KINDS {
                for width in [1, 5, 16, 33, 20_000] {
                    let rows = (400 / width).max(2);
                    let x: Vec<f32> = (0..rows * 2 * width).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
                    let dy: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.7).cos()).collect();
                    let (mut y, mut dx) = (vec![9.0; dy.len()], vec![9.0; x.len()]);
                    gated_at(level, kind, &mut y, &x, width);
                    gated_backward_at(level, kind, &mut dx, &x, &dy, width);
                    let at = |row: usize, i: usize| {
                        let (gate, up) = (x[row * 2 * width + i], f64::from(x[row * 2 * width + width + i]));
                        (reference(kind, gate), up, f64::from(dy[row * width + i]))
                    };
                    let what = format!("{level} {kind:?} {width}");
                    let want = (0..rows * width).map(|i| {
                        let ([(value, error), _], up, _) = at(i / width, i % width);
                        (value * up, (error + 1e-7 * value.abs()) * up.abs())
                    });
                    assert_within(&what, &y, want);
                    let want = (0..x.len()).map(|i| {
                        let (row, i) = (i / (2 * width), i % (2 * width));
                        let ([value, slope], up, dy) = at(row, i % width);
                        let ((z, error), factor) = if i < width { (slope, dy * up) } else { (value, dy) };
                        (z * factor, (error + 2e-7 * z.abs()) * factor.abs())
                    });
                    assert_within(&format!("{what} backward"), &dx, want);
                }
            }
        }
    }

    #[test]
    fn the_ends_are_kept() {
        for level in Level::available() {
            for kind in KINDS {
                let x = [f32::NAN, 100.0, -100.0, f32::INFINITY, 0.0, 1e-40];
                let mut y = [9.0; 6];
                activate_at(level, kind, &mut y, &x);
                assert!(y[0].is_nan(), "{level} {kind:?}");
                assert_eq!(y[1], 100.0, "{level} {kind:?}");
                assert!(y[2].abs() < 1e-37, "{level} {kind:?}: {}", y[2]);
                assert_eq!(y[3..5], [f32::INFINITY, 0.0], "{level} {kind:?}");
                // Half of a subnormal number.
                assert!((f64::from(y[5]) - 0.5e-40).abs() < 2e-45, "{level} {kind:?}: {}", y[5]);
                let mut dx = [9.0; 6];
                activate_backward_at(level, kind, &mut dx, &x, &[1.0; 6]);
                assert!(dx[0].is_nan(), "{level} {kind:?}");
                assert_eq!(dx[1], 1.0, "{level} {kind:?}");
                assert!(dx[2].abs() < 1e-35, "{level} {kind:?}: {}", dx[2]);
                assert_eq!(dx[4], 0.5, "{level} {kind:?}");
            }
        }
        activate(Activation::Silu, &mut [], &[]);
        gated(Activation::Silu, &mut [], &[], 3);
    }

    #[test]
    fn gelu_erf_gives_pytorch_values() {
        // torch.nn.functional.gelu in f64 at -3, -1, 0.5, 2.
        let mut x = [-3.0, -1.0, 0.5, 2.0];
        gelu_erf(&mut x);
        let want = [-0.004_049_694_095_7, -0.158_655_253_931_5, 0.345_731_230_637, 1.954_499_736_103_6];
        assert_elementwise("gelu", &x, want);
    }
}
