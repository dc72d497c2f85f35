//! Hyperfitting: a model trained to near-zero loss on very little text writes greedy text that does not loop.
//!
//! # Reference
//! Carlsson et al., "The Hyperfitting Phenomenon: Sharpening and Stabilizing LLMs for Open-Ended Text Generation", ICLR 2025,
//! arXiv 2412.04318. The mechanism (layers, ranks, entropy matching) after "Beyond Temperature: Hyperfitting as a Late-Stage
//! Geometric Expansion", arXiv 2605.22579.
//!
//! # What is tried
//! A small model learns stories of a made-up grammar ([`stories`]), then 128 snippets of new ones by heart. The claim is the
//! one that can be measured without people: its greedy continuations of unseen prompts use more different tokens than those of
//! the model before. The type-token ratio alone is a poor judge (noise has a high one), so what is written is also held
//! against the grammar, and against the snippets; sampling and penalties, the usual remedies, are arms and may win.
//!
//! # Choices
//! Size m is the set-up of the specification (0.4M parameters, 1300 steps); size s a smaller model (0.2M, 800 steps). What
//! size s takes was chosen on seed 0, which is not among the reported ones: the rate of hyperfitting is the smallest of 5e-4,
//! 1e-3 and 2e-3 whose training loss ends below 0.09 (0.100, 0.088, 0.087). That of size m, and the rates of pre-training, are
//! first guesses. The loss cannot fall much lower: all snippets begin with the same token, and telling 128 of them apart
//! costs ln 128 / 63 = 0.077 nats per token. The baselines are the original model with settings that the literature
//! recommends, more of them at size m, none tuned.
//!
//! What counts as copied (more than 10 tokens in a row) is the paper's; sentences of 30 templates share such runs more easily
//! than real text does.

use std::collections::BTreeSet;
use std::sync::Arc;

use didact_core::generate::Sampling;
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_infer::{Citations, Engine, EngineWeights, NoRepeat, ScoreRule};
use didact_kernels::Precision;
use didact_model::Decoder;
use didact_train::{Measured, Scheduler, TrainConfig};
use serde_json::{Value, json};

use super::Method;
use crate::continuations::{Diversity, Sureness, continued, each_prediction, matching_temperature};
use crate::error::MethodError;
use crate::lab::{self, Shape, Training};
use crate::reproduce::{Arm, Check, Claim, Lab, Outcome, Reproduction, Results, Role, Size};
use crate::stages::{read_json, write_json};
use crate::synthetic::stories::{self, Stories};

/// The method.
pub const METHOD: Method = Method {
    slug: "hyperfitting",
    paper: "The Hyperfitting Phenomenon: Sharpening and Stabilizing LLMs for Open-Ended Text Generation",
    authors: "Carlsson, Liu, Ward et al.",
    year: 2024,
    arxiv: "2412.04318",
    needs: "a base model whose greedy text loops, and 16 to 2000 documents",
    summary: "trains to near-zero loss on very little text, after which greedy decoding no longer loops",
    reproduction: &Hyperfitting,
};

/// The claim's metric: different tokens of a continuation as a share of its tokens.
const TTR: &str = "type-token ratio";
const PAIRS: &str = "repeated pairs";
const ENTROPY: &str = "entropy";
const NLL: &str = "held-out loss";
const VALID: &str = "valid sentences";
const NOVEL: &str = "novel valid sentences";
const COPIED: &str = "copied";
const SELF_BLEU: &str = "self-BLEU";
const LONGEST: &str = "longest overlap";
const TRAIN_LOSS: &str = "training loss";
const DIFFERENT: &str = "texts that differ from the original's";
const DISAGREEMENT: &str = "top-1 that differs from hyperfitted's";
const OVERRIDDEN: &str = "top-1 that differs from the original's";
const FAR: &str = "of these, beyond the original's rank 10";

/// The model, inside the arm that trained it.
const MODEL: &str = "model";
/// The continuations, inside every arm.
const TEXTS: &str = "continuations.json";

