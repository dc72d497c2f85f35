//! Dataset Decomposition: documents cut, each on its own, into pieces of 2^k tokens, and every step reads pieces of one
//! length, short ones first, in cycles.
//!
//! # Reference
//! Pouransari et al., "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum", NeurIPS 2024,
//! arXiv 2405.13226. Cutting is `didact_data::buckets`, the order of lengths `didact_data::curriculum::length`.
//!
//! # What is tried
//! The paper's point is cost: a better model for the same time, since attention costs what documents are long and never
//! crosses into a stranger. So the claim is decided at **equal time**: concatenate-and-chunk gets as many steps as the cost
//! table says fit into what the decomposed run takes, with a learning-rate schedule of its own length. The table is
//! measured once per seed, all shapes in turn ([`CostTable`]); nothing looks at a clock while it trains. `concat` is the
//! same at equal tokens. Held-out documents are read alone, from their beginning.
//!
//! The control is a corpus whose documents all fill the longest rows: decomposition must cost the same there.
//!
//! # Choices
//! Documents longer than the longest bucket are cut into pieces of its length (the official script draws the lengths at
//! random: `spread` at size m), tails too short for the shortest bucket are left out, a piece's first token is context
//! only. All arms lose the loss of the first token after a border.
//!
//! Each family of arms has its own best learning rate among 1.5e-3, 3e-3, 6e-3 and 1.2e-2, on seed 0, which is not among the
//! reported ones: rows of whole length (losses of `concat-equal-time` 5.109, 4.984, 4.951, 5.185) want 6e-3, decomposed
//! documents (`grow-p2` 5.006, 4.916, 4.997, 5.049) want 3e-3.

use std::time::{Duration, Instant};

use didact_core::seed::Streams;
use didact_core::sequence::Sequence;
use didact_data::batch::{Batch, TrainingSet};
use didact_data::buckets::{BucketAccount, BucketSettings, Joint, OverLong, Tail};
use didact_data::cost::{CostTable, Shape as StepShape};
use didact_data::curriculum::length::{CycleOrder, Length, LengthMix, LengthSettings, Odds};
use didact_data::curriculum::mixture::{Choice, Mixture, MixtureSettings, Reading};
use didact_data::curriculum::staged::Staged;
use didact_data::curriculum::weights::Weights;
use didact_data::curriculum::{Curriculum, Pool, Progress};
use didact_data::packing::Packing;
use didact_data::store::SequenceStore;
use didact_train::{Scheduler, Source, TrainConfig, time_batch};
use serde_json::{Value, json};

use super::Method;
use crate::error::MethodError;
use crate::lab::{self, Shape, Training};
use crate::reproduce::{Arm, Check, Claim, Lab, Outcome, Reproduction, Results, Role, Size};
use crate::synthetic::topics::{self, Lengths, Topics};

/// The method.
pub const METHOD: Method = Method {
    slug: "dataset-decomposition",
    paper: "Dataset Decomposition: Faster LLM Training with Variable Sequence Length Curriculum",
    authors: "Pouransari, Li, Chang et al.",
    year: 2024,
    arxiv: "2405.13226",
    needs: "documents of various lengths",
    summary: "cuts each document into pieces of 2^k tokens and reads one length per step, short ones first, in cycles",
    reproduction: &DatasetDecomposition,
};

/// Lengths of the pieces: 2^4 to 2^9 tokens.
const SHORTEST: u32 = 4;
const LONGEST: u32 = 9;
const CONTEXT: usize = 1 << LONGEST;
/// Targets of a step.
const STEP: usize = 2048;
/// Tokens of the corpus.
const TOKENS: usize = 600_000;
/// Documents measured on.
const HELD_OUT: usize = 300;
/// Of arms that read decomposed documents, and of those that read rows of the longest length.
const LEARNING_RATE: f64 = 3e-3;
const LEARNING_RATE_OF_ROWS: f64 = 6e-3;
const CYCLES: usize = 4;
const SHAPE: Shape =
    Shape { vocab_size: topics::VOCABULARY, hidden_size: 64, layers: 2, heads: 4, ffn: 172, context: CONTEXT };
/// Times that each shape of step is measured, after once to warm up.
const REPEATS: u32 = 15;
/// Steps of the real order that are timed to test the table.
const PROBE: usize = 60;

const LOSS: &str = "loss";
const SECONDS: &str = "seconds";
/// First and last positions in a document, for losses by position.
const BANDS: [(u32, u32); 4] = [(0, 16), (16, 64), (64, 256), (256, 512)];
/// Cost tables of the arm that measured them: rows read whole, and rows of several documents that do not see each other.
const COSTS: &str = "costs.json";
const MASKED_COSTS: &str = "masked-costs.json";

