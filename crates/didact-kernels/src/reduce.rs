//! Sums in f64 whose order is fixed, so that they have the same bits on any number of threads.

use crate::adamw::Gradient;
use crate::vectorize::{Work, vectorize};
use rayon::prelude::*;

/// Elements of a piece: each is summed on its own, then the pieces' sums in order.
const PIECE: usize = 16 << 10;

/// Partial sums within a piece.
const PARTS: usize = 16;

fn sum_of(x: &[f32], term: impl Fn(f32) -> f64 + Copy + Send + Sync) -> f64 {
    let piece = |x: &[f32]| {
        let mut parts = [0.0f64; PARTS];
        let (lines, rest) = x.as_chunks::<PARTS>();
        for line in lines {
            for (part, &x) in parts.iter_mut().zip(line) {
                *part += term(x);
            }
        }
        for (part, &x) in parts.iter_mut().zip(rest) {
            *part += term(x);
        }
        parts.iter().sum::<f64>()
    };
    if x.len() <= PIECE {
        return piece(x);
    }
    let sums: Vec<f64> = x.par_chunks(PIECE).map(piece).collect();
    sums.iter().sum()
}

/// The sum of the elements.
pub fn sum(x: &[f32]) -> f64 {
    sum_of(x, f64::from)
}

/// The sum of the squares of the elements: the square of the norm.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    sum_of(x, |x| f64::from(x) * f64::from(x))
}

/// The norm of all gradients together, `√Σ g²`, in f64.
pub fn global_norm(gradients: &[Gradient]) -> f64 {
    let pieces: Vec<Gradient> = gradients.iter().flat_map(|g| g.pieces(PIECE)).collect();
    let sums: Vec<f64> = pieces.into_par_iter().map(|piece| vectorize(Squares(piece))).collect();
    sums.iter().sum::<f64>().sqrt()
}

struct Squares<'a>(Gradient<'a>);

impl Work for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        match self.0 {
            Gradient::F32(x) => squares(x, f64::from),
            Gradient::Bf16(x) => squares(x, |x| f64::from(f32::from_bits(u32::from(x.to_bits()) << 16))),
        }
    }
}

#[inline(always)]
fn squares<T: Copy>(x: &[T], wide: impl Fn(T) -> f64) -> f64 {
    let mut parts = [0.0f64; PARTS];
    let (lines, rest) = x.as_chunks::<PARTS>();
    for line in lines {
        for (part, &x) in parts.iter_mut().zip(line) {
            let x = wide(x);
            *part += x * x;
        }
    }
    for (part, &x) in parts.iter_mut().zip(rest) {
        let x = wide(x);
        *part += x * x;
    }
    parts.iter().sum()
}

/// Index of the first element that is NaN or infinite.
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    x.par_chunks(PIECE)
        .enumerate()
        .filter_map(|(i, x)| x.iter().position(|x| !x.is_finite()).map(|at| i * PIECE + at))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::fill_normal;

    #[test]
    fn sums_have_the_same_bits_on_any_threads() {
        for n in [0, 1, 15, 17, PIECE, PIECE + 1, 5 * PIECE + 3] {
            let mut x = vec![0.0; n];
            fill_normal(1, 1.0, &mut x);
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                pool.install(|| (sum(&x).to_bits(), sum_of_squares(&x).to_bits()))
            };
            assert_eq!(on(1), on(3));
            let want: f64 = x.iter().map(|&x| f64::from(x)).sum();
            // f64 sums of at most 1e5 terms of size about 1.
            assert!((sum(&x) - want).abs() < 1e-9);
            let want: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert!((sum_of_squares(&x) - want).abs() <= 1e-12 * want);
        }
    }

    #[test]
    fn the_global_norm_is_that_of_all_numbers() {
        let (mut a, mut b) = (vec![0.0; 3 * PIECE + 5], vec![0.0; 7]);
        fill_normal(1, 1.0, &mut a);
        fill_normal(2, 1.0, &mut b);
        let b: Vec<half::bf16> = b.into_iter().map(half::bf16::from_f32).collect();
        let want: f64 =
            a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() + b.iter().map(|x| x.to_f64().powi(2)).sum::<f64>();
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            pool.install(|| global_norm(&[Gradient::F32(&a), Gradient::F32(&[]), Gradient::Bf16(&b)]))
        };
        // f64 sums of about 5e4 terms of size about 1.
        assert!((on(1) - want.sqrt()).abs() <= 1e-12 * want.sqrt());
        assert_eq!(on(1).to_bits(), on(3).to_bits());
        assert!(global_norm(&[Gradient::F32(&[f32::NAN])]).is_nan());
        assert_eq!(global_norm(&[]), 0.0);
    }

    #[test]
    fn the_first_bad_element_is_found() {
        let mut x = vec![1.0; 3 * PIECE];
        assert_eq!(first_non_finite(&x), None);
        x[2 * PIECE + 5] = f32::NAN;
        x[2 * PIECE + 4] = f32::INFINITY;
        assert_eq!(first_non_finite(&x), Some(2 * PIECE + 4));
        x[7] = f32::NEG_INFINITY;
        assert_eq!(first_non_finite(&x), Some(7));
        assert!(sum(&x).is_nan() && sum_of_squares(&x).is_nan());
    }
}
