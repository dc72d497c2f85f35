//! `didact generate` and `didact score` through the real binary.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::World;
use serde_json::{Value, json};

fn generate<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["generate", "--model", "model", "--prompt", "add 3", "--max-tokens", "12"][..], more].concat()
}

#[test]
fn log_probabilities_and_alternatives_are_reported_when_asked_for() {
    let world = World::new();
    let plain = &world.json(&generate(&[]), 0)["completions"][0];
    assert!(plain.get("logprobs").is_none() && plain["sum_logprob"].as_f64().unwrap() < 0.0, "{plain}");
    let report = world.json(&generate(&["--top-logprobs", "3"]), 0);
    let row = &report["completions"][0];
    assert_eq!(row["ids"], plain["ids"]);
    let tokens = row["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len() as u64, row["tokens"].as_u64().unwrap());
    for token in tokens {
        let top = token["top"].as_array().unwrap();
        // Greedy decoding took the first of the likeliest.
        assert_eq!(top.len(), 3);
        assert_eq!((&top[0]["id"], &top[0]["logprob"]), (&token["id"], &token["logprob"]));
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    let sum: f64 = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).sum();
    assert!((sum - row["sum_logprob"].as_f64().unwrap()).abs() < 1e-5);
    let without = world.json(&generate(&["--logprobs"]), 0);
    assert!(without["completions"][0]["logprobs"][0].get("top").is_none(), "{without}");
}

#[test]
fn answers_end_and_are_shaped_as_asked() {
    let world = World::new();
    let row = |more: &[&str]| world.json(&generate(more), 0)["completions"][0].clone();
    let plain = row(&[]);
    let ids = plain["ids"].as_array().unwrap();
    let last = ids.last().unwrap();
    let first = ids.iter().position(|id| id == last).unwrap();
    let stopped = row(&["--stop-token", &last.to_string()]);
    assert_eq!(stopped["finish_reason"], "stop", "{stopped}");
    assert_eq!(stopped["ids"].as_array().unwrap()[..], ids[..first]);
    let without = row(&["--logit-bias", &format!("{last}=-100")]);
    assert!(!without["ids"].as_array().unwrap().contains(last), "{without}");
    let by_name = row(&["--logit-bias", "7=100"]);
    assert!(by_name["text"].as_str().unwrap().starts_with("7777"), "{by_name}");
    // Each 7 makes the next one less likely, until it is an 8's turn.
    let penalised = row(&["--logit-bias", "7=30", "--logit-bias", "8=25", "--frequency-penalty", "2"]);
    let text = penalised["text"].as_str().unwrap();
    assert!(text.starts_with('7') && text.contains('8') && text.len() == 12, "{penalised}");

    world.write(
        "schema.json",
        &json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}})
        .to_string(),
    );
    let shaped = row(&["--json-schema", "schema.json"]);
    let value: Value = serde_json::from_str(shaped["text"].as_str().unwrap()).unwrap();
    assert!(value["ok"].is_boolean() && shaped["finish_reason"] == "stop", "{shaped}");
    let year = row(&["--regex", "(19|20)[0-9]{2}"]);
    assert!(year["text"].as_str().unwrap().parse::<u32>().is_ok_and(|year| (1900..2100).contains(&year)), "{year}");
    world.write("list.lark", "start: \"a\" (\",\" \"a\")* \";\"");
    let list = row(&["--grammar", "list.lark", "--temperature", "1"]);
    assert!(list["text"].as_str().unwrap().starts_with('a'), "{list}");
}