/// The corpus at one seed.
struct Data {
    streams: Streams,
    store: SequenceStore,
    held_out: TrainingSet,
}

impl Data {
    fn new(lab: &Lab<'_>) -> Result<Self, MethodError> {
        let (streams, dir) = (lab.streams(), lab.dir().join("data.train"));
        let language = Topics::new(&streams);
        let corpus = topics::up_to(TOKENS, language.documents(Lengths::Natural, &streams.child("train", &[])));
        let store = lab::store(&dir.join("train"), corpus)?;
        let first = |mut document: Sequence| {
            document.ids.truncate(CONTEXT + 1);
            document.weight.truncate(CONTEXT + 1);
            document.segment.truncate(CONTEXT + 1);
            document
        };
        let held_out = language.documents(Lengths::Natural, &streams.child("held out", &[])).take(HELD_OUT).map(first);
        let held_out = lab::measuring(lab::store(&dir.join("held-out"), held_out)?, CONTEXT);
        Ok(Self { streams, store, held_out })
    }

    fn buckets(&self, over_long: OverLong) -> Result<(Vec<Pool>, BucketAccount), MethodError> {
        buckets(&self.store, over_long, self.streams)
    }

    /// The decomposed corpus with its order of lengths.
    fn lengths(&self, odds: Odds, cycles: usize, over_long: OverLong, mix: LengthMix) -> Result<Length, MethodError> {
        let (pools, _) = self.buckets(over_long)?;
        lengths(pools, odds, cycles, mix, self.streams)
    }

    fn recommended(&self) -> Result<Length, MethodError> {
        self.lengths(Odds::Grow(2.0), CYCLES, OverLong::Cap, LengthMix::Natural)
    }

    /// Rows of the longest length, packed in one way or another.
    fn rows(&self, packing: Packing) -> TrainingSet {
        let streams = self.streams.child("rows", &[]);
        TrainingSet::new(self.store.clone(), CONTEXT, packing, STEP / CONTEXT, streams)
    }

    /// Concatenated rows of all documents whose length grows from the shortest to the longest over `steps`.
    fn warm_up(&self, steps: u64) -> Result<Staged, MethodError> {
        let n = u64::from(LONGEST - SHORTEST + 1);
        let part = |i: u64| -> Result<(u64, Box<dyn Curriculum>), MethodError> {
            let row_len = 1 << (SHORTEST as u64 + i);
            let pool = Pool::new("concatenated", self.store.clone(), row_len, Packing::Concat)?;
            let settings = MixtureSettings {
                batch_size: STEP / row_len,
                weights: Weights::Fixed(vec![1.0]),
                choice: Choice::Even,
                readings: vec![Reading::default()],
            };
            let mixture = Mixture::new(vec![pool], settings, self.streams.child("warm-up", &[i]))?;
            Ok(((i + 1) * steps / n - i * steps / n, Box::new(mixture)))
        };
        Ok(Staged::new((0..n).map(part).collect::<Result<_, _>>()?)?)
    }
}

fn buckets(
    store: &SequenceStore,
    over_long: OverLong,
    streams: Streams,
) -> Result<(Vec<Pool>, BucketAccount), MethodError> {
    let settings =
        BucketSettings { shortest: SHORTEST, longest: LONGEST, over_long, joint: Joint::Apart, tail: Tail::Drop };
    Ok(Pool::buckets(store.clone(), settings, streams.child("buckets", &[]))?)
}

fn lengths(
    pools: Vec<Pool>,
    odds: Odds,
    cycles: usize,
    mix: LengthMix,
    streams: Streams,
) -> Result<Length, MethodError> {
    let settings = LengthSettings {
        tokens_per_step: STEP,
        odds,
        cycles,
        order: CycleOrder::Drawn,
        mix,
        longest_first: false,
        keep_incomplete: false,
    };
    Ok(Length::new(pools, settings, streams.child("lengths", &[]))?)
}

fn step_shape(len: usize) -> StepShape {
    StepShape { rows: (STEP / len) as u32, len: len as u32 }
}

/// The shapes of some steps.
fn shapes(length: &Length) -> impl Iterator<Item = StepShape> + '_ {
    length.steps().iter().map(|step| step_shape(step.row_len))
}

