//! `didact bench decode`: the speed of generation.
//!
//! What is measured is the engine with greedy choice: prompts of random tokens are read, all streams together, and then
//! one token of every stream is read at a time, the likeliest one after the last.

use super::{BenchModel, Spread};
use crate::cli::{Global, PrecisionOption};
use crate::commands::model::locate;
use crate::memory;
use crate::output::{Output, Status, usage};
use clap::Args;
use didact_core::seed::Streams;
use didact_infer::{Engine, EngineWeights, KvCache, Span};
use didact_kernels::{Precision, random, softmax};
use didact_model::Checkpoint;
use serde::Serialize;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Tokens in a forward pass over prompts.
const PASS: usize = 2048;

#[derive(Debug, Args)]
pub(crate) struct DecodeArgs {
    /// small, 135m (SmolLM2-135M's shape, random weights), or a model's path or name
    #[arg(long, value_name = "MODEL", default_value = "small")]
    model: String,
    /// Answers that are written at a time
    #[arg(long, value_name = "STREAMS", default_value = "1")]
    batch: NonZeroUsize,
    /// Tokens of each prompt
    #[arg(long, value_name = "N", default_value = "32")]
    prompt_tokens: NonZeroUsize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value = "64")]
    new_tokens: NonZeroUsize,
    /// Measurements per number, after one that is not counted
    #[arg(long, value_name = "N", default_value = "3")]
    rounds: NonZeroUsize,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    precision: &'static str,
    streams: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    /// Median.
    prefill_tokens_per_s: f64,
    /// Median, of all streams together.
    decode_tokens_per_s: f64,
    prefill_spread: Spread,
    decode_spread: Spread,
    weights_mb: f64,
    /// Keys and values of all streams at the end.
    cache_mb: f64,
    /// `None` where the system does not tell.
    peak_rss_mb: Option<f64>,
    level: &'static str,
    threads: usize,
}

pub(super) fn run(args: &DecodeArgs, global: &Global, threads: usize, output: &Output) -> anyhow::Result<Status> {
    let is_bf16 = match global.precision.unwrap_or(PrecisionOption::Auto) {
        PrecisionOption::F32 => false,
        PrecisionOption::Bf16 => true,
        PrecisionOption::Auto => didact_kernels::gemm::halves_weights(),
    };
    let precision = if is_bf16 { Precision::Bf16 } else { Precision::F32 };
    let streams = Streams::new(global.seed.unwrap_or(0));
    let weights = match BenchModel::built_in(&args.model) {
        Some(model) => EngineWeights::init(&model.config, &streams),
        None => EngineWeights::from_checkpoint(&Checkpoint::open(locate(&args.model, output)?)?)?,
    };
    let (prompt, new) = (args.prompt_tokens.get(), args.new_tokens.get());
    let context = weights.config().max_position_embeddings;
    if prompt + new > context {
        return Err(usage(
            format!("{prompt} + {new} tokens are more than the model's context of {context}"),
            "give smaller --prompt-tokens or --new-tokens",
        ));
    }
    let engine = Engine::new(weights, precision);
    let batch = args.batch.get();
    let (mut prefill, mut decode, mut cache_bytes) = (Vec::new(), Vec::new(), 0);
    for round in 0..=args.rounds.get() {
        let key = streams.key("bench-decode", &[round as u64]);
        let [read, written] = measure(&engine, batch, prompt, new, key, &mut cache_bytes);
        output.note(&format!("round {round}: prefill {read:.0} tokens/s, decode {written:.0} tokens/s"));
        if round > 0 {
            prefill.push(read);
            decode.push(written);
        }
    }
    let megabytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (prefill, decode) = (Spread::of(prefill), Spread::of(decode));
    let report = Report {
        model: args.model.clone(),
        precision: if is_bf16 { "bf16" } else { "f32" },
        streams: batch,
        prompt_tokens: prompt,
        new_tokens: new,
        prefill_tokens_per_s: prefill.median,
        decode_tokens_per_s: decode.median,
        prefill_spread: prefill,
        decode_spread: decode,
        weights_mb: megabytes(engine.weight_bytes()),
        cache_mb: megabytes(cache_bytes),
        peak_rss_mb: memory::peak().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        level: didact_kernels::level().as_str(),
        threads,
    };
    output.result(&report, || text(&report))?;
    Ok(Status::Done)
}

/// Tokens per second of reading the prompts and of writing the answers.
fn measure(engine: &Engine, batch: usize, prompt: usize, new: usize, key: u64, cache_bytes: &mut usize) -> [f64; 2] {
    let vocab = engine.config().vocab_size;
    let ids: Vec<u32> = (0..batch * prompt).map(|i| (random::uniform(key, i as u64) * vocab as f64) as u32).collect();
    let mut caches: Vec<KvCache> = (0..batch).map(|_| engine.cache()).collect();
    let mut next = Vec::with_capacity(batch);
    let begun = Instant::now();
    let together = (PASS / prompt).max(1);
    for (caches, ids) in caches.chunks_mut(together).zip(ids.chunks(together * prompt)) {
        let spans = caches.iter_mut().zip(ids.chunks(prompt));
        let mut spans: Vec<Span> = spans.map(|(cache, ids)| Span { cache, ids, logits_from: prompt - 1 }).collect();
        engine.forward(&mut spans, |_, scores| choose(scores, vocab, &mut next));
    }
    let read = (batch * prompt) as f64 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    for _ in 0..new {
        let last = std::mem::take(&mut next);
        let spans = caches.iter_mut().zip(&last);
        let mut spans: Vec<Span> =
            spans.map(|(cache, id)| Span { cache, ids: std::slice::from_ref(id), logits_from: 0 }).collect();
        engine.forward(&mut spans, |_, scores| choose(scores, vocab, &mut next));
    }
    let written = (batch * new) as f64 / begun.elapsed().as_secs_f64();
    *cache_bytes = engine.cache_bytes();
    [read, written]
}

/// The likeliest token of each row of scores; where there are no numbers, the first one.
fn choose(scores: &[f32], vocab: usize, next: &mut Vec<u32>) {
    next.extend(softmax::largest_rows(scores, vocab).into_iter().map(|id| id.unwrap_or(0) as u32));
}

fn text(report: &Report) -> String {
    let spread = |s: &Spread| format!("{:.0} ({:.0}-{:.0})", s.median, s.min, s.max);
    let peak = report.peak_rss_mb.map_or(String::new(), |mb| format!(", peak memory {mb:.0} MB"));
    format!(
        "{}, {}, {} streams of {} + {} tokens: median (least-most) of {} rounds\n\
         prefill {} tokens/s\ndecode {} tokens/s\n\
         weights {:.0} MB, keys and values {:.0} MB{peak} (kernels {}, {} threads)",
        report.model,
        report.precision,
        report.streams,
        report.prompt_tokens,
        report.new_tokens,
        report.decode_spread.rounds,
        spread(&report.prefill_spread),
        spread(&report.decode_spread),
        report.weights_mb,
        report.cache_mb,
        report.level,
        report.threads
    )
}
