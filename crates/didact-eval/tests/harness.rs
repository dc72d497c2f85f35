//! Prompts, hashes, filters and scores against the lm-evaluation-harness's own, made with a model that answers by chance
//! (`golden/eval/make.py`). The same answers are given here; what is asked that the harness did not ask fails the test.
#![expect(clippy::unwrap_used, reason = "tests")]

use didact_core::cancel::Cancel;
use didact_core::generate::{
    Answer, Completion, FinishReason, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs,
};
use didact_core::progress::Silent;
use didact_eval::{EvalOptions, Model, Task, evaluate, results};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/eval")
}

fn golden() -> Value {
    serde_json::from_str(&didact_core::files::read_to_string(folder().join("golden.json")).unwrap()).unwrap()
}

/// The harness's answers.
#[derive(Default)]
struct Replay {
    scores: BTreeMap<(String, String), (f32, bool)>,
    texts: BTreeMap<String, String>,
}

impl Replay {
    fn new(samples: &[Value]) -> Self {
        let mut replay = Self::default();
        for sample in samples {
            for (arguments, responses) in
                sample["arguments"].as_array().unwrap().iter().zip(sample["resps"].as_array().unwrap())
            {
                let prompt = arguments[0].as_str().unwrap().to_owned();
                match &responses[0] {
                    Value::String(text) => _ = replay.texts.insert(prompt, text.clone()),
                    pair => {
                        let continuation = arguments[1].as_str().unwrap().to_owned();
                        let score = (pair[0].as_f64().unwrap() as f32, pair[1].as_bool().unwrap());
                        replay.scores.insert((prompt, continuation), score);
                    }
                }
            }
        }
        replay
    }
}

fn text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        other => panic!("expected text: {other:?}"),
    }
}

impl Generator for Replay {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, request) in requests.iter().enumerate() {
            let prompt = text(&request.prompt);
            let text = self.texts.get(&prompt).unwrap_or_else(|| panic!("the harness did not ask {prompt:?}"));
            let answer = Answer {
                text: text.clone(),
                ids: Vec::new(),
                log_probs: Vec::new(),
                top_log_probs: Vec::new(),
                finish_reason: FinishReason::Stop,
            };
            sink(index, Ok(Completion { answers: vec![answer], prompt_tokens: 1 }));
        }
        Ok(())
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        _: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, (prompt, continuation)) in pairs.iter().enumerate() {
            let pair = (text(prompt), text(continuation));
            let (score, is_greedy) =
                *self.scores.get(&pair).unwrap_or_else(|| panic!("the harness did not ask {pair:?}"));
            sink(index, Ok(TokenLogProbs { ids: vec![1], log_probs: vec![score], is_greedy }));
        }
        Ok(())
    }
}

fn check(name: &str) {
    let golden = golden();
    let task = Task::open(&folder().join(format!("{name}.yaml"))).unwrap();
    let expected = golden["samples"][task.name()].as_array().unwrap();
    let replay = Replay::new(expected);
    let model = Model { generator: &replay, windows: None };
    let found = evaluate(std::slice::from_ref(&task), model, &EvalOptions::default(), &Silent, &Cancel::new()).unwrap();
    let rows = results::samples(&found[0]);
    assert_eq!(rows.len(), expected.len());
    for row in &rows {
        let is_same = |other: &&Value| other["doc_id"] == row["doc_id"] && other["filter"] == row["filter"];
        let other = expected.iter().find(is_same).unwrap_or_else(|| panic!("{row}"));
        for key in ["doc_hash", "prompt_hash", "target_hash", "target"] {
            assert_eq!(row[key], other[key], "{name}, doc {}: {key}", row["doc_id"]);
        }
        let sorted = |row: &Value| -> Vec<String> {
            let mut names: Vec<String> =
                row["metrics"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(sorted(row), sorted(other), "{name}");
        for metric in other["metrics"].as_array().unwrap().iter().map(|metric| metric.as_str().unwrap()) {
            if let Some(value) = other.get(metric) {
                assert_eq!(row[metric].as_f64(), value.as_f64(), "{name}, doc {}: {metric}", row["doc_id"]);
            }
        }
    }
    let scores = golden["results"][task.name()].as_object().unwrap();
    for score in &found[0].scores {
        let value = scores[&format!("{},{}", score.name, score.filter)].as_f64().unwrap();
        // Sums in another order.
        assert!((score.value - value).abs() < 1e-9, "{name} {}: {} and {value}", score.name, score.value);
    }
}

#[test]
fn examples_from_another_split_and_every_normalisation() {
    check("choice");
}

#[test]
fn examples_from_the_split_that_is_asked() {
    check("same_split");
}

#[test]
fn choices_that_are_prompts() {
    check("prompts");
}

#[test]
fn one_target() {
    check("target");
}

#[test]
fn text_through_filters() {
    check("text");
}

#[test]
fn several_right_texts() {
    check("several");
}
