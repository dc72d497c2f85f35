//! `didact verify`: what verifiers say of answers that are there already.

use super::local::ModelFiles;
use super::remote::RemoteArgs;
use super::sampling::{bad_row, rows};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::{Args, ValueEnum};
use didact_core::cancel::Cancel;
use didact_core::generate::Generator;
use didact_core::hash::{Hasher, hash_bytes};
use didact_core::progress::{Reporter, Table};
use didact_core::verdict::{Item, Verdict, Verifier};
use didact_infer::{LocalGenerator, Options};
use didact_verify::cached::Cached;
use didact_verify::judge::{Judge, Rubric};
use didact_verify::matching::{ExactMatch, NumericMatch, Part, RegexMatch, SetMatch};
use didact_verify::sandbox::Sandbox;
use didact_verify::tool_call::{LooseToolCallVerifier, ToolCallVerifier};
use didact_verify::verilog::{Icarus, VerilogOptions, VerilogTask, VerilogVerdict, VerilogVerifier, verilog_eval};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of `didact verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// How answers are judged
    kind: Kind,
    /// Rows with `answer` (or `completion`), `reference`, and maybe `id` and `prompt`
    #[arg(value_name = "FILE.jsonl", required_unless_present = "goldens")]
    input: Option<PathBuf>,
    /// Keep verdicts in this file, and take those that are there
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Only what follows the last of these marks counts, to the end of its line (`####` for GSM8K)
    #[arg(long, value_name = "TEXT", conflicts_with = "last_line")]
    after: Option<String>,
    /// Only the last line counts
    #[arg(long)]
    last_line: bool,
    /// exact, set: upper and lower case are the same
    #[arg(long)]
    ignore_case: bool,
    /// exact: any space is as good as another, and punctuation at the end does not count; tool-call: `"4"` is as good as `4`
    #[arg(long)]
    loose: bool,
    /// number: largest difference [default: 0]
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// regex: a match anywhere in the answer will do
    #[arg(long)]
    anywhere: bool,
    /// verilog: VerilogEval's folder (version 2) or .jsonl file (version 1); rows then name a task by `id` or `task_id`
    #[arg(long, value_name = "PATH", help_heading = VERILOG)]
    tasks: Option<PathBuf>,
    /// verilog: judge each task's own solution instead of answers
    #[arg(long, requires = "tasks", conflicts_with = "input", help_heading = VERILOG)]
    goldens: bool,
    /// verilog: most seconds for the compiler [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), help_heading = VERILOG)]
    compile_seconds: Option<u64>,
    /// verilog: most seconds for the simulation [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), help_heading = VERILOG)]
    simulate_seconds: Option<u64>,
    /// Run what a model wrote without a sandbox, with your own rights, where this machine has none
    #[arg(long, help_heading = VERILOG)]
    unsafe_exec: bool,
    /// judge: the model that judges
    #[arg(long, value_name = "PATH", required_if_eq("kind", "judge"), help_heading = JUDGE)]
    model: Option<String>,
    /// judge: what it is asked [default: same]
    #[arg(long, value_name = "RUBRIC", help_heading = JUDGE)]
    rubric: Option<RubricName>,
    /// judge, points: what they are given for [default: Look at whether it is right and complete.]
    #[arg(long, value_name = "TEXT", help_heading = JUDGE)]
    criteria: Option<String>,
    /// judge, points: most of them [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100), help_heading = JUDGE)]
    points: Option<u32>,
    /// judge: most tokens of its answer [default: 512]
    #[arg(long, value_name = "N", help_heading = JUDGE)]
    max_tokens: Option<usize>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Defaults of the judge.
const CRITERIA: &str = "Look at whether it is right and complete.";
const POINTS: u32 = 5;
const JUDGE_TOKENS: usize = 512;

