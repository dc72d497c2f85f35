//! Nothing is lost: a run killed at any moment and started again ends in the same bytes as one that was left alone.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::unix::process::ExitStatusExt;

use common::{World, assert_same_files, lasting_files, sft};

/// Where processes are killed one after the other, all in one run: `name@n` is the n-th passage of that process.
const KILLS: [&str; 24] = [
    // Before anything is done, between stages, and while a stage's work is being published.
    "stage.begin",
    "create@3",
    "stage.before_publish",
    "rename@4",
    "stage.end",
    "stage.begin@2",
    "stage.end@2",
    // In the middle of training, before there is a checkpoint.
    "train.step@2",
    "train.micro_step@3",
    "append@2",
    // Each moment of a checkpoint's writing: the second step's, made again by every process.
    "checkpoint.begin",
    "checkpoint.before_publish",
    "checkpoint.after_publish",
    // Between checkpoints, in the middle of a step's parts, and at the next checkpoint.
    "train.step@2",
    "train.micro_step@4",
    "checkpoint.begin",
    "checkpoint.before_publish",
    "checkpoint.after_publish",
    // At the last checkpoint, and when the stage is done but not published.
    "checkpoint.before_publish",
    "checkpoint.after_publish",
    "stage.before_publish",
    // Between the last stages.
    "stage.end@3",
    "stage.before_publish",
    "stage.begin@5",
];

#[test]
fn a_run_killed_two_dozen_times_ends_in_the_same_bytes() {
    let world = World::new();
    world.ok(&sft("whole", &[]));
    let expected = lasting_files(&world.path("whole"));
    assert!(expected.keys().any(|path| path.ends_with("adapter_model.safetensors")));
    for point in KILLS {
        let output = world.command(&sft("killed", &[])).env("DIDACT_FAIL", format!("{point}=kill")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "the process is killed at {point}: {stderr}");
    }
    world.ok(&sft("killed", &[]));
    assert_same_files(&world.path("killed"), &expected, "killed and continued");
}

#[test]
fn every_primitive_of_a_checkpoint_write_can_be_the_last() {
    let world = World::new();
    world.ok(&sft("whole", &[]));
    let expected = lasting_files(&world.path("whole"));
    // One process gets past the stages before training, so that the passages counted below are those of training.
    let kill = |point: &str| {
        let output = world.command(&sft("killed", &[])).env("DIDACT_FAIL", format!("{point}=kill")).output().unwrap();
        output.status.signal() == Some(9)
    };
    assert!(kill("checkpoint.begin"));
    let mut kills = 0;
    for primitive in ["create", "write", "fsync", "rename", "fsync_dir", "remove"] {
        for n in [2, 5, 9] {
            kills += u32::from(kill(&format!("{primitive}@{n}")));
        }
    }
    assert!(kills >= 12, "only {kills} kills: the run was over too early to test anything");
    world.ok(&sft("killed", &[]));
    assert_same_files(&world.path("killed"), &expected, "killed in its writes");
}

#[test]
fn a_failing_disk_is_an_error_and_the_run_goes_on_once_it_is_mended() {
    let world = World::new();
    world.ok(&sft("whole", &[]));
    let expected = lasting_files(&world.path("whole"));
    for rule in ["write@9=enospc", "fsync@12=eio", "append@3=short", "rename@7=eio", "checkpoint.before_publish=enospc"]
    {
        let output = world.command(&sft("failed", &[])).env("DIDACT_FAIL", rule).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{rule}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains("cannot "), "{rule}: {stderr}");
        if rule.contains("enospc") {
            assert!(stderr.contains("hint: free some space"), "{rule}: {stderr}");
        }
    }
    world.ok(&sft("failed", &[]));
    assert_same_files(&world.path("failed"), &expected, "failed and continued");
}

#[test]
fn one_thread_and_two_give_the_same_bytes() {
    let world = World::new();
    world.ok(&sft("one", &["--threads", "1"]));
    world.ok(&sft("two", &["--threads", "2"]));
    assert_same_files(&world.path("two"), &lasting_files(&world.path("one")), "two threads");
}

#[test]
fn a_signal_stops_after_the_step_and_the_same_command_goes_on() {
    let world = World::new();
    // Enough steps that the signal arrives long before the end.
    fn long(dir: &str) -> Vec<&str> {
        sft(dir, &["--set", "train.max_steps=400", "--set", "train.save_steps=100"])
    }
    for (signal, code) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let dir = format!("stopped-{code}");
        let mut command = world.command(&long(&dir));
        let child = command.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let log = world.path(&dir).join("metrics.jsonl");
        while std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) == 0 {
            std::thread::yield_now();
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(&format!("stopped; everything is saved in `{dir}`")), "{stderr}");
        assert!(stderr.contains("hint: to go on: ") && stderr.contains("--run-dir"), "{stderr}");
        assert!(!stderr.contains("error:"), "{stderr}");
        let steps = didact_core::metrics::read(&world.path(&dir)).unwrap();
        assert!(steps.iter().all(|record| record.step < 400), "it stopped before the end");
        let shown = world.json(&["runs", "show", &dir], 0);
        assert_eq!(shown["status"], "interrupted");
    }
    world.ok(&long("stopped-130"));
    world.ok(&long("whole"));
    assert_same_files(&world.path("stopped-130"), &lasting_files(&world.path("whole")), "stopped and continued");
}
