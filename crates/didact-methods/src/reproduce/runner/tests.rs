use super::*;
use crate::reproduce::{Check, Claim, Role, Verdict};
use didact_core::fault::{Classify, Fault};
use didact_core::progress::Silent;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A method whose arms take no time: better by about 1 than its baseline.
struct Toy {
    /// Calls of `run`, by which a test sees what was done again.
    calls: AtomicUsize,
    /// Asked to stop in the call of this number, from 1.
    stop_in: usize,
    cancel: Cancel,
    version: u32,
}

impl Reproduction for Toy {
    fn slug(&self) -> &'static str {
        "toy"
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn claim(&self) -> Claim {
        let text = "the toy is better";
        Claim { text, metric: "loss", higher_is_better: false, method: "better", baseline: "plain" }
    }

    fn arms(&self, _: Size) -> Vec<Arm> {
        vec![
            Arm { name: "base", needs: &[], role: Role::Shared, what: "where both start" },
            Arm { name: "plain", needs: &["base"], role: Role::Baseline, what: "as it was" },
            Arm { name: "better", needs: &["base"], role: Role::Method, what: "as it should be" },
        ]
    }

    fn settings(&self, size: Size) -> Value {
        json!({ "steps": if size == Size::S { 1 } else { 2 } })
    }

    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        files::create_dir_all(lab.dir().join("fit.train"))?;
        if call == self.stop_in {
            files::write_atomic(lab.dir().join("half"), b"")?;
            self.cancel.cancel();
            return Err(MethodError::Stopped { run_dir: PathBuf::new() });
        }
        let start = (lab.streams().key("start", &[]) % 1000) as f64 / 100.0;
        let mut outcome = Outcome { tokens: 10, ..Outcome::default() };
        if arm == "base" {
            files::write_atomic(lab.dir().join("weights"), start.to_string().as_bytes())?;
            outcome.values.insert("start".to_owned(), start);
            return Ok(outcome);
        }
        let read = files::read_to_string(lab.arm("base").join("weights"))?;
        assert_eq!(read, start.to_string(), "every arm of a seed has the same streams");
        assert_eq!(lab.outcome("base")?.values["start"], start);
        let gain = if arm == "better" { 1.0 + 0.1 * lab.seed() as f64 } else { 0.0 };
        outcome.values.insert("loss".to_owned(), start - gain);
        outcome.items.insert("loss".to_owned(), (0..20).map(|i| start - gain + 0.01 * f64::from(i)).collect());
        outcome.curves.insert("loss by step".to_owned(), vec![(0.0, start), (10.0, start - gain)]);
        Ok(outcome)
    }

    fn checks(&self, _: Size, results: &Results) -> Vec<Check> {
        let gain = results.mean("plain", "loss") - results.mean("better", "loss");
        vec![Check::at_least("gains at least 0.5", gain, 0.5), Check::at_most("gains at most 0.5", gain, 0.5)]
    }
}

fn toy(stop_in: usize) -> (&'static Toy, Method) {
    toy_of_version(stop_in, 1)
}

fn toy_of_version(stop_in: usize, version: u32) -> (&'static Toy, Method) {
    let toy: &'static Toy =
        Box::leak(Box::new(Toy { calls: AtomicUsize::new(0), stop_in, cancel: Cancel::new(), version }));
    let method = Method {
        slug: "toy",
        paper: "On Toys",
        authors: "A. Author",
        year: 2020,
        arxiv: "2001.00001",
        needs: "nothing",
        summary: "is better",
        reproduction: toy,
    };
    (toy, method)
}

fn options<'a>(seeds: &[u64], dir: &Path, cancel: &Cancel) -> ReproduceOptions<'a> {
    ReproduceOptions {
        seeds: seeds.to_vec(),
        size: Size::S,
        run_dir: Some(dir.to_owned()),
        fresh: false,
        version: "1",
        threads: 1,
        machine: "a machine",
        command: "didact reproduce toy",
        cancel: cancel.clone(),
        reporter: &Silent,
    }
}

