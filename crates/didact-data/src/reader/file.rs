//! From paths to files, and from a file to its raw rows.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use didact_core::files::{FileError, list_dir};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::array::ArrayItems;
use super::lines::Lines;
use super::table::Table;
use super::text::Documents;
use super::{ReadError, RowCause, SourceConfig};
use crate::schema::Schema;

/// How a file is written, apart from its compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object per line, or one JSON array of objects.
    Jsonl,
    /// Parquet.
    Parquet,
    /// Plain text.
    Text,
}

impl Format {
    pub(super) fn extensions() -> &'static str {
        ".jsonl, .ndjson, .json, .txt, .md (each also with .gz or .zst behind it) and .parquet"
    }

    /// From a file name such as `a.jsonl.gz`.
    fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let inner = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst"));
        match inner.unwrap_or(&name).rsplit_once('.')?.1 {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "txt" | "md" | "text" => Some(Self::Text),
            "parquet" if inner.is_none() => Some(Self::Parquet),
            _ => None,
        }
    }

    /// From a file's first bytes.
    fn of_bytes(path: &Path) -> Result<Option<Self>, FileError> {
        let mut reader = decompressed(path).map_err(|_| FileError {
            action: "read",
            path: path.to_owned(),
            source: std::io::ErrorKind::InvalidData.into(),
        })?;
        let head = reader.fill_buf().map_err(FileError::at("read", path))?;
        Ok(if head.starts_with(b"PAR1") {
            Some(Self::Parquet)
        } else {
            let first =
                head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).iter().find(|byte| !byte.is_ascii_whitespace());
            matches!(first, Some(b'{' | b'[')).then_some(Self::Jsonl)
        })
    }
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it is written.
    pub format: Format,
}

/// The files of a source, in the order in which they are read: paths as given, those of a folder or glob sorted. A file
/// that several paths lead to is read once.
///
/// # Errors
/// When a path leads to nothing, or to nothing that can be read.
pub fn resolve(config: &SourceConfig) -> Result<Vec<DataFile>, ReadError> {
    if config.path.is_empty() {
        return Err(ReadError::NoPath);
    }
    let mut files: Vec<DataFile> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for given in &config.path {
        for path in expand(given, config)? {
            if seen.insert(path.clone()) {
                let format = match config.format.or_else(|| Format::of_name(&path)) {
                    Some(format) => format,
                    None => Format::of_bytes(&path)?.ok_or_else(|| ReadError::UnknownFormat { path: path.clone() })?,
                };
                if let (Format::Text, Some(schema)) = (format, config.schema)
                    && schema != Schema::Text
                {
                    let keys = schema.required(&config.fields).into_iter().map(str::to_owned).collect();
                    return Err(ReadError::TextHasNoKeys { path, schema, keys });
                }
                files.push(DataFile { path, format });
            }
        }
    }
    Ok(files)
}

fn expand(given: &str, config: &SourceConfig) -> Result<Vec<PathBuf>, ReadError> {
    let path = Path::new(given);
    // A name with brackets in it is first of all a name.
    if path.exists() {
        return if path.is_dir() { folder(path, config) } else { Ok(vec![path.to_owned()]) };
    }
    if !given.contains(['*', '?', '[']) {
        return Err(ReadError::Missing { path: path.to_owned() });
    }
    // As a shell does: `*` leaves hidden files alone.
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let matches = glob::glob_with(given, options).map_err(|error| ReadError::Pattern {
        pattern: given.to_owned(),
        position: error.pos,
        cause: error.msg,
    })?;
    let mut found = Vec::new();
    for entry in matches {
        let path =
            entry.map_err(|error| FileError { action: "list", path: error.path().to_owned(), source: error.into() })?;
        if path.is_dir() {
            walk(&path, config, &mut found)?;
        } else {
            found.push(path);
        }
    }
    found.sort();
    if found.is_empty() { Err(ReadError::NoMatch { pattern: given.to_owned() }) } else { Ok(found) }
}

fn folder(path: &Path, config: &SourceConfig) -> Result<Vec<PathBuf>, ReadError> {
    let mut found = Vec::new();
    walk(path, config, &mut found)?;
    found.sort();
    if found.is_empty() { Err(ReadError::EmptyFolder { path: path.to_owned() }) } else { Ok(found) }
}

