//! Training from curricula: what is read, what is recorded, and that interruptions leave no trace.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{Deed, Notes, Place, Probe, VOCABULARY, adapted_decoder, decoder, sequences, store, weights};
use didact_core::cancel::Cancel;
use didact_core::metrics;
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::buckets::{BucketSettings, Joint, OverLong, Tail};
use didact_data::curriculum::feedback::read_log;
use didact_data::curriculum::length::{CycleOrder, Length, LengthMix, LengthSettings, Odds};
use didact_data::curriculum::mixture::{Choice, Mixture, MixtureSettings, Reading};
use didact_data::curriculum::weights::{Aggregate, Eta, GraphSettings, Weights, WindowUnit};
use didact_data::curriculum::{Curriculum, Pool};
use didact_data::packing::Packing;
use didact_model::Decoder;
use didact_train::{
    Hook, HookResult, Measured, Scheduler, StepResult, TrainConfig, TrainError, TrainOutcome, Trainer, evaluate_loss,
    evaluate_tokens,
};

const ROW: usize = 24;

fn config() -> TrainConfig {
    TrainConfig {
        learning_rate: 3e-3,
        lr_scheduler: Scheduler::Cosine,
        warmup_steps: Some(2),
        gradient_accumulation_steps: 2,
        batch_size: 4,
        max_seq_len: ROW,
        max_steps: Some(11),
        eval_steps: Some(2),
        save_steps: 3,
        ..TrainConfig::default()
    }
}

fn pools(directory: &Path) -> Vec<Pool> {
    let pool = |n: u32| {
        let store = store(&directory.join(format!("pool-{n}")), &sequences(9 + 4 * n, 3 * n));
        Pool::new(format!("p{n}"), store, ROW, Packing::BestFit).expect("readable")
    };
    (0..3).map(pool).collect()
}

/// Weights that follow what is measured.
fn graph(directory: &Path) -> Box<dyn Curriculum> {
    let weights = Weights::Graph(GraphSettings {
        graph: vec![vec![1.0, 0.5], vec![0.0, 1.0], vec![0.3, 0.0]],
        evaluations: vec!["a".into(), "b".into()],
        eta: Eta::Spread(1.5),
        round_steps: 3,
        window: 2,
        window_unit: WindowUnit::Evaluation,
        aggregate: Aggregate::Sum,
        relative_losses: false,
        ignore_lone: false,
        min_weight: 0.01,
        prior: None,
    });
    let settings =
        MixtureSettings { batch_size: 4, weights, choice: Choice::Even, readings: vec![Reading::default(); 3] };
    Box::new(Mixture::new(pools(directory), settings, Streams::new(9)).expect("sound"))
}

fn fixed(directory: &Path, readings: Vec<Reading>) -> Box<dyn Curriculum> {
    let weights = Weights::Fixed(vec![1.0, 2.0, 1.0]);
    let settings = MixtureSettings { batch_size: 4, weights, choice: Choice::Even, readings };
    Box::new(Mixture::new(pools(directory), settings, Streams::new(9)).expect("sound"))
}

fn sets(place: &Place) -> [TrainingSet; 2] {
    [5, 8].map(|seed| {
        let store = store(&place.directory.path().join(format!("eval-{seed}")), &sequences(5, seed));
        TrainingSet::in_order(store, ROW, Packing::BestFit, 4)
    })
}

fn run(
    place: &Place,
    decoder: &mut Decoder,
    curriculum: Box<dyn Curriculum>,
    config: &TrainConfig,
    probe: Probe,
    notes: &Notes,
) -> Result<TrainOutcome, TrainError> {
    let [a, b] = sets(place);
    let measured = vec![Measured::new("a", &a), Measured::new("b", &b)];
    let cancel = probe.cancel.clone();
    Trainer::new(decoder, curriculum, measured, config, place.session(&cancel, notes)).with_hook(probe).run()
}

