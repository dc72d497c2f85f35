//! What came of a run: `report.json`, and the same as tables.

use crate::curricula::Notes;
use crate::error::{MethodError, gigabytes};
use crate::meter::Readings;
use crate::mixed::SOURCES;
use crate::pipeline::Pipeline;
use crate::recipe::Recipe;
use crate::rounds;
use crate::rounds::progress::Decision;
use crate::rounds::report::RoundRow;
use crate::rounds::stages::{DECISION, NOTES, Step};
use crate::stages::diversity::{self, Ways};
use crate::stages::evaluate::{self, Metrics, Shown};
use crate::stages::train::{self, Outcome};
use crate::stages::{export, prepare, read_json};
use didact_core::progress::Table;
use didact_core::stage::StageOutcome;
use didact_train::PoolTotals;
use didact_verify::Category;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One stage of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// Its name.
    pub name: String,
    /// Whether its artifact was there already.
    pub skipped: bool,
    /// Seconds this process spent on it.
    pub seconds: f64,
    /// Hash of everything the artifact depends on.
    pub key: String,
    /// Hash of the artifact.
    pub content: String,
}

/// An answer to show, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleReport {
    /// What was asked.
    pub request: String,
    /// What the data says.
    pub expected: String,
    /// What the model said before training.
    pub before: String,
    /// And after.
    pub after: String,
}

/// Losses along the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLosses {
    /// Steps done.
    pub step: u64,
    /// Over everything measured.
    pub loss: f64,
    /// Of each source or skill, the mean over its documents.
    pub losses: BTreeMap<String, f64>,
}

fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, MethodError> {
    if path.is_file() { read_json(path).map(Some) } else { Ok(None) }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run directory.
    pub run_dir: PathBuf,
    /// The method.
    pub recipe: String,
    /// `done`.
    pub status: String,
    /// The stages, in order.
    pub stages: Vec<StageReport>,
    /// Measurements of the model as it came.
    pub metrics_before: Metrics,
    /// The same after training.
    pub metrics_after: Metrics,
    /// What training did.
    pub training: Outcome,
    /// What was said about the curriculum, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<Notes>,
    /// What was measured along the way, with a curriculum.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses_by_step: Vec<StepLosses>,
    /// What came of each round, with recipes that work in rounds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<RoundRow>,
    /// Continuations before and after, with the recipe `hyperfitting`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diversity: Ways,
    /// What was trained on.
    pub ledger: Value,
    /// Predicted and measured memory and time.
    pub readings: Readings,
    /// Answers, before and after.
    pub samples: Vec<SampleReport>,
    /// The exported model, if one was written.
    pub model_dir: Option<PathBuf>,
    /// The exported adapter, if one was written.
    pub adapter_dir: Option<PathBuf>,
    /// The model before the final decay of the learning rate, if the schedule has one: where to train on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk_dir: Option<PathBuf>,
    /// Seconds of the process that finished the run.
    pub wall_s: f64,
}

impl RunReport {
    /// Puts the report together from the artifacts.
    pub(crate) fn collect(
        recipe: &Recipe,
        run_dir: &Path,
        outcomes: &[StageOutcome],
        readings: Readings,
        wall_s: f64,
    ) -> Result<Self, MethodError> {
        let directories: BTreeMap<&str, &Path> =
            outcomes.iter().map(|o| (o.record.name.as_str(), o.directory.as_path())).collect();
        let [before, after] = [evaluate::BEFORE, evaluate::AFTER].map(|name| directories[name]);
        let shown: [Vec<Shown>; 2] =
            [read_json(&before.join(evaluate::SAMPLES))?, read_json(&after.join(evaluate::SAMPLES))?];
        let [first, second] = shown;
        let samples = first.into_iter().zip(second).map(|(b, a)| SampleReport {
            request: b.request,
            expected: b.expected,
            before: b.answer,
            after: a.answer,
        });
        let exported = directories[export::NAME];
        let existing = |name: &str| Some(exported.join(name)).filter(|dir| dir.is_dir());
        Ok(Self {
            run_dir: run_dir.to_owned(),
            recipe: recipe.method().to_owned(),
            status: "done".into(),
            stages: outcomes.iter().map(StageReport::from).collect(),
            metrics_before: read_json(&before.join(evaluate::METRICS))?,
            metrics_after: read_json(&after.join(evaluate::METRICS))?,
            training: read_json(&directories[train::NAME].join(train::OUTCOME))?,
            curriculum: optional(&directories[train::NAME].join(train::NOTES))?,
            losses_by_step: optional(&directories[train::NAME].join(train::LOSSES))?.unwrap_or_default(),
            rounds: Vec::new(),
            diversity: match directories.get(diversity::NAME) {
                Some(dir) => read_json(&dir.join(diversity::DIVERSITY))?,
                None => Ways::new(),
            },
            ledger: match optional(&directories[prepare::NAME].join(prepare::LEDGER))? {
                Some(ledger) => ledger,
                None => read_json(&directories[prepare::NAME].join(SOURCES))?,
            },
            readings,
            samples: samples.collect(),
            model_dir: existing(export::MODEL),
            adapter_dir: existing(export::ADAPTER),
            trunk_dir: existing(export::TRUNK),
            wall_s,
        })
    }

