//! `didact eval` through the real binary.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::World;
use serde_json::{Value, json};

/// Rows as JSON lines.
fn lines(rows: impl Iterator<Item = Value>) -> String {
    rows.map(|row| row.to_string()).collect::<Vec<_>>().join("\n")
}

/// A task of rows that are asked with two choices, and one that is generated.
fn tasks(world: &World) {
    let row = |i: usize| json!({"q": format!("add {i}"), "right": (i + 1).to_string(), "wrong": "no", "gold": 0});
    let rows = lines((0..40).map(row));
    world.write("rows.jsonl", &rows);
    world.write(
        "choice.toml",
        "task = \"choice\"\ndata_files = { test = \"rows.jsonl\" }\ntest_split = \"test\"\noutput_type = \"multiple_choice\"\n\
         doc_to_text = \"q\"\ndoc_to_choice = \"{{[right, wrong]}}\"\ndoc_to_target = \"gold\"\n\
         metric_list = [{ metric = \"acc\" }, { metric = \"acc_norm\" }, { metric = \"brier_score\" }]\n",
    );
    world.write(
        "text.yaml",
        "task: text\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: rows.jsonl\ntest_split: test\n\
         output_type: generate_until\ndoc_to_text: q\ndoc_to_target: right\ngeneration_kwargs:\n  until: [\"\\n\"]\n  max_gen_toks: 4\n",
    );
    world.write(
        "whole.toml",
        "task = \"whole\"\ndata_files = { test = \"rows.jsonl\" }\ntest_split = \"test\"\noutput_type = \"loglikelihood_rolling\"\n\
         doc_to_target = \"{{ q * 60 }}\"\n",
    );
}

#[test]
fn results_have_the_harness_layout_and_are_computed_once() {
    let world = World::new();
    tasks(&world);
    let ask = |more: &[&str]| {
        let all =
            [&["eval", "--model", "model", "--tasks", "choice.toml,text.yaml,whole.toml", "--shots", "0"][..], more]
                .concat();
        world.json(&all, 0)
    };
    let report = ask(&["--out", "results"]);
    assert_eq!(report["n-samples"]["choice"], json!({"original": 40, "effective": 40}));
    let acc = report["results"]["choice"]["acc,none"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&acc) && report["results"]["choice"]["acc_stderr,none"].is_number(), "{report}");
    assert!(report["results"]["whole"]["byte_perplexity,none"].as_f64().unwrap() > 1.0, "{report}");
    assert_eq!(report["configs"]["text"]["doc_to_target"], "right");
    // Windows of different texts may be the same, so that some requests are known already the first time.
    let first = report["requests_from_cache"].as_u64().unwrap();
    let again = ask(&[]);
    assert_eq!(again["results"], report["results"]);
    // 80 choices and 40 answers at least.
    assert!(again["requests_from_cache"].as_u64().unwrap() >= first + 120, "{}", again["requests_from_cache"]);
    assert_eq!(ask(&["--no-cache"])["results"], report["results"], "computing again gives the same bits");

    let folder = world.path("results").join("model");
    let mut names: Vec<String> = didact_core::files::list_dir(&folder)
        .unwrap()
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(
        names[0].starts_with("results_") && names[1].starts_with("samples_choice_") && names.len() == 4,
        "{names:?}"
    );
    let log = didact_core::files::read_to_string(folder.join(&names[1])).unwrap();
    let row: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(row["arguments"]["gen_args_0"], json!({"arg_0": "add 0", "arg_1": " 1"}));
    assert_eq!((&row["metrics"], &row["target"]), (&json!(["acc", "acc_norm", "brier_score"]), &json!("0")));
    assert!(row["filtered_resps"][0][0].as_str().unwrap().starts_with('-'), "{row}");
}

#[test]
fn two_models_are_compared_asked_or_read() {
    let world = World::new();
    tasks(&world);
    let ask = ["eval", "--model", "model", "--tasks", "choice.toml", "--out", "a.json"];
    world.json(&ask, 0);
    assert!(world.path("samples_choice_a.jsonl").exists());
    let same = world.json(&["eval", "--compare", "a.json", "a.json"], 0);
    for comparison in same["comparison"].as_array().unwrap() {
        assert_eq!((&comparison["verdict"], &comparison["difference"]), (&json!("no difference shown"), &json!(0.0)));
    }
    world.adapter("adapter");
    world.ok(&["model", "merge", "model", "adapter", "merged"]);
    let report = world.json(&[&ask[..5], &["--compare", "merged"]].concat(), 0);
    let comparison = &report["comparison"][0];
    assert_eq!(
        (&comparison["task"], &comparison["metric"], &comparison["documents"]),
        (&json!("choice"), &json!("acc"), &json!(40))
    );
    let text = world.ok(&["eval", "--compare", "a.json", "a.json"]);
    assert!(text.contains("no difference shown"), "{text}");
}

