//! Two models on the same questions.

use crate::error::EvalError;
use crate::harness::TaskResult;
use crate::measure::{Aggregation, METRICS, Measured, aggregate};
use crate::metrics::statistics::{Paired, paired_of};
use didact_core::files;
use didact_core::progress::Table;
use didact_core::seed::Streams;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model's values of one metric of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The task.
    pub task: String,
    /// The metric's key and filter.
    pub metric: (String, String),
    /// How values become one.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Per document: its number, what tells it from others, its value.
    pub values: Vec<(usize, String, Measured)>,
}

/// A model's values of everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// The model's name.
    pub name: String,
    /// Its series.
    pub series: Vec<Series>,
}

impl Side {
    /// Of results at hand.
    pub fn of(name: &str, results: &[TaskResult]) -> Self {
        let series = results.iter().flat_map(|result| {
            result.scores.iter().map(|score| Series {
                task: result.task.clone(),
                metric: (score.name.clone(), score.filter.clone()),
                aggregation: score.metric.aggregation,
                higher_is_better: score.metric.higher_is_better,
                values: result
                    .samples
                    .iter()
                    .zip(&score.values)
                    .map(|(sample, value)| (sample.doc, sample.document_key(), value.clone()))
                    .collect(),
            })
        });
        Self { name: name.to_owned(), series: series.collect() }
    }

    /// From a results file, Didact's or the lm-evaluation-harness's, and the logs of questions beside it; or the newest such
    /// file in a folder.
    ///
    /// # Errors
    /// When there is none, or its logs are not there.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let file = if path.is_dir() { newest(path)? } else { path.to_owned() };
        let wrong = |message: String| EvalError::Results { path: file.clone(), message };
        let text = files::read_to_string(&file)?;
        let document: Value = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let results = document["results"].as_object().ok_or_else(|| wrong("it has no `results`".into()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mark = stem.strip_prefix("results_").unwrap_or(&stem);
        let mut series = Vec::new();
        for task in results.keys().filter(|task| document["configs"].get(task).is_some()) {
            let log = folder.join(format!("samples_{}_{mark}.jsonl", super::results::sanitised(task)));
            let text = files::read_to_string(&log)?;
            series.extend(read_log(task, &log, &text)?);
        }
        let name = document["model_name"].as_str().unwrap_or(mark).to_owned();
        Ok(Self { name, series })
    }
}

impl crate::harness::Sample {
    fn document_key(&self) -> String {
        crate::python::dumps(&Value::Object(self.document.clone()))
    }
}

/// The newest results file of a folder, or of a folder in it.
fn newest(folder: &Path) -> Result<PathBuf, EvalError> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in files::list_dir(folder)? {
        let inner = if entry.is_dir() { files::list_dir(&entry)? } else { vec![entry] };
        found.extend(inner.into_iter().filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("results_") && name.ends_with(".json")
        }));
    }
    // The names hold the time.
    let newest = found.into_iter().max_by(|a, b| a.file_name().cmp(&b.file_name()));
    newest.ok_or_else(|| EvalError::Results { path: folder.to_owned(), message: "there is no results_*.json".into() })
}

fn read_log(task: &str, path: &Path, text: &str) -> Result<Vec<Series>, EvalError> {
    let mut series: BTreeMap<(String, String), Series> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let wrong = |message: &str| EvalError::Results {
            path: path.to_owned(),
            message: format!("line {}: {message}", number + 1),
        };
        let row: Value = serde_json::from_str(line).map_err(|error| wrong(&error.to_string()))?;
        let filter = row["filter"].as_str().unwrap_or(crate::filter::NONE);
        let doc = row["doc_id"].as_u64().ok_or_else(|| wrong("it has no `doc_id`"))? as usize;
        let names = row["metrics"].as_array().ok_or_else(|| wrong("it has no `metrics`"))?;
        for name in names.iter().filter_map(Value::as_str) {
            let base = if name.starts_with("pass@") { "pass_at_k" } else { name };
            let value = row.get(name).and_then(Measured::from_json);
            let (Some(metric), Some(value)) = (METRICS.iter().find(|metric| metric.name == base), value) else {
                continue;
            };
            let key = (name.to_owned(), filter.to_owned());
            let own = series.entry(key.clone()).or_insert_with(|| Series {
                task: task.to_owned(),
                metric: key,
                aggregation: metric.aggregation,
                higher_is_better: metric.higher_is_better,
                values: Vec::new(),
            });
            own.values.push((doc, crate::python::dumps(&row["doc"]), value));
        }
    }
    Ok(series.into_values().collect())
}