#[test]
fn a_reproduction_decides_records_and_draws() {
    let dir = tempfile::tempdir().expect("a directory");
    let (toy, method) = toy(0);
    let record = run(&method, &options(&[1, 2, 3], dir.path(), &toy.cancel)).expect("runs");
    assert_eq!(record.verdict, Verdict::Holds);
    assert!((record.effect - 1.2).abs() < 1e-9, "{}", record.effect);
    let low = record.ci95[0].expect("three seeds");
    assert!(0.0 < low && low < record.effect);
    // All items of a seed differ by the same, so resampling them changes nothing.
    let [low, high] = record.bootstrap95.expect("items are kept");
    assert!((low - 1.2).abs() < 1e-9 && (high - 1.2).abs() < 1e-9, "{low} {high}");
    assert_eq!(record.checks.iter().map(|check| check.ok).collect::<Vec<_>>(), [true, false]);
    assert_eq!(record.tokens, 90);
    let names: Vec<_> = record.arms.iter().map(|arm| (arm.name.as_str(), arm.values.len())).collect();
    assert_eq!(names, [("base", 0), ("plain", 3), ("better", 3)]);
    // Checkpoints are gone, what the arm published is there.
    let base = dir.path().join("stages/01-base.s1");
    assert!(base.join("weights").is_file() && !base.join("fit.train").exists());

    let kept = dir.path().join("results");
    let path = super::super::keep(&record, &kept).expect("is kept");
    assert_eq!(Record::read(&path).expect("reads"), record);
    let page = files::read_to_string(super::super::write_page(&kept).expect("renders")).expect("is there");
    for part in ["**holds**", "| better | method | as it should be |", "gains at most 0.5", "toy-s.svg", "On Toys"] {
        assert!(page.contains(part), "no `{part}` in:\n{page}");
    }
    let svg = files::read_to_string(dir.path().join(PLOT)).expect("is drawn");
    for part in ["better", "plain", "loss by step", "holds"] {
        assert!(svg.contains(part), "no `{part}` in the plot");
    }
}

#[test]
fn a_stopped_reproduction_goes_on_and_more_seeds_only_add() {
    let dir = tempfile::tempdir().expect("a directory");
    let (toy, method) = toy(5);
    let error = run(&method, &options(&[1, 2], dir.path(), &toy.cancel)).expect_err("is stopped");
    assert_eq!(error.fault(), Fault::Stopped, "{error}");
    // The fifth call, seed 2's second arm, is made again in the same directory.
    let work = dir.path().join("stages/05-plain.s2.work");
    assert!(work.join("half").is_file());
    let record = run(&method, &options(&[1, 2], dir.path(), &Cancel::new())).expect("goes on");
    assert_eq!(toy.calls.load(Ordering::SeqCst), 7);
    let whole = tempfile::tempdir().expect("a directory");
    let (_, other) = super::tests::toy(0);
    let uninterrupted = run(&other, &options(&[1, 2], whole.path(), &Cancel::new())).expect("runs");
    assert_eq!(record.effects, uninterrupted.effects);
    assert_eq!(record.arms.len(), uninterrupted.arms.len());

    run(&method, &options(&[1, 2, 3], dir.path(), &Cancel::new())).expect("adds a seed");
    assert_eq!(toy.calls.load(Ordering::SeqCst), 10);
    let again = run(&method, &options(&[1, 2, 3], dir.path(), &Cancel::new())).expect("does nothing");
    assert_eq!(toy.calls.load(Ordering::SeqCst), 10);
    assert_eq!(again.effects[..2], record.effects);
}

#[test]
fn another_version_is_another_run_and_seeds_must_differ() {
    let dir = tempfile::tempdir().expect("a directory");
    let cancel = Cancel::new();
    run(&toy(0).1, &options(&[1], dir.path(), &cancel)).expect("runs");
    let error = run(&toy_of_version(0, 2).1, &options(&[1], dir.path(), &cancel)).expect_err("differs");
    assert!(error.to_string().contains("version (1 there, 2 asked for)"), "{error}");
    for seeds in [&[][..], &[1, 1]] {
        let error = run(&toy(0).1, &options(seeds, dir.path(), &cancel)).expect_err("is refused");
        assert_eq!(error.fault(), Fault::Input, "{error}");
    }
}

#[test]
fn the_time_left_is_known_from_other_seeds() {
    let time = |seconds| Time { seconds, is_done: true };
    let mut times = Times(BTreeMap::from([("long.s1".to_owned(), time(90.0)), ("short.s1".to_owned(), time(10.0))]));
    times.0.insert("long.s2".to_owned(), Time { seconds: 5.0, is_done: false });
    assert_eq!(times.expected(["long.s2", "short.s2"].into_iter()), Some(100.0));
    // An arm that has not run yet takes as long as arms do on average.
    assert_eq!(times.expected(["new.s1"].into_iter()), Some(50.0));
    assert_eq!(Times::default().expected(["new.s1"].into_iter()), None);
}
