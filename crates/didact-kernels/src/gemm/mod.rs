//! Matrix multiplication, `C = A·B` or `C += A·B`, in f32 or with operands rounded to bf16 and f32 sums.
//!
//! Both operands are copied ("packed") into panels in the order in which the innermost loop reads them, converted on the
//! way; tiles of C are then computed in registers by a micro-kernel (`tile.rs`), in parallel. Weights that are used many
//! times are packed once, as [`PackedB`].
//!
//! # One element, one chain
//! Every element of C is one chain of multiply-adds over k in ascending order, started at 0 or at the C that is added
//! to. Blocks of k hand the chain on through C. So an element's bits depend on its row of A, its column of B, the
//! precision and the level, and on nothing else: not on `m`, `n`, where the element lies, blocking or threads.
//!
//! In bf16 at level `Avx512Bf16` the chain takes two steps of k at a time as the instruction does, and subnormal operands
//! count as 0, as the instruction has it. The other levels round the operands to bf16 and multiply them in f32. Weights that
//! few rows at a time are multiplied with ([`PackedB::for_rows`]) are kept as pairs at level `Avx512` too, if the machine can
//! round to bf16, and widened in registers.

mod decode;
mod drive;
mod pack;
mod parts;
mod tile;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub use parts::PackedMemory;

use crate::level::{Level, Precision, level};
pub use decode::gemm_rows;
pub(crate) use drive::with_scratch;
use drive::{Output, multiply, multiply_packing};
pub(crate) use pack::round_to_bf16;
use pack::{Panels, Plan, Words, pack_panels, pieces};

/// A matrix somewhere in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    /// What holds the elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix with `columns` columns.
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        Self { data, row_stride: columns, col_stride: 1 }
    }

    /// The transpose of a row-major matrix with `columns` columns: a weight `[out, in]` seen as `[in, out]`.
    pub fn transposed(data: &'a [f32], columns: usize) -> Self {
        Self { data, row_stride: 1, col_stride: columns }
    }

    /// Whether all elements of a `rows × columns` matrix lie inside the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        if rows == 0 || columns == 0 {
            return true;
        }
        let last = (rows - 1)
            .checked_mul(self.row_stride)
            .and_then(|r| (columns - 1).checked_mul(self.col_stride).and_then(|c| r.checked_add(c)));
        last.is_some_and(|last| last < self.data.len())
    }
}

/// `C = A·B`, or `C += A·B` with `accumulate`.
///
/// # Shapes
/// - `c`: `m × n`, row-major with `ldc` between rows; what lies between the rows is left alone
/// - `a`: `m × k`; `b`: `k × n`, any strides
///
/// With `k = 0` the product is zero.
///
/// # Panics
/// If a slice is too short for its shape, or `ldc < n`.
pub fn gemm(
    c: &mut [f32],
    ldc: usize,
    m: usize,
    n: usize,
    k: usize,
    a: MatRef,
    b: MatRef,
    accumulate: bool,
    precision: Precision,
) {
    gemm_at(level(), c, ldc, m, n, k, a, b, accumulate, precision);
}

/// Most floats of either operand that are packed at a time; larger ones go in pieces.
const PIECE: usize = 2 << 20;

/// Most of k that is packed at a time.
const K_PIECE: usize = 4096;

pub(crate) fn gemm_at(
    level: Level,
    c: &mut [f32],
    ldc: usize,
    m: usize,
    n: usize,
    k: usize,
    a: MatRef,
    b: MatRef,
    accumulate: bool,
    precision: Precision,
) {
    assert!(a.holds(m, k), "gemm: A has {} floats, too few for {m} x {k} with its strides", a.data.len());
    assert!(b.holds(k, n), "gemm: B has {} floats, too few for {k} x {n} with its strides", b.data.len());
    let mut c = Output::new(c, ldc, m, n);
    if c.is_done(k, accumulate) {
        return;
    }
    let plan = Plan::of(level, precision);
    for k0 in (0..k).step_by(K_PIECE) {
        let k_len = K_PIECE.min(k - k0);
        let words = plan.words(k_len);
        let a_step = pieces(PIECE, words, plan.a_width);
        let b_step = pieces(PIECE, words, plan.b_width);
        for n0 in (0..n).step_by(b_step) {
            let n_len = b_step.min(n - n0);
            let b_words = n_len.div_ceil(plan.b_width) * plan.b_width * words;
            with_scratch(b_words, |b_panels| {
                let source = Words { data: b.data, lane_stride: b.col_stride, k_stride: b.row_stride };
                pack_panels(&plan, b_panels, plan.b_width, source.at(n0, k0), n_len, k_len);
                let source = Words { data: a.data, lane_stride: a.row_stride, k_stride: a.col_stride };
                let accumulate = accumulate || k0 > 0;
                let part = c.part(0, n0, m, n_len);
                if multiply_packing(&plan, &part, k_len, source.at(0, k0), b_panels, accumulate) {
                    return;
                }
                for m0 in (0..m).step_by(a_step) {
                    let m_len = a_step.min(m - m0);
                    let a_words = m_len.div_ceil(plan.a_width) * plan.a_width * words;
                    with_scratch(a_words, |a_panels| {
                        pack_panels(&plan, a_panels, plan.a_width, source.at(m0, k0), m_len, k_len);
                        let part = c.part(m0, n0, m_len, n_len);
                        multiply(&plan, part, words, a_panels, b_panels, accumulate);
                    });
                }
            });
        }
    }
}

