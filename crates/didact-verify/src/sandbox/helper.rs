//! The inside of a sandbox: what `didact` does when it is started by itself to hold a job.

use super::confine;
use super::processes::{kill_descendants, tasks_of};
use super::{HELPER, Limits, Mechanism};
use rustix::process::{Gid, Resource, Rlimit, Uid, getpid, setrlimit};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

/// Written to standard error when everything is set up; what follows is the job's own.
pub(super) const STARTED: &str = "\u{1}didact-sandbox-started\u{1}\n";

/// What a helper is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Whether it becomes the job (or watches over the one that does).
    pub(super) inner: bool,
    pub(super) mechanism: Mechanism,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) scratch: PathBuf,
    pub(super) limits: Limits,
}

impl Plan {
    pub(super) fn to_argument(&self) -> String {
        serde_json::to_string(self).expect("a plan is plain data")
    }
}

/// What stopped a helper before the job began.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("the helper's plan is not readable: {0}")]
    Plan(#[from] serde_json::Error),
    #[error("cannot {action}: {source}")]
    Io { action: &'static str, source: std::io::Error },
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[error("Landlock: {0}")]
    LandlockPath(#[from] landlock::PathFdError),
    #[error("this kernel has no Landlock, or it is switched off")]
    NoLandlock,
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    #[error("seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
    #[error("seccomp filters are not known for this processor")]
    Architecture,
    #[error("bubblewrap (`bwrap`) is not on PATH")]
    NoBubblewrap,
}

impl HelperError {
    pub(super) fn io<E: Into<std::io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { action, source: source.into() }
    }
}

/// Takes over when the program was started as a sandbox's helper; `None` otherwise. To be called first in `main`, while
/// the process has one thread.
pub fn helper_main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.nth(1).as_deref() != Some(OsStr::new(HELPER)) {
        return None;
    }
    let plan = arguments.next().unwrap_or_default();
    let result = serde_json::from_str::<Plan>(&plan.to_string_lossy())
        .map_err(HelperError::from)
        .and_then(|plan| if plan.inner { Err(become_job(&plan)) } else { monitor(plan) });
    Some(match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&error.to_string());
            ExitCode::from(125)
        }
    })
}

#[expect(clippy::print_stderr, reason = "standard error is how the supervisor is told")]
fn say(text: &str) {
    eprint!("{text}");
}

/// Starts the job, waits for it, and leaves nothing of it alive. Standard input is the lifeline: when its other end is
/// closed, everything is killed.
fn monitor(plan: Plan) -> Result<u8, HelperError> {
    let me = getpid();
    rustix::process::set_child_subreaper(Some(me)).map_err(HelperError::io("become the reaper of the job"))?;
    let plan = Plan { inner: true, ..plan };
    let mut job = Command::new("/proc/self/exe")
        .arg(HELPER)
        .arg(plan.to_argument())
        .stdin(Stdio::null())
        .spawn()
        .map_err(HelperError::io("start the job's first process"))?;
    let own = me.as_raw_nonzero().get();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        kill_descendants(own);
        std::process::exit(137);
    });
    let status = job.wait().map_err(HelperError::io("wait for the job"))?;
    kill_descendants(own);
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// Gives up what the job may not have, and becomes the job; comes back only on failure.
fn become_job(plan: &Plan) -> HelperError {
    match prepare(plan) {
        Ok(mut command) => HelperError::Io { action: "start the program", source: command.exec() },
        Err(error) => error,
    }
}

fn prepare(plan: &Plan) -> Result<Command, HelperError> {
    // No terminal.
    rustix::process::setsid().map_err(HelperError::io("leave the terminal"))?;
    std::env::set_current_dir(&plan.scratch).map_err(HelperError::io("enter the scratch folder"))?;
    let is_root = rustix::process::geteuid().is_root();
    // Rules name files that only root may be able to reach; they are made before its rights are given up.
    let rules = match plan.mechanism {
        Mechanism::Landlock => Some(confine::landlock_rules(&plan.program, &plan.scratch)?),
        Mechanism::Bubblewrap | Mechanism::Unconfined => None,
    };
    if is_root && plan.mechanism != Mechanism::Unconfined {
        give_up_root()?;
    }
    limit(&plan.limits)?;
    let mut command = match plan.mechanism {
        Mechanism::Bubblewrap => confine::bubblewrap(plan, STARTED)?,
        Mechanism::Landlock => {
            rustix::thread::set_no_new_privs(true).map_err(HelperError::io("forbid new privileges"))?;
            let signals_are_held = confine::landlock_enforce(rules)?;
            seccompiler::apply_filter(&confine::filter(confine::Filter::WithoutNamespaces { signals_are_held })?)?;
            say(STARTED);
            confine::direct(plan)
        }
        Mechanism::Unconfined => {
            say(STARTED);
            confine::direct(plan)
        }
    };
    command.stdin(Stdio::null());
    Ok(command)
}

/// Becomes a user that nobody is: to root limits on processes do not apply. The range is the one that systemd gives to
/// services for the time they run.
fn give_up_root() -> Result<(), HelperError> {
    let id = 61184 + getpid().as_raw_nonzero().get().unsigned_abs() % 4336;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    own_scratch(uid, gid)?;
    rustix::thread::set_thread_groups(&[]).map_err(HelperError::io("leave root's groups"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(HelperError::io("leave root's group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(HelperError::io("give up root"))?;
    Ok(())
}

/// Gives the scratch folder, which is the current one, and its files to the job's user.
fn own_scratch(uid: Uid, gid: Gid) -> Result<(), HelperError> {
    use std::os::unix::fs::MetadataExt;
    let own = |path: &OsStr| {
        rustix::fs::chownat(rustix::fs::CWD, path, Some(uid), Some(gid), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(HelperError::io("give the scratch folder to the job"))
    };
    own(OsStr::new("."))?;
    for entry in std::fs::read_dir(".").map_err(HelperError::io("list the scratch folder"))?.flatten() {
        let metadata = entry.path().symlink_metadata().map_err(HelperError::io("look into the scratch folder"))?;
        // A file that has another name elsewhere is left alone.
        if metadata.is_file() && metadata.nlink() == 1 {
            own(&entry.file_name())?;
        }
    }
    Ok(())
}

fn limit(limits: &Limits) -> Result<(), HelperError> {
    let uid = rustix::process::geteuid();
    // The kernel counts the processes of a user, so those that the user has are added; the sandbox itself needs three.
    let processes = tasks_of(uid.as_raw()) + limits.processes + 3;
    let memory = limits.memory_bytes;
    for (resource, soft, hard) in [
        (Resource::Core, 0, 0),
        (Resource::Cpu, limits.cpu_seconds, limits.cpu_seconds + 1),
        (Resource::Fsize, limits.file_bytes, limits.file_bytes),
        (Resource::Nofile, limits.open_files, limits.open_files),
        (Resource::Nproc, processes, processes),
        (Resource::As, memory, memory),
    ] {
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit = Rlimit { current: Some(soft.min(most)), maximum: Some(hard.min(most)) };
        setrlimit(resource, limit).map_err(HelperError::io("set a limit"))?;
    }
    Ok(())
}
