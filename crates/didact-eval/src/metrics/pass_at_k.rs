//! pass@k: the probability that one of k samples is right.

/// The unbiased estimate `1 − C(n−c, k) / C(n, k)` from `n` samples of which `c` are right.
///
/// # Reference
/// Chen et al., "Evaluating Large Language Models Trained on Code", 2021, eq. 1.
///
/// # Panics
/// If `k` is not from 1 to `n`, or `c` is above `n`.
pub fn pass_at_k(n: usize, c: usize, k: usize) -> f64 {
    assert!((1..=n).contains(&k) && c <= n, "pass_at_k: {c} of {n} samples, k = {k}");
    if n - c < k {
        return 1.0;
    }
    let all_wrong: f64 = (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    1.0 - all_wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_those_of_the_formula() {
        // 1 − C(3,2)/C(5,2) = 1 − 3/10.
        assert!((pass_at_k(5, 2, 2) - 0.7).abs() < 1e-12);
        assert_eq!((pass_at_k(5, 0, 3), pass_at_k(5, 3, 3), pass_at_k(4, 4, 1)), (0.0, 1.0, 1.0));
        assert!((pass_at_k(200, 1, 100) - 0.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn one_sample_passes_as_often_as_samples_are_right_and_more_pass_more_often(n in 1usize..60, c in 0usize..60) {
            let c = c.min(n);
            prop_assert!((pass_at_k(n, c, 1) - c as f64 / n as f64).abs() < 1e-9);
            for k in 2..=n {
                prop_assert!(pass_at_k(n, c, k) >= pass_at_k(n, c, k - 1) - 1e-12);
            }
        }

        /// The estimate is the share of the k-subsets that hold a right sample: counted for small n.
        #[test]
        fn it_is_the_share_of_subsets(n in 1usize..10, c in 0usize..10, k in 1usize..10) {
            let (c, k) = (c.min(n), k.min(n));
            let subsets: Vec<u32> = (0..1u32 << n).filter(|s| s.count_ones() as usize == k).collect();
            let with = subsets.iter().filter(|&&s| s & ((1 << c) - 1) != 0).count();
            prop_assert!((pass_at_k(n, c, k) - with as f64 / subsets.len() as f64).abs() < 1e-9);
        }
    }
}
