//! Randomness by counter: element `i` is a pure function of the key and `i`, so any part of a stream can be had without
//! the rest, in any order, on any number of threads.
//!
//! The generator is Philox 4x32-10: a block of four 32-bit words from a 64-bit key and a counter. Element `i` is word
//! `i % 4` of block `i / 4` (for normal deviates: made from its half of the block). Keys come from named streams; two
//! streams never share a key.
//!
//! # Reference
//! Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

use crate::level::{Level, level};
use crate::simd::{Kernel, Simd, dispatch};
use rayon::prelude::*;

/// Blocks computed side by side, for the compiler to make vectors of.
const WIDE: usize = 16;

/// Elements of a piece that one thread fills.
const PIECE: usize = 16 << 10;

/// The four words of each of `WIDE` consecutive blocks, word-major: `[word][block]`.
#[inline(always)]
fn philox(key: u64, first: u64) -> [[u32; WIDE]; 4] {
    const M0: u64 = 0xD251_1F53;
    const M1: u64 = 0xCD9E_8D57;
    let counter: [u64; WIDE] = std::array::from_fn(|i| first.wrapping_add(i as u64));
    let mut x0 = counter.map(|c| c as u32);
    let mut x1 = counter.map(|c| (c >> 32) as u32);
    let (mut x2, mut x3) = ([0u32; WIDE], [0u32; WIDE]);
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        for i in 0..WIDE {
            let p0 = M0 * u64::from(x0[i]);
            let p1 = M1 * u64::from(x2[i]);
            x0[i] = (p1 >> 32) as u32 ^ x1[i] ^ k0;
            x1[i] = p1 as u32;
            x2[i] = (p0 >> 32) as u32 ^ x3[i] ^ k1;
            x3[i] = p0 as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [x0, x1, x2, x3]
}

/// Where elements come from, four words to four elements.
trait Deviate: Copy + Send + Sync {
    fn of(self, words: [u32; 4]) -> [f32; 4];
}

/// Fills `out` with elements `offset..` of the stream.
struct Fill<'a, D> {
    key: u64,
    offset: u64,
    out: &'a mut [f32],
    deviate: D,
}

impl<D: Deviate> Kernel for Fill<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { key, mut offset, mut out, deviate } = self;
        while !out.is_empty() {
            let words = philox(key, offset / 4);
            let mut elements = [0.0f32; 4 * WIDE];
            for block in 0..WIDE {
                let four = deviate.of([words[0][block], words[1][block], words[2][block], words[3][block]]);
                elements[4 * block..4 * block + 4].copy_from_slice(&four);
            }
            let skip = (offset % 4) as usize;
            let n = out.len().min(elements.len() - skip);
            let (now, rest) = out.split_at_mut(n);
            now.copy_from_slice(&elements[skip..skip + n]);
            out = rest;
            offset = offset.wrapping_add(n as u64);
        }
    }
}

fn fill(level: Level, key: u64, offset: u64, out: &mut [f32], deviate: impl Deviate) {
    out.par_chunks_mut(PIECE).enumerate().for_each(|(i, out)| {
        dispatch(level, Fill { key, offset: offset.wrapping_add((i * PIECE) as u64), out, deviate });
    });
}

#[derive(Clone, Copy)]
struct Keep {
    /// A word below it keeps.
    below: u64,
    scale: f32,
}

impl Keep {
    fn share(keep: f32) -> Self {
        assert!(keep > 0.0 && keep <= 1.0, "dropout keeps a share in (0, 1], not {keep}");
        Self { below: (f64::from(keep) * 2f64.powi(32)).round() as u64, scale: 1.0 / keep }
    }
}

impl Deviate for Keep {
    #[inline(always)]
    fn of(self, words: [u32; 4]) -> [f32; 4] {
        words.map(|w| if u64::from(w) < self.below { self.scale } else { 0.0 })
    }
}

/// Elements `offset..offset + out.len()` of a dropout mask: `1 / keep` with probability `keep`, else 0.
///
/// # Panics
/// If `keep` is not in `(0, 1]`.
pub fn dropout_mask(key: u64, offset: u64, keep: f32, out: &mut [f32]) {
    fill(level(), key, offset, out, Keep::share(keep));
}