/// What one metric says of two models.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The task.
    pub task: String,
    /// The metric's key.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The first model's value.
    pub a: f64,
    /// The second model's value.
    pub b: f64,
    /// Second less first.
    pub difference: f64,
    /// The 95 % interval of the difference: percentiles of the paired bootstrap over documents.
    pub interval: [f64; 2],
    /// Two-sided p of McNemar's exact test, where values are right or wrong.
    pub mcnemar: Option<f64>,
    /// Documents that the second does better, and worse.
    pub better_worse: [usize; 2],
    /// Documents.
    pub documents: usize,
    /// `better`, `worse`, or `no difference shown`: of the second.
    pub verdict: &'static str,
}

/// Compares everything that both were measured in.
///
/// # Errors
/// [`EvalError::Incomparable`]: nothing in common, or other documents.
pub fn compare(a: &Side, b: &Side, streams: &Streams) -> Result<Vec<Comparison>, EvalError> {
    let mut out = Vec::new();
    for one in &a.series {
        let Some(other) = b.series.iter().find(|s| s.task == one.task && s.metric == one.metric) else { continue };
        if matches!(one.values.first(), Some((.., Measured::Bleu(_) | Measured::Confidence(..)))) {
            // Neither is a sum over documents that says which one is better.
            continue;
        }
        let others: BTreeMap<usize, (&String, &Measured)> =
            other.values.iter().map(|(doc, key, value)| (*doc, (key, value))).collect();
        let mut pairs = Vec::new();
        for (doc, key, value) in &one.values {
            match others.get(doc) {
                Some((other_key, _)) if *other_key != key => {
                    return Err(EvalError::Incomparable(format!(
                        "task {}: doc {doc} is another one for each",
                        one.task
                    )));
                }
                Some((_, other)) => pairs.push((value, *other)),
                None => {}
            }
        }
        if pairs.is_empty() {
            return Err(EvalError::Incomparable(format!("task {}: no document was asked of both", one.task)));
        }
        out.push(comparison(one, &pairs, *streams));
    }
    if out.is_empty() {
        return Err(EvalError::Incomparable(format!(
            "`{}` and `{}` have no task and metric in common",
            a.name, b.name
        )));
    }
    Ok(out)
}

fn comparison(series: &Series, pairs: &[(&Measured, &Measured)], streams: Streams) -> Comparison {
    let both = |indices: &[usize]| {
        let side = |second: bool| {
            let values: Vec<&Measured> =
                indices.iter().map(|&i| if second { pairs[i].1 } else { pairs[i].0 }).collect();
            aggregate(series.aggregation, &values)
        };
        (side(false), side(true))
    };
    let size = |value: &Measured| match value {
        Measured::Number(x) => *x,
        Measured::Weighted(log_likelihood, _) => *log_likelihood,
        Measured::Confidence(..) | Measured::Bleu(_) => f64::NAN,
    };
    let items: Vec<(f64, f64)> = pairs.iter().map(|(a, b)| (size(a), size(b))).collect();
    let all: Vec<usize> = (0..pairs.len()).collect();
    let (a, b) = both(&all);
    let Paired { difference, interval, better_worse, mcnemar } = paired_of(&items, both, &streams);
    // A log-likelihood is better when it is higher, though its perplexity then is lower.
    let is_likelihood = series.aggregation != Aggregation::Mean;
    let [up, down] = better_worse;
    let better_worse = if series.higher_is_better || is_likelihood { [up, down] } else { [down, up] };
    let is_up = interval[0] > 0.0;
    let is_shown = is_up || interval[1] < 0.0;
    let verdict = match (is_shown, is_up == series.higher_is_better) {
        (false, _) => "no difference shown",
        (true, true) => "better",
        (true, false) => "worse",
    };
    Comparison {
        task: series.task.clone(),
        metric: series.metric.0.clone(),
        filter: series.metric.1.clone(),
        higher_is_better: series.higher_is_better,
        a,
        b,
        difference,
        interval,
        mcnemar,
        better_worse,
        documents: pairs.len(),
        verdict,
    }
}

