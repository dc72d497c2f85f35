//! `didact runs`: what was run and how it went.

use crate::output::{Output, Status, usage};
use clap::Subcommand;
use didact_core::metrics;
use didact_core::progress::{Table, duration};
use didact_core::run::{self, RunDir};
use didact_core::stage::{ARTIFACT, StageRecord};
use didact_methods::RunReport;
use didact_methods::reproduce::Record;
use didact_methods::rounds::report::{self, RoundRow};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where runs are kept unless `--run-dir` says otherwise.
const RUNS: &str = "runs";

/// `didact runs ...`
#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List the runs of a directory
    #[command(after_help = "Example:\n  didact runs list")]
    List {
        /// The directory
        #[arg(default_value = RUNS)]
        dir: PathBuf,
    },
    /// Show one run: settings, stages, metrics, result
    #[command(after_help = "Example:\n  didact runs show runs/quickstart-0123456789ab")]
    Show {
        /// The run's directory, or its name in `runs`
        run: PathBuf,
    },
}

pub(crate) fn run(command: RunsCommand, output: &Output) -> anyhow::Result<Status> {
    match command {
        RunsCommand::List { dir } => list(&dir, output)?,
        RunsCommand::Show { run } => show(&run, output)?,
    }
    Ok(Status::Done)
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum RunStatus {
    Done,
    Running,
    /// The same command continues it.
    Interrupted,
}

impl RunStatus {
    fn of(run: &RunDir) -> anyhow::Result<Self> {
        Ok(if run.report()?.is_some() {
            Self::Done
        } else if run::is_in_use(run.root()) {
            Self::Running
        } else {
            Self::Interrupted
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Running => "running",
            Self::Interrupted => "interrupted",
        }
    }
}

#[derive(Serialize)]
struct RunRow {
    run_dir: PathBuf,
    recipe: String,
    seed: u64,
    status: RunStatus,
    stages_done: usize,
    wall_s: Option<f64>,
}

fn list(dir: &Path, output: &Output) -> anyhow::Result<()> {
    // Nobody has run anything yet: that is no mistake, but a directory that somebody named should be there.
    let runs = if !dir.exists() && dir == Path::new(RUNS) { Vec::new() } else { run::list(dir)? };
    let mut rows = Vec::new();
    for run in &runs {
        let report = run.report()?;
        rows.push(RunRow {
            run_dir: run.root().to_owned(),
            recipe: run.identity().recipe.clone(),
            seed: run.identity().seed,
            status: RunStatus::of(run)?,
            stages_done: stages(run).len(),
            wall_s: report.as_ref().and_then(|report| report.get("wall_s")).and_then(Value::as_f64),
        });
    }
    output.result(&rows, || {
        if rows.is_empty() {
            return format!("no runs in `{}`", dir.display());
        }
        let row = |row: &RunRow| {
            let wall = row.wall_s.map_or("-".to_owned(), duration);
            let status = row.status.as_str().to_owned();
            vec![row.run_dir.display().to_string(), row.recipe.clone(), row.seed.to_string(), status, wall]
        };
        output.table(&Table {
            title: String::new(),
            columns: ["run", "recipe", "seed", "status", "time"].map(str::to_owned).to_vec(),
            rows: rows.iter().map(row).collect(),
        })
    })
}

#[derive(Serialize)]
struct RunView {
    run_dir: PathBuf,
    status: RunStatus,
    recipe: String,
    seed: u64,
    settings: Value,
    inputs: BTreeMap<String, String>,
    environment: run::Environment,
    stages: Vec<StageRecord>,
    /// Stage to metric to its last step and value.
    last_metrics: BTreeMap<String, BTreeMap<String, LastValue>>,
    /// What came of each round, with recipes that work in rounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rounds: Vec<RoundRow>,
    report: Option<Value>,
}

#[derive(Serialize)]
struct LastValue {
    step: u64,
    value: f64,
}

fn show(run: &Path, output: &Output) -> anyhow::Result<()> {
    let below = Path::new(RUNS).join(run);
    let root = if !run.exists() && below.is_dir() { below } else { run.to_owned() };
    if !root.exists() {
        return Err(usage(format!("there is no run `{}`", run.display()), "see `didact runs list`"));
    }
    let run = RunDir::load_readonly(&root)?;
    let mut last_metrics: BTreeMap<String, BTreeMap<String, LastValue>> = BTreeMap::new();
    for record in metrics::read(&root)? {
        for (name, value) in record.values {
            let last = LastValue { step: record.step, value };
            last_metrics.entry(record.stage.clone()).or_default().insert(name, last);
        }
    }
    let identity = run.identity();
    let view = RunView {
        status: RunStatus::of(&run)?,
        recipe: identity.recipe.clone(),
        seed: identity.seed,
        settings: identity.settings.clone(),
        inputs: identity.inputs.clone(),
        environment: identity.environment.clone(),
        stages: stages(&run),
        last_metrics,
        report: run.report()?,
        rounds: report::rows(&root)?,
        run_dir: root,
    };
    output.result(&view, || text(&view, output))
}

/// The stages whose artifacts are there, in order.
fn stages(run: &RunDir) -> Vec<StageRecord> {
    let directories = didact_core::files::list_dir(run.root().join("stages")).unwrap_or_default();
    let records = directories.iter().filter(|dir| dir.extension().is_none_or(|end| end != "work"));
    records.filter_map(|dir| serde_json::from_slice(&std::fs::read(dir.join(ARTIFACT)).ok()?).ok()).collect()
}

fn text(view: &RunView, output: &Output) -> String {
    let table = |title: &str, columns: &[&str], rows: Vec<Vec<String>>| {
        output.table(&Table {
            title: title.to_owned(),
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            rows,
        })
    };
    let environment = &view.environment;
    let mut parts = vec![format!(
        "{}\n  recipe {}, seed {}, {}\n  by didact {}, {} on {}, {} threads, device {}",
        view.run_dir.display(),
        view.recipe,
        view.seed,
        view.status.as_str(),
        environment.version,
        environment.precision,
        environment.cpu_level,
        environment.threads,
        environment.device
    )];
    let mut settings = Vec::new();
    flatten("", &view.settings, &mut settings);
    parts.push(table("settings", &["key", "value"], settings));
    let row = |stage: &StageRecord| vec![stage.name.clone(), stage.key.short(), stage.content.short()];
    parts.push(table("stages done", &["stage", "key", "content"], view.stages.iter().map(row).collect()));
    let rows = view.last_metrics.iter().flat_map(|(stage, values)| {
        values.iter().map(move |(name, last)| {
            vec![stage.clone(), name.clone(), last.step.to_string(), format!("{:.6}", last.value)]
        })
    });
    let rows: Vec<_> = rows.collect();
    if !rows.is_empty() {
        parts.push(table("last metrics", &["stage", "name", "step", "value"], rows));
    }
    // A finished run's report has them.
    if !view.rounds.is_empty() && view.report.is_none() {
        parts.push(output.table(&report::table(&view.rounds)));
    }
    // A report of another version of the program is shown by `--json` only.
    if let Some(report) = &view.report {
        let tables = RunReport::deserialize(report).map(|report| report.tables());
        let tables = tables.or_else(|_| Record::deserialize(report).map(|record| record.tables()));
        parts.extend(tables.unwrap_or_default().iter().map(|table| output.table(table)));
    }
    if view.status == RunStatus::Interrupted {
        parts.push("to go on, run the same command again".to_owned());
    }
    parts.join("\n\n")
}

/// Settings as key paths and values.
fn flatten(path: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&inner, value, rows);
            }
        }
        Value::Null => {}
        other => rows.push(vec![path.to_owned(), other.to_string()]),
    }
}
