//! `didact bench train`: the speed and memory of a training step.
//!
//! The step is the one of every training: the model's loss, its gradients, their norm and clipping, AdamW. Only the
//! tokens are random.

use super::{BenchModel, ShapeArgs, Spread, gemm};
use crate::cli::{Global, PrecisionOption};
use crate::output::{Output, Status};
use burn::tensor::Device;
use clap::Args;
use didact_core::progress::Table;
use didact_core::seed::Streams;
use didact_kernels::random::fill_uniform;
use didact_kernels::{Level, Precision};
use didact_model::memory::{self, Trained, TrainingShape};
use didact_model::profile::{self, OPERATORS, Operator, Pass};
use didact_model::work::{self, Amount};
use didact_model::{Decoder, DecoderInput, ForwardMode, LoraConfig, ModelConfig, TargetModules, loss};
use didact_train::TrainConfig;
use didact_train::accumulate::GradientBuffers;
use didact_train::config::GradientType;
use didact_train::optimizer::{AdamW, AdamWSettings, clip_factor};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Steps that are not counted: they fill the caches and touch the pages.
const WARM_UP: usize = 2;
/// Seconds for the rate that the share of the peak refers to.
const PEAK_SECONDS: f64 = 0.5;

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    #[command(flatten)]
    shape: ShapeArgs,
    /// Steps to measure, after two that are not counted [default: 12 for `small`, else 4]
    #[arg(long, value_name = "N")]
    steps: Option<NonZeroUsize>,
    /// Train an adapter of this rank on all linear layers instead of all parameters
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Keep only the inputs of blocks and compute them again for the gradients
    #[arg(long)]
    activation_checkpointing: bool,
    /// Sum gradients in bf16
    #[arg(long)]
    bf16_gradients: bool,
    /// Show where the time goes, operator by operator
    #[arg(long)]
    profile: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: &'static str,
    batch: usize,
    seq: usize,
    tokens_per_s: f64,
    gflops: f64,
    /// `gflops` over the rate of a square matrix product of the same precision.
    share_of_peak: f64,
    /// The rate of that product, GFLOP/s.
    peak_gflops: f64,
    /// Median.
    step_ms: f64,
    /// Milliseconds per step.
    spread: Spread,
    /// `None` where the system does not tell.
    peak_rss_mb: Option<f64>,
    /// The peak as it is predicted before training.
    predicted_mb: f64,
    /// Mean loss of the last step, nats per token.
    loss: f64,
    level: &'static str,
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Vec<ProfileRow>>,
}

/// Milliseconds per step.
#[derive(Debug, Serialize)]
struct ProfileRow {
    operator: &'static str,
    forward_ms: f64,
    backward_ms: f64,
}

