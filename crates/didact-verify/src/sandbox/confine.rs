//! What a job is held by: bubblewrap's arguments, Landlock's rules, seccomp's filter.

use super::helper::{HelperError, Plan};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where programs and their libraries are; read by every job.
const SYSTEM: [&str; 6] = ["/usr", "/bin", "/lib", "/lib64", "/lib32", "/nix/store"];
/// Files that programs of the system need beside them.
const SYSTEM_FILES: [&str; 2] = ["/etc/ld.so.cache", "/etc/alternatives"];
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folder that holds a program of another prefix (`/opt/tool` for `/opt/tool/bin/run`), which the job must be able
/// to read.
fn prefix(program: &Path) -> Option<PathBuf> {
    let is_of_system = SYSTEM.iter().any(|dir| program.starts_with(dir));
    if is_of_system { None } else { program.parent()?.parent().filter(|p| p.parent().is_some()).map(Path::to_owned) }
}

/// The program itself, with an environment that tells it nothing about its user.
pub(super) fn direct(plan: &Plan) -> Command {
    let mut command = Command::new(&plan.program);
    command.args(&plan.arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("HOME", &plan.scratch);
    command.env("TMPDIR", &plan.scratch);
    command
}

/// Bubblewrap around the program. A shell inside it writes `started` when everything is in place.
pub(super) fn bubblewrap(plan: &Plan, started: &str) -> Result<Command, HelperError> {
    let bwrap = super::find_program("bwrap", None).map_err(|_| HelperError::NoBubblewrap)?;
    let mut command = Command::new(bwrap);
    command.env_clear().env("PATH", PATH);
    command.args(["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]);
    for dir in SYSTEM {
        let path = Path::new(dir);
        match path.read_link() {
            Ok(target) => command.arg("--symlink").arg(target).arg(path),
            Err(_) => command.arg("--ro-bind-try").arg(path).arg(path),
        };
    }
    for file in SYSTEM_FILES {
        command.args(["--ro-bind-try", file, file]);
    }
    if let Some(prefix) = prefix(&plan.program) {
        command.arg("--ro-bind").arg(&prefix).arg(&prefix);
    }
    command.args(["--proc", "/proc", "--dev", "/dev"]);
    for inside in ["/w", "/tmp"] {
        command.arg("--bind").arg(&plan.scratch).arg(inside);
    }
    // What is left is memory that no limit counts: it is not for writing.
    command.args(["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/w"]);
    for (name, value) in [("PATH", PATH), ("LC_ALL", "C.UTF-8"), ("HOME", "/w"), ("TMPDIR", "/w")] {
        command.args(["--setenv", name, value]);
    }
    let filter = pipe_of(&filter(Filter::InNamespaces)?)?;
    command.arg("--seccomp").arg(filter.to_string());
    command.args(["--", "/bin/sh", "-c", "printf %s \"$0\" >&2; exec \"$@\""]).arg(started);
    command.arg(&plan.program).args(&plan.arguments);
    Ok(command)
}

/// A pipe that holds the filter and stays open across `exec`; its number.
fn pipe_of(program: &BpfProgram) -> Result<i32, HelperError> {
    let bytes: Vec<u8> = program
        .iter()
        .flat_map(|i| {
            let [c0, c1] = i.code.to_ne_bytes();
            let [k0, k1, k2, k3] = i.k.to_ne_bytes();
            [c0, c1, i.jt, i.jf, k0, k1, k2, k3]
        })
        .collect();
    let (reader, writer) = rustix::pipe::pipe().map_err(HelperError::io("make a pipe"))?;
    // A filter has at most 4096 instructions of 8 bytes: less than a pipe holds.
    std::fs::File::from(writer).write_all(&bytes).map_err(HelperError::io("write the filter"))?;
    let number = reader.as_raw_fd();
    // This process is about to become another one, which reads it.
    std::mem::forget(reader);
    Ok(number)
}

/// Landlock's rules: the system to read, the scratch folder to write, no TCP, no signals outside.
pub(super) fn landlock_rules(program: &Path, scratch: &Path) -> Result<RulesetCreated, HelperError> {
    let abi = ABI::V6;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    let read = AccessFs::from_read(abi);
    let mut allow = |path: &Path, access| -> Result<(), HelperError> {
        if path.exists() {
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(abi) };
            (&mut rules).add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
        }
        Ok(())
    };
    for path in SYSTEM.into_iter().chain(SYSTEM_FILES).map(Path::new) {
        allow(path, read)?;
    }
    if let Some(prefix) = prefix(program) {
        allow(&prefix, read)?;
    }
    for path in ["/dev/zero", "/dev/random", "/dev/urandom"] {
        allow(Path::new(path), AccessFs::ReadFile.into())?;
    }
    allow(Path::new("/dev/null"), AccessFs::ReadFile | AccessFs::WriteFile)?;
    allow(scratch, AccessFs::from_all(abi))?;
    Ok(rules)
}

/// Puts the rules into force for this process and all that descend from it; says whether they hold signals, too.
pub(super) fn landlock_enforce(rules: Option<RulesetCreated>) -> Result<bool, HelperError> {
    let status = rules.ok_or(HelperError::NoLandlock)?.restrict_self()?;
    let LandlockStatus::Available { effective_abi, .. } = status.landlock else { return Err(HelperError::NoLandlock) };
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(HelperError::NoLandlock);
    }
    Ok(effective_abi >= ABI::V6)
}

/// Whom a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// A job in namespaces of its own.
    InNamespaces,
    /// A job that shares the system's; what Landlock does not hold is refused.
    WithoutNamespaces {
        /// Whether Landlock keeps its signals inside.
        signals_are_held: bool,
    },
}

