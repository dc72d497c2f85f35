//! From text to batches: reading rows, rendering chats, tokenising, deciding each token's loss weight, packing.
//!
//! - [`reader`] and [`schema`] turn files into [examples](didact_core::example::Example);
//! - [`template`] renders conversations as the model's chat template says, [`tokenizer`] turns text into ids and back,
//!   [`train`] makes a tokenizer;
//! - [`encode`] turns an example into a [sequence](didact_core::sequence::Sequence) with a loss weight per token, and
//!   [`ledger`] keeps count of what will be trained and what will not.
//!
//! - [`store`] keeps sequences in memory-mapped files, [`packing`] lays them into rows, [`batch`] serves batches that are
//!   a pure function of the step; [`prepare`] encodes on all threads, [`check`] reports on a data set without a model.
//!
//! - [`corpus`] holds tokenised documents of any number, made as a stream; [`filter`] leaves rows out and says why;
//!   [`sequences`] is where rows come from, a store or a corpus;
//! - [`buckets`] cuts documents by length, [`curriculum`] chooses what is read next, [`cost`] turns time into steps.
//!
//! This crate knows no model.
#![forbid(unsafe_code)]

pub mod batch;
pub mod buckets;
pub mod check;
pub mod corpus;
pub mod cost;
pub mod curriculum;
pub mod encode;
pub mod error;
pub mod filter;
pub mod ledger;
pub mod packing;
pub mod prepare;
pub mod reader;
pub mod schema;
pub mod sequences;
pub mod store;
pub mod template;
pub mod tokenizer;
pub mod train;

pub use error::DataError;
