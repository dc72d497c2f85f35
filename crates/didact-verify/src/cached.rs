//! Verdicts that are not made twice.

use didact_core::cancel::Cancel;
use didact_core::files::AppendLog;
use didact_core::hash::{Digest, Hasher, hash_json};
use didact_core::verdict::{Item, Verdict, Verifier, VerifyError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// A verifier whose verdicts are kept by content: by its own fingerprint, the prompt, the reference and the answer. With
/// a file they outlive the process; each is durable when it is handed on, so that a killed run does none of them again.
///
/// What says more about the machine or the moment than about the answer is not kept: answers that were not judged, and
/// categories named at the beginning.
pub struct Cached<V> {
    inner: V,
    fingerprint: Digest,
    volatile: &'static [&'static str],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: BTreeMap<Digest, Verdict>,
    log: Option<AppendLog>,
    hits: u64,
}

impl<V: Verifier> Cached<V> {
    /// Keeps the verdicts of `inner`, in `file` where one is given. `fingerprint` says all that they depend on beside
    /// the item and the answer: settings, limits, versions of tools. `volatile` are the categories that are not kept.
    ///
    /// # Errors
    /// When the file cannot be read, or is no file of verdicts.
    pub fn new(
        inner: V,
        fingerprint: Digest,
        volatile: &'static [&'static str],
        file: Option<&Path>,
    ) -> Result<Self, VerifyError> {
        let mut state = State::default();
        if let Some(path) = file {
            let (log, recovered) = AppendLog::open(path).map_err(broken("the cache of verdicts cannot be opened"))?;
            for record in recovered.records {
                let (key, verdict) = parse(&record).ok_or_else(|| VerifyError {
                    message: format!("`{}` is no file of verdicts; remove it or name another", path.display()),
                    source: None,
                })?;
                state.known.insert(key, verdict);
            }
            state.log = Some(log);
        }
        Ok(Self { inner, fingerprint, volatile, state: Mutex::new(state) })
    }

    /// How many verdicts were known already.
    pub fn hits(&self) -> u64 {
        self.lock().hits
    }

    /// The verifier itself.
    pub fn inner(&self) -> &V {
        &self.inner
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The state is whole between any two of its statements.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn key(&self, item: &Item, answer: &str) -> Digest {
        let mut hasher = Hasher::new();
        hasher.field("verifier", self.fingerprint.to_string().as_bytes());
        hasher.field("prompt", item.prompt.as_bytes());
        hasher.field("reference", hash_json(&item.reference).to_string().as_bytes());
        hasher.field("answer", answer.as_bytes());
        hasher.finish()
    }
}

fn broken<E: std::error::Error + Send + Sync + 'static>(message: &'static str) -> impl FnOnce(E) -> VerifyError {
    move |error| VerifyError { message: message.to_owned(), source: Some(Box::new(error)) }
}

fn parse(record: &Map<String, Value>) -> Option<(Digest, Verdict)> {
    let key = record.get("key")?.as_str()?.parse().ok()?;
    Some((key, serde_json::from_value(record.get("verdict")?.clone()).ok()?))
}

impl<V: Verifier> Verifier for Cached<V> {
    fn verify(
        &self,
        items: &[(&Item, &str)],
        sink: &mut dyn FnMut(usize, Verdict),
        cancel: &Cancel,
    ) -> Result<(), VerifyError> {
        // Every content once: the first place it stands in, and the others.
        let mut open: BTreeMap<Digest, Vec<usize>> = BTreeMap::new();
        let mut first = Vec::new();
        for (index, (item, answer)) in items.iter().enumerate() {
            let key = self.key(item, answer);
            let known = self.lock().known.get(&key).cloned();
            if let Some(verdict) = known {
                self.lock().hits += 1;
                sink(index, verdict);
                continue;
            }
            let places = open.entry(key).or_default();
            if places.is_empty() {
                first.push((key, index));
            }
            places.push(index);
        }
        let asked: Vec<(&Item, &str)> = first.iter().map(|(_, index)| items[*index]).collect();
        let mut failure = None;
        self.inner.verify(
            &asked,
            &mut |asked_index, verdict| {
                let key = first[asked_index].0;
                if let Err(error) = self.keep(key, &verdict) {
                    failure.get_or_insert(error);
                }
                let places = open.get(&key).map_or(&[][..], Vec::as_slice);
                self.lock().hits += places.len().saturating_sub(1) as u64;
                for index in places {
                    sink(*index, verdict.clone());
                }
            },
            cancel,
        )?;
        failure.map_or(Ok(()), Err)
    }
}

