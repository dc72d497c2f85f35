//! What a program in the sandbox may not do, with each mechanism that works here. A machine without one of them says so
//! and skips it; `didact doctor` says which there are.

#![cfg(target_os = "linux")]

use didact_core::cancel::Cancel;
use didact_verify::sandbox::{Ending, Job, Limits, Mechanism, Outcome, Sandbox, SandboxError, scratch};
use std::path::Path;
use std::time::{Duration, Instant};

fn helper() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_didact"))
}

/// The sandboxes of this machine.
#[expect(clippy::print_stderr, reason = "what is not tested is said")]
fn sandboxes() -> Vec<Sandbox> {
    let (found, failed): (Vec<_>, Vec<_>) = [Mechanism::Bubblewrap, Mechanism::Landlock]
        .into_iter()
        .map(|mechanism| Sandbox::with(mechanism, helper()))
        .partition(Result::is_ok);
    let mut missing = Vec::new();
    for error in failed.into_iter().filter_map(Result::err) {
        eprintln!("SKIPPED one mechanism: {error}");
        missing.push(error.to_string());
    }
    // Tests that try nothing should not look like tests that found nothing.
    let may_be_none = std::env::var_os("DIDACT_TEST_WITHOUT_SANDBOX").is_some();
    assert!(
        !found.is_empty() || may_be_none,
        "no sandbox works here ({}); DIDACT_TEST_WITHOUT_SANDBOX=1 skips these tests",
        missing.join("; ")
    );
    found.into_iter().filter_map(Result::ok).collect()
}

fn limits() -> Limits {
    Limits { wall: Duration::from_secs(5), ..Limits::default() }
}

/// Runs a script in bash; `name` is the script's `$0`, by which its processes can be found.
fn bash(sandbox: &Sandbox, scratch: &Path, script: &str, name: &str, limits: Limits) -> Outcome {
    let arguments = ["-c", script, name].map(Into::into).to_vec();
    let job = Job { program: "/bin/bash".into(), arguments, scratch, limits };
    sandbox.run(&job, &Cancel::new()).expect("the sandbox works")
}