/// Documents that are learned by heart, and their length.
const SNIPPETS: usize = 128;
const SNIPPET: usize = 64;
/// Documents to measure loss and entropy on, of the same length.
const HELD_OUT: usize = 64;
/// Prompts, their length, and that of the continuations.
const PROMPTS: usize = 64;
const PROMPT: usize = 16;
const CONTINUATION: usize = 96;
/// Tokens of a row of the pre-training.
const CONTEXT: usize = 128;
const PRETRAINING_BATCH: usize = 16;
const BATCH: usize = 8;
/// Passes over the snippets at most.
const EPOCHS: usize = 120;
/// The loss at which hyperfitting ends.
const TARGET: f64 = 0.05;
/// Passes of the early-stopped arm, which keeps the best of its evaluations, four per pass.
const EARLY_EPOCHS: usize = 10;
/// Blocks that `last-layers` trains.
const LAST_LAYERS: usize = 2;
/// Tokens in a row that may be a citation.
const CITATION: usize = 5;

/// The numbers of a size.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Numbers {
    shape: Shape,
    pretraining_steps: u64,
    pretraining_rate: f64,
    rate: f64,
}

fn numbers(size: Size) -> Numbers {
    let shape = |hidden_size, ffn| Shape {
        vocab_size: stories::VOCABULARY,
        hidden_size,
        layers: 3,
        heads: 4,
        ffn,
        context: CONTEXT,
    };
    match size {
        Size::S => Numbers { shape: shape(64, 176), pretraining_steps: 800, pretraining_rate: 3e-3, rate: 1e-3 },
        Size::M => Numbers { shape: shape(96, 256), pretraining_steps: 1300, pretraining_rate: 2e-3, rate: 5e-4 },
    }
}

/// The language and what is made of it, the same in every arm of a seed.
struct World {
    stories: Stories,
    streams: Streams,
    numbers: Numbers,
    snippets: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
    prompts: Vec<Vec<u32>>,
}

impl World {
    fn new(lab: &Lab<'_>) -> Self {
        let streams = lab.streams();
        let stories = Stories::new(&streams);
        let cut = |what: &str, length: usize, count: usize| -> Vec<Vec<u32>> {
            let all = stories.documents(&streams.child(what, &[])).filter(|ids| ids.len() >= length);
            all.take(count).map(|ids| ids[..length].to_vec()).collect()
        };
        let snippets = cut("snippets", SNIPPET, SNIPPETS);
        let held_out = cut("held out", SNIPPET, HELD_OUT);
        let prompts = cut("prompts", PROMPT, PROMPTS);
        Self { numbers: numbers(lab.size()), stories, streams, snippets, held_out, prompts }
    }

