//! Recipes that choose what is read next, through the real program: what they report, what they refuse, and that a killed run
//! ends in the same bytes.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::process::ExitStatusExt;

use common::{World, assert_same_files, lasting_files};
use serde_json::{Value, json};

/// What all recipes here have in common.
const TINY: [&str; 20] = [
    "--set",
    "model.path=model",
    "--set",
    "train.batch_size=4",
    "--set",
    "train.gradient_accumulation_steps=2",
    "--set",
    "train.max_seq_len=32",
    "--set",
    "train.save_steps=2",
    "--set",
    "generate.max_tokens=4",
    "--set",
    "generate.samples=1",
    "--set",
    "eval.plain_text=false",
    "--set",
    "precision=f32",
    "--set",
    "train.learning_rate=1e-3",
];

fn run<'a>(recipe: &'a str, dir: &'a str, sets: &[&'a str]) -> Vec<&'a str> {
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    ["run", recipe, "-q", "--run-dir", dir].into_iter().chain(TINY).chain(sets).collect()
}

/// Texts of many lengths, of three skills: two that share an alphabet, and one that does not.
fn rows(count: usize, kind: usize) -> String {
    let skills = ["up", "down", "other"];
    let mut out = String::new();
    for i in 0..count {
        let skill = (i + kind) % 3;
        let letter = |n: usize| char::from(b'a' + ((n * (skill + 1) + kind) % 26) as u8);
        let text: String = (0..12 + (i * 17) % 60).map(letter).collect();
        out += &json!({"text": format!("{text} {i}"), "skill": skills[skill], "hardness": (i * 7) % 11}).to_string();
        out.push('\n');
    }
    out
}

fn world() -> World {
    let world = World::new();
    world.write("old.jsonl", &rows(60, 0));
    world.write("new.jsonl", &rows(50, 5));
    world
}

fn table<'r>(report: &'r Value, pool: &str) -> &'r Value {
    &report["training"]["pools"][pool]
}

const CONTINUAL: [&str; 6] = [
    "data.new=new.jsonl",
    "data.old=old.jsonl",
    "continual.shift=strong",
    "train.max_steps=8",
    "train.eval_steps=4",
    "train.warmup_ratio=0.2",
];

#[test]
fn continual_pretraining_replays_its_share_and_reports_old_and_new() {
    let world = world();
    let report = world.json(&run("continual-pretraining", "weak", &CONTINUAL), 0);
    let (old, new) = (table(&report, "old"), table(&report, "new"));
    assert_eq!((old["rows"].as_u64(), new["rows"].as_u64()), (Some(8), Some(24)), "a quarter of 32 rows is old");
    for name in ["old/loss", "new/loss", "mean/loss", "new/bits_per_byte"] {
        let [before, after] = ["metrics_before", "metrics_after"].map(|m| report[m][name].as_f64().unwrap());
        assert!(before.is_finite() && after.is_finite() && before != after, "{name}");
    }
    let mean =
        |m: &str| f64::midpoint(report[m]["old/loss"].as_f64().unwrap(), report[m]["new/loss"].as_f64().unwrap());
    assert!((mean("metrics_after") - report["metrics_after"]["mean/loss"].as_f64().unwrap()).abs() < 1e-12);
    assert!(mean("metrics_after") < mean("metrics_before"), "it learns");
    assert_eq!(report["losses_by_step"].as_array().map(Vec::len), Some(2));
    // A corpus made beforehand gives the same training, bit for bit, and is not copied.
    world.ok(&["data", "tokenize", "old.jsonl", "--tokenizer", "model", "--to", "old-corpus", "-q"]);
    let mut sets = CONTINUAL.to_vec();
    sets[1] = "data.old=old-corpus";
    let again = world.json(&run("continual-pretraining", "corpus", &sets), 0);
    assert_eq!(again["metrics_after"], report["metrics_after"]);
    let prepared: Vec<_> = lasting_files(&world.path("corpus")).into_keys().collect();
    assert!(!prepared.iter().any(|path| path.to_string_lossy().contains("prepare/old")), "{prepared:?}");
    // Several old sources, each measured; the trunk of an infinite schedule is a model to go on from.
    let sets = [
        "data.new=new.jsonl",
        "data.old={ a = 'old.jsonl', b = { path = 'old-corpus', held_out = 0.1 } }",
        "continual.replay=0.5",
        "train.max_steps=8",
        "train.lr_scheduler=infinite_cosine",
        "train.warmup_ratio=0.1",
        "train.decay_steps=3",
        "train.cooldown_steps=2",
    ];
    let several = world.json(&run("continual-pretraining", "several", &sets), 0);
    assert_eq!(
        several["training"]["pools"].as_object().map(|p| p.keys().cloned().collect::<Vec<_>>()).unwrap(),
        ["a", "b", "new"]
    );
    let trunk = format!("model.path={}", several["trunk_dir"].as_str().unwrap());
    let stage =
        [&trunk[..], "train.schedule_start=constant", "train.lr_scheduler=infinite_cosine", "train.decay_steps=2"];
    let on = [&stage[..], &CONTINUAL[..4]].concat();
    world.write(
        "on.toml",
        &std::fs::read_to_string(recipe("continual-pretraining")).unwrap().replace("warmup_ratio", "# warmup_ratio"),
    );
    let report = world.json(&run("on.toml", "on", &on), 0);
    assert!(report["trunk_dir"].is_string());
}

