//! Attention over a cache of keys and values: decoding, and reading prompts in pieces of any size.
//!
//! # Layout of a cache
//! A cache is a list of [`CacheBlock`]s, each with the keys and values of [`BLOCK`] positions of all heads of all layers
//! ("slots"), in f32 or rounded to bf16. Of one slot there are keys, dimension by dimension, `keys[d · 16 + lane]`, so
//! that 16 scores are computed side by side, then values, position by position, each in whole vectors. Blocks of
//! different sequences may be the same one; which blocks a sequence's positions lie in does not show in the results.

use crate::level::{Level, Precision, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use half::bf16;

/// Positions of a block.
pub const BLOCK: usize = LANES;

/// Most queries that share each load of the cache; more are taken in turn.
pub const QUERIES: usize = 12;

/// The keys and values of [`BLOCK`] positions.
#[derive(Debug, Clone)]
pub struct CacheBlock {
    head_dim: usize,
    numbers: Numbers,
}

#[derive(Debug, Clone)]
enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

/// Numbers that one slot's keys take, then its values.
fn slot_lens(head_dim: usize) -> (usize, usize) {
    (BLOCK * head_dim, BLOCK * head_dim.next_multiple_of(LANES))
}

impl CacheBlock {
    /// A block of zeros for `slots` heads of `head_dim`.
    pub fn new(slots: usize, head_dim: usize, precision: Precision) -> Self {
        let (keys, values) = slot_lens(head_dim);
        let len = slots * (keys + values);
        let numbers = match precision {
            Precision::F32 => Numbers::F32(vec![0.0; len]),
            Precision::Bf16 => Numbers::Bf16(vec![0; len]),
        };
        Self { head_dim, numbers }
    }

    /// Memory that such a block takes.
    pub fn bytes(slots: usize, head_dim: usize, precision: Precision) -> usize {
        let (keys, values) = slot_lens(head_dim);
        let size = match precision {
            Precision::F32 => size_of::<f32>(),
            Precision::Bf16 => size_of::<u16>(),
        };
        slots * (keys + values) * size
    }

    /// Writes one position's key and value of one slot.
    ///
    /// # Panics
    /// If they are not of the block's head size, or there is no such slot or lane.
    pub fn store(&mut self, slot: usize, lane: usize, key: &[f32], value: &[f32]) {
        let d = self.head_dim;
        assert!(key.len() == d && value.len() == d, "attention: a key or value is not {d} floats long");
        assert!(lane < BLOCK, "attention: position {lane} of a block of {BLOCK}");
        match &mut self.numbers {
            Numbers::F32(numbers) => store(numbers, slot, lane, key, value, |x| x),
            Numbers::Bf16(numbers) => store(numbers, slot, lane, key, value, |x| bf16::from_f32(x).to_bits()),
        }
    }

    /// Takes over what another block holds.
    ///
    /// # Panics
    /// If the blocks differ in shape or precision.
    pub fn copy_from(&mut self, other: &Self) {
        match (&mut self.numbers, &other.numbers) {
            (Numbers::F32(to), Numbers::F32(from)) => to.copy_from_slice(from),
            (Numbers::Bf16(to), Numbers::Bf16(from)) => to.copy_from_slice(from),
            _ => panic!("attention: blocks of different precision"),
        }
    }
}

fn store<T>(numbers: &mut [T], slot: usize, lane: usize, key: &[f32], value: &[f32], convert: impl Fn(f32) -> T) {
    let (keys, values) = slot_lens(key.len());
    let own = &mut numbers[slot * (keys + values)..][..keys + values];
    let (own_keys, own_values) = own.split_at_mut(keys);
    for (line, key) in own_keys.chunks_exact_mut(BLOCK).zip(key) {
        line[lane] = convert(*key);
    }
    for (to, value) in own_values[lane * (values / BLOCK)..].iter_mut().zip(value) {
        *to = convert(*value);
    }
}

/// Queries of one key/value head attend to one sequence: `out = softmax(scale · q·K) · V`, each over the first
/// `lens[i]` positions.
///
/// A query's result has the same bits whatever stands beside it, in whatever blocks its positions lie and whatever those
/// hold beyond its length.
///
/// # Shapes
/// - `out`, `query`: `lens.len() × head_dim`
/// - `blocks`: the sequence's, of the same shape and precision
/// - `scores`: scratch, grown as needed
///
/// # Panics
/// If a slice is too short, or a query has nothing to attend to.
pub fn attend(
    out: &mut [f32],
    query: &[f32],
    lens: &[usize],
    blocks: &[&CacheBlock],
    slot: usize,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    attend_at(level(), out, query, lens, blocks, slot, scale, scores);
}

fn attend_at(
    level: Level,
    out: &mut [f32],
    query: &[f32],
    lens: &[usize],
    blocks: &[&CacheBlock],
    slot: usize,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    let d = blocks.first().map_or(0, |block| block.head_dim);
    let longest = lens.iter().copied().max().unwrap_or(0);
    assert!(d > 0 && blocks.iter().all(|b| b.head_dim == d), "attention: blocks of different head sizes, or none");
    assert!(
        out.len() == lens.len() * d && query.len() == out.len(),
        "attention: {} and {} floats for {} heads of {d}",
        out.len(),
        query.len(),
        lens.len()
    );
    assert!(lens.iter().all(|&len| len > 0), "attention: nothing to attend to");
    assert!(blocks.len() * BLOCK >= longest, "attention: {} blocks for {longest} positions", blocks.len());
    let padded = longest.next_multiple_of(BLOCK);
    if scores.len() < lens.len().min(QUERIES) * padded {
        scores.resize(lens.len().min(QUERIES) * padded, 0.0);
    }
    let mut first = 0;
    while first < lens.len() {
        // Sizes that are compiled.
        let left = lens.len() - first;
        let count = [QUERIES, 9, 8, 6, 4, 3, 2, 1].into_iter().find(|&size| size <= left).unwrap_or(1);
        let range = first..first + count;
        let part = Part {
            out: &mut out[first * d..][..count * d],
            query: &query[first * d..][..count * d],
            lens: &lens[range],
            head_dim: d,
            scale,
            scores: &mut scores[..count * padded],
        };
        let (keys, values) = slot_lens(d);
        let own = slot * (keys + values)..(slot + 1) * (keys + values);
        match &blocks[0].numbers {
            Numbers::F32(_) => {
                let of = |block: usize| match &blocks[block].numbers {
                    Numbers::F32(numbers) => numbers[own.clone()].split_at(keys),
                    Numbers::Bf16(_) => panic!("attention: blocks of different precision"),
                };
                dispatch(level, Attend { part, of });
            }
            Numbers::Bf16(_) => {
                let of = |block: usize| match &blocks[block].numbers {
                    Numbers::Bf16(numbers) => numbers[own.clone()].split_at(keys),
                    Numbers::F32(_) => panic!("attention: blocks of different precision"),
                };
                dispatch(level, Attend { part, of });
            }
        }
        first += count;
    }
}

/// A number as caches keep it.
trait Stored: Copy {
    /// Lanes of it, as f32.
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V {
        simd.load(x)
    }
}

impl Stored for u16 {
    #[inline(always)]
    fn load<S: Simd>(simd: S, x: &[Self; LANES]) -> S::V {
        simd.load_bf16(x)
    }
}

struct Part<'a> {
    out: &'a mut [f32],
    query: &'a [f32],
    lens: &'a [usize],
    head_dim: usize,
    scale: f32,
    scores: &'a mut [f32],
}

