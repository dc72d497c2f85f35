//! Products of few rows with a packed weight, which reading the weight's memory bounds; and looking up a weight's columns.
//!
//! While answers are written every product has one row per answer and passes over all weights. So the weight is streamed
//! once, block by block, whatever the number of rows: each block meets all of them while it is near, and the next one is
//! asked for meanwhile. The rows are only rounded, not rearranged.

use super::pack::Format;
use super::{MatRef, PackedB, gemm_packed};
use half::bf16;

/// Most rows for which the weight is streamed.
const FEW: usize = 64;

/// [`gemm_packed`] of row-major rows that lie side by side: the same bits, faster when the rows are few.
///
/// # Shapes
/// - `c`: `m × b.n()`, row-major with `ldc` between rows
/// - `a`: `m × b.k()`
///
/// # Panics
/// If a slice is too short for its shape, or `ldc < b.n()`.
pub fn gemm_rows(c: &mut [f32], ldc: usize, m: usize, a: &[f32], b: &PackedB, accumulate: bool) {
    #[cfg(target_arch = "x86_64")]
    if b.k > 0 && b.n > 0 && b.plan.format == Format::Bf16Pair {
        if b.plan.is_for_rows_only() {
            // The tiles of larger products do not know this form; pieces of `FEW` rows meet a block often enough.
            for first in (0..m).step_by(FEW) {
                let rows = FEW.min(m - first);
                stream::multiply(&mut c[first * ldc..], ldc, rows, &a[first * b.k..], b, accumulate);
            }
            return;
        }
        if m > 0 && m <= FEW {
            stream::multiply(c, ldc, m, a, b, accumulate);
            return;
        }
    }
    gemm_packed(c, ldc, m, MatRef::rows(a, b.k), b, accumulate);
}