#[test]
fn a_mixture_that_follows_feedback_resumes_to_the_same_bits() {
    let config = config();
    let (place, mut whole) = (Place::new(), adapted_decoder());
    let curriculum = graph(place.directory.path());
    let outcome = run(&place, &mut whole, curriculum, &config, Probe::idle(), &Notes::default()).expect("trains");
    assert_eq!(outcome.state.evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 2, 4, 6, 8, 10, 11]);
    let bits = place.bits();
    let log = read_log(place.root().join("feedback.log")).expect("readable");
    assert_eq!(log.len(), 7, "every evaluation was recorded");
    assert!(log.iter().all(|report| report.losses.len() == 2));
    let recorded = metrics::read(&place.root()).expect("readable");
    let weights_of = |pool: &str| -> Vec<(u64, f64)> {
        let of =
            |r: &metrics::Record| r.values.iter().find(|v| v.0 == format!("curriculum/{pool}")).map(|v| (r.step, v.1));
        recorded.iter().filter_map(of).collect()
    };
    let first = weights_of("p0");
    assert!((2..=4).contains(&first.len()), "at most a record per round of three steps: {first:?}");
    assert!(first.windows(2).any(|two| (two[0].1 - two[1].1).abs() > 1e-3), "the weights move: {first:?}");
    for deed in [Deed::Cancel, Deed::Fail] {
        for step in [1, 2, 3, 4, 6, 7, 10] {
            let other = Place::new();
            let mut interrupted = adapted_decoder();
            let curriculum = graph(other.directory.path());
            run(&other, &mut interrupted, curriculum, &config, Probe::after(step, deed), &Notes::default())
                .expect_err("interrupted");
            let mut continued = adapted_decoder();
            let curriculum = graph(other.directory.path());
            let again =
                run(&other, &mut continued, curriculum, &config, Probe::idle(), &Notes::default()).expect("continues");
            assert_eq!(weights(&continued), weights(&whole), "after step {step}");
            assert_eq!(again.state, outcome.state, "after step {step}");
            assert!(other.bits() == bits, "after step {step}: checkpoints or metrics differ");
            assert_eq!(read_log(other.root().join("feedback.log")).expect("readable"), log, "after step {step}");
        }
    }
}

#[test]
fn a_mixture_is_read_by_its_weights_and_counted() {
    let place = Place::new();
    let curriculum = fixed(place.directory.path(), vec![Reading::default(); 3]);
    let config = TrainConfig { max_steps: Some(8), ..config() };
    let outcome = run(&place, &mut decoder(), curriculum, &config, Probe::idle(), &Notes::default()).expect("trains");
    let rows = outcome.state.pools.iter().map(|(name, pool)| (name.as_str(), pool.rows)).collect::<Vec<_>>();
    assert_eq!(rows, [("p0", 8), ("p1", 16), ("p2", 8)]);
    let targets: u64 = outcome.state.pools.values().map(|pool| pool.targets).sum();
    // Every row holds at least one sequence, and one token more than targets for each.
    assert!(outcome.state.totals.tokens >= targets + 32 && outcome.state.totals.trained_tokens <= targets);
    let records = metrics::read(&place.root()).expect("readable");
    let of =
        |tag: &str| records.iter().filter(|r| r.values.iter().any(|v| v.0 == tag)).map(|r| r.step).collect::<Vec<_>>();
    assert_eq!(of("curriculum/p1"), [1], "weights that stand still are recorded once");
    assert_eq!(of("eval/a/loss"), [2, 4, 6, 8]);
    let last = outcome.last_evaluation().expect("measured");
    let (a, b) = (last.sets["a"], last.sets["b"]);
    let mean = (a.nats_per_token * a.weight + b.nats_per_token * b.weight) / (a.weight + b.weight);
    assert!((last.loss.nats_per_token - mean).abs() < 1e-12);
    assert_eq!(last.loss.tokens, a.tokens + b.tokens);
}

#[test]
fn a_curriculum_that_runs_dry_ends_training_with_a_message_also_when_interrupted() {
    let config = TrainConfig { max_steps: Some(40), ..config() };
    let once = || vec![Reading { max_epochs: Some(1), ..Reading::default() }; 3];
    let train = |place: &Place, probe, notes: &Notes| {
        let mut decoder = adapted_decoder();
        let curriculum = fixed(place.directory.path(), once());
        let outcome = run(place, &mut decoder, curriculum, &config, probe, notes);
        (outcome, weights(&decoder))
    };
    let (place, notes) = (Place::new(), Notes::default());
    let (outcome, expected) = train(&place, Probe::idle(), &notes);
    let state = outcome.expect("ends").state;
    let rows: usize = pools(place.directory.path()).iter().map(Pool::rows).sum();
    assert_eq!(state.step, rows.div_ceil(4) as u64);
    assert_eq!(state.evaluations.last().map(|e| e.step), Some(state.step));
    assert_eq!(state.kept.last(), Some(&state.step));
    let told = format!("nothing left after step {} of 40", state.step);
    assert!(notes.all().iter().any(|note| note.contains(&told)), "{:?}", notes.all());
    for step in [state.step - 1, state.step] {
        let other = Place::new();
        train(&other, Probe::after(step, Deed::Cancel), &Notes::default()).0.expect_err("interrupted");
        let (again, continued) = train(&other, Probe::idle(), &Notes::default());
        assert_eq!(again.expect("ends").state, state);
        assert_eq!(continued, expected);
        assert!(other.bits() == place.bits());
    }
}

