//! Who descends from a process, and what they use: read from `/proc`.

use rustix::process::{Pid, Signal, kill_process};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A living process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: i32,
    parent: i32,
    /// Threads.
    pub(super) threads: u64,
    /// Resident memory in bytes.
    pub(super) memory: u64,
}

/// Every process that descends from `ancestor` and is not dead. With `ancestor` as subreaper this holds also those whose
/// parents are gone.
pub(super) fn descendants(ancestor: i32) -> Vec<Process> {
    let all = all();
    let mut found = Vec::new();
    let mut pending = vec![ancestor];
    while let Some(parent) = pending.pop() {
        for process in all.get(&parent).into_iter().flatten() {
            pending.push(process.pid);
            found.push(*process);
        }
    }
    found
}

/// Living processes by their parents.
fn all() -> BTreeMap<i32, Vec<Process>> {
    let mut by_parent: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else { return by_parent };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { continue };
        if let Some(process) = parse(pid, &String::from_utf8_lossy(&stat)) {
            by_parent.entry(process.parent).or_default().push(process);
        }
    }
    by_parent
}

/// Reads `/proc/PID/stat` (proc(5)); `None` for the dead. The program's name, which it chooses itself, ends at the last
/// parenthesis.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let page = rustix::param::page_size() as u64;
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        threads: number(17)?,
        memory: number(21)?.saturating_mul(page),
    })
}

/// How many processes and threads a user has.
pub(super) fn tasks_of(uid: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let mut tasks = 0;
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_none_or(|name| name.parse::<u32>().is_err()) {
            continue;
        }
        let Ok(status) = std::fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if field("Uid:") == Some(u64::from(uid)) {
            tasks += field("Threads:").unwrap_or(1);
        }
    }
    tasks
}

/// Kills everything that descends from `ancestor`, which must be the subreaper of all of it; comes back when nothing of
/// it lives.
pub(super) fn kill_descendants(ancestor: i32) {
    let send = |pid: i32, signal: Signal| {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may be gone already.
            let _ = kill_process(pid, signal);
        }
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Stopped processes start no others: first all stand still, then all die.
        let mut stopped = BTreeSet::new();
        loop {
            let new: Vec<i32> =
                descendants(ancestor).into_iter().map(|p| p.pid).filter(|pid| !stopped.contains(pid)).collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                send(pid, Signal::STOP);
                stopped.insert(pid);
            }
        }
        if stopped.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in stopped {
            send(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_other_fields() {
        let rest = "S 41 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 100 1000 7 0";
        let process = parse(7, &format!("7 (a) R 1 (b) {rest}")).expect("alive");
        assert_eq!((process.parent, process.threads), (41, 3));
        assert_eq!(process.memory, 7 * rustix::param::page_size() as u64);
        assert!(parse(7, &format!("7 (a) {}", rest.replace('S', "Z"))).is_none());
        assert!(parse(7, "7 (a").is_none());
    }

    #[test]
    fn this_process_has_tasks() {
        assert!(tasks_of(rustix::process::geteuid().as_raw()) > 0);
    }
}
