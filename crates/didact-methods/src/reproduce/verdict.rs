//! How a claim is decided.
//!
//! Every seed gives one **effect**: by how much the method is better than the baseline, both run from the same data and
//! initial weights. The two-sided 95 % interval of Student's t over these effects decides: all of it above zero, and the
//! claim holds; all of it below, and it fails; else nothing can be said. With no effect, 2.5 % of reproductions would be
//! called "holds", as many "fails". The bootstrap over items shows how much the choice of test items alone moves the
//! effect; it knows nothing of how much training varies from seed to seed, is narrower for that, and decides nothing.

use didact_core::seed::Streams;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The share of intervals that hold what they are about.
const CONFIDENCE: f64 = 0.95;
/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The method is better, beyond what seeds explain.
    Holds,
    /// The method is worse, beyond what seeds explain.
    Fails,
    /// Neither can be said.
    Inconclusive,
}

impl Verdict {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// Mean effect, its interval, and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Mean over seeds; above zero favours the method.
    pub effect: f64,
    /// The 95 % interval of the mean; `None` where a single seed gives none.
    pub ci95: Option<[f64; 2]>,
    /// What follows.
    pub verdict: Verdict,
}

/// Decides from the effects of all seeds, above zero being in the method's favour.
///
/// # Reference
/// Student, "The probable error of a mean", Biometrika 1908.
pub fn decide(effects: &[f64]) -> Decision {
    let n = effects.len() as f64;
    let mean = effects.iter().sum::<f64>() / n;
    if effects.len() < 2 {
        return Decision { effect: mean, ci95: None, verdict: Verdict::Inconclusive };
    }
    let variance = effects.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let student = StudentsT::new(0.0, 1.0, n - 1.0).expect("there is at least one degree of freedom");
    let half = student.inverse_cdf(f64::midpoint(1.0, CONFIDENCE)) * (variance / n).sqrt();
    let [low, high] = [mean - half, mean + half];
    let verdict = if low > 0.0 {
        Verdict::Holds
    } else if high < 0.0 {
        Verdict::Fails
    } else {
        Verdict::Inconclusive
    };
    Decision { effect: mean, ci95: Some([low, high]), verdict }
}

/// The central 95 % of the mean effect when the items of every seed are drawn anew. `differences` are effects by seed and
/// item. `None` when a seed has no items.
pub fn bootstrap(differences: &[Vec<f64>]) -> Option<[f64; 2]> {
    if differences.is_empty() || differences.iter().any(Vec::is_empty) {
        return None;
    }
    let mut rng = Streams::new(0).rng("bootstrap", &[]);
    let mut mean_of = |items: &Vec<f64>| {
        let n = items.len();
        (0..n).map(|_| items[rng.random_range(0..n)]).sum::<f64>() / n as f64
    };
    let seeds = differences.len() as f64;
    let mut means: Vec<f64> =
        (0..RESAMPLES).map(|_| differences.iter().map(&mut mean_of).sum::<f64>() / seeds).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some([at(tail), at(1.0 - tail)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sum of twelve uniform numbers is close to normal.
    fn noise(rng: &mut impl rand::Rng) -> f64 {
        (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
    }

    #[test]
    fn the_interval_is_the_one_of_the_tables() {
        // Quantile of t with 4 degrees of freedom: 2.776; mean 3, standard error sqrt(2.5 / 5).
        let decision = decide(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let [low, high] = decision.ci95.expect("five seeds");
        assert!((low - (3.0 - 2.776_445 * 0.5_f64.sqrt())).abs() < 1e-5, "{low}");
        assert!((high - (3.0 + 2.776_445 * 0.5_f64.sqrt())).abs() < 1e-5, "{high}");
        assert_eq!(decision.verdict, Verdict::Holds);
    }

    #[test]
    fn without_an_effect_hardly_anything_holds() {
        let (mut holds, mut fails) = (0, 0);
        let trials = 4000;
        let mut rng = Streams::new(7).rng("no effect", &[]);
        for _ in 0..trials {
            let effects: Vec<f64> = (0..5).map(|_| noise(&mut rng)).collect();
            match decide(&effects).verdict {
                Verdict::Holds => holds += 1,
                Verdict::Fails => fails += 1,
                Verdict::Inconclusive => {}
            }
        }
        // 2.5 % each are expected, with a standard error of 0.25 %: four of those.
        for share in [holds, fails].map(|count| f64::from(count) / f64::from(trials)) {
            assert!((0.015..=0.035).contains(&share), "{share}");
        }
    }

    #[test]
    fn a_clear_effect_is_seen_and_flips_with_its_sign() {
        let effects = [0.5, 0.6, 0.4, 0.55, 0.45];
        assert_eq!(decide(&effects).verdict, Verdict::Holds);
        assert_eq!(decide(&effects.map(|e| -e)).verdict, Verdict::Fails);
        assert_eq!(decide(&[0.5, -0.6, 0.4, -0.5, 0.1]).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn one_seed_and_no_number_decide_nothing() {
        assert_eq!(decide(&[3.0]), Decision { effect: 3.0, ci95: None, verdict: Verdict::Inconclusive });
        assert_eq!(decide(&[3.0, f64::NAN]).verdict, Verdict::Inconclusive);
        assert_eq!(decide(&[0.0, 0.0]).verdict, Verdict::Inconclusive);
    }

    #[test]
    fn the_bootstrap_covers_the_mean_of_its_items_and_narrows_with_more_of_them() {
        let mut rng = Streams::new(1).rng("items", &[]);
        let mut items =
            |n: usize| -> Vec<Vec<f64>> { (0..2).map(|_| (0..n).map(|_| 1.0 + noise(&mut rng)).collect()).collect() };
        let width = |[low, high]: [f64; 2]| high - low;
        let few = bootstrap(&items(50)).expect("items");
        let many = bootstrap(&items(5000)).expect("items");
        assert!(many[0] < 1.0 && 1.0 < many[1], "{many:?}");
        // A hundred times the items make it about ten times as narrow.
        let ratio = width(few) / width(many);
        assert!((6.0..16.0).contains(&ratio), "{ratio}");
        assert_eq!(bootstrap(&[vec![1.0], vec![]]), None);
    }
}
