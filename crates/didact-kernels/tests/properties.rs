//! Kernels of rows and elements against plain f64 references, over drawn shapes and values: 1, primes, lengths that are no
//! multiple of a vector, nothing at all, and among the values denormals and ones that differ by many orders of magnitude.
//! Products and attention have theirs beside them (`gemm::tests`, `sdpa::tests`). `DIDACT_CPU` chooses what is tested.

use didact_kernels::activation::{Activation, activate, activate_backward, gated, gated_backward};
use didact_kernels::adamw::{AdamWStep, AdamWTensor, Gradient, adamw_update, adamw_update_all};
use didact_kernels::cross_entropy::{Loss, OutputWeight, Results, linear_cross_entropy};
use didact_kernels::{Precision, embedding, norm, random, rope};
use proptest::collection::vec;
use proptest::prelude::*;

/// Widths around those of vectors, primes among them.
fn width() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), 2usize..40, Just(64), Just(97), Just(257)]
}

/// Mostly ordinary, sometimes tiny, large, zero or denormal.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -3.0f32..3.0,
        1 => -1e3f32..1e3,
        1 => -1e-6f32..1e-6,
        1 => prop_oneof![Just(0.0f32), Just(-0.0), Just(1e-40), Just(-3e-42), Just(f32::MIN_POSITIVE)],
    ]
}

fn rows(count: impl Strategy<Value = usize>) -> impl Strategy<Value = (usize, usize)> {
    (count, width())
}

/// Each result within `share` of the size that its sum has. Tails of exponentials end near the smallest f32, and are
/// multiplied by values of up to 1e6.
fn close(what: &str, got: &[f32], want: &[(f64, f64)], share: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(got.len(), want.len(), "{}: lengths", what);
    for (i, (&got, &(want, size))) in got.iter().zip(want).enumerate() {
        let allowed = share * size.abs().max(want.abs()) + 1e-31;
        prop_assert!((f64::from(got) - want).abs() <= allowed, "{what}: element {i} is {got}, expected {want}");
    }
    Ok(())
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// A row's deviations from what is taken off, and one over their root mean square.
fn deviations(x: &[f64], eps: f64, centred: bool) -> (Vec<f64>, f64) {
    let n = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let d: Vec<f64> = x.iter().map(|x| x - mean).collect();
    let scale = 1.0 / (d.iter().map(|d| d * d).sum::<f64>() / n + eps).sqrt();
    (d, scale)
}

/// The normal distribution's density at `x`.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// An activation and its derivative, and the sizes of the terms that are added for each.
fn act(kind: Activation, x: f64) -> [(f64, f64); 2] {
    match kind {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            [(x * s, x * s), (s * (1.0 + x * (1.0 - s)), s * (1.0 + x.abs()))]
        }
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            let t = (c * (x + 0.044_715 * x.powi(3))).tanh();
            let slope = 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044_715 * x * x);
            [(0.5 * x * (1.0 + t), 0.5 * x), (0.5 * (1.0 + t) + slope, 0.5 + slope.abs())]
        }
        Activation::Gelu => {
            let phi = 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
            [(x * phi, 0.5 * x), (phi + x * density(x), 0.5 + (x * density(x)).abs())]
        }
    }
}

fn kind() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::Silu), Just(Activation::GeluTanh), Just(Activation::Gelu)]
}

