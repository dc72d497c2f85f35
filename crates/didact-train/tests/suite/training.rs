//! What training does, and that it does it as stated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::support::{
    Notes, Place, Probe, VOCABULARY, adapted_decoder, decoder, model_config, sequences, store, weights,
};
use burn::tensor::Device;
use didact_core::cancel::Cancel;
use didact_core::metrics;
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::{Batch, TrainingSet};
use didact_data::packing::Packing;
use didact_model::{Decoder, DecoderInput, ForwardMode, loss};
use didact_train::accumulate::GradientBuffers;
use didact_train::optimizer::{AdamW, AdamWSettings};
use didact_train::{
    Hook, HookResult, Scheduler, StepPlan, StepResult, TrainConfig, TrainError, Trainer, evaluate_loss, measure_steps,
};

/// A gradient summed in two orders, relative to its tensor's largest element: sums of a few hundred `f32` terms of mixed
/// sign. Measured 6e-7 at most; the mean of the micro-batches' means is off by 0.07 to 1.5.
const SAME_GRADIENT: f32 = 5e-6;
/// Losses of tokens (a few nats) in rows of different layout.
const SAME_LOSS: f32 = 1e-5;

fn config() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        lr_scheduler: Scheduler::Constant,
        warmup_steps: Some(0),
        batch_size: 16,
        max_seq_len: 24,
        max_steps: Some(1),
        max_grad_norm: None,
        ..TrainConfig::default()
    }
}

/// Keeps the gradients of each step.
#[derive(Clone, Default)]
struct Gradients(Arc<Mutex<Vec<Vec<Vec<f32>>>>>);

impl Hook for Gradients {
    fn name(&self) -> &'static str {
        "gradients"
    }

    fn after_gradients(&mut self, _: &StepPlan, _: &Decoder, gradients: &mut GradientBuffers) -> HookResult {
        let mut all = Vec::new();
        gradients.for_each(|_, gradient| all.push(gradient.to_vec()));
        self.0.lock().expect("no panic while it was held").push(all);
        Ok(())
    }
}

#[test]
fn four_times_four_rows_are_sixteen_rows_also_with_uneven_masks() {
    let first_step = |accumulation: usize| {
        let place = Place { packing: Packing::None, train: sequences(16, 0), ..Place::new() };
        let config = TrainConfig { gradient_accumulation_steps: accumulation, ..config() };
        let (mut decoder, kept) = (decoder(), Gradients::default());
        let train = place.train_set(&config);
        let notes = Notes::default();
        let trainer = Trainer::new(&mut decoder, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes));
        let outcome = trainer.with_hook(kept.clone()).run().expect("trains");
        let gradients = kept.0.lock().expect("no panic while it was held").remove(0);
        (outcome.state, gradients)
    };
    let (whole, expected) = first_step(1);
    for parts in [2, 4, 8, 16] {
        let (split, gradients) = first_step(parts);
        assert_eq!(split.totals.weight, whole.totals.weight);
        assert_eq!(split.totals.trained_tokens, whole.totals.trained_tokens);
        let difference = (split.first_loss.expect("a loss") - whole.first_loss.expect("a loss")).abs();
        assert!(difference <= f64::from(SAME_LOSS), "{parts} parts: losses differ by {difference:e}");
        for (actual, expected) in gradients.iter().zip(&expected) {
            let scale = expected.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            let worst = actual.iter().zip(expected).map(|(a, e)| (a - e).abs()).fold(0.0, f32::max) / scale;
            assert!(worst <= SAME_GRADIENT, "{parts} parts: gradients differ by {worst:e}");
        }
    }
}

#[test]
fn the_gradient_is_scaled_down_to_the_norm_allowed_and_never_up() {
    // AdamW divides its scale out again, but the first moment after one step is `(1 − β₁)` times what it was given.
    let moment_norm = |limit: Option<f64>| {
        let place = Place::new();
        let config = TrainConfig { max_grad_norm: limit, ..config() };
        place.run(&mut decoder(), &config, Probe::idle(), &Notes::default()).expect("trains");
        let bytes =
            std::fs::read(place.checkpoints().join("checkpoint-1/optimizer.safetensors")).expect("a checkpoint");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let of_tensor = |name: &str| -> f64 {
            let data = tensors.tensor(name).expect("listed").data().as_chunks::<4>().0;
            data.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)).powi(2)).sum()
        };
        let mut names = tensors.names();
        names.sort_unstable();
        let squares: f64 = names.into_iter().filter(|name| name.ends_with(".exp_avg")).map(of_tensor).sum();
        let records = metrics::read(&place.root()).expect("metrics can be read");
        let logged = records[0].values.iter().find(|(name, _)| name == "train/grad_norm").expect("recorded").1;
        (squares.sqrt() / (1.0 - config.adam_beta1), logged)
    };
    let (unclipped, norm) = moment_norm(None);
    // Rounding to `f32`, twice.
    let is_near = |actual: f64, expected: f64| (actual / expected - 1.0).abs() < 1e-5;
    assert!(is_near(unclipped, norm));
    assert_eq!(moment_norm(Some(2.0 * norm)), (unclipped, norm));
    let (clipped, logged) = moment_norm(Some(0.25 * norm));
    assert!(is_near(clipped, 0.25 * norm), "{clipped} of {norm}");
    assert_eq!(logged, norm);
}