#[test]
fn length_buckets_train_in_steps_of_one_shape_and_know_their_length() {
    let place = Place::new();
    let long: Vec<Sequence> = (0..40u32)
        .map(|n| {
            let len = 5 + (n * n * 7) % 60;
            Sequence::single((0..len).map(|i| (n * 13 + i * 5) % VOCABULARY).collect(), vec![1.0; len as usize])
        })
        .collect();
    let of = |place: &Place| {
        let settings =
            BucketSettings { shortest: 3, longest: 5, over_long: OverLong::Cap, joint: Joint::Apart, tail: Tail::Drop };
        let store = store(&place.directory.path().join("long"), &long);
        let (pools, _) = Pool::buckets(store, settings, Streams::new(4)).expect("readable");
        let settings = LengthSettings {
            tokens_per_step: 64,
            odds: Odds::Grow(2.0),
            cycles: 2,
            order: CycleOrder::Drawn,
            mix: LengthMix::Natural,
            longest_first: false,
            keep_incomplete: false,
        };
        Box::new(Length::new(pools, settings, Streams::new(4)).expect("sound"))
    };
    let steps = of(&place).steps_per_epoch().expect("known");
    let config = TrainConfig { max_steps: None, epochs: 2.0, ..config() };
    let outcome = run(&place, &mut decoder(), of(&place), &config, Probe::idle(), &Notes::default()).expect("trains");
    assert_eq!(outcome.state.step, 2 * steps);
    let targets: u64 = outcome.state.pools.values().map(|pool| pool.targets).sum();
    assert_eq!((targets, outcome.state.totals.trained_tokens), (2 * steps * 64, 2 * steps * 64));
    assert_eq!(outcome.state.pools.keys().collect::<Vec<_>>(), ["16", "32", "8"]);
    let other = Place::new();
    let probe = Probe::after(steps + 1, Deed::Cancel);
    run(&other, &mut decoder(), of(&other), &config, probe, &Notes::default()).expect_err("interrupted");
    let again = run(&other, &mut decoder(), of(&other), &config, Probe::idle(), &Notes::default()).expect("continues");
    assert_eq!(again.state, outcome.state);
    assert!(other.bits() == place.bits());
}

#[test]
fn what_a_curriculum_needs_is_asked_for_by_name() {
    let place = Place::new();
    let refused = |curriculum, config: TrainConfig| {
        let refused = run(&place, &mut decoder(), curriculum, &config, Probe::idle(), &Notes::default());
        refused.expect_err("refused").to_string()
    };
    let here = place.directory.path();
    assert_eq!(
        refused(fixed(here, vec![Reading::default(); 3]), TrainConfig { max_steps: None, ..config() }),
        "`train.max_steps` is missing, and needed for a curriculum that reads without end"
    );
    assert_eq!(
        refused(graph(here), TrainConfig { eval_steps: None, ..config() }),
        "`train.eval_steps` is missing, and needed for a curriculum that follows what is measured"
    );
    let (mut decoder, config, notes) = (decoder(), config(), Notes::default());
    let session = place.session(&Cancel::new(), &notes);
    let error = Trainer::new(&mut decoder, graph(here), Vec::new(), &config, session).run().expect_err("refused");
    assert!(matches!(error, TrainError::NoFeedback), "{error}");
}

#[test]
fn a_broken_step_names_its_rows_with_their_pool() {
    struct Poison;
    impl Hook for Poison {
        fn name(&self) -> &'static str {
            "poison"
        }
        fn after_step(&mut self, _: &StepResult, decoder: &mut Decoder) -> HookResult {
            let id = decoder.parameters().id("model.embed_tokens.weight").expect("a llama has it");
            decoder.parameters_mut().data_mut(id, |data| data.fill(f32::NAN));
            Ok(())
        }
    }
    let place = Place::new();
    let curriculum = fixed(place.directory.path(), vec![Reading::default(); 3]);
    let (mut decoder, notes, config) = (decoder(), Notes::default(), config());
    let session = place.session(&Cancel::new(), &notes);
    let trainer = Trainer::new(&mut decoder, curriculum, Vec::new(), &config, session).with_hook(Poison);
    let error = trainer.run().expect_err("not finite");
    let TrainError::NonFinite { step: 2, rows, .. } = &error else { panic!("{error}") };
    assert!(rows.iter().all(|row| row.starts_with("`made-up.jsonl` row ")), "{rows:?}");
    for pool in ["(`p0`)", "(`p1`)"] {
        assert!(rows.iter().any(|row| row.ends_with(pool)), "{pool} in {rows:?}");
    }
}

