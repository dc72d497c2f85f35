//! A generator that is asked nothing twice: equal requests of one call are one, and with a file what one process was told
//! the next one knows.

use crate::error::EvalError;
use didact_core::cancel::Cancel;
use didact_core::files::AppendLog;
use didact_core::generate::{Completion, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs};
use didact_core::hash::{Digest, hash_json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Answers between two calls of fsync: a killed process loses so many at most, each of which can be asked again.
const SYNC_EVERY: usize = 256;

/// Hands on to a generator what was not asked before. Answers are kept by the request's whole content, so that one file
/// must only ever be used for one model in one precision; errors are not kept.
pub struct CachedGenerator<'a> {
    inner: &'a dyn Generator,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Looked up, never walked.
    known: HashMap<Digest, Value>,
    log: Option<AppendLog>,
    unsynced: usize,
    hits: u64,
    asked: u64,
}

impl<'a> CachedGenerator<'a> {
    /// Over `inner`, with what `file` remembers where one is given.
    ///
    /// # Errors
    /// When the file cannot be read, or is something else.
    pub fn new(inner: &'a dyn Generator, file: Option<&Path>) -> Result<Self, EvalError> {
        let mut state = State::default();
        if let Some(path) = file {
            let (log, recovered) = AppendLog::open(path)?;
            for mut record in recovered.records {
                let key = record.get("key").and_then(Value::as_str).and_then(|key| key.parse().ok());
                let (Some(key), Some(value)) = (key, record.remove("value")) else {
                    return Err(EvalError::Cache { path: path.to_owned() });
                };
                state.known.insert(key, value);
            }
            state.log = Some(log);
        }
        Ok(Self { inner, state: Mutex::new(state) })
    }

    /// Requests that needed no asking.
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    /// Requests that were asked.
    pub fn asked(&self) -> u64 {
        self.state().asked
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole between any two of its statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, key: Digest, value: Value) -> Result<(), GenerateError> {
        let broken = |error| GenerateError {
            message: "the cache of answers cannot be written; --no-cache goes without".into(),
            source: Some(Box::new(error)),
        };
        let mut state = self.state();
        let State { log, unsynced, known, .. } = &mut *state;
        if let Some(log) = log {
            let record =
                Map::from_iter([("key".to_owned(), json!(key.to_string())), ("value".to_owned(), value.clone())]);
            log.append(&record).map_err(broken)?;
            *unsynced += 1;
            if *unsynced >= SYNC_EVERY {
                log.sync().map_err(broken)?;
                *unsynced = 0;
            }
        }
        known.insert(key, value);
        Ok(())
    }

    /// Asks for what is not known, each content once.
    fn ask<Q: Clone, A: Clone + Serialize + DeserializeOwned>(
        &self,
        questions: &[Q],
        key: impl Fn(&Q) -> Digest,
        sink: &mut dyn FnMut(usize, Result<A, RequestError>),
        ask: impl FnOnce(&[Q], &mut dyn FnMut(usize, Result<A, RequestError>)) -> Result<(), GenerateError>,
    ) -> Result<(), GenerateError> {
        // Every content once, with the places it stands in.
        let mut open: Vec<(Digest, Vec<usize>)> = Vec::new();
        let mut places: HashMap<Digest, usize> = HashMap::new();
        for (index, question) in questions.iter().enumerate() {
            let key = key(question);
            let known = self.state().known.get(&key).and_then(|value| A::deserialize(value).ok());
            if let Some(answer) = known {
                self.state().hits += 1;
                sink(index, Ok(answer));
                continue;
            }
            let place = *places.entry(key).or_insert_with(|| {
                open.push((key, Vec::new()));
                open.len() - 1
            });
            open[place].1.push(index);
        }
        let asked: Vec<Q> = open.iter().map(|(_, indices)| questions[indices[0]].clone()).collect();
        let mut failure = None;
        let result = ask(&asked, &mut |place, answer: Result<A, RequestError>| {
            let (key, indices) = &open[place];
            if let Ok(answer) = &answer {
                let value = serde_json::to_value(answer).unwrap_or_default();
                if let Err(error) = self.keep(*key, value) {
                    failure.get_or_insert(error);
                }
            }
            {
                let mut state = self.state();
                state.asked += 1;
                state.hits += indices.len() as u64 - 1;
            }
            for index in indices {
                sink(*index, answer.clone());
            }
        });
        if let Some(log) = &self.state().log
            && let Err(error) = log.sync()
        {
            failure.get_or_insert(GenerateError {
                message: "the cache of answers cannot be written; --no-cache goes without".into(),
                source: Some(Box::new(error)),
            });
        }
        result.and(failure.map_or(Ok(()), Err))
    }
}

