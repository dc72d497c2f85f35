//! The engine through the real binary: adapters beside the weights, and `didact bench decode`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::World;

#[test]
fn an_adapter_answers_as_the_merged_model_does() {
    let world = World::new();
    world.adapter("adapter");
    world.ok(&["model", "merge", "model", "adapter", "merged"]);
    let rows = |more: &[&str]| {
        let rest = ["--input", "rows.jsonl", "--max-tokens", "12"];
        world.json(&[&["generate"], more, &rest].concat(), 0)["completions"].clone()
    };
    let plain = "{\"prompt\": \"add 3\"}\n{\"prompt\": \"add 4\"}\n";
    world.write("rows.jsonl", plain);
    let (base, merged) = (rows(&["--model", "model"]), rows(&["--model", "merged"]));
    assert_ne!(base[0]["sum_logprob"], merged[0]["sum_logprob"]);
    let with = rows(&["--model", "model", "--adapter", "adapter"]);
    for i in 0..2 {
        assert_eq!(with[i]["ids"], merged[i]["ids"]);
        let (got, want) = (&with[i]["sum_logprob"], &merged[i]["sum_logprob"]);
        // Twelve log-probabilities, each within 1e-4.
        assert!((got.as_f64().unwrap() - want.as_f64().unwrap()).abs() < 1.2e-3, "{got} for {want}");
    }
    let little = rows(&["--model", "model", "--adapter", "adapter", "--max-cache-mib", "1"]);
    assert_eq!(little[0]["ids"], with[0]["ids"]);
    // A row may name another one, or one that is not there.
    world.write(
        "rows.jsonl",
        "{\"prompt\": \"add 3\", \"sampling\": {\"adapter\": \"mine\"}}\n\
         {\"prompt\": \"add 3\", \"sampling\": {\"adapter\": null}}\n\
         {\"prompt\": \"add 3\", \"sampling\": {\"adapter\": \"other\"}}\n",
    );
    let arguments = ["generate", "--model", "model", "--adapter", "mine=adapter", "--input", "rows.jsonl"];
    let report = world.json(&[&arguments[..], &["--max-tokens", "12"]].concat(), 1);
    let rows = report["completions"].as_array().unwrap();
    assert_eq!((&rows[0]["ids"], &rows[1]["ids"]), (&merged[0]["ids"], &base[0]["ids"]));
    assert!(rows[2]["error"].as_str().unwrap().contains("expected one of mine"), "{report}");
    // What is no adapter is refused before anything is generated.
    world.refused(&["generate", "--model", "model", "--adapter", "model", "--prompt", "x"], 2);
}

#[test]
fn decoding_is_measured() {
    let world = World::new();
    let small = ["bench", "decode", "--prompt-tokens", "5", "--new-tokens", "3", "--rounds", "2"];
    let report = world.json(&[&small[..], &["--model", "model", "--batch", "3"]].concat(), 0);
    assert_eq!((&report["streams"], &report["new_tokens"]), (&3.into(), &3.into()));
    for name in ["prefill", "decode"] {
        let median = report[format!("{name}_tokens_per_s")].as_f64().unwrap();
        let spread = &report[format!("{name}_spread")];
        assert!(median > 0.0 && spread["min"].as_f64() <= Some(median), "{report}");
        assert_eq!(spread["rounds"], 2);
    }
    assert!(report["weights_mb"].as_f64().unwrap() > 0.0 && report["cache_mb"].as_f64().unwrap() > 0.0);
    let stderr = world.refused(&["bench", "decode", "--model", "model", "--new-tokens", "100000"], 2);
    assert!(stderr.contains("context"), "{stderr}");
}
