//! Compares predicted with measured peak memory of a training step.
//!
//! `cargo run -p didact-model --example peak_memory -- HIDDEN LAYERS VOCAB ROWS LEN full|lora`
//!
//! One process per measurement, because the peak of a process never falls (`VmHWM`, Linux).
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement run by hand")]

use std::path::Path;

use burn::tensor::Device;
use didact_core::seed::Streams;
use didact_model::memory::{Trained, TrainingShape, to_train};
use didact_model::{Decoder, DecoderInput, ForwardMode, LoraConfig, ModelConfig, TargetModules, loss};
use serde_json::{Value, json};

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args[i].parse::<usize>().unwrap();
    let (hidden, layers, vocab, rows, len) = (number(0), number(1), number(2), number(3), number(4));
    let Value::Object(map) = json!({
        "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": hidden * 8 / 3,
        "num_hidden_layers": layers, "num_attention_heads": hidden / 64, "num_key_value_heads": hidden / 192,
        "tie_word_embeddings": true, "max_position_embeddings": 8192,
    }) else {
        unreachable!()
    };
    let config = ModelConfig::from_value(Path::new("config"), map).unwrap();
    let streams = Streams::new(1);
    let mut decoder = Decoder::init(&config, &streams, &Device::flex().autodiff());
    let trained = if args[5] == "lora" {
        let target_modules = TargetModules::AllLinear;
        let lora = LoraConfig { rank: 16, alpha: 32.0, dropout: 0.1, target_modules, use_rslora: false };
        decoder.add_lora(&lora, &streams).unwrap();
        Trained::Lora { rank: 16, target_modules: TargetModules::AllLinear, dropout: true }
    } else {
        Trained::Full
    };
    let ids: Vec<_> = (0..decoder.parameters().len())
        .zip(decoder.parameters().iter())
        .filter(|(_, (_, p))| p.is_trainable())
        .map(|(_, (id, p))| (id, p.elements()))
        .collect();
    // The optimiser's two moments, touched so that they count.
    let moments: Vec<Vec<f32>> = ids.iter().flat_map(|(_, n)| [vec![1.0; *n], vec![1.0; *n]]).collect();
    let tokens = rows * len;
    let input = DecoderInput {
        ids: &(0..tokens).map(|i| (i * 7 % vocab) as u32).collect::<Vec<_>>(),
        segments: &vec![0; tokens],
        positions: &(0..tokens).map(|i| (i % len) as u32).collect::<Vec<_>>(),
        rows,
        len,
    };
    let (targets, weights) = (input.ids.to_vec(), vec![1.0; tokens]);
    let before = peak();
    for step in 0..2 {
        let loss = loss::next_token(&decoder, &input, &targets, &weights, &ForwardMode::Train { dropout_key: step });
        let mut gradients = loss.loss_sum.backward();
        let taken: Vec<_> =
            ids.iter().map(|(id, _)| decoder.parameters().take_gradient(&mut gradients, *id).unwrap()).collect();
        assert_eq!(taken.len() * 2, moments.len());
    }
    let shape = TrainingShape { rows, len, accumulation: 1, trained };
    let estimate = to_train(&config, &shape);
    let mega = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "measured {:.0} MB (before the step {:.0}), predicted {:.0} MB: {estimate:?}",
        mega(peak()),
        mega(before),
        mega(estimate.total())
    );
}
