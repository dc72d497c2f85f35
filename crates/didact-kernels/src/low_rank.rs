//! Products with one short side: what a low-rank branch adds to a linear layer.
//!
//! A matrix product that packs its operands spends most of its time packing when the rank is 8 or 16. These kernels read
//! the long operand once, where it lies, in f32. Every element is one chain of multiply-adds in ascending order, so its
//! bits depend on the level only.

use rayon::prelude::*;

use crate::level::{Level, level};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Rows that one thread takes at a time.
const ROWS: usize = 64;
/// Rows whose sums stay in registers together.
const TOGETHER: usize = 8;
/// Columns of the long operand that one thread takes at a time in [`outer`].
const STRIP: usize = 64;
/// Rows that [`outer`] copies together before it works on them. Rows are often a multiple of 4 KiB apart, and then
/// columns of them would push each other out of the cache.
const BLOCK: usize = 64;
/// Columns that [`update`] does for all its rows before it goes on: so many of `m` stay in the first cache.
const COLUMNS: usize = 256;

/// Rows of a matrix inside a wider one: row `i` is `data[i * stride..i * stride + width]`.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What holds them.
    pub data: &'a [f32],
    /// How many there are.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl Rows<'_> {
    fn check(&self, what: &str) {
        let needed = self.count.checked_sub(1).map_or(0, |last| last * self.stride + self.width);
        assert!(
            self.data.len() >= needed && self.stride >= self.width,
            "{what}: {} floats do not hold {} rows of {}, {} apart",
            self.data.len(),
            self.count,
            self.width,
            self.stride
        );
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.stride..i * self.stride + self.width]
    }
}

/// `out = x · m`.
///
/// # Shapes
/// - `x`: `N × K`; `m`: `K × rank`, row-major; `out`: `N × rank`
///
/// # Panics
/// If a slice does not fit.
pub fn project(out: &mut [f32], x: Rows<'_>, m: &[f32], rank: usize) {
    project_at(level(), out, x, m, rank);
}

fn project_at(level: Level, out: &mut [f32], x: Rows<'_>, m: &[f32], rank: usize) {
    x.check("project");
    assert_eq!([m.len(), out.len()], [x.width * rank, x.count * rank], "project: m and out do not fit rank {rank}");
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(ROWS * rank).enumerate().for_each(|(chunk, out)| {
        dispatch(level, Project { out, x, first: chunk * ROWS, m, rank });
    });
}

struct Project<'a> {
    out: &'a mut [f32],
    x: Rows<'a>,
    first: usize,
    m: &'a [f32],
    rank: usize,
}

/// Lanes `from..from + 16` of a row, those past its end being 0.
#[inline(always)]
fn lanes<S: Simd>(simd: S, row: &[f32], from: usize) -> S::V {
    match row[from..].first_chunk::<LANES>() {
        Some(line) => simd.load(line),
        None => simd.load_or(&row[from..], 0.0),
    }
}

/// Stores what [`lanes`] would load.
#[inline(always)]
fn put<S: Simd>(simd: S, row: &mut [f32], from: usize, v: S::V) {
    match row[from..].first_chunk_mut::<LANES>() {
        Some(line) => simd.store(line, v),
        None => simd.store_first(&mut row[from..], v),
    }
}

impl Kernel for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { out, x, first, m, rank } = self;
        for (group, out) in out.chunks_mut(TOGETHER * rank).enumerate() {
            let count = out.len() / rank;
            // Past the end the last row is taken again and its sums are dropped.
            let rows: [&[f32]; TOGETHER] = std::array::from_fn(|i| x.row(first + group * TOGETHER + i.min(count - 1)));
            for from in (0..rank).step_by(LANES) {
                let mut sums = [simd.splat(0.0); TOGETHER];
                for (k, line) in m.chunks_exact(rank).enumerate() {
                    let line = lanes(simd, line, from);
                    for i in 0..TOGETHER {
                        sums[i] = simd.mul_add(simd.splat(rows[i][k]), line, sums[i]);
                    }
                }
                for (row, sum) in out.chunks_exact_mut(rank).zip(sums) {
                    put(simd, row, from, sum);
                }
            }
        }
    }
}