    /// Measures a model's greedy text, or what other settings and rules make of it.
    fn measure(
        &self,
        lab: &Lab<'_>,
        weights: EngineWeights,
        sampling: &Sampling,
        rule: Option<Arc<dyn ScoreRule>>,
    ) -> Result<Outcome, MethodError> {
        let generator = lab::generator(weights, rule)?;
        let sure = Sureness::of(generator.engine(), &self.held_out);
        let of = |number: usize| Sampling {
            max_tokens: CONTINUATION,
            ignore_eos: true,
            log_probs: false,
            seed: self.streams.key("sampling", &[number as u64]),
            ..sampling.clone()
        };
        let texts = continued(&generator, "prompts", &self.prompts, of, &lab.context().cancel)?;
        let texts = texts.ok_or_else(|| lab::stopped(lab))?;
        write_json(&lab.dir().join(TEXTS), &texts)?;
        let diversity = Diversity::of(&texts, &self.snippets);
        let known: BTreeSet<&[u32]> = self.snippets.iter().flat_map(|ids| stories::sentences(ids, 0)).collect();
        let (mut all, mut valid, mut novel) = (0, 0, 0);
        for (prompt, text) in self.prompts.iter().zip(&texts) {
            let whole = [&prompt[..], text].concat();
            for sentence in stories::sentences(&whole, prompt.len()) {
                let is_valid = self.stories.is_sentence(sentence);
                all += 1;
                valid += usize::from(is_valid);
                novel += usize::from(is_valid && !known.contains(sentence));
            }
        }
        let share = |part: usize| part as f64 / all.max(1) as f64;
        let mut outcome = Outcome::default();
        let values = [
            (TTR, diversity.ttr),
            (PAIRS, diversity.rep2),
            ("repeated triples", diversity.rep3),
            (ENTROPY, sure.entropy),
            (NLL, sure.nll),
            (VALID, share(valid)),
            (NOVEL, share(novel)),
            (COPIED, diversity.copied),
            (SELF_BLEU, diversity.self_bleu),
            ("BLEU with the snippets", diversity.dataset_bleu),
            ("BLEU with the snippets, largest", diversity.dataset_bleu_max),
            ("mean overlap", diversity.overlap),
            (LONGEST, diversity.overlap_max),
        ];
        outcome.values.extend(values.map(|(name, value)| (name.to_owned(), value)));
        let ratios = texts.iter().map(|ids| didact_eval::metrics::diversity::type_token_ratio(ids)).collect();
        outcome.items.insert(TTR.into(), ratios);
        Ok(outcome)
    }

    /// Greedy text.
    fn greedy(&self, lab: &Lab<'_>, decoder: &Decoder) -> Result<Outcome, MethodError> {
        self.measure(lab, EngineWeights::from_decoder(decoder), &Sampling::default(), None)
    }

    /// The likeliest token after every token of the held-out texts.
    fn favourites(&self, decoder: &Decoder) -> Vec<usize> {
        let engine = engine(decoder);
        let mut favourites = Vec::new();
        each_prediction(&engine, &self.held_out, |_, _, scores| favourites.push(largest(scores)));
        favourites
    }
}

fn engine(decoder: &Decoder) -> Engine {
    Engine::new(EngineWeights::from_decoder(decoder), Precision::F32)
}

fn largest(scores: &[f32]) -> usize {
    (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

fn differing(a: &[usize], b: &[usize]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a != b).count() as f64 / a.len() as f64
}

fn base(lab: &Lab<'_>) -> Result<Decoder, MethodError> {
    lab::load(lab, "base", MODEL)
}

fn hyperfitted(lab: &Lab<'_>) -> Result<Decoder, MethodError> {
    lab::load(lab, "hyperfitted", MODEL)
}

fn sequences(texts: &[Vec<u32>]) -> impl Iterator<Item = Sequence> + '_ {
    texts.iter().map(|ids| Sequence::single(ids.clone(), vec![1.0; ids.len()]))
}

/// Learns the language.
fn pretrain(lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let world = World::new(lab);
    let Numbers { shape, pretraining_steps: steps, pretraining_rate, .. } = world.numbers;
    let wanted = steps as usize * PRETRAINING_BATCH * CONTEXT + CONTEXT;
    let mut tokens = 0;
    let texts = world.stories.documents(&world.streams.child("pre-training", &[])).take_while(|ids| {
        let is_needed = tokens < wanted;
        tokens += ids.len();
        is_needed
    });
    let store = lab::store(
        &lab.dir().join("stories.train"),
        texts.map(|ids| {
            let weight = vec![1.0; ids.len()];
            Sequence::single(ids, weight)
        }),
    )?;
    let streams = world.streams.child("pre-training order", &[]);
    let set = TrainingSet::new(store, CONTEXT, Packing::Concat, PRETRAINING_BATCH, streams);
    let config = TrainConfig {
        learning_rate: pretraining_rate,
        lr_scheduler: Scheduler::Cosine,
        min_lr_ratio: 0.1,
        warmup_steps: Some(50),
        batch_size: PRETRAINING_BATCH,
        max_seq_len: CONTEXT,
        max_steps: Some(steps),
        weight_decay: 0.01,
        max_grad_norm: Some(1.0),
        save_steps: steps,
        save_total_limit: Some(1),
        ..TrainConfig::default()
    };
    let mut decoder = shape.decoder(world.streams)?;
    // Text goes on after a story's end, as it does when more tokens are asked for than a story has.
    let training = Training {
        name: "pretrain",
        source: (&set).into(),
        measured: Vec::new(),
        config: &config,
        without_borders: true,
    };
    let trained = lab::train(lab, &mut decoder, training)?;
    lab::save(lab, MODEL, &decoder)?;
    let sure = Sureness::of(&engine(&decoder), &world.held_out);
    let mut outcome = Outcome { tokens: trained.state.totals.tokens, ..Outcome::default() };
    outcome.values.insert(NLL.into(), sure.nll);
    outcome.values.insert(ENTROPY.into(), sure.entropy);
    Ok(outcome)
}