#[test]
fn rows_bring_settings_of_their_own() {
    let world = World::new();
    let rows = [
        json!({"prompt": "one"}),
        json!({"prompt": "one", "sampling": {"max_tokens": 2}}),
        json!({"prompt": "one", "sampling": {"temperature": 1.0, "n": 2, "seed": 9}}),
        json!({"prompt": "one", "sampling": {"constraint": {"regex": "yes|no"}}}),
        json!({"prompt": "one", "sampling": {"n": 2}}),
        json!({"prompt": "one", "sampling": {"stop_token_ids": [5000]}}),
    ];
    world.write("rows.jsonl", &rows.map(|row| row.to_string()).join("\n"));
    let report = world.json(&["generate", "--model", "model", "--input", "rows.jsonl", "--max-tokens", "5"], 1);
    let completions = report["completions"].as_array().unwrap();
    let of = |index: u64| completions.iter().filter(|row| row["index"] == index).collect::<Vec<_>>();
    assert_eq!(of(0)[0]["tokens"], 5);
    assert_eq!(of(1)[0]["tokens"], 2);
    assert_eq!(of(2).len(), 2);
    assert!(["yes", "no"].contains(&of(3)[0]["text"].as_str().unwrap()), "{report}");
    assert!(of(4)[0]["error"].as_str().unwrap().contains("at temperature 0"), "{report}");
    assert!(of(5)[0]["error"].as_str().unwrap().starts_with("`stop_token_ids` is token 5000"), "{report}");
    assert_eq!(report["failed"], 2);

    for (bad, says) in [
        (json!({"prompt": "x", "sampling": {"temprature": 1}}), "row 1: `sampling`: unknown field `temprature`"),
        (json!({"prompt": "x", "sampling": {"top_k": "many"}}), "row 1: `sampling`: invalid type"),
        (json!({"prompt": "x", "sampling": 3}), "row 1: `sampling` is no object"),
        (json!({"prompt": 3}), "row 1: `prompt` is not a string"),
    ] {
        world.write("bad.jsonl", &bad.to_string());
        let stderr = world.refused(&["generate", "--model", "model", "--input", "bad.jsonl"], 2);
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn settings_that_cannot_be_are_refused_by_name() {
    let world = World::new();
    world.write("bad.json", "{\"type\": \"strin\"}");
    world.write("broken.json", "{\"type\": ");
    for (more, says) in [
        (&["--n", "3"][..], "`n` is 3: expected 1 at temperature 0, where all answers would be the same"),
        (&["--temperature", "nan"], "`temperature` is NaN"),
        (&["--min-p", "2"], "`min_p` is 2"),
        (&["--repetition-penalty", "0"], "`repetition_penalty` is 0"),
        (&["--presence-penalty", "-3"], "`presence_penalty` is -3"),
        (&["--min-tokens", "99"], "`min_tokens` is 99"),
        (&["--top-logprobs", "999"], "`top_log_probs` is 999"),
        (&["--stop-token", "<|nothing|>"], "--stop-token <|nothing|>: the model has no such token"),
        (&["--logit-bias", "5"], "--logit-bias 5: expected TOKEN=NUMBER"),
        (&["--logit-bias", "a=1000"], "`logit_bias` is 1000"),
        (&["--json-schema", "bad.json"], "`constraint` (json_schema): "),
        (&["--json-schema", "broken.json"], "`broken.json`: EOF"),
        (&["--json-schema", "missing.json"], "missing.json"),
        (&["--regex", "a(b"], "`constraint` (regex): "),
        (&["--regex", "a", "--json-object"], "cannot be used with"),
        (&["--regex", "a", "--ignore-eos"], "`ignore_eos` is true"),
        (&["--beams", "0"], "`beams` is 0"),
        (&["--beams", "2", "--n", "3"], "`n` is 3: expected a count from 1 to the number of beams, 2"),
        (&["--beams", "2", "--temperature", "1"], "cannot be used with"),
        (&["--length-penalty", "2"], "--beams"),
    ] {
        let stderr = world.refused(&generate(more), 2);
        assert!(stderr.contains(says), "{more:?}: {stderr}");
    }
}

#[test]
fn beams_are_ranked() {
    let world = World::new();
    let report = world.json(&generate(&["--beams", "4", "--n", "3", "--logprobs"]), 0);
    let rows = report["completions"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    let scores: Vec<f64> = rows.iter().map(|row| row["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    // The mean log-probability, where no end of turn was counted.
    let row = rows.iter().find(|row| row["finish_reason"] == "length").unwrap_or(&rows[0]);
    if row["finish_reason"] == "length" {
        let mean = row["sum_logprob"].as_f64().unwrap() / row["tokens"].as_f64().unwrap();
        assert!((row["score"].as_f64().unwrap() - mean).abs() < 1e-5, "{row}");
    }
    assert_ne!(rows[0]["ids"], rows[1]["ids"]);
}

#[test]
fn scores_are_those_of_generation_and_bad_rows_are_named() {
    let world = World::new();
    let generated = &world.json(&generate(&[]), 0)["completions"][0];
    let answer = generated["text"].as_str().unwrap();
    let rows = [
        json!({"prompt": "add 3", "continuation": answer}),
        json!({"prompt": "add 3", "continuation": ""}),
        json!({"prompt": "", "continuation": "ab"}),
        // White space moves from the prompt to the continuation.
        json!({"prompt": "add 3  ", "continuation": "x"}),
        json!({"prompt": "add 3", "continuation": "  x"}),
    ];
    world.write("pairs.jsonl", &rows.each_ref().map(Value::to_string).join("\n"));
    let score = ["score", "--model", "model", "--input", "pairs.jsonl"];
    let report = world.json(&score, 0);
    let results = report["results"].as_array().unwrap();
    // Text of a random model need not be tokenised to the same ids again.
    if !answer.contains('\u{fffd}') && results[0]["tokens"] == generated["tokens"] {
        assert_eq!(results[0]["greedy"], true, "{report}");
        let difference = results[0]["sum_logprob"].as_f64().unwrap() - generated["sum_logprob"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4, "{report}");
    }
    assert_eq!((&results[1]["tokens"], &results[1]["sum_logprob"]), (&json!(0), &json!(0.0)));
    assert_eq!(results[2]["tokens"], 2);
    assert_eq!(results[3]["tokens"], 3);
    assert_eq!(results[3]["sum_logprob"], results[4]["sum_logprob"]);
    let lines: Vec<Value> = world.ok(&score).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(&lines, results);

    let long = json!({"prompt": "x".repeat(90), "continuation": "y"});
    world.write("pairs.jsonl", &[rows[2].to_string(), long.to_string()].join("\n"));
    let report = world.json(&score, 1);
    assert_eq!(report["failed"], 1);
    assert!(report["results"][1]["error"].as_str().unwrap().contains("91 tokens"), "{report}");
    for (bad, says) in [
        ("{\"prompt\": \"x\"}", "row 1: it has no `continuation`"),
        ("{\"prompt\": 1, \"continuation\": \"x\"}", "row 1: `prompt` is not a string"),
        ("{\"prompt\"", "row 1: EOF"),
        ("", "has no rows"),
    ] {
        world.write("pairs.jsonl", bad);
        let stderr = world.refused(&score, 2);
        assert!(stderr.contains(says), "{stderr}");
    }
}
