//! Reading data sets: files, folders and globs of JSONL (plain, gzip, Zstandard), JSON arrays, Parquet and plain text, as a
//! stream of [`SourcedExample`]s whose memory does not grow with the data.
//!
//! Rows are read in a fixed order: the paths as given, those of a folder or glob sorted. A row that cannot be used is a
//! [`RowError`] naming file, row, key and cause; what happens then is [`OnBadRow`]'s to say.

use std::collections::VecDeque;

use didact_core::example::{Example, SourcedExample};
use didact_core::progress::Table;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::schema::{self, Detection, FieldNames, Schema};

mod array;
mod error;
mod file;
mod lines;
mod table;
mod text;

pub use error::{ReadError, RowCause, RowError};
pub use file::{DataFile, Format, resolve};

use file::{OpenFile, RawValue};

/// Bad rows that are kept for the report; more are only counted.
const LISTED_BAD_ROWS: usize = 100;

/// What to do with a row that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// The first one is an error.
    #[default]
    Stop,
    /// They are left out, counted and listed.
    Skip,
}

/// What one document of a plain-text file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextUnit {
    /// The whole file.
    #[default]
    File,
    /// What stands between blank lines.
    Paragraph,
    /// Each line that is not blank.
    Line,
}

/// One of a recipe's data sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Files, folders and globs; one string or a list.
    #[serde(deserialize_with = "one_or_many")]
    pub path: Vec<String>,
    /// What to call the source; each file's own name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How rows are laid out; recognised from each file's first row when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// How files are written; told from names and first bytes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Keys that have other names than usual.
    #[serde(default)]
    pub fields: FieldNames,
    /// What one document of a text file is.
    #[serde(default)]
    pub text_unit: TextUnit,
    /// What to do with rows that cannot be used.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
    /// Most bytes of one row, after decompression.
    #[serde(default = "default_max_row_bytes")]
    pub max_row_bytes: usize,
}

/// 64 MiB: longer than any document people mean to be one, short enough to be held a few times over.
fn default_max_row_bytes() -> usize {
    64 << 20
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a path or a list of paths")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    })
}

impl SourceConfig {
    /// A source with everything recognised and nothing out of the ordinary.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: vec![path.into()],
            name: None,
            schema: None,
            format: None,
            fields: FieldNames::default(),
            text_unit: TextUnit::default(),
            on_bad_row: OnBadRow::default(),
            max_row_bytes: default_max_row_bytes(),
        }
    }
}

/// A bad row as reports list it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub path: String,
    /// The row, from 1 (for JSONL the line); 0 when the file as a whole is meant.
    pub row: u64,
    /// Path of the key within the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The cause.
    pub message: String,
}

impl From<&RowError> for Problem {
    fn from(error: &RowError) -> Self {
        Self { path: error.path.clone(), row: error.row, key: error.key.clone(), message: error.cause.to_string() }
    }
}

/// Rows that were left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BadRows {
    /// How many.
    pub count: u64,
    /// The first hundred.
    pub listed: Vec<Problem>,
}

impl BadRows {
    fn add(&mut self, error: &RowError) {
        self.count += 1;
        if self.listed.len() < LISTED_BAD_ROWS {
            self.listed.push(error.into());
        }
    }

    /// Adds those of another source.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        let room = LISTED_BAD_ROWS - self.listed.len().min(LISTED_BAD_ROWS);
        self.listed.extend(other.listed.iter().take(room).cloned());
    }

    /// As a table for people.
    pub fn table(&self) -> Table {
        let more = self.count - self.listed.len() as u64;
        let title = if more == 0 {
            format!("rows left out: {}", self.count)
        } else {
            format!("rows left out: {} ({more} not listed)", self.count)
        };
        let columns = ["file", "row", "key", "why"].map(str::to_owned).to_vec();
        let rows = self.listed.iter().map(|problem| {
            vec![
                problem.path.clone(),
                problem.row.to_string(),
                problem.key.clone().unwrap_or_default(),
                problem.message.clone(),
            ]
        });
        Table { title, columns, rows: rows.collect() }
    }
}

/// Opens a source. Paths are looked up here, files opened as their turn comes.
///
/// # Errors
/// When a path leads to nothing, or to nothing that can be read.
pub fn open(config: &SourceConfig) -> Result<RowStream, ReadError> {
    let policy = match config.on_bad_row {
        OnBadRow::Stop => Policy::Stop,
        OnBadRow::Skip => Policy::Skip,
    };
    RowStream::open(config, policy)
}