impl VerifyArgs {
    /// An option that another kind of verifier reads is a mistake, not a wish to be passed over.
    fn refuse_what_does_nothing(&self) -> anyhow::Result<()> {
        let compared: &[Kind] = &[Kind::Exact, Kind::Number, Kind::Regex, Kind::Set];
        let (verilog, judge): (&[Kind], &[Kind]) = (&[Kind::Verilog], &[Kind::Judge]);
        let given: [(&str, bool, &[Kind]); 17] = [
            ("--after", self.after.is_some(), compared),
            ("--last-line", self.last_line, compared),
            ("--ignore-case", self.ignore_case, &[Kind::Exact, Kind::Set]),
            ("--loose", self.loose, &[Kind::Exact, Kind::ToolCall]),
            ("--tolerance", self.tolerance.is_some(), &[Kind::Number]),
            ("--anywhere", self.anywhere, &[Kind::Regex]),
            ("--tasks", self.tasks.is_some(), verilog),
            ("--goldens", self.goldens, verilog),
            ("--compile-seconds", self.compile_seconds.is_some(), verilog),
            ("--simulate-seconds", self.simulate_seconds.is_some(), verilog),
            ("--unsafe-exec", self.unsafe_exec, verilog),
            ("--model", self.model.is_some(), judge),
            ("--rubric", self.rubric.is_some(), judge),
            ("--criteria", self.criteria.is_some(), judge),
            ("--points", self.points.is_some(), judge),
            ("--max-tokens", self.max_tokens.is_some(), judge),
            ("--endpoint", self.remote.endpoint.is_some(), judge),
        ];
        for (option, is_given, kinds) in given {
            if is_given && !kinds.contains(&self.kind) {
                let names = kinds.iter().filter_map(ValueEnum::to_possible_value);
                let names = names.map(|name| name.get_name().to_owned()).collect::<Vec<_>>().join("|");
                return Err(usage(
                    format!("{option} belongs to `didact verify {names}`"),
                    "see `didact verify --help`",
                ));
            }
        }
        let has_points = self.criteria.is_some() || self.points.is_some();
        if has_points && self.rubric != Some(RubricName::Points) {
            return Err(usage("--criteria and --points belong to `--rubric points`", "see `didact verify --help`"));
        }
        Ok(())
    }
}

const VERILOG: &str = "Verilog";
const JUDGE: &str = "A language model as judge";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The answer is the reference, or one of a list of them
    Exact,
    /// The last number is the reference
    Number,
    /// The reference, a regular expression, matches
    Regex,
    /// Members of a list
    Set,
    /// Calls of tools
    ToolCall,
    /// A Verilog module against a test bench
    Verilog,
    /// A language model says so
    Judge,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RubricName {
    /// Whether the answer says the same as the reference
    Same,
    /// Whether it is better
    Better,
    /// Points
    Points,
}

#[derive(Serialize)]
struct Report {
    verdicts: Vec<Row>,
    /// How many have the score 1.
    right: usize,
    /// How many have a score.
    judged: usize,
    mean_score: Option<f64>,
    categories: BTreeMap<String, usize>,
    /// What held the programs that were run.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'static str>,
    /// Which simulator ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulator: Option<String>,
    /// Verdicts that came from the cache.
    cached: u64,
}

#[derive(Serialize)]
struct Row {
    id: String,
    #[serde(flatten)]
    verdict: Verdict,
}

/// What ran, where something ran.
#[derive(Default)]
struct Ran {
    sandbox: Option<&'static str>,
    simulator: Option<String>,
}

const ROW: &str = "a row is {\"id\": \"...\", \"prompt\": \"...\", \"reference\": ..., \"answer\": \"...\"}";

