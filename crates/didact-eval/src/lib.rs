//! The evaluation harness: tasks, few-shot prompts, scoring, metrics, and the statistics that say whether a difference is
//! real.
//!
//! [`metrics`] are plain functions of texts and numbers.
#![forbid(unsafe_code)]

pub mod metrics;
