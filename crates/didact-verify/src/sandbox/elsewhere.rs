//! Systems without a sandbox: nothing runs.

use super::{Job, Mechanism, Outcome, SandboxError};
use didact_core::cancel::Cancel;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// There is no helper on this system.
pub fn helper_main(_arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    None
}

pub(super) fn run(
    _mechanism: Mechanism,
    _helper: &Path,
    _job: &Job<'_>,
    _cancel: &Cancel,
) -> Result<Outcome, SandboxError> {
    Err(SandboxError::Unavailable { reasons: vec!["the sandbox needs Linux".to_owned()] })
}
