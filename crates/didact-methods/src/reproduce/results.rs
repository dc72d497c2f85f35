//! What all arms measured.

use super::Outcome;
use std::collections::BTreeMap;

/// What all arms measured at all seeds.
#[derive(Debug, Clone, Default)]
pub struct Results {
    seeds: Vec<u64>,
    /// By arm, then by seed in the order of `seeds`.
    arms: BTreeMap<String, Vec<Outcome>>,
}

impl Results {
    /// From what each arm measured, in the order of the seeds.
    ///
    /// # Panics
    /// If an arm has not one outcome per seed.
    pub fn new(seeds: Vec<u64>, arms: BTreeMap<String, Vec<Outcome>>) -> Self {
        for (name, outcomes) in &arms {
            assert_eq!(outcomes.len(), seeds.len(), "arm `{name}` has one outcome per seed");
        }
        Self { seeds, arms }
    }

    /// The seeds, in order.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// What an arm measured, by seed.
    ///
    /// # Panics
    /// If there is no such arm: a mistake in the method.
    pub fn outcomes(&self, arm: &str) -> &[Outcome] {
        self.arms.get(arm).unwrap_or_else(|| panic!("there is no arm `{arm}`"))
    }

    /// Whether an arm measured something at every seed.
    pub fn has(&self, arm: &str, metric: &str) -> bool {
        self.arms.get(arm).is_some_and(|outcomes| outcomes.iter().all(|o| o.values.contains_key(metric)))
    }

    /// A value by seed.
    ///
    /// # Panics
    /// If the arm is not there or did not measure it: a mistake in the method.
    pub fn values(&self, arm: &str, metric: &str) -> Vec<f64> {
        let of = |outcome: &Outcome| {
            *outcome.values.get(metric).unwrap_or_else(|| panic!("arm `{arm}` has not measured `{metric}`"))
        };
        self.outcomes(arm).iter().map(of).collect()
    }

    /// The mean of a value over seeds.
    ///
    /// # Panics
    /// As [`Self::values`].
    pub fn mean(&self, arm: &str, metric: &str) -> f64 {
        let values = self.values(arm, metric);
        values.iter().sum::<f64>() / values.len() as f64
    }
}
