//! The tools of a world.

use super::request::Level;
use super::vocabulary::{Kind, NOUNS, PARAMETERS, VERBS};
use didact_core::fault::{Classify, Fault};
use didact_core::seed::Streams;
use rand::RngExt;
use rand::seq::SliceRandom;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a world is like. Two worlds of the same configuration and seed are the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorldConfig {
    /// Nouns that each of the eight verbs is combined with, from 2 to 12; a tool's siblings share its verb.
    pub nouns_per_verb: usize,
    /// How many of them appear in no training sample.
    pub held_out_per_verb: usize,
    /// Share of samples whose request fits no tool; the right answer is `none`.
    pub none_share: f64,
    /// Whether prompts list tools, and which.
    pub docs: Option<Docs>,
    /// Shares of the levels.
    pub levels: LevelMix,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            nouns_per_verb: 4,
            held_out_per_verb: 0,
            none_share: 0.08,
            docs: None,
            levels: LevelMix { easy: 1.0, medium: 1.0, hard: 1.0 },
        }
    }
}

/// Which tools a prompt lists beside the one that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Docs {
    /// Tools listed beside the right one.
    pub distractors: usize,
    /// How many of them, at most, share the right one's verb.
    pub siblings: usize,
}

impl Default for Docs {
    fn default() -> Self {
        Self { distractors: 4, siblings: 2 }
    }
}

/// Relative shares of the levels; they need not sum to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
pub struct LevelMix {
    /// Required parameters only, every value in its own words.
    pub easy: f64,
    /// One optional parameter too, at most one value to be derived.
    pub medium: f64,
    /// Every parameter, at least two values to be derived, and a sentence that distracts.
    pub hard: f64,
}

impl LevelMix {
    /// Levels and their shares.
    pub fn shares(&self) -> [(Level, f64); 3] {
        [(Level::Easy, self.easy), (Level::Medium, self.medium), (Level::Hard, self.hard)]
    }
}

/// A configuration that makes no world.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// A setting is out of its range.
    #[error("`toolworld.{key}` is {found}, expected {expected}")]
    Setting {
        /// Key path below `toolworld`.
        key: &'static str,
        /// What was given.
        found: String,
        /// What would do.
        expected: String,
    },
    /// No tool of the pool has the parameters that a level needs.
    #[error("none of the {tools} {pool} tools can be asked for at level `{level}`: {needs}")]
    Level {
        /// Trained or held out.
        pool: &'static str,
        /// Tools in it.
        tools: usize,
        /// The level.
        level: &'static str,
        /// What the level needs.
        needs: &'static str,
    },
    /// The world has too few different requests.
    #[error("only {found} of {wanted} different requests for {pool} tools were found; ask for fewer samples")]
    Exhausted {
        /// Trained or held out.
        pool: &'static str,
        /// How many there are.
        found: usize,
        /// How many were asked for.
        wanted: usize,
    },
}

impl Classify for WorldError {
    fn fault(&self) -> Fault {
        Fault::Input
    }
}

/// A parameter of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParameterSpec {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Whether every call gives it.
    pub required: bool,
    pub(super) clauses: [&'static str; 3],
}

/// A tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolSpec {
    /// First half of the name.
    pub verb: &'static str,
    /// Second half of the name.
    pub noun: &'static str,
    /// Required ones first.
    pub parameters: Vec<ParameterSpec>,
    /// Whether no training sample may mention it.
    pub held_out: bool,
    pub(super) verb_phrases: [&'static str; 3],
    pub(super) noun_phrases: [&'static str; 2],
}

impl ToolSpec {
    /// `verb_noun`.
    pub fn name(&self) -> String {
        format!("{}_{}", self.verb, self.noun)
    }

    /// The signature as prompts list it, an optional parameter marked by `?`: `book_hotel(city, price?)`.
    pub fn signature(&self) -> String {
        let parameters: Vec<String> =
            self.parameters.iter().map(|p| format!("{}{}", p.name, if p.required { "" } else { "?" })).collect();
        format!("{}({})", self.name(), parameters.join(", "))
    }

    /// Whether requests of that level can ask for it.
    pub fn allows(&self, level: Level) -> bool {
        match level {
            Level::Easy => true,
            Level::Medium => self.parameters.iter().any(|p| !p.required),
            Level::Hard => self.parameters.iter().filter(|p| p.kind.is_derivable()).count() >= 2,
        }
    }
}

/// Which tools a sample may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Those that training samples are made of.
    Trained,
    /// Those that no training sample mentions.
    HeldOut,
}

