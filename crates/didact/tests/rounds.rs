//! Rounds: a tiny model answers, is judged, learns and is measured, and a process that is killed in any of it goes on.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::process::ExitStatusExt;

use common::{World, assert_same_files, lasting_files};
use didact_core::files;
use serde_json::{Value, json};

/// `didact run itertl` on the tiny model: two rounds of six tasks of which four are held out, exact answers.
const ITERTL: [&str; 49] = [
    "run",
    "itertl",
    "--set",
    "model.path=model",
    "--set",
    "tasks.path=tasks.jsonl",
    "--set",
    "tasks.format=rows",
    "--set",
    "tasks.instruction='{prompt}'",
    "--set",
    "tasks.held_out=0.4",
    "--set",
    "verify.kind=exact",
    "--set",
    "itertl.filter=false",
    "--set",
    "rounds.count=2",
    "--set",
    "rounds.samples=2",
    "--set",
    "rounds.temperature=1.0",
    "--set",
    "rounds.eval_samples=2",
    "--set",
    "rounds.replay=0.5",
    "--set",
    "rounds.patience=0",
    "--set",
    "train.epochs=2.0",
    "--set",
    "train.batch_size=2",
    "--set",
    "train.gradient_accumulation_steps=2",
    "--set",
    "train.save_steps=2",
    "--set",
    "train.max_seq_len=48",
    "--set",
    "train.lora.rank=4",
    "--set",
    "train.lora.dropout=0.2",
    "--set",
    "generate.max_tokens=4",
    "--set",
    "generate.samples=1",
    "--set",
    "precision=f32",
    "-q",
];

fn itertl<'a>(run_dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&ITERTL[..], &["--run-dir", run_dir], more].concat()
}

fn world() -> World {
    let world = World::new();
    let row = |i: usize| json!({"id": format!("t{i}"), "prompt": format!("add {i}"), "answer": format!("{i}!")});
    let rows: Vec<String> = (0..10).map(|i| row(i).to_string()).collect();
    world.write("tasks.jsonl", &rows.join("\n"));
    world
}

