//! ToolACE-R: train on what the model can just about do, teach it to look at its own calls again, and let it.
//!
//! # Reference
//! Zeng et al., "ToolACE-R: Model-aware Iterative Training and Adaptive Refinement for Tool Learning", arXiv 2504.01400. There is
//! no published code; what the paper leaves open is as the settings below say.
//!
//! # What is tried
//! Requests of [ToolWorld](crate::toolworld) with their calls, 35 % of which are corrupted once: another tool, another value,
//! an argument too few or too many. The model answers every request four times; those that it answers as the data has it at
//! least once are trained on, together with its own attempts and the request to look at them again: a wrong attempt with the
//! right call after it, a right one with itself. The claim: such training makes more right calls on unseen requests, asked
//! once, than training on everything, at equal tokens. Beside it: what refinement at inference adds, what it repairs and what
//! it damages, and how many of the corrupted calls were kept (from a table that training never reads).
//!
//! # Choices
//! Everything starts from random weights, since no small model knows these tools. Difficulty in the first round is measured by
//! two models, each bootstrapped on some of one half of the requests and asked about the other half: a model that has learned
//! a corrupted call by heart finds it easy. The second round goes on from the first one's model (the specification would
//! start again, which at this scale is one round with less data). Arms are compared at equal tokens, padding left out:
//! those with longer rows make fewer steps.

use std::collections::{BTreeMap, BTreeSet};

use didact_core::generate::{Answer, Prompt, Request, Sampling};
use didact_core::message::ToolCall;
use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::TrainingSet;
use didact_data::packing::Packing;
use didact_infer::EngineWeights;
use didact_model::Decoder;
use didact_train::{Scheduler, TrainConfig};
use didact_verify::ToolCallVerifier;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use serde_json::{Value, json};

use super::Method;
use crate::error::MethodError;
use crate::lab::{self, Shape, Training};
use crate::refine::{Refined, Refinement, canonical_calls, refine};
use crate::reproduce::{Arm, Check, Claim, Lab, Outcome, Reproduction, Results, Role, Size};
use crate::toolworld::{Level, LevelMix, Pool, Sample, Style, World, WorldConfig};

/// The method.
pub const METHOD: Method = Method {
    slug: "toolace-r",
    paper: "ToolACE-R: Model-aware Iterative Training and Adaptive Refinement for Tool Learning",
    authors: "Zeng, Liu, Huang et al.",
    year: 2025,
    arxiv: "2504.01400",
    needs: "requests with the right calls, some of which may be wrong or too hard",
    summary: "trains on requests that the model can just about answer, and on its own attempts with the request to check them",
    reproduction: &ToolaceR,
};

const EXACT: &str = "right calls";
const HARD: &str = "right calls, hard requests";
const REFINED: &str = "right calls, refined";
const FIXED: &str = "right calls, refined four times";
const CALLS: &str = "calls of the model";
const REPAIRED: &str = "wrong calls repaired";
const DAMAGED: &str = "right calls damaged";
const NOISE: &str = "corrupted calls among those trained on";
const KEPT: &str = "requests trained on";
const MODELS: [&str; 2] = ["first-half", "second-half"];

/// Begins a prompt and ends a call.
const END: u32 = 0;
/// Stands between a request and its call.
const ANSWER: u32 = 1;
/// Asks to look at the call again.
const AGAIN: u32 = 2;
const FIRST_WORD: u32 = 3;
/// More words than there are.
const VOCABULARY: usize = 352;
/// Steps of a fixed refinement, and most steps of an adaptive one.
const FIXED_STEPS: usize = 4;
const MOST_STEPS: usize = 5;

/// The numbers of a size.
#[derive(Debug, Clone, Copy, serde::Serialize)]
struct Numbers {
    shape: Shape,
    /// Tools of each of the eight verbs, and how many hard requests there are for each easy and each medium one.
    nouns_per_verb: usize,
    hard_share: f64,
    requests: usize,
    tests: usize,
    noise: f64,
    /// Requests that each of the two first models learns from, and passes over them.
    bootstrap: usize,
    bootstrap_epochs: f64,
    rounds: usize,
    samples: usize,
    temperature: f32,
    /// Tokens trained on in a round.
    tokens: usize,
    batch: usize,
    rate: f64,
}

