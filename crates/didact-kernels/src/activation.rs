//! Activation functions of feed-forward blocks.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// Rows (or pieces of a long vector) are handed to threads in about this many floats.
const PIECE: usize = 16 << 10;

/// `y = silu(gate) · up`, where each row of `x` is `gate` then `up`, and `silu(g) = g / (1 + e⁻ᵍ)`.
///
/// # Shapes
/// - `y`: `rows × width`; `x`: `rows × 2·width`
///
/// # Panics
/// If the lengths do not fit each other.
///
/// # Reference
/// Shazeer, 2020, arXiv:2002.05202.
pub fn silu_mul(y: &mut [f32], x: &[f32], width: usize) {
    silu_mul_at(level(), y, x, width);
}

fn silu_mul_at(level: Level, y: &mut [f32], x: &[f32], width: usize) {
    assert_eq!(2 * y.len(), x.len(), "silu_mul: x is not twice as long as y");
    assert!(width > 0 && y.len().is_multiple_of(width), "silu_mul: {} floats in rows of {width}", y.len());
    let rows = (PIECE / width).max(1);
    y.par_chunks_mut(rows * width).zip(x.par_chunks(2 * rows * width)).for_each(|(y, x)| {
        dispatch(level, SiluMul { y, x, width });
    });
}

struct SiluMul<'a> {
    y: &'a mut [f32],
    x: &'a [f32],
    width: usize,
}

/// `x / (1 + e⁻ᶻ)`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::V, z: S::V) -> S::V {
    let e = simd.exp(simd.sub(simd.splat(0.0), z));
    simd.div(x, simd.add(simd.splat(1.0), e))
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.width;
        for (y, x) in self.y.chunks_exact_mut(width).zip(self.x.chunks_exact(2 * width)) {
            let (gate, up) = x.split_at(width);
            let (y_lines, y_rest) = y.as_chunks_mut::<LANES>();
            let (gate_lines, gate_rest) = gate.as_chunks::<LANES>();
            let (up_lines, up_rest) = up.as_chunks::<LANES>();
            for ((y, gate), up) in y_lines.iter_mut().zip(gate_lines).zip(up_lines) {
                let gate = simd.load(gate);
                simd.store(y, simd.mul(times_sigmoid(simd, gate, gate), simd.load(up)));
            }
            if !y_rest.is_empty() {
                let (gate, up) = (simd.load_or(gate_rest, 0.0), simd.load_or(up_rest, 0.0));
                simd.store_first(y_rest, simd.mul(times_sigmoid(simd, gate, gate), up));
            }
        }
    }
}

/// `x ← ½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, in place: GPT-2's `gelu_new`.
///
/// Computed as `x / (1 + e^(−2u))`, which is the same and loses nothing for negative `x`.
///
/// # Reference
/// Hendrycks and Gimpel, 2016, arXiv:1606.08415.
pub fn gelu_tanh(x: &mut [f32]) {
    gelu_tanh_at(level(), x);
}

fn gelu_tanh_at(level: Level, x: &mut [f32]) {
    x.par_chunks_mut(PIECE).for_each(|x| dispatch(level, GeluTanh(x)));
}

struct GeluTanh<'a>(&'a mut [f32]);

impl Kernel for GeluTanh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let gelu = |x: S::V| {
            // 2·√(2/π) = 1.595769…
            let x2 = simd.mul(x, x);
            let slope = simd.mul_add(simd.splat(0.044_715 * 1.595_769), x2, simd.splat(1.595_769));
            times_sigmoid(simd, x, simd.mul(x, slope))
        };
        let (lines, rest) = self.0.as_chunks_mut::<LANES>();
        for line in lines {
            let y = gelu(simd.load(line));
            simd.store(line, y);
        }
        if !rest.is_empty() {
            let y = gelu(simd.load_or(rest, 0.0));
            simd.store_first(rest, y);
        }
    }
}

/// `x ← x Φ(x)`, in place, with the exact normal distribution function.
///
/// # Reference
/// Hendrycks and Gimpel, 2016, arXiv:1606.08415.
pub fn gelu_erf(x: &mut [f32]) {
    x.par_chunks_mut(PIECE).for_each(|x| {
        for x in x {
            let wide = f64::from(*x);
            *x = (0.5 * wide * libm::erfc(-wide * std::f64::consts::FRAC_1_SQRT_2)) as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tolerance::{assert_elementwise, assert_within};

    /// Values of every size and sign, and an odd number of them.
    fn values() -> Vec<f32> {
        (0..4001).map(|i| (i as f32 - 2000.0) / 2000.0 * 12.0).collect()
    }

    #[test]
    fn silu_mul_agrees_with_the_formula_at_every_level() {
        for level in Level::available() {
            for width in [1, 5, 16, 33] {
                let x: Vec<f32> = values()[..4000 / (2 * width) * 2 * width].to_vec();
                let mut y = vec![0.0; x.len() / 2];
                silu_mul_at(level, &mut y, &x, width);
                let want = x.chunks(2 * width).flat_map(|x| {
                    (0..width).map(move |i| {
                        let (gate, up) = (f64::from(x[i]), f64::from(x[width + i]));
                        gate / (1.0 + (-gate).exp()) * up
                    })
                });
                assert_elementwise(&format!("{level} {width}"), &y, want);
            }
        }
    }

    #[test]
    fn gelu_tanh_agrees_with_the_formula_at_every_level() {
        for level in Level::available() {
            let x: Vec<f32> = values().into_iter().filter(|x| x.abs() < 4.0).collect();
            let mut y = x.clone();
            gelu_tanh_at(level, &mut y);
            let want = x.iter().map(|&x| {
                let x = f64::from(x);
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                let want = x / (1.0 + (-2.0 * u).exp());
                // An ulp of the exponent is as many of the result as the exponent is large.
                (want, 4.0 * f64::from(f32::EPSILON) * want.abs() * (1.0 + 2.0 * u.abs()))
            });
            assert_within(level.as_str(), &y, want);
        }
    }

    #[test]
    fn gelu_tanh_at_its_ends() {
        let mut x = [f32::NAN, 100.0, -100.0, f32::INFINITY, 0.0];
        gelu_tanh(&mut x);
        assert!(x[0].is_nan());
        assert_eq!(x[1..], [100.0, 0.0, f32::INFINITY, 0.0]);
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
