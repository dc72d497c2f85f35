use super::*;
use crate::progress::Silent;
use crate::run::{Environment, FORMAT, RunIdentity};
use serde_json::json;
use std::cell::RefCell;
use std::rc::Rc;

type Log = Rc<RefCell<Vec<String>>>;

/// Writes its settings and its inputs' outputs into `out`; appends its name to a shared log.
struct Copy {
    name: &'static str,
    version: u32,
    settings: Value,
    inputs: Vec<StageInput>,
    log: Log,
    result: fn(&StageContext<'_>) -> Result<(), StageError>,
}

impl Stage for Copy {
    fn name(&self) -> &str {
        self.name
    }
    fn kind(&self) -> &'static str {
        "copy"
    }
    fn version(&self) -> u32 {
        self.version
    }
    fn settings(&self) -> Value {
        self.settings.clone()
    }
    fn inputs(&self) -> Vec<StageInput> {
        self.inputs.clone()
    }
    fn run(&self, context: &StageContext<'_>) -> Result<(), StageError> {
        self.log.borrow_mut().push(self.name.to_owned());
        let mut text = self.settings.to_string();
        for input in &self.inputs {
            if let StageInput::Stage(name) = input {
                text += &files::read_to_string(context.input(name).join("out"))?;
            }
        }
        files::write_atomic(context.work_dir.join("out"), text.as_bytes())?;
        (self.result)(context)
    }
}

fn copy(name: &'static str, settings: Value, inputs: &[&str], log: &Log) -> Copy {
    let inputs = inputs.iter().map(|name| StageInput::Stage((*name).to_owned())).collect();
    Copy { name, version: 1, settings, inputs, log: Rc::clone(log), result: |_| Ok(()) }
}

fn open(root: &Path) -> RunDir {
    open_on(root, "avx2")
}

fn open_on(root: &Path, cpu_level: &str) -> RunDir {
    let environment = Environment {
        version: "1".to_owned(),
        precision: "f32".to_owned(),
        cpu_level: cpu_level.to_owned(),
        threads: 1,
        device: "cpu".to_owned(),
    };
    let identity = RunIdentity {
        format: FORMAT,
        recipe: "r".to_owned(),
        seed: 0,
        settings: json!({}),
        inputs: BTreeMap::new(),
        environment,
    };
    RunDir::open(root, identity, false).expect("opens")
}

fn run(root: &RunDir, stages: Vec<Copy>) -> Result<Vec<StageOutcome>, StageError> {
    let stages: Vec<Box<dyn Stage>> = stages.into_iter().map(|s| Box::new(s) as Box<dyn Stage>).collect();
    execute(root, &stages, Streams::new(0), &Cancel::new(), &Silent)
}

fn ran(log: &Log) -> Vec<String> {
    log.take()
}

#[test]
fn a_stage_runs_once_and_again_only_when_something_it_depends_on_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, log) = (open(dir.path()), Log::default());
    let stages = |a: i32, b: i32| {
        vec![copy("a", json!(a), &[], &log), copy("b", json!(b), &["a"], &log), copy("c", json!(0), &[], &log)]
    };
    let first = run(&root, stages(1, 1)).expect("runs");
    assert_eq!(ran(&log), ["a", "b", "c"]);
    let second = run(&root, stages(1, 1)).expect("runs");
    assert_eq!(ran(&log), [""; 0]);
    assert!(second.iter().all(|outcome| outcome.is_skipped));
    assert_eq!(
        first.iter().map(|o| &o.record).collect::<Vec<_>>(),
        second.iter().map(|o| &o.record).collect::<Vec<_>>()
    );
    run(&root, stages(1, 2)).expect("runs");
    assert_eq!(ran(&log), ["b"]);
    run(&root, stages(2, 2)).expect("runs");
    assert_eq!(ran(&log), ["a", "b"], "what depends on a changed stage runs too, and nothing else");
    let out = files::read_to_string(root.stage_dir(1, "b").join("out")).expect("reads");
    assert_eq!(out, "22");
    let mut raised = stages(2, 2);
    raised[2].version = 2;
    run(&root, raised).expect("runs");
    assert_eq!(ran(&log), ["c"]);
}

