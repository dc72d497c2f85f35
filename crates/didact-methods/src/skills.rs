//! Skills graphs: how much training on one part of the data helps with another, learned from short trainings.
//!
//! Row i is a skill that can be trained, column j one that is measured; entry `A_ij ≥ 0` says how much training on i lowers
//! the loss on j. A mixture by such a graph is `didact_data::curriculum::weights::Weights::Graph`.
//!
//! # Reference
//! Chen et al., "Skill-it! A Data-Driven Skills Framework for Understanding and Training Language Models", NeurIPS 2023.

use std::path::{Path, PathBuf};

use didact_core::fault::{Classify, Fault};
use didact_core::files::{self, FileError};
use serde::{Deserialize, Serialize};

/// A base model's loss below this is taken as this when drops are divided by it.
const LEAST_LOSS: f64 = 1e-3;
/// An entry counts as an edge above this share of the largest one outside the diagonal.
const EDGE: f64 = 0.05;
/// Weight of an edge that is only known to be there.
const BINARY_EDGE: f64 = 0.5;

/// Why there is no such graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkillsError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that is no graph.
    #[error("`{}` is no skills graph: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Names that do not fit the data.
    #[error("the graph's {which} skills are {}, the data's are {}", found.join(", "), expected.join(", "))]
    Names {
        /// Trained or measured ones.
        which: &'static str,
        /// In the graph.
        found: Vec<String>,
        /// In the data.
        expected: Vec<String>,
    },
    /// A loss that is no number.
    #[error("non-finite loss for skill `{skill}`: {loss}")]
    NonFinite {
        /// The skill.
        skill: String,
        /// The loss.
        loss: f64,
    },
    /// Too little to choose from.
    #[error("there are {found} skills to train on, expected at least 2")]
    TooFew {
        /// How many there are.
        found: usize,
    },
    /// A skill that is not there.
    #[error("there is no skill `{name}`; the data has {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
}

impl Classify for SkillsError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            Self::NonFinite { .. } => Fault::Running,
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::NonFinite { .. } => Some("lower `train.learning_rate`, or look at the skill's rows".to_owned()),
            Self::Names { .. } => Some("learn the graph anew, or rename its skills in the file".to_owned()),
            _ => None,
        }
    }
}

/// What a drop in loss is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalise {
    /// The base model's loss, which puts all skills on one scale.
    #[default]
    Relative,
    /// Nothing.
    None,
}

/// How much each skill helps with each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkillsGraph {
    /// Skills that can be trained: rows.
    pub train_skills: Vec<String>,
    /// Skills that are measured: columns.
    pub eval_skills: Vec<String>,
    /// `A_ij`, row by row.
    pub graph: Vec<Vec<f64>>,
    /// Standard error of each entry, when the trainings were repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<Vec<Vec<f64>>>,
}

/// Losses of one repetition of the trainings a graph is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drops {
    /// The base model's loss on each measured skill.
    pub base: Vec<f64>,
    /// After training on skill i alone: the loss on each measured skill, `[i][j]`.
    pub alone: Vec<Vec<f64>>,
    /// After training on skills i and j in equal parts: the loss on j, `[i][j]`; for a graph by brute force only.
    pub pairs: Option<Vec<Vec<f64>>>,
}