fn digest(kind: &str, request: &impl Serialize) -> Digest {
    hash_json(&json!({ "kind": kind, "request": request }))
}

impl Generator for CachedGenerator<'_> {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let key = |request: &Request| digest("generate", request);
        self.ask(requests, key, sink, |requests, sink| {
            let mut sink = |index: usize, completion: Result<Completion, RequestError>| {
                // An answer that was cut off by the user is no answer; the caller sees that it is missing.
                let is_cut = |completion: &Completion| {
                    let reason = didact_core::generate::FinishReason::Cancelled;
                    completion.answers.iter().any(|answer| answer.finish_reason == reason)
                };
                if !completion.as_ref().is_ok_and(is_cut) {
                    sink(index, completion);
                }
            };
            self.inner.generate(requests, &mut sink, cancel)
        })
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let key = |pair: &(Prompt, Prompt)| digest("score", pair);
        self.ask(pairs, key, sink, |pairs, sink| self.inner.score(pairs, sink, cancel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Scores by length, and remembers what it was asked.
    #[derive(Default)]
    struct Lengths {
        asked: RefCell<Vec<String>>,
    }

    impl Generator for Lengths {
        fn generate(
            &self,
            _: &[Request],
            _: &mut dyn FnMut(usize, Result<Completion, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            Ok(())
        }

        fn score(
            &self,
            pairs: &[(Prompt, Prompt)],
            sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            for (index, (_, continuation)) in pairs.iter().enumerate() {
                let Prompt::Text(text) = continuation else { panic!("the test asks for text") };
                self.asked.borrow_mut().push(text.clone());
                let score =
                    TokenLogProbs { ids: vec![1], log_probs: vec![-(text.len() as f32) / 3.0], is_greedy: true };
                sink(index, if text == "bad" { Err(RequestError::EmptyPrompt) } else { Ok(score) });
            }
            Ok(())
        }
    }

    fn pairs(texts: &[&str]) -> Vec<(Prompt, Prompt)> {
        texts.iter().map(|text| (Prompt::Text("p".into()), Prompt::Text((*text).into()))).collect()
    }

    #[test]
    fn nothing_is_asked_twice_in_a_call_a_process_or_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("answers.log");
        let lengths = Lengths::default();
        let score = |cached: &CachedGenerator<'_>, texts: &[&str]| {
            let mut scores = vec![None; texts.len()];
            let mut sink =
                |i: usize, score: Result<TokenLogProbs, RequestError>| scores[i] = Some(score.map(|s| s.log_probs[0]));
            cached.score(&pairs(texts), &mut sink, &Cancel::new()).expect("it scores");
            scores
        };
        let cached = CachedGenerator::new(&lengths, Some(&path)).expect("it opens");
        let first = score(&cached, &["aa", "b", "aa", "bad"]);
        assert_eq!(first[0], first[2]);
        assert_eq!((cached.hits(), cached.asked()), (1, 3));
        drop(cached);
        let cached = CachedGenerator::new(&lengths, Some(&path)).expect("it opens");
        assert_eq!(score(&cached, &["aa", "b", "aa", "bad"]), first, "the very bits come back");
        assert_eq!(cached.hits(), 3);
        assert_eq!(*lengths.asked.borrow(), ["aa", "b", "bad", "bad"], "an error is asked again");
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("other.log");
        let (mut log, _) = AppendLog::open(&path).expect("it opens");
        log.append(&Map::from_iter([("verdict".to_owned(), json!(1))])).expect("it is written");
        drop(log);
        let lengths = Lengths::default();
        assert!(matches!(CachedGenerator::new(&lengths, Some(&path)), Err(EvalError::Cache { .. })));
    }
}
