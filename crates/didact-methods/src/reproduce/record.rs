//! What came of a reproduction: the document that is printed, kept, and that tables, plot and `RESULTS.md` are made from.

use super::error::ReproduceError;
use super::runner::{ReproduceOptions, Times};
use super::verdict::{Verdict, bootstrap, decide};
use super::{Arm, Check, Claim, Outcome, Results, Role, Size};
use crate::error::MethodError;
use crate::methods::Method;
use didact_core::files;
use didact_core::progress::{Table, duration};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

/// Most points of a curve that are kept.
const CURVE_POINTS: usize = 60;
/// Most metrics in the table of arms, the claim's included, when the method does not name them.
const SHOWN_METRICS: usize = 4;

/// The result of a reproduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The method's name.
    pub method: String,
    /// How large.
    pub size: Size,
    /// The paper.
    pub paper: Paper,
    /// The claim, in words.
    pub claim: String,
    /// What is compared.
    pub metric: String,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// The arms that are compared.
    pub compared: Compared,
    /// The seeds, in the order of all values.
    pub seeds: Vec<u64>,
    /// Mean effect, above zero in the method's favour.
    pub effect: f64,
    /// The effect by seed.
    pub effects: Vec<f64>,
    /// The 95 % interval of the mean effect (Student's t over seeds); `null` where a single seed gives none.
    pub ci95: [Option<f64>; 2],
    /// What follows.
    pub verdict: Verdict,
    /// The central 95 % of the mean effect over resampled items, where items were kept. Decides nothing.
    pub bootstrap95: Option<[f64; 2]>,
    /// The arms, in order.
    pub arms: Vec<ArmRecord>,
    /// What else the paper says.
    pub checks: Vec<Check>,
    /// Metrics to show beside the claim's.
    pub shown: Vec<String>,
    /// Tokens trained on, all arms and seeds together.
    pub tokens: u64,
    /// Seconds that all arms took, by all processes that worked on them.
    pub wall_s: f64,
    /// Didact's version.
    pub version: String,
    /// The method's version here.
    pub method_version: u32,
    /// What it ran on.
    pub machine: String,
    /// When it was finished.
    pub date: String,
    /// The command.
    pub command: String,
    /// Everything that results depend on, apart from the seeds.
    pub settings: Value,
}

/// Where a claim comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paper {
    /// Title.
    pub title: String,
    /// Authors, shortened.
    pub authors: String,
    /// Year.
    pub year: u16,
    /// arXiv id.
    pub arxiv: String,
}

/// The two arms of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The one that should be better.
    pub method: String,
    /// Than this one.
    pub baseline: String,
}

/// What an arm measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArmRecord {
    /// Its name.
    pub name: String,
    /// What it is there for.
    pub role: Role,
    /// What it does.
    pub what: String,
    /// The claim's metric by seed; empty where the arm does not measure it.
    pub values: Vec<f64>,
    /// All metrics by seed.
    pub metrics: BTreeMap<String, Vec<f64>>,
    /// Tokens trained on, by seed.
    pub tokens: Vec<u64>,
    /// Seconds, all seeds together.
    pub seconds: f64,
    /// Curves, mean over seeds.
    #[serde(default)]
    pub curves: BTreeMap<String, Curve>,
}

/// A line of a plot.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Curve {
    /// Steps or tokens.
    pub x: Vec<f64>,
    /// Values.
    pub y: Vec<f64>,
}

impl Record {
    pub(super) fn new(
        method: &Method,
        options: &ReproduceOptions<'_>,
        arms: &[Arm],
        results: &Results,
        times: &Times,
    ) -> Result<Self, MethodError> {
        let reproduction = method.reproduction;
        let claim = reproduction.claim();
        let effects = effects(&claim, results)?;
        let decision = decide(&effects);
        let arm = |arm: &Arm| {
            let outcomes = results.outcomes(arm.name);
            ArmRecord {
                name: arm.name.to_owned(),
                role: arm.role,
                what: arm.what.to_owned(),
                values: if results.has(arm.name, claim.metric) {
                    results.values(arm.name, claim.metric)
                } else {
                    Vec::new()
                },
                metrics: metrics(arm.name, results),
                tokens: outcomes.iter().map(|outcome| outcome.tokens).collect(),
                seconds: results.seeds().iter().map(|&seed| times.of(arm.name, seed)).sum(),
                curves: curves(outcomes),
            }
        };
        let arms: Vec<ArmRecord> = arms.iter().map(arm).collect();
        Ok(Self {
            method: method.slug.to_owned(),
            size: options.size,
            paper: Paper {
                title: method.paper.to_owned(),
                authors: method.authors.to_owned(),
                year: method.year,
                arxiv: method.arxiv.to_owned(),
            },
            claim: claim.text.to_owned(),
            metric: claim.metric.to_owned(),
            higher_is_better: claim.higher_is_better,
            compared: Compared { method: claim.method.to_owned(), baseline: claim.baseline.to_owned() },
            seeds: results.seeds().to_vec(),
            effect: decision.effect,
            effects,
            ci95: decision.ci95.map_or([None; 2], |ci| ci.map(Some)),
            verdict: decision.verdict,
            bootstrap95: bootstrap(&item_effects(&claim, results)),
            checks: reproduction.checks(options.size, results),
            shown: reproduction.shown().iter().map(|name| (*name).to_owned()).collect(),
            tokens: arms.iter().flat_map(|arm| &arm.tokens).sum(),
            wall_s: arms.iter().map(|arm| arm.seconds).sum(),
            arms,
            version: options.version.to_owned(),
            method_version: reproduction.version(),
            machine: options.machine.to_owned(),
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            command: options.command.to_owned(),
            settings: reproduction.settings(options.size),
        })
    }