pub(crate) fn run(args: &VerifyArgs, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    args.refuse_what_does_nothing()?;
    let tolerance = args.tolerance.unwrap_or_default();
    if !(tolerance >= 0.0 && tolerance.is_finite()) {
        return Err(usage("--tolerance begins at 0", "see --help"));
    }
    let asked = read(args)?;
    let cancel = Cancel::new();
    let part = match &args.after {
        Some(mark) => Part::After(mark.clone()),
        None if args.last_line => Part::LastLine,
        None => Part::Whole,
    };
    let (ignore_case, loose) = (args.ignore_case, args.loose);
    let mut settings = Hasher::new();
    settings.field(
        "settings",
        format!("{:?} {part:?} {ignore_case} {loose} {} {}", args.kind, tolerance, args.anywhere).as_bytes(),
    );
    let settings = settings.finish();
    let go = Go { args, asked: &asked, cancel: &cancel, output };
    let plain = Ran::default();
    match args.kind {
        Kind::Exact => go.with(ExactMatch { part, ignore_case, loose }, settings, &[], plain),
        Kind::Number => {
            go.with(NumericMatch { part, absolute: tolerance, ..NumericMatch::default() }, settings, &[], plain)
        }
        Kind::Regex => go.with(RegexMatch { part, anywhere: args.anywhere }, settings, &[], plain),
        Kind::Set => go.with(SetMatch { part, ignore_case }, settings, &[], plain),
        Kind::ToolCall if loose => go.with(LooseToolCallVerifier, settings, &[], plain),
        Kind::ToolCall => go.with(ToolCallVerifier, settings, &[], plain),
        Kind::Verilog => {
            let sandbox = Sandbox::open(&std::env::current_exe()?, args.unsafe_exec)?;
            let described = sandbox.mechanism().describe();
            let mut options = VerilogOptions::default();
            for (limits, seconds) in
                [(&mut options.compile, args.compile_seconds), (&mut options.simulate, args.simulate_seconds)]
            {
                if let Some(seconds) = seconds {
                    (limits.wall, limits.cpu_seconds) = (Duration::from_secs(seconds), seconds);
                }
            }
            let icarus = Icarus::find(sandbox, options)?;
            let ran = Ran { sandbox: Some(described), simulator: Some(icarus.version().to_owned()) };
            let verifier = VerilogVerifier::new(icarus, threads);
            let fingerprint = verifier.fingerprint();
            go.with(verifier, fingerprint, VerilogVerdict::VOLATILE, ran)
        }
        Kind::Judge => {
            let model = args.model.as_deref().unwrap_or_default();
            if let Some(generator) = args.remote.generator(model, false, global.seed.unwrap_or_default())? {
                let address = args.remote.endpoint.clone().unwrap_or_default();
                return go.judge(generator, hash_bytes(format!("{address} {model}").as_bytes()));
            }
            let files = ModelFiles::open(model, output)?;
            // What it says depends on its content, not on where it lies.
            let name = files.digest(None, global)?;
            go.judge(LocalGenerator::with_model(files.load(None, global)?, Options::default())?, name)
        }
    }
}

struct Go<'a> {
    args: &'a VerifyArgs,
    asked: &'a [(Item, String)],
    cancel: &'a Cancel,
    output: &'a Output,
}

impl Go<'_> {
    fn judge(&self, generator: impl Generator, name: didact_core::hash::Digest) -> anyhow::Result<Status> {
        let rubric = match self.args.rubric {
            None | Some(RubricName::Same) => Rubric::Same,
            Some(RubricName::Better) => Rubric::Better,
            Some(RubricName::Points) => Rubric::Points {
                criteria: self.args.criteria.clone().unwrap_or_else(|| CRITERIA.to_owned()),
                points: self.args.points.unwrap_or(POINTS),
            },
        };
        let judge = Judge::new(generator, rubric, self.args.max_tokens.unwrap_or(JUDGE_TOKENS))?;
        let fingerprint = judge.fingerprint(name);
        self.with(judge, fingerprint, &[], Ran::default())
    }

    fn with(
        &self,
        verifier: impl Verifier,
        fingerprint: didact_core::hash::Digest,
        volatile: &'static [&'static str],
        ran: Ran,
    ) -> anyhow::Result<Status> {
        let cached = Cached::new(verifier, fingerprint, volatile, self.args.cache.as_deref())?;
        signals::watch(self.cancel)?;
        let pairs: Vec<(&Item, &str)> = self.asked.iter().map(|(item, answer)| (item, answer.as_str())).collect();
        let mut found = vec![None; pairs.len()];
        // Comparing texts is done at once.
        let progress = matches!(self.args.kind, Kind::Verilog | Kind::Judge).then(|| Progress::new(self.output));
        let (mut done, total) = (0, pairs.len() as u64);
        let mut sink = |index: usize, verdict: Verdict| {
            found[index] = Some(verdict);
            done += 1;
            if let Some(progress) = &progress {
                progress.count("verify", "verdicts", done, Some(total));
            }
        };
        cached.verify(&pairs, &mut sink, self.cancel)?;
        drop(progress);
        let there = self.asked.iter().zip(found).filter_map(|((item, _), verdict)| Some((item, verdict?)));
        let verdicts: Vec<Row> = there.map(|(item, verdict)| Row { id: item.id.clone(), verdict }).collect();
        let scores: Vec<f64> = verdicts.iter().filter_map(|row| row.verdict.score).collect();
        let mut categories = BTreeMap::new();
        for row in &verdicts {
            *categories.entry(row.verdict.category.clone()).or_default() += 1;
        }
        let report = Report {
            right: verdicts.iter().filter(|row| row.verdict.is_right()).count(),
            judged: scores.len(),
            mean_score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64),
            categories,
            sandbox: ran.sandbox,
            simulator: ran.simulator,
            cached: cached.hits(),
            verdicts,
        };
        self.output.result(&report, || text(&report, self.output))?;
        Ok(if self.cancel.is_cancelled() { Status::Stopped } else { Status::Done })
    }
}