/// `y += h · m` on rows of `width` elements, `stride` apart.
///
/// # Shapes
/// - `h`: `N × rank`; `m`: `rank × width`, both row-major; `y`: `N × width`
///
/// # Panics
/// If a slice does not fit.
pub fn update(y: &mut [f32], stride: usize, width: usize, h: &[f32], m: &[f32], rank: usize) {
    update_at(level(), y, stride, width, h, m, rank);
}

fn update_at(level: Level, y: &mut [f32], stride: usize, width: usize, h: &[f32], m: &[f32], rank: usize) {
    assert!(rank > 0 && h.len().is_multiple_of(rank), "update: {} floats in rows of {rank}", h.len());
    Rows { data: y, count: h.len() / rank, width, stride }.check("update");
    assert_eq!(m.len(), rank * width, "update: m is not {rank} × {width}");
    if width == 0 {
        return;
    }
    y.par_chunks_mut(ROWS * stride).zip(h.par_chunks(ROWS * rank)).for_each(|(y, h)| {
        dispatch(level, Update { y, stride, width, h, m, rank });
    });
}

struct Update<'a> {
    y: &'a mut [f32],
    stride: usize,
    width: usize,
    h: &'a [f32],
    m: &'a [f32],
    rank: usize,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { y, stride, width, h, m, rank } = self;
        let mut panel = vec![[0.0f32; LANES]; rank * (COLUMNS / LANES)];
        for strip in (0..width).step_by(COLUMNS) {
            let end = width.min(strip + COLUMNS);
            // The strip of `m` in the order in which it is read: for each 16 columns, rank after rank.
            for (from, lines) in (strip..end).step_by(LANES).zip(panel.chunks_exact_mut(rank)) {
                for (line, m) in lines.iter_mut().zip(m.chunks_exact(width)) {
                    simd.store(line, lanes(simd, m, from));
                }
            }
            for (group, h) in h.chunks(TOGETHER * rank).enumerate() {
                let count = h.len() / rank;
                let base = group * TOGETHER * stride;
                // Past the end the last row is taken again and its sums are dropped.
                let rows: [&[f32]; TOGETHER] =
                    std::array::from_fn(|i| &h[i.min(count - 1) * rank..(i.min(count - 1) + 1) * rank]);
                for (from, lines) in (strip..end).step_by(LANES).zip(panel.chunks_exact(rank)) {
                    let mut sums = [simd.splat(0.0); TOGETHER];
                    for (i, sum) in sums.iter_mut().enumerate().take(count) {
                        *sum = lanes(simd, &y[base + i * stride..base + i * stride + width], from);
                    }
                    for (r, line) in lines.iter().enumerate() {
                        let line = simd.load(line);
                        for i in 0..TOGETHER {
                            sums[i] = simd.mul_add(simd.splat(rows[i][r]), line, sums[i]);
                        }
                    }
                    for (i, sum) in sums.into_iter().enumerate().take(count) {
                        put(simd, &mut y[base + i * stride..base + i * stride + width], from, sum);
                    }
                }
            }
        }
    }
}

/// `out = xᵀ · h`.
///
/// # Shapes
/// - `x`: `N × K`; `h`: `N × rank`, row-major; `out`: `K × rank`
///
/// # Panics
/// If a slice does not fit.
pub fn outer(out: &mut [f32], x: Rows<'_>, h: &[f32], rank: usize) {
    outer_at(level(), out, x, h, rank);
}

fn outer_at(level: Level, out: &mut [f32], x: Rows<'_>, h: &[f32], rank: usize) {
    x.check("outer");
    assert_eq!([h.len(), out.len()], [x.count * rank, x.width * rank], "outer: h and out do not fit rank {rank}");
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(STRIP * rank).enumerate().for_each(|(strip, out)| {
        out.fill(0.0);
        dispatch(level, Outer { out, x, column: strip * STRIP, h, rank });
    });
}

struct Outer<'a> {
    out: &'a mut [f32],
    x: Rows<'a>,
    column: usize,
    h: &'a [f32],
    rank: usize,
}