fn recipe(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../recipes/{name}.toml"))
}

#[test]
fn what_continual_pretraining_cannot_do_is_refused_by_name() {
    let world = world();
    let refused = |sets: &[&str]| world.refused(&run("continual-pretraining", "refused", sets), 2);
    assert!(refused(&["data.new=new.jsonl"]).contains("`data.old`: missing"), "{}", refused(&["data.new=new.jsonl"]));
    assert!(
        refused(&["data.new=new.jsonl", "data.old=old.jsonl", "continual.replay=1.0"]).contains("continual.replay")
    );
    world.write("empty.jsonl", "{\"text\": \"\"}\n");
    let mut sets = vec!["data.new=new.jsonl", "data.old={ path = 'empty.jsonl', held_out = 0.0 }"];
    let error = refused(&sets);
    assert!(error.contains("the old data has 0 usable documents") || error.contains("empty.jsonl"), "{error}");
    // Another tokenizer than the model's.
    world.ok(&["tokenizer", "train", "corpus.txt", "--vocab", "258", "--to", "foreign", "-q"]);
    world.ok(&["data", "tokenize", "old.jsonl", "--tokenizer", "foreign", "--to", "foreign-corpus", "-q"]);
    sets[1] = "data.old=foreign-corpus";
    let error = world.refused(&run("continual-pretraining", "refused-too", &sets), 2);
    assert!(error.contains("made with another tokenizer (of 258 tokens)") && error.contains("(of 260)"), "{error}");
}

const DECOMPOSITION: [&str; 8] = [
    "data.path=old.jsonl",
    "decomposition.min=8",
    "decomposition.max=32",
    "decomposition.tokens_per_step=64",
    "decomposition.cycles=2",
    "data.held_out=0.1",
    "train.epochs=2.0",
    "train.warmup_ratio=0.1",
];

