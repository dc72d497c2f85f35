//! `didact eval`: tasks, asked of a model and measured; two models compared.

use super::local::{DEFAULT_CACHE_MIB, ModelFiles, mebibytes, precision};
use super::remote::RemoteArgs;
use crate::cli::Global;
use crate::hub::cache_dir;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::{Args, ValueEnum};
use didact_core::cancel::Cancel;
use didact_core::generate::Generator;
use didact_core::hash::{Digest, hash_bytes};
use didact_core::progress::{Reporter, Table};
use didact_core::seed::Streams;
use didact_eval::compare::{self, Side};
use didact_eval::results::{self, About};
use didact_eval::task::prompt::Draw;
use didact_eval::{EvalError, EvalOptions, Model, TaskResult, Windows, contamination, evaluate};
use didact_infer::{CachedGenerator, LocalGenerator, Options};
use didact_methods::tasks::{self, Selection};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Options of `didact eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// A model directory, a .gguf file, or a name that `model pull` knows
    #[arg(long, value_name = "PATH", required_unless_present_any = ["list", "compare"])]
    model: Option<String>,
    /// Tasks, sets of tasks, task files (.toml; the lm-evaluation-harness's .yaml), or folders of them
    #[arg(long, value_name = "LIST", value_delimiter = ',', required_unless_present_any = ["list", "compare"])]
    tasks: Vec<String>,
    /// Solved examples before each question; several numbers ask everything as often. [default: each task's own]
    #[arg(long, value_name = "K", value_delimiter = ',', visible_alias = "num-fewshot")]
    shots: Vec<usize>,
    /// Which examples
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    examples: Examples,
    /// Questions of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Say the prompts as a user, in the model's chat template
    #[arg(long, visible_alias = "apply-chat-template")]
    chat: bool,
    /// Compare with another model, or with results that were written; or two of them, without --model
    #[arg(long, value_name = "PATH", num_args = 1..=2)]
    compare: Vec<String>,
    /// Write results: a file (.json), or a folder in the lm-evaluation-harness's layout; each question's log beside it
    #[arg(long, value_name = "PATH", visible_alias = "output-path")]
    out: Option<PathBuf>,
    /// Look for the questions in this training text: files, folders, globs
    #[arg(long, value_name = "PATH", num_args = 1..)]
    train_data: Vec<String>,
    /// A LoRA adapter's directory, folded in while loading
    #[arg(long, value_name = "DIR", conflicts_with = "endpoint")]
    adapter: Option<PathBuf>,
    /// Ask again what was asked before; answers are otherwise kept by model and question
    #[arg(long)]
    no_cache: bool,
    /// Most memory for keys and values, in MiB; prompts wait for it
    #[arg(long, value_name = "MIB", default_value_t = DEFAULT_CACHE_MIB, value_parser = clap::value_parser!(u64).range(1..))]
    max_cache_mib: u64,
    /// List the tasks
    #[arg(long, conflicts_with_all = ["model", "tasks", "compare", "shots", "limit", "out", "train_data"])]
    list: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Which documents are examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Examples {
    /// As the lm-evaluation-harness draws them
    #[default]
    Harness,
    /// Drawn for each question by itself: another --limit changes none
    PerDocument,
    /// Drawn once: the prompts' common beginning is read once
    Fixed,
    /// The first ones
    First,
}

impl Examples {
    fn draw(self) -> Draw {
        match self {
            Self::Harness => Draw::Harness,
            Self::PerDocument => Draw::PerDocument,
            Self::Fixed => Draw::Fixed,
            Self::First => Draw::First,
        }
    }
}

/// Answers that a killed evaluation may lose; each can be asked again.
const SYNC_EVERY: usize = 256;
/// The seed of the lm-evaluation-harness.
const SEED: u64 = 1234;

pub(crate) fn run(args: &EvalArgs, global: &Global, output: &Output) -> anyhow::Result<Status> {
    if args.list {
        return list(output);
    }
    let streams = Streams::new(global.seed.unwrap_or(SEED)).child("compare", &[]);
    let (Some(first), false) = (args.model.as_ref().or(args.compare.first()), args.tasks.is_empty()) else {
        return compare_results(args, streams, output);
    };
    let second = if args.model.is_some() { args.compare.first() } else { args.compare.get(1) };
    if args.model.is_some() && args.compare.len() > 1 {
        return Err(usage("--compare takes one model beside --model", "leave --model out to compare two"));
    }
    if second.is_some() && args.shots.len() > 1 {
        return Err(usage("--compare takes one number of --shots", "compare for each of them"));
    }
    if let Some(0) = args.limit {
        return Err(usage("--limit begins at 1", "leave it out to ask everything"));
    }
    let evaluation = Evaluation {
        args,
        global,
        output,
        selection: tasks::select(&args.tasks)?,
        progress: Progress::new(output),
        cancel: Cancel::new(),
    };
    signals::watch(&evaluation.cancel)?;
    match evaluation.all(first, second.map(String::as_str), streams) {
        Err(error) if matches!(error.downcast_ref(), Some(EvalError::Stopped)) => {
            let kept = if args.no_cache { "" } else { "; what was answered is kept, and the same command goes on" };
            output.note(&format!("stopped{kept}"));
            Ok(Status::Stopped)
        }
        result => result.map(|()| Status::Done),
    }
}

fn list(output: &Output) -> anyhow::Result<Status> {
    let listed = tasks::list();
    let document = listed.iter().map(|task| json!({ "name": task.name, "set": task.group, "what": task.what }));
    output.result(&document.collect::<Vec<_>>(), || {
        let rows = listed.iter().map(|task| vec![task.name.clone(), task.group.to_owned(), task.what.clone()]);
        let columns = ["task", "set", "what"].map(str::to_owned).to_vec();
        output.table(&Table { title: "Tasks".into(), columns, rows: rows.collect() })
    })?;
    Ok(Status::Done)
}

/// Two results that are there already.
fn compare_results(args: &EvalArgs, streams: Streams, output: &Output) -> anyhow::Result<Status> {
    let [a, b] = args.compare.as_slice() else {
        return Err(usage("two results are compared, or models with --tasks", "didact eval --compare A B"));
    };
    if args.out.is_some() || !args.train_data.is_empty() || args.limit.is_some() || !args.shots.is_empty() || args.chat
    {
        let hint = "with --tasks, --compare asks two models";
        return Err(usage("results that are there are compared as they are: no other option means anything", hint));
    }
    let (a, b) = (Side::read(Path::new(a))?, Side::read(Path::new(b))?);
    let comparisons = compare::compare(&a, &b, &streams)?;
    let document = json!({ "a": a.name, "b": b.name, "comparison": comparisons });
    output.result(&document, || output.table(&compare::table(&a.name, &b.name, &comparisons)))?;
    Ok(Status::Done)
}

/// Everything that is the same for all models.
struct Evaluation<'a> {
    args: &'a EvalArgs,
    global: &'a Global,
    output: &'a Output,
    selection: Selection,
    progress: Progress,
    cancel: Cancel,
}

/// What a model was found to be, for one number of examples.
struct Found {
    name: String,
    results: Vec<TaskResult>,
    document: Value,
}

impl Evaluation<'_> {
    fn all(&self, first: &str, second: Option<&str>, streams: Streams) -> anyhow::Result<()> {
        let found = self.model(first)?;
        let mut documents: Vec<Value> = Vec::new();
        for (number, found) in found.iter().enumerate() {
            let mut document = found.document.clone();
            self.print(&results::table(&found.results, &self.selection.groups));
            for remark in results::remarks(&found.results) {
                self.output.warn(&remark);
            }
            if !self.args.train_data.is_empty() {
                let tasks = &self.selection.tasks;
                let reports =
                    contamination::look(tasks, &found.results, &self.args.train_data, &self.progress, &self.cancel)?;
                self.print(&contamination::table(&reports));
                document["contamination"] = json!(reports);
            }
            self.write(&document, &found.results, number, "")?;
            documents.push(document);
        }
        let report = if let (Some(second), [first]) = (second, found.as_slice()) {
            let path = Path::new(second);
            let is_results =
                path.extension().is_some_and(|e| e == "json") || (path.is_dir() && !path.join("config.json").exists());
            let b = if is_results {
                Side::read(path)?
            } else {
                let found = self.model(second)?.remove(0);
                self.print(&results::table(&found.results, &self.selection.groups));
                self.write(&found.document, &found.results, 0, "_compared")?;
                documents.push(found.document.clone());
                Side::of(&found.name, &found.results)
            };
            let a = Side::of(&first.name, &first.results);
            let comparisons = compare::compare(&a, &b, &streams)?;
            self.print(&compare::table(&a.name, &b.name, &comparisons));
            json!({ "a": a.name, "b": b.name, "comparison": comparisons, "results": documents })
        } else if documents.len() == 1 {
            documents.remove(0)
        } else {
            json!(documents)
        };
        // The tables were shown as they came.
        if self.output.is_json() {
            self.output.result(&report, String::new)?;
        }
        Ok(())
    }

    fn print(&self, table: &Table) {
        if !self.output.is_json() {
            self.progress.table(table);
        }
    }

    /// Asks one model everything.
    fn model(&self, name: &str) -> anyhow::Result<Vec<Found>> {
        let seed = self.global.seed.unwrap_or(SEED);
        if let Some(remote) = self.args.remote.generator(name, true, seed)? {
            // Its journal is its cache.
            let address = self.args.remote.endpoint.as_deref().unwrap_or_default();
            let digest = hash_bytes(format!("{address} {name}").as_bytes());
            return self.ask(name, &remote, None, None, digest, "server", None);
        }
        let files = ModelFiles::open(name, self.output)?;
        let adapter = self.args.adapter.as_deref();
        let digest = files.digest(adapter, self.global)?;
        let model = files.load(adapter, self.global)?;
        let options = Options { max_cache_bytes: mebibytes(self.args.max_cache_mib), ..Options::default() };
        let generator = LocalGenerator::with_model(std::sync::Arc::clone(&model), options)?;
        let tokenizer = model.tokenizer();
        let prefix = tokenizer.bos().or_else(|| model.eos().first().copied());
        let windows = prefix.map(|prefix| Windows { tokenizer, context: model.context(), prefix });
        let cache = (!self.args.no_cache).then(|| cache_dir().join("eval").join(format!("{}.log", digest.short())));
        if let Some(folder) = cache.as_deref().and_then(Path::parent) {
            didact_core::files::create_dir_all(folder)?;
        }
        let dtype = precision(self.global).as_str();
        self.ask(name, &generator, windows, cache.as_deref(), digest, dtype, Some(model.context()))
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of a model, once")]
    fn ask(
        &self,
        name: &str,
        generator: &dyn Generator,
        windows: Option<Windows<'_>>,
        cache: Option<&Path>,
        digest: Digest,
        dtype: &str,
        context: Option<usize>,
    ) -> anyhow::Result<Vec<Found>> {
        let cached = CachedGenerator::new(generator, digest);
        let cached = if let Some(file) = cache { cached.with_file(file, SYNC_EVERY)? } else { cached };
        let shots: Vec<Option<usize>> =
            if self.args.shots.is_empty() { vec![None] } else { self.args.shots.iter().copied().map(Some).collect() };
        let mut all = Vec::new();
        for shots in shots {
            let options = EvalOptions {
                shots,
                draw: self.args.examples.draw(),
                seed: self.global.seed.unwrap_or(SEED),
                limit: self.args.limit,
                is_chat: self.args.chat,
            };
            let (started, hits) = (Instant::now(), cached.hits());
            let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
            let model = Model { generator: &cached, windows };
            let results = evaluate(&self.selection.tasks, model, &options, &self.progress, &self.cancel)?;
            let about = About {
                model: name.to_owned(),
                model_sha: digest.to_string(),
                dtype: dtype.to_owned(),
                max_length: context,
                version: super::version(),
                date,
                seconds: started.elapsed().as_secs_f64(),
                from_cache: cached.hits() - hits,
            };
            let document = results::document(&results, &self.selection.groups, &options, &about);
            all.push(Found { name: name.to_owned(), results, document });
        }
        if cached.hits() > 0 && cache.is_some() {
            let asked = cached.hits() + cached.asked();
            self.output.note(&format!("{} of {asked} requests were known already", cached.hits()));
        }
        Ok(all)
    }

    /// Writes the results of the `number`-th number of examples, if they are wanted.
    fn write(&self, document: &Value, results: &[TaskResult], number: usize, mark: &str) -> anyhow::Result<()> {
        let Some(out) = &self.args.out else { return Ok(()) };
        let shots = self.args.shots.get(number).filter(|_| self.args.shots.len() > 1);
        let mark = shots.map_or_else(|| mark.to_owned(), |shots| format!("_{shots}shot{mark}"));
        let path = if out.extension().is_some_and(|e| e == "json") {
            let stem = out.file_stem().unwrap_or_default().to_string_lossy();
            out.with_file_name(format!("{stem}{mark}.json"))
        } else {
            out.clone()
        };
        let stamp = format!("{}{mark}", stamp(document["date"].as_f64().unwrap_or_default()));
        let file = results::write(&path, document, results, &stamp)?;
        self.output.note(&format!("results are in `{}`", file.display()));
        Ok(())
    }
}

/// A time as the harness's file names have it: ISO 8601 in UTC, with dashes for colons.
fn stamp(seconds: f64) -> String {
    let moment = jiff::Timestamp::from_microsecond((seconds * 1e6) as i64).unwrap_or_default();
    moment.strftime("%Y-%m-%dT%H-%M-%S.%6f").to_string()
}