/// The comparisons for people.
pub fn table(a: &str, b: &str, comparisons: &[Comparison]) -> Table {
    let columns = ["task", "metric", "A", "B", "B - A", "95 % interval", "better/worse", "McNemar p", "B is"];
    let rows = comparisons.iter().map(|c| {
        let filter = if c.filter == crate::filter::NONE { String::new() } else { format!(" ({})", c.filter) };
        vec![
            c.task.clone(),
            format!("{}{filter}", c.metric),
            format!("{:.4}", c.a),
            format!("{:.4}", c.b),
            format!("{:+.4}", c.difference),
            format!("{:+.4} to {:+.4}", c.interval[0], c.interval[1]),
            format!("{}/{} of {}", c.better_worse[0], c.better_worse[1], c.documents),
            c.mcnemar.map_or("-".into(), |p| format!("{p:.3}")),
            c.verdict.to_owned(),
        ]
    });
    Table { title: format!("A = {a}, B = {b}"), columns: columns.map(str::to_owned).to_vec(), rows: rows.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &str, values: &[f64]) -> Side {
        let values = values.iter().enumerate().map(|(doc, x)| (doc, format!("doc {doc}"), Measured::Number(*x)));
        let metric = ("acc".to_owned(), "none".to_owned());
        let series = Series {
            task: "t".into(),
            metric,
            aggregation: Aggregation::Mean,
            higher_is_better: true,
            values: values.collect(),
        };
        Side { name: name.into(), series: vec![series] }
    }

    #[test]
    fn a_difference_is_shown_or_not() {
        let a: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let better: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0 || i < 40))).collect();
        let same = compare(&side("a", &a), &side("b", &a), &Streams::new(1)).expect("they compare");
        assert_eq!(
            (same[0].verdict, same[0].mcnemar, same[0].interval),
            ("no difference shown", Some(1.0), [0.0, 0.0])
        );
        let found = compare(&side("a", &a), &side("b", &better), &Streams::new(1)).expect("they compare");
        assert_eq!((found[0].verdict, found[0].better_worse, found[0].documents), ("better", [20, 0], 100));
        let back = compare(&side("b", &better), &side("a", &a), &Streams::new(1)).expect("they compare");
        assert_eq!((back[0].verdict, back[0].better_worse), ("worse", [0, 20]));
    }

    #[test]
    fn a_lower_perplexity_is_better() {
        let of = |shift: f64| {
            let values =
                (0..50).map(|doc| (doc, String::new(), Measured::Weighted(-20.0 - (doc % 7) as f64 + shift, 10.0)));
            let metric = ("word_perplexity".to_owned(), "none".to_owned());
            let series = Series {
                task: "t".into(),
                metric,
                aggregation: Aggregation::WeightedPerplexity,
                higher_is_better: false,
                values: values.collect(),
            };
            Side { name: "m".into(), series: vec![series] }
        };
        let found = compare(&of(0.0), &of(1.0), &Streams::new(1)).expect("they compare");
        assert_eq!((found[0].verdict, found[0].better_worse, found[0].mcnemar), ("better", [50, 0], None));
        assert!(found[0].difference < 0.0);
    }

    #[test]
    fn other_documents_are_not_compared() {
        let a = side("a", &[1.0, 0.0]);
        let mut b = a.clone();
        b.series[0].values[1].1 = "another".into();
        assert!(compare(&a, &b, &Streams::new(1)).expect_err("they differ").to_string().contains("doc 1"));
        b.series[0].task = "u".into();
        assert!(compare(&a, &b, &Streams::new(1)).expect_err("nothing in common").to_string().contains("in common"));
    }
}
