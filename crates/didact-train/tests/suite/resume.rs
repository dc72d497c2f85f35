//! A training that was stopped, killed or damaged and then continued ends in the bits of one that was not.

use crate::support::{Deed, Notes, Place, Probe, adapted_decoder, decoder, weights};
use didact_core::files;
use didact_train::{Scheduler, TrainConfig, TrainError};

/// Fifteen steps over two epochs and a half, with everything on that has a state.
fn config() -> TrainConfig {
    TrainConfig {
        learning_rate: 3e-3,
        lr_scheduler: Scheduler::Cosine,
        warmup_steps: Some(3),
        batch_size: 4,
        gradient_accumulation_steps: 2,
        max_seq_len: 24,
        max_steps: Some(11),
        weight_decay: 0.1,
        eval_steps: Some(4),
        save_steps: 3,
        ..TrainConfig::default()
    }
}

fn uninterrupted(config: &TrainConfig) -> (Place, Vec<(String, Vec<f32>)>) {
    let place = Place::new();
    let mut decoder = adapted_decoder();
    let outcome = place.run(&mut decoder, config, Probe::idle(), &Notes::default()).expect("trains");
    assert_eq!((outcome.state.step, outcome.resumed_from), (11, None));
    (place, weights(&decoder))
}

#[test]
fn stopped_and_killed_runs_end_in_the_same_bits() {
    let config = config();
    let (place, expected) = uninterrupted(&config);
    let bits = place.bits();
    for deed in [Deed::Cancel, Deed::Fail] {
        for step in 1..11 {
            let other = Place::new();
            let error = other
                .run(&mut adapted_decoder(), &config, Probe::after(step, deed), &Notes::default())
                .expect_err("interrupted");
            match (deed, &error) {
                (Deed::Cancel, TrainError::Cancelled { step: at, total_steps: 11 }) => assert_eq!(*at, step),
                (Deed::Fail, TrainError::Hook { .. }) => {}
                _ => panic!("after step {step}: {error}"),
            }
            let mut decoder = adapted_decoder();
            let outcome = other.run(&mut decoder, &config, Probe::idle(), &Notes::default()).expect("continues");
            match (deed, outcome.resumed_from) {
                (Deed::Cancel, from) => assert_eq!(from, Some(step)),
                // Every third step was saved, and the step that failed was not.
                (Deed::Fail, from) => {
                    let from = from.unwrap_or(0);
                    assert!(from < step && from + 3 >= step, "from step {from} after a failure in step {step}");
                }
            }
            assert_eq!(weights(&decoder), expected, "after step {step}");
            assert!(other.bits() == bits, "after step {step}: checkpoints or metrics differ");
        }
    }
}

#[test]
fn a_run_stopped_again_and_again_ends_in_the_same_bits() {
    let config = config();
    let (place, expected) = uninterrupted(&config);
    let other = Place::new();
    for step in 1..11 {
        let probe = Probe::after(step, Deed::Cancel);
        let error = other.run(&mut adapted_decoder(), &config, probe, &Notes::default()).expect_err("interrupted");
        assert!(matches!(error, TrainError::Cancelled { .. }), "{error}");
    }
    let mut decoder = adapted_decoder();
    other.run(&mut decoder, &config, Probe::idle(), &Notes::default()).expect("continues");
    assert_eq!(weights(&decoder), expected);
    assert!(other.bits() == place.bits());
}

#[test]
fn a_finished_run_is_taken_up_at_its_end() {
    let config = config();
    let (place, expected) = uninterrupted(&config);
    let bits = place.bits();
    let mut decoder = adapted_decoder();
    let outcome = place.run(&mut decoder, &config, Probe::idle(), &Notes::default()).expect("nothing to do");
    assert_eq!(outcome.resumed_from, Some(11));
    assert_eq!(weights(&decoder), expected);
    assert!(place.bits() == bits);
}

#[test]
fn full_fine_tuning_resumes_to_the_same_bits() {
    let config = TrainConfig { max_steps: Some(6), ..config() };
    let place = Place::new();
    let mut whole = decoder();
    place.run(&mut whole, &config, Probe::idle(), &Notes::default()).expect("trains");
    let other = Place::new();
    let probe = Probe::after(2, Deed::Cancel);
    other.run(&mut decoder(), &config, probe, &Notes::default()).expect_err("interrupted");
    let mut continued = decoder();
    other.run(&mut continued, &config, Probe::idle(), &Notes::default()).expect("continues");
    assert_eq!(weights(&continued), weights(&whole));
    assert!(other.bits() == place.bits());
}

#[test]
fn the_number_of_threads_does_not_show() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let place = Place::new();
            let mut decoder = adapted_decoder();
            place.run(&mut decoder, &config(), Probe::idle(), &Notes::default()).expect("trains");
            (weights(&decoder), place.bits())
        })
    };
    let one = run(1);
    assert!(run(2) == one, "two threads");
    assert!(run(5) == one, "five threads");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_by_name() {
    let config = config();
    let (whole, expected) = uninterrupted(&config);
    type Damage = fn(&mut Vec<u8>);
    let flip: Damage = |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    };
    let cut: Damage = |bytes| bytes.truncate(bytes.len() * 2 / 3);
    let empty: Damage = Vec::clear;
    for (file, damage) in [
        ("model.safetensors", flip),
        ("model.safetensors", cut),
        ("optimizer.safetensors", flip),
        ("optimizer.safetensors", empty),
        ("state.json", flip),
        ("state.json", cut),
    ] {
        let place = Place::new();
        let probe = Probe::after(10, Deed::Cancel);
        place.run(&mut adapted_decoder(), &config, probe, &Notes::default()).expect_err("interrupted");
        let path = place.checkpoints().join("checkpoint-10").join(file);
        let mut bytes = std::fs::read(&path).expect("a file of the checkpoint");
        damage(&mut bytes);
        files::write_atomic(&path, &bytes).expect("can be written");

        let notes = Notes::default();
        let mut decoder = adapted_decoder();
        let outcome = place.run(&mut decoder, &config, Probe::idle(), &notes).expect("continues");
        assert_eq!(outcome.resumed_from, Some(9), "{file}");
        let named = format!("checkpoint passed over: `{}`", path.display());
        assert!(notes.all().iter().any(|note| note.starts_with(&named)), "{:?}", notes.all());
        assert_eq!(weights(&decoder), expected, "{file}");
        assert!(place.bits() == whole.bits(), "{file}");
    }
}

#[test]
fn what_a_killed_process_was_writing_is_removed() {
    let config = config();
    let place = Place::new();
    let unfinished = place.checkpoints().join(".unfinished-checkpoint-7");
    files::create_dir_all(&unfinished).expect("can be created");
    files::write_atomic(unfinished.join("model.safetensors"), b"half").expect("can be written");
    place.run(&mut adapted_decoder(), &config, Probe::idle(), &Notes::default()).expect("trains");
    assert!(!unfinished.exists());
}
