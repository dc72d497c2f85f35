//! Rows of a table by number, and the gradient of taking them.

use crate::vectorize::{Work, vectorize};
use rayon::prelude::*;

/// Floats that one thread takes at a time.
const PIECE: usize = 64 << 10;

/// `out[i, :] = table[ids[i], :]`.
///
/// # Shapes
/// - `table`: `V × width`; `out`: `ids.len() × width`
///
/// # Panics
/// If the lengths do not fit or an id is not below V.
pub fn gather(out: &mut [f32], table: &[f32], ids: &[u32], width: usize) {
    check(table, out.len(), ids, width);
    let rows = (PIECE / width).max(1);
    out.par_chunks_mut(rows * width).zip(ids.par_chunks(rows)).for_each(|(out, ids)| {
        for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
            out.copy_from_slice(&table[id as usize * width..][..width]);
        }
    });
}

/// `table[ids[i], :] += rows[i, :]`, in the order of the ids: the gradient of [`gather`].
///
/// Threads share out the table, so every row of it is summed by one of them, in order.
///
/// # Shapes
/// - `table`: `V × width`; `rows`: `ids.len() × width`
///
/// # Panics
/// If the lengths do not fit or an id is not below V.
pub fn scatter_add(table: &mut [f32], ids: &[u32], rows: &[f32], width: usize) {
    check(table, rows.len(), ids, width);
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&i| ids[i as usize]);
    // As many table rows to a task as keeps the tasks' shares of `rows` large.
    let tasks = (rows.len() / PIECE).clamp(1, 64);
    let share = (table.len() / width).div_ceil(tasks).max(1);
    table.par_chunks_mut(share * width).enumerate().for_each(|(task, table)| {
        let id = |&i: &u32| ids[i as usize] as usize;
        let first = order.partition_point(|i| id(i) < task * share);
        let end = order.partition_point(|i| id(i) < (task + 1) * share);
        vectorize(Add { table, first_row: task * share, order: &order[first..end], ids, rows, width });
    });
}

fn check(table: &[f32], floats: usize, ids: &[u32], width: usize) {
    assert!(
        width > 0 && table.len().is_multiple_of(width) && floats == ids.len() * width,
        "embedding: a table of {} floats, {} ids and {floats} floats in rows of {width}",
        table.len(),
        ids.len()
    );
    if let Some(id) = ids.iter().find(|&&id| id as usize >= table.len() / width) {
        panic!("embedding: row {id} of a table of {} rows", table.len() / width);
    }
}

struct Add<'a> {
    table: &'a mut [f32],
    first_row: usize,
    order: &'a [u32],
    ids: &'a [u32],
    rows: &'a [f32],
    width: usize,
}

impl Work for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { table, first_row, order, ids, rows, width } = self;
        for &i in order {
            let row = (ids[i as usize] as usize - first_row) * width;
            let from = &rows[i as usize * width..][..width];
            table[row..row + width].iter_mut().zip(from).for_each(|(t, x)| *t += x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    fn normal(key: u64, len: usize) -> Vec<f32> {
        let mut x = vec![0.0; len];
        fill_normal(key, 1.0, &mut x);
        x
    }

    #[test]
    fn rows_are_taken_and_added_in_order() {
        for (table_rows, count, width) in [(1, 0, 3), (1, 5, 1), (7, 40, 5), (300, 2000, 67)] {
            let ids: Vec<u32> = (0..count).map(|i| (i * 7919 % 31 % table_rows) as u32).collect();
            let (table, rows) = (normal(1, table_rows * width), normal(2, count * width));
            let mut out = vec![9.0; count * width];
            gather(&mut out, &table, &ids, width);
            for (i, &id) in ids.iter().enumerate() {
                assert_eq!(out[i * width..][..width], table[id as usize * width..][..width]);
            }
            // The same sums in the same order, plainly: the same bits.
            let mut want = table.clone();
            for (i, &id) in ids.iter().enumerate() {
                for j in 0..width {
                    want[id as usize * width + j] += rows[i * width + j];
                }
            }
            let mut got = table;
            scatter_add(&mut got, &ids, &rows, width);
            assert!(got == want, "{table_rows} {count} {width}");
        }
    }

    #[test]
    #[should_panic(expected = "embedding: row 3 of a table of 3 rows")]
    fn an_id_outside_the_table_is_refused() {
        scatter_add(&mut [0.0; 6], &[3], &[0.0; 2], 2);
    }
}
