//! What can be wrong with a path, a file or a row.

use std::path::{Path, PathBuf};

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;

use super::file::Format;
use crate::schema::{Schema, quoted};

/// Why a source cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The source names no path.
    #[error("the data source names no path")]
    NoPath,
    /// Nothing is at a path.
    #[error("`{}` does not exist", path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A glob that matches nothing.
    #[error("no file matches `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A glob that cannot be understood.
    #[error("`{pattern}` is not a valid pattern: {cause} at character {}", position + 1)]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Characters before the fault.
        position: usize,
        /// The cause.
        cause: &'static str,
    },
    /// A folder with nothing to read in it.
    #[error("folder `{}` holds no data file; read are {}", path.display(), Format::extensions())]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file whose name and first bytes do not say how it is written.
    #[error("cannot tell how `{}` is written from its name or its first bytes; read are {}", path.display(), Format::extensions())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A schema that needs keys, for files that have none.
    #[error("`{}` is plain text, which has no keys; schema `{schema}` needs {}", path.display(), quoted(keys))]
    TextHasNoKeys {
        /// The file.
        path: PathBuf,
        /// The schema named.
        schema: Schema,
        /// The keys it needs.
        keys: Vec<String>,
    },
    /// A file or folder cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Classify for ReadError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::UnknownFormat { .. } => Some("name the format (`jsonl`, `parquet` or `text`)".to_owned()),
            Self::Missing { .. } | Self::NoMatch { .. } => {
                Some("check the spelling and the current directory".to_owned())
            }
            _ => None,
        }
    }
}

/// A row, or a whole file, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub struct RowError {
    /// The file.
    pub path: String,
    /// The row, from 1 (for JSONL the line); 0 when the file as a whole is meant.
    pub row: u64,
    /// Path of the key within the row, such as `messages[2].role`.
    pub key: Option<String>,
    /// The cause.
    pub cause: RowCause,
}

impl RowError {
    pub(super) fn of_file(path: &Path, cause: RowCause) -> Self {
        Self { path: path.to_string_lossy().into_owned(), row: 0, key: None, cause }
    }
}

impl std::fmt::Display for RowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}`", self.path)?;
        if self.row > 0 {
            write!(f, " row {}", self.row)?;
        }
        f.write_str(": ")?;
        if let Some(key) = &self.key {
            write!(f, "`{key}` ")?;
        }
        write!(f, "{}", self.cause)
    }
}

impl Classify for RowError {
    fn fault(&self) -> Fault {
        Fault::Input
    }

    fn hint(&self) -> Option<String> {
        match &self.cause {
            RowCause::NoSchema { .. } => {
                Some("rename the keys, or name the schema and its keys in the recipe".to_owned())
            }
            RowCause::TooLong { .. } => {
                Some("split it, set `text_unit = \"paragraph\"` for plain text, or raise `max_row_bytes`".to_owned())
            }
            cause if cause.is_about_a_row() => Some(
                "mend the row, or set `data.on_bad_row = \"skip\"` to leave such rows out, counted and listed"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Why a row cannot be used. Written to follow the name of the row or of its key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowCause {
    /// The file holds nothing.
    #[error("holds no rows")]
    NoRows,
    /// The file cannot be read to its end.
    #[error("cannot be read on: {0}")]
    Unreadable(String),
    /// A file compressed otherwise than its name says.
    #[error("is named as {expected} but does not begin as one")]
    Compression {
        /// `a gzip file`, `a Zstandard file`.
        expected: &'static str,
    },
    /// UTF-16 text.
    #[error("is UTF-16 text; convert it to UTF-8")]
    Utf16,
    /// Bytes that are not UTF-8.
    #[error("is not valid UTF-8 at byte {offset} of the file")]
    Utf8 {
        /// Offset of the first wrong byte in the (decompressed) file, from 0.
        offset: u64,
    },
    /// More bytes than a row may have.
    #[error("is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// Not JSON.
    #[error("is not JSON: {what} at column {column}; each line holds one JSON object")]
    Json {
        /// What the parser says.
        what: String,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// A broken JSON array.
    #[error("breaks the JSON array at byte {offset} of the file: {what}")]
    Array {
        /// What is wrong.
        what: &'static str,
        /// Offset in the (decompressed) file, from 0.
        offset: u64,
    },
    /// JSON, but not an object.
    #[error("is {found}, expected an object")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// Keys of no schema.
    #[error(
        "has the keys {} and fits no schema; nearest is `{nearest}`, which also needs {}",
        quoted(keys),
        quoted(missing)
    )]
    NoSchema {
        /// The row's keys.
        keys: Vec<String>,
        /// The schema that lacks least.
        nearest: Schema,
        /// What it lacks.
        missing: Vec<String>,
    },
    /// A key is absent or null.
    #[error("is missing, which rows of schema `{schema}` need{}{}", found_instead(near.as_deref()), looks_like(*like))]
    Missing {
        /// The schema in force.
        schema: Schema,
        /// A key spelt alike that is there.
        near: Option<String>,
        /// The schema that the row does fit.
        like: Option<Schema>,
    },
    /// A value of the wrong type.
    #[error("is {found}, expected {expected}")]
    Type {
        /// What was expected, with its article.
        expected: &'static str,
        /// What was found, with its article.
        found: &'static str,
    },
    /// An unknown speaker.
    #[error("is `{found}`, expected one of {known}")]
    Role {
        /// The value.
        found: String,
        /// What is known.
        known: &'static str,
    },
    /// A conversation without turns.
    #[error("is an empty list; a conversation has at least one message")]
    EmptyConversation,
    /// A string that should hold JSON.
    #[error("should hold JSON: {0}")]
    InnerJson(String),
    /// Any other value that cannot be right.
    #[error("{0}")]
    Value(String),
}

fn found_instead(near: Option<&str>) -> String {
    near.map(|key| format!("; did you mean `{key}`?")).unwrap_or_default()
}

fn looks_like(like: Option<Schema>) -> String {
    like.map(|schema| format!("; this row looks like `{schema}`")).unwrap_or_default()
}

impl RowCause {
    /// Whether only this row is at fault, so that reading can go on behind it.
    pub fn is_about_a_row(&self) -> bool {
        !matches!(
            self,
            Self::NoRows | Self::Unreadable(_) | Self::Compression { .. } | Self::Utf16 | Self::Array { .. }
        )
    }
}
