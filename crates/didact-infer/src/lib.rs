//! Generating text: with a model in this process, by asking a server ([`remote`], a feature), or from a record
//! ([`transcript`]).
//!
//! [`Engine`] is the model's mathematics over rows of tokens of many sequences at once, each with its [`KvCache`].
//! [`LocalModel`] adds the tokenizer. [`Scheduler`] is continuous batching: requests join and leave between forward
//! passes, and their text comes out as [`Event`]s while it is written. [`LocalGenerator`] is a thin loop over it that
//! implements [`didact_core::generate::Generator`], and scores given texts.
//!
//! What a request is answered does not depend on what else is in the batch, on the batch's size or on the number of
//! threads: every kernel gives a row the same bits whatever stands beside it, and what is drawn depends on the request's
//! seed only.
#![forbid(unsafe_code)]

mod adapter;
mod beam;
mod cache;
mod cached;
mod constraint;
mod engine;
mod error;
mod generator;
mod model;
mod prefix;
mod reading;
#[cfg(feature = "remote")]
pub mod remote;
mod rule;
mod sampler;
mod scheduler;
mod stop;
#[cfg(test)]
mod testing;
pub mod transcript;
pub mod tree;
mod weights;

pub use adapter::EngineAdapter;
pub use beam::{Beam, BeamSearch, EarlyStopping, beam_search};
pub use cache::KvCache;
pub use cached::CachedGenerator;
pub use engine::{Engine, Span};
pub use error::InferError;
pub use generator::LocalGenerator;
pub use model::LocalModel;
pub use reading::Reading;
pub use rule::{Citations, NoRepeat, ScoreRule};
pub use sampler::{Choice, End, Sampler, Samplers, check};
pub use scheduler::{Event, Options, RequestId, Scheduler, Written};
pub use weights::EngineWeights;