#[test]
fn the_trunk_is_kept_and_is_what_a_training_without_the_decay_gives() {
    let place = Place::new();
    let wsd = TrainConfig {
        lr_scheduler: Scheduler::Wsd,
        decay_steps: Some(4),
        save_total_limit: Some(1),
        save_steps: 2,
        ..config()
    };
    let outcome = place.run(&mut decoder(), &wsd, Probe::idle(), &Notes::default()).expect("trains");
    assert_eq!(outcome.trunk_step, Some(7));
    let checkpoints = didact_train::CheckpointStore::new(place.checkpoints());
    assert!(checkpoints.steps().expect("listed").contains(&7));
    let mut trunk = decoder();
    checkpoints.restore_parameters(7, trunk.parameters_mut()).expect("intact");
    let constant = TrainConfig { lr_scheduler: Scheduler::Constant, decay_steps: None, max_steps: Some(7), ..wsd };
    let mut plain = decoder();
    let outcome = Place::new().run(&mut plain, &constant, Probe::idle(), &Notes::default()).expect("trains");
    assert_eq!(outcome.trunk_step, None);
    assert_eq!(weights(&trunk), weights(&plain));
}

#[test]
fn tokens_are_scored_once_each_and_agree_with_the_mean() {
    let place = Place { eval: sequences(9, 2), packing: Packing::Concat, ..Place::new() };
    let config = TrainConfig { max_seq_len: 10, batch_size: 3, ..config() };
    let (set, decoder) = (place.eval_set(&config), decoder());
    let loss = evaluate_loss(&decoder, &set, 2, &Cancel::new()).expect("evaluates").expect("nobody cancels");
    let scores = evaluate_tokens(&decoder, &set, 2, &Cancel::new()).expect("evaluates").expect("nobody cancels");
    let mut seen = BTreeMap::new();
    let mut of_sequences: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    for score in &scores {
        let weight = f64::from(place.eval[score.sequence as usize].weight[score.position as usize]);
        assert!(weight != 0.0 && seen.insert((score.sequence, score.position), score.nll).is_none());
        let (sum, total) = of_sequences.entry(score.sequence).or_default();
        *sum += weight * f64::from(score.nll);
        *total += weight;
    }
    let expected: usize = place.eval.iter().map(|s| s.weight.iter().skip(1).filter(|w| **w != 0.0).count()).sum();
    assert_eq!((scores.len(), loss.tokens as usize), (expected, expected));
    let (sum, total) = of_sequences.values().fold((0.0, 0.0), |(s, t), (sum, total)| (s + sum, t + total));
    // Logits of f32, summed in f64 here and in f32 there.
    assert!((sum / total - loss.nats_per_token).abs() < 1e-5);
    let mean = of_sequences.values().map(|(sum, total)| sum / total).sum::<f64>() / of_sequences.len() as f64;
    assert!((mean - loss.mean_of_examples).abs() < 1e-5 && loss.examples as usize == of_sequences.len());
    assert!(scores.iter().all(|s| s.is_greedy || s.nll > 0.693), "more than half of the likelihood is the most");
}

#[test]
fn greedy_tokens_are_those_that_were_learned_by_heart() {
    let place = Place { train: sequences(4, 0), eval: sequences(4, 0), packing: Packing::None, ..Place::new() };
    let config = TrainConfig {
        learning_rate: 1e-2,
        lr_scheduler: Scheduler::Constant,
        max_steps: Some(120),
        warmup_steps: Some(0),
        eval_steps: None,
        save_steps: 1000,
        gradient_accumulation_steps: 1,
        ..config()
    };
    let mut decoder = decoder();
    let set = place.eval_set(&config);
    let share = |decoder: &Decoder| {
        let scores = evaluate_tokens(decoder, &set, 1, &Cancel::new()).expect("evaluates").expect("nobody cancels");
        scores.iter().filter(|s| s.is_greedy).count() as f64 / scores.len() as f64
    };
    let before = share(&decoder);
    place.run(&mut decoder, &config, Probe::idle(), &Notes::default()).expect("trains");
    assert!(before < 0.2 && share(&decoder) > 0.9, "{before} before, {} after", share(&decoder));
}