fn config(steps: u64, learning_rate: f64) -> TrainConfig {
    TrainConfig {
        learning_rate,
        lr_scheduler: Scheduler::Cosine,
        min_lr_ratio: 0.01,
        warmup_ratio: Some(0.05),
        // Rows of the longest length; curricula say their own.
        batch_size: STEP / CONTEXT,
        max_seq_len: CONTEXT,
        max_steps: Some(steps),
        weight_decay: 0.033,
        adam_beta2: 0.95,
        max_grad_norm: Some(1.0),
        save_steps: steps,
        save_total_limit: Some(1),
        ..TrainConfig::default()
    }
}

/// Measures what a step of each length takes, and how well that predicts a part of the real order.
fn measure(lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let data = Data::new(lab)?;
    let decoder = SHAPE.decoder(data.streams)?;
    let mut length = data.recommended()?;
    let mut batches = std::collections::BTreeMap::new();
    let mut order = Vec::new();
    let total_steps = length.steps().len() as u64;
    for step in 0..total_steps {
        let Some(batch) = length.next_batch(&Progress { step, total_steps })? else { break };
        let shape = StepShape { rows: batch.rows as u32, len: batch.len as u32 };
        if order.len() < PROBE {
            order.push(batch.clone());
        }
        batches.entry(shape).or_insert(batch);
    }
    let all: Vec<StepShape> = batches.keys().copied().collect();
    let time = |batch: &Batch| -> Result<Duration, MethodError> { Ok(time_batch(&decoder, batch)?) };
    let what = format!("{SHAPE:?}, {} threads", lab.context().run.identity().environment.threads);
    let costs = CostTable::measure(what.clone(), &all, REPEATS, |shape| time(&batches[&shape]))?;
    let packed = data.rows(Packing::BestFit);
    let longest = [step_shape(CONTEXT)];
    let mut number = 0;
    let masked = CostTable::measure(what, &longest, REPEATS, |_| {
        number += 1;
        time(&packed.batch(number)?)
    })?;
    // In the real order caches are as cold, and shapes change as often, as when training.
    let begun = Instant::now();
    for batch in &order {
        time(batch)?;
    }
    let measured = begun.elapsed().as_secs_f64();
    let predicted =
        costs.total(order.iter().map(|batch| StepShape { rows: batch.rows as u32, len: batch.len as u32 }))?;
    costs.save(lab.dir().join(COSTS))?;
    masked.save(lab.dir().join(MASKED_COSTS))?;
    let mut outcome = Outcome::default();
    for cost in costs.costs() {
        outcome.values.insert(format!("ms per step of length {:>4}", cost.shape.len), 1e3 * cost.seconds);
        outcome.values.insert(format!("tokens/s at length {:>4}", cost.shape.len), STEP as f64 / cost.seconds);
    }
    outcome.values.insert("predicted / measured".into(), predicted / measured);
    // Documents that all fill the longest rows: nothing to gain.
    let language = Topics::new(&data.streams);
    let alike = language.documents(Lengths::Equal(CONTEXT + 1), &data.streams).take(TOKENS / CONTEXT / 4);
    let alike = lab::store(&lab.dir().join("alike.train"), alike)?;
    let (pools, _) = buckets(&alike, OverLong::Cap, data.streams)?;
    let longest_only: Vec<Pool> = pools.into_iter().filter(|pool| pool.rows() > 0).collect();
    let alike = lengths(longest_only, Odds::Uniform, 1, LengthMix::Natural, data.streams)?;
    let steps = alike.steps().len() as f64;
    let ratio = costs.total(shapes(&alike))? / (steps * costs.seconds(step_shape(CONTEXT))?);
    outcome.values.insert("cost ratio, documents alike".into(), ratio);
    Ok(outcome)
}

/// What an arm reads, for how many steps, and what these take by the table.
struct Plan<'a> {
    source: Source<'a>,
    steps: u64,
    seconds: f64,
    learning_rate: f64,
    without_borders: bool,
}