/// Opens a source such that every bad row is an item of the stream and reading goes on behind it.
///
/// # Errors
/// As [`open`].
pub fn open_reporting(config: &SourceConfig) -> Result<RowStream, ReadError> {
    RowStream::open(config, Policy::Report)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Stop,
    Skip,
    Report,
}

/// The examples of a source, in order. Ends after the first `Err` unless opened with [`open_reporting`].
#[derive(Debug)]
pub struct RowStream {
    config: SourceConfig,
    policy: Policy,
    files: VecDeque<DataFile>,
    file_count: usize,
    current: Option<Current>,
    detections: Vec<Detection>,
    bad_rows: BadRows,
    rows: u64,
    is_finished: bool,
    keep: Keep,
    kept: Map<String, Value>,
}

/// What of a row is handed on beside the example.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    /// Nothing.
    #[default]
    Nothing,
    /// These keys, where the row has them.
    Fields(Vec<String>),
    /// The row as it was.
    Everything,
}

#[derive(Debug)]
struct Current {
    file: OpenFile,
    path: String,
    source: String,
    schema: Option<Schema>,
    saw_rows: bool,
}

impl RowStream {
    fn open(config: &SourceConfig, policy: Policy) -> Result<Self, ReadError> {
        let files = resolve(config)?;
        Ok(Self {
            config: config.clone(),
            policy,
            file_count: files.len(),
            files: files.into(),
            current: None,
            detections: Vec::new(),
            bad_rows: BadRows::default(),
            rows: 0,
            is_finished: false,
            keep: Keep::Nothing,
            kept: Map::new(),
        })
    }

    /// From now on keeps fields of each row for [`RowStream::kept`].
    #[must_use]
    pub fn keeping(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }

    /// What was to be kept of the row last returned. A document of plain text is a row with `text`.
    pub fn kept(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.kept)
    }

    /// Passes over the first rows without understanding them, until `rows` (good and bad) were seen in all: to go on
    /// where an earlier reading of the same files stopped. Bad rows among them are not counted again.
    pub fn skip_to(&mut self, rows: u64) {
        let bad_rows = std::mem::take(&mut self.bad_rows);
        while self.rows < rows {
            match &mut self.current {
                Some(current) if current.schema.is_some() => {
                    if current.file.skip_row() {
                        self.rows += 1;
                    } else {
                        self.current = None;
                    }
                }
                // The first rows of a file decide how the others are read.
                _ => match self.advance() {
                    None => break,
                    Some(Err(error)) if !error.cause.is_about_a_row() => self.current = None,
                    Some(_) => {}
                },
            }
        }
        self.bad_rows = bad_rows;
    }

    /// The schemas found so far and what they were recognised from.
    pub fn detections(&self) -> &[Detection] {
        &self.detections
    }

    /// The rows left out so far.
    pub fn bad_rows(&self) -> &BadRows {
        &self.bad_rows
    }

    /// Rows seen so far, good and bad.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Files in all.
    pub fn files(&self) -> usize {
        self.file_count
    }

    /// The next row, good or bad, whatever the policy.
    fn advance(&mut self) -> Option<Result<SourcedExample, RowError>> {
        loop {
            let Some(current) = &mut self.current else {
                let file = self.files.pop_front()?;
                match OpenFile::open(&file, &self.config) {
                    Ok(opened) => {
                        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                        self.current = Some(Current {
                            file: opened,
                            path: file.path.to_string_lossy().into_owned(),
                            source: self.config.name.clone().unwrap_or(name),
                            schema: self.config.schema,
                            saw_rows: false,
                        });
                    }
                    Err(cause) => return Some(Err(RowError::of_file(&file.path, cause))),
                }
                continue;
            };
            let Some((row, item)) = current.file.next_row() else {
                let was_empty = !current.saw_rows;
                let path = std::mem::take(&mut current.path);
                self.current = None;
                if was_empty {
                    return Some(Err(RowError { path, row: 0, key: None, cause: RowCause::NoRows }));
                }
                continue;
            };
            current.saw_rows = true;
            self.rows += 1;
            let error = |key, cause| RowError { path: current.path.clone(), row, key, cause };
            let value = match item {
                Ok(value) => value,
                Err(cause) => return Some(Err(error(None, cause))),
            };
            let example = match value {
                RawValue::Text(text) => {
                    if !current.file.is_noted() {
                        note(
                            &mut self.detections,
                            Schema::Text,
                            self.config.schema,
                            &current.path,
                            Vec::new(),
                            Vec::new(),
                        );
                        current.file.set_noted();
                    }
                    self.kept = match self.keep {
                        Keep::Everything => Map::from_iter([("text".to_owned(), Value::String(text.clone()))]),
                        _ => Map::new(),
                    };
                    Example::Text { text }
                }
                RawValue::Object(mut object) => {
                    let names = &self.config.fields;
                    let schema = match current.schema {
                        Some(schema) => schema,
                        None => match schema::detect(&object, names) {
                            Ok(schema) => schema,
                            Err(cause) => return Some(Err(error(None, cause))),
                        },
                    };
                    let example = match schema::convert(schema, &object, names) {
                        Ok(example) => example,
                        Err(misfit) => return Some(Err(error(misfit.key, misfit.cause))),
                    };
                    if !current.file.is_noted() {
                        let (keys, ignored) = schema::describe(schema, &object, names);
                        note(&mut self.detections, schema, self.config.schema, &current.path, keys, ignored);
                        current.file.set_noted();
                        current.schema = Some(schema);
                    }
                    match &self.keep {
                        Keep::Nothing => {}
                        Keep::Fields(names) => {
                            let found = names.iter().filter_map(|name| object.remove_entry(name));
                            self.kept = found.collect();
                        }
                        Keep::Everything => self.kept = object,
                    }
                    example
                }
            };
            return Some(Ok(SourcedExample {
                example,
                source: current.source.clone(),
                path: current.path.clone(),
                row,
            }));
        }
    }
}

