//! `didact chat` with its input piped.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::World;
use didact_core::files;
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Output, Stdio};

/// Runs `didact chat` and types `lines`.
fn talk(world: &World, options: &[&str], lines: &str) -> Output {
    let mut command = world.command(&[&["chat", "--model", "model", "--max-tokens", "6"], options].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Gives the model a longer context.
fn lengthen(world: &World, context: usize) {
    let path = world.path("model").join("config.json");
    let mut config: Value = serde_json::from_slice(&files::read(&path).unwrap()).unwrap();
    config["max_position_embeddings"] = context.into();
    files::write_atomic(&path, config.to_string().as_bytes()).unwrap();
}

fn saved(world: &World, name: &str) -> Vec<(String, String)> {
    let row: Value = serde_json::from_slice(&files::read(world.path(name)).unwrap()).unwrap();
    let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
    row["messages"].as_array().unwrap().iter().map(|m| (text(m, "role"), text(m, "content"))).collect()
}

#[test]
fn a_conversation_goes_on_is_saved_and_is_forgotten() {
    let world = World::new();
    lengthen(&world, 256);
    let lines =
        "hi\n/save one.jsonl\n\ntwo\\\nlines\n/save two.jsonl\n/reset\nhi\n/save three.jsonl\n/exit\nnever said\n";
    let output = talk(&world, &["--system", "be brief", "-q"], lines);
    assert!(output.status.success(), "{output:?}");
    let one = saved(&world, "one.jsonl");
    assert_eq!(one[0], ("system".to_owned(), "be brief".to_owned()));
    assert_eq!(one[1], ("user".to_owned(), "hi".to_owned()));
    assert_eq!(one[2].0, "assistant");
    let two = saved(&world, "two.jsonl");
    assert_eq!(two[..3], one[..]);
    assert_eq!(two[3], ("user".to_owned(), "two\nlines".to_owned()));
    let three = saved(&world, "three.jsonl");
    assert_eq!((three.len(), &three[..2]), (3, &one[..2]));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout, format!("{}\n{}\n{}\n", one[2].1, two[4].1, three[2].1), "only answers are printed");
    // What was saved is data to train on.
    let check = world.json(&["data", "check", "two.jsonl"], 0);
    assert_eq!(check["rows"], 1);
}

#[test]
fn what_cannot_be_done_is_said_and_the_conversation_goes_on() {
    let world = World::new();
    let long = "x".repeat(200);
    let lines = format!("/sing\n/save\n/save no/such/directory/file\n{long}\n/system\nhi\n/save kept.jsonl");
    let output = talk(&world, &["-q"], &lines);
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    for text in ["there is no `/sing`", "name a file", "no/such/directory", "context is 64", "/reset"] {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }
    let kept = saved(&world, "kept.jsonl");
    assert_eq!((kept.len(), kept[0].1.as_str()), (2, "hi"), "the line that was too long is no part of it");
}

#[test]
fn chat_needs_a_template_and_refuses_json() {
    let world = World::new();
    let stderr = world.refused(&["chat", "--model", "model", "--temperature=-1"], 2);
    assert!(stderr.contains("temperature"), "{stderr}");
    assert_eq!(world.output(&["chat", "--model", "model", "--json"]).status.code(), Some(2));
    files::remove_file(world.path("model").join("chat_template.jinja")).unwrap();
    let stderr = world.refused(&["chat", "--model", "model"], 2);
    assert!(stderr.contains("no chat template") && stderr.contains("didact generate"), "{stderr}");
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_program() {
    let world = World::new();
    lengthen(&world, 100_000);
    // Tokens that end a turn are made impossible by leaving none: the answer goes on as long as the context.
    for name in ["config.json", "tokenizer_config.json", "generation_config.json"] {
        let path = world.path("model").join(name);
        if let Ok(bytes) = files::read(&path) {
            let mut settings: Value = serde_json::from_slice(&bytes).unwrap();
            settings.as_object_mut().unwrap().retain(|key, _| !key.starts_with("eos"));
            files::write_atomic(&path, settings.to_string().as_bytes()).unwrap();
        }
    }
    let mut command = world.command(&["chat", "--model", "model"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all(b"hi\n").unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    stdin.write_all(b"/save ended.jsonl\n/exit\n").unwrap();
    drop(stdin);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    let messages = saved(&world, "ended.jsonl");
    assert_eq!(messages.len(), 2);
    assert!(messages[1].1.len() >= 20, "what was written stays");
}
