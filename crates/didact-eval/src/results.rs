//! What an evaluation came to, as tables and as the lm-evaluation-harness's files.

use crate::error::EvalError;
use crate::harness::{EvalOptions, Sample, Score, TaskResult, stringified};
use crate::measure::{Aggregation, DRAWS, Measured};
use crate::python;
use didact_core::files;
use didact_core::progress::Table;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What is said of an evaluation beside its numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct About {
    /// The model's name: its path or its name at a server.
    pub model: String,
    /// Its content, where that can be told.
    pub model_sha: String,
    /// In what it computed.
    pub dtype: String,
    /// Its context in tokens.
    pub max_length: Option<usize>,
    /// Didact's version.
    pub version: String,
    /// When it began, seconds since 1970.
    pub date: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Requests that were answered from the cache.
    pub from_cache: u64,
}

/// A set of tasks under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its tasks' names.
    pub tasks: Vec<String>,
}

/// A group's score: the mean over all its documents.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupScore {
    /// Key of the metric, `acc,none`.
    pub key: String,
    /// The mean, tasks weighted by their documents.
    pub value: f64,
    /// The standard error, pooled.
    pub error: Option<f64>,
    /// Documents.
    pub documents: usize,
}

/// Scores of a group: of each metric that all its tasks have and whose values have a mean.
pub fn group_scores(group: &Group, results: &[TaskResult]) -> Vec<GroupScore> {
    let members: Vec<&TaskResult> = results.iter().filter(|result| group.tasks.contains(&result.task)).collect();
    let Some(first) = members.first() else { return Vec::new() };
    let mut out = Vec::new();
    for score in first.scores.iter().filter(|score| score.metric.aggregation == Aggregation::Mean) {
        let same = |result: &&TaskResult| {
            result.scores.iter().find(|s| s.name == score.name && s.filter == score.filter).cloned()
        };
        let scores: Vec<Score> = members.iter().filter_map(same).collect();
        if scores.len() != members.len() {
            continue;
        }
        let sizes: Vec<f64> = scores.iter().map(|score| score.values.len() as f64).collect();
        let total: f64 = sizes.iter().sum();
        let value = scores.iter().zip(&sizes).map(|(score, n)| score.value * n).sum::<f64>() / total;
        // The harness's pooled variance.
        let pooled: Option<f64> =
            scores.iter().zip(&sizes).map(|(score, n)| Some((n - 1.0) * score.error?.powi(2) * n)).sum();
        let error = pooled.map(|sum| (sum / (total - sizes.len() as f64) / total).sqrt());
        out.push(GroupScore { key: key(score), value, error, documents: total as usize });
    }
    out
}

/// `acc,none`.
fn key(score: &Score) -> String {
    format!("{},{}", score.name, score.filter)
}

fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or_else(|| Value::String(python::float(x)), Value::Number)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}

