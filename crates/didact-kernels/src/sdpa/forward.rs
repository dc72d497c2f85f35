//! The forward pass.

use super::arithmetic::{Arithmetic, ROWS, Task, WIDE, run as run_task, words};
use super::block::{
    Scratch, Sizes, Target, View, left_columns, left_rows, line, load_rows, product, put_line, right_lines,
    transpose_back, transpose_rows, word_range,
};
use super::{Attention, Heads, HeadsMut, Segment};
use crate::gemm::with_scratch;
use crate::level::Level;
use crate::simd::{LANES, Simd};
use rayon::prelude::*;

/// Keys whose weights are multiplied with the values at a time: their lines stay in the nearest cache while all
/// dimensions of the head are done.
const KEYS: usize = 128;

pub(super) fn run(level: Level, a: &Attention, q: Heads, k: Heads, v: Heads, out: HeadsMut, log_sums: &mut [f32]) {
    let rows = log_sums.len() / a.heads;
    let out = Target::new(out);
    let log_sums = Target::new(HeadsMut { data: log_sums, stride: rows });
    (0..a.segments.len() * a.heads).into_par_iter().with_max_len(1).for_each(|unit| {
        let (segment, head) = (&a.segments[unit / a.heads], unit % a.heads);
        if segment.queries.is_empty() {
            return;
        }
        let size = Sizes::new(a, segment);
        with_scratch(Parts::len(&size), |scratch| {
            run_task(level, a.precision, Unit { a, segment, head, q, k, v, out, log_sums, size, scratch });
        });
    });
}

/// One segment and query head.
struct Unit<'a> {
    a: &'a Attention<'a>,
    segment: &'a Segment,
    head: usize,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    out: Target<'a>,
    log_sums: Target<'a>,
    size: Sizes,
    scratch: &'a mut [f32],
}

impl Task for Unit<'_> {
    #[inline(always)]
    fn run<M: Arithmetic>(mut self, m: M) {
        let scratch = std::mem::take(&mut self.scratch);
        let mut parts = Parts::new::<M>(scratch, &self.size);
        self.pack(m, &mut parts);
        let queries = self.segment.queries.len();
        for begin in (0..queries).step_by(WIDE) {
            self.block(m, &mut parts, begin, queries.min(begin + WIDE));
        }
    }
}

