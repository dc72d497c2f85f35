//! From the words of a recipe to a curriculum, with what is to be said about it before training.

use std::collections::BTreeMap;

use didact_core::progress::Table;
use didact_core::seed::Streams;
use didact_data::buckets::{BucketSettings, Joint, OverLong, Tail};
use didact_data::curriculum::length::{CycleOrder, Length, LengthMix, LengthSettings, Odds};
use didact_data::curriculum::mixture::{Choice, Mixture, MixtureSettings, OldShares, Reading as PoolReading, Taken};
use didact_data::curriculum::paced::{Drawing, Paced, PacedSettings, Pacing, PacingShape};
use didact_data::curriculum::weights::{Aggregate, Eta, GraphSettings, Shape, Weights, WindowUnit};
use didact_data::curriculum::{Curriculum, Pool};
use didact_data::sequences::Sequences;
use didact_model::ModelConfig;
use didact_train::TrainConfig;
use serde::{Deserialize, Serialize};

use crate::error::MethodError;
use crate::mixed::{Mixed, Opened, Reading};
use crate::recipe::{
    AggregateTable, ContinualTable, CurriculumTable, DecompositionTable, EtaTable, LengthMixture, LengthMixtureName,
    LengthOrder, OverLongTable, PaceShape, PathShape, Shares, SkillsSetting, SkillsTable, TailTable, WindowUnitTable,
};
use crate::skills::SkillsGraph;

/// The word for a document's length where a key of the rows is expected.
pub const LENGTH: &str = "length";
/// Share of dropped tokens above which another setting is suggested.
const MUCH_DROPPED: f64 = 0.1;
/// Times round a pool after which it is said.
const MANY_EPOCHS: f64 = 4.0;

/// What is said about a curriculum.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Notes {
    /// Tables: lengths, the graph.
    pub tables: Vec<Table>,
    /// What may not be meant.
    pub warnings: Vec<String>,
    /// Numbers for programs.
    pub values: BTreeMap<String, f64>,
    /// Rows of each pool, to tell how often it was read.
    pub rows: BTreeMap<String, u64>,
}

/// A curriculum and everything that goes with it.
pub struct Built {
    /// It.
    pub curriculum: Box<dyn Curriculum>,
    /// How to train: with steps and evaluations filled in.
    pub train: TrainConfig,
    /// What is to be said.
    pub notes: Notes,
    /// Rows of a step and targets of a row, where that takes most memory.
    pub shape: (usize, usize),
}

impl std::fmt::Debug for Built {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Built").field("train", &self.train).field("notes", &self.notes).finish_non_exhaustive()
    }
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, MethodError> {
    Err(MethodError::Sources { reason: reason.into() })
}

impl Mixed {
    /// The curriculum over opened pools. `graph` is the skills graph, where the method has one.
    ///
    /// # Errors
    /// When a setting makes no sense for these pools, or a corpus cannot be read.
    pub fn build(
        &self,
        opened: &[Opened],
        train: &TrainConfig,
        model: &ModelConfig,
        graph: Option<&SkillsGraph>,
        streams: Streams,
    ) -> Result<Built, MethodError> {
        let mut built = match &self.reading {
            Reading::Replay(table) => replay(table, &pools(opened, train)?, train, streams)?,
            Reading::Length(table) => return length(table, opened, train, model, streams),
            Reading::Skills(table) => skills(table, pools(opened, train)?, train, graph, streams)?,
            Reading::Curriculum(table) => mixture(table, opened, train, streams)?,
        };
        built.shape = (built.train.batch_size, built.train.max_seq_len);
        Ok(built)
    }
}

/// Pools of everything that is trained on.
fn pools(opened: &[Opened], train: &TrainConfig) -> Result<Vec<Pool>, MethodError> {
    let pool = |source: &Opened| {
        let sequences = source.train.clone()?;
        Some(Pool::new(&source.name, sequences, train.max_seq_len, train.packing))
    };
    Ok(opened.iter().filter_map(pool).collect::<Result<_, _>>()?)
}

fn notes_of(pools: &[Pool]) -> Notes {
    let rows = pools.iter().map(|pool| (pool.name().to_owned(), pool.rows() as u64)).collect();
    Notes { rows, ..Notes::default() }
}

