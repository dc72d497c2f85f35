//! How sure a number is, and whether two differ.

use didact_core::seed::Streams;
use rand::RngExt;
use rayon::prelude::*;
use statrs::distribution::{Binomial, DiscreteCDF};

/// The mean; 0 for no values.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The standard error of the mean, `s / √n` with the sample's deviation (n − 1); `None` for fewer than two values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let (mean, n) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((squares / (n - 1.0)).sqrt() / n.sqrt())
}

/// The standard deviation of a statistic over `draws` samples with replacement of as many items as there are: its standard
/// error where no formula gives it. `None` for fewer than two items.
pub fn bootstrap_error<T: Sync>(
    items: &[T],
    statistic: impl Fn(&[&T]) -> f64 + Sync,
    draws: usize,
    streams: &Streams,
) -> Option<f64> {
    if items.len() < 2 || draws < 2 {
        return None;
    }
    let draw = |number: usize| {
        let mut rng = streams.rng("bootstrap", &[number as u64]);
        let sample: Vec<&T> = items.iter().map(|_| &items[rng.random_range(0..items.len())]).collect();
        statistic(&sample)
    };
    let values: Vec<f64> = (0..draws).into_par_iter().map(draw).collect();
    let mean = mean(&values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    Some((squares / (draws - 1) as f64).sqrt())
}

/// The difference of two models on the same items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Mean of b minus mean of a.
    pub difference: f64,
    /// The 95 % interval of the difference: percentiles of the bootstrap.
    pub interval: [f64; 2],
    /// Items that b does better, and worse.
    pub better_worse: [usize; 2],
    /// Two-sided p of McNemar's exact test, for values that are all 0 or 1: how likely so uneven a split of the items
    /// that differ would be if neither were better.
    pub mcnemar: Option<f64>,
}

impl Paired {
    /// Whether the interval leaves out 0, so that a difference was shown.
    pub fn is_shown(&self) -> bool {
        self.interval[0] > 0.0 || self.interval[1] < 0.0
    }
}

/// Draws of [`paired`].
pub const PAIRED_DRAWS: usize = 10_000;

/// Compares the means of what two models scored on the same items; see [`paired_of`]. `None` for no items.
///
/// # Panics
/// If the lists differ in length.
pub fn paired(a: &[f64], b: &[f64], streams: &Streams) -> Option<Paired> {
    assert_eq!(a.len(), b.len(), "paired: lists of different lengths");
    let items: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
    let means = |indices: &[usize]| {
        let sums = indices.iter().fold((0.0, 0.0), |(a, b), &i| (a + items[i].0, b + items[i].1));
        (sums.0 / indices.len() as f64, sums.1 / indices.len() as f64)
    };
    (!items.is_empty()).then(|| paired_of(&items, means, streams))
}

/// Compares a statistic of two models over the same items: the paired bootstrap (Efron & Tibshirani, 1993), which draws
/// items, each with both models' scores. `items` are the scores of each item, for counting which model does it better;
/// `statistic` gives both models' values over the items of these numbers.
///
/// # Panics
/// If there are no items.
pub fn paired_of(items: &[(f64, f64)], statistic: impl Fn(&[usize]) -> (f64, f64) + Sync, streams: &Streams) -> Paired {
    assert!(!items.is_empty(), "paired: no items");
    let n = items.len();
    let difference = |indices: &[usize]| {
        let (a, b) = statistic(indices);
        b - a
    };
    let draw = |number: usize| {
        let mut rng = streams.rng("paired", &[number as u64]);
        let indices: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
        difference(&indices)
    };
    let mut drawn: Vec<f64> = (0..PAIRED_DRAWS).into_par_iter().map(draw).collect();
    drawn.sort_by(f64::total_cmp);
    let better = items.iter().filter(|(a, b)| b > a).count();
    let worse = items.iter().filter(|(a, b)| b < a).count();
    let is_binary = items.iter().flat_map(|(a, b)| [*a, *b]).all(|v| v == 0.0 || v == 1.0);
    Paired {
        difference: difference(&(0..n).collect::<Vec<_>>()),
        interval: [percentile(&drawn, 0.025), percentile(&drawn, 0.975)],
        better_worse: [better, worse],
        mcnemar: is_binary.then(|| sign_test(better, worse)),
    }
}

/// Between the values next to a share of a sorted list, linearly.
///
/// # Panics
/// If the list is empty.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(sorted.len() - 1);
    // Equal neighbours may be infinite.
    if part == 0.0 || sorted[low] == sorted[high] {
        sorted[low]
    } else {
        sorted[low] * (1.0 - part) + sorted[high] * part
    }
}

/// Two-sided probability of a split at least as uneven as this one among fair coins.
fn sign_test(a: usize, b: usize) -> f64 {
    let coins = Binomial::new(0.5, (a + b) as u64).expect("one half is a probability");
    (2.0 * coins.cdf(a.min(b) as u64)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_standard_error_is_that_of_the_sample() {
        // Mean 2.5, squares 5, s = √(5/3).
        let error = standard_error(&[1.0, 2.0, 3.0, 4.0]).expect("four values");
        assert!((error - (5.0 / 3.0_f64).sqrt() / 2.0).abs() < 1e-12);
        assert_eq!((standard_error(&[1.0]), mean(&[])), (None, 0.0));
    }

    #[test]
    fn the_bootstrap_of_a_mean_agrees_with_the_formula() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 7)).collect();
        let by_formula = standard_error(&values).expect("values");
        let statistic = |sample: &[&f64]| sample.iter().copied().sum::<f64>() / sample.len() as f64;
        let drawn = bootstrap_error(&values, statistic, 4000, &Streams::new(1)).expect("values");
        // The deviation of 4000 draws has a relative error of about 1 %.
        assert!((drawn / by_formula - 1.0).abs() < 0.05, "{drawn} and {by_formula}");
    }

    #[test]
    fn equal_models_show_no_difference_and_a_clear_one_is_shown() {
        let a: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let same = paired(&a, &a, &Streams::new(1)).expect("items");
        assert_eq!((same.difference, same.interval, same.is_shown(), same.mcnemar), (0.0, [0.0; 2], false, Some(1.0)));
        let better: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0 || i < 30))).collect();
        let found = paired(&a, &better, &Streams::new(1)).expect("items");
        assert!((found.difference - 0.15).abs() < 1e-12 && found.is_shown() && found.better_worse == [15, 0]);
        // 15 heads of 15.
        assert!((found.mcnemar.expect("binary") - 2.0 * 0.5_f64.powi(15)).abs() < 1e-12);
    }

    #[test]
    fn the_sign_test_counts_both_tails() {
        // 1 of 5: (1 + 5) / 32, twice.
        assert!((sign_test(1, 4) - 0.375).abs() < 1e-12);
        assert_eq!((sign_test(0, 0), sign_test(3, 3)), (1.0, 1.0));
    }

    proptest! {
        #[test]
        fn swapping_the_models_turns_the_difference(values in prop::collection::vec((0.0..1.0f64, 0.0..1.0f64), 1..20)) {
            let (a, b): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
            let there = paired(&a, &b, &Streams::new(3)).expect("items");
            let back = paired(&b, &a, &Streams::new(3)).expect("items");
            prop_assert!((there.difference + back.difference).abs() < 1e-12);
            prop_assert!((there.interval[0] + back.interval[1]).abs() < 1e-9);
            prop_assert!(there.interval[0] <= there.difference + 1e-9 && there.difference <= there.interval[1] + 1e-9
                || a.len() < 5);
        }
    }
}