fn numbers(size: Size) -> Numbers {
    let small = Numbers {
        shape: Shape { vocab_size: VOCABULARY, hidden_size: 96, layers: 3, heads: 4, ffn: 256, context: 128 },
        nouns_per_verb: tuned("NOUNS", 2.0) as usize,
        hard_share: tuned("HARD", 0.5),
        requests: tuned("REQUESTS", 3000.0) as usize,
        tests: 300,
        noise: 0.35,
        bootstrap: tuned("BOOT", 1200.0) as usize,
        bootstrap_epochs: tuned("BOOT_EPOCHS", 8.0),
        rounds: tuned("ROUNDS", 2.0) as usize,
        samples: 4,
        temperature: 0.8,
        tokens: tuned("TOKENS", 500_000.0) as usize,
        batch: 16,
        rate: tuned("RATE", 3e-3),
    };
    match size {
        Size::S => small,
        Size::M => Numbers {
            shape: Shape { hidden_size: 160, layers: 4, ffn: 448, ..small.shape },
            nouns_per_verb: 4,
            requests: 6000,
            tests: 600,
            bootstrap: 2500,
            tokens: 1_500_000,
            rate: 2e-3,
            ..small
        },
    }
}

fn tuned(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Which requests are trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Select {
    All,
    Solvable,
    /// As many as are solvable.
    Random,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    clean: bool,
    select: Select,
    /// Own attempts, and whether right ones are among them.
    attempts: bool,
    right_attempts: bool,
    /// One schedule over all tokens.
    once: bool,
}

fn way(arm: &str) -> Way {
    let method = Way { clean: false, select: Select::Solvable, attempts: true, right_attempts: true, once: false };
    let plain = Way { attempts: false, right_attempts: false, ..method };
    match arm {
        "sft" => Way { select: Select::All, once: true, ..plain },
        "iterated-all" => Way { select: Select::All, ..plain },
        "random" => Way { select: Select::Random, ..method },
        "solvable-only" => plain,
        "wrong-attempts-only" => Way { right_attempts: false, ..method },
        "clean-sft" => Way { clean: true, select: Select::All, once: true, ..plain },
        "clean-toolace-r" => Way { clean: true, ..method },
        _ => method,
    }
}

/// A request, its call as the data has it, and whether that is the right one (which training never asks).
struct Asked {
    prompt: Vec<u32>,
    call: String,
    level: Level,
    is_corrupted: bool,
}

struct Data {
    numbers: Numbers,
    streams: Streams,
    words: Vec<String>,
    asked: Vec<Asked>,
    tests: Vec<Asked>,
}

/// A call with one mistake.
fn corrupted(world: &World, sample: &Sample, rng: &mut dyn Rng) -> Option<ToolCall> {
    let tools = world.tools();
    let Some(gold) = &sample.gold else {
        let tool = tools.choose(rng)?;
        return Some(ToolCall { id: None, name: tool.name(), arguments: gold_like(sample) });
    };
    let tool = tools.iter().find(|tool| tool.name() == gold.name)?;
    let mut call = gold.clone();
    let kind = rng.random_range(0..4);
    match kind {
        0 => {
            let siblings: Vec<_> =
                tools.iter().filter(|other| other.verb == tool.verb && other.noun != tool.noun).collect();
            call.name = siblings.choose(rng)?.name();
        }
        1 => {
            let supplied = sample.supplied.choose(rng)?;
            let values: Vec<Value> = match supplied.parameter.kind.words() {
                [] => (1..=20).map(Value::from).collect(),
                words => words.iter().map(|word| Value::from(*word)).collect(),
            };
            let others: Vec<&Value> = values.iter().filter(|value| **value != supplied.phrase.value).collect();
            call.arguments.insert(supplied.parameter.name.to_owned(), (*others.choose(rng)?).clone());
        }
        2 => {
            let required: Vec<_> = tool.parameters.iter().filter(|parameter| parameter.required).collect();
            call.arguments.shift_remove(required.choose(rng)?.name);
        }
        _ => {
            let others: Vec<_> = tools
                .iter()
                .flat_map(|other| &other.parameters)
                .filter(|other| !call.arguments.contains_key(other.name) && !other.kind.words().is_empty())
                .collect();
            let invented = others.choose(rng)?;
            let value = invented.kind.words().choose(rng)?;
            call.arguments.insert(invented.name.to_owned(), Value::from(*value));
        }
    }
    Some(call)
}

/// The arguments that a request names, whatever they are for.
fn gold_like(sample: &Sample) -> serde_json::Map<String, Value> {
    sample.supplied.iter().map(|s| (s.parameter.name.to_owned(), s.phrase.value.clone())).collect()
}

impl Data {
    fn new(lab: &Lab<'_>, clean: bool) -> Result<Self, MethodError> {
        let (numbers, streams) = (numbers(lab.size()), lab.streams());
        let levels = LevelMix { hard: numbers.hard_share, ..WorldConfig::default().levels };
        let config = WorldConfig { nouns_per_verb: numbers.nouns_per_verb, levels, ..WorldConfig::default() };
        let world = World::new(&config, &streams)?;
        let mut seen = BTreeSet::new();
        let tests = world.draw(&streams, "tests", Pool::Trained, numbers.tests, &mut seen)?;
        let asked = world.draw(&streams, "training", Pool::Trained, numbers.requests, &mut seen)?;
        let mut rng = streams.rng("noise", &[]);
        let noise = if clean { 0.0 } else { numbers.noise };
        let written = |sample: &Sample, is_noisy: bool, rng: &mut dyn Rng| {
            let mut call = sample.gold.clone();
            let mut is_corrupted = false;
            if is_noisy && let Some(other) = corrupted(&world, sample, rng) {
                (call, is_corrupted) = (Some(other), true);
            }
            let request = sample.messages(Style::Words).iter().rev().nth(1).map(|m| m.content.clone());
            (request.unwrap_or_default(), Style::Words.answer(call.as_ref()), sample.level, is_corrupted)
        };
        let asked: Vec<_> = asked
            .iter()
            .map(|sample| {
                let is_noisy = rng.random_bool(noise);
                written(sample, is_noisy, &mut rng)
            })
            .collect();
        let tests: Vec<_> = tests.iter().map(|sample| written(sample, false, &mut rng)).collect();
        let all = asked.iter().chain(&tests).flat_map(|(request, call, ..)| [request, call]);
        let words: BTreeSet<&str> = all.flat_map(|text| text.split_whitespace()).collect();
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        assert!(words.len() + FIRST_WORD as usize <= VOCABULARY, "{} words", words.len());
        let mut data = Self { numbers, streams, words, asked: Vec::new(), tests: Vec::new() };
        let as_ids = |(request, call, level, is_corrupted): (String, String, Level, bool)| {
            let prompt = [vec![END], data.ids(&request), vec![ANSWER]].concat();
            Asked { prompt, call, level, is_corrupted }
        };
        let (asked, tests) = (asked.into_iter().map(as_ids).collect(), tests.into_iter().map(as_ids).collect());
        (data.asked, data.tests) = (asked, tests);
        Ok(data)
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        let number = |word: &str| self.words.binary_search_by(|other| other.as_str().cmp(word)).ok();
        text.split_whitespace().filter_map(number).map(|at| at as u32 + FIRST_WORD).collect()
    }

    fn text(&self, ids: &[u32]) -> String {
        let word = |&id: &u32| self.words.get((id.checked_sub(FIRST_WORD)?) as usize).map(String::as_str);
        ids.iter().filter_map(word).collect::<Vec<_>>().join(" ")
    }

    fn sampling() -> Sampling {
        Sampling { max_tokens: 40, stop_token_ids: vec![END], log_probs: false, ..Sampling::default() }
    }

    /// The prompt after a call that is to be looked at again.
    fn again(prompt: &[u32], call: &[u32]) -> Vec<u32> {
        [prompt, call, &[END, AGAIN, ANSWER]].concat()
    }

    /// Attempts of a model at requests: of each its texts and whether they are as the data has it.
    fn attempts(
        &self,
        lab: &Lab<'_>,
        decoder: &Decoder,
        set: &str,
        chosen: &[usize],
    ) -> Result<Vec<Vec<(String, bool)>>, MethodError> {
        let Numbers { samples, temperature, .. } = self.numbers;
        let generator = lab::generator(EngineWeights::from_decoder(decoder), None)?;
        let prompts: Vec<Vec<u32>> =
            chosen.iter().flat_map(|&at| std::iter::repeat_n(self.asked[at].prompt.clone(), samples)).collect();
        let seeds = self.streams.child("attempts", &[]);
        let sampling = |number: usize| Sampling {
            temperature,
            top_p: Some(0.95),
            seed: seeds.key(set, &[chosen[number / samples] as u64, (number % samples) as u64]),
            ..Self::sampling()
        };
        let answers = lab::answers(lab, &generator, set, &prompts, sampling)?;
        Ok(answers
            .chunks(samples)
            .zip(chosen)
            .map(|(all, &at)| {
                let judged = |(ids, _): &(Vec<u32>, bool)| {
                    let text = self.text(ids);
                    let is_right = is_right(&self.asked[at].call, &text);
                    (text, is_right)
                };
                all.iter().map(judged).collect()
            })
            .collect())
    }

    /// Measures a model on unseen requests, asked once and refined.
    fn measured(&self, lab: &Lab<'_>, decoder: &Decoder, refines: bool) -> Result<Outcome, MethodError> {
        let generator = lab::generator(EngineWeights::from_decoder(decoder), None)?;
        let requests: Vec<Request> = self
            .tests
            .iter()
            .map(|test| Request { prompt: Prompt::Ids(test.prompt.clone()), sampling: Self::sampling() })
            .collect();
        let again = |at: usize, last: &Answer| Prompt::Ids(Self::again(&self.tests[at].prompt, &last.ids));
        let canonical = |answer: &Answer| canonical_calls(&Style::Words.readable(&self.text(&answer.ids)));
        let refined = |max_steps: usize, adaptive: bool| -> Result<Vec<Refined>, MethodError> {
            let refinement = Refinement { max_steps, adaptive, again: &again, canonical: &canonical };
            let found = refine(&generator, &requests, &refinement, &lab.context().cancel)?;
            let one = |(index, way): (usize, Option<Result<Refined, _>>)| match way {
                None => Err(lab::stopped(lab)),
                Some(way) => {
                    way.map_err(|source| MethodError::Request { set: "tests".into(), index: index + 1, source })
                }
            };
            found.into_iter().enumerate().map(one).collect()
        };
        let right = |answers: &[Refined], of: fn(&Refined) -> &Answer| -> Vec<f64> {
            let pairs = answers.iter().zip(&self.tests);
            pairs.map(|(way, test)| f64::from(u8::from(is_right(&test.call, &self.text(&of(way).ids))))).collect()
        };
        let mean = didact_eval::metrics::statistics::mean;
        let mut outcome = Outcome::default();
        let steps = if refines { MOST_STEPS } else { 0 };
        let adaptive = refined(steps, true)?;
        let first = right(&adaptive, |way| &way.first);
        let hard: Vec<f64> =
            first.iter().zip(&self.tests).filter(|(_, test)| test.level == Level::Hard).map(|(r, _)| *r).collect();
        outcome.values.insert(EXACT.into(), mean(&first));
        outcome.values.insert(HARD.into(), mean(&hard));
        if refines {
            let last = right(&adaptive, |way| &way.answer);
            let rate = |from: f64, to: f64| {
                let all = first.iter().filter(|r| **r == from).count();
                let changed = first.iter().zip(&last).filter(|(f, l)| **f == from && **l == to).count();
                changed as f64 / all.max(1) as f64
            };
            let calls: Vec<f64> = adaptive.iter().map(|way| way.calls as f64).collect();
            let fixed = refined(FIXED_STEPS, false)?;
            let values = [
                (REFINED, mean(&last)),
                (FIXED, mean(&right(&fixed, |way| &way.answer))),
                (CALLS, mean(&calls)),
                (REPAIRED, rate(0.0, 1.0)),
                (DAMAGED, rate(1.0, 0.0)),
            ];
            outcome.values.extend(values.map(|(name, value)| (name.to_owned(), value)));
        }
        outcome.items.insert(EXACT.into(), first);
        Ok(outcome)
    }

    fn row(&self, at: usize) -> Sequence {
        lab::answered(&self.asked[at].prompt, &self.ids(&self.asked[at].call), END)
    }
}

fn is_right(expected: &str, found: &str) -> bool {
    let reference = Value::String(Style::Words.readable(expected));
    ToolCallVerifier.judge(&reference, &Style::Words.readable(found)).is_right()
}

fn config(numbers: &Numbers, epochs: Option<f64>, steps: Option<u64>) -> TrainConfig {
    TrainConfig {
        learning_rate: numbers.rate,
        lr_scheduler: Scheduler::Cosine,
        min_lr_ratio: 0.1,
        warmup_steps: Some(20),
        batch_size: numbers.batch,
        max_seq_len: numbers.shape.context,
        epochs: epochs.unwrap_or(1.0),
        max_steps: steps,
        weight_decay: 0.01,
        max_grad_norm: Some(1.0),
        save_steps: 1_000_000,
        save_total_limit: Some(1),
        ..TrainConfig::default()
    }
}

/// Trains on rows; `length` is their number of passes or steps.
fn train(
    lab: &Lab<'_>,
    data: &Data,
    name: &str,
    decoder: &mut Decoder,
    rows: Vec<Sequence>,
    (epochs, steps): (Option<f64>, Option<u64>),
) -> Result<u64, MethodError> {
    let store = lab::store(&lab.dir().join(format!("{name}-rows.train")), rows)?;
    let order = data.streams.child("order", &[]).child(name, &[]);
    let set = TrainingSet::new(store, data.numbers.shape.context, Packing::None, data.numbers.batch, order);
    let config = config(&data.numbers, epochs, steps);
    let training =
        Training { name, source: (&set).into(), measured: Vec::new(), config: &config, without_borders: false };
    Ok(lab::train(lab, decoder, training)?.state.totals.tokens)
}

/// The halves of the requests, by chance.
fn halves(data: &Data) -> [Vec<usize>; 2] {
    let mut order: Vec<usize> = (0..data.asked.len()).collect();
    order.shuffle(&mut data.streams.rng("halves", &[]));
    let second = order.split_off(order.len() / 2);
    [order, second]
}

/// Two models, each of which knows some of one half.
fn bootstrap(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let data = Data::new(lab, way(arm).clean || arm == "clean-bootstrap")?;
    let mut outcome = Outcome::default();
    for (name, half) in MODELS.into_iter().zip(halves(&data)) {
        let mut decoder = data.numbers.shape.decoder(data.streams)?;
        let rows = half[..data.numbers.bootstrap].iter().map(|&at| data.row(at)).collect();
        let passes = (Some(data.numbers.bootstrap_epochs), None);
        outcome.tokens += train(lab, &data, name, &mut decoder, rows, passes)?;
        lab::save(lab, name, &decoder)?;
        outcome.values.extend(data.measured(lab, &decoder, false)?.values);
    }
    Ok(outcome)
}

/// What a round trains on.
fn lessons(data: &Data, way: Way, round: usize, attempts: &[Vec<(String, bool)>]) -> (Vec<usize>, Vec<Sequence>) {
    let solvable: Vec<usize> =
        (0..attempts.len()).filter(|&at| attempts[at].iter().any(|(_, is_right)| *is_right)).collect();
    let chosen = match way.select {
        Select::Solvable => solvable,
        Select::All => (0..attempts.len()).collect(),
        Select::Random => {
            let mut all: Vec<usize> = (0..attempts.len()).collect();
            all.shuffle(&mut data.streams.rng("random requests", &[round as u64]));
            all.truncate(solvable.len());
            all.sort_unstable();
            all
        }
    };
    let mut rows: Vec<Sequence> = chosen.iter().map(|&at| data.row(at)).collect();
    if way.attempts {
        for &at in &chosen {
            let Asked { prompt, call, .. } = &data.asked[at];
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for (text, _) in attempts[at].iter().filter(|(_, is_right)| !is_right) {
                *counts.entry(text).or_default() += 1;
            }
            // The most frequent wrong attempt, of equals the first by name.
            let wrong = counts.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))).map(|(text, _)| *text);
            let pair = |attempt: &str, target: &str| {
                lab::answered(&Data::again(prompt, &data.ids(attempt)), &data.ids(target), END)
            };
            rows.extend(wrong.map(|attempt| pair(attempt, call)));
            if way.right_attempts {
                let right = attempts[at].iter().find(|(_, is_right)| *is_right);
                rows.extend(right.map(|(attempt, _)| pair(attempt, attempt)));
            }
        }
    }
    (chosen, rows)
}