/// The loss of every target by (sequence, token).
fn losses_by_token(decoder: &Decoder, set: &TrainingSet) -> BTreeMap<(u32, u32), f32> {
    let mut losses = BTreeMap::new();
    for step in 0..set.batches_per_epoch() {
        let batch = set.batch(step).expect("an intact store");
        let Batch { rows, len, ids, segment, position, .. } = &batch;
        let input = DecoderInput { ids, segments: segment, positions: position, rows: *rows, len: *len };
        let result = loss::next_token(decoder, &input, &batch.targets, &batch.weight, &ForwardMode::Eval);
        for (&at, &nll) in result.at.iter().zip(&result.per_token) {
            // Target `i` of a row is token `i + 1` of the pieces laid end to end.
            let (row, mut token) = (at as usize / len, (at as usize % len) as u32 + 1);
            for piece in &batch.examples[row] {
                if token < piece.len {
                    assert!(losses.insert((piece.sequence, piece.start + token), nll).is_none());
                    break;
                }
                token -= piece.len;
            }
        }
    }
    losses
}

#[test]
fn packed_documents_have_the_loss_they_have_alone() {
    let place = Place::new();
    let directory = place.root();
    let set = |packing, batch_size, row_len| {
        TrainingSet::in_order(store(&directory, &place.train), row_len, packing, batch_size)
    };
    let decoder = decoder();
    let alone = losses_by_token(&decoder, &set(Packing::None, 1, 64));
    let packed_set = set(Packing::BestFit, 3, 64);
    assert!(packed_set.rows() * 2 < place.train.len(), "nothing is packed");
    let packed = losses_by_token(&decoder, &packed_set);
    let trained = place.train.iter().flat_map(|s| &s.weight).filter(|&&w| w != 0.0).count();
    assert_eq!((alone.len(), packed.len()), (trained, trained));
    for (token, loss) in &alone {
        let other = packed[token];
        assert!((loss - other).abs() <= SAME_LOSS, "{token:?}: {loss} alone, {other} packed");
    }
}

#[test]
fn the_loss_falls_on_what_can_be_memorised() {
    let place = Place { train: sequences(6, 0), ..Place::new() };
    let config = TrainConfig { batch_size: 4, max_steps: Some(60), max_grad_norm: Some(1.0), ..config() };
    let outcome = place.run(&mut decoder(), &config, Probe::idle(), &Notes::default()).expect("trains");
    let (first, last) = (outcome.state.first_loss.expect("a loss"), outcome.final_loss.expect("a loss"));
    assert!(last < 0.2 * first, "from {first} to {last}");
    assert!(first > 3.0 && outcome.tokens_per_s > 0.0 && outcome.predicted_seconds.is_some());
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_rows_and_parameter() {
    /// Breaks the embedding of one token after a step.
    struct Poison;
    impl Hook for Poison {
        fn name(&self) -> &'static str {
            "poison"
        }
        fn after_step(&mut self, result: &StepResult, decoder: &mut Decoder) -> HookResult {
            if result.step == 5 {
                let id = decoder.parameters().id("model.embed_tokens.weight").expect("a llama has it");
                decoder.parameters_mut().data_mut(id, |data| data[60 * 16 + 3] = f32::NAN);
            }
            Ok(())
        }
    }
    // Token 60 is in the sequences of rows 3 and 8 of the file only.
    let train: Vec<_> = (0..10u32)
        .map(|n| {
            Sequence::single(
                (0..8).map(|i| if i == 2 && (n == 2 || n == 7) { 60 } else { (n * 5 + i) % 50 }).collect(),
                vec![1.0; 8],
            )
        })
        .collect();
    let place = Place { packing: Packing::None, train, ..Place::new() };
    let config = TrainConfig { batch_size: 10, max_steps: Some(8), save_steps: 2, ..config() };
    let train = place.train_set(&config);
    let notes = Notes::default();
    let mut broken = decoder();
    let trainer = Trainer::new(&mut broken, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes));
    let error = trainer.with_hook(Poison).run().expect_err("the loss is not finite");
    let TrainError::NonFinite { step: 6, rows, parameter, checkpoint: Some(4), .. } = &error else {
        panic!("{error}");
    };
    let mut rows = rows.clone();
    rows.sort();
    assert_eq!(rows, ["`made-up.jsonl` row 3", "`made-up.jsonl` row 8"]);
    assert_eq!(parameter.as_deref(), Some("model.embed_tokens.weight"));
    let text = error.to_string();
    assert!(
        text.starts_with("the loss is not finite in step 6 (first in parameter `model.embed_tokens.weight`); rows: ")
    );
    assert!(text.ends_with("; the checkpoint of step 4 is intact"), "{text}");

    let mut mended = decoder();
    let trainer = Trainer::new(&mut mended, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes));
    let outcome = trainer.run().expect("continues from the intact checkpoint");
    assert_eq!(outcome.resumed_from, Some(4));
}

