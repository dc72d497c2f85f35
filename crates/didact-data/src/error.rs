//! What can go wrong between a file and a batch.

use std::path::PathBuf;

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::gguf::GgufError;

use crate::reader::{ReadError, RowError};
use crate::store::StoreError;

/// Why data cannot be read, tokenised, rendered or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A data source cannot be opened.
    #[error(transparent)]
    Source(#[from] ReadError),
    /// A row of a data source cannot be used.
    #[error(transparent)]
    BadRow(#[from] RowError),
    /// A store of sequences cannot be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing in the place named holds a tokenizer.
    #[error("`{}` holds no tokenizer: {found}; expected a directory with `tokenizer.json` or a `.gguf` file", path.display())]
    NoTokenizer {
        /// What was named.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A tokenizer file is there but makes no sense.
    #[error("`{}`: the tokenizer cannot be read: {cause}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// A way of cutting text into words that is not known, by the name the file gives it.
    #[error("`{}`: {kind} `{name}` is not supported; supported: {supported}", path.display())]
    UnsupportedTokenizer {
        /// The file.
        path: PathBuf,
        /// Which part of the tokenizer.
        kind: &'static str,
        /// The name found.
        name: String,
        /// The names that would do.
        supported: String,
    },
    /// A text that the tokenizer refuses.
    #[error("the tokenizer cannot {action}: {cause}")]
    Tokenize {
        /// `encode` or `decode`.
        action: &'static str,
        /// The tokenizer's own words.
        cause: String,
    },
    /// A tokenizer cannot be trained from what was given.
    #[error("cannot train a tokenizer: {cause}")]
    TokenizerTraining {
        /// What is wrong.
        cause: String,
    },
    /// A JSON file whose contents are not what they should be.
    #[error("`{}`: {what}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line or key.
        what: String,
    },
    /// A chat is to be rendered, and the model has no template.
    #[error("`{model}` has no chat template, which rows with `messages` need")]
    NoTemplate {
        /// Where the tokenizer came from.
        model: String,
    },
    /// A chat template that is not a template.
    #[error("chat template of `{origin}`, line {line}: {cause}")]
    TemplateSyntax {
        /// Where the template came from.
        origin: String,
        /// Line within the template, from 1 (0 if unknown).
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// A chat template that fails on this conversation, by an error of its own or by `raise_exception`.
    #[error("chat template of `{origin}`, line {line}: {cause}")]
    TemplateRender {
        /// Where the template came from.
        origin: String,
        /// Line within the template, from 1 (0 if unknown).
        line: usize,
        /// What went wrong; for `raise_exception` the template's own message.
        cause: String,
    },
    /// A chat template that does not come to an end within its allowance of work.
    #[error("chat template of `{origin}` was stopped after {fuel} operations; it loops too long or prints too much")]
    TemplateRunaway {
        /// Where the template came from.
        origin: String,
        /// The allowance.
        fuel: u64,
    },
    /// A field of the data that has no influence on the rendered text.
    #[error("{place}: the chat template of `{origin}` does not render `{field}`{of}; what it says would be lost")]
    Unrendered {
        /// File and row.
        place: String,
        /// Where the template came from.
        origin: String,
        /// The field's name.
        field: String,
        /// ` of message N (role)`, or nothing for a field of the whole row.
        of: String,
    },
    /// It cannot be found out where an assistant turn begins in the rendered text.
    #[error("{place}: cannot tell where the answer of message {message} begins: {cause}")]
    Border {
        /// File and row.
        place: String,
        /// Which message, from 1.
        message: usize,
        /// What was tried and what was seen.
        cause: String,
    },
    /// An error inside one row, with its place put in front.
    #[error("{place}: {source}")]
    Row {
        /// File and row.
        place: String,
        /// What is wrong there.
        #[source]
        source: Box<DataError>,
    },
    /// A row that parses but makes no sense as an example.
    #[error("{place}: {cause}")]
    Example {
        /// File and row.
        place: String,
        /// What is wrong.
        cause: String,
    },
    /// A setting that makes no sense.
    #[error("`{key}` is {found}, expected {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
}

impl DataError {
    /// Puts `path`, row `row` in front of an error, unless it already names its place.
    pub fn at_row(self, path: &str, row: u64) -> Self {
        match self {
            Self::Unrendered { .. } | Self::Border { .. } | Self::Row { .. } | Self::Example { .. } => self,
            other => Self::Row { place: place(path, row), source: Box::new(other) },
        }
    }
}

/// File and row as messages spell them.
pub(crate) fn place(path: &str, row: u64) -> String {
    format!("`{path}` row {row}")
}

impl Classify for DataError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(e) => e.fault(),
            Self::Gguf(e) => e.fault(),
            Self::Source(e) => e.fault(),
            Self::BadRow(e) => e.fault(),
            Self::Store(e) => e.fault(),
            Self::Row { source, .. } => source.fault(),
            _ => Fault::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Gguf(e) => e.hint(),
            Self::Source(e) => e.hint(),
            Self::BadRow(e) => e.hint(),
            Self::Store(e) => e.hint(),
            Self::Row { source, .. } => source.hint(),
            Self::NoTemplate { .. } => Some(
                "put a `chat_template.jinja` beside the tokenizer, or use rows with `prompt` and `completion`".into(),
            ),
            Self::Unrendered { field, .. } => Some(format!(
                "use a model whose template renders `{field}`, write it into `content`, or drop it from the rows"
            )),
            Self::Border { .. } => {
                Some("mark the trained text in the template with {% generation %} … {% endgeneration %}".into())
            }
            _ => None,
        }
    }
}
