//! Adam with decoupled weight decay.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::vector::PIECE;
use half::bf16;
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
    update_all_at(level, &mut [AdamWTensor { param, grad: Gradient::F32(grad), m, v, decays: true }], step);
}

/// A gradient as it is kept.
#[derive(Debug, Clone, Copy)]
pub enum Gradient<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16.
    Bf16(&'a [bf16]),
}

impl<'a> Gradient<'a> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Pieces of `len`, the last one shorter.
    pub(crate) fn pieces(self, len: usize) -> impl Iterator<Item = Self> + 'a {
        let total = self.len();
        (0..total).step_by(len).map(move |from| {
            let to = total.min(from + len);
            match self {
                Self::F32(x) => Self::F32(&x[from..to]),
                Self::Bf16(x) => Self::Bf16(&x[from..to]),
            }
        })
    }
}

/// A tensor with what its update needs.
#[derive(Debug)]
pub struct AdamWTensor<'a> {
    /// The parameter.
    pub param: &'a mut [f32],
    /// Its gradient.
    pub grad: Gradient<'a>,
    /// First moment.
    pub m: &'a mut [f32],
    /// Second moment.
    pub v: &'a mut [f32],
    /// Whether [`AdamWStep::weight_decay`] applies to it.
    pub decays: bool,
}

/// [`adamw_update`] of many tensors in one pass: the work is shared out among threads over all of them together, so that
/// small tensors cost no waiting. The bits are those of tensor after tensor.
///
/// # Panics
/// If the lengths of a tensor differ or `step` is 0.
pub fn adamw_update_all(tensors: &mut [AdamWTensor<'_>], step: &AdamWStep) {
    update_all_at(level(), tensors, step);
}

fn update_all_at(level: Level, tensors: &mut [AdamWTensor<'_>], step: &AdamWStep) {
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
    let mut pieces = Vec::new();
    for tensor in tensors {
        let AdamWTensor { param, grad, m, v, decays } = tensor;
        assert!(
            param.len() == grad.len() && param.len() == m.len() && param.len() == v.len(),
            "adamw: {} parameters, {} gradients, {} and {} moments",
            param.len(),
            grad.len(),
            m.len(),
            v.len()
        );
        let scalars = if *decays { scalars } else { Scalars { keep: 1.0, ..scalars } };
        let parts = param.chunks_mut(PIECE).zip(grad.pieces(PIECE)).zip(m.chunks_mut(PIECE).zip(v.chunks_mut(PIECE)));
        pieces.extend(parts.map(|((param, grad), (m, v))| Update { param, grad, m, v, scalars }));
    }
    pieces.into_par_iter().for_each(|piece| dispatch(level, piece));
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
    grad: Gradient<'a>,
    m: &'a mut [f32],
    v: &'a mut [f32],
    scalars: Scalars,
}

/// A number that a gradient is kept as.
trait Stored: Copy {
    const ZERO: Self;
    fn wide(self) -> f32;
}

impl Stored for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    const ZERO: Self = bf16::from_bits(0);

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
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
        let Self { param, grad, m, v, scalars } = self;
        match grad {
            Gradient::F32(grad) => update_piece(simd, param, grad, m, v, &scalars),
            Gradient::Bf16(grad) => update_piece(simd, param, grad, m, v, &scalars),
        }
    }
}

#[inline(always)]
fn update_piece<S: Simd, G: Stored>(simd: S, param: &mut [f32], grad: &[G], m: &mut [f32], v: &mut [f32], s: &Scalars) {
    let (p_lines, p_rest) = param.as_chunks_mut::<LANES>();
    let (g_lines, g_rest) = grad.as_chunks::<LANES>();
    let (m_lines, m_rest) = m.as_chunks_mut::<LANES>();
    let (v_lines, v_rest) = v.as_chunks_mut::<LANES>();
    for (((p, g), m), v) in p_lines.iter_mut().zip(g_lines).zip(m_lines).zip(v_lines) {
        let g = simd.load(&g.map(Stored::wide));
        let new = update(simd, s, simd.load(p), g, simd.load(m), simd.load(v));
        simd.store(p, new.0);
        simd.store(m, new.1);
        simd.store(v, new.2);
    }
    if !p_rest.is_empty() {
        let of = |x: &[f32]| simd.load_or(x, 0.0);
        let mut g = [G::ZERO; LANES];
        g[..g_rest.len()].copy_from_slice(g_rest);
        let new = update(simd, s, of(p_rest), simd.load(&g.map(Stored::wide)), of(m_rest), of(v_rest));
        simd.store_first(p_rest, new.0);
        simd.store_first(m_rest, new.1);
        simd.store_first(v_rest, new.2);
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
    fn many_tensors_together_get_the_bits_of_each_alone() {
        let lengths = [0, 1, 17, PIECE + 3, 40];
        let tensor = |i: usize, what: u64| {
            let mut x = vec![0.0; lengths[i]];
            fill_normal(10 * i as u64 + what, 1.0, &mut x);
            x
        };
        let rounded: Vec<Vec<bf16>> =
            (0..5).map(|i| tensor(i, 1).iter().map(|&g| bf16::from_f32(g)).collect()).collect();
        let back = |i: usize| rounded[i].iter().map(|g| g.to_f32()).collect::<Vec<_>>();
        for in_bf16 in [false, true] {
            let gradients: Vec<Vec<f32>> = (0..5).map(|i| if in_bf16 { back(i) } else { tensor(i, 1) }).collect();
            let new =
                || (0..5).map(|i| (tensor(i, 0), vec![0.1; lengths[i]], vec![0.2; lengths[i]])).collect::<Vec<_>>();
            let (mut together, mut alone) = (new(), new());
            let mut tensors: Vec<AdamWTensor> = together
                .iter_mut()
                .enumerate()
                .map(|(i, (param, m, v))| {
                    let grad = if in_bf16 { Gradient::Bf16(&rounded[i]) } else { Gradient::F32(&gradients[i]) };
                    AdamWTensor { param, grad, m, v, decays: i % 2 == 0 }
                })
                .collect();
            adamw_update_all(&mut tensors, &STEP);
            for (i, (p, m, v)) in alone.iter_mut().enumerate() {
                let weight_decay = if i % 2 == 0 { STEP.weight_decay } else { 0.0 };
                adamw_update(p, &gradients[i], m, v, &AdamWStep { weight_decay, ..STEP });
            }
            assert!(together == alone, "in bf16: {in_bf16}");
        }
    }

    #[test]
    fn a_bad_gradient_spoils_its_element_only() {
        for level in Level::available() {
            for bad in [f32::NAN, f32::INFINITY] {
                let (mut p, mut m, mut v) = ([1.0f32; 40], [0.0; 40], [0.0; 40]);
                let mut g = [f32::MIN_POSITIVE / 4.0; 40];
                g[37] = bad;
                update_at(level, &mut p, &g, &mut m, &mut v, &STEP);
                for (i, p) in p.iter().enumerate() {
                    assert_eq!(p.is_nan(), i == 37, "{level} {bad} element {i}");
                }
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
