//! The outside of a job: its clock, its output, and the sums over its processes.

use super::helper::{Plan, STARTED};
use super::processes::descendants;
use super::{Ending, HELPER, Job, Limits, Mechanism, Outcome, SandboxError};
use didact_core::cancel::Cancel;
use rustix::process::Signal;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often sums are looked at. Short jobs end before the first look.
const TICK: Duration = Duration::from_millis(25);
/// How long killing may take before the sandbox counts as broken.
const GRACE: Duration = Duration::from_secs(15);
/// Processes of the sandbox itself below the monitor: the helper that became bubblewrap, and its reaper.
const OWN_PROCESSES: u64 = 3;
/// What the helper may say before the job starts.
const PREAMBLE: usize = 16 << 10;
/// Most entries of a scratch folder.
const ENTRIES: usize = 10_000;

const SIGXCPU: i32 = Signal::XCPU.as_raw();
const SIGXFSZ: i32 = Signal::XFSZ.as_raw();

enum Event {
    Ended,
    Overflow,
}

pub(super) fn run(
    mechanism: Mechanism,
    helper: &Path,
    job: &Job<'_>,
    cancel: &Cancel,
) -> Result<Outcome, SandboxError> {
    let scratch = job.scratch.canonicalize().map_err(SandboxError::io("find the scratch folder"))?;
    let plan = Plan {
        inner: false,
        mechanism,
        program: job.program.clone(),
        arguments: job.arguments.clone(),
        scratch: scratch.clone(),
        limits: job.limits.clone(),
    };
    let mut child = Command::new(helper)
        .arg(HELPER)
        .arg(plan.to_argument())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // The terminal's signals are for Didact, which decides what becomes of the job.
        .process_group(0)
        .spawn()
        .map_err(SandboxError::io("start its helper"))?;
    // The monitor kills everything when this end is closed, also by our own death.
    let lifeline = child.stdin.take();
    let (sender, events) = channel();
    let limit = job.limits.output_bytes;
    let stdout = child.stdout.take().map(|pipe| collect(pipe, limit, sender.clone()));
    let stderr = child.stderr.take().map(|pipe| collect(pipe, limit.saturating_add(PREAMBLE), sender));
    let watched = watch(&mut child, lifeline, &events, &job.limits, &scratch, cancel);
    if watched.is_err() {
        // Its pipes close with it, and the readers end.
        let _ = child.kill();
    }
    let status = child.wait().map_err(SandboxError::io("wait for its helper"))?;
    let cut = watched?;
    let text =
        |reader: Option<std::thread::JoinHandle<Vec<u8>>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
    let (stdout, stderr) = (text(stdout), text(stderr));
    let ended = match status.code() {
        Some(code @ 129..=192) => Ending::Signalled(code - 128),
        Some(code) => Ending::Exited(code),
        // Nothing inside may signal the monitor.
        None if cut.is_none() => return Err(SandboxError::Lost),
        None => Ending::Signalled(9),
    };
    let Some(stderr) = after_start(&stderr) else {
        if let Some(ending @ (Ending::Cancelled | Ending::TimeLimit)) = cut {
            return Ok(Outcome { ending, stdout, stderr: Vec::new() });
        }
        let message = String::from_utf8_lossy(&stderr).trim().to_owned();
        let message = if message.is_empty() { format!("its helper ended with {status}") } else { message };
        return Err(SandboxError::Setup { mechanism, message });
    };
    let ending = cut.unwrap_or(match ended {
        Ending::Signalled(SIGXCPU) => Ending::CpuLimit,
        Ending::Signalled(SIGXFSZ) => Ending::FileLimit,
        ended => ended,
    });
    Ok(Outcome { ending, stdout, stderr: stderr[..stderr.len().min(limit)].to_vec() })
}

/// What the job itself wrote: all that follows the mark. Only trusted code runs before it.
fn after_start(stderr: &[u8]) -> Option<&[u8]> {
    let at = stderr.windows(STARTED.len()).position(|window| window == STARTED.as_bytes())?;
    Some(&stderr[at + STARTED.len()..])
}

/// Waits until both pipes are closed; `Some` when the job was ended, and why.
fn watch(
    child: &mut Child,
    lifeline: Option<std::process::ChildStdin>,
    events: &Receiver<Event>,
    limits: &Limits,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Option<Ending>, SandboxError> {
    let mut lifeline = lifeline;
    let deadline = Instant::now() + limits.wall;
    let (mut open, mut cut, mut give_up) = (2, None, None::<Instant>);
    while open > 0 {
        let now = Instant::now();
        let wait = if cut.is_none() { TICK.min(deadline.saturating_duration_since(now)) } else { TICK };
        match events.recv_timeout(wait) {
            Ok(Event::Ended) => open -= 1,
            Ok(Event::Overflow) => cut = cut.or(Some(Ending::OutputLimit)),
            Err(RecvTimeoutError::Timeout) => {
                cut = cut.or_else(|| exceeded(child.id(), limits, scratch));
                let is_gone = child.try_wait().map_err(SandboxError::io("look at its helper"))?.is_some();
                if is_gone && give_up.is_none() {
                    // Its pipes should close with it.
                    give_up = Some(Instant::now() + TICK * 40);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if cut.is_none() && cancel.is_cancelled() {
            cut = Some(Ending::Cancelled);
        }
        if cut.is_none() && Instant::now() >= deadline {
            cut = Some(Ending::TimeLimit);
        }
        if cut.is_some() && lifeline.take().is_some() {
            give_up = Some(Instant::now() + GRACE);
        }
        if give_up.is_some_and(|at| Instant::now() > at) {
            return Err(SandboxError::Lost);
        }
    }
    drop(lifeline);
    Ok(cut)
}

/// Which sum over all processes is too large.
fn exceeded(monitor: u32, limits: &Limits, scratch: &Path) -> Option<Ending> {
    let processes = descendants(monitor as i32);
    if processes.iter().map(|p| p.threads).sum::<u64>() > limits.processes + OWN_PROCESSES {
        return Some(Ending::ProcessLimit);
    }
    if processes.iter().map(|p| p.memory).sum::<u64>() > limits.total_memory_bytes {
        return Some(Ending::MemoryLimit);
    }
    (folder_bytes(scratch) > limits.scratch_bytes).then_some(Ending::FileLimit)
}

/// What a folder takes on the disk; `u64::MAX` with more entries than anyone needs.
fn folder_bytes(root: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut entries) = (0_u64, 0);
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES {
                return u64::MAX;
            }
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    bytes
}

/// Keeps the first `limit` bytes of a pipe, and reads it to its end.
fn collect(
    mut pipe: impl Read + Send + 'static,
    limit: usize,
    events: Sender<Event>,
) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let (mut kept, mut buffer, mut is_over) = (Vec::new(), vec![0; 16 << 10], false);
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    let room = limit - kept.len();
                    kept.extend_from_slice(&buffer[..n.min(room)]);
                    if n > room && !is_over {
                        is_over = true;
                        let _ = events.send(Event::Overflow);
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Nobody listens any more when the watcher gave up.
        let _ = events.send(Event::Ended);
        kept
    })
}