fn run(sandbox: &Sandbox, script: &str, limits: Limits) -> Outcome {
    let scratch = scratch().expect("a folder");
    bash(sandbox, scratch.path(), script, "job", limits)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a process with this word among its arguments is alive.
fn lives(word: &str) -> bool {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    entries.filter(|e| e.file_name().to_str().is_some_and(|n| n.parse::<u32>().is_ok())).any(|entry| {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    })
}

#[test]
fn a_harmless_job_runs_and_says_what_it_said() {
    for sandbox in sandboxes() {
        let outcome = run(&sandbox, "echo out; echo err >&2; echo x > file; cat file; exit 7", limits());
        assert_eq!(outcome.ending, Ending::Exited(7), "{sandbox:?}: {outcome:?}");
        assert_eq!((text(&outcome.stdout).as_str(), text(&outcome.stderr).as_str()), ("out\nx\n", "err\n"));
        assert_eq!(run(&sandbox, "kill -11 $$", limits()).ending, Ending::Signalled(11), "{sandbox:?}");
    }
}

#[test]
fn what_a_job_writes_stays_for_the_next_one() {
    for sandbox in sandboxes() {
        let scratch = scratch().expect("a folder");
        assert!(bash(&sandbox, scratch.path(), "echo 1 > a; mkdir d; echo 2 > d/b", "w", limits()).ending.is_success());
        let outcome = bash(&sandbox, scratch.path(), "cat a; cat d/b; echo 3 > a", "r", limits());
        assert_eq!((outcome.ending, text(&outcome.stdout).as_str()), (Ending::Exited(0), "1\n2\n"), "{outcome:?}");
    }
}

#[test]
fn nothing_of_the_environment_goes_in() {
    for sandbox in sandboxes() {
        let outcome = run(&sandbox, "export -p; cat /proc/$PPID/environ", limits());
        for secret in ["CARGO", "LD_LIBRARY_PATH", "USER"] {
            assert!(!text(&outcome.stdout).contains(secret), "{sandbox:?}: {}", text(&outcome.stdout));
        }
    }
}

#[test]
fn files_outside_are_neither_read_nor_written() {
    let outside = tempfile::tempdir().expect("a folder");
    let secret = outside.path().join("secret");
    didact_core::files::write_atomic(&secret, b"the secret").expect("written");
    let dir = outside.path().display();
    for sandbox in sandboxes() {
        for script in [
            format!("cat {dir}/secret"),
            format!("echo x > {dir}/new"),
            format!("echo x >> {dir}/secret"),
            format!("rm {dir}/secret"),
            format!("mv {dir}/secret here"),
            format!("ln -s {dir}/secret s; cat s"),
            format!("ln {dir}/secret s; cat s"),
            format!("cat /w/../..{dir}/secret"),
            format!("mkdir {dir}/folder"),
            format!("chmod 000 {dir}/secret; touch {dir}/secret"),
            "cat /etc/passwd /etc/shadow /root/.bashrc".to_owned(),
            "echo x > /usr/didact; echo x > /etc/didact; echo x > /didact; echo x > /dev/didact".to_owned(),
            "echo x > /dev/shm/didact; cat /dev/sda /dev/vda /dev/mem".to_owned(),
            "cat /proc/1/root/etc/passwd; ls /proc/1/fd/ && cat /proc/1/environ | grep HOME=/root".to_owned(),
        ] {
            let outcome = run(&sandbox, &script, limits());
            let said = text(&outcome.stdout);
            assert!(!said.contains("the secret") && !said.contains("root:"), "{sandbox:?} {script}: {said}");
            assert!(!outcome.ending.is_success(), "{sandbox:?} {script}: {outcome:?}");
            assert_eq!(std::fs::read(&secret).expect("still there"), b"the secret", "{script}");
            let left: Vec<_> = std::fs::read_dir(outside.path()).expect("readable").flatten().collect();
            assert_eq!(left.len(), 1, "{sandbox:?} {script}: {left:?}");
        }
    }
}

#[test]
fn there_is_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("an address").port();
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    datagrams.set_nonblocking(true).expect("set");
    let udp = datagrams.local_addr().expect("an address").port();
    let script = format!(
        "echo hello > /dev/tcp/127.0.0.1/{port} && echo sent; echo hello > /dev/udp/127.0.0.1/{udp} && echo sent"
    );
    for sandbox in sandboxes() {
        let outcome = run(&sandbox, &script, limits());
        assert_eq!(text(&outcome.stdout), "", "{sandbox:?}: {outcome:?}");
        assert!(listener.accept().is_err(), "{sandbox:?} connected");
        assert!(datagrams.recv(&mut [0; 8]).is_err(), "{sandbox:?} sent a datagram");
    }
}

#[test]
fn a_fork_bomb_ends_with_all_its_processes() {
    let limits = Limits { wall: Duration::from_secs(2), processes: 24, ..limits() };
    for sandbox in sandboxes() {
        let scratch = scratch().expect("a folder");
        let name = format!("bomb-{}-{:?}", std::process::id(), sandbox.mechanism());
        let script = "b() { b | b & b | b & :; }; b; while :; do b; done";
        let started = Instant::now();
        let outcome = bash(&sandbox, scratch.path(), script, &name, limits.clone());
        assert!(!outcome.ending.is_success(), "{sandbox:?}: {outcome:?}");
        assert!(started.elapsed() < Duration::from_secs(20), "{sandbox:?} took {:?}", started.elapsed());
        assert!(!lives(&name), "{sandbox:?} left processes behind");
        // The bound is the kernel's, not only the watcher's.
        let script = "for i in {1..400}; do sleep 3 & done 2>/dev/null; jobs -p | wc -l; kill $(jobs -p)";
        let outcome = bash(&sandbox, scratch.path(), script, &name, limits.clone());
        let count: usize = text(&outcome.stdout).trim().parse().unwrap_or(0);
        assert!(count <= 40, "{sandbox:?}: {count} processes at once");
        assert!(!lives(&name), "{sandbox:?} left processes behind");
    }
}