#[test]
fn examples_are_drawn_dropped_and_counted() {
    let world = World::new();
    tasks(&world);
    let ask = |shots: &str| {
        world.json(&["eval", "--model", "model", "--tasks", "choice.toml", "--shots", shots, "--limit", "5"], 0)
    };
    let report = ask("2");
    assert_eq!(report["n-shot"]["choice"], 2);
    assert_eq!(report["shortened_prompts"]["choice"]["prompts"], 0);
    // More than the tiny model's context holds: whole examples are left out, and it is said.
    let report = ask("30");
    assert_eq!(report["shortened_prompts"]["choice"]["prompts"], 5, "{report}");
    let several = ask("0,1");
    assert_eq!(several.as_array().unwrap().len(), 2);
}

#[test]
fn questions_in_training_text_are_found() {
    let world = World::new();
    let long = |i: usize| format!("q {i} a b c d e f g h j k {}", ["l", "m", "n"][i % 3]);
    let rows = lines((0..40).map(|i| json!({"q": long(i), "a": "word"})));
    world.write("rows.jsonl", &rows);
    world.write(
        "long.toml",
        "task = \"long\"\ndata_files = { test = \"rows.jsonl\" }\ntest_split = \"test\"\noutput_type = \"loglikelihood\"\n\
         doc_to_text = \"q\"\ndoc_to_target = \"a\"\n",
    );
    world.write("seen.jsonl", &format!("{}\n", json!({"text": format!("Before. {}! After.", long(7).to_uppercase())})));
    let report = world.json(&["eval", "--model", "model", "--tasks", "long.toml", "--train-data", "seen.jsonl"], 0);
    let found = &report["contamination"][0];
    assert_eq!((&found["dirty"], &found["total"], &found["words"]), (&json!([7]), &json!(40), &json!(13)), "{found}");
    assert!(found["scores"][0]["clean"].is_array(), "{found}");
}

#[test]
fn what_cannot_be_asked_says_why() {
    let world = World::new();
    tasks(&world);
    world.write("rows_bad.jsonl", "{\"q\": \"x\", \"right\": \"\", \"wrong\": \"y\", \"gold\": 0}\n");
    world.write(
        "bad.toml",
        &didact_core::files::read_to_string(world.path("choice.toml")).unwrap().replace("rows.jsonl", "rows_bad.jsonl"),
    );
    for (arguments, said) in [
        (&["--model", "model", "--tasks", "arithmetik"][..], "did you mean `arithmetic`"),
        (&["--model", "model", "--tasks", "bad.toml"], "task choice: doc 0: choice 0 is empty"),
        (&["--model", "model", "--tasks", "choice.toml", "--shots", "41"], "41 examples are wanted, and there are 40"),
        (&["--model", "model", "--tasks", "none.toml"], "none.toml"),
        (&["--model", "model"], "--tasks"),
        (&["--compare", "a.json"], "two results are compared"),
        (&["--model", "model", "--tasks", "choice.toml", "--limit", "0"], "--limit begins at 1"),
    ] {
        let error = world.refused(&[&["eval"], arguments].concat(), 2);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

#[test]
fn a_recipe_asks_tasks_before_and_after() {
    let world = World::new();
    tasks(&world);
    let run = [
        "run",
        "few-shot-evaluation",
        "--set",
        "data.path=chats.jsonl",
        "--set",
        "model.path=model",
        "--set",
        "train.max_steps=2",
        "--set",
        "train.max_seq_len=32",
        "--set",
        "train.batch_size=2",
        "--set",
        "train.gradient_accumulation_steps=1",
        "--set",
        "eval.tasks=[\"choice.toml\"]",
        "--set",
        "eval.shots=[0, 1]",
        "--set",
        "eval.limit=8",
        "--set",
        "eval.plain_text=false",
        "--set",
        "generate.max_tokens=4",
        "--set",
        "data.path=text.jsonl",
    ];
    let text = lines((0..24).map(|i| json!({"text": format!("add {i} is {}", i + 1)})));
    world.write("text.jsonl", &text);
    let report = world.json(&run, 0);
    let text = report.to_string();
    assert!(text.contains("choice/acc, 0 shots") && text.contains("choice/acc, 1 shots"), "{text}");
}
