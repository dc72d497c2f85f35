//! The tables of recipes that read from several named sources, or choose what is read next. Defaults are here and nowhere
//! else.

use std::collections::BTreeMap;

use didact_train::TrainConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::settings::{
    DataSettings, EvalSettings, ExportSettings, GenerateSettings, ModelSource, Paths, PrecisionChoice, default_seed,
    recipe_settings,
};
use super::{RecipeError, Refuse, Settings, check_data};
use crate::skills::Normalise;

/// A source: where it is, or a table with everything that can be said about data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path, a list of paths, or a table with the key `path`")]
pub enum SourceTable {
    /// Files, folders or globs, or the directory of a corpus that `didact data tokenize` made.
    Path(Paths),
    /// The same with more to say.
    Table(Box<DataSettings>),
}

impl SourceTable {
    /// With all defaults.
    pub fn data(&self) -> DataSettings {
        match self {
            Self::Path(paths) => DataSettings { path: Some(paths.clone()), ..DataSettings::default() },
            Self::Table(data) => (**data).clone(),
        }
    }
}

/// One source, or several with names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path, a list of paths, or a table of named sources")]
pub enum SourcesTable {
    /// One.
    One(SourceTable),
    /// Several.
    Named(BTreeMap<String, SourceTable>),
}

/// New data and what must not be forgotten.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContinualData {
    /// What is to be learned.
    pub new: Option<SourceTable>,
    /// What the model was trained on before, or stands in for it: one source or several.
    pub old: Option<SourcesTable>,
}

/// How different the new data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    /// Text of the same kind and language: 5 % of old data.
    #[default]
    Weak,
    /// Another language, code, notation: 25 % of old data.
    Strong,
}

/// How the old data's share is divided among several old sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// By their sizes.
    #[default]
    BySize,
    /// Equally.
    Equal,
}

/// How much of the old data is read again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContinualTable {
    /// How different the new data is; sets the share of old data when `replay` is not given.
    pub shift: Shift,
    /// Share of old data in every batch, from 0 to below 1.
    pub replay: Option<f64>,
    /// How it is divided among several old sources.
    pub shares: Shares,
    /// Row of the old data at which reading begins: where the last stage stopped.
    pub replay_offset: u64,
    /// Old data comes on top: all of the new data is read. Otherwise the training is as long as without old data, which takes
    /// the place of new data.
    pub replay_on_top: bool,
    /// Tokens to train on, old and new; once through the new data when neither this nor `train.max_steps` is given.
    pub tokens: Option<u64>,
}

impl ContinualTable {
    /// Share of old data.
    pub fn share(&self) -> f64 {
        self.replay.unwrap_or(match self.shift {
            Shift::Weak => 0.05,
            Shift::Strong => 0.25,
        })
    }
}

/// In which order lengths come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LengthOrder {
    /// Any.
    Uniform,
    /// Short ones somewhat sooner.
    GrowLinear,
    /// Short ones sooner, each length with half the odds of the one before.
    #[default]
    GrowP2,
    /// Nearly sorted, short ones first.
    GrowP100,
    /// Nearly sorted, long ones first.
    ShrinkP100,
}

/// How much of each length is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"natural\", \"equal\" or a list of numbers of tokens, one per length")]
pub enum LengthMixture {
    /// By name.
    Name(LengthMixtureName),
    /// At most so many tokens of each, shortest first.
    Tokens(Vec<u64>),
}

/// How much of each length is read, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LengthMixtureName {
    /// All there is.
    Natural,
    /// As many tokens of each as of the length that has least.
    Equal,
}

/// What happens to documents longer than the longest row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverLongTable {
    /// Each piece's length is drawn, so that all lengths get tokens from them.
    #[default]
    Spread,
    /// Pieces of the longest row.
    Cap,
}

/// What happens to what is left of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TailTable {
    /// It is left out, and counted.
    #[default]
    Drop,
    /// It becomes a padded row of the shortest length.
    Pad,
    /// Tails share rows of the shortest length.
    Pack,
}

/// How documents become rows of equal lengths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecompositionTable {
    /// Shortest row, in tokens: a power of two.
    pub min: usize,
    /// Longest row, in tokens: a power of two.
    pub max: usize,
    /// In which order lengths come.
    pub curriculum: LengthOrder,
    /// Odds of the lengths, shortest first, instead of `curriculum`.
    pub odds: Option<Vec<f64>>,
    /// How often lengths go from short to long.
    pub cycles: usize,
    /// Tokens of an optimiser step; a multiple of `max`. Eight rows of the longest length when not given.
    pub tokens_per_step: Option<usize>,
    /// How much of each length.
    pub mixture: LengthMixture,
    /// What happens to longer documents.
    pub over_long: OverLongTable,
    /// What happens to what is left of a document.
    pub tail: TailTable,
    /// The next piece of a document begins with the last token of the one before, so that no target is lost there.
    pub overlap: bool,
    /// The first step is one of the longest rows, so that too little memory shows at once.
    pub longest_first: bool,
    /// What fills no step at the end becomes a smaller one.
    pub keep_incomplete: bool,
}