fn train(arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
    let data = Data::new(lab)?;
    let costs = CostTable::load(lab.arm("costs").join(COSTS))?;
    let masked = CostTable::load(lab.arm("costs").join(MASKED_COSTS))?;
    let recommended = data.recommended()?;
    let steps = recommended.steps().len() as u64;
    let seconds = costs.total(shapes(&recommended))?;
    let longest = step_shape(CONTEXT);
    let decomposed = |length: Length| -> Result<Plan<'_>, MethodError> {
        let (steps, seconds) = (length.steps().len() as u64, costs.total(shapes(&length))?);
        let source: Box<dyn Curriculum> = Box::new(length);
        Ok(Plan { source: source.into(), steps, seconds, learning_rate: LEARNING_RATE, without_borders: false })
    };
    let rows = match arm {
        "best-fit" | "best-fit-equal-time" => data.rows(Packing::BestFit),
        _ => data.rows(Packing::Concat),
    };
    let is_masked = !matches!(arm, "concat" | "concat-equal-time");
    let per_step = if is_masked { masked.seconds(longest)? } else { costs.seconds(longest)? };
    let packed = |steps: u64| Plan {
        source: (&rows).into(),
        steps,
        seconds: per_step * steps as f64,
        learning_rate: LEARNING_RATE_OF_ROWS,
        without_borders: !is_masked,
    };
    let natural = LengthMix::Natural;
    let plan = match arm {
        "grow-p2" => decomposed(recommended)?,
        "natural" => decomposed(data.lengths(Odds::Uniform, 1, OverLong::Cap, natural)?)?,
        "grow-linear" => decomposed(data.lengths(Odds::GrowLinear, CYCLES, OverLong::Cap, natural)?)?,
        "grow-p2-one-cycle" => decomposed(data.lengths(Odds::Grow(2.0), 1, OverLong::Cap, natural)?)?,
        "grow-p100" => decomposed(data.lengths(Odds::Grow(100.0), 1, OverLong::Cap, natural)?)?,
        "shrink-p100" => decomposed(data.lengths(Odds::Shrink(100.0), 1, OverLong::Cap, natural)?)?,
        "spread" => decomposed(data.lengths(Odds::Grow(2.0), CYCLES, OverLong::Spread, natural)?)?,
        "equal-mix" => decomposed(data.lengths(Odds::Grow(2.0), CYCLES, OverLong::Cap, LengthMix::Equal)?)?,
        "concat" | "concat-masked" | "best-fit" => packed(steps),
        "concat-equal-time" | "concat-masked-equal-time" | "best-fit-equal-time" => packed((seconds / per_step) as u64),
        "length-warm-up" => {
            let staged: Box<dyn Curriculum> = Box::new(data.warm_up(steps)?);
            let n = u64::from(LONGEST - SHORTEST + 1);
            let mut seconds = 0.0;
            for i in 0..n {
                let of_part = ((i + 1) * steps / n - i * steps / n) as f64;
                seconds += of_part * costs.seconds(step_shape(1 << (u64::from(SHORTEST) + i)))?;
            }
            Plan { source: staged.into(), steps, seconds, learning_rate: LEARNING_RATE_OF_ROWS, without_borders: true }
        }
        other => unreachable!("no arm is called `{other}`"),
    };
    let mut decoder = SHAPE.decoder(data.streams)?;
    let config = config(plan.steps, plan.learning_rate);
    let training = Training {
        name: "train",
        source: plan.source,
        measured: Vec::new(),
        config: &config,
        without_borders: plan.without_borders,
    };
    let trained = lab::train(lab, &mut decoder, training)?;
    let scores = lab::token_scores(lab, &decoder, &data.held_out)?;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let mut outcome = Outcome { tokens: trained.state.totals.tokens, ..Outcome::default() };
    let mut documents: Vec<Vec<f64>> = vec![Vec::new(); HELD_OUT];
    for score in &scores {
        documents[score.sequence as usize].push(f64::from(score.nll));
    }
    let all: Vec<f64> = documents.iter().flatten().copied().collect();
    outcome.values.insert(LOSS.into(), mean(&all));
    for (from, to) in BANDS {
        let of_band = |score: &&didact_train::TokenScore| (from..to).contains(&score.position);
        let losses: Vec<f64> = scores.iter().filter(of_band).map(|score| f64::from(score.nll)).collect();
        outcome.values.insert(format!("{LOSS}, positions {from} to {to}"), mean(&losses));
    }
    outcome.values.insert(SECONDS.into(), plan.seconds);
    outcome.values.insert("steps".into(), plan.steps as f64);
    outcome.items.insert(LOSS.into(), documents.iter().map(|losses| mean(losses)).collect());
    Ok(outcome)
}

/// The reproduction.
#[derive(Debug)]
pub struct DatasetDecomposition;

const fn arm(name: &'static str, role: Role, what: &'static str) -> Arm {
    Arm { name, needs: &["costs"], role, what }
}

