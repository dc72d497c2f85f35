//! Rotary position embedding, in the layout of Hugging Face models: element `d` is rotated with element `d + D/2`.

use crate::vectorize::{Work, vectorize};
use rayon::prelude::*;

/// Rows that one thread takes at a time.
const ROWS: usize = 32;

/// Rotates the heads of each row in place by the angles of its position.
///
/// `x'[d] = x[d]·cos − x[d + D/2]·sin` and `x'[d + D/2] = x[d + D/2]·cos + x[d]·sin`, for `d < D/2`.
///
/// # Shapes
/// - `x`: rows that start `row_stride` apart; the first `heads · head_dim` floats of each are rotated
/// - `cos`, `sin`: `positions × head_dim / 2`, row-major
/// - `positions`: one per row
///
/// # Panics
/// If a row is shorter than its heads, `head_dim` is odd, or a position is not in the tables.
///
/// # Reference
/// Su et al., 2021, arXiv:2104.09864.
pub fn apply(
    x: &mut [f32],
    row_stride: usize,
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
) {
    rotate(x, row_stride, heads, head_dim, cos, sin, positions, 1.0);
}

/// The transpose of [`apply`], which turns the gradient of its result into that of its input, in place.
///
/// # Panics
/// As [`apply`].
pub fn apply_back(
    x: &mut [f32],
    row_stride: usize,
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
) {
    rotate(x, row_stride, heads, head_dim, cos, sin, positions, -1.0);
}

fn rotate(
    x: &mut [f32],
    row_stride: usize,
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    positions: &[u32],
    sign: f32,
) {
    assert!(head_dim.is_multiple_of(2) && head_dim > 0, "rope: heads of {head_dim} floats cannot be halved");
    assert!(row_stride >= heads * head_dim, "rope: rows of {row_stride} hold no {heads} heads of {head_dim}");
    let needed = positions.len().saturating_sub(1) * row_stride + heads * head_dim;
    assert!(
        positions.is_empty() || x.len() >= needed,
        "rope: {} floats, too few for {} rows",
        x.len(),
        positions.len()
    );
    assert_eq!(cos.len(), sin.len(), "rope: tables differ in length");
    if row_stride == 0 {
        return;
    }
    x.par_chunks_mut(ROWS * row_stride).zip(positions.par_chunks(ROWS)).for_each(|(rows, positions)| {
        vectorize(Rotate { rows, row_stride, heads, head_dim, cos, sin, positions, sign });
    });
}

struct Rotate<'a> {
    rows: &'a mut [f32],
    row_stride: usize,
    heads: usize,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    positions: &'a [u32],
    /// 1, or -1 to turn the other way.
    sign: f32,
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { rows, row_stride, heads, head_dim, cos, sin, positions, sign } = self;
        let half = head_dim / 2;
        for (row, &position) in rows.chunks_mut(row_stride).zip(positions) {
            let at = position as usize * half;
            assert!(at + half <= cos.len(), "rope: position {position} of {}", cos.len() / half);
            let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
            for head in row[..heads * head_dim].chunks_exact_mut(head_dim) {
                let (low, high) = head.split_at_mut(half);
                for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    let s = s * sign;
                    (*l, *h) = (*l * c - *h * s, *h * c + *l * s);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    #[test]
    fn heads_are_rotated_by_their_position_and_the_rest_is_left_alone() {
        let (rows, stride, heads, d) = (70, 23, 3, 6);
        let mut x = vec![0.0; rows * stride];
        fill_normal(1, 1.0, &mut x);
        let before = x.clone();
        let angle = |p: usize, i: usize| p as f32 * (0.3 + i as f32);
        let table =
            |f: fn(f32) -> f32| (0..9).flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i)))).collect::<Vec<_>>();
        let positions: Vec<u32> = (0..rows as u32).map(|r| r * 5 % 9).collect();
        apply(&mut x, stride, heads, d, &table(f32::cos), &table(f32::sin), &positions);
        for r in 0..rows {
            for j in 0..stride {
                let at = r * stride + j;
                if j >= heads * d {
                    assert_eq!(x[at], before[at]);
                    continue;
                }
                let i = j % d;
                let a = f64::from(angle(positions[r] as usize, i % (d / 2)));
                let this = f64::from(before[at]);
                let want = if i < d / 2 {
                    this * a.cos() - f64::from(before[at + d / 2]) * a.sin()
                } else {
                    this * a.cos() + f64::from(before[at - d / 2]) * a.sin()
                };
                // The tables are f32.
                assert!((f64::from(x[at]) - want).abs() < 1e-6, "row {r} column {j}");
            }
        }
        // Rotations are undone by their transpose.
        apply_back(&mut x, stride, heads, d, &table(f32::cos), &table(f32::sin), &positions);
        assert!(x.iter().zip(&before).all(|(x, b)| (x - b).abs() < 2e-6));
    }

    #[test]
    #[should_panic(expected = "rope: position 2 of 2")]
    fn a_position_outside_the_tables_is_refused() {
        apply(&mut [0.0; 4], 4, 1, 4, &[0.0; 4], &[0.0; 4], &[2]);
    }
}