impl<V: Verifier> Cached<V> {
    fn keep(&self, key: Digest, verdict: &Verdict) -> Result<(), VerifyError> {
        if verdict.score.is_none() || self.volatile.contains(&verdict.category.as_str()) {
            return Ok(());
        }
        let mut state = self.lock();
        if let Some(log) = &mut state.log
            && let Value::Object(record) = json!({"key": key, "verdict": verdict})
        {
            log.append(&record).and_then(|()| log.sync()).map_err(broken("a verdict cannot be kept"))?;
        }
        state.known.insert(key, verdict.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use didact_core::hash::hash_bytes;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what it is asked.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Verifier for Counting {
        fn verify(
            &self,
            items: &[(&Item, &str)],
            sink: &mut dyn FnMut(usize, Verdict),
            _: &Cancel,
        ) -> Result<(), VerifyError> {
            for (index, (_, answer)) in items.iter().enumerate() {
                self.0.fetch_add(1, Ordering::Relaxed);
                let score = (*answer != "?").then_some(answer.len() as f64 / 10.0);
                let category = if *answer == "slow" { "timeout" } else { "length" };
                sink(index, Verdict { score, category: category.into(), reason: String::new() });
            }
            Ok(())
        }
    }

    fn ask(cached: &Cached<Counting>, answers: &[&str]) -> Vec<Option<f64>> {
        let item = Item { id: "1".into(), prompt: "p".into(), reference: json!(1) };
        let pairs: Vec<(&Item, &str)> = answers.iter().map(|answer| (&item, *answer)).collect();
        let mut found = vec![None; answers.len()];
        cached.verify(&pairs, &mut |i, v| found[i] = Some(v), &Cancel::new()).expect("works");
        found.into_iter().map(|v| v.expect("each is answered").score).collect()
    }

    #[test]
    fn the_same_content_is_judged_once_also_by_the_next_process() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("verdicts.jsonl");
        let open = |fingerprint: &[u8]| {
            Cached::new(Counting::default(), hash_bytes(fingerprint), &["timeout"], Some(&path)).expect("opens")
        };
        let cached = open(b"a");
        assert_eq!(ask(&cached, &["x", "yy", "x"]), [Some(0.1), Some(0.2), Some(0.1)]);
        assert_eq!(ask(&cached, &["x", "zzz"]), [Some(0.1), Some(0.3)]);
        assert_eq!((cached.inner().0.load(Ordering::Relaxed), cached.hits()), (3, 2));
        drop(cached);
        let cached = open(b"a");
        ask(&cached, &["x", "yy", "zzz"]);
        assert_eq!(cached.inner().0.load(Ordering::Relaxed), 0);
        drop(cached);
        // Other settings, other verdicts.
        let cached = open(b"b");
        ask(&cached, &["x"]);
        assert_eq!(cached.inner().0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_was_not_judged_or_may_change_is_asked_again() {
        let cached = Cached::new(Counting::default(), hash_bytes(b""), &["timeout"], None).expect("opens");
        ask(&cached, &["?", "slow"]);
        ask(&cached, &["?", "slow"]);
        assert_eq!(cached.inner().0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log.jsonl");
        let (mut log, _) = AppendLog::open(&path).expect("opens");
        log.append(&Map::new()).expect("appends");
        let error = Cached::new(Counting::default(), hash_bytes(b""), &[], Some(&path)).err().expect("refused");
        assert!(error.message.contains("no file of verdicts"), "{error}");
    }
}
