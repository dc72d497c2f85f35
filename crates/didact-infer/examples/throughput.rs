//! Time of answering many prompts at once.
//!
//! `cargo run -p didact-infer --example throughput MODEL [f32|bf16] [prompts] [prompt tokens] [new tokens]`
#![expect(clippy::print_stdout, reason = "a program for people")]

use didact_core::cancel::Cancel;
use didact_core::generate::{Generator, Prompt, Request, Sampling};
use didact_data::tokenizer::Tokenizer;
use didact_infer::{EngineWeights, LocalGenerator, Options};
use didact_kernels::{Precision, level, random};
use didact_model::Checkpoint;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(arguments.first().ok_or("which model?")?);
    let precision = match arguments.get(1).map(String::as_str) {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    let number = |i: usize, default: usize| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (prompts, prompt_tokens, new_tokens) = (number(2, 100), number(3, 150), number(4, 30));

    let start = Instant::now();
    let weights = EngineWeights::from_checkpoint(&Checkpoint::open(path)?)?;
    let tokenizer = Arc::new(Tokenizer::open(path)?);
    let generator = LocalGenerator::new(weights, tokenizer, Options { precision, ..Options::default() })?;
    println!("{} {precision} on {} threads: loaded in {:.1?}", level(), rayon::current_num_threads(), start.elapsed());

    let vocab = generator.engine().config().vocab_size;
    let requests: Vec<Request> = (0..prompts)
        .map(|i| {
            let ids = (0..prompt_tokens).map(|t| (random::uniform(i as u64, t as u64) * vocab as f64) as u32).collect();
            // Drawn, so that few answers end early.
            let sampling = Sampling { temperature: 1.0, max_tokens: new_tokens, ..Sampling::default() };
            Request { prompt: Prompt::Ids(ids), sampling }
        })
        .collect();
    let start = Instant::now();
    let mut written = 0;
    let mut sink = |_, answer: Result<didact_core::generate::Completion, _>| {
        written += answer.map_or(0, |c| c.answers.iter().map(|a| a.ids.len()).sum());
    };
    generator.generate(&requests, &mut sink, &Cancel::new())?;
    let seconds = start.elapsed().as_secs_f64();
    let read = generator.engine().tokens_read();
    println!(
        "{prompts} prompts, {written} new tokens, {read} tokens read in {seconds:.1} s: {:.0} per second",
        read as f64 / seconds
    );
    Ok(())
}
