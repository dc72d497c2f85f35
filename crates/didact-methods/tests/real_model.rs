//! What only a real model can show. Needs SmolLM2-135M-Instruct: `make test-model` pulls it and runs these tests.

use didact_core::cancel::Cancel;
use didact_core::fault::Classify;
use didact_core::progress::Silent;
use didact_methods::{Env, RunOptions, load_recipe, run};
use didact_model::DeviceName;
use std::path::PathBuf;

/// The pulled model.
///
/// # Panics
/// When `DIDACT_TEST_MODEL` does not name it: these tests fail without it, they never pass by doing nothing.
fn model() -> String {
    std::env::var("DIDACT_TEST_MODEL").expect("DIDACT_TEST_MODEL names the pulled model; run `make test-model`")
}

fn unneeded(_: &str) -> Result<PathBuf, Box<dyn Classify>> {
    panic!("the model's path exists")
}

fn unknown() -> Option<u64> {
    None
}

#[test]
#[ignore = "needs SmolLM2-135M-Instruct and minutes; run by `make test-model`"]
fn real_model_learns_to_call_tools() {
    let dir = tempfile::tempdir().expect("a directory");
    // The quickstart at a third of its length, and easy requests only.
    let overrides = [
        ("model.path", model()),
        ("toolworld.train_examples", "384".into()),
        ("toolworld.test_examples", "24".into()),
        ("toolworld.none_share", "0".into()),
        ("toolworld.levels", "{ easy = 1.0 }".into()),
        ("train.max_steps", "24".into()),
        ("generate.max_tokens", "24".into()),
        ("eval.plain_text", "false".into()),
        ("export.model", "false".into()),
    ];
    let overrides: Vec<(String, String)> = overrides.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    let recipe = load_recipe("quickstart", &overrides).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions {
        run_dir: Some(dir.path().join("run")),
        fresh: false,
        force: false,
        env: Env {
            version: "test",
            threads: 2,
            device: DeviceName::default(),
            resolve_model: &unneeded,
            free_memory: &unknown,
            peak_memory: &unknown,
            sandbox: &no_sandbox,
        },
        cancel: Cancel::new(),
        reporter: &Silent,
    };
    let report = run(&recipe, &options).unwrap_or_else(|e| panic!("{e}"));
    let exact = |metrics: &std::collections::BTreeMap<String, f64>, set: &str| metrics[&format!("{set}/exact")];
    for set in ["trained_tools", "held_out_tools"] {
        let (before, after) = (exact(&report.metrics_before, set), exact(&report.metrics_after, set));
        assert!(before < 0.05, "{set}: the base model answers {before} right before training");
        assert!(after > before + 0.25, "{set}: {before} to {after}");
    }
}

/// These runs verify nothing.
fn no_sandbox() -> Result<didact_verify::sandbox::Sandbox, didact_verify::sandbox::SandboxError> {
    Err(didact_verify::sandbox::SandboxError::Unavailable { reasons: Vec::new() })
}
