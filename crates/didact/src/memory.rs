//! How much memory there is, and how much was used.

use sysinfo::System;

fn system() -> Option<System> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    Some(system)
}

/// Bytes that this process may still use: what the machine has free, or what its control group leaves it.
pub(crate) fn free() -> Option<u64> {
    let system = system()?;
    let machine = system.available_memory();
    let group = system.cgroup_limits().map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let free = group.map_or(machine, |group| group.min(machine));
    (free > 0).then_some(free)
}

/// Bytes of memory in all, the control group's limit counted; `None` where the system does not tell.
pub(crate) fn total() -> Option<u64> {
    let system = system()?;
    let machine = system.total_memory();
    Some(system.cgroup_limits().map_or(machine, |limits| limits.total_memory.min(machine)))
}

/// Largest resident set of this process so far, in bytes; `None` where the system does not tell.
pub(crate) fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