/// A `k × n` right-hand matrix packed once for many products: a weight.
#[derive(Debug, Clone)]
pub struct PackedB {
    plan: Plan,
    k: usize,
    n: usize,
    panels: Panels,
}

impl PackedB {
    /// Packs `b`, a `k × n` matrix, for the level in force.
    ///
    /// # Panics
    /// If `b` is too short for its shape.
    pub fn new(b: MatRef, k: usize, n: usize, precision: Precision) -> Self {
        Self::new_at(level(), b, k, n, precision)
    }

    pub(crate) fn new_at(level: Level, b: MatRef, k: usize, n: usize, precision: Precision) -> Self {
        Self::planned(Plan::of(level, precision), b, k, n)
    }

    /// Packs `b` for [`gemm_rows`] alone: in bf16 in half the memory of f32 wherever the machine can round to it.
    ///
    /// # Panics
    /// If `b` is too short for its shape.
    pub fn for_rows(b: MatRef, k: usize, n: usize, precision: Precision) -> Self {
        Self::for_rows_at(level(), b, k, n, precision)
    }

    fn for_rows_at(level: Level, b: MatRef, k: usize, n: usize, precision: Precision) -> Self {
        Self::planned(Plan::for_rows(level, precision), b, k, n)
    }

    fn planned(plan: Plan, b: MatRef, k: usize, n: usize) -> Self {
        assert!(b.holds(k, n), "gemm: B has {} floats, too few for {k} x {n} with its strides", b.data.len());
        let panels = Panels::zeroed(n.div_ceil(plan.b_width) * plan.b_width * plan.words(k));
        let mut packed = Self { plan, k, n, panels };
        packed.repack(b);
        packed
    }

    /// Packs other values of the same shape in the same memory: a weight after its update.
    ///
    /// # Panics
    /// If `b` is too short for the shape.
    pub fn repack(&mut self, b: MatRef) {
        let Self { plan, k, n, .. } = *self;
        assert!(b.holds(k, n), "gemm: B has {} floats, too few for {k} x {n} with its strides", b.data.len());
        let source = Words { data: b.data, lane_stride: b.col_stride, k_stride: b.row_stride };
        pack_panels(&plan, &mut self.panels, plan.b_width, source, n, k);
    }

    /// Rows, the inner dimension of products.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Memory taken.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    /// Level and precision that it was packed for.
    pub(crate) fn made_for(&self) -> (Level, Precision) {
        let precision = if self.plan.format == pack::Format::F32 { Precision::F32 } else { Precision::Bf16 };
        (self.plan.level, precision)
    }
}

/// [`gemm`] with a packed right-hand side: the same bits, without packing it again.
///
/// # Shapes
/// - `c`: `m × b.n()`, row-major with `ldc` between rows
/// - `a`: `m × b.k()`
///
/// # Panics
/// If a slice is too short for its shape, or `ldc < b.n()`.
pub fn gemm_packed(c: &mut [f32], ldc: usize, m: usize, a: MatRef, b: &PackedB, accumulate: bool) {
    let (k, n, plan) = (b.k, b.n, &b.plan);
    assert!(!plan.is_for_rows_only(), "gemm_packed: the weight is packed for gemm_rows");
    assert!(a.holds(m, k), "gemm_packed: A has {} floats, too few for {m} x {k} with its strides", a.data.len());
    let mut c = Output::new(c, ldc, m, n);
    if c.is_done(k, accumulate) {
        return;
    }
    let words = plan.words(k);
    let source = Words { data: a.data, lane_stride: a.row_stride, k_stride: a.col_stride };
    if multiply_packing(plan, &c, k, source, &b.panels, accumulate) {
        return;
    }
    let step = pieces(2 * PIECE, words, plan.a_width);
    for m0 in (0..m).step_by(step) {
        let m_len = step.min(m - m0);
        with_scratch(m_len.div_ceil(plan.a_width) * plan.a_width * words, |a_panels| {
            pack_panels(plan, a_panels, plan.a_width, source.at(m0, 0), m_len, k);
            multiply(plan, c.part(m0, 0, m_len, n), words, a_panels, &b.panels, accumulate);
        });
    }
}

