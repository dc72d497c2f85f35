//! How much is read from each of several pools: weights that stand still, follow the progress of training, or follow what
//! evaluations found.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{CurriculumError, Feedback, Progress, setting};

/// Weights of pools, as a recipe writes them. They need not sum to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// The same throughout.
    Fixed(Vec<f64>),
    /// Given at some points of progress (0 to 1, ascending) and something between them.
    Path {
        /// Progress, and the weights there.
        points: Vec<(f64, Vec<f64>)>,
        /// What is between two points.
        shape: Shape,
    },
    /// By what evaluations found and a graph of what helps what.
    Graph(GraphSettings),
}

/// What lies between two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The earlier point's weights, up to the later one.
    Step,
    /// A straight line.
    Linear,
    /// Half a cosine wave: slow at both ends.
    Cosine,
}

/// Exponentiated-gradient weights over a skills graph:
/// `p_i ∝ prior_i · exp(η · Σ_j A_ij · L_j)`, where `A_ij` says how much training on pool i lowers evaluation j's loss, and
/// `L_j` is the sum or mean of j's last few losses (1 before there are any).
///
/// The weights are made anew from the prior at the beginning of each round of steps, and stay for the round.
///
/// # Reference
/// Chen et al., "Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models", NeurIPS 2023.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphSettings {
    /// One row per pool, one column per evaluation.
    pub graph: Vec<Vec<f64>>,
    /// Names of the evaluations, as feedback calls them.
    pub evaluations: Vec<String>,
    /// Step size.
    pub eta: Eta,
    /// Steps of a round.
    pub round_steps: u64,
    /// How many of the last evaluations (or rounds) count.
    pub window: usize,
    /// What the window counts.
    #[serde(default)]
    pub window_unit: WindowUnit,
    /// What is made of the losses in the window.
    #[serde(default)]
    pub aggregate: Aggregate,
    /// Losses are divided by the first ones found, so that their scales do not matter.
    #[serde(default)]
    pub relative_losses: bool,
    /// Pools without an edge to or from another keep an equal share.
    #[serde(default)]
    pub ignore_lone: bool,
    /// Least weight of a pool.
    #[serde(default)]
    pub min_weight: f64,
    /// Weights before anything is known; equal ones when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prior: Option<Vec<f64>>,
}

/// A step size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eta {
    /// As given.
    Given(f64),
    /// Such that at the first evaluation the largest and the smallest exponent are this far apart (1.5 makes the largest
    /// weight about 4.5 times the smallest).
    Spread(f64),
}

/// What a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowUnit {
    /// Evaluations.
    #[default]
    Evaluation,
    /// Rounds: the last evaluation of each.
    Round,
}

/// What is made of several losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their sum.
    #[default]
    Sum,
    /// Their mean.
    Mean,
}

/// What weights remember.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Memory {
    /// The last losses, oldest first, with the round they were found in.
    recent: Vec<(u64, Vec<f64>)>,
    /// The first losses found.
    first: Option<Vec<f64>>,
    /// The step size in use.
    eta: Option<f64>,
    /// The weights of the round, and its number.
    current: Option<(u64, Vec<f64>)>,
}

impl Weights {
    /// Checks that there are as many weights as pools, and that each makes sense.
    pub(super) fn check(&self, pools: usize) -> Result<(), CurriculumError> {
        let vector = |key: &str, weights: &[f64]| {
            if weights.len() != pools {
                return Err(setting(key, format!("{} weights", weights.len()), format!("{pools}, one per pool")));
            }
            let is_fine = weights.iter().all(|w| w.is_finite() && *w >= 0.0) && weights.iter().any(|w| *w > 0.0);
            if is_fine { Ok(()) } else { Err(setting(key, format!("{weights:?}"), "numbers from 0 on, not all 0")) }
        };
        match self {
            Self::Fixed(weights) => vector("weights", weights),
            Self::Path { points, .. } => {
                if points.is_empty() {
                    return Err(setting("points", "empty", "at least one point"));
                }
                for (i, (at, weights)) in points.iter().enumerate() {
                    vector(&format!("points[{i}]"), weights)?;
                    let is_ascending = i == 0 || points[i - 1].0 < *at;
                    if !(0.0..=1.0).contains(at) || !is_ascending {
                        return Err(setting(
                            &format!("points[{i}]"),
                            at,
                            "a progress from 0 to 1, after the one before",
                        ));
                    }
                }
                Ok(())
            }
            Self::Graph(graph) => graph.check(pools, vector),
        }
    }

