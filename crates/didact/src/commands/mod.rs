//! One module per command.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod judge;
pub(crate) mod local;
pub(crate) mod model;
pub(crate) mod recipes;
pub(crate) mod remote;
pub(crate) mod reproduce;
pub(crate) mod run;
pub(crate) mod runs;
pub(crate) mod sampling;
pub(crate) mod score;
pub(crate) mod serve;
pub(crate) mod tokenizer;
mod verify;

use crate::cli::{Cli, Command, Global};
use crate::output::{Output, Status, usage};
use std::num::NonZeroUsize;

/// Didact's version, with the commit it was built from where the build said so (`DIDACT_COMMIT`).
pub(crate) fn version() -> String {
    match option_env!("DIDACT_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Sets up what all commands share, and runs the one asked for.
pub(crate) fn dispatch(cli: Cli, output: &Output) -> anyhow::Result<Status> {
    let Cli { global, command } = cli;
    log_to_stderr(&global);
    if let Err(error) = didact_kernels::init_level() {
        return Err(usage(
            error.to_string(),
            "unset DIDACT_CPU, or see `didact doctor` for the levels of this machine",
        ));
    }
    let threads = start_threads(&global, output)?;
    if !global.device.is_cpu() && !matches!(command, Command::Run(_) | Command::Doctor) {
        output.warn(&format!("this command computes on the CPU; `--device {}` is for `didact run`", global.device));
    }
    match command {
        Command::Run(args) => run::run(&args, &global, threads, output),
        Command::Reproduce(args) => reproduce::run(&args, &global, threads, output),
        Command::Methods(args) => reproduce::list(&args, output),
        Command::Recipes(command) => recipes::run(command, output),
        Command::Model(command) => model::run(command, output),
        Command::Data(command) => data::run(command, output),
        Command::Tokenizer(command) => tokenizer::run(command, output),
        Command::Generate(args) => generate::run(&args, &global, output),
        Command::Score(args) => score::run(&args, &global, output),
        Command::Eval(args) => eval::run(&args, &global, output),
        Command::Verify(args) => judge::run(&args, &global, threads, output),
        Command::Chat(args) => chat::run(&args, &global, output),
        Command::Serve(args) => serve::run(&args, &global, output),
        Command::Runs(command) => runs::run(command, output),
        Command::Bench(command) => bench::run(&command, &global, threads, output),
        Command::Doctor => doctor::run(threads, output),
    }
}

fn log_to_stderr(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        // The hub's client logs what is then told as an error with its cause; wgpu's drivers log every graphics API that
        // this machine does not have.
        (true, _) => "error,hf_hub=off,wgpu_hal=off",
        (false, 0) => "warn,hf_hub=off,wgpu_hal=off",
        (false, 1) => "didact=info,warn",
        (false, _) => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("DIDACT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}

/// Starts the thread pool; gives its size.
fn start_threads(global: &Global, output: &Output) -> anyhow::Result<usize> {
    let asked = global.threads.or_else(|| threads_of_environment(output));
    let threads = asked.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(threads)
}

/// What other programs' variables say about threads.
fn threads_of_environment(output: &Output) -> Option<NonZeroUsize> {
    for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"] {
        let Ok(text) = std::env::var(name) else { continue };
        // OpenMP takes a list, one number per level of nesting.
        let first = text.split(',').next().unwrap_or_default().trim();
        match first.parse() {
            Ok(threads) => return Some(threads),
            // Rayon's way of saying "as many as there are cores".
            Err(_) if first == "0" || first.is_empty() => {}
            Err(_) => output.warn(&format!("{name} is `{text}`, expected a number of threads; all cores are used")),
        }
    }
    None
}
