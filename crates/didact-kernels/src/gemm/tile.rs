//! The micro-kernels: one tile of C, held in registers, over one block of k.

use super::pack::{Format, Plan};
use crate::level::Level;
use crate::simd::{Kernel, LANES, Lanes, Simd, dispatch};

/// The tiles of one block of C that share their panels: `rows` of them down, panel by panel.
///
/// `a` points at panels of `plan.a_width` rows of A, `b` at one panel of `plan.b_width` columns of B.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// `words × a_width`.
    pub(super) a: &'a [f32],
    /// `words × b_width`.
    pub(super) b: &'a [f32],
    /// The tile's first element.
    pub(super) c: *mut f32,
    /// Floats between its rows.
    pub(super) ldc: usize,
    /// Rows that exist, at most `a_width`.
    pub(super) rows: usize,
    /// Columns that exist, at most `b_width`.
    pub(super) columns: usize,
    /// Whether to go on from what C holds.
    pub(super) accumulate: bool,
    /// The first element of the tile that comes next: its lines are asked for while this one is computed.
    pub(super) next: *const f32,
}

impl Tile<'_> {
    /// Vector `v` of row `i`. No arithmetic is checked here: it is inside C where row and vector exist.
    #[inline(always)]
    fn vector(&self, i: usize, v: usize) -> *mut Lanes {
        self.c.wrapping_add(i.wrapping_mul(self.ldc).wrapping_add(v * LANES)).cast()
    }

    /// Calls `fetch` with the lines of `rows` rows of `vectors` vectors of the next tile.
    #[inline(always)]
    fn fetch_next(&self, rows: usize, vectors: usize, fetch: impl Fn(*const f32)) {
        for i in 0..rows {
            let row = self.next.wrapping_add(i.wrapping_mul(self.ldc));
            for v in 0..vectors {
                fetch(row.wrapping_add(v * LANES));
            }
            // Rows need not begin at a line.
            fetch(row.wrapping_add(vectors * LANES - 1));
        }
    }
}

/// Widest tile.
const WIDEST: usize = 32;
/// Highest tile.
const HIGHEST: usize = 12;

/// Computes the tile.
///
/// # Safety
/// `c` must be valid for reads and writes of `rows` rows of `columns` floats, `ldc` apart, which nobody else touches
/// meanwhile.
#[inline]
pub(super) unsafe fn compute(plan: &Plan, tile: Tile) {
    if tile.columns == plan.b_width {
        // SAFETY: as promised to this function; the tile is whole in its width.
        unsafe { compute_wide(plan, tile) };
        return;
    }
    // A tile that is cut off on the right is computed whole, on the side.
    let mut whole = [0.0f32; HIGHEST * WIDEST];
    let width = plan.b_width;
    if tile.accumulate {
        for i in 0..tile.rows {
            for j in 0..tile.columns {
                // SAFETY: row and column exist.
                whole[i * width + j] = unsafe { *tile.c.add(i * tile.ldc + j) };
            }
        }
    }
    // SAFETY: `whole` has room for `HIGHEST` rows of the widest tile and is ours.
    unsafe { compute_wide(plan, Tile { c: whole.as_mut_ptr(), ldc: width, ..tile }) };
    for i in 0..tile.rows {
        for j in 0..tile.columns {
            // SAFETY: row and column exist.
            unsafe { *tile.c.add(i * tile.ldc + j) = whole[i * width + j] };
        }
    }
}

/// Adds to a whole tile that is stored on its own, `a_width × b_width`.
pub(super) fn compute_whole(plan: &Plan, a: &[f32], b: &[f32], c: &mut [f32]) {
    let (rows, columns) = (plan.a_width, plan.b_width);
    assert!(c.len() >= rows * columns, "a whole tile has {} floats", rows * columns);
    let c = c.as_mut_ptr();
    // SAFETY: `c` is ours and has `rows` rows of `columns` floats.
    unsafe { compute(plan, Tile { a, b, c, ldc: columns, rows, columns, accumulate: true, next: c }) };
}