impl Default for DecompositionTable {
    fn default() -> Self {
        Self {
            min: 64,
            max: 1024,
            curriculum: LengthOrder::default(),
            odds: None,
            cycles: 8,
            tokens_per_step: None,
            mixture: LengthMixture::Name(LengthMixtureName::Natural),
            over_long: OverLongTable::default(),
            tail: TailTable::default(),
            overlap: false,
            longest_first: true,
            keep_incomplete: false,
        }
    }
}

/// What the trained skills are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SkillsSetting {
    /// All skills are to be learned.
    #[default]
    Cpt,
    /// Some of the skills are.
    Ft,
    /// Skills are that have no training data.
    Ood,
}

/// Where the skills graph comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GraphMode {
    /// One short training per skill.
    #[default]
    Approx,
    /// And one per pair of skills.
    Brute,
    /// A file.
    File,
    /// Every skill helps only itself.
    Identity,
}

/// The skills graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GraphTable {
    /// Where it comes from.
    pub mode: GraphMode,
    /// Steps of each short training.
    pub steps: u64,
    /// Repetitions with other orders of the data, which give each entry a standard error.
    pub seeds: u64,
    /// What a drop in loss is divided by: `"relative"` (the base model's loss) or `"none"`.
    pub normalise: Normalise,
    /// The file, with `mode = "file"`.
    pub path: Option<String>,
}

impl Default for GraphTable {
    fn default() -> Self {
        Self { mode: GraphMode::default(), steps: 50, seeds: 1, normalise: Normalise::default(), path: None }
    }
}

/// A step size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number or \"auto\"")]
pub enum EtaTable {
    /// As given.
    Number(f64),
    /// By the first losses.
    Name(EtaName),
}

/// A step size by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EtaName {
    /// Such that at first the largest weight is about 4.5 times the smallest.
    Auto,
}

/// What a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WindowUnitTable {
    /// Evaluations.
    #[default]
    Eval,
    /// Rounds.
    Round,
}

/// What is made of the losses in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AggregateTable {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

/// Which losses count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WindowTable {
    /// How many of the last ones.
    pub size: usize,
    /// Of what.
    pub unit: WindowUnitTable,
    /// Their `"sum"` or their `"mean"`; the sum for `cpt`, else the mean, when not given.
    pub aggregate: Option<AggregateTable>,
}

impl Default for WindowTable {
    fn default() -> Self {
        Self { size: 3, unit: WindowUnitTable::default(), aggregate: None }
    }
}

/// How skills are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SkillsTable {
    /// Key of the rows that names their skill.
    pub column: String,
    /// What the trained skills are for.
    pub setting: SkillsSetting,
    /// The skills that count, for `ft` and `ood`.
    pub targets: Vec<String>,
    /// The skills graph.
    pub graph: GraphTable,
    /// Step size of the weights, or `"auto"`.
    pub eta: EtaTable,
    /// Which losses count.
    pub window: WindowTable,
    /// Rounds, each with one mixture; divides the steps.
    pub rounds: u64,
    /// Steps between two evaluations; divides the steps of a round. A third of a round when not given.
    pub eval_every: Option<u64>,
    /// Least share of a skill.
    pub min_prob: f64,
    /// Shares before anything is known, by skill; equal ones when empty.
    pub prior: BTreeMap<String, f64>,
    /// One mixture by the graph alone throughout.
    #[serde(rename = "static")]
    pub is_static: bool,
    /// Losses are divided by the first ones, so that skills of different difficulty compare.
    pub normalize_loss: bool,
}

impl Default for SkillsTable {
    fn default() -> Self {
        Self {
            column: "skill".to_owned(),
            setting: SkillsSetting::default(),
            targets: Vec::new(),
            graph: GraphTable::default(),
            eta: EtaTable::Name(EtaName::Auto),
            window: WindowTable::default(),
            rounds: 6,
            eval_every: None,
            min_prob: 0.0,
            prior: BTreeMap::new(),
            is_static: false,
            normalize_loss: true,
        }
    }
}

/// What lies between two points of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PathShape {
    /// The earlier weights.
    Step,
    /// A straight line.
    #[default]
    Linear,
    /// Half a cosine.
    Cosine,
}

/// Weights at one point of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathPoint {
    /// Share of the training that is done, from 0 to 1.
    pub at: f64,
    /// Weight of each source; 0 for those not named.
    pub weights: BTreeMap<String, f64>,
}

