//! What can go wrong.

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::generate::GenerateError;
use didact_core::verdict::VerifyError;
use didact_data::error::DataError;
use didact_data::reader::{ReadError, RowError};
use std::path::PathBuf;

/// Why a task cannot be used, or an evaluation not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A task's data cannot be opened.
    #[error("task {task}: {source}")]
    Data {
        /// The task.
        task: String,
        /// The cause.
        source: Box<ReadError>,
    },
    /// A row of a task's data cannot be read.
    #[error("task {task}: {source}")]
    Row {
        /// The task.
        task: String,
        /// The cause.
        source: Box<RowError>,
    },
    /// A task file says something that cannot be.
    #[error("{}: {message}", path.display())]
    TaskFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A task's settings do not fit together.
    #[error("task {task}: {message}")]
    Task {
        /// The task.
        task: String,
        /// What is wrong.
        message: String,
    },
    /// A document cannot be asked.
    #[error("task {task}: doc {doc}: {message}")]
    Document {
        /// The task.
        task: String,
        /// The document, from 0.
        doc: usize,
        /// What is wrong.
        message: String,
    },
    /// There is no such task.
    #[error("there is no task `{name}`{}", similar.as_ref().map_or(String::new(), |s| format!("; did you mean `{s}`?")))]
    NoTask {
        /// What was asked for.
        name: String,
        /// A name that is nearly the same.
        similar: Option<String>,
    },
    /// The data of a ready task are not there.
    #[error("task {task} reads `{file}` below the folder that DIDACT_DATA names, {reason}")]
    NoData {
        /// The task.
        task: String,
        /// The file.
        file: String,
        /// What is wrong: unset, or not there.
        reason: String,
    },
    /// A results file is none.
    #[error("{}: {message}", path.display())]
    Results {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Two results are of different documents or tasks.
    #[error("cannot compare: {0}")]
    Incomparable(String),
    /// Training text cannot be read.
    #[error(transparent)]
    Training(Box<DataError>),
    /// The model cannot be asked any more.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Answers cannot be judged.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The user stopped it.
    #[error("stopped")]
    Stopped,
}

impl From<DataError> for EvalError {
    fn from(error: DataError) -> Self {
        Self::Training(Box::new(error))
    }
}

impl Classify for EvalError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(error) => error.fault(),
            Self::Data { source, .. } => source.fault(),
            Self::Row { source, .. } => source.fault(),
            Self::Training(error) => error.fault(),
            Self::TaskFile { .. }
            | Self::Task { .. }
            | Self::Document { .. }
            | Self::NoTask { .. }
            | Self::NoData { .. }
            | Self::Results { .. }
            | Self::Incomparable(_) => Fault::Input,
            Self::Generate(_) | Self::Verify(_) | Self::Stopped => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Data { source, .. } => source.hint(),
            // How the rows of a recipe may be skipped does not help here: a task is asked whole.
            Self::Row { .. } => Some("mend the row: a task is asked whole".into()),
            Self::Training(error) => error.hint(),
            Self::NoTask { .. } => {
                Some("`didact eval --list` names the tasks; a path to a task file will do, too".into())
            }
            Self::NoData { .. } => Some("docs/evaluation.md says where each ready task's data come from".into()),
            Self::TaskFile { .. } => Some("docs/evaluation.md lists the keys of task files".into()),
            _ => None,
        }
    }
}