#[test]
fn a_memory_bomb_hits_its_limit() {
    for sandbox in sandboxes() {
        let small = Limits { memory_bytes: 128 << 20, ..limits() };
        let started = Instant::now();
        let outcome = run(&sandbox, "x=aaaaaaaa; while :; do x=$x$x; done", small);
        assert!(!outcome.ending.is_success() && outcome.ending != Ending::TimeLimit, "{sandbox:?}: {outcome:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{sandbox:?}");
        // Each process keeps to its limit, all of them together do not.
        let sum = Limits { total_memory_bytes: 96 << 20, ..limits() };
        let script =
            "f() { x=aaaaaaaa; for i in {1..22}; do x=$x$x; done; sleep 9; }; for i in {1..8}; do f & done; wait";
        let outcome = run(&sandbox, script, sum);
        assert_eq!(outcome.ending, Ending::MemoryLimit, "{sandbox:?}");
    }
}

#[test]
fn endless_output_is_cut() {
    for sandbox in sandboxes() {
        for script in ["while :; do echo aaaaaaaaaaaaaaaa; done", "while :; do echo aaaaaaaaaaaaaaaa >&2; done"] {
            let limits = Limits { output_bytes: 4096, ..limits() };
            let outcome = run(&sandbox, script, limits);
            assert_eq!(outcome.ending, Ending::OutputLimit, "{sandbox:?}");
            assert!(outcome.stdout.len() <= 4096 && outcome.stderr.len() <= 4096);
        }
    }
}

#[test]
fn files_have_a_largest_size() {
    for sandbox in sandboxes() {
        let limits = Limits { file_bytes: 1 << 20, scratch_bytes: 4 << 20, ..limits() };
        let outcome = run(&sandbox, "exec head -c 3000000 /dev/zero > big", limits.clone());
        assert_eq!(outcome.ending, Ending::FileLimit, "{sandbox:?}: {outcome:?}");
        let script = "for i in {1..2000}; do head -c 1000000 /dev/zero > f$i; done; sleep 3";
        assert_eq!(run(&sandbox, script, limits).ending, Ending::FileLimit, "{sandbox:?}");
    }
}

#[test]
fn time_is_up_whatever_a_job_does_with_signals() {
    let limits = Limits { wall: Duration::from_millis(500), ..limits() };
    for sandbox in sandboxes() {
        for script in [
            "trap '' TERM INT HUP QUIT XCPU ALRM USR1; while :; do :; done",
            "sleep 60",
            "kill -STOP $$",
            "kill -STOP $PPID; kill -KILL $PPID; sleep 60",
            "kill -KILL 1; kill -STOP 1; sleep 60",
        ] {
            let started = Instant::now();
            let outcome = run(&sandbox, script, limits.clone());
            assert_eq!(outcome.ending, Ending::TimeLimit, "{sandbox:?} {script}: {outcome:?}");
            assert!(started.elapsed() < Duration::from_secs(5), "{sandbox:?} {script}");
        }
        let outcome = run(&sandbox, "kill -KILL -1", limits.clone());
        assert!(!matches!(outcome.ending, Ending::Cancelled | Ending::Exited(125)), "{sandbox:?}: {outcome:?}");
    }
}

#[test]
fn processor_time_is_limited_by_itself() {
    for sandbox in sandboxes() {
        let limits = Limits { cpu_seconds: 1, wall: Duration::from_secs(30), ..limits() };
        let outcome = run(&sandbox, "while :; do :; done", limits);
        assert_eq!(outcome.ending, Ending::CpuLimit, "{sandbox:?}");
    }
}

