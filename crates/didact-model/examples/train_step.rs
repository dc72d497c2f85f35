//! How long a LoRA training step of SmolLM2-135M's shape takes, forward and backward apart.
//!
//! `cargo run -p didact-model --example train_step -- [rows] [tokens per row] [steps] [f32|bf16] [dropout]`
#![expect(clippy::print_stdout, reason = "printing measurements is what this program is for")]

use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use didact_core::seed::Streams;
use didact_kernels::Precision;
use didact_model::lora::{LoraConfig, TargetModules};
use didact_model::{Decoder, DecoderInput, ForwardMode, ModelConfig, loss};

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "rope_theta": 100000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| arguments.get(index).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (rows, len, steps) = (number(0, 16), number(1, 150), number(2, 3));
    let precision = if arguments.get(3).is_some_and(|a| a == "f32") { Precision::F32 } else { Precision::Bf16 };
    let dropout = arguments.get(4).and_then(|a| a.parse().ok()).unwrap_or(0.0);

    let config = ModelConfig::from_json(Path::new("built in"), CONFIG).expect("a complete configuration");
    let streams = Streams::new(1);
    let mut decoder = Decoder::init(&config, &streams, &Device::flex());
    let lora =
        LoraConfig { rank: 16, alpha: 32.0, dropout, target_modules: TargetModules::AllLinear, use_rslora: false };
    decoder.add_lora(&lora, &streams).expect("valid settings");
    decoder.set_precision(precision);

    let tokens = rows * len;
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 7919 % 49152).collect();
    let segments = vec![0; tokens];
    let positions: Vec<u32> = (0..rows).flat_map(|_| 0..len as u32).collect();
    let targets: Vec<u32> = ids.iter().map(|&i| (i * 31 + 7) % 49152).collect();
    // The last quarter of each row is trained, as an answer would be.
    let weights: Vec<f32> = (0..tokens).map(|i| f32::from(u8::from(i % len >= len * 3 / 4))).collect();
    let input = DecoderInput { ids: &ids, segments: &segments, positions: &positions, rows, len };
    for step in 0..steps {
        let begin = Instant::now();
        let mode = ForwardMode::Train { dropout_key: step as u64 };
        let loss = loss::next_token(&decoder, &input, &targets, &weights, &mode);
        let mean = loss.value() / loss.total_weight;
        let forward = begin.elapsed();
        let gradients = loss.loss_sum.backward();
        let total = begin.elapsed();
        drop(gradients);
        println!(
            "step {step}: loss {mean:.5}, forward {:.3} s, backward {:.3} s, {:.0} tokens/s",
            forward.as_secs_f64(),
            total.saturating_sub(forward).as_secs_f64(),
            tokens as f64 / total.as_secs_f64()
        );
    }
}
