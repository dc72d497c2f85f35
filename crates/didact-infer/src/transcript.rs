//! Requests and their answers on record: what a generator said once is said again, without a model or server.

use didact_core::cancel::Cancel;
use didact_core::fault::{Classify, Fault};
use didact_core::files::{self, FileError};
use didact_core::generate::{Completion, GenerateError, Generator, Prompt, Request, RequestError, TokenLogProbs};
use didact_core::hash::{Digest, hash_json};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Why a transcript cannot be read or followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranscriptError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A row is no record.
    #[error("`{}`, row {row}: {cause}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which row, from 1.
        row: usize,
        /// What is wrong.
        cause: String,
    },
    /// Something was asked that is not on record.
    #[error("the transcript has no answer to {what}")]
    Missing {
        /// The request, shortened.
        what: String,
    },
}

impl Classify for TranscriptError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            Self::Row { .. } | Self::Missing { .. } => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Row { .. } => None,
            Self::Missing { .. } => Some("record it again: what is asked has changed".into()),
        }
    }
}

impl From<TranscriptError> for GenerateError {
    fn from(error: TranscriptError) -> Self {
        Self { message: error.to_string(), source: Some(Box::new(error)) }
    }
}

/// One row of a transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Entry {
    /// An answered request: `{"request": ..., "completion": {"Ok": ...}}`.
    Generated {
        /// What was asked.
        request: Box<Request>,
        /// What came.
        completion: Result<Completion, RequestError>,
    },
    /// A scored continuation: `{"prompt": ..., "continuation": ..., "score": {"Ok": ...}}`.
    Scored {
        /// What came before.
        prompt: Prompt,
        /// What was scored.
        continuation: Prompt,
        /// What came.
        score: Result<TokenLogProbs, RequestError>,
    },
}

/// A [`Generator`] that gives the answers of a transcript.
#[derive(Debug, Default)]
pub struct TranscriptGenerator {
    completions: HashMap<Digest, Result<Completion, RequestError>>,
    scores: HashMap<Digest, Result<TokenLogProbs, RequestError>>,
}

impl TranscriptGenerator {
    /// Reads a transcript: JSON lines of [`Entry`].
    ///
    /// # Errors
    /// [`TranscriptError`], with the row; also when two rows answer the same request differently.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TranscriptError> {
        let path = path.as_ref();
        let text = files::read_to_string(path)?;
        let mut transcript = Self::default();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let wrong = |cause: String| TranscriptError::Row { path: path.to_owned(), row: index + 1, cause };
            let entry = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            if !transcript.add(entry) {
                return Err(wrong("an earlier row answers the same request differently".into()));
            }
        }
        Ok(transcript)
    }

    /// Takes an entry; `false` when the same request was answered differently before.
    pub fn add(&mut self, entry: Entry) -> bool {
        match entry {
            Entry::Generated { request, completion } => {
                *self.completions.entry(key(&request)).or_insert_with(|| completion.clone()) == completion
            }
            Entry::Scored { prompt, continuation, score } => {
                *self.scores.entry(key(&(prompt, continuation))).or_insert_with(|| score.clone()) == score
            }
        }
    }
}

/// Tells requests apart by their content.
fn key(request: &impl Serialize) -> Digest {
    hash_json(&serde_json::to_value(request).unwrap_or_default())
}

fn missing(request: &impl Serialize) -> TranscriptError {
    let text = serde_json::to_string(request).unwrap_or_default();
    TranscriptError::Missing { what: text.chars().take(200).collect() }
}

impl Generator for TranscriptGenerator {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, request) in requests.iter().enumerate() {
            if cancel.is_cancelled() {
                break;
            }
            sink(index, self.completions.get(&key(request)).cloned().ok_or_else(|| missing(request))?);
        }
        Ok(())
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        for (index, pair) in pairs.iter().enumerate() {
            if cancel.is_cancelled() {
                break;
            }
            sink(index, self.scores.get(&key(pair)).cloned().ok_or_else(|| missing(pair))?);
        }
        Ok(())
    }
}