fn built(curriculum: impl Curriculum + 'static, train: TrainConfig, notes: Notes) -> Built {
    Built { curriculum: Box::new(curriculum), train, notes, shape: (0, 0) }
}

/// Times round a source after which it is said: as often as the configuration asks for, where that is more than usual.
fn many_epochs(train: &TrainConfig) -> f64 {
    if train.max_steps.is_some() { MANY_EPOCHS } else { train.epochs.max(MANY_EPOCHS) }
}

/// The sources that a training of so many steps reads more often than `most` says of their names.
fn rereads(mixture: &Mixture, pools: &[Pool], steps: u64, most: impl Fn(&str) -> f64) -> Vec<String> {
    let at_first = if mixture.needs_feedback() { ", by the shares before the first evaluation" } else { "" };
    let told = pools.iter().zip(mixture.expected(steps)).filter(|(pool, expected)| {
        // A row more than there are is no second reading.
        expected.epochs > most(pool.name()) && expected.rows > (most(pool.name()) * pool.rows() as f64) as u64 + 1
    });
    told.map(|(pool, Taken { rows, epochs, .. })| {
        let (name, all) = (pool.name(), pool.rows());
        format!("`{name}` has {all} rows, of which {rows} are asked for{at_first}: it is read {epochs:.1} times")
    })
    .collect()
}

/// Steps of one pass over some rows, and of as many passes as the configuration says.
fn steps_for(rows: f64, train: &TrainConfig) -> u64 {
    train.max_steps.unwrap_or_else(|| ((rows * train.epochs / train.batch_size as f64).round() as u64).max(1))
}

fn replay(table: &ContinualTable, pools: &[Pool], train: &TrainConfig, streams: Streams) -> Result<Built, MethodError> {
    let share = table.share();
    let shares = match table.shares {
        Shares::BySize => OldShares::BySize,
        Shares::Equal => OldShares::Equal,
    };
    let Some((new, old)) = pools.split_last() else { return refuse("there is nothing new to train on") };
    if new.rows() == 0 {
        return refuse(format!("the new data (`{}`) has no row to train on", new.name()));
    }
    let mut notes = notes_of(pools);
    let per_step = (train.batch_size * train.max_seq_len) as u64;
    let scale = if table.replay_on_top { 1.0 / (1.0 - share) } else { 1.0 };
    let by_tokens = table.tokens.map(|tokens| tokens.div_ceil(per_step).max(1));
    let steps = train.max_steps.or(by_tokens).unwrap_or_else(|| steps_for(new.rows() as f64 * scale, train));
    let old_rows: usize = old.iter().map(Pool::rows).sum();
    if share > 0.0 && old_rows == 0 {
        return refuse(format!("replay={share}, but the replay dataset has 0 usable sequences"));
    }
    notes.values.insert("replay".into(), share);
    let settings = MixtureSettings::replay(pools, train.batch_size, share, shares, table.replay_offset)?;
    let curriculum = Mixture::new(pools.to_vec(), settings, streams)?;
    // Old data is there to be met again as it was, not to be learned by heart.
    let most = |name: &str| if name == new.name() { many_epochs(train) } else { 1.0 };
    notes.warnings.extend(rereads(&curriculum, pools, steps, most));
    Ok(built(curriculum, TrainConfig { max_steps: Some(steps), ..train.clone() }, notes))
}