/// The form in which the share of easy rows grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they are those of `didact_data::curriculum::paced::PacingShape`")]
pub enum PaceShape {
    #[default]
    Linear,
    Quadratic,
    Root,
    Log,
    Exp,
    Step,
}

/// What is read next, from several sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CurriculumTable {
    /// Weight of each source; by their sizes when neither this nor `path` is given.
    pub weights: BTreeMap<String, f64>,
    /// Instead: weights at some points of training.
    pub path: Vec<PathPoint>,
    /// What lies between two points.
    pub shape: PathShape,
    /// How often each source may be read; then its weight goes to the others.
    pub max_epochs: BTreeMap<String, u64>,
    /// Instead of weights, with one source: the key of the rows that says how hard they are (a number; `"length"` for their
    /// length). Easy ones come first.
    pub easy_first_by: Option<String>,
    /// Form in which the share of the rows that may be read grows.
    pub pace: PaceShape,
    /// Share at the beginning.
    pub pace_from: f64,
    /// Share of the training after which everything may be read.
    pub pace_end: f64,
}

impl Default for CurriculumTable {
    fn default() -> Self {
        Self {
            weights: BTreeMap::new(),
            path: Vec::new(),
            shape: PathShape::default(),
            max_epochs: BTreeMap::new(),
            easy_first_by: None,
            pace: PaceShape::default(),
            pace_from: 0.1,
            pace_end: 0.875,
        }
    }
}

recipe_settings! {
    /// The recipe `continual-pretraining`.
    ContinualSettings {
        /// New data and old.
        data: ContinualData,
        /// How much of the old data is read again.
        continual: ContinualTable,
    }
}

recipe_settings! {
    /// The recipe `dataset-decomposition`.
    DecompositionSettings {
        /// Documents.
        data: DataSettings,
        /// How they become rows.
        decomposition: DecompositionTable,
    }
}

recipe_settings! {
    /// The recipe `skill-it`.
    SkillItSettings {
        /// Rows with a key that names their skill.
        data: DataSettings,
        /// How skills are chosen.
        skills: SkillsTable,
    }
}

recipe_settings! {
    /// The recipe `mixture`.
    MixtureRecipeSettings {
        /// Sources by name.
        sources: BTreeMap<String, SourceTable>,
        /// What is read next.
        curriculum: CurriculumTable,
    }
}

/// A source's name is also that of its directory.
fn check_name(key: &str, name: &str, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.chars().all(is_fine) && !name.is_empty() {
        return Ok(());
    }
    Err(refuse(&format!("{key}.{name}"), "is no name for a source; use letters, digits, `-` and `_`".into()))
}

