//! Element-wise work on vectors.

use rayon::prelude::*;

/// Elements that one thread takes at a time.
pub(crate) const PIECE: usize = 64 << 10;

/// `y += alpha · x`.
///
/// # Panics
/// If the lengths differ.
pub fn axpy(y: &mut [f32], alpha: f32, x: &[f32]) {
    assert_eq!(y.len(), x.len(), "axpy: y and x differ in length");
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    });
}

/// `x *= alpha`.
pub fn scale(x: &mut [f32], alpha: f32) {
    x.par_chunks_mut(PIECE).for_each(|x| {
        for x in x {
            *x *= alpha;
        }
    });
}

/// `y += x`.
///
/// # Panics
/// If the lengths differ.
pub fn add(y: &mut [f32], x: &[f32]) {
    assert_eq!(y.len(), x.len(), "add: y and x differ in length");
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    });
}

/// Adds `bias` to every row of `y`, a `rows × bias.len()` matrix.
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    assert!(
        bias.is_empty() || y.len().is_multiple_of(bias.len()),
        "add_bias: {} floats in rows of {}",
        y.len(),
        bias.len()
    );
    for row in y.chunks_exact_mut(bias.len().max(1)) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_element_is_reached_across_pieces() {
        let n = 2 * PIECE + 17;
        let x: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
        let mut y = vec![1.0; n];
        axpy(&mut y, 2.0, &x);
        add(&mut y, &x);
        scale(&mut y, 0.5);
        assert!(y.iter().zip(&x).all(|(y, x)| *y == (1.0 + 3.0 * x) * 0.5));
    }

    #[test]
    fn a_bias_goes_to_every_row() {
        let mut y = vec![1.0, 2.0, 3.0, 4.0];
        add_bias(&mut y, &[10.0, 20.0]);
        assert_eq!(y, [11.0, 22.0, 13.0, 24.0]);
    }
}
