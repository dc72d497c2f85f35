//! `DIDACT_CPU` decides what runs, in a process of its own.
use didact_kernels::{Level, VARIABLE, level};
use std::process::Command;

/// Run by the other tests in a process with the variable set; says what ran.
#[test]
#[ignore = "run by the other tests in a process of its own"]
#[expect(clippy::print_stdout, reason = "the other process reads it")]
fn say() {
    println!("ran {}", level());
}

fn run_with(value: &str) -> (bool, String) {
    let output = Command::new(std::env::current_exe().expect("this test's own program"))
        .args(["say", "--exact", "--ignored", "--nocapture"])
        .env(VARIABLE, value)
        .output()
        .expect("this test's own program runs");
    let text = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned()).concat();
    (output.status.success(), text)
}

#[test]
fn each_level_that_this_machine_has_can_be_forced() {
    for level in Level::available() {
        let (ok, text) = run_with(level.as_str());
        assert!(ok && text.contains(&format!("ran {level}\n")), "{text}");
    }
}

#[test]
fn a_level_that_does_not_exist_stops_the_program() {
    let (ok, text) = run_with("sse9");
    assert!(!ok && text.contains("DIDACT_CPU is `sse9`, expected one of"), "{text}");
}