pub(super) fn run(args: &TrainArgs, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    let BenchModel { name, config, batch, seq } = BenchModel::find(&args.shape, output)?;
    let steps = args.steps.map_or(if name == "small" { 12 } else { 4 }, NonZeroUsize::get);
    let precision = match global.precision.unwrap_or(PrecisionOption::Auto) {
        PrecisionOption::Bf16 => Precision::Bf16,
        PrecisionOption::Auto if didact_kernels::level() == Level::Avx512Bf16 => Precision::Bf16,
        PrecisionOption::F32 | PrecisionOption::Auto => Precision::F32,
    };
    let streams = Streams::new(global.seed.unwrap_or(0));
    let mut stepper = Stepper::new(&config, batch, seq, streams);
    stepper.decoder.set_precision(precision);
    if let Some(rank) = args.lora {
        let lora = LoraConfig {
            rank,
            alpha: 2.0 * rank as f64,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
        };
        stepper.decoder.add_lora(&lora, &streams)?;
    }
    let settings = TrainConfig {
        learning_rate: 1e-3,
        max_grad_norm: Some(1.0),
        activation_checkpointing: args.activation_checkpointing,
        gradient_dtype: if args.bf16_gradients { GradientType::Bf16 } else { GradientType::F32 },
        ..TrainConfig::default()
    };
    let target_modules = TargetModules::AllLinear;
    let trained = args.lora.map_or(Trained::Full, |rank| Trained::Lora { rank, target_modules, dropout: false });
    let shape = TrainingShape {
        precision,
        activation_checkpointing: settings.activation_checkpointing,
        gradient_dtype: settings.gradient_dtype.to_model(),
        ..TrainingShape::new(batch, seq, trained)
    };
    let mut optimizer = AdamW::new(stepper.decoder.parameters(), AdamWSettings::new(&settings));
    stepper.decoder.set_activation_checkpointing(settings.activation_checkpointing);
    let dtype = settings.gradient_dtype.to_model();
    let mut gradients = GradientBuffers::with_dtype(stepper.decoder.parameters(), dtype);
    gradients.release_between_steps(settings.saves_memory());
    let mut times = Vec::with_capacity(steps);
    let mut loss = f64::NAN;
    for step in 0..WARM_UP + steps {
        if args.profile && step == WARM_UP {
            profile::start();
        }
        let begun = Instant::now();
        loss = stepper.step(&settings, &mut optimizer, &mut gradients);
        let ms = begun.elapsed().as_secs_f64() * 1e3;
        output.note(&format!("step {} of {}: {ms:.1} ms, loss {loss:.4}", step + 1, WARM_UP + steps));
        if step >= WARM_UP {
            times.push(ms);
        }
    }
    let measured = args.profile.then(profile::finish);
    let peak_rss_mb = crate::memory::peak().map(|bytes| bytes as f64 / f64::from(1 << 20));
    let total: f64 = times.iter().sum();
    let spread = Spread::of(times);
    let amount = Amount::of_rows(batch as u64, seq as u64);
    let gflops = work::of_training(&config, amount, args.lora.is_some()) / spread.median / 1e6;
    let peak_gflops = gemm::peak(precision, PEAK_SECONDS);
    let report = Report {
        model: name,
        precision: if precision == Precision::Bf16 { "bf16" } else { "f32" },
        batch,
        seq,
        tokens_per_s: (batch * seq) as f64 / spread.median * 1e3,
        gflops,
        share_of_peak: gflops / peak_gflops,
        peak_gflops,
        step_ms: spread.median,
        spread,
        peak_rss_mb,
        predicted_mb: memory::to_train(&config, &shape).total() as f64 / f64::from(1 << 20),
        loss,
        level: didact_kernels::level().as_str(),
        threads,
        profile: measured.map(|seconds| profile_rows(&seconds, total, steps)),
    };
    output.result(&report, || text(&report, output))?;
    Ok(Status::Done)
}

/// A model with the one batch that it is trained on.
struct Stepper {
    decoder: Decoder,
    ids: Vec<u32>,
    targets: Vec<u32>,
    weights: Vec<f32>,
    segments: Vec<u32>,
    positions: Vec<u32>,
    rows: usize,
    len: usize,
}

impl Stepper {
    fn new(config: &ModelConfig, rows: usize, len: usize, streams: Streams) -> Self {
        let decoder = Decoder::init(config, &streams, &Device::flex());
        // Rows of `len + 1` random tokens: every token but a row's last has a target.
        let mut uniform = vec![0.0; rows * (len + 1)];
        fill_uniform(streams.key("bench-tokens", &[]), 0.0, 1.0, &mut uniform);
        let last = config.vocab_size as u32 - 1;
        let tokens: Vec<u32> =
            uniform.iter().map(|&u| ((f64::from(u) * config.vocab_size as f64) as u32).min(last)).collect();
        let rows_of = |from: usize| tokens.chunks(len + 1).flat_map(|row| row[from..from + len].to_vec()).collect();
        Self {
            decoder,
            ids: rows_of(0),
            targets: rows_of(1),
            weights: vec![1.0; rows * len],
            segments: vec![0; rows * len],
            positions: (0..rows).flat_map(|_| 0..len as u32).collect(),
            rows,
            len,
        }
    }