/// Computes a tile whose columns all exist.
///
/// # Safety
/// As [`compute`], with `plan.b_width` columns.
#[inline]
unsafe fn compute_wide(plan: &Plan, tile: Tile) {
    debug_assert!(tile.rows <= plan.a_width);
    match (plan.level, plan.format) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Format::Bf16Pair) => {
            // SAFETY: `Plan::of` gives this format only where packing has found the instructions; as promised.
            unsafe { bf16::compute(tile) }
        }
        (Level::Portable, _) => dispatch(plan.level, F32Tile::<4, 1>(tile)),
        (Level::Avx2, _) => dispatch(plan.level, F32Tile::<6, 1>(tile)),
        (Level::Avx512 | Level::Avx512Bf16, _) => dispatch(plan.level, F32Tile::<12, 2>(tile)),
    }
}

/// An f32 tile over panels of `AW` rows and `NV` vectors of columns.
struct F32Tile<'a, const AW: usize, const NV: usize>(Tile<'a>);

impl<const AW: usize, const NV: usize> Kernel for F32Tile<'_, AW, NV> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        macro_rules! by_height {
            ($($height:literal)*) => {
                match self.0.rows {
                    $($height if $height <= AW => f32_rows::<S, AW, NV, $height>(simd, self.0),)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_height!(12 6 4 1 2 3 5 7 8 9 10 11);
    }
}

/// The first `MR` rows of an f32 tile.
#[inline(always)]
fn f32_rows<S: Simd, const AW: usize, const NV: usize, const MR: usize>(simd: S, tile: Tile) {
    let mut sums = [[simd.splat(0.0); NV]; MR];
    if tile.accumulate {
        for i in 0..MR {
            for v in 0..NV {
                // SAFETY: `compute` is promised `rows` rows of `NV` vectors.
                sums[i][v] = simd.load(unsafe { &*tile.vector(i, v) });
            }
        }
    }
    tile.fetch_next(MR, NV, |x| simd.fetch(x));
    let b = tile.b.as_chunks::<LANES>().0.as_chunks::<NV>().0;
    for (a, b) in tile.a.as_chunks::<AW>().0.iter().zip(b) {
        let b: [S::V; NV] = std::array::from_fn(|v| simd.load(&b[v]));
        for i in 0..MR {
            let a = simd.splat(a[i]);
            for v in 0..NV {
                sums[i][v] = simd.mul_add(a, b[v], sums[i][v]);
            }
        }
    }
    for i in 0..MR {
        for v in 0..NV {
            // SAFETY: `compute` is promised `rows` rows of `NV` vectors.
            simd.store(unsafe { &mut *tile.vector(i, v) }, sums[i][v]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod bf16 {
    //! The micro-kernel of bf16 pairs.

    use super::{LANES, Lanes, Tile};
    use crate::simd::x86::fetch;
    use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_set1_ps, _mm512_setzero_ps};

    /// Computes a tile of at most 12 rows and exactly 32 columns.
    ///
    /// # Safety
    /// The machine must have AVX-512 F and BF16; `tile.c` as for [`super::compute`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn compute(tile: Tile) {
        macro_rules! by_height {
            ($($height:literal)*) => {
                match tile.rows {
                    // SAFETY: as promised to this function.
                    $($height => unsafe { rows::<$height>(tile) },)*
                    rows => unreachable!("a tile of {rows} rows"),
                }
            };
        }
        by_height!(12 1 2 3 4 5 6 7 8 9 10 11);
    }

    /// The first `MR` rows of a tile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn rows<const MR: usize>(tile: Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; MR];
        if tile.accumulate {
            for i in 0..MR {
                for v in 0..2 {
                    // SAFETY: `tile.c` has at least `MR` rows of 32 floats, which are plain bits as vectors are.
                    sums[i][v] = unsafe { std::mem::transmute::<Lanes, __m512>(*tile.vector(i, v)) };
                }
            }
        }
        tile.fetch_next(MR, 2, fetch);
        let b = tile.b.as_chunks::<LANES>().0.as_chunks::<2>().0;
        for (a, b) in tile.a.as_chunks::<12>().0.iter().zip(b) {
            // SAFETY: both are two vectors of 64 bytes of plain bits.
            let b = unsafe { std::mem::transmute::<[Lanes; 2], [__m512bh; 2]>(*b) };
            for i in 0..MR {
                // SAFETY: both formats are 64 bytes of plain bits.
                let a = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(a[i])) };
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], a, b[0]);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], a, b[1]);
            }
        }
        for i in 0..MR {
            for v in 0..2 {
                // SAFETY: `tile.c` has at least `MR` rows of 32 floats, which are plain bits as vectors are.
                unsafe { *tile.vector(i, v) = std::mem::transmute::<__m512, Lanes>(sums[i][v]) };
            }
        }
    }
}