#[test]
fn a_changed_outside_input_or_cpu_level_runs_a_stage_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, log) = (open(dir.path()), Log::default());
    let stage = |content: &[u8]| {
        let mut stage = copy("a", json!(0), &[], &log);
        stage.inputs.push(StageInput::Content { label: "data".to_owned(), digest: hash::hash_bytes(content) });
        vec![stage]
    };
    run(&root, stage(b"1")).expect("runs");
    run(&root, stage(b"1")).expect("runs");
    assert_eq!(ran(&log), ["a"]);
    run(&root, stage(b"2")).expect("runs");
    assert_eq!(ran(&log), ["a"]);
    drop(root);
    run(&open_on(dir.path(), "avx512"), stage(b"2")).expect("runs");
    assert_eq!(ran(&log), ["a"]);
}

#[test]
fn a_failed_stage_gets_its_work_directory_back_unless_its_key_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, log) = (open(dir.path()), Log::default());
    let fails = |settings: i32| {
        let mut stage = copy("a", json!(settings), &[], &log);
        stage.result = |context| {
            files::write_atomic(context.work_dir.join("half"), b"1")?;
            files::write_atomic(context.work_dir.join(".rest.1-2.didact-tmp"), b"1")?;
            Err(files::read("/nowhere/at/all").expect_err("is not there").into())
        };
        vec![stage]
    };
    let error = run(&root, fails(1)).expect_err("fails");
    assert_eq!((error.fault(), error.hint().is_some()), (Fault::Input, true));
    assert!(!root.stage_dir(0, "a").exists(), "nothing is published");
    let mut again = copy("a", json!(1), &[], &log);
    again.result = |context| {
        assert_eq!(files::read(context.work_dir.join("half"))?, b"1");
        assert!(!context.work_dir.join(".rest.1-2.didact-tmp").exists(), "leftovers are swept");
        Ok(())
    };
    run(&root, vec![again]).expect("runs");
    run(&root, fails(2)).expect_err("fails");
    let mut other = copy("a", json!(3), &[], &log);
    other.result = |context| {
        assert!(!context.work_dir.join("half").exists(), "another key starts from nothing");
        Ok(())
    };
    run(&root, vec![other]).expect("runs");
}

#[test]
fn a_cancelled_run_starts_no_further_stage_but_still_skips_finished_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, log) = (open(dir.path()), Log::default());
    run(&root, vec![copy("a", json!(0), &[], &log)]).expect("runs");
    let stages: Vec<Box<dyn Stage>> =
        vec![Box::new(copy("a", json!(0), &[], &log)), Box::new(copy("b", json!(0), &[], &log))];
    let cancel = Cancel::new();
    cancel.cancel();
    let error = execute(&root, &stages, Streams::new(0), &cancel, &Silent).expect_err("stops");
    assert_eq!(error.fault(), Fault::Stopped);
    assert_eq!(ran(&log), ["a"]);
    assert_eq!(preview(&root, &stages).expect("looks"), [("a".to_owned(), true), ("b".to_owned(), false)]);
}

#[test]
fn the_content_digest_covers_every_file_and_no_clock() {
    let digest = |text: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let root = open(dir.path());
        run(&root, vec![copy("a", json!(text), &[], &Log::default())]).expect("runs")[0].record.content
    };
    assert_eq!(digest("x"), digest("x"));
    assert_ne!(digest("x"), digest("y"));
}

#[test]
fn streams_of_stages_are_independent() {
    let dir = tempfile::tempdir().expect("a directory");
    let (root, log) = (open(dir.path()), Log::default());
    let draws = |context: &StageContext<'_>| {
        files::write_atomic(context.work_dir.join("draw"), &context.streams.key("x", &[]).to_le_bytes())?;
        Ok(())
    };
    let stages = ["a", "b"].map(|name| Copy { result: draws, ..copy(name, json!(0), &[], &log) });
    run(&root, stages.into()).expect("runs");
    let draw = |index, name| files::read(root.stage_dir(index, name).join("draw")).expect("reads");
    assert_ne!(draw(0, "a"), draw(1, "b"));
}
