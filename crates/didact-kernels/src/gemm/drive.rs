//! From packed operands to C: blocks for the caches, and threads.

use super::pack::{Panels, Plan, Words, pack_panels_here};
use super::tile::{Tile, compute};
use rayon::prelude::*;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// The `m × n` part of a slice that is written to.
pub(super) struct Output<'a> {
    c: *mut f32,
    ldc: usize,
    m: usize,
    n: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: an `Output` is the only way to its floats, as the `&mut` it was made from was, and floats may move between
// threads.
unsafe impl Send for Output<'_> {}
// SAFETY: `rectangle` alone writes through a shared `Output`, each task to tiles of its own.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// The first `n` columns of `m` rows, `ldc` apart.
    pub(super) fn new(c: &'a mut [f32], ldc: usize, m: usize, n: usize) -> Self {
        assert!(ldc >= n, "gemm: rows of C are {ldc} apart, too near for {n} columns");
        let needed = if m == 0 || n == 0 { Some(0) } else { (m - 1).checked_mul(ldc).and_then(|r| r.checked_add(n)) };
        assert!(
            needed.is_some_and(|needed| needed <= c.len()),
            "gemm: C has {} floats, too few for {m} x {n} with {ldc} between rows",
            c.len()
        );
        Self { c: c.as_mut_ptr(), ldc, m, n, life: PhantomData }
    }

    /// Finishes products that need no multiplying.
    pub(super) fn is_done(&mut self, k: usize, accumulate: bool) -> bool {
        if self.m == 0 || self.n == 0 {
            return true;
        }
        if k == 0 && !accumulate {
            for i in 0..self.m {
                // SAFETY: `new` checked that row `i` has `n` floats in the slice, which `&mut self` is the only way to.
                unsafe { std::slice::from_raw_parts_mut(self.c.add(i * self.ldc), self.n) }.fill(0.0);
            }
        }
        k == 0
    }

    /// A part of it, for as long as the whole is borrowed.
    pub(super) fn part(&mut self, row: usize, column: usize, m: usize, n: usize) -> Output<'_> {
        assert!(row + m <= self.m && column + n <= self.n, "gemm: a part outside its matrix");
        // SAFETY: the assertion keeps the part's first element inside the matrix, or the part is empty at its end.
        let c = unsafe { self.c.add(row * self.ldc + column) };
        Output { c, ldc: self.ldc, m, n, life: PhantomData }
    }

    /// Where an element would be, to be asked for but not used.
    fn near(&self, row: usize, column: usize) -> *const f32 {
        self.c.wrapping_add(row.wrapping_mul(self.ldc).wrapping_add(column))
    }

    /// Where an element is.
    fn at(&self, row: usize, column: usize) -> *mut f32 {
        assert!(row < self.m && column < self.n, "gemm: element ({row}, {column}) of {} x {}", self.m, self.n);
        // SAFETY: the element is inside the matrix, which `new` checked to be inside its slice.
        unsafe { self.c.add(row * self.ldc + column) }
    }
}

/// Words of k in a block: an A panel of a block and a B panel of a block stay in the nearest caches.
const K_BLOCK: usize = 320;
/// Rows of C in a task, about.
const ROWS: usize = 120;
/// Columns of C in a task, about.
const COLUMNS: usize = 256;
/// Fewest multiply-adds that are worth a second thread.
const PARALLEL_WORK: usize = 128 << 10;

/// Floats of A that a task packs for itself at a time: they stay in the second cache.
const OWN_ROWS: usize = 128 << 10;
/// Fewest panels of A to a thread with which threads share the rows out among them.
const FEWEST_PANELS: usize = 4;

/// `C = A·B` or `C += A·B` from panels that hold all of `words`.
pub(super) fn multiply(plan: &Plan, c: Output, words: usize, a: &[f32], b: &[f32], accumulate: bool) {
    let a_panels = c.m.div_ceil(plan.a_width);
    let b_panels = c.n.div_ceil(plan.b_width);
    assert!(a.len() == a_panels * words * plan.a_width, "gemm: panels of {} words for {} x {words}", a.len(), c.m);
    let threads = threads(&c, words);
    // Tasks are rectangles of whole tiles. With few rows they are narrower, so that every thread gets several.
    let down = ROWS.div_ceil(plan.a_width).min(a_panels);
    let tasks_down = a_panels.div_ceil(down);
    let wanted_across = (4 * threads).div_ceil(tasks_down);
    let across = if threads == 1 { b_panels } else { (COLUMNS / plan.b_width).min(b_panels.div_ceil(wanted_across)) };
    let across = across.clamp(1, b_panels);
    let tasks_across = b_panels.div_ceil(across);
    run_tasks(threads, tasks_down * tasks_across, |task| {
        let a_first = task % tasks_down * down;
        let b_first = task / tasks_down * across;
        let a_range = a_first..a_panels.min(a_first + down);
        let a = &a[a_range.start * words * plan.a_width..a_range.end * words * plan.a_width];
        rectangle(plan, &c, words, 0..words, a, a_range, b, b_first..b_panels.min(b_first + across), accumulate);
    });
}

