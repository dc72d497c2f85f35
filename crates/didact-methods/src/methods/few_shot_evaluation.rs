//! Few-shot evaluation: a model learns a task from the examples in its prompt, the larger the better.
//!
//! # Reference
//! Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020, arXiv 2005.14165.
//!
//! # What is tried
//! The gap between no example and some examples grows with the model's size. The task is [`classes`]: 32 words of 4 hidden
//! classes, whose labels every document permutes, so that nothing but the examples in the prompt says what a word's label
//! is, and how well one can do after K examples is known exactly. Models of three widths see the same documents in the same
//! order, each for as many steps; the rest of what a larger one costs more is the claim's own condition. Accuracy is measured
//! as everywhere in Didact: the likelihoods of the four labels after the prompt, through `didact-infer`'s scoring.
//!
//! # Choices
//! The paper's models are 125M to 175B parameters; here 0.01M to 0.1M. Weights are drawn wider than usual, see
//! `decoder`. Every width has the learning rate at which its held-out loss was lowest after 800 steps on seed 0, which is not
//! among the reported ones: width 16 of 4e-3, 8e-3, 1.6e-2 and 3.2e-2 (0.979 at 8e-3, 0.960 at 1.6e-2 and 3.2e-2), width 32 of
//! 4e-3, 8e-3 and 1.6e-2 (0.270 at 8e-3, 0.308 at 1.6e-2), width 64 of 2e-3, 4e-3 and 8e-3 (0.316 at 4e-3, 0.325 at 8e-3).
//! Width 8 takes that of width 16, untried. Size s trains 800 steps, size m the 1500 of the specification.
//!
//! `random-labels` is the control: trained on documents whose labels are drawn anew for every pair, it must stay at chance.
//! At test time, examples with random labels must bring the accuracy of the largest model back to chance as well.

use burn::tensor::Device;
use didact_core::generate::{Generator, Prompt, RequestError, TokenLogProbs};
use didact_core::seed::Streams;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_infer::{EngineWeights, LocalGenerator};
use didact_kernels::Precision;
use didact_model::Decoder;
use didact_train::{Scheduler, TrainConfig};
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::Method;
use crate::error::MethodError;
use crate::lab::{self, Shape, Training};
use crate::reproduce::{Arm, Check, Claim, Lab, Outcome, Reproduction, Results, Role, Size};
use crate::synthetic::classes::{self, CLASSES, Classes, Document, Labels, PAIRS};

/// The method.
pub const METHOD: Method = Method {
    slug: "few-shot-evaluation",
    paper: "Language Models are Few-Shot Learners",
    authors: "Brown, Mann, Ryder et al.",
    year: 2020,
    arxiv: "2005.14165",
    needs: "a model, and a task: built in, or a file over rows of your own (`didact eval --list`)",
    summary: "asks a model with none, one or several solved examples in the prompt, and no training",
    reproduction: &FewShotEvaluation,
};

/// The claim's metric: accuracy after 8 examples, less that after none.
const GAIN: &str = "gain";
/// Examples in the prompt.
const SHOTS: [usize; 8] = [0, 1, 2, 3, 4, 6, 8, 11];
/// Examples of the claim.
const MANY: usize = 8;
/// Documents to measure on.
const HELD_OUT: usize = 800;
const BATCH: usize = 128;
/// Steps between two measurements along the way.
const EVERY: u64 = 100;

/// Steps of every arm.
fn steps(size: Size) -> u64 {
    match size {
        Size::S => 800,
        Size::M => 1500,
    }
}

/// Width and learning rate of an arm.
fn width(arm: &str) -> (usize, f64) {
    match arm {
        "d8" => (8, 1.6e-2),
        "d16" => (16, 1.6e-2),
        "d32" => (32, 8e-3),
        _ => (64, 4e-3),
    }
}

fn shape(width: usize) -> Shape {
    Shape {
        vocab_size: classes::VOCABULARY,
        hidden_size: width,
        layers: 2,
        heads: 4,
        ffn: 3 * width,
        context: classes::LENGTH,
    }
}

/// The model of a width, its weights drawn from the streams: so wide that products are of the order of 1. With the usual 0.02,
/// which is meant for widths around a thousand, nothing is learned in so few steps.
fn decoder(width: usize, streams: Streams) -> Result<Decoder, MethodError> {
    let mut config = shape(width).config()?;
    config.initializer_range = (width as f64).sqrt().recip();
    let mut decoder = Decoder::init(&config, &streams.child("model", &[]), &Device::default());
    decoder.set_precision(Precision::F32);
    Ok(decoder)
}

/// The accuracy after so many examples.
fn accuracy(shots: usize) -> String {
    format!("accuracy, {shots} shots")
}

/// Where the examples in the prompts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Examples {
    /// The document itself.
    Own,
    /// The document, its labels drawn anew: they say nothing.
    RandomLabels,
    /// The document, its labels given to other pairs.
    Shuffled,
}

