//! Against PyTorch: `golden/train/make.py` makes the numbers.

use std::path::PathBuf;

use crate::support::{Notes, Place, store};
use burn::tensor::Device;
use didact_core::cancel::Cancel;
use didact_core::metrics;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_kernels::adamw::{AdamWStep, adamw_update};
use didact_model::{Checkpoint, Decoder};
use didact_train::{Scheduler, TrainConfig, Trainer};
use serde::Deserialize;

/// First ten losses against the reference trainer, in nats; measured 6e-7.
const TRAIN_F32: f64 = 1e-5;
/// A gradient norm, relative, after up to nine updates (`MODEL_F32`'s figure; measured 4e-7).
const NORM: f64 = 1e-4;
/// A weight after ten steps, in steps' lengths; measured 2e-4.
const WEIGHT: f64 = 1e-3;
/// The norm of a parameter after ten steps, relative; measured 3e-9. Decaying the gains as well moves theirs by 1e-4.
const WEIGHT_NORM: f64 = 1e-7;
/// AdamW's arithmetic in `f32`: relative to the parameter, which is about 1; measured 3e-7.
const ADAMW: f64 = 2e-6;

fn golden<T: for<'de> Deserialize<'de>>(name: &str) -> T {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/train").join(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: Option<f64>,
}

#[derive(Deserialize)]
struct Values {
    matrix: Vec<f64>,
    gain: Vec<f64>,
}

#[derive(Deserialize)]
struct Step {
    lr: f64,
    grads: Values,
    after: Values,
}

#[derive(Deserialize)]
struct AdamWGolden {
    settings: Settings,
    start: Values,
    steps: Vec<Step>,
}

/// The definition, in f64.
struct Reference {
    values: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
}

impl Reference {
    fn update(&mut self, settings: &Settings, lr: f64, decay: f64, step: i32, gradient: &[f64]) {
        let Settings { beta1, beta2, eps, .. } = *settings;
        for (i, &g) in gradient.iter().enumerate() {
            self.values[i] -= lr * decay * self.values[i];
            self.first[i] = beta1 * self.first[i] + (1.0 - beta1) * g;
            self.second[i] = beta2 * self.second[i] + (1.0 - beta2) * g * g;
            let mean = self.first[i] / (1.0 - beta1.powi(step));
            let square = self.second[i] / (1.0 - beta2.powi(step));
            self.values[i] -= lr * mean / (square.sqrt() + eps);
        }
    }
}

fn assert_near(what: &str, actual: &[f64], expected: &[f64]) {
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= ADAMW * e.abs().max(0.1), "{what}: {a}, expected {e}");
    }
}

#[test]
fn adamw_follows_pytorch_and_its_definition_over_several_steps() {
    let AdamWGolden { settings, start, steps } = golden("adamw.json");
    let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
    let f64s = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
    for (name, decay, pick) in
        [("matrix", settings.weight_decay, (|v| &v.matrix) as fn(&Values) -> &Vec<f64>), ("gain", 0.0, |v| &v.gain)]
    {
        let mut ours = f32s(pick(&start));
        let (mut first, mut second) = (vec![0.0; ours.len()], vec![0.0; ours.len()]);
        let zeros = vec![0.0; ours.len()];
        let mut reference = Reference { values: pick(&start).clone(), first: zeros.clone(), second: zeros };
        for (number, step) in (1..).zip(&steps) {
            let (learning_rate, gradient) = (step.lr, f32s(pick(&step.grads)));
            let settings_of_step = AdamWStep {
                learning_rate,
                beta1: settings.beta1,
                beta2: settings.beta2,
                eps: settings.eps,
                weight_decay: decay,
                step: number,
                grad_scale: 1.0,
            };
            adamw_update(&mut ours, &gradient, &mut first, &mut second, &settings_of_step);
            reference.update(&settings, learning_rate, decay, number as i32, &f64s(&gradient));
            assert_near(&format!("{name}, step {number}, definition"), &f64s(&ours), &reference.values);
            assert_near(&format!("{name}, step {number}, PyTorch"), &f64s(&ours), pick(&step.after));
        }
    }
}

#[derive(Deserialize)]
struct GoldenSequence {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

#[derive(Deserialize)]
struct GoldenParameter {
    norm: f64,
    first: Vec<f64>,
}

#[derive(Deserialize)]
struct LlamaGolden {
    settings: Settings,
    sequences: Vec<GoldenSequence>,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    after: std::collections::BTreeMap<String, GoldenParameter>,
}

#[test]
fn the_first_ten_losses_norms_and_the_weights_are_those_of_pytorch() {
    let LlamaGolden { settings, sequences, losses, grad_norms, after } = golden("llama.json");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/llama");
    let load = || Decoder::load(&Checkpoint::open(&path).expect("a fixture"), &Device::flex()).expect("a fixture");
    let sequences: Vec<_> = sequences.into_iter().map(|s| Sequence::single(s.ids, s.weights)).collect();
    // In one row each, packed, and in micro-batches: all the same numbers.
    for (packing, accumulation) in [(Packing::None, 1), (Packing::BestFit, 1), (Packing::None, 3)] {
        let place = Place::new();
        let config = TrainConfig {
            learning_rate: settings.lr,
            lr_scheduler: Scheduler::Constant,
            warmup_steps: Some(0),
            batch_size: 6,
            gradient_accumulation_steps: accumulation,
            max_seq_len: 64,
            max_steps: Some(10),
            weight_decay: settings.weight_decay,
            adam_beta1: settings.beta1,
            adam_beta2: settings.beta2,
            adam_epsilon: settings.eps,
            max_grad_norm: settings.max_grad_norm,
            ..TrainConfig::default()
        };
        let set = TrainingSet::in_order(store(&place.root(), &sequences), 64, packing, 6);
        assert_eq!(set.batches_per_epoch(), 1);
        let (mut decoder, notes) = (load(), Notes::default());
        let trainer = Trainer::new(&mut decoder, &set, Vec::new(), &config, place.session(&Cancel::new(), &notes));
        trainer.run().expect("trains");
        let records = metrics::read(&place.root()).expect("metrics can be read");
        let value = |step: usize, tag: &str| {
            records[step].values.iter().find(|(name, _)| name == tag).map(|(_, value)| *value).expect("recorded")
        };
        for step in 0..10 {
            let difference = (value(step, "train/loss") - losses[step]).abs();
            assert!(difference <= TRAIN_F32, "{packing:?}, step {step}: losses differ by {difference:e}");
            let difference = (value(step, "train/grad_norm") / grad_norms[step] - 1.0).abs();
            assert!(difference <= NORM, "{packing:?}, step {step}: norms differ by {difference:e}");
        }
        for (_, parameter) in decoder.parameters().iter() {
            let expected = &after[parameter.name()];
            let values = parameter.to_vec();
            let norm = values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            assert!((norm / expected.norm - 1.0).abs() <= WEIGHT_NORM, "{}: norm {norm}", parameter.name());
            for (&actual, expected) in values.iter().zip(&expected.first) {
                let difference = (f64::from(actual) - expected).abs();
                assert!(difference <= WEIGHT * settings.lr, "{}: differs by {difference:e}", parameter.name());
            }
        }
    }
}