/// Data files below a folder. Hidden names are passed over; links to folders are not followed, since they can form rings.
fn walk(folder: &Path, config: &SourceConfig, found: &mut Vec<PathBuf>) -> Result<(), ReadError> {
    for path in list_dir(folder)? {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            if !path.is_symlink() {
                walk(&path, config, found)?;
            }
        } else if Format::of_name(&path).is_some_and(|format| config.format.is_none_or(|wanted| wanted == format)) {
            found.push(path);
        }
    }
    Ok(())
}

/// A file's bytes, decompressed when its first bytes say that it is compressed.
pub(super) fn decompressed(path: &Path) -> Result<Box<dyn BufRead + Send>, RowCause> {
    const BUFFER: usize = 1 << 16;
    let unreadable = |error: std::io::Error| RowCause::Unreadable(error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(RowCause::Unreadable("is a directory".to_owned()));
    }
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let head = reader.fill_buf().map_err(unreadable)?;
    let (is_gzip, is_zstd) = (head.starts_with(&[0x1f, 0x8b]), head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let has_extension = |wanted: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(wanted));
    if is_gzip {
        Ok(Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(reader))))
    } else if is_zstd {
        let decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(unreadable)?;
        Ok(Box::new(BufReader::with_capacity(BUFFER, decoder)))
    } else if head.is_empty() {
        Ok(Box::new(reader))
    } else if has_extension("gz") {
        Err(RowCause::Compression { expected: "a gzip file" })
    } else if has_extension("zst") {
        Err(RowCause::Compression { expected: "a Zstandard file" })
    } else {
        Ok(Box::new(reader))
    }
}

/// A row before its schema is known.
#[derive(Debug)]
pub(super) enum RawValue {
    Object(Map<String, Value>),
    Text(String),
}

impl RawValue {
    pub(super) fn of(value: Value) -> Result<Self, RowCause> {
        match value {
            Value::Object(object) => Ok(Self::Object(object)),
            other => Err(RowCause::NotAnObject { found: crate::schema::type_name(&other) }),
        }
    }
}

/// A file being read.
#[derive(Debug)]
pub(super) struct OpenFile {
    rows: Rows,
    is_noted: bool,
}

#[derive(Debug)]
enum Rows {
    Lines(Lines),
    Array(ArrayItems),
    Table(Box<Table>),
    Documents(Documents),
}

impl OpenFile {
    pub(super) fn open(file: &DataFile, config: &SourceConfig) -> Result<Self, RowCause> {
        let limit = config.max_row_bytes;
        let rows = match file.format {
            Format::Parquet => Rows::Table(Box::new(Table::open(&file.path, limit)?)),
            Format::Text => {
                Rows::Documents(Documents::new(Lines::new(decompressed(&file.path)?, limit)?, config.text_unit))
            }
            Format::Jsonl => {
                let mut lines = Lines::new(decompressed(&file.path)?, limit)?;
                if lines.begins_with(b'[')? { Rows::Array(ArrayItems::new(lines)) } else { Rows::Lines(lines) }
            }
        };
        Ok(Self { rows, is_noted: false })
    }

    /// The next row's number and what it holds.
    pub(super) fn next_row(&mut self) -> Option<(u64, Result<RawValue, RowCause>)> {
        match &mut self.rows {
            Rows::Lines(lines) => loop {
                match lines.next_line()? {
                    (_, Ok(line)) if line.trim_ascii().is_empty() => {}
                    (row, Ok(line)) => return Some((row, parse(line.as_bytes()))),
                    (row, Err(cause)) => return Some((row, Err(cause))),
                }
            },
            Rows::Array(items) => items.next_item(),
            Rows::Table(table) => table.next_row(),
            Rows::Documents(documents) => documents.next_document().map(|(row, text)| (row, text.map(RawValue::Text))),
        }
    }

    /// Passes over a row; `false` when there was none.
    pub(super) fn skip_row(&mut self) -> bool {
        match &mut self.rows {
            Rows::Lines(lines) => loop {
                match lines.next_line() {
                    Some((_, Ok(line))) if line.trim_ascii().is_empty() => {}
                    found => return found.is_some(),
                }
            },
            _ => self.next_row().is_some(),
        }
    }

    /// Whether this file's schema was reported.
    pub(super) fn is_noted(&self) -> bool {
        self.is_noted
    }

    pub(super) fn set_noted(&mut self) {
        self.is_noted = true;
    }
}

/// A JSON object from its text.
pub(super) fn parse(text: &[u8]) -> Result<RawValue, RowCause> {
    match serde_json::from_slice(text) {
        Ok(value) => RawValue::of(value),
        Err(error) => {
            let what = error.to_string();
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what).to_owned();
            Err(RowCause::Json { what, column: error.column() })
        }
    }
}