fn mixture(
    table: &CurriculumTable,
    opened: &[Opened],
    train: &TrainConfig,
    streams: Streams,
) -> Result<Built, MethodError> {
    let mut pools = pools(opened, train)?;
    let mut notes = notes_of(&pools);
    let rows: usize = pools.iter().map(Pool::rows).sum();
    let many = many_epochs(train);
    let train = TrainConfig { max_steps: Some(steps_for(rows as f64, train)), ..train.clone() };
    if let Some(key) = &table.easy_first_by {
        let (1, Some(sequences)) = (opened.len(), opened.first().and_then(|source| source.train.as_ref())) else {
            return refuse("`curriculum.easy_first_by` ranks the rows of one source");
        };
        let scores = pools[0].row_scores(&scores(sequences, key)?);
        let shape = match table.pace {
            PaceShape::Linear => PacingShape::Linear,
            PaceShape::Quadratic => PacingShape::Quadratic,
            PaceShape::Root => PacingShape::Root,
            PaceShape::Log => PacingShape::Log,
            PaceShape::Exp => PacingShape::Exp,
            PaceShape::Step => PacingShape::Step,
        };
        let pacing = Pacing { shape, start: 0.0, end: table.pace_end, from: table.pace_from, to: 1.0 };
        let settings =
            PacedSettings { batch_size: train.batch_size, pacing, descending: false, drawing: Drawing::Independent };
        let curriculum = Paced::new(pools.remove(0), scores, settings, streams)?;
        return Ok(built(curriculum, train, notes));
    }
    let names: Vec<&str> = pools.iter().map(Pool::name).collect();
    let of = |weights: &BTreeMap<String, f64>| -> Vec<f64> {
        names.iter().map(|name| weights.get(*name).copied().unwrap_or(0.0)).collect()
    };
    let weights = if !table.path.is_empty() {
        let shape = match table.shape {
            PathShape::Step => Shape::Step,
            PathShape::Linear => Shape::Linear,
            PathShape::Cosine => Shape::Cosine,
        };
        Weights::Path { points: table.path.iter().map(|point| (point.at, of(&point.weights))).collect(), shape }
    } else if table.weights.is_empty() {
        Weights::Fixed(pools.iter().map(|pool| pool.plan().stats().targets as f64).collect())
    } else {
        Weights::Fixed(of(&table.weights))
    };
    let reading =
        |name: &&str| PoolReading { max_epochs: table.max_epochs.get(*name).copied(), ..PoolReading::default() };
    let readings = names.iter().map(reading).collect();
    let settings = MixtureSettings { batch_size: train.batch_size, weights, choice: Choice::Even, readings };
    let curriculum = Mixture::new(pools.clone(), settings, streams)?;
    // Whoever says how often a source may be read knows.
    let most = |name: &str| if table.max_epochs.contains_key(name) { f64::INFINITY } else { many };
    notes.warnings.extend(rereads(&curriculum, &pools, train.max_steps.unwrap_or(1), most));
    Ok(built(curriculum, train, notes))
}

/// How hard each sequence is: a field of its row, or its length.
fn scores(sequences: &Sequences, key: &str) -> Result<Vec<f64>, MethodError> {
    if key == LENGTH {
        return Ok(sequences.extents()?.into_iter().map(|(length, _)| f64::from(length)).collect());
    }
    let score = |index: usize| {
        let value = sequences.field(index, key)?;
        value.as_f64().ok_or_else(|| MethodError::Sources {
            reason: format!("{} has no number under `{key}`, which is to rank it", sequences.origin(index)),
        })
    };
    (0..sequences.len()).map(score).collect()
}

