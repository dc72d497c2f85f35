//! A generator that is asked nothing twice: equal requests of one call are one, and with a file what one process was told
//! the next one knows.

use crate::error::InferError;
use didact_core::cancel::Cancel;
use didact_core::files::{AppendLog, FileError};
use didact_core::generate::{
    Completion, FinishReason, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs,
};
use didact_core::hash::{Digest, hash_json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Hands on to a generator what was not asked before. Answers are found again by the whole content of their request and by
/// a fingerprint, which says whose they are: another model's answers in the same file are not taken for this one's.
/// Refusals are not kept, and neither are answers that were cut short by a stop.
pub struct CachedGenerator<G> {
    inner: G,
    fingerprint: Digest,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Looked up, never walked.
    known: HashMap<Digest, Value>,
    log: Option<AppendLog>,
    sync_every: usize,
    unsynced: usize,
    hits: u64,
    asked: u64,
}

impl<G: Generator> CachedGenerator<G> {
    /// Over `inner`; `fingerprint` says all that answers depend on beside the request: weights, tokenizer, precision.
    pub fn new(inner: G, fingerprint: Digest) -> Self {
        Self { inner, fingerprint, state: Mutex::default() }
    }

    /// With what `file` remembers, and keeping there what comes. An answer is durable when it is handed on with a
    /// `sync_every` of 1; with a larger one a killed process loses so many at most, and the disk has less to do.
    ///
    /// # Errors
    /// When the file cannot be read, or is something else.
    pub fn with_file(self, file: &Path, sync_every: usize) -> Result<Self, InferError> {
        let (log, recovered) = AppendLog::open(file)?;
        {
            let mut state = self.state();
            for mut record in recovered.records {
                let key = record.get("key").and_then(Value::as_str).and_then(|key| key.parse().ok());
                let (Some(key), Some(value)) = (key, record.remove("value")) else {
                    return Err(InferError::Cache { path: file.to_owned() });
                };
                state.known.insert(key, value);
            }
            state.log = Some(log);
            state.sync_every = sync_every.max(1);
        }
        Ok(self)
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

    fn key(&self, kind: &str, request: &impl Serialize) -> Digest {
        hash_json(&json!({ "model": self.fingerprint, "kind": kind, "request": request }))
    }

    fn keep(&self, key: Digest, value: Value) -> Result<(), GenerateError> {
        let mut state = self.state();
        let State { log, sync_every, unsynced, known, .. } = &mut *state;
        if let Some(log) = log {
            let record =
                Map::from_iter([("key".to_owned(), json!(key.to_string())), ("value".to_owned(), value.clone())]);
            log.append(&record).map_err(broken)?;
            *unsynced += 1;
            if *unsynced >= *sync_every {
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
        is_cut: impl Fn(&A) -> bool,
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
            if let Ok(answer) = &answer
                && !is_cut(answer)
            {
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
            failure.get_or_insert(broken(error));
        }
        result.and(failure.map_or(Ok(()), Err))
    }
}

fn broken(error: FileError) -> GenerateError {
    GenerateError { message: "an answer cannot be kept".into(), source: Some(Box::new(error)) }
}

impl<G: Generator> Generator for CachedGenerator<G> {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let key = |request: &Request| self.key("generate", request);
        // An answer that was cut off by the user is none to remember.
        let is_cut = |completion: &Completion| {
            completion.answers.iter().any(|answer| answer.finish_reason == FinishReason::Cancelled)
        };
        self.ask(requests, key, is_cut, sink, |requests, sink| self.inner.generate(requests, sink, cancel))
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let key = |pair: &(Prompt, Prompt)| self.key("score", pair);
        self.ask(pairs, key, |_| false, sink, |pairs, sink| self.inner.score(pairs, sink, cancel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Lengths, pair, request};
    use didact_core::hash::hash_bytes;

    fn scores(cached: &CachedGenerator<&Lengths>, texts: &[&str]) -> Vec<Option<Result<f32, RequestError>>> {
        let pairs: Vec<_> = texts.iter().map(|text| pair("p", text)).collect();
        let mut scores = vec![None; texts.len()];
        let mut sink =
            |i: usize, score: Result<TokenLogProbs, RequestError>| scores[i] = Some(score.map(|s| s.log_probs[0]));
        cached.score(&pairs, &mut sink, &Cancel::new()).expect("it scores");
        scores
    }

    #[test]
    fn nothing_is_asked_twice_in_a_call_a_process_or_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("answers.log");
        let lengths = Lengths::default();
        let open =
            |model: &[u8]| CachedGenerator::new(&lengths, hash_bytes(model)).with_file(&path, 2).expect("it opens");
        let cached = open(b"m");
        let first = scores(&cached, &["aa", "b", "aa", "x"]);
        assert_eq!(first[0], first[2]);
        assert_eq!((cached.hits(), cached.asked()), (1, 3));
        drop(cached);
        let cached = open(b"m");
        assert_eq!(scores(&cached, &["aa", "b", "aa", "x"]), first, "the very bits come back");
        assert_eq!(cached.hits(), 3);
        assert_eq!(lengths.asked(), ["aa", "b", "x", "x"], "a refusal is asked again");
        drop(cached);
        let other = open(b"n");
        scores(&other, &["aa"]);
        assert_eq!((other.hits(), other.asked()), (0, 1), "another model");
    }

    #[test]
    fn a_process_that_died_asks_only_for_the_rest() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("answers.log");
        let requests = ["one", "two", "three"].map(request);
        let ask = |lengths: &Lengths| {
            let cached = CachedGenerator::new(lengths, hash_bytes(b"m")).with_file(&path, 1).expect("it opens");
            let answers = cached.generate_all(&requests, &Cancel::new()).expect("it answers");
            (answers.iter().flatten().count(), lengths.asked().len())
        };
        assert_eq!(ask(&Lengths::dying_after(2)), (2, 2));
        assert_eq!(ask(&Lengths::default()), (3, 1));
        assert_eq!(ask(&Lengths::default()), (3, 0));
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("other.log");
        let (mut log, _) = AppendLog::open(&path).expect("it opens");
        log.append(&Map::from_iter([("verdict".to_owned(), json!(1))])).expect("it is written");
        drop(log);
        let found = CachedGenerator::new(Lengths::default(), hash_bytes(b"m")).with_file(&path, 1);
        assert!(matches!(found.err(), Some(InferError::Cache { .. })));
    }
}
