//! What the program gives to a run: who it is, where models come from, how much memory there is.

use didact_core::cancel::Cancel;
use didact_core::fault::Classify;
use didact_core::progress::Reporter;
use didact_model::DeviceName;
use didact_verify::sandbox::{Sandbox, SandboxError};
use std::path::PathBuf;

/// The program and machine around a run.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Didact's version, with the commit where it is known.
    pub version: &'a str,
    /// Threads of the process; recorded, without influence on results.
    pub threads: usize,
    /// Where training computes.
    pub device: DeviceName,
    /// Finds a model by a name that is no existing path, getting it first when it must. Gives a directory or a GGUF file.
    pub resolve_model: &'a (dyn Fn(&str) -> Result<PathBuf, Box<dyn Classify>> + Sync),
    /// Bytes that this process may still use; `None` when unknown.
    pub free_memory: &'a (dyn Fn() -> Option<u64> + Sync),
    /// Finds what holds the programs that verifiers run on answers.
    pub sandbox: &'a (dyn Fn() -> Result<Sandbox, SandboxError> + Sync),
    /// Largest resident set of this process so far, in bytes; `None` when unknown.
    pub peak_memory: &'a (dyn Fn() -> Option<u64> + Sync),
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("version", &self.version).field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// How to run a recipe.
#[derive(Clone)]
pub struct RunOptions<'a> {
    /// The run directory; when not given, `runs/<name>-<hash of settings and inputs>`.
    pub run_dir: Option<PathBuf>,
    /// Start over; an older run there is renamed.
    pub fresh: bool,
    /// Go on even if the predicted memory is more than there is.
    pub force: bool,
    /// The program and machine.
    pub env: Env<'a>,
    /// Asks for a stop.
    pub cancel: Cancel,
    /// Who is told.
    pub reporter: &'a dyn Reporter,
}