impl PackedB {
    /// Column `j`, as products see it: rounded if the precision rounds.
    ///
    /// # Panics
    /// If there is no such column, or `out` is not as long as one.
    pub fn column(&self, j: usize, out: &mut [f32]) {
        assert!(j < self.n && out.len() == self.k, "gemm: column {j} of {} x {} into {}", self.k, self.n, out.len());
        let width = self.plan.b_width;
        let panel = &self.panels[j / width * width * self.plan.words(self.k)..];
        let words = panel.iter().skip(j % width).step_by(width);
        if self.plan.format == Format::Bf16Pair {
            for (pair, word) in out.chunks_mut(2).zip(words) {
                let bits = word.to_bits();
                for (x, half) in pair.iter_mut().zip([bits as u16, (bits >> 16) as u16]) {
                    *x = bf16::from_bits(half).to_f32();
                }
            }
        } else {
            for (x, word) in out.iter_mut().zip(words) {
                *x = *word;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod stream {
    //! The micro-kernels of bf16 pairs over rows that are not rearranged: multiplied by the dot product of pairs, or widened
    //! to f32 first.

    use super::super::drive::with_scratch;
    use super::PackedB;
    use crate::level::Level;
    use crate::simd::x86::first_lanes;
    use rayon::prelude::*;
    use std::arch::x86_64::{
        __m512, __m512bh, _MM_HINT_T1, _mm_prefetch, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
        _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh, _mm512_cvtpbh_ps, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi32, _mm512_storeu_ps,
    };

    /// Columns of a panel.
    const WIDTH: usize = 32;
    /// Most rows whose sums the registers hold.
    const ROWS: usize = 12;
    /// Words of k in a block: so many that sums are seldom written and read again, and few enough that the block and the
    /// rows stay near while all rows meet it.
    const BLOCK: usize = 288;
    /// Fewest multiply-adds that are worth a second thread.
    const PARALLEL_WORK: usize = 32 << 10;

    /// Fewest floats to round that are worth a second thread.
    const PARALLEL_ROUNDING: usize = 12 << 10;

    /// Where the product goes.
    struct Target {
        c: *mut f32,
        ldc: usize,
        m: usize,
        n: usize,
    }

    // SAFETY: `multiply` makes it from a slice that nobody else has meanwhile, and each task writes its own columns.
    unsafe impl Sync for Target {}

    /// A weight's panels and the rows, rounded.
    struct Operands<'a> {
        /// `m` rows of `words` pairs, or of twice as many f32.
        a: &'a [f32],
        /// Panels of `words × WIDTH` words.
        b: &'a [f32],
        words: usize,
        /// Whether pairs are widened.
        is_wide: bool,
    }

    pub(super) fn multiply(c: &mut [f32], ldc: usize, m: usize, a: &[f32], weight: &PackedB, accumulate: bool) {
        let (k, n) = (weight.k, weight.n);
        assert!(Level::Avx512Bf16.is_available(), "this machine has no bf16 instructions");
        assert!(a.len() >= m * k, "gemm: A has {} floats, too few for {m} x {k}", a.len());
        assert!(ldc >= n, "gemm: rows of C are {ldc} apart, too near for {n} columns");
        let needed = (m - 1).checked_mul(ldc).and_then(|rows| rows.checked_add(n));
        assert!(
            needed.is_some_and(|needed| needed <= c.len()),
            "gemm: C has {} floats, too few for {m} x {n} with {ldc} between rows",
            c.len()
        );
        assert!(weight.plan.b_width == WIDTH, "gemm: panels of {} columns", weight.plan.b_width);
        let words = k.div_ceil(2);
        let is_wide = weight.plan.is_for_rows_only();
        let row = if is_wide { 2 * words } else { words };
        let target = Target { c: c.as_mut_ptr(), ldc, m, n };
        with_scratch(m * row, |rounded| {
            let round = |(to, from): (&mut [f32], &[f32])| {
                // SAFETY: the features were just found.
                unsafe { if is_wide { round_wide(to, from) } else { round(to, from) } };
            };
            let a = &a[..m * k];
            if m * k < PARALLEL_ROUNDING {
                rounded.chunks_exact_mut(row).zip(a.chunks_exact(k)).for_each(round);
            } else {
                let rows = rounded.par_chunks_exact_mut(row).zip(a.par_chunks_exact(k));
                rows.with_min_len(m.div_ceil(rayon::current_num_threads())).for_each(round);
            }
            let operands = Operands { a: rounded, b: &weight.panels, words, is_wide };
            let panels = n.div_ceil(WIDTH);
            // SAFETY: the features were just found; ranges of different tasks have no panel in common.
            let task = |first: usize, end: usize| unsafe { columns(&target, &operands, first, end, accumulate) };
            let threads = if m * n * words < PARALLEL_WORK { 1 } else { rayon::current_num_threads() };
            // Long stretches of memory for each thread, and a few of them, of about the same size.
            let tasks = if threads == 1 { 1 } else { panels.min(4 * threads) };
            if tasks == 1 {
                task(0, panels);
            } else {
                let bound = |i: usize| i * panels / tasks;
                (0..tasks).into_par_iter().with_max_len(1).for_each(|i| task(bound(i), bound(i + 1)));
            }
        });
    }

    /// A row as pairs of bf16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round(to: &mut [f32], from: &[f32]) {
        for (to, from) in to.chunks_mut(16).zip(from.chunks(32)) {
            let near = from.len().min(16);
            // SAFETY: the masks admit only what `from` and `to` have; both formats are 64 bytes of plain bits.
            unsafe {
                let low = _mm512_maskz_loadu_ps(first_lanes(near), from.as_ptr());
                let high = _mm512_maskz_loadu_ps(first_lanes(from.len() - near), from.as_ptr().wrapping_add(16));
                let both = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), both);
            }
        }
    }