struct Task<'a> {
    lab: &'a Lab<'a>,
    classes: Classes,
    held_out: Vec<Document>,
}

impl<'a> Task<'a> {
    fn new(lab: &'a Lab<'a>) -> Self {
        let streams = lab.streams();
        let classes = Classes::new(&streams);
        let held_out = classes.documents(Labels::OfClasses, &streams.child("held out", &[])).take(HELD_OUT).collect();
        Self { lab, classes, held_out }
    }

    /// The prompts after `shots` examples.
    fn prompts(&self, shots: usize, examples: Examples) -> Vec<Vec<u32>> {
        let streams = self.lab.streams().child("held out", &[]);
        match examples {
            Examples::Own => self.held_out.iter().map(|document| document.prompt(shots)).collect(),
            Examples::RandomLabels => {
                // Their words are the same: see `Labels::Random`.
                let random = self.classes.documents(Labels::Random, &streams);
                random.take(HELD_OUT).map(|document| document.prompt(shots)).collect()
            }
            Examples::Shuffled => {
                let mut rng = streams.rng("shuffled", &[shots as u64]);
                let shuffled = |document: &Document| {
                    let mut pairs = document.pairs[..shots].to_vec();
                    let mut labels: Vec<u32> = pairs.iter().map(|pair| pair[1]).collect();
                    labels.shuffle(&mut rng);
                    for (pair, label) in pairs.iter_mut().zip(labels) {
                        pair[1] = label;
                    }
                    classes::prompt(&pairs, document.pairs[shots][0])
                };
                self.held_out.iter().map(shuffled).collect()
            }
        }
    }

    /// Whether the likeliest label is the right one, by document: multiple choice over the four labels.
    fn hits(&self, generator: &LocalGenerator, shots: usize, prompts: Vec<Vec<u32>>) -> Result<Vec<f64>, MethodError> {
        let pairs: Vec<(Prompt, Prompt)> = prompts
            .into_iter()
            .flat_map(|prompt| {
                classes::all_labels().map(move |label| (Prompt::Ids(prompt.clone()), Prompt::Ids(vec![label])))
            })
            .collect();
        let mut likely: Vec<Option<f32>> = vec![None; pairs.len()];
        let mut failed: Option<(usize, RequestError)> = None;
        let mut sink = |index: usize, scored: Result<TokenLogProbs, RequestError>| match scored {
            Ok(scored) => likely[index] = scored.log_probs.first().copied(),
            Err(error) => failed = Some((index, error)),
        };
        generator.score(&pairs, &mut sink, &self.lab.context().cancel)?;
        if let Some((index, source)) = failed {
            return Err(MethodError::Request { set: accuracy(shots), index: index + 1, source });
        }
        let likely: Vec<f32> = likely.into_iter().collect::<Option<_>>().ok_or_else(|| lab::stopped(self.lab))?;
        let labels: Vec<u32> = classes::all_labels().collect();
        let is_hit = |(document, likely): (&Document, &[f32])| {
            let mut best = 0;
            for i in 1..likely.len() {
                if likely[i] > likely[best] {
                    best = i;
                }
            }
            f64::from(u8::from(labels[best] == document.answer(shots)))
        };
        Ok(self.held_out.iter().zip(likely.chunks_exact(CLASSES)).map(is_hit).collect())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Trains one arm and asks it.
fn train(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let streams = lab.streams();
    let task = Task::new(lab);
    let labels = if arm == "random-labels" { Labels::Random } else { Labels::OfClasses };
    let (width, learning_rate) = width(arm);
    let steps = steps(lab.size());
    let rows = steps as usize * BATCH;
    let lessons = task.classes.documents(labels, &streams.child("lessons", &[])).take(rows);
    let store = lab::store(&lab.dir().join("lessons.train"), lessons.map(|document| document.lesson()))?;
    let set = TrainingSet::new(store, classes::LENGTH - 1, Packing::None, BATCH, streams.child("order", &[]));
    let asked = task.held_out.iter().map(Document::lesson);
    let asked = lab::store(&lab.dir().join("held-out.train"), asked)?;
    let asked = lab::measuring(asked, classes::LENGTH - 1);
    let config = TrainConfig {
        learning_rate,
        lr_scheduler: Scheduler::Cosine,
        min_lr_ratio: 0.1,
        warmup_steps: Some(100),
        batch_size: BATCH,
        max_seq_len: classes::LENGTH - 1,
        max_steps: Some(steps),
        weight_decay: 0.0,
        adam_beta2: 0.98,
        max_grad_norm: Some(1.0),
        eval_steps: Some(EVERY),
        save_steps: steps,
        save_total_limit: Some(1),
        ..TrainConfig::default()
    };
    let mut decoder = decoder(width, streams)?;
    let training = Training {
        name: "train",
        source: (&set).into(),
        measured: vec![(&asked).into()],
        config: &config,
        without_borders: false,
    };
    let trained = lab::train(lab, &mut decoder, training)?;
    let mut outcome = Outcome { tokens: trained.state.totals.tokens, ..Outcome::default() };
    let along = |evaluation: &didact_train::Evaluation| (evaluation.step as f64, evaluation.loss.nats_per_token);
    outcome.curves.insert("loss".into(), trained.state.evaluations.iter().map(along).collect());
    let generator = lab::generator(EngineWeights::from_decoder(&decoder), None)?;
    let mut hits = std::collections::BTreeMap::new();
    for shots in SHOTS {
        let found = task.hits(&generator, shots, task.prompts(shots, Examples::Own))?;
        outcome.values.insert(accuracy(shots), mean(&found));
        hits.insert(shots, found);
    }
    for (name, examples) in [("random labels", Examples::RandomLabels), ("shuffled labels", Examples::Shuffled)] {
        let found = task.hits(&generator, MANY, task.prompts(MANY, examples))?;
        outcome.values.insert(format!("{}, {name}", accuracy(MANY)), mean(&found));
    }
    let gains: Vec<f64> = hits[&MANY].iter().zip(&hits[&0]).map(|(many, none)| many - none).collect();
    outcome.values.insert(GAIN.into(), mean(&gains));
    outcome.values.insert("parameters".into(), decoder.parameters().trainable_elements() as f64);
    outcome.items.insert(GAIN.into(), gains);
    Ok(outcome)
}

/// The reproduction.
#[derive(Debug)]
pub struct FewShotEvaluation;

const fn arm(name: &'static str, role: Role, what: &'static str) -> Arm {
    Arm { name, needs: &[], role, what }
}

impl Reproduction for FewShotEvaluation {
    fn slug(&self) -> &'static str {
        METHOD.slug
    }

    fn version(&self) -> u32 {
        1
    }

    fn claim(&self) -> Claim {
        Claim {
            text: "what 8 examples in the prompt add to the accuracy without any grows with the model: more at width 64 than at \
                   width 16",
            metric: GAIN,
            higher_is_better: true,
            method: "d64",
            baseline: "d16",
        }
    }

    fn arms(&self, size: Size) -> Vec<Arm> {
        let mut arms = vec![
            arm("d16", Role::Baseline, "width 16"),
            arm("d32", Role::Variant, "width 32"),
            arm("d64", Role::Method, "width 64"),
            arm("random-labels", Role::Control, "width 64, trained on labels that mean nothing"),
        ];
        if size == Size::M {
            arms.push(arm("d8", Role::Variant, "width 8"));
        }
        arms
    }

    fn settings(&self, size: Size) -> Value {
        let models = ["d8", "d16", "d32", "d64"]
            .map(|arm| json!({ "arm": arm, "shape": shape(width(arm).0), "learning_rate": width(arm).1 }));
        json!({
            "models": models, "steps": steps(size), "batch_size": BATCH, "shots": SHOTS, "held_out": HELD_OUT, "pairs": PAIRS,
        })
    }

    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
        train(arm, lab)
    }

