//! The definition of correct: attention in f64 as its formula says, with a number for every query and key.
//!
//! Slow on purpose; tests are held against it, here and in crates above.

use super::{Attention, Heads};

/// One head of one row, rotated, with the transposed rotation when `back`.
fn rotated(a: &Attention, x: &[f64], row: usize, back: bool) -> Vec<f64> {
    let Some(rotary) = a.rotary else { return x.to_vec() };
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for j in 0..half {
        let (c, s) = (f64::from(rotary.cos[row * half + j]), f64::from(rotary.sin[row * half + j]));
        let s = if back { -s } else { s };
        out[j] = x[j] * c - x[half + j] * s;
        out[half + j] = x[half + j] * c + x[j] * s;
    }
    out
}

fn head<'a>(a: &Attention, x: Heads<'a, f64>, row: usize, head: usize) -> &'a [f64] {
    &x.data[row * x.stride + head * a.head_dim..][..a.head_dim]
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// Calls `f` with segment, head, query row and the rows of the keys it sees.
fn each_query(a: &Attention, mut f: impl FnMut(usize, usize, Vec<usize>)) {
    for segment in a.segments {
        for index in 0..segment.queries.len() {
            let seen = a.visible(segment, index);
            for head in 0..a.heads {
                f(segment.queries.start + index, head, seen.clone().map(|k| segment.keys.start + k).collect());
            }
        }
    }
}

/// Weights of the seen keys, and the log-sum-exp of their scores.
fn weights(a: &Attention, q: Heads<f64>, k: Heads<f64>, query: usize, h: usize, seen: &[usize]) -> (Vec<f64>, f64) {
    let at = rotated(a, head(a, q, query, h), query, false);
    let kv = h / (a.heads / a.kv_heads);
    let score = |&key: &usize| dot(&at, &rotated(a, head(a, k, key, kv), key, false)) * f64::from(a.scale);
    let scores: Vec<f64> = seen.iter().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
    (scores.iter().map(|s| (s - largest).exp() / total).collect(), largest + total.ln())
}

/// [`super::forward`]: the outputs of `rows` queries, `[N, H·D]`, and the log-sum-exps, `[H, N]`.
pub fn forward(a: &Attention, rows: usize, [q, k, v]: [Heads<f64>; 3]) -> (Vec<f64>, Vec<f64>) {
    let width = a.heads * a.head_dim;
    let (mut out, mut log_sums) = (vec![0.0; rows * width], vec![0.0; a.heads * rows]);
    each_query(a, |query, h, seen| {
        if seen.is_empty() {
            log_sums[h * rows + query] = f64::INFINITY;
            return;
        }
        let (weights, log_sum) = weights(a, q, k, query, h, &seen);
        log_sums[h * rows + query] = log_sum;
        let out = &mut out[query * width + h * a.head_dim..][..a.head_dim];
        for (weight, key) in weights.iter().zip(&seen) {
            let value = head(a, v, *key, h / (a.heads / a.kv_heads));
            out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
        }
    });
    (out, log_sums)
}

/// [`super::backward`]: the gradients of `rows` queries, `[N, H·D]`, and of `keys` keys and values, `[S, K·D]` each.
/// `d_out` is `[N, H·D]`.
pub fn backward(
    a: &Attention,
    rows: usize,
    keys: usize,
    [q, k, v]: [Heads<f64>; 3],
    d_out: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (width, kv_width, d) = (a.heads * a.head_dim, a.kv_heads * a.head_dim, a.head_dim);
    let (mut d_q, mut d_k, mut d_v) = (vec![0.0; rows * width], vec![0.0; keys * kv_width], vec![0.0; keys * kv_width]);
    let scale = f64::from(a.scale);
    each_query(a, |query, h, seen| {
        let kv = h / (a.heads / a.kv_heads);
        let (weights, _) = weights(a, q, k, query, h, &seen);
        let at = rotated(a, head(a, q, query, h), query, false);
        let d_out = &d_out[query * width + h * d..][..d];
        let d_weights: Vec<f64> = seen.iter().map(|&key| dot(d_out, head(a, v, key, kv))).collect();
        let mean = dot(&weights, &d_weights);
        let mut d_at = vec![0.0; d];
        for ((&key, weight), d_weight) in seen.iter().zip(&weights).zip(&d_weights) {
            let d_score = weight * (d_weight - mean) * scale;
            let key_at = rotated(a, head(a, k, key, kv), key, false);
            d_at.iter_mut().zip(&key_at).for_each(|(d, k)| *d += d_score * k);
            let d_key: Vec<f64> = at.iter().map(|q| d_score * q).collect();
            let d_key = rotated(a, &d_key, key, true);
            let to = key * kv_width + kv * d;
            d_k[to..to + d].iter_mut().zip(&d_key).for_each(|(t, g)| *t += g);
            d_v[to..to + d].iter_mut().zip(d_out).for_each(|(t, g)| *t += weight * g);
        }
        let d_at = rotated(a, &d_at, query, true);
        d_q[query * width + h * d..][..d].iter_mut().zip(&d_at).for_each(|(t, g)| *t += g);
    });
    (d_q, d_k, d_v)
}