    /// Reads a recorded result.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(path: &Path) -> Result<Self, MethodError> {
        let text = files::read(path)?;
        let not_a_record =
            |reason: String| MethodError::from(ReproduceError::NotARecord { path: path.to_owned(), reason });
        let json = &mut serde_json::Deserializer::from_slice(&text);
        serde_path_to_error::deserialize(json).map_err(|error| not_a_record(error.to_string()))
    }

    /// The document as it is kept: objects line by line, lists on one line.
    pub fn to_json(&self) -> String {
        let mut text = Vec::new();
        let mut serializer = Serializer::with_formatter(&mut text, Layout(PrettyFormatter::new()));
        self.serialize(&mut serializer).expect("a record is plain data");
        text.push(b'\n');
        String::from_utf8(text).expect("JSON is text")
    }

    /// The interval as it is shown.
    pub fn interval(&self) -> String {
        match self.ci95 {
            [Some(low), Some(high)] => format!("{} to {}", number(low), number(high)),
            _ => "- (one seed)".to_owned(),
        }
    }

    /// The arms that are shown: all but preparations that measured nothing that is shown.
    pub fn shown_arms(&self) -> impl Iterator<Item = &ArmRecord> {
        let shown = self.shown_metrics();
        let measures = move |arm: &ArmRecord| shown.iter().any(|name| arm.metrics.contains_key(*name));
        self.arms.iter().filter(move |arm| arm.role != Role::Shared || measures(arm))
    }

    /// The metrics of the table of arms, the claim's first.
    pub fn shown_metrics(&self) -> Vec<&str> {
        let mut names = vec![self.metric.as_str()];
        if self.shown.is_empty() {
            let all: BTreeSet<&str> = self.arms.iter().flat_map(|arm| arm.metrics.keys()).map(String::as_str).collect();
            names.extend(all.into_iter().filter(|name| *name != self.metric).take(SHOWN_METRICS - 1));
        } else {
            names.extend(self.shown.iter().map(String::as_str).filter(|name| *name != self.metric));
        }
        names
    }

    /// The result as tables: arms, verdict, checks.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![self.arm_table(), self.verdict_table()];
        if !self.checks.is_empty() {
            tables.push(self.check_table());
        }
        tables
    }

    pub(super) fn arm_table(&self) -> Table {
        let metrics = self.shown_metrics();
        let mut columns = strings(["arm", "role"]);
        columns.extend(metrics.iter().map(|name| (*name).to_owned()));
        columns.extend(strings(["tokens", "what"]));
        let row = |arm: &ArmRecord| {
            let mut row = vec![arm.name.clone(), arm.role.as_str().to_owned()];
            row.extend(
                metrics.iter().map(|name| arm.metrics.get(*name).map_or("-".to_owned(), |v| mean_and_spread(v))),
            );
            row.extend([tokens(&arm.tokens), arm.what.clone()]);
            row
        };
        Table {
            title: format!(
                "{}, size {}: mean and standard deviation over {} seeds",
                self.method,
                self.size.as_str(),
                self.seeds.len()
            ),
            columns,
            rows: self.shown_arms().map(row).collect(),
        }
    }

    fn verdict_table(&self) -> Table {
        let better = if self.higher_is_better { "more is better" } else { "less is better" };
        let Compared { method, baseline } = &self.compared;
        let effects: Vec<String> = self.effects.iter().map(|effect| number(*effect)).collect();
        let mut rows = vec![
            vec!["claim".into(), self.claim.clone()],
            vec!["metric".into(), format!("{} ({better})", self.metric)],
            vec!["effect".into(), format!("{} in favour of {method} over {baseline}", number(self.effect))],
            vec!["95 % interval".into(), format!("{} (paired t over seeds)", self.interval())],
            vec!["by seed".into(), effects.join(", ")],
        ];
        if let Some([low, high]) = self.bootstrap95 {
            let text = format!("{} to {} (resampled test items; decides nothing)", number(low), number(high));
            rows.push(vec!["bootstrap".into(), text]);
        }
        rows.push(vec!["verdict".into(), self.verdict.as_str().to_owned()]);
        rows.push(vec!["time".into(), format!("{}, {} tokens trained on", duration(self.wall_s), self.tokens)]);
        Table { title: "verdict".into(), columns: strings(["", ""]), rows }
    }

    pub(super) fn check_table(&self) -> Table {
        let row = |check: &Check| {
            let ok = if check.ok { "yes" } else { "no" };
            vec![check.name.clone(), number(check.value), number(check.threshold), ok.to_owned()]
        };
        Table {
            title: "checks (no part of the verdict)".into(),
            columns: strings(["check", "value", "threshold", "ok"]),
            rows: self.checks.iter().map(row).collect(),
        }
    }
}