#[test]
fn a_gradient_that_is_not_finite_stops_before_the_update() {
    struct Infinite;
    impl Hook for Infinite {
        fn name(&self) -> &'static str {
            "infinite"
        }
        fn after_gradients(&mut self, plan: &StepPlan, _: &Decoder, gradients: &mut GradientBuffers) -> HookResult {
            gradients.for_each(|name, gradient| {
                if plan.step == 0 && name.ends_with("1.mlp.up_proj.weight") {
                    gradient[7] = f32::INFINITY;
                }
            });
            Ok(())
        }
    }
    let place = Place::new();
    let config = TrainConfig { batch_size: 2, ..config() };
    let train = place.train_set(&config);
    let mut decoder = decoder();
    let before = weights(&decoder);
    let notes = Notes::default();
    let trainer = Trainer::new(&mut decoder, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes));
    let error = trainer.with_hook(Infinite).run().expect_err("a gradient is infinite");
    let text = error.to_string();
    let beginning = "the gradient is not finite in step 1 (first in parameter `model.layers.1.mlp.up_proj.weight`); rows: \
                     `made-up.jsonl` row ";
    assert!(text.starts_with(beginning) && text.ends_with("; no checkpoint was saved yet"), "{text}");
    assert_eq!(weights(&decoder), before);
}

#[test]
fn the_best_and_the_last_checkpoint_stay_and_the_best_can_be_loaded() {
    // Learning six sequences by heart makes others unlikely.
    let place = Place { train: sequences(6, 0), ..Place::new() };
    let config = TrainConfig {
        batch_size: 4,
        max_steps: Some(40),
        eval_steps: Some(3),
        save_steps: 7,
        load_best: true,
        ..config()
    };
    let mut decoder = decoder();
    let outcome = place.run(&mut decoder, &config, Probe::idle(), &Notes::default()).expect("trains");
    let best = outcome.state.best.clone().expect("evaluations were made");
    let lowest = outcome.state.evaluations.iter().map(|e| e.loss.nats_per_token).fold(f64::INFINITY, f64::min);
    assert_eq!(best.loss.nats_per_token, lowest);
    assert!(best.step < 40, "nothing to choose between");
    assert_eq!(outcome.weights_of_step, best.step);
    assert_eq!(outcome.last_evaluation().map(|e| e.step), Some(40));
    let found = didact_train::CheckpointStore::new(place.checkpoints()).steps().expect("can be listed");
    assert_eq!(found, [best.step, 40]);
    let eval = place.eval_set(&config);
    let again = evaluate_loss(&decoder, &eval, 1, &Cancel::new()).expect("evaluates").expect("nobody cancels");
    assert_eq!(again, best.loss);
    assert!((again.perplexity().ln() - again.nats_per_token).abs() < 1e-12);
}

#[test]
fn every_evaluation_and_step_is_in_the_metrics_once() {
    let place = Place::new();
    let config = TrainConfig { batch_size: 4, max_steps: Some(5), eval_steps: Some(2), ..config() };
    place.run(&mut decoder(), &config, Probe::idle(), &Notes::default()).expect("trains");
    let records = metrics::read(&place.root()).expect("metrics can be read");
    let steps_of = |tag: &str| -> Vec<u64> {
        records.iter().filter(|r| r.values.iter().any(|(name, _)| name == tag)).map(|r| r.step).collect()
    };
    assert_eq!(steps_of("train/loss"), [1, 2, 3, 4, 5]);
    assert_eq!(steps_of("train/learning_rate"), [1, 2, 3, 4, 5]);
    assert_eq!(steps_of("train/grad_norm"), [1, 2, 3, 4, 5]);
    assert_eq!(steps_of("eval/loss"), [2, 4, 5]);
}

