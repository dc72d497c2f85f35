//! What can be typed.

use crate::commands;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use didact_core::fault::Classify;
use didact_model::{DeviceError, DeviceName};
use std::ffi::OsString;
use std::num::NonZeroUsize;

/// Teaches language models: continue their training, fine-tune them, and prove that they got better.
#[derive(Debug, Parser)]
#[command(
    name = "didact",
    version,
    propagate_version = true,
    max_term_width = 120,
    infer_long_args = false,
    after_help = "Examples:\n  didact model pull smollm2-135m-instruct\n  didact run quickstart\n  didact run sft --set data.path=mine.jsonl\n\n\
                  Exit codes: 0 done, 1 failed while running, 2 wrong usage, configuration or input, 3 checked and not so, \
                  130 stopped (143 by SIGTERM) with everything saved."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command; they may stand before or after it.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Print one JSON document on stdout, and nothing else there
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Threads [default: RAYON_NUM_THREADS or OMP_NUM_THREADS, else all cores]; results do not depend on it
    #[arg(long, value_name = "N", global = true, help_heading = "Global options")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Root of all randomness
    #[arg(long, value_name = "N", global = true, help_heading = "Global options")]
    pub(crate) seed: Option<u64>,
    // The text is not a doc comment: rustdoc would read `[:i]` as a link.
    #[arg(long, help = "Where to train: cpu, cuda[:i], rocm[:i], metal, vulkan[:i] or wgpu", value_name = "DEVICE", default_value = "cpu", value_parser = device, global = true, help_heading = "Global options")]
    pub(crate) device: DeviceName,
    /// Arithmetic of matrix products; auto: bf16 for training where the processor multiplies it in hardware, else f32
    #[arg(long, value_name = "PRECISION", global = true, help_heading = "Global options")]
    pub(crate) precision: Option<PrecisionOption>,
    /// No progress
    #[arg(short, long, global = true, help_heading = "Global options", conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say more (-vv: much more)
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

/// `--precision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionOption {
    /// The program chooses
    Auto,
    /// 32-bit floating point
    F32,
    /// bf16 products, summed in f32
    Bf16,
}