impl Kernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { out, x, column, h, rank } = self;
        let columns = out.len() / rank;
        // Columns past the end stay 0, and their sums are dropped.
        let mut copy = [[0.0f32; STRIP]; BLOCK];
        for block in (0..x.count).step_by(BLOCK) {
            let end = x.count.min(block + BLOCK);
            for (line, i) in copy.iter_mut().zip(block..end) {
                line[..columns].copy_from_slice(&x.row(i)[column..column + columns]);
            }
            for (group, out) in out.chunks_mut(TOGETHER * rank).enumerate() {
                for from in (0..rank).step_by(LANES) {
                    let mut sums = [simd.splat(0.0); TOGETHER];
                    for (sum, row) in sums.iter_mut().zip(out.chunks_exact(rank)) {
                        *sum = lanes(simd, row, from);
                    }
                    for (line, h) in copy.iter().zip(h[block * rank..end * rank].chunks_exact(rank)) {
                        let h = lanes(simd, h, from);
                        let values = &line.as_chunks::<TOGETHER>().0[group];
                        for j in 0..TOGETHER {
                            sums[j] = simd.mul_add(simd.splat(values[j]), h, sums[j]);
                        }
                    }
                    for (row, sum) in out.chunks_exact_mut(rank).zip(sums) {
                        put(simd, row, from, sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_uniform;
    use crate::tolerance::{assert_within, f32_sum};

    fn numbers(key: u64, count: usize) -> Vec<f32> {
        let mut out = vec![0.0; count];
        fill_uniform(key, -1.0, 1.0, &mut out);
        out
    }

    /// `Σ_k a(k)·b(k)` with the tolerance of so many terms.
    fn chain(terms: usize, start: f32, term: impl Fn(usize) -> (f32, f32)) -> (f64, f64) {
        let (mut sum, mut size) = (f64::from(start), f64::from(start.abs()));
        for k in 0..terms {
            let (a, b) = term(k);
            sum += f64::from(a) * f64::from(b);
            size += (f64::from(a) * f64::from(b)).abs();
        }
        (sum, size * f32_sum(terms + 1))
    }

    #[test]
    fn products_equal_the_plain_sums_at_every_level() {
        for (n, k, stride, rank) in
            [(1, 1, 1, 1), (7, 33, 40, 16), (150, 70, 70, 5), (131, 64, 100, 24), (65, 9, 9, 32)]
        {
            let data = numbers(1, n * stride);
            let x = Rows { data: &data, count: n, width: k, stride };
            let (m, h, wide) = (numbers(2, k * rank), numbers(3, n * rank), numbers(4, rank * k));
            for level in Level::available() {
                let name = format!("{level} {n} {k} {stride} {rank}");
                let mut out = vec![7.0; n * rank];
                project_at(level, &mut out, x, &m, rank);
                let want =
                    (0..n * rank).map(|i| chain(k, 0.0, |p| (data[i / rank * stride + p], m[p * rank + i % rank])));
                assert_within(&format!("project {name}"), &out, want);

                let mut out = vec![7.0; k * rank];
                outer_at(level, &mut out, x, &h, rank);
                let want =
                    (0..k * rank).map(|i| chain(n, 0.0, |p| (data[p * stride + i / rank], h[p * rank + i % rank])));
                assert_within(&format!("outer {name}"), &out, want);

                let mut y = data.clone();
                update_at(level, &mut y, stride, k, &h, &wide, rank);
                let want = (0..n * stride).map(|i| {
                    let (row, column) = (i / stride, i % stride);
                    let terms = if column < k { rank } else { 0 };
                    chain(terms, data[i], |p| (h[row * rank + p], wide[p * k + column]))
                });
                assert_within(&format!("update {name}"), &y, want);
            }
        }
    }

    #[test]
    fn threads_and_neighbours_do_not_show() {
        let (n, k, rank) = (300, 200, 16);
        let (data, m, h) = (numbers(1, n * k), numbers(2, k * rank), numbers(3, n * rank));
        let run = |threads: usize, count: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let x = Rows { data: &data, count, width: k, stride: k };
                let mut projected = vec![0.0; count * rank];
                project(&mut projected, x, &m, rank);
                let mut outer_product = vec![0.0; k * rank];
                outer(&mut outer_product, x, &h[..count * rank], rank);
                let mut updated = data[..count * k].to_vec();
                update(&mut updated, k, k, &h[..count * rank], &numbers(4, rank * k), rank);
                (projected, outer_product, updated)
            })
        };
        let all = run(2, n);
        assert_eq!(run(1, n), all);
        assert_eq!(run(3, n), all);
        let some = run(2, 77);
        assert_eq!(some.0, all.0[..77 * rank]);
        assert_eq!(some.2, all.2[..77 * k]);
    }
}
