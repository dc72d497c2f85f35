//! What can be wrong with an endpoint, as opposed to one of the requests to it.

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use didact_core::generate::GenerateError;

/// Why nothing more can be asked of an endpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The address cannot be used.
    #[error("`{url}` is no address of an endpoint: {cause}")]
    Url {
        /// As it was given, without what may be secret in it.
        url: String,
        /// What is wrong.
        cause: &'static str,
    },
    /// The variable that should hold the key is not set.
    #[error("the environment variable `{variable}` should hold the API key, but {cause}")]
    Key {
        /// The variable.
        variable: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// An option is out of range.
    #[error("`{name}` is {value}, expected {expected}")]
    Option {
        /// Which.
        name: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
    /// The endpoint refuses whatever it is asked.
    #[error("`{url}` answers with status {status}: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// No connection, however often it was tried.
    #[error("`{url}` cannot be reached, tried {attempts} times: {message}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// How often.
        attempts: u32,
        /// What happened last.
        message: String,
    },
    /// Requests fail one after another.
    #[error("`{url}` left {requests} requests in a row unanswered, the last after {attempts} attempts: {message}")]
    Failing {
        /// What was asked.
        url: String,
        /// Requests in a row.
        requests: usize,
        /// Attempts at the last one.
        attempts: u32,
        /// What happened last.
        message: String,
    },
    /// The journal of answers cannot be kept.
    #[error("the journal of answers cannot be kept: {0}")]
    Journal(#[from] FileError),
    /// The journal holds something else.
    #[error("`{path}`, record {record}: {cause}")]
    NotAJournal {
        /// The file.
        path: String,
        /// Which record, from 1.
        record: usize,
        /// What is wrong.
        cause: &'static str,
    },
}

impl Classify for RemoteError {
    fn fault(&self) -> Fault {
        match self {
            Self::Url { .. }
            | Self::Key { .. }
            | Self::Option { .. }
            | Self::NotAJournal { .. }
            | Self::Refused { status: 401 | 403 | 404, .. } => Fault::Input,
            Self::Journal(error) => error.fault(),
            _ => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Url { .. } => "give the part before `/chat/completions`, such as http://127.0.0.1:8080/v1".into(),
            Self::Key { variable, .. } => format!("set `{variable}`, or name another variable"),
            Self::Refused { status: 401 | 403, .. } => "check the API key and what it may do".into(),
            Self::Refused { status: 404, .. } => "check the address and the model's name".into(),
            Self::Unreachable { .. } => "check that the server runs and that the address is right".into(),
            Self::Refused { .. } | Self::Failing { .. } => {
                "what was answered is kept in the journal, if there is one: the same command goes on from there".into()
            }
            Self::NotAJournal { .. } => "name a file of its own for the journal".into(),
            Self::Journal(error) => return error.hint(),
            Self::Option { .. } | Self::Client(_) => return None,
        })
    }
}

impl From<RemoteError> for GenerateError {
    fn from(error: RemoteError) -> Self {
        Self { message: error.to_string(), source: Some(Box::new(error)) }
    }
}
