//! Is a model's answer any good?
//!
//! Each verifier is a module with its own notion of a reference, and implements [`didact_core::verdict::Verifier`], the
//! trait through which training, selection and evaluation meet it. [`tool_call`] reads calls of tools in the notations
//! that models use and says how a wrong one is wrong.
#![forbid(unsafe_code)]

pub mod tool_call;

pub use tool_call::{Category, Comparison, ToolCallVerifier, compare, parse_calls};
