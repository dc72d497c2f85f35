//! Calls of tools: read from a model's answer, compared with the right ones, and the error named.
//!
//! An answer is a list of calls; the word `none` is the empty list. Three notations are read:
//! - JSON: `{"name": "f", "arguments": {"a": 1}}`, a list of those, or OpenAI's `{"type": "function", "function": {…}}`;
//! - calls: `f(a=1, b="two words", c=[1, 2])`, one per line or in a list, strings quoted or bare;
//! - either of them inside `<tool_call>…</tool_call>` (text around the tags is the model thinking aloud) or a code fence.
//!
//! Start at [`ToolCallVerifier`]; [`parse_calls`] and [`compare`] are its two halves.

mod compare;
mod parse;
mod verifier;

pub use compare::{Category, Comparison, Types, compare, compare_types};
pub use parse::{ParseError, parse_calls, render_call};
pub use verifier::{LooseToolCallVerifier, ReferenceError, ToolCallVerifier, reference_calls};

#[cfg(test)]
mod tests;