fn length(
    table: &DecompositionTable,
    opened: &[Opened],
    train: &TrainConfig,
    model: &ModelConfig,
    streams: Streams,
) -> Result<Built, MethodError> {
    let context = model.max_position_embeddings;
    if table.max > context {
        return refuse(format!(
            "`decomposition.max` is {}, the model's context is {context} tokens; longer rows need other positions first",
            table.max
        ));
    }
    let tokens_per_step = table.tokens_per_step.unwrap_or(8 * table.max);
    let Some(sequences) = opened.first().and_then(|source| source.train.clone()) else {
        return refuse("there are no documents to train on");
    };
    let settings = BucketSettings {
        shortest: table.min.ilog2(),
        longest: table.max.ilog2(),
        over_long: if table.over_long == OverLongTable::Cap { OverLong::Cap } else { OverLong::Spread },
        joint: if table.overlap { Joint::Overlap } else { Joint::Apart },
        tail: match table.tail {
            TailTable::Drop => Tail::Drop,
            TailTable::Pad => Tail::Pad,
            TailTable::Pack => Tail::Pack,
        },
    };
    let (pools, cut) = Pool::buckets(sequences, settings, streams)?;
    let odds = match (&table.odds, table.curriculum) {
        (Some(odds), _) => Odds::Given(odds.clone()),
        (None, LengthOrder::Uniform) => Odds::Uniform,
        (None, LengthOrder::GrowLinear) => Odds::GrowLinear,
        (None, LengthOrder::GrowP2) => Odds::Grow(2.0),
        (None, LengthOrder::GrowP100) => Odds::Grow(100.0),
        (None, LengthOrder::ShrinkP100) => Odds::Shrink(100.0),
    };
    let mix = match &table.mixture {
        LengthMixture::Name(LengthMixtureName::Natural) => LengthMix::Natural,
        LengthMixture::Name(LengthMixtureName::Equal) => LengthMix::Equal,
        LengthMixture::Tokens(tokens) => LengthMix::Targets(tokens.clone()),
    };
    let asked = match &mix {
        LengthMix::Targets(tokens) => pools.iter().zip(tokens).find(|(pool, tokens)| pool.rows() == 0 && **tokens > 0),
        _ => None,
    };
    if let Some((pool, tokens)) = asked {
        return refuse(format!("{tokens} tokens of rows of {} are asked for, of which there are none", pool.name()));
    }
    let mut notes = notes_of(&pools);
    let all: u64 = pools.iter().map(|pool| pool.plan().stats().targets).sum();
    let order = CycleOrder::Drawn;
    let settings = LengthSettings {
        tokens_per_step,
        odds,
        cycles: table.cycles,
        order,
        mix,
        longest_first: table.longest_first,
        keep_incomplete: table.keep_incomplete,
    };
    let curriculum = Length::new(pools.clone(), settings, streams)?;
    let account = curriculum.account();
    if account.cycles < table.cycles {
        notes.warnings.push(format!(
            "the data is enough for {} cycles with a step of every length, not for {}: so many are made",
            account.cycles, table.cycles
        ));
    }
    let share = |part: u64| part as f64 / all.max(1) as f64;
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rows = pools.iter().zip(&account.steps).zip(&account.targets).map(|((pool, steps), read)| {
        let targets = pool.plan().stats().targets;
        let cells = [pool.name().to_owned(), pool.rows().to_string(), targets.to_string(), percent(share(targets))];
        cells.into_iter().chain([steps.to_string(), read.to_string()]).collect()
    });
    notes.tables.push(Table {
        title: "rows by length".into(),
        columns: ["length", "rows", "tokens", "share", "steps per epoch", "tokens read"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
    });
    let dropped = cut.dropped_share();
    let read: u64 = account.targets.iter().sum();
    let context = pools
        .iter()
        .zip(&account.targets)
        .map(|(pool, &targets)| targets as f64 / read.max(1) as f64 * pool.plan().row_len() as f64 / 2.0);
    let context: f64 = context.sum();
    let work = |length: f64| 24.0 * (model.hidden_size as f64).powi(2) + 4.0 * length * model.hidden_size as f64;
    let mean_work: f64 = pools
        .iter()
        .zip(&account.targets)
        .map(|(pool, &targets)| targets as f64 / read.max(1) as f64 * work(pool.plan().row_len() as f64))
        .sum();
    let ratio = mean_work / work(table.max as f64);
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    notes.tables.push(Table {
        title: "decomposition".into(),
        columns: vec![String::new(), String::new()],
        rows: vec![
            fact("documents", cut.documents.to_string()),
            fact("tokens after the first of each", cut.targets.to_string()),
            fact(
                "left out, too few for the shortest row",
                format!("{} ({})", cut.tails, percent(cut.tails as f64 / cut.targets.max(1) as f64)),
            ),
            fact("context only, at the beginning of later pieces", cut.piece_starts.to_string()),
            fact("left out, fill no step", account.incomplete.to_string()),
            fact("left out by the mixture", account.unmixed.to_string()),
            fact("mean context of a token", format!("{context:.0} (half of {} when concatenated)", table.max)),
            fact("work of the layers, against rows of the longest length", format!("{ratio:.2}")),
        ],
    });
    if dropped > MUCH_DROPPED {
        notes.warnings.push(format!(
            "{} of the tokens are left out as tails shorter than {}: lower `decomposition.min`, or set `decomposition.tail` to \
             \"pack\"",
            percent(dropped),
            table.min
        ));
    }
    notes.values.extend([
        ("dropped_share".to_owned(), dropped),
        ("mean_context".to_owned(), context),
        ("work_ratio".to_owned(), ratio),
        ("cycles".to_owned(), account.cycles as f64),
    ]);
    let mut built = built(curriculum, train.clone(), notes);
    built.shape = (tokens_per_step / table.max, table.max);
    Ok(built)
}

/// Steps, rounds and evaluations of a training over skills.
///
/// # Errors
/// When rounds do not divide the steps, or evaluations the rounds.
pub(crate) fn rounds(table: &SkillsTable, rows: usize, train: &TrainConfig) -> Result<TrainConfig, MethodError> {
    if table.rounds == 0 {
        return refuse("`skills.rounds` is 0, expected at least 1");
    }
    let rounds = if table.is_static { 1 } else { table.rounds };
    let steps = match train.max_steps {
        Some(steps) => steps,
        None => steps_for(rows as f64, train).div_ceil(rounds) * rounds,
    };
    if !steps.is_multiple_of(rounds) {
        return refuse(format!("`skills.rounds` is {rounds}, which does not divide the {steps} steps of the training"));
    }
    let round = steps / rounds;
    let every = table.eval_every.unwrap_or_else(|| if round.is_multiple_of(3) { round / 3 } else { round });
    if every == 0 || !round.is_multiple_of(every) {
        return refuse(format!("`skills.eval_every` is {every}, which does not divide the {round} steps of a round"));
    }
    Ok(TrainConfig { max_steps: Some(steps), eval_steps: Some(every), ..train.clone() })
}

fn skills(
    table: &SkillsTable,
    pools: Vec<Pool>,
    train: &TrainConfig,
    graph: Option<&SkillsGraph>,
    streams: Streams,
) -> Result<Built, MethodError> {
    let rows: usize = pools.iter().map(Pool::rows).sum();
    let many = many_epochs(train);
    let train = rounds(table, rows, train)?;
    let mut notes = notes_of(&pools);
    let names: Vec<String> = pools.iter().map(|pool| pool.name().to_owned()).collect();
    let prior: Option<Vec<f64>> = (!table.prior.is_empty())
        .then(|| names.iter().map(|name| table.prior.get(name).copied().unwrap_or(0.0)).collect());
    // Without a graph (a look at what would be done) skills are read alike.
    let weights = match graph {
        None => Weights::Fixed(vec![1.0; pools.len()]),
        Some(graph) => {
            notes.tables.push(graph_table(graph));
            notes.warnings.extend(graph.warnings());
            notes.values.insert("graph_density".into(), graph.density());
            let steps = train.max_steps.unwrap_or(1);
            let rounds = if table.is_static { 1 } else { table.rounds };
            let usual = if table.setting == SkillsSetting::Cpt { AggregateTable::Sum } else { AggregateTable::Mean };
            Weights::Graph(GraphSettings {
                graph: graph.graph.clone(),
                evaluations: graph.eval_skills.clone(),
                eta: match table.eta {
                    EtaTable::Number(eta) => Eta::Given(eta),
                    EtaTable::Name(_) => Eta::Spread(1.5),
                },
                round_steps: steps / rounds,
                window: table.window.size,
                window_unit: match table.window.unit {
                    WindowUnitTable::Eval => WindowUnit::Evaluation,
                    WindowUnitTable::Round => WindowUnit::Round,
                },
                aggregate: match table.window.aggregate.unwrap_or(usual) {
                    AggregateTable::Sum => Aggregate::Sum,
                    AggregateTable::Mean => Aggregate::Mean,
                },
                relative_losses: table.normalize_loss,
                ignore_lone: false,
                min_weight: table.min_prob,
                prior,
            })
        }
    };
    let readings = vec![PoolReading::default(); pools.len()];
    let settings = MixtureSettings { batch_size: train.batch_size, weights, choice: Choice::Even, readings };
    let curriculum = Mixture::new(pools.clone(), settings, streams)?;
    notes.warnings.extend(rereads(&curriculum, &pools, train.max_steps.unwrap_or(1), |_| many));
    Ok(built(curriculum, train, notes))
}

/// The graph for people.
pub(crate) fn graph_table(graph: &SkillsGraph) -> Table {
    let row = |(i, name): (usize, &String)| {
        let entry = |j: usize| {
            let error = graph.standard_error.as_ref().map_or(String::new(), |e| format!(" ± {:.3}", e[i][j]));
            format!("{:.3}{error}", graph.graph[i][j])
        };
        [name.clone()].into_iter().chain((0..graph.eval_skills.len()).map(entry)).collect()
    };
    Table {
        title: "skills graph: training on the row lowers the loss of the column".into(),
        columns: [String::new()].into_iter().chain(graph.eval_skills.iter().cloned()).collect(),
        rows: graph.train_skills.iter().enumerate().map(row).collect(),
    }
}