#[test]
fn a_step_without_weights_updates_nothing_and_is_counted() {
    // A long context before a short answer, cut into rows of eight: whole rows have nothing to learn.
    let long = Sequence::single(
        (0..40).map(|i| i % VOCABULARY).collect(),
        (0..40).map(|i| f32::from(u8::from(i > 36))).collect(),
    );
    let place = Place { packing: Packing::None, train: vec![long], ..Place::new() };
    let config = TrainConfig { batch_size: 1, max_seq_len: 8, max_steps: None, epochs: 2.0, ..config() };
    let train = place.train_set(&config);
    let rows = train.batches_per_epoch();
    let notes = Notes::default();
    let mut decoder = decoder();
    let trainer = Trainer::new(&mut decoder, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes));
    let outcome = trainer.run().expect("trains, and the weights of both epochs add up");
    assert_eq!(outcome.state.step, 2 * rows);
    assert_eq!(outcome.state.totals.empty_steps, 2 * (rows - 1));
    assert_eq!(outcome.state.updates, 2);
    assert_eq!(outcome.state.totals.weight, 6.0);
    assert_eq!(notes.all().iter().filter(|n| n.contains("has no token with a weight")).count() as u64, 2 * (rows - 1));
}

#[test]
fn hooks_are_called_at_their_moments_in_order() {
    #[derive(Clone)]
    struct Diary(&'static str, Arc<Mutex<Vec<String>>>);
    impl Diary {
        fn note(&self, text: &str) {
            self.1.lock().expect("no panic while it was held").push(format!("{} {text}", self.0));
        }
    }
    impl Hook for Diary {
        fn name(&self) -> &str {
            self.0
        }
        fn before_step(&mut self, plan: &StepPlan, _: &Decoder, batches: &mut Vec<Batch>) -> HookResult {
            self.note(&format!("before {} of {} with {}", plan.step, plan.total_steps, batches.len()));
            Ok(())
        }
        fn after_gradients(&mut self, plan: &StepPlan, _: &Decoder, _: &mut GradientBuffers) -> HookResult {
            self.note(&format!("gradients {}", plan.step));
            Ok(())
        }
        fn after_step(&mut self, result: &StepResult, _: &mut Decoder) -> HookResult {
            self.note(&format!("after {}", result.step));
            Ok(())
        }
        fn on_checkpoint(&mut self, step: u64) -> HookResult {
            self.note(&format!("checkpoint {step}"));
            Ok(())
        }
    }
    let place = Place::new();
    let config = TrainConfig { batch_size: 4, gradient_accumulation_steps: 2, max_steps: Some(2), ..config() };
    let train = place.train_set(&config);
    let (mut decoder, notes, diary) = (decoder(), Notes::default(), Arc::default());
    Trainer::new(&mut decoder, &train, Vec::new(), &config, place.session(&Cancel::new(), &notes))
        .with_hook(Diary("a", Arc::clone(&diary)))
        .with_hook(Diary("b", Arc::clone(&diary)))
        .run()
        .expect("trains");
    let moments = [
        "before 0 of 2 with 2",
        "gradients 0",
        "after 1",
        "before 1 of 2 with 2",
        "gradients 1",
        "after 2",
        "checkpoint 2",
    ];
    let expected: Vec<String> = moments.iter().flat_map(|m| [format!("a {m}"), format!("b {m}")]).collect();
    assert_eq!(*diary.lock().expect("no panic while it was held"), expected);
}

#[test]
fn parameters_and_moments_keep_their_addresses() {
    let place = Place::new();
    let config = TrainConfig { batch_size: 4, ..config() };
    let set = place.train_set(&config);
    let mut decoder = adapted_decoder();
    let mut optimizer = AdamW::new(decoder.parameters(), AdamWSettings::new(&config));
    let addresses = |decoder: &Decoder, optimizer: &AdamW| -> Vec<usize> {
        let parameters = decoder.parameters();
        let of_moments =
            optimizer.moments().iter().flat_map(|m| [m.first().as_ptr() as usize, m.second().as_ptr() as usize]);
        parameters.iter().map(|(id, _)| parameters.with_data(id, |d| d.as_ptr() as usize)).chain(of_moments).collect()
    };
    let before = addresses(&decoder, &optimizer);
    let mut gradients = GradientBuffers::new(decoder.parameters());
    for step in 0..3 {
        let batch = set.batch(step).expect("an intact store");
        let Batch { rows, len, ids, segment, position, .. } = &batch;
        let input = DecoderInput { ids, segments: segment, positions: position, rows: *rows, len: *len };
        let mode = ForwardMode::Train { dropout_key: step };
        gradients.add(decoder.parameters(), || {
            let result = loss::next_token(&decoder, &input, &batch.targets, &batch.weight, &mode);
            ((), Some((result.loss_sum.backward(), result.total_weight)))
        });
        gradients.divide_by_weight();
        optimizer.update(decoder.parameters_mut(), &gradients, 1e-3, 1.0);
        gradients.clear();
    }
    assert_eq!(addresses(&decoder, &optimizer), before);
    assert_eq!(optimizer.step(), 3);
}

#[test]
fn measuring_changes_nothing() {
    let place = Place::new();
    let config = TrainConfig { batch_size: 4, max_steps: Some(10), ..config() };
    let decoder = adapted_decoder();
    let before = weights(&decoder);
    let time = measure_steps(&decoder, &place.train_set(&config), &config, 2).expect("measures");
    assert!(time.seconds_per_step > 0.0 && time.tokens_per_s > 0.0);
    assert_eq!(time.total_seconds, 10.0 * time.seconds_per_step);
    assert_eq!(weights(&decoder), before);
}

#[test]
fn data_without_anything_to_train_is_refused() {
    let nothing = vec![Sequence::single(vec![1, 2, 3], vec![0.0; 3])];
    let place = Place { train: nothing.clone(), eval: nothing, ..Place::new() };
    let error = place.run(&mut decoder(), &config(), Probe::idle(), &Notes::default()).expect_err("nothing to train");
    assert_eq!(error.to_string(), "the training data has no rows to train on");
    let place = Place { eval: place.eval.clone(), ..Place::new() };
    let error = place.run(&mut decoder(), &config(), Probe::idle(), &Notes::default()).expect_err("nothing held out");
    assert_eq!(error.to_string(), "the held-out data has no token with a weight");
}

#[test]
fn ids_outside_the_vocabulary_are_an_error_and_not_a_panic() {
    let foreign = vec![Sequence::single(vec![1, VOCABULARY, 3], vec![1.0; 3])];
    let place = Place { train: foreign, ..Place::new() };
    let mut decoder = Decoder::init(&model_config(true), &Streams::new(1), &Device::flex());
    let error = place.run(&mut decoder, &config(), Probe::idle(), &Notes::default()).expect_err("no such token");
    assert!(error.to_string().contains("token id is 61"), "{error}");
}

#[test]
fn training_ends_where_the_loss_is_low_enough_and_a_second_call_adds_nothing() {
    let place = Place { train: sequences(6, 0), ..Place::new() };
    let config = TrainConfig { batch_size: 4, max_steps: Some(400), save_steps: 1000, ..config() };
    let whole = place.run(&mut decoder(), &config, Probe::idle(), &Notes::default()).expect("trains");
    let lowest = whole.final_loss.expect("has trained");
    let target = 2.0 * lowest;
    let config = TrainConfig { target_loss: Some(target), ..config };
    let place = Place { train: sequences(6, 0), ..Place::new() };
    let mut decoder_of_first = decoder();
    let first = place.run(&mut decoder_of_first, &config, Probe::idle(), &Notes::default()).expect("trains");
    let reached = first.final_loss.expect("has trained");
    assert!(reached <= target && first.state.step < 400, "{reached} after step {}", first.state.step);
    assert_eq!(first.last_evaluation().map(|e| e.step), Some(first.state.step), "the end is measured");
    let mut decoder_of_second = decoder();
    let second = place.run(&mut decoder_of_second, &config, Probe::idle(), &Notes::default()).expect("is done");
    assert_eq!(second.state, first.state);
    assert_eq!(weights(&decoder_of_second), weights(&decoder_of_first), "the weights at the end are kept");
    // One step earlier the mean was above.
    let shorter = TrainConfig { max_steps: Some(first.state.step - 1), target_loss: None, ..config };
    let place = Place { train: sequences(6, 0), ..Place::new() };
    let before = place.run(&mut decoder(), &shorter, Probe::idle(), &Notes::default()).expect("trains");
    assert!(before.final_loss.expect("has trained") > target);
}
