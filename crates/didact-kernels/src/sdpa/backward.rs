//! The backward pass.

use super::arithmetic::{Arithmetic, Line, ROWS, Task, WIDE, run as run_task, words};
use super::block::{
    Scratch, Sizes, Target, View, left_columns, left_rows, line, load_rows, product, right_lines, right_rows, rotate,
    transpose_back, transpose_rows, word_range,
};
use super::{Attention, Heads, HeadsMut, Segment};
use crate::gemm::with_scratch;
use crate::level::Level;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use rayon::prelude::*;

/// Keys whose scores exist at a time.
const KEYS: usize = 64;

pub(super) fn run(
    level: Level,
    a: &Attention,
    [q, k, v]: [Heads; 3],
    out: Heads,
    log_sums: &[f32],
    d_out: Heads,
    [d_q, d_k, d_v]: [Target; 3],
) {
    let rows = log_sums.len() / a.heads;
    // Each query head has gradients of keys and values of its own, summed over a group's heads at the end.
    let keys = a.segments.iter().map(|s| s.keys.end).max().unwrap_or(0);
    let width = a.heads * a.head_dim;
    let part = keys * width;
    with_scratch(if a.heads == a.kv_heads { 0 } else { 2 * part }, |own| {
        let (own_k, own_v) = own.split_at_mut(own.len() / 2);
        let grouped = a.heads != a.kv_heads;
        let of = |own| if grouped { Some(Target::new(HeadsMut { data: own, stride: width })) } else { None };
        let (own_k, own_v) = (of(own_k), of(own_v));
        let targets = [own_k.unwrap_or(d_k), own_v.unwrap_or(d_v)];
        (0..a.segments.len() * a.heads).into_par_iter().with_max_len(1).for_each(|unit| {
            let (segment, head) = (&a.segments[unit / a.heads], unit % a.heads);
            if segment.keys.is_empty() && segment.queries.is_empty() {
                return;
            }
            let size = Sizes::new(a, segment);
            with_scratch(Parts::len(&size), |scratch| {
                let d_kv = targets;
                let inputs = [q, k, v];
                let unit =
                    Unit { a, segment, head, inputs, out, log_sums, rows, d_out, d_q, d_kv, grouped, size, scratch };
                run_task(level, a.precision, unit);
            });
        });
        if let (Some(own_k), Some(own_v)) = (own_k, own_v) {
            a.segments.iter().flat_map(|s| s.keys.clone()).collect::<Vec<_>>().par_chunks(WIDE).for_each(|rows| {
                dispatch(level, Gather { a, rows, own: [own_k, own_v], to: [d_k, d_v] });
            });
        }
    });
}

/// Sums the gradients of a group's heads for some rows of keys and values.
struct Gather<'a> {
    a: &'a Attention<'a>,
    rows: &'a [usize],
    own: [Target<'a>; 2],
    to: [Target<'a>; 2],
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Attention { heads, kv_heads, head_dim: d, rotary, .. } = *self.a;
        let group = heads / kv_heads;
        for &row in self.rows {
            for (own, to, rotary) in [(self.own[0], self.to[0], rotary), (self.own[1], self.to[1], None)] {
                // SAFETY: rows of keys are in one segment, so in this task alone.
                let own = unsafe { own.row(row, 0, heads * d) };
                // SAFETY: as above.
                let to = unsafe { to.row(row, 0, kv_heads * d) };
                for (own, to) in own.chunks_exact_mut(group * d).zip(to.chunks_exact_mut(d)) {
                    let (sum, others) = own.split_at_mut(d);
                    for other in others.chunks_exact(d) {
                        sum.iter_mut().zip(other).for_each(|(s, o)| *s += o);
                    }
                    rotate(simd, to, sum, rotary, row, 1.0, true);
                }
            }
        }
    }
}

/// One segment and query head.
struct Unit<'a> {
    a: &'a Attention<'a>,
    segment: &'a Segment,
    head: usize,
    /// Queries, keys, values.
    inputs: [Heads<'a>; 3],
    out: Heads<'a>,
    log_sums: &'a [f32],
    /// Queries in a row of `log_sums`.
    rows: usize,
    d_out: Heads<'a>,
    d_q: Target<'a>,
    /// Gradients of keys and values.
    d_kv: [Target<'a>; 2],
    /// Whether `d_kv` is this query head's own, to be summed and rotated later.
    grouped: bool,
    size: Sizes,
    scratch: &'a mut [f32],
}

struct Parts<'a> {
    /// Left operands, a row per key.
    keys: &'a mut [f32],
    values: &'a mut [f32],
    /// Left operand of keys, a row per dimension.
    key_columns: &'a mut [f32],
    /// Gradients, a row per key.
    d_keys: &'a mut [f32],
    d_values: &'a mut [f32],
    /// Gradient of a block's queries, a line per dimension.
    d_query: &'a mut [f32],
    /// Right operands, a lane per query.
    query: &'a mut [f32],
    d_out: &'a mut [f32],
    /// Right operands, a step per query.
    query_rows: &'a mut [f32],
    d_out_rows: &'a mut [f32],
    /// A line of scores, and of their weights' gradients, per key.
    scores: &'a mut [f32],
    d_weights: &'a mut [f32],
    /// Left operands, a row per key.
    weights_left: &'a mut [f32],
    d_scores_left: &'a mut [f32],
    /// Right operand, a step per key.
    d_scores_right: &'a mut [f32],
    /// Rows as they are loaded and stored, and transposed.
    staged: &'a mut [f32],
    columns: &'a mut [f32],
}

