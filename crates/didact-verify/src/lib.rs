//! Is a model's answer any good?
//!
//! Each verifier is a module with its own notion of a reference, and implements [`didact_core::verdict::Verifier`], the
//! trait through which training, selection and evaluation meet it:
//! - [`tool_call`] reads calls of tools in the notations that models use and says how a wrong one is wrong;
//! - [`matching`] compares texts, numbers and sets, or tries an expression;
//! - [`verilog`] compiles and simulates a module against a test bench that it cannot fool;
//! - [`judge`] asks a language model;
//! - [`weighted`] makes one verdict of several verifiers';
//! - [`cached`] remembers verdicts by content.
//!
//! What a model wrote is only ever run by [`sandbox`]. What the verdicts mean: `docs/verifiers.md`.
#![forbid(unsafe_code)]

pub mod cached;
pub mod judge;
pub mod matching;
pub mod sandbox;
pub mod tool_call;
pub mod verilog;
pub mod weighted;

pub use tool_call::{Category, Comparison, ToolCallVerifier, compare, parse_calls};

use didact_core::cancel::Cancel;
use didact_core::verdict::{Item, Verdict};
use serde_json::Value;

pub(crate) fn verdict(score: f64, category: &str, reason: &str) -> Verdict {
    Verdict { score: Some(score), category: category.to_owned(), reason: reason.to_owned() }
}

/// No verdict: it is the reference that is wrong.
pub(crate) fn bad_reference(expected: &str, found: &Value) -> Verdict {
    let found: String = found.to_string().chars().take(80).collect();
    Verdict {
        score: None,
        category: "bad_reference".to_owned(),
        reason: format!("the reference should be {expected}; it is {found}"),
    }
}

/// Judges one answer after the other.
pub(crate) fn each(
    items: &[(&Item, &str)],
    sink: &mut dyn FnMut(usize, Verdict),
    cancel: &Cancel,
    judge: impl Fn(&Item, &str) -> Verdict,
) {
    for (index, (item, answer)) in items.iter().enumerate() {
        if cancel.is_cancelled() {
            break;
        }
        sink(index, judge(item, answer));
    }
}
