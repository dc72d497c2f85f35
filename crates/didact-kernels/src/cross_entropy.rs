//! The output projection and the softmax cross-entropy over it, with their gradients, some positions at a time: the
//! logits of a batch never exist together.
//!
//! Logits exist for some positions at a time. Their gradients are computed while they are at hand, and are multiplied with the
//! weight at once; for the gradient of the weight, which is large, the gradients of several such blocks are kept,
//! packed for that product.

use crate::gemm::{GrowingA, MatRef, PackedB, gemm_packed, with_scratch};
use crate::level::{Level, Precision, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// Fewest positions whose logits exist at a time: whole tiles of every level's matrix product.
pub const ROWS: usize = 96;

/// Logits that exist at a time (8 MB) where that is more than [`ROWS`] positions.
pub const LOGITS: usize = 2 << 20;

/// Most floats of logits' gradients that are kept, packed, for the gradient of the weight (64 MB).
pub const KEPT: usize = 16 << 20;

/// The output projection `[V, E]`, packed once for any number of batches.
#[derive(Debug, Clone)]
pub struct OutputWeight {
    /// `E × V`.
    forward: PackedB,
    /// `V × E`, for the gradient of what is projected.
    backward: Option<PackedB>,
}

impl OutputWeight {
    /// Packs `weight`, `[V, E]` row-major, for the level in force; also for the gradient of the hidden values if
    /// `for_gradients`.
    ///
    /// # Panics
    /// If `weight` is not whole rows of `width`.
    pub fn new(weight: &[f32], width: usize, precision: Precision, for_gradients: bool) -> Self {
        Self::new_at(level(), weight, width, precision, for_gradients)
    }

    fn new_at(level: Level, weight: &[f32], width: usize, precision: Precision, for_gradients: bool) -> Self {
        assert!(
            width > 0 && weight.len().is_multiple_of(width),
            "cross-entropy: {} floats of weight in rows of {width}",
            weight.len()
        );
        let vocabulary = weight.len() / width;
        let forward = PackedB::new_at(level, MatRef::transposed(weight, width), width, vocabulary, precision);
        let backward =
            for_gradients.then(|| PackedB::new_at(level, MatRef::rows(weight, width), vocabulary, width, precision));
        Self { forward, backward }
    }

    /// Packs other values of the same shape in the same memory: the weight after its update.
    ///
    /// # Panics
    /// If `weight` is not `[V, E]`.
    pub fn repack(&mut self, weight: &[f32]) {
        let (vocabulary, width) = (self.vocabulary(), self.width());
        assert_eq!(weight.len(), vocabulary * width, "cross-entropy: the weight is not {vocabulary} x {width}");
        self.forward.repack(MatRef::transposed(weight, width));
        if let Some(backward) = &mut self.backward {
            backward.repack(MatRef::rows(weight, width));
        }
    }

    /// The projection from its two forms, packed by the caller.
    ///
    /// # Shapes
    /// - `forward`: `E × V`; `backward`: `V × E`
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn from_packed(forward: PackedB, backward: Option<PackedB>) -> Self {
        assert!(
            backward.as_ref().is_none_or(|b| [b.k(), b.n()] == [forward.n(), forward.k()]),
            "cross-entropy: the two forms of the output projection have different shapes"
        );
        Self { forward, backward }
    }

    /// The two forms, to use their memory again.
    pub fn into_packed(self) -> (PackedB, Option<PackedB>) {
        (self.forward, self.backward)
    }

    /// V.
    pub fn vocabulary(&self) -> usize {
        self.forward.n()
    }

    /// E.
    pub fn width(&self) -> usize {
        self.forward.k()
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        self.forward.bytes() + self.backward.as_ref().map_or(0, PackedB::bytes)
    }
}

/// What the loss of each position is.
#[derive(Debug, Clone, Copy)]
pub struct Loss<'a> {
    /// The right token of each position, below V.
    pub targets: &'a [u32],
    /// What each position's loss is multiplied with in the sum.
    pub weights: &'a [f32],
    /// Share of the target that is spread evenly over the vocabulary (Szegedy et al., 2016, arXiv:1512.00567); 0 for
    /// none. As PyTorch's `cross_entropy` has it.
    pub label_smoothing: f32,
    /// Factor of the square of the log-sum-exp that is added (de Brébisson and Vincent, 2016; PaLM); 0 for none.
    pub z_loss: f32,
}