/// The document with all results, in the harness's layout.
pub fn document(results: &[TaskResult], groups: &[Group], options: &EvalOptions, about: &About) -> Value {
    let of_tasks = |value: &dyn Fn(&TaskResult) -> Value| -> Value {
        results.iter().map(|result| (result.task.clone(), value(result))).collect::<Map<_, _>>().into()
    };
    let mut tasks = of_tasks(&|result| {
        let mut out = Map::from_iter([
            ("alias".to_owned(), json!(result.alias)),
            ("sample_len".to_owned(), json!(result.samples.len())),
        ]);
        for score in &result.scores {
            out.insert(key(score), number(score.value));
            out.insert(format!("{}_stderr,{}", score.name, score.filter), score.error.map_or(json!("N/A"), number));
        }
        out.into()
    });
    let mut of_groups = Map::new();
    let mut subtasks: Map<String, Value> =
        results.iter().map(|result| (result.task.clone(), Value::Array(Vec::new()))).collect();
    for group in groups {
        let mut out = Map::from_iter([("alias".to_owned(), json!(group.name))]);
        for score in group_scores(group, results) {
            let (name, filter) = score.key.split_once(',').unwrap_or((&score.key, ""));
            out.insert(score.key.clone(), number(score.value));
            out.insert(format!("{name}_stderr,{filter}"), score.error.map_or(json!("N/A"), number));
            out.insert("sample_len".to_owned(), json!(score.documents));
        }
        if let Some(tasks) = tasks.as_object_mut() {
            tasks.insert(group.name.clone(), Value::Object(out.clone()));
        }
        of_groups.insert(group.name.clone(), out.into());
        subtasks.insert(group.name.clone(), json!(group.tasks));
    }
    let better = of_tasks(&|result| {
        let scores = result.scores.iter().map(|score| (score.name.clone(), json!(score.metric.higher_is_better)));
        scores.collect::<Map<_, _>>().into()
    });
    let hashes = of_tasks(&|result| {
        let all: String = result.samples.iter().map(|sample| hashes(sample).concat()).collect();
        json!(sha256(&all))
    });
    json!({
        "results": tasks,
        "groups": of_groups,
        "group_subtasks": subtasks,
        "configs": of_tasks(&|result| result.config.clone()),
        "versions": of_tasks(&|result| result.version.clone()),
        "n-shot": of_tasks(&|result| json!(result.shots)),
        "higher_is_better": better,
        "n-samples": of_tasks(&|result| json!({ "original": result.original, "effective": result.samples.len() })),
        "shortened_prompts": of_tasks(&|result| json!({ "prompts": result.shortened.0, "examples": result.shortened.1 })),
        "config": {
            "model": "didact",
            "model_args": format!("pretrained={},dtype={}", about.model, about.dtype),
            "model_sha": about.model_sha,
            "model_dtype": about.dtype,
            "batch_size": "auto",
            "device": "cpu",
            "use_cache": about.from_cache > 0,
            "limit": options.limit,
            "bootstrap_iters": DRAWS,
            "gen_kwargs": Value::Null,
            "random_seed": options.seed,
            "numpy_seed": options.seed,
            "torch_seed": options.seed,
            "fewshot_seed": options.seed,
            "fewshot_draw": options.draw,
        },
        "git_hash": about.version,
        "date": about.date,
        "task_hashes": hashes,
        "model_source": "didact",
        "model_name": about.model,
        "model_name_sanitized": sanitised(&about.model),
        "max_length": about.max_length,
        "chat_template": options.is_chat,
        "total_evaluation_time_seconds": python::float(about.seconds),
        "requests_from_cache": about.from_cache,
    })
}

/// SHA-256 of the document, of its first prompt, and of its target, as the harness takes them.
fn hashes(sample: &Sample) -> [String; 3] {
    let prompt = sample.arguments.first().and_then(|arguments| arguments.first()).map_or_else(String::new, python::str);
    let document = python::dumps(&Value::Object(sample.document.clone()));
    [sha256(&document), sha256(&prompt), sha256(&python::str(&sample.target))]
}

/// The log of a task's questions: a row for each document and filter.
pub fn samples(result: &TaskResult) -> Vec<Value> {
    let mut filters: Vec<&str> = Vec::new();
    for score in &result.scores {
        if !filters.contains(&score.filter.as_str()) {
            filters.push(&score.filter);
        }
    }
    let mut rows = Vec::new();
    for (number_of_filter, filter) in filters.iter().enumerate() {
        let scores: Vec<&Score> = result.scores.iter().filter(|score| score.filter == *filter).collect();
        for (place, sample) in result.samples.iter().enumerate() {
            let arguments = sample.arguments.iter().enumerate().map(|(i, own)| {
                let own: Map<String, Value> =
                    own.iter().enumerate().map(|(j, v)| (format!("arg_{j}"), v.clone())).collect();
                (format!("gen_args_{i}"), own.into())
            });
            let [doc_hash, prompt_hash, target_hash] = hashes(sample);
            let names: Vec<&str> = scores.iter().map(|score| score.name.as_str()).collect();
            let mut row = json!({
                "doc_id": sample.doc,
                "doc": sample.document,
                "target": python::str(&sample.target),
                "arguments": Value::Object(arguments.collect()),
                "resps": stringified(&json!(sample.responses)),
                "filtered_resps": stringified(&json!(sample.filtered[number_of_filter])),
                "filter": filter,
                "metrics": names,
                "doc_hash": doc_hash,
                "prompt_hash": prompt_hash,
                "target_hash": target_hash,
            });
            if let Some(object) = row.as_object_mut() {
                if let Some(verdict) = &sample.verdict {
                    object.insert("verdict".to_owned(), json!(verdict));
                }
                for score in &scores {
                    let value = match &score.values[place] {
                        // As the harness logs it: what BLEU is counted of.
                        Measured::Bleu(_) => json!([python::str(&sample.target), sample.filtered[number_of_filter][0]]),
                        other => other.json().unwrap_or_default(),
                    };
                    object.insert(score.name.clone(), value);
                }
            }
            rows.push(row);
        }
    }
    rows
}