    /// The same for recipes that work in rounds: what is measured is the best round's model, or the one that came if no
    /// round was better.
    pub(crate) fn of_rounds(
        recipe: &Recipe,
        run_dir: &Path,
        outcomes: &[StageOutcome],
        readings: Readings,
        wall_s: f64,
    ) -> Result<Self, MethodError> {
        let directories: BTreeMap<&str, &Path> =
            outcomes.iter().map(|o| (o.record.name.as_str(), o.directory.as_path())).collect();
        let of = |step: Step| directories[step.name().as_str()];
        let rounds = rounds::report::rows(run_dir)?;
        let last = rounds.last().map_or(0, |row| row.round);
        let decision: Decision = read_json(&of(Step::Evaluate(last)).join(DECISION))?;
        let [before, after] = [0, decision.best].map(|round| of(Step::Evaluate(round)));
        let shown = |dir: &Path| read_json::<Vec<Shown>>(&dir.join(evaluate::SAMPLES));
        let samples = shown(before)?.into_iter().zip(shown(after)?).map(|(b, a)| SampleReport {
            request: b.request,
            expected: b.expected,
            before: b.answer,
            after: a.answer,
        });
        let trained = (1..=decision.best).rev().map(|round| of(Step::Train(round)).join(train::OUTCOME));
        let training = trained.filter(|path| path.is_file()).map(|path| read_json(&path)).next().transpose()?;
        let exported = directories[export::NAME];
        let existing = |name: &str| Some(exported.join(name)).filter(|dir| dir.is_dir());
        Ok(Self {
            run_dir: run_dir.to_owned(),
            recipe: recipe.method().to_owned(),
            status: "done".into(),
            stages: outcomes.iter().map(StageReport::from).collect(),
            metrics_before: read_json(&before.join(evaluate::METRICS))?,
            metrics_after: read_json(&after.join(evaluate::METRICS))?,
            training: training.unwrap_or_default(),
            curriculum: None,
            losses_by_step: Vec::new(),
            rounds,
            diversity: Ways::new(),
            ledger: read_json(&of(Step::Tasks).join(NOTES))?,
            readings,
            samples: samples.collect(),
            model_dir: existing(export::MODEL),
            adapter_dir: existing(export::ADAPTER),
            trunk_dir: existing(export::TRUNK),
            wall_s,
        })
    }