    /// The weights of a step, summing to 1.
    pub(super) fn at(&self, progress: &Progress, memory: &mut Memory) -> Vec<f64> {
        match self {
            Self::Fixed(weights) => normalised(weights.clone()),
            Self::Path { points, shape } => normalised(between(points, *shape, progress.fraction())),
            Self::Graph(graph) => {
                let round = progress.step / graph.round_steps;
                match &memory.current {
                    Some((of, weights)) if *of == round => weights.clone(),
                    _ => {
                        let weights = graph.weights(memory);
                        memory.current = Some((round, weights.clone()));
                        weights
                    }
                }
            }
        }
    }

    /// Takes in what an evaluation found.
    pub(super) fn observe(&self, feedback: &Feedback, memory: &mut Memory) -> Result<(), CurriculumError> {
        let Self::Graph(graph) = self else { return Ok(()) };
        let wrong = |what: &str, name: &String| CurriculumError::Feedback {
            step: feedback.step,
            what: what.to_owned(),
            name: name.clone(),
        };
        let mut losses = Vec::with_capacity(graph.evaluations.len());
        for name in &graph.evaluations {
            let loss = *feedback.losses.get(name).ok_or_else(|| wrong("has no loss", name))?;
            if !loss.is_finite() {
                return Err(wrong(&format!("found the loss {loss}"), name));
            }
            losses.push(loss);
        }
        memory.first.get_or_insert_with(|| losses.clone());
        // Evaluations after the last step of a round belong to it.
        let round = feedback.step.saturating_sub(1) / graph.round_steps;
        if graph.window_unit == WindowUnit::Round {
            memory.recent.retain(|(of, _)| *of != round);
        }
        memory.recent.push((round, losses));
        let excess = memory.recent.len().saturating_sub(graph.window);
        memory.recent.drain(..excess);
        Ok(())
    }
}

impl GraphSettings {
    fn check(
        &self,
        pools: usize,
        vector: impl Fn(&str, &[f64]) -> Result<(), CurriculumError>,
    ) -> Result<(), CurriculumError> {
        let evaluations = self.evaluations.len();
        if self.graph.len() != pools || self.graph.iter().any(|row| row.len() != evaluations) {
            let columns: Vec<_> = self.graph.iter().map(Vec::len).collect();
            let found = format!("{} rows of {columns:?} numbers", self.graph.len());
            return Err(setting("graph", found, format!("{pools} rows (pools) of {evaluations} (evaluations)")));
        }
        if self.graph.iter().flatten().any(|edge| !edge.is_finite()) {
            return Err(setting("graph", "not finite", "numbers"));
        }
        if self.window == 0 || self.round_steps == 0 || evaluations == 0 {
            return Err(setting("window, round_steps or evaluations", 0, "at least 1"));
        }
        let (Eta::Given(eta) | Eta::Spread(eta)) = self.eta;
        if !(eta.is_finite() && eta > 0.0) {
            return Err(setting("eta", eta, "a number above 0"));
        }
        if !(0.0..=1.0 / pools as f64).contains(&self.min_weight) {
            return Err(setting("min_weight", self.min_weight, format!("from 0 to 1/{pools}")));
        }
        self.prior.as_deref().map_or(Ok(()), |prior| vector("prior", prior))
    }