impl<'a> Parts<'a> {
    /// Floats that the parts of a unit take in any format.
    fn len(size: &Sizes) -> usize {
        let Sizes { d_wide, keys, .. } = *size;
        4 * keys * d_wide + d_wide * (keys + LANES) + 7 * d_wide * WIDE + 5 * KEYS * WIDE
    }

    fn new<M: Arithmetic>(scratch: &'a mut [f32], size: &Sizes) -> Self {
        let mut scratch = Scratch(scratch);
        let Sizes { d_wide, keys, .. } = *size;
        let (head, chunk) = (d_wide * WIDE, KEYS * WIDE);
        Self {
            keys: scratch.cut(keys * size.along_head::<M>()),
            values: scratch.cut(keys * size.along_head::<M>()),
            key_columns: scratch.cut(d_wide * size.along_keys::<M>()),
            d_keys: scratch.cut(keys * d_wide),
            d_values: scratch.cut(keys * d_wide),
            d_query: scratch.cut(head),
            query: scratch.cut(head),
            d_out: scratch.cut(head),
            query_rows: scratch.cut(head),
            d_out_rows: scratch.cut(head),
            staged: scratch.cut(head),
            columns: scratch.cut(head),
            scores: scratch.cut(chunk),
            d_weights: scratch.cut(chunk),
            weights_left: scratch.cut(chunk),
            d_scores_left: scratch.cut(chunk),
            d_scores_right: scratch.cut(chunk),
        }
    }
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
        self.finish(m.simd(), &parts);
    }
}