/// A [`Generator`] that hands on to another one and keeps what it says for a transcript.
#[derive(Debug)]
pub struct Recorder<G> {
    inner: G,
    entries: Mutex<Vec<Entry>>,
}

impl<G: Generator> Recorder<G> {
    /// Begins a record.
    pub fn new(inner: G) -> Self {
        Self { inner, entries: Mutex::default() }
    }

    /// Writes what was said so far, in the order in which it was said.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TranscriptError> {
        let mut text = String::new();
        for entry in self.entries.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let row = serde_json::to_string(entry).map_err(|error| TranscriptError::Row {
                path: path.as_ref().to_owned(),
                row: text.lines().count() + 1,
                cause: error.to_string(),
            })?;
            text.push_str(&row);
            text.push('\n');
        }
        Ok(files::write_atomic(path, text.as_bytes())?)
    }

    fn keep(&self, entry: Entry) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

impl<G: Generator> Generator for Recorder<G> {
    fn generate(
        &self,
        requests: &[Request],
        sink: &mut dyn FnMut(usize, Result<Completion, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut keep = |index: usize, completion: Result<Completion, RequestError>| {
            self.keep(Entry::Generated { request: Box::new(requests[index].clone()), completion: completion.clone() });
            sink(index, completion);
        };
        self.inner.generate(requests, &mut keep, cancel)
    }

    fn score(
        &self,
        pairs: &[(Prompt, Prompt)],
        sink: &mut dyn FnMut(usize, Result<TokenLogProbs, RequestError>),
        cancel: &Cancel,
    ) -> Result<(), GenerateError> {
        let mut keep = |index: usize, score: Result<TokenLogProbs, RequestError>| {
            let (prompt, continuation) = pairs[index].clone();
            self.keep(Entry::Scored { prompt, continuation, score: score.clone() });
            sink(index, score);
        };
        self.inner.score(pairs, &mut keep, cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Lengths, pair, request};
    use didact_core::generate::Sampling;

    #[test]
    fn what_was_recorded_is_said_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("transcript.jsonl");
        let requests = [request("one"), request("x"), request("three")];
        let pairs = [pair("a", "bc"), pair("a", "x")];
        let cancel = Cancel::new();
        let recorder = Recorder::new(Lengths::default());
        let said = recorder.generate_all(&requests, &cancel).expect("generates");
        let mut scored = vec![None; 2];
        recorder.score(&pairs, &mut |i, score| scored[i] = Some(score), &cancel).expect("scores");
        recorder.save(&path).expect("it is written");

        let transcript = TranscriptGenerator::open(&path).expect("it reads");
        assert_eq!(transcript.generate_all(&requests, &cancel).expect("replays"), said);
        let mut again = vec![None; 2];
        transcript.score(&pairs, &mut |i, score| again[i] = Some(score), &cancel).expect("replays");
        assert_eq!(again, scored);
        let other = Request { sampling: Sampling { seed: 1, ..Sampling::default() }, ..request("one") };
        let error = transcript.generate_all(&[other], &cancel).expect_err("it was never asked");
        assert!(error.message.contains("no answer to") && error.message.contains("one"), "{error}");
    }

    #[test]
    fn a_row_that_is_no_record_or_contradicts_another_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("transcript.jsonl");
        let row = |text: &str| {
            let completion = Ok(Completion { answers: Vec::new(), prompt_tokens: text.len() });
            serde_json::to_string(&Entry::Generated { request: Box::new(request("one")), completion })
                .expect("it prints")
        };
        let write = |rows: &[String]| files::write_atomic(&path, rows.join("\n").as_bytes()).expect("it is written");
        write(&[row("a"), row("a")]);
        assert!(TranscriptGenerator::open(&path).is_ok(), "saying the same twice is fine");
        write(&[row("a"), String::new(), row("ab")]);
        let error = TranscriptGenerator::open(&path).expect_err("it contradicts itself").to_string();
        assert!(error.contains("row 3") && error.contains("differently"), "{error}");
        write(&[row("a"), "{\"request\": 1}".into()]);
        assert!(TranscriptGenerator::open(&path).expect_err("no record").to_string().contains("row 2"));
    }
}