fn step() -> impl Strategy<Value = AdamWStep> {
    (1e-5f64..1e-1, 0.0f64..0.99, 0.5f64..0.9999, 0.0f64..0.2, 1u64..5000, 0.01f64..2.0).prop_map(
        |(learning_rate, beta1, beta2, weight_decay, step, grad_scale)| AdamWStep {
            learning_rate,
            beta1,
            beta2,
            eps: 1e-8,
            weight_decay,
            step,
            grad_scale,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn norms_and_their_gradients_follow_the_formulas(
        (count, width, x, dy, residual, gain, bias, centred) in rows(0usize..6).prop_flat_map(|(count, width)| (
            Just(count), Just(width), vec(value(), count * width), vec(value(), count * width),
            vec(value(), count * width), vec(-2.0f32..2.0, width), vec(-2.0f32..2.0, width), any::<bool>(),
        )),
    ) {
        let eps = 1e-5f32;
        let (mut y, mut dx) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        let (mut d_gain, mut d_bias) = (vec![9.0; width], vec![9.0; width]);
        if centred {
            norm::layer_norm(&mut y, &x, &gain, &bias, eps);
            norm::layer_norm_backward(&mut dx, &mut d_gain, &mut d_bias, &x, &dy, Some(&residual), &gain, eps);
        } else {
            norm::rms_norm(&mut y, &x, &gain, eps);
            norm::rms_norm_backward(&mut dx, &mut d_gain, &x, &dy, Some(&residual), &gain, eps);
        }
        let (mut want_y, mut want_dx) = (Vec::new(), Vec::new());
        let (mut want_gain, mut want_bias) = (vec![(0.0, 0.0); width], vec![(0.0, 0.0); width]);
        for row in 0..count {
            let at = row * width..(row + 1) * width;
            let (x, dy, residual) = (wide(&x[at.clone()]), wide(&dy[at.clone()]), wide(&residual[at]));
            let (d, scale) = deviations(&x, f64::from(eps), centred);
            // A mean is known to an ulp of the largest term.
            let largest = x.iter().fold(0.0f64, |a, x| a.max(x.abs())) * scale;
            let w: Vec<f64> = dy.iter().zip(&gain).map(|(dy, g)| dy * f64::from(*g)).collect();
            let n = width as f64;
            let dot = w.iter().zip(&d).map(|(w, d)| w * d * scale).sum::<f64>() / n;
            let mean = if centred { w.iter().sum::<f64>() / n } else { 0.0 };
            let size = w.iter().fold(0.0f64, |a, w| a.max(w.abs()));
            for i in 0..width {
                let unit = d[i] * scale;
                let b = if centred { f64::from(bias[i]) } else { 0.0 };
                want_y.push((unit * f64::from(gain[i]) + b, largest * f64::from(gain[i]).abs() + b.abs()));
                let size = scale * size * (1.0 + largest.powi(2)) + residual[i].abs();
                want_dx.push((scale * (w[i] - unit * dot - mean) + residual[i], size));
                want_gain[i].0 += dy[i] * unit;
                want_gain[i].1 += dy[i].abs() * largest;
                want_bias[i].0 += dy[i];
                want_bias[i].1 += dy[i].abs();
            }
        }
        // Sums of up to 257 terms in f32: 4 eps sqrt(n) is 8e-6.
        close("y", &y, &want_y, 1e-5)?;
        close("dx", &dx, &want_dx, 2e-5)?;
        close("d_gain", &d_gain, &want_gain, 2e-5)?;
        if centred {
            close("d_bias", &d_bias, &want_bias, 2e-5)?;
        }
    }

    #[test]
    fn activations_and_their_gradients_follow_the_formulas(
        (kind, width, x, dy) in (kind(), rows(0usize..6)).prop_flat_map(|(kind, (count, width))| (
            Just(kind), Just(width), vec(value(), 2 * count * width), vec(value(), 2 * count * width),
        )),
    ) {
        let (mut y, mut dx) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        activate(kind, &mut y, &x);
        activate_backward(kind, &mut dx, &x, &dy);
        let of: Vec<[(f64, f64); 2]> = x.iter().map(|&x| act(kind, f64::from(x))).collect();
        let want: Vec<(f64, f64)> = of.iter().map(|[y, _]| *y).collect();
        let slopes: Vec<(f64, f64)> =
            of.iter().zip(&dy).map(|([_, d], &dy)| (d.0 * f64::from(dy), d.1 * f64::from(dy))).collect();
        // Measured below 1e-6 of the terms; tails of the Gaussian are added to 1/2.
        close("y", &y, &want, 2e-6)?;
        close("dx", &dx, &slopes, 4e-6)?;

        let (mut y, mut dx) = (vec![9.0; x.len() / 2], vec![9.0; x.len()]);
        let dy = &dy[..y.len()];
        gated(kind, &mut y, &x, width);
        gated_backward(kind, &mut dx, &x, dy, width);
        let (mut want_y, mut want_dx) = (Vec::new(), Vec::new());
        for (x, dy) in x.chunks(2 * width).zip(dy.chunks(width)) {
            let (gate, up) = x.split_at(width);
            let parts: Vec<_> = gate.iter().map(|&g| act(kind, f64::from(g))).collect();
            let product = |(a, size): (f64, f64), b: f32| (a * f64::from(b), size * f64::from(b));
            want_y.extend(parts.iter().zip(up).map(|([y, _], &up)| product(*y, up)));
            let d_gate = parts.iter().zip(up).zip(dy).map(|(([_, d], &up), &dy)| product(product(*d, up), dy));
            want_dx.extend(d_gate);
            want_dx.extend(parts.iter().zip(dy).map(|([y, _], &dy)| product(*y, dy)));
        }
        close("gated y", &y, &want_y, 2e-6)?;
        close("gated dx", &dx, &want_dx, 4e-6)?;
    }

    #[test]
    fn rotations_keep_lengths_and_are_undone_by_their_transpose(
        (count, heads, half, rest, key) in (0usize..40, 1usize..4, 1usize..20, 0usize..5, any::<u64>()),
    ) {
        let stride = heads * 2 * half + rest;
        let mut x = vec![0.0; count * stride];
        random::fill_normal(key, 1.0, &mut x);
        let before = x.clone();
        let angles: Vec<f32> = (0..7 * half).map(|i| i as f32 * 0.37).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
        let positions: Vec<u32> = (0..count as u32).map(|r| r * 5 % 7).collect();
        rope::apply(&mut x, stride, heads, 2 * half, &cos, &sin, &positions);
        for (row, (x, before)) in x.chunks(stride.max(1)).zip(before.chunks(stride.max(1))).enumerate() {
            prop_assert_eq!(&x[heads * 2 * half..], &before[heads * 2 * half..], "row {}: the rest", row);
            for head in 0..heads {
                for d in 0..half {
                    let (i, j) = (head * 2 * half + d, head * 2 * half + half + d);
                    let norm = |x: &[f32]| f64::from(x[i]).hypot(f64::from(x[j]));
                    prop_assert!((norm(x) - norm(before)).abs() <= 1e-6 * norm(before).max(1.0), "row {row} pair {d}");
                    let at = positions[row] as usize * half + d;
                    let want = f64::from(before[i]) * f64::from(cos[at]) - f64::from(before[j]) * f64::from(sin[at]);
                    prop_assert!((f64::from(x[i]) - want).abs() <= 1e-6 * norm(before).max(1.0));
                }
            }
        }
        rope::apply_back(&mut x, stride, heads, 2 * half, &cos, &sin, &positions);
        for (x, b) in x.iter().zip(&before) {
            prop_assert!((x - b).abs() <= 2e-6 * b.abs().max(3.0), "{x} was {b}");
        }
    }

    #[test]
    fn rows_of_a_table_and_their_gradient_are_transposes(
        (vocabulary, width, ids, key) in (1usize..50, width()).prop_flat_map(|(vocabulary, width)| (
            Just(vocabulary), Just(width), vec(0..vocabulary as u32, 0..60), any::<u64>(),
        )),
    ) {
        let (mut table, mut rows) = (vec![0.0; vocabulary * width], vec![0.0; ids.len() * width]);
        random::fill_normal(key, 1.0, &mut table);
        random::fill_normal(key ^ 1, 1.0, &mut rows);
        let mut out = vec![9.0; rows.len()];
        embedding::gather(&mut out, &table, &ids, width);
        for (row, &id) in out.chunks(width).zip(&ids) {
            prop_assert_eq!(row, &table[id as usize * width..][..width]);
        }
        let mut summed = table.clone();
        embedding::scatter_add(&mut summed, &ids, &rows, width);
        // In the order of the ids: the same bits as the plain loop.
        let mut want = table;
        for (row, &id) in rows.chunks(width).zip(&ids) {
            want[id as usize * width..][..width].iter_mut().zip(row).for_each(|(w, r)| *w += r);
        }
        prop_assert_eq!(summed, want);
    }

    #[test]
    fn dropout_is_its_mask_wherever_it_is_cut(
        (x, key, offset, keep, cut) in (vec(value(), 0..900), any::<u64>(), 0u64..1 << 40, 0.05f32..=1.0, 0usize..900),
    ) {
        let (mut mask, mut y) = (vec![9.0; x.len()], vec![9.0; x.len()]);
        random::dropout_mask(key, offset, keep, &mut mask);
        random::dropout(&mut y, &x, key, offset, keep, false);
        for ((y, x), m) in y.iter().zip(&x).zip(&mask) {
            prop_assert!(*m == 0.0 || *m == 1.0 / keep);
            prop_assert_eq!(*y, x * m);
        }
        let mut added = x.clone();
        random::dropout(&mut added, &x, key, offset, keep, true);
        prop_assert!(added.iter().zip(&x).zip(&mask).all(|((a, x), m)| *a == x + x * m));
        let cut = cut.min(x.len());
        let mut tail = vec![9.0; x.len() - cut];
        random::dropout_mask(key, offset + cut as u64, keep, &mut tail);
        prop_assert_eq!(&tail[..], &mask[cut..]);
        let kept = random_share(&mask);
        // Six standard deviations of a share among so many.
        let spread = 6.0 * (f64::from(keep) * (1.0 - f64::from(keep)) / mask.len().max(1) as f64).sqrt();
        prop_assert!(mask.is_empty() || (kept - f64::from(keep)).abs() <= spread + 1e-9, "{kept} of {keep}");
    }

    #[test]
    fn adamw_follows_the_formula_in_one_tensor_and_in_many(
        (lengths, step, key, is_half) in (vec(0usize..80, 1..5), step(), any::<u64>(), any::<bool>()),
    ) {
        let draw = |i: u64, len: usize| {
            let mut x = vec![0.0; len];
            random::fill_normal(key ^ i, 1.0, &mut x);
            x
        };
        let states = || -> Vec<State> {
            (0u64..).zip(&lengths).map(|(i, &len)| {
                let half: Vec<half::bf16> = draw(8 * i, len).into_iter().map(half::bf16::from_f32).collect();
                // The same numbers in both forms.
                let g = half.iter().map(|h| h.to_f32()).collect();
                let v = draw(8 * i + 3, len).iter().map(|x| x * x).collect();
                State { p: draw(8 * i + 1, len), g, half, m: draw(8 * i + 2, len), v }
            }).collect()
        };
        let (before, mut together, mut apart) = (states(), states(), states());
        let decays = |i: usize| i.is_multiple_of(2);
        let mut tensors: Vec<AdamWTensor<'_>> = together.iter_mut().enumerate().map(|(i, s)| AdamWTensor {
            param: &mut s.p,
            grad: if is_half { Gradient::Bf16(&s.half) } else { Gradient::F32(&s.g) },
            m: &mut s.m,
            v: &mut s.v,
            decays: decays(i),
        }).collect();
        adamw_update_all(&mut tensors, &step);
        for (i, s) in apart.iter_mut().enumerate() {
            let step = if decays(i) { step } else { AdamWStep { weight_decay: 0.0, ..step } };
            adamw_update(&mut s.p, &s.g, &mut s.m, &mut s.v, &step);
            prop_assert!(s.p == together[i].p && s.m == together[i].m && s.v == together[i].v, "tensor {i}");
            let old = &before[i];
            let t = step.step as i32;
            let mut want = [Vec::new(), Vec::new(), Vec::new()];
            for j in 0..old.p.len() {
                let [p, g, m, v] = [old.p[j], old.g[j], old.m[j], old.v[j]].map(f64::from);
                let g = g * step.grad_scale;
                let moved = m + (1.0 - step.beta1) * (g - m);
                let square = step.beta2 * v + (1.0 - step.beta2) * g * g;
                let root = square.sqrt() / (1.0 - step.beta2.powi(t)).sqrt();
                let delta = step.learning_rate / (1.0 - step.beta1.powi(t)) * moved / (root + step.eps);
                let size = step.learning_rate / (1.0 - step.beta1.powi(t)) * (m.abs() + g.abs()) / (root + step.eps);
                want[0].push((p - step.learning_rate * step.weight_decay * p - delta, p.abs() + size));
                want[1].push((moved, m.abs() + g.abs()));
                want[2].push((square, square));
            }
            // A dozen roundings of f32.
            close("m", &s.m, &want[1], 1e-6)?;
            close("v", &s.v, &want[2], 1e-6)?;
            close("p", &s.p, &want[0], 2e-6)?;
        }
    }

    #[test]
    fn cross_entropy_and_its_gradients_follow_the_formula(
        (m, vocabulary, width, targets, weights, key, smoothing, z) in
            (0usize..20, 1usize..70, 1usize..20).prop_flat_map(|(m, vocabulary, width)| (
                Just(m), Just(vocabulary), Just(width), vec(0..vocabulary as u32, m),
                vec(prop_oneof![Just(0.0f32), 0.1f32..2.0], m), any::<u64>(),
                prop_oneof![Just(0.0f32), 0.01f32..0.5], prop_oneof![Just(0.0f32), 1e-4f32..1e-1],
            )),
    ) {
        let (mut hidden, mut weight) = (vec![0.0; m * width], vec![0.0; vocabulary * width]);
        random::fill_normal(key, 1.0, &mut hidden);
        random::fill_normal(key ^ 1, 1.0, &mut weight);
        let packed = OutputWeight::new(&weight, width, Precision::F32, true);
        let loss = Loss { targets: &targets, weights: &weights, label_smoothing: smoothing, z_loss: z };
        let (mut nll, mut d_hidden, mut d_weight) = (vec![9.0; m], vec![9.0; hidden.len()], vec![9.0; weight.len()]);
        let results = Results {
            nll: &mut nll, d_hidden: Some(&mut d_hidden), d_weight: Some(&mut d_weight), accumulate: false,
        };
        let sum = linear_cross_entropy(&loss, &hidden, &packed, results);
        let (s, z) = (f64::from(smoothing), f64::from(z));
        let (mut want_sum, mut size) = (0.0, 0.0);
        let mut want_nll = Vec::new();
        let mut want_hidden = vec![(0.0f64, 0.0f64); hidden.len()];
        let mut want_weight = vec![(0.0f64, 0.0f64); weight.len()];
        for i in 0..m {
            let x = wide(&hidden[i * width..][..width]);
            let logits: Vec<f64> =
                weight.chunks(width).map(|w| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum()).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            let (target, w) = (targets[i] as usize, f64::from(weights[i]));
            let mean = logits.iter().sum::<f64>() / vocabulary as f64;
            // What the logits' own rounding does to a loss and a probability.
            let reach = 1.0 + logits.iter().fold(0.0f64, |a, l| a.max(l.abs()));
            want_nll.push((lse - logits[target], reach));
            want_sum += w * ((1.0 - s) * (lse - logits[target]) + s * (lse - mean) + z * lse * lse);
            size += w * reach * (1.0 + z * reach);
            for v in 0..vocabulary {
                let p = (logits[v] - lse).exp();
                let hot = if v == target { 1.0 - s } else { 0.0 };
                let d = w * (p * (1.0 + 2.0 * z * lse) - hot - s / vocabulary as f64);
                let term = w * (p * (1.0 + 2.0 * z * lse.abs()) * reach + hot + s / vocabulary as f64);
                for e in 0..width {
                    let (h, g) = (&mut want_hidden[i * width + e], &mut want_weight[v * width + e]);
                    h.0 += d * f64::from(weight[v * width + e]);
                    h.1 += term * f64::from(weight[v * width + e]).abs();
                    g.0 += d * x[e];
                    g.1 += term * x[e].abs();
                }
            }
        }
        // Sums of up to 70 terms in f32.
        prop_assert!((sum - want_sum).abs() <= 4e-6 * size + 1e-9, "{sum}, expected {want_sum}");
        close("nll", &nll, &want_nll, 4e-6)?;
        close("d_hidden", &d_hidden, &want_hidden, 4e-6)?;
        close("d_weight", &d_weight, &want_weight, 4e-6)?;
    }
}

/// A tensor with what its update needs; its gradient in both forms.
struct State {
    p: Vec<f32>,
    g: Vec<f32>,
    half: Vec<half::bf16>,
    m: Vec<f32>,
    v: Vec<f32>,
}

/// How much of a mask is kept.
fn random_share(mask: &[f32]) -> f64 {
    mask.iter().filter(|m| **m != 0.0).count() as f64 / mask.len().max(1) as f64
}

/// Infinities and NaN come out where the formula has them, not as some large number.
#[test]
fn what_is_not_finite_stays_so() {
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for len in [1, 17, 33] {
            let mut x = vec![1.0f32; len];
            x[len - 1] = f32::NAN;
            let mut y = vec![0.0; len];
            activate(kind, &mut y, &x);
            assert!(y[len - 1].is_nan() && y[..len - 1].iter().all(|y| y.is_finite()), "{kind:?} {len}");
            x[len - 1] = f32::INFINITY;
            activate(kind, &mut y, &x);
            assert_eq!(y[len - 1], f32::INFINITY, "{kind:?} {len}");
        }
    }
}