impl<'a> Loss<'a> {
    /// Plain cross-entropy.
    pub fn new(targets: &'a [u32], weights: &'a [f32]) -> Self {
        Self { targets, weights, label_smoothing: 0.0, z_loss: 0.0 }
    }
}

/// What [`linear_cross_entropy`] writes.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[M]`: `-log p(target)` of each position, without weight, smoothing and z-loss.
    pub nll: &'a mut [f32],
    /// `[M, E]`: the gradient of the sum with respect to the hidden values, overwritten.
    pub d_hidden: Option<&'a mut [f32]>,
    /// `[V, E]`: the gradient with respect to the weight; added to if `accumulate`, else overwritten.
    pub d_weight: Option<&'a mut [f32]>,
    /// Whether `d_weight` holds something to add to.
    pub accumulate: bool,
}

/// `Σ weights[i] · loss_i`, added in f64 in the order of the positions, where
///
/// ```text
/// logits = W · hidden_i        lse = log Σ exp(logits)
/// loss_i = (1 − ε)(lse − logits[target]) + ε (lse − mean(logits)) + z · lse²
/// ```
///
/// # Shapes
/// - `hidden`: `[M, E]`
///
/// # Panics
/// If the lengths differ, a target is not below V, or `d_hidden` is asked of a weight that is not packed for gradients.
pub fn linear_cross_entropy(loss: &Loss, hidden: &[f32], weight: &OutputWeight, results: Results) -> f64 {
    let (m, width, vocabulary) = (loss.targets.len(), weight.width(), weight.vocabulary());
    let Results { nll, mut d_hidden, mut d_weight, mut accumulate } = results;
    assert!(
        loss.weights.len() == m && nll.len() == m && hidden.len() == m * width,
        "cross-entropy: {m} targets, {} weights, {} losses, {} floats of hidden values in rows of {width}",
        loss.weights.len(),
        nll.len(),
        hidden.len()
    );
    assert!(d_hidden.as_ref().is_none_or(|d| d.len() == m * width), "cross-entropy: d_hidden is not like hidden");
    assert!(
        d_weight.as_ref().is_none_or(|d| d.len() == vocabulary * width),
        "cross-entropy: d_weight is not {vocabulary} x {width}"
    );
    if let Some(target) = loss.targets.iter().find(|&&t| t as usize >= vocabulary) {
        panic!("cross-entropy: target {target} in a vocabulary of {vocabulary}");
    }
    if m == 0 {
        if let Some(d_weight) = d_weight.filter(|_| !accumulate) {
            d_weight.fill(0.0);
        }
        return 0.0;
    }
    let (level, precision) = weight.forward.made_for();
    let kept = |rows| GrowingA::floats(level, precision, vocabulary, rows);
    let together = (LOGITS / vocabulary / ROWS).max(1) * ROWS;
    let block = if d_weight.is_some() { (KEPT / kept(together)).max(1) * together } else { together };
    let gradient = d_hidden.is_some() || d_weight.is_some();
    let mut losses = vec![0.0f64; m];
    let logits_len = together.min(m) * vocabulary;
    with_scratch(logits_len + if d_weight.is_some() { kept(block.min(m)) } else { 0 }, |scratch| {
        let (logits, panels) = scratch.split_at_mut(logits_len);
        for first in (0..m).step_by(block) {
            let end = m.min(first + block);
            let mut columns =
                d_weight.is_some().then(|| GrowingA::new(level, precision, panels, vocabulary, end - first));
            for begin in (first..end).step_by(together) {
                let rows = begin..end.min(begin + together);
                let count = rows.len();
                let logits = &mut logits[..count * vocabulary];
                let x = MatRef::rows(&hidden[begin * width..], width);
                gemm_packed(logits, vocabulary, count, x, &weight.forward, false);
                logits
                    .par_chunks_mut(vocabulary)
                    .zip(&mut nll[rows.clone()])
                    .zip(&mut losses[rows.clone()])
                    .enumerate()
                    .for_each(|(i, ((row, nll), total))| {
                        let (target, weight) = (loss.targets[begin + i] as usize, loss.weights[begin + i]);
                        let position = Position { row, target, weight, loss, gradient };
                        (*nll, *total) = dispatch(level, position);
                    });
                let gradients = MatRef::rows(logits, vocabulary);
                if let Some(d_hidden) = &mut d_hidden {
                    let packed = weight.backward.as_ref().expect("cross-entropy: a weight packed for gradients");
                    gemm_packed(&mut d_hidden[begin * width..], width, count, gradients, packed, false);
                }
                if let Some(columns) = &mut columns {
                    columns.put(begin - first, MatRef::transposed(logits, vocabulary), count);
                }
            }
            if let (Some(columns), Some(d_weight)) = (columns, &mut d_weight) {
                let rows = MatRef::rows(&hidden[first * width..], width);
                let rows = PackedB::new_at(level, rows, end - first, width, precision);
                columns.multiply(d_weight, width, &rows, accumulate);
                accumulate = true;
            }
        }
    });
    losses.iter().zip(loss.weights).map(|(loss, &weight)| loss * f64::from(weight)).sum()
}

