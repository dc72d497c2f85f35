//! Evaluation that people can trust: tasks, few-shot prompts, metrics, and the statistics that say whether a difference
//! is real. Prompts, scores and files are those of the lm-evaluation-harness, so that numbers can be compared.
//!
//! The way through: a [`task::Task`] is read from a file ([`task::TaskFile`]) or is built in ([`builtin`]);
//! [`harness::evaluate`] makes its prompts ([`task::prompt`]), asks a `Generator`, and measures ([`filter`], [`measure`], [`metrics`]); [`results`] writes what came out, [`compare`] sets two models side
//! by side, [`contamination`] looks for the questions in training text.

pub mod builtin;
pub mod compare;
pub mod contamination;
pub mod error;
pub mod filter;
pub mod harness;
pub mod measure;
pub mod metrics;
pub mod python;
pub mod results;
pub mod task;

pub use error::EvalError;
pub use harness::{EvalOptions, Model, TaskResult, Windows, evaluate};
pub use task::{Task, TaskFile};