/// The rounds of an arm.
fn rounds(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let way = way(arm);
    let data = Data::new(lab, way.clean)?;
    let mut decoder = data.numbers.shape.decoder(data.streams)?;
    let mut outcome = Outcome::default();
    let all: Vec<usize> = (0..data.asked.len()).collect();
    let tokens = data.numbers.tokens;
    let steps = |rows: &[Sequence], tokens: usize| {
        let length = rows.iter().map(Sequence::len).sum::<usize>() as f64 / rows.len().max(1) as f64;
        (tokens as f64 / (length * data.numbers.batch as f64)).round() as u64
    };
    if way.once {
        let rows: Vec<Sequence> = all.iter().map(|&at| data.row(at)).collect();
        let steps = steps(&rows, tokens * data.numbers.rounds);
        outcome.tokens = train(lab, &data, "all", &mut decoder, rows, (None, Some(steps)))?;
    } else {
        for round in 0..data.numbers.rounds {
            let set = format!("round {round}");
            let attempts = if way.select == Select::All && !way.attempts {
                vec![Vec::new(); all.len()]
            } else if round == 0 {
                crossed(lab, &data, way.clean, &set)?
            } else {
                data.attempts(lab, &decoder, &set, &all)?
            };
            let (chosen, rows) = lessons(&data, way, round, &attempts);
            let noisy = chosen.iter().filter(|&&at| data.asked[at].is_corrupted).count();
            outcome.values.insert(NOISE.into(), noisy as f64 / chosen.len().max(1) as f64);
            outcome.values.insert(KEPT.into(), chosen.len() as f64 / all.len() as f64);
            let steps = steps(&rows, tokens);
            outcome.tokens += train(lab, &data, &format!("round-{round}"), &mut decoder, rows, (None, Some(steps)))?;
        }
    }
    let measured = data.measured(lab, &decoder, true)?;
    outcome.values.extend(measured.values);
    outcome.items.extend(measured.items);
    Ok(outcome)
}

