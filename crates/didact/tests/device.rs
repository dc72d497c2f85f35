//! Training on another device than the CPU gives the CPU's numbers, to rounding. `make test-wgpu` runs this; a software
//! Vulkan device (Debian: `mesa-vulkan-drivers`) is enough.
//!
//! Tolerances: both sides compute in f32 and add in another order, which is a relative 1e-6 in one step's loss; Adam
//! divides by the root of the second moment, so gradients that are nearly 0 carry that rounding into the parameters.
#![cfg(feature = "wgpu")]
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{World, sft};
use didact_core::files;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// Largest relative difference of a loss or perplexity.
const LOSS: f64 = 1e-4;
/// Largest relative difference of a gradient norm.
const GRADIENT: f64 = 1e-3;

/// Every recorded number: stage, step, name, value.
fn records(run_dir: &Path) -> Vec<(String, u64, String, f64)> {
    let text = files::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    let mut found = Vec::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let (stage, step) = (record["stage"].as_str().unwrap(), record["step"].as_u64().unwrap());
        for (name, value) in record.as_object().unwrap() {
            if let (true, Some(value)) = (name != "step", value.as_f64()) {
                found.push((stage.to_owned(), step, name.clone(), value));
            }
        }
    }
    found
}

/// Largest relative difference over all records, apart for gradient norms; the records must be of the same things.
fn differences(a: &Path, b: &Path) -> (f64, f64) {
    let (a, b) = (records(a), records(b));
    assert_eq!(a.len(), b.len(), "other records");
    let (mut loss, mut gradient, mut losses) = (0.0f64, 0.0f64, 0);
    for (a, b) in a.iter().zip(&b) {
        assert_eq!((&a.0, a.1, &a.2), (&b.0, b.1, &b.2));
        let relative = (a.3 - b.3).abs() / a.3.abs().max(1e-9);
        if a.2.contains("grad_norm") {
            gradient = gradient.max(relative);
        } else {
            loss = loss.max(relative);
            losses += usize::from(a.2.ends_with("loss"));
        }
    }
    assert!(losses >= 6, "{losses} losses recorded");
    (loss, gradient)
}

fn assert_same(what: &str, a: &Path, b: &Path) {
    let (loss, gradient) = differences(a, b);
    assert!(loss <= LOSS, "{what}: losses differ by {loss:e}");
    assert!(gradient <= GRADIENT, "{what}: gradient norms differ by {gradient:e}");
}

#[test]
fn the_device_is_there() {
    let doctor = World::new().json(&["doctor"], 0);
    let devices = doctor["devices"].as_array().unwrap();
    let wgpu = devices.iter().find(|device| device["name"] == "wgpu").unwrap();
    assert_eq!(wgpu["available"], true, "no device for wgpu; on Debian: apt-get install mesa-vulkan-drivers: {wgpu}");
}

#[test]
fn adapters_and_whole_models_train_to_the_losses_of_the_cpu() {
    let world = World::new();
    for (what, more) in [
        ("adapter", &["--set", "train.eval_steps=3"][..]),
        ("whole", &["--set", "train.lora=none", "--set", "train.learning_rate=1e-3", "--set", "train.eval_steps=3"]),
    ] {
        let dirs = ["cpu", "wgpu"].map(|device| format!("{what}-{device}"));
        let mut reports = Vec::new();
        for (dir, device) in dirs.iter().zip(["cpu", "wgpu"]) {
            reports.push(world.json(&sft(dir, &[more, &["--device", device]].concat()), 0));
        }
        assert_same(what, &world.path(&dirs[0]), &world.path(&dirs[1]));
        for metrics in ["metrics_before", "metrics_after"] {
            let perplexity = |report: &Value| report[metrics]["held_out/perplexity"].as_f64().unwrap();
            let (cpu, wgpu) = (perplexity(&reports[0]), perplexity(&reports[1]));
            assert!((cpu - wgpu).abs() <= LOSS * cpu, "{what}, {metrics}: perplexity {cpu} and {wgpu}");
        }
    }
}

/// The benchmark model `small` with fewer words, from scratch: as wide and as deep as it is.
#[test]
fn the_small_benchmark_model_trains_to_the_losses_of_the_cpu() {
    let world = World::new();
    world.write("text.txt", &"the cat sat on the mat and the dog sat on the log. ".repeat(80));
    world.ok(&["tokenizer", "train", "text.txt", "--kind", "bpe", "--vocab", "270", "--to", "tok"]);
    let config = "model.config={ model_type = \"llama\", vocab_size = 270, hidden_size = 256, intermediate_size = 688, \
                  num_hidden_layers = 6, num_attention_heads = 4, num_key_value_heads = 4, \
                  max_position_embeddings = 64, rms_norm_eps = 1e-6, tie_word_embeddings = true, \
                  hidden_act = \"silu\" }";
    world.ok(&["recipes", "copy", "continue-pretraining-text", "scratch.toml"]);
    let recipe = files::read_to_string(world.path("scratch.toml")).unwrap();
    world.write("scratch.toml", &recipe.replace("path = \"smollm2-135m-instruct\"", "tokenizer = \"tok\""));
    let settings = [
        config,
        "train.max_steps=8",
        "train.learning_rate=1e-3",
        "train.batch_size=4",
        "train.max_seq_len=64",
        "data.path=text.txt",
        "eval.plain_text=false",
        "generate.samples=0",
        "precision=f32",
    ];
    for device in ["cpu", "wgpu"] {
        let mut arguments = vec!["run", "scratch.toml", "--run-dir", device, "--device", device, "-q"];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        world.ok(&arguments);
    }
    assert_same("small", &world.path("cpu"), &world.path("wgpu"));
    let losses: Vec<f64> = records(&world.path("wgpu"))
        .into_iter()
        .filter(|record| record.2 == "train/loss")
        .map(|record| record.3)
        .collect();
    assert!(losses[losses.len() - 1] < 0.9 * losses[0], "it learns: {losses:?}");
}

#[test]
fn a_killed_run_goes_on_from_its_checkpoint() {
    let world = World::new();
    world.ok(&sft("whole", &["--device", "wgpu"]));
    let killed = sft("killed", &["--device", "wgpu"]);
    let output = world.command(&killed).env("DIDACT_FAIL", "train.step@5=kill").output().unwrap();
    assert_eq!(output.status.signal(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
    world.ok(&killed);
    assert_same("killed and continued", &world.path("whole"), &world.path("killed"));
}

#[test]
fn precision_bf16_is_refused_there() {
    let world = World::new();
    let stderr = world.refused(&sft("run", &["--device", "wgpu", "--set", "precision=bf16"]), 2);
    assert!(stderr.contains("`wgpu` computes in f32 only") && stderr.contains("--precision f32"), "{stderr}");
}