/// An `m × k` left-hand matrix packed once for several products.
#[derive(Debug, Clone)]
pub struct PackedA {
    plan: Plan,
    m: usize,
    k: usize,
    panels: Panels,
}

impl PackedA {
    /// Packs `a`, an `m × k` matrix, for the level in force.
    ///
    /// # Panics
    /// If `a` is too short for its shape.
    pub fn new(a: MatRef, m: usize, k: usize, precision: Precision) -> Self {
        Self::new_at(level(), a, m, k, precision)
    }

    pub(crate) fn new_at(level: Level, a: MatRef, m: usize, k: usize, precision: Precision) -> Self {
        assert!(a.holds(m, k), "gemm: A has {} floats, too few for {m} x {k} with its strides", a.data.len());
        let plan = Plan::of(level, precision);
        let mut panels = Panels::zeroed(m.div_ceil(plan.a_width) * plan.a_width * plan.words(k));
        let source = Words { data: a.data, lane_stride: a.row_stride, k_stride: a.col_stride };
        pack_panels(&plan, &mut panels, plan.a_width, source, m, k);
        Self { plan, m, k, panels }
    }

    /// Rows.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns, the inner dimension of products.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// [`gemm`] with both operands packed: the same bits, nothing packed again.
///
/// # Shapes
/// - `c`: `a.m() × b.n()`, row-major with `ldc` between rows
///
/// # Panics
/// If `a.k() != b.k()`, the precisions or levels differ, `c` is too short, or `ldc < b.n()`.
pub fn gemm_both_packed(c: &mut [f32], ldc: usize, a: &PackedA, b: &PackedB, accumulate: bool) {
    assert_eq!(a.k, b.k, "gemm_both_packed: A has {} columns, B has {} rows", a.k, b.k);
    assert_eq!(a.plan, b.plan, "gemm_both_packed: A and B are packed for different precisions or levels");
    let mut c = Output::new(c, ldc, a.m, b.n);
    if c.is_done(a.k, accumulate) {
        return;
    }
    multiply(&a.plan, c, a.plan.words(a.k), &a.panels, &b.panels, accumulate);
}

/// A left-hand matrix that comes a few columns at a time, in memory lent by the caller.
pub(crate) struct GrowingA<'a> {
    plan: Plan,
    m: usize,
    k: usize,
    panels: &'a mut [f32],
}

impl<'a> GrowingA<'a> {
    /// Floats that an `m × k` matrix takes.
    pub(crate) fn floats(level: Level, precision: Precision, m: usize, k: usize) -> usize {
        let plan = Plan::of(level, precision);
        m.next_multiple_of(plan.a_width) * plan.words(k)
    }

    /// An `m × k` matrix in the first floats of `panels`.
    pub(crate) fn new(level: Level, precision: Precision, panels: &'a mut [f32], m: usize, k: usize) -> Self {
        let panels = &mut panels[..Self::floats(level, precision, m, k)];
        Self { plan: Plan::of(level, precision), m, k, panels }
    }

    /// Sets columns `at..at + columns`, `at` being even.
    pub(crate) fn put(&mut self, at: usize, a: MatRef, columns: usize) {
        use rayon::prelude::*;
        assert!(at.is_multiple_of(2) && at + columns <= self.k && a.holds(self.m, columns), "gemm: columns do not fit");
        let (plan, m) = (self.plan, self.m);
        let width = plan.a_width;
        let source = Words { data: a.data, lane_stride: a.row_stride, k_stride: a.col_stride };
        if self.panels.is_empty() || columns == 0 {
            return;
        }
        let panel_len = width * plan.words(self.k);
        if source.lane_stride == 1 {
            pack::pack_lines(&plan, self.panels, panel_len, plan.words(at), width, source, m, columns, true);
            return;
        }
        self.panels.par_chunks_exact_mut(panel_len).enumerate().for_each(|(i, panel)| {
            let panel = &mut panel[plan.words(at) * width..][..plan.words(columns) * width];
            pack::pack_panel(&plan, panel, width, source.at(i * width, 0), width.min(m - i * width), columns);
        });
    }