/// A model's name as a folder's.
pub fn sanitised(name: &str) -> String {
    let is_bad = |c: char| matches!(c, '"' | '<' | '>' | ':' | '/' | '|' | '\\' | '?' | '*' | '[' | ']');
    let mut out = String::new();
    let mut was_bad = false;
    for c in name.chars() {
        if is_bad(c) {
            out.push_str(if was_bad { "" } else { "__" });
        } else {
            out.push(c);
        }
        was_bad = is_bad(c);
    }
    out
}

/// Writes the results document and each task's log of questions. A `path` that ends in `.json` is the document's own name;
/// another one is the folder in which the harness's names are used: `<model>/results_<time>.json`. Gives the document's
/// path.
///
/// # Errors
/// When a file cannot be written.
pub fn write(path: &Path, document: &Value, results: &[TaskResult], stamp: &str) -> Result<PathBuf, EvalError> {
    let (folder, file, mark) = if path.extension().is_some_and(|extension| extension == "json") {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        (path.parent().unwrap_or(Path::new("")).to_owned(), path.to_owned(), stem)
    } else {
        let name = document["model_name_sanitized"].as_str().unwrap_or("model");
        let folder = path.join(name);
        (folder.clone(), folder.join(format!("results_{stamp}.json")), stamp.to_owned())
    };
    if !folder.as_os_str().is_empty() {
        files::create_dir_all(&folder)?;
    }
    for result in results {
        let mut text = Vec::new();
        for row in samples(result) {
            text.extend(row.to_string().into_bytes());
            text.push(b'\n');
        }
        files::write_atomic(folder.join(format!("samples_{}_{mark}.jsonl", sanitised(&result.task))), &text)?;
    }
    let mut text = serde_json::to_vec_pretty(document).unwrap_or_default();
    text.push(b'\n');
    files::write_atomic(&file, &text)?;
    Ok(file)
}

/// The results for people.
pub fn table(results: &[TaskResult], groups: &[Group]) -> Table {
    let columns =
        ["task", "filter", "shots", "metric", "", "value", "± error", "documents"].map(str::to_owned).to_vec();
    let shown = |value: f64| if value.abs() >= 1000.0 { format!("{value:.1}") } else { format!("{value:.4}") };
    let arrow = |better: bool| if better { "↑" } else { "↓" };
    let mut rows = Vec::new();
    for result in results {
        for (i, score) in result.scores.iter().enumerate() {
            let name = if i == 0 { result.alias.clone() } else { String::new() };
            let filter = if score.filter == crate::filter::NONE { String::new() } else { score.filter.clone() };
            rows.push(vec![
                name,
                filter,
                result.shots.to_string(),
                score.name.clone(),
                arrow(score.metric.higher_is_better).to_owned(),
                shown(score.value),
                score.error.map_or("-".into(), shown),
                result.samples.len().to_string(),
            ]);
        }
    }
    for group in groups {
        let shots = results.iter().find(|result| group.tasks.contains(&result.task)).map_or(0, |result| result.shots);
        for score in group_scores(group, results) {
            let (name, filter) = score.key.split_once(',').unwrap_or((&score.key, ""));
            rows.push(vec![
                format!("all {}", group.name),
                if filter == crate::filter::NONE { String::new() } else { filter.to_owned() },
                shots.to_string(),
                name.to_owned(),
                String::new(),
                shown(score.value),
                score.error.map_or("-".into(), shown),
                score.documents.to_string(),
            ]);
        }
    }
    Table { title: "Results".into(), columns, rows }
}

/// What should be known about the results before they are believed.
pub fn remarks(results: &[TaskResult]) -> Vec<String> {
    let mut out = Vec::new();
    for result in results {
        if result.shortened.0 > 0 {
            let (prompts, examples) = result.shortened;
            let lost = examples as f64 / prompts as f64;
            out.push(format!(
                "{}: {prompts} of {} prompts were too long for the model and lost {lost:.1} examples each, from the front",
                result.task,
                result.samples.len()
            ));
        }
        if result.ambiguous > 0 {
            out.push(format!("{}: {} questions have two choices that are the same", result.task, result.ambiguous));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_folders_as_the_harness_does_it() {
        assert_eq!(sanitised("org/model:1"), "org__model__1");
        assert_eq!(sanitised("/a//b"), "__a__b");
    }

    #[test]
    fn hashes_are_those_of_python() {
        // hashlib.sha256(json.dumps({"q": "é", "n": 1.0}, indent=2, ensure_ascii=False).encode()).hexdigest()
        let document = json!({"q": "é", "n": 1.0});
        let text = python::dumps(&document);
        assert_eq!(text, "{\n  \"q\": \"é\",\n  \"n\": 1.0\n}");
        assert_eq!(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
