//! Named recipes and published methods: what the crates below are for.
//!
//! A **recipe** is a TOML file ([`recipe`], [`registry`]). It unfolds into **stages** ([`stages`]), each of which reads
//! artifacts of earlier ones and writes one of its own; [`plan()`] says what would be done, [`run()`] does it and ends with
//! a [`RunReport`]. The stages of a recipe are put together in [`pipeline`].
//!
//! [`rounds`] is what methods share in which a model learns from its own answers.
//!
//! [`toolworld`] makes requests and tool calls from a seed; recipes that teach or test tool use share it.
#![forbid(unsafe_code)]

pub mod continuations;
pub mod curricula;
mod env;
mod error;
pub mod lab;
mod meter;
pub mod methods;
pub mod mixed;
mod model_source;
pub mod pipeline;
mod plan;
pub mod recipe;
pub mod refine;
pub mod registry;
mod report;
pub mod reproduce;
pub mod rounds;
mod run;
pub mod skills;
pub mod stages;
pub mod synthetic;
pub mod tasks;
pub mod toolworld;

pub use env::{Env, RunOptions};
pub use error::MethodError;
pub use meter::{Meter, Readings};
pub use methods::{Method, method, methods};
pub use model_source::ModelHandle;
pub use plan::{Plan, PlannedStage, plan};
pub use recipe::{Recipe, RecipeError, load_recipe};
pub use registry::{NamedRecipe, named_recipe, recipes};
pub use report::{RunReport, StageReport};
pub use run::run;
