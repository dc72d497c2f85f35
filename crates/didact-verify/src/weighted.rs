//! One verdict from several verifiers.

use didact_core::cancel::Cancel;
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};

/// A verifier with its name and weight.
pub struct WeightedPart {
    /// Its name in categories and reasons.
    pub name: String,
    /// Its share of the score, relative to the others'; above 0.
    pub weight: f64,
    /// The verifier.
    pub verifier: Box<dyn Verifier>,
}

/// What is wrong with the parts of a combination.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// There are none.
    #[error("a combination needs at least one verifier")]
    Empty,
    /// A weight is no weight.
    #[error("the weight of `{name}` is {weight}; it must be a number above 0")]
    Weight {
        /// Whose.
        name: String,
        /// What was given.
        weight: f64,
    },
}

/// The weighted mean of several verifiers' scores, `Σ wᵢ sᵢ / Σ wᵢ`, with the category `name:category` of the part that
/// cost most. It is 1 only if each part is. An answer that one part could not judge has no score.
pub struct Weighted {
    parts: Vec<WeightedPart>,
}

impl Weighted {
    /// A combination of these.
    ///
    /// # Errors
    /// When there are none, or a weight is not above 0.
    pub fn new(parts: Vec<WeightedPart>) -> Result<Self, WeightError> {
        if parts.is_empty() {
            return Err(WeightError::Empty);
        }
        if let Some(part) = parts.iter().find(|part| !(part.weight > 0.0 && part.weight.is_finite())) {
            return Err(WeightError::Weight { name: part.name.clone(), weight: part.weight });
        }
        Ok(Self { parts })
    }

    fn combine(&self, verdicts: &[Verdict]) -> Verdict {
        let reason = self.parts.iter().zip(verdicts).map(|(part, verdict)| {
            let score = verdict.score.map_or("not judged".to_owned(), |s| format!("{s:.3}"));
            format!("{} {score} ({}: {})", part.name, verdict.category, verdict.reason)
        });
        let reason = reason.collect::<Vec<_>>().join("; ");
        let total: f64 = self.parts.iter().map(|part| part.weight).sum();
        let (mut lost, mut most) = (0.0, None);
        for (part, verdict) in self.parts.iter().zip(verdicts) {
            let Some(score) = verdict.score else {
                let category = format!("{}:{}", part.name, verdict.category);
                return Verdict { score: None, category, reason };
            };
            let cost = part.weight * (1.0 - score);
            lost += cost;
            if cost > 0.0 && most.as_ref().is_none_or(|(other, _)| cost > *other) {
                most = Some((cost, format!("{}:{}", part.name, verdict.category)));
            }
        }
        // Summed as what was lost, so that nothing lost is exactly 1.
        let category = most.map_or("right".to_owned(), |(_, category)| category);
        Verdict { score: Some(1.0 - lost / total), category, reason }
    }
}

impl Verifier for Weighted {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError> {
        let mut seen: Vec<Vec<Verdict>> = vec![Vec::new(); items.len()];
        for part in &self.parts {
            let mut own = vec![None; items.len()];
            part.verifier.verify(items, &mut |index, verdict| own[index] = Some(verdict), cancel)?;
            for (all, one) in seen.iter_mut().zip(own) {
                all.extend(one);
            }
        }
        for (index, verdicts) in seen.iter().enumerate() {
            // After a stop some have not been looked at by every part.
            if verdicts.len() == self.parts.len() {
                sink(index, self.combine(verdicts));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::{ExactMatch, NumericMatch, SetMatch};
    use serde_json::json;

    fn part(name: &str, weight: f64, verifier: impl Verifier + 'static) -> WeightedPart {
        WeightedPart { name: name.into(), weight, verifier: Box::new(verifier) }
    }

    #[test]
    fn scores_are_means_and_categories_those_of_the_worst() {
        let all = Weighted::new(vec![
            part("set", 1.0, SetMatch::default()),
            part("exact", 3.0, ExactMatch { loose: true, ..ExactMatch::default() }),
        ])
        .expect("valid");
        let item = |reference| Item { id: "1".into(), prompt: String::new(), reference };
        let items = [item(json!(["7"])), item(json!(["7"])), item(json!(["8"])), item(json!({}))];
        let pairs: Vec<(&Item, &str)> = items.iter().zip(["7", "7, 8", "7", "7"]).collect();
        let mut found = vec![None; 4];
        all.verify(&pairs, &mut |i, v| found[i] = Some((v.score, v.category)), &Cancel::new()).expect("works");
        let expected = [
            (Some(1.0), "right"),
            (Some((2.0 / 3.0) / 4.0), "exact:different"),
            (Some(0.0), "exact:different"),
            (None, "set:bad_reference"),
        ];
        for (found, (score, category)) in found.into_iter().zip(expected) {
            let (found_score, found_category) = found.expect("judged");
            assert_eq!(found_category, category);
            assert_eq!(found_score.is_some(), score.is_some());
            assert!((found_score.unwrap_or(0.0) - score.unwrap_or(0.0)).abs() < 1e-12, "{found_score:?}");
        }
    }

    #[test]
    fn weights_are_checked() {
        assert_eq!(Weighted::new(Vec::new()).err(), Some(WeightError::Empty));
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let parts = vec![part("n", weight, NumericMatch::default())];
            assert!(matches!(Weighted::new(parts), Err(WeightError::Weight { .. })), "{weight}");
        }
    }
}
