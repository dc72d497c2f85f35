//! `didact bench train` through the program.

use assert_cmd::Command;
use serde_json::Value;

/// Runs a very small step and gives its report.
fn report(more: &[&str]) -> Value {
    let mut command = Command::cargo_bin("didact").expect("built");
    command.args(["bench", "train", "--model", "small", "--batch", "1", "--seq", "16", "--steps", "2", "--json", "-q"]);
    let output = command.args(more).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document")
}

#[test]
fn a_step_is_measured_and_accounted_for() {
    let plain = report(&["--precision", "f32", "--profile"]);
    for key in ["tokens_per_s", "gflops", "share_of_peak", "step_ms", "peak_rss_mb", "predicted_mb", "loss"] {
        assert!(plain[key].as_f64().is_some_and(|number| number > 0.0), "{key}: {}", plain[key]);
    }
    assert_eq!(plain["spread"]["rounds"], 2);
    // At first every token is about as likely as any other; it learns its one row by heart.
    let loss = plain["loss"].as_f64().expect("a number");
    assert!(loss < 4096f64.ln() + 0.3, "{loss}");
    let profile = plain["profile"].as_array().expect("asked for");
    assert!(profile.iter().any(|row| row["operator"] == "attention" && row["backward_ms"].as_f64() > Some(0.0)));

    // Memory is saved without another result; sums in bf16 are another one, but the first steps are near.
    let lean = report(&["--precision", "f32", "--activation-checkpointing"]);
    assert_eq!(lean["loss"], plain["loss"]);
    assert!(lean["predicted_mb"].as_f64() < plain["predicted_mb"].as_f64());
    let half = report(&["--precision", "f32", "--bf16-gradients"]);
    assert!((half["loss"].as_f64().expect("a number") - loss).abs() < 0.2);
    let adapter = report(&["--precision", "f32", "--lora", "4"]);
    assert!(adapter["loss"].as_f64().is_some_and(|number| number > loss), "an adapter learns less in two steps");
}
