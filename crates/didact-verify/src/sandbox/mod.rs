//! Running programs that a model wrote, or that read what a model wrote, without trusting them.
//!
//! A [`Job`] gets no network, no file but those of the system (to read) and of one scratch folder, and bounded time,
//! memory, processes, files and output ([`Limits`]). When it ends, or is ended, everything that it started is killed.
//! What holds it ([`Mechanism`]) is bubblewrap where that works, otherwise Landlock and seccomp; where neither works
//! nothing runs, unless the user said `--unsafe-exec`. What each of them promises, and what not: `docs/sandbox.md`.
//!
//! Limits are applied by processes to themselves: the program `didact` starts itself again as a *monitor*
//! ([`helper_main`]), which starts itself again as the job's first process, which gives up what the job may not have and
//! then becomes the job. So nothing has to happen between `fork` and `exec`, and no `unsafe` code is needed.

#[cfg(target_os = "linux")]
mod confine;
#[cfg(target_os = "linux")]
mod helper;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod supervise;

#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod supervise;
#[cfg(not(target_os = "linux"))]
use supervise as helper;

pub use helper::helper_main;

use didact_core::cancel::Cancel;
use didact_core::fault::{Classify, Fault};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a job may use. Bytes and counts that a process asks for beyond its limit are refused to it by the kernel; time,
/// and sums over all processes, are watched from outside, and whoever exceeds them is killed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Time from start to end.
    pub wall: Duration,
    /// Processor time of each process, in whole seconds.
    pub cpu_seconds: u64,
    /// Address space of each process, in bytes.
    pub memory_bytes: u64,
    /// Resident memory of all processes together, in bytes.
    pub total_memory_bytes: u64,
    /// Processes and threads at one time.
    pub processes: u64,
    /// Size of each file that is written, in bytes.
    pub file_bytes: u64,
    /// Size of the scratch folder, in bytes.
    pub scratch_bytes: u64,
    /// Open files of each process.
    pub open_files: u64,
    /// Standard output, and as much again of standard error, in bytes.
    pub output_bytes: usize,
}

impl Default for Limits {
    /// Enough to compile and simulate a small design: 10 s, 1 GiB, 32 processes, files of 8 MiB, 256 KiB of output.
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(10),
            cpu_seconds: 10,
            memory_bytes: 1 << 30,
            total_memory_bytes: 2 << 30,
            processes: 32,
            file_bytes: 8 << 20,
            scratch_bytes: 64 << 20,
            open_files: 64,
            output_bytes: 256 << 10,
        }
    }
}

/// One program to run.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// The program's absolute path ([`find_program`]).
    pub program: PathBuf,
    /// Its arguments. Files are best named relative to the scratch folder, in which it starts.
    pub arguments: Vec<OsString>,
    /// The only folder in which it may write; it must exist.
    pub scratch: &'a Path,
    /// What it may use.
    pub limits: Limits,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal (a program that exits with 128 + n looks the same: that is how shells and bubblewrap report it).
    Signalled(i32),
    /// Its time was up.
    TimeLimit,
    /// One of its processes used up its processor time.
    CpuLimit,
    /// It wrote more output than it may.
    OutputLimit,
    /// Its processes together took more memory than they may.
    MemoryLimit,
    /// It had more processes and threads than it may.
    ProcessLimit,
    /// A file, or the scratch folder, became larger than it may.
    FileLimit,
    /// The caller asked for a stop.
    Cancelled,
}

impl Ending {
    /// Whether the job ended by itself, with exit code 0.
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }
}

/// What became of a job.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub ending: Ending,
    /// Its standard output, as far as it may go.
    pub stdout: Vec<u8>,
    /// Its standard error, as far as it may go.
    pub stderr: Vec<u8>,
}

/// What holds a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// Its own namespaces of processes, mounts, network and users, made by bubblewrap, and a seccomp filter.
    Bubblewrap,
    /// Landlock for files, TCP and signals; a seccomp filter for sockets and what Landlock cannot hold.
    Landlock,
    /// Nothing but limits: `--unsafe-exec`.
    Unconfined,
}

impl Mechanism {
    /// One line for a person.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Bubblewrap => "bubblewrap: no network, no files, no processes but its own; limits; seccomp",
            Self::Landlock => "Landlock and seccomp: no network, no files but its own; limits (weaker than bubblewrap)",
            Self::Unconfined => "none: limits only, as --unsafe-exec asked for",
        }
    }
}