impl Pool {
    /// The name used in messages and random streams.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trained => "trained",
            Self::HeldOut => "held-out",
        }
    }
}

/// A catalogue of tools.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    pub(super) config: WorldConfig,
    tools: Vec<ToolSpec>,
    /// Verb-noun pairs that are no tool: what a request that fits no tool may ask for.
    pub(super) strangers: Vec<ToolSpec>,
}

impl World {
    /// Draws the catalogue.
    ///
    /// # Errors
    /// [`WorldError::Setting`] for a setting out of its range.
    pub fn new(config: &WorldConfig, streams: &Streams) -> Result<Self, WorldError> {
        check(config)?;
        let mut tools = Vec::new();
        let mut strangers = Vec::new();
        for (v, (verb, verb_phrases)) in VERBS.into_iter().enumerate() {
            let mut rng = streams.rng("toolworld.catalogue", &[v as u64]);
            let mut order: Vec<usize> = (0..NOUNS.len()).collect();
            order.shuffle(&mut rng);
            for (rank, &n) in order.iter().enumerate() {
                let (noun, noun_phrases) = NOUNS[n];
                let required = rng.random_range(1..=2);
                let optional = rng.random_range(0..=2);
                let mut chosen: Vec<usize> = (0..PARAMETERS.len()).collect();
                chosen.shuffle(&mut rng);
                let parameters = chosen[..required + optional]
                    .iter()
                    .enumerate()
                    .map(|(i, &p)| {
                        let (name, kind, clauses) = PARAMETERS[p];
                        ParameterSpec { name, kind, required: i < required, clauses }
                    })
                    .collect();
                // The first nouns of the order are held out, the last are no tools at all.
                let held_out = rank < config.held_out_per_verb;
                let tool = ToolSpec { verb, noun, parameters, held_out, verb_phrases, noun_phrases };
                if rank < config.nouns_per_verb { tools.push(tool) } else { strangers.push(tool) }
            }
        }
        Ok(Self { config: config.clone(), tools, strangers })
    }

    /// All tools.
    pub fn tools(&self) -> &[ToolSpec] {
        &self.tools
    }

    /// Numbers of the tools in a pool.
    pub fn pool(&self, pool: Pool) -> Vec<usize> {
        (0..self.tools.len()).filter(|&t| self.tools[t].held_out == (pool == Pool::HeldOut)).collect()
    }
}

fn check(config: &WorldConfig) -> Result<(), WorldError> {
    let refuse =
        |key, found: String, expected: &str| Err(WorldError::Setting { key, found, expected: expected.to_owned() });
    let WorldConfig { nouns_per_verb, held_out_per_verb, none_share, docs, levels } = config;
    if !(2..=NOUNS.len()).contains(nouns_per_verb) {
        return refuse("nouns_per_verb", nouns_per_verb.to_string(), "2 to 12");
    }
    if held_out_per_verb >= nouns_per_verb {
        return refuse("held_out_per_verb", held_out_per_verb.to_string(), "fewer than `toolworld.nouns_per_verb`");
    }
    if !(0.0..1.0).contains(none_share) {
        return refuse("none_share", none_share.to_string(), "a share from 0 to below 1");
    }
    if docs.is_none() && *none_share > 0.0 && *nouns_per_verb == NOUNS.len() {
        return refuse(
            "none_share",
            none_share.to_string(),
            "0, since every verb-noun pair is a tool and none is listed",
        );
    }
    let kept = (nouns_per_verb - held_out_per_verb) * VERBS.len();
    if let Some(docs) = docs {
        if docs.distractors >= kept {
            return refuse("docs.distractors", docs.distractors.to_string(), "fewer than there are trained tools");
        }
        if docs.siblings > docs.distractors {
            return refuse("docs.siblings", docs.siblings.to_string(), "at most `toolworld.docs.distractors`");
        }
    }
    let shares = levels.shares().map(|(_, share)| share);
    if shares.iter().any(|s| !s.is_finite() || *s < 0.0) || shares.iter().sum::<f64>() <= 0.0 {
        return refuse("levels", format!("{shares:?}"), "shares of at least 0, one of them above 0");
    }
    Ok(())
}
