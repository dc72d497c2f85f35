//! Logs that only grow: one JSON record per line, each with a checksum of its own.
//!
//! The log ends where the first damage begins. After a power cut that can be before the last record, since pages reach the
//! disk in any order; but never before a record that was synced.

use super::{FailingFile, FileError, fail};
use serde_json::{Map, Value};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

/// The field that holds a record's checksum: eight hexadecimal digits, CRC-32C of the line without it.
const CRC: &str = "crc";

/// An append log of JSON records. A line looks like `{"step":1,"loss":2.5,"crc":"0a1b2c3d"}`.
#[derive(Debug)]
pub struct AppendLog {
    file: FailingFile,
    path: PathBuf,
}

/// What opening a log found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recovered {
    /// The intact records, without their checksums.
    pub records: Vec<Map<String, Value>>,
    /// Bytes dropped from the end: a record that was being written when the process died.
    pub torn_bytes: u64,
}

impl AppendLog {
    /// Opens a log, creating it when it is not there; drops what is torn at its end.
    ///
    /// # Errors
    /// When the file cannot be read or cut.
    pub fn open(path: impl AsRef<Path>) -> Result<(Self, Recovered), FileError> {
        let path = path.as_ref().to_owned();
        let is_new = !path.exists();
        let recovered = if is_new { Recovered::default() } else { Self::read(&path)? };
        let file = FailingFile::append(&path).map_err(FileError::at("open", &path))?;
        if is_new {
            super::sync_parent(&path)?;
        }
        if recovered.torn_bytes > 0 {
            tracing::info!(path = %path.display(), bytes = recovered.torn_bytes, "dropped a torn end");
            let length = file.0.metadata().map_err(FileError::at("read", &path))?.len();
            file.0.set_len(length - recovered.torn_bytes).map_err(FileError::at("cut", &path))?;
            file.sync().map_err(FileError::at("sync", &path))?;
        }
        Ok((Self { file, path }, recovered))
    }

    /// Reads a log without opening it for writing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Recovered, FileError> {
        let path = path.as_ref();
        let file = std::fs::File::open(path).map_err(FileError::at("read", path))?;
        let length = file.metadata().map_err(FileError::at("read", path))?.len();
        let mut reader = io::BufReader::new(file);
        let (mut records, mut intact, mut line) = (Vec::new(), 0_u64, Vec::new());
        loop {
            line.clear();
            let n = reader.read_until(b'\n', &mut line).map_err(FileError::at("read", path))?;
            if n == 0 {
                break;
            }
            // Records after a damaged one cannot be trusted to follow from it: the log ends where the damage begins.
            let Some(record) = parse(&line) else { break };
            records.push(record);
            intact += n as u64;
        }
        Ok(Recovered { records, torn_bytes: length - intact })
    }

    /// Appends one record. It is durable only after [`AppendLog::sync`].
    ///
    /// # Errors
    /// When the write fails. What was partly written is dropped when the log is next opened.
    pub fn append(&mut self, record: &Map<String, Value>) -> Result<(), FileError> {
        let line = sealed(record);
        fail::point("append")
            .and_then(|()| self.file.write_all(line.as_bytes()))
            .map_err(FileError::at("append to", &self.path))
    }

    /// Makes all records so far durable.
    ///
    /// # Errors
    /// When the sync fails.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file.sync().map_err(FileError::at("sync", &self.path))
    }

    /// Rewrites the log without the records for which `is_cut` says so, atomically; returns how many they were.
    ///
    /// # Errors
    /// When any step fails; the log is then as it was.
    pub fn remove_where(
        path: impl AsRef<Path>,
        mut is_cut: impl FnMut(&Map<String, Value>) -> bool,
    ) -> Result<usize, FileError> {
        let path = path.as_ref();
        if !path.exists() {
            return Ok(0);
        }
        let recovered = Self::read(path)?;
        let before = recovered.records.len();
        let kept: Vec<_> = recovered.records.into_iter().filter(|record| !is_cut(record)).collect();
        if kept.len() == before && recovered.torn_bytes == 0 {
            return Ok(0);
        }
        let cut = before - kept.len();
        let mut file = super::AtomicFile::create(path)?;
        for record in kept {
            let line = sealed(&record);
            file.write_all(line.as_bytes()).map_err(FileError::at("write", path))?;
        }
        file.commit()?;
        Ok(cut)
    }
}

fn sealed(record: &Map<String, Value>) -> String {
    let mut line = Value::Object(record.clone()).to_string();
    let crc = crc32c::crc32c(line.as_bytes());
    line.pop();
    if !record.is_empty() {
        line.push(',');
    }
    line + &format!("\"{CRC}\":\"{crc:08x}\"}}\n")
}

fn parse(line: &[u8]) -> Option<Map<String, Value>> {
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let mut record: Map<String, Value> = serde_json::from_str(text).ok()?;
    let stated = record.shift_remove(CRC)?;
    let actual = format!("{:08x}", crc32c::crc32c(Value::Object(record.clone()).to_string().as_bytes()));
    (stated.as_str() == Some(&actual)).then_some(record)
}
