//! Adam with decoupled weight decay.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::vector::PIECE;
use rayon::prelude::*;

/// One step's settings for a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment, after its bias is corrected.
    pub eps: f64,
    /// Share of the parameter, times the learning rate, that is taken away first. 0 for tensors that do not decay.
    pub weight_decay: f64,
    /// Number of this step, from 1, for the correction of the moments' bias.
    pub step: u64,
    /// The gradient is multiplied by this first: clipping.
    pub grad_scale: f64,
}

/// Updates a tensor and its moments, as PyTorch's `AdamW` does:
///
/// ```text
/// g ← grad_scale · grad          p ← p − lr · weight_decay · p
/// m ← m + (1 − β₁)(g − m)        v ← β₂ v + (1 − β₂) g²
/// p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + eps)
/// ```
///
/// Element by element in one pass; the same bits at every level but `Portable`, on any number of threads.
///
/// # Panics
/// If the lengths differ or `step` is 0.
///
/// # Reference
/// Loshchilov and Hutter, 2019, arXiv:1711.05101.
pub fn adamw_update(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep) {
    update_at(level(), param, grad, m, v, step);
}

fn update_at(level: Level, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], step: &AdamWStep) {
    assert!(
        param.len() == grad.len() && param.len() == m.len() && param.len() == v.len(),
        "adamw: {} parameters, {} gradients, {} and {} moments",
        param.len(),
        grad.len(),
        m.len(),
        v.len()
    );
    assert!(step.step > 0, "adamw: steps count from 1");
    // Exponents beyond i32 have long reached their limit.
    let t = i32::try_from(step.step).unwrap_or(i32::MAX);
    let scalars = Scalars {
        grad_scale: step.grad_scale as f32,
        keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
        toward: (1.0 - step.beta1) as f32,
        beta2: step.beta2 as f32,
        square: (1.0 - step.beta2) as f32,
        step_size: (step.learning_rate / (1.0 - step.beta1.powi(t))) as f32,
        root: (1.0 - step.beta2.powi(t)).sqrt() as f32,
        eps: step.eps as f32,
    };
    param
        .par_chunks_mut(PIECE)
        .zip(grad.par_chunks(PIECE))
        .zip(m.par_chunks_mut(PIECE).zip(v.par_chunks_mut(PIECE)))
        .for_each(|((param, grad), (m, v))| dispatch(level, Update { param, grad, m, v, scalars }));
}

#[derive(Clone, Copy)]
struct Scalars {
    grad_scale: f32,
    keep: f32,
    toward: f32,
    beta2: f32,
    square: f32,
    step_size: f32,
    root: f32,
    eps: f32,
}

struct Update<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    scalars: Scalars,
}

/// New parameter and moments of 16 elements.
#[inline(always)]
fn update<S: Simd>(simd: S, s: &Scalars, p: S::V, g: S::V, m: S::V, v: S::V) -> (S::V, S::V, S::V) {
    let g = simd.mul(g, simd.splat(s.grad_scale));
    let p = simd.mul(p, simd.splat(s.keep));
    let m = simd.mul_add(simd.splat(s.toward), simd.sub(g, m), m);
    let v = simd.mul_add(simd.splat(s.beta2), v, simd.mul(simd.splat(s.square), simd.mul(g, g)));
    let denominator = simd.add(simd.div(simd.sqrt(v), simd.splat(s.root)), simd.splat(s.eps));
    let p = simd.sub(p, simd.mul(simd.splat(s.step_size), simd.div(m, denominator)));
    (p, m, v)
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let s = self.scalars;
        let (p_lines, p_rest) = self.param.as_chunks_mut::<LANES>();
        let (g_lines, g_rest) = self.grad.as_chunks::<LANES>();
        let (m_lines, m_rest) = self.m.as_chunks_mut::<LANES>();
        let (v_lines, v_rest) = self.v.as_chunks_mut::<LANES>();
        for (((p, g), m), v) in p_lines.iter_mut().zip(g_lines).zip(m_lines).zip(v_lines) {
            let new = update(simd, &s, simd.load(p), simd.load(g), simd.load(m), simd.load(v));
            simd.store(p, new.0);
            simd.store(m, new.1);
            simd.store(v, new.2);
        }
        if !p_rest.is_empty() {
            let of = |x: &[f32]| simd.load_or(x, 0.0);
            let new = update(simd, &s, of(p_rest), of(g_rest), of(m_rest), of(v_rest));
            simd.store_first(p_rest, new.0);
            simd.store_first(m_rest, new.1);
            simd.store_first(v_rest, new.2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;
    use crate::tolerance::assert_within;

    const STEP: AdamWStep = AdamWStep {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };

    /// The formula, in f64.
    fn reference(p: &mut f64, g: f64, m: &mut f64, v: &mut f64, s: &AdamWStep) {
        let g = g * s.grad_scale;
        *p -= s.learning_rate * s.weight_decay * *p;
        *m = s.beta1 * *m + (1.0 - s.beta1) * g;
        *v = s.beta2 * *v + (1.0 - s.beta2) * g * g;
        let t = s.step as i32;
        let root = *v / (1.0 - s.beta2.powi(t));
        *p -= s.learning_rate * (*m / (1.0 - s.beta1.powi(t))) / (root.sqrt() + s.eps);
    }

    #[test]
    fn ten_steps_follow_the_formula_at_every_level() {
        for level in Level::available() {
            for n in [0, 1, 15, 16, 33, PIECE + 5] {
                let mut p = vec![0.0; n];
                fill_normal(1, 1.0, &mut p);
                let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
                let mut want: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
                for step in 1..=10 {
                    let s = AdamWStep { step, grad_scale: 0.5, ..STEP };
                    let mut g = vec![0.0; n];
                    fill_normal(100 + step, 1.0, &mut g);
                    update_at(level, &mut p, &g, &mut m, &mut v, &s);
                    for ([p, m, v], g) in want.iter_mut().zip(&g) {
                        reference(p, f64::from(*g), m, v, &s);
                    }
                }
                // Ten updates of at most 2e-2 in f32, each within a few ulp.
                let what = format!("{level} {n}");
                assert_within(&what, &p, want.iter().map(|w| (w[0], 2e-6 * w[0].abs().max(1.0))));
                assert_within(&what, &m, want.iter().map(|w| (w[1], 1e-6)));
                assert_within(&what, &v, want.iter().map(|w| (w[2], 2e-6 * w[2])));
            }
        }
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        // PyTorch's AdamW on p = 1, g = 3 and 1e-3 with these settings: 1 − 0.001 − 0.01.
        let (mut p, mut m, mut v) = ([1.0f32, 1.0], [0.0; 2], [0.0; 2]);
        adamw_update(&mut p, &[3.0, 1e-3], &mut m, &mut v, &STEP);
        assert!((p[0] - 0.989).abs() < 1e-7, "{}", p[0]);
        // eps is 1e-5 of this gradient.
        assert!((f64::from(p[1]) - (0.999 - 0.01 / (1.0 + 1e-5))).abs() < 1e-7, "{}", p[1]);
    }

    #[test]
    #[should_panic(expected = "adamw: 2 parameters, 1 gradients, 2 and 2 moments")]
    fn lengths_must_agree() {
        adamw_update(&mut [1.0; 2], &[1.0], &mut [0.0; 2], &mut [0.0; 2], &STEP);
    }
}
