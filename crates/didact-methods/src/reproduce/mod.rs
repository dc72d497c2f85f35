//! Published claims, tried again at the scale of a laptop: a method's **arms** (the method, its baselines, controls) are
//! run at equal compute over several seeds, and one claim, fixed before the first run, is decided from them.
//!
//! A method implements [`Reproduction`]; [`run`] executes every (arm, seed) as a stage of one run directory, so that an
//! interrupted reproduction goes on where it was. The claim is decided by the paired t interval over seeds
//! ([`verdict`]); what else a paper says is a [`Check`]: printed, without influence on the verdict. What came of it is a
//! [`Record`], which tables, a plot and `RESULTS.md` are made from.
//!
//! How to add a method: `docs/reproductions.md`.

mod error;
mod lab;
mod plot;
mod record;
mod render;
mod results;
mod runner;
pub mod verdict;

pub use error::ReproduceError;
pub use lab::Lab;
pub use record::{ArmRecord, Compared, Curve, Paper, Record, effects};
pub use render::{RESULTS, keep, kept, page, write_page};
pub use results::Results;
pub use runner::{DEFAULT_SEEDS, PLOT, ReproduceOptions, default_run_dir, run};
pub use verdict::Verdict;

use crate::error::MethodError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// How large a reproduction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// At most ten minutes for the default seeds: the claim, its baselines, one control.
    #[default]
    S,
    /// At most an hour: every arm and variant of the method.
    M,
}

impl Size {
    /// As it is typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::M => "m",
        }
    }
}

/// What a paper says, as one comparison of two arms. Fixed before the first run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// In words.
    pub text: &'static str,
    /// The value of [`Outcome::values`] that is compared.
    pub metric: &'static str,
    /// Whether more of it is better.
    pub higher_is_better: bool,
    /// The arm that should be better.
    pub method: &'static str,
    /// The arm it should be better than.
    pub baseline: &'static str,
}

impl Claim {
    /// By how much the method is better where it measured `method` and the baseline `baseline`; below zero: worse.
    pub fn effect(&self, method: f64, baseline: f64) -> f64 {
        if self.higher_is_better { method - baseline } else { baseline - method }
    }

    /// The same claim the other way round.
    #[must_use]
    pub fn swapped(self) -> Self {
        Self { method: self.baseline, baseline: self.method, ..self }
    }
}

/// What an arm is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The method.
    Method,
    /// What it is compared with.
    Baseline,
    /// What must not, or must, happen if the comparison is sound.
    Control,
    /// Another form of the method or of a baseline.
    Variant,
    /// Preparation, such as a base model or a graph. Not shown, unless it measured something.
    Shared,
}

impl Role {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Baseline => "baseline",
            Self::Control => "control",
            Self::Variant => "variant",
            Self::Shared => "shared",
        }
    }
}

/// One way of doing things, run once per seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    /// Its name: lower case letters, digits and hyphens.
    pub name: &'static str,
    /// The arms, of the same seed, whose results it reads.
    pub needs: &'static [&'static str],
    /// What it is there for.
    pub role: Role,
    /// What it does, in a few words.
    pub what: &'static str,
}

/// A published claim that can be tried again.
pub trait Reproduction: Sync {
    /// The method's name on the command line.
    fn slug(&self) -> &'static str;
    /// Raised whenever the same settings give other numbers than before.
    fn version(&self) -> u32;
    /// What is decided. Its arms are there at every size.
    fn claim(&self) -> Claim;
    /// The arms, those that others need before them.
    fn arms(&self, size: Size) -> Vec<Arm>;
    /// Everything that results depend on, apart from the seed.
    fn settings(&self, size: Size) -> Value;
    /// Runs one arm at one seed. What randomness it needs comes from [`Lab::streams`], which are the same in every arm, so
    /// that arms are compared in pairs.
    ///
    /// # Errors
    /// What went wrong, or [`MethodError::Stopped`] after everything was saved: the same call is made again then, with what
    /// it left in [`Lab::dir`].
    fn run(&self, arm: &str, lab: &Lab<'_>) -> Result<Outcome, MethodError>;
    /// What else the paper says. Shown, without influence on the verdict.
    fn checks(&self, size: Size, results: &Results) -> Vec<Check>;
    /// Metrics that the table of arms shows beside the claim's, in order. When none are named, a few are taken.
    fn shown(&self) -> &'static [&'static str] {
        &[]
    }
}

/// What an arm measured at one seed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Numbers by name; the claim's metric is one of them.
    pub values: BTreeMap<String, f64>,
    /// The same metrics item by item (per sequence, per question), in an order that is the same in every arm of a seed: for
    /// the bootstrap. May be left out.
    #[serde(default)]
    pub items: BTreeMap<String, Vec<f64>>,
    /// Numbers along the way: step or tokens, and value. For the plot.
    #[serde(default)]
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// Tokens trained on.
    pub tokens: u64,
}

/// A statement beside the claim, compared with a threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The statement, with its direction.
    pub name: String,
    /// What was found.
    pub value: f64,
    /// What it was compared with.
    pub threshold: f64,
    /// Whether it is so.
    pub ok: bool,
}

impl Check {
    /// That a value is no more than a threshold.
    pub fn at_most(name: impl Into<String>, value: f64, threshold: f64) -> Self {
        Self { name: name.into(), value, threshold, ok: value <= threshold }
    }

    /// That a value is no less than a threshold.
    pub fn at_least(name: impl Into<String>, value: f64, threshold: f64) -> Self {
        Self { name: name.into(), value, threshold, ok: value >= threshold }
    }
}