impl Unit<'_> {
    #[inline(always)]
    fn pack<M: Arithmetic>(&self, m: M, parts: &mut Parts) {
        let size = &self.size;
        let [_, k, v] = self.inputs;
        let Attention { heads, kv_heads, head_dim: d, rotary, .. } = *self.a;
        let column = self.head / (heads / kv_heads) * d;
        let (start, end) = (self.segment.keys.start, self.segment.keys.end);
        let along_head = size.along_head::<M>();
        for at in (0..size.keys).step_by(WIDE) {
            let rows = start + at..end.min(start + at + WIDE);
            let range = at * along_head..(at + WIDE) * along_head;
            load_rows(m.simd(), parts.staged, size, v, column, rows.clone(), None, 1.0);
            left_rows(m, &mut parts.values[range.clone()], parts.staged);
            load_rows(m.simd(), parts.staged, size, k, column, rows, rotary, 1.0);
            left_rows(m, &mut parts.keys[range], parts.staged);
            transpose_rows(m.simd(), parts.columns, parts.staged, size.d_wide);
            left_columns(m, parts.key_columns, size.along_keys::<M>(), at, parts.columns, size.d_wide);
        }
        parts.d_keys.fill(0.0);
        parts.d_values.fill(0.0);
    }

    /// Queries `begin..end` of the segment.
    #[inline(always)]
    fn block<M: Arithmetic>(&self, m: M, parts: &mut Parts, begin: usize, end: usize) {
        let size = &self.size;
        let simd = m.simd();
        let Attention { head_dim: d, rotary, scale, .. } = *self.a;
        let (d_wide, column) = (size.d_wide, self.head * d);
        let first = self.segment.queries.start;
        let rows = first + begin..first + end;

        // The output's share of the scores' gradients, one number per query.
        let mut delta = [0.0f32; WIDE];
        load_rows(m.simd(), parts.columns, size, self.out, column, rows.clone(), None, 1.0);
        load_rows(m.simd(), parts.staged, size, self.d_out, column, rows.clone(), None, 1.0);
        let pairs = parts.columns.chunks_exact(d_wide).zip(parts.staged.chunks_exact(d_wide));
        for (delta, (out, d_out)) in delta.iter_mut().zip(pairs) {
            let mut sum = simd.splat(0.0);
            for (x, y) in out.as_chunks::<LANES>().0.iter().zip(d_out.as_chunks::<LANES>().0) {
                sum = simd.mul_add(simd.load(x), simd.load(y), sum);
            }
            *delta = simd.sum(sum);
        }
        let delta = line(simd, &delta, 0);
        let mut log_sums = [f32::INFINITY; WIDE];
        log_sums[..end - begin].copy_from_slice(&self.log_sums[self.head * self.rows..][rows.clone()]);
        let log_sums = line(simd, &log_sums, 0);

        right_rows(m, parts.d_out_rows, parts.staged, d_wide);
        transpose_rows(simd, parts.columns, parts.staged, d_wide);
        right_lines(m, parts.d_out, parts.columns, d);
        load_rows(m.simd(), parts.staged, size, self.inputs[0], column, rows.clone(), rotary, scale);
        right_rows(m, parts.query_rows, parts.staged, d_wide);
        transpose_rows(simd, parts.columns, parts.staged, d_wide);
        right_lines(m, parts.query, parts.columns, d);

        let view = View::new(self.a, self.segment, begin..end);
        let (from, to) = (view.from, view.from + (view.end - view.from).next_multiple_of(ROWS));
        let d_rows = d.next_multiple_of(ROWS);
        parts.d_query[..d_rows * WIDE].fill(0.0);
        for key in (from..to).step_by(KEYS) {
            self.chunk(m, parts, &view, key, to.min(key + KEYS), log_sums, delta);
        }

        transpose_back(simd, parts.staged, parts.d_query, d_wide);
        for (row, gradient) in rows.zip(parts.staged.chunks_exact(d_wide)) {
            // SAFETY: a query's row and head are this unit's alone: segments' queries do not overlap.
            let to = unsafe { self.d_q.row(row, column, d) };
            rotate(simd, to, &gradient[..d], rotary, row, scale, true);
        }
    }

    /// Keys `key..end` for one block of queries.
    #[inline(always)]
    fn chunk<M: Arithmetic>(
        &self,
        m: M,
        parts: &mut Parts,
        view: &View,
        key: usize,
        end: usize,
        log_sums: Line<M::S>,
        delta: Line<M::S>,
    ) {
        let simd = m.simd();
        let size = &self.size;
        let Sizes { d, d_wide, .. } = *size;
        let along_head = size.along_head::<M>();
        let count = end - key;
        for i in (0..count).step_by(ROWS) {
            let at = (key + i) * along_head;
            let (c, a) = (&mut parts.scores[i * WIDE..], &parts.keys[at..]);
            product(m, c, WIDE, a, along_head, parts.query, words::<M>(d), false);
            let (c, a) = (&mut parts.d_weights[i * WIDE..], &parts.values[at..]);
            product(m, c, WIDE, a, along_head, parts.d_out, words::<M>(d), false);
        }
        view.hide(&mut parts.scores[..count * WIDE], key..end);
        let row = WIDE / M::STEPS;
        for pair in 0..count / 2 {
            let mut gradients = [[simd.splat(0.0); 2]; 2];
            for (i, gradients) in gradients.iter_mut().enumerate() {
                let i = 2 * pair + i;
                let (score, d_weight) = (line(simd, parts.scores, i), line(simd, parts.d_weights, i));
                let mut weights = score;
                for half in 0..2 {
                    weights[half] = simd.exp_weight(simd.sub(score[half], log_sums[half]));
                    gradients[half] = simd.mul(weights[half], simd.sub(d_weight[half], delta[half]));
                }
                m.store_row(&mut parts.weights_left[i * row..][..row], weights);
                m.store_row(&mut parts.d_scores_left[i * row..][..row], *gradients);
            }
            m.store_steps(&mut parts.d_scores_right[2 * pair * row..][..2 * row], gradients[0], gradients[1]);
        }
        for group in 0..d_wide / WIDE {
            let right = group * WIDE * row;
            for i in (0..count).step_by(ROWS) {
                let at = (key + i) * d_wide + group * WIDE;
                let (c, a) = (&mut parts.d_values[at..], &parts.weights_left[i * row..]);
                product(m, c, d_wide, a, row, &parts.d_out_rows[right..], row, true);
                let (c, a) = (&mut parts.d_keys[at..], &parts.d_scores_left[i * row..]);
                product(m, c, d_wide, a, row, &parts.query_rows[right..], row, true);
            }
        }
        let steps = word_range::<M>(key..end);
        let along_keys = size.along_keys::<M>();
        for i in (0..d.next_multiple_of(ROWS)).step_by(ROWS) {
            let (c, a) = (&mut parts.d_query[i * WIDE..], &parts.key_columns[i * along_keys + steps.start..]);
            product(m, c, WIDE, a, along_keys, parts.d_scores_right, steps.len(), true);
        }
    }

    /// Writes the gradients of keys and values.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, parts: &Parts) {
        let size = &self.size;
        let Attention { head_dim: d, rotary, .. } = *self.a;
        let column = self.head * d;
        let rotary = if self.grouped { None } else { rotary };
        let rows = parts.d_keys.chunks_exact(size.d_wide).zip(parts.d_values.chunks_exact(size.d_wide));
        for (row, (d_key, d_value)) in self.segment.keys.clone().zip(rows) {
            // SAFETY: a key's row is in one segment, and the columns are this head's.
            let to = unsafe { self.d_kv[0].row(row, column, d) };
            rotate(simd, to, &d_key[..d], rotary, row, 1.0, true);
            // SAFETY: as above.
            unsafe { self.d_kv[1].row(row, column, d) }.copy_from_slice(&d_value[..d]);
        }
    }
}
