//! `didact reproduce` and `didact methods`: published claims, tried again.

use super::run::{Stopped, continuing_command};
use crate::cli::Global;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::{Args, ValueEnum};
use didact_core::cancel::Cancel;
use didact_core::progress::Table;
use didact_methods::reproduce::{
    DEFAULT_SEEDS, PLOT, Record, ReproduceOptions, Size, Verdict, default_run_dir, keep, run as reproduce, write_page,
};
use didact_methods::{Method, MethodError, method, methods};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The name that stands for every method.
const ALL: &str = "all";

/// Options of `didact reproduce`.
#[derive(Debug, Args)]
pub(crate) struct ReproduceArgs {
    /// A method (see `didact methods`), or `all`
    #[arg(required_unless_present = "render")]
    method: Option<String>,
    /// One run of every arm for each of these
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = DEFAULT_SEEDS)]
    seeds: Vec<u64>,
    /// s: the claim, its baselines and a control, in minutes; m: every arm and variant, within an hour
    #[arg(long, value_enum, default_value_t = SizeOption::S)]
    size: SizeOption,
    /// Where the run is kept; with `all`, the parent of the runs [default: runs/reproduce-METHOD-SIZE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// End with exit code 3 unless the claim holds
    #[arg(long, value_enum)]
    require: Option<Required>,
    /// Start over; an older run in the same directory is renamed, not deleted
    #[arg(long)]
    fresh: bool,
    /// Keep the result there as METHOD-SIZE.json and .svg, in place of an older one
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Run nothing: write RESULTS.md beside this directory of recorded results, and draw their plots anew
    #[arg(long, value_name = "DIR", conflicts_with_all = ["method", "seeds", "size", "out", "require", "fresh", "record"])]
    render: Option<PathBuf>,
}

/// `--size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SizeOption {
    S,
    M,
}

/// `--require`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Required {
    Holds,
}

#[derive(Serialize)]
struct Rendered<'a> {
    path: &'a Path,
}

pub(crate) fn run(args: &ReproduceArgs, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    if let Some(dir) = &args.render {
        let path = write_page(dir)?;
        output.result(&Rendered { path: &path }, || path.display().to_string())?;
        return Ok(Status::Done);
    }
    if global.seed.is_some() {
        return Err(usage("a reproduction has several seeds", "give them as `--seeds 1,2,3`"));
    }
    if global.precision.is_some_and(|precision| precision.as_str() != "f32") {
        return Err(usage("reproductions compute in f32, so that results can be compared", "leave `--precision` out"));
    }
    let name = args.method.as_deref().unwrap_or(ALL);
    let size = match args.size {
        SizeOption::S => Size::S,
        SizeOption::M => Size::M,
    };
    let is_all = name == ALL;
    let chosen: Vec<&Method> = if is_all { methods().to_vec() } else { vec![method(name)?] };
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let mut records = Vec::new();
    for method in chosen {
        let run_dir = match &args.out {
            Some(dir) if is_all => dir.join(format!("{}-{}", method.slug, size.as_str())),
            Some(dir) => dir.clone(),
            None => default_run_dir(method.slug, size),
        };
        let record = one(method, size, &run_dir, args, threads, &cancel, output)?;
        if let Some(dir) = &args.record {
            keep(&record, dir)?;
        }
        records.push(record);
    }
    if is_all {
        output.result(&records, || output.table(&summary(&records)))?;
    } else if let [record] = records.as_slice() {
        output.result(record, || record.verdict.as_str().to_owned())?;
    }
    let holds = records.iter().all(|record| record.verdict == Verdict::Holds);
    Ok(if args.require == Some(Required::Holds) && !holds { Status::NotSo } else { Status::Done })
}

fn one(
    method: &Method,
    size: Size,
    run_dir: &Path,
    args: &ReproduceArgs,
    threads: usize,
    cancel: &Cancel,
    output: &Output,
) -> anyhow::Result<Record> {
    let progress = Progress::new(output);
    let version = super::version();
    let command = continuing_command();
    let machine = machine(threads);
    let options = ReproduceOptions {
        seeds: args.seeds.clone(),
        size,
        run_dir: Some(run_dir.to_owned()),
        fresh: args.fresh,
        version: &version,
        threads,
        machine: &machine,
        command: &command,
        cancel: cancel.clone(),
        reporter: &progress,
    };
    let result = reproduce(method, &options);
    drop(options);
    drop(progress);
    let record = match result {
        Ok(record) => record,
        Err(MethodError::Stopped { run_dir }) => return Err(Stopped { run_dir, command }.into()),
        Err(error) => return Err(error.into()),
    };
    for table in record.tables() {
        output.piece(&format!("{}\n", output.table(&table)));
    }
    output.note(&format!("plot: {}", run_dir.join(PLOT).display()));
    Ok(record)
}

/// The machine, for people.
fn machine(threads: usize) -> String {
    let name = super::doctor::cpu_name().unwrap_or_else(|| "an unknown processor".to_owned());
    format!("{name}, {} kernels, {threads} threads", didact_kernels::level())
}

fn summary(records: &[Record]) -> Table {
    let row = |record: &Record| {
        vec![
            record.method.clone(),
            record.verdict.as_str().to_owned(),
            format!("{:.4}", record.effect),
            record.interval(),
            record.claim.clone(),
        ]
    };
    Table {
        title: "verdicts".to_owned(),
        columns: ["method", "verdict", "effect", "95 % interval", "claim"].map(str::to_owned).to_vec(),
        rows: records.iter().map(row).collect(),
    }
}

/// Options of `didact methods`.
#[derive(Debug, Args)]
pub(crate) struct MethodsArgs {
    /// One method; all when not given
    slug: Option<String>,
}

pub(crate) fn list(args: &MethodsArgs, output: &Output) -> anyhow::Result<Status> {
    let rows: Vec<&Method> = match &args.slug {
        Some(slug) => vec![method(slug)?],
        None => methods().to_vec(),
    };
    output.result(&rows, || match (&args.slug, rows.as_slice()) {
        (Some(_), [method]) => describe(method, output),
        _ => output.table(&Table {
            title: String::new(),
            columns: ["method", "year", "arXiv", "what it does", "needs"].map(str::to_owned).to_vec(),
            rows: rows
                .iter()
                .map(|m| vec![m.slug.into(), m.year.to_string(), m.arxiv.into(), m.summary.into(), m.needs.into()])
                .collect(),
        }),
    })?;
    Ok(Status::Done)
}

fn describe(method: &Method, output: &Output) -> String {
    let claim = method.reproduction.claim();
    let mut rows = vec![
        vec!["paper".into(), format!("{}, \"{}\", {}", method.authors, method.paper, method.year)],
        vec!["arXiv".into(), format!("https://arxiv.org/abs/{}", method.arxiv)],
        vec!["what it does".into(), method.summary.into()],
        vec!["needs".into(), method.needs.into()],
        vec!["claim".into(), claim.text.into()],
        vec!["to try the claim".into(), format!("didact reproduce {}", method.slug)],
    ];
    for size in [Size::S, Size::M] {
        let arms: Vec<&str> = method.reproduction.arms(size).iter().map(|arm| arm.name).collect();
        rows.push(vec![format!("arms, size {}", size.as_str()), arms.join(", ")]);
    }
    output.table(&Table { title: method.slug.to_owned(), columns: vec![String::new(), String::new()], rows })
}
