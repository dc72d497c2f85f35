//! The ranking loss over several answers to one prompt (RTLCoder, arXiv 2312.08617; ITERTL, arXiv 2407.12022).
//!
//! With `p_k` the mean log-probability of answer `k` and `z_k` its score, `q = softmax(p)`, and
//! `L_rank = Σ_{i,j: z_j - z_i > δ} max(0, m - (q_j - q_i))`. It is trained with the likelihood of a reference answer,
//! `L_mle = -p_ref`; alone it would be enough to make all answers unlikely. As with preferences ([`crate::preference`]),
//! all that a training step needs is a coefficient per answer: the gradient of the loss is `Σ_k c_k ∂p_k`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How likelihood and ranking are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Combine {
    /// `L_mle + λ L_rank`.
    #[default]
    Add,
    /// `(1 + λ L_rank) L_mle`.
    Mult,
}

/// The loss and its settings: the table `[ranking]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ranking {
    /// Scores that differ by no more than this are not ranked, `δ`.
    pub delta: f64,
    /// By how much the share of the better one should lead, `m`.
    pub margin: f64,
    /// Weight of the ranking, `λ`.
    pub lambda: f64,
    /// How it is put together with the likelihood.
    pub combine: Combine,
}

impl Default for Ranking {
    fn default() -> Self {
        Self { delta: 0.2, margin: 0.3, lambda: 1.0, combine: Combine::Add }
    }
}

impl Ranking {
    /// Checks the settings.
    ///
    /// # Errors
    /// The key of the first that makes no sense, what it is, and what would do.
    pub fn validate(&self) -> Result<(), (&'static str, f64, &'static str)> {
        for (key, value) in [("delta", self.delta), ("margin", self.margin), ("lambda", self.lambda)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err((key, value, "a number from 0 up"));
            }
        }
        Ok(())
    }
}

/// The answers to one prompt, by their scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankedGroup {
    /// `z_k`, from 0 to 1.
    pub scores: Vec<f64>,
    /// The number of the answer whose likelihood is trained.
    pub reference: usize,
}

impl RankedGroup {
    /// By how much the mean log-probability of the best answer leads the worst one's; 0 when all are as good.
    pub(crate) fn lead(&self, means: &[f64]) -> f64 {
        let by_score = |a: &(&f64, &f64), b: &(&f64, &f64)| a.0.total_cmp(b.0);
        let both = || self.scores.iter().zip(means);
        match (both().max_by(by_score), both().min_by(by_score)) {
            (Some((high, best)), Some((low, worst))) if high > low => best - worst,
            _ => 0.0,
        }
    }
}

/// What cannot be ranked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RankingError {
    /// Not one score for each answer, or no such reference.
    #[error("{answers} answers with {scores} scores, of which number {reference} is the reference")]
    Lengths {
        /// Answers.
        answers: usize,
        /// Scores.
        scores: usize,
        /// The reference.
        reference: usize,
    },
    /// A number is not finite: an answer without tokens, a score that was not given.
    #[error("answer {index} has no finite log-probability or score; answers without tokens cannot be ranked")]
    NotFinite {
        /// Which, from 0.
        index: usize,
    },
}

/// A group's loss and coefficients.
#[derive(Debug, Clone, PartialEq)]
pub struct RankingLoss {
    /// The whole loss.
    pub loss: f64,
    /// `L_rank` alone.
    pub rank: f64,
    /// `∂(λ L_rank)/∂p_k`.
    pub rank_slopes: Vec<f64>,
    /// `∂L/∂p_k`: answers whose coefficient is 0 need no backward pass.
    pub coefficients: Vec<f64>,
}