struct Parts<'a> {
    /// Left operand, a row per key.
    keys: &'a mut [f32],
    /// Left operand, a row per dimension.
    values: &'a mut [f32],
    /// A line of scores per key, then the right operand of their weights in its place.
    scores: &'a mut [f32],
    /// Right operand, a lane per query.
    query: &'a mut [f32],
    /// The outputs, a line per dimension.
    sums: &'a mut [f32],
    /// Rows as they are loaded and stored.
    rows: &'a mut [f32],
    /// The same, transposed.
    columns: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Floats that the parts of a unit take in any format.
    fn len(size: &Sizes) -> usize {
        size.keys * size.d_wide + size.d_wide * (size.keys + LANES) + size.keys * WIDE + 4 * size.d_wide * WIDE
    }

    fn new<M: Arithmetic>(scratch: &'a mut [f32], size: &Sizes) -> Self {
        let mut scratch = Scratch(scratch);
        let head = size.d_wide * WIDE;
        Self {
            keys: scratch.cut(size.keys * size.along_head::<M>()),
            values: scratch.cut(size.d_wide * size.along_keys::<M>()),
            scores: scratch.cut(size.keys * WIDE),
            query: scratch.cut(head),
            sums: scratch.cut(head),
            rows: scratch.cut(head),
            columns: scratch.cut(head),
        }
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn pack<M: Arithmetic>(&self, m: M, parts: &mut Parts) {
        let size = &self.size;
        let Attention { heads, kv_heads, head_dim: d, rotary, .. } = *self.a;
        let column = self.head / (heads / kv_heads) * d;
        let (start, end) = (self.segment.keys.start, self.segment.keys.end);
        let along_head = size.along_head::<M>();
        for at in (0..size.keys).step_by(WIDE) {
            let rows = start + at..end.min(start + at + WIDE);
            load_rows(m.simd(), parts.rows, size, self.k, column, rows.clone(), rotary, 1.0);
            left_rows(m, &mut parts.keys[at * along_head..][..WIDE * along_head], parts.rows);
            load_rows(m.simd(), parts.rows, size, self.v, column, rows, None, 1.0);
            transpose_rows(m.simd(), parts.columns, parts.rows, size.d_wide);
            left_columns(m, parts.values, size.along_keys::<M>(), at, parts.columns, size.d_wide);
        }
    }

    /// Queries `begin..end` of the segment.
    #[inline(always)]
    fn block<M: Arithmetic>(&self, m: M, parts: &mut Parts, begin: usize, end: usize) {
        let size = &self.size;
        let simd = m.simd();
        let Attention { head_dim: d, rotary, scale, .. } = *self.a;
        let Parts { keys, values, scores, query, sums, rows, columns } = parts;
        let (first, column) = (self.segment.queries.start, self.head * d);
        load_rows(simd, rows, size, self.q, column, first + begin..first + end, rotary, scale);
        transpose_rows(simd, columns, rows, size.d_wide);
        right_lines(m, query, columns, d);

        let view = View::new(self.a, self.segment, begin..end);
        let from = view.from;
        let seen = (view.end - from).next_multiple_of(ROWS);
        let along_head = size.along_head::<M>();
        for key in (from..from + seen).step_by(ROWS) {
            let to = &mut scores[(key - from) * WIDE..];
            product(m, to, WIDE, &keys[key * along_head..], along_head, query, words::<M>(d), false);
        }
        view.hide(&mut scores[..seen * WIDE], from..from + seen);
        let mut largest = [simd.splat(f32::NEG_INFINITY); 2];
        for key in 0..seen {
            let x = line(simd, scores, key);
            largest = [simd.max(x[0], largest[0]), simd.max(x[1], largest[1])];
        }
        let mut highest = [0.0f32; WIDE];
        put_line(simd, &mut highest, 0, largest);
        // Lanes that see nothing must not take -∞ from -∞.
        let shift = highest.map(|x| if x == f32::NEG_INFINITY { 0.0 } else { x });
        let shift = line(simd, &shift, 0);
        let mut totals = [simd.splat(0.0); 2];
        for pair in 0..seen / 2 {
            let mut weights = [[simd.splat(0.0); 2]; 2];
            for (i, weights) in weights.iter_mut().enumerate() {
                let x = line(simd, scores, 2 * pair + i);
                for half in 0..2 {
                    weights[half] = simd.exp_weight(simd.sub(x[half], shift[half]));
                    totals[half] = simd.add(totals[half], weights[half]);
                }
            }
            let to = &mut scores[pair * 2 * WIDE / M::STEPS..][..2 * WIDE / M::STEPS];
            m.store_steps(to, weights[0], weights[1]);
        }
        let d_rows = d.next_multiple_of(ROWS);
        sums[..d_rows * WIDE].fill(0.0);
        for key in (0..seen).step_by(KEYS) {
            let weights = word_range::<M>(key..seen.min(key + KEYS));
            let right = &scores[weights.start * WIDE..];
            let offset = from / M::STEPS + weights.start;
            for i in (0..d_rows).step_by(ROWS) {
                let left = &values[i * size.along_keys::<M>() + offset..];
                product(m, &mut sums[i * WIDE..], WIDE, left, size.along_keys::<M>(), right, weights.len(), key > 0);
            }
        }
        let mut total = [0.0f32; WIDE];
        put_line(simd, &mut total, 0, totals);
        let inverse = line(simd, &total.map(|t| if t == 0.0 { 0.0 } else { 1.0 / t }), 0);
        for i in 0..d {
            let x = line(simd, sums, i);
            put_line(simd, sums, i, [simd.mul(x[0], inverse[0]), simd.mul(x[1], inverse[1])]);
        }
        transpose_back(simd, rows, sums, size.d_wide);
        for (i, row) in rows.chunks_exact(size.d_wide).enumerate().take(end - begin) {
            // SAFETY: a query's row and head are this unit's alone: segments' queries do not overlap.
            unsafe { self.out.row(first + begin + i, column, d) }.copy_from_slice(&row[..d]);
        }
        // SAFETY: as above.
        let log_sums = unsafe { self.log_sums.row(self.head, first + begin, end - begin) };
        for ((to, &total), &highest) in log_sums.iter_mut().zip(&total).zip(&highest) {
            // Scores of a query that sees nothing are taken from ∞, which makes its weights 0.
            *to = if total == 0.0 { f32::INFINITY } else { (f64::from(highest) + f64::from(total).ln()) as f32 };
        }
    }
}