/// `x *= mask`, or `y += x * mask`, without the mask in memory; the mask is that of [`dropout_mask`] at the same place.
struct Masked<'a> {
    key: u64,
    offset: u64,
    keep: Keep,
    x: &'a [f32],
    y: &'a mut [f32],
    add: bool,
}

impl Kernel for Masked<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { key, offset, keep, x, y, add } = self;
        let mut mask = [0.0f32; 4 * WIDE];
        for (i, (x, y)) in x.chunks(4 * WIDE).zip(y.chunks_mut(4 * WIDE)).enumerate() {
            let mask = &mut mask[..x.len()];
            let offset = offset.wrapping_add((i * 4 * WIDE) as u64);
            Fill { key, offset, out: &mut *mask, deviate: keep }.run(simd);
            if add {
                y.iter_mut().zip(x).zip(mask).for_each(|((y, x), m)| *y += x * *m);
            } else {
                y.iter_mut().zip(x).zip(mask).for_each(|((y, x), m)| *y = x * *m);
            }
        }
    }
}

/// `y = x · mask`, or `y += x · mask` with `add`: dropout in one pass, forward or backward. The mask is what
/// [`dropout_mask`] gives for the same key, offset and share.
///
/// # Panics
/// If the lengths differ or `keep` is not in `(0, 1]`.
pub fn dropout(y: &mut [f32], x: &[f32], key: u64, offset: u64, keep: f32, add: bool) {
    dropout_at(level(), y, x, key, offset, keep, add);
}

fn dropout_at(level: Level, y: &mut [f32], x: &[f32], key: u64, offset: u64, keep: f32, add: bool) {
    assert_eq!(y.len(), x.len(), "dropout: y and x differ in length");
    let keep = Keep::share(keep);
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).enumerate().for_each(|(i, (y, x))| {
        let offset = offset.wrapping_add((i * PIECE) as u64);
        dispatch(level, Masked { key, offset, keep, x, y, add });
    });
}

#[derive(Clone, Copy)]
struct Uniform {
    low: f32,
    width: f32,
}

impl Deviate for Uniform {
    #[inline(always)]
    fn of(self, words: [u32; 4]) -> [f32; 4] {
        // 24 bits, all that an f32 in [0, 1) can hold evenly.
        words.map(|w| self.low + self.width * ((w >> 8) as f32 * (1.0 / 16_777_216.0)))
    }
}

/// Uniform deviates in `[low, high)`.
pub fn fill_uniform(key: u64, low: f32, high: f32, out: &mut [f32]) {
    fill(level(), key, 0, out, Uniform { low, width: high - low });
}

#[derive(Clone, Copy)]
struct Normal {
    std: f64,
}

impl Deviate for Normal {
    #[inline(always)]
    fn of(self, words: [u32; 4]) -> [f32; 4] {
        // Box and Muller, with functions that do not differ between platforms. The half keeps u above 0.
        let unit = |w: u32| (f64::from(w) + 0.5) * (1.0 / 4_294_967_296.0);
        let pair = |a: u32, b: u32| {
            let radius = self.std * libm::sqrt(-2.0 * libm::log(unit(a)));
            let (sin, cos) = libm::sincos(std::f64::consts::TAU * unit(b));
            [(radius * cos) as f32, (radius * sin) as f32]
        };
        let ([a, b], [c, d]) = (pair(words[0], words[1]), pair(words[2], words[3]));
        [a, b, c, d]
    }
}

/// Normal deviates of mean 0.
pub fn fill_normal(key: u64, std: f32, out: &mut [f32]) {
    fill(level(), key, 0, out, Normal { std: f64::from(std) });
}