/// `of` gives a block's keys and values.
struct Attend<'a, F> {
    part: Part<'a>,
    of: F,
}

impl<'b, E: Stored + 'b, F: Fn(usize) -> (&'b [E], &'b [E])> Kernel for Attend<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { part, of } = self;
        // Sums of scores, and of values, that fit the registers.
        match part.lens.len() {
            1 => queries::<S, E, 1, 4, 4>(simd, part, of),
            2 => queries::<S, E, 2, 4, 4>(simd, part, of),
            3 => queries::<S, E, 3, 4, 4>(simd, part, of),
            4 => queries::<S, E, 4, 4, 4>(simd, part, of),
            6 => queries::<S, E, 6, 4, 4>(simd, part, of),
            8 => queries::<S, E, 8, 3, 2>(simd, part, of),
            9 => queries::<S, E, 9, 2, 2>(simd, part, of),
            12 => queries::<S, E, 12, 2, 2>(simd, part, of),
            count => unreachable!("{count} queries"),
        }
    }
}

/// Scores of `N` blocks of positions for `G` queries.
#[inline(always)]
fn score<S: Simd, E: Stored, const G: usize, const N: usize>(
    simd: S,
    query: &[f32],
    head_dim: usize,
    keys: [&[[E; BLOCK]]; N],
) -> [[S::V; N]; G] {
    let query: [&[f32]; G] = std::array::from_fn(|g| &query[g * head_dim..][..head_dim]);
    let keys: [&[[E; BLOCK]]; N] = std::array::from_fn(|i| &keys[i][..head_dim]);
    let mut sums = [[simd.splat(0.0); N]; G];
    for d in 0..head_dim {
        let key: [S::V; N] = std::array::from_fn(|i| {
            // The block's values follow its keys.
            simd.fetch_to_read(keys[i][d].as_ptr().wrapping_add(BLOCK * head_dim));
            E::load(simd, &keys[i][d])
        });
        for g in 0..G {
            let q = simd.splat(query[g][d]);
            for i in 0..N {
                sums[g][i] = simd.mul_add(q, key[i], sums[g][i]);
            }
        }
    }
    sums
}