    /// The result as tables: scores, kinds of errors, losses, samples, cost.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = Vec::new();
        let has = |name: &str| self.metrics_before.contains_key(name) && self.metrics_after.contains_key(name);
        if has("held_out_tools/exact") {
            tables.push(self.tool_scores());
            tables.push(self.tool_errors());
        }
        if let Some(notes) = &self.curriculum {
            tables.extend(notes.tables.iter().cloned());
            tables.push(self.pools(notes));
            if self.losses_by_step.len() > 2 {
                tables.push(self.along());
            }
        }
        if has("held_out_pairs/likelier_chosen") {
            tables.push(self.pairs());
        }
        if self.rounds.is_empty() {
            tables.push(self.losses());
        } else {
            tables.push(rounds::report::table(&self.rounds));
            tables.push(self.solved());
        }
        if !self.diversity.is_empty() {
            tables.push(diversity::table(&self.diversity));
        }
        if !self.readings.train_tokens_per_s_by_length.is_empty() {
            tables.push(self.speeds());
        }
        if !self.samples.is_empty() {
            tables.push(self.sample_table());
        }
        tables.push(self.cost());
        tables
    }

    fn both(&self, name: &str, show: impl Fn(f64) -> String) -> [String; 2] {
        [&self.metrics_before, &self.metrics_after].map(|m| m.get(name).map_or_else(|| "-".to_owned(), |v| show(*v)))
    }

    /// What became of answers to held-out tasks, before and after.
    fn solved(&self) -> Table {
        let names: BTreeSet<&String> = self.metrics_before.keys().chain(self.metrics_after.keys()).collect();
        let row = |name: &&String| {
            // A category that nothing was counted in is absent.
            let value = |metrics: &Metrics| metrics.get(*name).copied().unwrap_or_default();
            let show = |value: f64| if name.ends_with("calls") { format!("{value:.2}") } else { percent_of(value) };
            let shown = [&self.metrics_before, &self.metrics_after].map(|metrics| show(value(metrics)));
            let label = name.rsplit('/').next().unwrap_or(name).replace("is_", "answers: ");
            [vec![label], shown.to_vec()].concat()
        };
        Table {
            title: "held-out tasks".into(),
            columns: strings(["", "before", "after"]),
            rows: names.iter().map(row).collect(),
        }
    }

    /// How held-out pairs are ordered.
    fn pairs(&self) -> Table {
        let rows = [
            ("loss", "loss", false),
            ("accuracy", "ordered rightly, compared with the model as it came", true),
            ("margin", "margin of the better answer, compared with the model as it came", false),
            ("likelier_chosen", "better answer likelier, per token", true),
            ("chosen_logp", "log-probability of the better answer, per token", false),
            ("rejected_logp", "log-probability of the worse answer, per token", false),
        ];
        let rows = rows.into_iter().map(|(name, label, is_share)| {
            let show = |value: f64| if is_share { percent(value) } else { format!("{value:.4}") };
            let [before, after] = self.both(&format!("held_out_pairs/{name}"), show);
            vec![label.to_owned(), before, after]
        });
        Table { title: "held-out pairs".into(), columns: strings(["", "before", "after"]), rows: rows.collect() }
    }

    fn tool_scores(&self) -> Table {
        let mut rows = Vec::new();
        for (set, label) in TOOL_SETS {
            for (suffix, which) in [("", "all"), ("_easy", "easy"), ("_medium", "medium"), ("_hard", "hard")] {
                let name = format!("{set}/exact{suffix}");
                if self.metrics_after.contains_key(&name) {
                    let [before, after] = self.both(&name, percent);
                    rows.push(vec![label.to_owned(), which.to_owned(), before, after]);
                }
            }
        }
        Table { title: "right tool calls".into(), columns: strings(["requests for", "level", "before", "after"]), rows }
    }

    fn tool_errors(&self) -> Table {
        let rows = Category::ALL
            .iter()
            .map(|category| {
                let mut row = vec![category.as_str().to_owned()];
                for (set, _) in TOOL_SETS {
                    row.extend(self.both(&format!("{set}/{}", category.as_str()), percent));
                }
                row
            })
            .collect();
        let columns =
            strings(["answers that are", "held-out: before", "held-out: after", "trained: before", "trained: after"]);
        Table { title: "what is wrong with the others".into(), columns, rows }
    }

    fn losses(&self) -> Table {
        let mut rows = Vec::new();
        let named = [("held_out", "held-out rows"), ("plain_text", "plain English"), ("mean", "mean of the sources")];
        let others = self.metrics_after.keys().filter_map(|name| name.strip_suffix("/loss"));
        let others = others.filter(|name| named.iter().all(|(known, _)| known != name) && *name != "held_out_pairs");
        let mut names: Vec<(&str, &str)> = others.map(|name| (name, name)).collect();
        names.extend(named);
        for (name, label) in names {
            for (metric, digits) in [("loss", 4), ("perplexity", 2), ("bits_per_byte", 4)] {
                let name = format!("{name}/{metric}");
                if let Some(after) = self.metrics_after.get(&name) {
                    let change = self.metrics_before.get(&name).map(|before| format!("{:+.digits$}", after - before));
                    let [before, after] = self.both(&name, |v| format!("{v:.digits$}"));
                    rows.push(vec![
                        label.to_owned(),
                        metric.replace('_', " "),
                        before,
                        after,
                        change.unwrap_or_else(|| "-".to_owned()),
                    ]);
                }
            }
        }
        Table {
            title: "loss (nats per token) and perplexity".into(),
            columns: strings(["text", "", "before", "after", "change"]),
            rows,
        }
    }

    /// What was read of each source, skill or length.
    fn pools(&self, notes: &Notes) -> Table {
        let all: u64 = self.training.pools.values().map(|pool| pool.targets).sum();
        let row = |(name, pool): (&String, &PoolTotals)| {
            let share = percent_of(pool.targets as f64 / all.max(1) as f64);
            let rows = notes.rows.get(name).copied().unwrap_or_default().max(1);
            let times = format!("{:.2}", pool.rows as f64 / rows as f64);
            vec![name.clone(), pool.rows.to_string(), pool.targets.to_string(), share, times]
        };
        Table {
            title: "what was read".into(),
            columns: strings(["from", "rows", "tokens", "share", "times"]),
            rows: self.training.pools.iter().map(row).collect(),
        }
    }

    /// Losses along the way.
    fn along(&self) -> Table {
        let names: Vec<&String> = self.losses_by_step.iter().flat_map(|at| at.losses.keys()).collect();
        let names: BTreeSet<&String> = names.into_iter().collect();
        let row = |at: &StepLosses| {
            let loss =
                |name: &&String| at.losses.get(*name).map_or_else(|| "-".to_owned(), |loss| format!("{loss:.4}"));
            [at.step.to_string(), format!("{:.4}", at.loss)].into_iter().chain(names.iter().map(loss)).collect()
        };
        let heads = ["step", "all"].map(str::to_owned).into_iter().chain(names.iter().map(|name| (*name).clone()));
        Table {
            title: "loss along the way".into(),
            columns: heads.collect(),
            rows: self.losses_by_step.iter().map(row).collect(),
        }
    }

    fn sample_table(&self) -> Table {
        let rows = self
            .samples
            .iter()
            .map(|s| [&s.request, &s.expected, &s.before, &s.after].map(|text| shortened(text)).to_vec());
        Table {
            title: "answers".into(),
            columns: strings(["request", "expected", "before", "after"]),
            rows: rows.collect(),
        }
    }

    /// How fast steps of each length went, and against those of the longest rows.
    fn speeds(&self) -> Table {
        let speeds = &self.readings.train_tokens_per_s_by_length;
        let longest = speeds.last_key_value().map_or(1.0, |(_, speed)| *speed);
        let row = |(length, speed): (&usize, &f64)| {
            vec![length.to_string(), format!("{speed:.0}"), format!("{:.2}", speed / longest)]
        };
        Table {
            title: "speed by length of rows".into(),
            columns: strings(["length", "tokens/s", "against the longest"]),
            rows: speeds.iter().map(row).collect(),
        }
    }

    fn cost(&self) -> Table {
        let Readings {
            predicted_memory_bytes, peak_memory_bytes, predicted_train_s, train_s, predicted_s, stages, ..
        } = &self.readings;
        let memory = |bytes: &Option<u64>| bytes.map_or_else(|| "-".to_owned(), gigabytes);
        let seconds = |s: &Option<f64>| s.map_or_else(|| "-".to_owned(), |s| format!("{s:.0} s"));
        let rows = vec![
            vec!["peak memory".into(), memory(predicted_memory_bytes), memory(peak_memory_bytes)],
            vec!["training".into(), seconds(predicted_train_s), seconds(train_s)],
            vec!["all stages".into(), seconds(predicted_s), seconds(&Some(stages.values().sum()))],
        ];
        Table { title: "cost".into(), columns: strings(["", "predicted", "measured"]), rows }
    }
}

const TOOL_SETS: [(&str, &str); 2] = [("held_out_tools", "tools never trained on"), ("trained_tools", "trained tools")];

/// Characters of a text shown in a table.
const SHOWN_CHARACTERS: usize = 100;

fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn percent_of(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

impl From<&StageOutcome> for StageReport {
    fn from(outcome: &StageOutcome) -> Self {
        Self {
            name: outcome.record.name.clone(),
            skipped: outcome.is_skipped,
            seconds: outcome.seconds,
            key: outcome.record.key.to_string(),
            content: outcome.record.content.to_string(),
        }
    }
}

/// The stage that an error most likely belongs to: the first whose artifact is not there.
pub(crate) fn failing_stage(pipeline: &Pipeline, finished: usize) -> String {
    pipeline.stages.get(finished).map_or_else(|| "report".to_owned(), |stage| stage.name().to_owned())
}