#[test]
fn dataset_decomposition_counts_every_token_and_measures_by_length() {
    let world = world();
    let report = world.json(&run("dataset-decomposition", "dd", &DECOMPOSITION), 0);
    let tables = report["curriculum"]["tables"].as_array().unwrap();
    let lengths: Vec<&str> = tables[0]["rows"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(lengths, ["8", "16", "32"]);
    let read: u64 =
        report["training"]["pools"].as_object().unwrap().values().map(|p| p["targets"].as_u64().unwrap()).sum();
    let steps = report["training"]["steps"].as_u64().unwrap();
    assert_eq!((read, read / 64), (steps * 64, steps), "every step has as many tokens");
    let values = &report["curriculum"]["values"];
    assert!(values["mean_context"].as_f64().unwrap() < 16.0 && values["work_ratio"].as_f64().unwrap() < 1.0);
    let speeds = report["readings"]["train_tokens_per_s_by_length"].as_object().unwrap();
    assert!(!speeds.is_empty() && speeds.keys().all(|length| lengths.contains(&length.as_str())), "{speeds:?}");
    assert!(speeds.values().all(|speed| speed.as_f64().unwrap() > 0.0));
    let after = report["metrics_after"].as_object().unwrap();
    assert!(after.keys().filter(|name| name.starts_with("documents of ")).count() >= 2, "{after:?}");
    for (set, message) in [
        ("decomposition.odds=[1.0, 2.0]", "expected 3 numbers above 0, one per length"),
        ("decomposition.mixture=[1, 2]", "expected 3 numbers, one per length"),
    ] {
        let sets = [&DECOMPOSITION[..], &[set]].concat();
        let error = world.refused(&run("dataset-decomposition", &format!("refused-{set}"), &sets), 2);
        assert!(error.contains(message), "{set}: {error}");
    }
}

const SKILLS: [&str; 9] = [
    "data.path=old.jsonl",
    "data.held_out=0.2",
    "skills.graph.steps=3",
    "skills.rounds=3",
    "skills.eval_every=2",
    "skills.window.size=2",
    "train.max_steps=12",
    "train.warmup_steps=1",
    "skills.min_prob=0.05",
];

#[test]
fn skill_it_learns_a_graph_and_follows_it() {
    let world = world();
    let report = world.json(&run("skill-it", "cpt", &SKILLS), 0);
    let graph = &report["curriculum"]["tables"][0];
    assert_eq!(graph["columns"], json!(["", "down", "other", "up"]));
    assert_eq!(graph["rows"].as_array().map(Vec::len), Some(3));
    let along = report["losses_by_step"].as_array().unwrap();
    assert_eq!(along.iter().map(|at| at["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10, 12]);
    assert!(along.iter().all(|at| at["losses"].as_object().unwrap().len() == 3));
    let rows: u64 =
        report["training"]["pools"].as_object().unwrap().values().map(|p| p["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 48);
    // Targets only; and one that has no training data.
    let ft = [&SKILLS[..], &["skills.setting=ft", "skills.targets=['up']", "skills.graph.mode=brute"]].concat();
    let report = world.json(&run("skill-it", "ft", &ft), 0);
    assert_eq!(report["losses_by_step"][0]["losses"].as_object().map(serde_json::Map::len), Some(1));
    let ood = [&SKILLS[..], &["skills.setting=ood", "skills.targets=['up']", "skills.static=true"]].concat();
    let report = world.json(&run("skill-it", "ood", &ood), 0);
    assert!(report["training"]["pools"]["up"].is_null() && report["training"]["pools"]["down"].is_object());
    assert!(report["metrics_after"]["up/loss"].is_number());
    for (set, message) in [
        ("skills.rounds=5", "`skills.rounds` is 5, which does not divide the 12 steps"),
        ("skills.column=kind", "has none under `kind`, which is to name its skill"),
    ] {
        let sets = [&SKILLS[..], &["skills.graph.mode=identity", set]].concat();
        let error = world.refused(&run("skill-it", &format!("refused-{set}"), &sets), 2);
        assert!(error.contains(message), "{set}: {error}");
    }
    let sets = [&SKILLS[..], &["skills.setting=ft", "skills.targets=['sideways']"]].concat();
    let error = world.refused(&run("skill-it", "unknown", &sets), 2);
    assert!(error.contains("there is no skill `sideways`; the data has down, other, up"), "{error}");
}

#[test]
fn mixtures_follow_weights_and_paths_and_easy_rows_come_first() {
    let world = world();
    let sources = ["sources.a=old.jsonl", "sources.b=new.jsonl", "train.max_steps=6", "train.warmup_steps=1"];
    let weights = [&sources[..], &["curriculum.weights.a=3", "curriculum.weights.b=1"]].concat();
    let report = world.json(&run("mixture", "weights", &weights), 0);
    assert_eq!((table(&report, "a")["rows"].as_u64(), table(&report, "b")["rows"].as_u64()), (Some(18), Some(6)));
    let path = "curriculum.path=[{ at = 0.0, weights = { a = 1 } }, { at = 1.0, weights = { b = 1 } }]";
    let report = world.json(&run("mixture", "path", &[&sources[..], &[path]].concat()), 0);
    assert!(table(&report, "b")["rows"].as_u64().unwrap() < table(&report, "a")["rows"].as_u64().unwrap());
    let easy = [&sources[..1], &sources[2..], &["curriculum.easy_first_by=hardness", "train.packing=none"]].concat();
    world.json(&run("mixture", "easy", &easy), 0);
    let error = world.refused(&run("mixture", "refused", &[&sources[..], &["curriculum.weights.c=1"]].concat()), 2);
    assert!(error.contains("names `c`; the sources are a, b"), "{error}");
    let plan = world.json(&[&run("mixture", "planned", &weights)[..], &["--dry-run"]].concat(), 0);
    assert_eq!(plan["steps"], 6);
}

/// What is said of sources that are read too often, whatever decides their shares; nothing trains here.
#[test]
fn a_source_that_is_read_too_often_is_named() {
    let world = world();
    world.write("few.jsonl", &rows(3, 0));
    let few = "{ path = 'few.jsonl', held_out = 0.0 }";
    let warnings = |recipe: &str, sets: &[&str]| -> Vec<String> {
        let warm_up = if recipe == "mixture" { "train.warmup_steps=1" } else { "train.warmup_ratio=0.1" };
        let sets = [sets, &["train.max_steps=12", "train.packing=none", warm_up]].concat();
        let report = world.json(&run(recipe, &format!("{recipe}-{}", sets.concat().len()), &sets), 0);
        let warnings = report["curriculum"]["warnings"].as_array().unwrap();
        warnings.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    // 48 rows: a quarter of them old, 12 of 5; and by weights.
    let old = format!("data.old={few}");
    let told = warnings("continual-pretraining", &["data.new=new.jsonl", &old, "continual.shift=strong"]);
    assert!(told.iter().any(|text| text.starts_with("`old` has ") && text.contains("12 are asked for")), "{told:?}");
    assert!(!told.iter().any(|text| text.contains("`new`")), "{told:?}");
    let told =
        warnings("continual-pretraining", &["data.new=new.jsonl", "data.old=old.jsonl", "continual.shift=strong"]);
    assert!(told.is_empty(), "{told:?}");
    let source = format!("sources.b={few}");
    let sources = ["sources.a=old.jsonl", &source, "curriculum.weights={ a = 1, b = 1 }"];
    let told = warnings("mixture", &sources);
    assert!(told.iter().any(|text| text.starts_with("`b` has ") && text.contains("24 are asked for")), "{told:?}");
    assert_eq!(
        warnings("mixture", &[&sources[..], &["curriculum.max_epochs={ b = 9 }"]].concat()),
        Vec::<String>::new()
    );
    let path = "curriculum.path=[{ at = 0.0, weights = { a = 1 } }, { at = 1.0, weights = { b = 1 } }]";
    let told = warnings("mixture", &[&sources[..2], &[path]].concat());
    assert!(told.iter().any(|text| text.starts_with("`b` has ")), "{told:?}");
}

/// Where processes are killed one after the other, all in one run.
const KILLS: [&str; 10] = [
    "rename@3",
    "stage.end",
    "train.step@2",
    "train.micro_step@7",
    "checkpoint.after_publish",
    "stage.before_publish",
    "train.step@3",
    "append@9",
    "checkpoint.before_publish",
    "stage.end",
];

#[test]
fn a_killed_run_with_a_graph_and_feedback_ends_in_the_same_bytes() {
    let world = world();
    world.ok(&run("skill-it", "whole", &SKILLS));
    let expected = lasting_files(&world.path("whole"));
    assert!(expected.keys().any(|path| path.ends_with("feedback.log")));
    let mut kills = 0;
    for point in KILLS {
        let mut command = world.command(&run("skill-it", "killed", &SKILLS));
        let output = command.env("DIDACT_FAIL", format!("{point}=kill")).output().unwrap();
        kills += u32::from(output.status.signal() == Some(9));
    }
    assert!(kills >= 8, "only {kills} kills");
    world.ok(&run("skill-it", "killed", &SKILLS));
    assert_same_files(&world.path("killed"), &expected, "killed and continued");
}