/// One uniform deviate in `[0, 1)` with 53 bits: the first two words of block `index`.
pub fn uniform(key: u64, index: u64) -> f64 {
    let words = philox(key, index);
    let bits = u64::from(words[0][0]) << 32 | u64::from(words[1][0]);
    (bits >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_words() {
        // `kat_vectors` of the authors' Random123: counter 0, key 0.
        let words = philox(0, 0);
        assert_eq!(words.map(|w| w[0]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn any_part_of_a_mask_is_that_part_of_the_whole_at_every_level() {
        let mut whole = vec![0.0; 40_000];
        dropout_mask(7, 0, 0.9, &mut whole);
        for (offset, len) in [(0, 1), (1, 2), (3, 70), (63, 64), (16_383, 20_001)] {
            let mut part = vec![9.0; len];
            dropout_mask(7, offset as u64, 0.9, &mut part);
            assert_eq!(part, whole[offset..offset + len]);
        }
        for level in Level::available() {
            let mut other = vec![0.0; whole.len()];
            let below = (f64::from(0.9f32) * 2f64.powi(32)).round() as u64;
            fill(level, 7, 0, &mut other, Keep { below, scale: 1.0 / 0.9f32 });
            assert!(other == whole, "{level} differs");
        }
    }

    #[test]
    fn dropout_multiplies_with_its_mask_at_every_level() {
        for (offset, n) in [(0, 0), (5, 1), (3, 70), (64, PIECE + 77)] {
            let mut mask = vec![0.0; n];
            dropout_mask(7, offset, 0.7, &mut mask);
            let mut x = vec![0.0; n];
            fill_normal(2, 1.0, &mut x);
            for level in Level::available() {
                let (mut y, mut sum) = (vec![9.0; n], vec![1.0; n]);
                dropout_at(level, &mut y, &x, 7, offset, 0.7, false);
                dropout_at(level, &mut sum, &x, 7, offset, 0.7, true);
                assert!(y.iter().zip(&x).zip(&mask).all(|((y, x), m)| *y == x * m), "{level} {offset} {n}");
                assert!(sum.iter().zip(&y).all(|(sum, y)| *sum == 1.0 + y), "{level} {offset} {n}");
            }
        }
    }

    #[test]
    fn a_mask_keeps_the_share_it_should_and_the_mean() {
        let mut mask = vec![0.0; 1_000_000];
        dropout_mask(1, 0, 0.8, &mut mask);
        let kept = mask.iter().filter(|&&x| x != 0.0).count() as f64 / 1e6;
        // Five standard deviations of a share of a million.
        assert!((kept - 0.8).abs() < 5.0 * (0.8f64 * 0.2 / 1e6).sqrt(), "{kept}");
        assert!(mask.iter().all(|&x| x == 0.0 || x == 1.25));
        dropout_mask(1, 0, 1.0, &mut mask);
        assert!(mask.iter().all(|&x| x == 1.0));
    }

    #[test]
    fn normal_deviates_have_their_moments() {
        let mut xs = vec![0.0; 1_000_000];
        fill_normal(3, 2.0, &mut xs);
        let moment = |p: i32| xs.iter().map(|&x| f64::from(x / 2.0).powi(p)).sum::<f64>() / 1e6;
        // Five standard deviations: the moments' variances are 1, 2, 15 and 96 over a million.
        assert!(moment(1).abs() < 5e-3, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 5.0 * 2f64.sqrt() * 1e-3, "{}", moment(2));
        assert!(moment(3).abs() < 5.0 * 15f64.sqrt() * 1e-3, "{}", moment(3));
        assert!((moment(4) - 3.0).abs() < 5.0 * 96f64.sqrt() * 1e-3, "{}", moment(4));
    }

    #[test]
    fn uniform_deviates_stay_in_range_and_differ_by_key() {
        let (mut a, mut b) = (vec![0.0; 10_000], vec![0.0; 10_000]);
        fill_uniform(1, -0.5, 0.5, &mut a);
        fill_uniform(2, -0.5, 0.5, &mut b);
        assert!(a.iter().all(|x| (-0.5..0.5).contains(x)));
        assert!(a.iter().zip(&b).filter(|(a, b)| a == b).count() < 10);
        assert!((0..1000).all(|i| (0.0..1.0).contains(&uniform(5, i))));
    }
}