fn lines(world: &World, path: &str) -> Vec<Value> {
    let text = files::read_to_string(world.path(path)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rounds_leave_everything_behind_that_they_did() {
    let world = world();
    let report = world.json(&itertl("run", &[]), 0);
    assert_eq!(report["status"], "done");
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    assert_eq!((rounds[0]["sampled"].as_u64(), rounds[0]["kept"].as_u64()), (Some(12), Some(6)));
    assert_eq!(rounds[1]["trained"].as_u64(), Some(6), "replays of tasks that were asked again are none");
    assert!(report["metrics_before"]["held_out_tasks/pass@1"].is_number());
    assert_eq!(lines(&world, "run/stages/03-sample-1/samples.jsonl").len(), 12);
    let verdicts = lines(&world, "run/stages/04-verify-1/verdicts.jsonl");
    assert!(verdicts.iter().all(|row| row["category"].is_string() && row["text"].is_string()), "{verdicts:?}");
    let groups = lines(&world, "run/stages/05-select-1/training.jsonl");
    assert_eq!(groups[0]["answers"][0]["score"], 1.0);
    assert_eq!(lines(&world, "run/stages/10-select-2/history.jsonl")[0]["rounds"].as_array().unwrap().len(), 2);
    assert!(world.path("run/stages/06-train-1/adapter/adapter_model.safetensors").is_file());
    let shown = world.ok(&["runs", "show", "run"]);
    assert!(shown.contains("sampled") && shown.contains("rounds; before and after"), "{shown}");
    assert!(!world.path("run/stages/03-sample-1/answers.log").exists());
    // Asked again, it says what it found.
    assert_eq!(world.json(&itertl("run", &[]), 0)["metrics_after"], report["metrics_after"]);
}

/// Where processes are killed one after the other, all in one run. `append` is each answer, verdict, and line of metrics.
const KILLS: [&str; 27] = [
    "stage.begin",
    "create@2",
    "stage.end",
    // Measuring the model as it came: among answers, among verdicts, while results are written.
    "append@1",
    "append@5",
    "append@4",
    "append@6",
    "rename@3",
    "stage.before_publish",
    // Asking, judging, choosing in round 1.
    "append@5",
    "append@4",
    "rename@2",
    "stage.end",
    "append@3",
    "stage.before_publish",
    "rename@1",
    "stage.end@2",
    // Learning.
    "train.step@2",
    "checkpoint.before_publish",
    "train.micro_step@3",
    "checkpoint.after_publish",
    "stage.before_publish",
    // Measuring, and the next round.
    "append@7",
    "stage.end@2",
    "append@4",
    "stage.end@2",
    "train.step@1",
];

#[test]
fn rounds_killed_in_every_stage_end_in_the_same_bytes() {
    let world = world();
    world.ok(&itertl("whole", &[]));
    let expected = lasting_files(&world.path("whole"));
    for point in KILLS {
        let output =
            world.command(&itertl("killed", &[])).env("DIDACT_FAIL", format!("{point}=kill")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "the process is killed at {point}: {stderr}");
    }
    world.ok(&itertl("killed", &[]));
    assert_same_files(&world.path("killed"), &expected, "killed and continued");
}

#[test]
fn rounds_stop_by_their_rules_and_the_rest_is_passed_over() {
    let world = world();
    let report = world.json(&itertl("budget", &["--set", "rounds.count=3", "--set", "rounds.max_answers=20"]), 0);
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 1, "12 answers and 12 more are above 20");
    assert!(rounds[0]["stop"].as_str().unwrap().contains("12 of 20"));
    assert!(world.path("budget/stages/08-sample-2/stopped.json").is_file());
    let report = world.json(&itertl("patience", &["--set", "rounds.count=3", "--set", "rounds.patience=1"]), 0);
    assert_eq!(report["rounds"].as_array().unwrap().len(), 1, "a model of noise gains nothing beyond it");
    let none = ["--set", "itertl.lesson=best", "--set", "itertl.target=best"];
    let report = world.json(&itertl("nothing", &none), 0);
    let rounds = report["rounds"].as_array().unwrap();
    if rounds[0]["kept"] == 0 {
        assert_eq!(rounds[0]["before"], rounds[0]["after"], "nothing right, nothing learned, nothing changed");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_runs() {
    let world = world();
    let refused = |more: &[&str]| world.refused(&itertl("refused", more), 2);
    assert!(refused(&["--set", "rounds.eval_temperature=0"]).contains("rounds.eval_temperature"));
    assert!(refused(&["--set", "itertl.filter=true"]).contains("itertl.filter"));
    assert!(refused(&["--set", "verify.tolerance=1"]).contains("verify.tolerance"));
    assert!(refused(&["--set", "data.path=chats.jsonl"]).contains("rounds.mix"));
    assert!(refused(&["--set", "tasks.path=nothing.jsonl"]).contains("nothing.jsonl"));
    world.write("bad.jsonl", "{\"prompt\": \"x\"}");
    assert!(refused(&["--set", "tasks.path=bad.jsonl"]).contains("row 1"));
    assert!(!world.path("refused/stages/02-evaluate-0").exists());
}

#[test]
fn rows_are_mixed_in_and_the_plan_says_what_would_be_done() {
    let world = world();
    let mix = ["--set", "rounds.mix=0.5", "--set", "data.path=chats.jsonl", "--set", "rounds.count=1"];
    let plan = world.json(&itertl("mixed", &[&mix[..], &["--dry-run"]].concat()), 0);
    assert_eq!((plan["ledger"]["train"].as_u64(), plan["steps"].as_u64()), (Some(6), Some(6)));
    let report = world.json(&itertl("mixed", &mix), 0);
    assert_eq!(report["rounds"][0]["trained"].as_u64(), Some(9));
}

#[test]
fn tool_calls_are_learned_in_rounds_and_looked_at_again() {
    let world = World::new();
    let row = |i: usize| {
        let message = |role: &str, content: String| json!({"role": role, "content": content});
        let messages = [message("user", format!("add {i}")), message("assistant", format!("f(x={i})"))];
        json!({"id": format!("t{i}"), "messages": messages}).to_string()
    };
    world.write("calls.jsonl", &(0..10).map(row).collect::<Vec<_>>().join("\n"));
    let set = [
        "model.path=model",
        "tasks.path=calls.jsonl",
        "tasks.held_out=0.4",
        "rounds.count=2",
        "rounds.samples=2",
        "rounds.start=last",
        "toolace.refine_steps=2",
        // The tiny model's context is 64 tokens.
        "toolace.instruction=again",
        "train.epochs=1.0",
        "train.batch_size=2",
        "train.gradient_accumulation_steps=1",
        "train.max_seq_len=48",
        "train.lora.rank=4",
        "generate.max_tokens=3",
        "generate.samples=1",
        "precision=f32",
    ];
    let mut arguments = vec!["run", "toolace-r", "-q", "--run-dir", "run"];
    arguments.extend(set.iter().flat_map(|text| ["--set", text]));
    let report = world.json(&arguments, 0);
    // The tiny model knows no calls: the first round learns a fifth of the six tasks as the data has them.
    assert_eq!(report["rounds"][0]["kept"].as_u64(), Some(1));
    assert_eq!(lines(&world, "run/stages/05-select-1/training.jsonl")[0]["answers"][0]["category"], "own");
    let after = &report["metrics_after"];
    let calls = after["held_out_tasks/refined_calls"].as_f64().unwrap();
    assert!((2.0..=3.0).contains(&calls), "{calls}");
    assert!(after["held_out_tasks/greedy"].is_number() && after["held_out_tasks/damaged"].is_number());
    assert_eq!(lines(&world, "run/stages/02-evaluate-0/refined.jsonl").len(), 8, "before and after, of four tasks");
}

#[test]
fn answers_are_refined_until_they_stay_the_same() {
    let world = World::new();
    let ask = |more: &[&str]| {
        let command = ["generate", "--model", "model", "--chat", "--prompt", "add 3", "--max-tokens", "3"];
        world.json(&[&command[..], more].concat(), 0)["completions"][0].clone()
    };
    let plain = ask(&[]);
    assert!(plain.get("refined").is_none());
    let refined = ask(&["--refine", "2", "--refine-instruction", "again"]);
    let calls = refined["refined"]["calls"].as_u64().unwrap();
    assert!((2..=3).contains(&calls), "{refined}");
    assert_eq!(refined["refined"]["first"], plain["text"]);
    let ending = refined["refined"]["ending"].as_str().unwrap();
    assert!(["stable", "cycle", "limit"].contains(&ending));
    if ending == "stable" {
        assert_eq!(calls == 2, refined["text"] == plain["text"]);
    }
    let error = world.refused(&["generate", "--model", "model", "--prompt", "a", "--refine", "--n", "2"], 2);
    assert!(error.contains("--n"), "{error}");
}