#[inline(always)]
fn queries<'b, S: Simd, E: Stored + 'b, const G: usize, const N: usize, const W: usize>(
    simd: S,
    part: Part,
    of: impl Fn(usize) -> (&'b [E], &'b [E]),
) {
    let Part { out, query, lens, head_dim, scale, scores } = part;
    let padded = scores.len() / G;
    let blocks = padded / BLOCK;
    let scale = simd.splat(scale);
    let keys = |block: usize| of(block).0.as_chunks::<BLOCK>().0;
    let mut put = |g: usize, block: usize, v: S::V| {
        simd.store(scores[g * padded + block * BLOCK..].first_chunk_mut().expect("a whole block"), simd.mul(v, scale));
    };
    let whole = blocks - blocks % N;
    for first in (0..whole).step_by(N) {
        let keys = std::array::from_fn(|i| keys(first + i));
        for (g, sums) in score::<S, E, G, N>(simd, query, head_dim, keys).into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                put(g, first + i, sum);
            }
        }
    }
    for block in whole..blocks {
        for (g, [sum]) in score::<S, E, G, 1>(simd, query, head_dim, [keys(block)]).into_iter().enumerate() {
            put(g, block, sum);
        }
    }
    // Softmax, but for the division, which is left to the end.
    let mut totals = [0.0f32; G];
    for (g, total) in totals.iter_mut().enumerate() {
        let scores = &mut scores[g * padded..][..lens[g].next_multiple_of(BLOCK)];
        scores[lens[g]..].fill(f32::NEG_INFINITY);
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
    let stride = head_dim.div_ceil(LANES);
    let mut done = 0;
    while done < stride {
        if stride - done >= W {
            weigh::<S, E, G, W>(simd, out, scores, lens, &totals, head_dim, done, &of);
            done += W;
        } else {
            weigh::<S, E, G, 1>(simd, out, scores, lens, &totals, head_dim, done, &of);
            done += 1;
        }
    }
}