/// Calls that no job needs, each of which is a way to the network, to other processes or deep into the kernel.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_socket,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Memory that the limits do not see.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_mq_open,
];

/// What changes files, or their owners, without opening them: Landlock lets it pass.
const FILE_ATTRIBUTES: &[libc::c_long] = &[
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
];

/// Signals, and other ways to harm processes of the same user.
const SIGNALS: &[libc::c_long] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];

/// The filter: refused calls fail with `EPERM`; `clone3`, whose flags no filter can see, does not exist, so that the C
/// library turns to `clone`; calls of another architecture kill.
pub(super) fn filter(whom: Filter) -> Result<BpfProgram, HelperError> {
    let mut refused: Vec<libc::c_long> = REFUSED.to_vec();
    if let Filter::WithoutNamespaces { signals_are_held } = whom {
        refused.extend(FILE_ATTRIBUTES);
        if !signals_are_held {
            refused.extend(SIGNALS);
        }
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = refused.into_iter().map(|call| (call, Vec::new())).collect();
    let flags = [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ];
    let flag_rule = |flag: libc::c_int| {
        let flag = flag as u32 as u64;
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        SeccompRule::new(vec![condition])
    };
    rules.insert(libc::SYS_clone, flags.into_iter().map(flag_rule).collect::<Result<_, _>>()?);
    if matches!(whom, Filter::WithoutNamespaces { .. }) {
        // These may name the caller itself, as 0, and nobody else.
        let is_not_zero = |argument: u8| {
            SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0)?])
        };
        rules.insert(libc::SYS_prlimit64, vec![is_not_zero(0)?]);
        rules.insert(libc::SYS_sched_setaffinity, vec![is_not_zero(0)?]);
        rules.insert(libc::SYS_setpriority, vec![is_not_zero(0)?, is_not_zero(1)?]);
    }
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| HelperError::Architecture)?;
    let body: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32), architecture)?
            .try_into()?;
    let instruction = |code: u16, jt: u8, jf: u8, k: u32| sock_filter { code, jt, jf, k };
    // Load the call's number; from 0x4000_0000 on lie the calls of the x32 interface, under other numbers.
    let does_not_exist = instruction(0x06, 0, 0, 0x0005_0000 | libc::ENOSYS as u32);
    let mut program = vec![
        instruction(0x20, 0, 0, 0),
        instruction(0x35, 0, 1, 0x4000_0000),
        does_not_exist.clone(),
        instruction(0x15, 0, 1, libc::SYS_clone3 as u32),
        does_not_exist,
    ];
    program.extend(body);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_other_prefixes_are_found_with_their_libraries() {
        assert_eq!(prefix(Path::new("/usr/bin/iverilog")), None);
        assert_eq!(prefix(Path::new("/opt/eda/bin/iverilog")), Some("/opt/eda".into()));
        assert_eq!(prefix(Path::new("/bin/sh")), None);
        // Never the whole file system.
        assert_eq!(prefix(Path::new("/srv/run")), None);
    }

    #[test]
    fn filters_fit_into_a_pipe() {
        for whom in [Filter::InNamespaces, Filter::WithoutNamespaces { signals_are_held: false }] {
            assert!(filter(whom).expect("known here").len() * 8 < 32 << 10);
        }
    }
}