/// Each half's attempts by the model that knows the other half.
fn crossed(lab: &Lab<'_>, data: &Data, clean: bool, set: &str) -> Result<Vec<Vec<(String, bool)>>, MethodError> {
    let from = if clean { "clean-bootstrap" } else { "bootstrap" };
    let mut attempts = vec![Vec::new(); data.asked.len()];
    for (half, model) in halves(data).into_iter().zip(MODELS.into_iter().rev()) {
        let decoder = lab::load(lab, from, model)?;
        for (&at, found) in half.iter().zip(data.attempts(lab, &decoder, set, &half)?) {
            attempts[at] = found;
        }
    }
    Ok(attempts)
}

/// The reproduction.
struct ToolaceR;

impl Reproduction for ToolaceR {
    fn slug(&self) -> &'static str {
        METHOD.slug
    }

    fn version(&self) -> u32 {
        1
    }

    fn claim(&self) -> Claim {
        Claim {
            text: "training on requests that the model can just about answer, with its own attempts to check, makes more \
                   right calls on unseen requests, asked once, than training on everything, at equal tokens, where 35 % of \
                   the calls are corrupted",
            metric: EXACT,
            higher_is_better: true,
            method: "toolace-r",
            baseline: "sft",
        }
    }

    fn arms(&self, size: Size) -> Vec<Arm> {
        use Role::{Baseline, Control, Method, Shared, Variant};
        let arm = |name, role, what| Arm { name, needs: &["bootstrap"], role, what };
        let mut arms = vec![
            Arm { name: "bootstrap", needs: &[], role: Shared, what: "two models that know some of the requests" },
            arm("toolace-r", Method, "requests that can be answered, and own attempts to check"),
            Arm { name: "sft", needs: &[], role: Baseline, what: "everything, once" },
            arm("random", Control, "as many requests by chance, and own attempts to check"),
            arm("solvable-only", Variant, "requests that can be answered, without attempts"),
        ];
        if size == Size::M {
            let clean = |name, role, what| Arm { name, needs: &["clean-bootstrap"], role, what };
            arms.extend([
                arm("wrong-attempts-only", Variant, "toolace-r without attempts that are right already"),
                Arm { name: "iterated-all", needs: &[], role: Baseline, what: "everything, in two rounds" },
                Arm { name: "clean-bootstrap", needs: &[], role: Shared, what: "the same where no call is corrupted" },
                Arm { name: "clean-sft", needs: &[], role: Control, what: "sft where no call is corrupted" },
                clean("clean-toolace-r", Control, "toolace-r where no call is corrupted"),
            ]);
        }
        arms
    }

    fn settings(&self, size: Size) -> Value {
        json!({ "numbers": numbers(size), "fixed": FIXED_STEPS, "most": MOST_STEPS })
    }

    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
        match arm {
            "bootstrap" | "clean-bootstrap" => bootstrap(arm, lab),
            _ => rounds(arm, lab),
        }
    }

    fn checks(&self, size: Size, results: &Results) -> Vec<Check> {
        let at = |arm: &str, metric: &str| results.mean(arm, metric);
        let gain = |a: &str, b: &str| at(a, EXACT) - at(b, EXACT);
        let mut checks = vec![
            Check::at_most("corrupted calls among those that toolace-r trains on", at("toolace-r", NOISE), 0.1),
            Check::at_least("toolace-r over as many requests by chance", gain("toolace-r", "random"), 0.0),
            Check::at_least(
                "what adaptive refinement adds to toolace-r",
                at("toolace-r", REFINED) - at("toolace-r", EXACT),
                0.0,
            ),
            Check::at_most("right calls that refinement damages", at("toolace-r", DAMAGED), 0.01),
            Check::at_most("calls of the model, adaptive", at("toolace-r", CALLS), 2.4),
            Check::at_least(
                "repairs by toolace-r over those of a model that was not taught to",
                at("toolace-r", REPAIRED) - at("solvable-only", REPAIRED),
                0.0,
            ),
        ];
        if size == Size::M {
            checks.extend([
                Check::at_most(
                    "gain over sft where no call is corrupted",
                    gain("clean-toolace-r", "clean-sft"),
                    gain("toolace-r", "sft"),
                ),
                Check::at_least(
                    "damage without right attempts over that with them",
                    at("wrong-attempts-only", DAMAGED) - at("toolace-r", DAMAGED),
                    0.0,
                ),
            ]);
        }
        checks
    }

    fn shown(&self) -> &'static [&'static str] {
        &[HARD, REFINED, CALLS, REPAIRED, DAMAGED, NOISE]
    }
}
