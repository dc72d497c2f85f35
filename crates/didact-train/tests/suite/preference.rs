//! Learning from pairs: the gradient is that of the loss, and the loss goes where it should.

use std::sync::{Arc, Mutex};

use crate::support::{Notes, Place, VOCABULARY, adapted_decoder, decoder};
use didact_core::cancel::Cancel;
use didact_core::metrics;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_model::Decoder;
use didact_train::accumulate::GradientBuffers;
use didact_train::{
    Hook, HookResult, Objective, PairLogProb, PreferenceLoss, PreferenceTable, Scheduler, StepPlan, TrainConfig,
    TrainOutcome, Trainer, pair_log_probs,
};

/// Differences of a loss of a few nats in `f32`, relative to the largest element of a gradient.
const SAME_SLOPE: f64 = 0.05;

/// Pairs with prompts in common and answers of their own, of different lengths and weights.
fn pairs(count: u32) -> Vec<Sequence> {
    (0..count)
        .map(|n| {
            let prompt: Vec<u32> = (0..3 + n % 3).map(|i| (n * 7 + i * 5) % VOCABULARY).collect();
            let (mut ids, mut weight, mut segment) = (Vec::new(), Vec::new(), Vec::new());
            for side in 0..2 {
                let answer = (0..2 + (n + side) % 4).map(|i| (n * 11 + side * 17 + i * 3 + 1) % VOCABULARY);
                let before = ids.len();
                ids.extend(&prompt);
                ids.extend(answer);
                weight.resize(before + prompt.len(), 0.0);
                weight.resize(ids.len(), if n == 1 { 0.5 } else { 1.0 });
                segment.resize(ids.len(), side);
            }
            Sequence { ids, weight, segment }
        })
        .collect()
}

fn place(count: u32) -> Place {
    Place { train: pairs(count), packing: Packing::BestFit, ..Place::new() }
}

fn config() -> TrainConfig {
    TrainConfig {
        learning_rate: 1e-2,
        lr_scheduler: Scheduler::Constant,
        warmup_steps: Some(0),
        batch_size: 8,
        max_seq_len: 40,
        max_steps: Some(1),
        max_grad_norm: None,
        weight_decay: 0.0,
        ..TrainConfig::default()
    }
}

#[derive(Clone, Default)]
struct Gradients(Arc<Mutex<Vec<(String, Vec<f32>)>>>);

impl Hook for Gradients {
    fn name(&self) -> &'static str {
        "gradients"
    }

    fn after_gradients(&mut self, _: &StepPlan, _: &Decoder, gradients: &mut GradientBuffers) -> HookResult {
        let mut all = self.0.lock().expect("no panic while it was held");
        all.clear();
        gradients.for_each(|name, gradient| all.push((name.to_owned(), gradient.to_vec())));
        Ok(())
    }
}

fn train(
    place: &Place,
    decoder: &mut Decoder,
    config: &TrainConfig,
    table: &PreferenceTable,
    reference: &[PairLogProb],
) -> (TrainOutcome, Vec<(String, Vec<f32>)>) {
    let (set, notes, kept) = (place.train_set(config), Notes::default(), Gradients::default());
    let trainer = Trainer::new(decoder, &set, Vec::new(), config, place.session(&Cancel::new(), &notes));
    let objective = Objective::Preference { table, reference };
    let outcome = trainer.with_objective(objective).with_hook(kept.clone()).run().expect("trains");
    let gradients = kept.0.lock().expect("no panic while it was held").clone();
    (outcome, gradients)
}

fn said(decoder: &Decoder, set: &TrainingSet) -> Vec<PairLogProb> {
    pair_log_probs(decoder, set, 1, &Cancel::new()).expect("measured").expect("not stopped")
}

fn mean_loss(table: &PreferenceTable, policy: &[PairLogProb], reference: &[PairLogProb]) -> f64 {
    let nothing = PairLogProb::default();
    let losses = policy.iter().enumerate().map(|(i, pair)| table.of(pair, reference.get(i).unwrap_or(&nothing)).loss);
    losses.sum::<f64>() / policy.len() as f64
}

