//! What a step costs: measured once per shape, stored as an artifact, and turned into numbers of steps.
//!
//! A comparison at equal time must not look at a clock while it trains, or no two runs would be alike. It looks at a table:
//! seconds per step for each shape of batch, measured once on the machine at hand.

use std::path::Path;
use std::time::Duration;

use didact_core::fault::{Classify, Fault};
use didact_core::files::{self, FileError};
use didact_core::hash::hash_json;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The shape of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Rows.
    pub rows: u32,
    /// Targets per row.
    pub len: u32,
}

/// What steps of a shape take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The shape.
    pub shape: Shape,
    /// Seconds per step: the median.
    pub seconds: f64,
    /// The least and the most.
    pub range: (f64, f64),
    /// Steps measured.
    pub steps: u32,
}

/// Seconds per step by shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// What was measured where: model, precision, kernels, threads.
    pub what: String,
    /// By shape, ascending.
    costs: Vec<Cost>,
}

/// Why a table cannot be had or does not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CostError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no table, or not as it was written.
    #[error("`{path}` is no table of costs: {cause}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// A shape that was not measured.
    #[error("no step of {} rows of {} targets was measured ({what})", shape.rows, shape.len)]
    Unknown {
        /// The shape.
        shape: Shape,
        /// What the table is of.
        what: String,
    },
}

impl Classify for CostError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            _ => Fault::Running,
        }
    }
}

impl CostTable {
    /// Measures steps: `run` does one of a shape and says how long it took. Each shape is run once to warm up, then
    /// `repeats` times; the rounds alternate between shapes, so that a slow minute hits all of them.
    ///
    /// # Errors
    /// Those of `run`.
    ///
    /// # Panics
    /// If `repeats` is 0.
    pub fn measure<E>(
        what: impl Into<String>,
        shapes: &[Shape],
        repeats: u32,
        mut run: impl FnMut(Shape) -> Result<Duration, E>,
    ) -> Result<Self, E> {
        assert!(repeats > 0, "a shape is measured at least once");
        let mut shapes = shapes.to_vec();
        shapes.sort_unstable();
        shapes.dedup();
        let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); shapes.len()];
        for round in 0..=repeats {
            for (shape, seconds) in shapes.iter().zip(&mut seconds) {
                let took = run(*shape)?;
                if round > 0 {
                    seconds.push(took.as_secs_f64());
                }
            }
        }
        let cost = |(shape, mut seconds): (Shape, Vec<f64>)| {
            seconds.sort_by(f64::total_cmp);
            let n = seconds.len();
            let median = f64::midpoint(seconds[(n - 1) / 2], seconds[n / 2]);
            Cost { shape, seconds: median, range: (seconds[0], seconds[n - 1]), steps: repeats }
        };
        Ok(Self { what: what.into(), costs: shapes.into_iter().zip(seconds).map(cost).collect() })
    }

    /// All that was measured, by shape.
    pub fn costs(&self) -> &[Cost] {
        &self.costs
    }

    /// Seconds of a step.
    ///
    /// # Errors
    /// When the shape was not measured.
    pub fn seconds(&self, shape: Shape) -> Result<f64, CostError> {
        let found = self.costs.binary_search_by_key(&shape, |cost| cost.shape);
        found.map(|i| self.costs[i].seconds).map_err(|_| CostError::Unknown { shape, what: self.what.clone() })
    }

    /// Seconds of some steps.
    ///
    /// # Errors
    /// When a shape was not measured.
    pub fn total(&self, shapes: impl IntoIterator<Item = Shape>) -> Result<f64, CostError> {
        shapes.into_iter().try_fold(0.0, |sum, shape| Ok(sum + self.seconds(shape)?))
    }

    /// How many of some steps, in order, a number of seconds is enough for.
    ///
    /// # Errors
    /// When a shape was not measured.
    pub fn steps_within(&self, seconds: f64, shapes: impl IntoIterator<Item = Shape>) -> Result<u64, CostError> {
        let (mut spent, mut steps) = (0.0, 0);
        for shape in shapes {
            spent += self.seconds(shape)?;
            if spent > seconds {
                break;
            }
            steps += 1;
        }
        Ok(steps)
    }

    /// Writes the table, with a digest of itself.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CostError> {
        let content = serde_json::to_value(self).expect("plain data");
        let sealed = json!({"digest": hash_json(&content), "content": content});
        let mut text = serde_json::to_vec_pretty(&sealed).expect("plain data");
        text.push(b'\n');
        Ok(files::write_atomic(path, &text)?)
    }

    /// Reads a table.
    ///
    /// # Errors
    /// When there is none, or it is not as it was written.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CostError> {
        let path = path.as_ref();
        let damaged = |cause: String| CostError::Damaged { path: path.display().to_string(), cause };
        let sealed: Value = serde_json::from_slice(&files::read(path)?).map_err(|error| damaged(error.to_string()))?;
        let content = sealed.get("content").cloned().unwrap_or_default();
        if sealed.get("digest").and_then(Value::as_str) != Some(&hash_json(&content).to_string()) {
            return Err(damaged("its content does not fit its digest".to_owned()));
        }
        serde_json::from_value(content).map_err(|error| damaged(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> CostTable {
        let shapes = [Shape { rows: 8, len: 128 }, Shape { rows: 32, len: 32 }, Shape { rows: 8, len: 128 }];
        // The first call of each shape is the warm-up and takes much longer; one measured step is an outlier.
        let mut calls = 0;
        let run = |shape: Shape| -> Result<Duration, std::convert::Infallible> {
            calls += 1;
            let base = u64::from(shape.len);
            Ok(Duration::from_millis(if calls <= 2 || calls == 7 { 9000 } else { base }))
        };
        match CostTable::measure("a tiny model, f32, 1 thread", &shapes, 5, run) {
            Ok(table) => table,
        }
    }

    #[test]
    fn a_table_says_how_many_steps_an_amount_of_time_is_enough_for() {
        let table = table();
        let (long, short) = (Shape { rows: 8, len: 128 }, Shape { rows: 32, len: 32 });
        assert_eq!((table.seconds(long).expect("known"), table.seconds(short).expect("known")), (0.128, 0.032));
        assert_eq!(table.costs().len(), 2);
        assert_eq!(table.costs()[0].range.1, 9.0);
        assert_eq!(table.steps_within(1.0, std::iter::repeat(long)).expect("known"), 7);
        assert_eq!(table.steps_within(0.2, [short, short, long, short]).expect("known"), 3);
        assert!((table.total([short, long]).expect("known") - 0.16).abs() < 1e-12);
        let error = table.seconds(Shape { rows: 1, len: 7 }).expect_err("not measured");
        assert_eq!(error.to_string(), "no step of 1 rows of 7 targets was measured (a tiny model, f32, 1 thread)");
    }

    #[test]
    fn a_table_comes_back_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("cost.json");
        table().save(&path).expect("written");
        assert_eq!(CostTable::load(&path).expect("read"), table());
        let text = files::read_to_string(&path).expect("read").replace("0.128", "0.129");
        files::write_atomic(&path, text.as_bytes()).expect("written");
        assert!(CostTable::load(&path).expect_err("changed").to_string().contains("does not fit its digest"));
    }
}