impl SkillsGraph {
    /// Learns the graph from the losses of trainings that began from one base model.
    ///
    /// Without pairs, `A_ij = max(0, (L_j(f) − L_j(f_i)) / L_j(f))`. With pairs, `A_ij = max(0, δ_ij − δ_jj)` off the diagonal,
    /// δ being the drop of j's loss after training on both and on j alone, and 1 on it. Of several repetitions the mean is
    /// taken, and entries within one standard error of 0 are set to 0.
    ///
    /// # Errors
    /// When a loss is not finite, or there are fewer than two skills to train on.
    ///
    /// # Panics
    /// If there is no repetition, or the numbers of losses do not fit the names.
    pub fn learn(
        train_skills: Vec<String>,
        eval_skills: Vec<String>,
        repetitions: &[Drops],
        normalise: Normalise,
    ) -> Result<Self, SkillsError> {
        let (k, m, n) = (train_skills.len(), eval_skills.len(), repetitions.len());
        assert!(n > 0, "a graph is learned from at least one repetition");
        if k < 2 {
            return Err(SkillsError::TooFew { found: k });
        }
        for drops in repetitions {
            let rows = drops.alone.iter().chain(drops.pairs.iter().flatten()).chain([&drops.base]);
            for row in rows {
                assert_eq!(row.len(), m, "one loss per measured skill");
                if let Some(j) = row.iter().position(|loss| !loss.is_finite()) {
                    return Err(SkillsError::NonFinite { skill: eval_skills[j].clone(), loss: row[j] });
                }
            }
        }
        let entry = |drops: &Drops, i: usize, j: usize| -> f64 {
            let scale = match normalise {
                Normalise::Relative => drops.base[j].max(LEAST_LOSS),
                Normalise::None => 1.0,
            };
            match &drops.pairs {
                None => (drops.base[j] - drops.alone[i][j]) / scale,
                Some(_) if i == j => 1.0,
                Some(pairs) => (drops.alone[j][j] - pairs[i][j]) / scale,
            }
        };
        let mut graph = vec![vec![0.0; m]; k];
        let mut errors = vec![vec![0.0; m]; k];
        for i in 0..k {
            for j in 0..m {
                let values: Vec<f64> = repetitions.iter().map(|drops| entry(drops, i, j)).collect();
                let mean = values.iter().sum::<f64>() / n as f64;
                if n > 1 {
                    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                    errors[i][j] = (squares / (n - 1) as f64 / n as f64).sqrt();
                }
                graph[i][j] = if mean > errors[i][j] { mean } else { 0.0 };
            }
        }
        Ok(Self { train_skills, eval_skills, graph, standard_error: (n > 1).then_some(errors) })
    }

    /// The graph in which every skill helps only itself.
    pub fn identity(train_skills: Vec<String>, eval_skills: Vec<String>) -> Self {
        let row = |i: &String| eval_skills.iter().map(|j| f64::from(u8::from(i == j))).collect();
        let graph = train_skills.iter().map(row).collect();
        Self { train_skills, eval_skills, graph, standard_error: None }
    }

    /// Reads a graph: JSON with `train_skills`, `eval_skills` and `graph`. One of zeros and ones is taken as edges that are
    /// only known to be there: those off the diagonal count half.
    ///
    /// # Errors
    /// When the file cannot be read or is no graph. Negative entries are allowed: they are what somebody measured.
    pub fn read(path: &Path) -> Result<Self, SkillsError> {
        let wrong = |reason: String| SkillsError::Format { path: path.to_owned(), reason };
        let mut graph: Self = serde_json::from_slice(&files::read(path)?).map_err(|error| wrong(error.to_string()))?;
        let (k, m) = (graph.train_skills.len(), graph.eval_skills.len());
        let columns: Vec<usize> = graph.graph.iter().map(Vec::len).collect();
        if columns.len() != k || columns.iter().any(|&n| n != m) {
            return Err(wrong(format!("rows of {columns:?} numbers for {k} trained and {m} measured skills")));
        }
        if graph.graph.iter().flatten().any(|entry| !entry.is_finite()) {
            return Err(wrong("an entry is not finite".to_owned()));
        }
        if graph.graph.iter().flatten().all(|&entry| entry == 0.0 || entry == 1.0) {
            for (row, from) in graph.graph.iter_mut().zip(&graph.train_skills) {
                for (entry, to) in row.iter_mut().zip(&graph.eval_skills) {
                    if from != to {
                        *entry *= BINARY_EDGE;
                    }
                }
            }
        }
        Ok(graph)
    }

