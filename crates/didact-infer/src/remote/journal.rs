//! Answers that were paid for, on disk before anybody sees them.

use super::error::RemoteError;
use didact_core::files::{self, AppendLog};
use didact_core::hash::Digest;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;

const KEY: &str = "request";
const RESPONSE: &str = "response";

/// Responses by the digest of what was asked.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Without one nothing is kept.
    log: Option<AppendLog>,
    known: HashMap<String, Value>,
}

impl Journal {
    /// Opens a journal or begins one; a record that was being written when the process died is dropped.
    ///
    /// A file in which nothing is a record is somebody's data: it is refused rather than cut as if it were torn.
    pub(super) fn open(path: &Path) -> Result<Self, RemoteError> {
        let not_ours = |record, cause| RemoteError::NotAJournal { path: path.display().to_string(), record, cause };
        if path.exists() && AppendLog::read(path)?.records.is_empty() && files::read(path)?.contains(&b'\n') {
            return Err(not_ours(1, "it has no intact record of a journal"));
        }
        let (log, recovered) = AppendLog::open(path)?;
        let mut known = HashMap::new();
        for (index, mut record) in recovered.records.into_iter().enumerate() {
            match (record.remove(KEY), record.remove(RESPONSE)) {
                (Some(Value::String(key)), Some(response)) => {
                    known.insert(key, response);
                }
                _ => return Err(not_ours(index + 1, "it is no answer of an endpoint")),
            }
        }
        Ok(Self { log: Some(log), known })
    }

    /// The response to what was asked before.
    pub(super) fn get(&self, key: Digest) -> Option<&Value> {
        self.known.get(&key.to_string())
    }

    /// Keeps a response; it is durable when this returns.
    pub(super) fn keep(&mut self, key: Digest, response: &Value) -> Result<(), RemoteError> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let record = Map::from_iter([(KEY.into(), key.to_string().into()), (RESPONSE.into(), response.clone())]);
        log.append(&record)?;
        log.sync()?;
        self.known.insert(key.to_string(), response.clone());
        Ok(())
    }
}
