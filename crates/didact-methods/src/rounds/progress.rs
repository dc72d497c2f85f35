//! Whether rounds still help.

use didact_core::seed::Streams;
use didact_eval::metrics::statistics::{Paired, mean, paired};
use serde::{Deserialize, Serialize};

/// What is known after a round: how good the model is, which round was best, and whether to go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The round; 0 is the model as it came.
    pub round: u64,
    /// Of each held-out task, the share of right answers.
    pub shares: Vec<f64>,
    /// Their mean.
    pub score: f64,
    /// The round with the best score, the earliest of equals.
    pub best: u64,
    /// Its score.
    pub best_score: f64,
    /// The last round that was better, beyond noise, than the one before it that was: gains are measured from there.
    pub base: u64,
    /// The gain since then, and its 95 % interval over held-out tasks; `None` for round 0.
    pub gain: Option<[f64; 3]>,
    /// Rounds in a row whose gain was not beyond noise.
    pub without_gain: u64,
    /// Why no more rounds are done, if that is so.
    pub stop: Option<String>,
}

/// When to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Rounds in a row without a gain beyond noise; 0 never stops.
    pub patience: u64,
    /// Answers in all; 0 is no limit.
    pub max_answers: u64,
    /// Answers that another round takes.
    pub next_round: u64,
}

/// Decides after a round. `earlier` are the decisions after rounds 0, 1, … before it, `answers` those sampled so far.
///
/// A gain is beyond noise when the 95 % interval of the paired bootstrap over held-out tasks lies above 0. Small gains add
/// up: each round is compared with the last one that showed a gain, not with the one before it.
pub fn decide(earlier: &[Decision], shares: Vec<f64>, answers: u64, rule: Rule, streams: &Streams) -> Decision {
    let score = mean(&shares);
    let round = earlier.len() as u64;
    let Some(before) = earlier.last() else {
        return Decision {
            round,
            shares,
            score,
            best: 0,
            best_score: score,
            base: 0,
            gain: None,
            without_gain: 0,
            stop: None,
        };
    };
    let base = &earlier[before.base as usize];
    let difference: Option<Paired> = if base.shares.len() == shares.len() {
        paired(&base.shares, &shares, &streams.child("gain", &[round]))
    } else {
        None
    };
    let gain = difference.map(|found| [found.difference, found.interval[0], found.interval[1]]);
    let is_shown = gain.is_some_and(|[_, low, _]| low > 0.0);
    let without_gain = if is_shown { 0 } else { before.without_gain + 1 };
    let is_best = score > before.best_score;
    let stop = if rule.patience > 0 && without_gain >= rule.patience {
        Some(format!("no gain beyond noise in {without_gain} rounds"))
    } else if rule.max_answers > 0 && answers + rule.next_round > rule.max_answers {
        Some(format!("{answers} of {} answers are spent", rule.max_answers))
    } else {
        None
    };
    Decision {
        round,
        shares,
        score,
        best: if is_best { round } else { before.best },
        best_score: if is_best { score } else { before.best_score },
        base: if is_shown { round } else { before.base },
        gain,
        without_gain,
        stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(shares: &[&[f64]], rule: Rule) -> Vec<Decision> {
        let mut all: Vec<Decision> = Vec::new();
        for shares in shares {
            let answers = 10 * all.len() as u64;
            let next = decide(&all, shares.to_vec(), answers, rule, &Streams::new(1));
            all.push(next);
        }
        all
    }

    const NEVER: Rule = Rule { patience: 0, max_answers: 0, next_round: 10 };

    #[test]
    fn noise_is_no_gain_and_enough_of_it_ends_the_rounds() {
        let flat = [0.5, 0.0, 1.0, 0.5, 0.5, 0.0];
        let other = [0.0, 0.5, 0.5, 1.0, 0.0, 1.0];
        let rule = Rule { patience: 2, ..NEVER };
        let found = rounds(&[&flat, &other, &flat], rule);
        assert_eq!(found[1].without_gain, 1);
        assert!(found[1].score > found[0].score && found[1].best == 1, "the best is the best, shown or not");
        assert!(found[1].stop.is_none() && found[2].stop.as_ref().is_some_and(|why| why.contains("2 rounds")));
        assert!(rounds(&[&flat, &other, &flat], NEVER)[2].stop.is_none());
    }

    #[test]
    fn a_clear_gain_moves_the_base_and_small_ones_add_up() {
        let at = |share: f64| vec![share; 8];
        let found = rounds(&[&at(0.1), &at(0.5), &at(0.5), &at(0.6)], Rule { patience: 2, ..NEVER });
        assert_eq!(found.iter().map(|d| d.base).collect::<Vec<_>>(), [0, 1, 1, 3]);
        assert_eq!(found.iter().map(|d| d.without_gain).collect::<Vec<_>>(), [0, 0, 1, 0]);
        assert_eq!(found[3].best, 3);
    }

    #[test]
    fn a_round_that_the_budget_does_not_hold_is_not_begun() {
        let rule = Rule { max_answers: 25, ..NEVER };
        let found = rounds(&[&[0.1, 0.2], &[0.1, 0.2], &[0.1, 0.2]], rule);
        assert!(found[1].stop.is_none(), "10 and 10 more are 20");
        assert!(found[2].stop.as_ref().is_some_and(|why| why.contains("20 of 25")));
    }
}