/// `W` vectors of the weighted sums of values, from vector `done` on, for `G` queries.
#[inline(always)]
fn weigh<'b, S: Simd, E: Stored + 'b, const G: usize, const W: usize>(
    simd: S,
    out: &mut [f32],
    scores: &[f32],
    lens: &[usize],
    totals: &[f32; G],
    head_dim: usize,
    done: usize,
    of: &impl Fn(usize) -> (&'b [E], &'b [E]),
) {
    let padded = scores.len() / G;
    let stride = head_dim.div_ceil(LANES);
    let weights: [&[f32]; G] = std::array::from_fn(|g| &scores[g * padded..][..padded]);
    let mut sums = [[simd.splat(0.0); W]; G];
    // Positions that all queries attend to.
    let common = lens.iter().copied().min().unwrap_or(0);
    for first in (0..common).step_by(BLOCK) {
        let values = &of(first / BLOCK).1.as_chunks::<LANES>().0[done..];
        let weights: [&[f32; BLOCK]; G] =
            std::array::from_fn(|g| weights[g][first..].first_chunk().expect("a whole block"));
        for lane in 0..BLOCK.min(common - first) {
            let value: [S::V; W] = std::array::from_fn(|i| {
                let value = &values[lane * stride + i];
                // The keys of the next head follow the values.
                simd.fetch_to_read(value.as_ptr().wrapping_add(BLOCK * stride * LANES));
                E::load(simd, value)
            });
            for g in 0..G {
                let w = simd.splat(weights[g][lane]);
                for i in 0..W {
                    sums[g][i] = simd.mul_add(w, value[i], sums[g][i]);
                }
            }
        }
    }
    for g in 0..G {
        for position in common..lens[g] {
            let values = &of(position / BLOCK).1.as_chunks::<LANES>().0[position % BLOCK * stride + done..];
            let w = simd.splat(weights[g][position]);
            for i in 0..W {
                sums[g][i] = simd.mul_add(w, E::load(simd, &values[i]), sums[g][i]);
            }
        }
        let total = simd.splat(totals[g]);
        for (i, sum) in sums[g].into_iter().enumerate() {
            let first = (done + i) * LANES;
            let end = head_dim.min(first + LANES);
            simd.store_first(&mut out[g * head_dim + first..g * head_dim + end], simd.div(sum, total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    const SLOTS: usize = 3;
    const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

    struct Case {
        head_dim: usize,
        keys: Vec<f32>,
        values: Vec<f32>,
        blocks: Vec<CacheBlock>,
    }

    fn normal(key: u64, n: usize) -> Vec<f32> {
        let mut x = vec![0.0; n];
        fill_normal(key, 1.0, &mut x);
        x
    }

    /// A cache whose slot 1 holds normal numbers, representable in bf16 if that is its precision.
    fn case(head_dim: usize, len: usize, precision: Precision) -> Case {
        let representable = |mut x: Vec<f32>| {
            if precision == Precision::Bf16 {
                for x in &mut x {
                    *x = bf16::from_f32(*x).to_f32();
                }
            }
            x
        };
        let keys = representable(normal(2, len * head_dim));
        let values = representable(normal(3, len * head_dim));
        let mut blocks = vec![CacheBlock::new(SLOTS, head_dim, precision); len.div_ceil(BLOCK)];
        for (i, (key, value)) in keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate() {
            blocks[i / BLOCK].store(1, i % BLOCK, key, value);
            // Neighbouring slots are no part of it.
            blocks[i / BLOCK].store(0, i % BLOCK, &vec![f32::NAN; head_dim], &vec![f32::NAN; head_dim]);
            blocks[i / BLOCK].store(2, i % BLOCK, &vec![f32::NAN; head_dim], &vec![f32::NAN; head_dim]);
        }
        Case { head_dim, keys, values, blocks }
    }

    impl Case {
        fn run(&self, level: Level, query: &[f32], lens: &[usize]) -> Vec<f32> {
            let mut out = vec![0.0; query.len()];
            let blocks: Vec<&CacheBlock> = self.blocks.iter().collect();
            let scale = 1.0 / (self.head_dim as f32).sqrt();
            attend_at(level, &mut out, query, lens, &blocks, 1, scale, &mut vec![7.0; 3]);
            out
        }
    }

    #[test]
    fn queries_agree_with_the_formula_at_every_level() {
        for level in Level::available() {
            for precision in PRECISIONS {
                for count in [1, 2, 3, 4, 5, 6, 8, 9, 12, 17] {
                    for (d, len) in [(1, 1), (6, 5), (16, 16), (20, 33), (64, 70), (80, 17), (128, 100)] {
                        let c = case(d, len, precision);
                        let query = normal(1, count * d);
                        // Different lengths, in no order.
                        let lens: Vec<usize> = (0..count).map(|i| 1 + (i * 7 + len - 1) % len).collect();
                        let out = c.run(level, &query, &lens);
                        for ((query, out), len) in query.chunks(d).zip(out.chunks(d)).zip(lens) {
                            let scores: Vec<f64> = c
                                .keys
                                .chunks(d)
                                .take(len)
                                .map(|k| query.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>())
                                .map(|s| s / (d as f64).sqrt())
                                .collect();
                            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                            let total: f64 = weights.iter().sum();
                            for (i, got) in out.iter().enumerate() {
                                let values = c.values.chunks(d).map(|v| f64::from(v[i]));
                                let want: f64 = weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / total;
                                // Scores of size about 3 are known to a few ulp, values are of size about 1.
                                let error = (f64::from(*got) - want).abs();
                                let what = format!("{level} {precision} {count} queries of {d}, len {len}");
                                assert!(error < 4e-6, "{what}: {got} for {want}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn neither_neighbours_nor_the_rest_of_the_cache_nor_its_blocks_show() {
        let (d, len) = (20, 70);
        for level in Level::available() {
            for precision in PRECISIONS {
                let mut c = case(d, len, precision);
                let query = normal(1, 17 * d);
                let lens: Vec<usize> = (0..17).map(|i| 41 - i % 4).collect();
                let together = c.run(level, &query, &lens);
                for ((query, want), len) in query.chunks(d).zip(together.chunks(d)).zip(&lens) {
                    assert_eq!(c.run(level, query, &[*len]), want, "{level} {precision}");
                }
                for position in 41..len {
                    c.blocks[position / BLOCK].store(1, position % BLOCK, &[f32::NAN; 20], &[f32::NAN; 20]);
                }
                assert_eq!(c.run(level, &query, &lens), together);
                // A copy of a block is as good as the block.
                let mut copy = CacheBlock::new(SLOTS, d, precision);
                copy.copy_from(&c.blocks[1]);
                c.blocks[1] = copy;
                assert_eq!(c.run(level, &query, &lens), together);
            }
        }
    }

    #[test]
    fn a_block_takes_the_memory_that_was_foretold() {
        for precision in PRECISIONS {
            let size = match CacheBlock::new(5, 20, precision).numbers {
                Numbers::F32(numbers) => size_of_val(&*numbers),
                Numbers::Bf16(numbers) => size_of_val(&*numbers),
            };
            assert_eq!(CacheBlock::bytes(5, 20, precision), size);
        }
    }
}