    /// The losses that count: 1 before there are any.
    fn losses(&self, memory: &Memory) -> Vec<f64> {
        let n = memory.recent.len();
        if n == 0 {
            return vec![1.0; self.evaluations.len()];
        }
        let loss = |j: usize| {
            let sum: f64 = memory.recent.iter().map(|(_, losses)| losses[j]).sum();
            let loss = if self.aggregate == Aggregate::Mean { sum / n as f64 } else { sum };
            match &memory.first {
                // A loss near 0 at the start must not blow the ratio up.
                Some(first) if self.relative_losses => loss / first[j].max(1e-3),
                _ => loss,
            }
        };
        (0..self.evaluations.len()).map(loss).collect()
    }

    fn weights(&self, memory: &mut Memory) -> Vec<f64> {
        let losses = self.losses(memory);
        let slopes: Vec<f64> =
            self.graph.iter().map(|row| row.iter().zip(&losses).map(|(edge, loss)| edge * loss).sum()).collect();
        let eta = match (self.eta, memory.eta) {
            (Eta::Given(eta), _) | (Eta::Spread(_), Some(eta)) => eta,
            (Eta::Spread(wanted), None) => {
                let spread =
                    slopes.iter().copied().fold(f64::MIN, f64::max) - slopes.iter().copied().fold(f64::MAX, f64::min);
                let eta = if spread > 0.0 { wanted / spread } else { 0.0 };
                // Before the first evaluation nothing is known of the scale of losses.
                if !memory.recent.is_empty() {
                    memory.eta = Some(eta);
                }
                eta
            }
        };
        let k = self.graph.len();
        let is_lone = |i: usize| {
            let outside = |j: &usize| *j != i;
            let out = (0..self.evaluations.len()).filter(outside).any(|j| self.graph[i][j] != 0.0);
            let into = k == self.evaluations.len() && (0..k).filter(outside).any(|from| self.graph[from][i] != 0.0);
            !out && !into
        };
        let lone: Vec<bool> = (0..k).map(|i| self.ignore_lone && is_lone(i)).collect();
        let top = (0..k).filter(|&i| !lone[i]).map(|i| eta * slopes[i]).fold(f64::MIN, f64::max);
        let prior = |i: usize| self.prior.as_ref().map_or(1.0, |prior| prior[i]);
        let raw = (0..k).map(|i| if lone[i] { 0.0 } else { prior(i) * (eta * slopes[i] - top).exp() }).collect();
        let alone = lone.iter().filter(|&&lone| lone).count();
        let shared = 1.0 - alone as f64 / k as f64;
        let mut weights =
            if alone == k { vec![1.0 / k as f64; k] } else { normalised(raw).iter().map(|w| w * shared).collect() };
        for i in (0..k).filter(|&i| lone[i]) {
            weights[i] = 1.0 / k as f64;
        }
        let free = 1.0 - self.min_weight * k as f64;
        weights.iter().map(|w| self.min_weight + free * w).collect()
    }
}

fn normalised(mut weights: Vec<f64>) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    for w in &mut weights {
        *w /= sum;
    }
    weights
}

