//! The stages that recipes are made of. Each file is one kind of stage: its settings, its inputs, what it writes.

pub mod diversity;
pub mod evaluate;
pub mod export;
pub mod graph;
pub mod prepare;
pub mod rows;
mod snippets;
pub mod sources;
pub mod tasks;
pub mod toolworld;
pub mod train;

use crate::error::MethodError;
use didact_core::files;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Writes JSON for people and programs.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), MethodError> {
    let mut text = serde_json::to_vec_pretty(value).expect("artifacts are plain data");
    text.push(b'\n');
    Ok(files::write_atomic(path, &text)?)
}

/// Writes one JSON document per line.
pub(crate) fn write_jsonl(path: &Path, rows: impl IntoIterator<Item = impl Serialize>) -> Result<(), MethodError> {
    let mut text = Vec::new();
    for row in rows {
        serde_json::to_writer(&mut text, &row).expect("artifacts are plain data");
        text.push(b'\n');
    }
    Ok(files::write_atomic(path, &text)?)
}

/// Reads what an earlier stage wrote.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, MethodError> {
    serde_json::from_slice(&files::read(path)?)
        .map_err(|error| MethodError::Artifact { path: path.to_owned(), reason: error.to_string() })
}

/// Reads what an earlier stage wrote, line by line.
pub(crate) fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, MethodError> {
    let text = files::read_to_string(path)?;
    let damaged = |(line, error): (usize, serde_json::Error)| MethodError::Artifact {
        path: path.to_owned(),
        reason: format!("line {}: {error}", line + 1),
    };
    let parse = |(i, line)| serde_json::from_str(line).map_err(|e| damaged((i, e)));
    text.lines().enumerate().map(parse).collect()
}