    /// Writes the graph.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data");
        text.push(b'\n');
        files::write_atomic(path, &text)
    }

    /// The graph with rows and columns in the order of the data's skills.
    ///
    /// # Errors
    /// When the names are not the same.
    pub fn for_skills(&self, train_skills: &[String], eval_skills: &[String]) -> Result<Self, SkillsError> {
        let places = |which, found: &[String], expected: &[String]| -> Result<Vec<usize>, SkillsError> {
            let place = |name: &String| found.iter().position(|other| other == name);
            let all: Option<Vec<usize>> = expected.iter().map(place).collect();
            all.filter(|all| all.len() == found.len()).ok_or_else(|| SkillsError::Names {
                which,
                found: found.to_vec(),
                expected: expected.to_vec(),
            })
        };
        let rows = places("trained", &self.train_skills, train_skills)?;
        let columns = places("measured", &self.eval_skills, eval_skills)?;
        Ok(self.pick(&rows, &columns))
    }

    /// The graph of some measured skills only.
    ///
    /// # Errors
    /// When one is not there.
    pub fn for_targets(&self, targets: &[String]) -> Result<Self, SkillsError> {
        let place = |name: &String| {
            self.eval_skills
                .iter()
                .position(|other| other == name)
                .ok_or_else(|| SkillsError::Unknown { name: name.clone(), known: self.eval_skills.clone() })
        };
        let columns: Vec<usize> = targets.iter().map(place).collect::<Result<_, _>>()?;
        Ok(self.pick(&(0..self.train_skills.len()).collect::<Vec<_>>(), &columns))
    }

    fn pick(&self, rows: &[usize], columns: &[usize]) -> Self {
        let table = |from: &[Vec<f64>]| rows.iter().map(|&i| columns.iter().map(|&j| from[i][j]).collect()).collect();
        Self {
            train_skills: rows.iter().map(|&i| self.train_skills[i].clone()).collect(),
            eval_skills: columns.iter().map(|&j| self.eval_skills[j].clone()).collect(),
            graph: table(&self.graph),
            standard_error: self.standard_error.as_deref().map(table),
        }
    }

    /// Share of the entries between different skills that are edges: above 5 % of the largest of them.
    pub fn density(&self) -> f64 {
        let entries = || {
            let row = |i: usize| self.graph[i].iter().zip(&self.eval_skills).map(move |(&entry, to)| (i, entry, to));
            (0..self.graph.len()).flat_map(row).filter(|(i, _, to)| self.train_skills[*i] != **to).map(|(_, e, _)| e)
        };
        let largest = entries().fold(0.0, f64::max);
        let (n, edges) = (entries().count(), entries().filter(|&entry| entry > EDGE * largest).count());
        if n == 0 || largest <= 0.0 { 0.0 } else { edges as f64 / n as f64 }
    }

    /// Standard deviation of the row sums over their mean: 0 when all skills help as much.
    pub fn variation(&self) -> f64 {
        let sums: Vec<f64> = self.graph.iter().map(|row| row.iter().sum()).collect();
        let mean = sums.iter().sum::<f64>() / sums.len() as f64;
        let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / sums.len() as f64;
        if mean > 0.0 { variance.sqrt() / mean } else { 0.0 }
    }

    /// What speaks against expecting much of this graph.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let density = self.density();
        if density < 0.02 {
            let share = 100.0 * density;
            warnings.push(format!("the skills graph is nearly empty ({share:.1} % of its edges): expect equal shares"));
        } else if self.variation() < 0.05 {
            let text =
                "all skills help about as much (the row sums of the graph vary by less than 5 %): expect equal shares";
            warnings.push(text.to_owned());
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("s{i}")).collect()
    }

    fn drops(base: [f64; 2], alone: [[f64; 2]; 2]) -> Drops {
        Drops { base: base.to_vec(), alone: alone.map(|row| row.to_vec()).to_vec(), pairs: None }
    }

    #[test]
    fn an_entry_is_the_relative_drop_and_never_negative() {
        let learned = [drops([4.0, 2.0], [[1.0, 1.5], [4.5, 1.0]])];
        let graph = SkillsGraph::learn(names(2), names(2), &learned, Normalise::Relative).expect("is as made");
        assert_eq!(graph.graph, [[0.75, 0.25], [0.0, 0.5]]);
        let graph = SkillsGraph::learn(names(2), names(2), &learned, Normalise::None).expect("is as made");
        assert_eq!(graph.graph, [[3.0, 0.5], [0.0, 1.0]]);
    }

    #[test]
    fn a_base_loss_near_zero_does_not_blow_an_entry_up() {
        let learned = [drops([1e-9, 2.0], [[0.0, 1.0], [0.0, 1.0]])];
        let graph = SkillsGraph::learn(names(2), names(2), &learned, Normalise::Relative).expect("is as made");
        assert!(graph.graph[0][0] <= 1e-6);
    }

    #[test]
    fn by_brute_force_an_edge_is_what_sharing_the_data_gains() {
        // Training on both leaves skill 1 at 0.5, on itself alone at 0.75: an edge of 0.25. The other way there is none.
        let mut learned = drops([2.0, 2.0], [[1.0, 1.9], [1.9, 0.75]]);
        learned.pairs = Some(vec![vec![1.0, 0.5], vec![1.2, 0.75]]);
        let graph = SkillsGraph::learn(names(2), names(2), &[learned], Normalise::None).expect("is as made");
        assert_eq!(graph.graph, [[1.0, 0.25], [0.0, 1.0]]);
    }

    #[test]
    fn what_lies_within_a_standard_error_of_zero_is_no_edge() {
        let learned = [drops([1.0, 1.0], [[0.5, 0.9], [0.7, 0.5]]), drops([1.0, 1.0], [[0.5, 1.1], [0.9, 0.5]])];
        let graph = SkillsGraph::learn(names(2), names(2), &learned, Normalise::Relative).expect("is as made");
        assert_eq!(graph.graph[0][1], 0.0);
        // Drops of 0.3 and 0.1: 0.2 ± 0.1.
        assert!((graph.graph[1][0] - 0.2).abs() < 1e-12);
        assert!((graph.standard_error.expect("is as made")[1][0] - 0.1).abs() < 1e-12);
    }

    #[test]
    fn losses_that_are_no_numbers_and_single_skills_are_refused() {
        let learned = [drops([1.0, f64::NAN], [[0.5; 2]; 2])];
        let error = SkillsGraph::learn(names(2), names(2), &learned, Normalise::Relative).expect_err("is refused");
        assert_eq!(error.to_string(), "non-finite loss for skill `s1`: NaN");
        let learned = [Drops { base: vec![1.0], alone: vec![vec![0.5]], pairs: None }];
        let error = SkillsGraph::learn(names(1), names(1), &learned, Normalise::Relative).expect_err("is refused");
        assert_eq!(error.to_string(), "there are 1 skills to train on, expected at least 2");
    }

    #[test]
    fn a_file_of_zeros_and_ones_gives_half_edges_and_comes_back_as_written_otherwise() {
        let dir = tempfile::tempdir().expect("is as made");
        let path = dir.path().join("graph.json");
        let text = r#"{"train_skills": ["a", "b"], "eval_skills": ["a", "b"], "graph": [[1, 1], [0, 1]]}"#;
        files::write_atomic(&path, text.as_bytes()).expect("is as made");
        let graph = SkillsGraph::read(&path).expect("is as made");
        assert_eq!(graph.graph, [[1.0, 0.5], [0.0, 1.0]]);
        graph.write(&path).expect("is as made");
        assert_eq!(SkillsGraph::read(&path).expect("is as made"), graph);
    }

    #[test]
    fn a_graph_follows_the_datas_order_of_skills_and_names_must_fit() {
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let graph = SkillsGraph {
            train_skills: of(&["a", "b"]),
            eval_skills: of(&["a", "b"]),
            graph: vec![vec![1.0, 2.0], vec![3.0, 4.0]],
            standard_error: None,
        };
        let turned = graph.for_skills(&of(&["b", "a"]), &of(&["b", "a"])).expect("is as made");
        assert_eq!(turned.graph, [[4.0, 3.0], [2.0, 1.0]]);
        let error = graph.for_skills(&of(&["a", "c"]), &of(&["a", "b"])).expect_err("is refused");
        assert_eq!(error.to_string(), "the graph's trained skills are a, b, the data's are a, c");
        assert_eq!(graph.for_targets(&of(&["b"])).expect("is as made").graph, [[2.0], [4.0]]);
        let error = graph.for_targets(&of(&["x"])).expect_err("is refused");
        assert_eq!(error.to_string(), "there is no skill `x`; the data has a, b");
    }

    #[test]
    fn empty_and_complete_graphs_are_warned_of() {
        assert!(SkillsGraph::identity(names(3), names(3)).warnings()[0].contains("nearly empty"));
        let complete = SkillsGraph { graph: vec![vec![1.0; 3]; 3], ..SkillsGraph::identity(names(3), names(3)) };
        assert!(complete.warnings()[0].contains("about as much"));
        let mut lego = SkillsGraph::identity(names(5), names(5));
        lego.graph[1] = vec![0.5, 1.0, 0.5, 0.5, 0.0];
        assert_eq!(lego.warnings(), Vec::<String>::new());
        assert!((lego.density() - 3.0 / 20.0).abs() < 1e-12);
    }
}