/// [`multiply`] where A is still to be packed: each task packs its own rows, as much of k at a time as stays near, if
/// there are rows enough for all threads. Returns whether it was done.
pub(super) fn multiply_packing(plan: &Plan, c: &Output, k: usize, a: Words, b: &[f32], accumulate: bool) -> bool {
    let words = plan.words(k);
    let a_panels = c.m.div_ceil(plan.a_width);
    let b_panels = c.n.div_ceil(plan.b_width);
    let threads = threads(c, words);
    if threads > 1 && a_panels < FEWEST_PANELS * threads {
        return false;
    }
    // As many tasks as give each thread the same number of about `ROWS` rows, shares that differ by one panel at most.
    let most = ROWS.div_ceil(plan.a_width);
    let tasks = (threads * a_panels.div_ceil(threads * most)).min(a_panels);
    let down = a_panels.div_ceil(tasks);
    // All of k at a time if it fits, else even parts of it.
    let fitting = (OWN_ROWS / (down * plan.a_width)).max(1);
    let part = words.div_ceil(words.div_ceil(fitting));
    let across = COLUMNS / plan.b_width;
    run_tasks(threads, tasks, |task| {
        let range = task * a_panels / tasks..(task + 1) * a_panels / tasks;
        let row = range.start * plan.a_width;
        let rows = (c.m - row).min(range.len() * plan.a_width);
        for w0 in (0..words).step_by(part) {
            let w1 = words.min(w0 + part);
            let (k0, k1) = (plan.step(w0), plan.step(w1).min(k));
            with_scratch(range.len() * plan.a_width * (w1 - w0), |panels| {
                pack_panels_here(plan, panels, plan.a_width, a.at(row, k0), rows, k1 - k0);
                for b_first in (0..b_panels).step_by(across) {
                    let columns = b_first..b_panels.min(b_first + across);
                    rectangle(plan, c, words, w0..w1, panels, range.clone(), b, columns, accumulate || w0 > 0);
                }
            });
        }
    });
    true
}

/// Threads that a product is worth.
fn threads(c: &Output, words: usize) -> usize {
    if c.m * c.n * words < PARALLEL_WORK { 1 } else { rayon::current_num_threads() }
}

fn run_tasks(threads: usize, tasks: usize, task: impl Fn(usize) + Sync + Send) {
    if threads == 1 || tasks == 1 {
        (0..tasks).for_each(task);
    } else {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    }
}

/// The tiles of a rectangle of C that is this task's alone, over words `part` of `words`. `a` holds those words of the
/// panels of `a_range`, `b` all words of all panels of B.
fn rectangle(
    plan: &Plan,
    c: &Output,
    words: usize,
    part: Range<usize>,
    a: &[f32],
    a_range: Range<usize>,
    b: &[f32],
    b_range: Range<usize>,
    accumulate: bool,
) {
    let (a_panel, b_panel) = (part.len() * plan.a_width, words * plan.b_width);
    assert!(
        a.len() == a_range.len() * a_panel && b.len() >= b_range.end * b_panel && part.end <= words && !part.is_empty(),
        "gemm: panels of {} and {} words for words {part:?} of {} x {} x {words}",
        a.len(),
        b.len(),
        c.m,
        c.n
    );
    // With one panel of rows nothing is read twice, and C need not be touched between blocks of k.
    let block = if c.m <= plan.a_width { part.len() } else { part.len().div_ceil(part.len().div_ceil(K_BLOCK)) };
    let first_row = a_range.start * plan.a_width;
    for k0 in part.clone().step_by(block) {
        let k1 = part.end.min(k0 + block);
        for q in b_range.clone() {
            let b = &b[q * b_panel..][k0 * plan.b_width..k1 * plan.b_width];
            for p in a_range.clone() {
                let (row, column) = (p * plan.a_width, q * plan.b_width);
                let next =
                    if p + 1 < a_range.end { (row + plan.a_width, column) } else { (first_row, column + plan.b_width) };
                let own = (k0 - part.start) * plan.a_width..(k1 - part.start) * plan.a_width;
                let tile = Tile {
                    a: &a[(p - a_range.start) * a_panel..][own],
                    b,
                    c: c.at(row, column),
                    ldc: c.ldc,
                    rows: plan.a_width.min(c.m - row),
                    columns: plan.b_width.min(c.n - column),
                    accumulate: accumulate || k0 > part.start,
                    next: c.near(next.0, next.1),
                };
                // SAFETY: rows and columns are inside C, and only this task computes the tile at `(p, q)`.
                unsafe { compute(plan, tile) };
            }
        }
    }
}

thread_local! {
    static SPARE: Cell<Vec<Panels>> = const { Cell::new(Vec::new()) };
}

/// Lends a buffer of `len` floats of any value, kept by the thread for the next time.
///
/// While a thread waits for others it may be given another product to compute, so a buffer is taken from the thread
/// for as long as it is used.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut spare = SPARE.take();
    let mut buffer = spare.pop().unwrap_or_default();
    SPARE.set(spare);
    if buffer.len() < len {
        buffer = Panels::zeroed(len);
    }
    let result = f(&mut buffer[..len]);
    let mut spare = SPARE.take();
    spare.push(buffer);
    SPARE.set(spare);
    result
}
