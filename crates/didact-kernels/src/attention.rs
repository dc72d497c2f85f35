//! Attention of single query rows over a cache of keys and values: decoding, and prefilling row by row.
//!
//! # Layout of a cache
//! One sequence's cache of one key/value head is two slices. Values are rows of [`value_stride`] floats, one per
//! position. Keys stand in blocks of 16 positions, dimension by dimension: `keys[(block · D + d) · 16 + lane]`, so that
//! 16 scores are computed side by side. Both have room for a multiple of 16 positions, which begins as zeros.

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Positions of a block of keys.
pub const BLOCK: usize = LANES;

/// Floats that one position's value takes: the head size, in whole vectors.
pub fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Floats that `positions` keys take, in whole blocks.
pub fn keys_len(positions: usize, head_dim: usize) -> usize {
    positions.next_multiple_of(BLOCK) * head_dim
}

/// Floats that `positions` values take, in whole blocks.
pub fn values_len(positions: usize, head_dim: usize) -> usize {
    positions.next_multiple_of(BLOCK) * value_stride(head_dim)
}

/// Writes one position's key and value of one head into its cache.
///
/// # Panics
/// If the cache has no room for the position.
pub fn store(keys: &mut [f32], values: &mut [f32], position: usize, key: &[f32], value: &[f32]) {
    let head_dim = key.len();
    assert_eq!(head_dim, value.len(), "attention: key and value differ in length");
    let (block, lane) = (position / BLOCK, position % BLOCK);
    let block = &mut keys[block * head_dim * BLOCK..][..head_dim * BLOCK];
    for (line, key) in block.chunks_exact_mut(BLOCK).zip(key) {
        line[lane] = *key;
    }
    values[position * value_stride(head_dim)..][..head_dim].copy_from_slice(value);
}

/// The query heads of one row that share a key/value head attend to the first `len` positions of its cache:
/// `out = softmax(scale · q·K) · V`, head by head.
///
/// A head's result has the same bits whatever stands beside it or in the cache beyond `len`.
///
/// # Shapes
/// - `out`, `query`: `heads × head_dim`
/// - `scores`: scratch, grown as needed
///
/// # Panics
/// If a slice is too short.
pub fn decode(
    out: &mut [f32],
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    len: usize,
    head_dim: usize,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    decode_at(level(), out, query, keys, values, len, head_dim, scale, scores);
}

fn decode_at(
    level: Level,
    out: &mut [f32],
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    len: usize,
    head_dim: usize,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    assert_eq!(out.len(), query.len(), "attention: out and query differ in length");
    assert!(
        head_dim > 0 && query.len().is_multiple_of(head_dim),
        "attention: {} floats in heads of {head_dim}",
        query.len()
    );
    assert!(len > 0, "attention: nothing to attend to");
    assert!(keys.len() >= keys_len(len, head_dim), "attention: {} floats of keys for {len} positions", keys.len());
    assert!(
        values.len() >= values_len(len, head_dim),
        "attention: {} floats of values for {len} positions",
        values.len()
    );
    let padded = len.next_multiple_of(BLOCK);
    let heads = query.len() / head_dim;
    if scores.len() < heads.min(4) * padded {
        scores.resize(heads.min(4) * padded, 0.0);
    }
    // Up to four heads share each load of the cache.
    for (out, query) in out.chunks_mut(4 * head_dim).zip(query.chunks(4 * head_dim)) {
        let heads = query.len() / head_dim;
        let scores = &mut scores[..heads * padded];
        dispatch(level, Decode { out, query, keys, values, len, head_dim, scale, scores });
    }
}

struct Decode<'a> {
    out: &'a mut [f32],
    query: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    len: usize,
    head_dim: usize,
    scale: f32,
    scores: &'a mut [f32],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.query.len() / self.head_dim {
            1 => heads::<S, 1>(simd, self),
            2 => heads::<S, 2>(simd, self),
            3 => heads::<S, 3>(simd, self),
            _ => heads::<S, 4>(simd, self),
        }
    }
}

/// Scores of `N` blocks of positions for `G` heads.
#[inline(always)]
fn score<S: Simd, const G: usize, const N: usize>(
    simd: S,
    query: &[f32],
    head_dim: usize,
    blocks: [&[[f32; BLOCK]]; N],
) -> [[S::V; N]; G] {
    let query: [&[f32]; G] = std::array::from_fn(|g| &query[g * head_dim..][..head_dim]);
    let mut sums = [[simd.splat(0.0); N]; G];
    for d in 0..head_dim {
        let key: [S::V; N] = std::array::from_fn(|i| simd.load(&blocks[i][d]));
        for g in 0..G {
            let q = simd.splat(query[g][d]);
            for i in 0..N {
                sums[g][i] = simd.mul_add(q, key[i], sums[g][i]);
            }
        }
    }
    sums
}

/// `N` vectors of the weighted sum of values, for `G` heads.
#[inline(always)]
fn weigh<S: Simd, const G: usize, const N: usize>(
    simd: S,
    weights: [&[f32]; G],
    values: &[[f32; LANES]],
    stride: usize,
) -> [[S::V; N]; G] {
    let mut sums = [[simd.splat(0.0); N]; G];
    for (s, row) in values.chunks(stride).enumerate().take(weights[0].len()) {
        let value: [S::V; N] = std::array::from_fn(|i| simd.load(&row[i]));
        for g in 0..G {
            let w = simd.splat(weights[g][s]);
            for i in 0..N {
                sums[g][i] = simd.mul_add(w, value[i], sums[g][i]);
            }
        }
    }
    sums
}