/// One position's logits.
struct Position<'a> {
    row: &'a mut [f32],
    target: usize,
    weight: f32,
    loss: &'a Loss<'a>,
    /// Whether to put the logits' gradients in their place.
    gradient: bool,
}

impl Kernel for Position<'_> {
    /// The negative log-likelihood and the loss.
    type Output = (f32, f64);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (f32, f64) {
        let Self { row, target, weight, loss: &Loss { label_smoothing, z_loss, .. }, gradient } = self;
        let vocabulary = row.len() as f64;
        let at_target = f64::from(row[target]);
        let (lines, rest) = row.as_chunks_mut::<LANES>();
        let mut largest = simd.load_or(rest, f32::NEG_INFINITY);
        for line in lines.iter() {
            largest = simd.max(simd.load(line), largest);
        }
        // The loss is not a number when a logit is not, even if `max` passed it over: its exponential is not.
        let largest = simd.largest(largest);
        let shift = simd.splat(largest);
        // Two levels of sums, so that the error does not grow with the vocabulary.
        let (mut total, mut mean) = (simd.splat(0.0), 0.0f64);
        for block in lines.chunks_mut(LANES) {
            let (mut part, mut plain) = (simd.splat(0.0), simd.splat(0.0));
            for line in block {
                let x = simd.load(line);
                plain = simd.add(plain, x);
                let e = simd.exp_weight(simd.sub(x, shift));
                simd.store(line, e);
                part = simd.add(part, e);
            }
            total = simd.add(total, part);
            if label_smoothing != 0.0 {
                mean += f64::from(simd.sum(plain));
            }
        }
        let mut sum = f64::from(simd.sum(total));
        if !rest.is_empty() {
            mean += rest.iter().map(|&x| f64::from(x)).sum::<f64>();
            let e = simd.exp_weight(simd.sub(simd.load_or(rest, f32::NEG_INFINITY), shift));
            simd.store_first(rest, e);
            sum += f64::from(simd.sum(e));
        }
        let log_sum = f64::from(largest) + sum.ln();
        let nll = log_sum - at_target;
        let (smoothing, z) = (f64::from(label_smoothing), f64::from(z_loss));
        let mut total = nll + z * log_sum * log_sum;
        if label_smoothing != 0.0 {
            total += smoothing * (at_target - mean / vocabulary);
        }
        if gradient {
            let wide = f64::from(weight);
            let scale = simd.splat((wide * (1.0 + 2.0 * z * log_sum) / sum) as f32);
            let spread = simd.splat((-wide * smoothing / vocabulary) as f32);
            for line in lines {
                let g = simd.mul_add(simd.load(line), scale, spread);
                simd.store(line, g);
            }
            if !rest.is_empty() {
                let g = simd.mul_add(simd.load_or(rest, 0.0), scale, spread);
                simd.store_first(rest, g);
            }
            row[target] -= (wide * (1.0 - smoothing)) as f32;
        }
        (nll as f32, total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    fn normal(key: u64, std: f32, len: usize) -> Vec<f32> {
        let mut x = vec![0.0; len];
        fill_normal(key, std, &mut x);
        x
    }

    struct Reference {
        sum: f64,
        nll: Vec<f64>,
        d_hidden: Vec<f64>,
        d_weight: Vec<f64>,
    }

    /// The formula, in f64.
    fn reference(loss: &Loss, hidden: &[f32], weight: &[f32], width: usize) -> Reference {
        let (m, vocabulary) = (loss.targets.len(), weight.len() / width);
        let (smoothing, z) = (f64::from(loss.label_smoothing), f64::from(loss.z_loss));
        let mut r =
            Reference { sum: 0.0, nll: vec![], d_hidden: vec![0.0; hidden.len()], d_weight: vec![0.0; weight.len()] };
        for i in 0..m {
            let x = &hidden[i * width..][..width];
            let logits: Vec<f64> = weight
                .chunks(width)
                .map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum())
                .collect();
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log_sum = largest + logits.iter().map(|l| (l - largest).exp()).sum::<f64>().ln();
            let (target, w) = (loss.targets[i] as usize, f64::from(loss.weights[i]));
            let nll = log_sum - logits[target];
            let mean = logits.iter().sum::<f64>() / vocabulary as f64;
            r.nll.push(nll);
            r.sum += w * ((1.0 - smoothing) * nll + smoothing * (log_sum - mean) + z * log_sum * log_sum);
            for v in 0..vocabulary {
                let p = (logits[v] - log_sum).exp();
                let hot = if v == target { 1.0 - smoothing } else { 0.0 };
                let d = w * (p * (1.0 + 2.0 * z * log_sum) - hot - smoothing / vocabulary as f64);
                for e in 0..width {
                    r.d_hidden[i * width + e] += d * f64::from(weight[v * width + e]);
                    r.d_weight[v * width + e] += d * f64::from(x[e]);
                }
            }
        }
        r
    }

    /// Errors are measured against the largest value: sums of a few hundred terms.
    fn close(what: &str, got: &[f32], want: &[f64], share: f64) {
        assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(1e-3f64, |a, w| a.max(w.abs()));
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let error = (f64::from(*got) - want).abs();
            assert!(error <= share * largest, "{what}: element {i} is {got}, expected {want} (largest {largest})");
        }
    }

    #[test]
    fn loss_and_gradients_follow_the_formula_at_every_level() {
        for level in Level::available() {
            for (m, vocabulary, width) in [(0, 5, 3), (1, 1, 1), (3, 17, 5), (97, 40, 8), (200, 301, 20)] {
                for (label_smoothing, z_loss) in [(0.0, 0.0), (0.1, 1e-2)] {
                    for precision in [Precision::F32, Precision::Bf16] {
                        let (hidden, weight) = (normal(1, 1.0, m * width), normal(2, 0.7, vocabulary * width));
                        let targets: Vec<u32> = (0..m).map(|i| (i * 31 % vocabulary) as u32).collect();
                        let weights: Vec<f32> = (0..m).map(|i| (i % 4) as f32 * 0.5).collect();
                        let loss = Loss { targets: &targets, weights: &weights, label_smoothing, z_loss };
                        let packed = OutputWeight::new_at(level, &weight, width, precision, true);
                        let mut nll = vec![9.0; m];
                        let mut d_hidden = vec![9.0; m * width];
                        let mut d_weight = vec![1.0; vocabulary * width];
                        let results = Results {
                            nll: &mut nll,
                            d_hidden: Some(&mut d_hidden),
                            d_weight: Some(&mut d_weight),
                            accumulate: true,
                        };
                        let sum = linear_cross_entropy(&loss, &hidden, &packed, results);
                        let want = reference(&loss, &hidden, &weight, width);
                        let what = format!("{level} {precision} {m} {vocabulary} {width} {label_smoothing}");
                        // bf16: products of operands of 8 bits; measured 0.9 %.
                        let share = if precision == Precision::F32 { 4e-6 } else { 2e-2 };
                        assert!((sum - want.sum).abs() <= share * want.sum.abs().max(1.0), "{what}: {sum}");
                        close(&format!("nll {what}"), &nll, &want.nll, share);
                        close(&format!("d_hidden {what}"), &d_hidden, &want.d_hidden, share);
                        let more: Vec<f64> = want.d_weight.iter().map(|d| d + 1.0).collect();
                        close(&format!("d_weight {what}"), &d_weight, &more, share);
                        // Overwritten, and nothing but losses.
                        let results =
                            Results { nll: &mut nll, d_hidden: None, d_weight: Some(&mut d_weight), accumulate: false };
                        linear_cross_entropy(&loss, &hidden, &packed, results);
                        close(&format!("d_weight alone {what}"), &d_weight, &want.d_weight, share);
                        let results = Results { nll: &mut nll, d_hidden: None, d_weight: None, accumulate: false };
                        assert_eq!(linear_cross_entropy(&loss, &hidden, &packed, results), sum, "{what}");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_show_and_a_position_has_the_same_loss_alone() {
        let (m, vocabulary, width) = (150, 333, 24);
        let (hidden, weight) = (normal(1, 1.0, m * width), normal(2, 1.0, vocabulary * width));
        let targets: Vec<u32> = (0..m as u32).collect();
        let weights = vec![1.0; m];
        let run = |threads, rows: std::ops::Range<usize>| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| {
                let packed = OutputWeight::new(&weight, width, Precision::Bf16, true);
                let (mut nll, mut d_hidden) = (vec![0.0; rows.len()], vec![0.0; rows.len() * width]);
                let mut d_weight = vec![0.0; weight.len()];
                let results = Results {
                    nll: &mut nll,
                    d_hidden: Some(&mut d_hidden),
                    d_weight: Some(&mut d_weight),
                    accumulate: false,
                };
                let loss = Loss::new(&targets[rows.clone()], &weights[rows.clone()]);
                let hidden = &hidden[rows.start * width..rows.end * width];
                let sum = linear_cross_entropy(&loss, hidden, &packed, results);
                (sum, nll, d_hidden, d_weight)
            })
        };
        let all = run(1, 0..m);
        assert!(all == run(3, 0..m));
        assert_eq!(run(2, 77..78).1[0], all.1[77]);
    }

    #[test]
    fn a_bad_value_reaches_its_position_only() {
        let (m, vocabulary, width) = (5, 40, 6);
        let (mut hidden, weight) = (normal(1, 1.0, m * width), normal(2, 1.0, vocabulary * width));
        hidden[2 * width] = f32::NAN;
        let packed = OutputWeight::new(&weight, width, Precision::F32, true);
        let (mut nll, mut d_hidden) = (vec![0.0; m], vec![0.0; m * width]);
        let results = Results { nll: &mut nll, d_hidden: Some(&mut d_hidden), d_weight: None, accumulate: false };
        let sum = linear_cross_entropy(&Loss::new(&[1; 5], &[1.0; 5]), &hidden, &packed, results);
        assert!(sum.is_nan());
        for i in 0..m {
            assert_eq!(nll[i].is_nan(), i == 2);
            assert_eq!(d_hidden[i * width..][..width].iter().all(|d| d.is_finite()), i != 2);
        }
    }

    #[test]
    #[should_panic(expected = "cross-entropy: target 7 in a vocabulary of 7")]
    fn a_target_outside_the_vocabulary_is_refused() {
        let packed = OutputWeight::new(&[0.0; 7], 1, Precision::F32, false);
        let results = Results { nll: &mut [0.0], d_hidden: None, d_weight: None, accumulate: false };
        linear_cross_entropy(&Loss::new(&[7], &[1.0]), &[0.0], &packed, results);
    }
}
