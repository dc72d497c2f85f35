//! RTLWorld: small hardware tasks in English with their Verilog, made from a seed, and a simulator of that subset of Verilog.
//!
//! Everything is words: a task's prompt is a description, an answer the body, up to `endmodule`, of a module whose
//! header follows from it. A golden body is what the description means; a **noisy** one imitates data that another model wrote, with a
//! wrong operator here and an undeclared name there. [`simulate`] judges bodies as `didact_verify::verilog` does with a
//! real simulator, without one: same verdicts, thousands a second (a test compares both where Icarus Verilog is there).

mod bench;
mod body;
mod simulate;
mod world;

pub use bench::bench;
pub use simulate::{RtlVerifier, simulate};
pub use world::{END, RtlTask, VOCABULARY, World, ids, text};

#[cfg(test)]
mod tests;