/// Why nothing could be run. None of these says anything about the job's program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// This machine has nothing that would hold a job.
    #[error(
        "nothing on this machine can hold a program that a model wrote ({}); install bubblewrap, or say --unsafe-exec \
         to run it with your own rights", reasons.join("; ")
    )]
    Unavailable {
        /// Why not, one for each mechanism.
        reasons: Vec<String>,
    },
    /// The program is not there.
    #[error("`{name}` is not on PATH{}", package.map(|p| format!("; install the package `{p}`")).unwrap_or_default())]
    NoProgram {
        /// Its name.
        name: String,
        /// The package that holds it, where that is known.
        package: Option<&'static str>,
    },
    /// The sandbox could not be set up.
    #[error("the sandbox ({}) could not be set up: {message}", mechanism.describe())]
    Setup {
        /// Which.
        mechanism: Mechanism,
        /// What its helper said.
        message: String,
    },
    /// The monitor of a job died before the job did.
    #[error("the sandbox's monitor was killed from outside; what the job did is unknown")]
    Lost,
    /// An operation of the operating system failed.
    #[error("the sandbox cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
}

impl Classify for SandboxError {
    fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::NoProgram { .. } => Fault::Input,
            Self::Setup { .. } | Self::Lost | Self::Io { .. } => Fault::Running,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unavailable { .. } | Self::NoProgram { .. } | Self::Setup { .. } => {
                Some("`didact doctor` says what this machine has".to_owned())
            }
            Self::Lost | Self::Io { .. } => None,
        }
    }
}

impl SandboxError {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// The first argument by which a program knows that it is to be a sandbox's helper.
pub const HELPER: &str = "__sandbox";

/// Where jobs run.
#[derive(Debug, Clone)]
pub struct Sandbox {
    mechanism: Mechanism,
    helper: PathBuf,
}

impl Sandbox {
    /// The strongest mechanism that works here; each is tried by running something in it. `helper` is a program whose
    /// `main` hands its arguments to [`helper_main`] first of all; `didact` is one.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] when none works.
    pub fn detect(helper: &Path) -> Result<Self, SandboxError> {
        let mut reasons = Vec::new();
        for mechanism in [Mechanism::Bubblewrap, Mechanism::Landlock] {
            match Self::with(mechanism, helper) {
                Ok(sandbox) => return Ok(sandbox),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        Err(SandboxError::Unavailable { reasons })
    }

    /// This mechanism and no other, after running something in it.
    ///
    /// # Errors
    /// When it does not work here.
    pub fn with(mechanism: Mechanism, helper: &Path) -> Result<Self, SandboxError> {
        let sandbox = Self { mechanism, helper: helper.to_owned() };
        if mechanism != Mechanism::Unconfined {
            let scratch = scratch()?;
            let job = Job {
                program: find_program("true", None).unwrap_or_else(|_| "/bin/true".into()),
                arguments: Vec::new(),
                scratch: scratch.path(),
                limits: Limits::default(),
            };
            let outcome = sandbox.run(&job, &Cancel::new())?;
            if !outcome.ending.is_success() {
                let message = format!("`true` ended with {:?} in it", outcome.ending);
                return Err(SandboxError::Setup { mechanism, message });
            }
        }
        Ok(sandbox)
    }

    /// [`Sandbox::detect`], or no sandbox at all where the user said `--unsafe-exec`.
    ///
    /// # Errors
    /// When nothing works and the user did not say so.
    pub fn open(helper: &Path, unsafe_exec: bool) -> Result<Self, SandboxError> {
        match Self::detect(helper) {
            Err(_) if unsafe_exec => Self::with(Mechanism::Unconfined, helper),
            other => other,
        }
    }

    /// What holds the jobs.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Runs a job to its end.
    ///
    /// # Errors
    /// When the sandbox is broken. A job that fails is an [`Outcome`].
    pub fn run(&self, job: &Job<'_>, cancel: &Cancel) -> Result<Outcome, SandboxError> {
        supervise::run(self.mechanism, &self.helper, job, cancel)
    }
}

/// A new, empty folder that disappears when it is dropped.
///
/// # Errors
/// When the system's folder of temporary files cannot be written.
pub fn scratch() -> Result<tempfile::TempDir, SandboxError> {
    tempfile::Builder::new().prefix("didact-sandbox-").tempdir().map_err(SandboxError::io("make a scratch folder"))
}

/// Where a program is on `PATH`; `package` is named to who has to install it.
///
/// # Errors
/// [`SandboxError::NoProgram`] when it is not there.
pub fn find_program(name: &str, package: Option<&'static str>) -> Result<PathBuf, SandboxError> {
    use std::os::unix::fs::PermissionsExt;
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
        .ok_or_else(|| SandboxError::NoProgram { name: name.to_owned(), package })
}