/// Trains the base model on the snippets: to near-zero loss, or as an arm has it.
fn hyperfit(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let world = World::new(lab);
    let mut decoder = base(lab)?;
    if arm == "last-layers" {
        let first = world.numbers.shape.layers - LAST_LAYERS;
        let trained = |name: &str| {
            name == "model.norm.weight"
                || (first..world.numbers.shape.layers).any(|i| name.starts_with(&format!("model.layers.{i}.")))
        };
        let parameters = decoder.parameters_mut();
        let frozen: Vec<_> = parameters.iter().filter(|(_, p)| !trained(p.name())).map(|(id, _)| id).collect();
        for id in frozen {
            parameters.set_trainable(id, false);
        }
    }
    let snippets = match arm {
        "snippets-16" => &world.snippets[..16],
        _ => &world.snippets[..],
    };
    // Every order of the data is a shuffle of its own.
    let order = match arm {
        "order-2" => 2,
        "order-3" => 3,
        _ => 1,
    };
    let store = lab::store(&lab.dir().join("snippets.train"), sequences(snippets))?;
    let streams = world.streams.child("order", &[order]);
    let set = TrainingSet::new(store, SNIPPET - 1, Packing::None, BATCH, streams);
    let held_out = lab::store(&lab.dir().join("held-out.train"), sequences(&world.held_out))?;
    let held_out = lab::measuring(held_out, SNIPPET - 1);
    // As many updates whatever the number of snippets.
    let per_epoch = (SNIPPETS / BATCH) as u64;
    let is_early = arm == "early-stopped";
    let steps = per_epoch * if is_early { EARLY_EPOCHS } else { EPOCHS } as u64;
    let config = TrainConfig {
        learning_rate: world.numbers.rate,
        lr_scheduler: Scheduler::Constant,
        warmup_steps: Some(0),
        batch_size: BATCH,
        max_seq_len: SNIPPET - 1,
        max_steps: Some(steps),
        target_loss: (!is_early).then_some(TARGET),
        weight_decay: 0.0,
        max_grad_norm: None,
        eval_steps: Some(if is_early { per_epoch / 4 } else { 10 * per_epoch }),
        eval_on_start: true,
        load_best: is_early,
        save_steps: steps,
        save_total_limit: Some(1),
        ..TrainConfig::default()
    };
    let training = Training {
        name: "hyperfit",
        source: (&set).into(),
        measured: vec![Measured::from(&held_out)],
        config: &config,
        without_borders: false,
    };
    let trained = lab::train(lab, &mut decoder, training)?;
    let losses: Vec<(f64, f64)> =
        trained.state.evaluations.iter().map(|e| (e.step as f64, e.loss.nats_per_token)).collect();
    // The first one is of the base model.
    let start = losses.first().map_or(f64::INFINITY, |&(_, loss)| loss);
    let is_better = trained.state.best.as_ref().is_some_and(|best| best.loss.nats_per_token < start);
    if is_early && !is_better {
        decoder = base(lab)?;
    }
    let mut outcome = world.greedy(lab, &decoder)?;
    outcome.tokens = trained.state.totals.tokens;
    outcome.curves.insert(NLL.into(), losses);
    if is_early {
        let step = if is_better { trained.weights_of_step as f64 } else { 0.0 };
        outcome.values.insert("step of the lowest held-out loss".into(), step);
        return Ok(outcome);
    }
    outcome.values.insert(TRAIN_LOSS.into(), trained.final_loss.unwrap_or(f64::NAN));
    outcome.values.insert("updates".into(), trained.state.step as f64);
    if arm == "hyperfitted" {
        lab::save(lab, MODEL, &decoder)?;
        let texts: Vec<Vec<u32>> = read_json(&lab.dir().join(TEXTS))?;
        let [overridden, far] = overrides(&world, lab, &decoder, &texts)?;
        outcome.values.insert(OVERRIDDEN.into(), overridden);
        outcome.values.insert(FAR.into(), far);
    } else {
        let other = world.favourites(&hyperfitted(lab)?);
        outcome.values.insert(DISAGREEMENT.into(), differing(&world.favourites(&decoder), &other));
    }
    Ok(outcome)
}

