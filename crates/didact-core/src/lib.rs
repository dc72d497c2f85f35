//! The words the rest of Didact is written in, and the keeping of runs.
//!
//! Three groups of modules:
//! - **words**: [`message`], [`example`], [`sequence`], [`generate`], [`verdict`] are the types and traits through
//!   which sibling crates meet, so that inference, verification and evaluation never import each other;
//! - **runs**: [`files`] (the one layer through which everything is written), [`run`], [`stage`], [`metrics`],
//!   [`progress`], [`cancel`];
//! - **numbers**: [`seed`] (named random streams from one root seed) and [`hash`] (content hashes).
//!
//! This crate knows no model, no tensor and no tokenizer.
#![deny(unsafe_code)]

pub mod cancel;
pub mod example;
pub mod fault;
pub mod files;
pub mod generate;
pub mod gguf;
pub mod hash;
pub mod message;
pub mod metrics;
pub mod mmap;
pub mod progress;
pub mod run;
pub mod seed;
pub mod sequence;
pub mod stage;
pub mod verdict;
