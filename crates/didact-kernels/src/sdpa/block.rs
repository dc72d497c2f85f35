//! The pieces that both passes are made of: operands in the order in which they are multiplied, and their products.

use super::arithmetic::{Arithmetic, Line, ROWS, WIDE, words};
use super::{Attention, Heads, HeadsMut, Segment};
use crate::simd::{LANES, Simd};
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix of rows that units of work write to, each to columns and rows of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    data: *mut f32,
    len: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Target` stands for the `&mut` it was made from; floats may move between threads.
unsafe impl Send for Target<'_> {}
// SAFETY: the only access through it is `row`, whose callers promise not to share a piece.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(super) fn new(heads: HeadsMut<'a>) -> Self {
        let HeadsMut { data, stride } = heads;
        Self { data: data.as_mut_ptr(), len: data.len(), stride, life: PhantomData }
    }

    /// The matrix without its first columns.
    pub(super) fn columns_from(&self, column: usize) -> Self {
        let column = column.min(self.len);
        // SAFETY: at most the end of the slice.
        Self { data: unsafe { self.data.add(column) }, len: self.len - column, ..*self }
    }

    pub(super) fn check(&self, what: &str, rows: usize, width: usize) {
        super::holds(what, self.len, self.stride, rows, width);
    }

    /// `width` floats of a row.
    ///
    /// # Safety
    /// Nobody else may use them while the result lives.
    ///
    /// # Panics
    /// If they are not all in the slice.
    #[expect(clippy::mut_from_ref, reason = "the caller promises what `&mut self` would")]
    pub(super) unsafe fn row(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        let start = row * self.stride + column;
        assert!(start + width <= self.len, "attention: row {row} is outside its matrix");
        // SAFETY: inside the slice that `self` was made from; not shared, as promised.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), width) }
    }
}

/// Sizes of a head's operands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Head size.
    pub(super) d: usize,
    /// Head size in whole lines.
    pub(super) d_wide: usize,
    /// Keys of the segment in whole lines.
    pub(super) keys: usize,
}

impl Sizes {
    pub(super) fn new(a: &Attention, segment: &Segment) -> Self {
        Self {
            d: a.head_dim,
            d_wide: a.head_dim.next_multiple_of(WIDE),
            keys: segment.keys.len().next_multiple_of(WIDE),
        }
    }

    /// Words between the rows of a left operand whose steps are the head's dimensions.
    pub(super) fn along_head<M: Arithmetic>(&self) -> usize {
        self.d_wide / M::STEPS
    }

    /// Words between the rows of a left operand whose steps are the keys. One line more than they take, since rows a
    /// power of two apart push each other out of the cache.
    pub(super) fn along_keys<M: Arithmetic>(&self) -> usize {
        self.keys / M::STEPS + LANES
    }
}

/// A scratch buffer to cut pieces from.
pub(super) struct Scratch<'a>(pub(super) &'a mut [f32]);

impl<'a> Scratch<'a> {
    pub(super) fn cut(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        piece
    }
}

/// One head of up to 32 rows as f32: `[32][d_wide]`, zeros where there is nothing.
#[inline(always)]
pub(super) fn load_rows<S: Simd>(
    simd: S,
    to: &mut [f32],
    size: &Sizes,
    from: Heads,
    column: usize,
    rows: Range<usize>,
    rotary: Option<super::Rotary>,
    scale: f32,
) {
    let d = size.d;
    let count = rows.len();
    for (to, row) in to.chunks_exact_mut(size.d_wide).zip(rows) {
        let x = &from.data[row * from.stride + column..][..d];
        rotate(simd, &mut to[..d], x, rotary, row, scale, false);
        to[d..].fill(0.0);
    }
    to[count * size.d_wide..].fill(0.0);
}

/// `to = rotation · x · scale`, or with the transposed rotation, which carries gradients back.
#[inline(always)]
pub(super) fn rotate<S: Simd>(
    simd: S,
    to: &mut [f32],
    x: &[f32],
    rotary: Option<super::Rotary>,
    row: usize,
    scale: f32,
    back: bool,
) {
    let Some(rotary) = rotary else {
        to.iter_mut().zip(x).for_each(|(to, x)| *to = x * scale);
        return;
    };
    let half = x.len() / 2;
    let cos = &rotary.cos[row * half..][..half];
    let sin = &rotary.sin[row * half..][..half];
    let (low, high) = x.split_at(half);
    let (to_low, to_high) = to.split_at_mut(half);
    let (scale, sign) = (simd.splat(scale), simd.splat(if back { -1.0 } else { 1.0 }));
    for at in (0..half).step_by(LANES) {
        let get = |x: &[f32]| match x[at..].first_chunk() {
            Some(x) => simd.load(x),
            None => simd.load_or(&x[at..], 0.0),
        };
        let put = |to: &mut [f32], v: S::V| match to[at..].first_chunk_mut() {
            Some(to) => simd.store(to, v),
            None => simd.store_first(&mut to[at..], v),
        };
        let (l, h, c, s) = (get(low), get(high), get(cos), simd.mul(get(sin), sign));
        put(to_low, simd.mul(simd.sub(simd.mul(l, c), simd.mul(h, s)), scale));
        put(to_high, simd.mul(simd.add(simd.mul(h, c), simd.mul(l, s)), scale));
    }
}

/// Rows become columns: `to` is `[d_wide][32]` from `[32][d_wide]`.
#[inline(always)]
pub(super) fn transpose_rows<S: Simd>(simd: S, to: &mut [f32], from: &[f32], d_wide: usize) {
    let to = to.as_chunks_mut::<LANES>().0;
    let from = from.as_chunks::<LANES>().0;
    for half in 0..2 {
        for block in 0..d_wide / LANES {
            let rows = std::array::from_fn(|i| simd.load(&from[(half * LANES + i) * (d_wide / LANES) + block]));
            for (i, column) in simd.transpose(rows).into_iter().enumerate() {
                simd.store(&mut to[(block * LANES + i) * 2 + half], column);
            }
        }
    }
}

/// The inverse: `[d_wide][32]` to `[32][d_wide]`.
#[inline(always)]
pub(super) fn transpose_back<S: Simd>(simd: S, to: &mut [f32], from: &[f32], d_wide: usize) {
    let to = to.as_chunks_mut::<LANES>().0;
    let from = from.as_chunks::<LANES>().0;
    for half in 0..2 {
        for block in 0..d_wide / LANES {
            let rows = std::array::from_fn(|i| simd.load(&from[(block * LANES + i) * 2 + half]));
            for (i, column) in simd.transpose(rows).into_iter().enumerate() {
                simd.store(&mut to[(half * LANES + i) * (d_wide / LANES) + block], column);
            }
        }
    }
}

/// Line `i` of 32 lanes.
#[inline(always)]
pub(super) fn line<S: Simd>(simd: S, from: &[f32], i: usize) -> Line<S> {
    let from = &from.as_chunks::<LANES>().0[2 * i..2 * i + 2];
    [simd.load(&from[0]), simd.load(&from[1])]
}

/// Writes line `i` of 32 lanes.
#[inline(always)]
pub(super) fn put_line<S: Simd>(simd: S, to: &mut [f32], i: usize, v: Line<S>) {
    let to = &mut to.as_chunks_mut::<LANES>().0[2 * i..2 * i + 2];
    simd.store(&mut to[0], v[0]);
    simd.store(&mut to[1], v[1]);
}

/// A left operand from `[rows][d_wide]` floats: the same rows in words.
#[inline(always)]
pub(super) fn left_rows<M: Arithmetic>(m: M, to: &mut [f32], from: &[f32]) {
    for (to, from) in to.chunks_exact_mut(WIDE / M::STEPS).zip(from.chunks_exact(WIDE)) {
        m.store_row(to, line(m.simd(), from, 0));
    }
}

/// Columns `at..at + 32` of a left operand with a row for each of `[rows][32]` floats.
#[inline(always)]
pub(super) fn left_columns<M: Arithmetic>(m: M, to: &mut [f32], stride: usize, at: usize, from: &[f32], rows: usize) {
    for i in 0..rows {
        m.store_row(&mut to[i * stride + at / M::STEPS..][..WIDE / M::STEPS], line(m.simd(), from, i));
    }
}

/// A right operand whose steps are the lines of `[steps][32]` floats.
#[inline(always)]
pub(super) fn right_lines<M: Arithmetic>(m: M, to: &mut [f32], from: &[f32], steps: usize) {
    let simd = m.simd();
    for (pair, to) in to.chunks_exact_mut(2 * WIDE / M::STEPS).enumerate().take(steps.div_ceil(2)) {
        m.store_steps(to, line(simd, from, 2 * pair), line(simd, from, 2 * pair + 1));
    }
}

/// A right operand whose steps are the 32 rows of `[32][d_wide]` floats, one group of 32 columns after the other.
#[inline(always)]
pub(super) fn right_rows<M: Arithmetic>(m: M, to: &mut [f32], from: &[f32], d_wide: usize) {
    let simd = m.simd();
    let lines = d_wide / WIDE;
    for (group, to) in to.chunks_exact_mut(WIDE * WIDE / M::STEPS).enumerate().take(lines) {
        for (pair, to) in to.chunks_exact_mut(2 * WIDE / M::STEPS).enumerate() {
            let of = |row: usize| line(simd, from, row * lines + group);
            m.store_steps(to, of(2 * pair), of(2 * pair + 1));
        }
    }
}

/// `C = A·B` or `C += A·B` for 8 rows and 32 columns of C.
///
/// # Shapes
/// - `c`: 8 rows of 32 floats, `ldc` apart
/// - `a`: 8 rows of `words` words, `stride` apart; `b`: `words` lines of 32 words
#[inline(always)]
pub(super) fn product<M: Arithmetic>(
    m: M,
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    stride: usize,
    b: &[f32],
    words: usize,
    accumulate: bool,
) {
    assert!(
        c.len() >= (ROWS - 1) * ldc + WIDE && a.len() >= (ROWS - 1) * stride + words && b.len() >= words * WIDE,
        "attention: operands of {}, {} and {} floats for {words} words",
        c.len(),
        a.len(),
        b.len()
    );
    if <M::S as Simd>::ROOMY {
        // SAFETY: the lengths were just checked.
        unsafe { tile::<M, ROWS, 2>(m, c, ldc, a, stride, b, words, accumulate, 0, 0) };
    } else {
        for (row, half) in [(0, 0), (4, 0), (0, 1), (4, 1)] {
            // SAFETY: the lengths were just checked.
            unsafe { tile::<M, 4, 1>(m, c, ldc, a, stride, b, words, accumulate, row, half) };
        }
    }
}

/// Rows `row..row + R` and vectors `half..half + V` of [`product`].
///
/// # Safety
/// The operands must be as long as [`product`] checks.
#[inline(always)]
unsafe fn tile<M: Arithmetic, const R: usize, const V: usize>(
    m: M,
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    stride: usize,
    b: &[f32],
    words: usize,
    accumulate: bool,
    row: usize,
    half: usize,
) {
    let simd = m.simd();
    let mut sums = [[simd.splat(0.0); V]; R];
    if accumulate {
        for i in 0..R {
            for v in 0..V {
                // SAFETY: row and vector are inside C.
                sums[i][v] = simd.load(unsafe { &*c.as_ptr().add((row + i) * ldc + (half + v) * LANES).cast() });
            }
        }
    }
    for word in 0..words {
        // SAFETY: B has `words` lines of two vectors.
        let b: [_; V] =
            std::array::from_fn(|v| simd.load(unsafe { &*b.as_ptr().add(word * WIDE + (half + v) * LANES).cast() }));
        for i in 0..R {
            // SAFETY: A has rows of `words` words.
            let a = unsafe { *a.as_ptr().add((row + i) * stride + word) };
            for v in 0..V {
                sums[i][v] = m.step(a, b[v], sums[i][v]);
            }
        }
    }
    for i in 0..R {
        for v in 0..V {
            // SAFETY: row and vector are inside C.
            simd.store(unsafe { &mut *c.as_mut_ptr().add((row + i) * ldc + (half + v) * LANES).cast() }, sums[i][v]);
        }
    }
}

/// Which keys a block of queries sees.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// The first key that any of them sees, rounded down to whole rows of a product.
    pub(super) from: usize,
    /// The end of what any of them sees.
    pub(super) end: usize,
    /// Each query's keys.
    lanes: [(usize, usize); WIDE],
    /// Keys that all queries see.
    common: (usize, usize),
}

impl View {
    pub(super) fn new(a: &Attention, segment: &Segment, queries: Range<usize>) -> Self {
        let (mut from, mut end, mut common) = (usize::MAX, 0, (0, usize::MAX));
        let mut lanes = [(0, 0); WIDE];
        for (lane, query) in lanes.iter_mut().zip(queries) {
            let seen = a.visible(segment, query);
            *lane = (seen.start, seen.end);
            common = (common.0.max(seen.start), common.1.min(seen.end));
            if !seen.is_empty() {
                (from, end) = (from.min(seen.start), end.max(seen.end));
            }
        }
        // Lanes without a query see what the others see: their results are dropped.
        Self { from: from.min(end) / ROWS * ROWS, end, lanes, common }
    }

    /// Sets the scores that are not seen to -∞ in the lines of keys `keys`.
    #[inline(always)]
    pub(super) fn hide(&self, scores: &mut [f32], keys: Range<usize>) {
        for (line, key) in scores.chunks_exact_mut(WIDE).zip(keys) {
            if key >= self.common.0 && key < self.common.1 {
                continue;
            }
            for (score, &(from, end)) in line.iter_mut().zip(&self.lanes) {
                *score = if key >= from && key < end { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}

/// Words of `steps` steps that begin at a multiple of 8.
pub(super) fn word_range<M: Arithmetic>(steps: Range<usize>) -> Range<usize> {
    let first = steps.start / M::STEPS;
    first..first + words::<M>(steps.len())
}