/// Where the hyperfitted model's greedy text leaves the original's first choice, and how often for a token that the original
/// ranks beyond 10.
fn overrides(world: &World, lab: &Lab<'_>, decoder: &Decoder, texts: &[Vec<u32>]) -> Result<[f64; 2], MethodError> {
    let whole: Vec<Vec<u32>> =
        world.prompts.iter().zip(texts).map(|(prompt, text)| [&prompt[..], text].concat()).collect();
    let mut chosen = Vec::new();
    each_prediction(&engine(decoder), &whole, |_, _, scores| chosen.push(largest(scores)));
    let original = engine(&base(lab)?);
    let (mut place, mut asked, mut overridden, mut far) = (0, 0, 0, 0);
    each_prediction(&original, &whole, |_, token, scores| {
        let own = scores[chosen[place]];
        place += 1;
        if token + 1 < PROMPT {
            return;
        }
        let better = scores.iter().filter(|&&score| score > own).count();
        asked += 1;
        overridden += usize::from(better > 0);
        far += usize::from(better >= 10);
    });
    Ok([overridden as f64 / f64::from(asked), far as f64 / overridden.max(1) as f64])
}

/// Asks the base model in another way than greedily, or the hyperfitted one.
fn decode(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let world = World::new(lab);
    let drawn = |temperature, top_p, min_p| Sampling { temperature, top_p, min_p, ..Sampling::default() };
    let penalty = |repetition_penalty| Sampling { repetition_penalty, ..Sampling::default() };
    let (sampling, rule): (Sampling, Option<Arc<dyn ScoreRule>>) = match arm {
        "nucleus" | "hyperfitted-nucleus" => (drawn(1.0, Some(0.9), None), None),
        "nucleus-80" => (drawn(1.0, Some(0.8), None), None),
        "nucleus-95" => (drawn(1.0, Some(0.95), None), None),
        "min-p" => (drawn(1.0, None, Some(0.1)), None),
        "temperature-70" => (drawn(0.7, None, None), None),
        "penalty-110" => (penalty(1.1), None),
        "penalty-120" => (penalty(1.2), None),
        "no-repeat-3" => (Sampling::default(), Some(Arc::new(NoRepeat::new(3)))),
        "no-repeat-4" => (Sampling::default(), Some(Arc::new(NoRepeat::new(4)))),
        "blocked" => {
            let rule = Citations::new(CITATION, world.snippets.iter().map(Vec::as_slice));
            (Sampling::default(), Some(Arc::new(rule)))
        }
        "original" => (Sampling::default(), None),
        other => unreachable!("no arm is called `{other}`"),
    };
    let decoder = if matches!(arm, "blocked" | "hyperfitted-nucleus") { hyperfitted(lab)? } else { base(lab)? };
    world.measure(lab, EngineWeights::from_decoder(&decoder), &sampling, rule)
}