#[test]
fn sums_are_those_of_the_answers_tokens() {
    let (place, config) = (place(6), config());
    let set = place.train_set(&config);
    let found = said(&decoder(), &set);
    for (pair, sequence) in found.iter().zip(&place.train) {
        let weight_of = |side: u32| -> f64 {
            let tokens = sequence.weight.iter().zip(&sequence.segment).filter(|(_, s)| **s == side);
            tokens.map(|(w, _)| f64::from(*w)).sum()
        };
        assert_eq!((pair.chosen.weight, pair.rejected.weight), (weight_of(0), weight_of(1)));
        assert!(pair.chosen.log_prob < 0.0 && pair.rejected.log_prob < 0.0);
    }
    // A pair alone in its row is the same pair.
    let alone = Place { packing: Packing::None, ..self::place(6) };
    for (a, b) in found.iter().zip(said(&decoder(), &alone.train_set(&config))) {
        assert!((a.chosen.log_prob - b.chosen.log_prob).abs() < 1e-4, "{a:?} {b:?}");
        assert!((a.rejected.log_prob - b.rejected.log_prob).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn the_gradient_is_that_of_the_loss_for_every_objective() {
    for loss in [PreferenceLoss::Dpo, PreferenceLoss::Ipo, PreferenceLoss::Simpo, PreferenceLoss::Orpo] {
        for accumulation in [1, 4] {
            let place = place(5);
            let config = TrainConfig { gradient_accumulation_steps: accumulation, ..config() };
            let table = PreferenceTable { loss, beta: 0.5, gamma: 0.3, nll_weight: 0.1, ..PreferenceTable::default() };
            let set = place.train_set(&config);
            let mut model = decoder();
            // A reference that is another model.
            let mut other = decoder();
            let id = other.parameters().iter().next().expect("there is one").0;
            other.parameters_mut().data_mut(id, |values| values.iter_mut().for_each(|v| *v *= 1.3));
            let reference = said(&other, &set);
            let expected = mean_loss(&table, &said(&model, &set), &reference);
            let (outcome, gradients) = train(&place, &mut model, &config, &table, &reference);
            let found = outcome.state.first_loss.expect("a loss");
            assert!((found - expected).abs() < 1e-5, "{loss:?}: {found} is not {expected}");

            // Along the gradient of each parameter, as far as single precision can see.
            let mut model = decoder();
            for (name, gradient) in &gradients {
                let id = model.parameters().id(name).expect("a parameter of that name");
                let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                if norm < 1e-3 {
                    continue;
                }
                let step = 2e-3 / norm;
                let mut at = |factor: f64| {
                    let move_by = |model: &mut Decoder, factor: f64| {
                        model.parameters_mut().data_mut(id, |values| {
                            for (value, g) in values.iter_mut().zip(gradient) {
                                *value += (factor * step * f64::from(*g)) as f32;
                            }
                        });
                    };
                    move_by(&mut model, factor);
                    let loss = mean_loss(&table, &said(&model, &set), &reference);
                    move_by(&mut model, -factor);
                    loss
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
                let worst = (slope / (norm * norm) - 1.0).abs();
                assert!(worst < SAME_SLOPE || norm < 0.02, "{loss:?} {name}: slope {slope}, gradient {}", norm * norm);
            }
        }
    }
}

#[test]
fn training_starts_at_ln_2_and_learns_the_order() {
    let place = place(8);
    let config = TrainConfig { max_steps: Some(30), learning_rate: 3e-3, ..config() };
    let table = PreferenceTable::default();
    let mut model = decoder();
    let reference = said(&model, &place.train_set(&config));
    let (outcome, _) = train(&place, &mut model, &config, &table, &reference);
    let first = outcome.state.first_loss.expect("a loss");
    assert!((first - std::f64::consts::LN_2).abs() < 1e-6, "the model is its own reference at first: {first}");
    let after = said(&model, &place.train_set(&config));
    let right = after.iter().zip(&reference).filter(|(p, r)| table.of(p, r).margin > 0.0).count();
    assert_eq!(right, 8);
    assert!(mean_loss(&table, &after, &reference) < 0.8 * first);
    let records = metrics::read(&place.root()).expect("metrics can be read");
    let last = records.iter().rev().find_map(|r| r.values.iter().find(|(n, _)| n == "train/rewards/accuracies"));
    assert_eq!(last.expect("recorded").1, 1.0);
    // All the weight that was built was trained: nothing of a pair is lost in the accounts.
    assert_eq!(outcome.state.totals.weight, 30.0 * place.train.iter().map(Sequence::total_weight).sum::<f64>());
}

#[test]
fn an_adapter_with_dropout_sees_the_same_dropout_in_both_passes() {
    // With a learning rate of 0 nothing changes; the loss of a step is then that of its own dropout, twice alike.
    let losses = || {
        let place = place(6);
        let lora = didact_train::LoraTable { rank: 3, dropout: 0.25, ..didact_train::LoraTable::default() };
        let config = TrainConfig { lora: Some(lora), max_steps: Some(3), ..config() };
        let mut model = adapted_decoder();
        let reference = said(&model, &place.train_set(&config));
        train(&place, &mut model, &config, &PreferenceTable::default(), &reference).0.state.recent_losses
    };
    assert_eq!(losses(), losses());
}