/// Ranges and rules between keys; opens nothing.
pub(super) fn check(settings: &Settings, refuse: &Refuse<'_>) -> Result<(), RecipeError> {
    match settings {
        Settings::Continual(s) => {
            let Some(new) = &s.data.new else {
                return Err(refuse("data.new", "missing; name what is to be learned".into()));
            };
            check_data("data.new", &new.data(), refuse)?;
            let share = s.continual.share();
            if !(0.0..1.0).contains(&share) {
                let message = format!("is {share}, expected a share from 0 to below 1");
                return Err(refuse("continual.replay", message));
            }
            match &s.data.old {
                None if share > 0.0 => {
                    let message = "missing; name what the model was trained on, or stands in for it, or set \
                                   `continual.replay` to 0";
                    return Err(refuse("data.old", message.into()));
                }
                None => {}
                Some(SourcesTable::One(old)) => check_data("data.old", &old.data(), refuse)?,
                Some(SourcesTable::Named(all)) => {
                    for (name, old) in all {
                        check_data(&format!("data.old.{name}"), &old.data(), refuse)?;
                        if name == "new" {
                            return Err(refuse("data.old.new", "is the name of the new data; take another".into()));
                        }
                        check_name("data.old", name, refuse)?;
                    }
                }
            }
            if s.continual.tokens == Some(0) {
                return Err(refuse("continual.tokens", "is 0, expected at least 1".into()));
            }
            if s.continual.tokens.is_some() && s.train.max_steps.is_some() {
                return Err(refuse("continual.tokens", "says the same as `train.max_steps`; remove one".into()));
            }
        }
        Settings::Decomposition(s) => {
            check_data("data", &s.data, refuse)?;
            let DecompositionTable { min, max, cycles, tokens_per_step, .. } = s.decomposition;
            for (key, value) in [("min", min), ("max", max)] {
                if value < 2 || !value.is_power_of_two() || value > 1 << 30 {
                    let message = format!("is {value}, expected a power of two from 2");
                    return Err(refuse(&format!("decomposition.{key}"), message));
                }
            }
            if min > max {
                let message = format!("is {min}, more than `decomposition.max`, which is {max}");
                return Err(refuse("decomposition.min", message));
            }
            if let Some(tokens) = tokens_per_step.filter(|&tokens| tokens == 0 || !tokens.is_multiple_of(max)) {
                let message = format!("is {tokens}, expected a multiple of `decomposition.max`, which is {max}");
                return Err(refuse("decomposition.tokens_per_step", message));
            }
            if cycles == 0 {
                return Err(refuse("decomposition.cycles", "is 0, expected at least 1".into()));
            }
            let lengths = (max.ilog2() - min.ilog2() + 1) as usize;
            if let Some(odds) = &s.decomposition.odds
                && (odds.len() != lengths || odds.iter().any(|odds| !(odds.is_finite() && *odds > 0.0)))
            {
                let message = format!("is {odds:?}, expected {lengths} numbers above 0, one per length");
                return Err(refuse("decomposition.odds", message));
            }
            if let LengthMixture::Tokens(tokens) = &s.decomposition.mixture
                && tokens.len() != lengths
            {
                let message = format!("has {}, expected {lengths} numbers, one per length", tokens.len());
                return Err(refuse("decomposition.mixture", message));
            }
        }
        Settings::SkillIt(s) => {
            check_data("data", &s.data, refuse)?;
            let SkillsTable { setting, targets, graph, window, min_prob, .. } = &s.skills;
            if *setting != SkillsSetting::Cpt && targets.is_empty() {
                return Err(refuse("skills.targets", "missing; name the skills that count".into()));
            }
            if *setting == SkillsSetting::Cpt && !targets.is_empty() {
                let message = "belongs to `setting = \"ft\"` or `\"ood\"`; with \"cpt\" all skills count";
                return Err(refuse("skills.targets", message.into()));
            }
            if window.size == 0 {
                return Err(refuse("skills.window.size", "is 0, expected at least 1".into()));
            }
            if let EtaTable::Number(eta) = s.skills.eta
                && !(eta.is_finite() && eta > 0.0)
            {
                return Err(refuse("skills.eta", format!("is {eta}, expected a number above 0, or \"auto\"")));
            }
            if !(0.0..1.0).contains(min_prob) {
                return Err(refuse("skills.min_prob", format!("is {min_prob}, expected a share below 1 / skills")));
            }
            match (graph.mode, &graph.path) {
                (GraphMode::File, None) => {
                    return Err(refuse("skills.graph.path", "missing; name the graph's file".into()));
                }
                (GraphMode::File, _) | (_, None) => {}
                (_, Some(_)) => {
                    return Err(refuse("skills.graph.path", "belongs to `mode = \"file\"`; remove one".into()));
                }
            }
            if s.train.max_steps.is_some() {
                crate::curricula::rounds(&s.skills, 0, &s.train)
                    .map_err(|error| refuse("skills.rounds", error.to_string()))?;
            }
            let is_learned = matches!(graph.mode, GraphMode::Approx | GraphMode::Brute);
            if is_learned && (graph.steps == 0 || graph.seeds == 0) {
                return Err(refuse("skills.graph.steps", "or `seeds` is 0, expected at least 1".into()));
            }
            if graph.mode == GraphMode::Identity && *setting == SkillsSetting::Ood {
                let message = "is \"identity\", but what is measured is never trained on: no skill would count";
                return Err(refuse("skills.graph.mode", message.into()));
            }
        }
        Settings::Mixture(s) => {
            if s.sources.is_empty() {
                return Err(refuse("sources", "missing; name at least one".into()));
            }
            for (name, source) in &s.sources {
                check_data(&format!("sources.{name}"), &source.data(), refuse)?;
                check_name("sources", name, refuse)?;
            }
            let table = &s.curriculum;
            if !table.path.is_empty() && !table.weights.is_empty() {
                return Err(refuse("curriculum.path", "excludes `curriculum.weights`; remove one".into()));
            }
            let on_path = table.path.iter().flat_map(|point| point.weights.keys()).map(|name| ("path", name));
            let named = table.weights.keys().map(|name| ("weights", name));
            let mut named = named.chain(table.max_epochs.keys().map(|name| ("max_epochs", name))).chain(on_path);
            if let Some((key, name)) = named.find(|(_, name)| !s.sources.contains_key(*name)) {
                let sources: Vec<&str> = s.sources.keys().map(String::as_str).collect();
                let message = format!("names `{name}`; the sources are {}", sources.join(", "));
                return Err(refuse(&format!("curriculum.{key}"), message));
            }
        }
        Settings::Quickstart(_)
        | Settings::Sft(_)
        | Settings::Dpo(_)
        | Settings::ContinuePretrainingText(_)
        | Settings::FewShot(_)
        | Settings::Itertl(_)
        | Settings::Toolace(_)
        | Settings::Hyperfitting(_) => {}
    }
    Ok(())
}
