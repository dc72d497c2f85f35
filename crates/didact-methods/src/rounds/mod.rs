//! Rounds: a model answers, a program judges, what is worth learning is chosen, the model learns it, is measured, and
//! answers again.
//!
//! Every step of a round is a stage ([`stages`]) that reads and writes JSON lines, and each can be interrupted at any answer
//! or verdict and goes on with the next one. What the steps do is in plain functions, which reproductions call as well:
//! [`tasks`] (what is asked), [`ask`] (answers and verdicts), [`select`] and [`solvable`] (what is learned of them), [`progress`] (whether to
//! go on). [`report`] reads a run's rounds back as a table. Methods differ in what they choose.

pub mod ask;
pub mod checker;
pub mod progress;
pub mod report;
pub mod select;
pub mod solvable;
pub mod stages;
pub mod tasks;
