//! `didact bench`: how fast this machine computes, and how close Didact comes to that.

mod decode;
mod gemm;
mod train;

use super::model::locate;
use crate::cli::Global;
use crate::output::{Output, Status};
use clap::{Args, Subcommand};
use didact_model::{Checkpoint, ModelConfig};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::Path;

/// `didact bench ...`
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Rates of matrix products: the ceilings of this machine, squares, and the shapes that models use
    #[command(after_help = "Examples:\n  didact bench gemm\n  didact bench gemm --sizes 512,2048 --squares --json")]
    Gemm(gemm::GemmArgs),
    /// Speed and memory of a training step: all parameters, AdamW, clipping, random tokens
    #[command(after_help = "Examples:\n  didact bench train --model small\n  \
                            didact bench train --model 135m --precision bf16 --json")]
    Train(train::TrainArgs),
    /// Speed of generation
    #[command(after_help = "Example:\n  didact bench decode --model 135m --batch 8 --json")]
    Decode(decode::DecodeArgs),
}

/// Which model, and how much of it at a time. What is not given is the benchmark model's own.
#[derive(Debug, Args)]
pub(super) struct ShapeArgs {
    /// small, 135m (SmolLM2-135M's shape), or a model's path or name
    #[arg(long, value_name = "MODEL", default_value = "small")]
    model: String,
    /// Rows at a time
    #[arg(long, value_name = "B")]
    batch: Option<NonZeroUsize>,
    /// Tokens per row
    #[arg(long, value_name = "T")]
    seq: Option<NonZeroUsize>,
}

/// A model's shape to measure with.
#[derive(Debug)]
pub(super) struct BenchModel {
    /// As it was asked for.
    pub(super) name: String,
    pub(super) config: ModelConfig,
    /// Rows per step, B.
    pub(super) batch: usize,
    /// Tokens per row, T.
    pub(super) seq: usize,
}

/// The two benchmark models and their rows per step. Both take rows of 256 tokens.
const BUILT_IN: [(&str, usize, &str); 2] = [
    (
        "small",
        16,
        r#"{"model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 688,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#,
    ),
    (
        "135m",
        4,
        r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            "max_position_embeddings": 8192, "rope_theta": 100000.0, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true}"#,
    ),
];

/// Tokens per row when nothing else is asked for.
const SEQ: usize = 256;

impl BenchModel {
    /// The benchmark model of that name.
    pub(super) fn built_in(name: &str) -> Option<Self> {
        let (name, batch, config) = BUILT_IN.into_iter().find(|(known, ..)| *known == name)?;
        let config = ModelConfig::from_json(Path::new(name), config).expect("the built-in shapes are complete");
        Some(Self { name: name.to_owned(), config, batch, seq: SEQ })
    }

    /// The model asked for; of a path, only the shape is read. It takes the batch of `135m`.
    pub(super) fn find(args: &ShapeArgs, output: &Output) -> anyhow::Result<Self> {
        let mut model = if let Some(model) = Self::built_in(&args.model) {
            model
        } else {
            let config = Checkpoint::open(locate(&args.model, output)?)?.config().clone();
            let seq = SEQ.min(config.max_position_embeddings);
            Self { name: args.model.clone(), config, batch: BUILT_IN[1].1, seq }
        };
        model.batch = args.batch.map_or(model.batch, NonZeroUsize::get);
        model.seq = args.seq.map_or(model.seq, NonZeroUsize::get);
        Ok(model)
    }
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// How many measurements.
    pub(super) rounds: usize,
}

impl Spread {
    /// Of an even number, the median is the mean of the middle two.
    ///
    /// # Panics
    /// If there is nothing measured.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let n = values.len();
        assert!(n > 0, "something was measured");
        Self {
            median: f64::midpoint(values[(n - 1) / 2], values[n / 2]),
            min: values[0],
            max: values[n - 1],
            rounds: n,
        }
    }
}

pub(crate) fn run(command: &BenchCommand, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    match command {
        BenchCommand::Gemm(args) => gemm::run(args, threads, output),
        BenchCommand::Train(args) => train::run(args, global, threads, output),
        BenchCommand::Decode(args) => decode::run(args, global, threads, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_a_spread_is_in_the_middle() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0, rounds: 3 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn the_benchmark_models_have_the_sizes_they_are_named_after() {
        let parameters = |name| {
            let model = BenchModel::built_in(name).expect("a built-in model");
            didact_model::parameter_count(&model.config)
        };
        assert_eq!(parameters("small"), 5_795_072);
        assert_eq!(parameters("135m"), 134_515_008);
        assert!(BenchModel::built_in("7b").is_none());
    }
}