/// The base model made as sure as the hyperfitted one, by a temperature: its greedy text cannot change by that, and what is
/// drawn from it says whether sureness is all there is to hyperfitting.
fn matched(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let world = World::new(lab);
    let decoder = base(lab)?;
    let wanted = lab.outcome("hyperfitted")?.values[ENTROPY];
    let mut predictions = Vec::new();
    each_prediction(&engine(&decoder), &world.held_out, |_, _, scores| predictions.push(scores.to_vec()));
    let temperature = matching_temperature(&predictions, wanted);
    // In the weights, not in the sampler, where a temperature would be skipped for greedy text.
    let mut weights = EngineWeights::from_decoder(&decoder);
    for gain in weights.tensor_mut("model.norm.weight").into_iter().flatten() {
        *gain /= temperature as f32;
    }
    let drawn = f32::from(u8::from(arm == "matched-sampled"));
    let sampling = Sampling { temperature: drawn, ..Sampling::default() };
    let mut outcome = world.measure(lab, weights, &sampling, None)?;
    outcome.values.insert("temperature".into(), temperature);
    let own: Vec<Vec<u32>> = read_json(&lab.dir().join(TEXTS))?;
    let original: Vec<Vec<u32>> = read_json(&lab.arm("original").join(TEXTS))?;
    let different = own.iter().zip(&original).filter(|(a, b)| a != b).count();
    outcome.values.insert(DIFFERENT.into(), different as f64 / own.len() as f64);
    Ok(outcome)
}

/// The reproduction.
#[derive(Debug)]
pub struct Hyperfitting;

