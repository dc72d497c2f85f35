use super::*;
use crate::reproduce::{Record, ReproduceOptions, run};
use didact_core::cancel::Cancel;
use didact_core::progress::Silent;

/// A method that differs in its numbers.
fn of_plan(plan: impl Fn(Size) -> Plan + Sync + 'static) -> Method {
    let reproduction: &'static ContinualPretraining =
        Box::leak(Box::new(ContinualPretraining { plan: Box::leak(Box::new(plan)) }));
    Method { reproduction, ..METHOD }
}

fn record(method: &Method, size: Size, seeds: &[u64]) -> Record {
    let dir = tempfile::tempdir().expect("a directory");
    let options = ReproduceOptions {
        seeds: seeds.to_vec(),
        size,
        run_dir: Some(dir.path().join("run")),
        fresh: false,
        version: "1",
        threads: 1,
        machine: "a machine",
        command: "a test",
        cancel: Cancel::new(),
        reporter: &Silent,
    };
    run(method, &options).expect("runs")
}

/// So little that it takes a second.
fn tiny(size: Size) -> Plan {
    Plan {
        model: Shape { vocab_size: 512, hidden_size: 16, layers: 1, heads: 1, ffn: 32, context: 24 },
        row_len: 24,
        batch_size: 6,
        steps: 21,
        held_out: 4,
        probe: 2,
        ..Plan::of(size)
    }
}

#[test]
fn every_arm_trains_on_its_tokens_replays_its_share_and_starts_where_it_should() {
    let record = record(&of_plan(tiny), Size::M, &[7]);
    let check = |name: &str| {
        let found: Vec<_> = record.checks.iter().filter(|check| check.name.contains(name)).collect();
        let [check] = found[..] else { panic!("`{name}` is the name of one check") };
        check
    };
    for name in ["tokens trained on", "replayed share", "loss before the first step", "loss above what"] {
        assert!(check(name).ok, "{:?}", check(name));
    }
    let arm = |name: &str| record.arms.iter().find(|arm| arm.name == name).expect("is an arm");
    let stage = 21 * 6 * 24;
    for (name, tokens) in [("rewarm-0", stage), ("rewarm-25", stage), ("infinite-cosine", stage), ("union", 2 * stage)]
    {
        assert_eq!(arm(name).tokens, [tokens], "{name}");
    }
    // Of 126 rows: 5 % are 6 or 7, so that no batch of 6 rounds them away.
    for (name, least, most) in [("rewarm-1", 1.0, 2.0), ("rewarm-5", 6.0, 7.0), ("rewarm-25", 31.0, 32.0)] {
        let rows = arm(name).metrics[SHARE][0] * 126.0;
        assert!((least..=most).contains(&rows.round()), "{name}: {rows}");
    }
    assert!(arm("rewarm-25").curves.len() == 2 && arm("rewarm-25").metrics.contains_key(MEAN));
}

#[test]
fn schedules_are_those_of_the_paper() {
    use didact_train::schedule::LearningRate;
    let plan = Plan::of(Size::S);
    let rate = |rates: Rates, step: u64| {
        let config = plan.train(rates, plan.steps);
        config.validate().expect("is a configuration");
        LearningRate::new(&config, plan.steps).expect("fits").at(step)
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    near(rate(Rates::Cosine, plan.warmup_steps), plan.peak);
    near(rate(Rates::Cosine, plan.steps), plan.peak * plan.floor);
    for step in [0, 70, plan.steps] {
        near(rate(Rates::Lowest, step), plan.peak * plan.floor);
    }
    let scheduler = Scheduler::InfiniteCosine;
    // Nothing happens at the border: the trunk ends at the rate that the next stage begins with.
    let trunk = (plan.steps as f64 * (1.0 - plan.anneal)).round() as u64 - 1;
    near(rate(Rates::Infinite(scheduler), trunk), rate(Rates::Onward(scheduler), 0));
    near(rate(Rates::Onward(scheduler), plan.steps), plan.peak * plan.floor);
}

/// Where the learning rate in [`Plan::of`] comes from:
/// `cargo test --workspace --lib -- --ignored --nocapture which_peak`.
#[test]
#[ignore = "takes minutes: to choose a learning rate"]
#[expect(clippy::print_stderr, reason = "its result is for people")]
fn which_peak_is_best_on_a_seed_that_is_not_reported() {
    for peak in [1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2] {
        let record = record(&of_plan(move |size| Plan { peak, ..Plan::of(size) }), Size::S, &[101]);
        let losses: Vec<String> = record
            .arms
            .iter()
            .filter(|arm| arm.metrics.contains_key(OLD))
            .map(|arm| format!("{} {:.4}/{:.4}", arm.name, arm.metrics[OLD][0], arm.metrics[NEW][0]))
            .collect();
        eprintln!("peak {peak}: {} ({:.0} s)", losses.join(", "), record.wall_s);
    }
}
