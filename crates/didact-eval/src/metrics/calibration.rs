//! Whether probabilities mean what they say.

/// The Brier score of one question: the squared distance of the choices' probabilities from the right answer's 1 and the
/// others' 0, summed; from 0 (sure and right) to 2 (sure and wrong).
///
/// # Panics
/// If `right` is no choice.
pub fn brier(probabilities: &[f64], right: usize) -> f64 {
    assert!(right < probabilities.len(), "brier: choice {right} of {}", probabilities.len());
    let distance = |(i, p): (usize, &f64)| (p - f64::from(u8::from(i == right))).powi(2);
    probabilities.iter().enumerate().map(distance).sum()
}

/// Expected calibration error: over bins of equal width of the confidence, the mean distance of accuracy from confidence,
/// weighted by the answers in the bin. 0 for no answers.
///
/// # Reference
/// Guo et al., "On Calibration of Modern Neural Networks", 2017, eq. 5.
///
/// # Panics
/// If there are no bins.
pub fn expected_calibration_error(answers: &[(f64, bool)], bins: usize) -> f64 {
    assert!(bins > 0, "expected_calibration_error: no bins");
    // Summed confidence and right answers of each bin.
    let mut sums = vec![(0.0, 0.0); bins];
    for &(confidence, is_right) in answers {
        let bin = ((confidence * bins as f64) as usize).min(bins - 1);
        sums[bin].0 += confidence;
        sums[bin].1 += f64::from(u8::from(is_right));
    }
    let error: f64 = sums.iter().map(|(confidence, right)| (confidence - right).abs()).sum();
    if answers.is_empty() { 0.0 } else { error / answers.len() as f64 }
}

/// Probabilities from log-likelihoods: their softmax.
pub fn softmax(log_likelihoods: &[f64]) -> Vec<f64> {
    let most = log_likelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_likelihoods.iter().map(|l| (l - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brier_is_the_squared_distance_from_the_truth() {
        assert!((brier(&[0.7, 0.2, 0.1], 0) - (0.09 + 0.04 + 0.01)).abs() < 1e-12);
        assert_eq!((brier(&[1.0, 0.0], 0), brier(&[1.0, 0.0], 1)), (0.0, 2.0));
    }

    #[test]
    fn calibration_compares_accuracy_with_confidence_bin_by_bin() {
        // Bin 0.5..0.6: confidence 0.55, accuracy 0.5; bin 0.9..1: 0.9 and 1, confidence 0.95, accuracy 0.5.
        let answers = [(0.5, true), (0.6 - 1e-9, false), (0.9, true), (1.0, false)];
        let expected = 0.5 * 0.05 + 0.5 * 0.45;
        assert!((expected_calibration_error(&answers, 10) - expected).abs() < 1e-8);
        assert_eq!(expected_calibration_error(&[], 10), 0.0);
    }

    #[test]
    fn softmax_survives_large_numbers() {
        let p = softmax(&[-1000.0, -1000.0 - 2.0_f64.ln()]);
        assert!((p[0] - 2.0 / 3.0).abs() < 1e-12 && (p[1] - 1.0 / 3.0).abs() < 1e-12);
    }
}