    /// A row rounded to bf16, as f32; what `to` has beyond `from` becomes 0.
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn round_wide(to: &mut [f32], from: &[f32]) {
        let there = from.len();
        for (i, to) in to.chunks_mut(16).enumerate() {
            // SAFETY: the masks admit only what `from` and `to` have.
            unsafe {
                let mask = first_lanes(there.saturating_sub(16 * i).min(16));
                let x = _mm512_maskz_loadu_ps(mask, from.as_ptr().wrapping_add(16 * i));
                _mm512_mask_storeu_ps(to.as_mut_ptr(), first_lanes(to.len()), _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(x)));
            }
        }
    }

    /// Panels `first..end` of the product.
    ///
    /// # Safety
    /// The machine must have AVX-512 F and BF16, and nobody else may write these panels' columns of C meanwhile.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn columns(target: &Target, operands: &Operands, first: usize, end: usize, accumulate: bool) {
        let Operands { a, b, words, is_wide } = *operands;
        let Target { c, ldc, m, n } = *target;
        let per_word = if is_wide { 2 } else { 1 };
        assert!(a.len() >= m * words * per_word && b.len() >= end * words * WIDTH, "gemm: operands that are too short");
        // Groups of about the same number of rows.
        let groups = m.div_ceil(ROWS);
        let mut side = [0.0f32; super::FEW * WIDTH];
        for panel in first..end {
            let column = panel * WIDTH;
            let width = WIDTH.min(n - column);
            // A panel that is cut off on the right is computed whole, on the side.
            let is_whole = width == WIDTH;
            // SAFETY: the column is inside C, whose rows `multiply` has checked.
            let own = unsafe { c.add(column) };
            if !is_whole && accumulate {
                for i in 0..m {
                    // SAFETY: row `i` has `width` floats from the column on.
                    let row = unsafe { std::slice::from_raw_parts(own.add(i * ldc), width) };
                    side[i * WIDTH..][..width].copy_from_slice(row);
                }
            }
            let (to, stride) = if is_whole { (own, ldc) } else { (side.as_mut_ptr(), WIDTH) };
            for k0 in (0..words).step_by(BLOCK) {
                let len = BLOCK.min(words - k0);
                let block = &b[(panel * words + k0) * WIDTH..][..len * WIDTH];
                for group in 0..groups {
                    let (row, next) = (group * m / groups, (group + 1) * m / groups);
                    let part = Part {
                        // SAFETY: the row and its word exist, as checked above.
                        a: unsafe { a.as_ptr().add((row * words + k0) * per_word) },
                        a_stride: words * per_word,
                        b: block,
                        // SAFETY: the row exists, as `multiply` has checked, or is one of `FEW`.
                        c: unsafe { to.add(row * stride) },
                        ldc: stride,
                        accumulate: accumulate || k0 > 0,
                        // The groups share the asking for the next block.
                        low: group == 0,
                        high: group + 1 == groups.min(2),
                    };
                    // SAFETY: as promised to this function; rows of `a` have `len` words from `k0` on.
                    unsafe {
                        if is_wide { rows_of::<true>(next - row, &part) } else { rows_of::<false>(next - row, &part) }
                    };
                }
            }
            if !is_whole {
                for i in 0..m {
                    // SAFETY: row `i` has `width` floats from the column on, which are this task's.
                    let row = unsafe { std::slice::from_raw_parts_mut(own.add(i * ldc), width) };
                    row.copy_from_slice(&side[i * WIDTH..][..width]);
                }
            }
        }
    }

    /// Some rows, one block of one panel.
    struct Part<'a> {
        a: *const f32,
        a_stride: usize,
        b: &'a [f32],
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        /// Ask for the lower halves of the next block's lines, the upper ones.
        low: bool,
        high: bool,
    }

    /// # Safety
    /// The machine must have AVX-512 F and BF16; `count` rows of `a` have as many words (with `WIDE` twice as many f32) as
    /// the block, and of `c` a whole panel's width that nobody else touches meanwhile.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn rows_of<const WIDE: bool>(count: usize, part: &Part) {
        macro_rules! by_height {
            ($($height:literal)*) => {
                match count {
                    // SAFETY: as promised to this function.
                    $($height => unsafe { rows::<WIDE, $height>(part) },)*
                    count => unreachable!("{count} rows"),
                }
            };
        }
        by_height!(1 2 3 4 5 6 7 8 9 10 11 12);
    }

    /// # Safety
    /// As [`rows_of`], with `MR` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn rows<const WIDE: bool, const MR: usize>(part: &Part) {
        let Part { a, a_stride, b, c, ldc, accumulate, low, high } = *part;
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        if accumulate {
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as promised to this function.
                unsafe {
                    sums[0] = _mm512_loadu_ps(c.add(i * ldc));
                    sums[1] = _mm512_loadu_ps(c.add(i * ldc + 16));
                }
            }
        }
        let lines = b.as_chunks::<WIDTH>().0;
        for (word, line) in lines.iter().enumerate() {
            // Into the second nearest cache, which holds both blocks. Asking for memory that is not there does nothing.
            let ahead = line.as_ptr().wrapping_add(BLOCK * WIDTH);
            if low {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            }
            if high {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(16).cast());
            }
            // SAFETY: a line is two vectors.
            let line = unsafe { [_mm512_loadu_ps(line.as_ptr()), _mm512_loadu_ps(line.as_ptr().add(16))] };
            if WIDE {
                let bits = line.map(|x| _mm512_castps_si512(x));
                let earlier = bits.map(|x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)));
                let later = bits.map(|x| _mm512_castsi512_ps(_mm512_and_si512(x, upper)));
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: row `i` has both steps of the word.
                    let [first, second] = unsafe {
                        let pair = a.add(i * a_stride + 2 * word);
                        [_mm512_set1_ps(*pair), _mm512_set1_ps(*pair.add(1))]
                    };
                    for v in 0..2 {
                        sums[v] = _mm512_fmadd_ps(second, later[v], _mm512_fmadd_ps(first, earlier[v], sums[v]));
                    }
                }
                continue;
            }
            // SAFETY: both formats are 64 bytes of plain bits.
            let line = unsafe { std::mem::transmute::<[__m512; 2], [__m512bh; 2]>(line) };
            for (i, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row `i` has the word; both formats are 64 bytes of plain bits.
                let pair =
                    unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(*a.add(i * a_stride + word))) };
                sums[0] = _mm512_dpbf16_ps(sums[0], pair, line[0]);
                sums[1] = _mm512_dpbf16_ps(sums[1], pair, line[1]);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            // SAFETY: as promised to this function.
            unsafe {
                _mm512_storeu_ps(c.add(i * ldc), sums[0]);
                _mm512_storeu_ps(c.add(i * ldc + 16), sums[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::gemm_at;
    use crate::level::{Level, Precision};
    use crate::random::fill_normal;

    #[test]
    fn few_rows_have_the_bits_that_many_have() {
        // Whole panels and others, odd depths, several blocks of k; all rows together, alone, and in threes.
        for (n, k) in [(1, 1), (32, 31), (70, 64), (96, 600), (33, 257)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let rows = 70;
                let (mut a, mut weight) = (vec![0.0; rows * k], vec![0.0; n * k]);
                fill_normal(1, 1.0, &mut a);
                fill_normal(2, 1.0, &mut weight);
                let b = PackedB::new(MatRef::transposed(&weight, k), k, n, precision);
                let ldc = n + 3;
                let mut before = vec![0.0; rows * ldc];
                fill_normal(3, 1.0, &mut before);
                for accumulate in [false, true] {
                    let mut whole = before.clone();
                    gemm_packed(&mut whole, ldc, rows, MatRef::rows(&a, k), &b, accumulate);
                    for (first, m) in [(0, 70), (0, 64), (3, 1), (5, 3), (9, 12), (20, 13), (30, 32), (69, 1)] {
                        let mut part = before[first * ldc..][..m * ldc].to_vec();
                        gemm_rows(&mut part, ldc, m, &a[first * k..][..m * k], &b, accumulate);
                        let same = part.iter().zip(&whole[first * ldc..]).all(|(x, y)| x.to_bits() == y.to_bits());
                        assert!(same, "{precision} {m} rows from {first}, {n} x {k}, accumulate {accumulate}");
                    }
                }
            }
        }
    }

    /// Widened pairs: the bits of the level's own products, in half the memory, however many rows there are.
    #[test]
    fn weights_for_rows_have_the_bits_of_their_level() {
        for (n, k) in [(1, 1), (32, 31), (70, 64), (96, 600), (33, 1257)] {
            let rows = 150;
            let (mut a, mut weight) = (vec![0.0; rows * k], vec![0.0; n * k]);
            fill_normal(1, 1.0, &mut a);
            fill_normal(2, 1.0, &mut weight);
            for level in Level::available() {
                let (from, precision) = (MatRef::transposed(&weight, k), Precision::Bf16);
                let b = PackedB::for_rows_at(level, from, k, n, precision);
                let ldc = n + 3;
                let mut before = vec![0.0; rows * ldc];
                fill_normal(3, 1.0, &mut before);
                for accumulate in [false, true] {
                    let mut whole = before.clone();
                    gemm_at(level, &mut whole, ldc, rows, n, k, MatRef::rows(&a, k), from, accumulate, precision);
                    for (first, m) in [(0, 150), (0, 64), (3, 1), (5, 3), (9, 12), (20, 13), (30, 32), (80, 70)] {
                        let mut part = before[first * ldc..][..m * ldc].to_vec();
                        gemm_rows(&mut part, ldc, m, &a[first * k..][..m * k], &b, accumulate);
                        let same = part.iter().zip(&whole[first * ldc..]).all(|(x, y)| x.to_bits() == y.to_bits());
                        assert!(same, "{level} {m} rows from {first}, {n} x {k}, accumulate {accumulate}");
                    }
                }
                if b.plan.is_for_rows_only() {
                    let whole = PackedB::new_at(level, from, k, n, precision);
                    assert_eq!(b.bytes(), whole.bytes() / k * k.div_ceil(2));
                    let mut column = vec![0.0; k];
                    for j in 0..n {
                        b.column(j, &mut column);
                        let want = weight[j * k..][..k].iter().map(|w| bf16::from_f32(*w).to_f32());
                        assert!(column.iter().copied().eq(want), "column {j} of {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_do_not_show_in_few_rows() {
        let (m, n, k) = (7, 1000, 300);
        let (mut a, mut weight) = (vec![0.0; m * k], vec![0.0; n * k]);
        fill_normal(1, 1.0, &mut a);
        fill_normal(2, 1.0, &mut weight);
        let b = PackedB::new(MatRef::transposed(&weight, k), k, n, Precision::Bf16);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let mut c = vec![0.0; m * n];
            pool.install(|| gemm_rows(&mut c, n, m, &a, &b, false));
            c
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    #[should_panic(expected = "gemm: C has 63 floats, too few for 2 x 32 with 32 between rows")]
    fn a_short_result_is_refused() {
        let b = PackedB::new(MatRef::transposed(&[0.0; 64], 2), 2, 32, Precision::Bf16);
        gemm_rows(&mut [0.0; 63], 32, 2, &[0.0; 4], &b, false);
    }

    #[test]
    fn columns_come_back_as_they_were_packed() {
        for (k, n) in [(1, 1), (7, 33), (64, 100)] {
            let mut weight = vec![0.0; k * n];
            fill_normal(1, 1.0, &mut weight);
            for level in Level::available() {
                for precision in [Precision::F32, Precision::Bf16] {
                    let packed = PackedB::new_at(level, MatRef::transposed(&weight, k), k, n, precision);
                    let mut column = vec![0.0; k];
                    for j in 0..n {
                        packed.column(j, &mut column);
                        for (got, want) in column.iter().zip(&weight[j * k..]) {
                            let want =
                                if precision == Precision::Bf16 { bf16::from_f32(*want).to_f32() } else { *want };
                            assert_eq!(*got, want, "{level} {precision} column {j} of {k} x {n}");
                        }
                    }
                }
            }
        }
    }
}