#[inline(always)]
fn heads<S: Simd, const G: usize>(simd: S, a: Decode) {
    let Decode { out, query, keys, values, len, head_dim, scale, scores } = a;
    let padded = len.next_multiple_of(BLOCK);
    let keys = keys.as_chunks::<BLOCK>().0;
    let scale = simd.splat(scale);
    let blocks = padded / BLOCK;
    let block = |i: usize| &keys[i * head_dim..][..head_dim];
    let mut put = |g: usize, i: usize, v: S::V| {
        simd.store(scores[g * padded + i * BLOCK..].first_chunk_mut().expect("a whole block"), simd.mul(v, scale));
    };
    for i in (0..blocks - blocks % 2).step_by(2) {
        for (g, sums) in score::<S, G, 2>(simd, query, head_dim, [block(i), block(i + 1)]).into_iter().enumerate() {
            put(g, i, sums[0]);
            put(g, i + 1, sums[1]);
        }
    }
    if blocks % 2 == 1 {
        for (g, sums) in score::<S, G, 1>(simd, query, head_dim, [block(blocks - 1)]).into_iter().enumerate() {
            put(g, blocks - 1, sums[0]);
        }
    }
    // Softmax, but for the division, which is left to the end.
    let mut totals = [0.0f32; G];
    for (scores, total) in scores.chunks_exact_mut(padded).zip(&mut totals) {
        scores[len..].fill(f32::NEG_INFINITY);
        let lines = scores.as_chunks_mut::<LANES>().0;
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for line in lines.iter() {
            largest = simd.max(simd.load(line), largest);
        }
        let largest = simd.splat(simd.largest(largest));
        let mut sum = simd.splat(0.0);
        for line in lines {
            let e = simd.exp(simd.sub(simd.load(line), largest));
            simd.store(line, e);
            sum = simd.add(sum, e);
        }
        *total = simd.sum(sum);
    }
    let weights: [&[f32]; G] = std::array::from_fn(|g| &scores[g * padded..][..len]);
    let stride = value_stride(head_dim) / LANES;
    let values = values.as_chunks::<LANES>().0;
    let mut finish = |g: usize, first: usize, v: S::V| {
        let end = head_dim.min(first + LANES);
        simd.store_first(&mut out[g * head_dim + first..g * head_dim + end], simd.div(v, simd.splat(totals[g])));
    };
    let mut done = 0;
    while done < stride {
        let values = &values[done..];
        if stride - done >= 4 {
            for (g, sums) in weigh::<S, G, 4>(simd, weights, values, stride).into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    finish(g, (done + i) * LANES, sum);
                }
            }
            done += 4;
        } else {
            for (g, sums) in weigh::<S, G, 1>(simd, weights, values, stride).into_iter().enumerate() {
                finish(g, done * LANES, sums[0]);
            }
            done += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    struct Case {
        query: Vec<f32>,
        key_rows: Vec<f32>,
        value_rows: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
    }

    fn case(heads: usize, head_dim: usize, len: usize) -> Case {
        let normal = |key, n| {
            let mut x = vec![0.0; n];
            fill_normal(key, 1.0, &mut x);
            x
        };
        let (key_rows, value_rows) = (normal(2, len * head_dim), normal(3, len * head_dim));
        let (mut keys, mut values) = (vec![0.0; keys_len(len, head_dim)], vec![0.0; values_len(len, head_dim)]);
        for (i, (k, v)) in key_rows.chunks(head_dim).zip(value_rows.chunks(head_dim)).enumerate() {
            store(&mut keys, &mut values, i, k, v);
        }
        Case { query: normal(1, heads * head_dim), key_rows, value_rows, keys, values }
    }

    #[test]
    fn heads_agree_with_the_formula_at_every_level() {
        for level in Level::available() {
            for heads in [1, 2, 3, 4, 7] {
                for (head_dim, len) in [(1, 1), (6, 5), (16, 16), (20, 33), (64, 70), (80, 17), (128, 100)] {
                    let c = case(heads, head_dim, len);
                    let mut out = vec![0.0; heads * head_dim];
                    let scale = 1.0 / (head_dim as f32).sqrt();
                    decode_at(level, &mut out, &c.query, &c.keys, &c.values, len, head_dim, scale, &mut Vec::new());
                    for (query, out) in c.query.chunks(head_dim).zip(out.chunks(head_dim)) {
                        let scores: Vec<f64> = c
                            .key_rows
                            .chunks(head_dim)
                            .map(|k| query.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>())
                            .map(|s| s * f64::from(scale))
                            .collect();
                        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        for (d, got) in out.iter().enumerate() {
                            let values = c.value_rows.chunks(head_dim).map(|v| f64::from(v[d]));
                            let want: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
                            // Scores of size about 3 are known to a few ulp, values are of size about 1.
                            let error = (f64::from(*got) - want).abs();
                            assert!(error < 4e-6, "{level} heads {heads} size {head_dim} len {len}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neither_neighbours_nor_the_rest_of_the_cache_show() {
        let (head_dim, len) = (20, 70);
        let mut c = case(3, head_dim, len);
        let run = |query: &[f32], keys: &[f32], values: &[f32], len| {
            let mut out = vec![0.0; query.len()];
            decode(&mut out, query, keys, values, len, head_dim, 0.2, &mut vec![7.0; 3]);
            out
        };
        let together = run(&c.query, &c.keys, &c.values, 41);
        for (query, want) in c.query.chunks(head_dim).zip(together.chunks(head_dim)) {
            assert_eq!(run(query, &c.keys, &c.values, 41), want);
        }
        for position in 41..len {
            store(&mut c.keys, &mut c.values, position, &[f32::NAN; 20], &[f32::NAN; 20]);
        }
        assert_eq!(run(&c.query, &c.keys, &c.values, 41), together);
    }
}