impl PrecisionOption {
    /// As recipes spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// `--device`, refused where this build has no such device.
fn device(text: &str) -> Result<DeviceName, String> {
    let name: DeviceName = text.parse().map_err(|error: DeviceError| error.to_string())?;
    if name.kind.is_built() {
        return Ok(name);
    }
    let error = DeviceError::NotBuilt { kind: name.kind };
    Err(format!("{error}; {}", error.hint().unwrap_or_default()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a recipe file or a named recipe; the same command continues an interrupted run
    #[command(
        after_help = "Examples:\n  didact run quickstart\n  didact run sft --set data.path=mine.jsonl --set train.epochs=2\n  \
                      didact run mine.toml --dry-run"
    )]
    Run(commands::run::RunArgs),
    /// Try a published claim again at the scale of a laptop, against its baselines; the same command continues
    #[command(
        after_help = "Examples:\n  didact reproduce continual-pretraining\n  didact reproduce all --size m --require holds\n  \
                      didact reproduce --render results"
    )]
    Reproduce(commands::reproduce::ReproduceArgs),
    /// List the published methods, or describe one
    #[command(after_help = "Example:\n  didact methods continual-pretraining")]
    Methods(commands::reproduce::MethodsArgs),
    /// List, show or copy the named recipes
    #[command(subcommand, after_help = "Example:\n  didact recipes copy sft mine.toml")]
    Recipes(commands::recipes::RecipesCommand),
    /// Get models, look at them, convert, merge and verify them
    #[command(subcommand, after_help = "Example:\n  didact model pull smollm2-135m-instruct")]
    Model(commands::model::ModelCommand),
    /// Look at data as the model will see it, and check it
    #[command(subcommand, after_help = "Example:\n  didact data check mine.jsonl")]
    Data(commands::data::DataCommand),
    /// Make a tokenizer
    #[command(
        subcommand,
        after_help = "Example:\n  didact tokenizer train corpus.txt --kind bpe --vocab 4096 --to my-tokenizer"
    )]
    Tokenizer(commands::tokenizer::TokenizerCommand),
    /// Generate text
    #[command(
        after_help = "Examples:\n  didact generate --model smollm2-135m-instruct --prompt 'The capital of France is' --max-tokens 8\n  \
                      didact generate --model out/model --input prompts.jsonl --temperature 0.7 --n 4\n  \
                      didact generate --model smollm2-135m-instruct --chat --prompt 'Name a fruit and its colour' --json-schema fruit.json\n  \
                      didact generate --endpoint http://127.0.0.1:8080/v1 --model NAME --input prompts.jsonl --journal answers.jsonl"
    )]
    Generate(Box<commands::generate::GenerateArgs>),
    /// Log-probabilities of given continuations
    #[command(after_help = "Example:\n  didact score --model smollm2-135m-instruct --input pairs.jsonl --json\n\n\
                      Prompt and continuation are tokenised together, so that the border falls as in running text; white space\n\
                      at the end of the prompt counts as the beginning of the continuation. Before an empty prompt stands the\n\
                      token that begins texts, or else the one that ends them. (As the lm-evaluation-harness does it; but a pair\n\
                      that is longer than the context is an error.)")]
    Score(commands::score::ScoreArgs),
    /// Ask a model the questions of tasks, and measure; compare two models
    #[command(
        after_help = "Examples:\n  didact eval --model smollm2-135m-instruct --tasks arithmetic,unscramble --shots 0,8 --limit 100\n  \
                      didact eval --model out/model --tasks mine.toml --out results --compare smollm2-135m-instruct\n  \
                      didact eval --compare results/before results/after\n  \
                      didact eval --list"
    )]
    Eval(Box<commands::eval::EvalArgs>),
    /// Judge answers: compare them, simulate them, or ask a model
    #[command(after_help = "Examples:\n  didact verify number answers.jsonl --after '####'\n  \
                      didact verify tool-call answers.jsonl --json\n  \
                      didact verify verilog samples.jsonl --tasks verilog-eval/dataset_spec-to-rtl --cache verdicts.jsonl\n  \
                      didact verify judge answers.jsonl --model smollm2-135m-instruct --rubric same")]
    Verify(Box<commands::judge::VerifyArgs>),
    /// Talk to a model in the terminal
    #[command(
        after_help = "Example:\n  didact chat --model smollm2-135m-instruct --system 'Answer in one sentence.'\n\n\
                      /help, once it runs, shows what there is beside talking."
    )]
    Chat(commands::chat::ChatArgs),
    /// Serve a model over HTTP, with the API of OpenAI
    #[command(after_help = "Examples:\n  didact serve --model smollm2-135m-instruct\n  \
                      KEY=secret didact serve --model out/model --host 0.0.0.0 --api-key-env KEY")]
    Serve(commands::serve::ServeArgs),
    /// See what was run and how it went
    #[command(subcommand, after_help = "Example:\n  didact runs show runs/quickstart-0123456789ab")]
    Runs(commands::runs::RunsCommand),
    /// Measure this machine's ceilings, and how close Didact comes
    #[command(subcommand, after_help = "Example:\n  didact bench gemm")]
    Bench(commands::bench::BenchCommand),
    /// See what this machine has and what its absence costs; to paste into an issue
    #[command(after_help = "Example:\n  didact doctor --json")]
    Doctor,
}

/// The arguments with `_` for `-` accepted in the names of long options, as other trainers spell them.
pub(crate) fn normalised(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut is_past_options = false;
    arguments
        .map(|argument| {
            is_past_options |= argument == "--";
            let Some(text) = argument.to_str().filter(|text| text.starts_with("--") && !is_past_options) else {
                return argument;
            };
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use didact_model::DeviceKind;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_every_command_shows_an_example() {
        fn check(command: &mut clap::Command, path: &str) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "`{path} --help` shows no example");
            for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
                let path = format!("{path} {}", inner.get_name());
                check(inner, &path);
            }
        }
        let mut command = Cli::command();
        command.build();
        check(&mut command, "didact");
    }

    #[test]
    fn underscores_in_option_names_are_dashes_and_nothing_else_changes() {
        let arguments = ["didact", "--dry_run", "--run_dir=a_b", "--set", "train.max_steps=3", "a_b", "--", "--x_y"];
        let expected = ["didact", "--dry-run", "--run-dir=a_b", "--set", "train.max_steps=3", "a_b", "--", "--x_y"];
        assert_eq!(normalised(arguments.iter().map(OsString::from)), expected.map(OsString::from));
    }

    #[test]
    fn devices_that_were_not_built_are_refused_with_the_feature_that_builds_them() {
        assert_eq!(device("cpu"), Ok(DeviceName::default()));
        for kind in DeviceKind::ALL {
            match device(kind.as_str()) {
                Ok(name) => assert!(kind.is_built() && name.kind == kind, "{name}"),
                Err(reason) => assert!(reason.contains(&format!("--features {kind}")), "{reason}"),
            }
        }
        for name in ["cpu:0", "cuda:x", "tpu", ""] {
            assert!(!device(name).expect_err("is no device").contains("--features"), "{name}");
        }
    }
}
