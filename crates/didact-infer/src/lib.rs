//! Generating text with a model in this process.
//!
//! [`Engine`] is the model's mathematics over rows of tokens of many sequences at once, each with its [`KvCache`].
//! [`LocalGenerator`] schedules requests over it and implements [`didact_core::generate::Generator`]: continuous
//! batching, sampling, stop strings, log-probabilities, scoring.
//!
//! What a request is answered does not depend on what else is in the batch, on the batch's size or on the number of
//! threads: every kernel gives a row the same bits whatever stands beside it, and what is drawn depends on the request's
//! seed only.
#![forbid(unsafe_code)]

mod cache;
mod engine;
mod error;
mod generator;
mod sampler;
mod stop;
mod weights;

pub use cache::KvCache;
pub use engine::{Engine, Span};
pub use error::InferError;
pub use generator::{LocalGenerator, Options};
pub use sampler::{Choice, Sampler, check};
pub use weights::EngineWeights;