impl Reproduction for DatasetDecomposition {
    fn slug(&self) -> &'static str {
        METHOD.slug
    }

    fn version(&self) -> u32 {
        1
    }

    fn claim(&self) -> Claim {
        Claim {
            text: "at equal training time, decomposed documents read in cycles from short to long (Grow-P2) end at a lower \
                   held-out loss than concatenate-and-chunk",
            metric: LOSS,
            higher_is_better: false,
            method: "grow-p2",
            baseline: "concat-equal-time",
        }
    }

    fn arms(&self, size: Size) -> Vec<Arm> {
        let mut arms = vec![
            Arm { name: "costs", needs: &[], role: Role::Shared, what: "what a step of each length takes" },
            arm("grow-p2", Role::Method, "decomposed, short pieces first, four cycles"),
            arm("concat-equal-time", Role::Baseline, "concatenate-and-chunk, for the same time"),
            arm("concat", Role::Baseline, "concatenate-and-chunk, for the same tokens"),
            arm("natural", Role::Control, "decomposed, lengths in no order"),
        ];
        if size == Size::S {
            return arms;
        }
        arms.extend([
            arm("concat-masked", Role::Baseline, "concatenated, documents do not see each other"),
            arm("concat-masked-equal-time", Role::Baseline, "the same, for the same time"),
            arm("best-fit", Role::Baseline, "documents whole where they fit, packed and masked"),
            arm("best-fit-equal-time", Role::Baseline, "the same, for the same time"),
            arm("length-warm-up", Role::Baseline, "concatenated rows that grow longer over training"),
            arm("grow-p2-one-cycle", Role::Variant, "Grow-P2 in one cycle"),
            arm("grow-linear", Role::Variant, "odds 6, 5, 4, 3, 2, 1, four cycles"),
            arm("grow-p100", Role::Variant, "nearly sorted, short first"),
            arm("shrink-p100", Role::Variant, "nearly sorted, long first"),
            arm("spread", Role::Variant, "long documents cut into pieces of drawn lengths"),
            arm("equal-mix", Role::Variant, "as many tokens of every length"),
        ]);
        arms
    }

    fn settings(&self, _size: Size) -> Value {
        json!({
            "shape": SHAPE, "buckets": [SHORTEST, LONGEST], "tokens_per_step": STEP, "tokens": TOKENS,
            "held_out": HELD_OUT, "learning_rates": [LEARNING_RATE, LEARNING_RATE_OF_ROWS], "cycles": CYCLES, "repeats": REPEATS,
        })
    }

    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError> {
        if arm == "costs" { measure(lab) } else { train(arm, lab) }
    }

    fn checks(&self, size: Size, results: &Results) -> Vec<Check> {
        let ratio = |metric: &str, arm: &str, of: &str| results.mean(arm, metric) / results.mean(of, metric);
        let per_step = |k: u32| results.mean("costs", &format!("ms per step of length {:>4}", 1 << k));
        let times: Vec<f64> = (SHORTEST..=LONGEST).map(per_step).collect();
        let first = format!("{LOSS}, positions {} to {}", BANDS[1].0, BANDS[1].1);
        let mut checks = vec![
            Check::at_most("time of grow-p2 / concat at equal tokens", ratio(SECONDS, "grow-p2", "concat"), 0.85),
            Check::at_most("loss of grow-p2 / concat at equal tokens", ratio(LOSS, "grow-p2", "concat"), 1.0),
            Check::at_most("the same at positions 16 to 64", ratio(&first, "grow-p2", "concat"), 1.0),
            Check::at_least("time per step, longest / 64 tokens", times[5] / times[2], 1.15),
            Check::at_least(
                "time by the table / measured in the real order",
                results.mean("costs", "predicted / measured"),
                0.85,
            ),
            Check::at_most(
                "time by the table / measured in the real order",
                results.mean("costs", "predicted / measured"),
                1.15,
            ),
            Check::at_least(
                "control: cost ratio where all documents are long",
                results.mean("costs", "cost ratio, documents alike"),
                0.99,
            ),
        ];
        if size == Size::M {
            checks.extend([
                Check::at_most(
                    "loss of grow-p2 / concat-masked at equal tokens",
                    ratio(LOSS, "grow-p2", "concat-masked"),
                    1.01,
                ),
                Check::at_most("loss of grow-p2 / best-fit at equal tokens", ratio(LOSS, "grow-p2", "best-fit"), 1.01),
                Check::at_most(
                    "loss of grow-p2 / best-fit at equal time",
                    ratio(LOSS, "grow-p2", "best-fit-equal-time"),
                    1.0,
                ),
                Check::at_least("loss of shrink-p100 / grow-p2", ratio(LOSS, "shrink-p100", "grow-p2"), 1.0),
                Check::at_least("loss of length-warm-up / grow-p2", ratio(LOSS, "length-warm-up", "grow-p2"), 1.0),
            ]);
        }
        checks
    }

    fn shown(&self) -> &'static [&'static str] {
        &[SECONDS, "steps"]
    }
}