/// A row as it stands in a file, whatever its keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RawRow {
    /// The file.
    pub path: String,
    /// The row, from 1 (for JSONL the line).
    pub row: u64,
    /// What it holds. A document of plain text is a row with `text`.
    pub object: Map<String, Value>,
}

/// The rows of a source as they are; ends after the first error. See [`raw_rows`].
#[derive(Debug)]
pub struct RawRows {
    config: SourceConfig,
    files: VecDeque<DataFile>,
    current: Option<(DataFile, OpenFile)>,
    is_finished: bool,
}

/// Opens a source whose rows fit no schema, or are not asked for one.
///
/// # Errors
/// When a path leads to nothing, or to nothing that can be read.
pub fn raw_rows(config: &SourceConfig) -> Result<RawRows, ReadError> {
    Ok(RawRows { files: resolve(config)?.into(), config: config.clone(), current: None, is_finished: false })
}

impl RawRows {
    fn advance(&mut self) -> Option<Result<RawRow, RowError>> {
        loop {
            let Some((file, opened)) = &mut self.current else {
                let file = self.files.pop_front()?;
                match OpenFile::open(&file, &self.config) {
                    Ok(opened) => self.current = Some((file, opened)),
                    Err(cause) => return Some(Err(RowError::of_file(&file.path, cause))),
                }
                continue;
            };
            let Some((row, value)) = opened.next_row() else {
                self.current = None;
                continue;
            };
            let path = file.path.to_string_lossy().into_owned();
            return Some(match value {
                Ok(RawValue::Object(object)) => Ok(RawRow { path, row, object }),
                Ok(RawValue::Text(text)) => {
                    Ok(RawRow { path, row, object: Map::from_iter([("text".to_owned(), Value::String(text))]) })
                }
                Err(cause) => Err(RowError { path, row, key: None, cause }),
            });
        }
    }
}

impl Iterator for RawRows {
    type Item = Result<RawRow, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_finished {
            return None;
        }
        let row = self.advance();
        self.is_finished = !matches!(row, Some(Ok(_)));
        row
    }
}

/// Remembers what a file looks like, once per look.
fn note(
    detections: &mut Vec<Detection>,
    schema: Schema,
    named: Option<Schema>,
    path: &str,
    keys: Vec<String>,
    ignored: Vec<String>,
) {
    match detections.iter_mut().find(|d| d.schema == schema && d.keys == keys && d.ignored == ignored) {
        Some(known) => known.files += 1,
        None => detections.push(Detection {
            schema,
            is_named: named.is_some(),
            keys,
            ignored,
            path: path.to_owned(),
            files: 1,
        }),
    }
}

impl Iterator for RowStream {
    type Item = Result<SourcedExample, RowError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_finished {
            match self.advance() {
                None => self.is_finished = true,
                Some(Ok(example)) => return Some(Ok(example)),
                Some(Err(error)) => {
                    let can_go_on = error.cause.is_about_a_row();
                    if !can_go_on {
                        self.current = None;
                    }
                    match self.policy {
                        Policy::Skip if can_go_on => self.bad_rows.add(&error),
                        Policy::Report => return Some(Err(error)),
                        Policy::Stop | Policy::Skip => {
                            self.is_finished = true;
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
