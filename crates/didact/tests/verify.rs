//! `didact verify` on answers that are there already; Verilog has tests of its own.

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

fn didact(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_didact")).args(arguments).current_dir(dir).output().expect("runs")
}

fn rows(dir: &Path, rows: &[Value]) {
    let text: Vec<String> = rows.iter().map(ToString::to_string).collect();
    didact_core::files::write_atomic(dir.join("rows.jsonl"), text.join("\n").as_bytes()).expect("written");
}

fn report(dir: &Path, arguments: &[&str]) -> Value {
    let output = didact(dir, &[&["verify"], arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn each_way_of_comparing_has_its_own_categories() {
    let dir = tempfile::tempdir().expect("a folder");
    let row = |reference: Value, answer: &str| json!({"id": "a", "reference": reference, "answer": answer});
    for (arguments, reference, answers, categories) in [
        (&["number", "--after", "####"][..], json!(42), ["so #### 42", "42"], json!({"exact": 1, "format": 1})),
        (&["exact", "--ignore-case"], json!(["Yes", "Y"]), ["yes", "no"], json!({"different": 1, "exact": 1})),
        (&["regex", "--last-line"], json!("[a-c]+"), ["x\nabc", "abc\nx"], json!({"match": 1, "no_match": 1})),
        (&["set"], json!(["a", "b"]), ["b, a", "a"], json!({"exact": 1, "missing": 1})),
        (&["tool-call"], json!("f(x=1)"), ["f(x=1)", "f(x=2)"], json!({"exact": 1, "value": 1})),
    ] {
        rows(dir.path(), &answers.map(|answer| row(reference.clone(), answer)));
        let report = report(dir.path(), &[arguments, &["rows.jsonl"]].concat());
        assert_eq!(report["categories"], categories, "{arguments:?}: {report}");
        assert_eq!((&report["right"], &report["judged"]), (&json!(1), &json!(2)), "{arguments:?}");
    }
    rows(dir.path(), &[row(json!({}), "1")]);
    let unjudged = report(dir.path(), &["number", "rows.jsonl"]);
    assert_eq!((&unjudged["judged"], &unjudged["mean_score"]), (&json!(0), &Value::Null), "{unjudged}");
}

#[test]
fn verdicts_are_kept_by_content_and_settings() {
    let dir = tempfile::tempdir().expect("a folder");
    rows(dir.path(), &["1", "2", "1"].map(|answer| json!({"reference": 1, "answer": answer})));
    let cached = |more: &[&str]| {
        report(dir.path(), &[&["number", "rows.jsonl", "--cache", "verdicts.jsonl"], more].concat())["cached"].clone()
    };
    assert_eq!(cached(&[]), 1, "equal answers are judged once");
    assert_eq!(cached(&[]), 3);
    assert_eq!(cached(&["--tolerance", "1"]), 1, "other settings, other verdicts");
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    rows(dir.path(), &[json!({"reference": 1, "answer": "1"}), json!({"reference": 1})]);
    for (arguments, code, said) in [
        (&["number", "rows.jsonl"][..], 2, "row 2: it has no `answer`"),
        (&["number", "nothing.jsonl"], 2, "nothing.jsonl"),
        (&["number", "rows.jsonl", "--unsafe-exec"], 2, "didact verify verilog"),
        (&["number", "rows.jsonl", "--tolerance=-1"], 2, "tolerance"),
        (&["tool-call", "rows.jsonl", "--after", "#"], 2, "--after belongs to `didact verify exact|number|regex|set`"),
        (&["exact", "rows.jsonl", "--rubric", "same"], 2, "--rubric belongs to `didact verify judge`"),
        (&["judge", "rows.jsonl", "--model", "m", "--points", "3"], 2, "--rubric points"),
        (&["verilog", "rows.jsonl", "--tasks", "."], 2, "no VerilogEval tasks"),
        (&["verilog"], 2, "FILE.jsonl"),
        (&["judge", "rows.jsonl"], 2, "--model"),
    ] {
        let output = didact(dir.path(), &[&["verify"], arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn doctor_says_what_holds_programs_after_trying_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = didact(dir.path(), &["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sandbox = &report["sandbox"];
    assert_eq!(sandbox["available"], json!(!sandbox["mechanism"].is_null()), "{sandbox}");
    let tools: Vec<&str> =
        report["tools"].as_array().expect("a list").iter().filter_map(|t| t["name"].as_str()).collect();
    assert!(tools.contains(&"iverilog") && tools.contains(&"bwrap"), "{tools:?}");
    // Without bubblewrap it is not said to be there.
    let output = Command::new(env!("CARGO_BIN_EXE_didact"))
        .args(["doctor", "--json"])
        .env("PATH", dir.path())
        .output()
        .expect("runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_ne!(report["sandbox"]["mechanism"], "bubblewrap", "{report}");
}
