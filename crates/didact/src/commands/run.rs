//! `didact run`: runs a recipe, or continues an interrupted run.

use crate::cli::Global;
use crate::hub;
use crate::memory;
use crate::output::{Output, Status, usage};
use crate::progress::Progress;
use crate::signals;
use clap::Args;
use didact_core::cancel::Cancel;
use didact_core::fault::Classify;
use didact_methods::{Env, MethodError, RunOptions, load_recipe};
use didact_verify::sandbox::Sandbox;
use std::path::PathBuf;

/// Options of `didact run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// A recipe file (.toml) or the name of a recipe (see `didact recipes list`)
    recipe: String,
    /// Set one key of the recipe; the value is TOML, a bare word is a string
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Where the run is kept [default: runs/RECIPE-HASH, the hash being of settings and inputs]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Start over; an older run in the same directory is renamed, not deleted
    #[arg(long)]
    fresh: bool,
    /// Check everything and print the plan, the loss ledger, and the memory and time that are predicted; run nothing
    #[arg(long)]
    dry_run: bool,
    /// Run what a model wrote without a sandbox, with your own rights, where this machine has none
    #[arg(long)]
    unsafe_exec: bool,
    /// Go on even if the predicted memory is more than is free
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &RunArgs, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    let recipe = load_recipe(&args.recipe, &overrides(args, global)?)?;
    let cancel = Cancel::new();
    signals::watch(&cancel)?;
    let version = super::version();
    let resolve = |name: &str| -> Result<PathBuf, Box<dyn Classify>> {
        hub::resolve(name, &output.pull_progress()).map_err(|error| Box::new(error) as Box<dyn Classify>)
    };
    let helper = std::env::current_exe()?;
    let sandbox = || Sandbox::open(&helper, args.unsafe_exec);
    let progress = Progress::new(output);
    let options = RunOptions {
        run_dir: args.run_dir.clone(),
        fresh: args.fresh,
        force: args.force,
        env: Env {
            version: &version,
            threads,
            device: global.device,
            resolve_model: &resolve,
            free_memory: &memory::free,
            peak_memory: &memory::peak,
            sandbox: &sandbox,
        },
        cancel,
        reporter: &progress,
    };
    if args.dry_run {
        let plan = didact_methods::plan(&recipe, &options)?;
        output
            .result(&plan, || plan.tables().iter().map(|table| output.table(table)).collect::<Vec<_>>().join("\n\n"))?;
        return Ok(Status::Done);
    }
    let result = didact_methods::run(&recipe, &options);
    drop(options);
    drop(progress);
    match result {
        Ok(report) => {
            output.result(&report, || format!("run directory: {}", report.run_dir.display()))?;
            Ok(Status::Done)
        }
        Err(MethodError::Stopped { run_dir }) => Err(Stopped { run_dir, command: continuing_command() }.into()),
        Err(error) => Err(error.into()),
    }
}

/// `--set`, and the global options that are recipe keys as well.
fn overrides(args: &RunArgs, global: &Global) -> anyhow::Result<Vec<(String, String)>> {
    let mut overrides = Vec::new();
    for text in &args.set {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
            return Err(usage(
                format!("`--set {text}` names no key and value"),
                "write it as `--set key.path=value`, for instance `--set train.max_steps=100`",
            ));
        };
        overrides.push((key.trim().to_owned(), value.to_owned()));
    }
    if let Some(seed) = global.seed {
        overrides.push(("seed".to_owned(), seed.to_string()));
    }
    if let Some(precision) = global.precision {
        overrides.push(("precision".to_owned(), precision.as_str().to_owned()));
    }
    Ok(overrides)
}

/// The user asked for a stop, and everything is saved.
#[derive(Debug, thiserror::Error)]
#[error("stopped; everything is saved in `{}`", run_dir.display())]
pub(crate) struct Stopped {
    pub(super) run_dir: PathBuf,
    pub(super) command: String,
}

impl Classify for Stopped {
    fn fault(&self) -> didact_core::fault::Fault {
        didact_core::fault::Fault::Stopped
    }

    fn hint(&self) -> Option<String> {
        Some(format!("to go on: {}", self.command))
    }
}

/// The command that goes on where this one stopped: the same one, but for `--fresh`.
pub(super) fn continuing_command() -> String {
    let arguments = std::env::args().filter(|argument| argument != "--fresh");
    arguments.map(|argument| quoted(&argument)).collect::<Vec<_>>().join(" ")
}

/// As a shell reads it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+~".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_quoted_where_a_shell_would_split_or_expand_them() {
        let quotes = ["didact", "train.learning_rate=1e-3", "a b", "it's", "*", ""].map(quoted);
        assert_eq!(quotes, ["didact", "train.learning_rate=1e-3", "'a b'", r"'it'\''s'", "'*'", "''"]);
    }
}
