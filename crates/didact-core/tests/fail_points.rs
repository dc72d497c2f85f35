//! Kills a process, or makes its writes fail, at every moment of every primitive, and looks at what is left.
//!
//! A fail point acts on the whole process, so each trial runs one of the helpers below in a process of its own: this test
//! program, called again.
#![expect(clippy::unwrap_used, reason = "tests")]

use didact_core::files::{self, AppendLog};
use serde_json::{Map, Value, json};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

const DIRECTORY: &str = "DIDACT_TEST_DIRECTORY";

/// Runs `helper` in a child process with fail points set.
fn child(helper: &str, dir: &Path, fail: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args([helper, "--exact", "--ignored", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .env(files::fail::VARIABLE, fail)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
}

fn directory() -> std::path::PathBuf {
    std::env::var_os(DIRECTORY).expect("only run by the tests of this file").into()
}

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

fn record(step: u64) -> Map<String, Value> {
    json!({"step": step}).as_object().unwrap().clone()
}

#[test]
#[ignore = "helper"]
fn helper_writes_atomically() {
    files::write_atomic(directory().join("file"), &vec![b'n'; 200_000]).unwrap();
}

#[test]
#[ignore = "helper"]
fn helper_publishes() {
    let (work, path) = (directory().join("work"), directory().join("final"));
    files::create_dir_all(&work).unwrap();
    files::write_atomic(work.join("a"), b"1").unwrap();
    files::write_atomic(work.join("b"), b"2").unwrap();
    files::publish_dir(work, path).unwrap();
}

#[test]
#[ignore = "helper"]
fn helper_appends() {
    let (mut log, _) = AppendLog::open(directory().join("log")).unwrap();
    for step in 1..=3 {
        log.append(&record(step)).unwrap();
        log.sync().unwrap();
    }
}

/// Every passage of `helper` through a point, until there are no more: calls `check` after each trial.
fn at_each_moment(
    helper: &str,
    points: &[&str],
    actions: &[&str],
    check: impl Fn(&Path, &str),
    prepare: impl Fn(&Path),
) {
    for point in points {
        for action in actions {
            for n in 1.. {
                let dir = tempfile::tempdir().unwrap();
                prepare(dir.path());
                let fail = format!("{point}@{n}={action}");
                let status = child(helper, dir.path(), &fail);
                if status.success() {
                    assert!(n > 1, "`{point}` is never passed by {helper}");
                    break;
                }
                assert_eq!(is_killed(status), *action == "kill", "{fail}: {status}");
                check(dir.path(), &fail);
                assert!(child(helper, dir.path(), "").success(), "{fail}: the next process gets through");
            }
        }
    }
}

#[test]
fn an_atomic_write_leaves_the_old_or_the_new_content_at_every_moment() {
    let check = |dir: &Path, fail: &str| {
        let bytes = std::fs::read(dir.join("file")).unwrap();
        // Only the sync of the directory comes after the rename.
        let expected = if fail.starts_with("fsync_dir") { b'n' } else { b'o' };
        assert!(bytes.len() == 200_000 && bytes.iter().all(|&b| b == expected), "{fail}");
        if !fail.ends_with("kill") {
            assert_eq!(files::list_dir(dir).unwrap().len(), 1, "{fail}: no rubbish after an error");
        }
    };
    let prepare = |dir: &Path| files::write_atomic(dir.join("file"), &vec![b'o'; 200_000]).unwrap();
    let points = ["create", "write", "fsync", "rename", "fsync_dir"];
    at_each_moment("helper_writes_atomically", &points, &["kill", "enospc"], check, prepare);
    at_each_moment("helper_writes_atomically", &["write"], &["short", "eio"], check, prepare);
}

#[test]
fn a_published_directory_is_whole_or_absent_at_every_moment() {
    let check = |dir: &Path, fail: &str| {
        let path = dir.join("final");
        if path.exists() {
            assert_eq!(files::list_dir(&path).unwrap(), [path.join("a"), path.join("b")], "{fail}");
            // The helper would refuse to publish over it.
            files::remove_dir_all(&path).unwrap();
        }
    };
    at_each_moment("helper_publishes", &["create", "fsync", "rename", "fsync_dir"], &["kill"], check, |_| ());
}

#[test]
fn an_append_log_keeps_a_prefix_of_its_records_at_every_moment() {
    let check = |dir: &Path, fail: &str| {
        let path = dir.join("log");
        if path.exists() {
            let (_, found) = AppendLog::open(&path).unwrap();
            let expected: Vec<_> = (1..=found.records.len() as u64).map(record).collect();
            assert_eq!(found.records, expected, "{fail}");
            assert_eq!(AppendLog::read(&path).unwrap().torn_bytes, 0, "{fail}: opening dropped the torn end");
            assert_eq!(found.torn_bytes > 0, fail.ends_with("short"), "{fail}");
        }
    };
    at_each_moment("helper_appends", &["append", "write", "fsync", "create"], &["kill"], check, |_| ());
    at_each_moment("helper_appends", &["write"], &["short"], check, |_| ());
}

#[test]
fn a_misspelt_fail_point_rule_is_not_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for rule in ["write", "write=explode", "write@x=kill"] {
        let status = child("helper_writes_atomically", dir.path(), rule);
        assert_eq!(status.code(), Some(101), "{rule}");
        assert!(!dir.path().join("file").exists());
    }
}
