//! Answers that are not given twice: a generator whose answers are kept on disk as they come.

use didact_core::cancel::Cancel;
use didact_core::files::{AppendLog, FileError};
use didact_core::generate::{Completion, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs};
use didact_core::hash::{Digest, Hasher, hash_json};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A [`Generator`] that hands on to another one and keeps each answer in a file, durable before it is handed on, so that a
/// process that is killed and started again asks only for what is missing.
///
/// Answers are found again by the request and by a fingerprint, which says whose they are: another model's answers in the
/// same file are not taken for this one's. Refusals are not kept, and neither are answers that were cut short by a stop.
/// Scoring is handed on as it is.
pub struct Journaled<G> {
    inner: G,
    fingerprint: Digest,
    state: Mutex<State>,
}

struct State {
    log: AppendLog,
    known: BTreeMap<Digest, Completion>,
}

fn parse(mut record: Map<String, Value>) -> Option<(Digest, Completion)> {
    let key = record.get("request")?.as_str()?.parse().ok()?;
    Some((key, serde_json::from_value(record.remove("completion")?).ok()?))
}

fn broken(error: FileError) -> GenerateError {
    GenerateError { message: "an answer cannot be kept".to_owned(), source: Some(Box::new(error)) }
}

impl<G: Generator> Journaled<G> {
    /// Opens the file, or begins it; what was being written when a process died is dropped. Records that are no answers are
    /// passed over.
    ///
    /// # Errors
    /// When the file cannot be read or cut.
    pub fn open(inner: G, fingerprint: Digest, path: &Path) -> Result<Self, FileError> {
        let (log, recovered) = AppendLog::open(path)?;
        let known = recovered.records.into_iter().filter_map(parse).collect();
        Ok(Self { inner, fingerprint, state: Mutex::new(State { log, known }) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole between any two of its statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, request: &Request) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field("model", self.fingerprint.to_string().as_bytes());
        let request = serde_json::to_value(request).unwrap_or_default();
        hasher.field("request", hash_json(&request).to_string().as_bytes());
        hasher.finish()
    }

    fn keep(&self, key: Digest, completion: &Completion) -> Result<(), GenerateError> {
        use didact_core::generate::FinishReason::Cancelled;
        if completion.answers.iter().any(|answer| answer.finish_reason == Cancelled) {
            return Ok(());
        }
        let mut state = self.lock();
        if let Value::Object(record) = json!({ "request": key, "completion": completion }) {
            state.log.append(&record).and_then(|()| state.log.sync()).map_err(broken)?;
        }
        state.known.insert(key, completion.clone());
        Ok(())
    }
}

impl<G: Generator> Generator for Journaled<G> {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let (mut places, mut asked) = (Vec::new(), Vec::new());
        for (index, request) in requests.iter().enumerate() {
            let key = self.key(request);
            let known = self.lock().known.get(&key).cloned();
            if let Some(completion) = known {
                sink(index, Ok(completion));
            } else {
                places.push((index, key));
                asked.push(request.clone());
            }
        }
        let mut failure = None;
        let mut keep = |place: usize, completion: Result<Completion, RequestError>| {
            let (index, key) = places[place];
            if let Ok(completion) = &completion
                && let Err(error) = self.keep(key, completion)
            {
                failure.get_or_insert(error);
            }
            sink(index, completion);
        };
        self.inner.generate(&asked, &mut keep, cancel)?;
        failure.map_or(Ok(()), Err)
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        self.inner.score(pairs, sink, cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::generate::{Answer, FinishReason, Sampling};
    use didact_core::hash::hash_bytes;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is asked and stops after a few answers.
    struct Counting<'a>(&'a AtomicUsize, usize);

    impl Generator for Counting<'_> {
        fn generate(
            &self,
            requests: &[Request],
            sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            for (index, request) in requests.iter().enumerate().take(self.1) {
                self.0.fetch_add(1, Ordering::Relaxed);
                let text = format!("{:?}", request.prompt);
                let finish_reason = FinishReason::Stop;
                let answer = Answer { text, ids: vec![1], log_probs: vec![], top_log_probs: vec![], finish_reason };
                sink(index, Ok(Completion { answers: vec![answer], prompt_tokens: 1 }));
            }
            Ok(())
        }

        fn score(
            &self,
            _: &[(Prompt, Prompt)],
            _: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
            _: &Cancel,
        ) -> Result<(), GenerateError> {
            Ok(())
        }
    }

    #[test]
    fn what_was_answered_is_not_asked_again_but_by_another_model() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("answers.log");
        let requests: Vec<Request> = ["a", "b", "c"]
            .map(|text| Request { prompt: Prompt::Text(text.into()), sampling: Sampling::default() })
            .to_vec();
        let asked = AtomicUsize::new(0);
        let ask = |limit: usize, model: &[u8]| {
            let generator = Journaled::open(Counting(&asked, limit), hash_bytes(model), &path).expect("opens");
            let answers = generator.generate_all(&requests, &Cancel::new()).expect("answers");
            (answers.iter().flatten().count(), asked.swap(0, Ordering::Relaxed))
        };
        assert_eq!(ask(2, b"m"), (2, 2), "the process dies after two");
        assert_eq!(ask(9, b"m"), (3, 1), "only the third is asked");
        assert_eq!(ask(9, b"m"), (3, 0));
        assert_eq!(ask(9, b"n"), (3, 3), "another model");
    }
}