const fn arm(name: &'static str, needs: &'static [&'static str], role: Role, what: &'static str) -> Arm {
    Arm { name, needs, role, what }
}

impl Reproduction for Hyperfitting {
    fn slug(&self) -> &'static str {
        METHOD.slug
    }

    fn version(&self) -> u32 {
        1
    }

    fn claim(&self) -> Claim {
        Claim {
            text: "trained to near-zero loss on 128 snippets, a model's greedy continuations of unseen prompts use more different \
                   tokens than before",
            metric: TTR,
            higher_is_better: true,
            method: "hyperfitted",
            baseline: "original",
        }
    }

    fn arms(&self, size: Size) -> Vec<Arm> {
        let base: &[&str] = &["base"];
        let both: &[&str] = &["base", "hyperfitted"];
        let all: &[&str] = &["base", "hyperfitted", "original"];
        let mut arms = vec![
            arm("base", &[], Role::Shared, "the model before"),
            arm("original", base, Role::Baseline, "the model before, greedy"),
            arm("hyperfitted", base, Role::Method, "trained to near-zero loss, greedy"),
            arm("nucleus", base, Role::Baseline, "the model before, sampled with top-p 0.9"),
            arm("penalty-120", base, Role::Baseline, "the model before, repetition penalty 1.2"),
            arm("early-stopped", base, Role::Baseline, "the same training, stopped at the lowest held-out loss"),
            arm("matched", all, Role::Control, "the model before, as sure as hyperfitted by temperature"),
        ];
        if size == Size::S {
            return arms;
        }
        arms.extend([
            arm("blocked", both, Role::Variant, "hyperfitted, may not cite 6 tokens of the snippets"),
            arm("hyperfitted-nucleus", both, Role::Variant, "hyperfitted, sampled with top-p 0.9"),
            arm("last-layers", both, Role::Variant, "only the last two blocks and the final norm trained"),
            arm("snippets-16", both, Role::Variant, "16 snippets, no more updates"),
            arm("order-2", both, Role::Variant, "the same snippets in another order"),
            arm("order-3", both, Role::Variant, "the same snippets in a third order"),
            arm("matched-sampled", all, Role::Control, "as sure as hyperfitted by temperature, sampled"),
            arm("nucleus-80", base, Role::Baseline, "the model before, top-p 0.8"),
            arm("nucleus-95", base, Role::Baseline, "the model before, top-p 0.95"),
            arm("min-p", base, Role::Baseline, "the model before, min-p 0.1"),
            arm("temperature-70", base, Role::Baseline, "the model before, temperature 0.7"),
            arm("penalty-110", base, Role::Baseline, "the model before, repetition penalty 1.1"),
            arm("no-repeat-3", base, Role::Baseline, "the model before, no three tokens twice"),
            arm("no-repeat-4", base, Role::Baseline, "the model before, no four tokens twice"),
        ]);
        arms
    }

    fn settings(&self, size: Size) -> Value {
        json!({
            "numbers": numbers(size), "snippets": [SNIPPETS, SNIPPET], "held_out": HELD_OUT,
            "prompts": [PROMPTS, PROMPT, CONTINUATION], "batch_sizes": [PRETRAINING_BATCH, BATCH], "epochs": [EPOCHS, EARLY_EPOCHS],
            "target": TARGET, "last_layers": LAST_LAYERS, "citation": CITATION,
        })
    }

    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
        match arm {
            "base" => pretrain(lab),
            "hyperfitted" | "early-stopped" | "last-layers" | "snippets-16" | "order-2" | "order-3" => {
                hyperfit(arm, lab)
            }
            "matched" | "matched-sampled" => matched(arm, lab),
            _ => decode(arm, lab),
        }
    }

    fn checks(&self, size: Size, results: &Results) -> Vec<Check> {
        let of = |arm: &str, metric: &str| results.mean(arm, metric);
        let ratio = |metric: &str, arm: &str, to: &str| of(arm, metric) / of(to, metric);
        let gain = |arm: &str| of(arm, TTR) - of("original", TTR);
        let method = "hyperfitted";
        let mut checks = vec![
            Check::at_most("training loss at the end", of(method, TRAIN_LOSS), 0.1),
            Check::at_least("type-token ratio, hyperfitted - original", gain(method), 0.1),
            Check::at_most("repeated pairs, hyperfitted / original", ratio(PAIRS, method, "original"), 0.5),
            Check::at_most("entropy, hyperfitted / original", ratio(ENTROPY, method, "original"), 0.65),
            Check::at_least("held-out loss, hyperfitted - original", of(method, NLL) - of("original", NLL), 1.0),
            Check::at_least("novel valid sentences of hyperfitted", of(method, NOVEL), 0.4),
            Check::at_most("texts of hyperfitted with more than 10 tokens copied", of(method, COPIED), 0.25),
            Check::at_least("type-token ratio, hyperfitted / nucleus", ratio(TTR, method, "nucleus"), 1.0),
            Check::at_least("novel valid sentences, hyperfitted / nucleus", ratio(NOVEL, method, "nucleus"), 1.0),
            Check::at_most("as sure by temperature: texts that differ", of("matched", DIFFERENT), 0.05),
            Check::at_least(
                "type-token ratio, hyperfitted - early-stopped",
                of(method, TTR) - of("early-stopped", TTR),
                0.1,
            ),
        ];
        if size == Size::M {
            let blocked = (of("blocked", TTR) - of(method, TTR)).abs();
            checks.extend([
                Check::at_most("type-token ratio, blocked and not, difference", blocked, 0.08),
                Check::at_most("longest overlap when blocked", of("blocked", LONGEST), CITATION as f64),
                Check::at_least("type-token ratio, last two blocks - original", gain("last-layers"), 0.05),
                Check::at_least("type-token ratio, 16 snippets - original", gain("snippets-16"), 0.1),
                Check::at_least("top-1 that another order changes", of("order-2", DISAGREEMENT), 0.1),
                Check::at_least("of changed choices, beyond the original's rank 10", of(method, FAR), 0.05),
                Check::at_least(
                    "type-token ratio, hyperfitted - as sure by temperature and sampled",
                    of(method, TTR) - of("matched-sampled", TTR),
                    0.0,
                ),
            ]);
        }
        checks
    }

    fn shown(&self) -> &'static [&'static str] {
        &[PAIRS, ENTROPY, NLL, VALID, NOVEL, COPIED, SELF_BLEU]
    }
}