#[test]
fn nothing_survives_its_job() {
    for sandbox in sandboxes() {
        let scratch = scratch().expect("a folder");
        let name = format!("orphan-{}-{:?}", std::process::id(), sandbox.mechanism());
        // Other sessions, parents that are gone, descriptors closed, and those that are ended with it.
        let script = "for i in 1 2 3; do (setsid bash -c '(setsid bash -c \"sleep 60; :\" $0 &) ; sleep 60; :' $0 </dev/null >/dev/null 2>&1 &) ; done; \
                      (trap '' TERM HUP; exec -a $0 sleep 60 >/dev/null 2>&1) & disown; echo done";
        let outcome = bash(&sandbox, scratch.path(), script, &name, limits());
        assert_eq!(outcome.ending, Ending::Exited(0), "{sandbox:?}: {outcome:?}");
        assert!(!lives(&name), "{sandbox:?} left processes behind");
        let script = format!("{script}; sleep 60");
        let short = Limits { wall: Duration::from_millis(300), ..limits() };
        let outcome = bash(&sandbox, scratch.path(), &script, &name, short);
        assert_eq!(outcome.ending, Ending::TimeLimit, "{sandbox:?}: {outcome:?}");
        assert!(!lives(&name), "{sandbox:?} left processes behind");
    }
}

#[test]
fn a_job_does_not_outlive_didact() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    // The lifeline of a monitor closes when whoever started it dies, however that happens.
    let Some(sandbox) = sandboxes().into_iter().next() else { return };
    let cancel = Cancel::new();
    let name = format!("cancelled-{}", std::process::id());
    let scratch = scratch().expect("a folder");
    let outcome = std::thread::scope(|scope| {
        let job = scope.spawn(|| {
            let arguments = ["-c", "echo started > mark; sleep 60; :", &name].map(Into::into).to_vec();
            let job = Job { program: "/bin/bash".into(), arguments, scratch: scratch.path(), limits: limits() };
            sandbox.run(&job, &cancel).expect("the sandbox works")
        });
        while !scratch.path().join("mark").exists() && !job.is_finished() {
            std::thread::yield_now();
        }
        cancel.cancel();
        job.join().expect("no panic")
    });
    assert_eq!(outcome.ending, Ending::Cancelled);
    assert!(!lives(&name));
    // A helper with a plan that is none ends by itself, and says why.
    let mut child = Command::new(helper())
        .args(["__sandbox", "{}"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("ends").code(), Some(125));
    assert!(said.contains("plan"), "{said}");
}

#[test]
fn kernel_interfaces_that_no_job_needs_are_closed() {
    for sandbox in sandboxes() {
        for script in ["unshare -Ur true", "unshare -n true", "mount -t tmpfs none .", "nsenter -t 1 -m true"] {
            let outcome = run(&sandbox, script, limits());
            assert!(!outcome.ending.is_success(), "{sandbox:?} {script}: {outcome:?}");
        }
    }
}

#[test]
fn without_a_sandbox_nothing_runs_unless_told_so() {
    // A helper that is none: no mechanism works.
    let broken = Path::new("/bin/false");
    match Sandbox::open(broken, false) {
        Err(SandboxError::Unavailable { reasons }) => assert_eq!(reasons.len(), 2),
        other => panic!("{other:?}"),
    }
    let told = Sandbox::open(broken, true).expect("the user said so");
    assert_eq!(told.mechanism(), Mechanism::Unconfined);
    let sandbox = Sandbox::with(Mechanism::Unconfined, helper()).expect("limits always work");
    let outcome = run(&sandbox, "echo x; sleep 60", Limits { wall: Duration::from_millis(300), ..limits() });
    assert_eq!((outcome.ending, text(&outcome.stdout).as_str()), (Ending::TimeLimit, "x\n"));
}
