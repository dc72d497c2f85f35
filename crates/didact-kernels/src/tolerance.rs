//! Tolerances of the tests, by name.

/// Error of a dot product or other sum over `n` terms in f32, as a share of the sum of the absolute terms:
/// `4·eps·√n`.
pub(crate) fn f32_sum(n: usize) -> f64 {
    4.0 * f64::from(f32::EPSILON) * (n.max(1) as f64).sqrt()
}

/// Checks values against a reference: 4 ulp or 1e-6 of the value, whichever is larger, as for functions of one element.
#[track_caller]
pub(crate) fn assert_elementwise(what: &str, got: &[f32], want: impl IntoIterator<Item = f64>) {
    assert_within(
        what,
        got,
        want.into_iter().map(|w| (w, (4.0 * f64::from(f32::EPSILON) * w.abs()).max(1e-6 * w.abs()))),
    );
}

/// Checks each value against a reference and its own tolerance, and names the worst.
#[track_caller]
pub(crate) fn assert_within(what: &str, got: &[f32], want: impl IntoIterator<Item = (f64, f64)>) {
    let mut seen = 0;
    for (i, (got, (want, tolerance))) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance, "{what}: element {i} is {got}, expected {want} within {tolerance:e}");
        seen += 1;
    }
    assert_eq!(seen, got.len(), "{what}: reference and result differ in length");
}
