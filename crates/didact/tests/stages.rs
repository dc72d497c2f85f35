//! What each kind of stage writes, at its version. A finished stage is skipped when its inputs and its **version** are the
//! same, so a change of what it writes must raise the version, or old and new artifacts would pass for one another.

mod common;

use common::{World, sft};
use didact_core::files;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Kind, version and content hash of every artifact of a run.
fn artifacts(run_dir: &Path) -> BTreeMap<String, Value> {
    let stages = files::list_dir(run_dir.join("stages")).expect("a run has stages");
    let artifact = |dir: &std::path::PathBuf| {
        let text = files::read_to_string(dir.join("artifact.json")).expect("a finished stage has an artifact.json");
        let record: Value = serde_json::from_str(&text).expect("artifact.json is JSON");
        let name = record["name"].as_str().expect("a stage has a name").to_owned();
        (name, json!([record["kind"], record["version"], record["content"]]))
    };
    stages.iter().map(artifact).collect()
}

/// If this fails with the same version and another hash, the stage's output changed: raise its `version()`, say it in
/// `CHANGELOG.md` under *Results change*, and record the new hashes with `INSTA_UPDATE=always cargo test`. The portable
/// kernels in f32 are used because their bits are the same on every machine.
#[test]
fn what_a_stage_writes_changes_with_its_version_only() {
    let world = World::new();
    let run = |dir: &str, arguments: &[&str]| {
        let output = world.command(arguments).env("DIDACT_CPU", "portable").output().expect("didact runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        artifacts(&world.path(dir))
    };
    insta::assert_json_snapshot!("sft", run("sft", &sft("sft", &[])));
}