fn between(points: &[(f64, Vec<f64>)], shape: Shape, at: f64) -> Vec<f64> {
    let after = points.partition_point(|point| point.0 <= at);
    let Some(before) = after.checked_sub(1) else { return points[0].1.clone() };
    let Some(next) = points.get(after) else { return points[before].1.clone() };
    let (from, to) = (&points[before], next);
    // Each point's weights are taken as shares, so that a path does not depend on the scale they are written in.
    let (a, b) = (normalised(from.1.clone()), normalised(to.1.clone()));
    let share = (at - from.0) / (to.0 - from.0);
    let share = match shape {
        Shape::Step => 0.0,
        Shape::Linear => share,
        Shape::Cosine => (1.0 - (PI * share).cos()) / 2.0,
    };
    a.iter().zip(&b).map(|(a, b)| a + (b - a) * share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn lego() -> GraphSettings {
        let mut graph: Vec<Vec<f64>> = (0..5).map(|i| (0..5).map(|j| f64::from(u8::from(i == j))).collect()).collect();
        for column in [0, 2, 3] {
            graph[1][column] = 0.5;
        }
        GraphSettings {
            graph,
            evaluations: (0..5).map(|i| format!("s{i}")).collect(),
            eta: Eta::Given(0.5),
            round_steps: 10,
            window: 3,
            window_unit: WindowUnit::Evaluation,
            aggregate: Aggregate::Sum,
            relative_losses: false,
            ignore_lone: false,
            min_weight: 0.0,
            prior: None,
        }
    }

    fn found(step: u64, losses: &[f64]) -> Feedback {
        let named = losses.iter().enumerate().map(|(i, loss)| (format!("s{i}"), *loss));
        Feedback { step, losses: named.collect::<BTreeMap<_, _>>() }
    }

    /// To the four digits that the values are given with.
    fn near(weights: &[f64], expected: &[f64]) {
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for (w, e) in weights.iter().zip(expected) {
            assert!((w - e).abs() < 6e-5, "{weights:?} against {expected:?}");
        }
    }

    #[test]
    fn graph_weights_follow_rows_and_recent_losses() {
        let weights = Weights::Graph(lego());
        let mut memory = Memory::default();
        let at = |step| Progress { step, total_steps: 100 };
        // Row sums are 1, 2.5, 1, 1, 1: the pool that helps others is read most, not those that are helped.
        near(&weights.at(&at(0), &mut memory), &[0.1635, 0.3461, 0.1635, 0.1635, 0.1635]);
        weights.observe(&found(5, &[0.1, 2.0, 2.1, 2.1, 2.1]), &mut memory).expect("finite");
        near(&weights.at(&at(9), &mut memory), &[0.1635, 0.3461, 0.1635, 0.1635, 0.1635]);
        near(&weights.at(&at(10), &mut memory), &[0.0598, 0.4528, 0.1625, 0.1625, 0.1625]);
    }

    #[test]
    fn losses_however_large_give_weights_that_are_numbers() {
        let weights = Weights::Graph(lego());
        let mut memory = Memory::default();
        weights.observe(&found(1, &[1e6; 5]), &mut memory).expect("finite");
        let large = weights.at(&Progress { step: 10, total_steps: 100 }, &mut memory);
        assert!(large.iter().all(|w| w.is_finite()) && (large.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let error = weights.observe(&found(7, &[1.0, f64::NAN, 1.0, 1.0, 1.0]), &mut memory).expect_err("no number");
        assert_eq!(error.to_string(), "the evaluation at step 7 found the loss NaN for `s1`");
        let error = weights.observe(&found(7, &[1.0]), &mut memory).expect_err("too few");
        assert_eq!(error.to_string(), "the evaluation at step 7 has no loss for `s1`");
    }

    #[test]
    fn the_window_counts_evaluations_or_rounds_and_is_summed_or_averaged() {
        let sums = |settings: GraphSettings| {
            let weights = Weights::Graph(settings.clone());
            let mut memory = Memory::default();
            for (step, loss) in [(0, 8.0), (5, 6.0), (10, 4.0), (15, 2.0), (20, 1.0)] {
                weights.observe(&found(step, &[loss; 5]), &mut memory).expect("finite");
            }
            settings.losses(&memory)[0]
        };
        assert_eq!(sums(lego()), 4.0 + 2.0 + 1.0);
        assert_eq!(sums(GraphSettings { aggregate: Aggregate::Mean, ..lego() }), 7.0 / 3.0);
        // Rounds of ten steps: the evaluations after steps 10 and 20 are their last.
        assert_eq!(sums(GraphSettings { window_unit: WindowUnit::Round, ..lego() }), 4.0 + 1.0);
        let relative = GraphSettings { relative_losses: true, window: 1, ..lego() };
        assert_eq!(sums(relative), 1.0 / 8.0);
    }

    #[test]
    fn lone_pools_keep_an_equal_share_and_nobody_falls_below_the_least() {
        let mut settings = GraphSettings { ignore_lone: true, ..lego() };
        settings.graph[1][3] = 0.0;
        let weights =
            Weights::Graph(settings.clone()).at(&Progress { step: 0, total_steps: 9 }, &mut Memory::default());
        assert_eq!((weights[3], weights[4]), (0.2, 0.2));
        let floor = Weights::Graph(GraphSettings { min_weight: 0.1, eta: Eta::Given(50.0), ..lego() });
        near(&floor.at(&Progress { step: 0, total_steps: 9 }, &mut Memory::default()), &[0.1, 0.6, 0.1, 0.1, 0.1]);
    }

    #[test]
    fn a_step_size_by_spread_is_fixed_at_the_first_evaluation() {
        let weights = Weights::Graph(GraphSettings { eta: Eta::Spread(1.5), ..lego() });
        let mut memory = Memory::default();
        let before = weights.at(&Progress { step: 0, total_steps: 100 }, &mut memory);
        assert!((before[1] / before[0] - 1.5_f64.exp()).abs() < 1e-9);
        assert_eq!(memory.eta, None);
        weights.observe(&found(10, &[2.0; 5]), &mut memory).expect("finite");
        let after = weights.at(&Progress { step: 10, total_steps: 100 }, &mut memory);
        assert!((after[1] / after[0] - 1.5_f64.exp()).abs() < 1e-9);
        assert!((memory.eta.expect("fixed") - 0.5).abs() < 1e-12);
    }

    /// Losses that shrink by the graph's own model: the weights must do better than equal ones.
    #[test]
    fn on_its_own_model_of_learning_the_update_beats_equal_weights() {
        let settings = GraphSettings { window: 1, ..lego() };
        let end = |weights: Option<&Weights>| {
            let mut losses = [1.0, 3.0, 3.0, 3.0, 3.0];
            let mut memory = Memory::default();
            for round in 0..6 {
                let step = round * settings.round_steps;
                let p = weights.map_or(vec![0.2; 5], |w| w.at(&Progress { step, total_steps: 60 }, &mut memory));
                for j in 0..5 {
                    let help: f64 = (0..5).map(|i| settings.graph[i][j] * p[i]).sum();
                    losses[j] *= 1.0 - 0.3 * help;
                }
                if let Some(weights) = weights {
                    weights.observe(&found(step + settings.round_steps, &losses), &mut memory).expect("finite");
                }
            }
            losses.iter().sum::<f64>()
        };
        assert!(end(Some(&Weights::Graph(settings.clone()))) < end(None));
    }

    #[test]
    fn paths_meet_their_points() {
        let points = vec![(0.0, vec![1.0, 1.0]), (0.5, vec![0.0, 2.0]), (1.0, vec![3.0, 1.0])];
        let at = |shape, at| between(&points, shape, at);
        for shape in [Shape::Linear, Shape::Cosine, Shape::Step] {
            assert_eq!(normalised(at(shape, 0.5)), [0.0, 1.0], "{shape:?}");
            assert_eq!(normalised(at(shape, 1.0)), [0.75, 0.25], "{shape:?}");
        }
        assert_eq!(at(Shape::Linear, 0.25), [0.25, 0.75]);
        assert_eq!(normalised(at(Shape::Step, 0.49)), [0.5, 0.5]);
        near(&at(Shape::Cosine, 0.25), &[0.25, 0.75]);
        assert!(at(Shape::Cosine, 0.05)[0] > at(Shape::Linear, 0.05)[0]);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let refused = |weights: Weights, text: &str| {
            let error = weights.check(2).expect_err("refused").to_string();
            assert!(error.contains(text), "{error}");
        };
        refused(Weights::Fixed(vec![1.0]), "expected 2, one per pool");
        refused(Weights::Fixed(vec![0.0, 0.0]), "not all 0");
        refused(Weights::Fixed(vec![f64::NAN, 1.0]), "numbers from 0 on");
        let path = |points| Weights::Path { points, shape: Shape::Linear };
        refused(path(vec![]), "at least one point");
        refused(path(vec![(0.5, vec![1.0, 1.0]), (0.2, vec![1.0, 1.0])]), "`points[1]` is 0.2");
        refused(Weights::Graph(lego()), "2 rows (pools) of 5 (evaluations)");
    }
}