/// The effect at every seed.
///
/// # Errors
/// When one of the two arms has not measured the claim's metric.
pub fn effects(claim: &Claim, results: &Results) -> Result<Vec<f64>, ReproduceError> {
    let of = |arm: &str, i: usize| {
        results.outcomes(arm)[i].values.get(claim.metric).copied().ok_or_else(|| ReproduceError::NotMeasured {
            arm: arm.to_owned(),
            seed: results.seeds()[i],
            metric: claim.metric.to_owned(),
        })
    };
    (0..results.seeds().len()).map(|i| Ok(claim.effect(of(claim.method, i)?, of(claim.baseline, i)?))).collect()
}

/// The effect by seed and item; an empty list where the two arms have no items in common.
fn item_effects(claim: &Claim, results: &Results) -> Vec<Vec<f64>> {
    let pairs = results.outcomes(claim.method).iter().zip(results.outcomes(claim.baseline));
    pairs
        .map(|(method, baseline)| match (method.items.get(claim.metric), baseline.items.get(claim.metric)) {
            (Some(m), Some(b)) if m.len() == b.len() => m.iter().zip(b).map(|(m, b)| claim.effect(*m, *b)).collect(),
            _ => Vec::new(),
        })
        .collect()
}

/// The metrics that an arm measured at every seed.
fn metrics(arm: &str, results: &Results) -> BTreeMap<String, Vec<f64>> {
    let first = results.outcomes(arm).first();
    let names = first.into_iter().flat_map(|outcome| outcome.values.keys());
    names.filter(|name| results.has(arm, name)).map(|name| (name.clone(), results.values(arm, name))).collect()
}

/// Curves that all seeds have, point by point the mean, thinned.
fn curves(outcomes: &[Outcome]) -> BTreeMap<String, Curve> {
    let Some(first) = outcomes.first() else { return BTreeMap::new() };
    let mut curves = BTreeMap::new();
    for (name, points) in &first.curves {
        let all: Vec<&Vec<(f64, f64)>> = outcomes.iter().filter_map(|outcome| outcome.curves.get(name)).collect();
        if all.len() != outcomes.len() || all.iter().any(|other| other.len() != points.len()) {
            continue;
        }
        let step = points.len().div_ceil(CURVE_POINTS).max(1);
        let kept: Vec<usize> = (0..points.len()).filter(|i| i % step == 0 || i + 1 == points.len()).collect();
        let mean = |i: usize| all.iter().map(|other| other[i].1).sum::<f64>() / all.len() as f64;
        let curve = Curve {
            x: kept.iter().map(|&i| points[i].0).collect(),
            y: kept.iter().map(|&i| rounded(mean(i))).collect(),
        };
        curves.insert(name.clone(), curve);
    }
    curves
}

/// Enough digits for a plot.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// A number with the digits that matter to people.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || (0.001..1000.0).contains(&size) => format!("{value:.4}"),
        size if size >= 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.2e}"),
    }
}

/// Mean and standard deviation.
pub(super) fn mean_and_spread(values: &[f64]) -> String {
    let (mean, deviation) = moments(values);
    match deviation {
        Some(deviation) => format!("{mean:.4} ± {deviation:.4}"),
        None => format!("{mean:.4}"),
    }
}

/// Mean and, of more than one value, standard deviation.
pub(super) fn moments(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (values.len() > 1).then(|| variance.sqrt()))
}

/// The tokens of one seed, or the range where seeds differ.
fn tokens(by_seed: &[u64]) -> String {
    match (by_seed.iter().min(), by_seed.iter().max()) {
        (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
        (Some(same), _) => same.to_string(),
        _ => "-".to_owned(),
    }
}

fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// Objects as [`PrettyFormatter`] lays them out, lists on one line: one number per line would be unreadable.
struct Layout<'a>(PrettyFormatter<'a>);

impl Formatter for Layout<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}
