//! How good is an answer, and is a difference real?
//!
//! [`metrics`] are plain functions of texts, tokens and numbers; they know neither models nor files.

#![forbid(unsafe_code)]

pub mod metrics;