impl Ranking {
    /// The loss of one prompt's answers, `reference` being the number of the one whose likelihood is trained.
    ///
    /// # Errors
    /// When lengths do not fit or a number is not finite.
    pub fn of(&self, p: &[f64], z: &[f64], reference: usize) -> Result<RankingLoss, RankingError> {
        if p.len() != z.len() || reference >= p.len() {
            return Err(RankingError::Lengths { answers: p.len(), scores: z.len(), reference });
        }
        if let Some(index) = p.iter().zip(z).position(|(p, z)| !(p.is_finite() && z.is_finite())) {
            return Err(RankingError::NotFinite { index });
        }
        let largest = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shares: Vec<f64> = p.iter().map(|p| (p - largest).exp()).collect();
        let total: f64 = shares.iter().sum();
        let q: Vec<f64> = shares.iter().map(|share| share / total).collect();
        let mut rank = 0.0;
        let mut slopes_of_q = vec![0.0; p.len()];
        for worse in 0..p.len() {
            for better in 0..p.len() {
                let lack = self.margin - (q[better] - q[worse]);
                if z[better] - z[worse] > self.delta && lack > 0.0 {
                    rank += lack;
                    slopes_of_q[worse] += 1.0;
                    slopes_of_q[better] -= 1.0;
                }
            }
        }
        let mean: f64 = q.iter().zip(&slopes_of_q).map(|(q, slope)| q * slope).sum();
        let rank_slopes: Vec<f64> =
            q.iter().zip(&slopes_of_q).map(|(q, slope)| self.lambda * q * (slope - mean)).collect();
        let mle = -p[reference];
        let (loss, of_rank, of_mle) = match self.combine {
            Combine::Add => (mle + self.lambda * rank, 1.0, 1.0),
            Combine::Mult => ((1.0 + self.lambda * rank) * mle, mle, 1.0 + self.lambda * rank),
        };
        let mut coefficients: Vec<f64> = rank_slopes.iter().map(|slope| of_rank * slope).collect();
        coefficients[reference] -= of_mle;
        Ok(RankingLoss { loss, rank, rank_slopes, coefficients })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: [f64; 4] = [-0.9, -0.5, -0.7, -0.6];
    const Z: [f64; 4] = [0.1, 0.0, 0.45, 1.0];

    #[test]
    fn value_and_slopes_are_those_of_the_specification() {
        let found = Ranking::default().of(&P, &Z, 3).expect("can be ranked");
        assert!((found.rank - 1.44325).abs() < 5e-6, "{}", found.rank);
        for (found, expected) in found.rank_slopes.iter().zip([0.40622, 0.60602, -0.22755, -0.78469]) {
            assert!((found - expected).abs() < 5e-6, "{found} is not {expected}");
        }
        assert!((found.loss - (0.6 + 1.44325)).abs() < 5e-6);
        assert!((found.coefficients[3] - (-0.78469 - 1.0)).abs() < 5e-6);
    }

    #[test]
    fn coefficients_are_those_of_finite_differences() {
        let h = 1e-6;
        for combine in [Combine::Add, Combine::Mult] {
            let ranking = Ranking { lambda: 0.7, combine, ..Ranking::default() };
            let found = ranking.of(&P, &Z, 3).expect("can be ranked");
            for k in 0..4 {
                let at = |step: f64| {
                    let mut p = P;
                    p[k] += step;
                    ranking.of(&p, &Z, 3).expect("can be ranked").loss
                };
                let slope = (at(h) - at(-h)) / (2.0 * h);
                assert!((found.coefficients[k] - slope).abs() < 1e-7, "{combine:?} {k}: {slope}");
            }
        }
    }

    #[test]
    fn equal_scores_and_single_answers_leave_likelihood_alone() {
        let ranking = Ranking::default();
        let equal = ranking.of(&P, &[0.5; 4], 1).expect("can be ranked");
        assert_eq!((equal.rank, equal.loss, equal.coefficients), (0.0, 0.5, vec![0.0, -1.0, 0.0, 0.0]));
        assert_eq!(ranking.of(&[-2.0], &[1.0], 0).expect("one").loss, 2.0);
        // A lead of the whole margin is enough.
        let ahead = ranking.of(&[0.0, -9.0], &[1.0, 0.0], 0).expect("two");
        assert_eq!(ahead.rank, 0.0);
    }

    #[test]
    fn what_cannot_be_ranked_is_refused() {
        let ranking = Ranking::default();
        assert!(matches!(ranking.of(&P, &Z[..3], 0), Err(RankingError::Lengths { .. })));
        assert!(matches!(ranking.of(&P, &Z, 4), Err(RankingError::Lengths { .. })));
        assert_eq!(ranking.of(&[0.0, f64::NAN], &[0.0, 1.0], 0), Err(RankingError::NotFinite { index: 1 }));
    }
}