    /// `C = A·B` or `C += A·B`.
    pub(crate) fn multiply(&self, c: &mut [f32], ldc: usize, b: &PackedB, accumulate: bool) {
        assert!(self.k == b.k && self.plan == b.plan, "gemm: A has {} columns, B has {} rows", self.k, b.k);
        let mut c = Output::new(c, ldc, self.m, b.n);
        if !c.is_done(self.k, accumulate) {
            multiply(&self.plan, c, self.plan.words(self.k), self.panels, &b.panels, accumulate);
        }
    }
}

/// `count` products of the same shape: `C_i = A_i·B_i` or `C_i += A_i·B_i`.
///
/// Matrix `i` begins `i` times the stride of its operand after the first; a stride of 0 uses one matrix for all. Small
/// products are computed side by side, each by one thread; the bits are those of [`gemm`].
///
/// # Shapes
/// - `c`: `m × n`, row-major with `ldc` between rows, `c_stride` apart
/// - `a`: `m × k`; `b`: `k × n`, any strides
///
/// # Panics
/// If a slice is too short for its shape, `ldc < n`, or two results would overlap.
pub fn gemm_batched(
    c: &mut [f32],
    c_stride: usize,
    ldc: usize,
    count: usize,
    [m, n, k]: [usize; 3],
    (a, a_stride): (MatRef, usize),
    (b, b_stride): (MatRef, usize),
    accumulate: bool,
    precision: Precision,
) {
    use rayon::prelude::*;
    let Some(last) = count.checked_sub(1) else { return };
    let floats = if m == 0 || n == 0 { 0 } else { (m - 1) * ldc + n };
    assert!(c_stride >= floats || last == 0, "gemm_batched: results of {floats} floats are {c_stride} apart");
    assert!(c.len() >= last * c_stride + floats, "gemm_batched: C has {} floats, too few for {count}", c.len());
    let product = |(i, c): (usize, &mut [f32])| {
        let a = MatRef { data: &a.data[(i * a_stride).min(a.data.len())..], ..a };
        let b = MatRef { data: &b.data[(i * b_stride).min(b.data.len())..], ..b };
        gemm(c, ldc, m, n, k, a, b, accumulate, precision);
    };
    if c_stride == 0 {
        product((0, c));
    } else if m * n * k < BATCHED_WORK {
        c.par_chunks_mut(c_stride).take(count).enumerate().for_each(product);
    } else {
        c.chunks_mut(c_stride).take(count).enumerate().for_each(product);
    }
}

/// Whether weights that [`PackedB::for_rows`] packs in bf16 take half the memory of f32 at the level in force.
pub fn halves_weights() -> bool {
    Plan::for_rows(level(), Precision::Bf16).format == pack::Format::Bf16Pair
}

/// Multiply-adds from which a product of a batch gets all threads for itself.
const BATCHED_WORK: usize = 8 << 20;

/// What the micro-kernel's instructions reach with everything in registers and the nearest cache, on all threads of the
/// current pool, in floating-point operations per second: the ceiling that products are measured against.
///
/// Measures for about `seconds`.
pub fn register_rate(precision: Precision, seconds: f64) -> f64 {
    use rayon::prelude::*;
    let plan = Plan::of(level(), precision);
    // One tile over a block short enough for the nearest cache.
    let words = 64;
    let steps = if plan.format == pack::Format::Bf16Pair { 2 * words } else { words };
    let flops = 2 * plan.a_width * plan.b_width * steps;
    let start = std::time::Instant::now();
    let rates: Vec<f64> = (0..rayon::current_num_threads())
        .into_par_iter()
        .with_max_len(1)
        .map(|_| {
            let (mut a, mut b) = (Panels::zeroed(plan.a_width * words), Panels::zeroed(plan.b_width * words));
            a.fill(1e-3);
            b.fill(1e-3);
            let mut c = Panels::zeroed(plan.a_width * plan.b_width);
            let mut best = 0.0f64;
            while start.elapsed().as_secs_f64() < seconds {
                let begin = std::time::Instant::now();
                let rounds = 2000;
                for _ in 0..rounds {
                    tile::compute_whole(&plan, &a, &b, &mut c);
                }
                best = best.max((rounds * flops) as f64 / begin.elapsed().as_secs_f64());
            }
            best
        })
        .collect();
    rates.iter().sum()
}
