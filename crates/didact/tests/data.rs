//! `didact data tokenize` and `didact data filter`, through the real program: what they print, leave behind and survive.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;

use common::World;
use didact_core::files;
use serde_json::{Value, json};

fn rows(n: usize) -> String {
    (0..n)
        .map(|i| {
            let text = (0..i % 29).map(|j| format!("word{} ", (i * 13 + j * 7) % 211)).collect::<Vec<_>>().concat();
            json!({"text": format!("row {i}: {text}"), "skill": format!("s{}", i % 4), "level": i % 7}).to_string()
                + "\n"
        })
        .collect()
}

/// The files of a corpus but its lock.
fn corpus(world: &World, name: &str) -> BTreeMap<String, Vec<u8>> {
    let files = files::list_dir(world.path(name)).unwrap();
    let name = |path: &std::path::Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files
        .iter()
        .map(|path| (name(path), files::read(path).unwrap()))
        .filter(|(name, _)| name != "corpus.lock")
        .collect()
}

const TOKENIZE: [&str; 10] = [
    "data",
    "tokenize",
    "rows.jsonl",
    "--tokenizer",
    "model",
    "--keep",
    "skill,level",
    "--shard-tokens",
    "60000",
    "-q",
];

fn tokenize<'a>(to: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&TOKENIZE[..], &["--to", to], more].concat()
}

#[test]
fn a_corpus_killed_at_every_moment_of_its_making_ends_in_the_same_bytes() {
    let world = World::new();
    world.write("rows.jsonl", &rows(6000));
    let whole = world.json(&tokenize("whole", &["--threads", "1"]), 0);
    let expected = corpus(&world, "whole");
    let shards = expected.keys().filter(|name| name.ends_with(".tokens")).count();
    assert!(shards >= 4, "{shards} shards");
    assert_eq!(whole["documents"], 6000);
    assert!(whole["tokens"].as_u64().unwrap() > 200_000 && whole["tokens_per_s"].as_f64().unwrap() > 0.0, "{whole}");
    let points = [
        "create",
        "create@2",
        "corpus.before_shard",
        "rename",
        "rename@3",
        "corpus.before_manifest",
        "rename@4",
        "fsync_dir@2",
        "corpus.after_manifest",
        "corpus.before_shard@2",
        "write@3",
        "fsync@4",
        "corpus.before_manifest@2",
        "corpus.after_manifest@2",
    ];
    for point in points {
        let output =
            world.command(&tokenize("killed", &[])).env("DIDACT_FAIL", format!("{point}=kill")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "the process is killed at {point}: {stderr}");
    }
    let done = world.json(&tokenize("killed", &[]), 0);
    assert_eq!(
        (&done["documents"], &done["tokens"], &done["bytes"]),
        (&whole["documents"], &whole["tokens"], &whole["bytes"])
    );
    assert!(done["new_tokens"].as_u64() < whole["tokens"].as_u64(), "it went on where it was: {done}");
    assert!(corpus(&world, "killed") == expected, "killed and continued");
    let again = world.json(&tokenize("killed", &[]), 0);
    assert_eq!((&again["new_tokens"], &again["tokens_per_s"]), (&json!(0), &Value::Null));
}

#[test]
fn a_full_disk_is_an_error_and_the_same_command_goes_on() {
    let world = World::new();
    world.write("rows.jsonl", &rows(6000));
    world.ok(&tokenize("whole", &[]));
    for rule in ["write@2=enospc", "rename@2=eio", "corpus.before_manifest@2=enospc"] {
        let output = world.command(&tokenize("failed", &[])).env("DIDACT_FAIL", rule).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{rule}: {stderr}");
        assert!(stderr.starts_with("error: cannot "), "{rule}: {stderr}");
    }
    world.ok(&tokenize("failed", &[]));
    assert!(corpus(&world, "failed") == corpus(&world, "whole"), "failed and continued");
}

#[test]
fn what_cannot_be_tokenised_is_refused_by_name() {
    let world = World::new();
    world.write("rows.jsonl", &rows(10));
    world.write("bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": 7}\n");
    world.ok(&tokenize("made", &[]));
    let cases: [(Vec<&str>, &str); 5] = [
        (
            vec!["data", "tokenize", "nothing.jsonl", "--tokenizer", "model", "--to", "x"],
            "`nothing.jsonl` does not exist",
        ),
        (vec!["data", "tokenize", "rows.jsonl", "--tokenizer", "nowhere", "--to", "x"], "nowhere"),
        (
            vec!["data", "tokenize", "bad.jsonl", "--tokenizer", "model", "--to", "x"],
            "`bad.jsonl` row 2: `text` is a number",
        ),
        (vec!["data", "tokenize", "rows.jsonl", "--tokenizer", "model", "--to", "rows.jsonl"], "is a file"),
        (
            vec!["data", "tokenize", "rows.jsonl", "--tokenizer", "model", "--to", "made"],
            "another list of fields to keep",
        ),
    ];
    for (arguments, text) in cases {
        let stderr = world.refused(&arguments, 2);
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
    }
    let skipped =
        world.json(&["data", "tokenize", "bad.jsonl", "--tokenizer", "model", "--to", "skipped", "--skip-bad-rows"], 0);
    assert_eq!((&skipped["documents"], &skipped["bad_rows"]), (&json!(1), &json!(1)));
    let added = world.json(&tokenize("made", &["--append"]), 0);
    assert_eq!(added["new_tokens"], 0, "the same file is taken in once");
}

#[test]
fn a_filter_says_what_it_left_out_and_why() {
    let world = World::new();
    let text = |i: usize| (0..60).map(|j| format!("word{} ", (i * 97 + j * j) % 1009)).collect::<Vec<_>>().concat();
    let row = |text: &str, id: usize| json!({"id": id, "text": text}).to_string() + "\n";
    let (a, b, secret) = (text(1), text(2), text(3));
    world.write("in.jsonl", &[row(&a, 1), row(&b, 2), row(&a, 3), row("short", 4), row(&secret, 5)].concat());
    world.write("test.jsonl", &row(&secret, 1));
    let common = ["data", "filter", "in.jsonl", "--to", "out.jsonl"];
    let rules = ["--min-chars", "20", "--exact", "--near", "--against", "test.jsonl", "--dropped", "dropped.jsonl"];
    let report = world.json(&[&common[..], &rules].concat(), 0);
    assert_eq!((&report["read"]["rows"], &report["kept"]["rows"]), (&json!(5), &json!(2)));
    for rule in ["exact_repetition", "min_chars", "contamination"] {
        assert_eq!(report["dropped"][rule]["rows"], 1, "{report}");
    }
    assert_eq!(files::read_to_string(world.path("out.jsonl")).unwrap(), row(&a, 1) + &row(&b, 2));
    let listed = files::read_to_string(world.path("dropped.jsonl")).unwrap();
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = listed.iter().map(|d| (d["row"].as_u64().unwrap(), d["rule"].as_str().unwrap())).collect();
    assert_eq!(found, [(3, "exact_repetition"), (4, "min_chars"), (5, "contamination")]);
    let shown = world.ok(&[&common[..], &["--exact"]].concat());
    assert!(shown.contains("exact_repetition") && shown.contains("20.00 %"), "{shown}");
    assert!(world.refused(&common, 2).contains("no rule says"));
    let onto_itself = world.refused(&["data", "filter", "in.jsonl", "--to", "in.jsonl", "--exact"], 2);
    assert!(onto_itself.contains("is one of the files read"), "{onto_itself}");
}
