//! Made-up languages and tasks with a known structure, drawn from a seed: what reproductions train on.

pub mod addition;
pub mod agreement;
pub mod classes;
pub mod dictionary;
pub mod lego;
pub mod rtl;
pub mod stories;
pub mod topics;
mod words;

pub use words::Vocabulary;