    /// One optimiser step; gives the mean loss before it.
    fn step(&mut self, settings: &TrainConfig, optimizer: &mut AdamW, gradients: &mut GradientBuffers) -> f64 {
        let Self { decoder, ids, targets, weights, segments, positions, rows, len } = self;
        let input = DecoderInput { ids, segments, positions, rows: *rows, len: *len };
        let mode = ForwardMode::Train { dropout_key: 0 };
        let mean = gradients.add(decoder.parameters(), || {
            let result = loss::next_token(decoder, &input, targets, weights, &mode);
            let mean = result.value() / result.total_weight;
            (mean, Some((result.loss_sum.backward(), result.total_weight)))
        });
        gradients.divide_by_weight();
        let scale = clip_factor(settings.max_grad_norm, gradients.norm());
        optimizer.update(decoder.parameters_mut(), gradients, settings.learning_rate, scale);
        gradients.clear();
        mean
    }
}

fn profile_rows(seconds: &[[f64; 2]; OPERATORS.len()], total_ms: f64, steps: usize) -> Vec<ProfileRow> {
    let per_step = |s: f64| s * 1e3 / steps as f64;
    let mut rows: Vec<ProfileRow> = OPERATORS
        .into_iter()
        .map(|operator: Operator| {
            let [forward, backward] = [Pass::Forward, Pass::Backward].map(|p| seconds[operator as usize][p as usize]);
            ProfileRow { operator: operator.name(), forward_ms: per_step(forward), backward_ms: per_step(backward) }
        })
        .collect();
    let known: f64 = rows.iter().map(|row| row.forward_ms + row.backward_ms).sum();
    rows.push(ProfileRow { operator: "the rest", forward_ms: 0.0, backward_ms: total_ms / steps as f64 - known });
    rows
}

fn text(report: &Report, output: &Output) -> String {
    let Report { model, precision, batch, seq, spread, .. } = report;
    let mut lines = Vec::new();
    if let Some(profile) = &report.profile {
        let rows = profile.iter().map(|row| {
            let sum = row.forward_ms + row.backward_ms;
            let share = 100.0 * sum / profile.iter().map(|r| r.forward_ms + r.backward_ms).sum::<f64>();
            let mut cells = vec![row.operator.to_owned()];
            cells.extend([row.forward_ms, row.backward_ms, sum].map(|ms| format!("{ms:.1}")));
            cells.push(format!("{share:.1}"));
            cells
        });
        lines.push(output.table(&Table {
            title: "milliseconds per step".to_owned(),
            columns: ["operator", "forward", "backward", "sum", "%"].map(str::to_owned).to_vec(),
            rows: rows.collect(),
        }));
        lines.push(String::new());
    }
    let predicted = report.predicted_mb;
    let memory =
        report.peak_rss_mb.map_or(String::new(), |mb| format!(", peak memory {mb:.0} MB (predicted {predicted:.0})"));
    lines.push(format!(
        "{model} {precision}, {batch} x {seq} tokens: {:.0} tokens/s, {:.1} ms per step ({:.1}-{:.1}), {:.0} GFLOP/s, \
         {:.0} % of {:.0}{memory}",
        report.tokens_per_s,
        report.step_ms,
        spread.min,
        spread.max,
        report.gflops,
        report.share_of_peak * 100.0,
        report.peak_gflops
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_a_profile_sum_to_the_steps() {
        let rows = profile_rows(&[[0.001, 0.002]; OPERATORS.len()], 50.0, 2);
        let sum: f64 = rows.iter().map(|row| row.forward_ms + row.backward_ms).sum();
        assert!((sum - 25.0).abs() < 1e-9, "{sum}");
        assert_eq!(rows.len(), OPERATORS.len() + 1);
    }
}