fn text(report: &Report, output: &Output) -> String {
    let row = |row: &Row| {
        let score = row.verdict.score.map_or("-".to_owned(), |score| format!("{score:.3}"));
        let reason: String = row.verdict.reason.replace('\n', " ").chars().take(100).collect();
        vec![row.id.clone(), score, row.verdict.category.clone(), reason]
    };
    let table = Table {
        title: String::new(),
        columns: ["id", "score", "category", "reason"].map(str::to_owned).to_vec(),
        rows: report.verdicts.iter().map(row).collect(),
    };
    let categories: Vec<String> = report.categories.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let mean = report.mean_score.map_or(String::new(), |mean| format!(", mean score {mean:.3}"));
    let mut lines = vec![output.table(&table), String::new()];
    let all = report.verdicts.len();
    lines.push(format!("{} of {} right{mean} ({})", report.right, report.judged, categories.join(", ")));
    if report.judged < all {
        lines.push(format!("{} could not be judged and are not counted", all - report.judged));
    }
    if let Some(sandbox) = report.sandbox {
        lines.push(format!("sandbox: {sandbox}"));
    }
    lines.join("\n")
}

/// What is to be judged.
fn read(args: &VerifyArgs) -> anyhow::Result<Vec<(Item, String)>> {
    let tasks = match &args.tasks {
        Some(path) => Some(verilog_eval(path)?),
        None => None,
    };
    let Some(input) = &args.input else {
        let tasks = tasks.unwrap_or_default();
        return tasks
            .into_iter()
            .map(|item| {
                let solution = VerilogTask::from_reference(&item.reference).and_then(|task| task.solution());
                // A task without one is reported as such by the verifier.
                Ok((item, solution.unwrap_or_default()))
            })
            .collect();
    };
    let tasks: Option<BTreeMap<String, Item>> =
        tasks.map(|items| items.into_iter().map(|item| (item.id.clone(), item)).collect());
    rows(input, ROW)?.into_iter().map(|(number, row)| one(input, number, &row, tasks.as_ref())).collect()
}

fn one(
    path: &Path,
    number: usize,
    row: &Map<String, Value>,
    tasks: Option<&BTreeMap<String, Item>>,
) -> anyhow::Result<(Item, String)> {
    let bad = |message: &str| bad_row(path, number, message, ROW);
    let answer = row.get("answer").or_else(|| row.get("completion")).ok_or_else(|| bad("it has no `answer`"))?;
    let Value::String(answer) = answer else { return Err(bad("`answer` is not a string")) };
    let id = match row.get("id").or_else(|| row.get("task_id")) {
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(_) => return Err(bad("`id` is neither a string nor a number")),
        None => None,
    };
    if let Some(tasks) = tasks {
        let id = id.ok_or_else(|| bad("it has no `id`, the name of its task"))?;
        let item = tasks.get(&id).ok_or_else(|| bad(&format!("there is no task `{id}`")))?;
        return Ok((item.clone(), answer.clone()));
    }
    let reference = row.get("reference").ok_or_else(|| bad("it has no `reference`"))?.clone();
    let prompt = row.get("prompt").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((Item { id: id.unwrap_or_else(|| number.to_string()), prompt, reference }, answer.clone()))
}
