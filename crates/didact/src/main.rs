//! The program `didact`: the command line over the libraries.
//!
//! `main` parses ([`cli`]), calls one function of [`commands`], and turns what came of it into an exit code: 0 done,
//! 1 failed while running, 2 wrong usage, configuration or input, 3 checked and not so, 130 or 143 stopped by the user.
//! Only [`output`] and [`progress`] print: results to stdout, everything else to stderr.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod hub;
mod memory;
mod output;
mod progress;
mod serve;
mod signals;

use clap::{CommandFactory, FromArgMatches};
use output::Output;
use std::process::ExitCode;

#[global_allocator]
static MEMORY: didact_kernels::LargePages = didact_kernels::LargePages;

fn main() -> ExitCode {
    // Before anything else: the sandbox starts this program again, to hold what a model wrote.
    if let Some(code) = didact_verify::sandbox::helper_main(std::env::args_os()) {
        return code;
    }
    let arguments = cli::normalised(std::env::args_os());
    let wants_json = arguments.iter().any(|argument| argument == "--json");
    let parsed =
        cli::Cli::command().try_get_matches_from(arguments).and_then(|matches| cli::Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return output::usage_exit(&error, wants_json),
    };
    let output = Output::new(&cli.global);
    match commands::dispatch(cli, &output) {
        Ok(status) => status.exit_code(),
        Err(error) => output.failure(&error),
    }
}