    fn checks(&self, _size: Size, results: &Results) -> Vec<Check> {
        let of = |arm: &str, shots: usize| results.mean(arm, &accuracy(shots));
        let below = |shots: usize| (of("d64", shots) - classes::best_accuracy(shots)).abs();
        let chance = 1.0 / CLASSES as f64;
        let from_chance = |arm: &str, metric: &str| (results.mean(arm, metric) - chance).abs();
        let middle = results.mean("d32", GAIN);
        vec![
            Check::at_least("gain of d32 over d16", middle - results.mean("d16", GAIN), 0.0),
            Check::at_least("gain of d64 over d32", results.mean("d64", GAIN) - middle, 0.0),
            Check::at_most("d64, distance from the best possible, 1 shot", below(1), 0.04),
            Check::at_most("d64, distance from the best possible, 2 shots", below(2), 0.04),
            Check::at_most("d64, distance from the best possible, 3 shots", below(3), 0.04),
            Check::at_least("d64, accuracy, 8 shots", of("d64", MANY), 0.92),
            Check::at_most("d64, distance from chance, no shot", from_chance("d64", &accuracy(0)), 0.04),
            Check::at_most(
                "d64, distance from chance, 8 shots with random labels",
                from_chance("d64", &format!("{}, random labels", accuracy(MANY))),
                0.04,
            ),
            Check::at_most(
                "trained on random labels: distance from chance, 8 shots",
                from_chance("random-labels", &accuracy(MANY)),
                0.04,
            ),
        ]
    }

    fn shown(&self) -> &'static [&'static str] {
        &[
            "accuracy, 0 shots",
            "accuracy, 1 shots",
            "accuracy, 2 shots",
            "accuracy, 4 shots",
            "accuracy, 8 shots",
            "parameters",
        ]
    }
}
